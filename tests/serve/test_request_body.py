"""Only what the server understands reaches mlx-lm's, and all else is refused in OpenAI's form."""

from __future__ import annotations

import json
from typing import Any

import pytest

from forty2.serve.request_body import Refused, read_body

IDS = ("base", "sft")
ASK = {"model": "base", "messages": [{"role": "user", "content": "Hi."}]}


def read(body: object, chat: bool = True) -> dict[str, Any]:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    return dict(read_body(data, chat=chat, models=IDS, most_tokens=100))


def test_what_is_understood_goes_on() -> None:
    settings = {"stream": True, "max_tokens": 100, "temperature": 1, "top_p": 0.9, "seed": 0}
    body = read({**ASK, **settings, "stop": ["a"], "n": 1, "user": "me"})
    assert body == {**ASK, **settings, "stop": ["a"]}
    assert read({"model": "sft", "prompt": "Hi"}, chat=False)["prompt"] == "Hi"


def test_messages_become_what_templates_read() -> None:
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": '{"x": 1}'}}
    messages = [
        {"role": "developer", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
        {"role": "assistant", "content": None, "tool_calls": [call], "refusal": None},
        {"role": "tool", "content": "2", "tool_call_id": "1"},
    ]
    system, user, assistant, tool = read({**ASK, "messages": messages})["messages"]
    assert system == {"role": "system", "content": "Be brief."}
    assert user == {"role": "user", "content": "ab"}
    assert assistant["tool_calls"][0]["function"]["arguments"] == {"x": 1}
    assert tool["tool_call_id"] == "1"


@pytest.mark.parametrize(
    "name",
    ["", "default_model", "Base", "base/", "../base", "/etc", "adapters/shop", "owner/model"],
)
def test_any_other_model_is_not_found(name: str) -> None:
    with pytest.raises(Refused) as caught:
        read({**ASK, "model": name})
    error = caught.value.to_json()["error"]
    assert (caught.value.status, error["code"], error["param"]) == (404, "model_not_found", "model")
    assert "base, sft" in error["message"]


IMAGE = {"type": "image_url", "image_url": {"url": "http://127.0.0.1/"}}
REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "path of an adapter": ({"adapters": "/tmp"}, "adapters: is not supported"),
    "path of a model": ({"draft_model": "/tmp"}, "draft_model: is not supported"),
    "template": ({"chat_template_kwargs": {"chat_template": "x"}}, "chat_template_kwargs: is not"),
    "roles": ({"role_mapping": {}}, "role_mapping: is not supported"),
    "bias beyond the vocabulary": ({"logit_bias": {"9999999": 1}}, "logit_bias: is not supported"),
    "image": ({"messages": [{"role": "user", "content": [IMAGE]}]}, "messages.0.content"),
    "no messages": ({"messages": []}, "messages: list should have at least 1 item"),
    "role": ({"messages": [{"role": "root", "content": ""}]}, "messages.0.role: input should be"),
    "number as text": ({"temperature": "1"}, "temperature: input should be a valid number"),
    "not a number": ({"temperature": float("nan")}, "temperature: input should be a finite number"),
    "negative temperature": ({"temperature": -1}, "temperature: input should be greater than"),
    "truth as a number": ({"max_tokens": True}, "max_tokens: input should be a valid integer"),
    "no tokens": ({"max_tokens": 0}, "max_tokens: input should be greater than"),
    "too many tokens": (
        {"max_tokens": 101},
        "max_tokens is 101, and this server writes at most 100",
    ),
    "too many by the new name": ({"max_completion_tokens": 101}, "max_completion_tokens is 101"),
    "negative seed": ({"seed": -1}, "seed: input should be greater than"),
    "seed too large": ({"seed": 2**63}, "seed: input should be less than"),
    "several replies": ({"n": 2}, "n: input should be 1"),
    "empty stop": ({"stop": ["a", ""]}, "stop"),
    "many stops": ({"stop": ["a"] * 17}, "stop"),
    "format": ({"response_format": {"type": "json_object"}}, "response_format.type"),
    "arguments": (
        {
            "messages": [
                {
                    "role": "assistant",
                    "tool_calls": [{"function": {"name": "f", "arguments": "{"}}],
                }
            ]
        },
        "messages: the arguments of a tool call are not JSON",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_understood_is_refused(name: str) -> None:
    changes, says = REFUSED[name]
    with pytest.raises(Refused) as caught:
        read({**ASK, **changes})
    error = caught.value.to_json()["error"]
    assert caught.value.status == 400 and error["type"] == "invalid_request_error"
    assert error["message"].startswith(says)
    assert "\n" not in error["message"] and len(error["message"]) < 400


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "the body is not JSON"),
        (b"{", "the body is not JSON"),
        (b"[" * 100_000, "the body is not JSON"),
        (b'{"model": "\xff"}', "the body is not JSON"),
        (b'{"model": "\\ud800"}', "the body is not JSON"),
        (b'{"seed": ' + b"9" * 5000 + b"}", ""),
        (b"[]", "the body must be a JSON object"),
        (b"null", "the body must be a JSON object"),
        (b"{}", "model: is missing"),
        (b'{"model": "base"}', "messages: is missing"),
    ],
)
def test_what_is_no_request_is_refused(data: bytes, says: str) -> None:
    with pytest.raises(Refused) as caught:
        read(data)
    assert caught.value.status == 400
    assert str(caught.value).startswith(says)
