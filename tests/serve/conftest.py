"""A run, and a server of it that the tests share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from support.served_run import make_run, serving

from forty2.serve.http_server import ModelServer


@pytest.fixture(scope="session")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with the phases sft and dpo, and a fused model."""
    return make_run(tmp_path_factory.mktemp("serve"))


@pytest.fixture(scope="session")
def server(shop: Path) -> Iterator[ModelServer]:
    """A server of it."""
    with serving(shop) as running:
        yield running
