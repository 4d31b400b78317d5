"""The cross-modal correlation: what is drawn at random, what a judge sees, and what the two judges say."""

from __future__ import annotations

import base64
import io
import json
import threading
from collections.abc import Iterator, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sightline.commands.correlation import CorrelationOptions
from sightline.errors import UserError
from sightline.evaluate.correlation import MASK, Chain, Pair, chains_in, chains_of, correlate, masked_text, random_boxes
from sightline.evaluate.pair_judges import HttpPairJudge, SceneJudge, rendered
from sightline.evaluate.runner import EvaluationRow
from sightline.geometry.boxes import iou
from sightline.geometry.frames import Frame
from sightline.language.parse import read
from sightline.scenes import record_at
from sightline.scenes.texts import reply
from sightline.types import Box, Reading, Record, Size

FRAME = Frame("relative_1000", 16, 64 * 64, 96 * 96)
RECORDS = [record_at("hard", "test", 0, i, types=("mark", "count")) for i in range(60)]


def said(record: Record, shift: float = 0.0) -> Reading:
    """The true reply, its boxes moved by a share of the picture."""
    size = record.images[0].size
    by = shift * size.width

    def write(box: Box) -> Sequence[int]:
        left = min(box.x1 + by, size.width - box.width)
        return FRAME.write(Box(left, box.y1, left + box.width, box.y2), size)

    return read(reply(record, "grit", write)[0], FRAME, [size])


class Always:
    """Picks by a rule of the test."""

    def __init__(self, pick: int | None) -> None:
        self.pick, self.seen = pick, []

    def picks(self, pairs: Sequence[Pair]) -> list[int | None]:
        self.seen += pairs
        return [self.pick] * len(pairs)


class TestText:
    def test_coordinates_are_masked_and_the_answer_is_left_out(self) -> None:
        text = masked_text(said(RECORDS[0]))
        assert MASK in text
        assert not any(c.isdigit() for c in text)
        assert "answer" not in text
        assert "<" not in text

    def test_chains_without_a_valid_box_are_left_out(self) -> None:
        empty = read("<think> none (9,9,9,9) </think>", FRAME, [RECORDS[0].images[0].size])
        assert chains_of(RECORDS[:1], [empty]) == []

    def test_a_box_counts_once_and_not_in_the_answer(self) -> None:
        text = "<think> [10,10,500,500] </think><rethink> [10,10,500,500] [0,0,90,90] </rethink><answer> [5,5,99,99]"
        (chain,) = chains_of(RECORDS[:1], [read(text, FRAME, [RECORDS[0].images[0].size])])
        assert len(chain.boxes) == 2
        assert chain.text.count(MASK) == 3
        alone = read("<think> a </think><answer> [5,5,99,99]", FRAME, [RECORDS[0].images[0].size])
        assert chains_of(RECORDS[:1], [alone]) == []

    def test_a_table_gives_the_same_chains(self) -> None:
        texts = [said(record).text for record in RECORDS[:6]]
        rows = [
            EvaluationRow(
                record=r.id, mode=mode, question=r.question, reference=r.answer, answer="", metrics={}, text=t
            )
            for r, t in zip(RECORDS, texts, strict=False)
            for mode in ("grit", "textual")
        ]
        readings = [read(t, FRAME, [r.images[0].size]) for r, t in zip(RECORDS, texts, strict=False)]
        assert chains_in(rows, RECORDS, FRAME, "grit") == chains_of(RECORDS[:6], readings)


