"""Plain GRPO: streams by template, two terms, and the loss it hands to the learner."""

from __future__ import annotations

from typing import ClassVar

import pytest

from sightline.methods import load_method
from sightline.methods.grpo import GRPO
from sightline.train.scoring import credit, score

GOOD, BAD = "<think>left</think><answer>green</answer>", "<think>left</think><answer>red</answer>"


def test_one_textual_stream_by_default(world) -> None:
    streams = load_method({"name": "grpo"}).streams(world.record())
    assert [(s.name, s.template, s.n) for s in streams] == [("textual", "textual", 5)]


def test_streams_are_named_by_their_template(world) -> None:
    method = load_method({"name": "grpo", "streams": {"direct": {"n": 4}, "grounded": {"loss_weight": 2.0}}})
    streams = method.streams(world.record())
    assert [(s.name, s.template, s.n, s.loss_weight) for s in streams] == [
        ("direct", "direct", 4, 1.0),
        ("grounded", "grounded", 5, 2.0),
    ]


def test_format_and_accuracy(world) -> None:
    method = load_method({"name": "grpo", "weights": {"format": 0.5}})
    group = world.group(world.record(), textual=[GOOD, BAD, "<answer>green</answer>"])
    scored = score(method, [group], world.context())
    assert [s.total for s in scored[0].scores] == [1.5, 0.5, 1.0]
    credited = credit(method, scored)[0]
    assert [c.parts["advantage"] for c in credited.credits] == pytest.approx([1, -1, 0], abs=1e-5)
    assert all(t.why for s in scored[0].scores for t in s.terms.values())


def test_credit_settings_reach_the_advantages(world) -> None:
    group = world.group(world.record(), textual=[GOOD, BAD])
    for how, expected in (("dr_grpo", [0.5, -0.5]), ("rloo", [1, -1])):
        method = load_method({"name": "grpo", "credit": {"how": how}})
        credited = credit(method, score(method, [group], world.context()))[0]
        assert [c.parts["advantage"] for c in credited.credits] == expected


def test_the_loss_is_the_objective_of_the_config() -> None:
    import torch

    from sightline.objectives import policy_loss
    from sightline.policy.batch import FoldedCredit

    class Batch:
        credit = FoldedCredit(
            positive=torch.tensor([0.5, 0.0]), negative=torch.tensor([0.0, -0.5]), weight=torch.tensor([0.5, 0.5])
        )
        paths = None
        old_logprobs = torch.tensor([-1.0, -1.0])
        reference_logprobs = torch.tensor([-2.0, -1.0])
        probes: ClassVar = {}
        progress = 0.0

    class Outputs:
        logprobs = torch.tensor([-0.2, -3.0], requires_grad=True)
        entropies = None
        maps: ClassVar = {}

    method = GRPO(GRPO.Config.model_validate({"objective": {"kl": 0.1, "clip_high": 0.1}}))
    loss = method.loss(Batch(), Outputs())  # pyright: ignore[reportArgumentType]
    expected = policy_loss(Batch(), Outputs(), method.config.objective)  # pyright: ignore[reportArgumentType]
    assert loss.total.item() == expected.total.item()
    assert loss.terms["policy/clip_high"].item() == 0.5
    assert loss.terms["policy/clip_low"].item() == 0.5
