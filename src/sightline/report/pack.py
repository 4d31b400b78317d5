"""A row of `rollouts.jsonl` as the page embeds it: no paths, tokens as columns, long texts cut, maps thinned."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sightline.report.maps import thinned
from sightline.report.rows import file_stem

__all__ = ["image_keys", "pack_group"]

MAX_TOKENS = 3000
MAX_TEXT = 12_000
MAX_BOXES = 100
NEAR = 8  # characters that tokens without a readable piece of their own may stand for


def pack_group(row: Mapping[str, Any], *, map_values: int = 65_536) -> dict[str, Any]:
    """What the page shows of one group.

    Args:
        row: a line of `rollouts.jsonl`; what a method did not ask for may be absent from it.
        map_values: values that each map of attention keeps at most.
    """
    record = dict(row["record"])
    record["images"] = [_image(image) for image in record.get("images") or ()]
    reference = dict(row["reference"]) if row.get("reference") else None
    if reference:
        reference["text"] = _cut(reference.get("text") or "")
    packed = {"step": row["step"], "record": record, "reference": reference, "target": row.get("target")}
    return packed | {"rollouts": [_rollout(rollout, map_values) for rollout in row.get("rollouts") or ()]}


def image_keys(group: Mapping[str, Any]) -> list[str]:
    """The pictures a packed group shows, in the order of their weight: the record's own first."""
    images = list(group["record"]["images"])
    for rollout in group["rollouts"]:
        images += [*rollout["images"], *(image for shown in rollout["pictures"].values() for image in shown)]
    return list(dict.fromkeys(image["key"] for image in images))


def _rollout(rollout: Mapping[str, Any], map_values: int) -> dict[str, Any]:
    kept = ("stream", "branch", "finish", "answer", "problems", "terms", "total", "is_masked", "advantage")
    packed = {name: rollout.get(name) for name in kept}
    tokens = rollout.get("tokens") or []
    turns = [turn for turn in rollout.get("turns") or () if isinstance(turn, dict)]
    spans = _character_spans(rollout.get("text") or "", tokens, turns)
    packed["text"] = _cut(rollout.get("text") or "")
    packed["prefix"] = _cut((rollout.get("text") or "")[: spans[0][0]] if spans else "", 200)
    packed["boxes"] = [_box(box, spans) for box in rollout.get("boxes") or () if isinstance(box, dict)][:MAX_BOXES]
    packed["images"] = [_image(image) for image in rollout.get("images") or () if isinstance(image, dict)]
    packed["turns"] = [_turn(turn) for turn in turns]
    packed["tokens"] = _tokens(tokens[:MAX_TOKENS], turns) | {"left_out": max(0, len(tokens) - MAX_TOKENS)}
    packed["forks"] = rollout.get("forks") or []
    packed["parts"] = rollout.get("parts") or {}
    packed["maps"] = {name: thinned(values, map_values) for name, values in (rollout.get("maps") or {}).items()}
    for name in ("probes", "effects"):
        packed[name] = {key: values[:MAX_TOKENS] for key, values in (rollout.get(name) or {}).items()}
    shown = rollout.get("pictures") or {}
    packed["pictures"] = {name: [_image(image) for image in images] for name, images in shown.items()}
    return packed


def _turn(turn: Mapping[str, Any]) -> dict[str, Any]:
    """A turn; the text of the policy's own stands in its tokens."""
    text = _cut(turn.get("text") or "") if turn.get("role") == "user" else ""
    rest = {name: turn.get(name) or [] for name in ("images", "boxes")}
    told = {name: turn.get(name) for name in ("role", "action", "span", "finish")}
    return {**told, "text": text, **rest}


def _tokens(tokens: Sequence[Mapping[str, Any]], turns: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Columns. The tokens of a user's turn (among them one for each visual cell) are told by its text and images."""
    told = [range(*turn["span"]) for turn in turns if turn.get("role") == "user" and "text" in turn]
    texts = [_cut(token.get("text") or "", 200) for token in tokens]
    advantages = [token.get("advantage") for token in tokens]
    sampled = {a for a, token in zip(advantages, tokens, strict=True) if token.get("sampled", True)}
    columns = {
        "text": ["" if any(i in span for span in told) else text for i, text in enumerate(texts)],
        "logprob": _column(tokens, "logprob"),
        "advantage": sampled.pop() if len(sampled) == 1 else advantages,
        "inserted": [i for i, token in enumerate(tokens) if not token.get("sampled", True)],
    }
    if any("entropy" in token for token in tokens):
        columns["entropy"] = _column(tokens, "entropy")
    return columns


def _column(tokens: Sequence[Mapping[str, Any]], name: str) -> list[float | None]:
    return [None if token.get(name) is None else round(token[name], 3) for token in tokens]


def _box(box: Mapping[str, Any], spans: Sequence[tuple[int, int]]) -> dict[str, Any]:
    """A box with the tokens that write it."""
    start, end = box.get("span") or (0, 0)
    inside = [i for i, (a, b) in enumerate(spans[:MAX_TOKENS]) if a < b and a < end and start < b]
    kept = {name: box.get(name) for name in ("box", "iou", "is_valid", "problems", "image")}
    return kept | {"tokens": [inside[0], inside[-1] + 1] if inside else None}


def _character_spans(text: str, tokens: Sequence[Mapping[str, Any]], turns: Sequence[Mapping[str, Any]]) -> list:
    """Characters of the rollout's text that each token covers; a token that the text does not show covers none."""
    starts = {turn["span"][0]: turn.get("text") or "" for turn in turns if turn.get("role") == "assistant"}
    inserted = {i for turn in turns if turn.get("role") == "user" for i in range(*turn["span"])}
    first = next((token["text"] for token in tokens if token.get("text")), "")
    at = max(0, text.find(first))  # behind a forced prefix
    spans = []
    for i, token in enumerate(tokens):
        if i and starts.get(i):
            at = max(at, text.find(starts[i], at))
        piece = token.get("text") or ""
        start = text.find(piece, at, at + len(piece) + NEAR) if piece and i not in inserted else -1
        at = max(at, start)
        spans.append((at, at if start < 0 else at + len(piece)))
        at = spans[-1][1]
    return spans


def _image(image: Mapping[str, Any]) -> dict[str, Any]:
    return {"key": file_stem(str(image.get("digest"))), "width": image.get("width"), "height": image.get("height")}


def _cut(text: str, length: int = MAX_TEXT) -> str:
    return text if len(text) <= length else text[:length] + f" … ({len(text) - length} more characters)"
