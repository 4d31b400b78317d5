"""`sightline report RUN`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tyro.conf import Positional

__all__ = ["Report"]


@dataclass(frozen=True, kw_only=True)
class Report:
    """Rebuild the page of a run, arms merged, and print the table of its evaluations. Works while the run goes on."""

    folder: Positional[Path]
    """The run folder."""

    def run(self) -> int:
        from rich.console import Console

        from sightline.report.compare import compare
        from sightline.report.console import evaluation_table
        from sightline.report.events import RunFolder
        from sightline.report.page import write_page

        run = RunFolder(self.folder)
        rows = {arm.name if run.arms else "": compare(arm.evaluations) for arm in run.runs}
        if any(rows.values()):
            Console().print(evaluation_table(rows))
        print(f"page: {Path(write_page(self.folder)).resolve()}")
        return 0
