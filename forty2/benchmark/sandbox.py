"""Runs a program that a model wrote, in a process of its own, and says whether it passed.

On every system: a new isolated interpreter (no site-packages, none of our variables, an empty folder
as working directory, home and temporary directory), limits on time, memory, output and files, and a
score that a program cannot earn by printing, exiting early or dying.

The operating system does the rest: `protections` tries each attack and lists those that are refused
here, `gaps` those that are not. On Linux, as any user: Landlock for files (complete from kernel
6.2), and on x86-64 a seccomp filter that allows only the system calls of plain computing: no
sockets, processes, signals to others or changes of owner and mode. On macOS: `sandbox-exec`, and
polling of memory, whose limit the system does not enforce. Without a filter, the number of
processes is limited to one; this does not bind root.

What no system prevents: the program and its tests share a process, so a program made to cheat can
(for example, with an object equal to everything). It can see which paths exist and read the
interpreter's own folder. A hole in the kernel is a hole here. asyncio needs sockets, so it fails.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import inspect
import json
import os
import platform
import secrets
import selectors
import signal
import struct
import subprocess
import sys
import sysconfig
import tempfile
import time
from dataclasses import dataclass
from typing import NamedTuple

from forty2.errors import BenchmarkError
from forty2.files import JsonObject

START_SECONDS = 30.0
"""Time for the interpreter to start on a busy machine, before the program's own time."""
POLL_SECONDS = 0.1
READY = b"ready\n"
READ, WRITE = 4 | 8, 2  # LANDLOCK_ACCESS_FS_READ_FILE and _READ_DIR; _WRITE_FILE
FOLDER = ~(1 | 1 << 6 | 1 << 11)  # all but _EXECUTE, _MAKE_CHAR and _MAKE_BLOCK
SANDBOX_EXEC = "/usr/bin/sandbox-exec"


class Outcome(NamedTuple):
    """The outcome of a program: whether it passed, and the reason in a few words."""

    passed: bool
    why: str


@dataclass(frozen=True)
class Limits:
    """Limits of one program, which may start threads but no process."""

    seconds: float = 3.0
    """Wall-clock time once the interpreter runs, as in HumanEval."""
    cpu_seconds: int = 4
    """Processor time of all threads together; the kernel enforces it even if our process has died."""
    memory_mb: int = 512
    """Address space on Linux, resident memory on macOS."""
    file_mb: int = 16
    """Limit of one file, and of all files in the folder together."""
    entries: int = 1000
    """Files and folders in the folder."""
    open_files: int = 64
    output_kb: int = 1024


LIMITS = Limits()


def run(program: str, limits: Limits = LIMITS) -> Outcome:
    """Run a program; it passes if it reaches its last line and raises nothing.

    `__name__` is not "__main__" there, as in HumanEval's own harness. Its output is discarded.

    Raises:
        BenchmarkError: the sandbox itself cannot run.
    """
    try:
        with contextlib.ExitStack() as stack:
            folder = os.path.realpath(tempfile.mkdtemp(prefix="forty2-"))
            stack.callback(_remove, folder)
            environment = {"HOME": folder, "TMPDIR": folder}
            if libraries := os.environ.get("LD_LIBRARY_PATH"):  # some interpreters need it
                environment["LD_LIBRARY_PATH"] = libraries
            reader, writer = os.pipe()
            stack.callback(os.close, reader)
            with os.fdopen(writer, "wb"), tempfile.TemporaryFile() as job:
                nonce = secrets.token_hex()
                job.write(_job(program, nonce, writer, folder, limits))
                job.seek(0)
                process = subprocess.Popen(
                    _command(folder),
                    stdin=job,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.STDOUT,
                    pass_fds=(writer,),
                    start_new_session=True,
                    cwd=folder,
                    env=environment,
                )
                stack.callback(_end, process)
            return _supervise(process, reader, READY + nonce.encode(), folder, limits)
    except OSError as error:
        raise BenchmarkError(f"sandbox: cannot run a program: {error}") from error


