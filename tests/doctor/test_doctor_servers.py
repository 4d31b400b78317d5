"""A recipe that samples on servers: the doctor asks them as the run would."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from fake_vllm import FakeVllm, serving
from sightline.cli import main
from sightline.policy.forward import PolicyModule
from sightline.policy.load import Policy, load_policy


@pytest.fixture
def served(checkpoints: dict[str, Path]) -> Policy:
    """The weights of a server, which a test may change."""
    policy = load_policy(checkpoints["qwen3_vl"])
    adapter = type(policy.adapter)(copy.deepcopy(policy.model))
    return replace(policy, adapter=adapter, module=PolicyModule(adapter, policy.banned))


def examined(url: str, checkpoint: Path, *words: str) -> int:
    given = ["--model.name", str(checkpoint), "--sampling.server.urls", url, "--sampling.server.retries", "0"]
    asked = ["--only", "bans", "parity", "--sample", "2", "--json"]
    return main(["doctor", "grpo", *asked, *given, *words])


def test_a_server_with_our_weights_passes(
    served: Policy, checkpoints: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("openai")
    with serving(FakeVllm(served)) as fake:
        code = examined(fake.url, checkpoints["qwen3_vl"])
    rows = {row["probe"]: row for row in json.loads(capsys.readouterr().out)["findings"]}
    assert code == 0
    assert rows["parity"]["what"].startswith("server sampler:")
    assert rows["parity"]["values"]["largest"] < 1e-3
    assert "by the servers" in rows["bans"]["what"]


def test_a_server_that_ignores_bans_fails(
    served: Policy, checkpoints: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    """It would hardly ever write a banned id of itself; it is asked to give up what it writes."""
    pytest.importorskip("openai")

    def deaf(_: str, body: dict) -> None:
        for asked in (body, body.get("sampling_params", {})):
            if "logit_bias" in asked:
                asked["logit_bias"] = {i: bias for i, bias in asked["logit_bias"].items() if int(i) in served.banned}

    with serving(FakeVllm(served, fault=deaf)) as fake:
        code = examined(fake.url, checkpoints["qwen3_vl"], "--skip", "parity")
    (row,) = json.loads(capsys.readouterr().out)["findings"]
    assert code == 1
    assert row["level"] == "fail"
    assert "banned" in row["what"]


def test_a_server_that_keeps_other_weights_fails(
    served: Policy, checkpoints: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    """It is told to serve what it has."""
    pytest.importorskip("openai")
    with torch.no_grad():
        for parameter in served.model.get_input_embeddings().parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    with serving(FakeVllm(served)) as fake:
        code = examined(fake.url, checkpoints["qwen3_vl"], "--sampling.server.refresh", "none", "--skip", "bans")
    (row,) = json.loads(capsys.readouterr().out)["findings"]
    assert code == 1
    assert row["level"] == "fail"


def test_a_server_that_is_not_there_fails(checkpoints: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("openai")
    code = examined("http://127.0.0.1:9", checkpoints["qwen3_vl"])
    assert code == 1
    told = json.loads(capsys.readouterr().out)
    assert "fail" in {row["level"] for row in told["findings"]}
