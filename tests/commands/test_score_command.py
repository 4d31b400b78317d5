from __future__ import annotations

import json

import pytest

from sightline.cli import main

GOLD = [50, 80, 120, 150]
RIGHT = "<think> the ball <box>[50,80,120,150]</box> is blue </think><answer>Blue</answer>"
SHIFTED = "<think> the ball <box>[60,90,130,160]</box> is blue </think><answer>Blue</answer>"
WRONG = "<think> the ball is red </think><answer>Red</answer>"
TEXTUAL = "<think> the ball is blue </think><answer>Blue</answer>"


def row(stream: str, text: str, step: int = 0, record: str = "r1", **more) -> dict:
    return {
        "record": record, "question": "What color is the ball?", "answer": "Blue", "stream": stream, "step": step,
        "text": text, "sizes": [[200, 200]], "boxes": [GOLD], **more,
    }  # fmt: skip


def score(tmp_path, rows, *words: str) -> list[dict]:
    source, target = tmp_path / "rows.jsonl", tmp_path / "scored.jsonl"
    source.write_text("".join(json.dumps(r) + "\n" for r in rows))
    target.unlink(missing_ok=True)
    assert main(["score", str(source), "--out", str(target), *words]) == 0
    return [json.loads(line) for line in target.read_text().splitlines()]


def test_terms_totals_and_advantages(tmp_path):
    rows = [row("grounded", text) for text in (RIGHT, SHIFTED, WRONG)]
    scored = score(tmp_path, rows, "--preset", "ivgr", "--judge", "offline")
    assert [r["stream"] for r in scored] == ["grounded"] * 3
    terms = [{name: term["value"] for name, term in r["terms"].items()} for r in scored]
    assert [t["accuracy"] for t in terms] == [1.0, 1.0, 0.0]
    assert terms[0]["box"] == 1.0
    assert 0.5 < terms[1]["box"] < 0.7
    assert terms[2]["box"] == 0.0
    assert scored[0]["total"] == pytest.approx(3.0)
    assert sum(r["advantage"] for r in scored) == pytest.approx(0, abs=1e-5)
    assert scored[0]["advantage"] > scored[1]["advantage"] > scored[2]["advantage"]
    assert all(term["why"] for r in scored for term in r["terms"].values())


def test_rows_stay_in_their_order_and_groups_apart(tmp_path):
    rows = [row("textual", TEXTUAL), row("grounded", RIGHT), row("textual", WRONG), row("grounded", WRONG, record="r2")]
    scored = score(tmp_path, rows, "--preset", "ivgr", "--judge", "offline")
    assert [(r["record"], r["stream"], r["branch"]) for r in scored] == [
        ("r1", "textual", [0]), ("r1", "grounded", [0]), ("r1", "textual", [1]), ("r2", "grounded", [0]),
    ]  # fmt: skip


def test_the_archive_is_carried_from_row_to_row(tmp_path):
    rows = [row("textual", TEXTUAL), row("grounded", RIGHT, step=3), row("textual", TEXTUAL, step=7)]
    scored = score(tmp_path, rows, "--preset", "ivgr", "--judge", "offline")
    assert [r["reference_step"] for r in scored] == [None, None, 3]
    assert scored[0]["terms"]["consistency"]["value"] == 0.0
    assert scored[2]["terms"]["consistency"]["value"] >= 0.7


def test_presets_differ_and_unknown_ones_are_named(tmp_path, capsys):
    # behind the answer, a box with a blank after the comma: the released code does not see it
    spaced = "<think> the ball <box>[50, 80, 120, 150]</box> </think><answer>Blue</answer>"
    (ours,) = score(tmp_path, [row("grounded", spaced)], "--preset", "ivgr/paper", "--judge", "offline")
    (theirs,) = score(tmp_path, [row("grounded", spaced)], "--preset", "ivgr/release", "--judge", "offline")
    assert ours["terms"]["box"]["value"] == 1.0
    assert theirs["terms"]["box"]["value"] == 0.0
    assert "validity" in theirs["terms"]
    source = str(tmp_path / "rows.jsonl")
    for preset, message in (("ivgr/relase", "release"), ("ivrg", "did you mean 'ivgr'?")):
        assert main(["score", source, "--preset", preset]) == 2
        assert message in capsys.readouterr().err
    assert main(["score", source, "--judge", "oracle"]) == 2
    assert main(["score", source, "--judge", "http"]) == 2
    assert "needs url and model" in capsys.readouterr().err
    assert main(["score", source, "--jugde", "rules"]) == 2
    assert "unknown option --jugde" in capsys.readouterr().err


