"""Conversations sampled on CUDA: the learner on the CPU gives them the log-probs that were recorded."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from conftest import FAMILIES
from conversations import SETTINGS, Crops, converse, ends_often, prompts
from sightline.policy.batch import collate
from sightline.policy.load import load_policy
from sightline.policy.tree import build_tree, rollout_path
from sightline.sampling.base import Request

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]


@pytest.mark.parametrize("family", FAMILIES)
def test_recorded_logprobs_equal_those_of_the_cpu(checkpoints: dict[str, Path], family: str) -> None:
    cpu, cuda = load_policy(checkpoints[family]), load_policy(checkpoints[family], device="cuda")
    for group in converse(ends_often(cuda), [Request(p, (2, 4), Crops()) for p in prompts()]):
        tree = build_tree([rollout_path(r, cpu.image_token) for r in group], cpu.rules)
        batch = collate([[tree]], cpu.pixels, pad=cpu.pad)
        with torch.no_grad():
            found = batch.scatter(cpu.module(batch, temperature=SETTINGS.temperature).logprobs)[0]
        for rollout, want in zip(group, found, strict=True):
            np.testing.assert_allclose(rollout.logprobs, want, atol=1e-3)
