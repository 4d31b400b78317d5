"""Rules of read-outs: sums, chunks, heads, memory, gradients, checkpointing, and what is refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from eager import batch_of, gradients, relative_difference, visual_keys
from sightline.errors import UserError
from sightline.policy.attention import TreeAttention, TreeLayout, attention, dense_mask
from sightline.policy.attention_rows import MapRows, head_groups, map_blocks, rows_of
from sightline.policy.batch import Batch
from sightline.policy.load import Policy
from sightline.policy.readout import MapReadout, MassReadout, Readouts, resolve_layers

HEADS, KV_HEADS, WIDTH, SCALE = 8, 2, 16, 0.3


def forest(rng: np.random.Generator, tokens: int) -> np.ndarray:
    """Trees of a root, forks and leaves, and two positions of padding at the end."""
    end = np.arange(1, tokens + 1)
    start = 0
    while start < tokens - 2:
        last = start + int(rng.integers(4, 25))
        last = last if last < tokens - 8 else tokens - 2
        fork = int(rng.integers(start + 1, last))
        end[start:fork], end[fork:last] = last, last
        if last - fork > 3:
            end[fork : fork + 2] = fork + 2
        start = last
    return end


class Layer:
    """Queries and keys of one layer over a random forest, with the log-sum-exp of the kernel."""

    def __init__(self, seed: int = 0, tokens: int = 60, dtype: torch.dtype = torch.float32) -> None:
        rng = np.random.default_rng(seed)
        torch.manual_seed(seed)
        self.tokens = tokens
        self.end = torch.from_numpy(np.stack([forest(rng, tokens) for _ in range(2)]))
        self.layout = TreeLayout(self.end)
        self.query = torch.randn(2, HEADS, tokens, WIDTH).to(dtype)
        self.key = torch.randn(2, KV_HEADS, tokens, WIDTH).to(dtype)
        self.value = torch.randn(2, KV_HEADS, tokens, WIDTH).to(dtype)
        self.rows = torch.from_numpy(np.stack([rng.permutation(tokens - 2)[:20] for _ in range(2)]))
        self.rows[0, 3] = self.rows[1, 7] = -1
        self.keys = torch.from_numpy(np.stack([rng.permutation(tokens)[:15] for _ in range(2)]))
        self.keys[1, 4] = -1

    def show(self, request: Any, layer: int = 0, rule: Any = None, has_lse: bool = True) -> None:
        """Hands the layer to a request as the attention function does."""
        whole = self.key.repeat_interleave(HEADS // KV_HEADS, 1)
        lse = TreeAttention.apply(self.query, whole, whole, self.layout, SCALE)[1] if has_lse else None  # type: ignore[index]
        request.observe(layer, self.query, self.key, self.layout if rule is None else rule, SCALE, lse)

    def exact(self) -> torch.Tensor:
        """Rows of the softmax, (2, heads, queries, tokens), in fp64."""
        key = self.key.double().repeat_interleave(HEADS // KV_HEADS, 1)
        s = SCALE * self.query.double() @ key.transpose(-1, -2) + dense_mask(self.end, torch.float64)
        return rows_of(torch.softmax(s, -1), self.rows, range(HEADS)) * (self.rows >= 0)[:, None, :, None]


def test_segments_that_cover_every_key_sum_to_one() -> None:
    """Also where no segment may be left out: weights that add up to two give sums of two."""
    layer = Layer()
    for total in (1.0, 2.0):
        segments = torch.softmax(torch.randn(2, 4, layer.tokens), 1) * total
        for has_lse in (True, False):
            request = MassReadout(layer.rows, segments, [0])
            layer.show(request, has_lse=has_lse)
            want = torch.where(layer.rows >= 0, total, 0.0)[:, None].expand(2, HEADS, -1)
            torch.testing.assert_close(request.masses[0].sum(-1), want, atol=2e-6, rtol=0)


def hard(tokens: int) -> torch.Tensor:
    """Three disjoint segments with gaps that none of them covers."""
    return torch.nn.functional.one_hot(torch.arange(2 * tokens).view(2, tokens) // 3 % 4, 4)[..., :3].mT.float()


@pytest.mark.parametrize("has_lse", [True, False])
@pytest.mark.parametrize("covers", [True, False])
def test_masses_equal_the_definition_whatever_the_chunk(has_lse: bool, covers: bool) -> None:
    layer = Layer()
    segments = torch.softmax(5 * torch.randn(2, 3, layer.tokens), 1) if covers else hard(layer.tokens)
    want = layer.exact() @ segments.double().mT[:, None]
    for chunk in (1, 7, 128):
        request = MassReadout(layer.rows, segments, [0], chunk=chunk)
        layer.show(request, has_lse=has_lse)
        torch.testing.assert_close(request.masses[0].double(), want, atol=1e-6, rtol=0)
    assert not request.masses[0].requires_grad


def test_masses_equal_a_kernel_call_with_segments_as_values() -> None:
    """Value augmentation: the fused kernel on (q, k, segment matrix) computes the same sums."""
    layer = Layer()
    segments = hard(layer.tokens)
    values = torch.nn.functional.pad(segments.mT, (0, WIDTH - 3))[:, None].expand(-1, HEADS, -1, -1)
    whole = layer.key.repeat_interleave(HEADS // KV_HEADS, 1)
    out, _ = TreeAttention.apply(layer.query, whole, values.contiguous(), layer.layout, SCALE)  # type: ignore[misc]
    request = MassReadout(layer.rows.clamp(min=0), segments, [0])
    layer.show(request)
    want = rows_of(out[..., :3], layer.rows, range(HEADS))
    torch.testing.assert_close(request.masses[0], want, atol=1e-6, rtol=0)


@pytest.mark.parametrize("has_lse", [True, False])
def test_maps_and_masses_are_consistent(has_lse: bool) -> None:
    layer = Layer()
    masses = MassReadout(layer.rows, torch.eye(layer.tokens).expand(2, -1, -1), [0])
    maps = MapReadout(layer.rows, layer.keys, [0])
    layer.show(Readouts([masses, maps]), has_lse=has_lse)
    index = layer.keys.clamp(min=0)[:, None, None].expand(-1, HEADS, layer.rows.shape[1], -1)
    want = masses.masses[0].gather(-1, index) * (layer.keys >= 0)[:, None, None]
    torch.testing.assert_close(maps.maps[0], want, atol=1e-6, rtol=0)


def test_half_precision_stays_close() -> None:
    """Logits and sums are fp32 whatever the inputs: only the kernel's log-sum-exp of rounded inputs enters."""
    layer = Layer(dtype=torch.bfloat16)
    want = layer.exact() @ hard(layer.tokens).double().mT[:, None]
    request = MassReadout(layer.rows, hard(layer.tokens), [0])
    layer.show(request)
    assert request.masses[0].dtype == torch.float32
    torch.testing.assert_close(request.masses[0].double(), want, atol=2e-4, rtol=0)


