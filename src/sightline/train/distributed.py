"""Several processes as one run: who takes part, what they tell each other, and how all of them end together.

`torchrun --nproc-per-node N -m sightline train RECIPE` starts N processes. Each samples and scores its own records,
everything that concerns the whole step is gathered, and exactly one process says why a run ends.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

from sightline.errors import SightlineError, UserError

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["World", "ends_together", "is_launched", "joined"]

T = TypeVar("T")

LOST = "a process of this run is gone (killed, out of memory, or stuck); the same command resumes the run"


@dataclass(frozen=True)
class World:
    """The processes of a run; a run of one process needs no group, and nothing here costs it anything.

    Attributes:
        rank: number of this process; 0 is the one that prints and writes.
        size: how many there are.
        local_rank: number of its accelerator.
        group: over which objects and CPU tensors travel.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    group: Any = None

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def part(self, items: Sequence[T]) -> list[T]:
        """This process's share of a sequence that all of them have.

        Example:
            >>> World(rank=1, size=2).part("abcde")
            ['b', 'd']
        """
        return list(items[self.rank :: self.size])

    def gather(self, value: T) -> list[T]:
        """What every process gave, by rank."""
        if self.size == 1:
            return [value]
        import torch.distributed as dist

        found: list[Any] = [None] * self.size
        dist.all_gather_object(found, value, group=self.group)
        return found

    def merged(self, mine: Sequence[T]) -> list[T]:
        """The sequence whose shares (see `part`) the processes hold."""
        parts = self.gather(list(mine))
        return [parts[i % self.size][i // self.size] for i in range(sum(map(len, parts)))]

    def broadcast(self, value: T) -> T:
        """What the main process gave."""
        if self.size == 1:
            return value
        import torch.distributed as dist

        found = [value]
        dist.broadcast_object_list(found, group=self.group)
        return found[0]

    def sum(self, value: Tensor) -> Tensor:
        """The sum over all processes, in place."""
        if self.size > 1:
            import torch.distributed as dist

            dist.all_reduce(value, group=self.group if value.device.type == "cpu" else None)
        return value

    def total(self, values: Mapping[str, float]) -> dict[str, float]:
        """Each number summed over the processes that have it."""
        if self.size == 1:
            return dict(values)
        found: dict[str, float] = {}
        for own in self.gather(dict(values)):
            for name, value in own.items():
                found[name] = found.get(name, 0.0) + value
        return found

    def any(self, *flags: bool) -> tuple[bool, ...]:
        """For each flag, whether it is set in any process."""
        if self.size == 1:
            return flags
        import torch

        return tuple(bool(n) for n in self.sum(torch.tensor(flags, dtype=torch.int32)).tolist())

    def barrier(self) -> None:
        """Waits for all processes."""
        self.gather(None)

    @contextmanager
    def agreeing(self) -> Iterator[None]:
        """An error that one process meets in this block, which holds no exchange, is raised in all of them.

        Raises:
            SightlineError: in the processes that met none, the line of the first that did.
        """
        if self.size == 1:
            yield
            return
        mine: BaseException | None = None
        try:
            yield
        except Exception as error:  # noqa: BLE001 - raised again below, once the others know
            mine = error
        lines = self.gather(None if mine is None else str(mine) or type(mine).__name__)
        if mine is not None:
            raise mine
        first = next((line for line in lines if line is not None), None)
        if first is not None:
            raise SightlineError(first)

    def device(self, name: str) -> str:
        """The device of this process, from the recipe's `model.device`.

        Raises:
            UserError: an accelerator by number, or a kind that several processes cannot share.
        """
        if self.size == 1:
            return name
        import torch

        if name == "cpu" or (name == "auto" and not torch.cuda.is_available()):
            return "cpu"
        if name not in ("cuda", "auto"):
            raise UserError(
                f"{name!r} cannot hold {self.size} processes", where="model.device", hint="cuda takes one each; or cpu"
            )
        count = torch.cuda.device_count()
        if self.local_rank >= count:
            raise UserError(
                f"{self.size} processes but {count} accelerators", where="torchrun --nproc-per-node",
                hint=f"start {count}" if count else "use --model.device cpu",
            )  # fmt: skip
        return f"cuda:{self.local_rank}"


def is_launched() -> bool:
    """Whether a launcher such as torchrun started this process as one of several."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1 and "RANK" in os.environ


@contextmanager
def joined(device: str = "cpu", timeout: float = 1800.0) -> Iterator[World]:
    """The world of this process: that of its launcher, else itself.

    Args:
        device: `model.device` of the recipe; cuda talks over nccl, everything else over gloo.
        timeout: seconds after which waiting for another process is an error.
    """
    if not is_launched():
        yield World()
        return
    import torch
    import torch.distributed as dist

    rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    world = World(rank=rank, size=size, local_rank=int(os.environ.get("LOCAL_RANK", rank)))
    own, wait = world.device(device), timedelta(seconds=timeout)
    if own.startswith("cuda"):
        torch.cuda.set_device(world.local_rank)
        dist.init_process_group("nccl", timeout=wait, device_id=torch.device(own))
    else:
        dist.init_process_group("gloo", timeout=wait)
    yield replace(world, group=dist.new_group(backend="gloo", timeout=wait))
    # after an error the others may be gone, and leaving in order would wait for them
    dist.barrier()
    dist.destroy_process_group()


def ends_together(work: Callable[[], int]) -> int:
    """Runs `work` as one of several processes. Whichever meets an error first says so, in one line; all of them end.

    Returns the exit code where nothing went wrong; otherwise the process ends here, without waiting for the others.
    """
    signal.signal(signal.SIGTERM, lambda *_: _end(LOST, 143))
    try:
        return work()
    except KeyboardInterrupt:
        _end("interrupted; the same command resumes the run", 130)
    except (SightlineError, FloatingPointError) as error:
        _end(str(error), 2)
    except OSError as error:
        place = "" if error.filename is None else f"{os.fsdecode(error.filename)}: "
        _end(f"{place}{error.strerror or str(error) or type(error).__name__}", 2)
    except Exception as error:  # noqa: BLE001 - a fault of ours, or a lost peer: the others must not wait for this one
        if _is_lost(error):
            _end(LOST, 1)
        import traceback

        _end(f"process {os.environ['RANK']}: {type(error).__name__}: {error}", 1, traceback.format_exc())
    raise AssertionError("unreachable")


def _end(line: str, code: int, details: str = "") -> None:
    if _is_first():
        plain = "".join(c if c.isprintable() else " " for c in line)
        print(f"{details}error: {' '.join(plain.split())}", file=sys.stderr)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # collectives and threads of a broken group can block an ordinary exit for minutes


def _is_first() -> bool:
    """Whether no other process of the run has said why it ends. The launcher's store outlives them."""
    from torch.distributed import TCPStore  # type: ignore[attr-defined]

    try:
        store = TCPStore(
            os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), is_master=False, timeout=timedelta(seconds=5)
        )  # fmt: skip
        name = f"sightline/ended/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}"
        return store.add(name, 1) == 1
    except (RuntimeError, KeyError, ValueError):
        return True  # nobody keeps a record: better said twice than not at all


def _is_lost(error: Exception) -> bool:
    """Whether an exchange failed because another process does not answer."""
    import torch.distributed as dist

    if isinstance(error, dist.DistError):
        return True
    text = str(error).lower()
    return isinstance(error, RuntimeError) and any(word in text for word in ("gloo", "nccl", "connection closed"))
