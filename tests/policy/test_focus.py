"""The token of its own: never fewer rows, explicit rows, taken over or added, kept across saving."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from sightline.credit.config import FocusConfig
from sightline.errors import UserError
from sightline.policy.focus import add_focus_token, token_id
from sightline.policy.load import Policy, load_policy
from sightline.policy.save import save_policy

NEW = FocusConfig(token="<Look>")


@pytest.fixture
def fresh(checkpoints: dict[str, Path]) -> Policy:
    return load_policy(checkpoints["qwen3_vl"])


def rows(policy: Policy) -> torch.Tensor:
    return policy.model.get_input_embeddings().weight.detach()


def test_a_known_token_changes_nothing_but_who_may_write_it(fresh: Policy) -> None:
    before, size = rows(fresh).clone(), len(fresh.tokenizer)
    token = add_focus_token(fresh, FocusConfig())
    assert token == token_id(fresh, "<Focus>")
    assert torch.equal(rows(fresh), before)
    assert len(fresh.tokenizer) == size
    assert token in fresh.banned
    assert fresh.module.bias[token] < -1e8
    assert add_focus_token(fresh, FocusConfig(mode="generated")) == token
    assert token not in fresh.banned


def test_a_new_token_takes_a_spare_row(fresh: Policy) -> None:
    before, words = rows(fresh).clone(), len(fresh.tokenizer)
    token = add_focus_token(fresh, NEW)
    after = rows(fresh)
    assert token == words
    assert after.shape == before.shape
    assert after[token] == pytest.approx(before[:words].mean(0), abs=1e-6)
    others = torch.arange(len(after)) != token
    assert torch.equal(after[others], before[others])
    assert fresh.tokenizer("a <Look>\n b")["input_ids"].count(token) == 1
    spare = set(range(words + 1, len(after)))
    assert spare <= set(fresh.banned)
    assert add_focus_token(fresh, NEW) == token


def test_a_row_from_a_description(fresh: Policy) -> None:
    config = FocusConfig(token="<Look>", initialise="description", description=" focus region", mode="generated")
    ids = fresh.tokenizer(" focus region")["input_ids"]
    wanted = rows(fresh)[ids].mean(0)
    token = add_focus_token(fresh, config)
    assert rows(fresh)[token] == pytest.approx(wanted, abs=1e-6)
    assert token not in fresh.banned


def test_the_matrix_grows_to_a_multiple_of_64_and_never_shrinks(fresh: Policy) -> None:
    before = rows(fresh).clone()
    tokens = [add_focus_token(fresh, FocusConfig(token=f"<Look{i}>")) for i in range(9)]
    after = rows(fresh)
    assert len(after) % 64 == 0
    assert len(after) > len(before) > len(fresh.tokenizer) - 9
    assert torch.equal(after[: tokens[0]], before[: tokens[0]])
    assert fresh.model.config.text_config.vocab_size == len(after) == len(fresh.module.bias)
    assert set(tokens) <= set(fresh.banned)


def test_output_rows_of_their_own_are_initialised_too(fresh: Policy) -> None:
    head = torch.nn.Linear(*reversed(rows(fresh).shape), bias=False)
    fresh.model.lm_head = head
    token = add_focus_token(fresh, NEW)
    assert head.weight[token].detach() == pytest.approx(head.weight[:token].mean(0).detach(), abs=1e-6)


def test_the_token_survives_saving(fresh: Policy, tmp_path: Path) -> None:
    tokens = [add_focus_token(fresh, FocusConfig(token=f"<Look{i}>")) for i in range(9)]
    save_policy(fresh, tmp_path / "one")
    again = load_policy(tmp_path / "one")
    assert torch.equal(rows(again), rows(fresh))
    assert token_id(again, "<Look8>") == tokens[8]
    for i in range(9):
        add_focus_token(again, FocusConfig(token=f"<Look{i}>"))
    assert again.banned == fresh.banned
    save_policy(again, tmp_path / "two")
    assert (tmp_path / "one/tokenizer.json").read_bytes() == (tmp_path / "two/tokenizer.json").read_bytes()


def test_an_unused_token_can_be_taken_over(fresh: Policy) -> None:
    before = rows(fresh).clone()
    token = add_focus_token(fresh, FocusConfig(reuse="<back>"))
    assert token == token_id(fresh, "<back>")
    assert torch.equal(rows(fresh), before)


@pytest.mark.parametrize("reuse", ["two words", "<|im_end|>", "<|image_pad|>", "<|endoftext|>"])
def test_tokens_in_use_are_not_taken_over(fresh: Policy, reuse: str) -> None:
    with pytest.raises(UserError, match=r"one token|chat format"):
        add_focus_token(fresh, FocusConfig(reuse=reuse))


def test_pieces_spell_the_text(fresh: Policy) -> None:
    ids = [*fresh.tokenizer("<Focus>\n<think> naïve</think>")["input_ids"], fresh.eos[0]]
    pieces = fresh.pieces(ids)
    assert b"".join(pieces).decode() == fresh.decode(ids) == "<Focus>\n<think> naïve</think>"
    assert pieces[-1] == b""
    assert [fresh.piece(i) for i in ids[:-1]] == pieces[:-1]
    assert fresh.piece(ids[-1]) == b"<|im_end|>"
