"""The memory benchmark runs at toy size, and the table of the documentation is the one that it prints."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from harness import measures_memory

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "benchmarks" / "memory.py"


def test_table_of_the_documentation_is_what_the_arithmetic_says() -> None:
    from memory import table

    page = (ROOT / "docs" / "memory.md").read_text(encoding="utf-8")
    assert table() in page, "python benchmarks/memory.py --table prints the table of docs/memory.md"


@pytest.mark.skipif(not measures_memory(), reason="needs /proc/self/clear_refs")
def test_every_side_is_measured_and_the_last_line_is_json() -> None:
    done = subprocess.run([sys.executable, SCRIPT, "--tiny"], check=True, capture_output=True, text=True, timeout=300)
    figures = json.loads(done.stdout.strip().splitlines()[-1])
    for mark in ("", "_checkpointed"):
        assert figures[f"mib_tree{mark}"] > 0
        assert figures[f"vs_stock{mark}"] > 1
        assert {f"vs_tree_full{mark}", f"vs_padded{mark}", f"arithmetic{mark}"} <= figures.keys()
    assert "logits of every position" in done.stdout
