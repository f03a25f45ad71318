"""The sandbox: right answers pass, nothing else does, and no program harms what is around it.

Each attack runs where the system is known to refuse it (`sandbox.gaps`), and is skipped elsewhere.
"""

from __future__ import annotations

import gzip
import json
import os
import re
import resource
import socket
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from forty2.benchmark import sandbox
from forty2.benchmark.sandbox import Limits, Outcome, gaps, protections, run
from forty2.errors import BenchmarkError

SHORT = Limits(seconds=0.5)
HEADERS = Path("/usr/include/x86_64-linux-gnu/asm/unistd_64.h")
FILTERED = sys.platform == "linux" and bool(sandbox._seccomp_filter())


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where the programs' folders are. After each test no process and no file is left of them."""
    folder = tmp_path / "folders"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    yield folder
    assert list(folder.iterdir()) == []
    assert processes(folder) == []


def processes(folder: Path) -> list[int]:
    """Processes with a program's folder as HOME, by their environment: Linux only."""
    found = []
    for environ in Path("/proc").glob("[0-9]*/environ"):
        try:
            if b"HOME=" + bytes(folder) in environ.read_bytes():
                found.append(int(environ.parent.name))
        except OSError:
            continue
    return found


def needs(*names: str) -> None:
    missing = set(names) & set(gaps())
    if missing:
        pytest.skip(f"not refused here: {', '.join(sorted(missing))}")


# --- scores ---


@pytest.mark.parametrize(
    ("program", "why"),
    [
        ("def f(x): return x + 1\nassert f(1) == 2", "passed"),
        ("def f(x): return x\nassert f(1) == 2", "AssertionError"),
        ("def f(:", "SyntaxError"),
        ("nonsense", "NameError"),
        ("x = '\ud800'", "UnicodeEncodeError"),
        ("f = lambda: f()\nf()", "RecursionError"),
        ("class Bad(Exception): pass\nBad.__name__ = '\\n'\nraise Bad", "failed"),
        ("import sys\nassert sys.stdin.read() == ''", "passed"),
        ("assert __name__ != '__main__'", "passed"),
        (
            "from concurrent.futures import ThreadPoolExecutor as P\n"
            "assert list(P(8).map(abs, range(-99, 0))) == [*range(99, 0, -1)]",
            "passed",
        ),
        ("open('a', 'w').write('b')\nassert open('a').read() == 'b'", "passed"),
        (
            "import os, tempfile\nassert os.getcwd() == os.environ['HOME'] == tempfile.gettempdir()\n"
            "assert os.listdir() == []",
            "passed",
        ),
    ],
)
def test_score(program: str, why: str) -> None:
    assert run(program) == Outcome(why == "passed", why)


@pytest.mark.parametrize(
    "trick",
    [
        "import os; os._exit(0)",
        "import sys; sys.exit()",
        "raise SystemExit(0)",
        "exit()",
        "import atexit, os, sys; atexit.register(os._exit, 0); sys.exit(0)",
        "import builtins; builtins.AssertionError = builtins.SystemExit = type('X', (), {})",
        "import os; os._exit = lambda *_: None; os.write = lambda *_: None",
        "import builtins, sys; builtins.exec = builtins.BaseException = print; sys.exit = print",
        "import os; [os.write(fd, b'ready\\npassed') for fd in range(1, 64) if fd_open(fd)]",
        "print('passed'); print('ready')",
        "import threading, os; threading.Timer(0, os._exit, [0]).start(); threading.Event().wait()",
        "import os; os.closerange(0, 64); os._exit(0)",
        "import ctypes; ctypes.string_at(0)",
    ],
)
def test_not_forged(trick: str) -> None:
    helper = "def fd_open(fd):\n try: return os.fstat(fd)\n except OSError: pass\n"
    assert not run(f"{helper}{trick}\nassert False").passed