def _supervise(
    process: subprocess.Popen[bytes], reader: int, success: bytes, folder: str, limits: Limits
) -> Outcome:
    """Read the output of the process until it succeeds, ends or exceeds a limit."""
    assert process.stdout is not None
    output = process.stdout.fileno()
    message, printed, first = b"", 0, b""
    poll = deadline = time.monotonic() + START_SECONDS
    with selectors.DefaultSelector() as selector:
        selector.register(reader, selectors.EVENT_READ)
        selector.register(output, selectors.EVENT_READ)
        while (now := time.monotonic()) < deadline:
            ready = [key.fd for key, _ in selector.select(min(deadline - now, POLL_SECONDS))]
            if output in ready:
                data = os.read(output, 1 << 16)
                printed, first = printed + len(data), first or data
                if not data:
                    selector.unregister(output)
            if reader in ready:
                waiting = not message
                data = os.read(reader, 1 << 16)
                message += data
                if message == success:
                    return Outcome(True, "passed")
                if not data:  # it ended, or closed the pipe: either way it can no longer pass
                    break
                if waiting:
                    poll = time.monotonic()
                    deadline = poll + limits.seconds
            if printed > limits.output_kb * 1024 or len(message) > 1000:
                return Outcome(False, "too much output")
            if time.monotonic() > poll:
                poll = time.monotonic() + POLL_SECONDS
                if excess := _excess(process.pid, folder, limits):
                    return Outcome(False, excess)
        else:
            if message:
                return Outcome(False, "timed out")
    if not message.startswith(READY):
        line = first.decode("utf-8", "replace").strip().split("\n")[-1] or "no message"
        raise BenchmarkError(f"sandbox: {sys.executable} did not start a program: {line}")
    if reason := message.removeprefix(READY).decode("ascii", "replace"):
        short = "".join(c for c in reason if c.isprintable())[:80]
        return Outcome(False, {"MemoryError": "out of memory"}.get(short, short or "failed"))
    status = _end(process)  # the status of its own death, if it has died already
    if status >= 0:
        return Outcome(False, f"exited with status {status} before its end")
    ours = {-signal.SIGXCPU: "timed out", -signal.SIGKILL: "killed"}
    return Outcome(False, ours.get(status, f"killed by signal {-status}"))


def _excess(pid: int, folder: str, limits: Limits) -> str:
    """Return why a limit that the kernel does not enforce is exceeded; empty: none is."""
    entries = size = 0
    folders = [folder]
    while folders:
        try:
            with os.scandir(folders.pop()) as found:
                for entry in found:
                    entries += 1
                    with contextlib.suppress(FileNotFoundError):
                        size += entry.stat(follow_symlinks=False).st_size
                    if entries > limits.entries or size > limits.file_mb << 20:
                        return "too many files"
                    if entry.is_dir(follow_symlinks=False):
                        folders.append(entry.path)
        except FileNotFoundError:
            continue
        except OSError:  # too deep, or closed to us
            return "too many files"
    if sys.platform == "darwin":
        found_kb = subprocess.run(["/bin/ps", "-o", "rss=", "-p", str(pid)], capture_output=True)
        if int(found_kb.stdout or 0) > limits.memory_mb * 1024:
            return "out of memory"
    return ""


def _end(process: subprocess.Popen[bytes]) -> int:
    """Kill the process and all others of its group; return its exit status."""
    if process.returncode is None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        assert process.stdout is not None
        process.stdout.close()
    return process.returncode


def _remove(folder: str) -> None:
    """Remove the folder, whatever modes, links and depth are in it; shutil cannot remove all."""
    try:
        os.rmdir(folder)
    except OSError:
        for command in (["chmod", "-R", "u+rwx"], ["rm", "-rf"]):
            subprocess.run([*command, folder], capture_output=True, check=False)


# --- attacks that the operating system refuses ---


