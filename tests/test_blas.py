"""The fast BLAS: every function that mlx asks for comes from it, whatever the machine forbids."""

from __future__ import annotations

import ctypes
import functools
import mmap
import os
import struct
import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

import forty2
from forty2 import blas
from forty2.cli import main

pytestmark = pytest.mark.skipif(
    sys.platform != "linux", reason="mlx is linked to a fast BLAS there"
)
SCRIPT = "from forty2 import blas; import mlx.core as mx, numpy as np; x = blas.load()\n"
SHOW = SCRIPT + "print(x.name, x.problem, sep='\\n')"


def python(code: str, cwd: Path, **environment: str) -> str:
    """What a Python process of its own prints."""
    path = str(Path(forty2.__file__).parents[1])
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=False,
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": path, **environment},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@functools.cache
def renamed() -> dict[str, tuple[int, int]]:
    """Binding and visibility of each symbol that the copy defines, by its name."""
    image = mmap.mmap(-1, blas._packaged_library().stat().st_size)
    image[:] = blas._packaged_library().read_bytes()
    blas._strip_prefix(image)
    start, count = (
        struct.unpack_from("<Q", image, 40)[0],
        struct.unpack_from("<H", image, 60)[0],
    )
    headers = [struct.unpack_from("<IIQQQQIIQQ", image, start + 64 * i) for i in range(count)]
    _, _, _, _, offset, size, link, *_ = next(h for h in headers if h[1] == 11)
    strings = image[headers[link][4] : headers[link][4] + headers[link][5]]
    found = {}
    for name, info, other, section in struct.iter_unpack("<IBBH16x", image[offset : offset + size]):
        if section:
            text = strings[name : strings.index(0, name)].decode()
            found[text] = (info >> 4, other)
    return found


def wanted() -> set[str]:
    """Names of the BLAS and LAPACK functions in the table of strings of mlx's library."""
    spec = find_spec("mlx")
    assert spec is not None and spec.submodule_search_locations is not None
    library = next(
        file
        for folder in spec.submodule_search_locations
        for file in Path(folder).glob("lib/libmlx.so")
    )
    strings = {text.decode() for text in library.read_bytes().split(b"\0") if text.isascii()}
    return strings & set(names_of_reference())


def names_of_reference() -> set[str]:
    """Names of functions that the reference BLAS and LAPACK of mlx define."""
    spec = find_spec("mlx")
    assert spec is not None and spec.submodule_search_locations is not None
    names: set[str] = set()
    for folder in spec.submodule_search_locations:
        for file in Path(folder).parent.glob("mlx_cpu.libs/lib*la*.so*"):
            texts = {text.decode() for text in file.read_bytes().split(b"\0") if text.isascii()}
            names |= {t for t in texts if t.startswith("cblas_") or t.rstrip("_").isalnum()}
    return {name for name in names if name.startswith("cblas_") or name.endswith("_")} - {"_"}


def test_every_function_that_mlx_asks_for_is_there_without_a_prefix() -> None:
    assert len(wanted()) > 20 and {"cblas_sgemm", "sgesdd_"} <= wanted()
    assert wanted() <= renamed().keys()
    assert not [name for name in renamed() if name.startswith("scipy_")]


def test_internals_are_hidden_from_others_and_calls_inside_stay_inside() -> None:
    """numpy brings an OpenBLAS too, with integers of 64 bits and internals of the same names."""
    visible = {name for name, (binding, other) in renamed().items() if other == 3 and binding}
    hidden = {name for name, (binding, other) in renamed().items() if other == 2 and not binding}
    assert visible | hidden == renamed().keys() and "cblas_sgemm" in visible
    blas.load()
    everything = ctypes.CDLL(None)
    assert hidden and not [name for name in hidden if hasattr(everything, name)]
    assert not [name for name in sorted(visible)[::50] if not hasattr(everything, name)]


def test_the_library_s_own_name_does_not_lead_to_the_copy(tmp_path: Path) -> None:
    code = (
        SCRIPT
        + "import ctypes\ntry: ctypes.CDLL('libscipy_openblas.so')\nexcept OSError: print('none')"
    )
    assert python(code, tmp_path) == "none"


