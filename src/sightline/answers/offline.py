"""The offline judge: deterministic agreement of two texts, without a model and without a network.

Consistency: both texts are read into claims (`text_claims`), the claims are compared (`agreement`), and the rubric of
iVGR (arXiv 2605.31096) gives the level. A box is a location claim: in the coordinate frame of the request it names the
3 x 3 cells that an honest speaker could name, so the right region agrees with it and a wrong one contradicts it. A
reference that states nothing (a box and no words) cannot be confirmed, so nothing earns more than 0 beside it.

Answers: rules first; where they leave an open answer undecided, two answers are the same if the same content words
remain after synonyms are unified and words of the question are dropped.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

from sightline.answers.agreement import Agreement, agreement
from sightline.answers.english import ENGLISH
from sightline.answers.judge import JudgeRequest, JudgeStats, RulesJudge, Verdict
from sightline.answers.lexicon import Lexicon
from sightline.answers.text_claims import claims_of, given_by
from sightline.answers.words import placeholder, sentences
from sightline.geometry.frames import Frame
from sightline.language.parse import read
from sightline.types import Box, Size

__all__ = ["OfflineJudge", "agreement_of_texts"]

MAX_CHARACTERS = 20_000  # of one text; what lies beyond is not read
_CONTENT = frozenset(("attribute", "noun", "number", "region", "unknown", "not", "no", "relation"))


class OfflineJudge:
    """Judges by word lists; the same request always gets the same verdict.

    Example:
        >>> judge = OfflineJudge()
        >>> request = JudgeRequest(
        ...     kind="consistency", question="What color is the mark on the red square?",
        ...     reference="The red square is at the top left. The mark on it is green.",
        ...     candidate="In the upper left corner there's a crimson square carrying a green dot.")
        >>> judge.judge([request])
        [Verdict(value=1.0, why='agrees: red square at the top left, mark green', failed=False, cached=False)]
        >>> judge.close()
    """

    def __init__(self, lexicon: Lexicon = ENGLISH, *, math_timeout: float = 5.0) -> None:
        self.lexicon = lexicon
        self._rules = RulesJudge(math_timeout=math_timeout)
        self._stats = JudgeStats()

    def judge(self, requests: Sequence[JudgeRequest]) -> list[Verdict]:
        started = time.monotonic()
        verdicts = [self._consistency(r) if r.kind == "consistency" else self._answer(r) for r in requests]
        self._stats.count(verdicts, started)
        return verdicts

    def _consistency(self, request: JudgeRequest) -> Verdict:
        found = agreement_of_texts(
            request.reference,
            request.candidate,
            request.question,
            lexicon=self.lexicon,
            frame=request.frame,
            size=request.size,
        )
        if found is None:
            # No failure: that would mask every reply to this record for as long as it has this reference.
            return Verdict(value=0.0, why="the reference states nothing that can be checked")
        return Verdict(value=found.level, why=found.why)

    def _answer(self, request: JudgeRequest) -> Verdict:
        ruled = self._rules.ruled(request)
        if ruled is not None:
            return ruled
        question = _content(request.question, self.lexicon)
        wanted = _content(request.reference, self.lexicon)
        found = _content(request.candidate, self.lexicon) - (question - wanted)
        same = bool(wanted) and found == wanted
        return Verdict(value=float(same), why="same content words" if same else "different content words")

    def stats(self) -> dict[str, float]:
        return self._stats.as_dict()

    def close(self) -> None:
        self._rules.close()


def agreement_of_texts(
    reference: str,
    candidate: str,
    question: str = "",
    *,
    lexicon: Lexicon = ENGLISH,
    frame: Frame | None = None,
    size: Size | None = None,
) -> Agreement | None:
    """Compare two reasoning texts; None if the reference claims nothing beyond the question.

    Args:
        reference: taken as true; may hold boxes in the frame.
        candidate: may hold boxes too.
        question: what both are about; its objects may be referred to and earn nothing.
        lexicon: the words to know.
        frame: coordinate frame of the boxes.
        size: size of the image in original pixels.
    """
    given = given_by(question, lexicon)
    claims = []
    for text in (reference, candidate):
        marked, boxes = _marked(text[:MAX_CHARACTERS], frame, size)
        claims.append(claims_of(marked, lexicon, boxes=boxes, size=size, given=given))
    mine, theirs = claims
    # A reference that agrees with itself in nothing has nothing to agree with.
    return agreement(mine, theirs, lexicon) if agreement(mine, mine, lexicon).agreed else None


def _marked(text: str, frame: Frame | None, size: Size | None) -> tuple[str, list[Box | None]]:
    """The text with a placeholder for each box, and the boxes in original pixels."""
    text = text.replace("\ue000", " ")
    neutral = frame or Frame("relative_1000", 28, 784, 784)
    reading = read(text, neutral, [size] if size else [])
    parts, boxes, end = [], [], 0
    for found in reading.boxes:
        if found.span.start < end:
            continue
        parts += [text[end : found.span.start], placeholder(len(boxes))]
        is_usable = frame is not None and size is not None and found.is_valid and found.image == 0
        boxes.append(found.box if is_usable else None)
        end = found.span.end
    return "".join(parts) + text[end:], boxes


def _content(text: str, lexicon: Lexicon) -> frozenset[str]:
    """Canonical content words of a short text."""
    words = [w for found, _ in sentences(text[:MAX_CHARACTERS], lexicon) for w in found if w.kind in _CONTENT]
    dull = {"on", "has"}
    return frozenset(w.value or w.text for w in words if (w.value or w.text) not in dull)
