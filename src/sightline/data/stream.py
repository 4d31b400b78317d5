"""The order in which records enter training: seeded, by epochs, by strata, resumable to the record.

A *deck* holds record numbers of one stratum and deals them; every epoch is a new order of the whole deck. A step never
holds a record twice: a record that a step already holds moves to the end of the epoch that just began.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from sightline.data.sources import Source
from sightline.errors import UserError
from sightline.types import Record

if TYPE_CHECKING:
    from jaxtyping import Int

__all__ = ["DataStream", "PairedBatch", "paired_batch"]

STATE_VERSION = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class PairedBatch:
    """A batch of prompts, split into records that take two prompts (with regions) and one (without)."""

    pairs: int
    singles: int

    @property
    def records(self) -> int:
        return self.pairs + self.singles

    @property
    def share(self) -> float:
        """Share of the records that carry regions: the value of `data.strata.regions`."""
        return self.pairs / self.records


def paired_batch(prompts: int, ratio: float) -> PairedBatch:
    """`pairs = floor(B r) // 2`, `singles = B - 2 pairs`: what a batch counted in prompts means in records.

    iVGR counts B prompts per step and gives the share r of them to pairs (arXiv 2605.31096, released sampler); here a
    step is counted in records, which are never split between steps.

    Example:
        >>> batch = paired_batch(512, 0.9)
        >>> batch.pairs, batch.singles, batch.records
        (230, 52, 282)
    """
    pairs = int(prompts * ratio) // 2
    return PairedBatch(pairs=pairs, singles=prompts - 2 * pairs)


class _Deck:
    """Deals the record numbers of one stratum; `indices=None` deals 0, 1, 2, ... without end."""

    def __init__(self, name: str, indices: Int[np.ndarray, " records"] | None, seed: int, shuffle: bool) -> None:
        self.name, self._indices, self._seed, self._shuffle = name, indices, seed, shuffle
        self._epoch, self._position = 0, 0
        self._late: list[int] = []
        self._order = self._ordered()

    @property
    def size(self) -> int | None:
        return None if self._indices is None else len(self._indices)

    def _ordered(self) -> Int[np.ndarray, " records"] | None:
        if self._indices is None:
            return None
        order = self._indices
        if self._shuffle:
            entropy = [self._seed, self._epoch, *self.name.encode()]
            order = np.random.default_rng(entropy).permutation(order)
        if self._late:
            is_late = np.isin(order, self._late)
            order = np.concatenate([order[~is_late], order[is_late]])
        return order

    def deal(self, count: int) -> list[int]:
        if self._order is None:
            self._position += count
            return list(range(self._position - count, self._position))
        dealt: list[int] = []
        while len(dealt) < count:
            if self._position == len(self._order):
                self._epoch, self._position, self._late = self._epoch + 1, 0, list(dealt)
                self._order = self._ordered()
                assert self._order is not None
            end = min(self._position + count - len(dealt), len(self._order))
            dealt += [int(i) for i in self._order[self._position : end]]
            self._position = end
        return dealt

    def state(self) -> dict[str, Any]:
        return {"epoch": self._epoch, "position": self._position, "late": self._late}

    def load_state(self, state: Mapping[str, Any]) -> None:
        self._epoch, self._position = int(state["epoch"]), int(state["position"])
        self._late = [int(i) for i in state["late"]]
        self._order = self._ordered()


class DataStream:
    """Draws the Records of each step from a Source.

    Args:
        source: Records of a file, or scenes.
        seed: decides the order of every epoch.
        records_per_step: size of a step unless `next` names another.
        strata: share of the records of a step that carry regions, e.g. `{"regions": 0.8}`; None draws all alike.
        shuffle: False keeps the order of the file.

    Raises:
        UserError: a step needs more records of a stratum than there are.
    """

    def __init__(
        self,
        source: Source,
        seed: int,
        records_per_step: int,
        strata: Mapping[str, float] | None = None,
        *,
        shuffle: bool = True,
    ) -> None:
        self.source, self.seed, self.records_per_step = source, seed, records_per_step
        self._share = None if strata is None else float(strata["regions"])
        self._decks = self._dealt_decks(shuffle)
        self._ahead: dict[int, Record] = {}
        self.counts(records_per_step)

    def _dealt_decks(self, shuffle: bool) -> dict[str, _Deck]:
        size, flags = self.source.size, self.source.has_regions
        if self._share is None:
            return {"all": _Deck("all", None if size is None else np.arange(size), self.seed, shuffle)}
        if flags is None:
            raise UserError(
                "scenes made on demand have no strata",
                where="data.strata",
                hint="remove the key, or write a file with `sightline data scenes --out DIR`",
            )
        with_regions, without = np.flatnonzero(flags), np.flatnonzero(~flags)
        return {
            "regions": _Deck("regions", with_regions, self.seed, shuffle),
            "plain": _Deck("plain", without, self.seed, shuffle),
        }

    def counts(self, records: int) -> dict[str, int]:
        """Records per stratum in a step of that size; the share is rounded to the nearest record."""
        if self._share is None:
            counts = {"all": records}
        else:
            with_regions = int(np.floor(records * self._share + 0.5))
            counts = {"regions": with_regions, "plain": records - with_regions}
        for name, count in counts.items():
            size = self._decks[name].size
            if size is not None and count > size:
                kind = {"all": "records", "regions": "records with regions", "plain": "records without regions"}[name]
                raise UserError(
                    f"a step needs {count} {kind} but the data hold {size}",
                    where="data.records_per_step",
                    hint="a record occurs at most once per step: lower it, or change data.strata",
                )
        return counts

    def next(self, records: int | None = None) -> list[Record]:
        """The Records of the next step, those with regions first; no Record occurs twice."""
        indices = self._deal(self.records_per_step if records is None else records)
        found = [self._ahead.pop(index) if index in self._ahead else self.source.at(index) for index in indices]
        self._ahead.clear()
        return found

    def peek(self) -> list[Record]:
        """The Records that the next step begins with. `next` still gives them, and does not read them again."""
        before = self.state()
        indices = self._deal(self.records_per_step)
        self.load_state(before)
        self._ahead = {index: self.source.at(index) for index in indices}
        return list(self._ahead.values())

    def _deal(self, records: int) -> list[int]:
        return [index for name, count in self.counts(records).items() for index in self._decks[name].deal(count)]

    @property
    def epoch(self) -> int:
        """Epochs begun before the current one, in the stratum that is furthest."""
        return max(deck.state()["epoch"] for deck in self._decks.values())

    def state(self) -> dict[str, Any]:
        """Position as plain JSON data."""
        return {
            "version": STATE_VERSION,
            "seed": self.seed,
            "size": self.source.size,
            "decks": {name: deck.state() for name, deck in self._decks.items()},
        }

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Continues exactly where `state` was taken; the data must be the same.

        Raises:
            UserError: seed, number of records or strata differ from when the state was saved.
        """
        mine = self.state()
        for key in ("version", "seed", "size"):
            if state.get(key) != mine[key]:
                raise UserError(
                    f"{key} of the data was {state.get(key)} in the checkpoint and is {mine[key]} now",
                    where="data",
                    hint="resume with the recipe and files of the run, or start a new folder",
                )
        if set(state["decks"]) != set(self._decks):
            raise UserError("the strata differ from the checkpoint's", where="data.strata")
        for name, deck in self._decks.items():
            deck.load_state(state["decks"][name])
