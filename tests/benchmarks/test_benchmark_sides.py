"""What the benchmarks compare is the same computation: losses, gradients and replies agree at toy size."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import Literal

import numpy as np
import pytest

from harness import Pairs, print_json, print_table
from sampler import Setting, check, converse, make_conversations, make_sides
from shapes import Shape, groups_of, write_checkpoint
from sides import PaddedSide, TreeSide, agreement, bench_policy

TOY = Shape(
    visual=4, records=2, streams=("grounded", "textual"), rollouts=3, text=20, reply=6, hidden=64, layers=2
)  # fmt: skip


@pytest.mark.parametrize("family", ["qwen3_vl", "qwen2_5_vl"])
@pytest.mark.parametrize("peer", ["per_rollout", "shared"])
@pytest.mark.parametrize(("kl", "checkpointing"), [(0.0, False), (0.01, True)])
def test_tree_equals_padded(
    tmp_path: Path, family: str, peer: Literal["per_rollout", "shared"], kl: float, checkpointing: bool
) -> None:
    write_checkpoint(tmp_path, TOY, family)
    policy = bench_policy(tmp_path, checkpointing=checkpointing)
    groups = groups_of(policy, TOY, noise=0.4)
    tree = TreeSide(policy, groups, kl)
    padded = PaddedSide(bench_policy(tmp_path, checkpointing=checkpointing, stock=True), groups, kl, peer)
    loss, gradient = agreement(tree, padded)
    assert loss < 1e-4
    assert gradient < 1e-3
    assert 0.05 < tree.clip_fraction < 0.9


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kl", [0.0, 0.01])
def test_tree_equals_trl(tmp_path: Path, kl: float) -> None:
    pytest.importorskip("trl")
    from trl_side import TRLSide

    write_checkpoint(tmp_path, TOY)
    policy = bench_policy(tmp_path)
    groups = groups_of(policy, TOY, noise=0.4)
    loss, gradient = agreement(TreeSide(policy, groups, kl), TRLSide(tmp_path, policy, groups, kl, False))
    assert loss < 1e-4
    assert gradient < 1e-3


def test_prompts_have_the_stated_length(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, TOY)
    groups = groups_of(bench_policy(tmp_path), TOY)
    assert {len(r.prompt_ids) for g in groups for r in g.rollouts} == {TOY.visual + TOY.text}
    assert [len(g) for g in groups] == [6, 6]


@pytest.mark.parametrize("has_ends", [False, True])
def test_sampler_equals_generate(tmp_path: Path, has_ends: bool) -> None:
    setting = Setting("toy", 4, 10, has_ends)
    ours, theirs = make_sides(tmp_path, setting, prompts=3, n=2)
    assert check(ours, theirs, setting.tokens) < 1e-4
    a, b = ours.sample(10, 1), theirs.sample(10, 1)
    assert len(a.ids) == len(b.ids) == 6
    assert all(len(row) == len(values) for row, values in zip(b.ids, b.logprobs, strict=True))
    if has_ends:
        assert min(len(row) for row in a.ids) < 10


def test_kept_keys_equal_reading_anew(tmp_path: Path) -> None:
    kept, anew, requests = make_conversations(tmp_path, TOY, 4, prompts=2)
    a, b = converse(kept, requests, 16, 0), converse(anew, requests, 16, 0)
    assert len(a) == 16
    assert max(len(r.turns) for r in a) == 5
    for x, y in zip(a, b, strict=True):
        assert x.ids.tolist() == y.ids.tolist()
        np.testing.assert_allclose(x.logprobs, y.logprobs, atol=1e-5)


def test_pairs_report_the_median_ratio() -> None:
    pairs = Pairs(ours=(1.0, 2.0, 1.0), theirs=(2.0, 6.0, 5.0))
    assert pairs.ratio == 3.0
    assert pairs.row() == ["5.000", "1.000", "3.00x", "2.00-5.00"]


def test_the_last_line_is_json(capsys: pytest.CaptureFixture[str]) -> None:
    print_table(["a", "b"], [["x", "1"]])
    print_json({"ratio": 2.34567})
    assert json.loads(capsys.readouterr().out.splitlines()[-1]) == {"ratio": 2.346}


@pytest.mark.skipif(importlib.util.find_spec("trl") is not None, reason="TRL is installed")
def test_without_trl_one_clear_line() -> None:
    script = Path(__file__).parents[2] / "benchmarks" / "update.py"
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "make bench" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


@pytest.mark.parametrize("version", ["1.15.2", "1.17.0", "2.0"])
def test_another_version_of_the_peer_is_refused(version, monkeypatch, capsys):
    import update

    monkeypatch.setattr("importlib.util.find_spec", lambda name: name)
    monkeypatch.setattr("importlib.metadata.version", lambda _: version)
    monkeypatch.setattr("sys.argv", ["update.py"])
    monkeypatch.setattr(update, "settle", lambda: pytest.fail("it went on"))
    with pytest.raises(SystemExit) as end:
        update.main()
    assert end.value.code == 2
    assert capsys.readouterr().err == (
        f"error: benchmarks/update.py calls TRL 1.16, found {version}; install it with: make bench\n"
    )
