from __future__ import annotations

import sys
import types
from pathlib import Path

import pytest

from sightline.cli import main
from sightline.commands.train import open_folder
from sightline.config import load_recipe, resolved_yaml
from sightline.errors import UserError


@pytest.fixture
def trained(monkeypatch, tmp_path):
    """Replaces the loop by one that notes what it was asked; the working directory is a fresh folder."""
    calls = []
    interrupts = []

    def train(recipe, folder, reporter, world):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "recipe.yaml").write_text(resolved_yaml(recipe))
        assert world.size == 1
        calls.append((recipe, folder, reporter))
        if interrupts:
            raise interrupts.pop()

    loop = types.ModuleType("sightline.train.loop")
    loop.train = train  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "sightline.train.loop", loop)
    monkeypatch.chdir(tmp_path)
    return types.SimpleNamespace(calls=calls, interrupts=interrupts)


def test_the_folder_is_named_after_recipe_and_method(trained):
    assert main(["train", "grpo", "--train.steps", "3"]) == 0
    ((recipe, folder, _),) = trained.calls
    assert folder == Path("runs/grpo-grpo")
    assert recipe.train.steps == 3


def test_a_method_of_ones_own_gives_a_plain_folder_name(trained):
    Path("my_method.py").write_text("from sightline.methods.grpo import GRPO\nclass Named(GRPO): ...\n")
    assert main(["train", "grpo", "--method.name", "my_method:Named"]) == 0
    assert trained.calls[0][1] == Path("runs/grpo-my_method-Named")


def test_a_run_without_evaluation_says_so(trained, capsys):
    words = ["train", "mine.yaml"]
    Path("mine.yaml").write_text("method: {name: grpo}\ndata: {train: 'scenes:easy'}\n")
    assert main([*words, "--out", "a"]) == 0
    said = "no evaluation: neither data.validation nor evaluation.data names records\n"
    assert capsys.readouterr().out.count(said) == 1
    assert main([*words, "--out", "b", "--evaluation.data", "scenes:easy"]) == 0
    assert "no evaluation" not in capsys.readouterr().out
    assert len(trained.calls) == 2


def test_the_same_command_resumes_and_more_steps_go_on(trained):
    for steps in ("3", "3", "9"):
        assert main(["train", "grpo", "--train.steps", steps]) == 0
    assert {str(folder) for _, folder, _ in trained.calls} == {"runs/grpo-grpo"}
    assert main(["train", "runs/grpo-grpo"]) == 0
    assert trained.calls[-1][0].train.steps == 9
    assert trained.calls[-1][1] == Path("runs/grpo-grpo")


def test_another_recipe_does_not_continue_the_run(trained, capsys):
    assert main(["train", "grpo"]) == 0
    assert main(["train", "grpo", "--optim.lr", "0.5"]) == 2
    message = capsys.readouterr().err
    assert "optim.lr 0.00015 -> 0.5" in message
    assert "--fresh" in message
    assert len(trained.calls) == 1


def test_fresh_starts_a_numbered_folder_and_keeps_the_old_one(trained):
    for _ in range(3):
        assert main(["train", "grpo", "--fresh", "--optim.lr", "0.5"]) == 0
    assert [str(folder) for _, folder, _ in trained.calls] == ["runs/grpo-grpo", "runs/grpo-grpo-2", "runs/grpo-grpo-3"]
    assert all(Path(folder).is_dir() for _, folder, _ in trained.calls)


def test_an_interrupt_names_the_command_that_resumes(trained, capsys):
    trained.interrupts.append(KeyboardInterrupt())
    assert main(["train", "grpo", "--optim.lr", "0.5"]) == 130
    assert "to go on: sightline train grpo --optim.lr 0.5\n" in capsys.readouterr().err
    trained.interrupts.append(KeyboardInterrupt())
    assert main(["train", "grpo", "--optim.lr", "0.5", "--fresh"]) == 130
    resume = capsys.readouterr().err.split("to go on: sightline ")[1].split()
    assert resume == ["train", "grpo", "--optim.lr", "0.5", "--out", "runs/grpo-grpo-2"]
    assert main(resume) == 0
    assert trained.calls[-1][1] == Path("runs/grpo-grpo-2")


def test_a_folder_with_other_files_is_left_alone(trained, tmp_path, capsys):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").write_text("dear")
    assert main(["train", "grpo", "--out", "mine"]) == 2
    assert "holds files but no run" in capsys.readouterr().err
    assert main(["train", "grpo", "--out", "mine/letter.txt"]) == 2
    assert not trained.calls


def test_a_change_within_an_arm_is_a_change(tmp_path):
    recipe = load_recipe("demo")
    (tmp_path / "recipe.yaml").write_text(resolved_yaml(recipe))
    assert open_folder(tmp_path, recipe) == tmp_path
    name = next(iter(recipe.arms))
    with pytest.raises(UserError, match=f"arms.{name}.optim.lr"):
        open_folder(tmp_path, load_recipe("demo", [f"--arms.{name}.optim.lr", "0.5"]))
    assert open_folder(tmp_path, load_recipe("demo", [f"--arms.{name}.train.steps", "5"])) == tmp_path


def test_an_arm_leaves_the_page_to_the_run_that_holds_it(trained):
    assert main(["train", "grpo", "--out", "run/arms/textual"]) == 0
    assert main(["train", "grpo", "--out", "run2"]) == 0
    arm, whole = (reporter for _, _, reporter in trained.calls)
    assert not arm._writes_page
    assert whole._writes_page
