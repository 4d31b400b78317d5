"""What is asked of a vLLM server for one turn, and how its reply is read; both forms of asking.

`tokens` (`/inference/v1/generate`): token ids with one placeholder per image, and the images. Every turn of a
conversation can be asked so, and nothing that was sampled is tokenised again.

`chat` (`/v1/chat/completions`): messages, rendered by the server. The first turn only.

Either way the server echoes the ids it read, images expanded, and these must be the ids that the learner will score.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from jaxtyping import Int

from sightline.errors import UserError
from sightline.sampling.server_client import ServerDown
from sightline.types import Finish, ImageSlot

if TYPE_CHECKING:
    from sightline.policy.load import Policy
    from sightline.sampling.base import SamplingSettings
    from sightline.sampling.server_images import PictureBook
    from sightline.sampling.turns import Conversation
    from sightline.types import ImageRef

__all__ = ["PATHS", "Api", "Asked", "Reply", "asked_of", "body", "read_replies", "request_seed"]

Api = Literal["tokens", "chat"]
PATHS: dict[Api, str] = {"tokens": "/inference/v1/generate", "chat": "/v1/chat/completions"}
BANNED = {"tokens": -1e9, "chat": -100.0}
"""Bias of an id that must not be written; the chat form clips what is below -100."""


@dataclass(frozen=True, slots=True)
class Reply:
    """One sampled turn: ids up to and including the one that ended it, and the log-probability of each."""

    ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    finish: Finish
    versions: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """One request: the next turn of a conversation, sampled `n` times.

    Attributes:
        conversation: where it stands.
        ids: everything so far, images expanded.
        images: all images of `ids`, in order.
        settings: how tokens are drawn.
        seed: of the first reply; the i-th takes `seed + i`.
        n: replies.
    """

    conversation: Conversation
    ids: Int[np.ndarray, "tokens"]
    images: tuple[ImageRef, ...]
    settings: SamplingSettings
    seed: int
    n: int

    @property
    def where(self) -> str:
        """Names it in errors."""
        shown = self.conversation.request.prompt
        turn = f", turn {self.conversation.turn + 1}" if self.conversation.turn else ""
        return f"record {shown.record.id}, stream {shown.stream}{turn}"


def request_seed(seed: int, step: int, record: str, stream: str, branch: tuple[int, ...]) -> int:
    """The seed of the first of several replies, keyed by what they are; the i-th adds i (so does vLLM).

    Example:
        >>> request_seed(0, 3, "s1", "textual", ()) == request_seed(0, 3, "s1", "textual", ())
        True
        >>> request_seed(0, 3, "s1", "textual", ()) == request_seed(0, 4, "s1", "textual", ())
        False
    """
    key = hashlib.blake2b(repr((seed, step, record, stream, branch)).encode(), digest_size=8).digest()
    return int.from_bytes(key, "little") >> 2


def asked_of(conversation: Conversation, settings: SamplingSettings, n: int, seed: int, step: int) -> Asked:
    """The request for the next turn of a conversation."""
    shown = conversation.request.prompt
    return Asked(
        conversation=conversation,
        ids=np.concatenate([conversation.prompt.ids, *conversation.pieces]),
        images=(*conversation.prompt.images, *conversation.images),
        settings=settings,
        seed=request_seed(seed, step, shown.record.id, shown.stream, conversation.key),
        n=n,
    )


def body(asked: Asked, api: Api, model: str, policy: Policy, pictures: PictureBook) -> dict[str, Any]:
    """The JSON to send. Nothing is left to the server's defaults, which it may take from the model's folder."""
    settings = asked.settings
    drawn = {
        # a greedy reply is the same every time, and more than one of it is refused
        "n": asked.n if settings.temperature else 1,
        "temperature": settings.temperature, "top_p": settings.top_p, "top_k": 0, "min_p": 0.0,
        "repetition_penalty": 1.0, "presence_penalty": 0.0, "frequency_penalty": 0.0, "seed": asked.seed,
        "max_tokens": settings.max_new_tokens, "min_tokens": 0, "ignore_eos": True,
        "stop_token_ids": sorted(policy.eos),
        "logit_bias": {str(i): BANNED[api] for i in policy.banned},
    }  # fmt: skip
    if api == "tokens":
        return {
            "model": model, "token_ids": _collapsed(asked, policy), "return_token_ids": True,
            "content_parts": [{"type": "image_url", "url": pictures.uri(image)} for image in asked.images],
            "sampling_params": {**drawn, "logprobs": 0, "detokenize": False},
        }  # fmt: skip
    return {
        **drawn, "model": model, "messages": _messages(asked, pictures),
        "add_generation_prompt": not asked.conversation.request.prompt.forced_prefix,
        "continue_final_message": bool(asked.conversation.request.prompt.forced_prefix),
        "logprobs": True, "top_logprobs": 0, "return_token_ids": True, "skip_special_tokens": False,
    }  # fmt: skip


def read_replies(raw: Any, asked: Asked, policy: Policy) -> list[Reply]:
    """The `n` replies of a server.

    Raises:
        UserError: the server read another prompt than ours, records no log-probs, or wrote what it must not.
        ServerDown: the reply is not what was asked for.
    """
    choices = raw.get("choices") if isinstance(raw, Mapping) else None
    if not isinstance(choices, list):
        raise ServerDown("the reply holds no choices")
    _check_echo(_echo(raw, choices), asked)
    wanted = asked.n if asked.settings.temperature else 1
    if len(choices) != wanted:
        raise ServerDown(f"{len(choices)} replies in place of {wanted}")
    try:
        ordered = sorted(choices, key=lambda choice: choice["index"])
        replies = [_read(choice, asked, policy) for choice in ordered]
    except (KeyError, TypeError, AttributeError) as error:
        raise ServerDown(f"the reply cannot be read: {error!r}") from None
    return replies if asked.settings.temperature else replies * asked.n


def _read(choice: Mapping[str, Any], asked: Asked, policy: Policy) -> Reply:
    ids = tuple(int(i) for i in choice["token_ids"] or ())
    content = (choice.get("logprobs") or {}).get("content")
    if content is None:
        raise UserError("the server recorded no log-probs", where=asked.where, hint="see `sightline serve-help RECIPE`")
    logprobs = tuple(float(entry["logprob"]) for entry in content)
    if not ids or len(ids) != len(logprobs) or len(ids) > asked.settings.max_new_tokens:
        raise ServerDown(f"a reply of {len(ids)} tokens with {len(logprobs)} log-probs")
    # vLLM writes -9999 where there is no number
    if not all(math.isfinite(lp) and -9000 < lp <= 1e-4 for lp in logprobs):
        raise ServerDown(f"a log-prob of {min(logprobs):g}..{max(logprobs):g}")
    named = [entry.get("token_id", i) for entry, i in zip(content, ids, strict=True)]
    if named != list(ids):
        raise ServerDown("log-probs of other tokens than those of the reply")
    finish = choice.get("finish_reason")
    if finish not in ("stop", "length"):
        raise ServerDown(f"a reply ended by {finish!r}")
    ends = [at for at, i in enumerate(ids) if i in policy.eos]
    if ends != ([len(ids) - 1] if finish == "stop" else []):
        wrong = (
            f"went on after id {ids[ends[0]]}" if ends[:1] and ends[0] < len(ids) - 1 else f"ended with id {ids[-1]}"
        )
        raise UserError(
            f"a turn of the server {wrong}, for reason {finish!r}; turns end with the first of "
            f"{', '.join(map(str, sorted(policy.eos)))}", where=asked.where, hint="serve the model that is trained",
        )  # fmt: skip
    if forbidden := sorted(set(ids) & set(policy.banned)):
        raise UserError(f"the server wrote id {forbidden[0]}, which is banned", where=asked.where,
                        hint="use a supported version: sightline serve-help RECIPE")  # fmt: skip
    if finish == "length" and len(ids) < asked.settings.max_new_tokens:
        raise UserError(
            f"the server cut a reply at {len(ids)} of {asked.settings.max_new_tokens} tokens: with the prompt's "
            f"{len(asked.ids)} its model length is full", where=asked.where, hint="raise its --max-model-len",
        )  # fmt: skip
    versions = tuple(str(span["version"]) for span in choice.get("weight_versions") or ())
    return Reply(ids, logprobs, finish, versions)


def _echo(raw: Mapping[str, Any], choices: Sequence[Any]) -> Any:
    if raw.get("prompt_token_ids") is not None:
        return raw["prompt_token_ids"]
    return choices[0].get("prompt_token_ids") if choices and isinstance(choices[0], Mapping) else None


def _check_echo(echo: Any, asked: Asked) -> None:
    """The ids that the server read are ours, every one."""
    hint = "serve the same checkpoint with the same pixel limits: sightline serve-help RECIPE"
    if not isinstance(echo, list):
        raise UserError("the server does not say which prompt ids it read", where=asked.where, hint=hint)
    ours = asked.ids.tolist()
    if echo == ours:
        return
    pairs = zip(ours, echo, strict=False)
    at = next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(ours), len(echo)))
    mine, its = (str(x[at]) if at < len(x) else "nothing" for x in (ours, echo))
    raise UserError(
        f"the server read another prompt than ours: at position {at} it has {its}, we have {mine} "
        f"({len(echo)} ids against {len(ours)})", where=asked.where, hint=hint,
    )  # fmt: skip


def _collapsed(asked: Asked, policy: Policy) -> list[int]:
    """Ids with one placeholder per image, which is what the server expands."""
    ids: list[int] = []
    at = 0
    ours, images = asked.ids.tolist(), iter(asked.images)
    while at < len(ours):
        ids.append(ours[at])
        at += math.prod(policy.pixels.grid(next(images))) if ours[at] == policy.image_token else 1
    return ids


def _messages(asked: Asked, pictures: PictureBook) -> list[dict[str, Any]]:
    shown = asked.conversation.request.prompt
    messages: list[dict[str, Any]] = []
    for message in shown.messages:
        parts: list[dict[str, Any]] = []
        for part in message.content:
            if isinstance(part, ImageSlot):
                parts.append({"type": "image_url", "image_url": {"url": pictures.uri(shown.images[part.index])}})
            else:
                parts.append({"type": "text", "text": part})
        messages.append({"role": message.role, "content": parts})
    if shown.forced_prefix:
        messages.append({"role": "assistant", "content": [{"type": "text", "text": shown.forced_prefix}]})
    return messages