_ATTACKS = {
    "other files cannot be read": "open(FILE).read()",
    "other folders, your home among them, cannot be listed": "os.listdir('..'), os.listdir(HOME)",
    "other files cannot be written": "open(FILE, 'a')",
    "other files cannot be emptied": "os.open(FILE, os.O_TRUNC | 3 * (sys.platform == 'linux'))",
    "other files cannot be removed": "os.remove(FILE)",
    "modes and owners of other files cannot be changed": "os.chmod(FILE, 0o600)",
    "no network": "socket.create_connection(('127.0.0.1', 9), 1)",
    "no further process": "os.fork() or os._exit(1)",
    "no signal to another process": "os.kill(os.getppid(), 0)",
    "memory is limited": "hog = b'x' * MEMORY; time.sleep(1)",
}
_REFUSED = """
try:
    {attack}
except (PermissionError, BlockingIOError, MemoryError):
    pass
else:
    raise AssertionError
"""


def protections() -> list[str]:
    """List the protections that the operating system gives here, found by trying."""
    return [name for name, is_refused in _try_attacks().items() if is_refused]


def gaps() -> list[str]:
    """List the protections that the operating system does not give here."""
    return [name for name, is_refused in _try_attacks().items() if not is_refused]


@functools.cache
def _try_attacks() -> dict[str, bool]:
    """Try each attack; return by its name whether the operating system refused it."""
    if not (plain := run("import ctypes, decimal, hashlib, random, re, typing")).passed:
        raise BenchmarkError(f"sandbox: even a harmless program fails here: {plain.why}")
    found = {}
    for name, attack in _ATTACKS.items():
        with tempfile.NamedTemporaryFile(
            delete=False
        ) as file:  # a new one: an attack may remove it
            file.write(b"other")
        setting = {
            "FILE": os.path.realpath(file.name),
            "HOME": os.path.expanduser("~"),
            "MEMORY": 2 * LIMITS.memory_mb << 20,
        }
        lines = ["import os, socket, sys, time", *(f"{n} = {v!r}" for n, v in setting.items())]
        outcome = run("\n".join(lines) + _REFUSED.format(attack=attack))
        found[name] = outcome.passed or outcome.why == "out of memory"
        with contextlib.suppress(FileNotFoundError):
            os.remove(file.name)
    return found


# --- the process ---

_SANDBOX_EXEC_PROFILE = """(version 1)
(allow default)
(deny network* mach-lookup mach-priv-task-port process-fork signal process-info* file-write*)
(allow signal process-info* (target self))
(allow file-write* (subpath (param "FOLDER")) (literal "/dev/null"))
(deny file-read-data (subpath "/Users") (subpath (param "HOME")) (subpath "/Volumes")
  (subpath "/private"))
(allow file-read-data (subpath (param "FOLDER")) (subpath (param "BASE")) (subpath (param "VENV"))
  (subpath "/private/var/db"))
"""  # of several rules that match, the last one counts


def _command(folder: str) -> list[str]:
    python = [sys.executable, "-I", "-S", "-B", "-X", "utf8", "-c", _child_source()]
    if not (sys.platform == "darwin" and os.path.exists(SANDBOX_EXEC)):
        return python
    home = os.path.expanduser("~")
    paths = {"FOLDER": folder, "HOME": home, "BASE": sys.base_prefix, "VENV": sys.prefix}
    defined = [f"-D{name}={os.path.realpath(path)}" for name, path in paths.items()]
    return [SANDBOX_EXEC, "-p", _SANDBOX_EXEC_PROFILE, *defined, *python]


def _job(program: str, nonce: str, writer: int, folder: str, limits: Limits) -> bytes:
    memory, file = limits.memory_mb << 20, limits.file_mb << 20
    limited = {
        "CPU": (limits.cpu_seconds, limits.cpu_seconds + 1),
        "AS": (memory, memory),
        "FSIZE": (file, file),
        "NOFILE": (limits.open_files,) * 2,
        "CORE": (0, 0),
    }
    libraries = ["/lib", "/lib64", "/usr/lib", "/usr/lib64", "/etc/ld.so.cache"]
    python = [f"{sys.base_prefix}/lib", *map(sysconfig.get_path, ("stdlib", "platstdlib"))]
    readable = [*python, *libraries, "/usr/share/zoneinfo", "/dev/urandom"]
    job = {
        "program": program,
        "nonce": nonce,
        "writer": writer,
        "limits": limited,
        "landlock": [
            *((path, READ) for path in readable),
            ("/dev/null", READ | WRITE),
            (folder, FOLDER),
        ],
        "seccomp": _seccomp_filter().hex(),
    }
    return json.dumps(job).encode()


