"""Characters and tokens: where each token stands in the decoded text.

Offsets come from the bytes of each token, since a character of several bytes may be spread over several tokens; each
of them then covers the whole character.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from types import MappingProxyType
from typing import TYPE_CHECKING

import numpy as np

from sightline.types import Span

if TYPE_CHECKING:
    from jaxtyping import Int

__all__ = ["Offsets", "byte_alphabet", "byte_pieces", "characters_of", "token_spans", "tokens_of"]


@dataclass(frozen=True, slots=True)
class Offsets:
    """Token `i` covers the characters `[starts[i], ends[i])`; both never decrease. A token may cover none."""

    starts: Int[np.ndarray, "tokens"]
    ends: Int[np.ndarray, "tokens"]

    def __len__(self) -> int:
        return len(self.starts)


def token_spans(pieces: Sequence[str | bytes]) -> Offsets:
    """Offsets of tokens in the text `b"".join(pieces).decode("utf-8", errors="replace")`.

    Args:
        pieces: what each token decodes to: bytes, or text where a token never splits a character.

    Example:
        >>> offsets = token_spans(["<box>", b"\\xc3", b"\\xa9", "12"])
        >>> offsets.starts.tolist(), offsets.ends.tolist()
        ([0, 5, 5, 6], [5, 6, 6, 8])
    """
    encoded = [p.encode("utf-8", errors="replace") if isinstance(p, str) else p for p in pieces]
    characters = _characters(b"".join(encoded))
    lengths = np.fromiter((len(p) for p in encoded), dtype=np.int64, count=len(encoded))
    last = np.cumsum(lengths)
    first = last - lengths
    total = characters[-1] + 1 if len(characters) else 0
    begins = np.append(characters, total)[first]
    has_bytes = lengths > 0
    ends = begins.copy()
    ends[has_bytes] = characters[last[has_bytes] - 1] + 1
    return Offsets(begins, np.maximum.accumulate(ends))


def tokens_of(span: Span, offsets: Offsets) -> Span:
    """The tokens that cover at least one character of a span; an empty span yields an empty range.

    Example:
        >>> tokens_of(Span(1, 4), token_spans(["ab", "cd", "ef"]))
        Span(start=0, end=2)
    """
    start = int(np.searchsorted(offsets.ends, span.start, side="right"))
    end = int(np.searchsorted(offsets.starts, span.end, side="left"))
    return Span(start, max(start, end) if span.end > span.start else start)


def characters_of(span: Span, offsets: Offsets) -> Span:
    """The characters that a range of tokens covers.

    Example:
        >>> characters_of(Span(1, 3), token_spans(["ab", "cd", "ef"]))
        Span(start=2, end=6)
    """
    start, end = min(span.start, len(offsets)), min(span.end, len(offsets))
    if start < end:
        return Span(int(offsets.starts[start]), int(offsets.ends[end - 1]))
    place = int(offsets.ends[start - 1]) if start else 0
    return Span(place, place)


def byte_pieces(tokens: Sequence[str]) -> list[bytes]:
    """The bytes behind the vocabulary strings of a byte-level BPE (GPT-2, Qwen); added tokens stand for themselves.

    Example:
        >>> byte_pieces(["Ġcaf", "Ã", "©", "<|im_end|>"])
        [b' caf', b'\\xc3', b'\\xa9', b'<|im_end|>']
    """
    alphabet = byte_alphabet()
    return [
        bytes(alphabet[c] for c in token) if all(c in alphabet for c in token) else token.encode("utf-8", "replace")
        for token in tokens
    ]


@cache
def byte_alphabet() -> Mapping[str, int]:
    """The byte behind each printable character of such a vocabulary.

    Example:
        >>> alphabet = byte_alphabet()
        >>> len(alphabet), alphabet["A"], alphabet["Ġ"]
        (256, 65, 32)
    """
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [b for b in range(256) if b not in set(printable)]
    return MappingProxyType({chr(b): b for b in printable} | {chr(256 + i): b for i, b in enumerate(others)})


def _characters(data: bytes) -> Int[np.ndarray, "bytes"]:
    """For each byte the index of its character; a stretch that is not UTF-8 counts as the one mark it decodes to."""
    out = np.empty(len(data), dtype=np.int64)
    start = count = 0
    while start < len(data):
        try:
            data[start:].decode("utf-8")
            good, bad = len(data), len(data)
        except UnicodeDecodeError as error:
            good, bad = start + error.start, start + error.end
        begins = (np.frombuffer(data, dtype=np.uint8, count=good - start, offset=start) & 0xC0) != 0x80
        out[start:good] = count - 1 + np.cumsum(begins)
        count += int(begins.sum())
        if bad > good:
            out[good:bad] = count
            count += 1
        start = bad
    return out
