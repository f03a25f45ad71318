"""Loading of a model folder's tokenizer and chat template, with messages that name the files."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from mlx_lm import utils as mlx_lm_utils
from mlx_lm.tokenizer_utils import TokenizerWrapper

from forty2.errors import ModelError, on_one_line
from forty2.files import JsonObject, is_lfs_pointer, not_readable

_FAST = "tokenizer.json"
_JSON = (_FAST, "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")
_OTHERS = {
    "tokenizer.model": "a SentencePiece or tiktoken vocabulary",
    "vocab.json": "a vocabulary and its merges",
    "*.tiktoken": "a tiktoken vocabulary",
    "tiktoken.model": "a tiktoken vocabulary",
    "tekken.json": "a vocabulary of mistral-common",
    "vocab.txt": "a WordPiece vocabulary",
}
"""Files of tokenizers without tokenizer.json, and what they hold."""


def load_tokenizer_files(
    path: Path, config: JsonObject, trust_remote_code: bool
) -> TokenizerWrapper:
    """Load the tokenizer of a model folder, with every id that ends a reply.

    Args:
        config: the model's configuration, from `read_config`.

    Raises:
        ModelError: it is missing or damaged, or its chat template cannot be used.
    """
    for name in (_FAST, "tokenizer_config.json"):
        if is_lfs_pointer(path / name):
            raise ModelError(
                f"{path / name}: is a pointer of Git LFS, not the tokenizer; run `git lfs pull`"
            )
    other = next((file for name in _OTHERS for file in sorted(path.glob(name))), None)
    if not (path / _FAST).exists() and other is None:
        raise ModelError(
            f"{path}: no tokenizer (tokenizer.json is missing); copy it from the model"
        )
    try:
        tokenizer = mlx_lm_utils.load_tokenizer(
            path,
            {"trust_remote_code": trust_remote_code},
            eos_token_ids=_as_list(config.get("eos_token_id")),
        )
    except Exception as error:  # transformers raises errors of many types
        if other is not None and not (path / _FAST).exists():
            raise ModelError(_without_tokenizer_json(path, other)) from error
        damage = next(filter(None, map(_damage, (path / name for name in _JSON))), None)
        reason = damage or f"{path}: cannot load the tokenizer: {on_one_line(error)}"
        raise ModelError(reason) from error
    if not tokenizer.eos_token_ids:
        raise ModelError(f"{path}: the tokenizer names no end-of-text token (eos_token)")
    if tokenizer.eos_token_id is None:  # config.json alone names it
        ends = map(tokenizer.convert_ids_to_tokens, _as_list(config.get("eos_token_id")))
        tokenizer.eos_token = next((end for end in ends if end is not None), None)
        if tokenizer.eos_token is None:
            raise ModelError(f"{path}: config.json's eos_token_id is no token of the tokenizer")
    _settle_template(tokenizer, path)
    return tokenizer


def _damage(file: Path) -> str | None:
    """Say what is wrong with a file of a tokenizer that could not be loaded; None: it seems whole."""
    if not file.exists():
        return None
    try:
        found = json.loads(file.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        return f"{not_readable(file, error)}; copy the file from the model"
    if not isinstance(found, dict):
        return f"{file}: not a JSON object; copy the file from the model"
    if file.name == _FAST and not {"model", "added_tokens"} <= found.keys():
        return f"{file}: holds no tokenizer (model and added_tokens); copy the file from the model"
    return None


def _without_tokenizer_json(path: Path, other: Path) -> str:
    content = next(text for name, text in _OTHERS.items() if other.match(name))
    return (
        f"{path}: no tokenizer.json, only {other.name} ({content}), which cannot be read alone; copy "
        "tokenizer.json from the model, or from another model with the same tokenizer, or make it "
        "with transformers: AutoTokenizer.from_pretrained(FOLDER).save_pretrained(FOLDER)"
    )


def _as_list(value: object) -> list[int]:
    if value is None:
        return []
    return list(value) if isinstance(value, list) else [value]  # type: ignore[list-item]


def _settle_template(tokenizer: TokenizerWrapper, path: Path) -> None:
    """Make one chat template of several, which renders as transformers does; an empty one is none.

    Raises:
        ModelError: there are several, and none is named default; or chat_template.json is damaged.
    """
    template = tokenizer._tokenizer.chat_template
    if template is None:
        template = _template_of_processor(path / "chat_template.json")
    texts = template.values() if isinstance(template, dict) else [template or ""]
    if not all(isinstance(text, str) for text in texts):
        raise ModelError(
            f"{path / 'tokenizer_config.json'}: chat_template is not text; copy the file from the model"
        )
    if isinstance(template, dict):
        if "default" not in template and len(template) != 1:
            raise ModelError(
                f"{path}: holds {len(template)} chat templates ({', '.join(sorted(template))}), and "
                "none is named default; write the one to use into chat_template.jinja, and take the "
                "list out of tokenizer_config.json"
            )
        template = _joined(template)
    if template is None or not template.strip():
        template = None
        tokenizer.has_chat_template = tokenizer._chat_template is not None
    else:
        tokenizer.has_chat_template = True
    tokenizer._tokenizer.chat_template = template


def _joined(templates: Mapping[str, str]) -> str:
    """Join templates by name into one: tool_use renders conversations with tools, default the others.

    The end of a line behind a tag is removed in rendering, and a plus keeps blanks before a tag; the
    end of a template's last line is removed only where nothing follows it.
    """
    default = templates.get("default", next(iter(templates.values())))
    if "tool_use" not in templates or len(templates) == 1:
        return default
    tool_use, default = (t.removesuffix("\n") for t in (templates["tool_use"], default))
    return f"{{% if tools %}}\n{tool_use}{{%+ else %}}\n{default}{{%+ endif %}}"


def _template_of_processor(file: Path) -> str | None:
    """Read the template of a model that also reads images; transformers keeps it in its own file."""
    if not file.exists():
        return None
    try:
        template = json.loads(file.read_bytes())["chat_template"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelError(not_readable(file, error)) from error
    if not isinstance(template, str):
        raise ModelError(f"{file}: chat_template is not text")
    return template
