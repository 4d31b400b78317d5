"""Is the final answer right?"""

from __future__ import annotations

from collections.abc import Sequence

from sightline.answers.extract import final_answer
from sightline.answers.judge import Judge, JudgeRequest, Verdict
from sightline.answers.match import is_match
from sightline.types import Reading, Record, Score

__all__ = ["accuracies", "accuracy"]


def accuracies(readings: Sequence[Reading], record: Record, judge: Judge | None = None) -> list[Score]:
    """Accuracy of several replies to one record: rules first, one call of the judge for what they leave open.

    Example:
        >>> record = Record(id="a", question="Color?", answer="red")
        >>> [s.value for s in accuracies([Reading(text="", answer="Red."), Reading(text="", answer="reddish")], record)]
        [1.0, 0.0]
    """
    answers = [final_answer(reading) for reading in readings]
    matches = [is_match(answer, record) for answer in answers]
    open_answers = list(dict.fromkeys(a for a, m in zip(answers, matches, strict=True) if not m.decided))
    verdicts: dict[str, Verdict] = {}
    if judge is not None and open_answers:
        requests = [_request(answer, record) for answer in open_answers]
        verdicts = dict(zip(open_answers, judge.judge(requests), strict=True))
    return [
        Score(match.value, match.why) if match.decided else _judged(verdicts.get(answer))
        for answer, match in zip(answers, matches, strict=True)
    ]


def accuracy(reading: Reading, record: Record, judge: Judge | None = None) -> Score:
    """1 if the final answer of a reply is right, 0 if not; range [0, 1].

    Rules by `record.answer_kind` decide first; what they leave open goes to the judge. Without a judge, or if it
    fails, the score is masked. An empty answer is wrong, and containing the answer is not being the answer.

    Example:
        >>> record = Record(id="a", question="Which?", answer="B", answer_kind="option", options=("a cat", "a dog"))
        >>> accuracy(Reading(text="", answer="The answer is (B)"), record)
        Score(value=1.0, why='B', masked=False)
    """
    return accuracies([reading], record, judge)[0]


def _request(answer: str, record: Record) -> JudgeRequest:
    return JudgeRequest(
        kind="answer",
        question=record.question,
        reference=record.answer,
        candidate=answer,
        record_id=record.id,
        answer_kind=record.answer_kind,
        options=record.options,
    )


def _judged(verdict: Verdict | None) -> Score:
    if verdict is None:
        return Score(0.0, "rules leave it open and there is no judge", masked=True)
    if verdict.failed or verdict.value is None:
        return Score(0.0, f"judge failed: {verdict.why}", masked=True)
    return Score(verdict.value, f"judge: {verdict.why}")
