"""Probes of what surrounds a policy: libraries, device, disk, rows, judge. Each is made to fail on purpose."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from sightline.answers.judge import JudgeConfig, RulesJudge, Verdict
from sightline.doctor.judging import judge_probe, mumbling_server
from sightline.doctor.machine import device_probe, disk_probe, installed, required, version_probe
from sightline.doctor.rows import DataFile, data_probe

ANSWERS_OFFLINE = JudgeConfig(kind="offline")


# -- machine


def test_installed_versions_fit() -> None:
    found = version_probe(installed(), required())
    assert found.level == "pass"
    assert "torch" in found.values


def test_a_library_that_is_too_old_is_named() -> None:
    found = version_probe({"transformers": "4.40.0", "torch": "2.13.0+cpu"}, required())
    assert found.level == "fail"
    assert found.what.startswith("transformers 4.40.0")
    assert "pip install 'transformers" in found.command


def test_a_device_that_is_not_there_fails() -> None:
    found = device_probe("cuda:99", "bfloat16", 1)
    assert found.level == "fail"
    assert "--model.device" in found.command


def test_more_threads_than_cores_are_a_warning() -> None:
    assert device_probe("cpu", "float32", 4096).level == "warn"
    assert device_probe("cpu", "bfloat16", 1).level == "warn"
    assert device_probe("cpu", "float32", 1).level == "pass"


def test_a_disk_that_is_too_small_fails(tmp_path: Path) -> None:
    assert disk_probe(tmp_path / "runs" / "new", weights=1.0, states=1.0, keep=2).level == "pass"
    found = disk_probe(tmp_path / "runs", weights=2.0**60, states=0, keep=2)
    assert found.level == "fail"
    assert found.values["needed"] == 4 * 2**60


# -- rows


def table(folder: Path, rows: list[dict]) -> DataFile:
    import PIL.Image

    PIL.Image.fromarray(np.zeros((48, 64, 3), np.uint8)).save(folder / "a.png")
    sound = {"question": "What color is it?", "answer": "red", "images": ["a.png"]}
    path = folder / "rows.jsonl"
    path.write_text("\n".join(json.dumps({"id": f"r{i}", **sound, **row}) for i, row in enumerate(rows)))
    return DataFile(role="training", name=str(path))


def test_sound_rows_pass(tmp_path: Path) -> None:
    found = data_probe([table(tmp_path, [{"regions": [{"box": [1, 1, 9, 9]}]}, {}])])
    assert found.level == "pass", found.what
    assert found.values["rows"] == 2


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"regions": [{"box": [1, 1, 900, 9]}]}, "outside"),
        ({"images": ["nowhere.png"]}, "nowhere.png"),
        ({"answer": "blue", "options": ["red", "green"]}, "none of"),
        ({"nonsense": 1}, "nonsense"),
        ({"id": "r0"}, "line 1 already"),
    ],
)
def test_a_broken_row_fails(tmp_path: Path, row: dict, said: str) -> None:
    file = table(tmp_path, [{}, row])
    found = data_probe([file])
    assert found.level == "fail"
    assert said in " ".join(found.details)
    assert found.command == f"sightline data check {file.name}"
    named = replace(file, image_root=str(tmp_path))
    assert data_probe([named]).command == f"sightline data check {file.name} --image-root {tmp_path}"


def test_an_id_that_returns_behind_the_sample_is_found(tmp_path: Path) -> None:
    file = table(tmp_path, [{} for _ in range(30)] + [{"id": "r3"}])
    found = data_probe([file], rows=5)
    assert found.level == "fail"
    assert "'r3' stands in 2 rows" in found.what


def test_rows_of_the_training_data_in_the_validation_data_are_a_warning(tmp_path: Path) -> None:
    (tmp_path / "held").mkdir()
    train = table(tmp_path, [{}, {"question": "Which shape?"}])
    held = tmp_path / "held.jsonl"
    held.write_text(json.dumps({"id": "h", "question": "Which shape?", "answer": "red", "images": ["a.png"]}))
    found = data_probe([train, DataFile(role="validation", name=str(held))])
    assert found.level == "warn"
    assert "1 validation rows are training rows too" in found.what


def test_a_file_that_is_not_there_fails(tmp_path: Path) -> None:
    found = data_probe([DataFile(role="training", name=str(tmp_path / "no.jsonl"))])
    assert found.level == "fail"
    assert "no.jsonl" in found.what


def test_scenes_need_no_file() -> None:
    assert data_probe([DataFile(role="training", name="scenes:easy")]).level == "pass"
    assert data_probe([DataFile(role="training", name="scenes:nowhere")]).level == "fail"


# -- judge


@pytest.mark.parametrize("kind", ["offline", "rules"])
def test_the_judges_of_the_library_pass(kind: str) -> None:
    found = judge_probe(JudgeConfig(kind=kind), consistency=kind == "offline")  # type: ignore[arg-type]
    assert found.level == "pass", found.what


class AlwaysYes(RulesJudge):
    def judge(self, requests: object) -> list[Verdict]:
        return [Verdict(value=1.0, why="yes") for _ in requests]  # type: ignore[attr-defined]


def test_a_judge_that_always_says_yes_is_noticed() -> None:
    found = judge_probe(ANSWERS_OFFLINE, judge=AlwaysYes(), consistency=True)
    assert found.level == "fail"
    assert "a wrong answer: 1" in found.what
    assert found.values["wrong"] == 4


def test_a_judge_that_never_decides_is_noticed() -> None:
    class Silent(RulesJudge):
        def judge(self, requests: object) -> list[Verdict]:
            return [Verdict(value=None, why="busy", failed=True) for _ in requests]  # type: ignore[attr-defined]

    found = judge_probe(ANSWERS_OFFLINE, judge=Silent())
    assert found.level == "fail"
    assert "masked" in found.meaning


def served(url: str, **changes: object) -> JudgeConfig:
    return JudgeConfig(kind="http", url=url, model="m", retries=0, timeout=5.0, **changes)  # type: ignore[arg-type]


def test_a_server_that_mumbles_fails_and_masks() -> None:
    pytest.importorskip("openai")
    with mumbling_server() as url:
        found = judge_probe(served(url))
    assert found.level == "fail"
    assert "no verdict" in found.what
    assert url in found.command


def test_a_server_that_always_says_one_is_noticed() -> None:
    pytest.importorskip("openai")
    with mumbling_server("1") as url:
        found = judge_probe(served(url), consistency=True)
    assert found.level == "fail"
    assert "a wrong answer: 1" in found.what


def test_a_server_that_is_not_there_fails() -> None:
    pytest.importorskip("openai")
    found = judge_probe(served("http://127.0.0.1:9/v1"))
    assert found.level == "fail"
    assert "APIConnectionError" in found.what


def test_a_judge_that_scores_what_it_cannot_read_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The configured judge in front of the mumbling server must mask; here its reader makes a zero of everything."""
    pytest.importorskip("openai")
    import sightline.answers.http as http

    monkeypatch.setattr(http, "READERS", {"strict": lambda *_: 0.0})
    with mumbling_server() as url:
        found = judge_probe(served(url))
    assert found.level == "fail"
    assert "scores 0 in place of masking" in found.what