def test_nonce_is_not_lying_about() -> None:
    program = """
import gc, re, sys
found = set()
def look(value):
    if isinstance(value, (str, bytes)):
        text = value if isinstance(value, str) else value.decode("latin-1")
        found.update(run for run in re.findall("[0-9a-f]+", text) if len(run) == 64)
frame = sys._getframe()
while frame:
    for value in [*frame.f_locals.values(), *gc.get_referents(frame), *frame.f_code.co_consts]:
        look(value)
    frame = frame.f_back
for thing in gc.get_objects():
    for value in gc.get_referents(thing):
        look(value)
sys.stdin.seek(0)
look(sys.stdin.read())
look(sys.orig_argv[-1])
assert found
"""
    assert run(program) == Outcome(False, "AssertionError")


def test_sandbox_errors_are_not_scores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/nonexistent/python")
    with pytest.raises(BenchmarkError, match="cannot run a program"):
        run("pass")
    monkeypatch.setattr(sys, "executable", "/usr/bin/false")
    with pytest.raises(BenchmarkError, match="did not start a program"):
        run("pass")


# --- limits ---


@pytest.mark.parametrize(
    "loop",
    [
        "while True: pass",
        "import time; time.sleep(60)",
        "import signal\nfor s in range(1, 65):\n try: signal.signal(s, signal.SIG_IGN)\n"
        " except (OSError, ValueError): pass\nwhile True: pass",
        "while True:\n try:\n  while True: pass\n except BaseException: pass",
    ],
)
def test_time(loop: str) -> None:
    started = time.monotonic()
    assert run(loop, SHORT) == Outcome(False, "timed out")
    assert time.monotonic() - started < 2


def test_cpu_time() -> None:
    assert run("while True: pass", Limits(seconds=9, cpu_seconds=1)) == Outcome(False, "timed out")
    ignoring = "import signal; signal.signal(signal.SIGXCPU, signal.SIG_IGN)\nwhile True: pass"
    assert run(ignoring, Limits(seconds=9, cpu_seconds=1)) == Outcome(False, "killed")


def test_memory() -> None:
    needs("memory is limited")
    assert run("hog = b'x' * (4 << 30)") == Outcome(False, "out of memory")
    assert run("hog = []\nwhile True: hog.append(b'x' * (1 << 20))").why == "out of memory"


@pytest.mark.parametrize("stream", [1, 2])
def test_output(stream: int) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    flood = f"import os\nfor _ in range(500): os.write({stream}, b'x' * (1 << 20))"
    assert run(flood) == Outcome(False, "too much output")
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown < (20 << 20 if sys.platform == "darwin" else 20 << 10)
    assert run(f"import os\nos.write({stream}, b'x' * (1 << 19))").passed


def test_output_on_the_result() -> None:
    flood = "import os\nwhile True:\n for fd in range(1, 64):\n  try: os.write(fd, b'x' * 999)\n"
    assert run(flood + "  except OSError: pass") == Outcome(False, "too much output")


@pytest.mark.parametrize(
    ("writing", "why"),
    [
        ("open('a', 'wb').write(b'x' * (99 << 20))", "OSError: File too large"),
        ("for i in range(99): open(str(i), 'wb').write(b'x' * (1 << 20))", "too many files"),
        ("for i in range(9999): open(str(i), 'wb')", "too many files"),
        ("import os\nwhile True: os.mkdir('a'); os.chdir('a')", "too many files"),
        (
            "import os\nos.mkdir('a', 0); os.mkdir('b', 0o300)\nopen('b/c', 'w').close()\n"
            "os.close(os.open('d', os.O_CREAT, 0))\nos.symlink('/', 'e')",
            "passed",
        ),
    ],
)
def test_files(writing: str, why: str) -> None:
    """The `folder` fixture sees that what was written is removed, however deep and closed."""
    outcome = run(f"{writing}\nimport time" + ("\ntime.sleep(9)" if why != "passed" else ""))
    assert outcome == Outcome(why == "passed", why)


# --- what is around it ---


