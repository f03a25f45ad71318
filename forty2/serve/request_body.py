"""The body of a request, in OpenAI's form: what is understood, and refusals in that form, too.

A key that this server does not know is refused, never ignored. So no request reaches the settings of
mlx-lm's server that load a model, an adapter or a chat template by its path, or fetch an image.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from forty2.files import JsonObject

MOST_STOPS = 16
"""Stop strings of a request."""
_MOST_SHOWN = 200
"""Characters of a client's own text that a message repeats."""
_LARGEST_SEED = 2**63 - 1


class Refused(Exception):
    """A request that is answered with an error, in OpenAI's form."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        """Take what the client is told.

        Args:
            status: HTTP's.
            param: key of the body that is wrong.
            code: one of OpenAI's codes.
            headers: to send along.
        """
        super().__init__(message)
        self.status = status
        self.param = param
        self.code = code
        self.headers = dict(headers or {})

    def to_json(self) -> JsonObject:
        """Convert to OpenAI's form of an error."""
        kinds = {429: "rate_limit_error", 403: "permission_error"}
        kind = kinds.get(self.status, "invalid_request_error")
        if self.status >= 500:
            kind = "server_error"
        error = {"message": str(self), "type": kind, "param": self.param, "code": self.code}
        return {"error": error}


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


class _TextPart(_Strict):
    type: Literal["text"]
    text: str


class _Function(_Strict):
    name: str
    arguments: str


class _ToolCall(_Strict):
    type: Literal["function"] = "function"
    function: _Function
    id: str | None = None
    index: int | None = None

    def to_template(self) -> JsonObject:
        """Convert to what chat templates read: arguments are an object there."""
        arguments = json.loads(self.function.arguments or "{}")
        return {
            "type": "function",
            "id": self.id,
            "function": {"name": self.function.name, "arguments": arguments},
        }


class _Message(_Strict):
    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[_TextPart] | None = None
    name: str | None = None
    tool_calls: list[_ToolCall] | None = None
    tool_call_id: str | None = None
    reasoning: str | None = None
    reasoning_content: str | None = None
    # Keys that OpenAI's client writes into a reply, and its user sends back.
    refusal: None = None
    annotations: None = None
    audio: None = None
    function_call: None = None

    def to_template(self) -> JsonObject:
        """Convert to what chat templates read."""
        content = self.content or ""
        text = content if isinstance(content, str) else "".join(part.text for part in content)
        message: JsonObject = {
            "role": "system" if self.role == "developer" else self.role,
            "content": text,
        }
        if self.tool_calls:
            message["tool_calls"] = [call.to_template() for call in self.tool_calls]
        thought = self.reasoning_content or self.reasoning
        others = {"name": self.name, "tool_call_id": self.tool_call_id}
        return message | {
            key: value
            for key, value in {**others, "reasoning_content": thought}.items()
            if value is not None
        }


class _StreamOptions(_Strict):
    include_usage: bool = False
    include_obfuscation: Literal[False] = False


class _ResponseFormat(_Strict):
    type: Literal["text"]


_Stop = Annotated[str, Field(min_length=1, max_length=100)]
_Penalty = Annotated[float, Field(ge=-2, le=2)]


class _Body(_Strict):
    """What both kinds of requests have in common. Names and bounds are OpenAI's, then mlx-lm's."""

    model: str
    stream: bool = False
    stream_options: _StreamOptions | None = None
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    temperature: Annotated[float, Field(ge=0, le=10)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=0, le=10_000)] | None = None
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    presence_penalty: _Penalty | None = None
    frequency_penalty: _Penalty | None = None
    repetition_penalty: Annotated[float, Field(gt=0, le=10)] | None = None
    stop: _Stop | Annotated[list[_Stop], Field(max_length=MOST_STOPS)] | None = None
    seed: Annotated[int, Field(ge=0, le=_LARGEST_SEED)] | None = None
    # These change nothing here, and many clients send them.
    user: str | None = None
    n: Literal[1] | None = None


class _ChatBody(_Body):
    messages: Annotated[list[_Message], Field(min_length=1)]
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    logprobs: Literal[False] | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: Literal["auto"] | None = None
    parallel_tool_calls: bool | None = None
    response_format: _ResponseFormat | None = None


class _TextBody(_Body):
    prompt: Annotated[str, Field(min_length=1)]


_NOT_FOR_MLX = (
    "user",
    "n",
    "logprobs",
    "tool_choice",
    "parallel_tool_calls",
    "response_format",
)


def read_body(data: bytes, *, chat: bool, models: Collection[str], most_tokens: int) -> JsonObject:
    """Read the body of a request, and return what mlx-lm's server gets of it.

    Args:
        chat: whether it asks for a chat completion, not for the completion of a text.
        models: ids of the models that it may name.
        most_tokens: largest number of tokens that it may ask for.

    Raises:
        Refused: it is no request that this server understands.
    """
    try:
        body = (_ChatBody if chat else _TextBody).model_validate_json(data)
    except ValidationError as error:
        raise _refusal(error) from error
    if body.model not in models:
        raise unknown_model(body.model, models)
    kept: JsonObject = body.model_dump(exclude_none=True, exclude={"messages", *_NOT_FOR_MLX})
    if isinstance(body, _ChatBody):
        try:
            kept["messages"] = [message.to_template() for message in body.messages]
        except (ValueError, RecursionError) as error:
            raise Refused(
                400, "messages: the arguments of a tool call are not JSON", param="messages"
            ) from error
    for key in ("max_completion_tokens", "max_tokens"):
        if kept.get(key, 1) > most_tokens:
            message = f"{key} is {kept[key]:,}, and this server writes at most {most_tokens:,}"
            raise Refused(400, message, param=key)
    return kept


def unknown_model(name: str, models: Collection[str]) -> Refused:
    """Return the refusal of a model that is not served."""
    there = ", ".join(models)
    return Refused(
        404,
        f"the model {name[:_MOST_SHOWN]!r} is not served here; there is {there}",
        param="model",
        code="model_not_found",
    )


def _refusal(error: ValidationError) -> Refused:
    """Say in a line what is wrong with a body; the first problem stands for all."""
    first = error.errors(include_url=False, include_input=False, include_context=False)[0]
    if first["type"] == "json_invalid":
        return Refused(400, f"the body is not JSON: {first['msg'].partition(': ')[2]}")
    place = ".".join(map(str, first["loc"]))[:_MOST_SHOWN]
    if not place:
        return Refused(400, "the body must be a JSON object")
    said = {
        "extra_forbidden": "is not supported by this server; leave it out",
        "missing": "is missing",
    }.get(first["type"], first["msg"][:1].lower() + first["msg"][1:])
    return Refused(400, f"{place}: {said}", param=str(first["loc"][0])[:_MOST_SHOWN])
