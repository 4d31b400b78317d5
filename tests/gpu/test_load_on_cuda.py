"""Loading straight onto a CUDA device."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from conftest import FAMILIES
from released import write_released
from sightline.policy.load import load_policy

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_what_lies_on_the_device_is_what_lies_on_the_cpu(checkpoints: dict[str, Path], family: str, dtype: str) -> None:
    cpu, cuda = (load_policy(checkpoints[family], dtype=dtype, device=device) for device in ("cpu", "cuda"))
    pairs = [*zip(cpu.model.named_parameters(), cuda.model.named_parameters(), strict=True)]
    pairs += zip(cpu.model.named_buffers(), cuda.model.named_buffers(), strict=True)
    for (name, a), (_, b) in pairs:
        assert b.is_cuda, name
        assert a.dtype == b.dtype
        assert torch.equal(a, b.cpu()), name
    assert cuda.module.bias.is_cuda == cuda.model.lm_head.weight.is_cuda


def test_the_device_never_holds_more_than_the_model_and_a_tensor(tmp_path: Path) -> None:
    write_released(tmp_path / "checkpoint", "Qwen/Qwen2.5-VL-7B-Instruct")
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    policy = load_policy(tmp_path / "checkpoint", device="cuda")
    sizes = [p.nbytes for p in policy.model.parameters()]
    rounding = 512 * (len(sizes) + 64)
    assert torch.cuda.max_memory_allocated() - before <= sum(sizes) + max(sizes) + rounding
