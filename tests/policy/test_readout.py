"""Read-outs against eager attention matrices: token trees, packed rows, padded batches, checkpointing, decoding."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import pytest
import torch

from eager import gradients, relative_difference, rollouts, stock_attention, tree_of, whole_paths
from sightline.policy.batch import Batch, collate
from sightline.policy.load import Policy
from sightline.policy.readout import MapReadout, MassReadout, Readouts
from sightline.policy.tree import Tree
from sightline.types import Rollout

MASS, GRADIENT = 1e-6, 1e-5
SEGMENTS = 4


class Case:
    """Groups laid out as rows of trees, with the requests for every token of every reply."""

    def __init__(self, policy: Policy, layout: Sequence[Sequence[int]]) -> None:
        self.policy = policy
        self.groups: list[list[Rollout]] = [rollouts(policy, seed) for row in layout for seed in row]
        self.trees: list[Tree] = [tree_of(policy, g) for g in self.groups]
        made = iter(self.trees)
        rows = [[next(made) for _ in row] for row in layout]
        self.batch: Batch = collate(rows, policy.pixels, pad=policy.pad)
        self.places = [(r, sum(len(t) for t in row[:i])) for r, row in enumerate(rows) for i in range(len(row))]
        count, tokens = self.batch.ids.shape
        weights = torch.from_numpy(np.random.default_rng(0).random((count, SEGMENTS, tokens))).float()
        self.segments = weights / weights.sum(1, keepdim=True)
        wanted: list[list[int]] = [[] for _ in rows]
        for _, _, _, row, positions, _ in self.tokens():
            wanted[row].extend(int(p) for p in positions)
        wanted = [sorted(set(w)) for w in wanted]
        width = max(len(w) for w in wanted)
        self.rows = torch.tensor([w + [-1] * (width - len(w)) for w in wanted])
        self.slot = [{p: i for i, p in enumerate(w)} for w in wanted]
        visual = [torch.nonzero(ids == policy.image_token)[:, 0].tolist() for ids in self.batch.ids]
        width = max(len(v) for v in visual) + 1
        self.keys = torch.tensor([v + [-1] * (width - len(v)) for v in visual])

    def tokens(self) -> Iterator[tuple[int, int, Rollout, int, np.ndarray, np.ndarray]]:
        """Per Rollout: its group and number, its row, layout positions of its reply, and of its whole path."""
        for g, (tree, (row, offset)) in enumerate(zip(self.trees, self.places, strict=True)):
            for i, (where, path) in enumerate(zip(tree.where, whole_paths(tree), strict=True)):
                yield g, i, self.groups[g][i], row, where + offset, path + offset

    @property
    def layers(self) -> range:
        return range(self.policy.model.config.text_config.num_hidden_layers)


@pytest.mark.parametrize("layout", [[[0]], [[1, 2], [3]]], ids=["tree", "packed"])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_equals_eager_single_sequences(policy: Policy, layout: list[list[int]], checkpointing: bool) -> None:
    """Masses and maps to 1e-6, the gradient of a loss on maps and log-probs to 1e-5, against one stock forward each."""
    case = Case(policy, layout)
    generator = torch.Generator().manual_seed(0)
    policy.model.train(checkpointing)
    if checkpointing:
        policy.model.activation_checkpointing_enable({"use_reentrant": False})
    masses = MassReadout(case.rows, case.segments, case.layers)
    maps = MapReadout(case.rows, case.keys, case.layers)
    logprobs = case.batch.scatter(policy.module(case.batch, readout=Readouts([masses, maps])).logprobs)
    ours = policy.module(case.batch, readout=(again := MapReadout(case.rows, case.keys, case.layers))).logprobs.sum()
    pairs: list[tuple[torch.Tensor, torch.Tensor]] = []
    total = torch.zeros(())
    for g, i, rollout, row, positions, path in case.tokens():
        matrices, want = stock_attention(policy, rollout)
        np.testing.assert_allclose(logprobs[g][i], want.detach().numpy(), atol=1e-5)
        total = total + want.sum()
        slots = torch.tensor([case.slot[row][int(p)] for p in positions])
        visual = torch.from_numpy(np.flatnonzero(np.isin(path, case.keys[row].numpy())))
        columns = torch.from_numpy(np.flatnonzero(np.isin(case.keys[row].numpy(), path)))
        start = len(rollout.prompt_ids)
        for layer in case.layers:
            matrix = matrices[layer][0][:, start:]
            got = maps.maps[layer][row][:, slots]
            torch.testing.assert_close(got[..., columns], matrix[..., visual], atol=MASS, rtol=0)
            others = torch.ones(got.shape[-1], dtype=torch.bool).index_fill_(0, columns, False)
            assert not got[..., others].any()
            expected = matrix @ case.segments[row][:, torch.from_numpy(path)].T
            torch.testing.assert_close(masses.masses[layer][row][:, slots], expected, atol=MASS, rtol=0)
            want, got = matrix[..., visual], again.maps[layer][row][:, slots][..., columns]
            weight = torch.randn(want.shape, generator=generator)
            pairs.append(((got * weight).sum(), (want * weight).sum()))
    first = dict(again.maps)
    (ours + 30 * torch.stack([a for a, _ in pairs]).sum()).backward()
    assert all(again.maps[n] is first[n] for n in case.layers)  # recomputation wrote nothing
    policy.model.activation_checkpointing_disable()
    policy.model.eval()
    found = gradients(policy)
    (total + 30 * torch.stack([b for _, b in pairs]).sum()).backward()
    assert relative_difference(found, gradients(policy)) < GRADIENT
