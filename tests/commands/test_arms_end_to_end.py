"""Two real arms, each a process of its own, on random weights."""

from __future__ import annotations

import json

from sightline.cli import main

RECIPE = """
method: {{name: ivgr, streams: {{grounded: {{n: 2}}, textual: {{n: 2}}}}}}
model: {{name: "{model}"}}
data: {{train: "scenes:easy", validation: "scenes:easy", records_per_step: 2}}
sampling: {{max_new_tokens: 6}}
train: {{steps: 2, checkpoint_every: 1, log_groups_every: 1, log_groups: 1}}
evaluation: {{n: 2, modes: [textual, crops]}}
judge: {{kind: offline}}
arms:
  plain: {{method: {{name: grpo}}}}
  dual: {{}}
"""


def test_arms_train_report_and_resume(checkpoints, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.yaml").write_text(RECIPE.format(model=checkpoints["qwen3_vl"]))
    assert main(["train", "mine.yaml"]) == 0
    shown = capfd.readouterr().out
    run = tmp_path / "runs" / "mine-ivgr"
    assert f"page: {run / 'report.html'}" in shown
    assert "Accuracy" in shown
    for name in ("plain", "dual"):
        arm = run / "arms" / name
        assert len((arm / "events.jsonl").read_text().splitlines()) == 2
        assert {json.loads(line)["mode"] for line in (arm / "evaluations.jsonl").read_text().splitlines()} == {
            "textual",
            "crops",
        }
        assert not (arm / "report.html").exists()
    saved = {path: path.stat().st_mtime_ns for path in run.glob("arms/dual/checkpoints/*/model.safetensors")}
    assert main(["train", str(run / "arms" / "dual")]) == 0  # a finished arm: nothing is left to do
    assert saved == {path: path.stat().st_mtime_ns for path in run.glob("arms/dual/checkpoints/*/model.safetensors")}
    assert main(["archive", "stats", str(run / "arms" / "dual")]) == 0
    capfd.readouterr()
    assert main(["score", str(run / "arms" / "dual" / "rollouts.jsonl"), "--judge", "offline"]) == 0
    rows = [json.loads(line) for line in capfd.readouterr().out.splitlines()]
    logged = [json.loads(line) for line in (run / "arms" / "dual" / "rollouts.jsonl").read_text().splitlines()]
    totals = [round(rollout["total"], 6) for group in logged for rollout in group["rollouts"]]
    assert [round(row["total"], 6) for row in rows] == totals
