"""Image processor, chat template and ends of a reply, in every form in which they are published."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from released import write_released
from sightline.errors import UserError
from sightline.policy.load import load_policy
from sightline.policy.processors import image_processor, tokenizer_and_template
from sightline.policy.published import PROCESSORS

OLD, NEW = (dict(PROCESSORS[f]) for f in ("qwen2_5_vl", "qwen3_vl"))
FORMS: dict[str, dict[str, Any]] = {
    "flat limits": {"preprocessor_config.json": OLD},
    "edges of size": {"preprocessor_config.json": NEW},
    "limits within size": {
        "preprocessor_config.json": {**NEW, "size": {"min_pixels": 4096, "max_pixels": 90000}},
    },
    "limits beside size": {"preprocessor_config.json": {**NEW, "min_pixels": 4096, "max_pixels": 90000}},
    "nested": {"processor_config.json": {"processor_class": "Qwen3VLProcessor", "image_processor": NEW}},
    "nested and flat": {
        "processor_config.json": {"image_processor": {**NEW, "size": {"shortest_edge": 4096, "longest_edge": 90000}}},
        "preprocessor_config.json": NEW,
    },
    "nested without images": {"processor_config.json": {"processor_class": "x"}, "preprocessor_config.json": NEW},
}  # fmt: skip


class Tower:
    """What is looked at of the vision tower's config."""

    def __init__(self, patch_size: int) -> None:
        self.patch_size, self.temporal_patch_size, self.spatial_merge_size = patch_size, 2, 2


def tower(content: dict[str, Any]) -> Tower:
    flat = content.get("image_processor", content)
    return Tower(flat["patch_size"])


@pytest.mark.parametrize("form", FORMS)
def test_every_form_is_read_as_transformers_reads_it(tmp_path: Path, form: str) -> None:
    from transformers import Qwen2VLImageProcessorPil

    for name, content in FORMS[form].items():
        (tmp_path / name).write_text(json.dumps(content))
    mine = image_processor(tmp_path, None, None, Tower(14 if form == "flat limits" else 16))
    theirs = Qwen2VLImageProcessorPil.from_pretrained(tmp_path)
    if form != "limits within size":  # which transformers does not read any more
        assert mine.size == theirs.size
    if form in ("limits beside size", "limits within size", "nested and flat"):
        assert (mine.size["shortest_edge"], mine.size["longest_edge"]) == (4096, 90000)
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (61, 333, 3), dtype=np.uint8))
    a, b = (p(images=[picture], size=dict(mine.size), return_tensors="pt") for p in (mine, theirs))
    assert torch.equal(a["pixel_values"], b["pixel_values"])
    assert torch.equal(a["image_grid_thw"], b["image_grid_thw"])


def test_limits_that_are_given_go_before_all(tmp_path: Path) -> None:
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(OLD))
    size = image_processor(tmp_path, None, 50176, Tower(14)).size
    assert (size["shortest_edge"], size["longest_edge"]) == (OLD["min_pixels"], 50176)


@pytest.mark.parametrize("bad", [{"min_pixels": "many"}, {"max_pixels": -1}, {"min_pixels": None}])
def test_limits_that_are_none_are_refused(tmp_path: Path, bad: dict[str, Any]) -> None:
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({**OLD, **bad}))
    with pytest.raises(UserError, match=f"{next(iter(bad))} nor size"):
        image_processor(tmp_path, None, None, Tower(14))


@pytest.mark.parametrize("size", ["large", [4096, 90000], 7])
def test_a_size_without_limits_is_refused(tmp_path: Path, size: object) -> None:
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({**NEW, "size": size}))
    with pytest.raises(UserError, match="where limits are expected"):
        image_processor(tmp_path, None, None, Tower(16))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("do_normalize", False), ("do_rescale", False), ("do_resize", False), ("resample", 2), ("image_mean", "half"),
        ("image_mean", [0.5]), ("image_std", [0.5, 0.5, 0]), ("image_std", [0.5, 0.5, "x"]), ("rescale_factor", 0),
        ("rescale_factor", [1]),
    ],
)  # fmt: skip
def test_another_preparation_is_refused(tmp_path: Path, key: str, value: object) -> None:
    """It would be ignored here and done by other engines."""
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({**NEW, key: value}))
    with pytest.raises(UserError, match=f"{key} is "):
        image_processor(tmp_path, None, None, Tower(16))


def test_patches_of_another_model_are_refused(tmp_path: Path) -> None:
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(NEW))
    with pytest.raises(UserError, match="patch_size is 16, but the vision tower takes 14"):
        image_processor(tmp_path, None, None, Tower(14))


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("written") / "checkpoint"
    write_released(folder, "Qwen/Qwen3-VL-2B-Instruct", depth=2)
    return folder


@pytest.fixture
def copied(written: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(written, tmp_path / "copied"))


def edited(path: Path, **changes: object) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def _both(folder: Path) -> None:
    edited(folder / "tokenizer_config.json", chat_template="of the tokenizer")
    (folder / "chat_template.json").write_text('{"chat_template": "of the processor"}')


