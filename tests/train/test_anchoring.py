"""Anchoring: gradients equal to eager attention, what is frozen, what is left out, and a run that resumes exactly."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from torch import Tensor

from conftest import make_record
from sightline.config import load_recipe
from sightline.credit.config import AnchorConfig, FocusConfig
from sightline.language.prompts import prompt
from sightline.policy.focus import add_focus_token
from sightline.policy.load import Policy, load_policy
from sightline.train.anchoring import LessonBatch, anchor, anchor_loss, lesson_batches
from sightline.train.lessons import Lesson, lesson, lessons_of
from sightline.train.loop import learn
from sightline.train.run import Run, open_run
from sightline.train.saving import save
from sightline.types import Box, Region

KINDS = {"qwen3_vl": "Qwen3VLForConditionalGeneration", "qwen2_5_vl": "Qwen2_5_VLForConditionalGeneration"}
FOCUS = FocusConfig()


@pytest.fixture(params=["qwen3_vl", "qwen2_5_vl"])
def fresh(request: pytest.FixtureRequest, checkpoints: dict[str, Path]) -> Policy:
    policy = load_policy(checkpoints[request.param])
    add_focus_token(policy, FOCUS)
    return policy


def lessons(policy: Policy, config: AnchorConfig, focus: FocusConfig = FOCUS) -> list[Lesson]:
    """Three records of different size, one of them with two images, with a reply, a shorter one and none."""
    one, two, three = make_record("a"), make_record("b", ((96, 64), (64, 96)), 3), make_record("c", ((64, 32),), 7)
    two = replace(two, regions=(Region(box=Box(0, 50, 30, 96), image=1), Region(box=Box(50, 0, 96, 20))))
    texts = ["<think> red</think>", " green", None]
    asked = [prompt(r, "textual", "textual", "compact", forced_prefix=focus.prefix) for r in (one, two, three)]
    return [lesson(policy, p, t, config, focus) for p, t in zip(asked, texts, strict=True)]


def total_loss(policy: Policy, batches: list[LessonBatch], config: AnchorConfig) -> Tensor:
    records, tokens = sum(int(b.used.sum()) for b in batches), sum(len(b.batch.target) for b in batches)
    found = [anchor_loss(policy, b, config, records=records, tokens=tokens)[0] for b in batches]
    return torch.stack(found).sum()


def eager_loss(policy: Policy, found: list[Lesson], config: AnchorConfig, layers: list[int]) -> tuple[Any, Tensor]:
    """Stock transformers, whole attention matrices, one record after the other."""
    model = getattr(transformers, KINDS[policy.family]).from_pretrained(policy.source, attn_implementation="eager")
    tokens = sum(len(one.rollout.ids) for one in found)
    losses = []
    for one in found:
        rollout, start = one.rollout, len(one.rollout.prompt_ids)
        ids = torch.from_numpy(np.concatenate([rollout.prompt_ids, rollout.ids]))[None]
        shown = policy.pixels.batch([(image, 0) for image in rollout.prompt.images])
        out = model(
            input_ids=ids, attention_mask=torch.ones_like(ids), pixel_values=shown.pixels, image_grid_thw=shown.grids,
            mm_token_type_ids=(ids == policy.image_token).int(), output_attentions=True,
        )  # fmt: skip
        maps = torch.cat([out.attentions[layer][0][:, list(one.at)].mean(1) for layer in layers])[:, one.visual]
        target = torch.from_numpy(one.target).float()
        p = maps.mean(0) / maps.mean(0).sum()
        if config.normalise == "norm_then_mean":
            each = maps / maps.sum(-1, keepdim=True)
            losses.append((target * (target.log() - each.log())).sum(-1).mean() / len(found))
        elif config.loss == "mass_nll":
            losses.append(-p[torch.from_numpy(one.cover > 0)].sum().log() / len(found))
        else:
            losses.append((target * (target.log() - p.log())).sum() / len(found))
        losses.append(-config.w_vis * maps.mean(0).sum().log() / len(found))
        if len(rollout.ids):
            rows = torch.log_softmax(out.logits[0, start - 1 : -1] + policy.module.bias, -1)
            losses.append(-config.w_lm * rows.gather(-1, ids[0, start:, None]).sum() / tokens)
    return model, torch.stack(losses).sum()


def worst_gradient(policy: Policy, model: Any) -> float:
    wanted = {n: p.grad for n, p in model.named_parameters() if p.grad is not None and float(p.grad.norm()) > 1e-8}
    own = dict(policy.model.named_parameters())
    assert wanted
    found = {n: own[n].grad for n in wanted}
    return max(float((found[n] - g).norm() / g.norm()) for n, g in wanted.items())  # type: ignore[operator]


@pytest.mark.parametrize("is_checkpointed", [False, True])
@pytest.mark.parametrize(
    "keys",
    [
        {},
        {"normalise": "norm_then_mean", "layers": [0, 2], "w_vis": 0.5},
        {"loss": "mass_nll", "target": "binary", "layers": "all"},
    ],
    ids=["mean_then_norm", "norm_then_mean", "mass_nll"],
)
def test_gradients_equal_eager_attention(fresh: Policy, keys: dict[str, Any], is_checkpointed: bool) -> None:
    config = AnchorConfig.model_validate({"freeze_vision": False, **keys})
    layers = {"last_third": [1], "all": [0, 1, 2]}.get(str(config.layers), [0, 2])
    found = lessons(fresh, config)
    if is_checkpointed:
        fresh.model.activation_checkpointing_enable({"use_reentrant": False})
    fresh.model.train()
    loss = total_loss(fresh, lesson_batches(fresh, found, 4096), config)
    loss.backward()
    model, wanted = eager_loss(fresh, found, config, layers)
    wanted.backward()
    assert loss.item() == pytest.approx(wanted.item(), rel=1e-5)
    assert worst_gradient(fresh, model) < 1e-5


def test_reentrant_checkpointing_is_refused(fresh: Policy) -> None:
    config = AnchorConfig()
    fresh.model.activation_checkpointing_enable({"use_reentrant": True})
    fresh.model.train()
    with pytest.raises(RuntimeError, match="non-reentrant"):
        total_loss(fresh, lesson_batches(fresh, lessons(fresh, config), 4096), config)


def test_without_a_language_term_the_forward_ends_at_the_highest_layer(fresh: Policy) -> None:
    config = AnchorConfig(w_lm=0.0)
    found = lessons(fresh, config)
    total_loss(fresh, lesson_batches(fresh, found, 4096), config).backward()
    layers = fresh.model.model.language_model.layers
    assert all(p.grad is None for p in [*layers[2].parameters(), *layers[1].mlp.parameters()])
    assert layers[1].self_attn.q_proj.weight.grad.norm() > 0
    assert layers[0].mlp.up_proj.weight.grad.norm() > 0


def test_several_lessons_in_one_row_see_only_their_own_image(fresh: Policy) -> None:
    """Packing, as on a GPU, against a row for each."""
    from sightline.policy.batch import collate
    from sightline.policy.tree import build_tree, rollout_path
    from sightline.train.anchoring import with_rows

    config = AnchorConfig()
    found = lessons(fresh, config)
    apart = total_loss(fresh, lesson_batches(fresh, found, 1), config)
    trees = [build_tree([rollout_path(one.rollout, fresh.image_token)], fresh.rules) for one in found]
    packed = with_rows(collate([trees[:2], trees[2:]], fresh.pixels, pad=fresh.pad), [found[:2], found[2:]])
    assert total_loss(fresh, [packed], config).item() == pytest.approx(apart.item(), rel=1e-5)


def test_targets_and_places_of_a_lesson(fresh: Policy) -> None:
    config = AnchorConfig()
    for one in lessons(fresh, config):
        ids = np.concatenate([one.rollout.prompt_ids, one.rollout.ids])
        assert fresh.piece(int(ids[one.at[0]])) == b"<Focus>"
        assert len(one.visual) == len(one.target) == sum(fresh.frame.tokens(i.size) for i in one.rollout.prompt.images)
        assert one.target.sum() == pytest.approx(1)
        assert one.at[0] > one.visual.max()


def test_a_question_that_names_the_token_does_not_move_it(fresh: Policy) -> None:
    record = replace(make_record(), question="What does <Focus> show?")
    for focus in (FOCUS, FocusConfig(count=2), FocusConfig(mode="generated")):
        shown = prompt(record, "textual", "textual", "compact", forced_prefix=focus.prefix)
        one = lesson(fresh, shown, " red", AnchorConfig(), focus)
        ids = np.concatenate([one.rollout.prompt_ids, one.rollout.ids])
        text = fresh.tokenizer.decode(ids[one.at[-1] + 1 :])
        assert len(one.at) == focus.count
        assert text.startswith("\n red")


def test_language_targets(fresh: Policy) -> None:
    shown = prompt(make_record(), "textual", "textual", "compact", forced_prefix=FOCUS.prefix)

    def taught(text: str | None, config: AnchorConfig, focus: FocusConfig = FOCUS) -> str:
        rollout = lesson(fresh, shown, text, config, focus).rollout
        return fresh.tokenizer.decode(rollout.ids[rollout.sampled])

    assert taught(" red", AnchorConfig()) == " red<|im_end|>"
    assert taught(" red", AnchorConfig(), FocusConfig(mode="generated")) == "<Focus>\n red<|im_end|>"
    assert taught(None, AnchorConfig()) == ""
    assert taught(None, AnchorConfig(lm_target="focus_only")) == "<Focus>\n"


def test_sinks_outside_the_region_leave_target_and_attention(fresh: Policy) -> None:
    config = AnchorConfig(w_lm=0.0)
    batches = lesson_batches(fresh, lessons(fresh, config), 4096)
    plain = total_loss(fresh, batches, config)
    spread = total_loss(fresh, batches, AnchorConfig(w_lm=0.0, sink_exclude=True))
    assert torch.isfinite(spread)
    assert plain.requires_grad
    assert spread.requires_grad


# ---------------------------------------------------------------- whole runs

WORDS = [
    *("--method", "faithful_mr1", "--data.limit", "4", "--data.records_per_step", "4", "--evaluation.n", "1"),
    *("--optim.warmup_steps", "0", "--method.streams.textual.n", "2", "--method.cf.patch", "8"),
]


def opened(folder: Path, *words: str) -> Iterator[Run]:
    return open_run(load_recipe("grpo", [*WORDS, *words]), folder)  # type: ignore[return-value]


def weights(run: Run) -> dict[str, Tensor]:
    return {n: p.detach().clone() for n, p in run.policy.model.named_parameters()}


@pytest.mark.slow
def test_the_token_learns_to_look_at_the_region(tmp_path: Path) -> None:
    masses = []
    with opened(tmp_path, "--optim.lr", "3e-3", "--method.anchor.steps", "200", "--train.steps", "1") as run:
        while run.step < 200 and (len(masses) < 10 or min(masses[-5:]) < 0.85):
            run.enter_stage()
            masses.append(anchor(run)[1].metrics["anchor/region_mass"])
            run.step += 1
    assert masses[0] < 0.4
    assert min(masses[-5:]) > 0.8


def test_the_vision_tower_stays_unless_it_is_released(tmp_path: Path) -> None:
    for name, frozen in (("frozen", "true"), ("free", "false")):
        words = ["--method.anchor.freeze_vision", frozen, "--method.anchor.steps", "1", "--train.steps", "1"]
        with opened(tmp_path / name, *words) as run:
            before = weights(run)
            run.enter_stage()
            anchor(run)
            moved = {n for n, p in weights(run).items() if not torch.equal(p, before[n])}
            assert any("language_model" in n for n in moved)
            assert any("visual" in n for n in moved) == (frozen == "false")
            assert all(p.requires_grad for p in run.policy.model.parameters())


def test_first_steps_may_train_the_row_alone(tmp_path: Path) -> None:
    words = ["--method.anchor.row_steps", "1", "--method.anchor.steps", "2", "--train.steps", "1"]
    with opened(tmp_path, *words, "--optim.weight_decay", "0.1") as run:
        before = weights(run)
        run.enter_stage()
        metrics = anchor(run)[1].metrics
        after = weights(run)
        changed = {n for n in after if not torch.equal(after[n], before[n])}
        assert len(changed) == 1
        name = changed.pop()
        rows = (after[name] != before[name]).any(1).nonzero().flatten().tolist()
        assert rows == [run.policy.tokenizer("<Focus>")["input_ids"][0]]
        assert metrics["update/lr"] == 1e-4


def test_records_that_say_nothing_are_left_out_and_counted(tmp_path: Path) -> None:
    with opened(tmp_path, "--method.anchor.steps", "1", "--method.anchor.lm_target", "none") as run:
        config, focus = run.stage.anchor, run.stage.focus
        assert config is not None
        assert focus is not None
        plain, large = make_record("p"), make_record("l")
        large = replace(large, regions=(Region(box=Box(0, 0, 90, 64)),))
        found = lessons_of(run, [plain, large, replace(plain, id="n", regions=())], config, focus)
        assert len(found.lessons) == 1
        assert found.counts == {
            "anchor/records": 1, "anchor/without_regions": 1, "anchor/too_large": 1, "anchor/without_reply": 1,
        }  # fmt: skip


def test_distilled_replies_are_right_and_those_of_the_start(tmp_path: Path) -> None:
    from sightline.language.parse import read

    with opened(tmp_path, "--method.anchor.steps", "9", "--optim.lr", "1e-2") as run:
        config, focus = run.stage.anchor, run.stage.focus
        assert config is not None
        assert focus is not None
        records = run.data.next()
        before = lessons_of(run, records, config, focus)
        with torch.no_grad():
            for parameter in run.policy.model.parameters():
                parameter.mul_(0.5)
        after = lessons_of(run, records, config, focus)
        texts = [one.rollout.text for one in before.lessons]
        assert texts == [one.rollout.text for one in after.lessons]
        assert any(texts)
        for one in before.lessons:
            reply = one.rollout.text.removeprefix(focus.prefix)
            if len(one.rollout.ids):
                assert read(reply, run.policy.frame, [(192, 192)]).answer == one.rollout.record.answer  # type: ignore[list-item]
        assert before.counts["anchor/without_reply"] == sum(not len(one.rollout.ids) for one in before.lessons)


def test_the_stage_has_a_rate_and_an_optimiser_of_its_own(tmp_path: Path) -> None:
    words = ["--method.anchor.steps", "2", "--train.steps", "2", "--method.anchor.lr", "5e-6", "--optim.lr", "1e-4"]
    with opened(tmp_path, *words) as run:
        rates, moments = [], []
        while run.step < run.steps:
            run.enter_stage()
            moments.append(len(run.learner.optimiser.adamw.state))
            rates.append(learn(run)[1].metrics["update/lr"])
            run.step += 1
        assert rates == pytest.approx([5e-6, 5e-6, 1e-4, 1e-4])
        assert moments[0] == moments[2] == 0
        assert moments[1] > 0
        assert run.start is None


@pytest.mark.slow
def test_a_run_resumes_exactly_across_the_stages(tmp_path: Path) -> None:
    words = ["--method.anchor.steps", "2", "--train.steps", "2", "--method.focus.token", "<Look>"]

    def until(folder: Path, *stops: int) -> tuple[dict[str, Tensor], Any, tuple[int, ...]]:
        for stop in stops:
            with opened(folder, *words) as run:
                while run.step < stop:
                    run.enter_stage()
                    learn(run)
                    run.step += 1
                save(run)
                found = weights(run), run.learner.optimiser.adamw.state_dict()["state"], run.policy.banned
        return found

    whole = until(tmp_path / "whole", 4)
    for stop in (1, 2, 3):
        parts = until(tmp_path / str(stop), stop, 4)
        assert whole[2] == parts[2]
        assert all(torch.equal(whole[0][n], parts[0][n]) for n in whole[0])
        for key, state in whole[1].items():
            assert all(torch.equal(value, parts[1][key][name]) for name, value in state.items())


@pytest.mark.slow
@pytest.mark.parametrize(
    "words",
    [
        "--method.focus.count 2 --method.score.attend_to focus_map --method.reward.anchor_coef_rl 0.1",
        "--method.focus.mode generated --method.score.axis region",
        "--method.focus.reuse <back> --method.anchor.lm_target dataset --method.score.axis both",
        "--method.focus.token <Look> --method.anchor.lm_target focus_only --method.anchor.w_kl 0.1",
        "--method.anchor.lm_target none --method.causal.estimator full_kl --method.cf.kind text_only",
        "--method.anchor.sink_exclude true --method.causal.estimator jsd --method.cf.kind attn_block",
        "--method.cf.draws 2 --method.causal.estimator logratio_pos --method.score.weights soft",
    ],
)
def test_every_way_runs_through_both_stages(tmp_path: Path, words: str) -> None:
    with opened(tmp_path, "--method.anchor.steps", "1", "--train.steps", "1", *words.split()) as run:
        while run.step < run.steps:
            run.enter_stage()
            metrics = learn(run)[1].metrics
            assert all(np.isfinite(v) for v in metrics.values())
            run.step += 1
        assert 0 <= metrics["reward/textual/attention"] <= 1
        assert metrics["reward/textual/masked"] == 0
