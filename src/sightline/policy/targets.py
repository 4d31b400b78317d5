"""Which linear layers an adapter goes beside: what the recipe's `model.lora.targets` means, before weights load.

`language` is every linear layer of the language model's blocks, `all` those of the vision tower too. A name stands for
the language model's layers of that name; only where there are none, for those of the tower. (Qwen2.5-VL has `gate_proj`
in both, and servers hold no adapter in the tower.)
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence

from sightline.errors import UserError

__all__ = ["chosen", "expression", "layer_name"]

WHERE = "model.lora.targets"
PARTS = ("language_model", "visual")
HEAD = "lm_head"


def expression(linear: Collection[str], targets: str | Sequence[str]) -> str:
    """The expression for whole names of layers that peft takes.

    Args:
        linear: names of the linear layers of a model.
        targets: of the recipe.

    Raises:
        UserError: a name that no layer has, or that of the output matrix.

    Example:
        >>> expression(["language_model.layers.0.q_proj", "visual.blocks.0.qkv"], ["q_proj"])
        '(?=(?:.*\\\\.)?language_model\\\\.)(?:.*\\\\.)?(?:q_proj)'
    """
    if isinstance(targets, str):
        parts = PARTS[:1] if targets == "language" else PARTS
        last = sorted({re.escape(layer_name(n)) for n in linear if _part(n) in parts})
        return rf"(?:.*\.)?(?:{'|'.join(parts)})\..*\.(?:{'|'.join(last)})"
    named: dict[str, list[str]] = {}
    for target in sorted(set(targets)):
        named.setdefault(_part(_layers(linear, target)[0]), []).append(re.escape(target))
    alternatives = [rf"(?=(?:.*\.)?{part}\.)(?:.*\.)?(?:{'|'.join(names)})" for part, names in sorted(named.items())]
    return alternatives[0] if len(alternatives) == 1 else "|".join(f"(?:{a})" for a in alternatives)


def chosen(linear: Collection[str], targets: str | Sequence[str]) -> list[str]:
    """The layers that get an adapter, by their whole names; raises as `expression` does."""
    wanted = re.compile(expression(linear, targets))
    return [name for name in linear if wanted.fullmatch(name)]


def layer_name(name: str) -> str:
    """What a layer is called in its block; a number alone would also be that of a block.

    Example:
        >>> layer_name("visual.blocks.3.attn.qkv"), layer_name("visual.merger.mlp.0")
        ('qkv', 'mlp.0')
    """
    parts = name.split(".")
    return ".".join(parts[-2:] if parts[-1].isdigit() else parts[-1:])


def _layers(linear: Collection[str], target: str) -> list[str]:
    """The layers that a name stands for, all in the same part of the model."""
    if target.rpartition(".")[2] == HEAD:
        raise UserError("the output matrix takes no adapter", where=WHERE, hint="leave lm_head out")
    found = [] if target.isdigit() else [n for n in linear if n == target or n.endswith(f".{target}")]
    for part in PARTS:
        if own := [n for n in found if _part(n) == part]:
            return own
    known = sorted({layer_name(n) for n in linear if _part(n)})
    raise UserError(f"no linear layer is called {target}", where=WHERE, hint="layers here: " + ", ".join(known))


def _part(name: str) -> str:
    return next((part for part in PARTS if f".{part}." in f".{name}"), "")
