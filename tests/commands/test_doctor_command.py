from __future__ import annotations

import html
import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from sightline.cli import main
from sightline.config import load_recipe
from sightline.doctor.examine import _addressed, examine
from sightline.doctor.finding import Finding
from sightline.doctor.patient import Patient
from sightline.doctor.probes import PROBES, Probe, chosen

QUICK = ["--only", "device", "data", "weights", "coordinates", "judge"]


def test_a_sound_recipe_passes(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "grpo", *QUICK]) == 0
    said = capsys.readouterr().out
    assert "5 pass, 0 warn, 0 fail" in said
    assert "drawn boxes come" in said


def test_a_fail_is_exit_code_one_and_the_rest_is_not_run(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, checkpoints: dict[str, Path]
) -> None:
    """A truncated weight file: whatever needs the policy is left out, whatever does not is still told."""
    broken = tmp_path / "model"
    shutil.copytree(checkpoints["qwen3_vl"], broken)
    weights = broken / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4000])
    assert main(["doctor", "grpo", "--model.name", str(broken), "--json"]) == 1
    told = json.loads(capsys.readouterr().out)
    levels = {row["probe"]: row["level"] for row in told["findings"]}
    assert levels["weights"] == "fail"
    assert levels["judge"] == levels["versions"] == "pass"
    assert set(told["not_run"]) >= {"prompts", "tokens", "coordinates", "blindness", "bans", "parity", "habits"}


