"""Fixtures. forty2 is imported before mlx, here, so that the tests run on the fast BLAS."""

from __future__ import annotations

import os
from pathlib import Path

import forty2  # isort: skip  # noqa: F401

import pytest

from forty2.model.loading import LoadedModel, load
from forty2.model.starter import fetch_starter


@pytest.fixture(scope="session")
def starter_path() -> Path:
    """The starter model's folder, fetched once."""
    return fetch_starter()


@pytest.fixture(scope="session")
def starter(starter_path: Path) -> LoadedModel:
    """The starter model, bare. Do not attach anything to it."""
    return load(str(starter_path))


@pytest.fixture(scope="session")
def bench_data() -> Path:
    """Public benchmark files; tests that need them are skipped where they are absent."""
    places = [os.environ.get("FORTY2_BENCH_DATA"), Path(__file__).parents[2] / "shared" / "data"]
    for place in places:
        if place and Path(place).is_dir():
            return Path(place)
    pytest.skip("no benchmark data: set FORTY2_BENCH_DATA to a folder with truthfulqa/ in it")
