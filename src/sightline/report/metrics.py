"""Every metric a run logs, `area/name`, with the sentence that says what it is. The page shows it on hover."""

from __future__ import annotations

import re
from dataclasses import dataclass

__all__ = ["MEASURES", "METRICS", "Measure", "Metric", "measure", "metric", "sentence"]


@dataclass(frozen=True, slots=True)
class Metric:
    """A metric of a step. `name` may hold places in braces, which the sentence repeats: `reward/{stream}/{term}`."""

    name: str
    sentence: str


@dataclass(frozen=True, slots=True)
class Measure:
    """A measure of an evaluation. `is_share` measures lie in 0..1 and are shown as per cent."""

    name: str
    title: str
    sentence: str
    is_share: bool = True


# The first name that fits wins, so exact names stand above the patterns that would also fit them.
METRICS: tuple[Metric, ...] = (
    Metric("reward/{stream}/total", "Mean weighted sum of all reward terms over the {stream} rollouts of the step."),
    Metric("reward/{stream}/deviation", "Mean standard deviation of the reward within a group of {stream} rollouts."),
    Metric(
        "reward/{stream}/masked", "Share of {stream} rollouts left out because a judge failed on one of their terms."
    ),
    Metric("reward/{stream}/{term}", "Mean of the reward term '{term}', before its weight, over {stream} rollouts."),
    Metric("rollout/{stream}/count", "Number of {stream} rollouts in the step."),
    Metric("rollout/{stream}/tokens", "Mean number of sampled tokens of a {stream} rollout."),
    Metric("rollout/{stream}/truncated", "Share of {stream} rollouts cut by the token limit."),
    Metric("rollout/{stream}/empty_answers", "Share of {stream} rollouts without an answer."),
    Metric("rollout/{stream}/box_rate", "Share of {stream} rollouts that write at least one valid box."),
    Metric("rollout/{stream}/boxes", "Mean number of boxes a {stream} rollout writes."),
    Metric(
        "rollout/{stream}/full_image_boxes", "Share of the boxes of {stream} rollouts that cover nearly all the image."
    ),
    Metric(
        "rollout/{stream}/box_spam", "Share of {stream} rollouts that repeat boxes or write far more than were asked."
    ),
    Metric("rollout/{stream}/invalid_boxes", "Share of the boxes of {stream} rollouts without a positive area."),
    Metric("rollout/{stream}/iou", "Mean over {stream} rollouts of the best overlap of a box with a gold region."),
    Metric(
        "rollout/{stream}/entropy", "Mean entropy of the policy, in nats, at the sampled tokens of {stream} rollouts."
    ),
    Metric("credit/{stream}/flat_groups", "Share of {stream} groups whose rewards are all equal, which teach nothing."),
    Metric("credit/{stream}/masked_groups", "Share of {stream} groups left out because fewer than two rollouts count."),
    Metric("credit/{stream}/advantage", "Mean size of the advantage over the sampled tokens of {stream} rollouts."),
    Metric("loss/total", "The minimised value: clipped surrogate plus the weighted penalties."),
    Metric("loss/policy", "Clipped surrogate, sign turned so that lower is better."),
    Metric("loss/kl", "KL penalty as it enters the loss, weight included."),
    Metric("loss/{term}", "Mean of the loss term '{term}' over the step."),
    Metric("policy/kl", "KL divergence to the frozen reference, in nats per sampled token, by the k3 estimate."),
    Metric("policy/entropy", "Mean entropy of the policy at the sampled tokens, in nats."),
    Metric(
        "policy/ratio", "Mean probability ratio of the new to the sampling policy; 1 without any update in between."
    ),
    Metric("policy/clip_fraction", "Share of sampled tokens whose probability ratio was clipped."),
    Metric("policy/clip_low", "Share of sampled tokens clipped at the lower bound."),
    Metric("policy/clip_high", "Share of sampled tokens clipped at the upper bound."),
    Metric("policy/dual_clip", "Share of sampled tokens with negative advantage bounded by the dual clip."),
    Metric("policy/sampler_gap", "Mean absolute difference between log-probs of the sampler and of the learner."),
    Metric("optim/gradient_norm", "Norm of the gradient before clipping."),
    Metric("optim/lr", "Learning rate of the step."),
    Metric("optim/updates", "Optimiser updates made so far."),
    Metric("judge/calls", "Questions put to the judge in this step, those answered from the cache included."),
    Metric("judge/failures", "Questions the judge could not answer; their rollouts are masked, never scored zero."),
    Metric("judge/cache_hits", "Questions answered from the cache."),
    Metric("judge/seconds", "Time spent waiting for the judge."),
    Metric("archive/size", "Records with a reference in the archive."),
    Metric("archive/hits", "Share of the step's records that found a reference in the archive."),
    Metric("archive/replaced", "References that a better rollout replaced in this step."),
    Metric("archive/age", "Mean age, in steps, of the references that were read."),
    Metric("archive/{name}", "'{name}' of the archive of references."),
    Metric("sampling/tokens", "Tokens sampled in this step."),
    Metric("sampling/tokens_per_second", "Tokens sampled per second."),
    Metric(
        "sampling/groups_drawn", "Groups sampled to fill the step; more than are used when flat ones are drawn again."
    ),
    Metric("sampling/{name}", "'{name}' of the sampler in this step."),
    Metric("tree/tokens", "Tokens computed in the update, every shared token once."),
    Metric("tree/saving", "Tokens of the padded batch divided by tokens of the token tree."),
    Metric("tree/{name}", "'{name}' of the token trees of the step."),
    Metric("memory/peak", "Peak memory of the process, in MiB."),
    Metric("data/epoch", "Passes over the training records so far."),
    Metric("eval/{mode}/{name}", "'{name}' on held-out records, answered in the mode {mode}."),
    Metric("sft/loss", "Mean negative log-probability of the written tokens in supervised training."),
    Metric("sft/{name}", "'{name}' of supervised training."),
    Metric("seconds/{part}", "Wall-clock seconds of the part '{part}' in one step."),
)