LINEAR_ALGEBRA = (
    SCRIPT
    + """
rng = np.random.default_rng(0)
def close(ours, theirs): assert np.abs(np.array(ours) - theirs).max() < 2e-5 * np.abs(theirs).max()
for m, k, n in ((1, 1, 1), (3, 5, 7), (64, 300, 17), (200, 129, 333), (1, 576, 1536)):
    a, b = (rng.standard_normal(s).astype(np.float32) for s in ((m, k), (k, n)))
    exact = np.einsum("ij,jk->ik", a.astype(float), b.astype(float))
    close(mx.array(a) @ mx.array(b), exact)
    close(mx.array(a.T.copy()).T @ mx.array(b.T.copy()).T, exact)
a = rng.standard_normal((40, 40)).astype(np.float32)
s = a @ a.T + 40 * np.eye(40, dtype=np.float32)
with mx.stream(mx.cpu):
    close(mx.linalg.eigvalsh(mx.array(s)), np.linalg.eigvalsh(s))
    close(mx.linalg.svd(mx.array(a))[1], np.linalg.svd(a)[1])
    close(mx.matmul(*mx.linalg.qr(mx.array(a))), a)
    close(mx.linalg.cholesky(mx.array(s)), np.linalg.cholesky(s))
    close(mx.linalg.inv(mx.array(s)), np.linalg.inv(s))
    w, v = mx.linalg.eig(mx.array(a))
    assert np.abs(a @ np.array(v) - np.array(v) * np.array(w)).max() < 1e-4
print(x.name)
"""
)


@pytest.mark.parametrize(
    ("kernels", "flag"), [("Haswell", "avx2"), ("Sandybridge", "avx"), ("Nehalem", "sse4_2")]
)
def test_results_are_right_on_the_kernels_that_the_user_names(
    kernels: str, flag: str, tmp_path: Path
) -> None:
    if flag not in Path("/proc/cpuinfo").read_text().split():
        pytest.skip(f"no {flag} on this processor")
    name = python(LINEAR_ALGEBRA, tmp_path, OPENBLAS_CORETYPE=kernels, OPENBLAS_NUM_THREADS="2")
    assert name.startswith("OpenBLAS ") and name.endswith(f" ({kernels} kernels)")


def test_results_are_right_on_the_kernels_of_this_processor(tmp_path: Path) -> None:
    environment = {k: "" for k in os.environ if k.startswith("OPENBLAS_")}
    assert python(LINEAR_ALGEBRA, tmp_path, **environment).startswith("OpenBLAS ")


def test_matrix_products_are_fast() -> None:
    assert blas.load().problem is None
    assert min(blas.slowdown() for _ in range(3)) < 5  # the reference BLAS takes 13 times as long


@pytest.mark.parametrize("threads", ["1", "2"])
def test_a_process_computes_on_after_it_forked(threads: str, tmp_path: Path) -> None:
    code = """
import ctypes, os
from forty2 import blas
assert blas.load().problem is None
n = 300
a = (ctypes.c_float * (n * n))(*[1.0] * (n * n)); c = (ctypes.c_float * (n * n))()
multiply, one = ctypes.CDLL(None).cblas_sgemm, ctypes.c_float(1)
def product():
    multiply(101, 111, 111, n, n, n, one, a, n, a, n, ctypes.c_float(0), c, n)
    return c[0] == c[n * n - 1] == n
assert product()
child = os.fork()
if child == 0:
    os._exit(0 if product() else 1)
assert product() and os.waitpid(child, 0)[1] == 0
print("both")
"""
    assert python(code, tmp_path, OPENBLAS_NUM_THREADS=threads) == "both"


def test_nothing_is_written_and_no_home_is_needed(tmp_path: Path) -> None:
    """An unwritable cache, another user's, or several first starts at once cannot matter."""
    nowhere = dict.fromkeys(("HOME", "FORTY2_CACHE", "XDG_CACHE_HOME", "TMPDIR"), "/nonexistent")
    assert python(SHOW, tmp_path, **nowhere).startswith("OpenBLAS ")
    assert not list(tmp_path.iterdir())


def test_only_what_needs_mlx_loads_it(tmp_path: Path) -> None:
    code = (
        "import sys, forty2\n"
        "from forty2.recipe import reading\n"
        "maps = lambda: 'memfd:libopenblas' in open('/proc/self/maps').read()\n"
        "before = maps(); import mlx.nn; print(before, maps())"
    )
    assert python(code, tmp_path) == "False True"


def test_folders_named_like_the_packages_do_not_hide_them(tmp_path: Path) -> None:
    """mlx is a namespace package, so such a folder joins its locations."""
    (tmp_path / "mlx").mkdir()
    (tmp_path / "scipy_openblas32").mkdir()
    assert python(SHOW, tmp_path).startswith("OpenBLAS ")


@pytest.mark.parametrize(
    ("fault", "expected"),
    [
        ("os.memfd_create = fail", "OpenBLAS"),
        ("os.memfd_create = tempfile.NamedTemporaryFile = fail", "reference"),
        (
            "sys.meta_path.insert(0, None) if 0 else sys.modules.update(scipy_openblas32=None)",
            "refer",
        ),
        ("import mlx.core", "reference"),
    ],
)
def test_what_a_system_forbids_is_done_without(fault: str, expected: str, tmp_path: Path) -> None:
    code = (
        f"import os, sys, tempfile\ndef fail(*_): raise PermissionError(1, 'no')\n{fault}\n{SHOW}"
    )
    name, problem = python(code, tmp_path).splitlines()
    assert name.startswith(expected)
    assert (problem == "None") == (expected == "OpenBLAS")


