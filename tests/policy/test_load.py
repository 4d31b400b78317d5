"""Loading is strict, quiet, and says what is wrong where."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from conftest import FAMILIES
from sightline.config.sections import Lora
from sightline.errors import UserError
from sightline.policy.load import Policy, load_policy
from sightline.policy.save import save_policy


@pytest.fixture
def copied(checkpoints: dict[str, Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(checkpoints["qwen3_vl"], tmp_path / "copied"))


def edit(folder: Path, name: str, **changes: object) -> None:
    path = folder / name
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.mark.parametrize("family", FAMILIES)
def test_frame_and_bans_come_from_the_checkpoint(checkpoints: dict[str, Path], family: str) -> None:
    policy = load_policy(checkpoints[family])
    assert policy.family == family
    assert policy.frame.convention == {"qwen3_vl": "relative_1000", "qwen2_5_vl": "absolute"}[family]
    assert (policy.frame.factor, policy.frame.min_pixels, policy.frame.max_pixels) == (16, 1024, 9216)
    vocab = policy.model.get_output_embeddings().weight.shape[0]
    assert vocab > len(policy.tokenizer), "the fixture has spare rows"
    assert set(range(len(policy.tokenizer), vocab)) <= set(policy.banned)
    for mark in ("<|image_pad|>", "<|video_pad|>", "<|vision_start|>", "<|vision_end|>", "<|endoftext|>"):
        assert policy.tokenizer.convert_tokens_to_ids(mark) in policy.banned
    assert not set(policy.eos) & set(policy.banned)


def test_pixel_limits_can_be_set(checkpoints: dict[str, Path]) -> None:
    policy = load_policy(checkpoints["qwen3_vl"], min_pixels=2048, max_pixels=4096)
    assert (policy.frame.min_pixels, policy.frame.max_pixels) == (2048, 4096)
    assert policy.pixels.processor.size["longest_edge"] == 4096


@pytest.mark.parametrize("name", ["config.json", "preprocessor_config.json", "model.safetensors"])
def test_a_missing_file_is_named(copied: Path, name: str) -> None:
    (copied / name).unlink()
    with pytest.raises(UserError, match="safetensors" if name.startswith("model") else name):
        load_policy(copied)


def test_an_unsupported_family_is_named(copied: Path) -> None:
    edit(copied, "config.json", model_type="llava")
    with pytest.raises(UserError, match="llava"):
        load_policy(copied)


@pytest.mark.parametrize("kind", [[], {}, None])
def test_a_family_that_is_no_name_is_refused(copied: Path, kind: object) -> None:
    edit(copied, "config.json", model_type=kind)
    with pytest.raises(UserError, match="is not supported"):
        load_policy(copied)


def test_decode_hides_the_turn_marks_only(policy: Policy) -> None:
    ids = policy.tokenizer("<think> a < b</think>naïve <|im_end|>", add_special_tokens=False)["input_ids"]
    assert policy.decode(ids) == "<think> a < b</think>naïve "


@pytest.mark.parametrize("base", [None, 3, ""])
def test_an_adapter_must_name_its_base(tmp_path: Path, base: object) -> None:
    (tmp_path / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": base}))
    with pytest.raises(UserError, match="does not name its base") as caught:
        load_policy(tmp_path)
    assert "adapter_config.json" in str(caught.value)


def test_the_base_of_an_adapter_must_be_there(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": str(tmp_path / "gone")}))
    with pytest.raises(UserError, match=r"no such folder: .*gone"):
        load_policy(tmp_path)


@pytest.fixture(scope="module")
def adapted(checkpoints: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of a run with an adapter."""
    folder = tmp_path_factory.mktemp("adapted") / "adapter"
    save_policy(load_policy(checkpoints["qwen3_vl"], lora=Lora(rank=2)), folder)
    return folder


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("adapter_config.json", {"r": 0}), ("adapter_config.json", {"lora_alpha": "x"}),
        ("adapter_config.json", {"target_modules": None}), ("adapter_config.json", {"bias": "odd"}),
        ("adapter_config.json", {"trainable_token_indices": ["x"]}), ("lora.json", {"added": 3}),
    ],
)  # fmt: skip
def test_a_damaged_adapter_is_one_line(adapted: Path, tmp_path: Path, name: str, changes: dict[str, object]) -> None:
    folder = Path(shutil.copytree(adapted, tmp_path / "copied"))
    edit(folder, name, **changes)
    with pytest.raises(UserError, match="the adapter does not fit its base") as caught:
        load_policy(folder)
    assert caught.value.where == str(folder)


def test_a_base_has_whole_weights(adapted: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(adapted, tmp_path / "copied"))
    edit(folder, "adapter_config.json", base_model_name_or_path=str(adapted))
    with pytest.raises(UserError, match=r"is an adapter, too .*sightline export"):
        load_policy(folder)


@pytest.mark.parametrize(
    ("given", "what"),
    [
        ({"dtype": "float8"}, "unknown number format 'float8'"),
        ({"device": "tpu9"}, "unknown device 'tpu9'"),
        ({"device": "xpu"}, "'xpu' is not supported"),
        ({"device": "cuda:64"}, "'cuda:64' is not there"),
    ],
)
def test_what_cannot_be_is_told_first(given: dict[str, str], what: str) -> None:
    with pytest.raises(UserError, match=what):
        load_policy("/no/such/folder", **given)  # type: ignore[arg-type]


def test_a_policy_without_adapter_is_not_its_own_reference(policy: Policy) -> None:
    assert not policy.lora
    with pytest.raises(ValueError, match="with an adapter"), policy.reference():
        pass