def _seccomp_filter() -> bytes:
    """Build a BPF program for struct seccomp_data: number (4 bytes), architecture (4), 8, arguments.

    Calls that it does not allow fail: numbers from 424 on with ENOSYS, so that the C library falls
    back on an older call, the others with EPERM.
    """
    if platform.machine() != "x86_64" or struct.calcsize("P") != 8:
        return b""
    load, equal, at_least, end = 0x20, 0x15, 0x35, 0x06  # BPF_LD|W|ABS, JMP|JEQ|K, JMP|JGE|K, RET|K
    allow, kill, refuse = ((end, 0, 0, k) for k in (0x7FFF0000, 0x80000000, 0x50000 | errno.EPERM))
    code = [(load, 0, 0, 4), (equal, 1, 0, 0xC000003E), kill, (load, 0, 0, 0)]  # x86-64 only
    for number in map(int, _ALLOWED.split()[1::2]):
        code += [(equal, 0, 1, number), allow]
    for number, argument, values in _ALLOWED_WITH:
        code += [(equal, 0, 2 + 2 * len(values), number), (load, 0, 0, 16 + 8 * argument)]
        code += [step for value in values for step in ((equal, 0, 1, value), allow)]
        code.append(refuse)
    code += [(at_least, 0, 1, 424), (end, 0, 0, 0x50000 | errno.ENOSYS), refuse]
    return b"".join(struct.pack("=HBBI", *step) for step in code)


_ALLOWED = """
read 0 write 1 open 2 close 3 stat 4 fstat 5 lstat 6 poll 7 lseek 8 mmap 9 mprotect 10 munmap 11
brk 12 rt_sigaction 13 rt_sigprocmask 14 rt_sigreturn 15 pread64 17 pwrite64 18 readv 19 writev 20
access 21 pipe 22 select 23 sched_yield 24 mremap 25 dup 32 dup2 33 pause 34 nanosleep 35
getitimer 36 alarm 37 setitimer 38 getpid 39 sendfile 40 exit 60 uname 63 flock 73 fsync 74
fdatasync 75 ftruncate 77 getdents 78 getcwd 79 chdir 80 fchdir 81 rename 82 mkdir 83 rmdir 84
creat 85 link 86 unlink 87 symlink 88 readlink 89 umask 95 gettimeofday 96 getrlimit 97 getrusage 98
sysinfo 99 times 100 getuid 102 getgid 104 geteuid 107 getegid 108 getppid 110 sigaltstack 131
gettid 186 time 201 futex 202 sched_getaffinity 204 getdents64 217 set_tid_address 218
restart_syscall 219 clock_gettime 228 clock_getres 229 clock_nanosleep 230 exit_group 231 openat 257
mkdirat 258 newfstatat 262 unlinkat 263 renameat 264 linkat 265 symlinkat 266 readlinkat 267
faccessat 269 pselect6 270 ppoll 271 set_robust_list 273 dup3 292 pipe2 293 renameat2 316
getrandom 318 statx 332 rseq 334 faccessat2 439
"""
_ALLOWED_WITH = (  # number, which argument, its allowed values
    (56, 0, (0x3D0F00, 0x7D0F00)),  # clone: a thread, as glibc and musl start one
    (16, 1, (0x5401, 0x5450, 0x5451)),  # ioctl: TCGETS, FIONCLEX, FIOCLEX
    (72, 1, (0, 1, 2, 3, 4, 1030)),  # fcntl: F_DUPFD to F_SETFL, F_DUPFD_CLOEXEC; not F_SETOWN
    (28, 2, (4, 8, 14, 102)),  # madvise: MADV_DONTNEED, _FREE, _HUGEPAGE, _GUARD_INSTALL
)


