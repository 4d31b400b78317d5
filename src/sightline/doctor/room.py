"""Memory probe: whether the recipe fits the card, component by component, and the least change that makes it fit."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

from sightline.doctor.finding import Finding

if TYPE_CHECKING:
    from sightline.policy.memory import Memory

__all__ = ["HERE", "REMEDIES", "memory_probe", "remedy", "usable"]

GIB = 2**30
HERE = "this machine"
TIGHT = 0.92
"""Share of the card above which a run that fits is still worth a warning."""

REMEDIES: tuple[tuple[str, ...], ...] = (
    ("--model.checkpointing", "true"),
    ("--train.token_budget", "8192"),
    ("--sampling.batch", "64"),
    ("--optim.states", "8bit"),
    ("--model.masters", "stochastic"),
    ("--model.train_vision", "false"),
    ("--model.lora.rank", "32"),
    ("--model.lora.quantise", "nf4"),
)
"""What makes a run smaller, in the order in which it changes least."""


def memory_probe(
    needs: Memory, card: float, *, name: str = "", estimate: Callable[[Sequence[str]], Memory | None] | None = None
) -> Finding:
    """Compares the peak with the card.

    Args:
        needs: of the recipe, per card.
        card: GiB that a process can use.
        name: of the card, for messages.
        estimate: memory of the recipe with further overrides, None where they do not go with it; to find a remedy.
    """
    from sightline.policy.memory import FRAGMENTATION

    factor = 1 + FRAGMENTATION
    phases = {phase: needs.during(phase) * factor / GIB for phase in ("update", "step", "sampling")}
    worst = max(phases, key=lambda phase: phases[phase])
    peak = phases[worst]
    lines = tuple(_lines(needs))
    values = {"peak_gib": peak, "card_gib": card, **{f"{phase}_gib": size for phase, size in phases.items()}}
    place = f"{name or 'the card'} ({card:.1f} GiB)"
    said = f"{_size(peak * GIB)} at the peak ({_when(worst)}), {place}; " + ", ".join(
        f"{c.name} {_size(c.bytes)}" for c in sorted(needs, key=lambda c: -c.bytes)[:3]
    )
    if peak > card:
        found = remedy(card, estimate) if estimate is not None else ()
        return Finding(
            level="fail", what=said, meaning="the run would end with: out of memory", values=values, details=lines,
            shows_details=True,
            command=" ".join(found) if found else "a larger card, several (torchrun), or a smaller model",
        )  # fmt: skip
    if peak > TIGHT * card:
        return Finding(
            level="warn", what=said, values=values, details=lines, shows_details=True,
            command="a smaller train.token_budget",
            meaning="it fits with little to spare: one long record may be too much",
        )  # fmt: skip
    return Finding(level="pass", what=said, meaning=f"{1 - peak / card:.0%} of the card stays free", values=values,
                   details=lines, shows_details=True)  # fmt: skip


def remedy(card: float, estimate: Callable[[Sequence[str]], Memory | None]) -> tuple[str, ...]:
    """The overrides that make it fit: one if one is enough, else as many of them in order as are needed."""
    from sightline.policy.memory import fits

    single = {change: estimate(change) for change in REMEDIES}
    for change, needs in single.items():
        if needs is not None and fits(needs, card):
            return change
    taken: list[tuple[str, ...]] = []
    best = float("inf")
    for change in REMEDIES:
        needs = estimate(_words([*taken, change]))
        if needs is None or needs.peak >= best:
            continue
        taken, best = [*taken, change], needs.peak
        if fits(needs, card):
            return _words(_needed(taken, card, estimate))
    return ()


def _needed(
    taken: Sequence[tuple[str, ...]], card: float, estimate: Callable[[Sequence[str]], Memory | None]
) -> list[tuple[str, ...]]:
    """Those of the changes without which it would not fit."""
    from sightline.policy.memory import fits

    kept = list(taken)
    for change in taken[:-1]:
        fewer = [other for other in kept if other != change]
        needs = estimate(_words(fewer))
        if needs is not None and fits(needs, card):
            kept = fewer
    return kept


def _words(changes: Sequence[tuple[str, ...]]) -> tuple[str, ...]:
    return tuple(word for change in changes for word in change)


def usable(card: float | None, device: str) -> tuple[float, str]:
    """GiB that a process can use of a card of so many GB, and its name; without a card, of the machine itself.

    Example:
        >>> usable(80, "cuda"), usable(16, "cuda")[0] < 16
        ((79.1, '80 GB card'), True)
    """
    from sightline.policy.memory import CARDS

    if card is not None:
        known = CARDS.get(f"{card:g} GB")
        return (known if known is not None else 0.98 * card * 1e9 / GIB), f"{card:g} GB card"
    import torch

    if device.startswith(("cuda", "auto")) and torch.cuda.is_available():
        at = torch.device("cuda" if device == "auto" else device)
        return torch.cuda.get_device_properties(at).total_memory / GIB, torch.cuda.get_device_name(at)
    return _memory_of_machine(), HERE


def _lines(needs: Memory) -> Iterator[str]:
    """The table: one line per component, the phases of one that returns together."""
    merged: dict[tuple[str, float, str], list[str]] = {}
    for part in needs:
        merged.setdefault((part.name, part.bytes, part.why), []).append(_when(part.phase))
    for (name, count, why), phases in merged.items():
        yield f"{_size(count):>10}  {name} ({' and '.join(phases)}): {why}"


def _memory_of_machine() -> float:
    import os

    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / GIB


def _size(count: float) -> str:
    return f"{count / GIB:.1f} GiB" if count >= GIB / 10 else f"{count / 2**20:.1f} MiB"


def _when(phase: str) -> str:
    return {"always": "always", "update": "during the update", "step": "in the optimiser's step",
            "sampling": "while sampling"}[phase]  # fmt: skip
