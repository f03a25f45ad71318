"""Caches: what may be deleted because it can be made again, and what never is."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

import pytest
from support.archive import make_run

from forty2.errors import RunError
from forty2.runs.archive.finding import find_runs
from forty2.runs.archive.index import index_path
from forty2.runs.caches import clean, find_caches, unknown_files


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "cache"
    monkeypatch.setenv("FORTY2_CACHE", str(folder))
    for name in ("models/small", "base/abc", "bench/mlx-lm-1"):
        (folder / name).mkdir(parents=True)
        (folder / name / "file").write_bytes(b"x" * 1000)
    (folder / "reference").mkdir()
    (folder / "reference" / "abc.npz").write_bytes(b"x" * 10)
    return folder


def test_every_cache_is_found_with_its_size_and_cleaned(cache: Path, tmp_path: Path) -> None:
    run = make_run(tmp_path / "runs" / "half")
    states = list(run.glob("work/*/*.states"))
    found = {one.name: one for one in find_caches([run.parent])}
    assert list(found) == ["models", "base", "reference", "bench", "states", "index"]
    assert found["models"].size == 1000 and found["reference"].size == 10
    assert found["states"].size == sum(path.stat().st_size for path in states) > 0
    (outside := cache / "of-another-release").mkdir()
    assert unknown_files() == [outside]
    clean([found["models"], found["states"]])
    assert not list((cache / "models").iterdir()) and (cache / "base" / "abc").exists()
    assert not list(run.glob("work/*/*.states")) and list(run.glob("work/*/step*"))
    clean(find_caches([run.parent]))
    assert outside.exists() and not index_path().exists()
    assert [one.name for one in find_caches([])] == ["index"]


def test_caches_stay_while_a_run_may_use_them(cache: Path, tmp_path: Path) -> None:
    run = make_run(tmp_path / "runs" / "half")
    find_runs([run.parent])
    with (run / "run.lock").open("w") as lock:
        lock.write(f"process {os.getpid()} since now")
        lock.flush()
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(RunError, match="is running and may use the caches"):
            clean(find_caches([]))
    assert (cache / "models" / "small" / "file").exists()


def test_a_link_is_deleted_and_not_what_it_leads_to(cache: Path, tmp_path: Path) -> None:
    (mine := tmp_path / "mine").mkdir()
    (cache / "models" / "link").symlink_to(mine)
    clean(find_caches([]))
    assert mine.exists() and not (cache / "models" / "link").is_symlink()