def test_what_is_to_be_typed_names_the_recipe(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("method: {name: grpo}\ndata: {train: nowhere.jsonl}\n")
    assert main(["doctor", str(path), "--only", "data", "--json"]) == 1
    (row,) = json.loads(capsys.readouterr().out)["findings"]
    assert row["level"] == "fail"
    assert "nowhere.jsonl" in row["what"]


def test_what_is_to_be_typed_works_when_typed(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """Overrides, arm and card as they were given; a change of a key is a whole command."""
    import shlex

    page = str(tmp_path / "a page.html")
    given = ["grpo", "--model.dtype", "bfloat16", "--card", "80"]
    assert main(["doctor", *given, "--only", "device", "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)["findings"]
    program, *words = shlex.split(row["command"])
    assert (row["level"], program, words[:4]) == ("warn", "sightline", ["doctor", "grpo", "--model.dtype", "bfloat16"])
    assert words[4:7] == ["--card", "80", "--model.dtype"]
    assert main([*words, "--only", "device", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["findings"][0]["level"] == "pass"
    assert main(["doctor", *given, "--only", "device", "--page", page]) == 0
    assert "$ sightline doctor grpo" in capsys.readouterr().out
    assert f"<code>$ {html.escape(row['command'])}</code>" in Path(page).read_text(encoding="utf-8")


def test_an_arm_stays_with_the_doctor() -> None:
    patient = Patient(load_recipe("grpo"), name="demo --model.name x", options="--arm b")
    found = Finding(level="warn", what="w", meaning="m", command="sightline doctor RECIPE --only parity")
    assert _addressed(found, patient).command == "sightline doctor demo --model.name x --arm b --only parity"
    served = replace(found, command="sightline serve-help RECIPE")
    assert _addressed(served, patient).command == "sightline serve-help demo --model.name x"
    assert not replace(found, command="a smaller train.token_budget").is_typed


@pytest.mark.parametrize(
    "words",
    [
        ["no-such-recipe"],
        ["grpo", "--only", "horoscope"],
        ["grpo", "--sample", "0"],
        ["grpo", "--card", "-1"],
        ["grpo", "--card", "nan"],
        ["grpo", "--page", "report.pdf"],
        ["grpo", "--page", "no/such/folder/page.html"],
        ["grpo", "--optim.lrr", "1"],
        ["demo", "--arm", "nobody"],
    ],
)
def test_bad_input_is_exit_code_two(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", *words]) == 2
    assert capsys.readouterr().err.startswith("error: ")


def test_the_page_shows_the_boxes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import PIL.Image

    page = tmp_path / "doctor.html"
    assert main(["doctor", "grpo", "--only", "coordinates", "--page", str(page)]) == 0
    text = page.read_text(encoding="utf-8")
    assert text.count("<svg") == 14
    assert text.count('class="halo"') == 21
    assert "came back" in text
    assert str(page) in capsys.readouterr().out
    sheet = tmp_path / "doctor.png"
    assert main(["doctor", "grpo", "--only", "coordinates", "--page", str(sheet)]) == 0
    with PIL.Image.open(sheet) as picture:
        assert min(picture.size) > 500


def test_a_page_does_not_run_what_the_data_says(tmp_path: Path) -> None:
    """A question with markup is text on the page."""
    from sightline.doctor.examine import Examination
    from sightline.doctor.page import write_page

    one = Finding(level="warn", what="<script>alert(1)</script>", meaning="m", details=("<img src=x>",))
    page = write_page(tmp_path / "page.html", {"": Examination(findings={"data": one})}, "title")
    text = page.read_text(encoding="utf-8")
    assert "<script>" not in text
    assert "<img src=x>" not in text


def test_arms_are_looked_at_one_by_one(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "demo", "--only", "device", "judge", "--json"]) == 0
    assert set(json.loads(capsys.readouterr().out)["arms"]) == set(load_recipe("demo").arms)


def test_a_probe_that_breaks_is_a_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    def breaks(_: Patient) -> Finding:
        raise RuntimeError("CUDA out of memory. Tried to allocate 9 GiB")

    monkeypatch.setitem(PROBES, "device", Probe("device", breaks))
    found = examine(Patient(load_recipe("grpo")), ("device",)).findings["device"]
    assert found.level == "fail"
    assert "out of memory" in found.what
    assert "max_pixels" in found.command


def test_a_template_that_fails_while_rendering_is_a_finding(
    tmp_path: Path, checkpoints: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    broken = Path(shutil.copytree(checkpoints["qwen3_vl"], tmp_path / "model"))
    (broken / "chat_template.jinja").write_text("{{ messages[0].nothing.at_all }}")
    assert main(["doctor", "grpo", "--model.name", str(broken), "--only", "weights", "prompts", "--json"]) == 1
    levels = {row["probe"]: row["level"] for row in json.loads(capsys.readouterr().out)["findings"]}
    assert levels == {"weights": "pass", "prompts": "fail"}


def test_weights_that_are_no_numbers_are_a_finding(
    tmp_path: Path, checkpoints: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    from safetensors.torch import load_file, save_file

    broken = Path(shutil.copytree(checkpoints["qwen3_vl"], tmp_path / "model"))
    tensors = load_file(broken / "model.safetensors")
    name = next(n for n in tensors if n.endswith("up_proj.weight"))
    tensors[name][0, 0] = float("inf")
    save_file(tensors, broken / "model.safetensors", metadata={"format": "pt"})
    assert main(["doctor", "grpo", "--model.name", str(broken), "--only", "weights", "--json"]) == 1
    (row,) = json.loads(capsys.readouterr().out)["findings"]
    assert name in row["what"]


def test_a_checkpoint_of_an_adapter_is_small(monkeypatch: pytest.MonkeyPatch) -> None:
    import sightline.doctor.machine as machine

    told: list[dict] = []
    monkeypatch.setattr(machine, "disk_probe", lambda _, **sizes: told.append(sizes))
    for overrides in ((), ("--model.lora.rank", "2")):
        PROBES["disk"].run(Patient(load_recipe("grpo", overrides)))
    assert told[1]["weights"] < told[0]["weights"] / 5
    assert told[0]["states"] == 2 * told[0]["weights"]


def test_every_probe_has_a_place_in_the_order() -> None:
    assert chosen() == tuple(PROBES)
    assert chosen(skip=("habits",)) == tuple(name for name in PROBES if name != "habits")


def test_help_loads_no_torch() -> None:
    import subprocess

    code = "import sys, sightline.commands.doctor, sightline.commands.export; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
