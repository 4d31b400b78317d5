"""Small formats: rounding is unbiased, steps are those of torch's AdamW, and a resume goes on bit by bit."""

from __future__ import annotations

import io
import sys
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sightline.config import Optim
from sightline.errors import UserError
from sightline.train import rounding
from sightline.train.adamw import SmallAdamW
from sightline.train.masters import MasterWeights
from sightline.train.optimiser import Optimiser
from sightline.train.rounding import stochastic_round

SHAPES = ((96, 64), (64,), (80, 96))


def parameters(dtype: torch.dtype = torch.bfloat16, seed: int = 0) -> list[nn.Parameter]:
    draw = torch.Generator().manual_seed(seed)
    return [nn.Parameter((torch.randn(s, generator=draw) * 0.02).to(dtype)) for s in SHAPES]


def gradients(step: int, dtype: torch.dtype) -> list[Tensor]:
    draw = torch.Generator().manual_seed(1000 + step)
    return [(torch.randn(s, generator=draw) * 0.1 + 0.05).to(dtype) for s in SHAPES]


def run(optimiser: Optimiser, first: int, last: int, micro: int = 2) -> list[Tensor]:
    owned = optimiser.weights.parameters
    for step in range(first, last):
        for part in range(micro):
            for p, g in zip(owned, gradients(step * 10 + part, owned[0].dtype), strict=True):
                p.grad = g
            optimiser.collect()
        optimiser.apply()
    return [p.detach().clone() for p in owned]


@pytest.mark.parametrize("value", [0.02, -1.7, 3e-5, 1.0])
def test_rounding_at_random_is_unbiased(value: float) -> None:
    torch.manual_seed(0)
    spacing = abs(value) * 2**-7
    exact = torch.full((200_000,), value) + torch.linspace(0, spacing, 200_000)
    rounded = stochastic_round(exact).float()
    error = rounded - exact
    assert float(error.abs().max()) <= 2 * spacing
    # uniform over one spacing: the mean of n errors has a deviation below spacing / sqrt(4 n)
    assert abs(float(error.mean())) < 4 * spacing / (2 * 200_000**0.5)
    assert abs(float((exact.bfloat16().float() - exact).mean())) < spacing


def test_numbers_that_bfloat16_holds_stay_and_so_do_infinities() -> None:
    exact = torch.randn(1000).bfloat16().float()
    assert torch.equal(stochastic_round(exact).float(), exact)
    odd = torch.tensor([float("inf"), float("-inf"), float("nan"), 0.0, -0.0])
    assert torch.equal(stochastic_round(odd).isnan(), odd.isnan())
    assert torch.equal(stochastic_round(odd)[:2].float(), odd[:2])


def test_steps_below_the_spacing_arrive_on_average() -> None:
    """A constant gradient moves every weight by lr per step; a thousandth of the spacing each."""
    parameter = nn.Parameter(torch.ones(20_000, dtype=torch.bfloat16))
    nearest = nn.Parameter(torch.ones(20_000, dtype=torch.bfloat16))
    ours = Optimiser([parameter], Optim(lr=2**-17, clip_norm=1e9), "stochastic")
    theirs = torch.optim.AdamW([nearest], lr=2**-17, weight_decay=0.0)
    for _ in range(50):
        parameter.grad, nearest.grad = torch.ones_like(parameter), torch.ones_like(nearest)
        ours.collect()
        ours.apply()
        theirs.step()
    assert torch.equal(nearest.detach(), torch.ones_like(nearest))
    assert float(parameter.detach().float().mean()) == pytest.approx(1 - 50 * 2**-17, abs=5e-5)


def test_micro_batches_add_up_without_bias() -> None:
    """256 gradients of 1/256: added one by one to a bfloat16 sum and rounded to nearest, the last ones vanish."""
    parameter = nn.Parameter(torch.zeros(20_000, dtype=torch.bfloat16))
    weights, nearest = MasterWeights([parameter], "stochastic"), torch.zeros(1, dtype=torch.bfloat16)
    torch.manual_seed(0)
    for _ in range(1024):
        parameter.grad = torch.full_like(parameter, 2**-10 * 1.25)
        weights.collect()
        nearest += 2**-10 * 1.25
    total = weights.masters[0].grad
    assert total is not None
    assert float(total.float().mean()) == pytest.approx(1.25, rel=2e-3)
    assert float(nearest) < 1.0


def test_the_masters_are_the_weights_themselves() -> None:
    owned = parameters()
    optimiser = Optimiser(owned, Optim(lr=1e-2), "stochastic")
    assert all(m.data_ptr() == p.data_ptr() for m, p in zip(optimiser.weights.masters, owned, strict=True))
    assert optimiser.state()["masters"] == []
    before = [p.detach().clone() for p in owned]
    after = run(optimiser, 0, 1)
    assert all(not torch.equal(a, b) for a, b in zip(before, after, strict=True))


def test_steps_in_fp32_are_those_of_torch() -> None:
    ours, theirs = parameters(torch.float32), parameters(torch.float32)
    settings: dict[str, Any] = {"lr": 1e-2, "betas": (0.9, 0.99), "weight_decay": 0.1}
    steppers = SmallAdamW([{"params": ours}], **settings), torch.optim.AdamW(theirs, foreach=False, **settings)
    for step in range(5):
        for stepper, owned in zip(steppers, (ours, theirs), strict=True):
            for p, g in zip(owned, gradients(step, torch.float32), strict=True):
                p.grad = g
            stepper.step()
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


