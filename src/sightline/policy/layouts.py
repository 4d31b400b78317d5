"""The tensors of the published checkpoints: a rule per family for names and shapes, and the two key layouts.

Qwen2.5-VL was released with `model.embed_tokens`, `model.layers`, `model.norm` and `visual` side by side. Newer files,
and all of Qwen3-VL, have `model.language_model` and `model.visual`, which are the names of the model here.

The rules are written down apart from transformers, whose class is what gets loaded: where the two disagree, a version
of transformers has changed a model, and a test says so before a download fails.
"""

from __future__ import annotations

import re

from sightline.policy.architecture import Architecture, Matrix, Text, Tower

__all__ = ["current_name", "released_name", "tensor_shapes"]

Shapes = dict[str, tuple[int, ...]]

LANGUAGE, VISUAL, HEAD = "model.language_model.", "model.visual.", "lm_head.weight"


def current_name(key: str) -> str:
    """The name of a tensor in the model, whichever of the two layouts its file has.

    Example:
        >>> [current_name(k) for k in ("visual.merger.ln_q.weight", "model.norm.weight", "lm_head.weight")]
        ['model.visual.merger.ln_q.weight', 'model.language_model.norm.weight', 'lm_head.weight']
        >>> current_name("model.visual.merger.norm.bias")
        'model.visual.merger.norm.bias'
    """
    if key.startswith("visual."):
        return "model." + key
    return re.sub(r"^model\.(?!language_model\.|visual\.)", LANGUAGE, key)


def released_name(key: str, family: str) -> str:
    """The name of a tensor in the files that were released first: `current_name` undone for Qwen2.5-VL.

    Example:
        >>> released_name("model.language_model.norm.weight", "qwen2_5_vl")
        'model.norm.weight'
    """
    if family != "qwen2_5_vl":
        return key
    return key.replace(LANGUAGE, "model.", 1).replace(VISUAL, "visual.", 1)


def tensor_shapes(of: Architecture) -> Shapes:
    """Name and shape of every tensor that a whole checkpoint holds; the output head only where it is not tied.

    Example:
        >>> from sightline.policy.architecture import architecture
        >>> from sightline.policy.published import published_config
        >>> shapes = tensor_shapes(architecture(published_config("Qwen/Qwen3-VL-8B-Instruct")))
        >>> len(shapes), shapes["lm_head.weight"]
        (750, (151936, 4096))
    """
    text, vision = of.text, of.vision
    found: Shapes = {
        f"{LANGUAGE}embed_tokens.weight": (text.vocab, text.width),
        f"{LANGUAGE}norm.weight": (text.width,),
    }
    if not text.is_tied:
        found[HEAD] = (text.vocab, text.width)
    for i in range(text.layers):
        found |= _under(f"{LANGUAGE}layers.{i}.", _decoder_layer(text))
    for i in range(vision.layers):
        found |= _under(f"{VISUAL}blocks.{i}.", _vision_block(vision))
    return found | _under(VISUAL, _around_blocks(vision))


def _under(prefix: str, shapes: Shapes) -> Shapes:
    return {prefix + name: shape for name, shape in shapes.items()}


def _linear(name: str, matrix: Matrix) -> Shapes:
    bias: Shapes = {f"{name}.bias": (matrix.outputs,)} if matrix.has_bias else {}
    return {f"{name}.weight": (matrix.outputs, matrix.inputs), **bias}


def _norm(name: str, width: int, *, is_shifted: bool) -> Shapes:
    bias: Shapes = {f"{name}.bias": (width,)} if is_shifted else {}
    return {f"{name}.weight": (width,), **bias}


def _decoder_layer(text: Text) -> Shapes:
    found: Shapes = {}
    for name, matrix in text.matrices.items():
        found |= _linear(f"{'self_attn' if name in ('q_proj', 'k_proj', 'v_proj', 'o_proj') else 'mlp'}.{name}", matrix)
    for name in ("input_layernorm", "post_attention_layernorm"):
        found |= _norm(name, text.width, is_shifted=False)
    if text.has_head_norms:
        for name in ("q_norm", "k_norm"):
            found |= _norm(f"self_attn.{name}", text.head_width, is_shifted=False)
    return found


def _vision_block(tower: Tower) -> Shapes:
    names = {"qkv": "attn.qkv", "proj": "attn.proj", "gate_proj": "mlp.gate_proj"}
    names |= (
        {"up": "mlp.up_proj", "down": "mlp.down_proj"}
        if tower.is_gated
        else {"up": "mlp.linear_fc1", "down": "mlp.linear_fc2"}
    )
    found: Shapes = {}
    for name, matrix in tower.matrices.items():
        found |= _linear(names[name], matrix)
    for name in ("norm1", "norm2"):
        found |= _norm(name, tower.width, is_shifted=not tower.is_gated)
    return found


def _around_blocks(tower: Tower) -> Shapes:
    """Patch embedding, learned positions, the merger, and those of deepstack, which normalise whole cells."""
    patches = (tower.width, tower.channels, tower.frames, tower.patch, tower.patch)
    found: Shapes = {"patch_embed.proj.weight": patches}
    first, second = tower.merger
    if tower.is_gated:
        found |= _norm("merger.ln_q", tower.width, is_shifted=False)
        return found | _linear("merger.mlp.0", first) | _linear("merger.mlp.2", second)
    found |= {"patch_embed.proj.bias": (tower.width,), "pos_embed.weight": (tower.positions, tower.width)}
    mergers = {"merger": tower.width, **{f"deepstack_merger_list.{i}": first.inputs for i in range(tower.mergers - 1)}}
    for name, width in mergers.items():
        found |= _norm(f"{name}.norm", width, is_shifted=True)
        found |= _linear(f"{name}.linear_fc1", first) | _linear(f"{name}.linear_fc2", second)
    return found