class TestRandomBoxes:
    def test_sizes_match_and_places_do_not_leave_the_image(self) -> None:
        size, boxes = Size(100, 60), (Box(0, 0, 40, 10), Box(10, 10, 20, 60), Box(0, 0, 100, 60))
        random = np.random.default_rng(0)
        for _ in range(200):
            found = random_boxes(boxes, size, random)
            assert [(round(b.width, 6), round(b.height, 6)) for b in found] == [(b.width, b.height) for b in boxes]
            assert all(b.x1 >= 0 and b.y1 >= 0 and b.x2 <= 100 + 1e-9 and b.y2 <= 60 + 1e-9 for b in found)

    def test_places_are_even(self) -> None:
        random = np.random.default_rng(1)
        lefts = [random_boxes((Box(0, 0, 20, 20),), Size(100, 100), random)[0].x1 for _ in range(2000)]
        assert np.mean(lefts) == pytest.approx(40, abs=2)
        assert np.std(lefts) == pytest.approx(80 / 12**0.5, abs=1.5)


class TestCorrelate:
    def test_pairs_depend_on_seed_and_record_alone(self) -> None:
        chains = chains_of(RECORDS, [said(r) for r in RECORDS])
        whole, part, other = Always(0), Always(0), Always(0)
        correlate(chains, whole, seed=3)
        correlate(chains[5:6], part, seed=3)
        correlate(chains[5:6], other, seed=4)
        assert part.seen == whole.seen[5 :: len(chains)]
        assert part.seen != other.seen

    def test_order_is_even_and_repetitions_differ(self) -> None:
        chains = chains_of(RECORDS, [said(r) for r in RECORDS])
        judge = Always(0)
        found = correlate(chains, judge, repetitions=20)
        assert found.mean == pytest.approx(0.5, abs=0.05)
        assert found.deviation > 0
        assert found.deviation == pytest.approx(np.std(found.repetitions, ddof=1))
        assert len({pair.boxes for pair in judge.seen[:: len(chains)]}) == 20

    def test_failed_judgements_count_in_no_share(self) -> None:
        chains = chains_of(RECORDS[:4], [said(r) for r in RECORDS[:4]])

        class Half(Always):
            def picks(self, pairs: Sequence[Pair]) -> list[int | None]:
                return [None, *super().picks(pairs)[1:]]

        found = correlate(chains, Half(0))
        assert found.failed == 3
        assert chains[0].record.id not in found.by_record
        assert len(found.by_record) == len(chains) - 1

    def test_nothing_to_judge_is_told(self) -> None:
        chains = chains_of(RECORDS[:4], [said(r) for r in RECORDS[:4]])
        for these, judge in (([], Always(0)), (chains, Always(None))):
            with pytest.raises(UserError):
                correlate(these, judge)


class TestSceneJudge:
    def test_true_boxes_win_and_misplaced_ones_do_not(self) -> None:
        right = correlate(chains_of(RECORDS, [said(r) for r in RECORDS]), SceneJudge())
        wrong = correlate(chains_of(RECORDS, [said(r, shift=0.4) for r in RECORDS]), SceneJudge())
        assert right.mean > 0.95
        assert wrong.mean < 0.7

    def test_a_text_about_nothing_is_left_to_a_fair_coin(self) -> None:
        chains = [Chain(record=r, text="it is there", boxes=(Box(0, 0, 9, 9),), image=r.images[0]) for r in RECORDS]
        assert correlate(chains, SceneJudge(), repetitions=20).mean == pytest.approx(0.5, abs=0.05)
        assert correlate(chains, SceneJudge()) == correlate(chains, SceneJudge())

    def test_one_box_around_everything_is_worth_less_than_the_right_one(self) -> None:
        record = RECORDS[0]
        size, own = record.images[0].size, tuple(r.box for r in record.regions)
        whole = (Box(0, 0, size.width, size.height),)
        text = masked_text(said(record))
        pair = Pair(record=record, text=text, image=record.images[0], boxes=(whole, own))
        assert SceneJudge().picks([pair]) == [1]