def test_keys_of_the_method_follow(tmp_path):
    (scored,) = score(tmp_path, [row("grounded", RIGHT)], "--preset", "ivgr", "--method.weights.format", "0.5")
    assert scored["total"] == pytest.approx(2.5)


def test_the_frame_of_the_replies(tmp_path):
    relative = "<think> the ball <box>[250,400,600,750]</box> </think><answer>Blue</answer>"
    (named,) = score(tmp_path, [row("grounded", relative)], "--frame", "relative_1000")
    assert named["terms"]["box"]["value"] == 1.0
    frame = {"convention": "relative_1000", "factor": 32, "min_pixels": 1024, "max_pixels": 1 << 24}
    (own,) = score(tmp_path, [row("grounded", relative, frame=frame)])
    assert own["terms"]["box"]["value"] == 1.0


def test_logged_groups_of_a_run_are_scored_again(tmp_path):
    group = {
        "step": 4,
        "record": {
            "id": "r1", "question": "What color is the ball?", "answer": "Blue", "answer_kind": "text", "options": [],
            "regions": [{"box": GOLD, "label": "ball", "role": "evidence", "image": 0}],
            "images": [{"path": None, "width": 200, "height": 200, "digest": "d"}],
        },
        "reference": None,
        "frame": {"convention": "absolute", "factor": 1, "min_pixels": 1, "max_pixels": 1 << 30},
        "rollouts": [
            {"stream": "grounded", "branch": [0], "text": RIGHT, "finish": "stop", "tokens": []},
            {"stream": "grounded", "branch": [1], "text": WRONG, "finish": "stop", "tokens": []},
        ],
    }  # fmt: skip
    scored = score(tmp_path, [group], "--preset", "ivgr")
    assert [r["terms"]["accuracy"]["value"] for r in scored] == [1.0, 0.0]
    assert {r["step"] for r in scored} == {4}


def test_truncated_text_and_odd_replies_never_raise(tmp_path):
    texts = [
        "",
        "<box>",
        "<think>",
        "\x00",
        "<answer>" * 50,
        "[1,2,3,4]" * 99,
        "<box>[9,9,1,1]</box>",
        "<think>a</think>",
    ]
    rows = [row("grounded", text, finish="length") for text in texts] + [row("textual", text) for text in texts]
    scored = score(tmp_path, rows, "--preset", "ivgr/release", "--judge", "offline")
    assert len(scored) == 2 * len(texts)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "rows.jsonl:2: row is not valid JSON"),
        ("[]", "rows.jsonl:2: a row must be an object"),
        ('{"record": "a", "stream": "textual"}', "rows.jsonl:2: text: field required"),
        ('{"record": "a", "stream": "textual", "text": "", "sizes": [[0, 5]]}', "rows.jsonl:2: sizes.0.0"),
        ('{"record": "a", "stream": "t", "text": "", "txt": ""}', "rows.jsonl:2: txt"),
        ('{"record": "a", "stream": "t", "text": "", "frame": {"factor": 2}}', "rows.jsonl:2: frame: not a frame"),
        ('{"rollouts": [{}], "step": 1}', "rows.jsonl:2: not a logged group"),
    ],
)
def test_a_bad_row_is_named(tmp_path, capsys, line, message):
    source = tmp_path / "rows.jsonl"
    source.write_text(json.dumps(row("textual", TEXTUAL)) + "\n" + line + "\n")
    assert main(["score", str(source)]) == 2
    assert message in capsys.readouterr().err


def test_a_reply_may_hold_any_character(tmp_path):
    source, target = tmp_path / "rows.jsonl", tmp_path / "scored.jsonl"
    odd = row("grounded", "a\u2028b\u0085c\x0c" + RIGHT)
    source.write_text(json.dumps(odd, ensure_ascii=False), encoding="utf-8")
    assert main(["score", str(source), "--out", str(target)]) == 0
    assert json.loads(target.read_text())["terms"]["box"]["value"] == 1.0


def test_a_file_that_is_not_utf_8_is_named(tmp_path, capsys):
    source = tmp_path / "rows.jsonl"
    source.write_bytes(json.dumps(row("textual", "caf\u00e9"), ensure_ascii=False).encode("latin-1"))
    assert main(["score", str(source)]) == 2
    assert f"error: {source}:1: row is not valid JSON" in capsys.readouterr().err


