"""The model hub, through `huggingface_hub`: its errors in one line, and which files go to and fro.

The library finds the login (`hf auth login` or HF_TOKEN) and sends it; no token passes through here.
"""

from __future__ import annotations

import contextlib
import re
import sys
from collections.abc import Iterator
from fnmatch import fnmatchcase

from huggingface_hub import HfApi, constants, get_token
from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, RepositoryNotFoundError
from huggingface_hub.utils import disable_progress_bars, enable_progress_bars

from forty2.errors import Forty2Error, HubError, on_one_line
from forty2.export.origin import HUB_NAME

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "tokenizer.model",
    "*.tiktoken",
    "chat_template.jinja",
    "chat_template.json",
)
_PAPERS = ("README.md", "LICENSE*", "NOTICE*")
MODEL_FILES = (
    "config.json",
    "generation_config.json",
    "model*.safetensors",
    "model.safetensors.index.json",
    *TOKENIZER_FILES,
    *_PAPERS,
)
"""Files of a model, as patterns."""
ADAPTER_FILES = (
    "adapter_config.json",
    "adapters.safetensors",
    "tags.safetensors",
    "adapter_model.safetensors",
    "forty2.json",
    "template.json",
    *TOKENIZER_FILES,
    *_PAPERS,
)
"""Files of an adapter, in mlx-lm's form or PEFT's, as patterns."""
CODE = ("*.py",)
"""Architecture code that a model brings along."""
_PLAIN_NAME = re.compile(r"[A-Za-z0-9_][\w.+-]*", re.ASCII)
_LOGIN = "log in with `hf auth login`, or set HF_TOKEN"


def check_name(name: str) -> str:
    """Refuse a name that is none on the hub, and return it.

    Raises:
        HubError: it is not OWNER/NAME.
    """
    if not HUB_NAME.fullmatch(name) or ".." in name or "--" in name or name.endswith((".", ".git")):
        raise HubError(f"{name}: is no name on the hub; give OWNER/NAME, e.g. my-name/my-model")
    return name


def is_one_of(file: str, patterns: tuple[str, ...]) -> bool:
    """Return whether a file is one of these, and lies in no folder below."""
    plain = _PLAIN_NAME.fullmatch(file) is not None
    return plain and any(fnmatchcase(file, pattern) for pattern in patterns)


def connect(name: str) -> HfApi:
    """Return the hub's interface, with the user's login.

    Raises:
        HubError: the user is not logged in.
    """
    if get_token() is None:
        raise HubError(f"{name}: you are not logged in to the hub; {_LOGIN}; nothing was sent")
    return HfApi(library_name="forty2")


@contextlib.contextmanager
def hub_errors(name: str, outcome: str, *, writing: bool = True) -> Iterator[None]:
    """Turn whatever the hub's library raises into one line with what to do.

    Args:
        outcome: what is true now, e.g. "nothing was published".
        writing: whether the block sends something.

    Raises:
        HubError: a request in the block failed.
    """
    try:
        with _bars_on_a_terminal_alone():
            yield
    except Forty2Error:
        raise
    except (
        Exception
    ) as error:  # the errors of the library, and of what it uses, have no common base
        raise HubError(f"{name}: {_reason(name, error, writing)}; {outcome}") from error


@contextlib.contextmanager
def _bars_on_a_terminal_alone() -> Iterator[None]:
    """Keep the library's progress bars out of a pipe or a log file."""
    if sys.stderr.isatty() or constants.HF_HUB_DISABLE_PROGRESS_BARS is not None:
        yield
        return
    disable_progress_bars()
    try:
        yield
    finally:
        enable_progress_bars()


def _hub_answer(error: Exception) -> Exception:
    """Return the answer of the hub that an error was raised from, or else the first error."""
    while not isinstance(error, HfHubHTTPError) and isinstance(error.__cause__, Exception):
        error = error.__cause__
    return error


def _reason(name: str, error: Exception, writing: bool) -> str:
    """Say why a request failed, and what to do."""
    error = _hub_answer(error)
    response = error.response if isinstance(error, HfHubHTTPError) else None
    if isinstance(error, GatedRepoError):
        return f"is only for those who accept its terms, on its page on the hub; then {_LOGIN}"
    if isinstance(error, RepositoryNotFoundError):
        return f"is not on the hub, or you may not see it; check the name, or {_LOGIN}"
    if response is None:
        return (
            f"the connection to the hub failed ({on_one_line(error)}); run the same command again"
        )
    status = response.status_code
    if status == 401:
        return f"the hub does not accept your login (401); {_LOGIN}"
    if status in (402, 403) and not writing:
        return (
            f"the hub refuses ({status}): your login may not read it; {_LOGIN} of somebody who may"
        )
    if status in (402, 403):
        owner = name.partition("/")[0]
        return (
            f"the hub refuses ({status}): your login may not write to {owner}; use a token with write "
            "permission there (https://huggingface.co/settings/tokens), or another OWNER"
        )
    if status == 429:
        seconds = str(response.headers.get("Retry-After") or "")
        when = f"in {seconds} s" if seconds.isdigit() else "in a few minutes"
        return f"too many requests to the hub (429); run the same command again {when}"
    if status in (409, 412):
        return f"it was changed on the hub meanwhile ({status}); run the same command again"
    if status >= 500:
        return f"the hub failed ({status}); run the same command again later"
    said = getattr(error, "server_message", None) or on_one_line(error)
    return f"the hub refuses ({status}): {' '.join(str(said).split())[:200]}"
