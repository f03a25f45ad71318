"""What is installed and released: extras, bounds, formula, release workflow."""

from __future__ import annotations

import hashlib
import re
import subprocess
import tomllib
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]


def test_every_dependency_has_a_lower_bound_and_no_upper_one() -> None:
    extras = [one for of_extra in PROJECT["optional-dependencies"].values() for one in of_extra]
    for one in (*PROJECT["dependencies"], *extras):
        assert re.match(r"[\w.-]+(\[\w+\])?>=[\d.]+(; |$)", one), one


def test_the_manual_names_every_extra() -> None:
    page = (ROOT / "docs" / "getting-started.md").read_text("utf-8")
    named = re.findall(r"`forty2\[(\w+)\]`", page)
    assert named == sorted(PROJECT["optional-dependencies"])


def test_the_citation_has_the_version() -> None:
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text("utf-8"))
    assert str(cited["version"]) == PROJECT["version"]


def test_the_formula_is_filled_from_the_sdist(tmp_path: Path) -> None:
    sdist = tmp_path / "forty2-1.2.3.tar.gz"
    sdist.write_bytes(b"an sdist")
    done = subprocess.run([ROOT / ".ci" / "fill_formula", sdist], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert f'sha256 "{hashlib.sha256(b"an sdist").hexdigest()}"' in done.stdout
    assert "/forty2-1.2.3.tar.gz" in done.stdout
    assert "SHA256" not in done.stdout and "VERSION" not in done.stdout.partition("class")[2]


def test_only_the_job_that_publishes_can_ask_for_a_publisher_s_identity() -> None:
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "release.yml").read_text("utf-8"))
    jobs = workflow["jobs"]
    assert workflow["permissions"] == {"contents": "read"}
    may = [name for name, job in jobs.items() if "id-token" in job.get("permissions", {})]
    assert may == ["publish"] and jobs["publish"]["environment"] == "pypi"
    assert "secrets." not in str(jobs)  # trusted publishing stores no token


@pytest.mark.parametrize("workflow", ["release", "test"])
def test_scripts_that_workflows_run_exist(workflow: str) -> None:
    text = (ROOT / ".github" / "workflows" / f"{workflow}.yml").read_text("utf-8")
    scripts = re.findall(r"\.ci/(\w+)", text)
    assert scripts and all((ROOT / ".ci" / name).stat().st_mode & 0o100 for name in scripts)