def test_chosen_heads_come_in_the_given_order_and_enter_the_mean() -> None:
    layer = Layer()
    chosen = {0: [5, 0, 3], 1: [7]}
    everything, some = (MapReadout(layer.rows, layer.keys, [0, 1, 2], heads) for heads in (None, chosen))
    for number in range(3):
        layer.show(Readouts([everything, some]), number)
    for number in range(3):
        want = everything.maps[number][:, chosen.get(number, list(range(HEADS)))]
        torch.testing.assert_close(some.maps[number], want)
    want = torch.cat([some.maps[n] for n in range(3)], 1).mean(1)
    torch.testing.assert_close(some.mean(), want)
    masses = MassReadout(layer.rows, hard(layer.tokens), [0], {0: [5, 0, 3]})
    layer.show(masses)
    want = (layer.exact() @ hard(layer.tokens).double().mT[:, None])[:, [5, 0, 3]]
    torch.testing.assert_close(masses.masses[0].double(), want, atol=1e-6, rtol=0)


def test_keys_are_shared_by_consecutive_heads() -> None:
    groups = head_groups([6, 1, 0, 7], 4, torch.device("cpu"))
    assert [g.key for g in groups] == [1, 0]
    assert groups[0].places.tolist() == [0, 3]  # type: ignore[union-attr]
    assert groups[1].places == slice(1, 3)