def test_every_attack_is_known_to_be_refused_or_not() -> None:
    assert sorted([*protections(), *gaps()]) == sorted(sandbox._ATTACKS)
    assert not set(protections()) & set(gaps())


def test_other_files(tmp_path: Path) -> None:
    needs(*(name for name in sandbox._ATTACKS if "other f" in name))
    secret = tmp_path / "home" / ".secret"
    secret.parent.mkdir()
    secret.write_text("canary")
    program = f"""
import os, pathlib, shutil
secret = pathlib.Path({str(secret)!r})
def refused(attack, *arguments):
    try:
        attack(*arguments)
    except OSError:
        return
    raise AssertionError(attack, arguments)
for attack in [secret.read_text, secret.unlink, lambda: secret.write_text("x"),
               lambda: secret.rename("mine"), lambda: secret.chmod(0), lambda: os.utime(secret),
               lambda: os.link(secret, "mine"), lambda: os.truncate(secret, 0)]:
    refused(attack)
os.symlink(secret, "link")
refused(open, "link")
shutil.rmtree(secret.parent, ignore_errors=True)
for path in ["/etc/passwd", "/etc/hostname", "/proc/self/environ", "/proc/self/mem",
             f"/proc/{{os.getppid()}}/environ", os.path.expanduser("~root"), {__file__!r}]:
    if os.path.exists(path):
        refused(os.listdir if os.path.isdir(path) else open, path)
for folder in [{str(tmp_path)!r}, {str(Path.home())!r}, "..", "/", "/etc", "/tmp", "/proc"]:
    refused(os.listdir, folder)
refused(open, os.__file__, "a")
refused(os.open, os.__file__, os.O_TRUNC)
"""
    outcome = run(program)
    assert outcome.passed or sys.platform == "darwin", outcome  # /, /etc are no secret there
    assert secret.read_text() == "canary"
    assert secret.stat().st_mode & 0o600


def test_network() -> None:
    needs("no network")
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        program = f"import socket\nsocket.create_connection(('127.0.0.1', {port}), 1)"
        assert run(program).why.startswith("PermissionError")
        server.settimeout(0.1)
        with pytest.raises(TimeoutError):
            server.accept()


def test_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "secret")
    program = "import os\nassert 'secret' not in os.environ.values(), os.environ"
    assert run(
        program + "\nassert set(os.environ) <= {'HOME', 'TMPDIR', 'LD_LIBRARY_PATH', "
        "'LC_CTYPE', '__CF_USER_TEXT_ENCODING'}"
    ).passed


@pytest.mark.parametrize(
    "program",
    [
        "import os\nwhile True: os.fork()",
        "import os\nwhile True:\n try: os.fork()\n except OSError: pass",
        "import os, time\nif os.fork() == 0:\n os.setsid()\n if os.fork() == 0: time.sleep(60)\n"
        " os._exit(0)",
        "import subprocess\nsubprocess.run(['/bin/sleep', '60'])",
        "import os\nos.posix_spawn('/bin/sleep', ['sleep', '60'], {})",
        "import os\nos.execv('/bin/sleep', ['sleep', '60'])",
        "import multiprocessing\nmultiprocessing.Process(target=print).start()",
    ],
)
def test_processes(program: str) -> None:
    needs("no further process")
    assert not run(program, SHORT).passed


def test_thread_bomb() -> None:
    bomb = (
        "import threading, time\nwhile True: threading.Thread(target=time.sleep, args=[9]).start()"
    )
    assert not run(bomb, SHORT).passed


def test_signals_to_others() -> None:
    needs("no signal to another process")
    for target in (os.getpid(), os.getppid(), -1, 0, -os.getpgrp()):
        assert not run(f"import os\nos.kill({target}, 9)").passed
    assert not run("import os\nos.kill(os.getppid(), 9)").passed


def test_closing_everything_is_no_way_out() -> None:
    assert not run("import os\nos.closerange(0, 64)", SHORT).passed
    assert not run("import os\nos.closerange(0, 64)\nwhile True: pass", SHORT).passed


