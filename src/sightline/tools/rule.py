"""The rule of a conversation with crops: after each reply, the regions it asked for, until it answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from sightline.language.prompts import TEMPLATES, Style
from sightline.tools.crop import Control, CropTool, stand_in
from sightline.tools.syntax import BoxSyntax, Call, Syntax
from sightline.types import Box, ImageRef, NextTurn, Prompt, Reading

__all__ = ["CropTurns", "Look"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """What one request of the policy comes to.

    Attributes:
        call: the request.
        image: the image of the Prompt it is cut out of.
        shown: the rectangle that is shown, in original pixels; None where nothing is.
        problem: why nothing is shown, or what was mended.
        is_whole: the whole image stands in, as the Ground-R1 release does where it cuts nothing.
    """

    call: Call
    image: int = 0
    shown: Box | None = None
    problem: str = ""
    is_whole: bool = False


@dataclass(frozen=True, slots=True)
class CropTurns:
    """Shows the regions a policy asks for. Implements `TurnRule`.

    The conversation ends when a turn holds a closed answer, asks for nothing, was cut by the token limit, or is the
    last permitted one. A request that cannot be served gets a turn of words without an image. In the policy `parity` of
    the tool, as in the Ground-R1 release, the characters `<answer>` end it, finished or not, and every other turn is
    followed by an image: the crop, or the full image where no box is found.

    Attributes:
        tool: cuts the crops.
        syntax: how the policy asks.
        max_turns: replies per conversation; the last of them gets no crop.
        style: the wording of the user's turns; None keeps to that of the Prompt.
        repeat_template: the whole instruction follows every crop, as in the Ground-R1 release.
        control: what stands in for the crops. `no-crop` shows the full image in their place, so that the conversation
            takes the same course and only the closer view is missing.
        seed: of the places of `random-crop`, together with the Record's id.
    """

    tool: CropTool = field(default_factory=CropTool)
    syntax: Syntax = field(default_factory=BoxSyntax)
    max_turns: int = 5
    style: Style | None = None
    repeat_template: bool = False
    control: Control = "none"
    seed: int = 0

    def next(self, prompt: Prompt, readings: Sequence[Reading]) -> NextTurn | None:
        """The crops that the last of `readings` asks for; None ends the conversation."""
        last = readings[-1]
        if len(readings) >= self.max_turns or not prompt.images or self._has_ended(last):
            return None
        asked = self.looks(prompt, readings)[-1]
        if not asked:
            return None
        served = [(look.image, look.shown) for look in asked if look.shown is not None]
        if self.control == "no-crop":
            served = list(dict.fromkeys(served))
        problems = [look.problem for look in asked if look.shown is None]
        said = "".join(part for part in prompt.messages[-1].content if isinstance(part, str))
        style = self.style or _style_of(said)
        is_repeated = self.repeat_template and bool(served)
        return NextTurn(
            opening="" if is_repeated else self.syntax.opening(style),
            text=said if is_repeated else self.syntax.follow_up(len(served), problems, style),
            images=tuple(self._pixels(prompt.images[image], box) for image, box in served),
            # of the first image alone can a place be told
            boxes=tuple(box for _, box in served) if all(image == 0 for image, _ in served) else (),
        )

    def looks(self, prompt: Prompt, readings: Sequence[Reading]) -> tuple[tuple[Look, ...], ...]:
        """What the requests of each turn come to, turn by turn, before any pixel is touched."""
        shown = 0
        turns = []
        for reading in readings:
            looks = []
            for call in self._calls(reading):
                look = self._look(call, prompt, shown)
                shown += look.shown is not None
                looks.append(look)
            turns.append(tuple(looks))
        return tuple(turns)

    @property
    def _is_parity(self) -> bool:
        return self.tool.settings.policy == "parity"

    def _has_ended(self, reading: Reading) -> bool:
        has_answered = "<answer>" in reading.text if self._is_parity else "answer" in reading.sections
        return has_answered or "truncated" in reading.problems

    def _calls(self, reading: Reading) -> tuple[Call, ...]:
        calls = self.syntax.asks(reading)
        return calls or (Call(problem="no box"),) if self._is_parity else calls

    def _look(self, call: Call, prompt: Prompt, before: int) -> Look:
        """What one request comes to after `before` crops of the conversation."""
        settings = self.tool.settings
        if not self._is_parity and call.problem:
            return Look(call=call, problem=call.problem)
        if not 0 <= call.image < len(prompt.images):
            return Look(call=call, problem="no image")
        if before >= settings.max_crops:
            return Look(call=call, problem=f"{settings.max_crops} regions have been shown already")
        size = prompt.images[call.image].size
        place, problem = self.tool.place(call.box, size)
        if place is None:
            return Look(call=call, problem=problem)
        shown = stand_in(self.control, place, size, f"{self.seed}/{prompt.record.id}/{before}")
        is_whole = self._is_parity and bool(problem)
        return Look(call=call, image=call.image, shown=shown, problem=problem, is_whole=is_whole)

    def _pixels(self, image: ImageRef, box: Box) -> ImageRef:
        from sightline.images import blank

        return blank(self.tool.extent(box)) if self.control == "blank-crop" else self.tool.pixels(box, image)


def _style_of(said: str) -> Style:
    """The style of a Prompt, by its last words."""
    return "compact" if said.endswith(tuple(template.compact for template in TEMPLATES.values())) else "full"
