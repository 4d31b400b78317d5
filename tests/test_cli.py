from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

from sightline.cli import COMMANDS, main
from sightline.errors import SightlineError, UserError


def cpu_seconds(code: str, runs: int = 3) -> float:
    """Least user + system seconds of a fresh interpreter over a few runs."""
    best = float("inf")
    for _ in range(runs):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        best = min(best, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    return best


def loaded(code: str) -> set[str]:
    out = subprocess.run(
        [sys.executable, "-c", f"{code}\nimport sys; print('\\n' + '\\n'.join(sys.modules))"],
        check=True, capture_output=True, text=True,
    )  # fmt: skip
    return set(out.stdout.split())


def test_the_package_and_the_help_page_are_quick():
    assert cpu_seconds("import sightline") < 0.3
    assert cpu_seconds("from sightline.cli import main; main(['--help'])") < 0.5
    assert cpu_seconds("from sightline.cli import main; main([])") < 0.5


@pytest.mark.parametrize("name", list(COMMANDS))
def test_every_command_exists_and_is_light(name):
    module, _, attribute = COMMANDS[name][0].partition(":")
    command = getattr(import_module(f"sightline.commands.{module}"), attribute)
    assert command.__doc__
    assert callable(command.run)


def test_help_pages_import_no_heavy_package(capsys):
    code = "from sightline.cli import main\n" + "\n".join(
        f"try: main({[*name.split(), '--help']!r})\nexcept SystemExit as end: assert not end.code" for name in COMMANDS
    )
    heavy = {"torch", "transformers", "PIL", "jinja2", "scipy", "math_verify", "openai"}
    assert not heavy & loaded(code)
    del capsys


@pytest.mark.parametrize("words", [["--help"], ["data", "--help"], []])
def test_overviews(words, capsys):
    assert main(words) == 0
    shown = capsys.readouterr().out
    assert "data check" in shown
    assert ("train " in shown) == (words != ["data", "--help"]) or "sightline train demo" in shown


def test_version(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("sightline 0")


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["tarin", "demo"], "did you mean 'sightline train'?"),
        (["recipe"], "needs one of: ls, show, copy, diff"),
        (["xyzzy"], "sightline --help lists the commands"),
        (["train", "no-such-recipe"], "no recipe named 'no-such-recipe'"),
        (["train", "demo", "--optim.lrr", "1"], "did you mean 'lr'?"),
        (["train", "demo", "--optim.lr", "fast"], "expected a number"),
        (["ask", "picture.png"], "the question is missing"),
        (["ask", "nowhere.png", "What?"], "nowhere.png"),
        (["ask", "a", "b", "--mode", "zoom"], "unknown mode 'zoom'"),
        (["ask", "picture.png", "What?", "--padding", "-1"], "error: --padding: Input should be"),
        (["ask", "picture.png", "What?", "--turns.max-turns", "0"], "error: --turns.max-turns: Input should be"),
        (["eval", "--turns.max_turns=65"], "error: --turns.max_turns: Input should be"),
        (["ask", "a.png", "What?", "--min-pixels", "9", "--max-pixels", "4"], "error: min_pixels must not exceed"),
        (["eval", "compare", "a.jsonl", "b.jsonl", "--against", "crops"], "--against needs --mode"),
        (["eval", "compare", "a.jsonl", "b.jsonl"], "a.jsonl: no such table"),
        (["archive", "stats", "nowhere"], "nowhere: no such run or archive"),
        (["report", "nowhere"], "nowhere: there is no such folder"),
        (["score", "nowhere.jsonl"], "nowhere.jsonl: no such file"),
        (["ask", "a.png", "What?", "--temperature", "-0.5"], "temperature must be 0 or more"),
        (["ask", "a.png", "What?", "--max-new-tokens", "0"], "max_new_tokens must be at least 1"),
        (["eval", "--temperature", "nan"], "temperature must be 0 or more"),
        (["eval", "--batch", "0"], "--batch: must be at least 1"),
        (["eval", "--limit", "-3"], "--limit: must be at least 1"),
        (["eval", "--out", "table.json"], "the table is JSONL"),
        (["data", "check", "rows.jsonl", "--token-budget", "4"], "needs --model-frame"),
        (["data", "scenes", "--out", "x", "--n", "0"], "at least one record"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(words, expected, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert main(words) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("error: ")
    assert captured.err.count("\n") == 1
    assert expected in captured.err
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["train"], "Missing from sightline train: RECIPE"),
        (["eval", "--limit", "many"], "--limit: "),
        (["eval", "--modes", "zoom"], "'zoom'"),
        (["eval", "-x"], "-x"),
        (["ask", "x.png", "q", "--turns.syntax", "foo"], "'foo' for argument '--turns.syntax'"),
        (["ask", "x.png", "q", "--bogus", "3"], "--bogus"),
    ],
)
def test_options_that_do_not_fit_are_one_line(words, expected, capsys):
    assert main(words) == 2
    told = capsys.readouterr().err
    assert told.startswith("error: ")
    assert told.count("\n") == 1
    assert expected in told
    assert "--help" in told


