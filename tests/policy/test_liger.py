"""Fused kernels: the layers that run on them compute the same. On CPU a stand-in written in torch takes their place."""

from __future__ import annotations

import copy
import importlib.util
from collections import Counter
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from eager import batch_of, gradients, relative_difference
from sightline.config.sections import Lora
from sightline.errors import UserError
from sightline.policy.liger import patch, use_kernels
from sightline.policy.load import Policy, load_policy
from sightline.policy.readout import MassReadout


def stand_in(calls: Counter[str]) -> Any:
    """What is used of the library, as its documentation describes it, in torch."""

    class Norm:
        def forward(self: Any, x: Tensor) -> Tensor:
            calls["norm"] += 1
            assert (self.offset, self.casting_mode, self.in_place, self.elementwise_affine) == (
                0.0,
                "llama",
                False,
                True,
            )
            wide = x.float()
            return self.weight * (wide * torch.rsqrt(wide.square().mean(-1, True) + self.variance_epsilon)).to(x.dtype)

    class Gated:
        def forward(self: Any, x: Tensor) -> Tensor:
            calls["gated"] += 1
            return self.down_proj(torch.nn.functional.silu(self.gate_proj(x)) * self.up_proj(x))

    def rotary(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
        calls["rotary"] += 1

        def turned(x: Tensor) -> Tensor:
            a, b = x.chunk(2, -1)
            return x * cos[:, None] + torch.cat([-b, a], -1) * sin[:, None]

        return turned(q), turned(k)

    return SimpleNamespace(LigerRMSNorm=Norm, LigerSwiGLUMLP=Gated, liger_rotary_pos_emb=rotary)


def expected_calls(policy: Policy) -> dict[str, int]:
    """Per forward: three layers, two norms each and one at the end; two more per layer for queries and keys."""
    if policy.family == "qwen3_vl":
        return {"norm": 3 * 4 + 1, "gated": 3, "rotary": 3}
    return {"norm": 3 * 2 + 1 + 2 * 2 + 1, "gated": 3 + 2, "rotary": 3}  # the tower has such layers too


@pytest.mark.parametrize("adapted", [False, True])
def test_every_layer_takes_part_and_nothing_changes(policy: Policy, adapted: bool) -> None:
    if adapted:
        pytest.importorskip("peft")
    fresh = load_policy(policy.source, lora=Lora(rank=2) if adapted else None)
    calls: Counter[str] = Counter()
    names = {n for n, _ in fresh.model.named_parameters()}
    patch(fresh, stand_in(calls))
    assert {n for n, _ in fresh.model.named_parameters()} == names
    batch = batch_of(policy)
    rows = batch.predictor[None]
    segments = torch.ones(1, 1, batch.ids.shape[1])
    readout = MassReadout(rows, segments, (0, 2))
    ours = fresh.module(batch, readout=readout).logprobs
    assert calls == expected_calls(policy)
    torch.testing.assert_close(ours, policy.module(batch).logprobs, atol=2e-6, rtol=0)
    torch.testing.assert_close(readout.masses[2], torch.ones_like(readout.masses[2]), atol=1e-5, rtol=0)
    if not adapted:
        ours.sum().backward()
        policy.module(batch).logprobs.sum().backward()
        assert relative_difference(gradients(fresh), gradients(policy)) < 1e-5


def test_other_policies_keep_their_layers(policy: Policy) -> None:
    fresh, calls = load_policy(policy.source), Counter()
    patch(fresh, stand_in(calls))
    load_policy(policy.source).module(batch_of(policy))
    assert not calls


def test_a_copy_runs_on_its_own_layers(policy: Policy) -> None:
    fresh, batch = load_policy(policy.source), batch_of(policy)
    patch(fresh, stand_in(Counter()))
    kept = copy.deepcopy(fresh.module)
    before = kept(batch).logprobs
    with torch.no_grad():
        for parameter in fresh.module.parameters():
            parameter.mul_(1.1)
    assert torch.equal(kept(batch).logprobs, before)


def test_where_it_cannot_run_it_is_an_error_or_left_out(policy: Policy) -> None:
    assert use_kernels(policy, "none") is False
    assert use_kernels(policy, "auto") is False
    with pytest.raises(UserError, match=r"model\.kernels: Liger .*\(pip install"):
        use_kernels(policy, "liger")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.skipif(not importlib.util.find_spec("liger_kernel"), reason="Liger is not installed")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_kernels_themselves(policy: Policy, dtype: str) -> None:
    from sightline.policy.packing import Packer
    from stock import groups_of, make_method

    stock, fused = (load_policy(policy.source, device="cuda", dtype=dtype) for _ in range(2))
    assert use_kernels(fused, "liger")
    groups = groups_of(policy, make_method())
    found = []
    for one in (stock, fused):
        [packed, *_] = Packer(one).groups(groups)
        logprobs = one.module(packed.batch).logprobs
        logprobs.sum().backward()
        found.append((logprobs.detach(), gradients(one)))
    near = 1e-4 if dtype == "float32" else 0.1
    torch.testing.assert_close(found[0][0], found[1][0], atol=near, rtol=0)
    assert relative_difference(found[1][1], found[0][1]) < (1e-3 if dtype == "float32" else 0.05)
