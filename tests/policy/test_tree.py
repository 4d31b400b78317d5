"""The token tree against the padded batch and against single sequences, both families."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from conftest import make_record
from sightline.language.prompts import prompt
from sightline.policy.attention import dense_mask
from sightline.policy.batch import Batch, collate, microbatches
from sightline.policy.forward import TokenLogprobs
from sightline.policy.load import Policy
from sightline.policy.tree import Path, Segment, TreeRules, build_tree, mrope_positions, rollout_path
from sightline.types import Credit, Prompt, Rollout
from stock import reference_logprobs

RULES = TreeRules(image_token=99, grid=lambda _: (1, 1))


def rollouts(policy: Policy, seed: int = 0, images: int = 1) -> list[Rollout]:
    """Two streams, ragged replies, an end-of-turn id inside one of them."""
    rng = np.random.default_rng(seed)
    record = make_record(f"r{seed}", ((96, 64), (50, 90))[:images], seed)
    out = []
    for stream in ("grounded", "textual"):
        shown: Prompt = prompt(record, stream, stream, "compact")
        ids = policy.encode(shown).ids
        for branch, length in enumerate((1, 7, 12, 3)):
            reply = rng.integers(256, 1200, length)
            reply[length // 2] = policy.eos[0]
            out.append(
                Rollout(
                    prompt=shown, branch=(branch,), prompt_ids=ids, ids=reply, sampled=np.ones(length, bool),
                    logprobs=np.zeros(length, np.float32), text="", finish="stop",
                )
            )  # fmt: skip
    return out


def batch_of(policy: Policy, groups: list[list[Rollout]]) -> Batch:
    trees = [build_tree([rollout_path(r, policy.image_token) for r in g], policy.rules) for g in groups]
    return collate([[t] for t in trees], policy.pixels, pad=policy.pad)


def scores(policy: Policy, batch: Batch, temperature: float) -> torch.Tensor:
    assert batch.pixels is not None
    assert batch.grids is not None
    visual = (policy.adapter.vision(batch.pixels, batch.grids), batch.visual_at, batch.visual_from)
    mask = dense_mask(batch.end, torch.float32)
    hidden = policy.adapter.text(batch.ids, batch.positions, mask, visual)
    return policy.module.scores(hidden.reshape(-1, hidden.shape[-1])[batch.predictor], temperature)


def gradients(policy: Policy) -> dict[str, torch.Tensor]:
    found = {n: p.grad.clone() for n, p in policy.model.named_parameters() if p.grad is not None}
    policy.model.zero_grad()
    return found


def relative_difference(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> float:
    assert a.keys() == b.keys()
    top = sum(float((a[n] - b[n]).square().sum()) for n in a) ** 0.5
    return top / sum(float(b[n].square().sum()) for n in b) ** 0.5


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("images", [1, 2])
def test_tree_equals_single_sequences_in_logprobs_and_gradients(
    policy: Policy, checkpointing: bool, images: int
) -> None:
    group = rollouts(policy, images=images)
    weights = [torch.from_numpy(np.random.default_rng(i).normal(size=len(r.ids))).float() for i, r in enumerate(group)]
    reference = reference_logprobs(policy, group)
    sum((w * lp).sum() for w, lp in zip(weights, reference, strict=True)).backward()
    expected = gradients(policy)

    policy.model.train(checkpointing)
    if checkpointing:
        policy.model.activation_checkpointing_enable({"use_reentrant": False})
    batch = batch_of(policy, [group])
    out = policy.module(batch, entropies=True)
    for got, want in zip(batch.scatter(out.logprobs)[0], reference, strict=True):
        np.testing.assert_allclose(got, want.detach().numpy(), atol=1e-5)
    (batch.gather([[w.numpy() for w in weights]]) * 0).sum()  # shapes agree
    loss = torch.zeros(())
    for slot, w in zip(batch.slots[0], weights, strict=True):
        loss = loss + (w * out.logprobs[torch.from_numpy(slot)]).sum()
    loss.backward()
    policy.model.activation_checkpointing_disable()
    policy.model.eval()
    assert relative_difference(gradients(policy), expected) < 1e-4


def test_rows_of_several_trees_do_not_see_each_other(policy: Policy) -> None:
    groups = [rollouts(policy, seed) for seed in (1, 2, 3)]
    trees = [build_tree([rollout_path(r, policy.image_token) for r in g], policy.rules) for g in groups]
    with torch.no_grad():
        packed = collate([trees[:2], trees[2:]], policy.pixels, pad=policy.pad)
        together = packed.scatter(policy.module(packed).logprobs)
        for tree, got in zip(trees, together, strict=True):
            alone = collate([[tree]], policy.pixels, pad=policy.pad)
            for a, b in zip(alone.scatter(policy.module(alone).logprobs)[0], got, strict=True):
                np.testing.assert_allclose(a, b, atol=1e-5)


def test_entropies_equal_the_definition(policy: Policy, monkeypatch: pytest.MonkeyPatch) -> None:
    group = rollouts(policy)[:1]
    batch = batch_of(policy, [group])
    out = policy.module(batch, temperature=0.7, entropies=True)
    assert out.entropies is not None
    assert not out.entropies.requires_grad
    with torch.no_grad():
        p = torch.softmax(scores(policy, batch, 0.7), -1)
    torch.testing.assert_close(out.entropies, -(p * torch.log(p.clamp(min=1e-30))).sum(-1))
    monkeypatch.setattr(policy.module, "chunk", 2)
    again = policy.module(batch, temperature=0.7, entropies=True)
    torch.testing.assert_close(out.entropies, again.entropies)
    torch.testing.assert_close(out.logprobs, again.logprobs)
    assert 0 < float(out.entropies.min()) < np.log((policy.module.bias == 0).sum().item())


def test_chunked_logits_keep_the_gradient(policy: Policy, monkeypatch: pytest.MonkeyPatch) -> None:
    batch = batch_of(policy, [rollouts(policy)])
    policy.module(batch).logprobs.sum().backward()
    whole = gradients(policy)
    monkeypatch.setattr(policy.module, "chunk", 5)
    policy.module(batch).logprobs.sum().backward()
    assert relative_difference(gradients(policy), whole) < 1e-5


def test_shared_prefixes_are_stored_once(policy: Policy) -> None:
    group = rollouts(policy)
    tree = build_tree([rollout_path(r, policy.image_token) for r in group], policy.rules)
    prompts = {r.stream: r.prompt_ids for r in group}
    cut = int(np.flatnonzero(prompts["textual"] == policy.image_token)[-1]) + 2
    expected = cut + sum(len(p) - cut for p in prompts.values()) + sum(len(r.ids) for r in group)
    assert len(tree) == expected
    assert len(tree.images) == 1


def path(*segments: tuple[str, list[int]], sampled_from: int = 1) -> Path:
    return Path(
        tuple(Segment(k, np.array(ids), np.full(len(ids), i >= sampled_from)) for i, (k, ids) in enumerate(segments)),
        sampled_from,
    )


def test_layout_rule() -> None:
    tree = build_tree([path(("p", [1, 2]), ("a", [3])), path(("p", [1, 2]), ("b", [4, 5]))], RULES)
    np.testing.assert_array_equal(tree.ids, [1, 2, 3, 4, 5])
    np.testing.assert_array_equal(tree.end, [5, 5, 3, 5, 5])
    np.testing.assert_array_equal(tree.previous, [-1, 0, 1, 1, 3])
    np.testing.assert_array_equal(tree.positions[0], [0, 1, 2, 2, 3])
    assert [w.tolist() for w in tree.where] == [[2], [3, 4]]


def test_equal_tokens_merge_only_where_declared() -> None:
    same = build_tree([path(("p", [1]), ("a", [3])), path(("p", [1]), ("a", [3]))], RULES)
    other = build_tree([path(("p", [1]), ("a", [3])), path(("p", [1]), ("b", [3]))], RULES)
    assert (len(same), len(other)) == (2, 3)
    with pytest.raises(ValueError, match="tokens differ"):
        build_tree([path(("p", [1]), ("a", [3])), path(("p", [2]), ("a", [3]))], RULES)


def test_credit_folds_over_shared_tokens() -> None:
    tree = build_tree(
        [path(("p", [1]), ("s", [2, 3]), ("a", [4])), path(("p", [1]), ("s", [2, 3]), ("b", [5, 6]))], RULES
    )

    class NoImages:
        def batch(self, _: list) -> object:
            from sightline.policy.pixels import VisualInput

            empty = torch.empty(0, dtype=torch.long)
            return VisualInput(None, None, empty, empty)

    batch = collate([[tree]], NoImages())  # type: ignore[arg-type]
    credit = [
        Credit(advantage=np.full(3, 2.0), weight=np.full(3, 0.5)),
        Credit(advantage=np.full(4, -1.0), weight=np.full(4, 0.25)),
    ]
    folded = batch.with_credit([credit])
    assert folded.credit is not None
    assert folded.paths is not None
    np.testing.assert_allclose(folded.credit.positive, [1, 1, 1, 0, 0])
    np.testing.assert_allclose(folded.credit.negative, [-0.25, -0.25, 0, -0.25, -0.25])
    np.testing.assert_allclose(folded.credit.weight, [0.75, 0.75, 0.5, 0.25, 0.25])
    assert folded.paths.leaf.tolist() == [0, 0, 0, 1, 1, 1, 1]
    assert folded.paths.token.tolist() == [0, 1, 2, 0, 1, 3, 4]


def test_mrope_positions_closed_form() -> None:
    ids = np.array([5, 99, 99, 99, 99, 99, 99, 6, 7])
    positions, following = mrope_positions(ids, [(2, 3)], 99, start=10)
    np.testing.assert_array_equal(positions[0], [10, 11, 11, 11, 11, 11, 11, 14, 15])
    np.testing.assert_array_equal(positions[1], [10, 11, 11, 11, 12, 12, 12, 14, 15])
    np.testing.assert_array_equal(positions[2], [10, 11, 12, 13, 11, 12, 13, 14, 15])
    assert following == 16
    with pytest.raises(ValueError, match="image tokens"):
        mrope_positions(ids, [(2, 2)], 99)


def test_positions_equal_transformers(policy: Policy) -> None:
    group = rollouts(policy, images=2)[:1]
    ids = torch.from_numpy(np.concatenate([group[0].prompt_ids, group[0].ids]))[None]
    shown = policy.pixels.batch([(image, 0) for image in group[0].prompt.images])
    want, _ = policy.model.model.get_rope_index(
        ids, mm_token_type_ids=(ids == policy.image_token).int(), image_grid_thw=shown.grids
    )
    tree = build_tree([rollout_path(r, policy.image_token) for r in group], policy.rules)
    np.testing.assert_array_equal(tree.positions, want[:, 0].numpy())


def test_microbatches_cover_everything_once_within_the_budget() -> None:
    lengths = [5, 90, 30, 31, 7, 200]
    for packs in (False, True):
        parts = microbatches(lengths, 100, packs=packs)
        assert sorted(i for rows in parts for row in rows for i in row) == list(range(6))
        for rows in parts:
            size = len(rows) * max(sum(lengths[i] for i in row) for row in rows)
            assert size <= 100 or sum(len(row) for row in rows) == 1


def test_token_logprobs_have_the_gradient_of_log_softmax() -> None:
    z = torch.randn(7, 11, dtype=torch.float64, requires_grad=True)
    target = torch.randint(0, 11, (7,))
    assert torch.autograd.gradcheck(lambda x: TokenLogprobs.apply(x, target, True)[0], (z,))
    logprobs, entropy = TokenLogprobs.apply(z, target, True)
    torch.testing.assert_close(logprobs, torch.log_softmax(z, -1)[torch.arange(7), target])
    torch.testing.assert_close(entropy, torch.distributions.Categorical(logits=z).entropy().detach())
