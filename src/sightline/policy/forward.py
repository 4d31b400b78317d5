"""The one root module: vision once per image, language model over token trees, log-probs of sampled tokens only.

Everything a training or scoring pass computes happens inside this `forward`, so that sharded parameters are gathered
once and old, reference and counterfactual log-probs are calls of the same module.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from sightline.policy.attention import tree_inputs
from sightline.policy.fused import FusedLogprobs
from sightline.policy.readout import MapReadout, Readouts

if TYPE_CHECKING:
    from sightline.policy.adapter import ModelAdapter
    from sightline.policy.attention import Readout
    from sightline.policy.batch import Batch
    from sightline.policy.divergence import Against

__all__ = ["BANNED", "Outputs", "PolicyModule", "TokenLogprobs", "ban_bias"]

BANNED = -1e9
BLOCK = 2**27


@dataclass(frozen=True, slots=True)
class Outputs:
    """Log-probs (with gradient where enabled) and entropies (never with gradient) of the scored tokens.

    `hidden` are the states that predict them, after the last norm, and `divergence` tells how far the predicted
    distributions are from others, where asked. `maps` is filled by the learner: the attention of each probe that is
    read in the update.
    """

    logprobs: Float[Tensor, "scored"]
    entropies: Float[Tensor, "scored"] | None = None
    hidden: Float[Tensor, "scored width"] | None = None
    divergence: Float[Tensor, "scored"] | None = None
    maps: Mapping[str, Any] = field(default_factory=dict)


def ban_bias(vocab: int, banned: tuple[int, ...]) -> Float[Tensor, "vocab"]:
    """0, and BANNED for ids that neither sampler nor learner may give probability.

    BANNED is finite, so that 0 x BANNED is 0 in an entropy, and so low that its softmax is exactly 0 in fp32.
    """
    bias = torch.zeros(vocab)
    bias[list(banned)] = BANNED
    return bias


class TokenLogprobs(torch.autograd.Function):
    """log softmax(z)[target] and the entropy of softmax(z), one softmax for both and for the backward pass.

    d logp / d z = onehot(target) - softmax(z). The entropy carries no gradient.
    """

    @staticmethod
    def forward(ctx: Any, z: Tensor, target: Tensor, entropies: bool) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        p = torch.softmax(z, -1)
        chosen = z.gather(-1, target[:, None])[:, 0]
        # the log of the normaliser, read off where p is largest: two reductions in place of another exponential
        total = z.amax(-1) - p.amax(-1).log()
        entropy = total - torch.linalg.vecdot(p, z) if entropies else z.new_empty(0)
        ctx.save_for_backward(p, target)
        ctx.mark_non_differentiable(entropy)
        return chosen - total, entropy

    @staticmethod
    def backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor, None, None]:  # type: ignore[override]
        p, target = ctx.saved_tensors
        out = p * -grad[:, None]
        return out.scatter_add_(-1, target[:, None], grad[:, None]), None, None


class PolicyModule(nn.Module):
    """Root module around a `ModelAdapter`.

    Args:
        adapter: the model family.
        banned: ids without probability in sampling and in every scoring pass.
        chunk: scored tokens per block of logits; blocks are recomputed in the backward pass, so that the full logits
            never exist at once. By default a block holds 2^27 numbers.
    """

    def __init__(self, adapter: ModelAdapter, banned: tuple[int, ...], *, chunk: int | None = None) -> None:
        super().__init__()
        self.adapter = adapter
        self.model = adapter.model
        weight: Any = self.model.get_output_embeddings().weight  # type: ignore[operator]
        vocab = int(weight.shape[0])
        self.chunk = chunk or max(128, BLOCK // vocab)
        self.bias: Tensor
        self.register_buffer("bias", ban_bias(vocab, banned).to(weight.device), persistent=False)

    def scores(self, hidden: Float[Tensor, "scored width"], temperature: float = 1.0) -> Float[Tensor, "scored vocab"]:
        """Logits in fp32, divided by the temperature, banned ids out: what sampler and learner both normalise."""
        z = self.adapter.logits(hidden).float() + self.bias
        return z / temperature if temperature != 1.0 else z

    def forward(
        self,
        batch: Batch,
        *,
        temperature: float = 1.0,
        entropies: bool = False,
        readout: Readout | None = None,
        stops_at: int | None = None,
        hidden: bool = False,
        against: Against | None = None,
        **kwargs: Any,
    ) -> Outputs:
        """Log-probs of `batch.target` under the tree; keywords reach the attention function.

        Args:
            batch: rows of token trees.
            temperature: divides the logits.
            entropies: compute them too.
            readout: attention to read on the way; one request per forward.
            stops_at: the last decoder layer that is computed, for losses on attention alone. There are then no
                log-probs.
            hidden: return the states that predict the scored tokens, for a later call with `against`.
            against: states of another pass to compare the predicted distributions with; without gradient.

        Raises:
            ValueError: the read-out asks for a layer that is not computed.
            RuntimeError: gradients are on but attention maps came out without (reentrant checkpointing).
        """
        vision, visual = batch.features, None
        if batch.pixels is not None and batch.grids is not None:
            vision = self.adapter.vision(batch.pixels, batch.grids)
        if vision is not None:
            visual = (vision, batch.visual_at, batch.visual_from)
        dtype = next(self.model.parameters()).dtype
        mask, rule = tree_inputs(batch.end, dtype)
        if readout is not None:
            kwargs["readout"] = readout
        if stops_at is not None:
            kwargs["stops_at"] = stops_at
        states = self.adapter.text(batch.ids, batch.positions, mask, visual, **rule, **kwargs)
        if readout is not None:
            trains = torch.is_grad_enabled() and any(p.requires_grad for p in self.model.parameters())
            readout.complete(trains)
            if trains and isinstance(readout, MapReadout | Readouts) and self._is_sharded():
                readout.pass_through(states)
        if stops_at is not None:
            return Outputs(states.new_empty(0))
        rows = states.reshape(-1, states.shape[-1])[batch.predictor]
        out = self._score(rows, batch.target, temperature, entropies)
        if against is not None:
            out = replace(out, divergence=self._compared(rows, against, temperature))
        return replace(out, hidden=rows) if hidden else out

    @torch.no_grad()
    def _compared(self, rows: Tensor, against: Against, temperature: float) -> Float[Tensor, "scored"]:
        parts = zip(rows.split(self.chunk), against.states.split(self.chunk), strict=True)
        return torch.cat([against.between(self.scores(b, temperature), self.scores(a, temperature)) for a, b in parts])

    def _is_sharded(self) -> bool:
        from torch.distributed.fsdp import FSDPModule

        return any(isinstance(m, FSDPModule) for m in self.modules())

    def _score(self, rows: Tensor, target: Tensor, temperature: float, entropies: bool) -> Outputs:
        def block(x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
            if x.is_cuda:
                z = self.adapter.logits(x)
                return FusedLogprobs.apply(z, self.bias, t, temperature, entropies)  # type: ignore[return-value]
            return TokenLogprobs.apply(self.scores(x, temperature), t, entropies)  # type: ignore[return-value]

        logprobs, entropy = [], []
        for x, t in zip(rows.split(self.chunk), target.split(self.chunk), strict=True):
            several = torch.is_grad_enabled() and len(target) > self.chunk
            out = checkpoint(block, x, t, use_reentrant=False) if several else block(x, t)
            logprobs.append(out[0])  # type: ignore[index]
            entropy.append(out[1])  # type: ignore[index]
        return Outputs(torch.cat(logprobs), torch.cat(entropy) if entropies else None)
