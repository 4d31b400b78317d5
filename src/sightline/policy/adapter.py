"""What the library needs of a model: six members. A new family implements `ModelAdapter` and nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, runtime_checkable

from jaxtyping import Float, Int
from torch import Tensor

__all__ = ["ModelAdapter", "Vision"]


@dataclass(frozen=True, slots=True)
class Vision:
    """Image features: one row per visual token, and those injected into the first decoder layers (may be empty)."""

    features: Float[Tensor, "visual width"]
    deepstack: Sequence[Tensor] = ()


@runtime_checkable
class ModelAdapter(Protocol):
    """The six members.

    Attributes:
        model: the transformers model whose parameters are trained and saved.
        convention: how the family writes boxes, `absolute` pixels after the resize or `relative_1000`.
    """

    def __init__(self, model: Any) -> None: ...

    model: Any
    convention: Literal["absolute", "relative_1000"]

    def placeholders(self) -> tuple[int, tuple[int, ...]]:
        """The id of one visual token, and every id the policy must never write (placeholders, vision marks, pad)."""
        ...

    def vision(self, pixels: Float[Tensor, "patches patch_width"], grids: Int[Tensor, "images 3"]) -> Vision:
        """Encodes distinct images, each once."""
        ...

    def text(
        self,
        ids: Int[Tensor, "rows tokens"],
        positions: Int[Tensor, "3 rows tokens"],
        mask: Any,
        visual: tuple[Vision, Tensor, Tensor] | None = None,
        **kwargs: Any,
    ) -> Float[Tensor, "rows tokens width"]:
        """Hidden states after the last norm. `visual` = (features, flat index of each visual token, feature index).

        The keyword `stops_at` names the last decoder layer that is needed: to compute more is slower, not wrong.
        Every other keyword goes to the decoder layers.
        """
        ...

    def logits(self, hidden: Float[Tensor, "scored width"]) -> Float[Tensor, "scored vocab"]: ...
