"""Commands on servers: eval and ask answer there, serve-help prints what starts them."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from conftest import make_record
from fake_vllm import FakeVllm, serving
from sightline.cli import main
from sightline.commands.serve_help import _devices, described, serve_command
from sightline.config import load_recipe
from sightline.images import open_image
from sightline.policy.load import load_policy


@pytest.fixture
def fake(checkpoints: dict[str, Path]) -> Iterator[FakeVllm]:
    with serving(FakeVllm(load_policy(checkpoints["qwen3_vl"]))) as server:
        yield server


def test_eval_answers_on_a_server(fake: FakeVllm, checkpoints: dict[str, Path], tmp_path: Path) -> None:
    words = [
        "eval",
        "--model",
        str(checkpoints["qwen3_vl"]),
        "--data",
        "scenes:easy",
        "--limit",
        "2",
        "--modes",
        "textual",
    ]
    assert main([*words, "--out", str(tmp_path / "t.jsonl"), "--sampling.server.urls", fake.url]) == 0
    assert fake.calls.count("/inference/v1/generate") >= 3
    assert len((tmp_path / "t.jsonl").read_text().splitlines()) == 2


def test_what_eval_measures_beside_answers_there_too(
    fake: FakeVllm, checkpoints: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def local(*_: object, **__: object) -> None:
        raise AssertionError("the local sampler was asked")

    monkeypatch.setattr("sightline.sampling.local.LocalSampler.sample", local)
    words = ["eval", "--model", str(checkpoints["qwen3_vl"]), "--data", "scenes:easy", "--limit", "2", "--modes"]
    words += ["textual", "--faithfulness", "--max-new-tokens", "4", "--out", str(tmp_path / "t.jsonl")]
    assert main([*words, "--sampling.server.urls", fake.url]) == 0
    assert "faithfulness" in json.loads((tmp_path / "t.json").read_text())


def test_ask_answers_on_a_server(
    fake: FakeVllm, checkpoints: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    open_image(make_record().images[0]).save(tmp_path / "a.png")
    words = ["ask", str(tmp_path / "a.png"), "What?", "--model", str(checkpoints["qwen3_vl"]), "--json"]
    assert main([*words, "--sampling.server.urls", fake.url]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])
    assert "/inference/v1/generate" in fake.calls
    assert main([*words, "--sampling.server.urls", "nowhere"]) == 2
    assert "http://127.0.0.1:8000" in capsys.readouterr().err


def flags(*overrides: str, name: str = "ivgr") -> tuple[dict[str, str], list[str]]:
    return serve_command(load_recipe(name, overrides), "http://127.0.0.1:8123")


def test_serve_help_prints_commands_that_can_be_pasted(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve-help", "ivgr", "--sampling.server.urls", "http://127.0.0.1:8000,http://127.0.0.1:8001"]) == 0
    page = capsys.readouterr().out
    commands = [line for line in page.replace("\\\n", " ").splitlines() if line and not line.startswith("#")]
    assert len(commands) == 5
    for command, port in zip(commands[2:4], ("8000", "8001"), strict=True):
        words = shlex.split(command)
        assert (words[words.index("--host") + 1], words[words.index("--port") + 1]) == ("127.0.0.1", port)
    assert shlex.split(commands[-1])[1:4] == ["sightline", "train", "ivgr"]


@pytest.mark.parametrize(
    ("device", "urls", "servers", "trainer"),
    [
        ("cuda", ("http://127.0.0.1:1",), [1], "CUDA_VISIBLE_DEVICES=0 "),
        ("auto", ("http://localhost:1", "http://localhost:2"), [1, 2], "CUDA_VISIBLE_DEVICES=0 "),
        ("cuda:1", ("http://127.0.0.1:1", "http://127.0.0.1:2"), [0, 2], ""),
        ("cuda", ("http://a:1", "http://a:2", "http://b:1"), [0, 1, 0], ""),
        ("cpu", ("http://127.0.0.1:1",), [None], ""),
    ],
)
def test_no_gpu_is_given_away_twice(device: str, urls: tuple[str, ...], servers: list[int], trainer: str) -> None:
    recipe = load_recipe("ivgr", ("--model.device", device, "--sampling.server.urls", ",".join(urls)))
    assert _devices(recipe, urls) == (trainer, servers)
    lines = described(recipe, "ivgr").splitlines()
    assert lines[-1].startswith(trainer + "sightline train ivgr")
    shown = [line.split()[0] for line in lines if " serve " in line]
    assert [s for s in shown if s.startswith("CUDA")] == [f"CUDA_VISIBLE_DEVICES={n}" for n in servers if n is not None]


def test_every_flag_that_the_sampler_relies_on() -> None:
    variables, words = flags()
    assert variables == {"VLLM_SERVER_DEV_MODE": "1"}
    for flag in ("--enable-scale-out", "--logprobs-mode", "--generation-config"):
        assert flag in words
    assert words[words.index("--dtype") + 1] == load_recipe("ivgr").model.dtype
    assert words[words.index("--port") + 1] == "8123"


def test_flags_follow_the_recipe() -> None:
    variables, words = flags("--model.lora.rank", "24")
    assert words[words.index("--max-lora-rank") + 1] == "32"
    assert variables["VLLM_ALLOW_RUNTIME_LORA_UPDATING"] == "1"
    assert "--enable-lora" not in flags("--model.lora.rank", "24", "--model.lora.dora", "true")[1]
    transfer = flags("--sampling.server.urls", "http://a:1", "--sampling.server.refresh", "transfer")[1]
    assert json.loads(transfer[transfer.index("--weight-transfer-config") + 1]) == {"backend": "nccl"}
    limited = flags("--model.max_pixels", "501760")[1]
    assert json.loads(limited[limited.index("--mm-processor-kwargs") + 1])["max_pixels"] == 501760
    variables, words = flags(name="demo")
    assert "--no-enable-chunked-prefill" in words
    assert Path(words[2], "config.json").is_file()
    assert variables["VLLM_CPU_KVCACHE_SPACE"] == "1"
