"""Messages in one form, however a row writes them: roles, content, tool calls, what is learned.

    {"from": "gpt", "value": "..."}             -> {"role": "assistant", "content": "..."}
    {"content": [{"type": "text", "text": ...}]} -> {"content": "..."}
    {"content": [{"type": "thinking", "thinking": ...}, ...]} -> {"reasoning_content": "...", ...}
    {"tool_calls": [{"function": {"arguments": "{...}"}}]}, {"function_call": {...}}
                                                -> {"tool_calls": [...]}, arguments decoded
    {"weight": 0}, {"loss": false}, {"masked": true}, ...   -> {"train": False}

Reasoning stays under the key it was written with. Null values are left out.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import re
from collections.abc import Mapping, Sequence

from forty2.data.readers.json_rows import parsed
from forty2.data.records import Message
from forty2.data.row_keys import (
    LEARNED,
    OTHER_VERDICTS,
    TOOLS,
    VERDICT,
    is_blank,
    named_keys,
    plain,
    truth_of,
)
from forty2.errors import DataError
from forty2.files import JsonObject

Messages = tuple[Message, ...]
ROLES = ("system", "user", "assistant", "tool")
_PLAIN = {"role", "content"}
_ROLE_OF = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "human": "user",
    "prompter": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bot": "assistant",
    "chatbot": "assistant",
    "model": "assistant",
    "ai": "assistant",
    "function_call": "assistant",
    "tool_call": "assistant",
    "tool": "tool",
    "function": "tool",
    "observation": "tool",
    "ipython": "tool",
    "tool_response": "tool",
    "function_response": "tool",
}
"""Our role for each name in use, in lower case."""
_CALLS = ("function_call", "tool_call")
"""Roles of turns whose text is a tool call in JSON (ShareGPT's shape)."""
_CALL_KEYS = ("tool_calls", "function_call", "tool_call", "function_calls")
"""Keys of a message's calls: OpenAI's, its older one, and others."""
_ARGUMENTS = ("arguments", "parameters", "args", "input", "kwargs")
"""Keys of a call's arguments: OpenAI's, Llama's, LangChain's, Anthropic's, and one more in use."""
REASONING = ("reasoning_content", "thinking", "reasoning")
"""Keys under which chat templates read what the model thought before its answer."""
_MEDIA = re.compile(
    r"(image|img|picture|photo|video|audio|speech|sound|media|attachment)s?"
    r"((url|path|file|name|bytes|id|data|base64)s?)*|files|pixelvalues"
)
"""Keys that hold, or name, what is not text, as `plain` writes them."""
_UNSURE = ("mask", "train_detail", "training_detail")
"""Keys that may say what is learned, but not whether the turn is."""
_NOT_LEARNED = re.compile(
    r"(no|skip|ignore|exclude|donot|dont)(train|training|trained|loss|learn|learning)?"
)
_IS_LEARNED = re.compile(r"(is|should|do|to)?(train|trained|learn|learned|supervised?)(on|onturn)?")
"""Other keys that say whether a turn is learned, as `plain` writes them: no, if true, and if false."""
_UNFINISHED = {
    **dict.fromkeys(("prefix", "partial", "prefill", "continuefinalmessage"), True),
    "endturn": False,
}
"""Keys that say whether a turn is yet to be continued, and the value that says so."""
_LEAVE_OUT = "write train: false on a turn that is not to be learned"
_CONTENTS = ("content", "value", "text")
_OTHER_PARTS = {
    **dict.fromkeys(("tool_use", "tool_call", "function_call"), "write it as tool_calls"),
    **dict.fromkeys(("tool_result", "function_result"), "write it as a turn of the role tool"),
    "reasoning": "write it as a part of type thinking",
    "refusal": "write it as text",
}
"""Advice for parts of a content that are not text, by their type."""
OTHER_REASONING = re.compile(
    r"thoughts?|cot|chainofthought|rationale|(thinking|reasoning|thought)(content|text|details)"
)
"""Other keys for what was thought before an answer, as `plain` writes them; no template reads these."""
_BY_PLAIN = {
    plain(key): key
    for key in (*TOOLS, *_CALL_KEYS, *REASONING, *LEARNED, *_UNSURE, "channel", "recipient")
}
"""Keys of a message that must not be missed, by how `plain` writes them."""
_CHANNELS = ("final", "")
"""Channels of gpt-oss that the user sees: an answer's own."""
_DEEPEST = 80
"""Most levels of JSON written as a text in a row, which itself has a few levels."""


def read_messages(value: object, key: str, origin: str) -> Messages:
    """Read a list of messages, given as such or as a text of JSON.

    Raises:
        DataError: it is no such list; names the message and its field.
    """
    value = structure(value, f"{origin}: {key}")
    if not isinstance(value, list) or not value:
        raise DataError(f"{origin}: {key} must be a list of messages, not {short(value)}")
    if all(isinstance(m, str) for m in value):
        raise DataError(
            f"{origin}: {key} is a list of texts, not of messages; write the one that is meant as a "
            "text, or each as a row of its own"
        )
    return tuple(read_message(m, f"{origin}: {key}[{i}]") for i, m in enumerate(value))


def read_message(value: object, where: str) -> Message:
    """Read one message; `where` begins each error."""
    if not isinstance(value, dict):
        raise DataError(f"{where} must be an object with role and content")
    if value.keys() == _PLAIN and value["role"] in ROLES:  # most messages, so it is quick
        content = value["content"]
        if isinstance(content, str) and content.strip():
            check_text(content, f"{where}.content")
            return value
    role_key = "from" if "from" in value and "role" not in value else "role"
    if role_key not in value:
        raise DataError(f"{where} has no role; has {named_keys(value)}")
    written = value.get(role_key)
    name = written.lower() if isinstance(written, str) else ""
    if name not in _ROLE_OF:
        known = ROLES if role_key == "role" else ("system", "human", "gpt", "tool")
        raise DataError(
            f"{where}.{role_key} must be one of {', '.join(known)}, not {short(written)}"
        )
    role = _ROLE_OF[name]
    other = value.get("from")
    if isinstance(other, str) and _ROLE_OF.get(other.lower(), role) != role:
        raise DataError(f"{where} holds both role and from; keep one")
    content_key = next((key for key in _CONTENTS if key in value), "content")
    _refuse_second(value, content_key, where)
    rest = {
        key: part
        for key, part in value.items()
        if part is not None and key not in (role_key, content_key)
    }
    refuse_media(rest, f"{where}.")
    _refuse_misplaced(rest, where)
    learned = _pop_learned(rest, role, where)
    if learned and role == "assistant":
        _refuse_not_learned(rest, where)
    content = value.get(content_key)
    if role == "assistant":
        content = _pop_thought(content, rest, f"{where}.{content_key}")
    content = text_of(content, f"{where}.{content_key}")
    if name in _CALLS:
        calls = _read_calls(structure(content, f"{where}.{content_key}"), f"{where}.{content_key}")
        content = ""
    else:
        calls = _pop_calls(rest, role, where)
    thoughts = [_reasoning(rest, key, where) for key in REASONING if key in rest]
    if content is None and (calls or any(thoughts)):
        content = ""
    if content is None and content_key not in value:
        raise DataError(f"{where} has no content; has {named_keys(value)}")
    if not isinstance(content, str):
        raise DataError(f"{where}.{content_key} must be text, not {short(content)}")
    if role == "assistant" and not content.strip() and not calls and not any(thoughts):
        raise DataError(f"{where}.{content_key}: the assistant's turn is empty")
    check_text(content, f"{where}.{content_key}")
    message: dict[str, object] = {"role": role, "content": content, **rest}
    if calls:
        message["tool_calls"] = calls
    if not learned:
        message["train"] = False
    return message


def read_tools(value: object, where: str) -> tuple[JsonObject, ...]:
    """Read the tools that a row offers: a list of objects, or a text of JSON that holds one.

    A bare function (`name`, `parameters`) becomes `{"type": "function", "function": ...}`.
    """
    value = structure(value, where)
    if value is None or (isinstance(value, str) and not value.strip()):
        return ()
    if not isinstance(value, list):
        raise DataError(f"{where} must be a list of tools, not {short(value)}")
    tools = []
    for i, tool in enumerate(value):
        if not isinstance(tool, dict):
            raise DataError(f"{where}[{i}] must be an object, not {short(tool)}")
        tools.append(_read_tool(tool, f"{where}[{i}]"))
    return tuple(tools)


def _read_tool(tool: JsonObject, where: str) -> JsonObject:
    """Write a tool as OpenAI does: a bare function, one beside its type, and Anthropic's schema, too."""
    if tool.get("type", "function") != "function":
        return tool  # of a kind that only its own template knows
    function = tool.get("function")
    if function is None and "name" in tool:
        function = {key: value for key, value in tool.items() if key != "type"}
        tool = {"type": "function", "function": function}
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise DataError(f"{where} names no function; write it as {{name, description, parameters}}")
    for key in ("input_schema", "inputSchema"):
        if key in function and "parameters" not in function:
            function = {("parameters" if k == key else k): v for k, v in function.items()}
            tool = {**tool, "function": function}
    return tool


def structure(value: object, where: str) -> object:
    """Decode a list or an object that is written as a text of JSON; return others as they are."""
    if isinstance(value, str) and value.lstrip().startswith(("[", "{")):
        return _decoded(value, where)
    return value


def written_messages(value: object) -> object:
    """Decode messages that are written as a text of JSON; return any other value unchanged.

    They are recognised by their roles: any other JSON is the text of a prompt or an answer.
    """
    if isinstance(value, str) and value.lstrip().startswith("[{"):
        with contextlib.suppress(DataError):
            found = parsed(value, "")
            if isinstance(found, list) and all(map(_is_message, found)):
                return found
    return value


def _is_message(value: object) -> bool:
    """Return whether a value is certainly a message: it has a known role and a content."""
    if not isinstance(value, dict):
        return False
    role = value.get("role", value.get("from"))
    has_content = bool({"content", "value", "text", "tool_calls"} & value.keys())
    return has_content and isinstance(role, str) and role.lower() in _ROLE_OF


def plain_turn(role: str, content: str) -> Message:
    """Make a message of a role and a text."""
    return {"role": role, "content": content}


def is_learned(message: Message) -> bool:
    """Return whether a message is an assistant's turn that is to be learned."""
    return message["role"] == "assistant" and message.get("train", True) is True


def without_train(messages: Sequence[Message]) -> Messages:
    """Return messages without `train`, which says nothing in a prompt."""
    return tuple(
        {k: v for k, v in m.items() if k != "train"} if "train" in m else m for m in messages
    )


def refuse_media(holder: Mapping[str, object], where: str) -> None:
    """Refuse pictures, sound and films by name; an empty value holds none."""
    for key, value in holder.items():
        if _MEDIA.fullmatch(plain(key)) and not is_blank(value) and not isinstance(value, bool):
            raise DataError(
                f"{where}{key} is not used: forty2 trains on text alone; drop the row, or the field "
                "if the text stands without it"
            )


def read_text(value: object, key: str, origin: str) -> str:
    """Read a text that is not blank."""
    if not isinstance(value, str):
        raise DataError(f"{origin}: {key} must be text, not {short(value)}")
    if not value.strip():
        raise DataError(f"{origin}: {key} is empty")
    check_text(value, f"{origin}: {key}")
    return value


def check_text(text: str, where: str) -> None:
    """Refuse a text that is not valid Unicode."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise DataError(
            f"{where}: holds half of a surrogate pair, which is not valid Unicode"
        ) from error


def short(value: object) -> str:
    """Write a value for a message, in 40 characters at most."""
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:37]}..."


def text_of(content: object, where: str) -> object:
    """Join a list of text parts; return any other content as it is."""
    if not isinstance(content, list):
        return content
    texts = []
    for i, part in enumerate(content):
        if isinstance(part, str):
            texts.append(part)
            continue
        if not isinstance(part, dict):
            raise DataError(f"{where}[{i}] must be a text or an object, not {short(part)}")
        kind = part.get("type", "text")
        if kind not in ("text", "input_text", "output_text"):
            advice = _OTHER_PARTS.get(
                str(kind), "drop the row, or the part if the text stands without it"
            )
            raise DataError(
                f"{where}[{i}] is of type {short(kind)}, and only text is used; {advice}"
            )
        if not isinstance(part.get("text"), str):
            raise DataError(f"{where}[{i}].text must be text, not {short(part.get('text'))}")
        texts.append(part["text"])
    return "".join(texts)


def _pop_thought(content: object, rest: dict[str, object], where: str) -> object:
    """Put the parts of type thinking with which a content begins under their key; return the others."""
    if not isinstance(content, list):
        return content
    parts = list(itertools.takewhile(_is_thinking, content))
    said = [key for key in REASONING if key in rest]
    if parts and said:
        raise DataError(f"{where} and {said[0]} both hold reasoning; keep one of them")
    if parts:
        shown = [{"type": "text", "text": text_of(part["thinking"], where)} for part in parts]
        rest[REASONING[0]] = text_of(shown, where)
    return content[len(parts) :]


def _is_thinking(part: object) -> bool:
    return isinstance(part, dict) and part.get("type") == "thinking" and "thinking" in part


def _reasoning(message: Mapping[str, object], key: str, where: str) -> str:
    text = message[key]
    if not isinstance(text, str):
        raise DataError(f"{where}.{key} must be text, not {short(text)}")
    check_text(text, f"{where}.{key}")
    return text.strip()


def _refuse_second(message: Mapping[str, object], used: str, where: str) -> None:
    """Refuse a message that holds another content beside the one that is used."""
    for key in _CONTENTS:
        if key in message and not is_blank(message[key]) and message[key] != message[used]:
            raise DataError(f"{where} holds both {used} and {key}; keep one")


def _refuse_misplaced(message: Mapping[str, object], where: str) -> None:
    """Refuse keys of a message that would change what is learned, and that no template reads there."""
    for key, value in message.items():
        if is_blank(value):
            continue
        if key in TOOLS:
            raise DataError(
                f"{where}.{key} is not used in a message; put it beside the messages, as the row's tools"
            )
        if (key == "channel" and value not in _CHANNELS) or key == "recipient":
            raise DataError(
                f"{where}.{key} {short(value)} is not used; write a thought as `thinking` of the answer "
                "after it, and a call as `tool_calls`"
            )
        if key == "refusal":
            raise DataError(f"{where}.{key} is not used; write it as the content, or remove it")
        if (name := _BY_PLAIN.get(plain(key), key)) != key:
            raise DataError(f"{where}.{key} is not read; rename it to {name}, or remove it")
        if key not in REASONING and OTHER_REASONING.fullmatch(plain(key)):
            raise DataError(
                f"{where}.{key} is not used; rename it to {REASONING[0]}, or remove it to learn the "
                "answer alone"
            )


def _refuse_not_learned(message: Mapping[str, object], where: str) -> None:
    """Refuse keys of other names that say of a turn that it is not to be learned, or is unfinished."""
    for key, value in message.items():
        said = truth_of(value)
        if said is not None and _UNFINISHED.get(plain(key)) is said:
            raise DataError(
                f"{where}.{key} is {str(value).lower()}, but a turn is learned to its end; write the whole "
                "turn, or mark it train: false"
            )
        if says_not_learned(key, value):
            raise DataError(f"{where}.{key} is {str(value).lower()}, and is not used; {_LEAVE_OUT}")


def says_not_learned(key: str, value: object) -> bool:
    """Return whether a key of another name says that something is not to be learned."""
    name, said = plain(key), truth_of(value)
    return said is not None and bool(
        _NOT_LEARNED.fullmatch(name) if said else _IS_LEARNED.fullmatch(name)
    )


def refuse_bad_turns(messages: Sequence[Message], where: str) -> None:
    """Refuse turns to be imitated that a key of theirs calls bad."""
    for i, message in enumerate(messages):
        for key, value in message.items() if is_learned(message) else ():
            name = plain(key)
            good = True if name in VERDICT else OTHER_VERDICTS.get(name)
            if good is not None and truth_of(value) is (not good):
                raise DataError(
                    f"{where}[{i}].{key} is {str(value).lower()}, and is not used; {_LEAVE_OUT}"
                )


def _pop_learned(message: dict[str, object], role: str, where: str) -> bool:
    """Take out the keys that say whether a message is learned; return what they say."""
    for key in _UNSURE:
        if key in message:
            raise DataError(
                f"{where}.{key} is not used; say whether the turn is learned by train: true or false"
            )
    said: dict[str, bool] = {}
    for key, yes in LEARNED.items():
        if key in message:
            value = message.pop(key)
            if not isinstance(value, bool | int | float) or value not in (0, 1):
                raise DataError(
                    f"{where}.{key} must be 0 or 1, false or true, not {short(value)}: a turn is "
                    "learned or it is not"
                )
            said[key] = bool(value) is yes
    if len(set(said.values())) > 1:
        raise DataError(f"{where}: {' and '.join(said)} contradict each other")
    learned = all(said.values())
    if said and learned and role != "assistant":
        raise DataError(
            f"{where}.{next(iter(said))} asks to learn a turn of the {role}; only the assistant's "
            "turns are learned"
        )
    return learned or role != "assistant"


def _pop_calls(message: dict[str, object], role: str, where: str) -> list[JsonObject]:
    """Take out `tool_calls`, or another key of calls, and return the calls."""
    given = {key: message.pop(key) for key in _CALL_KEYS if key in message}
    written = {key: value for key, value in given.items() if value}  # an empty list is no call
    if len(written) > 1:
        raise DataError(f"{where} holds both {' and '.join(written)}; keep one")
    for key, value in written.items():
        if role != "assistant":
            raise DataError(f"{where}.{key}: only the assistant calls tools, not the {role}")
        return _read_calls(structure(value, f"{where}.{key}"), f"{where}.{key}")
    return []


def _read_calls(value: object, where: str) -> list[JsonObject]:
    if isinstance(value, dict):
        return [_read_call(value, where)]
    if not isinstance(value, list) or not value:
        raise DataError(f"{where} must be a list of tool calls in JSON, not {short(value)}")
    return [_read_call(call, f"{where}[{i}]") for i, call in enumerate(value)]


def _read_call(call: object, where: str) -> JsonObject:
    """Read one call: `{"function": {"name", "arguments"}}`, or name and arguments alone.

    Raises:
        DataError: it names no function, or holds a key that is not used.
    """
    if not isinstance(call, dict):
        raise DataError(f"{where} must be an object with a function, not {short(call)}")
    around = {k: call[k] for k in ("id", "index") if call.get(k) is not None}
    places = {where: {k: v for k, v in call.items() if k not in ("type", "id", "index")}}
    inside = where
    if isinstance(call.get("function"), dict):
        inside = f"{where}.function"
        places[inside] = places[where].pop("function")
    name = places[inside].get("name")
    if not isinstance(name, str) or not name:
        raise DataError(f"{inside}.name must be the name of a function, not {short(name)}")
    arguments: JsonObject = {}
    for place, holder in places.items():
        for key, value in holder.items():
            if is_blank(value) or (key == "name" and value == name):
                continue
            found = _read_arguments(key, value, f"{place}.{key}")
            if arguments and found != arguments:
                raise DataError(f"{place}.{key} and other arguments of the call; keep one")
            arguments = found
    return {**around, "type": "function", "function": {"name": name, "arguments": arguments}}


def _read_arguments(key: str, value: object, where: str) -> JsonObject:
    if key not in _ARGUMENTS:
        raise DataError(
            f"{where} is not used in a tool call; write its arguments as arguments, or remove it"
        )
    if isinstance(value, str):
        value = _decoded(value, where)
    if is_blank(value):
        return {}
    if not isinstance(value, dict):
        raise DataError(f"{where} must be an object, not {short(value)}")
    return value


def _decoded(text: str, where: str) -> object:
    """Decode JSON that stands in a row as a text."""
    value = parsed(text, where, deepest=_DEEPEST)
    if "\\u" in text:
        check_text(json.dumps(value, ensure_ascii=False), where)
    return value
