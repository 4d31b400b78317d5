"""An exported folder is the policy: loaded by this library, by transformers and by peft it computes the same logits."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from conftest import FAMILIES
from sightline.config.sections import Lora
from sightline.errors import SightlineError, UserError
from sightline.policy.export import (
    adapter_limits,
    empty_folder,
    export_adapter,
    export_merged,
    name_base,
    prompt_logits,
    verify,
)
from sightline.policy.load import Policy, load_policy


def folder(tmp_path: Path) -> Path:
    empty_folder(tmp_path / "out")
    return tmp_path / "out"


def with_adapter(checkpoint: Path, **settings: Any) -> Policy:
    """A policy whose adapter does something: B of a new one is zero."""
    with torch.random.fork_rng():
        torch.manual_seed(0)  # A starts at random
        policy = load_policy(checkpoint, lora=Lora(rank=4, **settings))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in policy.model.named_parameters():
            if "lora_B" in name:
                parameter.copy_(0.05 * torch.randn(parameter.shape, generator=generator))
    return policy


def stock(family: str) -> Any:
    import transformers

    names = {"qwen2_5_vl": "Qwen2_5_VLForConditionalGeneration", "qwen3_vl": "Qwen3VLForConditionalGeneration"}
    return getattr(transformers, names[family])


def logits_of(model: Any, policy: Policy) -> torch.Tensor:
    """The check prompt's logits by another model with this policy's eyes and words."""

    class Wearing:
        def __getattr__(self, name: str) -> Any:
            return model if name == "model" else getattr(policy, name)

    return prompt_logits(Wearing())  # type: ignore[arg-type]


@pytest.mark.parametrize("family", FAMILIES)
def test_whole_weights_come_back_bit_by_bit(family: str, checkpoints: dict[str, Path], tmp_path: Path) -> None:
    policy, out = load_policy(checkpoints[family]), folder(tmp_path)
    before = prompt_logits(policy)
    found = verify(out, export_merged(policy, out, dtype="float32"), dtype="float32")
    assert found.difference == 0
    assert found.tokens == len(before)
    again = logits_of(stock(family).from_pretrained(out), policy)
    torch.testing.assert_close(again, before, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_keys_are_those_of_the_published_files(family: str, checkpoints: dict[str, Path], tmp_path: Path) -> None:
    policy, out = load_policy(checkpoints[family]), folder(tmp_path)
    export_merged(policy, out, dtype="float32")
    keys = set(load_file(out / "model.safetensors"))
    wanted = {
        "qwen2_5_vl": {"model.embed_tokens.weight", "visual.merger.ln_q.weight"},
        "qwen3_vl": {"model.language_model.embed_tokens.weight", "model.visual.merger.norm.weight"},
    }
    assert wanted[family] <= keys
    assert "lm_head.weight" not in keys  # tied


def test_bf16_is_what_is_written_and_what_is_compared(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    policy, out = load_policy(checkpoints["qwen3_vl"]), folder(tmp_path)
    exact = prompt_logits(policy)
    rounded = export_merged(policy, out, dtype="bfloat16")
    assert 0 < (rounded - exact).abs().max() < 1
    assert {t.dtype for t in load_file(out / "model.safetensors").values()} == {torch.bfloat16}
    assert json.loads((out / "config.json").read_text())["dtype"] == "bfloat16"
    assert verify(out, rounded, dtype="bfloat16").difference == 0


def test_large_models_are_cut_into_shards(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    policy, out = load_policy(checkpoints["qwen3_vl"]), folder(tmp_path)
    logits = export_merged(policy, out, dtype="float32", shard=100_000)
    index = json.loads((out / "model.safetensors.index.json").read_text())
    assert len(set(index["weight_map"].values())) > 2
    assert verify(out, logits, dtype="float32").difference == 0


def test_processor_files_are_copied_unchanged(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    source = checkpoints["qwen2_5_vl"]
    policy, out = load_policy(source), folder(tmp_path)
    export_merged(policy, out, dtype="float32")
    for name in ("preprocessor_config.json", "tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        assert (out / name).read_bytes() == (source / name).read_bytes()


def test_an_added_token_travels_along(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    from sightline.credit.config import FocusConfig
    from sightline.policy.focus import add_focus_token, token_id

    policy, out = load_policy(checkpoints["qwen3_vl"]), folder(tmp_path)
    number = add_focus_token(policy, FocusConfig(token="<LookHere>"))
    logits = export_merged(policy, out, dtype="float32")
    again = load_policy(out)
    assert token_id(again, "<LookHere>") == number
    row = policy.model.get_input_embeddings().weight[number]
    assert torch.equal(again.model.get_input_embeddings().weight[number], row)
    assert verify(out, logits, dtype="float32").difference == 0


@pytest.mark.parametrize("family", FAMILIES)
def test_a_merged_adapter_computes_what_base_and_adapter_computed(
    family: str, checkpoints: dict[str, Path], tmp_path: Path
) -> None:
    policy, out = with_adapter(checkpoints[family]), folder(tmp_path)
    together, base = prompt_logits(policy), prompt_logits(load_policy(checkpoints[family]))
    assert (together - base).abs().max() > 0.1
    merged = export_merged(policy, out, dtype="float32")
    torch.testing.assert_close(merged, together, atol=1e-4, rtol=1e-4)
    assert not (out / "adapter_config.json").exists()
    assert verify(out, merged, dtype="float32").difference == 0


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")  # peft asks by the old name
@pytest.mark.parametrize("family", FAMILIES)
def test_peft_loads_the_exported_adapter(family: str, checkpoints: dict[str, Path], tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    policy, out = with_adapter(checkpoints[family]), folder(tmp_path)
    logits = export_adapter(policy, out)
    assert verify(out, logits, dtype="float32").difference < 1e-5
    base = stock(family).from_pretrained(checkpoints[family])
    again = logits_of(peft.PeftModel.from_pretrained(base, str(out)).eval(), policy)
    torch.testing.assert_close(again, logits, atol=1e-5, rtol=1e-5)
    assert not (out / "model.safetensors").exists()


def test_the_base_of_an_adapter_can_be_renamed(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    policy, out = with_adapter(checkpoints["qwen3_vl"]), folder(tmp_path)
    export_adapter(policy, out)
    name_base(out, "Qwen/Qwen3-VL-2B-Instruct")
    assert json.loads((out / "adapter_config.json").read_text())["base_model_name_or_path"].startswith("Qwen/")


def test_what_serving_engines_do_not_take_is_said(checkpoints: dict[str, Path]) -> None:
    assert adapter_limits(load_policy(checkpoints["qwen3_vl"])) == []
    assert adapter_limits(with_adapter(checkpoints["qwen3_vl"])) == []
    assert "DoRA" in adapter_limits(with_adapter(checkpoints["qwen3_vl"], dora=True))[0]


def test_a_policy_without_adapter_has_none_to_export(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there is no adapter"):
        export_adapter(load_policy(checkpoints["qwen3_vl"]), folder(tmp_path))


def test_a_folder_that_was_changed_behind_our_back_is_noticed(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    policy, out = load_policy(checkpoints["qwen3_vl"]), folder(tmp_path)
    logits = export_merged(policy, out, dtype="float32")
    tensors = load_file(out / "model.safetensors")
    name = "model.language_model.layers.1.mlp.down_proj.weight"
    tensors[name] = tensors[name] * 1.5
    save_file(tensors, out / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(SightlineError, match="computes other logits"):
        verify(out, logits, dtype="float32")


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "letter.txt").write_text("dear")
    for taken in (tmp_path / "full", tmp_path / "full" / "letter.txt"):
        with pytest.raises(UserError, match="nothing is ever overwritten"):
            empty_folder(taken)
    (tmp_path / "empty").mkdir()
    empty_folder(tmp_path / "empty")
