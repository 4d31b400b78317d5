"""Every metric a run logs, `area/name`, with the sentence that says what it is. The page shows it on hover."""

from __future__ import annotations

import re
from dataclasses import dataclass

from sightline.evaluate.metrics import METRICS as EVALUATION_METRICS

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
    Metric("credit/{stream}/intra", "Mean size of the term that compares {stream} rollouts of like box area (SRPO)."),
    Metric("credit/{stream}/inter", "Mean size of the term that favours the best bin of box areas (SRPO)."),
    Metric("credit/{stream}/box_area", "Mean area of the boxes of {stream} rollouts, as a share of the image."),
    Metric("credit/{stream}/no_box_share", "Share of {stream} rollouts without a usable box."),
    Metric("credit/{stream}/no_box_reward", "Mean reward of {stream} rollouts without a usable box."),
    Metric("credit/{stream}/bin_{bin}_share", "Share of {stream} rollouts whose box lies in bin {bin} (1: smallest)."),
    Metric("credit/{stream}/bin_{bin}_reward", "Mean reward of {stream} rollouts in bin {bin} of box areas."),
    Metric("credit/{stream}/bin", "Mean bin of {stream} rollouts, 0 without a box."),
    Metric("credit/{stream}/{part}", "Mean size of the part '{part}' of the credit of {stream} rollouts."),
    Metric("probe/{stream}/{name}_region", "Mean attention of {stream} tokens on the gold regions, by '{name}'."),
    Metric("probe/{stream}/{name}_image", "Mean attention of {stream} tokens on the image outside the regions."),
    Metric("probe/{stream}/{name}_added", "Mean attention of {stream} tokens on images that later turns added."),
    Metric("probe/{stream}/{name}_text", "Mean attention of {stream} tokens on text."),
    Metric("probe/{stream}/{name}_top1", "Mean attention of {stream} tokens on the one visual cell that gets most."),
    Metric(
        "probe/{stream}/{name}_effect",
        "Mean of log p - log p' of {stream} tokens, in nats: what they owe to the image that '{name}' changed.",
    ),
    Metric("probe/{stream}/{name}", "Mean of the probe '{name}' over the sampled tokens of {stream} rollouts."),
    Metric("anchor/loss", "Anchoring: distance of the focus row's attention from the region target, as it is set."),
    Metric("anchor/visual_loss", "Anchoring: what the focus row's attention to the image as a whole adds to the loss."),
    Metric("anchor/kl", "Anchoring: KL divergence of the replies to the policy at the start, in nats per token."),
    Metric("anchor/region_mass", "Share of the focus row's attention to the image on cells that the regions touch."),
    Metric("anchor/cover_mass", "The same, each cell counted by the share of it that the regions cover."),
    Metric("anchor/top_share", "Share of the focus row's attention to the image on its strongest cell; 1 is a sink."),
    Metric("anchor/on_image", "Share of the focus row's attention that falls on the image at all."),
    Metric("anchor/records", "Records whose region the step taught."),
    Metric("anchor/without_regions", "Records of the step left out because they have no gold region."),
    Metric("anchor/too_large", "Records of the step left out because their regions cover too much of the image."),
    Metric("anchor/without_reply", "Lessons of the step without a reply to learn; only their attention is taught."),
    Metric("anchor/{name}", "'{name}' of Anchoring."),
    Metric("loss/total", "The minimised value: clipped surrogate plus the weighted penalties."),
    Metric("loss/policy", "Clipped surrogate, sign turned so that lower is better."),
    Metric("loss/kl", "KL penalty as it enters the loss, weight included."),
    Metric("loss/{term}", "Mean of the loss term '{term}' over the step."),
    Metric(
        "policy/engine_weight", "Mean truncated weight pi_learner / pi_server of a token; 1 where both engines agree."
    ),
    Metric("policy/engine_capped", "Share of tokens whose weight pi_learner / pi_server was truncated."),
    Metric("policy/engine_shift", "Estimated KL of the server's distribution against the learner's, nats per token."),
    Metric("server/alive", "Servers that take work at the end of the step."),
    Metric("server/moved", "Requests of the step that moved from a failing server to another."),
    Metric("server/tokens_per_second", "Tokens sampled by all servers per second of sampling."),
    Metric("server/refresh_seconds", "Seconds in which the servers were given the weights and verified."),
    Metric(
        "server/difference", "Mean difference of log-probs between server and learner on the probe of the last refresh."
    ),
    Metric("policy/kl", "KL divergence to the frozen reference, in nats per sampled token, by the k3 estimate."),
    Metric("policy/dependence", "Mean k3 estimate, in nats, of what the changed image did to a sampled token."),
    Metric("policy/entropy", "Mean entropy of the policy at the sampled tokens, in nats."),
    Metric(
        "policy/ratio", "Mean probability ratio of the new to the sampling policy; 1 without any update in between."
    ),
    Metric("policy/clip_fraction", "Share of sampled tokens whose probability ratio was clipped."),
    Metric("policy/clip_low", "Share of sampled tokens clipped at the lower bound."),
    Metric("policy/clip_high", "Share of sampled tokens clipped at the upper bound."),
    Metric("policy/dual_clip", "Share of sampled tokens with negative advantage bounded by the dual clip."),
    Metric("policy/shift", "k3 estimate of KL(policy that sampled || policy) per token, in nats."),
    Metric("update/grad_norm", "Norm of the gradient before clipping."),
    Metric("update/lr", "Learning rate of the step."),
    Metric("update/tokens", "Tokens of the token trees in the update, every shared token once, padding left out."),
    Metric("update/tokens_unshared", "Tokens the update would compute if every rollout repeated its prompt."),
    Metric(
        "update/mfu",
        "Model FLOPs of the update, nothing counted twice, over its seconds and the dense bf16 peak of the card.",
    ),
    Metric("update/{name}", "'{name}' of the optimiser update."),
    Metric("judge/calls", "Questions put to the judge in the step, cached ones included."),
    Metric("judge/failures", "Questions the judge could not answer; their rollouts are masked, never scored zero."),
    Metric("judge/cache_hits", "Questions answered from the cache in the step."),
    Metric("judge/seconds", "Time the judge took in the step."),
    Metric("judge/{name}", "'{name}' as the judge counts it in the step."),
    Metric("archive/size", "Records with a reference in the archive."),
    Metric("archive/hits", "Share of the records whose streams read the archive in this step that found a reference."),
    Metric("archive/offered", "Rollouts that were good enough to be offered to the archive in this step."),
    Metric("archive/added", "Records that received their first reference in this step."),
    Metric("archive/replaced", "References that a better rollout replaced in this step."),
    Metric("archive/age", "Mean age, in steps, of the references that were read."),
    Metric("archive/{name}", "'{name}' of the archive of references."),
    Metric("sample/rollouts", "Rollouts sampled in this step, discarded ones included."),
    Metric("sample/rounds", "Rounds of sampling; more than one where groups without signal were replaced."),
    Metric("sample/discarded", "Rollouts sampled in vain because their group carried no signal."),
    Metric("sample/tokens_per_second", "Tokens sampled per second of sampling."),
    Metric("sample/{name}", "'{name}' of sampling."),
    Metric("eval/{mode}/{name}", "'{name}' on held-out records, answered in the mode {mode}."),
    Metric("supervised/replies", "Written replies the policy imitated in this step."),
    Metric("supervised/{name}", "'{name}' of supervised training."),
    Metric("seconds/{part}", "Wall-clock seconds of the part '{part}' in one step."),
)

_TITLES = {
    "iou": "Mean IoU",
    "iou_recall": "IoU, recall",
    "iou_union": "IoU of unions",
    "iou_at_50": "IoU of 0.5 or more",
}
_TITLES |= {"region": "Right region", "box_rate": "Writes a box", "truncated": "Cut off", "unanswered": "No answer"}
_PLAIN = {"iou", "iou_recall", "iou_union", "boxes", "tokens"}  # the others are shares


def _measure(name: str, meaning: str, *, is_share: bool) -> Measure:
    return Measure(name, _TITLES.get(name, name.replace("_", " ").capitalize()), meaning, is_share)


MEASURES: tuple[Measure, ...] = tuple(
    _measure(name, meaning, is_share=name not in _PLAIN) for name, meaning in EVALUATION_METRICS.items()
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
    return known.get(name) or _measure(name, f"'{name}' on held-out records.", is_share=False)
