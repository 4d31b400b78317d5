"""A token of its own for attention to be supervised at: found, taken over or added; rows are added, never cut away.

Released checkpoints hold more embedding rows than their tokenizers have words. A new token takes such a spare row; only
where none is left the matrix grows, to a multiple of 64. Resizing it to the tokenizer's length would shrink it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from sightline.errors import UserError
from sightline.policy.forward import ban_bias

if TYPE_CHECKING:
    from sightline.credit.config import FocusConfig
    from sightline.policy.load import Policy

__all__ = ["add_focus_token", "adopt_token", "row_masks", "token_id"]

MULTIPLE = 64


def token_id(policy: Policy, token: str) -> int | None:
    """The id of a text that is one token of the policy's vocabulary, else None."""
    ids = policy.tokenizer(token, add_special_tokens=False)["input_ids"]
    return int(ids[0]) if len(ids) == 1 else None


def add_focus_token(policy: Policy, config: FocusConfig) -> int:
    """Makes the token of a focus config part of the policy and returns its id; a row that is there stays as it is.

    A new row is the mean of all rows of the vocabulary, or of those of some words; so is the output row where it is a
    matrix of its own. Where the token is forced, the policy is kept from writing it.

    Raises:
        UserError: the token to take over is unknown, ends a turn or may not be written; or the policy's tokenizer
            cannot take a new one.
    """
    known = token_id(policy, config.token) if config.reuse is None else _taken_over(policy, config)
    token = _added(policy, config) if known is None else known
    _ban(policy, token, is_written=config.mode == "generated")
    return token


def _taken_over(policy: Policy, config: FocusConfig) -> int:
    known = token_id(policy, config.reuse or "")
    if known is None:
        raise UserError(f"{config.reuse!r} is not one token of this checkpoint", where="method.focus.reuse")
    if known in policy.eos or known in policy.adapter.placeholders()[1] or known == policy.pad:
        raise UserError(f"{config.reuse!r} is in use by the chat format", where="method.focus.reuse")
    return known


def _added(policy: Policy, config: FocusConfig) -> int:
    new = adopt_token(policy, config.token, where="method.focus.token")
    words = policy.tokenizer(config.description, add_special_tokens=False)["input_ids"]
    source = slice(0, new) if config.initialise == "mean" else words
    with torch.no_grad():
        for weight in _matrices(policy):
            weight[new] = weight[source].float().mean(0).to(weight.dtype)
    return new


def adopt_token(policy: Policy, token: str, *, where: str) -> int:
    """Takes a token into the tokenizer and makes room for its row, which stays as it is; returns the id.

    Raises:
        UserError: the tokenizer cannot take it.
    """
    added = policy.tokenizer.add_special_tokens(
        {"additional_special_tokens": [token]}, replace_extra_special_tokens=False
    )
    new = token_id(policy, token)
    if added != 1 or new is None or not hasattr(policy.tokenizer, "backend_tokenizer"):
        raise UserError(f"the tokenizer does not take {token!r} as one token", where=where)
    policy.added = (*policy.added, token)
    _grow(policy, new)
    return new


def row_masks(policy: Policy, token: int) -> list[tuple[Tensor, Tensor]]:
    """The parameters that hold a token's rows of input and output embeddings, each with a 1 where the row is.

    Beside an adapter these are the rows that are trained apart from their matrices.
    """
    if policy.lora:
        from sightline.policy.token_rows import held_rows

        found = held_rows(policy.model)
    else:
        found = [(weight, range(len(weight))) for weight in _matrices(policy)]
    masks = []
    for parameter, ids in found:
        only = torch.zeros(len(ids), 1, device=parameter.device)
        only[ids.index(token)] = 1.0
        masks.append((parameter, only))
    return masks


def _grow(policy: Policy, new: int) -> None:
    """Rows up to `new`, if there are too few, and then to a multiple of 64; existing rows keep their values."""
    rows = int(policy.model.get_input_embeddings().weight.shape[0])
    if new < rows:
        return
    wanted = -(-(new + 1) // MULTIPLE) * MULTIPLE
    policy.model.resize_token_embeddings(wanted, mean_resizing=False)
    policy.model.config.text_config.vocab_size = wanted


def _matrices(policy: Policy) -> list[Tensor]:
    """Input embeddings, and output rows where they are not the same tensor."""
    embedded, written = (
        layer.weight for layer in (policy.model.get_input_embeddings(), policy.model.get_output_embeddings())
    )
    # shares of sharded matrices have no address of their own
    is_tied = embedded is written or 0 != embedded.data_ptr() == written.data_ptr()
    return [embedded] if is_tied else [embedded, written]


def _ban(policy: Policy, token: int, *, is_written: bool) -> None:
    """Spare rows stay banned, the token where nobody is to write it."""
    vocab = int(policy.model.get_output_embeddings().weight.shape[0])
    kept = {i for i in policy.banned if i < len(policy.tokenizer) and i != token}
    policy.banned = tuple(sorted({*kept, *([] if is_written else [token]), *range(len(policy.tokenizer), vocab)}))
    policy.module.bias = ban_bias(vocab, policy.banned).to(policy.module.bias.device)
