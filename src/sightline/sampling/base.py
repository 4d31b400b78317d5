"""What sampling is asked for, and the protocol every sampler keeps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np

from sightline.errors import UserError

if TYPE_CHECKING:
    from sightline.types import Prompt, Rollout

__all__ = ["Sampler", "SamplingSettings", "uniforms"]


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


class Sampler(Protocol):
    def sample(
        self, prompts: Sequence[Prompt], n: Sequence[int], settings: SamplingSettings, *, seed: int, step: int
    ) -> list[list[Rollout]]:
        """`n[i]` Rollouts for each prompt i, in order."""
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
