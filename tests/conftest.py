"""Fixtures that several wings use.

forty2 is imported before mlx, here, so that the tests run on the fast BLAS.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import forty2  # isort: skip  # noqa: F401

import pytest
from hypothesis import HealthCheck, settings

from forty2.model.loading import LoadedModel, load
from forty2.model.starter import fetch_starter

# On a busy machine any example may be slow.
settings.register_profile("forty2", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("forty2")
# pytest-xdist sets it for its workers, and readline behind Python's back, when it is imported; the
# commands would lay out even what a pipe gets.
with contextlib.suppress(ImportError):
    import readline  # noqa: F401
# A shell's background job ignores SIGINT, and so would the runs that tests stop with it.
signal.signal(signal.SIGINT, signal.default_int_handler)
os.environ.pop("COLUMNS", None)
os.unsetenv("COLUMNS")


@pytest.fixture(scope="session")
def starter_path() -> Path:
    """The starter model's folder, fetched once."""
    return fetch_starter()


@pytest.fixture(scope="session")
def starter(starter_path: Path) -> LoadedModel:
    """The starter model without an adapter. Tests must not change it."""
    return load(str(starter_path))


@pytest.fixture(scope="session")
def bench_data() -> Path:
    """The folder of public benchmark files; tests that need it are skipped where it is absent."""
    places = [os.environ.get("FORTY2_BENCH_DATA"), Path(__file__).parents[2] / "shared" / "data"]
    for place in places:
        if place and Path(place).is_dir():
            return Path(place)
    pytest.skip("no benchmark data: set FORTY2_BENCH_DATA to a folder with truthfulqa/ in it")


@pytest.fixture
def common_umask() -> Iterator[None]:
    """The umask of most systems: others may read new files unless a program says otherwise."""
    before = os.umask(0o022)
    yield
    os.umask(before)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 256 KB, where this process may mount one."""
    disk = tmp_path / "disk"
    disk.mkdir()
    options = ["-t", "tmpfs", "-o", "size=256k", "none", str(disk)]
    try:
        subprocess.run(["mount", *options], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("may not mount a disk here")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)