def test_the_default_judge_compares_reasoning(tmp_path, capsys):
    rows = [row("grounded", RIGHT, step=3), row("textual", TEXTUAL, step=7)]
    scored = score(tmp_path, rows, "--preset", "ivgr")
    assert not scored[1]["terms"]["consistency"]["masked"]
    assert scored[1]["terms"]["consistency"]["value"] >= 0.7
    source = str(tmp_path / "rows.jsonl")
    unwritten = tmp_path / "unwritten.jsonl"
    assert main(["score", source, "--judge", "rules", "--out", str(unwritten)]) == 2
    assert not unwritten.exists()
    message = capsys.readouterr().err
    assert "--judge: kind rules decides about answers only" in message
    assert "offline or http" in message
    assert main(["score", source, "--judge", "rules", "--method.weights.consistency", "0"]) == 0
    assert main(["score", source, "--judge", "rules", "--preset", "grpo"]) == 0


ASKS = "<think> the ball </think><box>[60,90,130,160]</box>"


def test_a_conversation_is_judged_turn_by_turn(tmp_path):
    said = [
        {"role": "assistant", "text": ASKS},
        {"role": "user", "images": [1]},
        {"role": "assistant", "text": TEXTUAL},
    ]
    whole = row("grounded", f"{ASKS}\n{TEXTUAL}", turns=said, branch=[1, 0])
    both = [whole, row("grounded", ASKS, branch=[0, 0])]
    scored = score(tmp_path, both, "--preset", "ground_r1", "--judge", "rules")
    assert [r["terms"]["format"]["value"] for r in scored] == [1.0, 0.0]
    assert [r["branch"] for r in scored] == [[1, 0], [0, 0]]
    assert scored[0]["terms"]["coverage"]["value"] > 0
    used = score(tmp_path, [whole, whole], "--preset", "deepeyes", "--judge", "rules")
    assert used[0]["terms"]["tool"]["value"] == 1.0


def test_logged_conversations_are_read_as_they_were(tmp_path, policy):
    from conversations import Crops, converse, ends_often, prompts
    from sightline.commands.logged import read_groups
    from sightline.report.rows import group_row
    from sightline.sampling.base import Request
    from sightline.train.run import gather

    shown = prompts()[:2]
    talks = converse(ends_often(policy, 600), [Request(p, (4, 2), Crops()) for p in shown])
    rollouts = [*talks[0], *talks[1]]
    (group,) = gather([shown[0].record], rollouts, policy.frame)
    assert max(len(r.turns) for r in rollouts) > 2
    path = tmp_path / "rollouts.jsonl"
    path.write_text(json.dumps(group_row(0, group, decode_piece=policy.piece, frame=policy.frame)) + "\n")
    (logged,) = read_groups(path, policy.frame)
    assert logged.group.readings == group.readings
    for ours, theirs in zip(logged.group.rollouts, rollouts, strict=True):
        assert (ours.branch, ours.turns) == (theirs.branch, theirs.turns)
        assert ours.sampled.tolist() == theirs.sampled.tolist()


RUN = """
method: {name: %s, turns: {max: 3, max_tokens: 40}}
model: {name: "embedded:qwen3_vl"}
data: {train: "scenes:zoom", types: [mark], records_per_step: 2}
sampling: {max_new_tokens: 40}
train: {steps: 1, seed: 5, log_groups_every: 1}
"""


@pytest.mark.parametrize(
    ("name", "keys"),
    [
        ("ground_r1", ("--method.bins.edges", "step_quantile")),
        ("ground_r1/v1", ("--method.bins.bins", "2")),
        ("deepeyes", ("--method.n", "6")),
    ],
)
def test_a_run_with_conversations_is_scored_as_it_was(tmp_path, name, keys):
    from sightline.commands.train import train_one
    from sightline.config import load_recipe

    recipe, run = tmp_path / "run.yaml", tmp_path / "run"
    method, _, preset = name.partition("/")
    recipe.write_text(RUN % (f"{method}, preset: {preset}" if preset else method))
    train_one(load_recipe(recipe, keys), run)
    target = tmp_path / "scored.jsonl"
    words = ["--preset", name, "--judge", "rules", "--method.turns.max", "3", *keys]
    assert main(["score", str(run / "rollouts.jsonl"), "--out", str(target), *words]) == 0
    scored = [json.loads(line) for line in target.read_text().splitlines()]
    logged = [r for line in (run / "rollouts.jsonl").read_text().splitlines() for r in json.loads(line)["rollouts"]]
    assert len({r["total"] for r in logged}) > 1
    assert method == "deepeyes" or any(len(r["turns"]) > 1 for r in logged)
    for again, first in zip(scored, logged, strict=True):
        assert (again["branch"], again["terms"], again["total"]) == (first["branch"], first["terms"], first["total"])
        assert (again["advantage"] or 0.0) == pytest.approx(first["advantage"], abs=1e-6)
