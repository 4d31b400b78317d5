from __future__ import annotations

import itertools
import json
import sys
import time

import pytest

from sightline.commands import arms as arms_module
from sightline.commands.arms import ArmProcesses, last_line, train_arms
from sightline.config import diff, load_recipe
from sightline.errors import UserError

ARM = """
import json, pathlib, sys
home = pathlib.Path(sys.argv[1])
name = home.name
(home / "run.json").write_text(json.dumps({"method": name, "steps": 3}))
if name == "textual" and len(sys.argv) > 2:
    sys.exit("error: the disk is full")
with (home / "events.jsonl").open("w") as events:
    for step in range(3):
        row = {"step": step, "metrics": {"reward/textual/total": step}, "seconds": {"update": 0.1}, "alarms": []}
        print(json.dumps(row), file=events)
with (home / "evaluations.jsonl").open("w") as evaluations:
    for step, mean in ((0, 0.5), (3, 0.7)):
        value = {"mean": mean, "low": mean - 0.1, "high": mean + 0.1}
        row = {"step": step, "label": "", "mode": "textual", "n": 9, "metrics": {"accuracy": value}}
        print(json.dumps(row), file=evaluations)
"""


@pytest.fixture
def trainer(monkeypatch, tmp_path):
    """Arms are trained by a script that only writes what a run writes."""
    script = tmp_path / "arm.py"
    script.write_text(ARM)

    def use(*more: str) -> None:
        monkeypatch.setattr(arms_module, "arm_command", lambda home: [sys.executable, str(script), str(home), *more])

    use()
    return use


def test_arms_become_run_folders_of_one_page(trainer, tmp_path, capsys):
    del trainer
    recipe = load_recipe("demo", ["--train.seed", "3"])
    folder = tmp_path / "runs" / "demo"
    page = train_arms(recipe, folder)
    shown = capsys.readouterr().out
    assert page.is_file()
    assert str(page) in shown
    assert "70.0" in shown
    assert list(json.loads((folder / "run.json").read_text())["arms"]) == list(recipe.arms)
    assert diff(load_recipe(folder), recipe) == ()
    for name, arm in recipe.arm_recipes().items():
        assert load_recipe(folder / "arms" / name).method_config == arm.method_config


def test_a_failed_arm_is_reported_after_the_others_are_done(trainer, tmp_path, capsys):
    trainer("fail")
    with pytest.raises(UserError, match="arm 'textual' ended with exit code 1: error: the disk is full"):
        train_arms(load_recipe("demo"), tmp_path / "run")
    assert "page: " in capsys.readouterr().out


def processes(tmp_path, codes: dict[str, str], at_once: int) -> ArmProcesses:
    return ArmProcesses(
        {name: [sys.executable, "-c", code] for name, code in codes.items()},
        {name: tmp_path / f"{name}.log" for name in codes},
        at_once=at_once,
    )


def wait(running: ArmProcesses, most: float = 20) -> None:
    end = time.monotonic() + most
    while running.is_running():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_no_more_arms_at_once_than_allowed(tmp_path):
    stamp = "import time; print(time.time(), flush=True); time.sleep(0.2); print(time.time())"
    running = processes(tmp_path, dict.fromkeys("abc", stamp), at_once=1)
    wait(running)
    running.check()
    spans = sorted(tuple(map(float, (tmp_path / f"{name}.log").read_text().split())) for name in "abc")
    assert all(first[1] <= second[0] for first, second in itertools.pairwise(spans))


def test_each_arm_is_told_its_number_of_threads(tmp_path):
    running = processes(tmp_path, {"a": "import os; print(os.environ['OMP_NUM_THREADS'])"}, at_once=2)
    wait(running)
    assert last_line(tmp_path / "a.log") == "1"


def test_stopping_ends_what_runs_and_starts_nothing_more(tmp_path):
    running = processes(tmp_path, {"a": "import time; time.sleep(60)", "b": "print('ran')"}, at_once=1)
    assert running.is_running()
    began = time.monotonic()
    running.stop()
    assert time.monotonic() - began < 10
    assert not running.is_running()
    assert running.codes["a"] != 0
    assert not (tmp_path / "b.log").exists()
