"""A conversation while it is sampled: a value that grows turn by turn, with every token accounted for.

Whoever samples (the weights in this process, or a server) runs the same machine::

    waiting = [Conversation.begin(policy, request)]
    rows = waiting[0].forked()                          # one per branch of the level that begins here
    row = rows[0].replied(policy, ids, logprobs, "stop")  # what was sampled, as it was sampled
    row = row.continued(policy)                         # the rule was asked: the user's next turn, or is_over
    row.rollouts()                                      # once it is over

Sampled text is never tokenised again. What the user adds follows as ids of its own, between the id that ended the
policy's turn and the first id of its next one. A turn that the token limit cut has no such end: the conversation is
over, and no rule is asked.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float, Int

from sightline.language.parse import read
from sightline.policy.encode import Encoded
from sightline.types import ImageSlot, Rollout, Span, Turn

if TYPE_CHECKING:
    from sightline.policy.load import Policy
    from sightline.sampling.base import Request
    from sightline.types import Finish, ImageRef, NextTurn, Reading

__all__ = ["Conversation"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Conversation:
    """One path of a Request's sampling tree, from the prompt to where it stands.

    Attributes:
        request: what was asked.
        prompt: ids of the prompt, and its images.
        branch: its place in the tree so far.
        pieces: ids of each turn, as sampled or inserted.
        logprobs: log-probability of every id, turn by turn; 0 where inserted.
        turns: who wrote each piece, and what it says.
        readings: the policy's turns as the rule sees them (empty without a rule).
        images: images added after the prompt.
        forks: offsets at which the deeper levels of `branch` began.
        is_over: nothing follows.
    """

    request: Request
    prompt: Encoded
    branch: tuple[int, ...] = ()
    pieces: tuple[Int[np.ndarray, "_"], ...] = ()
    logprobs: tuple[Float[np.ndarray, "_"], ...] = ()
    turns: tuple[Turn, ...] = ()
    readings: tuple[Reading, ...] = ()
    images: tuple[ImageRef, ...] = ()
    forks: tuple[int, ...] = ()
    is_over: bool = False

    @classmethod
    def begin(cls, policy: Policy, request: Request) -> Conversation:
        """The prompt, before anything is said."""
        return cls(request=request, prompt=policy.encode(request.prompt))

    @property
    def length(self) -> int:
        """Tokens after the prompt."""
        return self.turns[-1].span.end if self.turns else 0

    @property
    def turn(self) -> int:
        """Turns of the policy so far; the number of the one that is sampled next."""
        return sum(turn.role == "assistant" for turn in self.turns)

    @property
    def key(self) -> tuple[int, ...]:
        """What the random numbers of the next turn belong to: the branch, and from the second turn on its number."""
        return (*self.branch, self.turn) if self.turn else self.branch

    @property
    def pending(self) -> Encoded:
        """Ids and images of the user's last turn, which stand before the turn that is sampled next."""
        return Encoded(self.pieces[-1], self.images[len(self.images) - len(self.turns[-1].images) :])

    def forked(self) -> list[Conversation]:
        """The conversations that sample the next turn: one per branch where a level begins, otherwise this one."""
        if self.turn >= len(self.request.branches):
            return [self]
        forks = (*self.forks, self.length) if self.turn else ()
        return [
            replace(self, branch=(*self.branch, i), forks=forks) for i in range(self.request.branches[self.turn])
        ]  # fmt: skip

    def replied(self, policy: Policy, ids: Sequence[int], logprobs: Sequence[float], finish: Finish) -> Conversation:
        """After the policy's turn. Without a rule, or where the token limit cut the turn, the conversation is over."""
        shown, rule = self.request.prompt, self.request.turns
        text = (shown.forced_prefix if not self.turns else "") + policy.decode(ids)
        readings = self.readings
        if rule is not None:
            readings = (*readings, read(text, policy.frame, [image.size for image in shown.images], finish=finish))
        span = Span(self.length, self.length + len(ids))
        return replace(
            self,
            pieces=(*self.pieces, np.array(ids, np.int64)),
            logprobs=(*self.logprobs, np.array(logprobs, np.float32)),
            turns=(*self.turns, Turn(role="assistant", span=span, text=text, finish=finish)),
            readings=readings,
            is_over=rule is None or finish == "length",
        )

    def continued(self, policy: Policy) -> Conversation:
        """After the rule was asked: with the user's next turn, or over."""
        if self.is_over:
            return self
        following = self.following()
        return replace(self, is_over=True) if following is None else self.told(policy, following)

    def following(self) -> NextTurn | None:
        """What the rule says to the policy's turns so far."""
        rule = self.request.turns
        return None if rule is None else rule.next(self.request.prompt, self.readings)

    def told(self, policy: Policy, said: NextTurn) -> Conversation:
        """After a turn of the user: its images, then its text, in the words of the chat template."""
        slots = tuple(ImageSlot(i) for i in range(len(said.images)))
        content = [part for part in (said.opening, *slots, said.text) if part != ""]
        ids = policy.encode_turn(content, said.images).ids
        first = len(self.request.prompt.images) + len(self.images)
        turn = Turn(
            role="user", span=Span(self.length, self.length + len(ids)), text=said.opening + said.text,
            images=tuple(range(first, first + len(said.images))), boxes=said.boxes,
        )  # fmt: skip
        return replace(
            self, pieces=(*self.pieces, ids), logprobs=(*self.logprobs, np.zeros(len(ids), np.float32)),
            turns=(*self.turns, turn), images=(*self.images, *said.images),
        )  # fmt: skip

    def rollouts(self) -> list[Rollout]:
        """The path as a Rollout, once for every branch of the levels it did not reach.

        Those levels fork at its end: the copies share all tokens, and the token tree holds them once.
        """
        missing = self.request.branches[len(self.branch) :]
        said = [turn for turn in self.turns if turn.role == "assistant"]
        rollout = Rollout(
            prompt=self.request.prompt, branch=self.branch, prompt_ids=self.prompt.ids,
            ids=np.concatenate(self.pieces),
            sampled=np.concatenate(
                [np.full(len(ids), turn.role == "assistant") for ids, turn in zip(self.pieces, self.turns, strict=True)]
            ),
            logprobs=np.concatenate(self.logprobs), text="\n".join(turn.text for turn in said), finish=said[-1].finish,
            turns=self.turns, images=self.images, forks=(*self.forks, *[self.length] * len(missing)),
        )  # fmt: skip
        rest = product(*(range(n) for n in missing))
        return [replace(rollout, branch=(*self.branch, *more)) for more in rest]
