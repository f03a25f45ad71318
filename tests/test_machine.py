"""The machine: which code runs is recorded truly."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from forty2 import machine
from forty2.machine import cache_dir, facts, memory_bytes, package_revision


def git(folder: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=someone", "-c", "user.email=someone@example.org"]
    command = ["git", *identity, "-C", str(folder), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A package of one module in a folder of its own, which `package_revision` takes for ours."""
    folder = tmp_path / "checkout" / "forty2"
    folder.mkdir(parents=True)
    (folder / "machine.py").write_text("")
    monkeypatch.setattr(machine, "__file__", str(folder / "machine.py"))
    package_revision.cache_clear()
    yield folder
    package_revision.cache_clear()


def test_a_package_outside_a_checkout_was_installed(package: Path) -> None:
    assert package_revision() == "installed from wheel"


def test_the_revision_is_the_commit_and_says_whether_the_package_differs(package: Path) -> None:
    checkout = package.parent
    git(checkout, "init", "--quiet")
    git(checkout, "add", ".")
    git(checkout, "commit", "--quiet", "-m", "Begin")
    commit = git(checkout, "rev-parse", "HEAD")

    def revision() -> str:
        package_revision.cache_clear()
        return package_revision()

    assert len(commit) == 40 and revision() == commit
    (checkout / "notes.txt").write_text("beside the package")
    assert revision() == commit
    (package / "machine.py").write_text("changed")
    assert revision() == f"{commit}-dirty"
    git(checkout, "checkout", "--quiet", ".")
    (package / "added.py").write_text("")
    assert revision() == f"{commit}-dirty"
    (package / "added.py").unlink()
    (package / "machine.py").unlink()
    assert revision() == f"{commit}-dirty"


def test_a_checkout_that_git_cannot_read_has_an_unknown_revision(
    package: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (package.parent / ".git").write_text("gitdir: /nowhere\n")
    assert package_revision() == "unknown"
    package_revision.cache_clear()
    monkeypatch.setenv("PATH", str(package))
    assert package_revision() == "unknown"


def test_a_git_hook_s_environment_does_not_mislead(
    package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    git(package.parent, "init", "--quiet")
    git(package.parent, "add", ".")
    git(package.parent, "commit", "--quiet", "-m", "Begin")
    commit = git(package.parent, "rev-parse", "HEAD")
    monkeypatch.setenv("GIT_DIR", str(tmp_path / "elsewhere"))
    assert package_revision() == commit


def test_the_facts_name_the_versions_and_the_revision_that_run() -> None:
    found = facts()
    assert found["python"] == ".".join(map(str, sys.version_info[:3]))
    assert found["revision"] == package_revision()
    assert all(found[name] not in ("", "not installed") for name in ("mlx", "mlx-lm", "numpy"))
    assert facts() == found


def test_the_cache_is_where_the_environment_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORTY2_CACHE", str(tmp_path))
    assert cache_dir() == tmp_path
    monkeypatch.delenv("FORTY2_CACHE")
    assert cache_dir() == Path.home() / ".cache" / "forty2"


def test_memory_is_counted_in_bytes() -> None:
    assert 1e8 < memory_bytes() < 1e14
