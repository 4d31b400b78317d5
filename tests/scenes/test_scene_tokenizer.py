"""The tokenizer: exact on every string, whole words where it matters, loadable like any other."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sightline import scenes
from sightline.language.prompts import TEMPLATES
from sightline.scenes.tokenizer import SPECIAL, TAGS, build_tokenizer, write_tokenizer

TOKENIZER = build_tokenizer()
FRAGMENTS = st.sampled_from(
    ["<think>", "</think>", "<box>[", "<box", "bbox_2d", " red", "1000", "1001", "  ", "\n", "<Focus>", "é", "日本",
     "\u200b", "<|im_end|>", "<|image_pad|>", '{"', "]}", "\x00", "'s", "RED", "-3.5", "<", ">", "\u00a0", "🙂"]
)  # fmt: skip


def decoded(text: str) -> str:
    return TOKENIZER.decode(TOKENIZER.encode(text).ids, skip_special_tokens=False)


@given(st.text())
@settings(max_examples=500, deadline=None)
def test_every_string_survives(text: str) -> None:
    assert decoded(text) == text


@given(st.lists(FRAGMENTS | st.text(max_size=4)).map("".join))
@settings(max_examples=500, deadline=None)
def test_strings_near_the_grammar_survive(text: str) -> None:
    assert decoded(text) == text


@pytest.mark.parametrize("text", [*(str(n) for n in (0, 9, 10, 96, 255, 999, 1000)), *SPECIAL, " red", " diamond", "?"])
def test_single_tokens(text: str) -> None:
    assert len(TOKENIZER.encode(text).ids) == 1


def test_tags_are_single_tokens() -> None:
    for tag in TAGS:
        assert len(TOKENIZER.encode(f"<{tag}>").ids) == 1
        if tag != "Focus":
            assert len(TOKENIZER.encode(f"</{tag}>").ids) == 1


def test_a_box_is_eleven_tokens_without_blanks() -> None:
    ids = TOKENIZER.encode("<box>[12,30,40,58]</box>").ids
    assert [TOKENIZER.decode([i]) for i in ids] == ["<box>", "[", "12", ",", "30", ",", "40", ",", "58", "]", "</box>"]


def test_compact_instructions_fall_back_to_no_byte() -> None:
    for template in TEMPLATES.values():
        ids = TOKENIZER.encode(template.compact).ids
        assert len(ids) == len(template.compact.split()), template.name


def test_it_loads_like_any_other(tmp_path) -> None:
    from transformers import AutoTokenizer

    write_tokenizer(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "qwen3_vl"}))
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    text = "<think> The red square<box>[12,30,40,58]</box> ,  is  ok .</think>"
    ids = loaded(text, add_special_tokens=False)["input_ids"]
    assert ids == TOKENIZER.encode(text).ids
    assert loaded.decode(ids, skip_special_tokens=False) == text
    assert loaded.eos_token == "<|im_end|>"
    messages = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Where?"}]}]
    shown = loaded.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert shown == (
        "<|im_start|>user\n<|vision_start|><|image_pad|><|vision_end|>Where?<|im_end|>\n<|im_start|>assistant\n"
    )


def test_the_shipped_tokenizer_is_this_one(tmp_path) -> None:
    write_tokenizer(tmp_path)
    shipped = Path(scenes.__file__).parent / "checkpoints" / "qwen3_vl"
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert (tmp_path / name).read_bytes() == (shipped / name).read_bytes()
