"""What sampling is asked for, and the protocol every sampler keeps."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np

from sightline.errors import UserError

if TYPE_CHECKING:
    from sightline.methods.base import TurnRule
    from sightline.policy.load import Policy
    from sightline.types import Prompt, Rollout

__all__ = ["Request", "Sampler", "SamplingSettings", "TrainingSampler", "uniforms"]


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingSettings:
    """How tokens are drawn.

    Attributes:
        temperature: logits are divided by it; 0 means greedy.
        top_p: nucleus kept when drawing. Recorded log-probs are those of the whole distribution, which the learner
            scores too; below 1 sampler and learner differ by the cut mass.
        max_new_tokens: ceiling per turn.

    Raises:
        UserError: a negative temperature, a nucleus outside (0, 1], or no token to write.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    max_new_tokens: int = 64

    def __post_init__(self) -> None:
        if not 0 <= self.temperature < float("inf"):
            raise UserError(
                f"temperature must be 0 or more, got {self.temperature}", hint="0 takes the likeliest token"
            )
        if not 0 < self.top_p <= 1:
            raise UserError(f"top_p must be above 0 and at most 1, got {self.top_p}", hint="1 keeps every token")
        if self.max_new_tokens < 1:
            raise UserError(f"max_new_tokens must be at least 1, got {self.max_new_tokens}")


@dataclass(frozen=True, slots=True)
class Request:
    """Rollouts asked of one Prompt.

    Attributes:
        prompt: what is shown.
        branches: Rollouts per level of the sampling tree; level k begins where turn k + 1 is sampled. `(2, 4)` samples
            two first turns and continues each of them four times.
        turns: what happens after a turn; None for a single turn.

    Raises:
        ValueError: no branches, or a level without any.

    Example:
        >>> from sightline.types import Prompt, Record
        >>> shown = Prompt(record=Record(id="r1", question="?", answer="a"), stream="grounded", messages=())
        >>> Request(shown, (2, 4)).n
        8
    """

    prompt: Prompt
    branches: tuple[int, ...] = (1,)
    turns: TurnRule | None = None

    def __post_init__(self) -> None:
        if not self.branches or min(self.branches) < 1:
            raise ValueError(f"branches must be one or more numbers of at least 1, got {self.branches}")

    @property
    def n(self) -> int:
        """Rollouts: the product of the branches."""
        return math.prod(self.branches)


class Sampler(Protocol):
    def sample(
        self, requests: Sequence[Request], settings: SamplingSettings, *, seed: int, step: int
    ) -> list[list[Rollout]]:
        """`n` Rollouts for each Request, in the order given; those of one Request in row-major order of branches."""
        ...


class TrainingSampler(Sampler, Protocol):
    """A sampler that follows a policy while it is trained."""

    def refresh(self, policy: Policy) -> None:
        """Samples with the policy's present weights from now on. Every process of a run calls it."""
        ...

    def metrics(self) -> dict[str, float]:
        """What is worth logging of a step since the last call."""
        ...

    def alarms(self) -> tuple[str, ...]:
        """What is wrong at present, one line each."""
        ...

    def close(self) -> None:
        """Lets go of connections and threads."""
        ...


def uniforms(seed: int, step: int, record: str, stream: str, branch: tuple[int, ...], count: int) -> np.ndarray:
    """The `count` uniform numbers of one Rollout, keyed by what it is, not by which process or batch draws it.

    Example:
        >>> a = uniforms(0, 3, "s1", "textual", (2,), 4)
        >>> b, c = uniforms(0, 3, "s1", "textual", (2,), 4), uniforms(0, 3, "s1", "textual", (1,), 4)
        >>> bool((a == b).all()), bool((a == c).any())
        (True, False)
    """
    import hashlib

    key = hashlib.blake2b(repr((seed, step, record, stream, branch)).encode(), digest_size=16).digest()
    return np.random.Generator(np.random.Philox(key=int.from_bytes(key, "little"))).random(count)
