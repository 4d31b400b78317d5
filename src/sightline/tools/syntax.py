"""How a policy asks for a crop, and the words in which it is answered.

`BoxSyntax` is that of Ground-R1 (arXiv 2505.20272): a box in `<box>` behind the reasoning. `ToolCallSyntax` is the
native tool call of the Qwen families, as DeepEyes (arXiv 2505.14362) uses it. A `Call` is data: what is wrong with it
stands in it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

from sightline.language.number_lists import LIMIT
from sightline.language.prompts import TEMPLATES, Style
from sightline.language.strict import first_bracketed
from sightline.language.tool_calls import ToolCall, tool_calls
from sightline.tools.settings import SyntaxName
from sightline.types import ReadBox, Reading

__all__ = ["SYNTAXES", "ZOOM_TOOL", "BoxSyntax", "Call", "Syntax", "ToolCallSyntax", "syntax_named"]

ZOOM_TOOL = "image_zoom_in_tool"
"""The tool that the template `deepeyes` offers."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """One request for a region.

    Attributes:
        box: the region, None where the request names none that can be read.
        label: what the policy calls it.
        image: the image it refers to.
        problem: why it cannot be served, whatever its box; `""` if nothing is wrong with its form.
    """

    box: ReadBox | None = None
    label: str = ""
    image: int = 0
    problem: str = ""


class Syntax(Protocol):
    """A way to ask for crops."""

    @property
    def template(self) -> str:
        """The instruction that explains it, a key of `sightline.language.prompts.TEMPLATES`."""
        ...

    def asks(self, reading: Reading) -> tuple[Call, ...]:
        """The requests of one turn, in order; empty where it asks for nothing."""
        ...

    def opening(self, style: Style) -> str:
        """The words ahead of the crops."""
        ...

    def follow_up(self, shown: int, problems: Sequence[str], style: Style) -> str:
        """The words behind `shown` crops; `problems` are the reasons why requests got none."""
        ...


@dataclass(frozen=True, slots=True)
class BoxSyntax:
    """One box per turn, written behind the think block; a box elsewhere counts where there is none.

    With `is_parity` it is the first list of four numbers in square brackets anywhere in the turn, as the Ground-R1
    release looks for it, one that is only quoted in the reasoning included.

    Example:
        >>> from sightline.geometry.frames import Frame
        >>> from sightline.language.parse import read
        >>> from sightline.types import Size
        >>> text = "<think> not [1,2,3,4] </think> <box>[0,0,500,500]</box>"
        >>> turn = read(text, Frame("relative_1000", 32, 1024, 65536), [Size(64, 64)])
        >>> [call.box.written for call in BoxSyntax().asks(turn)]
        [(0.0, 0.0, 500.0, 500.0)]
        >>> [call.box.written for call in BoxSyntax(is_parity=True).asks(turn)]
        [(1.0, 2.0, 3.0, 4.0)]
    """

    is_parity: bool = False
    template: str = "ground_r1"

    def asks(self, reading: Reading) -> tuple[Call, ...]:
        found = _first_bracketed(reading) if self.is_parity else _behind_think(reading)
        if found is not None:
            return (Call(box=found, image=found.image),)
        if not self.is_parity and "box tag without box" in reading.problems:
            return (Call(problem="no four numbers in the box"),)
        return ()

    def opening(self, style: Style) -> str:
        """None: the crops come first."""
        del style
        return ""

    def follow_up(self, shown: int, problems: Sequence[str], style: Style) -> str:
        """Nothing behind a crop in the compact style; its instruction again where there is none to show.

        Example:
            >>> BoxSyntax().follow_up(1, (), "compact"), BoxSyntax().follow_up(0, ("outside",), "compact")
            ('', ' Box or answer .')
            >>> BoxSyntax().follow_up(0, ("outside",), "full").splitlines()[0]
            'No region can be shown: it lies outside the image.'
        """
        if style == "compact":
            return _compact(self.template, shown)
        wanted = "then give another <box> in coordinates of the original image, or the final <answer>."
        return _sentences(shown, problems, f"Go on reasoning in a new <think> block, {wanted}")


@dataclass(frozen=True, slots=True)
class ToolCallSyntax:
    """Any number of `<tool_call>` tags per turn, each with a box as `bbox_2d`.

    Example:
        >>> from sightline.geometry.frames import Frame
        >>> from sightline.language.parse import read
        >>> from sightline.types import Size
        >>> call = '{"name": "image_zoom_in_tool", "arguments": {"bbox_2d": [0, 0, 500, 500], "label": "cup"}}'
        >>> text = f"<tool_call>{call}</tool_call><tool_call>rotate</tool_call>"
        >>> turn = read(text, Frame("relative_1000", 32, 1024, 65536), [Size(64, 64)])
        >>> [(c.box.box if c.box else None, c.label, c.problem) for c in ToolCallSyntax().asks(turn)]
        [(Box(x1=0.0, y1=0.0, x2=32.0, y2=32.0), 'cup', ''), (None, '', 'broken JSON')]
    """

    tool: str = ZOOM_TOOL
    template: str = "deepeyes"

    def asks(self, reading: Reading) -> tuple[Call, ...]:
        unused = list(reading.boxes)
        out = []
        for call in tool_calls(reading.text):
            box = _box_of(call, unused)
            if box is not None:
                unused.remove(box)
            out.append(self._call(call, box))
        return tuple(out)

    def opening(self, style: Style) -> str:
        """The tag in which the Qwen families expect what a tool returns; none in the compact style."""
        return "" if style == "compact" else "<tool_response>\n"

    def follow_up(self, shown: int, problems: Sequence[str], style: Style) -> str:
        """As `BoxSyntax.follow_up`, in the terms of the tool; it closes the tag of `opening`.

        Example:
            >>> print(ToolCallSyntax().follow_up(0, ("broken JSON",), "full"))
            No region can be shown: the call is not readable JSON.
            Think, then call the tool again, or give the final answer between <answer> and </answer>.
            </tool_response>
        """
        if style == "compact":
            return _compact(self.template, shown)
        wanted = "Think, then call the tool again, or give the final answer between <answer> and </answer>."
        return f"{_sentences(shown, problems, wanted)}\n</tool_response>"

    def _call(self, call: ToolCall, box: ReadBox | None) -> Call:
        label = call.arguments.get("label", "")
        problem = call.problem
        if not problem and call.name != self.tool:
            problem = "unknown tool"
        elif not problem and box is None:
            problem = "no four numbers in the box"
        found = Call(box=box, label=label if isinstance(label, str) else "", problem=problem)
        return found if box is None else replace(found, image=box.image)


SYNTAXES: Mapping[SyntaxName, type[BoxSyntax] | type[ToolCallSyntax]] = {"box": BoxSyntax, "tool_call": ToolCallSyntax}
"""The syntaxes by the name that recipes use."""


def syntax_named(name: SyntaxName, *, is_parity: bool = False) -> Syntax:
    """The syntax of this name. `is_parity` reads boxes as the Ground-R1 release; tool calls have no such reading.

    Example:
        >>> syntax_named("tool_call").template
        'deepeyes'
    """
    return BoxSyntax(is_parity=is_parity) if name == "box" else ToolCallSyntax()


_WORDS: Mapping[str, str] = {
    "no image": "there is no such image",
    "not a number": "its coordinates are no numbers",
    "huge": "its coordinates are beyond every image",
    "reversed": "its first corner must be the top left one",
    "negative": "it lies outside the image",
    "outside": "it lies outside the image",
    "empty": "it has no area inside the image",
    "no box": "no coordinates were given",
    "broken JSON": "the call is not readable JSON",
    "unknown tool": "there is no such tool",
}


def _sentences(shown: int, problems: Sequence[str], wanted: str) -> str:
    regions = "This is the region" if shown == 1 else f"These are the {shown} regions"
    lines = [f"{regions} you asked for."] if shown else []
    told = "; ".join(dict.fromkeys(_WORDS.get(problem, problem) for problem in problems))
    if told:
        lines.append(f"{'Another' if shown else 'No'} region {'cannot' if shown else 'can'} be shown: {told}.")
    return "\n".join([*lines, wanted])


def _compact(template: str, shown: int) -> str:
    return "" if shown else TEMPLATES[template].compact


def _behind_think(reading: Reading) -> ReadBox | None:
    """The first box behind the reasoning; where there is none, the last box of the turn."""
    end = reading.text.rfind("</think>")
    behind = [box for box in reading.boxes if box.span.start >= end]
    if end >= 0 and behind:
        return behind[0]
    return reading.boxes[-1] if reading.boxes else None


def _first_bracketed(reading: Reading) -> ReadBox | None:
    numbers = first_bracketed(reading.text)
    return next((box for box in reading.boxes if box.written == numbers and box.image == 0), None)


def _box_of(call: ToolCall, boxes: Sequence[ReadBox]) -> ReadBox | None:
    """The box within the call, best the one whose numbers are its arguments."""
    inside = [b for b in boxes if call.span.start <= b.span.start and b.span.end <= call.span.end]
    given = [value for value in call.arguments.values() if _is_box(value)]
    exact = [b for b in inside if any(tuple(map(float, value)) == b.written for value in given)]
    return next(iter(exact or inside), None)


def _is_box(value: Any) -> bool:
    is_list = isinstance(value, list) and len(value) == 4
    return is_list and all(type(side) in (int, float) and abs(side) <= LIMIT for side in value)
