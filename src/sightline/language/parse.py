"""From the text of a reply to a `Reading`: sections, answer, and boxes in original pixels. Total on every string.

The reading is tolerant: it takes what can be understood and names what is odd. Whether an oddity costs anything is
for the rewards to decide. `strict_read` (in `sightline.language.strict`) reads as one published release does.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from sightline.geometry.boxes import repair
from sightline.geometry.frames import Frame
from sightline.language.boxes import BOX_PROBLEMS, FoundBox, find_boxes
from sightline.language.sections import TAGS, Tag, TagScan, scan
from sightline.language.strict import StrictReading, strict_read
from sightline.types import Box, Finish, ReadBox, Reading, Size, Span

__all__ = [
    "BOX_PROBLEMS",
    "REPLY_PROBLEMS",
    "TAGS",
    "StrictReading",
    "read",
    "read_turns",
    "strict_read",
    "without_boxes",
]

REPLY_PROBLEMS: Mapping[str, str] = {
    "truncated": "the token limit cut the reply",
    "empty": "nothing but blanks",
    "no think block": "no closed think block",
    "no answer block": "no closed answer block",
    "empty think": "a think block without text",
    "empty answer": "an answer block without text",
    "text before think": "text before the first think tag",
    "text between blocks": "text outside every block, between two of them",
    "text after answer": "text after the last answer block",
    "answer before think": "the first answer block begins before the first think block",
    "answer inside think": "an answer block inside a think block",
    "odd tag": "a tag with blanks or capitals",
    "box tag without box": "a box tag that holds no four numbers; once per such tag",
    "TAG twice": "more than one closed block of this tag (think, rethink, answer)",
    "unclosed TAG": "an opening tag without its closing tag",
    "unopened TAG": "a closing tag without its opening tag",
}
"""Every problem a Reading may carry, with its meaning; TAG stands for the name of a tag."""

_OPEN = "no answer block"
_ONCE = ("think", "rethink", "answer")


def read(text: str, frame: Frame, sizes: Sequence[Size], *, finish: Finish = "stop") -> Reading:
    """Reads a reply.

    `think` and `answer` are the first closed blocks. A think block whose opening tag stands in the prompt is read up
    to its closing tag; an answer left open at the end of a finished reply is read to the end (both noted).

    Args:
        text: the reply.
        frame: the coordinates in which the model writes boxes.
        sizes: original sizes of the prompt's images. A box refers to image 0 unless its syntax names another
            (`"image": 1` in its JSON object, or an attribute of the tag); without that image it is kept, invalid,
            with the numbers as they stand.
        finish: `length` if the token limit cut the reply.

    Example:
        >>> frame = Frame("relative_1000", 32, 1024, 65536)
        >>> r = read("<think> a cup <box>[0,0,500, 500]</box> </think><answer> red </answer>", frame, [Size(64, 64)])
        >>> r.answer, r.boxes[0].box, r.boxes[0].problems
        ('red', Box(x1=0.0, y1=0.0, x2=32.0, y2=32.0), ('spaces',))
    """
    tags = scan(text)
    found = find_boxes(text)
    answer = _answer(tags, finish)
    problems = [*_whole(text, finish), *_structure(tags), *_between(tags), *_blocks(tags)]
    problems += ["box tag without box"] * len(found.unreadable)
    return Reading(
        text=text,
        sections={name: blocks[0].content for name, blocks in tags.blocks.items()},
        think=_think(tags),
        answer=None if answer is None else answer.strip(),
        boxes=tuple(_placed(box, frame, sizes) for box in found.boxes),
        problems=tuple(problems),
    )


def read_turns(texts: Sequence[str], frame: Frame, sizes: Sequence[Size], *, finish: Finish = "stop") -> Reading:
    """Reads the policy's turns of a conversation; one turn is a single reply, read by `read`.

    The whole speaks through its last turn (sections, think, answer), over the text of all turns, one per line. It has
    the boxes of all turns, in order, and every problem of any turn once; that a turn before the last holds no answer is
    none. Spans of the whole are places in that text,
    those of `turns` in the turn itself.

    Args:
        texts: the policy's turns, at least one.
        frame: the coordinates in which the model writes boxes.
        sizes: original sizes of the prompt's images, to which the boxes of every turn refer.
        finish: `length` if the token limit cut the last turn.

    Example:
        >>> frame = Frame("relative_1000", 32, 1024, 65536)
        >>> r = read_turns(["<box>[0,0,500,500]</box>", "<answer> red </answer>"], frame, [Size(64, 64)])
        >>> r.answer, len(r.boxes), [turn.answer for turn in r.turns]
        ('red', 1, [None, 'red'])
    """
    last = len(texts) - 1
    turns = tuple(read(text, frame, sizes, finish=finish if i == last else "stop") for i, text in enumerate(texts))
    if len(turns) == 1:
        return turns[0]
    starts = [sum(len(text) + 1 for text in texts[:i]) for i in range(len(texts))]
    *earlier, whole = turns
    return replace(
        whole,
        text="\n".join(texts),
        sections={name: _moved(span, starts[-1]) for name, span in whole.sections.items()},
        boxes=tuple(
            replace(box, span=_moved(box.span, start))
            for turn, start in zip(turns, starts, strict=True)
            for box in turn.boxes
        ),
        problems=tuple(dict.fromkeys([*(p for turn in earlier for p in turn.problems if p != _OPEN), *whole.problems])),
        turns=turns,
    )


def without_boxes(reading: Reading, span: Span | None = None) -> str:
    """The text (or a stretch of it) with every box cut out, and the blanks around each cut merged.

    Example:
        >>> frame = Frame("relative_1000", 32, 1024, 65536)
        >>> without_boxes(read("the cup <box>[1,2,3,4]</box> is red", frame, [Size(64, 64)]))
        'the cup is red'
    """
    start, end = span if span is not None else (0, len(reading.text))
    out = ""
    for box in reading.boxes:
        if start <= box.span.start and box.span.end <= end:
            out = _joined(out, reading.text[start : box.span.start])
            start = box.span.end
    return _joined(out, reading.text[start:end])


def _moved(span: Span, by: int) -> Span:
    return Span(span.start + by, span.end + by)


def _joined(before: str, after: str) -> str:
    return before + (after.lstrip(" ") if before.endswith((" ", "\n")) else after)


def _placed(found: FoundBox, frame: Frame, sizes: Sequence[Size]) -> ReadBox:
    """The box in original pixels, ordered and inside its image."""
    problems = list(found.problems)
    if found.image >= len(sizes):
        x1, y1, x2, y2 = found.written
        box = Box(min(x1, x2), min(y1, y2), max(x1, x2), max(y1, y2))
        is_valid, noted = False, ("no image",)
    else:
        size = sizes[found.image]
        if "floats" in problems and all(0 <= v <= 1 for v in found.written):
            problems.append("fractions")
            x1, y1, x2, y2 = found.written
            original = Box(x1 * size[0], y1 * size[1], x2 * size[0], y2 * size[1])
        else:
            original = frame.to_original(Box(*found.written), size)
        repaired = repair(original, size)
        box, is_valid, noted = repaired.box, repaired.is_valid, repaired.problems
    return ReadBox(
        box=box,
        written=found.written,
        span=found.span,
        problems=(*problems, *noted),
        is_valid=is_valid,
        image=found.image,
    )


def _think(tags: TagScan) -> str | None:
    content = tags.content("think")
    if content is None and not tags.opened("think") and (closing := tags.closed("think")):
        return tags.text[: closing[0].span.start]
    return content


def _answer(tags: TagScan, finish: Finish) -> str | None:
    content = tags.content("answer")
    if content is None and finish == "stop" and (opened := tags.opened("answer")):
        start = opened[-1].span.end
        following = (t.span.start for t in tags.tags if t.span.start >= start and t.name != "box")
        return tags.text[start : next(following, len(tags.text))]
    return content


def _whole(text: str, finish: Finish) -> Iterable[str]:
    if finish == "length":
        yield "truncated"
    if not text.strip():
        yield "empty"


def _blocks(tags: TagScan) -> Iterable[str]:
    """What is odd about the think and answer blocks themselves."""
    for name in ("think", "answer"):
        content = tags.content(name)
        if content is None:
            yield f"no {name} block"
        elif not content.strip():
            yield f"empty {name}"
    thinks, answers = tags.blocks.get("think", ()), tags.blocks.get("answer", ())
    if thinks and answers:
        if answers[0].span.start < thinks[0].span.start:
            yield "answer before think"
        first = thinks[0].content
        if any(first.start <= a.span.start < first.end for a in answers):
            yield "answer inside think"


def _structure(tags: TagScan) -> Iterable[str]:
    """Tags that do not pair up, and tags oddly written."""
    if not all(_is_plain(tag, tags.text) for tag in tags.tags):
        yield "odd tag"
    for name in dict.fromkeys(t.name for t in tags.tags if t.name != "box"):
        pairs = len(tags.blocks.get(name, ()))
        if pairs > 1 and name in _ONCE:
            yield f"{name} twice"
        if len(tags.opened(name)) > pairs:
            yield f"unclosed {name}"
        if len(tags.closed(name)) > pairs:
            yield f"unopened {name}"


def _is_plain(tag: Tag, text: str) -> bool:
    """Written without blanks or capitals, attributes aside."""
    start = f"</{tag.name}" if tag.is_closing else f"<{tag.name}"
    written = text[slice(*tag.span)]
    return written.startswith(start) and (bool(tag.attributes) or written == f"{start}>")


def _between(tags: TagScan) -> Iterable[str]:
    """Text outside the blocks: before the first think block, between blocks, after the last answer."""
    text = tags.text
    thinks, answers = tags.blocks.get("think", ()), tags.blocks.get("answer", ())
    if thinks and text[: thinks[0].span.start].strip():
        yield "text before think"
    spans = sorted(block.span for blocks in tags.blocks.values() for block in blocks)
    end = spans[0].end if spans else 0
    for span in spans:
        if text[end : span.start].strip():
            yield "text between blocks"
            break
        end = max(end, span.end)
    if answers and text[answers[-1].span.end :].strip():
        yield "text after answer"
