"""Prompt probe: every prompt renders, ends where the policy begins, and tags survive the tokenizer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from sightline.doctor.finding import Finding
from sightline.types import ImageSlot

if TYPE_CHECKING:
    from sightline.policy.load import Policy
    from sightline.types import Prompt

__all__ = ["MARKUP", "prompt_probe", "round_trip"]

MARKUP = (
    "<think>", "</think>", "<answer>", "</answer>", "<box>[12,30,407,858]</box>", '{"bbox_2d": [12, 30, 407, 858]}',
    "<think> It is here <box>[0,1,10,100]</box> . </think><answer> B </answer>",
)  # fmt: skip
"""Texts that parsers look for in replies."""


def prompt_probe(policy: Policy, prompts: Sequence[Prompt]) -> Finding:
    """Encodes every prompt and reads it back; every piece of markup and every forced prefix too."""
    prefixes = tuple(dict.fromkeys(p.forced_prefix for p in prompts if p.forced_prefix))
    problems = [problem for text in (*MARKUP, *prefixes) if (problem := round_trip(policy, text))]
    problems += _ending(policy)
    for prompt in prompts:
        problems += [f"{prompt.record.id}, {prompt.stream}: {what}" for what in _rendered(policy, prompt)]
    streams = tuple(dict.fromkeys(prompt.stream for prompt in prompts))
    details = tuple(f"{name}: {_shown(policy, next(p for p in prompts if p.stream == name))}" for name in streams)
    values = {"prompts": len(prompts), "streams": list(streams), "problems": len(problems)}
    if problems:
        return Finding(
            level="fail", what=f"{len(problems)} problems: {problems[0]}",
            meaning="the policy would be asked something else than the method means, or its replies be misread",
            command="compare chat_template and tokenizer files of the checkpoint with the published ones",
            details=(*problems[:12], *details), values=values,
        )  # fmt: skip
    forced = f", forced {', '.join(map(repr, prefixes))}" if prefixes else ""
    return Finding(
        level="pass",
        what=f"{len(prompts)} prompts of {', '.join(streams)} render; tags and boxes tokenise and come back{forced}",
        meaning="templates, forced prefixes and the marks that end a turn fit this checkpoint",
        details=details, values=values,
    )  # fmt: skip


def round_trip(policy: Policy, text: str) -> str:
    """What the tokenizer does to a text; empty if it comes back as it was."""
    ids = policy.tokenizer(text, add_special_tokens=False)["input_ids"]
    back = policy.decode(ids)
    if back != text:
        return f"{text!r} comes back as {back!r}"
    pieces = b"".join(policy.pieces(ids)).decode("utf-8", errors="replace")
    return "" if pieces == text else f"the pieces of {text!r} are {pieces!r}"


def _ending(policy: Policy) -> list[str]:
    """The mark that the chat template puts behind a turn is one that sampling stops at."""
    try:
        ids = [int(i) for i in policy.encode_turn(("ok",)).ids]
    except LookupError:  # what the assistant said is not in what the template renders
        return ["the chat template leaves out what the assistant says"]
    opening = policy.tokenizer.decode(ids, skip_special_tokens=False)
    problems = [] if opening.find("ok") > 0 else [f"a second turn of the user renders as {opening!r}"]
    if not set(policy.eos) & set(ids):
        problems.append(f"the chat template ends no turn with one of the ids that stop sampling {policy.eos}")
    return problems


def _rendered(policy: Policy, prompt: Prompt) -> list[str]:
    """What is wrong with one prompt as the policy reads it."""
    encoded = policy.encode(prompt)
    text = policy.tokenizer.decode([int(i) for i in encoded.ids], skip_special_tokens=False)
    problems = []
    for part in (part for message in prompt.messages for part in message.content):
        if not isinstance(part, ImageSlot) and part.strip() not in text:
            problems.append("the question or instruction is not in what the policy reads")
    slots = sum(isinstance(part, ImageSlot) for message in prompt.messages for part in message.content)
    if slots != len(encoded.images):
        problems.append(f"{slots} images in the message, {len(encoded.images)} in the ids")
    if not text.endswith(prompt.forced_prefix):
        problems.append(f"it does not end with the forced prefix {prompt.forced_prefix!r}")
    if text.removesuffix(prompt.forced_prefix).rstrip().endswith(tuple(_marks(policy))):
        problems.append("it ends with a closed turn: the policy is not asked to write")
    return problems


def _marks(policy: Policy) -> list[str]:
    return [str(policy.tokenizer.convert_ids_to_tokens(i)) for i in policy.eos]


def _shown(policy: Policy, prompt: Prompt) -> str:
    """The prompt in one line, visual tokens counted."""
    ids = [int(i) for i in policy.encode(prompt).ids]
    visual = sum(i == policy.image_token for i in ids)
    text = policy.tokenizer.decode([i for i in ids if i != policy.image_token], skip_special_tokens=False)
    return f"{visual} image tokens + " + text.replace("\n", "⏎")