def test_help_is_printed_whole(capsys):
    with pytest.raises(SystemExit) as end:
        main(["ask", "--help"])
    assert end.value.code == 0
    assert "--mode" in capsys.readouterr().out


class Failing:
    def __init__(self, error):
        self.error = error

    def run(self):
        raise self.error


def run_failing(monkeypatch, error, words=("report", "x")):
    monkeypatch.setattr("sightline.cli._parse", lambda _: Failing(error))
    return main(list(words))


def test_an_interrupt_names_the_command_that_goes_on(monkeypatch, capsys):
    assert run_failing(monkeypatch, KeyboardInterrupt(), ["report", "my run"]) == 130
    assert "to go on: sightline report 'my run'" in capsys.readouterr().err


def test_a_message_of_several_lines_becomes_one(monkeypatch, capsys):
    assert run_failing(monkeypatch, UserError("first\n  second")) == 2
    assert capsys.readouterr().err == "error: first second\n"


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (SightlineError("this sampler runs\nsingle replies"), "error: this sampler runs single replies\n"),
        (PermissionError(13, "Permission denied", "runs/x"), "error: runs/x: Permission denied\n"),
        (OSError("cannot go on"), "error: cannot go on\n"),
        (ConnectionError(), "error: ConnectionError\n"),
        (FloatingPointError("the gradient norm is nan"), "error: the gradient norm is nan\n"),
    ],
)
def test_what_the_user_can_mend_is_one_line(monkeypatch, capsys, error, expected):
    assert run_failing(monkeypatch, error) == 2
    assert capsys.readouterr().err == expected


