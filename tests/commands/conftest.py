from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture
def scenes(tmp_path: Path) -> Path:
    """Six easy records on disk."""
    from sightline.data import SceneSource, write_records

    source = SceneSource(level="easy", split="test", seed=0, limit=6)
    return write_records([source.at(i) for i in range(6)], tmp_path / "scenes")
