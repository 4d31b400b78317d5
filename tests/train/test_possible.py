"""What cannot be is one line, before any weight is read."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from sightline.config import load_recipe
from sightline.config.sections import Lora
from sightline.errors import UserError
from sightline.policy.load import Policy, load_policy
from sightline.policy.save import save_policy
from sightline.train.distributed import World
from sightline.train.reference import AdapterOff, FrozenCopy
from sightline.train.run import open_run, policy_of
from sightline.train.sharding import sharing

TINY = (
    "--data.records_per_step", "1", "--data.train", "scenes:hard", "--evaluation.n", "1", "--method.objective.kl", "0.1"
)  # fmt: skip


def opened(*words: str) -> Any:
    recipe = load_recipe("grpo", words)
    return policy_of(recipe, _method(recipe), None, _no_weights, World())


def _method(recipe: Any) -> Any:
    from sightline.methods import load_method

    return load_method(recipe.method)


def _no_weights(*_: Any, **__: Any) -> Any:
    pytest.fail("weights were read")


@pytest.fixture
def adapter(policy: Policy, tmp_path: Path) -> Path:
    """A folder with an adapter of rank 4, that has learned something."""
    pytest.importorskip("peft")
    one = load_policy(policy.source, lora=Lora(rank=4, alpha=8))
    with torch.no_grad():
        for parameter in one.model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.01)
    save_policy(one, tmp_path / "adapter")
    return tmp_path / "adapter"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--model.dtype", "float16"), r"model\.dtype: float16 cannot be trained"),
        (("--model.lora.targets", "[q_proj, wq]"), "no linear layer is called wq"),
        (("--model.lora.targets", "[qkv]", "--model.train_vision", "false"), "train_vision: false freezes"),
        (("--model.compile", "true"), "compiled on CUDA only"),
        (("--model.kernels", "liger", "--model.device", "auto"), r"model\.kernels: Liger"),
        (("--model.name", "nowhere/at/all"), "no such folder"),
    ],
)
def test_before_the_weights(words: tuple[str, ...], said: str) -> None:
    if torch.cuda.is_available() and ("--model.compile" in words or "--model.kernels" in words):
        pytest.skip("possible here")
    with pytest.raises(UserError, match=said):
        opened(*words)


@pytest.mark.parametrize(
    ("words", "library", "said"),
    [
        (("--model.lora.rank", "2"), "peft", "LoRA needs the library peft"),
        (("--model.lora.quantise", "nf4"), "bitsandbytes.functional", "four-bit weights need the library"),
        (("--optim.states", "8bit"), "bitsandbytes.functional", "8-bit states need the library"),
    ],
)
def test_missing_libraries_are_told_before_the_weights(
    monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...], library: str, said: str
) -> None:
    if library != "peft":
        pytest.importorskip("peft")
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(UserError, match=said):
        opened(*words)


def test_an_adapter_of_another_shape_is_not_taken_for_the_one_asked_for(adapter: Path) -> None:
    with pytest.raises(
        UserError, match=r"model\.lora: the adapter of .*adapter has rank 4, not 8, alpha 8.0, not 64.0"
    ):
        opened("--model.name", str(adapter), "--model.lora.rank", "8")


def test_an_adapter_whose_base_has_moved(adapter: Path) -> None:
    path = adapter / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "base_model_name_or_path": "/moved/away"}))
    with pytest.raises(
        UserError, match=r"adapter_config\.json: the base of this adapter, /moved/away, .*write its new"
    ):
        opened("--model.name", str(adapter))


@pytest.mark.parametrize("is_new", [True, False])
def test_the_reference_is_the_policy_at_the_start(adapter: Path, policy: Policy, tmp_path: Path, is_new: bool) -> None:
    words = ("--model.name", str(policy.source), "--model.lora.rank", "4") if is_new else ("--model.name", str(adapter))
    with open_run(load_recipe("grpo", (*TINY, *words)), tmp_path / "run") as run:
        assert isinstance(run.learner.reference, AdapterOff if is_new else FrozenCopy)
        assert run.policy.lora


@pytest.mark.parametrize(("states", "dtype", "how"), [("8bit", torch.float32, "ddp"), ("fp32", torch.uint8, "ddp"),
                                                      ("fp32", torch.float32, "fsdp")])  # fmt: skip
def test_auto_cuts_only_what_can_be_cut(
    monkeypatch: pytest.MonkeyPatch, states: str, dtype: torch.dtype, how: str
) -> None:
    monkeypatch.setattr("sightline.train.sharding.SMALL", 3)
    module = nn.Linear(2, 2)
    module.packed = nn.Parameter(torch.zeros(2, dtype=dtype), requires_grad=False)
    held: Any = type("Held", (), {"module": module})()
    assert sharing("auto", held, World(size=2), states=states) == how
