"""For given rollouts, losses and gradients of two processes are those of one."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import together
from eager import relative_difference
from sightline.train.distributed import World


@pytest.fixture(scope="module")
def pair(checkpoints: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> list[dict]:
    """What each of two gloo processes found."""
    out = tmp_path_factory.mktemp("together")
    started = together.start([together.__file__, str(out), *map(str, checkpoints.values())])
    assert [process.wait(timeout=300) for process in started] == [0, 0]
    return [torch.load(out / f"{rank}.pt") for rank in range(together.PROCESSES)]


@pytest.mark.parametrize(("family", "name"), [(f, name) for f, names in together.ASKED.items() for name in names])
def test_two_processes_do_what_one_does(checkpoints: dict[str, Path], pair: list[dict], family: str, name: str) -> None:
    one = together.found(checkpoints[family], World(), name)
    first, second = (results[family, name] for results in pair)
    assert len(one["gradients"]) == len(first["gradients"]) > 0
    for expected, ours in zip(one["gradients"], first["gradients"], strict=True):
        assert expected.keys() == ours.keys()
        assert relative_difference(ours, expected) < 1e-5
    assert one["metrics"].keys() == first["metrics"].keys()
    for key, value in one["metrics"].items():
        assert first["metrics"][key] == pytest.approx(value, rel=1e-5, abs=1e-6), key
    for n, weight in one["weights"].items():  # a step is as long as lr wherever a gradient is not zero
        torch.testing.assert_close(first["weights"][n], weight, atol=1e-5, rtol=0)
        assert torch.equal(first["weights"][n], second["weights"][n]), n
