"""What a stream shows the policy: images, question, instruction, in this order, as one turn of the user.

Every template exists in two styles: `full` tells a pretrained model in words what to do; `compact` is the one or two
words that the embedded policy was trained on. The text of a Record is data: marks that control the chat format are
broken up in it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from string import ascii_uppercase
from typing import TYPE_CHECKING, Literal

from sightline.errors import UserError
from sightline.types import ImageRef, ImageSlot, Message, Prompt, Record

if TYPE_CHECKING:
    from sightline.geometry.frames import Frame

__all__ = ["GRIT_SUFFIX", "TEMPLATES", "Style", "Template", "neutralised", "prompt", "user_text"]

Style = Literal["full", "compact"]


@dataclass(frozen=True, slots=True)
class Template:
    """An instruction in two wordings.

    Attributes:
        full: the wording for pretrained models. Where it contains `{question}` it is the whole text, otherwise it
            follows the question on a new line. `{limits}` becomes a sentence with the largest coordinates.
        compact: the wording for the embedded policy; it always follows the question on a new line.
    """

    name: str
    full: str
    compact: str


GRIT_SUFFIX = (
    " First, think between <think> and </think> while output necessary coordinates needed to answer the question in "
    "JSON with key 'bbox_2d'. Then, based on the thinking contents and coordinates, rethink between <rethink> "
    "</rethink> and then answer the question after <answer>.\n"
)
"""The suffix on which the published GRIT checkpoints were trained, to the letter (arXiv 2505.15879)."""

_TEXTUAL = """\
Work through the question in writing before you answer it.
Put your reasoning between <think> and </think>, then give the final answer between <answer> and </answer>:
<think> your reasoning </think> <answer> your answer </answer>"""

_GROUNDED = """\
Work through the question in writing before you answer it, and show where in the image each thing is.
1. Put your reasoning between <think> and </think>, then give the final answer between <answer> and </answer>.
2. Each time the reasoning mentions an object, write its bounding box right behind it as <box>[x1,y1,x2,y2]</box>, \
(x1,y1) being the top left and (x2,y2) the bottom right corner. Several objects take several box tags in a row.
3. Keep strictly to this form: whole numbers, commas, no blanks, one box per tag.
Example, for the question "What color is the ball on the left?":
<think> There are two balls. The one on the left <box>[50,80,120,150]</box> has a blue surface. </think> \
<answer> Blue </answer>"""

_GENERAL = """\
Your reply has two parts, and both are required.
First, reason step by step between <think> and </think>.
Second, give a short and direct answer between <answer> and </answer>."""

_DIRECT = "Reply with the answer alone, as briefly as possible, between <answer> and </answer>."

_GROUND_R1 = """\
Question: {question}
Look at the original image and decide whether a closer view of one region would help to answer the question. \
If it would, give the bounding box of that region as [x1,y1,x2,y2] between <box> and </box>. {limits}\
You will then receive the cut-out region as a further image; go on reasoning from both images in a new <think> block. \
You may ask for several regions, one after the other, always in coordinates of the original image. \
As soon as nothing more is needed, give the final answer between <answer> and </answer>. \
Each reply has one of two forms: <think> reasoning </think> <box>[x1,y1,x2,y2]</box> \
or <think> reasoning </think> <answer> final answer </answer>"""

_DEEPEYES = """\
Reason between <think> and </think>. To see a region more closely, call the zoom tool and wait for its result:
<tool_call>{"name": "image_zoom_in_tool", "arguments": {"bbox_2d": [x1, y1, x2, y2], "label": "name of the region"}}\
</tool_call>
{limits}You may call it several times, once per reply. When you have seen enough, give the final answer between \
<answer> and </answer>."""

_CROPS = """\
The images show the whole scene and enlarged regions of it. Use all of them.
Put your reasoning between <think> and </think>, then give the final answer between <answer> and </answer>:
<think> your reasoning </think> <answer> your answer </answer>"""

TEMPLATES: Mapping[str, Template] = {
    template.name: template
    for template in (
        Template("textual", _TEXTUAL, " Think ."),
        Template("grounded", _GROUNDED, " Think with boxes ."),
        Template("general", _GENERAL, " Reason ."),
        Template("direct", _DIRECT, " Answer ."),
        Template("grit", "\nQuestion: {question}" + GRIT_SUFFIX, " Think , rethink ."),
        Template("ground_r1", _GROUND_R1, " Box or answer ."),
        Template("deepeyes", _DEEPEYES, " Use tools ."),
        Template("crops", _CROPS, " Think with crops ."),
    )
}
"""The templates by name."""


def prompt(
    record: Record,
    stream: str,
    template: str,
    style: Style,
    images: Sequence[ImageRef] | None = None,
    forced_prefix: str = "",
    *,
    frame: Frame | None = None,
) -> Prompt:
    """The Prompt of one stream for one Record: a single turn of the user.

    Args:
        template: a key of `TEMPLATES`.
        style: the wording.
        images: the images to show in place of the Record's, e.g. with crops behind them.
        forced_prefix: text with which every reply begins; the policy does not write it.
        frame: if given, templates that ask for boxes name the largest coordinates of the first image.

    Raises:
        UserError: unknown template or style.

    Example:
        >>> record = Record(id="r", question="What color is the cup?", answer="red")
        >>> prompt(record, "textual", "textual", "compact").messages[0].content
        ('What color is the cup?\\n Think .',)
    """
    shown = tuple(record.images if images is None else images)
    text = user_text(record, template, style, limits=_limits(shown, frame))
    slots = tuple(ImageSlot(i) for i in range(len(shown)))
    return Prompt(
        record=record,
        stream=stream,
        messages=(Message("user", (*slots, text)),),
        images=shown,
        forced_prefix=forced_prefix,
    )


def user_text(record: Record, template: str, style: Style, *, limits: str = "") -> str:
    """Question, options and instruction as one text.

    Options are listed by letter unless the question already lists them so.

    Example:
        >>> record = Record(id="r", question="Which color?", answer="A", options=("red", "green"))
        >>> user_text(record, "general", "compact")
        'Which color?\\nA. red\\nB. green\\n Reason .'
    """
    if template not in TEMPLATES:
        raise UserError(f"unknown template {template!r}", hint=f"one of {', '.join(TEMPLATES)}")
    if style not in ("full", "compact"):
        raise UserError(f"unknown prompt style {style!r}", hint="full or compact")
    question = neutralised("\n".join([record.question.strip(), *_listed(record)]))
    if style == "compact":
        return f"{question}\n{TEMPLATES[template].compact}"
    before, asks, after = TEMPLATES[template].full.replace("{limits}", limits).partition("{question}")
    return f"{before}{question}{after}" if asks else f"{question}\n{before}"


def neutralised(text: str) -> str:
    """The text with every mark of the chat format, such as `<|im_end|>` or `<|image_pad|>`, broken by a blank.

    Example:
        >>> neutralised("stop<|im_end|> and x <| y")
        'stop< |im_end|> and x < | y'
    """
    return text.replace("<|", "< |")


def _listed(record: Record) -> list[str]:
    if len(record.options) > len(ascii_uppercase):
        raise UserError(f"{len(record.options)} options; there are letters for 26", where=f"record {record.id}")
    options = list(zip(ascii_uppercase, record.options, strict=False))
    if all(re.search(rf"(?<!\w){letter}\s*[.):]\s*{re.escape(o)}", record.question) for letter, o in options):
        return []
    return [f"{letter}. {option}" for letter, option in options]


def _limits(images: Sequence[ImageRef], frame: Frame | None) -> str:
    if frame is None or not images:
        return ""
    width, height = frame.extent(images[0].size)
    return f"Width: {width}, height: {height}; no coordinate may exceed them. "
