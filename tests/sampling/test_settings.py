from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from sightline.errors import UserError
from sightline.sampling.base import SamplingSettings


@pytest.mark.parametrize(
    "values",
    [
        {"temperature": -0.1},  # the banned tokens would become the likeliest
        {"temperature": float("nan")},
        {"temperature": float("inf")},
        {"top_p": 0.0},
        {"top_p": 1.01},
        {"top_p": float("nan")},
        {"max_new_tokens": 0},
    ],
)
def test_settings_out_of_range_are_refused(values: dict[str, Any]) -> None:
    (name,) = values
    with pytest.raises(UserError, match=name):
        SamplingSettings(**values)
    with pytest.raises(UserError, match=name):
        replace(SamplingSettings(), **values)


def test_the_limits_themselves_are_allowed() -> None:
    settings = SamplingSettings(temperature=0.0, top_p=1.0, max_new_tokens=1)
    assert settings.temperature == 0.0
