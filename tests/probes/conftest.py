"""Conversations to measure and the stock forwards beside them, once per family."""

from __future__ import annotations

import pytest

from measured import Stock, conversation_groups
from sightline.policy.load import Policy
from sightline.types import Group


@pytest.fixture(scope="session")
def talks(policy: Policy) -> list[Group]:
    """Branching conversations about one picture, two, and none."""
    return conversation_groups(policy)


@pytest.fixture(scope="session")
def stock(policy: Policy) -> Stock:
    return Stock(policy)
