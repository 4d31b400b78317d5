"""The learner's state in the files of several processes: what one process reads of it, and damage that is named."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from sightline.errors import SightlineError, UserError
from sightline.train.checkpoint import SHARES, Saved
from sightline.train.distributed import World
from sightline.train.shards import write_shards

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is")
STATE: dict[str, Any] = {
    "optimizer": {"state": {0: {"exp_avg": torch.arange(6.0).view(2, 3), "step": torch.tensor(4.0)}}},
    "masters": [torch.ones(2, 3)],
    "rng": torch.arange(5, dtype=torch.uint8),
}


def test_what_was_written_is_read(tmp_path: Path) -> None:
    write_shards(tmp_path / SHARES, STATE, World())
    found = Saved(tmp_path, 1, {}).tensors()
    assert torch.equal(found["optimizer"]["state"][0]["exp_avg"], STATE["optimizer"]["state"][0]["exp_avg"])
    assert float(found["optimizer"]["state"][0]["step"]) == 4.0
    assert torch.equal(found["masters"][0], STATE["masters"][0])
    assert torch.equal(found["rng"], STATE["rng"])


@pytest.mark.parametrize("damage", ["*.distcp cut", "*.distcp gone", ".metadata cut", ".metadata gone"])
def test_a_damaged_share_names_the_folder_and_what_to_do(tmp_path: Path, damage: str) -> None:
    write_shards(tmp_path / SHARES, STATE, World())
    pattern, what = damage.split()
    (path,) = (tmp_path / SHARES).glob(pattern)
    if what == "gone":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(UserError, match="delete this folder; the run resumes from the one before") as caught:
        Saved(tmp_path, 1, {}).tensors()
    assert str(tmp_path / SHARES) in str(caught.value)


def test_what_cannot_be_written_is_an_error_of_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(SightlineError, match="Error") as caught:
        write_shards(tmp_path / "file" / SHARES, STATE, World())
    assert "\n" not in str(caught.value)
