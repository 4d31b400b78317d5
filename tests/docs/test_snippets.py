"""Every python block of README, docs/arrows and docs/extend.md runs, and every link to a file leads somewhere.

The blocks of a page share their names and run in an empty folder. A block that begins with a comment `# NAME.py` is
written there as a module; one that begins with `>>>` is a doctest; any other is executed. `embedded:` policies have
random weights here: examples show shapes and rules, never what a policy says.
"""

from __future__ import annotations

import doctest
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[2]
PAGES = (
    ROOT / "README.md",
    ROOT / "docs/README.md",
    ROOT / "docs/extend.md",
    *sorted((ROOT / "docs/arrows").glob("*.md")),
)
FENCE = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
MODULE = re.compile(r"# (\w+)\.py\n")
LINK = re.compile(r"(?<!!)\[[^\]]*\]\(([^)#\s]+)[^)]*\)")


class Block(NamedTuple):
    """A python block and the number of lines above its code."""

    code: str
    above: int


def blocks(page: Path) -> Iterator[Block]:
    text = page.read_text(encoding="utf-8")
    for found in FENCE.finditer(text):
        yield Block(found[1], text.count("\n", 0, found.start(1)))


def run(block: Block, page: Path, names: dict[str, object]) -> None:
    module = MODULE.match(block.code)
    if module:
        Path(f"{module[1]}.py").write_text(block.code, encoding="utf-8")
        sys.modules.pop(module[1], None)  # another test may have imported one of the same name
    elif block.code.startswith(">>>"):
        test = doctest.DocTestParser().get_doctest(block.code, {}, page.name, str(page), block.above)
        test.globs = names  # the parser copies what it is given
        report: list[str] = []
        doctest.DocTestRunner(verbose=False).run(test, out=report.append, clear_globs=False)
        assert not report, "".join(report)
    else:
        exec(compile("\n" * block.above + block.code, str(page), "exec"), names)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, checkpoints: dict[str, Path]) -> Iterator[Path]:
    """An empty folder to run in, whose modules can be imported."""
    import sightline.policy.load as loading

    shipped = {f"embedded:{family}": path for family, path in checkpoints.items()}
    monkeypatch.setattr(loading, "checkpoint_folder", lambda name: shipped[name])
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield tmp_path
    for path in tmp_path.glob("*.py"):
        sys.modules.pop(path.stem, None)


@pytest.mark.parametrize("page", [p for p in PAGES if any(blocks(p))], ids=lambda p: p.stem)
def test_the_blocks_of_a_page_run(page: Path, folder: Path) -> None:
    assert folder == Path.cwd()
    names: dict[str, object] = {"__name__": "snippet"}
    for block in blocks(page):
        run(block, page, names)


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_links_lead_to_files(page: Path) -> None:
    targets = [t for t in LINK.findall(page.read_text(encoding="utf-8")) if "://" not in t]
    missing = [t for t in targets if not (page.parent / t).exists()]
    assert not missing


def test_every_arrow_is_in_the_index() -> None:
    index = (ROOT / "docs/README.md").read_text(encoding="utf-8")
    assert [page.name for page in PAGES if page.parent.name == "arrows" and f"arrows/{page.name}" not in index] == []


def test_a_wrong_result_is_noticed() -> None:
    with pytest.raises(AssertionError, match="Expected"):
        run(Block(">>> 1 + 1\n3\n", 0), ROOT / "README.md", {})
