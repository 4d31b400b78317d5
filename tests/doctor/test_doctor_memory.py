"""Memory probe: a card that is too small, one that just fits, and the least change that helps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from sightline.doctor.room import REMEDIES, memory_probe, remedy, usable
from sightline.policy.memory import Component, Memory

GIB = float(2**30)


def needs(weights: float, update: float, sampling: float = 0.0) -> Memory:
    """GiB of weights, of an update beside them, and of sampling beside them."""
    return Memory((
        Component("weights", weights * GIB, "always", "parameters"),
        Component("activations", update * GIB, "update", "kept"),
        Component("keys and values", sampling * GIB, "sampling", "of replies"),
    ))  # fmt: skip


def test_what_fits_passes() -> None:
    found = memory_probe(needs(10, 20, 5), 79.1, name="80 GB card")
    assert found.level == "pass"
    assert found.values["peak_gib"] == pytest.approx(31.5)  # 30 and what fragmentation loses
    assert len(found.details) == 3


def test_a_card_that_is_too_small_fails() -> None:
    found = memory_probe(needs(10, 20), 23.5, name="24 GB card")
    assert found.level == "fail"
    assert "during the update" in found.what
    assert "24 GB card" in found.what


def test_the_larger_phase_decides() -> None:
    found = memory_probe(needs(10, 5, 30), 23.5)
    assert found.level == "fail"
    assert "while sampling" in found.what


def test_little_to_spare_is_a_warning() -> None:
    assert memory_probe(needs(10, 12), 23.5).level == "warn"


def by_words(words: Sequence[str]) -> Memory | None:
    """A recipe that cannot be quantised; checkpointing alone saves 8 GiB, LoRA saves 10."""
    if "--model.lora.quantise" in words:
        return None
    saved = 8.0 * ("--model.checkpointing" in words) + 10.0 * ("--model.lora.rank" in words)
    return needs(10, 20 - saved)


def test_one_change_is_named_if_one_is_enough() -> None:
    found = memory_probe(needs(10, 20), 23.5, estimate=by_words)
    assert found.command == "--model.checkpointing true"
    assert remedy(21.1, by_words) == ("--model.lora.rank", "32")


def test_several_are_named_if_they_must() -> None:
    words = remedy(13.0, by_words)
    assert {"--model.checkpointing", "--model.lora.rank"} <= set(words)
    assert "--model.lora.quantise" not in words


def test_nothing_helps_is_said_too() -> None:
    assert remedy(1.0, by_words) == ()
    assert "larger card" in memory_probe(needs(10, 20), 1.0, estimate=by_words).command


def test_cards_by_their_names() -> None:
    assert usable(24, "cpu")[0] < 24e9 / GIB * 1.06
    assert usable(48, "cpu")[0] == pytest.approx(0.98 * 48e9 / GIB)
    assert usable(None, "cpu") == (pytest.approx(usable(None, "cpu")[0]), "this machine")


def test_every_remedy_is_a_key_of_the_recipe() -> None:
    """A remedy that nobody can type is none."""
    from sightline.config import load_recipe

    for change in REMEDIES:
        words = change if "lora.quantise" not in change[0] else ("--model.lora.rank", "32", *change)
        value: Any = load_recipe("grpo", ["--model.dtype", "bfloat16", *words])
        for key in words[-2].removeprefix("--").split("."):
            value = getattr(value, key)
        assert str(value).lower() == words[-1]
