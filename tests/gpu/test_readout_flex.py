"""Read-outs on CUDA (block mask, FlexAttention's log-sum-exp) against the layout on CPU: packed rows, both families."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from conftest import FAMILIES
from eager import anchoring, rollouts, tree_of
from sightline.policy.batch import collate
from sightline.policy.load import load_policy
from sightline.policy.readout import MapReadout, MassReadout, Readouts

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]

LAYERS = (0, 2)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-5), ("bfloat16", 3e-2)])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_cuda_equals_cpu(
    checkpoints: dict[str, Path], family: str, dtype: str, tolerance: float, checkpointing: bool
) -> None:
    results = []
    for device in ("cpu", "cuda"):
        policy = load_policy(checkpoints[family], device=device, dtype=dtype, checkpointing=checkpointing)
        policy.model.train()
        trees = [tree_of(policy, rollouts(policy, seed)) for seed in range(2)]
        batch = collate([trees], policy.pixels, pad=policy.pad, device=device)
        rows = batch.predictor[None]
        # rows are wider on CUDA, which pads them
        segments = torch.softmax(torch.randn(1, 2048, 4, generator=torch.Generator().manual_seed(0)), 2).mT
        segments = segments[..., : batch.ids.shape[1]]
        visual = torch.nonzero(batch.ids[0] == policy.image_token)[None, :, 0]
        maps, masses = MapReadout(rows, visual, LAYERS), MassReadout(rows, segments, LAYERS)
        logprobs = policy.module(batch, readout=Readouts([maps, masses])).logprobs
        (anchoring(list(maps.maps.values())) - logprobs.mean()).backward()
        gradient = [p.grad.flatten().float().cpu() for p in policy.model.parameters() if p.grad is not None]
        read = [torch.cat([x[n].detach().cpu().flatten() for n in LAYERS]) for x in (maps.maps, masses.masses)]
        results.append((*read, torch.cat(gradient)))
        assert all(m.dtype == torch.float32 for m in [*maps.maps.values(), *masses.masses.values()])
    for ours, theirs in zip(results[0][:2], results[1][:2], strict=True):
        torch.testing.assert_close(ours, theirs, atol=tolerance, rtol=0)
    difference = (results[0][2] - results[1][2]).norm() / results[0][2].norm()
    assert float(difference) < (1e-3 if dtype == "float32" else 0.1)
