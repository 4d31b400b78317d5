"""The bar of long work."""

from __future__ import annotations

import io

import pytest

from sightline import progress


def test_no_bar_without_a_terminal_and_one_after_two_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.StringIO()
    monkeypatch.setattr("sys.stderr", stream)
    assert list(progress.track(range(3), "working", 3)) == [0, 1, 2]
    assert stream.getvalue() == ""
    monkeypatch.setattr(stream, "isatty", lambda: True, raising=False)
    assert list(progress.track(range(3), "working", 3)) == [0, 1, 2]
    assert "working" not in stream.getvalue()
    monkeypatch.setattr(progress, "PATIENCE", -1.0)
    assert list(progress.track(range(3), "working", 3)) == [0, 1, 2]
    assert "working" in stream.getvalue()
    stream.truncate(0)
    monkeypatch.setenv("RANK", "3")
    assert list(progress.track(range(3), "working", 3)) == [0, 1, 2]
    assert stream.getvalue() == ""
