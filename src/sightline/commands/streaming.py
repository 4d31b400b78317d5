"""Replies in the terminal while they are sampled: tags dimmed, boxes and tool calls coloured, crops named."""

from __future__ import annotations

import codecs
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

    from sightline.methods.base import TurnRule
    from sightline.policy.load import Policy
    from sightline.sampling.base import Request, SamplingSettings
    from sightline.types import NextTurn, Prompt, Reading, Rollout

__all__ = ["Ink", "SpokenSampler"]

_TAG = re.compile(r"</?\w+>")
_LONGEST_TAG = 16
_COLOURED = ("box", "tool_call")


class Ink:
    """Writes text piece by piece. Control characters are taken out; a tag is held back until it is whole."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self._held = ""
        self._inside = ""

    def write(self, text: str) -> None:
        """Takes the next piece of a reply."""
        for character in text:
            if not (character.isprintable() or character in "\n\t"):
                continue
            if character == "<":
                self._release()
            self._held += character
            if not self._held.startswith("<") or character == ">" or len(self._held) > _LONGEST_TAG:
                self._release()

    def end(self) -> None:
        """Ends the reply, and the line."""
        self._release()
        self._inside = ""
        self.console.print()

    def _release(self) -> None:
        if not self._held:
            return
        from rich.text import Text

        is_tag = _TAG.fullmatch(self._held) is not None
        name = self._held.strip("</>") if is_tag else ""
        style = "cyan" if self._inside or name in _COLOURED else "dim" if is_tag else ""
        if name in _COLOURED:
            self._inside = "" if self._held.startswith("</") else name
        self.console.print(Text(self._held, style), end="")
        self._held = ""


class SpokenSampler:
    """The local sampler for one question, whose replies appear as they are sampled.

    Args:
        policy: the policy; its current weights are used.
        console: where the replies appear, and what they are shown in between.
    """

    def __init__(self, policy: Policy, console: Console) -> None:
        from sightline.sampling.local import LocalSampler

        self.policy, self.console = policy, console
        self._sampler = LocalSampler(policy, on_token=self._heard)
        self._ink = Ink(console)
        self._bytes = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._has_asked = False

    def sample(
        self, requests: Sequence[Request], settings: SamplingSettings, *, seed: int, step: int
    ) -> list[list[Rollout]]:
        """As `LocalSampler.sample`; the Requests are asked one after the other."""
        rollouts = []
        for request in requests:
            self._introduce(request.prompt)
            heard = request if request.turns is None else replace(request, turns=_Told(request.turns, self))
            rollouts += self._sampler.sample([heard], settings, seed=seed, step=step)
            if rollouts[-1][-1].finish == "length":
                self._end()
        return rollouts

    def told(self, turn: NextTurn) -> None:
        """Shows the user's turn: its crops, and its words where it has no crop."""
        for number, image in enumerate(turn.images):
            place = f" {[round(side) for side in turn.boxes[number]]}" if turn.boxes else ""
            self._tell(f"crop{place}, {image.size.width} x {image.size.height} px")
        if not turn.images:
            self._tell(turn.text.strip())

    def _introduce(self, prompt: Prompt) -> None:
        """Says what a further pass over the same question shows."""
        for image in prompt.images:
            if image not in prompt.record.images:
                self._tell(f"crop, {image.size.width} x {image.size.height} px")
        if self._has_asked and prompt.stream == "textual":
            self._tell("no usable box, asked again in words")
        self._has_asked = True

    def _heard(self, row: int, token: int) -> None:
        del row  # there is one
        if token in self.policy.eos:
            self._end()
        else:
            self._ink.write(self._bytes.decode(self.policy.pieces([token])[0]))

    def _end(self) -> None:
        self._ink.write(self._bytes.decode(b"", final=True))
        self._bytes.reset()
        self._ink.end()

    def _tell(self, words: str) -> None:
        self.console.print(words, style="dim", markup=False)


@dataclass(frozen=True, slots=True)
class _Told:
    """A rule whose turns are also shown."""

    rule: TurnRule
    listener: SpokenSampler

    def next(self, prompt: Prompt, readings: Sequence[Reading]) -> NextTurn | None:
        following = self.rule.next(prompt, readings)
        if following is not None:
            self.listener.told(following)
        return following
