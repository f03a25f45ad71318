"""Errors that the user can put right, in one family.

Each is also the standard-library type that a caller would expect. A message says what is wrong,
where (file and line if there is one) and what to do, in that order. The command line prints it and
exits with the error's code. Any other exception is a bug and keeps its traceback.
"""

import os
import re
import signal
from collections.abc import Sequence

_CREDENTIALS = re.compile(r"(?<=:/)(/?)[^\s/@]+(?=@)|\b(?:hf_|sk-)[\w-]{16,}")
"""`user:password@` in addresses, and access tokens with well-known prefixes."""
_SECRET_VARIABLES = ("TOKEN", "KEY", "SECRET", "PASSWORD")
"""Endings of environment variables that hold secrets."""
_SHORTEST_SECRET = 8
"""Characters. A shorter value is likely to be an ordinary word of the text."""
_MAX_QUOTE = 300
"""Characters of another package's error that a message quotes."""


def redact(text: str) -> str:
    """Replace credentials by ***, so that no message, record or report leaks them.

    Credentials are `user:password@` in addresses, Hugging Face and OpenAI tokens, and the values of
    environment variables whose names end in TOKEN, KEY, SECRET or PASSWORD.
    """
    text = _CREDENTIALS.sub(r"\1***", text)
    for name, value in os.environ.items():
        secret = value.strip()
        if name.upper().endswith(_SECRET_VARIABLES) and len(secret) >= _SHORTEST_SECRET:
            text = text.replace(secret, "***")
    return text


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, or the name of its type if it has no message."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def on_one_line(error: BaseException) -> str:
    """Return the beginning of an error's message as one line, or the name of its type.

    The first line alone would say too little: mlx-lm lists the tensors that do not fit one a line.
    """
    return " ".join(str(error).split())[:_MAX_QUOTE] or type(error).__name__


def first_names(names: Sequence[str], most: int) -> str:
    """Join names for a message, and count those after the first `most`."""
    more = len(names) - most
    return ", ".join(names[:most]) + (f" and {more} more" if more > 0 else "")


def printable(text: str) -> str:
    """Spell out line breaks and other characters that cannot be seen, or that act on a terminal."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


class Forty2Error(Exception):
    """Something that the user can put right.

    Credentials in its message are redacted, and what it quotes from files is made visible.
    """

    exit_code = 2

    def __init__(self, message: str) -> None:
        super().__init__("\n".join(map(printable, redact(message).split("\n"))))


class RecipeError(Forty2Error, ValueError):
    """A recipe cannot be run as written. The message lists every problem, one a line."""


class DataError(Forty2Error, ValueError):
    """A data file or one of its rows is unusable."""


class ModelError(Forty2Error, ValueError):
    """A model, tokenizer or adapter cannot be loaded, or does not fit."""


class BenchmarkError(Forty2Error, ValueError):
    """A question file or a result file is unusable, or a score is not finite."""


class TrainingError(Forty2Error, RuntimeError):
    """Training cannot go on: the loss is not finite, or the reference does not match."""


class Interrupted(Forty2Error):
    """A signal stopped a run. Finished work is saved, and the message says how to go on.

    The exit code is the one that shells give to a process ended by the signal: 130 for SIGINT,
    143 for SIGTERM.
    """

    def __init__(self, message: str, number: int = signal.SIGINT) -> None:
        super().__init__(message)
        self.exit_code = 128 + number


class PeerLost(Forty2Error, ConnectionError):
    """Another process of the same training ended, or cannot be reached."""


class OtherProcessEnded(Forty2Error):
    """This process trained with others and is done; the first of them reports the outcome."""

    exit_code = 0

    def __init__(self) -> None:
        super().__init__("the first process reports the outcome")


class MemoryRanOut(Forty2Error, MemoryError):
    """There was too little memory; the message says for what."""


class HubError(Forty2Error, ConnectionError):
    """The model hub refuses, fails or cannot be reached."""


class RunError(Forty2Error, RuntimeError):
    """A run folder or another file of ours is in use, unreadable, unwritable or damaged."""


class ServeError(Forty2Error, OSError):
    """The server cannot listen at an address, or cannot go on."""


_OUT_OF_MEMORY = ("malloc]", "insufficient memory", "out of memory")
"""Parts of mlx's messages, which are plain RuntimeErrors: "[malloc] Unable to allocate",
"[metal::malloc] Attempting to allocate", "Insufficient Memory" from a Metal command buffer, and
"out of memory" from CUDA."""


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether Python or mlx raised an error because memory ran out."""
    if isinstance(error, Forty2Error) or not isinstance(error, MemoryError | RuntimeError):
        return False
    message = str(error).lower()
    return isinstance(error, MemoryError) or any(part in message for part in _OUT_OF_MEMORY)
