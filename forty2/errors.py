"""One family of errors. Each is also the standard-library type that a caller would expect.

A message says what is wrong, where (file and line when there is one) and what to do, in that
order. The command line prints it and exits with its code; anything outside this family is a bug and
keeps its traceback.
"""

import os
import re
import signal

_CREDENTIALS = re.compile(r"(?<=:/)(/?)[^\s/@]+(?=@)|\b(?:hf_|sk-)[\w-]{16,}")
_SECRET_NAMES = ("TOKEN", "KEY", "SECRET", "PASSWORD")


def redact(text: str) -> str:
    """The text without user:password@ of addresses, access tokens and the environment's secrets."""
    text = _CREDENTIALS.sub(r"\1***", text)
    for name, value in os.environ.items():
        if name.upper().endswith(_SECRET_NAMES) and len(value.strip()) >= 8:
            text = text.replace(value.strip(), "***")
    return text


class Forty2Error(Exception):
    """Something that the user can put right. What is secret in its message is masked."""

    exit_code = 2

    def __init__(self, message: str) -> None:
        super().__init__(redact(message))


class RecipeError(Forty2Error, ValueError):
    """A recipe cannot be run as written. Lists every problem, one a line."""


class DataError(Forty2Error, ValueError):
    """A data file or one of its rows is unusable."""


class ModelError(Forty2Error, ValueError):
    """A model, tokenizer or adapter cannot be loaded, or does not fit."""


class BenchmarkError(Forty2Error, ValueError):
    """A question file or a result file is unusable, or a score is not finite."""


class TrainingError(Forty2Error, RuntimeError):
    """Training cannot go on: the loss is not finite, or the reference does not match."""


class Interrupted(Forty2Error):
    """A signal asked a run to stop; what was done is saved, and the message says how to go on.

    Its exit code is the one that shells give to what a signal ended: 130 for SIGINT, 143 for SIGTERM.
    """

    def __init__(self, message: str, number: int = signal.SIGINT) -> None:
        super().__init__(message)
        self.exit_code = 128 + number


class PeerLost(Forty2Error, ConnectionError):
    """Another of the processes that train together ended, or cannot be reached."""


class MemoryRanOut(Forty2Error, MemoryError):
    """There was not enough memory; the message says for what."""


class RunError(Forty2Error, RuntimeError):
    """A run directory is in use, unreadable, or not what it should be."""


def first_line(error: BaseException) -> str:
    """The first line of an error's message, or the name of its type where it has none."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error is Python's or mlx's way to say that memory ran out.

    mlx raises plain RuntimeErrors: "[malloc] Unable to allocate", "[metal::malloc] Attempting to
    allocate", "Insufficient Memory" of a Metal command buffer, "out of memory" of CUDA.
    """
    if isinstance(error, Forty2Error) or not isinstance(error, MemoryError | RuntimeError):
        return False
    words = ("malloc]", "insufficient memory", "out of memory")
    return isinstance(error, MemoryError) or any(word in str(error).lower() for word in words)
