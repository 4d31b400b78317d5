from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from server_stage import Stage, twin
from sightline.policy.load import Policy


@pytest.fixture
def stage(policy: Policy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Stage]:
    """Servers without pauses between attempts, all ended with the test."""
    monkeypatch.setattr("sightline.sampling.server_client.PAUSE", 0.01)
    with ExitStack() as stack:
        yield Stage(twin(policy), tmp_path, stack)