class Server:
    """An OpenAI-compatible server on this machine; replies by a function of the request."""

    def __init__(self) -> None:
        self.bodies: list[dict] = []
        self.reply = "Image 1"
        self.status = 200
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                outer.bodies.append(json.loads(self.rfile.read(int(self.headers["content-length"]))))
                message = {"role": "assistant", "content": outer.reply}
                body = {"id": "x", "object": "chat.completion", "created": 0, "model": "m"}
                body["choices"] = [{"index": 0, "finish_reason": "stop", "message": message}]
                content = json.dumps(body).encode()
                self.send_response(outer.status)
                self.send_header("content-type", "application/json")
                self.send_header("content-length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *_: object) -> None:
                return

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.http.server_address[1]}/v1"
        threading.Thread(target=self.http.serve_forever, args=(0.02,), daemon=True).start()


@pytest.fixture
def server() -> Iterator[Server]:
    pytest.importorskip("openai")
    server = Server()
    yield server
    server.http.shutdown()
    server.http.server_close()


class TestHttpJudge:
    PAIR = Pair(
        record=RECORDS[0], text=f"the cup {MASK}", image=RECORDS[0].images[0],
        boxes=((Box(10, 10, 60, 60),), (Box(100, 20, 150, 70),)),
    )  # fmt: skip

    def test_both_pictures_are_sent_and_the_coordinates_are_not(self, server: Server) -> None:
        judge = HttpPairJudge(server.url, "m", retries=0)
        assert judge.picks([self.PAIR]) == [1]
        judge.close()
        content = server.bodies[0]["messages"][1]["content"]
        pictures = [part["image_url"]["url"] for part in content if part["type"] == "image_url"]
        assert len(pictures) == 2
        assert pictures[0] != pictures[1]
        for data, boxes in zip(pictures, self.PAIR.boxes, strict=True):
            assert base64.b64decode(data.partition(",")[2]) == rendered(self.PAIR.image, boxes)
        words = [part["text"] for part in content if part["type"] == "text"]
        assert words == ["Image 0:", "Image 1:", f"TEXT\nthe cup {MASK}"]

    @pytest.mark.parametrize(
        ("reply", "pick"),
        [("image 0.", 0), ('"Image 1"', 1), ("Image 2", None), ("Image 0 or Image 1", None), ("", None)],
    )
    def test_replies(self, server: Server, reply: str, pick: int | None) -> None:
        server.reply = reply
        judge = HttpPairJudge(server.url, "m", retries=0)
        assert judge.picks([self.PAIR]) == [pick]
        judge.close()

    def test_a_server_error_is_no_pick(self, server: Server) -> None:
        server.status = 500
        judge = HttpPairJudge(server.url, "m", retries=0)
        assert judge.picks([self.PAIR]) == [None]
        judge.close()

    def test_picks_are_kept_on_disk(self, server: Server, tmp_path: Path) -> None:
        for _ in range(2):
            judge = HttpPairJudge(server.url, "m", cache_path=tmp_path / "picks.jsonl", retries=0)
            assert judge.picks([self.PAIR]) == [1]
            judge.close()
        assert len(server.bodies) == 1


def test_rendering_marks_the_box_and_nothing_else() -> None:
    record = RECORDS[0]
    before = np.asarray(Image.open(io.BytesIO(rendered(record.images[0], ()))))
    after = np.asarray(Image.open(io.BytesIO(rendered(record.images[0], (Box(10, 10, 60, 60),)))))
    changed = np.argwhere((before != after).any(-1))
    assert changed.min() == 10
    assert changed.max() == 59
    assert iou(Box(10, 10, 60, 60), Box(*changed.min(0)[::-1], *(changed.max(0)[::-1] + 1))) == 1


class TestOptions:
    def test_what_does_not_fit_is_told_first(self) -> None:
        for options, modes in (
            (CorrelationOptions(judge="http"), ("grit",)),
            (CorrelationOptions(judge="scene"), ("textual",)),
            (CorrelationOptions(judge="scene", repetitions=0), ("grit",)),
        ):
            with pytest.raises(UserError):
                options.check(modes)
        CorrelationOptions().check(("textual",))
