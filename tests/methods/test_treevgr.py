"""TreeVGR: one grounded stream, three terms, and the two ablations of its box reward."""

from __future__ import annotations

import pytest

from sightline.methods import load_method
from sightline.train.scoring import score

GOLD = ((0, 0, 20, 20), (100, 100, 120, 120))


def reply(*boxes: str, answer: str = "green") -> str:
    return f"<think>the square {' '.join(f'<box>[{b}]</box>' for b in boxes)}</think><answer>{answer}</answer>"


def box_terms(world, **keys) -> list[float]:
    method = load_method({"name": "treevgr", **keys})
    texts = [reply("0,0,20,20"), reply("0,0,20,20", "200,200,220,220", "100,100,120,120"), reply()]
    group = score(method, [world.group(world.record(*GOLD), grounded=texts)], world.context())[0]
    return [s.terms["box"].value for s in group.scores]


def test_one_grounded_stream_whatever_the_record(world) -> None:
    method = load_method({"name": "treevgr", "streams": {"grounded": {"n": 8}}})
    for record in (world.record(), world.record(*GOLD)):
        assert [(s.name, s.template, s.n) for s in method.streams(record)] == [("grounded", "grounded", 8)]


def test_dual_iou_and_its_halves(world) -> None:
    assert box_terms(world) == pytest.approx([0.75, 5 / 6, 0])
    assert box_terms(world, box="recall") == pytest.approx([0.5, 1, 0])
    assert box_terms(world, box="precision") == pytest.approx([1, 2 / 3, 0])


def test_totals_and_weights(world) -> None:
    method = load_method({"name": "treevgr", "weights": {"box": 2.0}})
    texts = [reply("0,0,20,20"), reply(answer="red"), "<box>[0,0,20,20]</box>"]
    group = score(method, [world.group(world.record(GOLD[0]), grounded=texts)], world.context())[0]
    assert [s.total for s in group.scores] == [4.0, 1.0, 2.0]


def test_records_without_regions_have_no_box_term(world) -> None:
    method = load_method({"name": "treevgr"})
    group = score(method, [world.group(world.record(), grounded=[reply(), reply("0,0,9,9")])], world.context())[0]
    assert [set(s.terms) for s in group.scores] == [{"format", "accuracy"}] * 2
    assert not any(s.is_masked for s in group.scores)


def test_nothing_enters_the_archive(world) -> None:
    method = load_method({"name": "treevgr"})
    score(method, [world.group(world.record(*GOLD), grounded=[reply("0,0,20,20")])], world.context())
    assert len(world.archive) == 0
