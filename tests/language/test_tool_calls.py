"""Tool calls: well written, written with the usual slips, and beyond repair."""

from __future__ import annotations

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sightline.language.tool_calls import DEEPEST, LONGEST, tool_calls

BOX = {"bbox_2d": [1, 2, 3, 4]}


@pytest.mark.parametrize(
    "content",
    [
        '{"name": "zoom", "arguments": {"bbox_2d": [1, 2, 3, 4]}}',
        '\n{"name": "zoom", "arguments": {"bbox_2d": [1, 2, 3, 4]}}\n',
        '{"name":"zoom","parameters":{"bbox_2d":[1,2,3,4]}}',
        '```json\n{"name": "zoom", "arguments": {"bbox_2d": [1, 2, 3, 4]}}\n```',
        '{"name": "zoom", "arguments": "{\\"bbox_2d\\": [1, 2, 3, 4]}"}',
        "{'name': 'zoom', 'arguments': {'bbox_2d': [1, 2, 3, 4]}}",
        "{“name”: “zoom”, “arguments”: {“bbox_2d”: [1, 2, 3, 4]}}",
        '{"name": "zoom", "arguments": {"bbox_2d": [1, 2, 3, 4,],},}',
        '{"name": "zoom", "arguments": {"bbox_2d": [1, 2, 3, 4]',
        '{"name": "zoom", "arguments": {"bbox_2d": [1, 2, 3, 4}}',
        '{"name": "zoom", "arguments": {"bbox_2d": [1, 2, 3, 4]}}}',
        'I zoom: {"name": "zoom", "arguments": {"bbox_2d": [1, 2, 3, 4]}} now',
        '[{"name": "zoom", "arguments": {"bbox_2d": [1, 2, 3, 4]}}]',
    ],
)
def test_the_usual_slips_are_forgiven(content: str) -> None:
    (call,) = tool_calls(f"<think>a</think><tool_call>{content}</tool_call>")
    assert (call.name, call.arguments, call.problem) == ("zoom", BOX, "")


def test_python_constants() -> None:
    (call,) = tool_calls("<tool_call>{'name': 'zoom', 'arguments': {'a': True, 'b': [None, False]}}</tool_call>")
    assert call.arguments == {"a": True, "b": [None, False]}


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("", "broken JSON"),
        ("zoom(1, 2, 3, 4)", "broken JSON"),
        ("[1, 2, 3, 4]", "broken JSON"),
        ('{"name": zoom}', "broken JSON"),
        ('{"arguments": {}}', "no tool is named"),
        ('{"name": 7}', "no tool is named"),
        ('{"name": "zoom", "arguments": [1, 2, 3, 4]}', "the arguments are no JSON object"),
        ('{"name": "zoom", "arguments": "all of it"}', "the arguments are no JSON object"),
        ('{"name": "zoom", "n": ' + "9" * 6000 + "}", "broken JSON"),
        ('{"name": "zoom", "arguments": ' + "[" * (DEEPEST + 1) + "]" * (DEEPEST + 1) + "}", "broken JSON"),
        ('{"name": "zoom", "text": "' + "a" * LONGEST + '"}', "broken JSON"),
    ],
)
def test_what_cannot_be_read_is_a_call_with_a_problem(content: str, problem: str) -> None:
    (call,) = tool_calls(f"<tool_call>{content}</tool_call>")
    assert call.problem == problem


def test_several_calls_and_one_left_open() -> None:
    one = '{"name": "a", "arguments": {}}'
    text = f"<tool_call>{one}\n{one}</tool_call> then <tool_call>{one}"
    calls = tool_calls(text)
    assert [call.name for call in calls] == ["a", "a", "a"]
    assert text[slice(*calls[0].span)].endswith("</tool_call>")
    assert calls[2].span.end == len(text)
    assert tool_calls("no call, only </tool_call>") == ()


pieces = st.sampled_from(
    [
        *"{}[]\":,'\\ \n",
        '"name"',
        '"zoom"',
        '"arguments"',
        "1e999",
        "NaN",
        "-0",
        "9" * 5000,
        "```json",
        "True",
        "\ud800",
    ]
)


@settings(max_examples=1500)
@given(st.lists(pieces, max_size=30).map("".join))
def test_no_content_breaks_the_reading(content: str) -> None:
    for call in tool_calls(f"<tool_call>{content}</tool_call>"):
        assert call.problem or call.name


@pytest.mark.parametrize("content", ["{}" * 9000, "[}" * 9000, "{[" * 9000, '"' * 18000, ", " * 9000, "{,  " * 4000])
def test_long_contents_are_read_in_little_time(content: str) -> None:
    began = time.process_time()
    tool_calls(f"<tool_call>{content}</tool_call>")
    assert time.process_time() - began < 1.0
