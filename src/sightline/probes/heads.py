"""Which decoder layers and heads a probe reads, once the model is known."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from sightline.errors import UserError
from sightline.methods.probes import Heads, Layers
from sightline.policy.readout import resolve_layers

if TYPE_CHECKING:
    from sightline.policy.load import Policy

__all__ = ["Chosen", "choose_heads", "named_layers", "read_heads"]


@dataclass(frozen=True, slots=True)
class Chosen:
    """Layers by number, and the heads read of each; all heads of a layer that is not named."""

    layers: tuple[int, ...]
    heads: Mapping[int, tuple[int, ...]] | None = None


def choose_heads(
    policy: Policy, layers: Layers = (-1,), heads: Heads | None = None, heads_file: str | None = None
) -> Chosen:
    """What a probe's fields mean for this model; single heads win over layers.

    Raises:
        UserError: a layer or head that the model does not have, or an empty choice.
    """
    text = policy.model.config.text_config
    if heads is None and heads_file is not None:
        heads = read_heads(heads_file)
    if heads is None:
        chosen = resolve_layers(named_layers(layers, text.num_hidden_layers), text.num_hidden_layers)
        if not chosen:
            raise UserError("no layer is chosen", where="layers")
        return Chosen(tuple(sorted(chosen)))
    count, by_layer = text.num_attention_heads, {}
    for layer, head in heads:
        if not 0 <= head < count:
            raise UserError(f"head {head} of a model with {count} heads", where="heads", hint=f"0 to {count - 1}")
        by_layer.setdefault(resolve_layers((layer,), text.num_hidden_layers)[0], set()).add(head)
    if not by_layer:
        raise UserError("no head is chosen", where="heads")
    return Chosen(tuple(sorted(by_layer)), {layer: tuple(sorted(own)) for layer, own in by_layer.items()})


def named_layers(layers: Layers, count: int) -> tuple[int, ...]:
    """The numbers a choice of layers stands for in a model with `count` of them.

    Example:
        >>> named_layers("last_third", 28), named_layers("last_third", 3), named_layers((-1, 0), 28)
        ((17, 18, 19, 20, 21, 22, 23, 24, 25, 26), (1,), (-1, 0))
    """
    if layers == "all":
        return tuple(range(count))
    if layers == "last_third":
        # the final layer serves the next token and is left out, unless there is no other
        return tuple(range(max(count - 1 - math.ceil(count / 3), 0), count - 1)) or (0,)
    return layers


def read_heads(path: str) -> Heads:
    """The pairs (layer, head) of a list that `sightline attention calibrate` wrote.

    Raises:
        UserError: the file is missing or holds no such list.
    """
    hint = "sightline attention calibrate MODEL DATA writes one"
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError("the list of heads does not exist", where=path, hint=hint) from None
    except (OSError, ValueError) as error:
        raise UserError(f"not a list of heads: {error}", where=path, hint=hint) from error
    pairs = content.get("heads") if isinstance(content, dict) else None
    if not isinstance(pairs, list) or not all(_is_pair(pair) for pair in pairs):
        raise UserError("not a list of heads: 'heads' should hold pairs of layer and head", where=path, hint=hint)
    return tuple((layer, head) for layer, head in pairs)


def _is_pair(value: object) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(type(number) is int for number in value)
