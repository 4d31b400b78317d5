"""A run folder as training would leave it: two arms, scenes, boxes, hostile texts, masked terms, crops."""

from __future__ import annotations

import math
import re
import shutil
import subprocess
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from sightline.report.events import RunWriter
from sightline.types import (
    Box,
    Credit,
    Group,
    ImageRef,
    ImageSlot,
    Message,
    Prompt,
    ReadBox,
    Reading,
    Record,
    Reference,
    Region,
    Rollout,
    Score,
    Scores,
    Size,
    Span,
    StepStats,
    Turn,
)

HOSTILE = "</script><img src=x onerror=\"document.documentElement.dataset.hacked='yes'\"><script>hacked()</script>"
COLOURS = {"red": (206, 62, 56), "blue": (62, 104, 196), "yellow": (224, 190, 66), "green": (70, 150, 84)}
MARKS = {"white": (250, 250, 250), "black": (24, 24, 24), "pink": (240, 150, 190), "cyan": (90, 220, 230)}


def scene(seed: int, side: int = 192) -> tuple[ImageRef, list[tuple[str, str, Box]]]:
    """A picture with four marked shapes, and (colour, mark, box) of each."""
    from PIL import Image, ImageDraw

    rng = np.random.default_rng(seed)
    image = Image.new("RGB", (side, side), (232, 231, 226))
    pen = ImageDraw.Draw(image)
    objects = []
    for k, colour in enumerate(rng.permutation(list(COLOURS))):
        half = side // 2
        size = int(rng.integers(side // 7, side // 4))
        x = int(rng.integers(4, half - size - 4)) + half * (k % 2)
        y = int(rng.integers(4, half - size - 4)) + half * (k // 2)
        mark = str(rng.choice(list(MARKS)))
        (pen.rectangle if k % 2 else pen.ellipse)((x, y, x + size, y + size), fill=COLOURS[colour])
        m = side // 32
        cx, cy = x + size // 2, y + size // 2
        pen.ellipse((cx - m, cy - m, cx + m, cy + m), fill=MARKS[mark])
        objects.append((str(colour), mark, Box(x, y, x + size, y + size)))
    pixels = np.asarray(image)
    return ImageRef(size=Size(side, side), digest=f"{seed:04d}" * 8, pixels=pixels), objects


def record(seed: int, *, with_image: bool = True) -> Record:
    image, objects = scene(seed)
    colour, mark, box = objects[0]
    return Record(
        id=f"s{seed}",
        question=f"What color is the mark on the {colour} shape?",
        answer=mark,
        images=(image,) if with_image else (),
        regions=(Region(box=box, label=f"{colour} shape"),) if with_image else (),
    )


class Vocabulary:
    """Ids for pieces of text, made up as they come."""

    def __init__(self) -> None:
        self.pieces: list[bytes] = []

    def encode(self, text: str) -> list[int]:
        ids = []
        for piece in re.findall(r"<[^>]{1,8}>|\s?\w+|\s?[^\w\s]|\s", text):
            if piece.encode() not in self.pieces:
                self.pieces.append(piece.encode())
            ids.append(self.pieces.index(piece.encode()))
        return ids

    def decode_piece(self, token: int) -> bytes:
        return self.pieces[token]


def rollout(
    rec: Record, stream: str, branch: int, text: str, vocabulary: Vocabulary, seed: int = 0, **extra: object
) -> Rollout:
    ids = vocabulary.encode(text)
    rng = np.random.default_rng(seed * 100 + branch)
    prompt = Prompt(
        record=rec,
        stream=stream,
        messages=(Message("user", (*(ImageSlot(i) for i in range(len(rec.images))), rec.question)),),
        images=rec.images,
    )
    settings: dict = {"sampled": np.ones(len(ids), bool), "finish": "stop"} | extra
    return Rollout(
        prompt=prompt,
        branch=(branch,),
        prompt_ids=np.arange(4),
        ids=np.array(ids, int),
        logprobs=-np.abs(rng.gumbel(0.05, 0.35, len(ids))),
        text=text,
        **settings,
    )


def reading(text: str, box: Box | None = None) -> Reading:
    answer = re.search(r"<answer> ?(.*?) ?</answer>", text, re.S)
    boxes: tuple[ReadBox, ...] = ()
    if box is not None:
        found = re.search(r"<box>.*?</box>", text)
        span = Span(*found.span()) if found else Span(0, 0)
        boxes = (ReadBox(box=box, written=tuple(box), span=span),)
    return Reading(text=text, think=text, answer=answer.group(1) if answer else None, boxes=boxes)


def group(seed: int, step: int, vocabulary: Vocabulary, *, grounded: bool, total_steps: int = 120) -> Group:
    """One record's rollouts; with `step` the boxes come closer and more answers are right."""
    rec = record(seed)
    _, objects = scene(seed)
    colour, mark, gold = objects[0]
    rng = np.random.default_rng(seed * 1000 + step)
    skill = step / total_steps
    column = "left" if (gold.x1 + gold.x2) / 2 < rec.images[0].size.width / 2 else "right"
    row = "top" if (gold.y1 + gold.y2) / 2 < rec.images[0].size.height / 2 else "bottom"
    parts: list[tuple[Rollout, Reading, Scores]] = []
    for branch in range(5 if grounded else 0):
        shift = rng.normal(0, 16 * (1.1 - skill), 4)
        box = Box(*(round(float(v)) for v in np.array(gold) + shift))
        said = mark if rng.random() < 0.45 + 0.4 * skill else str(rng.choice(list(MARKS)))
        written = ",".join(str(int(v)) for v in box)
        think = f"the {colour} shape <box>[{written}]</box> . the mark on it is {said} ."
        text = f"<think> {think} </think> <answer> {said} </answer>"
        terms = {
            "format": Score(1.0, "one think block, then one answer block"),
            "accuracy": Score(float(said == mark), f"'{said}' {'equals' if said == mark else 'is not'} '{mark}'"),
            "box": Score(max(0.0, 1 - float(np.abs(shift).mean()) / 20), f"dual IoU against {colour} shape"),
        }
        parts.append(
            (rollout(rec, "grounded", branch, text, vocabulary, seed), reading(text, box), Scores(terms=terms))
        )
    for branch in range(5):
        said = mark if rng.random() < 0.4 + 0.4 * skill else str(rng.choice(list(MARKS)))
        place = f"{row} {column}" if rng.random() < 0.4 + 0.5 * skill else "bottom center"
        text = (
            f"<think> the {colour} shape is at {place} . the mark on it is {said} . </think> <answer> {said} </answer>"
        )
        terms = {
            "format": Score(1.0, "one think block, then one answer block"),
            "accuracy": Score(float(said == mark), f"'{said}' {'equals' if said == mark else 'is not'} '{mark}'"),
        }
        if grounded:
            level = 1.0 if place == f"{row} {column}" and said == mark else 0.3
            terms["consistency"] = Score(level, f"names {place}; the reference's box lies at {row} {column}")
        parts.append((rollout(rec, "textual", branch, text, vocabulary, seed), reading(text), Scores(terms=terms)))
    rollouts, readings, scores = (tuple(column) for column in zip(*parts, strict=True))
    reference = Reference(
        key=rec.id,
        text=f"the {colour} shape <box>[{','.join(str(int(v)) for v in gold)}]</box> . the mark on it is {mark} .",
        boxes=(Box(gold.x1 - 3, gold.y1 - 2, gold.x2 + 2, gold.y2 + 3),),
        rank=(1.0, 0.9),
        scores={"accuracy": 1.0, "box": 0.86},
        step=max(0, step - 12),
    )
    return credited(
        Group(
            record=rec, rollouts=rollouts, readings=readings, scores=scores, reference=reference if grounded else None
        )
    )


def credited(plain: Group) -> Group:
    """The group with the advantage of each rollout within its stream."""
    from dataclasses import replace

    totals = np.array([s.total for s in plain.scores])
    credits = []
    for r, total in zip(plain.rollouts, totals, strict=True):
        own = np.array([t for other, t in zip(plain.rollouts, totals, strict=True) if other.stream == r.stream])
        value = float((total - own.mean()) / (own.std(ddof=1) + 1e-6)) if len(own) > 1 else 0.0
        weight = r.sampled.astype(float)
        credits.append(Credit(advantage=value * weight, weight=weight, parts={"advantage": value}))
    return replace(plain, credits=tuple(credits))


def stats(step: int, gain: float, *, grounded: bool, total_steps: int = 120) -> StepStats:
    rng = np.random.default_rng(step + int(1000 * gain))
    rise = 1 - math.exp(-3 * step / total_steps)
    metrics: dict[str, float] = {}
    for stream in ("textual", "grounded") if grounded else ("textual",):
        accuracy = float(np.clip(0.52 + gain * rise + rng.normal(0, 0.035), 0, 1))
        metrics |= {
            f"reward/{stream}/total": 1 + accuracy + (0.4 + 0.45 * rise if grounded else 0) + rng.normal(0, 0.05),
            f"reward/{stream}/accuracy": accuracy,
            f"reward/{stream}/format": 0.995,
        }
    if grounded:
        metrics |= {"reward/grounded/box": 0.35 + 0.3 * rise, "archive/size": 40.0 + 6 * step}
    metrics |= {"policy/kl": 0.004 * rise, "policy/entropy": 0.6 - 0.25 * rise, "update/grad_norm": 0.9}
    alarms = ("reward/textual: deviation is zero in 7 of 8 groups",) if step in (31, 64) else ()
    return StepStats(step=step, metrics=metrics, seconds={"sample": 0.9, "score": 0.1, "update": 1.4}, alarms=alarms)


def evaluation(step: int, mode: str, gain: float, total_steps: int = 120) -> dict:
    rise = 1 - math.exp(-3 * step / total_steps)

    def around(value: float, half: float) -> dict[str, float]:
        return {"mean": value, "low": value - half, "high": value + half}

    metrics = {"accuracy": around(0.56 + gain * rise, 0.026), "format": around(0.995, 0.004)}
    if mode == "grounded":
        metrics["iou"] = around(0.41 + 1.3 * gain * rise, 0.02)
    if mode == "textual":
        metrics["region"] = around(0.63 + 0.9 * gain * rise, 0.025)
    label = "before" if step == 0 else "after" if step == total_steps else "during"
    return {"step": step, "label": label, "mode": mode, "n": 1000, "metrics": metrics}


def write_arm(folder: Path, *, grounded: bool, steps: int = 120, log_every: int = 10) -> None:
    """A whole run: events, evaluations in three modes, two logged groups on every tenth step."""
    vocabulary = Vocabulary()
    writer = RunWriter(folder)
    name = "iVGR" if grounded else "GRPO, textual only"
    manifest = {
        "method": name,
        "model": "embedded:qwen3_vl",
        "seed": 7,
        "steps": steps,
        "started": "2026-03-01T10:00:00+00:00",
    }
    writer.manifest(manifest | {"frame": "0-1000 relative, 16 px cells, 36 to 144 visual tokens"})
    gain = 0.13 if grounded else 0.06
    for step in range(0, steps + 1, 30):
        for mode in ("textual", "grounded", "crops"):
            writer.evaluation(evaluation(step, mode, gain + (0.01 if mode == "crops" else 0), steps))
    for step in range(steps):
        writer.step(stats(step, gain, grounded=grounded, total_steps=steps))
        if step % log_every == 0:
            groups = [
                group(s, step, vocabulary, grounded=grounded, total_steps=steps)
                for s in (11 + step, 12 + step, 13 + step)
            ]
            writer.groups(step, groups, decode_piece=vocabulary.decode_piece)


def odd_group(step: int, vocabulary: Vocabulary) -> Group:
    """What a page must survive: hostile and huge texts, no boxes, masked and negative terms, a crop in turn two."""
    image, _ = scene(5)
    rec = Record(
        id=HOSTILE,
        question=HOSTILE + " 你好 🙂 \u2028 " + "long " * 4000,
        answer=HOSTILE,
        images=(image,),
        options=(HOSTILE, "b"),
        regions=(Region(box=Box(0, 0, 9, 9), label=HOSTILE),),
    )
    long_text = f"<think> {HOSTILE} é {'very ' * 20_000}"
    crop = ImageRef(size=Size(40, 30), digest="c" * 64, pixels=np.full((30, 40, 3), 90, np.uint8))
    turned = "<think> look closer . <box>[1,2,3,4]</box>" + " crop:" + " it is red . </think> <answer> red </answer>"
    ids = vocabulary.encode(turned)
    inserted = next(i for i, token in enumerate(ids) if vocabulary.pieces[token] == b" crop")
    sampled = np.array([i not in (inserted, inserted + 1) for i in range(len(ids))])
    spans = (Span(0, inserted), Span(inserted, inserted + 2), Span(inserted + 2, len(ids)))
    turns = (Turn(role="assistant", span=spans[0]), Turn(role="user", span=spans[1], images=(1,)))
    turns += (Turn(role="assistant", span=spans[2]),)
    rollouts = (
        rollout(rec, HOSTILE, 0, long_text, vocabulary, finish="length"),
        rollout(rec, "tools", 0, turned, vocabulary, sampled=sampled, turns=turns, images=(crop,)),
        rollout(rec, "tools", 1, "", vocabulary),
    )
    flat = ReadBox(box=Box(5, 5, 5, 5), written=(5, 5, 5, 5), span=Span(0, 0), is_valid=False, problems=(HOSTILE,))
    boxed = ReadBox(box=Box(1, 1, 30, 30), written=(1, 2, 3, 4), span=Span(22, 43))
    readings = (
        Reading(text=long_text, problems=(HOSTILE,), boxes=(flat,)),
        Reading(text=turned, answer="red", boxes=(boxed,)),
        Reading(text=""),
    )
    scores = (
        Scores(terms={HOSTILE: Score(-1.0, HOSTILE), "accuracy": Score(0.0, "the judge did not reply", masked=True)}),
        Scores(terms={"accuracy": Score(1.0, "right"), "__proto__": Score(0.5)}, weights={"accuracy": 2.0}),
        Scores(terms={}),
    )
    reference = Reference(key="k", text=HOSTILE, boxes=(), rank=(), scores={HOSTILE: math.nan}, step=step)
    return credited(Group(record=rec, rollouts=rollouts, readings=readings, scores=scores, reference=reference))


@pytest.fixture(scope="session")
def synthetic() -> SimpleNamespace:
    """The makers of this file, for tests that build a folder of their own."""
    return SimpleNamespace(**globals())


@pytest.fixture(scope="session")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder with two arms."""
    folder = tmp_path_factory.mktemp("runs") / "demo"
    folder.mkdir()
    write_arm(folder / "arms" / "ivgr", grounded=True)
    write_arm(folder / "arms" / "textual", grounded=False)
    RunWriter(folder).manifest({"method": "iVGR against textual-only GRPO", "arms": ["ivgr", "textual"]})
    return folder


@pytest.fixture(scope="session")
def odd(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run without evaluations whose every text is hostile, and whose second record has no picture."""
    folder = tmp_path_factory.mktemp("runs") / "odd"
    vocabulary = Vocabulary()
    writer = RunWriter(folder)
    writer.manifest({"method": HOSTILE, "model": HOSTILE, "frame": HOSTILE, "seed": 0})
    writer.step(StepStats(step=0, metrics={f"reward/{HOSTILE}/total": math.nan, HOSTILE: 1.0}, alarms=(HOSTILE,)))
    bare = credited(
        Group(
            record=record(3, with_image=False),
            rollouts=(rollout(record(3, with_image=False), "textual", 0, "no tags at all", vocabulary),),
            readings=(Reading(text="no tags at all"),),
            scores=(Scores(terms={"format": Score(0.0, "no think block")}),),
        )
    )
    unscored = Group(record=record(4), rollouts=(rollout(record(4), "textual", 0, "plain", vocabulary),), readings=())
    writer.groups(0, [odd_group(0, vocabulary), bare, unscored], decode_piece=vocabulary.decode_piece)
    return folder


@pytest.fixture(scope="session")
def browse(tmp_path_factory: pytest.TempPathFactory):
    """`browse(page, "step=3") -> (dom, console lines)` in headless Chromium; skips where there is none."""
    program = next((p for name in ("chromium", "chromium-browser", "google-chrome") if (p := shutil.which(name))), None)
    if program is None:
        pytest.skip("no Chromium here")
    profile = tmp_path_factory.mktemp("chromium")
    flags = "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking"
    flags += " --disable-component-update --disable-sync --enable-logging=stderr --virtual-time-budget=4000"

    def run(page: Path, fragment: str = "", *, size: str = "1440,1200") -> tuple[str, list[str]]:
        command = [program, *flags.split(), f"--user-data-dir={profile}", f"--window-size={size}", "--dump-dom"]
        found = subprocess.run([*command, f"{page.as_uri()}#{fragment}"], capture_output=True, timeout=60, check=False)
        log = found.stderr.decode(errors="replace").splitlines()
        return found.stdout.decode(), [line for line in log if "CONSOLE" in line]

    return run