def _jinja(folder: Path) -> None:
    _both(folder)
    (folder / "chat_template.jinja").write_text("in a file")


def _of_tokenizer(folder: Path) -> None:
    edited(folder / "tokenizer_config.json", chat_template="of the tokenizer")
    (folder / "chat_template.json").unlink()


def _several(folder: Path) -> None:
    templates = [{"name": "default", "template": "by name"}, {"name": "tools", "template": "no"}]
    edited(folder / "tokenizer_config.json", chat_template=templates)
    (folder / "chat_template.json").unlink()


@pytest.mark.parametrize(
    ("write", "template"),
    [(_both, "of the processor"), (_jinja, "in a file"), (_of_tokenizer, "of the tokenizer"), (_several, "by name")],
)
def test_the_template_of_the_processor_goes_first(copied: Path, write: Callable[[Path], None], template: str) -> None:
    write(copied)
    assert tokenizer_and_template(copied)[1] == template


def test_no_template_is_an_error(copied: Path) -> None:
    (copied / "chat_template.json").unlink()
    edited(copied / "tokenizer_config.json", chat_template=None)
    with pytest.raises(UserError, match="no chat template"):
        tokenizer_and_template(copied)


def test_a_damaged_template_is_told_before_the_weights(copied: Path) -> None:
    (copied / "chat_template.jinja").write_text("{% for message in messages %}{{ message }}")
    (copied / "model.safetensors").unlink()
    with pytest.raises(UserError, match="the chat template is damaged: line 1"):
        load_policy(copied)


def test_a_folder_without_a_tokenizer_is_named(copied: Path) -> None:
    (copied / "tokenizer.json").unlink()  # transformers would make an empty one
    with pytest.raises(UserError, match="no tokenizer") as caught:
        load_policy(copied)
    assert str(copied) in str(caught.value)


def test_a_damaged_tokenizer_is_named(copied: Path) -> None:
    (copied / "tokenizer.json").write_text("{}")
    with pytest.raises(UserError, match="the tokenizer cannot be read"):
        load_policy(copied)


def test_a_tokenizer_of_another_model_is_refused(copied: Path) -> None:
    edited(copied / "config.json", image_token_id=10**6)
    with pytest.raises(UserError, match="no token 1000000"):
        load_policy(copied)
    edited(copied / "config.json", text_config={**json.loads((copied / "config.json").read_text())["text_config"],
                                                "vocab_size": 100})  # fmt: skip
    with pytest.raises(UserError, match="rows for 100"):
        load_policy(copied)


def test_code_in_the_folder_is_never_run(copied: Path, tmp_path: Path) -> None:
    trace = tmp_path / "it ran"
    (copied / "evil.py").write_text(f"open({str(trace)!r}, 'w').close()\nclass A: pass\nclass B: pass\n")
    edited(copied / "config.json", auto_map={"AutoConfig": "evil.A", "AutoModel": "evil.B"})
    edited(copied / "tokenizer_config.json", auto_map={"AutoTokenizer": ["evil.A", None]})
    edited(copied / "preprocessor_config.json", auto_map={"AutoImageProcessor": "evil.A"})
    load_policy(copied)
    assert not trace.exists()


@pytest.mark.parametrize("mark", ["image_token_id", "video_token_id", "vision_start_token_id"])
def test_placeholders_are_tokens(copied: Path, mark: str) -> None:
    edited(copied / "config.json", **{mark: -1})
    with pytest.raises(UserError, match="no token -1"):
        load_policy(copied)


def test_a_tokenizer_that_its_library_refuses_is_named(copied: Path) -> None:
    edited(copied / "tokenizer.json", model=None)
    with pytest.raises(UserError, match="the tokenizer cannot be read"):
        load_policy(copied)


@pytest.mark.parametrize("told", [[], -1, 10**6, "x", True, [7, None]])
def test_ends_that_are_no_tokens_are_refused(copied: Path, told: object) -> None:
    (copied / "generation_config.json").write_text(json.dumps({"eos_token_id": told}))
    (copied / "model.safetensors").unlink()  # told before the weights
    with pytest.raises(UserError, match="a reply would end with") as caught:
        load_policy(copied)
    assert "generation_config.json" in str(caught.value)


def test_an_unknown_wording_of_prompts_is_refused(copied: Path) -> None:
    (copied / "card.json").write_text('{"prompt_style": "odd"}')
    with pytest.raises(UserError, match="prompt_style is 'odd'"):
        load_policy(copied)


@pytest.mark.parametrize(("told", "ends"), [(7, (7,)), ([7, 9], (7, 9)), (None, None)])
def test_ends_come_from_the_generation_config(copied: Path, told: Any, ends: tuple[int, ...] | None) -> None:
    if told is None:
        (copied / "generation_config.json").unlink()
    else:
        (copied / "generation_config.json").write_text(json.dumps({"eos_token_id": told}))
    policy = load_policy(copied)
    assert policy.eos == (ends or (policy.tokenizer.eos_token_id,))
