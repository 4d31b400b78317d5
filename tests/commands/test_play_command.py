from __future__ import annotations

import io
import re

import pytest

from sightline.cli import main


@pytest.fixture
def data(tmp_path):
    folder = tmp_path / "scenes"
    assert main(["data", "scenes", "--out", str(folder), "--n", "3", "--types", "mark", "--split", "validation"]) == 0
    return folder / "records.jsonl"


def play(monkeypatch, capsys, data, typed: str, *words: str) -> str:
    monkeypatch.setattr("sys.stdin", io.StringIO(typed))
    override = ["--data.train", str(data), "--data.validation", str(data)]
    assert main(["play", "demo", *words, *override, "--method.preset", "paper"]) == 0
    return capsys.readouterr().out


def test_a_reply_is_scored_and_explained(monkeypatch, capsys, data):
    from sightline.data import read_records

    record = read_records(data)[0]
    box = [round(side) for side in record.regions[0].box]
    grounded = f"<think> it is here <box>{box}</box> . the mark on it is {record.answer} . </think>\n"
    textual = f"<think> the mark on it is {record.answer} . </think> <answer> {record.answer} </answer>\n\n"
    typed = f"{grounded}<answer> {record.answer} </answer>\n\n{textual}"
    shown = play(monkeypatch, capsys, data, typed, "--limit", "1")
    for term in ("format", "accuracy", "box", "consistency", "total"):
        assert term in shown
    assert "dual IoU 1.00" in shown
    assert "reference in the archive" in shown
    assert f"the answer was: {record.answer}" in shown


def test_an_empty_reply_goes_on_and_the_end_of_the_input_ends_the_game(monkeypatch, capsys, data):
    shown = play(monkeypatch, capsys, data, "\n\n\n\n", "--limit", "3")
    assert shown.count("the answer was") == 2
    assert "your reward" not in shown


def test_one_stream_only(monkeypatch, capsys, data):
    shown = play(monkeypatch, capsys, data, "nonsense\n\n", "--limit", "1", "--stream", "textual")
    assert "stream textual" in shown
    assert "stream grounded" not in shown
    assert "your reward" in shown
    monkeypatch.setattr("sys.stdin", io.StringIO(""))
    assert main(["play", "demo", "--stream", "tool", "--data.train", str(data), "--data.validation", str(data)]) == 2


def test_a_conversation_shows_the_crop_and_reads_on(monkeypatch, capsys):
    words = ["play", "ground_r1", "--limit", "1", "--data.train", "scenes:zoom", "--data.validation", "scenes:zoom"]
    ask = "<think> look </think><box>[10,20,110,70]</box>\n\n"
    monkeypatch.setattr("sys.stdin", io.StringIO(f"{ask}<think> so </think><answer> red </answer>\n\n"))
    assert main(words) == 0
    shown = capsys.readouterr().out
    assert re.search(r"image 1: \S+ \(100 x 50 px\)\nThis is the region you asked for", shown)
    assert "all 2 turns have the form" in shown
    monkeypatch.setattr("sys.stdin", io.StringIO(ask))
    assert main(words) == 0
    assert "0 of 1 turns have the form" in capsys.readouterr().out
