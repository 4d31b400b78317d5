"""Ranking heads: masses and strongest cells against eager matrices, order by hand, the command."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from measured import Stock
from sightline.cli import main
from sightline.geometry.grid import membership
from sightline.policy.load import Policy
from sightline.policy.packing import Packer
from sightline.probes.calibration import HeadScore, head_scores, ranked
from sightline.probes.heads import read_heads
from sightline.types import Group


@pytest.mark.parametrize("budget", [8192, 60])
def test_scores_equal_eager_matrices(policy: Policy, stock: Stock, talks: list[Group], budget: int) -> None:
    groups = [group.at([place]) for group in talks[:2] for place in (0, 3)]
    for group, scores in zip(groups, head_scores(Packer(policy, budget), groups), strict=True):
        rollout, record = group.rollouts[0], group.record
        matrices, _, visual = stock(rollout)
        region = membership(record.regions, [i.size for i in record.images], policy.frame)
        own = visual[: len(region)]
        start = len(rollout.prompt_ids)
        assert len(scores) == 12
        for layer, matrix in enumerate(matrices):
            for head, table in enumerate(matrix):
                cells = table[start - 1 : -1][rollout.sampled][:, own].mean(0)
                found = scores[layer, head]
                assert found.on_image == pytest.approx(cells.sum(), abs=1e-6)
                assert found.region == pytest.approx(cells @ region, abs=1e-6)
                assert found.lift == pytest.approx((cells @ region) / region.mean(), abs=1e-5)
                assert found.pointing == float(region[cells.argmax()] > 0)


def score(head: int, lift: float, pointing: float) -> HeadScore:
    return HeadScore(layer=0, head=head, on_image=0.5, region=0.1, lift=lift, pointing=pointing)


def test_ranks_are_added_and_records_averaged() -> None:
    first = {(0, h): score(h, lift, p) for h, (lift, p) in enumerate([(3.0, 0.0), (2.0, 1.0), (1.0, 1.0), (0.5, 0.0)])}
    second = {(0, h): score(h, lift, 0.0) for h, lift in enumerate([3.0, 2.0, 1.0, 0.5])}
    order = ranked([first, second])
    assert [s.head for s in order] == [1, 0, 2, 3]
    assert order[0].pointing == 0.5
    assert ranked([second])[0].head == 0  # no head points: the lift decides


def test_the_command_writes_a_list_for_probes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "deep" / "heads.json"
    words = ["attention", "calibrate", "embedded:qwen3_vl", "scenes:easy", "--n", "6", "--keep", "3", "--out", str(out)]
    assert main(words) == 0
    assert "3 heads of 12, marked with *" in capsys.readouterr().out
    figures = json.loads(out.read_text())
    heads = read_heads(str(out))
    assert [list(pair) for pair in heads] == figures["heads"]
    assert len(heads) == 3
    assert len(figures["scores"]) == 12
    assert {layer for layer, _ in heads} == {2}  # the last layer of this policy looks at the evidence
    lifts = np.array([s["lift"] for s in figures["scores"]])
    assert main(words) == 2
    assert "exists already" in capsys.readouterr().err
    assert main([*words[:-1], str(tmp_path / "b.json"), "--by", "lift", "--json"]) == 0
    assert [s["lift"] for s in json.loads(capsys.readouterr().out)["scores"]] == sorted(lifts, reverse=True)


def test_what_cannot_be_ranked_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = ["--out", str(tmp_path / "h.json")]
    data = tmp_path / "plain.jsonl"
    data.write_text(json.dumps({"id": "a", "question": "2 + 2?", "answer": "4", "images": []}) + "\n")
    for words in (
        ["embedded:qwen3_vl", "scenes:easy", "--n", "0"],
        ["embedded:qwen3_vl", "scenes:easy", "--keep", "0"],
        ["embedded:nothing", "scenes:easy", "--n", "2"],
        ["embedded:qwen3_vl", str(data)],
    ):
        assert main(["attention", "calibrate", *words, *out]) == 2
        assert len(capsys.readouterr().err.strip().splitlines()) == 1
    assert not (tmp_path / "h.json").exists()
