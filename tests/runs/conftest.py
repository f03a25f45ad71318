"""Fixtures for tests of whole runs."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from support.runs import short_checks


@pytest.fixture(scope="module", autouse=True)
def short() -> Iterator[None]:
    """Runs in this process check the model on a few tokens, which else takes most of their time."""
    with short_checks():
        yield
