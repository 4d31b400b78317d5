"""Characters and tokens, with characters spread over several tokens and bytes that are no characters at all."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sightline.language.spans import byte_pieces, characters_of, token_spans, tokens_of
from sightline.types import Span


def cut(data: bytes, places: list[int]) -> list[bytes]:
    marks = [0, *sorted(p % (len(data) + 1) for p in places), len(data)]
    return [data[a:b] for a, b in pairwise(marks)]


texts = st.text(max_size=20) | st.text(alphabet="aé漢🙂 ", max_size=20)


@given(
    texts.map(lambda t: t.encode("utf-8", "replace")) | st.binary(max_size=24), st.lists(st.integers(0, 99), max_size=9)
)
def test_offsets_cover_the_text(data: bytes, places: list[int]) -> None:
    pieces = cut(data, places)
    offsets = token_spans(pieces)
    text = data.decode("utf-8", errors="replace")
    assert len(offsets) == len(pieces)
    assert (np.diff(offsets.starts) >= 0).all()
    assert (np.diff(offsets.ends) >= 0).all()
    assert (offsets.starts <= offsets.ends).all()
    covered = np.zeros(len(text), dtype=bool)
    for piece, start, end in zip(pieces, offsets.starts, offsets.ends, strict=True):
        covered[start:end] = True
        if piece:
            assert end > start
            whole = text[start:end].encode("utf-8")
            assert piece in whole or "\ufffd" in text[start:end]
    assert covered.all()


@given(texts, st.lists(st.integers(0, 99), max_size=9), st.integers(0, 20), st.integers(0, 20))
def test_a_span_comes_back_inside_its_tokens(text: str, places: list[int], a: int, b: int) -> None:
    pieces = cut(text.encode("utf-8", "replace"), places)
    offsets = token_spans(pieces)
    start, end = sorted((a % (len(text) + 1), b % (len(text) + 1)))
    tokens = tokens_of(Span(start, end), offsets)
    assert 0 <= tokens.start <= tokens.end <= len(pieces)
    if start < end:
        wide = characters_of(tokens, offsets)
        assert wide.start <= start < end <= wide.end
        for outside in [*range(tokens.start), *range(tokens.end, len(pieces))]:
            assert offsets.ends[outside] <= start or offsets.starts[outside] >= end or not pieces[outside]
    else:
        assert tokens.start == tokens.end


def test_a_character_split_over_tokens_belongs_to_each() -> None:
    face = "🙂".encode()
    offsets = token_spans([b"a", face[:2], face[2:], b"b"])
    assert offsets.starts.tolist() == [0, 1, 1, 2]
    assert offsets.ends.tolist() == [1, 2, 2, 3]
    assert tokens_of(Span(1, 2), offsets) == (1, 3)
    assert characters_of(Span(1, 2), offsets) == (1, 2)


def test_edges() -> None:
    empty = token_spans([])
    assert len(empty) == 0
    assert tokens_of(Span(0, 3), empty) == (0, 0)
    assert characters_of(Span(0, 3), empty) == (0, 0)
    offsets = token_spans(["ab", "", "cd"])
    assert offsets.ends.tolist() == [2, 2, 4]
    assert tokens_of(Span(0, 99), offsets) == (0, 3)
    assert tokens_of(Span(3, 3), offsets) == (2, 2)
    assert characters_of(Span(1, 1), offsets) == (2, 2)
    assert characters_of(Span(7, 9), offsets) == (4, 4)


@pytest.mark.parametrize("text", ["<box>[12,30,40,58]</box>", " naïve 漢字 🙂\t\n", "\x00\x7f\xad"])
def test_byte_level_vocabulary_strings(text: str) -> None:
    from tokenizers.pre_tokenizers import ByteLevel

    tokens = [piece for piece, _ in ByteLevel(add_prefix_space=False, use_regex=True).pre_tokenize_str(text)]
    assert b"".join(byte_pieces(tokens)).decode() == text
    assert byte_pieces(["<|im_end|>", "<｜end｜>", "a b"]) == [b"<|im_end|>", "<｜end｜>".encode(), b"a b"]
