"""LoRA and DoRA through peft: low-rank matrices, and the rows of a few tokens, are trained in place of the weights.

`y = W x + (alpha / rank) B A x` with W frozen, A random and B zero at the start, so that a new adapter changes nothing.
Switched off, it leaves the policy that training started from. With `quantise: nf4` the frozen W of the adapted layers
are stored in four bits (QLoRA).

A checkpoint of such a policy holds the adapter in peft's layout and the name of its base, besides `lora.json` (what
peft does not record) and, where rows are trained, their values in the base.
"""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from sightline.config.sections import Lora as LoraSettings
from sightline.errors import UserError
from sightline.policy.forward import PolicyModule
from sightline.policy.targets import expression

if TYPE_CHECKING:
    from sightline.policy.load import Policy

__all__ = ["LoraSettings", "attach", "merge", "peft_library", "restore", "save_adapter", "train_rows"]

ADAPTER, NOTES, ROWS = "adapter_model.safetensors", "lora.json", "token_rows.safetensors"


def attach(policy: Policy, lora: LoraSettings) -> None:
    """Puts a new adapter on a policy. Its weights are frozen from then on.

    Raises:
        UserError: a library is missing, or the targets name no linear layer.
    """
    peft = peft_library()
    linear = [name for name, m in policy.model.named_modules() if isinstance(m, nn.Linear)]
    targets = expression(linear, lora.targets)
    config = peft.LoraConfig(
        r=lora.rank, lora_alpha=lora.alpha, lora_dropout=lora.dropout, use_dora=lora.dora, target_modules=targets,
        bias="none",
    )  # fmt: skip
    if lora.quantise is not None:
        from sightline.policy.quantise import quantise

        quantise(policy.model, targets)
    _wrap(policy, config)


def train_rows(policy: Policy, tokens: Collection[int]) -> None:
    """Trains the embedding rows of these tokens beside the adapter; output rows too where they are a matrix apart.

    The adapter keeps its values. Rows that are trained already stay as they are.
    """
    import peft

    config = policy.model.peft_config["default"]
    known = next(iter((config.trainable_token_indices or {"": []}).values()))
    ids = sorted({*known, *map(int, tokens)})
    if ids == sorted(known):
        return
    adapter = {name: tensor.clone() for name, tensor in _adapter(policy).items() if ".lora_" in name}
    stock = policy.model.unload()
    layers = ("embed_tokens",) if stock.config.tie_word_embeddings else ("embed_tokens", "lm_head")
    config.trainable_token_indices = dict.fromkeys(layers, ids)
    policy.adapter.model = stock
    _wrap(policy, config)
    peft.set_peft_model_state_dict(policy.model, {**_adapter(policy), **adapter})


def merge(policy: Policy) -> None:
    """Adds the adapter and the trained rows to the weights; the policy is then like one without adapter.

    Weights in four bits are unpacked first: what comes out is the policy that was trained, in its number format.
    """
    if getattr(policy.model, "is_loaded_in_4bit", False):
        from sightline.policy.quantise import unpack

        config, adapter = policy.model.peft_config["default"], {n: t.clone() for n, t in _adapter(policy).items()}
        stock = policy.model.unload()
        unpack(stock)
        policy.adapter.model = stock
        _wrap(policy, config)
        peft_library().set_peft_model_state_dict(policy.model, adapter)
    _replace_model(policy, policy.model.merge_and_unload())


def save_adapter(policy: Policy, folder: Path, state: Mapping[str, Tensor] | None = None) -> None:
    """Writes the adapter in peft's layout and what is needed to load it again.

    Args:
        policy: a policy with an adapter.
        folder: exists.
        state: the tensors of `policy.model` by name, where its parameters are sharded.
    """
    from safetensors.torch import save_file

    config = policy.model.peft_config["default"]
    save_file(_plain(_adapter(policy, state)), folder / ADAPTER, metadata={"format": "pt"})
    base = Path(policy.name).expanduser()
    config.base_model_name_or_path = str(base.resolve()) if base.is_dir() else policy.name
    config.save_pretrained(folder)
    rows = dict(_base_rows(policy))
    if rows:
        save_file(_plain(rows), folder / ROWS)
    notes = {"quantise": "nf4" if getattr(policy.model, "is_loaded_in_4bit", False) else None, "added": policy.added}
    (folder / NOTES).write_text(json.dumps(notes))