@pytest.mark.parametrize("has_lse", [True, False])
def test_gradient_of_maps_in_double_precision(has_lse: bool) -> None:
    torch.manual_seed(0)
    layout = TreeLayout(torch.tensor([[7, 7, 5, 5, 5, 7, 7]]))
    query, key = torch.randn(1, 4, 7, 3).double().requires_grad_(), torch.randn(1, 2, 7, 3).double().requires_grad_()
    rows, keys = torch.tensor([[6, 3, -1, 0]]), torch.tensor([[1, 5, -1, 4]])
    blocks = map_blocks(layout, rows, keys, 7, 2)

    def maps(query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
        s = 0.7 * query @ key.repeat_interleave(2, 1).mT + dense_mask(layout.end, torch.float64)
        lse = rows_of(torch.logsumexp(s, -1).detach(), rows, range(4)) if has_lse else None
        chosen = rows_of(query, rows, range(4))
        return MapRows.apply(chosen, key, lse, blocks, head_groups(range(4), 2, query.device), 0.7, 4)  # type: ignore[return-value]

    assert torch.autograd.gradcheck(maps, (query, key))


def test_unused_slots_and_padding_are_zero_and_safe_for_gradients() -> None:
    layer = Layer()
    rows = torch.full((2, 3), -1)
    rows[0, 0] = layer.tokens - 1  # padding, which sees only itself
    query, key = layer.query.requires_grad_(), layer.key.requires_grad_()
    maps, masses = MapReadout(rows, layer.keys, [0]), MassReadout(rows, hard(layer.tokens), [0])
    layer.show(Readouts([maps, masses]))
    maps.maps[0].log1p().sum().backward()
    assert not maps.maps[0].any()
    assert not masses.masses[0].any()
    assert query.grad is not None
    assert key.grad is not None
    assert not query.grad.any()
    assert not key.grad.any()
    blind = torch.zeros(2, 1, layer.tokens, layer.tokens, dtype=torch.bool)
    maps = MapReadout(layer.rows, layer.keys, [0])
    layer.show(maps, rule=blind, has_lse=False)
    assert not maps.maps[0].any()


@pytest.mark.parametrize("has_lse", [True, False])
def test_saved_bytes_stay_below_the_rows(has_lse: bool) -> None:
    """A map keeps no more than its rows' probabilities would take, plus a tenth; keys are the layer's own."""
    layer = Layer(tokens=512)
    query, key = layer.query.requires_grad_(), layer.key.requires_grad_()
    saved: dict[int, int] = {}

    def pack(x: torch.Tensor) -> torch.Tensor:
        saved[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
        return x

    request = MapReadout(layer.rows, layer.keys, [0])
    whole = key.repeat_interleave(HEADS // KV_HEADS, 1)
    lse = TreeAttention.apply(query, whole, whole, layer.layout, SCALE)[1] if has_lse else None  # type: ignore[index]
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        request.observe(0, query, key, layer.layout, SCALE, lse)
    own = {key.untyped_storage().data_ptr(), query.untyped_storage().data_ptr()}
    held = sum(size for where, size in saved.items() if where not in own)
    assert 0 < held <= 1.1 * layer.rows.numel() * HEADS * layer.tokens * 4


def map_of(policy: Policy, batch: Batch, layers: list[int]) -> MapReadout:
    """The rows that predict the replies, on all visual tokens."""
    return MapReadout(batch.predictor[None], visual_keys(policy, batch), layers)


@pytest.mark.parametrize("layer", [0, 1])
def test_stopping_below_the_head_gives_the_same_attention_and_gradient(policy: Policy, layer: int) -> None:
    batch = batch_of(policy)
    whole, part = map_of(policy, batch, [layer]), map_of(policy, batch, [layer])
    policy.module(batch, readout=whole)
    whole.mean().square().sum().backward()
    expected = gradients(policy)
    computed: list[int] = []
    layers = policy.model.model.language_model.layers
    handles = [m.register_forward_hook(lambda _, __, ___, i=i: computed.append(i)) for i, m in enumerate(layers)]
    head = policy.model.lm_head.register_forward_hook(lambda *_: pytest.fail("the output head ran"))
    outputs = policy.module(batch, readout=part, stops_at=layer)
    for handle in (*handles, head):
        handle.remove()
    assert computed == list(range(layer + 1))
    assert len(outputs.logprobs) == 0
    assert policy.model.model.language_model.layers is layers
    assert torch.equal(whole.maps[layer], part.maps[layer])
    part.mean().square().sum().backward()
    assert relative_difference(gradients(policy), expected) < 1e-6
    with pytest.raises(ValueError, match=r"layers \[2\]"):
        policy.module(batch, readout=map_of(policy, batch, [layer, 2]), stops_at=layer)


@pytest.mark.filterwarnings("ignore:None of the inputs")  # the vision tower's pixels
def test_reentrant_checkpointing_raises_and_the_other_does_not(policy: Policy) -> None:
    batch = batch_of(policy)
    policy.model.train()
    try:
        policy.model.activation_checkpointing_enable({"use_reentrant": False})
        policy.module(batch, readout=map_of(policy, batch, [1])).logprobs.sum().backward()
        policy.model.activation_checkpointing_enable({"use_reentrant": True})
        # masses need no gradient
        policy.module(batch, readout=MassReadout(batch.predictor[None], torch.ones(1, 1, batch.ids.shape[1]), [1]))
        with pytest.raises(RuntimeError, match="non-reentrant"):
            policy.module(batch, readout=map_of(policy, batch, [1]))
        with torch.no_grad():
            policy.module(batch, readout=(silent := map_of(policy, batch, [1])))
        with pytest.raises(RuntimeError, match="carry no gradient"):
            silent.require_grad()
    finally:
        policy.model.activation_checkpointing_disable()
        policy.model.eval()
        policy.model.zero_grad()


class Decoding:
    """A decoder that is never asked."""

    def attend(self, layer: int, query: torch.Tensor, scaling: float) -> torch.Tensor:
        raise AssertionError(layer, query, scaling)


def test_what_cannot_be_read_is_refused() -> None:
    layer = Layer()
    module = torch.nn.Module()
    module.layer_idx = 0  # type: ignore[assignment]
    given = (module, layer.query, layer.key, layer.value, None)
    request = MassReadout(layer.rows, hard(layer.tokens), [0])
    refused: list[tuple[str, dict[str, Any]]] = [
        ("dropout", {"dropout": 0.1}), ("sliding_window", {"sliding_window": 8}), ("softcap", {"softcap": 30.0}),
        ("decoding", {"decoder": Decoding()}),
    ]  # fmt: skip
    for reason, keywords in refused:
        with pytest.raises(ValueError, match=reason):
            attention(*given, scaling=SCALE, readout=request, layout=layer.layout, **keywords)
    with pytest.raises(ValueError, match="whole sequence"):
        request.observe(0, layer.query[:, :, -1:], layer.key, None, SCALE)
    with pytest.raises(ValueError, match="beyond"):
        MassReadout(layer.rows + layer.tokens, hard(layer.tokens), [0]).observe(0, layer.query, layer.key, None, SCALE)
    with pytest.raises(ValueError, match="weigh 50 tokens"):
        MassReadout(layer.rows, hard(50), [0]).observe(0, layer.query, layer.key, None, SCALE)
    with pytest.raises(ValueError, match="resolve_layers"):
        MassReadout(layer.rows, hard(layer.tokens), [-1])


def test_a_request_serves_one_forward() -> None:
    layer = Layer()
    for request in (MassReadout(layer.rows, hard(layer.tokens), [0]), MapReadout(layer.rows, layer.keys, [0])):
        layer.show(request)
        with pytest.raises(ValueError, match="one forward"):
            layer.show(request)


def test_negative_layers_count_from_the_last() -> None:
    assert resolve_layers((-1, 0, 27, -28, 3), 28) == (27, 0, 3)
    with pytest.raises(UserError, match="layer 28 of a model with 28 layers"):
        resolve_layers((28,), 28)
