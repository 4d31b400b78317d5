"""Optimiser state and fp32 masters on disk where every process holds a share of them (torch.distributed.checkpoint).

Each process writes its own file; whoever reads, on as many processes as there are then, takes what it needs of each.
Names: `state.N.KEY` is the optimiser's KEY for its parameter N, `masters.N` the master of trained parameter N, `rng`
the generator.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from sightline.errors import SightlineError
from sightline.train.distributed import World

__all__ = ["has_shares", "read_shards", "write_shards"]

Like = Callable[[str], "Tensor | None"]


def has_shares(tensors: Mapping[str, Any]) -> bool:
    """Whether any of these is but a share of a tensor."""
    return any(isinstance(value, DTensor) for value in _flat(tensors).values())


def write_shards(folder: Path, tensors: Mapping[str, Any], world: World) -> None:
    """Writes the learner's state; every process calls it.

    Raises:
        SightlineError: in all of them, where one cannot write.
    """
    from torch.distributed.checkpoint.default_planner import DefaultSavePlanner
    from torch.distributed.checkpoint.state_dict_saver import save

    # of what all have whole, such as the generator, the main process's is kept
    planner = DefaultSavePlanner(dedup_save_to_lowest_rank=True)
    with _failing_in_a_line():
        save(_flat(tensors), checkpoint_id=folder, planner=planner, process_group=world.group)


def read_shards(folder: Path, like: Like, world: World) -> dict[str, Any]:
    """The learner's state, laid out as this run needs it; every process calls it.

    Args:
        folder: what `write_shards` filled.
        like: by name, the parameter whose shape and layout a tensor has; None for one that is whole everywhere.
        world: the processes.

    Raises:
        SightlineError: in all of them, where one cannot read its part.
        OSError, EOFError, RuntimeError, ValueError, LookupError, UnpicklingError: there is no list of the parts.
    """
    from torch.distributed.checkpoint.filesystem import FileSystemReader
    from torch.distributed.checkpoint.metadata import TensorStorageMetadata
    from torch.distributed.checkpoint.state_dict_loader import load

    wanted: dict[str, Tensor] = {}
    for name, saved in FileSystemReader(folder).read_metadata().state_dict_metadata.items():
        if not isinstance(saved, TensorStorageMetadata):
            raise ValueError(f"{name} is no tensor")
        parameter, dtype = like(name), saved.properties.dtype
        if parameter is None or parameter.shape != saved.size:
            wanted[name] = torch.empty(saved.size, dtype=dtype)
        else:
            wanted[name] = torch.empty_like(parameter, dtype=dtype, requires_grad=False)
    with warnings.catch_warnings(), _failing_in_a_line():
        warnings.simplefilter("ignore")  # one process reads alone, which is meant
        load(wanted, checkpoint_id=folder, process_group=world.group, no_dist=world.size == 1)
    return _nested(wanted)


@contextmanager
def _failing_in_a_line() -> Iterator[None]:
    """torch gathers what went wrong in every process into an exception that no handler of `Exception` sees."""
    from torch.distributed.checkpoint.api import CheckpointException

    try:
        yield
    except CheckpointException as error:
        reasons = [f"{type(e).__name__}: {e}" for _, (e, _) in sorted(error.failures.items())]
        raise SightlineError(" ".join(reasons[0].split())[:200]) from error


def _flat(tensors: Mapping[str, Any]) -> dict[str, Tensor]:
    found = {f"masters.{i}": value for i, value in enumerate(tensors["masters"])}
    for i, entry in tensors["optimizer"]["state"].items():
        found |= {f"state.{i}.{key}": value for key, value in entry.items()}
    return found | {name: value for name, value in tensors.items() if isinstance(value, Tensor)}


def _nested(flat: Mapping[str, Tensor]) -> dict[str, Any]:
    state: dict[int, dict[str, Tensor]] = {}
    masters: dict[int, Tensor] = {}
    rest: dict[str, Tensor] = {}
    for name, value in flat.items():
        kind, *place = name.split(".", 2)
        if kind == "state":
            state.setdefault(int(place[0]), {})[place[1]] = value
        elif kind == "masters":
            masters[int(place[0])] = value
        else:
            rest[name] = value
    return {"optimizer": {"state": state}, "masters": [masters[i] for i in sorted(masters)], **rest}
