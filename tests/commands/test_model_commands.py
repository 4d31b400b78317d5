"""Commands that load a policy: random weights, so what is checked is that everything fits together."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from sightline.cli import main


@pytest.fixture(autouse=True)
def _in_a_fresh_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def test_eval_writes_a_table_and_figures_and_compares_them(checkpoints, scenes, tmp_path, capsys):
    model = str(checkpoints["qwen3_vl"])
    words = ["eval", "--model", model, "--data", str(scenes), "--max-new-tokens", "6", "--limit", "4"]
    assert main([*words, "--modes", "textual", "grounded", "crops", "crops+union", "--out", "a.jsonl"]) == 0
    shown = capsys.readouterr().out
    assert "crops+union" in shown
    assert "accuracy %" in shown
    assert "0-1000" in shown or "1000" in shown
    figures = json.loads((tmp_path / "a.json").read_text())
    assert [e["mode"] for e in figures["evaluations"]] == ["textual", "grounded", "crops", "crops+union"]
    assert all(e["n"] == 4 for e in figures["evaluations"])
    assert "region" in figures["evaluations"][0]["metrics"]
    assert main([*words, "--out", "a.jsonl"]) == 2
    capsys.readouterr()
    assert main([*words, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["max_new_tokens"] == 6
    (default,) = (tmp_path / "evaluations").glob("*.jsonl")
    assert main(["eval", "compare", "a.jsonl", str(default)]) == 0
    assert "McNemar" in capsys.readouterr().out
    assert main(["eval", "compare", "a.jsonl", "a.jsonl", "--mode", "textual", "--against", "crops", "--json"]) == 0
    assert list(json.loads(capsys.readouterr().out)["differences"]) == ["textual -> crops"]


def test_evaluation_repeats_bit_by_bit(checkpoints, scenes, capsys):
    words = ["eval", "--model", str(checkpoints["qwen3_vl"]), "--data", str(scenes), "--max-new-tokens", "6"]
    for name, batch in (("a", "6"), ("b", "6"), ("c", "4")):
        assert main([*words, "--out", f"{name}.jsonl", "--batch", batch, "--json"]) == 0
    capsys.readouterr()
    tables = [Path(f"{name}.jsonl").read_text() for name in "abc"]
    assert tables[0] == tables[1]
    answers = [[json.loads(line)["answer"] for line in table.splitlines()] for table in tables]
    assert answers[0] == answers[2]


def test_eval_of_published_rows_with_a_judge(checkpoints, scenes, tmp_path, capsys):
    image = next((scenes.parent / "images").glob("*.png"))
    asked = {"image": image.name, "question": "What is it?", "answer": "a red cup on a table", "bboxs": [[0, 0, 9, 9]]}
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps({**asked, "dataset": name}) + "\n" for name in ("gqa", "vsr")))
    words = [
        *("eval", "--model", str(checkpoints["qwen3_vl"]), "--data", str(rows), "--reader", "grit"),
        *("--image-root", str(image.parent), "--modes", "grit", "--max-new-tokens", "6", "--json"),
    ]
    assert main([*words, "--judge.kind", "offline", "--out", "a.jsonl"]) == 0
    figures = json.loads(capsys.readouterr().out)
    assert (figures["reader"], figures["judge"]["kind"]) == ("grit", "offline")
    (event,) = figures["evaluations"]
    assert {"accuracy", "iou_union"} <= event["metrics"].keys()
    assert event["sets"]["n"] == {"gqa": 1, "vsr": 1}
    assert main([*words, "--judge.kind", "http", "--out", "b.jsonl"]) == 2
    assert "error: --judge: kind http needs url and model" in capsys.readouterr().err


@pytest.mark.parametrize("mode", ["textual", "grounded", "crops", "crops+union"])
def test_ask_one_image(mode, checkpoints, scenes, tmp_path, capsys):
    image = next((scenes.parent / "images").glob("*.png"))
    words = ["ask", str(image), "What color?", "--mode", mode, "--model", str(checkpoints["qwen3_vl"])]
    assert main([*words, "--max-new-tokens", "8"]) == 0
    shown = capsys.readouterr().out
    assert "answer: " in shown
    assert "imports " in shown
    assert main([*words, "--max-new-tokens", "8", "--json", "--out", "seen.html"]) == 0
    captured = capsys.readouterr()
    assert json.loads(captured.out)["mode"] == mode
    assert "<html" in (tmp_path / "seen.html").read_text()
    assert main([*words, "--out", "seen.gif"]) == 2


def test_ask_a_file_of_records(checkpoints, scenes, tmp_path, capsys):
    words = ["ask", str(scenes), "--model", str(checkpoints["qwen2_5_vl"]), "--limit", "3", "--max-new-tokens", "4"]
    assert main([*words, "--json", "--out", str(tmp_path / "pictures")]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert len(rows) == 3
    assert len(list((tmp_path / "pictures").glob("*.png"))) == 3
    assert main(["ask", str(scenes), "What?"]) == 2


def test_an_id_does_not_lead_out_of_the_folder_of_pictures(checkpoints, scenes, tmp_path):
    ids = iter(["../evil", str(tmp_path / "evil" / "deep"), "a/b", "a b", "A b", "x" * 300])
    rows = [json.loads(line) | {"id": next(ids)} for line in scenes.read_text().splitlines()]
    scenes.write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = ["ask", str(scenes), "--model", str(checkpoints["qwen3_vl"]), "--max-new-tokens", "2", "--json"]
    before = set(tmp_path.rglob("*"))
    assert main([*words, "--out", str(tmp_path / "pictures")]) == 0
    assert len(list((tmp_path / "pictures").glob("*.png"))) == 6
    assert {p.parent for p in tmp_path.rglob("*") if p not in before} == {tmp_path, tmp_path / "pictures"}


@pytest.mark.parametrize(
    ("option", "value", "said"),
    [
        ("--dtype", "foo", "unknown number format 'foo'"),
        ("--dtype", "nn", "unknown number format 'nn'"),
        ("--device", "cuda:99", "'cuda:99' is not there"),
        ("--device", "gpu", "unknown device 'gpu'"),
        ("--device", "meta", "'meta' is not supported"),
    ],
)
def test_a_device_or_number_format_that_is_not_there(checkpoints, scenes, capsys, option, value, said):
    assert main(["ask", str(scenes), "--model", str(checkpoints["qwen3_vl"]), option, value]) == 2
    assert said in capsys.readouterr().err


def test_dry_run_counts_and_writes_nothing(checkpoints, tmp_path, capsys):
    words = ["train", "demo", "--model.name", str(checkpoints["qwen3_vl"]), "--dry-run"]
    assert main(words) == 0
    shown = capsys.readouterr().out
    assert "arm textual: grpo" in shown
    assert "nothing was written" in shown
    assert "MiB" in shown
    assert not (tmp_path / "runs").exists()


def test_dry_run_downloads_nothing(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *_, **__: pytest.fail("a download"))
    data = tmp_path / "rows.jsonl"
    data.write_text('{"question": "a?", "answer": "b"}\n')
    words = ["--data.train", str(data), "--data.reader", "ours", "--model.name", "nobody/no-such-model"]
    assert main(["train", "grpo", *words, "--dry-run"]) == 2
    assert "'nobody/no-such-model' is not here, and its dimensions are not recorded" in capsys.readouterr().err


def test_an_unknown_model_is_named_before_any_record_is_made(capsys):
    assert main(["eval", "--model", "embedded:gpt", "--data", "scenes:easy", "--limit", "1"]) == 2
    assert "no embedded policy 'gpt'" in capsys.readouterr().err
