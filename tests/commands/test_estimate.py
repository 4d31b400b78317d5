"""`train --dry-run`: what it counts is what a run computes, and it needs no weights."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from sightline.cli import main
from sightline.commands.estimate import describe
from sightline.config import Recipe, load_recipe
from sightline.errors import UserError
from sightline.policy.architecture import architecture
from sightline.policy.flops import Trained, Work, update_flops
from sightline.policy.outline import open_outline
from sightline.policy.published import PROCESSORS, published_config
from sightline.train.plan import plan, setup_of

RECIPES = (
    "deepeyes", "demo", "faithful_mr1_style", "grit", "ground_r1", "grpo", "ivgr", "papo", "sayo", "treevgr", "vppo",
)  # fmt: skip
SCENES = ("--data.train", "scenes:hard", "--data.reader", "ours")
SEVEN = "Qwen/Qwen2.5-VL-7B-Instruct"


def recipe_of(name: str, *words: str) -> Recipe:
    return load_recipe(name, words)


def planned(name: str, *words: str, **options: Any) -> Any:
    recipe = recipe_of(name, *words)
    return plan(recipe, open_outline(recipe.model), **options)


@pytest.fixture
def bare(tmp_path: Path) -> Path:
    """A folder in the layout of the 7B release that holds its config and processor files, and no weights."""
    folder = tmp_path / "seven"
    folder.mkdir()
    shipped = Path(__file__).parents[2] / "src/sightline/scenes/checkpoints/qwen2_5_vl"
    for path in shipped.glob("*"):
        if path.suffix in {".json", ".jinja", ".txt"}:
            shutil.copyfile(path, folder / path.name)
    (folder / "card.json").unlink(missing_ok=True)
    ids = {k: v for k, v in json.loads((shipped / "config.json").read_text()).items() if k.endswith("token_id")}
    (folder / "config.json").write_text(json.dumps({**published_config(SEVEN), **ids}))
    (folder / "preprocessor_config.json").write_text(json.dumps(PROCESSORS["qwen2_5_vl"]))
    return folder


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_is_estimated(name: str, tmp_path: Path) -> None:
    words = SCENES if name in ("ivgr", "treevgr") else ()
    said = describe(recipe_of(name, *words), tmp_path / "run")
    assert said.endswith("nothing was written")
    for title in ("model", "prompts", "update", "passes", "memory", "time", "assumed"):
        assert re.search(rf"^  {title} ", said, re.MULTILINE), title


def test_weights_are_never_read(bare: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sightline.policy.load.load_policy", lambda *_, **__: pytest.fail("weights"))
    said = describe(recipe_of("ivgr", *SCENES, "--model.name", str(bare)), tmp_path / "run")
    assert "8.29 B parameters (7.62 B language, 676.55 M vision)" in said
    assert "15.4 GiB  weights" in said
    assert "not here" not in said
    assert "cells of 28 px; 3136..3211264 px^2" in said


def test_a_published_name_is_estimated_from_what_is_recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *_, **__: pytest.fail("a download"))
    said = describe(recipe_of("ivgr", *SCENES), tmp_path / "run")
    assert "8.29 B parameters" in said
    assert "not here: recorded dimensions" in said


def test_recorded_dimensions_count_images_exactly_and_words_nearly(bare: Path) -> None:
    here, recorded = (planned("ivgr", *SCENES, "--model.name", name, looked=4) for name in (str(bare), SEVEN))
    assert here.visual == recorded.visual
    for exact, near in zip(here.prompts, recorded.prompts, strict=True):
        # the small tokenizer of the folder cuts words into more pieces than that of the release would
        assert near == pytest.approx(exact, rel=0.6)


def test_tokens_are_those_of_a_run(tmp_path: Path) -> None:
    """Against a real step: all replies at their limit of one token."""
    words = ("--sampling.max_new_tokens", "1", "--data.records_per_step", "4", "--train.steps", "1",
             "--evaluation.n", "1", "--train.log_groups", "0")  # fmt: skip
    found = planned("papo", *words, looked=4)
    assert main(["train", "papo", *words, "--data.shuffle", "false", "--out", str(tmp_path / "run")]) == 0
    events = [json.loads(line) for line in (tmp_path / "run" / "events.jsonl").read_text().splitlines()]
    step = next(e["metrics"] for e in events if "update/tokens" in e.get("metrics", {}))
    assert found.tree_tokens == step["update/tokens"]
    assert found.unshared_tokens == step["update/tokens_unshared"]


def test_streams_share_their_image_and_replies_branch() -> None:
    found = planned("demo", "--method.name", "ivgr", looked=2)
    tree, group = found.trees[0], found.unshared[0]
    replies = 16 * 64
    assert len(group) == 16
    # the image and the marks around it stand once, in front of both prompts
    assert sum(found.prompts[:2]) - found.visual[0] - 8 < len(tree) - replies < sum(found.prompts[:2]) - found.visual[0]
    assert len(found.works[0].grids) == 1
    assert found.works[0].scored == replies


def test_conversations_hold_every_turn_and_its_crop() -> None:
    found = planned("ground_r1", looked=2)
    one = next(iter(planned("ground_r1", looked=2).method.streams(None)))  # type: ignore[arg-type]
    turns = one.turns.max_turns  # type: ignore[union-attr]
    length, reply = found.unshared[0][0]
    assert reply == turns * 40
    assert length > found.prompts[0] + reply + (turns - 1) * found.visual[0]
    first, second = one.branches
    assert len(found.works[0].grids) == 1 + first + (turns - 2) * first * second
    assert found.works[0].scored < len(found.unshared[0]) * reply


def test_passes_of_probes_and_old_logprobs() -> None:
    assert planned("grpo", looked=1).passes.scoring == 0
    assert planned("grpo", "--optim.inner_steps", "2", looked=1).passes.scoring == 1
    assert planned("papo", looked=1).passes.scoring >= 2  # as it is, and with changed images
    assert planned("ivgr", *SCENES, looked=1).passes.reference == 1
    assert planned("ivgr", *SCENES, "--method.objective.kl", "0", looked=1).passes.reference == 0


def test_replies_of_a_share_of_their_limit() -> None:
    whole, quarter = (planned("grpo", looked=1, length=share) for share in (1.0, 0.25))
    assert whole.works[0].scored == 4 * quarter.works[0].scored
    assert whole.prompts == quarter.prompts


def test_a_padded_batch_costs_more_than_trees_in_closed_form() -> None:
    found = planned("grpo", looked=1)
    (tree,), (group,) = found.trees, found.unshared
    length = group[0][0]
    work = Work(tokens=8 * length, pairs=8 * length * (length + 1) // 2, scored=8 * 64, grids=found.works[0].grids * 8)
    assert found.padded().total == pytest.approx(64 * update_flops(found.model, work).total)
    assert found.padded().total > found.update().total
    assert len(tree) == found.prompts[0] + 8 * 64


def test_settings_of_the_recipe_reach_the_arithmetic() -> None:
    model = architecture(published_config(SEVEN))
    lora = setup_of(recipe_of("ivgr", "--model.lora.rank", "16", "--model.lora.quantise", "nf4"), model)
    assert (lora.trained.rank, lora.is_quantised, lora.reference, lora.weight) == (16, True, "adapter", 2)
    assert lora.features == 2**30
    full = setup_of(recipe_of("ivgr", "--model.reference", "cpu", "--model.lora", "null"), model, 4)
    assert (full.is_sharded, full.reference, full.states, full.trained) == (True, "cpu", "fp32", Trained())
    # what cannot be cut stands whole on every card, as in a run
    for words in (("--optim.states", "8bit"), ("--model.lora.rank", "1024", "--model.lora.quantise", "nf4")):
        assert not setup_of(recipe_of("ivgr", *words), model, 4).is_sharded
    frozen = setup_of(recipe_of("grpo", "--model.train_vision", "false"), model)
    assert (frozen.trained.vision, frozen.is_cuda, frozen.weight) == (False, False, 4)


def test_names_of_layers_count_as_peft_takes_them() -> None:
    model = architecture(published_config(SEVEN))

    def trained(targets: str) -> Trained:
        return setup_of(recipe_of("ivgr", "--model.lora.targets", targets), model).trained

    usual = "[q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj, down_proj]"
    assert trained(usual) == trained("language")
    assert not trained(usual).trains_tower
    assert trained("[self_attn.q_proj]").targets == ("q_proj",)
    assert trained("[qkv, v_proj]").trains_tower
    assert trained("[qkv, v_proj]").targets == ("v_proj",)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--model.dtype", "float16"), "float16 cannot be trained"),
        (("--model.lora.targets", "[wq]"), "no linear layer is called wq"),
        (("--model.lora.targets", "[lm_head]"), "the output matrix takes no adapter"),
        (("--model.lora.targets", "[qkv]", "--model.train_vision", "false"), "train_vision: false freezes"),
        (("--model.name", SEVEN, "--model.lora.quantise", "nf4", "--model.lora.targets", "all"), "need a multiple of"),
    ],
)
def test_what_cannot_be_is_told_without_weights(
    words: tuple[str, ...], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", "grpo", *words, "--dry-run"]) == 2
    shown = capsys.readouterr()
    assert said in shown.err
    assert len(shown.err.strip().splitlines()) == 1


def test_an_adapter_that_is_there_is_counted(tmp_path: Path) -> None:
    from sightline.config.sections import Lora
    from sightline.policy.load import load_policy
    from sightline.policy.save import save_policy

    pytest.importorskip("peft")
    lora = Lora(rank=4, targets=("q_proj", "qkv"))
    policy = load_policy("embedded:qwen3_vl", lora=lora)
    save_policy(policy, tmp_path)
    words = ("--model.name", str(tmp_path), "--method.objective.kl", "0.1")
    setup = planned("grpo", *words, looked=1).setup
    assert (setup.trained.rank, setup.trained.targets, setup.trained.trains_tower) == (4, ("q_proj",), True)
    assert setup.reference == "device"  # without the adapter the policy is not the one at the start
    with pytest.raises(UserError, match=r"model\.lora: the adapter of .* has rank 4, not 8"):
        planned("grpo", *words, "--model.lora.rank", "8", looked=1)


def test_the_base_of_an_adapter_must_be_there(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text('{"peft_type": "LORA", "base_model_name_or_path": "/moved/away"}')
    with pytest.raises(UserError, match=r"adapter_config\.json: the base of this adapter, /moved/away"):
        planned("grpo", "--model.name", str(tmp_path), looked=1)


def test_a_mistake_names_its_arm(tmp_path: Path) -> None:
    recipe = tmp_path / "arms.yaml"
    recipe.write_text("method: {name: grpo}\narms: {good: {}, bad: {model.lora.targets: [wq]}}\n")
    with pytest.raises(UserError, match=r"^arm bad: model\.lora\.targets: no linear layer is called wq"):
        describe(load_recipe(str(recipe), ()), tmp_path / "run")


def test_more_cards_are_offered_with_states_that_can_be_cut(tmp_path: Path) -> None:
    words = ("--optim.states", "8bit", "--model.masters", "stochastic")
    said = describe(recipe_of("ivgr", *SCENES, *words), tmp_path / "run")
    assert re.search(r"nproc-per-node 8 .* --optim.states fp32", said)


def test_what_does_not_fit_is_told_with_what_would_help(tmp_path: Path) -> None:
    said = describe(recipe_of("ivgr", *SCENES, "--sampling.batch", "256"), tmp_path / "run")
    assert "no single card" in said
    for change in ("--model.lora.rank 32", "--optim.states 8bit", "--sampling.batch", "nproc-per-node 8"):
        assert change in said
    small = describe(recipe_of("grpo", "--model.device", "cuda"), tmp_path / "run")
    assert "a card of 24 GB, 40 GB, 80 GB, 141 GB" in small
    assert "to need less" not in small


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--model.name", "/no/such/folder"), "no such folder"),
        (("--model.name", "nobody/nothing"), "its dimensions are not recorded"),
        (("--data.train", "none.jsonl"), "no such data file"),
    ],
)
def test_bad_input_is_one_line(words: tuple[str, ...], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "grpo", *words, "--dry-run"]) == 2
    shown = capsys.readouterr()
    assert said in shown.err
    assert len(shown.err.strip().splitlines()) == 1


def test_a_folder_without_a_config_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "grpo", "--model.name", str(tmp_path), "--dry-run"]) == 2
    assert "config.json: file is missing" in capsys.readouterr().err
