from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from sightline.cli import main
from sightline.commands.export import push
from sightline.config import load_recipe, resolved_yaml
from sightline.errors import UserError
from sightline.policy.load import load_policy
from sightline.train.checkpoint import Checkpoints

ROW = '{"id": "r0", "question": "What color?", "answer": "red"}\n'


def write_run(folder: Path, checkpoint: Path, overrides: tuple[str, ...] = (), steps: tuple[int, ...] = (2, 4)) -> Path:
    """A run folder as training leaves it, without training."""
    data = folder.parent / "rows.jsonl"
    data.write_text(ROW)
    recipe = load_recipe("ivgr", [
        "--model.name", str(checkpoint), "--model.device", "cpu", "--model.dtype", "float32", "--data.train", str(data),
        "--data.reader", "ours", "--data.strata", "null", "--model.max_pixels", "4096", "--model.min_pixels", "1024",
        *overrides,
    ])  # fmt: skip
    folder.mkdir()
    (folder / "recipe.yaml").write_text(resolved_yaml(recipe))
    policy = load_policy(checkpoint, lora=recipe.model.lora)
    kept = Checkpoints(folder, keep=8)
    for step in steps:
        kept.save(step, policy, {}, {}, is_best=step == steps[0])
    rows = [
        {"step": step, "label": "", "mode": mode, "n": 64,
         "metrics": {"accuracy": {"mean": 0.5 + step / 100, "low": 0.4, "high": 0.7}}}
        for step in (0, *steps) for mode in ("textual", "grounded")
    ]  # fmt: skip
    (folder / "evaluations.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.fixture
def run(tmp_path: Path, checkpoints: dict[str, Path]) -> Path:
    return write_run(tmp_path / "run", checkpoints["qwen2_5_vl"])


def card(folder: Path) -> tuple[dict[str, Any], str]:
    text = (folder / "README.md").read_text(encoding="utf-8")
    found = re.match(r"---\n(.*?)\n---\n(.*)", text, re.DOTALL)
    assert found is not None
    return yaml.safe_load(found[1]), found[2]


def test_the_newest_checkpoint_is_exported_and_checked(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert main(["export", str(run), "--out", str(out)]) == 0
    said = capsys.readouterr().out
    assert "step-000004" in said
    assert "loaded again" in said
    assert load_policy(out).family == "qwen2_5_vl"


def test_the_card_tells_what_was_done(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert main(["export", str(run), "--out", str(out), "--base", "Qwen/Qwen2.5-VL-3B-Instruct"]) == 0
    front, body = card(out)
    assert front["base_model"] == "Qwen/Qwen2.5-VL-3B-Instruct"
    assert front["base_model_relation"] == "finetune"
    assert front["library_name"] == "transformers"
    assert {"sightline", "ivgr", "arxiv:2605.31096"} <= set(front["tags"])
    assert front["model-index"][0]["results"][0]["metrics"][0]["value"] == 0.54
    assert hashlib.sha256(ROW.encode()).hexdigest() in body
    assert "**general**, 5 rollouts per record" in body  # the stream of records without regions
    assert "boxes in pixels of the resized image" in body
    assert "| grounded | 4 | 64 | 0.540 [0.400, 0.700] |" in body
    assert "| grounded | 0 | 64 | 0.500 [0.400, 0.700] |" in body
    assert "| grounded | 2 |" not in body
    assert "min_pixels=1024, max_pixels=4096" in body  # the run's own limits, which the processor does not know
    assert "vllm serve out" in body
    blocks = re.findall(r"````yaml\n(.*?)````", body, re.DOTALL)
    assert yaml.safe_load(blocks[0])["method"]["name"] == "ivgr"


def test_a_step_can_be_chosen(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", str(run), "--out", str(tmp_path / "a"), "--step", "2"]) == 0
    assert main(["export", str(run), "--out", str(tmp_path / "b"), "--step", "best"]) == 0
    assert main(["export", str(run / "checkpoints/step-000002"), "--out", str(tmp_path / "c")]) == 0
    assert capsys.readouterr().out.count("step-000002\n") == 3
    assert main(["export", str(run), "--out", str(tmp_path / "d"), "--step", "3"]) == 2
    assert "one of 2, 4" in capsys.readouterr().err
    assert "| grounded | 2 | 64 | 0.520" in card(tmp_path / "a")[1]


def test_a_failure_leaves_nothing_behind(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half a model is taken for none, and the same command can be given again."""
    import sightline.policy.export as export

    out, verify = tmp_path / "out", export.verify

    def changed(folder: Path, logits: Any, **options: Any) -> Any:
        assert (folder / "model.safetensors").exists()
        return verify(folder, logits + 1, **options)

    monkeypatch.setattr(export, "verify", changed)
    assert main(["export", str(run), "--out", str(out)]) == 2
    assert "computes other logits" in capsys.readouterr().err
    assert not any(out.iterdir())
    monkeypatch.undo()
    assert main(["export", str(run), "--out", str(out)]) == 0


def test_an_adapter_keeps_its_number_format(
    tmp_path: Path, checkpoints: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_run(tmp_path / "lora", checkpoints["qwen3_vl"], ("--model.lora.rank", "2"), (2,))
    assert main(["export", str(folder), "--out", str(tmp_path / "out"), "--dtype", "bfloat16"]) == 2
    assert "--merged" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_bad_input_leaves_no_folder(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    for words in (
        [str(run), "--adapter"], [str(run), "--merged", "--adapter"], [str(tmp_path / "none")], [str(tmp_path)],
        [str(run), "--push", "name"], [str(run), "--shard", "0"], [str(run), "--shard", "nan"],
        [str(run), "--shard", "inf"], [str(run / "checkpoints" / "best")], [str(run / "checkpoints")],
    ):  # fmt: skip
        assert main(["export", *words, "--out", str(out)]) == 2
        assert capsys.readouterr().err.startswith("error: ")
    assert not out.exists()
    assert main(["export", str(run / "checkpoints"), "--out", str(out)]) == 2
    assert "no run folder" in capsys.readouterr().err
    assert main(["export", str(run), "--out", str(run)]) == 2
    assert "nothing is ever overwritten" in capsys.readouterr().err


def test_an_adapter_is_exported_alone_or_merged(
    tmp_path: Path, checkpoints: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    run = write_run(tmp_path / "run", checkpoints["qwen3_vl"], ("--model.lora.rank", "4"), steps=(1,))
    assert main(["export", str(run), "--out", str(tmp_path / "a"), "--base", "Qwen/Qwen3-VL-2B-Instruct"]) == 0
    assert main(["export", str(run), "--out", str(tmp_path / "m"), "--merged"]) == 0
    assert capsys.readouterr().out.count("loaded again") == 2
    front, body = card(tmp_path / "a")
    assert (front["library_name"], front["base_model_relation"]) == ("peft", "adapter")
    assert "PeftModel.from_pretrained(base, 'a')" in body
    assert "--enable-lora" in body
    config = json.loads((tmp_path / "a/adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "Qwen/Qwen3-VL-2B-Instruct"
    assert not (tmp_path / "a/model.safetensors").exists()
    assert (tmp_path / "m/model.safetensors").exists()
    assert not (tmp_path / "m/adapter_config.json").exists()


class Api:
    """Stands in for the Hub and writes down what it is asked."""

    def __init__(self, error: Exception | None = None) -> None:
        self.calls: list[tuple[str, dict[str, Any]]] = []
        self.error = error

    def create_repo(self, **given: Any) -> str:
        self.calls.append(("create_repo", given))
        return f"https://hub/{given['repo_id']}"

    def upload_folder(self, **given: Any) -> None:
        self.calls.append(("upload_folder", given))
        if self.error is not None:
            raise self.error


def test_push_makes_a_private_repository_and_uploads_the_folder(tmp_path: Path) -> None:
    api = Api()
    assert push(tmp_path, "me/model", api) == "https://hub/me/model"
    (made, repo), (sent, upload) = api.calls
    assert (made, sent) == ("create_repo", "upload_folder")
    assert repo == {"repo_id": "me/model", "repo_type": "model", "private": True, "exist_ok": True}
    assert upload["folder_path"] == str(tmp_path)
    push(tmp_path, "me/model", api, private=False)
    assert api.calls[-2][1]["private"] is False


def test_an_upload_that_fails_says_what_to_type(tmp_path: Path) -> None:
    from huggingface_hub.errors import LocalTokenNotFoundError

    with pytest.raises(UserError, match="hf auth login"):
        push(tmp_path, "me/model", Api(LocalTokenNotFoundError("no token")))
    with pytest.raises(UserError, match="hf upload me/model"):
        push(tmp_path, "me/model", Api(OSError("no network")))


def test_the_command_pushes_what_it_wrote(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import huggingface_hub

    api = Api()
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: api)
    assert main(["export", str(run), "--out", str(tmp_path / "out"), "--push", "me/model"]) == 0
    assert [name for name, _ in api.calls] == ["create_repo", "upload_folder"]
    assert "pushed: https://hub/me/model" in capsys.readouterr().out
    assert card(tmp_path / "out")[0]["model-index"][0]["name"] == "me/model"
