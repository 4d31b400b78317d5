"""Read-outs in stock calls: padded batches, decoding, masks, and what a request must not change."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from eager import eager, gradients, padded_inputs, relative_difference, rollouts
from sightline.policy.attention import NAME, attention, dense_mask
from sightline.policy.load import Policy
from sightline.policy.readout import MapReadout, MassReadout, Readouts


def requests(inputs: dict[str, Any], layers: range) -> tuple[MassReadout, MapReadout, torch.Tensor, torch.Tensor]:
    """Masses and maps of the last tokens of every row, -1 where the row is padding."""
    mask = inputs["attention_mask"]
    count, tokens = mask.shape
    index = torch.arange(tokens)
    rows = torch.where((mask == 1) & (index >= tokens - 30), index, -1)[:, -30:]
    segments = torch.softmax(3 * torch.randn(count, 3, tokens, generator=torch.Generator().manual_seed(0)), 1)
    keys = torch.where(mask == 1, index, -1)
    return MassReadout(rows, segments, layers), MapReadout(rows, keys, layers), rows, segments


@pytest.mark.parametrize("side", ["left", "right"])
def test_padded_batch_equals_eager(policy: Policy, side: str) -> None:
    """Padded rows are excluded: they are zero here and meaningless in both kernels."""
    inputs = padded_inputs(policy, [rollouts(policy, s)[i] for s, i in ((0, 2), (1, 4), (2, 1))], side)
    layers = range(policy.model.config.text_config.num_hidden_layers)
    masses, maps, rows, segments = requests(inputs, layers)
    logits = policy.model(**inputs, readout=Readouts([masses, maps])).logits
    with eager(policy):
        want = policy.model(**inputs, output_attentions=True)
    valid = inputs["attention_mask"] == 1
    torch.testing.assert_close(logits[valid], want.logits[valid], atol=1e-5, rtol=1e-5)
    assert bool((rows < 0).any()) == (side == "right")
    ours = theirs = torch.zeros(())
    for layer in layers:
        weight = torch.randn(maps.maps[layer].shape, generator=torch.Generator().manual_seed(layer))
        for row, positions in enumerate(rows):
            on = positions >= 0
            matrix = want.attentions[layer][row][:, positions[on]] * valid[row]
            torch.testing.assert_close(maps.maps[layer][row][:, on], matrix, atol=1e-6, rtol=0)
            expected = matrix @ segments[row].T
            torch.testing.assert_close(masses.masses[layer][row][:, on], expected, atol=1e-6, rtol=0)
            assert not maps.maps[layer][row][:, ~on].any()
            assert not masses.masses[layer][row][:, ~on].any()
            theirs = theirs + (matrix * weight[row][:, on]).sum()
        ours = ours + (maps.maps[layer] * weight).sum()
    (ours + logits[valid].square().mean()).backward()
    found = gradients(policy)
    (theirs + want.logits[valid].square().mean()).backward()
    assert relative_difference(found, gradients(policy)) < 1e-5


def test_without_its_mask_function_padding_would_be_seen(policy: Policy) -> None:
    """The trap itself: the same attention under a name that has no mask function silently drops the mask."""
    inputs = padded_inputs(policy, [rollouts(policy, 0)[i] for i in (2, 4)], "left")
    valid = inputs["attention_mask"] == 1
    with torch.no_grad():
        right = policy.model(**inputs).logits[valid]
        ALL_ATTENTION_FUNCTIONS.register("maskless", attention)
        policy.model.set_attn_implementation({"text_config": "maskless"})
        wrong = policy.model(**inputs).logits[valid]
        policy.model.set_attn_implementation({"text_config": NAME})
    assert float((right - wrong).abs().max()) > 0.1


def test_teacher_forced_rows_equal_rows_during_decoding(policy: Policy) -> None:
    """Eager `generate`, left-padded: the row of each step that writes a token is the row read afterwards."""
    inputs = padded_inputs(policy, [rollouts(policy, 0)[i] for i in (2, 4)], "left")
    with eager(policy), torch.no_grad():
        done = policy.model.generate(
            **inputs, max_new_tokens=6, min_new_tokens=6, do_sample=False, output_attentions=True,
            return_dict_in_generate=True, pad_token_id=policy.pad,
        )  # fmt: skip
    start, tokens = inputs["input_ids"].shape[1], done.sequences.shape[1]
    whole = {**inputs, "input_ids": done.sequences}
    whole["mm_token_type_ids"] = (done.sequences == policy.image_token).int()
    whole["attention_mask"] = torch.cat([inputs["attention_mask"], torch.ones(2, tokens - start, dtype=torch.long)], 1)
    rows = torch.arange(start - 1, tokens - 1).expand(2, -1)
    layers = range(policy.model.config.text_config.num_hidden_layers)
    maps = MapReadout(rows, torch.arange(tokens).expand(2, -1), layers)
    with torch.no_grad():
        policy.model(**whole, readout=maps)
    for layer in layers:
        for step, matrices in enumerate(done.attentions):
            row = matrices[layer][:, :, -1]
            torch.testing.assert_close(maps.maps[layer][:, :, step, : row.shape[-1]], row, atol=1e-6, rtol=0)


def test_a_request_leaves_logits_bit_identical_and_the_vision_tower_alone(policy: Policy) -> None:
    inputs = padded_inputs(policy, [rollouts(policy, 0)[i] for i in (2, 4)], "right")
    layers = range(policy.model.config.text_config.num_hidden_layers)
    masses, maps, _, _ = requests(inputs, layers)
    seen: list[torch.Tensor] = []
    handle = policy.model.model.visual.register_forward_hook(lambda _, __, out: seen.append(out.pooler_output))
    with torch.no_grad():
        plain = policy.model(**inputs).logits
        read = policy.model(**inputs, readout=Readouts([masses, maps])).logits
    handle.remove()
    assert torch.equal(plain, read)
    assert torch.equal(*seen)
    assert policy.model.config.vision_config._attn_implementation != NAME
    assert list(masses.masses) == list(maps.maps) == list(layers)


def test_masks_of_every_kind_mean_the_same() -> None:
    """No mask, valid keys, a boolean mask and an additive mask of the same causal rule give the same rows."""
    torch.manual_seed(0)
    query, key = torch.randn(2, 4, 9, 8), torch.randn(2, 2, 9, 8)
    end = torch.full((2, 9), 9)
    additive = dense_mask(end, torch.float32)
    rules = [None, torch.ones(2, 9), additive == 0, additive, additive[:1]]
    rows, segments = torch.tensor([[8, 3, -1], [0, 5, 7]]), torch.rand(2, 3, 9)
    found = []
    for rule in rules:
        request = MassReadout(rows, segments, [0])
        request.observe(0, query, key, rule, 0.4)
        found.append(request.masses[0])
    for other in found[1:]:
        torch.testing.assert_close(other, found[0])
    with pytest.raises(ValueError, match="biases"):
        MassReadout(rows, segments, [0]).observe(0, query, key, additive.clamp(min=-1e30) - 0.5, 0.4)