MEASURES: tuple[Measure, ...] = (
    Measure("accuracy", "Accuracy", "Share of held-out questions answered correctly."),
    Measure("iou", "Mean IoU", "Mean overlap of the boxes in the reasoning with the gold regions.", is_share=False),
    Measure(
        "region", "Right region", "Share of reasonings that name the part of the image in which the evidence lies."
    ),
    Measure("format", "Format", "Share of replies in the required form: one think block, then one answer block."),
    Measure("box_rate", "Writes a box", "Share of replies with at least one valid box."),
    Measure("tokens", "Tokens", "Mean number of tokens of a reply.", is_share=False),
)


def metric(name: str) -> Metric | None:
    """The definition of `name` with its places filled in; None if nobody defined it.

    Example:
        >>> metric("reward/grounded/format").sentence
        "Mean of the reward term 'format', before its weight, over grounded rollouts."
        >>> metric("what/ever") is None
        True
    """
    for known in METRICS:
        pattern = re.sub(r"\\\{(\w+)\\\}", r"(?P<\1>[^/]+)", re.escape(known.name))
        if found := re.fullmatch(pattern, name):
            return Metric(name, known.sentence.format(**found.groupdict()))
    return None


def sentence(name: str) -> str:
    """What `name` means, in one sentence; says so if it is a metric of the user's own."""
    known = metric(name)
    return known.sentence if known else "A metric that this run logged under a name of its own."


def measure(name: str) -> Measure:
    """The definition of an evaluation measure; unknown ones are shown as plain numbers under their own name."""
    known = {m.name: m for m in MEASURES}
    title = name.replace("_", " ").capitalize()
    return known.get(name) or Measure(name, title, f"'{name}' on held-out records.", is_share=False)