def test_a_blas_that_the_user_preloads_is_kept(tmp_path: Path) -> None:
    library = tmp_path / "libmine.so"
    image = bytearray(blas._packaged_library().read_bytes())
    with library.open("w+b") as file:
        file.write(image)
        file.flush()
        with mmap.mmap(file.fileno(), 0) as mapped:
            blas._strip_prefix(mapped)
    assert (
        python(SHOW, tmp_path, LD_PRELOAD=str(library)) == "loaded by the user (LD_PRELOAD)\nNone"
    )


@pytest.mark.parametrize(
    "damage",
    [
        lambda image: b"",
        lambda image: b"\x7fELF",
        lambda image: b"not a library " * 9,
        lambda image: image[: len(image) // 2],
        lambda image: image[:-1],
        lambda image: image[:40] + b"\xff" * 8 + image[48:],
    ],
)
def test_a_damaged_library_is_named_and_not_loaded(
    damage: Callable[[bytes], bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    library = tmp_path / "libscipy_openblas.so"
    library.write_bytes(damage(blas._packaged_library().read_bytes()))
    monkeypatch.setattr(blas, "_packaged_library", lambda: library)
    monkeypatch.delitem(sys.modules, "mlx.core", raising=False)
    monkeypatch.setattr(ctypes, "CDLL", lambda *_, **__: object())
    found = blas.load.__wrapped__()
    assert found.name == "reference BLAS of mlx (slow)"
    assert found.problem is not None and "--force-reinstall scipy-openblas32" in found.problem


# --- the warning ----------------------------------------------------------------------------------

WITHOUT_A_MODEL_RUN = {
    "model",
    "data",
}
"""Commands that take a recipe or a model and compute nothing with it."""


def commands(group: click.Group, *words: str) -> list[tuple[tuple[str, ...], click.Command]]:
    """Every command, with its words."""
    found: list[tuple[tuple[str, ...], click.Command]] = []
    for name in group.list_commands(click.Context(group)):
        command = group.get_command(click.Context(group), name)
        assert command is not None
        if isinstance(command, click.Group):
            found += commands(command, *words, name)
        else:
            found.append(((*words, name), command))
    return found


def arguments(command: click.Command, folder: Path) -> list[str]:
    """Something for every argument and required option, so that the command begins."""
    file = folder / "file.jsonl"
    file.write_text("{}\n")
    given: list[str] = []
    for parameter in command.params:
        if parameter.name == "model":
            given += ["--model", str(folder / "nothing")]
        elif parameter.required:
            number = isinstance(parameter.type, click.IntRange | click.FloatRange)
            folders = isinstance(parameter.type, click.Path) and not parameter.type.file_okay
            value = "1" if number else str(folder if folders else file)
            given += (
                [value] if isinstance(parameter, click.Argument) else [parameter.opts[0], value]
            )
        elif isinstance(parameter, click.Argument):
            given += [str(file)]
    return given


READ_ONLY = {
    ("init",),
    ("runs", "list"),
    ("runs", "page"),
    ("export", "peft"),
    ("export", "mlx"),
    ("push",),
}
"""Commands with a model for something else: its tokenizer, its layers, or a name."""
RUN_A_MODEL = [
    (words, command)
    for words, command in commands(main)
    if words not in READ_ONLY
    and ({"model", "recipe"} & {p.name for p in command.params} or words == ("demo",))
    if words[0] not in WITHOUT_A_MODEL_RUN
]


@pytest.mark.parametrize(
    ("words", "command"), RUN_A_MODEL, ids=[" ".join(words) for words, _ in RUN_A_MODEL]
)
def test_a_command_that_runs_a_model_says_first_that_it_is_slow(
    words: tuple[str, ...],
    command: click.Command,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(blas, "load", lambda: blas.Blas("slow", "nothing is installed; install it"))
    monkeypatch.setattr(blas, "slowdown", lambda: 17.3)
    extra = ["--resume"] if words == ("demo",) else []
    result = CliRunner().invoke(main, [*words, *arguments(command, tmp_path), *extra])
    assert result.exit_code == 2
    first = result.output.splitlines()[0]
    assert first == (
        "warning: matrix products take 17 times as long as numpy's on this machine: nothing is "
        "installed; install it"
    )
    assert result.output.count("warning: matrix") == 1


@pytest.mark.parametrize(("problem", "slowdown"), [(None, 17.0), ("none", 1.2)])
def test_nothing_is_said_where_it_is_fast(
    problem: str | None, slowdown: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(blas, "load", lambda: blas.Blas("any", problem))
    monkeypatch.setattr(blas, "slowdown", lambda: slowdown)
    result = CliRunner().invoke(main, ["run", str(tmp_path / "nothing.yaml")])
    assert result.exit_code == 2 and "warning" not in result.output
