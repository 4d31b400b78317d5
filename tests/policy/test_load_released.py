"""Random-weight checkpoints in every published layout: the same logits as what they were written from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from conftest import picture
from released import CLASSES, FILES, WORDS, shrunk_config, write_released
from sightline.policy.architecture import architecture
from sightline.policy.layouts import released_name, tensor_shapes
from sightline.policy.load import Policy, load_policy
from sightline.policy.published import PROCESSORS, PUBLISHED
from sightline.policy.weights import stored

LAYOUTS = [(name, newer) for name, r in PUBLISHED.items() for newer in ([False, True] if "2_5" in r.family else [True])]


def logits(model: Any, policy: Policy) -> torch.Tensor:
    """Of one prompt with an image, by the stock forward."""
    seen = policy.pixels.batch([(picture(90, 61), 2)])
    assert seen.pixels is not None
    marks = [policy.image_token] * len(seen.at)
    ids = torch.tensor([[5, 7, *marks, 9, 300, 2000]])
    with torch.no_grad():
        return model(
            input_ids=ids, attention_mask=torch.ones_like(ids), mm_token_type_ids=(ids == policy.image_token).int(),
            pixel_values=seen.pixels, image_grid_thw=seen.grids,
        ).logits  # fmt: skip


def stock(folder: Path, **kwargs: Any) -> Any:
    """What transformers itself loads."""
    import transformers

    bars = transformers.utils.logging
    bars.disable_progress_bar()
    family = json.loads((folder / "config.json").read_text())["model_type"]
    model = getattr(transformers, CLASSES[family]).from_pretrained(folder, local_files_only=True, **kwargs)
    bars.enable_progress_bar()
    return model


@pytest.fixture(scope="module", params=LAYOUTS, ids=lambda p: f"{p[0].split('/')[1]}{'' if p[1] else '-released'}")
def checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    name, newer = request.param
    folder = tmp_path_factory.mktemp("released") / "checkpoint"
    model = write_released(folder, name, newer=newer)
    return name, newer, folder, model, load_policy(folder)


def test_logits_are_those_of_the_model_and_of_transformers(checkpoint: Any) -> None:
    _, _, folder, model, policy = checkpoint
    mine = logits(policy.model, policy)
    assert torch.equal(mine, logits(model, policy))
    assert torch.equal(mine, logits(stock(folder, dtype=torch.float32), policy))


def test_every_tensor_is_the_one_that_was_written(checkpoint: Any) -> None:
    name, newer, folder, model, policy = checkpoint
    files = stored(folder)
    recorded = tensor_shapes(architecture(shrunk_config(name)))
    family = PUBLISHED[name].family
    assert {t.key for t in files} == {n if newer else released_name(n, family) for n in recorded}
    assert len({t.file for t in files}) == FILES[name]
    mine = dict(policy.model.named_parameters())
    assert list(mine) == [n for n, _ in model.named_parameters()], "the order in which an optimiser counts them"
    for n, p in model.named_parameters():
        assert torch.equal(mine[n], p), n
        assert mine[n].dtype == torch.float32
        assert mine[n].requires_grad


def test_ties_spare_rows_frame_and_ends(checkpoint: Any) -> None:
    name, _, _, _, policy = checkpoint
    released, processor = PUBLISHED[name], PROCESSORS[PUBLISHED[name].family]
    embeddings, head = policy.model.get_input_embeddings().weight, policy.model.get_output_embeddings().weight
    assert (embeddings is head) == released.is_tied == bool(policy.model.config.tie_word_embeddings)
    spare = embeddings.shape[0] - len(policy.tokenizer)
    assert spare == released.vocab - WORDS[released.family]
    assert set(range(len(policy.tokenizer), embeddings.shape[0])) <= set(policy.banned)
    size = processor.get("size", {})
    assert policy.frame.min_pixels == processor.get("min_pixels", size.get("shortest_edge"))
    assert policy.frame.max_pixels == processor.get("max_pixels", size.get("longest_edge"))
    factor, convention = {"qwen2_5_vl": (28, "absolute"), "qwen3_vl": (32, "relative_1000")}[released.family]
    assert (policy.frame.factor, policy.frame.convention) == (factor, convention)
    assert policy.eos == tuple(policy.tokenizer.convert_tokens_to_ids(["<|im_end|>", "<|endoftext|>"]))
    assert policy.pad in policy.eos
    assert policy.pad not in policy.banned


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("name", ["Qwen/Qwen2.5-VL-3B-Instruct", "Qwen/Qwen3-VL-8B-Instruct"])
def test_the_model_is_that_of_transformers_own_loading(tmp_path: Path, name: str, dtype: str) -> None:
    folder = tmp_path / "checkpoint"
    write_released(folder, name, depth=2)
    mine, theirs = load_policy(folder, dtype=dtype).model, stock(folder, dtype=getattr(torch, dtype))
    for (n, a), (m, b) in zip(mine.named_buffers(), theirs.named_buffers(), strict=True):
        assert n == m
        assert torch.equal(a, b), n
        assert (a.dtype, a.device) == (b.dtype, b.device) == (torch.float32, torch.device("cpu"))
    for (n, a), (_, b) in zip(mine.named_parameters(), theirs.named_parameters(), strict=True):
        assert a.dtype == getattr(torch, dtype)
        assert torch.equal(a, b), n
    assert mine.config.to_dict() == theirs.config.to_dict()
    assert mine.generation_config.to_dict() == theirs.generation_config.to_dict()
    assert mine.training is theirs.training is False
    assert set(mine.state_dict()) == set(theirs.state_dict()), "no buffer becomes part of a checkpoint"