@pytest.mark.parametrize(
    "words",
    [
        ["train", "grpo", "--out", "file/run"],
        ["data", "scenes", "--n", "1", "--out", "file"],
        ["data", "scenes", "--n", "1", "--out", "file/scenes"],
        ["data", "preview", "scenes:easy", "--limit", "1", "--out", "folder"],
        ["data", "preview", "scenes:easy", "--limit", "1", "--out", "file/page.html"],
        ["score", "rows.jsonl", "--out", "file/scored.jsonl"],
        ["recipe", "copy", "demo", "file/mine.yaml"],
        ["data", "check", "n" * 300 + ".jsonl"],
    ],
)
def test_a_place_that_cannot_be_read_or_written_is_one_line(words, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("")
    (tmp_path / "folder").mkdir()
    (tmp_path / "rows.jsonl").write_text('{"record": 1, "stream": "textual", "text": ""}\n')
    assert main(words) == 2
    message = capsys.readouterr().err
    assert message.startswith("error: ")
    assert message.count("\n") == 1
    assert words[-1].split("/")[0] in message


@pytest.mark.parametrize("start", [["-m", "sightline"], ["-c", "import sys; from sightline.cli import main; main()"]])
def test_files_of_the_working_folder_hide_no_installed_module(start, tmp_path):
    (tmp_path / "yaml.py").write_text("raise SystemExit('hidden')")
    (tmp_path / "own.py").write_text("from sightline.methods.grpo import GRPO\nclass Named(GRPO): ...\n")
    (tmp_path / "mine.yaml").write_text("method: {name: 'own:Named'}\ndata: {train: 'scenes:easy'}\n")
    if start[0] == "-c":  # as the installed script: the working folder is not on the path yet
        start = ["-P", *start]
    done = subprocess.run(
        [sys.executable, *start, "recipe", "show", "mine.yaml"],
        cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert "own:Named" in done.stdout, done.stderr


def test_a_bug_keeps_its_traceback(monkeypatch):
    with pytest.raises(ZeroDivisionError):
        run_failing(monkeypatch, ZeroDivisionError())


def test_a_closed_pipe_is_no_error():
    command = f"{sys.executable} -m sightline recipe show demo --explain | head -1"
    done = subprocess.run(["bash", "-c", f"set -o pipefail; {command}"], capture_output=True, text=True, check=False)
    assert "Traceback" not in done.stderr
    assert done.returncode in (0, 141)


def test_recipes_are_listed_shown_copied_and_compared(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["recipe", "ls"]) == 0
    assert "demo" in capsys.readouterr().out
    assert main(["recipe", "show", "demo", "--optim.lr", "0.5"]) == 0
    assert "lr: 0.5" in capsys.readouterr().out
    assert main(["recipe", "show", "demo", "--explain"]) == 0
    assert "optim.lr: " in capsys.readouterr().out
    assert main(["recipe", "copy", "demo", "mine.yaml"]) == 0
    assert main(["recipe", "copy", "demo", "mine.yaml"]) == 2
    capsys.readouterr()
    assert main(["recipe", "diff", "demo", "mine.yaml"]) == 0
    assert capsys.readouterr().out == "the two recipes are equal\n"
    assert main(["recipe", "diff", "demo", "mine.yaml", "--train.seed", "7"]) == 0
    assert capsys.readouterr().out == "train.seed: 0 -> 7\n"


def test_scenes_are_written_checked_and_previewed(tmp_path, capsys):
    folder = tmp_path / "scenes"
    assert main(["data", "scenes", "--out", str(folder), "--n", "6", "--level", "easy"]) == 0
    assert main(["data", "check", str(folder / "records.jsonl")]) == 0
    assert "6 rows, 0 errors" in capsys.readouterr().out
    page = tmp_path / "page.html"
    assert main(["data", "preview", str(folder / "records.jsonl"), "--limit", "2", "--out", str(page)]) == 0
    assert "2 of 2 records" in page.read_text()
    assert main(["data", "scenes", "--out", str(folder), "--n", "6"]) == 2


def test_a_broken_row_is_named_with_file_and_line(tmp_path, capsys):
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"question": "a?", "answer": "b"}\n{"question": "a?"}\n')
    assert main(["data", "check", str(rows)]) == 2
    assert "answer: missing" in capsys.readouterr().out
    assert main(["ask", str(rows)]) == 2
    assert f"error: {rows}:2: answer: missing" in capsys.readouterr().err


def test_the_module_is_the_command():
    done = subprocess.run([sys.executable, "-m", "sightline", "nonsense"], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("error: unknown command")


def test_environment_variables_do_not_change_a_recipe(capsys, monkeypatch):
    monkeypatch.setitem(os.environ, "SIGHTLINE_OPTIM_LR", "1")
    assert main(["recipe", "show", "demo"]) == 0
    assert "lr: 1\n" not in capsys.readouterr().out


def test_archive_commands_read_files_checkpoints_and_runs(tmp_path, capsys):
    from sightline.archive import Archive
    from sightline.types import Box, Reference

    archive = Archive()
    for key, rank in (("k1", 0.5), ("k2", 0.9)):
        archive.offer(
            Reference(key=key, text=f"text {key}", boxes=(Box(1, 2, 3, 4),), rank=(1.0, rank), scores={"box": rank})
        )
    run = tmp_path / "run"
    checkpoint = run / "checkpoints" / "step-000003"
    checkpoint.mkdir(parents=True)
    (checkpoint / "state.json").write_text(json.dumps({"schema": 1, "step": 3, "archive": archive.state()}))
    archive.save(tmp_path / "archive.json")
    for place in (tmp_path / "archive.json", checkpoint / "state.json", run):
        assert main(["archive", "stats", str(place), "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["size"] == 2
    assert main(["archive", "show", str(run), "--limit", "1"]) == 0
    shown = capsys.readouterr().out
    assert "k2" in shown
    assert "k1" not in shown
    target = tmp_path / "out.jsonl"
    assert main(["archive", "export", str(run), str(target)]) == 0
    assert len(target.read_text().splitlines()) == 2
    assert main(["archive", "export", str(run), str(target)]) == 2


def test_archive_commands_keep_the_policy_of_the_run(tmp_path, capsys):
    from sightline.archive import Archive
    from sightline.types import Reference

    archive = Archive()
    for step in (0, 5, 9):
        archive.advance(step)
        archive.offer(Reference(key=f"k{step}", text="t", boxes=(), rank=(1.0,), step=step))
    checkpoint = tmp_path / "checkpoints" / "step-000010"
    checkpoint.mkdir(parents=True)
    (checkpoint / "state.json").write_text(json.dumps({"schema": 1, "step": 10, "archive": archive.state()}))
    method = "{name: ivgr, archive: {policy: max_age, max_age: 4}}"
    (tmp_path / "recipe.yaml").write_text(f"method: {method}\ndata: {{train: 'scenes:easy'}}\n")
    for place in (tmp_path, checkpoint / "state.json"):
        assert main(["archive", "stats", str(place), "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["size"] == 2
    assert main(["archive", "show", str(tmp_path)]) == 0
    assert "k0" not in capsys.readouterr().out


@pytest.mark.parametrize("content", [b"{", b"\xff", b'{"schema": 1, "step": 1, "archive": {"schema": 1}}'])
def test_a_damaged_archive_says_what_to_do(tmp_path, capsys, content):
    state = tmp_path / "checkpoints" / "step-000001" / "state.json"
    state.parent.mkdir(parents=True)
    state.write_bytes(content)
    assert main(["archive", "stats", str(tmp_path)]) == 2
    message = capsys.readouterr().err
    assert f"error: {state}: " in message
    assert "delete this folder; the run resumes from the one before" in message


def test_a_run_without_a_checkpoint_says_so(tmp_path, capsys):
    (tmp_path / "run").mkdir()
    assert main(["archive", "stats", str(tmp_path / "run")]) == 2
    assert "holds neither a model nor a checkpoint" in capsys.readouterr().err
    (tmp_path / "run" / "arms" / "textual").mkdir(parents=True)
    assert main(["eval", "--model", str(tmp_path / "run"), "--limit", "1"]) == 2
    assert str(Path("arms") / "textual") in capsys.readouterr().err
