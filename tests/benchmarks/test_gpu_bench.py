"""The GPU benchmark at a tiny size on the CPU: every side computes the same gradient, and the table is complete."""

from __future__ import annotations

import json

import pytest
import torch

from gpu import main
from gpu_models import TINY, make_group, make_policy
from gpu_sides import PaddedSide, TreeSide


def test_all_sides_compute_the_same_gradient() -> None:
    policy = make_policy("tiny", torch.device("cpu"), torch.float32, TINY)
    policy.model.train()
    groups = [make_group(policy, TINY)]
    sides = [
        TreeSide(policy, groups),
        PaddedSide(policy, groups, "shared", 10),
        PaddedSide(policy, groups, "per_rollout", 5),
    ]
    found = []
    for side in sides:
        side.update()
        found.append(torch.cat([p.grad.flatten() for p in policy.model.parameters() if p.grad is not None]))
    for other in found[1:]:
        assert float((other - found[0]).norm() / found[0].norm()) < 1e-4
    assert sides[0].work.tokens < sides[1].work.tokens
    assert len(sides[2].work.grids) == 10


def test_the_command_runs_without_a_gpu(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("sys.argv", ["gpu.py", "--tiny", "--no-compile", "--repeats", "1"])
    main()
    figures = json.loads(capsys.readouterr().out.strip().splitlines()[-1])
    assert figures["tiny_tree_ms"] > 0
    assert figures["tiny_share_padded_vision_shared"] > 0
