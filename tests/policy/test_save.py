"""Saving: what is written loads again, here and in transformers; large weights come in shards with an index."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from sightline.policy.load import Policy, load_policy
from sightline.policy.processors import PROCESSOR_FILES
from sightline.policy.save import save_policy, write_weights
from sightline.policy.weights import INDEX, SINGLE, stored


def assert_same(a: Policy, b: Policy) -> None:
    for (n, x), (m, y) in zip(a.model.named_parameters(), b.model.named_parameters(), strict=True):
        assert n == m
        assert torch.equal(x, y), n


def test_saving_keeps_weights_and_processor_files(policy: Policy, tmp_path: Path) -> None:
    save_policy(policy, tmp_path / "saved")
    for name in PROCESSOR_FILES:
        if (policy.source / name).exists():
            assert (tmp_path / "saved" / name).read_bytes() == (policy.source / name).read_bytes()
    again = load_policy(tmp_path / "saved")
    assert_same(policy, again)
    tied = again.model.get_output_embeddings().weight
    assert tied.data_ptr() == again.model.get_input_embeddings().weight.data_ptr()


def test_shards_have_an_index_and_their_size(policy: Policy, tmp_path: Path) -> None:
    largest = max(p.nbytes for p in policy.model.parameters())
    save_policy(policy, tmp_path, shard=largest)
    index = json.loads((tmp_path / INDEX).read_text())
    files = sorted(tmp_path.glob("*.safetensors"))
    assert len(files) > 2
    assert sorted(set(index["weight_map"].values())) == [f.name for f in files]
    assert not (tmp_path / SINGLE).exists()
    parameters = dict(policy.model.named_parameters())
    assert index["metadata"]["total_size"] == sum(p.nbytes for p in parameters.values())
    for file in files:
        assert sum(parameters[t.key].nbytes for t in stored(tmp_path) if t.file == file) <= largest
    assert_same(policy, load_policy(tmp_path))


def test_transformers_loads_the_shards(policy: Policy, tmp_path: Path) -> None:
    import transformers

    save_policy(policy, tmp_path, shard=200_000)
    transformers.utils.logging.disable_progress_bar()
    again, told = type(policy.model).from_pretrained(tmp_path, output_loading_info=True, local_files_only=True)
    transformers.utils.logging.enable_progress_bar()
    assert not told["missing_keys"]
    assert not told["unexpected_keys"]
    for (n, x), (_, y) in zip(policy.model.named_parameters(), again.named_parameters(), strict=True):
        assert torch.equal(x, y), n


@pytest.mark.parametrize("first", [10**9, 200_000])
def test_no_file_of_an_earlier_save_is_left(policy: Policy, tmp_path: Path, first: int) -> None:
    save_policy(policy, tmp_path, shard=first)
    save_policy(policy, tmp_path, shard=10**9 + 200_000 - first)
    assert (tmp_path / SINGLE).exists() != (tmp_path / INDEX).exists()
    assert_same(policy, load_policy(tmp_path))


def test_weights_held_elsewhere_are_written_instead(policy: Policy, tmp_path: Path) -> None:
    state = {n: p.detach() * 2 for n, p in policy.model.named_parameters()}
    save_policy(policy, tmp_path, state=state)
    again = dict(load_policy(tmp_path).model.named_parameters())
    assert all(torch.equal(again[n], state[n]) for n in state)


def test_a_policy_can_be_saved_where_it_was_loaded_from(policy: Policy, tmp_path: Path) -> None:
    save_policy(policy, tmp_path)
    again = load_policy(tmp_path)
    save_policy(again, tmp_path)
    assert_same(policy, again)
    assert_same(policy, load_policy(tmp_path))


def test_number_formats_stay(tmp_path: Path) -> None:
    tensors = {"a": torch.ones(3, dtype=torch.bfloat16), "b": torch.ones(2, 2).t()}
    write_weights(tensors, tmp_path)
    assert {t.key: (t.format, t.shape) for t in stored(tmp_path)} == {"a": ("BF16", (3,)), "b": ("F32", (2, 2))}
