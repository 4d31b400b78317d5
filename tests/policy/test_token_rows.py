"""Rows of single tokens that are trained beside an adapter: values, gradients, checkpoints, the row of the start."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from eager import batch_of
from sightline.config.sections import Lora
from sightline.credit.config import FocusConfig
from sightline.policy.batch import Batch
from sightline.policy.focus import add_focus_token, token_id
from sightline.policy.load import Policy, load_policy
from sightline.policy.lora import merge, train_rows
from sightline.policy.save import save_policy

pytest.importorskip("peft")
NEW = FocusConfig(token="<Look>", mode="generated")


@pytest.fixture(params=["tied", "apart"])
def fresh(request: pytest.FixtureRequest, checkpoints: dict[str, Path], tmp_path: Path) -> Policy:
    """With an adapter and a new token; output rows tied to the embeddings, or a matrix apart."""
    folder = checkpoints["qwen3_vl"]
    if request.param == "apart":
        loaded = load_policy(folder)
        loaded.model.config.tie_word_embeddings = loaded.model.config.text_config.tie_word_embeddings = False
        loaded.model.lm_head.weight = nn.Parameter(loaded.model.lm_head.weight.detach().clone() * 1.5)
        save_policy(loaded, tmp_path / "apart")
        folder = tmp_path / "apart"
    policy = load_policy(folder, lora=Lora(rank=2))
    train_rows(policy, [add_focus_token(policy, NEW)])
    return policy


def rows(policy: Policy) -> dict[str, Tensor]:
    return {n: p for n, p in policy.model.named_parameters() if "trainable_tokens_delta" in n}


def with_token(policy: Policy) -> Batch:
    """A batch in which the token is read once and predicted once."""
    batch, token = batch_of(policy), token_id(policy, "<Look>")
    assert token is not None
    ids, target = batch.ids.clone(), batch.target.clone()
    ids.view(-1)[batch.at[3]] = target[3] = token
    return replace(batch, ids=ids, target=target)


def moved(policy: Policy) -> Policy:
    with torch.no_grad():
        for number, row in enumerate(rows(policy).values()):
            row.add_(torch.linspace(-0.3, 0.4, row.numel()).view_as(row) * (number + 1))
    return policy


def test_new_rows_change_nothing(fresh: Policy) -> None:
    batch = with_token(fresh)
    with torch.no_grad():
        ours = fresh.module(batch).logprobs
        with fresh.reference():
            assert torch.equal(fresh.module(batch).logprobs, ours)


def test_rows_act_where_the_token_is_read_and_written(fresh: Policy) -> None:
    batch = with_token(fresh)
    before = fresh.module(batch).logprobs.detach()
    after = moved(fresh).module(batch).logprobs.detach()
    assert float((after - before).abs().max()) > 1e-3
    with fresh.reference(), torch.no_grad():
        assert torch.equal(fresh.module(batch).logprobs, before)
    merge(fresh)
    torch.testing.assert_close(fresh.module(batch).logprobs.detach(), after, atol=2e-6, rtol=0)
    assert not rows(fresh)


def test_gradients_are_those_of_the_rows_of_the_matrix(fresh: Policy) -> None:
    batch, token = with_token(moved(fresh)), token_id(fresh, "<Look>")
    fresh.module(batch).logprobs.sum().backward()
    found = [row.grad for row in rows(fresh).values()]
    assert all(g is not None and bool(g.any()) for g in found)
    merge(fresh)
    fresh.model.requires_grad_(True)
    fresh.module(batch).logprobs.sum().backward()
    layers = [fresh.model.get_input_embeddings(), fresh.model.get_output_embeddings()]
    for got, layer in zip(found, layers[: len(found)], strict=True):
        assert got is not None
        torch.testing.assert_close(got[0], layer.weight.grad[token], atol=1e-5, rtol=1e-4)


def test_nothing_else_of_the_matrix_is_trained(fresh: Policy) -> None:
    trained = {n for n, p in fresh.model.named_parameters() if p.requires_grad}
    assert all("lora_" in n or "trainable_tokens_delta" in n for n in trained)
    tied = fresh.model.config.tie_word_embeddings
    assert [tuple(r.shape) for r in rows(fresh).values()] == [(1, 48)] * (1 if tied else 2)


def test_a_checkpoint_keeps_the_rows_and_those_of_the_start(fresh: Policy, tmp_path: Path) -> None:
    batch = with_token(moved(fresh))
    save_policy(fresh, tmp_path / "saved")
    again = load_policy(tmp_path / "saved")
    token = add_focus_token(again, NEW)
    train_rows(again, [token])
    assert again.added == ("<Look>",)
    assert again.banned == fresh.banned
    for one, other in zip(rows(fresh).values(), rows(again).values(), strict=True):
        assert torch.equal(one, other)
    with torch.no_grad():
        assert torch.equal(again.module(batch).logprobs, fresh.module(batch).logprobs)
        with fresh.reference(), again.reference():
            # the mean of all rows, which is in no file of the base
            assert torch.equal(again.module(batch).logprobs, fresh.module(batch).logprobs)
    save_policy(again, tmp_path / "twice")
    for name in ("adapter_model.safetensors", "token_rows.safetensors", "lora.json", "tokenizer.json"):
        assert (tmp_path / "saved" / name).read_bytes() == (tmp_path / "twice" / name).read_bytes()


def test_a_second_token_keeps_the_first_and_the_adapter(fresh: Policy) -> None:
    first = moved(fresh)
    kept = {n: p.detach().clone() for n, p in first.model.named_parameters() if "lora_" in n}
    token = token_id(first, "<Focus>")
    assert token is not None
    train_rows(first, [token])
    assert all(torch.equal(p, kept[n]) for n, p in first.model.named_parameters() if "lora_" in n)
    assert all(len(row) == 2 for row in rows(first).values())
