"""Whole runs with an adapter, a frozen tower or small formats: they step, save, resume bit by bit, and load."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from sightline.config import load_recipe
from sightline.policy.focus import token_id
from sightline.policy.load import load_policy
from sightline.train.anchoring import anchor
from sightline.train.loop import learn
from sightline.train.run import Run, open_run
from sightline.train.saving import save

pytest.importorskip("peft")

WORDS = [
    *("--method.streams.textual.n", "4", "--data.records_per_step", "3", "--data.train", "scenes:hard"),
    *(
        "--sampling.max_new_tokens",
        "24",
        "--sampling.temperature",
        "1.5",
        "--evaluation.n",
        "1",
        "--optim.warmup_steps",
        "0",
        "--optim.lr",
        "1e-2",
    ),
]
FOCUSED = [
    *("--method", "faithful_mr1", "--data.limit", "4", "--method.streams.textual.n", "2", "--method.cf.patch", "8"),
    *("--method.anchor.steps", "2", "--method.focus.token", "<Look>"),
]
LORA = ["--model.lora.rank", "4"]


def opened(folder: Path, *words: str) -> Iterator[Run]:
    return open_run(load_recipe("grpo", [*WORDS, *words]), folder)  # type: ignore[return-value]


def until(folder: Path, words: list[str], *stops: int) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The trained weights and the learner's state after the last stop, having been opened anew for each."""
    for stop in stops:
        with opened(folder, *words) as run:  # type: ignore[attr-defined]
            while run.step < stop:
                run.enter_stage()
                learn(run)
                run.step += 1
            save(run)
            trained = {n: p.detach().clone() for n, p in run.policy.model.named_parameters() if p.requires_grad}
            found = trained, run.learner.optimiser.adamw.state_dict()["state"]
    return found


def equal(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor):
        return torch.equal(one, other)
    return one.keys() == other.keys() and all(equal(one[n], other[n]) for n in one)


@pytest.mark.parametrize(
    "words",
    [
        [*LORA, "--method.objective.kl", "0.1"],
        [*LORA, "--model.lora.dora", "true", "--model.dtype", "bfloat16", "--optim.inner_steps", "2"],
        [*LORA, "--model.dtype", "bfloat16", "--model.masters", "stochastic", "--optim.states", "8bit"],
        [*LORA, "--model.lora.quantise", "nf4", "--model.checkpointing", "true"],
        [*LORA, "--model.lora.dropout", "0.3"],
        ["--model.train_vision", "false", "--model.dtype", "bfloat16", "--model.masters", "stochastic"],
        [*FOCUSED, *LORA, "--train.steps", "2", "--method.objective.kl", "0.1", "--method.anchor.row_steps", "1"],
    ],
    ids=["lora", "dora", "small", "qlora", "dropout", "stochastic", "focus"],
)
@pytest.mark.slow
def test_a_run_resumes_bit_by_bit(tmp_path: Path, words: list[str]) -> None:
    if "8bit" in words or "nf4" in words:
        pytest.importorskip("bitsandbytes")
    last = 4 if "faithful_mr1" in words else 3
    whole = until(tmp_path / "whole", words, last)
    parts = until(tmp_path / "parts", words, 1, last - 1, last)
    assert equal(whole[0], parts[0])
    assert equal(whole[1], parts[1])
    start = until(tmp_path / "start", words, 0)[0]
    moved = {n for n in whole[0] if not torch.equal(whole[0][n], start[n])}
    assert len(moved) > 0.8 * len(start)
    again = load_policy(
        max((tmp_path / "whole/checkpoints").glob("step-*")), dtype="bfloat16" if "bfloat16" in words else "float32"
    )
    ours = dict(again.model.named_parameters())
    assert all(torch.equal(ours[n], whole[0][n]) for n in whole[0])


def test_the_row_alone_may_begin_beside_an_adapter(tmp_path: Path) -> None:
    with opened(tmp_path, *FOCUSED, *LORA, "--method.anchor.row_steps", "1") as run:  # type: ignore[attr-defined]
        before = {n: p.detach().clone() for n, p in run.policy.model.named_parameters()}
        run.enter_stage()
        anchor(run)
        moved = {n for n, p in run.policy.model.named_parameters() if not torch.equal(p, before[n])}
        assert all("trainable_tokens_delta" in n for n in moved)
        assert moved
        assert token_id(run.policy, "<Look>") is not None


@pytest.mark.parametrize(("kl", "inner", "old", "reference"), [(0, 1, 0, 0), (0.1, 1, 0, 1), (0, 2, 1, 0)])
def test_a_step_runs_only_the_passes_it_needs(tmp_path: Path, kl: float, inner: int, old: int, reference: int) -> None:
    """Forwards of the root module: updates, one scoring pass off-policy, one of the reference with KL."""
    words = ["--method.objective.kl", str(kl), "--optim.inner_steps", str(inner), "--train.log_attention", "never"]
    with opened(tmp_path, *LORA, *words) as run:  # type: ignore[attr-defined]
        with_adapter: list[bool] = []
        without: list[bool] = []

        def count(*_: Any) -> None:
            layer = next(m for m in run.policy.model.modules() if hasattr(m, "lora_A") and hasattr(m, "base_layer"))
            (without if layer.disable_adapters else with_adapter).append(torch.is_grad_enabled())

        run.policy.module.register_forward_hook(count)
        run.enter_stage()
        groups, _ = learn(run)
        assert len(groups) == 3
        # every group is a row of its own here; those without signal are left out of updates without KL
        assert with_adapter.count(False) == old
        assert len(without) == (with_adapter.count(True) if reference else 0)
        assert 0 < with_adapter.count(True) <= inner
        assert not any(without)