@pytest.mark.skipif(not FILTERED, reason="no system call filter on this machine")
@pytest.mark.parametrize(
    "call",
    [
        "101, 0, 0, 0, 0",  # ptrace
        "41, 1, 1, 0",  # socket
        "53, 1, 1, 0, buffer",  # socketpair
        "302, 0, 7, buffer, 0",  # prlimit64: root could raise its limits
        "160, 7, buffer",  # setrlimit
        "72, 2, 8, parent",  # fcntl F_SETOWN: signals by way of a descriptor
        "16, 2, 0x5412, buffer",  # ioctl TIOCSTI
        "56, 17, 0, 0, 0, 0",  # clone: a process
        "435, buffer, 88",  # clone3
        "58",  # vfork
        "272, 0x10000000",  # unshare
        "165, buffer, buffer, buffer, 0, 0",  # mount
        "310, parent, buffer, 1, buffer, 1, 0",  # process_vm_readv
        "434, parent, 0",  # pidfd_open
        "304, -100, buffer, 0",  # open_by_handle_at: root could open any file
        "425, 8, buffer",  # io_uring_setup
        "319, buffer, 0",  # memfd_create: memory that no limit counts
        "157, 1, 0, 0, 0, 0",  # prctl: outlive us
        "39 | 0x40000000",  # getpid, of the x32 table
        "90, b'.', 0o777",  # chmod
        "133, b'device', 0o60600, 0",  # mknod
    ],
)
def test_system_calls(call: str) -> None:
    program = f"""
import ctypes, errno, os
libc = ctypes.CDLL(None, use_errno=True)
buffer, parent = ctypes.create_string_buffer(1024), os.getppid()
assert libc.syscall({call}) == -1
assert ctypes.get_errno() in (errno.EPERM, errno.ENOSYS), ctypes.get_errno()
"""
    assert run(program).passed


@pytest.mark.skipif(not HEADERS.exists(), reason="no kernel headers")
def test_system_call_numbers() -> None:
    known = dict(re.findall(r"#define __NR_(\w+) (\d+)", HEADERS.read_text()))
    words = sandbox._ALLOWED.split()
    assert dict(zip(words[::2], words[1::2], strict=True)).items() <= known.items()
    names = ("clone", "ioctl", "fcntl", "madvise")
    assert [str(number) for number, *_ in sandbox._ALLOWED_WITH] == [known[n] for n in names]


@pytest.mark.skipif(not FILTERED, reason="no system call filter on this machine")
@pytest.mark.parametrize("missing", ["seccomp", "landlock"])
def test_a_missing_protection_is_noticed(missing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = sandbox._job

    def without(*arguments: Any) -> bytes:
        off = {"seccomp": "", "landlock": [["/", -1]]}
        return json.dumps(json.loads(whole(*arguments)) | {missing: off[missing]}).encode()

    monkeypatch.setattr(sandbox, "_job", without)
    held = sandbox._try_attacks.__wrapped__()
    assert held["no network"] is (missing != "seccomp")
    assert held["other files cannot be read"] is (
        missing != "landlock" and "other files cannot be read" in protections()
    )
    assert run("assert True").passed
    assert run("assert False") == Outcome(False, "AssertionError")


def test_humaneval_solutions_pass(bench_data: Path) -> None:
    path = bench_data / "humaneval" / "HumanEval.jsonl.gz"
    if not path.exists():
        pytest.skip("no HumanEval")
    problems = [json.loads(line) for line in gzip.decompress(path.read_bytes()).splitlines()]
    assert len(problems) == 164
    failed = {}
    for i, problem in enumerate(problems):
        end = f"\n{problem['test']}\ncheck({problem['entry_point']})"
        outcome = run(problem["prompt"] + problem["canonical_solution"] + end)
        if not outcome.passed:
            failed[problem["task_id"]] = outcome.why
        if i % 16 == 0:
            assert not run(problem["prompt"] + "    return ...\n" + end).passed
    assert failed == {}