def test_eight_bits_follow_fp32() -> None:
    pytest.importorskip("bitsandbytes")
    moved = []
    for states in ("fp32", "8bit"):
        owned = parameters(torch.float32)
        start = [p.detach().clone() for p in owned]
        optimiser = Optimiser(owned, Optim(lr=1e-3, states=states, clip_norm=1e9))  # type: ignore[arg-type]
        run(optimiser, 0, 20)
        moved.append(torch.cat([(p.detach() - s).flatten() for p, s in zip(owned, start, strict=True)]))
    assert torch.nn.functional.cosine_similarity(moved[0], moved[1], dim=0) > 0.995
    assert float(moved[1].norm() / moved[0].norm()) == pytest.approx(1, abs=0.02)
    state = optimiser.adamw.state
    assert {v.dtype for v in state[owned[0]].values()} == {torch.float32, torch.uint8}
    held = sum(v.nbytes for v in state[owned[0]].values())
    assert held < 2.1 * owned[0].numel()
    assert all(v.dtype == torch.float32 for v in state[owned[1]].values())  # 64 numbers


@pytest.mark.parametrize("masters", ["fp32", "stochastic"])
@pytest.mark.parametrize("states", ["fp32", "8bit"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_resume_goes_on_bit_by_bit(masters: Any, states: Any, dtype: torch.dtype) -> None:
    if states == "8bit":
        pytest.importorskip("bitsandbytes")
    optim = Optim(lr=1e-3, states=states, weight_decay=0.01)
    whole = run(Optimiser(parameters(dtype), optim, masters), 0, 6)
    first = Optimiser(parameters(dtype), optim, masters)
    weights = run(first, 0, 3)
    file = io.BytesIO()
    torch.save(first.state(), file)
    file.seek(0)
    torch.manual_seed(99)
    again = Optimiser([nn.Parameter(w) for w in weights], optim, masters)
    again.load_state(torch.load(file, weights_only=True))
    kept, loaded = (o.adamw.state_dict()["state"] for o in (first, again))
    for i, state in kept.items():
        assert all(loaded[i][n].dtype == v.dtype and torch.equal(loaded[i][n], v) for n, v in state.items())
    assert all(torch.equal(a, b) for a, b in zip(run(again, 3, 6), whole, strict=True))


def test_large_tensors_are_stepped_piece_by_piece(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pieces change nothing but the random numbers; what is not contiguous is one piece."""
    finished = []
    for piece in (2**23, 1000):
        monkeypatch.setattr(rounding, "PIECE", piece)
        finished.append(run(Optimiser(parameters(torch.float32), Optim(lr=1e-3, states="fp32"), "stochastic"), 0, 3))
    assert all(torch.equal(a, b) for a, b in zip(*finished, strict=True))
    owned = parameters()
    optimiser = Optimiser(owned, Optim(lr=1e-2), "stochastic")
    before = [p.detach().clone() for p in owned]
    after = run(optimiser, 0, 1)
    assert all(float((a != b).float().mean()) > 0.9 for a, b in zip(before, after, strict=True))
    assert optimiser.steps == 1
    turned = torch.randn(50, 60).t()
    assert float((stochastic_round(turned).float() - turned).abs().max()) < 0.05
    assert stochastic_round(turned).shape == turned.shape


def test_the_temporary_of_rounding_is_bounded() -> None:
    large = torch.randn(3 * rounding.PIECE)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as seen:
        stochastic_round(large)
    live = top = 0
    events: list[Any] = seen.profiler.kineto_results.events()  # type: ignore[union-attr]
    for event in events:
        if event.name() == "[memory]":
            live += event.nbytes()
            top = max(top, live)
    assert top - 2 * large.numel() < 2**28


def test_a_state_moves_between_devices() -> None:
    """Where the step runs is not part of the state: one that was saved on CUDA goes on elsewhere."""
    first = Optimiser(parameters(torch.float32), Optim(lr=1e-3))
    weights = run(first, 0, 2)
    state = first.state()
    for group in state["optimizer"]["param_groups"]:
        assert group["fused"] is None
        group["fused"] = True
    again = Optimiser([nn.Parameter(w) for w in weights], Optim(lr=1e-3))
    again.load_state(state)
    assert all(group["fused"] is None for group in again.adamw.param_groups)
    whole = run(Optimiser(parameters(torch.float32), Optim(lr=1e-3)), 0, 4)
    assert all(torch.equal(a, b) for a, b in zip(run(again, 2, 4), whole, strict=True))


def test_noise_leaves_other_random_numbers_alone() -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    run(Optimiser(parameters(), Optim(lr=1e-3), "stochastic"), 0, 2)
    assert torch.equal(torch.get_rng_state(), before)


def test_eight_bits_need_their_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes.functional", None)
    with pytest.raises(UserError, match=r"optim\.states: 8-bit states need the library bitsandbytes \(pip install"):
        Optimiser(parameters(), Optim(states="8bit"))


def test_nothing_to_train_is_an_error() -> None:
    with pytest.raises(UserError, match="nothing is trained"):
        Optimiser([], Optim())
