"""For given rollouts, losses and gradients of several processes are those of one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import together
from eager import relative_difference
from sightline.train.distributed import World

Results = list[dict[tuple[str, str], dict[str, Any]]]


def results_of(out: Path, folders: list[Path], processes: int, names: tuple[str, ...] | None = None) -> Results:
    """What each of so many gloo processes found."""
    with together.started(out, together.scenarios, out, folders, names, processes=processes) as group:
        assert group.wait() == [0] * processes, group.words()
    return [torch.load(out / f"{rank}.pt") for rank in range(processes)]


@pytest.fixture(scope="module")
def single() -> dict[tuple[str, str], dict[str, Any]]:
    """What one process found; filled on the way."""
    return {}


@pytest.fixture(scope="module")
def pair(checkpoints: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Results:
    return results_of(tmp_path_factory.mktemp("two"), list(checkpoints.values()), 2)


@pytest.fixture(scope="module")
def three(checkpoints: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Results:
    return results_of(tmp_path_factory.mktemp("three"), [checkpoints["qwen3_vl"]], 3, together.OF_THREE)


def assert_equal_to_one(one: dict[str, Any], several: list[dict[str, Any]]) -> None:
    first, *others = several
    assert len(one["gradients"]) == len(first["gradients"]) > 0
    for expected, ours in zip(one["gradients"], first["gradients"], strict=True):
        assert expected.keys() == ours.keys()
        assert relative_difference(ours, expected) < 1e-5
    assert one["metrics"].keys() == first["metrics"].keys()
    for key, value in one["metrics"].items():
        assert first["metrics"][key] == pytest.approx(value, rel=1e-5, abs=1e-6), key
    assert one.get("rows") == first.get("rows")
    for n, weight in one["weights"].items():  # a step is as long as lr wherever a gradient is not zero
        torch.testing.assert_close(first["weights"][n], weight, atol=1e-5, rtol=0)
        assert all(torch.equal(first["weights"][n], other["weights"][n]) for other in others), n


@pytest.mark.parametrize(("family", "name"), [(f, name) for f, names in together.ASKED.items() for name in names])
def test_two_processes_do_what_one_does(
    checkpoints: dict[str, Path], single: dict, pair: Results, family: str, name: str
) -> None:
    one = single[family, name] = together.found(checkpoints[family], World(), name)
    assert_equal_to_one(one, [results[family, name] for results in pair])
    if name in together.ANCHORING:
        check_rows(one["rows"], has_adapter="adapter" in name)


@pytest.mark.parametrize("name", together.OF_THREE)
def test_three_processes_do_what_one_does(
    checkpoints: dict[str, Path], single: dict, three: Results, name: str
) -> None:
    key = "qwen3_vl", name
    one = single[key] if key in single else together.found(checkpoints["qwen3_vl"], World(), name)
    assert_equal_to_one(one, [results[key] for results in three])


def check_rows(rows: dict[str, list[int]], *, has_adapter: bool) -> None:
    """The first steps of Anchoring train one row of the input embeddings, and nothing else."""
    ((name, changed),) = rows.items()
    assert "embed_tokens" in name
    assert ("trainable_tokens" in name) == has_adapter
    assert len(changed) == 1