def _restrict(job: JsonObject) -> None:
    """Limit this process: the source of this function runs in the child process."""
    import contextlib
    import ctypes
    import os
    import resource
    import struct
    import sys

    def limit(name: str, soft: int, hard: int) -> None:
        with contextlib.suppress(ValueError, OSError):  # macOS refuses some
            resource.setrlimit(getattr(resource, f"RLIMIT_{name}"), (soft, hard))

    def landlock(libc: ctypes.CDLL) -> None:
        abi = libc.syscall(444, None, 0, 1, 0)  # landlock_create_ruleset, to ask for the version
        if abi <= 0:
            return
        rights = (1 << {1: 13, 2: 14, 3: 15, 4: 15}.get(abi, 16)) - 1  # all of this version
        ruleset = libc.syscall(444, struct.pack("=Q", rights), 8, 0, 0)
        for path, wanted in job["landlock"]:
            with contextlib.suppress(FileNotFoundError):
                place = os.open(path, 0x200000 | os.O_CLOEXEC)  # O_PATH
                of_a_file = ~0 if os.path.isdir(path) else 1 | 2 | 4 | 1 << 14 | 1 << 15
                rule = struct.pack("=Qi", wanted & of_a_file & rights, place)
                libc.syscall(445, ruleset, 1, rule, 0)  # landlock_add_rule, path beneath
                os.close(place)
        if libc.syscall(446, ruleset, 0, 0, 0):  # landlock_restrict_self
            raise OSError(ctypes.get_errno(), "Landlock failed")
        os.close(ruleset)

    def seccomp(libc: ctypes.CDLL) -> bool:
        code = ctypes.create_string_buffer(bytes.fromhex(job["seccomp"]))
        about = struct.pack("@HP", len(code) // 8, ctypes.addressof(code))
        return len(code) > 1 and libc.prctl(22, 2, about, 0, 0) == 0  # PR_SET_SECCOMP, a filter

    filtered = False
    for name, values in job["limits"].items():
        limit(name, *values)
    if sys.platform == "linux":
        libc = ctypes.CDLL(None, use_errno=True)
        libc.syscall.argtypes = [ctypes.c_long, *[ctypes.c_void_p] * 4]
        libc.prctl.argtypes = [ctypes.c_int, *[ctypes.c_void_p] * 4]
        libc.prctl(1, 9, 0, 0, 0)  # PR_SET_PDEATHSIG: SIGKILL when we end
        libc.prctl(38, 1, 0, 0, 0)  # PR_SET_NO_NEW_PRIVS
        landlock(libc)
        filtered = seccomp(libc)
    if not filtered:
        limit("NPROC", 0, 0)


def _child() -> None:
    """Run the program: the source of this function and of `_restrict` runs in the child process.

    While the program runs, the nonce is only on the interpreter's stack, in no variable: it is read
    unbuffered from a file without a name, and written only when `exec` has returned.
    """
    import json
    import os
    import sys
    import types

    with open(0, "rb", buffering=0, closefd=False) as file:
        job = json.loads(file.readall())
    os.dup2(os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC), 0)
    write, leave, writer = os.write, os._exit, job["writer"]
    _restrict(job)
    module = types.ModuleType("program")
    sys.modules["program"] = module
    write(writer, b"ready\n")
    try:
        code = compile(job.pop("program"), "<program>", "exec", dont_inherit=True)
        end = (job.pop("nonce"), exec(code, vars(module)))  # type: ignore[func-returns-value]
        write(writer, end[0].encode())
    except BaseException as error:
        reason = type(error).__name__
        if isinstance(error, OSError) and error.strerror:
            reason += f": {error.strerror}"
        write(writer, reason.encode())
    leave(0)


@functools.cache
def _child_source() -> str:
    sources = (inspect.getsource(function) for function in (_restrict, _child))
    return "from __future__ import annotations\n" + "".join(sources) + "_child()\n"
