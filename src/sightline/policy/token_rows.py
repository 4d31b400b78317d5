"""A few trained rows of a frozen embedding matrix, without a copy of the matrix in every forward pass."""

from __future__ import annotations

from typing import Any

import torch
from peft.tuners.trainable_tokens import TrainableTokensLayer
from torch import Tensor, nn

__all__ = ["TokenRows", "held_rows", "use_token_rows"]


class TokenRows(TrainableTokensLayer):
    """peft's layer for trained rows, which it also stores, merges and switches off; only the forward pass differs.

    peft writes the rows into a copy of the whole matrix: a gigabyte per pass, and another for its gradient, at the
    vocabulary of a 7B model. Here only the embeddings of those tokens, or their logits, are replaced.
    """

    def forward_adapters(self, x: Tensor, active_adapters: list[str], *args: Any, **kwargs: Any) -> Tensor:
        if self.disable_adapters or not active_adapters or self.merged:
            return super().forward_adapters(x, active_adapters, *args, **kwargs)
        out = self.base_layer(x, *args, **kwargs)
        for name in active_adapters:
            ids = torch.tensor(self.token_indices[name], device=x.device)
            rows = self.trainable_tokens_delta[name]
            if isinstance(self.base_layer, nn.Embedding):
                hit = x[..., None] == ids
                # one nonzero factor per token, so the product is the row itself
                out = torch.where(hit.any(-1, keepdim=True), hit.to(rows.dtype) @ rows, out)
            else:
                out = out.index_copy(-1, ids, x @ rows.T)
        return out


def held_rows(model: nn.Module) -> list[tuple[Tensor, list[int]]]:
    """The parameters that hold trained rows, each with the ids of its rows; tied ones stand once."""
    layers = [m for m in model.modules() if isinstance(m, TokenRows) and m.tied_adapter is None]
    return [(m.trainable_tokens_delta["default"], m.token_indices["default"]) for m in layers]


def use_token_rows(model: nn.Module) -> None:
    """Gives the layers for trained rows in a model wrapped by peft the forward pass above."""
    for module in model.modules():
        if type(module) is TrainableTokensLayer:
            module.__class__ = TokenRows
