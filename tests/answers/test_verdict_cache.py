from __future__ import annotations

from pathlib import Path

from sightline.answers.judge import Verdict
from sightline.answers.verdict_cache import VerdictCache, verdict_key


def test_a_torn_last_line_costs_one_verdict(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "judge.jsonl"
    cache = VerdictCache(path)
    cache.put("a", Verdict(value=0.3, why="one"))
    cache.put("b", Verdict(value=0.7, why="two"))
    path.write_bytes(path.read_bytes()[:-9])
    reloaded = VerdictCache(path)
    assert (len(reloaded), reloaded.skipped) == (1, 1)
    reloaded.put("c", Verdict(value=1.0, why="three"))
    third = VerdictCache(path)
    found = [third.get(key) for key in "abc"]
    assert [v.value if v else None for v in found] == [0.3, None, 1.0]
    assert all(v is None or v.cached for v in found)


def test_failures_are_not_written(tmp_path: Path) -> None:
    cache = VerdictCache(tmp_path / "judge.jsonl")
    cache.put("a", Verdict(value=None, why="down", failed=True))
    assert cache.get("a") is None
    assert not (tmp_path / "judge.jsonl").exists()


def test_keys_depend_on_everything() -> None:
    keys = {
        verdict_key("p", "m", {"n": 1}),
        verdict_key("q", "m", {"n": 1}),
        verdict_key("p", "k", {"n": 1}),
        verdict_key("p", "m", {"n": 4}),
    }
    assert len(keys) == 4
    assert verdict_key("p", "m", {"a": 1, "b": 2}) == verdict_key("p", "m", {"b": 2, "a": 1})
    assert verdict_key("\ud800", "m", {})  # half of a surrogate pair, as broken model output may hold
