"""A small world for methods: records, groups read from texts, and a judge whose verdicts are known."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from sightline.answers.judge import JudgeRequest, Verdict
from sightline.archive import Archive
from sightline.geometry.frames import Frame
from sightline.language.parse import read
from sightline.methods.base import Context
from sightline.types import Box, Group, ImageRef, Message, Prompt, Record, Region, Rollout, Size

SIZE = Size(280, 280)


class StubJudge:
    """Answers by exact match; consistency by a fixed value; either kind, or one candidate, can be made to fail."""

    def __init__(self, consistency: float = 0.675) -> None:
        self.consistency = consistency
        self.failing: set[str] = set()
        self.requests: list[JudgeRequest] = []

    def judge(self, requests: Sequence[JudgeRequest]) -> list[Verdict]:
        self.requests += requests
        return [self._verdict(request) for request in requests]

    def _verdict(self, request: JudgeRequest) -> Verdict:
        if self.failing & {request.kind, request.candidate.strip()}:
            return Verdict(value=None, why="endpoint down", failed=True)
        if request.kind == "answer":
            return Verdict(value=float(request.candidate.strip() == request.reference), why="exact match")
        return Verdict(value=self.consistency, why="stub")

    def asked(self, kind: str) -> list[JudgeRequest]:
        return [request for request in self.requests if request.kind == kind]

    def stats(self) -> dict[str, float]:
        return {}

    def close(self) -> None:
        pass


class World:
    """The image is 280 x 280, where model coordinates equal original pixels."""

    def __init__(self) -> None:
        self.judge: Any = StubJudge()
        self.archive = Archive()
        self.frame = Frame("absolute", 28, 4 * 28**2, 4096 * 28**2)

    def context(self, step: int = 0) -> Context:
        return Context(self.judge, self.archive, self.frame, step)

    def record(self, *boxes: tuple[int, int, int, int], answer: str = "green") -> Record:
        image = ImageRef(size=SIZE, digest="d", pixels=np.zeros((280, 280, 3), np.uint8))
        regions = tuple(Region(box=Box(*box)) for box in boxes)
        return Record(id="s1", question="Color?", answer=answer, answer_kind="text", images=(image,), regions=regions)

    def group(self, record: Record, **texts: Sequence[str]) -> Group:
        """One Rollout per text, of one token per word; a text that ends in an ellipsis was cut."""
        rollouts = []
        for stream, replies in texts.items():
            prompt = Prompt(record=record, stream=stream, messages=(Message("user", ("?",)),), images=record.images)
            for index, text in enumerate(replies):
                count = len(text.split()) + 1
                rollouts.append(
                    Rollout(
                        prompt=prompt,
                        branch=(index,),
                        prompt_ids=np.arange(3),
                        ids=np.arange(count),
                        sampled=np.full(count, True),
                        logprobs=np.zeros(count),
                        text=text.removesuffix("…"),
                        finish="length" if text.endswith("…") else "stop",
                    )
                )
        sizes = [image.size for image in record.images]
        readings = tuple(read(r.text, self.frame, sizes, finish=r.finish) for r in rollouts)
        return Group(record=record, rollouts=tuple(rollouts), readings=readings)


@pytest.fixture
def world() -> World:
    return World()
