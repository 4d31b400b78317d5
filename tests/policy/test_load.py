"""Loading is strict, quiet, and says what is wrong where."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from conftest import FAMILIES
from sightline.errors import UserError
from sightline.policy.hub import checkpoint_folder
from sightline.policy.load import Policy, load_policy
from sightline.policy.processors import PROCESSOR_FILES
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


@pytest.mark.parametrize("change", ["missing", "unexpected", "shape"])
def test_weights_that_do_not_fit_are_named(copied: Path, change: str) -> None:
    path = copied / "model.safetensors"
    tensors = load_file(path)
    name = next(n for n in tensors if n.endswith("layers.1.mlp.up_proj.weight"))
    if change == "missing":
        del tensors[name]
    elif change == "unexpected":
        tensors["model.language_model.layers.9.extra.weight"] = torch.zeros(3)
        name = "layers.9.extra.weight"
    else:
        tensors[name] = torch.zeros(3, 3)
    save_file(tensors, path, metadata={"format": "pt"})
    with pytest.raises(UserError, match=name.rsplit("model.", 1)[-1].replace(".", r"\.")):
        load_policy(copied)


def test_a_truncated_file_is_one_clear_error(copied: Path) -> None:
    path = copied / "model.safetensors"
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(UserError, match="cut off"):
        load_policy(copied)


@pytest.mark.parametrize("name", ["config.json", "preprocessor_config.json", "model.safetensors"])
def test_a_missing_file_is_named(copied: Path, name: str) -> None:
    (copied / name).unlink()
    with pytest.raises(UserError, match="safetensors" if name.startswith("model") else name):
        load_policy(copied)


def test_an_unsupported_family_is_named(copied: Path) -> None:
    edit(copied, "config.json", model_type="llava")
    with pytest.raises(UserError, match="llava"):
        load_policy(copied)


def test_unknown_names_are_user_errors() -> None:
    with pytest.raises(UserError, match="no embedded policy 'qwen9'"):
        checkpoint_folder("embedded:qwen9")
    with pytest.raises(UserError, match="no such folder"):
        checkpoint_folder("/no/such/folder")


def test_saving_keeps_weights_and_processor_files(policy: Policy, tmp_path: Path) -> None:
    save_policy(policy, tmp_path / "saved")
    for name in PROCESSOR_FILES:
        if (policy.source / name).exists():
            assert (tmp_path / "saved" / name).read_bytes() == (policy.source / name).read_bytes()
    again = load_policy(tmp_path / "saved")
    for (n, a), (_, b) in zip(policy.model.named_parameters(), again.model.named_parameters(), strict=True):
        assert torch.equal(a, b), n
    tied = again.model.get_output_embeddings().weight
    assert tied.data_ptr() == again.model.get_input_embeddings().weight.data_ptr()


def test_decode_hides_the_turn_marks_only(policy: Policy) -> None:
    ids = policy.tokenizer("<think> a < b</think>naïve <|im_end|>", add_special_tokens=False)["input_ids"]
    assert policy.decode(ids) == "<think> a < b</think>naïve "
