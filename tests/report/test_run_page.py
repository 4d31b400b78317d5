"""The run page: what it holds, that it is inert against hostile texts, and that a browser builds it."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from sightline.errors import UserError
from sightline.report.environment import digest, json_block, source
from sightline.report.events import RunFolder, RunWriter
from sightline.report.page import SCRIPTS, render_page, write_page
from sightline.report.page_data import curves, evenly, page_data
from sightline.types import StepStats


class _Page(HTMLParser):
    """Tags, and the text of each script and style."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.is_open = False
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.inside: list[tuple[str, dict[str, str | None], str]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self.is_open = True

    def handle_endtag(self, tag: str) -> None:
        self.is_open = self.is_open and tag == "link"

    def handle_data(self, data: str) -> None:
        if self.tags and self.is_open:
            self.inside.append((*self.tags[-1], data))

    def data(self) -> dict:
        text = "".join(data for tag, attrs, data in self.inside if tag == "script" and attrs.get("id") == "data")
        return json.loads(text)


@pytest.fixture(scope="module")
def demo_page(demo: Path) -> Path:
    return write_page(demo)


@pytest.fixture(scope="module")
def odd_page(odd: Path) -> Path:
    return write_page(odd)


def test_page_holds_arms_table_and_pictures(demo_page: Path) -> None:
    text = demo_page.read_text()
    data = _Page(text).data()
    assert [arm["name"] for arm in data["arms"]] == ["ivgr", "textual"]
    assert len(data["arms"][0]["groups"]) == 36
    assert len(data["images"]) == 36
    assert "56.0" in text
    assert "68.4" in text
    assert "[65.8, 71.0]" in text
    assert data["sentences"]["reward/grounded/box"].startswith("Mean of the reward term 'box'")
    assert demo_page.stat().st_size < 2_000_000


def test_policy_admits_only_this_style_and_script(demo_page: Path) -> None:
    page = _Page(demo_page.read_text())
    policy = next(a["content"] for tag, a in page.tags if tag == "meta" and "http-equiv" in a) or ""
    assert policy.startswith("default-src 'none'")
    assert "unsafe" not in policy
    for kind in ("style", "script"):
        contents = [data for tag, attrs, data in page.inside if tag == kind and "type" not in attrs]
        text = "".join(contents)
        found = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert f"{kind}-src 'sha256-{found}'" in policy


@pytest.mark.parametrize("name", ["demo_page", "odd_page"])
def test_page_names_no_network_address(name: str, request: pytest.FixtureRequest) -> None:
    text = request.getfixturevalue(name).read_text()
    assert not re.search(r"""(src|href)=["']?(https?:)?//""", text)
    assert re.findall(r"https?://[\w./]+", text) in ([], ["http://www.w3.org/2000/svg"])
    assert "innerHTML" not in text
    assert "style=" not in text


def test_hostile_texts_stay_data(odd_page: Path, synthetic) -> None:
    page = _Page(odd_page.read_text())
    assert [tag for tag, _ in page.tags].count("script") == 2
    assert not [tag for tag, attrs in page.tags if tag == "img" or any(name.startswith("on") for name in attrs)]
    data = page.data()
    assert data["arms"][0]["groups"][0]["record"]["id"] == synthetic.HOSTILE
    assert data["arms"][0]["alarms"][0]["text"] == synthetic.HOSTILE


def test_huge_texts_are_cut_and_say_so(odd_page: Path) -> None:
    rollout = _Page(odd_page.read_text()).data()["arms"][0]["groups"][0]["rollouts"][0]
    assert rollout["text"].endswith("more characters)")
    assert rollout["tokens"]["left_out"] > 10_000
    assert odd_page.stat().st_size < 600_000


def test_tokens_are_packed(demo: Path) -> None:
    group = page_data(RunFolder(demo), groups_per_arm=3, budget=5_000_000)["arms"][0]["groups"][0]
    first = RunFolder(demo).arms[0].rollouts[0]["rollouts"][0]
    tokens = group["rollouts"][0]["tokens"]
    assert "".join(tokens["text"]) == first["text"]
    assert tokens["advantage"] == first["tokens"][0]["advantage"]
    assert tokens["inserted"] == []


def test_groups_are_thinned_evenly_with_first_and_last(demo: Path) -> None:
    arm = page_data(RunFolder(demo), groups_per_arm=9, budget=5_000_000)["arms"][0]
    steps = sorted({group["step"] for group in arm["groups"]})
    assert steps[0] == 0
    assert steps[-1] == 110
    assert len(arm["groups"]) == 9
    assert arm["group_count"] == 36


def test_budget_is_kept(demo: Path) -> None:
    page = render_page(RunFolder(demo), budget=150_000)
    assert len(page.encode()) < 150_000 + 90_000  # the page's own style, script and table


def test_an_alarm_that_keeps_ringing_is_one_line(tmp_path: Path) -> None:
    writer = RunWriter(tmp_path)
    for i in range(6):
        alarms = (f"KL {i}.25 above 0.2",) if i != 3 else ()
        writer.step(StepStats(step=i, metrics={}, alarms=alarms))
    found = page_data(RunFolder(tmp_path), groups_per_arm=1, budget=10_000)["arms"][0]["alarms"]
    assert [(entry["step"], entry["last"]) for entry in found] == [(0, 2), (4, 5)]


def test_curves_are_averaged_over_equal_runs_of_steps() -> None:
    steps = [StepStats(step=i, metrics={"a/b": float(i)}) for i in range(1000)]
    found = curves(steps)
    assert found["width"] == 3
    assert found["steps"][0] == 2
    assert found["metrics"]["a/b"][:2] == [1.0, 4.0]
    assert curves([])["steps"] == []


def test_evenly_keeps_order() -> None:
    assert evenly(list(range(100)), 5) == [0, 25, 50, 74, 99]
    assert evenly([1, 2, 3], 1) == [3]


def test_json_block_cannot_end_its_script() -> None:
    text = json_block({"a": "</script><!--<script>\u2028&"})
    assert not re.search(r"[<>&\u2028]", text)
    assert json.loads(text)["a"] == "</script><!--<script>\u2028&"
    json_block({"a": "\ud800"}).encode()


@pytest.mark.parametrize("metrics", [{}, {"reward/textual/total": float("nan")}])
def test_page_of_a_run_that_has_hardly_begun(tmp_path: Path, metrics: dict) -> None:
    writer = RunWriter(tmp_path)
    writer.manifest({"method": "grpo"})
    writer.step(StepStats(step=0, metrics=metrics))
    page = write_page(tmp_path).read_text()
    assert "This run was not evaluated." in page
    assert _Page(page).data()["arms"][0]["groups"] == []


def test_no_run_is_one_clear_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no run"):
        write_page(tmp_path)
    with pytest.raises(UserError, match="no such folder"):
        write_page(tmp_path / "absent")


def test_browser_builds_the_page(demo_page: Path, browse) -> None:
    dom, console = browse(demo_page, "step=40&arm=ivgr&theme=dark")
    assert console == []
    assert 'data-ready=""' in dom
    assert "data-error" not in dom
    assert 'data-theme="dark"' in dom
    assert "step 40" in dom
    for part in ("archive reference, step 28", "gold region", 'class="chart"', 'class="token plus"', "log-prob"):
        assert part in dom
    assert re.search(r"IoU 0\.\d\d", dom)
    assert len(re.findall(r'<rect[^>]*class="(?:predicted|gold|reference) ?"', dom)) == 3


def test_browser_follows_the_address(demo_page: Path, browse) -> None:
    dom, console = browse(demo_page, "step=77&arm=textual", size="420,900")
    assert console == []
    assert "step 80" in dom
    assert re.search(r'aria-selected="true"[^>]*>textual<', dom)


def test_browser_runs_nothing_that_a_model_wrote(odd_page: Path, browse) -> None:
    dom, console = browse(odd_page)
    assert console == []
    assert 'data-ready=""' in dom
    assert "data-hacked" not in dom
    assert "data-error" not in dom
    assert "onerror=" in dom  # as text
    built = [(tag, attrs) for tag, attrs in _Page(dom).tags if tag in ("img", "script") or "onerror" in attrs]
    assert not [attrs for tag, attrs in built if "onerror" in attrs]
    assert all((attrs["src"] or "").startswith("data:image/") for tag, attrs in built if tag == "img")
    assert "turn 2, user" in dom
    assert "cut by the token limit" in dom
    assert "masked" in dom


def test_browser_shows_records_without_pictures_or_scores(odd_page: Path, browse) -> None:
    dom, _ = browse(odd_page, "record=s3")
    assert "This record has no picture." in dom
    dom, console = browse(odd_page, "record=s4")
    assert console == []
    assert "This rollout was not scored." in dom


def test_browser_shows_an_empty_run(tmp_path: Path, browse) -> None:
    RunWriter(tmp_path).manifest({"method": "grpo"})
    dom, console = browse(write_page(tmp_path))
    assert console == []
    assert 'data-ready=""' in dom
    assert "No rollout has been logged yet." in dom


DRIVER = """
{
  const press = (key) => document.dispatchEvent(new KeyboardEvent("keydown", { key, bubbles: true }));
  const said = [];
  const note = () => said.push([data.arms[view.arm].name, view.step, view.group.record.id, view.active].join(" "));
  note(); press("ArrowLeft"); note(); press("ArrowLeft"); press("ArrowRight"); note(); press("]"); note();
  press("j"); note(); press("a"); note(); press("t");
  press("a"); view.go({ step: 40 });
  const box = document.querySelector(".picture .predicted");
  box.dispatchEvent(new PointerEvent("pointermove", { bubbles: true, clientX: 5, clientY: 5 }));
  said.push(document.getElementById("hint").textContent);
  box.dispatchEvent(new PointerEvent("pointerenter"));
  said.push(document.querySelectorAll(".token.lit").length > 3);
  view.charts[0].draw();
  view.charts[0].point({ clientX: view.charts[0].svg.getBoundingClientRect().left + 60 });
  said.push(document.getElementById("hint").textContent);
  document.querySelector("#metrics details").open = true;
  said.push(document.querySelectorAll(".metric-table tbody tr").length);
  root.dataset.said = JSON.stringify(said);
}
"""


def test_keys_and_hover(demo_page: Path, tmp_path: Path, browse) -> None:
    script = source(*SCRIPTS)
    text = demo_page.read_text().replace(script, script + DRIVER).replace(digest(script), digest(script + DRIVER))
    driven = tmp_path / "driven.html"
    driven.write_text(text)
    dom, console = browse(driven, "step=50&arm=ivgr&theme=light")
    assert console == []
    root = dict(_Page(dom).tags[0][1])
    said = json.loads(root["data-said"] or "[]")
    states = [state.rsplit(" ", 1)[0] for state in said[:6]]
    assert states == ["ivgr 50 s61", "ivgr 40 s51", "ivgr 40 s51", "ivgr 40 s52", "ivgr 40 s52", "textual 40 s52"]
    assert said[3] != said[4]
    assert root["data-theme"] == "dark"
    assert re.search(r"^box \d.*\nIoU 0\.\d\d$", said[6])
    assert said[7] is True
    assert re.fullmatch(r"step \d+ivgr\d.*% \[.*%, .*%\]textual.*", said[8])
    assert said[9] == 14