def restore(policy: Policy, folder: Path, lora: LoraSettings | None = None) -> None:  # noqa: ARG001
    """Puts the adapter of a folder on its base. What the folder says holds, whatever the recipe asks.

    Raises:
        UserError: a library is missing, or the adapter is damaged or belongs to another model.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    peft = peft_library()
    notes = json.loads((folder / NOTES).read_text()) if (folder / NOTES).exists() else {}
    kind = json.loads((folder / "adapter_config.json").read_text()).get("peft_type")
    if kind != "LORA":
        raise UserError(f"an adapter of kind {kind} is not supported", where=str(folder), hint="LORA is")
    try:
        config = peft.PeftConfig.from_pretrained(str(folder))
        saved = load_file(folder / ADAPTER)
        rows = load_file(folder / ROWS) if (folder / ROWS).exists() else {}
    except (OSError, ValueError, TypeError, SafetensorError) as error:
        raise UserError(f"the adapter cannot be read: {error}", where=str(folder)) from error
    config.inference_mode = False
    _restore_rows(policy, notes.get("added", ()), rows, folder)
    if notes.get("quantise"):
        from sightline.policy.quantise import quantise

        quantise(policy.model, config.target_modules)
    _wrap(policy, config)
    _check(_adapter(policy), saved, folder)
    peft.set_peft_model_state_dict(policy.model, saved)


def peft_library() -> Any:
    """peft.

    Raises:
        UserError: it is missing.
    """
    # peft imports bitsandbytes where it is installed, and without CUDA that warns of a kernel that nobody asked for
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    try:
        import peft
    except ImportError as error:
        raise UserError(
            "LoRA needs the library peft", where="model.lora", hint="pip install 'sightline[train]'"
        ) from error
    return peft


def _wrap(policy: Policy, config: Any) -> None:
    """The policy's model inside peft's; adapters in the number format of the weights, random numbers put back."""
    import peft

    from sightline.policy.token_rows import use_token_rows

    stock = policy.model
    dtype = stock.get_input_embeddings().weight.dtype
    config.base_model_name_or_path = None  # peft compares it with the folder that the model was read from
    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
        # peft asks the model by a name that transformers has given up
        warnings.filterwarnings("ignore", message="`is_gradient_checkpointing`", category=FutureWarning)
        wrapped = peft.get_peft_model(stock, config, autocast_adapter_dtype=False)
    for parameter in wrapped.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.to(dtype)
    use_token_rows(wrapped)
    _replace_model(policy, wrapped)


def _replace_model(policy: Policy, model: Any) -> None:
    device = policy.module.bias.device
    policy.adapter = type(policy.adapter)(model)
    policy.module = PolicyModule(policy.adapter, policy.banned)
    policy.module.bias = policy.module.bias.to(device)


def _adapter(policy: Policy, state: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
    """The tensors of the adapter by the names that peft writes."""
    import peft

    given = None if state is None else dict(state)
    return peft.get_peft_model_state_dict(policy.model, state_dict=given, save_embedding_layers=False)


def _plain(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}


def _base_rows(policy: Policy) -> Iterator[tuple[str, Any]]:
    """The rows under the trained ones, as the base holds them in memory: a new token's are not in its files."""
    from sightline.policy.token_rows import TokenRows

    for name, module in policy.model.get_base_model().named_modules():
        if isinstance(module, TokenRows) and module.tied_adapter is None:
            layer = "embed_tokens" if "embed_tokens" in name else "lm_head"
            yield f"{layer}.rows", module.trainable_tokens_original["default"]
            yield f"{layer}.ids", torch.tensor(module.token_indices["default"])


@torch.no_grad()
def _restore_rows(policy: Policy, added: Collection[str], rows: Mapping[str, Tensor], folder: Path) -> None:
    from sightline.policy.focus import adopt_token

    for token in added:
        adopt_token(policy, token, where=str(folder))
    for layer, module in (
        ("embed_tokens", policy.model.get_input_embeddings()), ("lm_head", policy.model.get_output_embeddings()),
    ):  # fmt: skip
        if f"{layer}.rows" in rows:
            weight = module.weight
            weight[rows[f"{layer}.ids"].to(weight.device)] = rows[f"{layer}.rows"].to(weight)


def _check(expected: Mapping[str, Tensor], saved: Mapping[str, Tensor], folder: Path) -> None:
    problems = [
        *(f"missing: {n}" for n in sorted(expected.keys() - saved.keys())),
        *(f"unexpected: {n}" for n in sorted(saved.keys() - expected.keys())),
        *(
            f"{n} is {tuple(saved[n].shape)}, not {tuple(expected[n].shape)}"
            for n in sorted(expected.keys() & saved.keys()) if expected[n].shape != saved[n].shape
        ),
    ]  # fmt: skip
    if problems:
        more = f" and {len(problems) - 4} more" if len(problems) > 4 else ""
        raise UserError("the adapter does not fit its base; " + "; ".join(problems[:4]) + more, where=str(folder))
