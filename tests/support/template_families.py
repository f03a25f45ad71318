"""Reduced chat templates of real model families, and what a model of each has to write.

Each family is described twice. `template` is Jinja: the control tokens, headers, white space, calls,
reasoning and refusals of the family's own template, without the long instructions. The methods say
the same in Python, by hand: what generation sees before an answer, what the model must write then,
and what the family leaves out or refuses. A test compares the encoder, which knows the template
alone, with the description.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, ClassVar

Message = dict[str, Any]

REFUSED = "the chat template refuses these messages"
NO_CALL = "does not write this turn's tool call"
NO_REASONING = "does not write this turn's"
NO_TOOLS = "does not show them to the model"
NO_SYSTEM = "the chat template leaves out the system turn"
NO_CONTENT = "leaves out or alters the content of this"
NO_CUT = "the chat template alters the content"
NOT_THERE = "generation would begin this answer with"
CLOSED = "would follow a thought that is closed already"
"""What the encoder says to refuse a conversation."""


def spaced(value: object) -> str:
    """Return a value as the templates' `tojson` writes it."""
    return json.dumps(value, ensure_ascii=False)


@dataclass
class Talk:
    """A conversation with its tools."""

    messages: list[Message]
    tools: list[Message] = field(default_factory=list)

    def upto(self, turn: int) -> Talk:
        """Return the conversation before a turn."""
        return Talk(self.messages[:turn], self.tools)

    @property
    def system(self) -> str | None:
        first = self.messages[0]
        return first["content"] if first["role"] == "system" else None

    @property
    def last_user(self) -> int:
        users = [i for i, m in enumerate(self.messages) if m["role"] == "user"]
        return users[-1] if users else -1

    def text(self, i: int) -> str:
        return str(self.messages[i].get("content") or "")

    def role(self, i: int) -> str:
        """Return a message's role; none where there is no such message."""
        return str(self.messages[i]["role"]) if 0 <= i < len(self.messages) else ""

    def thought(self, i: int) -> str:
        message = self.messages[i]
        return str(message.get("reasoning_content") or message.get("thinking") or "")

    def calls(self, i: int) -> list[Message]:
        return [call["function"] for call in self.messages[i].get("tool_calls") or []]

    def ids(self, i: int) -> list[str]:
        return [call["id"] for call in self.messages[i].get("tool_calls") or []]


class Family:
    """A family whose turns are a header, a body and an end each; others change what differs."""

    template: ClassVar[str]
    control: ClassVar[str]
    """Control tokens, which are special in its tokenizers; separated by spaces, as those below."""
    tags: ClassVar[str] = ""
    """Tokens added to its tokenizers that are text."""
    stops: ClassVar[str]
    """Tokens at which generation stops; the first is the tokenizer's end of text."""
    swallows: ClassVar[bool] = False
    """Whether its control tokens take in the white space after them."""
    ends: ClassVar[bool] = True
    """Whether the template writes a token that ends an answer."""
    begin: ClassVar[str] = ""
    heads: ClassVar[dict[str, str]] = {}
    tails: ClassVar[dict[str, str]] = {}
    answer_end: ClassVar[str] = ""
    """What the model writes after an answer's body."""
    refuses_system: ClassVar[bool] = False
    drops_system: ClassVar[bool] = False
    alternates: ClassVar[bool] = False
    """Whether it refuses two turns of one role, and roles but user and assistant."""
    writes_reasoning: ClassVar[bool] = False
    reasoning_key: ClassVar[str] = "reasoning_content"
    writes_calls: ClassVar[bool] = False
    writes_text_with_calls: ClassVar[bool] = True
    most_calls: ClassVar[int] = 9
    call_id: ClassVar[str] = "call12345"
    writes_tools: ClassVar[bool] = True
    writes_results: ClassVar[bool] = True

    def strip(self, text: str) -> str:
        """Return what the template makes of a content."""
        return text

    def opening(self, talk: Talk) -> str:
        """Return what stands before the first turn, or in place of a system turn."""
        return self.begin

    def header(self, talk: Talk) -> str:
        """Return what generation's prompt ends with."""
        return self.heads["assistant"]

    def body(self, talk: Talk, i: int) -> str:
        """Return an earlier turn's text."""
        return self.strip(talk.text(i))

    def history(self, talk: Talk, i: int) -> str:
        """Return an earlier turn, or another's."""
        role = talk.role(i)
        return self.heads[role] + self.body(talk, i) + self.tails[role]

    def answer(self, talk: Talk, i: int) -> str:
        """Return what the model must write as the last turn of a conversation."""
        return self.body(talk, i) + self.answer_end

    def prompt(self, talk: Talk) -> str:
        """Return what generation sees."""
        turns = [self.history(talk, i) for i in range(len(talk.messages))]
        return "".join([self.opening(talk), *turns, self.header(talk)])

    def problems(self, talk: Talk, learned: Sequence[int]) -> list[str]:
        """Return the reasons for which a conversation cannot be learned; any of them may be given."""
        talk = talk.upto(learned[-1] + 1)
        found = [NO_TOOLS] if talk.tools and not self.writes_tools else []
        if talk.system is not None and self.refuses_system:
            found.append(REFUSED)
        if talk.system and self.drops_system:
            found.append(NO_SYSTEM)
        roles = [str(m["role"]) for m in talk.messages if m["role"] != "system"]
        if self.alternates and roles != (["user", "assistant"] * len(roles))[: len(roles)]:
            found.append(REFUSED)
        for i in range(len(talk.messages)):
            found += self.problems_of(talk, i, i in learned)
        return found

    def problems_of(self, talk: Talk, i: int, learned: bool) -> list[str]:
        """Return the reasons that lie in one turn."""
        found = []
        if talk.calls(i) and not self.writes_calls:
            found.append(NO_CALL)
        if len(talk.calls(i)) > self.most_calls:
            found += [REFUSED, NO_CALL]
        if talk.calls(i) and talk.text(i) and not self.writes_text_with_calls:
            found.append(NO_CONTENT)
        if talk.thought(i) and learned and not self.writes_reasoning:
            found.append(NO_REASONING)
        if talk.role(i) == "tool" and not self.writes_results:
            found += [REFUSED, NO_CONTENT]
        return found


# --- ChatML and its relatives ---

QWEN_CALL = (
    '{%- for call in m.tool_calls -%}{{- \'\\n<tool_call>\\n{"name": "\' -}}{{- call.function.name -}}'
    "{{- '\", \"arguments\": ' -}}{{- call.function.arguments | tojson -}}{{- '}\\n</tool_call>' -}}"
    "{%- endfor -%}"
)
QWEN_TOOLS = (
    "{{- '\\n\\n# Tools' -}}{%- for tool in tools -%}{{- '\\n' ~ (tool | tojson) -}}{%- endfor -%}"
)


def qwen_tools(talk: Talk) -> str:
    return "\n\n# Tools" + "".join("\n" + spaced(tool) for tool in talk.tools)


def qwen_calls(talk: Talk, i: int) -> str:
    return "".join(
        f'\n<tool_call>\n{{"name": "{f["name"]}", "arguments": {spaced(f["arguments"])}}}\n</tool_call>'
        for f in talk.calls(i)
    )


class Chatml(Family):
    """Plain ChatML on a base whose end of text is another token (Yi)."""

    template = (
        "{%- for m in messages -%}{{- '<|im_start|>' ~ m.role ~ '\\n' ~ m.content ~ '<|im_end|>\\n' -}}"
        "{%- endfor -%}{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}"
    )
    control = "<|endoftext|> <|im_start|> <|im_end|>"
    stops = "<|endoftext|>"
    heads: ClassVar = {
        role: f"<|im_start|>{role}\n" for role in ("system", "user", "assistant", "tool")
    }
    tails: ClassVar = dict.fromkeys(heads, "<|im_end|>\n")
    answer_end = "<|im_end|>"
    writes_tools = False


class ChatmlAsText(Chatml):
    """ChatML on a base that does not know its tokens: nothing ends a turn, so that an end is added."""

    control = "<|endoftext|>"
    ends = False
    answer_end = "<|im_end|>\n"


class SmolLm2(Chatml):
    """ChatML with a default system turn."""

    template = (
        "{%- if messages[0].role != 'system' -%}"
        "{{- '<|im_start|>system\\nYou are SmolLM.<|im_end|>\\n' -}}{%- endif -%}" + Chatml.template
    )
    stops = "<|im_end|>"

    def opening(self, talk: Talk) -> str:
        default = "<|im_start|>system\nYou are SmolLM.<|im_end|>\n"
        return default if talk.system is None else ""


class InternLm(Chatml):
    """ChatML with a beginning, for which generation stops at two tokens."""

    template = "{{- bos_token -}}" + Chatml.template
    control = "<s> </s> <|im_start|> <|im_end|>"
    stops = "</s> <|im_end|>"
    begin = "<s>"


class Qwen25(Chatml):
    """ChatML with a default system turn, tools and calls; results of calls are user turns."""

    template = (
        "{%- if messages[0].role == 'system' -%}{%- set system = messages[0].content -%}{%- else -%}"
        "{%- set system = 'You are Qwen.' -%}{%- endif -%}{{- '<|im_start|>system\\n' ~ system -}}"
        "{%- if tools -%}" + QWEN_TOOLS + "{%- endif -%}{{- '<|im_end|>\\n' -}}"
        "{%- for m in messages -%}{%- if m.role == 'user' or (m.role == 'system' and not loop.first) -%}"
        "{{- '<|im_start|>' ~ m.role ~ '\\n' ~ m.content ~ '<|im_end|>\\n' -}}"
        "{%- elif m.role == 'assistant' and not m.tool_calls -%}"
        "{{- '<|im_start|>assistant\\n' + m.content + '<|im_end|>\\n' -}}"
        "{%- elif m.role == 'assistant' -%}{{- '<|im_start|>assistant' -}}"
        "{%- if m.content -%}{{- '\\n' ~ m.content -}}{%- endif -%}"
        + QWEN_CALL
        + "{{- '<|im_end|>\\n' -}}"
        "{%- elif m.role == 'tool' -%}"
        "{%- if messages[loop.index0 - 1].role != 'tool' -%}{{- '<|im_start|>user' -}}{%- endif -%}"
        "{{- '\\n<tool_response>\\n' ~ m.content ~ '\\n</tool_response>' -}}"
        "{%- if loop.last or messages[loop.index0 + 1].role != 'tool' -%}{{- '<|im_end|>\\n' -}}"
        "{%- endif -%}{%- endif -%}{%- endfor -%}"
        "{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}"
    )
    tags = "<tool_call> </tool_call>"
    stops = "<|im_end|> <|endoftext|>"
    writes_calls = writes_tools = True

    def opening(self, talk: Talk) -> str:
        system = "You are Qwen." if talk.system is None else talk.system
        return f"<|im_start|>system\n{system}{qwen_tools(talk) if talk.tools else ''}<|im_end|>\n"

    def body(self, talk: Talk, i: int) -> str:
        text = self.strip(talk.text(i))
        return text + qwen_calls(talk, i) if text else qwen_calls(talk, i)[1:]

    def history(self, talk: Talk, i: int) -> str:
        if talk.role(i) == "system" and i == 0:
            return ""
        if talk.role(i) == "tool":
            return self.result(talk, i)
        return super().history(talk, i)

    def result(self, talk: Talk, i: int) -> str:
        begin = "" if talk.role(i - 1) == "tool" else "<|im_start|>user"
        end = "" if talk.role(i + 1) == "tool" else "<|im_end|>\n"
        return f"{begin}\n<tool_response>\n{talk.text(i)}\n</tool_response>{end}"


class Hermes(Chatml):
    """ChatML whose calls follow the header directly."""

    template = (
        "{%- if tools -%}{{- '<|im_start|>system\\nTools:' -}}{%- for tool in tools -%}"
        "{{- '\\n' ~ (tool | tojson) -}}{%- endfor -%}{{- '<|im_end|>\\n' -}}{%- endif -%}"
        "{%- for m in messages -%}{{- '<|im_start|>' ~ m.role -}}{%- if m.role == 'tool' -%}"
        "{{- '\\n<tool_response>\\n' ~ m.content ~ '\\n</tool_response>' -}}"
        "{%- elif m.tool_calls -%}{%- if m.content -%}{{- '\\n' ~ m.content -}}{%- endif -%}"
        + QWEN_CALL
        + "{%- else -%}{{- '\\n' ~ m.content -}}{%- endif -%}{{- '<|im_end|>\\n' -}}{%- endfor -%}"
        "{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}"
    )
    stops = "<|im_end|>"
    writes_calls = writes_tools = True

    def opening(self, talk: Talk) -> str:
        tools = "".join("\n" + spaced(tool) for tool in talk.tools)
        return f"<|im_start|>system\nTools:{tools}<|im_end|>\n" if talk.tools else ""

    def body(self, talk: Talk, i: int) -> str:
        if talk.role(i) == "tool":
            return f"<tool_response>\n{talk.text(i)}\n</tool_response>"
        return talk.text(i) + qwen_calls(talk, i) if talk.text(i) else qwen_calls(talk, i)[1:]


class QwQ(Qwen25):
    """Opens a thought for the model, and cuts all thinking out of the contents of answers."""

    template = (
        Qwen25.template.replace(
            "{{- '<|im_start|>assistant\\n' + m.content + '<|im_end|>\\n' -}}",
            "{{- '<|im_start|>assistant\\n' ~ m.content.split('</think>')[-1].lstrip('\\n') -}}"
            "{{- '<|im_end|>\\n' -}}",
        )
        .replace(
            "'\\n' ~ m.content -}}{%- endif",
            "'\\n' ~ m.content.split('</think>')[-1].lstrip('\\n') -}}{%- endif",
        )
        .replace(
            "{{- '<|im_start|>assistant\\n' -}}", "{{- '<|im_start|>assistant\\n<think>\\n' -}}"
        )
    )
    tags = "<think> </think> <tool_call> </tool_call>"

    def header(self, talk: Talk) -> str:
        return "<|im_start|>assistant\n<think>\n"

    def body(self, talk: Talk, i: int) -> str:
        if talk.role(i) != "assistant":
            return talk.text(i)
        text = talk.text(i).split("</think>")[-1].lstrip("\n")
        return text + qwen_calls(talk, i) if text else qwen_calls(talk, i)[1:]

    def answer(self, talk: Talk, i: int) -> str:
        if "</think>" in talk.text(i):
            return talk.text(i).removeprefix("<think>\n") + "<|im_end|>"
        return "\n</think>\n\n" + self.body(talk, i) + "<|im_end|>"


QWEN3_CONTENT = (
    "{%- set ns = namespace(last=-1) -%}{%- for m in messages -%}{%- if m.role == 'user' -%}"
    "{%- set ns.last = loop.index0 -%}{%- endif -%}{%- endfor -%}"
)
QWEN3_SPLIT = (
    "{%- set content = m.content -%}{%- set thought = '' -%}"
    "{%- if m.reasoning_content is string -%}{%- set thought = m.reasoning_content -%}"
    "{%- elif '</think>' in content -%}"
    "{%- set thought = content.split('</think>')[0].rstrip('\\n').split('<think>')[-1].lstrip('\\n') -%}"
    "{%- set content = content.split('</think>')[-1].lstrip('\\n') -%}{%- endif -%}"
)
"""Take reasoning from its key, or from the content."""


def split_thought(talk: Talk, i: int) -> tuple[str, str]:
    """Return reasoning and answer, wherever the reasoning stands."""
    text = talk.text(i)
    if talk.messages[i].get("reasoning_content") is not None or "</think>" not in text:
        return talk.thought(i), text
    thought = text.split("</think>")[0].rstrip("\n").split("<think>")[-1].lstrip("\n")
    return thought, text.split("</think>")[-1].lstrip("\n")


class Qwen3(Qwen25):
    """Writes the thinking of the answers after the last question, and an empty one in the last."""

    template = (
        "{%- if messages[0].role == 'system' or tools -%}{{- '<|im_start|>system\\n' -}}"
        "{%- if messages[0].role == 'system' -%}{{- messages[0].content -}}{%- endif -%}"
        "{%- if tools -%}"
        + QWEN_TOOLS
        + "{%- endif -%}{{- '<|im_end|>\\n' -}}{%- endif -%}"
        + QWEN3_CONTENT
        + "{%- for m in messages -%}{%- if m.role == 'user' or (m.role == 'system' and not loop.first) -%}"
        "{{- '<|im_start|>' ~ m.role ~ '\\n' ~ m.content ~ '<|im_end|>\\n' -}}"
        "{%- elif m.role == 'assistant' -%}" + QWEN3_SPLIT + "{{- '<|im_start|>assistant\\n' -}}"
        "{%- if loop.index0 > ns.last and (loop.last or thought) -%}"
        "{{- '<think>\\n' ~ thought.strip('\\n') ~ '\\n</think>\\n\\n' ~ content.lstrip('\\n') -}}"
        "{%- else -%}{{- content -}}{%- endif -%}"
        "{%- for call in m.tool_calls -%}{%- if (loop.first and content) or not loop.first -%}"
        "{{- '\\n' -}}{%- endif -%}{{- '<tool_call>\\n{\"name\": \"' ~ call.function.name -}}"
        "{{- '\", \"arguments\": ' ~ (call.function.arguments | tojson) ~ '}\\n</tool_call>' -}}"
        "{%- endfor -%}{{- '<|im_end|>\\n' -}}{%- elif m.role == 'tool' -%}"
        "{%- if messages[loop.index0 - 1].role != 'tool' -%}{{- '<|im_start|>user' -}}{%- endif -%}"
        "{{- '\\n<tool_response>\\n' ~ m.content ~ '\\n</tool_response>' -}}"
        "{%- if loop.last or messages[loop.index0 + 1].role != 'tool' -%}{{- '<|im_end|>\\n' -}}"
        "{%- endif -%}{%- endif -%}{%- endfor -%}"
        "{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}"
        "{%- if enable_thinking is defined and enable_thinking is false -%}"
        "{{- '<think>\\n\\n</think>\\n\\n' -}}{%- endif -%}{%- endif -%}"
    )
    tags = "<think> </think> <tool_call> </tool_call>"
    writes_reasoning = True

    def opening(self, talk: Talk) -> str:
        if talk.system is None and not talk.tools:
            return ""
        tools = qwen_tools(talk) if talk.tools else ""
        return f"<|im_start|>system\n{talk.system or ''}{tools}<|im_end|>\n"

    def body(self, talk: Talk, i: int) -> str:
        if talk.role(i) != "assistant":
            return talk.text(i)
        thought, text = split_thought(talk, i)
        calls = qwen_calls(talk, i) if text else qwen_calls(talk, i)[1:]
        if i > talk.last_user and (i == len(talk.messages) - 1 or thought):
            return self.thinking(thought) + text.lstrip("\n") + calls
        return text + calls

    def thinking(self, thought: str) -> str:
        return "<think>\n" + thought.strip("\n") + "\n</think>\n\n"


class Qwen3WithoutThinking(Qwen3):
    """Qwen3 with `enable_thinking: false`: generation begins after an empty thought."""

    template = "{%- set enable_thinking = false -%}" + Qwen3.template

    def header(self, talk: Talk) -> str:
        return "<|im_start|>assistant\n<think>\n\n</think>\n\n"

    def answer(self, talk: Talk, i: int) -> str:
        return super().answer(talk, i).removeprefix("<think>\n\n</think>\n\n")

    def problems_of(self, talk: Talk, i: int, learned: bool) -> list[str]:
        found = super().problems_of(talk, i, learned)
        thinks = learned and split_thought(talk.upto(i + 1), i)[0]
        return [*found, NOT_THERE, CLOSED] if thinks else found


class Qwen35(Qwen3):
    """Opens a thought for the model; writes an empty one for an answer without thinking."""

    template = (
        Qwen3.template.replace(
            "loop.index0 > ns.last and (loop.last or thought)", "loop.index0 > ns.last"
        )
        .replace("content.lstrip('\\n') -}}{%- else", "content.strip() -}}{%- else")
        .replace("{%- else -%}{{- content -}}", "{%- else -%}{{- content.strip() -}}")
        .replace("thought.strip('\\n')", "thought.strip()")
        .replace(
            '{{- \'<tool_call>\\n{"name": "\' ~ call.function.name -}}'
            "{{- '\", \"arguments\": ' ~ (call.function.arguments | tojson) ~ '}\\n</tool_call>' -}}",
            "{{- '<tool_call>\\n<function=' ~ call.function.name ~ '>\\n' -}}"
            "{%- for key, value in call.function.arguments | items -%}"
            "{{- '<parameter=' ~ key ~ '>\\n' ~ (value if value is string else value | tojson) -}}"
            "{{- '\\n</parameter>\\n' -}}{%- endfor -%}{{- '</function>\\n</tool_call>' -}}",
        )
        .replace("(loop.first and content)", "(loop.first and content.strip())")
        .replace(
            "{{- '<|im_start|>assistant\\n' -}}{%- if enable_thinking",
            "{{- '<|im_start|>assistant\\n<think>\\n' -}}{%- if enable_thinking",
        )
        .replace("'<think>\\n\\n</think>\\n\\n' -}}{%- endif", "'\\n</think>\\n\\n' -}}{%- endif")
    )

    def header(self, talk: Talk) -> str:
        return "<|im_start|>assistant\n<think>\n"

    def body(self, talk: Talk, i: int) -> str:
        if talk.role(i) != "assistant":
            return talk.text(i)
        thought, text = split_thought(talk, i)
        written = text.strip() + self.calls(talk, i)
        written = written if text.strip() else written[1:]
        return (
            f"<think>\n{thought.strip()}\n</think>\n\n{written}" if i > talk.last_user else written
        )

    def calls(self, talk: Talk, i: int) -> str:
        written = ""
        for f in talk.calls(i):
            values = {k: v if isinstance(v, str) else spaced(v) for k, v in f["arguments"].items()}
            inner = "".join(f"<parameter={k}>\n{v}\n</parameter>\n" for k, v in values.items())
            written += f"\n<tool_call>\n<function={f['name']}>\n{inner}</function>\n</tool_call>"
        return written

    def answer(self, talk: Talk, i: int) -> str:
        return super().answer(talk, i).removeprefix("<think>\n")


class SmolLm3(Chatml):
    """A system turn with the date and a reasoning mode, which the user's system turn may set."""

    template = (
        "{%- set mode = '/think' -%}{%- set custom = 'You are helpful.' -%}"
        "{%- if messages[0].role == 'system' -%}{%- set custom = messages[0].content -%}"
        "{%- if '/no_think' in custom -%}{%- set mode = '/no_think' -%}{%- endif -%}"
        "{%- set custom = custom.replace('/no_think', '').replace('/think', '').rstrip() -%}{%- endif -%}"
        "{{- '<|im_start|>system\\nToday: ' ~ strftime_now('%Y') ~ '\\nReasoning Mode: ' ~ mode -}}"
        "{{- '\\n\\n' ~ custom -}}{%- if tools -%}{%- for tool in tools -%}{{- '\\n' ~ (tool | tojson) -}}"
        "{%- endfor -%}{%- endif -%}{{- '<|im_end|>\\n' -}}"
        "{%- for m in messages -%}{%- if m.role == 'user' -%}"
        "{{- '<|im_start|>user\\n' ~ m.content ~ '<|im_end|>\\n' -}}"
        "{%- elif m.role == 'assistant' -%}{% generation %}{{- '<|im_start|>assistant\\n' -}}"
        "{%- if mode == '/no_think' -%}{{- '<think>\\n\\n</think>\\n' -}}{%- endif -%}"
        "{{- m.content.lstrip('\\n') ~ '<|im_end|>\\n' -}}{% endgeneration %}"
        "{%- elif m.role == 'tool' -%}{{- '<|im_start|>user\\n' ~ m.content ~ '<|im_end|>\\n' -}}"
        "{%- endif -%}{%- endfor -%}"
        "{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}"
        "{%- if mode == '/no_think' -%}{{- '<think>\\n\\n</think>\\n' -}}{%- endif -%}{%- endif -%}"
    )
    tags = "<think> </think>"
    stops = "<|im_end|>"
    writes_tools = True

    def opening(self, talk: Talk) -> str:
        custom = "You are helpful." if talk.system is None else talk.system
        mode = "/no_think" if "/no_think" in custom else "/think"
        custom = custom.replace("/no_think", "").replace("/think", "").rstrip()
        tools = "".join("\n" + spaced(tool) for tool in talk.tools)
        year = datetime.now().year
        return f"<|im_start|>system\nToday: {year}\nReasoning Mode: {mode}\n\n{custom}{tools}<|im_end|>\n"

    def header(self, talk: Talk) -> str:
        off = "/no_think" in (talk.system or "")
        return "<|im_start|>assistant\n" + ("<think>\n\n</think>\n" if off else "")

    def body(self, talk: Talk, i: int) -> str:
        return talk.text(i).lstrip("\n") if talk.role(i) == "assistant" else talk.text(i)

    def history(self, talk: Talk, i: int) -> str:
        if talk.role(i) == "system":
            return ""
        head = self.header(talk) if talk.role(i) == "assistant" else "<|im_start|>user\n"
        return head + self.body(talk, i) + "<|im_end|>\n"

    def problems_of(self, talk: Talk, i: int, learned: bool) -> list[str]:
        found = super().problems_of(talk, i, learned)
        off = "/no_think" in (talk.system or "")
        return [*found, CLOSED] if learned and off and closes_thought(talk, i) else found


def closes_thought(talk: Talk, i: int) -> bool:
    """Return whether a content holds a thought, with its beginning or without."""
    return "</think>" in talk.text(i)


class NemotronNano(Chatml):
    """Opens a thought for the model; writes an empty one where the last question asks for none."""

    template = Chatml.template.replace(
        "assistant\\n' -}}",
        "assistant\\n' ~ ('<think></think>' if '/no_think' in messages[-1].content else '<think>\\n') -}}",
    )
    tags = "<think> </think>"
    stops = "<|im_end|>"

    def off(self, talk: Talk) -> bool:
        return "/no_think" in talk.text(len(talk.messages) - 1)

    def header(self, talk: Talk) -> str:
        return "<|im_start|>assistant\n" + ("<think></think>" if self.off(talk) else "<think>\n")

    def answer(self, talk: Talk, i: int) -> str:
        text = talk.text(i)
        if not self.off(talk.upto(i)):
            text = text.removeprefix("<think>\n") if "</think>" in text else "\n</think>\n\n" + text
        return text + "<|im_end|>"

    def problems_of(self, talk: Talk, i: int, learned: bool) -> list[str]:
        found = super().problems_of(talk, i, learned)
        off = learned and self.off(talk.upto(i))
        return [*found, CLOSED] if off and closes_thought(talk, i) else found


class ThinksIfAsked(NemotronNano):
    """Opens a thought where the last question asks for one, and else leaves it to the model."""

    template = Chatml.template.replace(
        "assistant\\n' -}}",
        "assistant\\n' ~ ('<think>\\n' if '/think' in messages[-1].content else '') -}}",
    )

    def off(self, talk: Talk) -> bool:
        return "/think" not in talk.text(len(talk.messages) - 1)

    def header(self, talk: Talk) -> str:
        return "<|im_start|>assistant\n" + ("" if self.off(talk) else "<think>\n")

    def problems_of(self, talk: Talk, i: int, learned: bool) -> list[str]:
        return Chatml.problems_of(self, talk, i, learned)


THINKING = (
    "{%- for m in messages -%}{{- '<|im_start|>' ~ m.role ~ '\\n' -}}{%- if m.reasoning_content -%}"
    "{{- 'BEGIN' ~ m.reasoning_content.strip() ~ 'END' -}}{%- endif -%}"
    "{{- m.content ~ '<|im_end|>\\n' -}}{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\nBEGIN' -}}{%- endif -%}"
)


class Bielik(Chatml):
    """Opens a thought for the model, and ends each thought with one new line."""

    template = THINKING.replace("BEGIN", "<think>\\n").replace("END", "\\n</think>\\n")
    tags = "<think> </think>"
    stops = "<|im_end|>"
    thought_begin: ClassVar[str] = "<think>\n"
    thought_end: ClassVar[str] = "\n</think>\n"
    writes_reasoning = True

    def header(self, talk: Talk) -> str:
        return "<|im_start|>assistant\n" + self.thought_begin

    def body(self, talk: Talk, i: int) -> str:
        thought = talk.thought(i).strip()
        before = self.thought_begin + thought + self.thought_end if thought else ""
        return before + talk.text(i)

    def answer(self, talk: Talk, i: int) -> str:
        text = self.body(talk, i)
        closed = self.thought_end.strip() in text
        return (
            text.removeprefix(self.thought_begin) if closed else self.thought_end + text
        ) + "<|im_end|>"


class ThinkTokens(Bielik):
    """Thoughts between control tokens, without white space."""

    template = THINKING.replace("BEGIN", "[THINK]").replace("END", "[/THINK]")
    control = Chatml.control + " [THINK] [/THINK]"
    tags = ""
    thought_begin = "[THINK]"
    thought_end = "[/THINK]"


class DeepSeekV32(Bielik):
    """Opens a thought for the model, and closes it before an answer without reasoning."""

    template = THINKING.replace(
        "{%- endif -%}{{- m", "{%- elif m.role == 'assistant' -%}{{- 'END' -}}{%- endif -%}{{- m", 1
    )
    template = template.replace("BEGIN", "<think>").replace("END", "</think>")
    thought_begin = "<think>"
    thought_end = "</think>"

    def body(self, talk: Talk, i: int) -> str:
        without = talk.role(i) == "assistant" and not talk.thought(i).strip()
        return ("</think>" if without else "") + super().body(talk, i)

    def problems_of(self, talk: Talk, i: int, learned: bool) -> list[str]:
        found = super().problems_of(talk, i, learned)
        return [*found, CLOSED] if learned and closes_thought(talk, i) else found


class Lfm2(Chatml):
    """ChatML with a beginning, whose calls stand between control tokens, before the text."""

    template = (
        "{{- bos_token -}}{%- if messages[0].role == 'system' or tools -%}{{- '<|im_start|>system\\n' -}}"
        "{%- if messages[0].role == 'system' -%}{{- messages[0].content -}}{%- endif -%}"
        "{%- if tools -%}{{- '\\n<|tool_list_start|>' ~ (tools | tojson) ~ '<|tool_list_end|>' -}}"
        "{%- endif -%}{{- '<|im_end|>\\n' -}}{%- endif -%}"
        "{%- for m in messages -%}{%- if m.role != 'system' -%}{{- '<|im_start|>' ~ m.role ~ '\\n' -}}"
        "{%- set content = m.content if m.content else '' -%}{%- if m.role == 'tool' -%}"
        "{%- set content = '<|tool_response_start|>' ~ content ~ '<|tool_response_end|>' -%}{%- endif -%}"
        "{%- if m.tool_calls -%}{{- '<|tool_call_start|>[' -}}{%- for call in m.tool_calls -%}"
        "{%- if not loop.first -%}{{- ', ' -}}{%- endif -%}{{- '{\"name\": \"' ~ call.function.name -}}"
        "{{- '\", \"arguments\": ' ~ (call.function.arguments | tojson) ~ '}' -}}{%- endfor -%}"
        "{{- ']<|tool_call_end|>' -}}{%- endif -%}{{- content ~ '<|im_end|>\\n' -}}{%- endif -%}"
        "{%- endfor -%}{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}"
    )
    control = (
        "<|startoftext|> <|im_start|> <|im_end|> <|tool_list_start|> <|tool_list_end|> "
        "<|tool_call_start|> <|tool_call_end|> <|tool_response_start|> "
        "<|tool_response_end|>"
    )
    stops = "<|im_end|>"
    begin = "<|startoftext|>"
    writes_calls = writes_tools = True

    def opening(self, talk: Talk) -> str:
        if talk.system is None and not talk.tools:
            return self.begin
        tools = f"\n<|tool_list_start|>{spaced(talk.tools)}<|tool_list_end|>" if talk.tools else ""
        return f"{self.begin}<|im_start|>system\n{talk.system or ''}{tools}<|im_end|>\n"

    def body(self, talk: Talk, i: int) -> str:
        if talk.role(i) == "tool":
            return f"<|tool_response_start|>{talk.text(i)}<|tool_response_end|>"
        calls = [
            f'{{"name": "{f["name"]}", "arguments": {spaced(f["arguments"])}}}'
            for f in talk.calls(i)
        ]
        before = f"<|tool_call_start|>[{', '.join(calls)}]<|tool_call_end|>" if calls else ""
        return before + talk.text(i)

    def history(self, talk: Talk, i: int) -> str:
        return "" if talk.role(i) == "system" else super().history(talk, i)


class Phi4(Chatml):
    """ChatML with a token between role and content, and no new lines."""

    template = (
        "{%- for m in messages -%}"
        "{{- '<|im_start|>' ~ m.role ~ '<|im_sep|>' ~ m.content ~ '<|im_end|>' -}}{%- endfor -%}"
        "{%- if add_generation_prompt -%}{{- '<|im_start|>assistant<|im_sep|>' -}}{%- endif -%}"
    )
    control = "<|endoftext|> <|im_start|> <|im_sep|> <|im_end|>"
    stops = "<|im_end|>"
    heads: ClassVar = {role: f"<|im_start|>{role}<|im_sep|>" for role in Chatml.heads}
    tails: ClassVar = dict.fromkeys(heads, "<|im_end|>")


class Phi4Reasoning(Phi4):
    """Phi 4 whose tags around a thought are control tokens, which its template does not look for."""

    control = Phi4.control + " <think> </think>"


class Kimi(Chatml):
    """Turns with a token for each role; the call's number is written with it."""

    template = (
        "{%- if tools -%}{{- '<|im_system|>tool_declare<|im_middle|>' ~ (tools | tojson) ~ '<|im_end|>' -}}"
        "{%- endif -%}{%- if messages[0].role != 'system' -%}"
        "{{- '<|im_system|>system<|im_middle|>You are Kimi.<|im_end|>' -}}{%- endif -%}"
        "{%- for m in messages -%}"
        "{%- set token = m.role if m.role in ['user', 'assistant'] else 'system' -%}"
        "{{- '<|im_' ~ token ~ '|>' ~ m.role ~ '<|im_middle|>' ~ m.content -}}"
        "{%- if m.tool_calls -%}{{- '<|tool_calls_section_begin|>' -}}{%- for call in m.tool_calls -%}"
        "{{- '<|tool_call_begin|>' ~ call.id ~ '<|tool_call_argument_begin|>' -}}"
        "{{- (call.function.arguments if call.function.arguments is string else"
        " call.function.arguments | tojson) ~ '<|tool_call_end|>' -}}"
        "{%- endfor -%}{{- '<|tool_calls_section_end|>' -}}{%- endif -%}{{- '<|im_end|>' -}}"
        "{%- endfor -%}{%- if add_generation_prompt -%}"
        "{{- '<|im_assistant|>assistant<|im_middle|>' -}}{%- endif -%}"
    )
    control = (
        "[BOS] <|im_end|> <|im_system|> <|im_user|> <|im_assistant|> <|im_middle|> "
        "<|tool_calls_section_begin|> <|tool_calls_section_end|> <|tool_call_begin|> "
        "<|tool_call_argument_begin|> <|tool_call_end|>"
    )
    stops = "<|im_end|>"
    heads: ClassVar = {
        "system": "<|im_system|>system<|im_middle|>",
        "user": "<|im_user|>user<|im_middle|>",
        "assistant": "<|im_assistant|>assistant<|im_middle|>",
        "tool": "<|im_system|>tool<|im_middle|>",
    }
    tails: ClassVar = dict.fromkeys(heads, "<|im_end|>")
    call_id = "functions.look_up:0"
    writes_calls = writes_tools = True

    def opening(self, talk: Talk) -> str:
        declared = f"<|im_system|>tool_declare<|im_middle|>{spaced(talk.tools)}<|im_end|>"
        default = "<|im_system|>system<|im_middle|>You are Kimi.<|im_end|>"
        return (declared if talk.tools else "") + (default if talk.system is None else "")

    def body(self, talk: Talk, i: int) -> str:
        calls = "".join(
            f"<|tool_call_begin|>{number}<|tool_call_argument_begin|>{spaced(f['arguments'])}"
            "<|tool_call_end|>"
            for number, f in zip(talk.ids(i), talk.calls(i), strict=True)
        )
        section = f"<|tool_calls_section_begin|>{calls}<|tool_calls_section_end|>" if calls else ""
        return talk.text(i) + section


class KimiWritingAsGiven(Kimi):
    """Writes a call's arguments as they are given, so that an object would not be JSON."""

    template = Kimi.template.replace(
        "(call.function.arguments if call.function.arguments is string else"
        " call.function.arguments | tojson)",
        "call.function.arguments",
    )


# --- Llama ---

ALTERNATE = (
    "{%- for m in turns -%}{%- if (m.role == 'user') != (loop.index0 % 2 == 0) or"
    " m.role not in ['user', 'assistant'] -%}"
    "{{- raise_exception('Roles must alternate user/assistant/user/assistant') -}}"
    "{%- endif -%}{%- endfor -%}"
)
APART = (
    "{%- if messages[0].role == 'system' -%}{%- set system = messages[0].content -%}"
    "{%- set turns = messages[1:] -%}{%- else -%}{%- set turns = messages -%}{%- endif -%}"
)


class Llama2(Family):
    """No header before an answer; every question begins with the token that begins a text."""

    template = (
        APART + ALTERNATE + "{%- for m in turns -%}{%- if m.role == 'user' -%}"
        "{%- set asked = m.content -%}{%- if loop.first and system is defined -%}"
        "{%- set asked = '<<SYS>>\\n' ~ system ~ '\\n<</SYS>>\\n\\n' ~ m.content -%}{%- endif -%}"
        "{{- bos_token ~ '[INST] ' ~ asked.strip() ~ ' [/INST]' -}}{%- else -%}"
        "{{- ' ' ~ m.content.strip() ~ ' ' ~ eos_token -}}{%- endif -%}{%- endfor -%}"
    )
    control = "<s> </s>"
    stops = "</s>"
    begin = ""
    alternates = True
    writes_tools = False

    def header(self, talk: Talk) -> str:
        return ""

    def history(self, talk: Talk, i: int) -> str:
        if talk.role(i) == "system":
            return ""
        if talk.role(i) == "assistant":
            return f" {talk.text(i).strip()} </s>"
        first = talk.system is not None and i == 1
        asked = f"<<SYS>>\n{talk.system}\n<</SYS>>\n\n{talk.text(i)}" if first else talk.text(i)
        return f"<s>[INST] {asked.strip()} [/INST]"

    def answer(self, talk: Talk, i: int) -> str:
        return self.history(talk, i)


class Llama3(Family):
    """Headers of three tokens; contents are trimmed."""

    template = (
        "{{- bos_token -}}{%- for m in messages -%}{{- '<|start_header_id|>' ~ m.role -}}"
        "{{- '<|end_header_id|>\\n\\n' ~ (m.content | trim) ~ '<|eot_id|>' -}}{%- endfor -%}"
        "{%- if add_generation_prompt -%}"
        "{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' -}}{%- endif -%}"
    )
    control = (
        "<|begin_of_text|> <|end_of_text|> <|start_header_id|> <|end_header_id|> "
        "<|eot_id|> <|eom_id|>"
    )
    stops = "<|eot_id|> <|end_of_text|>"
    begin = "<|begin_of_text|>"
    heads: ClassVar = {
        role: f"<|start_header_id|>{role}<|end_header_id|>\n\n"
        for role in ("system", "user", "assistant", "tool")
    }
    tails: ClassVar = dict.fromkeys(heads, "<|eot_id|>")
    answer_end = "<|eot_id|>"
    writes_tools = False

    def strip(self, text: str) -> str:
        return text.strip()


class Llama31(Llama3):
    """A system turn with the date; tools in the first question; one call, without text."""

    template = (
        "{{- bos_token -}}{%- if messages[0].role == 'system' -%}"
        "{%- set system = messages[0].content | trim -%}{%- set messages = messages[1:] -%}"
        "{%- else -%}{%- set system = '' -%}{%- endif -%}"
        "{{- '<|start_header_id|>system<|end_header_id|>\\n\\n' -}}"
        "{%- if tools -%}{{- 'Environment: ipython\\n' -}}{%- endif -%}"
        "{{- 'Today: ' ~ strftime_now('%Y') ~ '\\n\\n' ~ system ~ '<|eot_id|>' -}}"
        "{%- if tools -%}{{- '<|start_header_id|>user<|end_header_id|>\\n\\nFunctions:\\n\\n' -}}"
        "{%- for tool in tools -%}{{- (tool | tojson(indent=4)) ~ '\\n\\n' -}}{%- endfor -%}"
        "{{- (messages[0].content | trim) ~ '<|eot_id|>' -}}{%- set messages = messages[1:] -%}{%- endif -%}"
        "{%- for m in messages -%}{%- if m.role == 'tool' -%}"
        "{{- '<|start_header_id|>ipython<|end_header_id|>\\n\\n' ~ (m.content | tojson) ~ '<|eot_id|>' -}}"
        "{%- elif 'tool_calls' in m -%}{%- if m.tool_calls | length != 1 -%}"
        "{{- raise_exception('This model only supports single tool-calls at once!') -}}{%- endif -%}"
        "{%- set call = m.tool_calls[0].function -%}"
        '{{- \'<|start_header_id|>assistant<|end_header_id|>\\n\\n{"name": "\' ~ call.name -}}'
        "{{- '\", \"parameters\": ' ~ (call.arguments | tojson) ~ '}<|eot_id|>' -}}{%- else -%}"
        "{{- '<|start_header_id|>' ~ m.role ~ '<|end_header_id|>\\n\\n' + (m.content | trim) -}}"
        "{{- '<|eot_id|>' -}}{%- endif -%}{%- endfor -%}{%- if add_generation_prompt -%}"
        "{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' -}}{%- endif -%}"
    )
    stops = "<|eot_id|> <|eom_id|> <|end_of_text|>"
    writes_calls = writes_tools = True
    most_calls = 1
    writes_text_with_calls = False

    def opening(self, talk: Talk) -> str:
        tools = "Environment: ipython\n" if talk.tools else ""
        head = "<|start_header_id|>system<|end_header_id|>\n\n"
        system = (talk.system or "").strip()
        return f"{self.begin}{head}{tools}Today: {datetime.now().year}\n\n{system}<|eot_id|>"

    def body(self, talk: Talk, i: int) -> str:
        if talk.role(i) == "tool":
            return spaced(talk.text(i))
        for f in talk.calls(i):
            return f'{{"name": "{f["name"]}", "parameters": {spaced(f["arguments"])}}}'
        return talk.text(i).strip()

    def history(self, talk: Talk, i: int) -> str:
        if talk.role(i) == "system":
            return ""
        if talk.role(i) == "tool":
            return f"<|start_header_id|>ipython<|end_header_id|>\n\n{self.body(talk, i)}<|eot_id|>"
        written = super().history(talk, i)
        if talk.tools and i == (0 if talk.system is None else 1):
            tools = "".join(json.dumps(tool, indent=4) + "\n\n" for tool in talk.tools)
            head = self.heads["user"]
            return f"{head}Functions:\n\n{tools}{written.removeprefix(head)}"
        return written


# --- Mistral ---


class Mistral1(Family):
    """No header before an answer; refuses system turns."""

    template = (
        "{{- bos_token -}}{%- set turns = messages -%}" + ALTERNATE + "{%- for m in messages -%}"
        "{%- if m.role == 'user' -%}{{- ' [INST] ' ~ m.content ~ ' [/INST]' -}}{%- else -%}"
        "{{- ' ' ~ m.content ~ eos_token -}}{%- endif -%}{%- endfor -%}"
    )
    control = "<s> </s>"
    stops = "</s>"
    begin = "<s>"
    heads: ClassVar = {"user": " [INST] ", "assistant": " "}
    tails: ClassVar = {"user": " [/INST]", "assistant": "</s>"}
    refuses_system = alternates = True
    writes_tools = False

    def header(self, talk: Talk) -> str:
        return ""

    def answer(self, talk: Talk, i: int) -> str:
        return f" {talk.text(i)}</s>"


MISTRAL_CALLS = (
    "{%- for call in m.tool_calls -%}{%- if call.id is not defined or call.id | length != 9 -%}"
    "{{- raise_exception('Tool call IDs should be alphanumeric strings with length 9!') -}}"
    "{%- endif -%}{{- (call.function | tojson)[:-1] ~ ', \"id\": \"' ~ call.id ~ '\"}' -}}"
    "{{- ', ' if not loop.last else ']' ~ eos_token -}}{%- endfor -%}"
)
MISTRAL_ALTERNATE = (
    "{%- set ns = namespace(index=0) -%}{%- for m in turns -%}"
    "{%- if not (m.role == 'tool' or m.tool_calls is defined) -%}"
    "{%- if (m.role == 'user') != (ns.index % 2 == 0) -%}"
    "{{- raise_exception('Roles must alternate user/assistant/user/assistant') -}}"
    "{%- endif -%}{%- set ns.index = ns.index + 1 -%}{%- endif -%}{%- endfor -%}"
)


class Mistral3(Family):
    """Tools before the last question; the system turn in a question that ends the conversation."""

    template = (
        APART
        + "{%- set users = turns | selectattr('role', 'equalto', 'user') | list -%}"
        + MISTRAL_ALTERNATE
        + "{{- bos_token -}}{%- for m in turns -%}{%- if m.role == 'user' -%}"
        "{%- if tools and m == users[-1] -%}"
        "{{- '[AVAILABLE_TOOLS]' ~ (tools | tojson) ~ '[/AVAILABLE_TOOLS]' -}}{%- endif -%}"
        "{%- if loop.last and system is defined -%}"
        "{{- '[INST]' ~ system ~ '\\n\\n' ~ m.content ~ '[/INST]' -}}{%- else -%}"
        "{{- '[INST]' ~ m.content ~ '[/INST]' -}}{%- endif -%}"
        "{%- elif m.tool_calls is defined -%}{{- '[TOOL_CALLS][' -}}"
        + MISTRAL_CALLS
        + "{%- elif m.role == 'assistant' -%}"
        "{{- m.content + eos_token -}}{%- elif m.role == 'tool' -%}"
        '{{- \'[TOOL_RESULTS]{"content": \' ~ m.content ~ \', "call_id": "\' ~ m.tool_call_id -}}'
        "{{- '\"}[/TOOL_RESULTS]' -}}{%- else -%}{{- raise_exception('Unknown role') -}}{%- endif -%}"
        "{%- endfor -%}"
    )
    control = (
        "<s> </s> [INST] [/INST] [AVAILABLE_TOOLS] [/AVAILABLE_TOOLS] [TOOL_CALLS] "
        "[TOOL_RESULTS] [/TOOL_RESULTS]"
    )
    stops = "</s>"
    begin = "<s>"
    system_last: ClassVar[bool] = True
    """Whether a prompt has its system turn in a question at its end, or nowhere."""
    writes_calls = True
    writes_text_with_calls = False

    def header(self, talk: Talk) -> str:
        return ""

    def calls(self, talk: Talk, i: int) -> str:
        written = [
            f'{spaced(f)[:-1]}, "id": "{number}"}}'
            for number, f in zip(talk.ids(i), talk.calls(i), strict=True)
        ]
        return f"[TOOL_CALLS][{', '.join(written)}]</s>"

    def history(self, talk: Talk, i: int) -> str:
        if talk.role(i) == "system":
            return ""
        if talk.role(i) == "tool":
            number = talk.messages[i]["tool_call_id"]
            return (
                f'[TOOL_RESULTS]{{"content": {talk.text(i)}, "call_id": "{number}"}}[/TOOL_RESULTS]'
            )
        if talk.role(i) == "assistant":
            return self.calls(talk, i) if talk.calls(i) else f"{talk.text(i)}</s>"
        return self.question(talk, i)

    def question(self, talk: Talk, i: int) -> str:
        tools = f"[AVAILABLE_TOOLS]{spaced(talk.tools)}[/AVAILABLE_TOOLS]"
        system = f"{talk.system}\n\n" if talk.system is not None else ""
        shown = tools if talk.tools and talk.messages[i] == talk.messages[talk.last_user] else ""
        return f"{shown}[INST]{system if i == len(talk.messages) - 1 else ''}{talk.text(i)}[/INST]"

    def answer(self, talk: Talk, i: int) -> str:
        return self.history(talk, i)

    def problems(self, talk: Talk, learned: Sequence[int]) -> list[str]:
        found = super().problems(talk, learned)
        plain = [
            m["role"]
            for m in talk.messages[: learned[-1] + 1]
            if m["role"] not in ("system", "tool") and not m.get("tool_calls")
        ]
        if plain != (["user", "assistant"] * len(plain))[: len(plain)]:
            found.append(REFUSED)
        unseen = any(talk.role(i - 1) != "user" for i in learned)
        return [*found, NO_SYSTEM] if talk.system and unseen and self.system_last else found


class MistralSmall(Mistral3):
    """A system turn between tokens of its own, with the date by default."""

    template = (
        APART + MISTRAL_ALTERNATE + "{%- if system is not defined -%}"
        "{%- set system = 'You are Mistral. Today: ' ~ strftime_now('%Y') -%}{%- endif -%}"
        "{{- bos_token ~ '[SYSTEM_PROMPT]' ~ system ~ '[/SYSTEM_PROMPT]' -}}"
        "{%- if tools -%}{{- '[AVAILABLE_TOOLS]' ~ (tools | tojson) ~ '[/AVAILABLE_TOOLS]' -}}{%- endif -%}"
        "{%- for m in turns -%}{%- if m.role == 'user' -%}{{- '[INST]' ~ m.content ~ '[/INST]' -}}"
        "{%- elif m.tool_calls is defined -%}{%- if m.content -%}{{- m.content -}}{%- endif -%}"
        "{{- '[TOOL_CALLS][' -}}" + MISTRAL_CALLS + "{%- elif m.role == 'assistant' -%}"
        "{{- m.content + eos_token -}}{%- elif m.role == 'tool' -%}"
        '{{- \'[TOOL_RESULTS]{"content": \' ~ m.content ~ \', "call_id": "\' ~ m.tool_call_id -}}'
        "{{- '\"}[/TOOL_RESULTS]' -}}{%- endif -%}{%- endfor -%}"
    )
    control = Mistral3.control + " [SYSTEM_PROMPT] [/SYSTEM_PROMPT]"
    system_last = False
    writes_text_with_calls = True

    def opening(self, talk: Talk) -> str:
        default = f"You are Mistral. Today: {datetime.now().year}"
        system = default if talk.system is None else talk.system
        tools = f"[AVAILABLE_TOOLS]{spaced(talk.tools)}[/AVAILABLE_TOOLS]" if talk.tools else ""
        return f"<s>[SYSTEM_PROMPT]{system}[/SYSTEM_PROMPT]{tools}"

    def calls(self, talk: Talk, i: int) -> str:
        return talk.text(i) + super().calls(talk, i)

    def question(self, talk: Talk, i: int) -> str:
        return f"[INST]{talk.text(i)}[/INST]"


class Ministral(Family):
    """Takes a thought as a part of the content, and writes it between control tokens."""

    template = (
        "{{- bos_token -}}{%- for m in messages -%}{%- if m.role == 'user' -%}"
        "{{- '[INST]' ~ m.content ~ '[/INST]' -}}{%- elif m.role == 'assistant' -%}"
        "{%- if m.content is string -%}{{- m.content -}}{%- else -%}{%- for part in m.content -%}"
        "{{- part.text if part.type == 'text' else '[THINK]' ~ part.thinking ~ '[/THINK]' -}}"
        "{%- endfor -%}{%- endif -%}{{- eos_token -}}{%- else -%}"
        "{{- '[SYSTEM_PROMPT]' ~ m.content ~ '[/SYSTEM_PROMPT]' -}}{%- endif -%}{%- endfor -%}"
    )
    control = "<s> </s> [INST] [/INST] [SYSTEM_PROMPT] [/SYSTEM_PROMPT] [THINK] [/THINK]"
    stops = "</s>"
    begin = "<s>"
    heads: ClassVar = {
        "user": "[INST]",
        "assistant": "",
        "system": "[SYSTEM_PROMPT]",
        "tool": "[SYSTEM_PROMPT]",
    }
    tails: ClassVar = {
        "user": "[/INST]",
        "assistant": "</s>",
        "system": "[/SYSTEM_PROMPT]",
        "tool": "[/SYSTEM_PROMPT]",
    }
    answer_end = "</s>"
    writes_reasoning = True
    writes_tools = False

    def body(self, talk: Talk, i: int) -> str:
        thought = talk.thought(i)
        return (f"[THINK]{thought}[/THINK]" if thought else "") + talk.text(i)


# --- Gemma, Phi, Zephyr and other plain ones ---


class Gemma2(Family):
    """The model's role has a name of its own; refuses system turns; contents are trimmed."""

    template = (
        "{{- bos_token -}}{%- if messages[0].role == 'system' -%}"
        "{{- raise_exception('System role not supported') -}}{%- endif -%}{%- set turns = messages -%}"
        + ALTERNATE
        + "{%- for m in messages -%}{%- set role = 'model' if m.role == 'assistant' else m.role -%}"
        "{{- '<start_of_turn>' ~ role ~ '\\n' ~ (m.content | trim) ~ '<end_of_turn>\\n' -}}{%- endfor -%}"
        "{%- if add_generation_prompt -%}{{- '<start_of_turn>model\\n' -}}{%- endif -%}"
    )
    control = "<bos> <eos> <start_of_turn> <end_of_turn>"
    stops = "<eos> <end_of_turn>"
    begin = "<bos>"
    heads: ClassVar = {"user": "<start_of_turn>user\n", "assistant": "<start_of_turn>model\n"}
    tails: ClassVar = dict.fromkeys(heads, "<end_of_turn>\n")
    answer_end = "<end_of_turn>"
    refuses_system = alternates = True
    writes_tools = False

    def strip(self, text: str) -> str:
        return text.strip()


class Gemma3(Gemma2):
    """Folds the system turn into the first question."""

    template = (
        "{{- bos_token -}}" + APART + ALTERNATE + "{%- for m in turns -%}"
        "{%- set role = 'model' if m.role == 'assistant' else m.role -%}"
        "{{- '<start_of_turn>' ~ role ~ '\\n' -}}"
        "{%- if loop.first and system is defined -%}{{- system ~ '\\n\\n' -}}{%- endif -%}"
        "{{- (m.content | trim) ~ '<end_of_turn>\\n' -}}{%- endfor -%}"
        "{%- if add_generation_prompt -%}{{- '<start_of_turn>model\\n' -}}{%- endif -%}"
    )
    refuses_system = False

    def history(self, talk: Talk, i: int) -> str:
        if talk.role(i) == "system":
            return ""
        if talk.system is not None and i == 1:
            head = self.heads["user"]
            return f"{head}{talk.system}\n\n{talk.text(i).strip()}<end_of_turn>\n"
        return super().history(talk, i)


class Phi3(Family):
    """Writes the end of text after the last turn, behind the end of the turn."""

    template = (
        "{%- for m in messages -%}{{- '<|' ~ m.role ~ '|>\\n' ~ m.content ~ '<|end|>\\n' -}}{%- endfor -%}"
        "{%- if add_generation_prompt -%}{{- '<|assistant|>\\n' -}}{%- else -%}{{- eos_token -}}{%- endif -%}"
    )
    control = "<|endoftext|> <|end|> <|system|> <|user|> <|assistant|>"
    stops = "<|endoftext|> <|end|>"
    heads: ClassVar = {role: f"<|{role}|>\n" for role in ("system", "user", "assistant", "tool")}
    tails: ClassVar = dict.fromkeys(heads, "<|end|>\n")
    answer_end = "<|end|>"
    writes_tools = False


class Phi3Base(Phi3):
    """Phi 3 where generation stops at the end of text alone, which only a last turn has."""

    stops = "<|endoftext|>"
    swallows = True
    answer_end = "<|end|>\n<|endoftext|>"


class Phi4Mini(Phi3):
    """Calls and tools between tokens of their own; no new lines."""

    template = (
        APART + "{%- if system is defined or tools -%}{{- '<|system|>' ~ (system or '') -}}"
        "{%- for tool in tools or [] -%}{{- '<|tool|>' ~ (tool.function | tojson) ~ '<|/tool|>' -}}"
        "{%- endfor -%}{{- '<|end|>' -}}{%- endif -%}"
        "{%- for m in turns -%}{%- if m.role == 'tool' -%}"
        "{{- '<|tool_response|>' ~ (m.content | tojson) ~ '<|end|>' -}}{%- else -%}"
        "{{- '<|' ~ m.role ~ '|>' -}}{%- if m.content -%}{{- m.content -}}{%- endif -%}"
        "{%- for call in m.tool_calls -%}"
        "{{- '<|tool_call|>' ~ (call.function | tojson) ~ '<|/tool_call|>' -}}{%- endfor -%}"
        "{{- '<|end|>' -}}{%- endif -%}{%- endfor -%}"
        "{%- if add_generation_prompt -%}{{- '<|assistant|>' -}}{%- else -%}{{- eos_token -}}{%- endif -%}"
    )
    control = Phi3.control + " <|tool|> <|/tool|> <|tool_call|> <|/tool_call|> <|tool_response|>"
    heads: ClassVar = {
        "user": "<|user|>",
        "assistant": "<|assistant|>",
        "tool": "<|tool_response|>",
    }
    tails: ClassVar = dict.fromkeys(heads, "<|end|>")
    writes_calls = writes_tools = True

    def opening(self, talk: Talk) -> str:
        if talk.system is None and not talk.tools:
            return ""
        tools = "".join(f"<|tool|>{spaced(tool['function'])}<|/tool|>" for tool in talk.tools)
        return f"<|system|>{talk.system or ''}{tools}<|end|>"

    def body(self, talk: Talk, i: int) -> str:
        if talk.role(i) == "tool":
            return spaced(talk.text(i))
        calls = [f"<|tool_call|>{spaced(f)}<|/tool_call|>" for f in talk.calls(i)]
        return talk.text(i) + "".join(calls)

    def history(self, talk: Talk, i: int) -> str:
        return "" if talk.role(i) == "system" else super().history(talk, i)


class Zephyr(Family):
    """Headers are text; only the end of text is a token."""

    template = (
        "{%- for m in messages -%}{%- if m.role in ['user', 'system', 'assistant'] -%}"
        "{{- '<|' ~ m.role ~ '|>\\n' ~ m.content ~ eos_token ~ '\\n' -}}{%- endif -%}"
        "{%- if loop.last and add_generation_prompt -%}{{- '<|assistant|>\\n' -}}{%- endif -%}{%- endfor -%}"
    )
    control = "<s> </s>"
    stops = "</s>"
    heads: ClassVar = {role: f"<|{role}|>\n" for role in ("system", "user", "assistant")}
    tails: ClassVar = dict.fromkeys(heads, "</s>\n")
    answer_end = "</s>"
    writes_tools = writes_results = False


class Vicuna(Family):
    """A header that ends in a colon, a space before each answer, and a system text without header."""

    template = (
        APART + "{%- if system is defined -%}{{- system ~ '\\n\\n' -}}{%- endif -%}"
        "{%- for m in turns -%}{%- if m.role == 'user' -%}{{- 'USER: ' ~ m.content ~ ' ' -}}"
        "{%- elif m.role == 'assistant' -%}{{- 'ASSISTANT: ' ~ m.content ~ eos_token -}}"
        "{%- else -%}{{- raise_exception('Unknown role') -}}{%- endif -%}"
        "{%- endfor -%}{%- if add_generation_prompt -%}{{- 'ASSISTANT:' -}}{%- endif -%}"
    )
    control = "<s> </s>"
    stops = "</s>"
    heads: ClassVar = {"user": "USER: ", "assistant": "ASSISTANT:"}
    tails: ClassVar = {"user": " ", "assistant": "</s>"}
    answer_end = "</s>"
    writes_tools = writes_results = False

    def opening(self, talk: Talk) -> str:
        return "" if talk.system is None else f"{talk.system}\n\n"

    def body(self, talk: Talk, i: int) -> str:
        return f" {talk.text(i)}" if talk.role(i) == "assistant" else talk.text(i)

    def history(self, talk: Talk, i: int) -> str:
        return "" if talk.role(i) == "system" else super().history(talk, i)


class Alpaca(Family):
    """Headers are text and nothing ends a turn, so that the end of text is added to each answer."""

    template = (
        APART + "{%- if system is defined -%}{{- system ~ '\\n\\n' -}}{%- endif -%}"
        "{%- for m in turns -%}{%- if m.role == 'user' -%}"
        "{{- '### Instruction:\\n' ~ m.content ~ '\\n\\n' -}}{%- elif m.role == 'assistant' -%}"
        "{{- '### Response:\\n' ~ m.content ~ '\\n\\n' -}}{%- endif -%}{%- endfor -%}"
        "{%- if add_generation_prompt -%}{{- '### Response:\\n' -}}{%- endif -%}"
    )
    control = "<s> </s>"
    stops = "</s>"
    ends = False
    heads: ClassVar = {"user": "### Instruction:\n", "assistant": "### Response:\n"}
    tails: ClassVar = dict.fromkeys(heads, "\n\n")
    answer_end = "\n\n"
    writes_tools = writes_results = False

    def opening(self, talk: Talk) -> str:
        return "" if talk.system is None else f"{talk.system}\n\n"

    def history(self, talk: Talk, i: int) -> str:
        return "" if talk.role(i) == "system" else super().history(talk, i)


class Falcon3(Family):
    """A new line after the end of every turn but the last."""

    template = (
        "{%- for m in messages -%}{%- if m.role in ['system', 'user'] -%}"
        "{{- '<|' ~ m.role ~ '|>\\n' ~ m.content ~ '\\n' -}}{%- elif m.role == 'assistant' -%}"
        "{{- '<|assistant|>\\n' ~ m.content ~ eos_token ~ ('' if loop.last else '\\n') -}}{%- endif -%}"
        "{%- if loop.last and add_generation_prompt -%}{{- '<|assistant|>\\n' -}}{%- endif -%}{%- endfor -%}"
    )
    control = "<|endoftext|> <|system|> <|user|> <|assistant|>"
    stops = "<|endoftext|>"
    heads: ClassVar = {role: f"<|{role}|>\n" for role in ("system", "user", "assistant")}
    tails: ClassVar = {"system": "\n", "user": "\n", "assistant": "<|endoftext|>\n"}
    answer_end = "<|endoftext|>"
    writes_tools = writes_results = False

    def history(self, talk: Talk, i: int) -> str:
        written = super().history(talk, i)
        last = i == len(talk.messages) - 1 and talk.role(i) == "assistant"
        return written.removesuffix("\n") if last else written


class Olmo2(Falcon3):
    """The token that ends a text begins it, too; headers are text."""

    template = "{{- bos_token -}}" + Falcon3.template
    control = "<|endoftext|>"
    begin = "<|endoftext|>"


class Granite33(Family):
    """A system turn with the date, and tools in a turn of their own; calls are not written."""

    template = (
        APART + "{%- if system is not defined -%}"
        "{%- set system = 'Today: ' ~ strftime_now('%Y') ~ '.' -%}{%- endif -%}"
        "{{- '<|start_of_role|>system<|end_of_role|>' ~ system ~ '<|end_of_text|>\\n' -}}"
        "{%- if tools -%}{{- '<|start_of_role|>available_tools<|end_of_role|>' ~ (tools | tojson) -}}"
        "{{- '<|end_of_text|>\\n' -}}{%- endif -%}{%- for m in turns -%}"
        "{{- '<|start_of_role|>' ~ m.role ~ '<|end_of_role|>' ~ m.content ~ '<|end_of_text|>\\n' -}}"
        "{%- endfor -%}{%- if add_generation_prompt -%}"
        "{{- '<|start_of_role|>assistant<|end_of_role|>' -}}{%- endif -%}"
    )
    control = "<|end_of_text|> <|start_of_role|> <|end_of_role|>"
    stops = "<|end_of_text|>"
    heads: ClassVar = {
        role: f"<|start_of_role|>{role}<|end_of_role|>"
        for role in ("system", "user", "assistant", "tool")
    }
    tails: ClassVar = dict.fromkeys(heads, "<|end_of_text|>\n")
    answer_end = "<|end_of_text|>"

    def opening(self, talk: Talk) -> str:
        system = f"Today: {datetime.now().year}." if talk.system is None else talk.system
        tools = (
            f"<|start_of_role|>available_tools<|end_of_role|>{spaced(talk.tools)}<|end_of_text|>\n"
        )
        head = self.heads["system"]
        return f"{head}{system}<|end_of_text|>\n{tools if talk.tools else ''}"

    def history(self, talk: Talk, i: int) -> str:
        return "" if talk.role(i) == "system" else super().history(talk, i)


class Exaone35(Family):
    """Questions end in a new line, answers in a token; an empty system turn by default."""

    template = (
        "{%- for m in messages -%}{%- if loop.first and m.role != 'system' -%}"
        "{{- '[|system|][|endofturn|]\\n' -}}{%- endif -%}{{- '[|' ~ m.role ~ '|]' ~ m.content -}}"
        "{{- '\\n' if m.role == 'user' else '[|endofturn|]\\n' -}}{%- endfor -%}"
        "{%- if add_generation_prompt -%}{{- '[|assistant|]' -}}{%- endif -%}"
    )
    control = "[BOS] [|endofturn|] [|system|] [|user|] [|assistant|]"
    stops = "[|endofturn|]"
    heads: ClassVar = {role: f"[|{role}|]" for role in ("system", "user", "assistant", "tool")}
    tails: ClassVar = {**dict.fromkeys(heads, "[|endofturn|]\n"), "user": "\n"}
    answer_end = "[|endofturn|]"
    writes_tools = False

    def opening(self, talk: Talk) -> str:
        return "[|system|][|endofturn|]\n" if talk.system is None else ""


class ExaoneDeep(Exaone35):
    """Opens a thought for the model under a tag of its own, and cuts thoughts from answers."""

    template = Exaone35.template.replace(
        "~ m.content -}}",
        "~ (m.content.split('</thought>')[-1].lstrip('\\n') if m.role == 'assistant' else m.content) -}}",
    ).replace("'[|assistant|]' -}}{%- endif", "'[|assistant|]<thought>\\n' -}}{%- endif")

    def header(self, talk: Talk) -> str:
        return "[|assistant|]<thought>\n"

    def body(self, talk: Talk, i: int) -> str:
        if talk.role(i) != "assistant":
            return talk.text(i)
        return talk.text(i).split("</thought>")[-1].lstrip("\n")

    def answer(self, talk: Talk, i: int) -> str:
        if "</thought>" in talk.text(i):
            return talk.text(i).removeprefix("<thought>\n") + "[|endofturn|]"
        return "\n</thought>\n\n" + self.body(talk, i) + "[|endofturn|]"


# --- Cohere ---


class CommandR(Family):
    """A token for each role, and contents trimmed."""

    template = (
        "{{- bos_token -}}" + APART + ALTERNATE + "{%- if system is defined -%}"
        "{{- '<|START_OF_TURN_TOKEN|><|SYSTEM_TOKEN|>' ~ system ~ '<|END_OF_TURN_TOKEN|>' -}}{%- endif -%}"
        "{%- for m in turns -%}"
        "{%- set role = '<|USER_TOKEN|>' if m.role == 'user' else '<|CHATBOT_TOKEN|>' -%}"
        "{{- '<|START_OF_TURN_TOKEN|>' ~ role ~ m.content.strip() ~ '<|END_OF_TURN_TOKEN|>' -}}"
        "{%- endfor -%}{%- if add_generation_prompt -%}"
        "{{- '<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>' -}}{%- endif -%}"
    )
    control = (
        "<BOS_TOKEN> <|START_OF_TURN_TOKEN|> <|END_OF_TURN_TOKEN|> <|SYSTEM_TOKEN|> "
        "<|USER_TOKEN|> <|CHATBOT_TOKEN|>"
    )
    stops = "<|END_OF_TURN_TOKEN|>"
    begin = "<BOS_TOKEN>"
    heads: ClassVar = {
        "system": "<|START_OF_TURN_TOKEN|><|SYSTEM_TOKEN|>",
        "user": "<|START_OF_TURN_TOKEN|><|USER_TOKEN|>",
        "assistant": "<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>",
    }
    tails: ClassVar = dict.fromkeys(heads, "<|END_OF_TURN_TOKEN|>")
    answer_end = "<|END_OF_TURN_TOKEN|>"
    alternates = True
    writes_tools = False

    def body(self, talk: Talk, i: int) -> str:
        return talk.text(i) if talk.role(i) == "system" else talk.text(i).strip()


class CommandR7b(CommandR):
    """Ends a response before the end of the turn; always writes the header of the next answer."""

    template = (
        "{{- bos_token ~ '<|START_OF_TURN_TOKEN|><|SYSTEM_TOKEN|># Preamble' -}}"
        "{%- if tools -%}{{- '\\n' ~ (tools | tojson) -}}{%- endif -%}"
        "{%- if messages[0].role == 'system' -%}{{- '\\n\\n' ~ messages[0].content -}}{%- endif -%}"
        "{{- '<|END_OF_TURN_TOKEN|>' -}}{%- for m in messages -%}{%- if m.role == 'user' -%}"
        "{{- '<|START_OF_TURN_TOKEN|><|USER_TOKEN|>' ~ m.content ~ '<|END_OF_TURN_TOKEN|>' -}}"
        "{%- elif m.role == 'assistant' -%}{{- '<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>' -}}"
        "{%- if m.tool_calls -%}"
        "{{- '<|START_THINKING|>' ~ m.reasoning_content ~ '<|END_THINKING|><|START_ACTION|>[' -}}"
        "{%- for call in m.tool_calls -%}"
        '{{- \'\\n{"tool_name": "\' ~ call.function.name ~ \'", "parameters": \' -}}'
        "{{- (call.function.arguments | tojson) ~ '}' ~ (',' if not loop.last else '') -}}{%- endfor -%}"
        "{{- '\\n]<|END_ACTION|>' -}}{%- else -%}"
        "{{- '<|START_RESPONSE|>' ~ m.content ~ '<|END_RESPONSE|>' -}}{%- endif -%}"
        "{{- '<|END_OF_TURN_TOKEN|>' -}}{%- elif m.role == 'tool' -%}"
        "{{- '<|START_OF_TURN_TOKEN|><|SYSTEM_TOKEN|><|START_TOOL_RESULT|>' ~ (m.content | tojson) -}}"
        "{{- '<|END_TOOL_RESULT|><|END_OF_TURN_TOKEN|>' -}}{%- endif -%}{%- endfor -%}"
        "{{- '<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>' -}}"
    )
    control = CommandR.control + (
        " <|START_RESPONSE|> <|END_RESPONSE|> <|START_THINKING|> <|END_THINKING|> "
        "<|START_ACTION|> <|END_ACTION|> <|START_TOOL_RESULT|> <|END_TOOL_RESULT|>"
    )
    alternates = False
    writes_calls = writes_tools = True
    writes_text_with_calls = False

    def problems_of(self, talk: Talk, i: int, learned: bool) -> list[str]:
        found = super().problems_of(talk, i, learned)
        return [reason for reason in found if reason != NO_REASONING or not talk.calls(i)]

    def opening(self, talk: Talk) -> str:
        tools = "\n" + spaced(talk.tools) if talk.tools else ""
        system = "" if talk.system is None else f"\n\n{talk.system}"
        head = self.heads["system"]
        return f"<BOS_TOKEN>{head}# Preamble{tools}{system}<|END_OF_TURN_TOKEN|>"

    def body(self, talk: Talk, i: int) -> str:
        if talk.role(i) != "assistant":
            return talk.text(i)
        if not talk.calls(i):
            return f"<|START_RESPONSE|>{talk.text(i)}<|END_RESPONSE|>"
        calls = ",".join(
            f'\n{{"tool_name": "{f["name"]}", "parameters": {spaced(f["arguments"])}}}'
            for f in talk.calls(i)
        )
        thinking = f"<|START_THINKING|>{talk.thought(i)}<|END_THINKING|>"
        return f"{thinking}<|START_ACTION|>[{calls}\n]<|END_ACTION|>"

    def history(self, talk: Talk, i: int) -> str:
        if talk.role(i) == "system":
            return ""
        if talk.role(i) == "tool":
            result = f"<|START_TOOL_RESULT|>{spaced(talk.text(i))}<|END_TOOL_RESULT|>"
            return self.heads["system"] + result + "<|END_OF_TURN_TOKEN|>"
        return super().history(talk, i)


class CommandR7bBase(CommandR7b):
    """R7B on a base whose end of text its template does not write, and a header only where asked."""

    template = CommandR7b.template.removesuffix(
        "{{- '<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>' -}}"
    ) + (
        "{%- if add_generation_prompt -%}"
        "{{- '<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>' -}}{%- endif -%}"
    )
    control = CommandR7b.control + " <EOS_TOKEN>"
    stops = "<EOS_TOKEN>"


class Cohere2(CommandR):
    """Opens a thought with a control token, and begins each text with one of its own."""

    template = (
        "{{- bos_token -}}{%- for m in messages -%}"
        "{%- set role = {'user': 'USER', 'assistant': 'CHATBOT'}.get(m.role, 'SYSTEM') -%}"
        "{{- '<|START_OF_TURN_TOKEN|><|' ~ role ~ '_TOKEN|>' -}}{%- if m.reasoning_content -%}"
        "{{- '<|START_THINKING|>' ~ m.reasoning_content ~ '<|END_THINKING|>' -}}{%- endif -%}"
        "{{- '<|START_TEXT|>' ~ m.content ~ '<|END_TEXT|><|END_OF_TURN_TOKEN|>' -}}{%- endfor -%}"
        "{%- if add_generation_prompt -%}"
        "{{- '<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|><|START_THINKING|>' -}}{%- endif -%}"
    )
    control = CommandR.control + " <|START_THINKING|> <|END_THINKING|> <|START_TEXT|> <|END_TEXT|>"
    heads: ClassVar = {**CommandR.heads, "tool": CommandR.heads["system"]}
    tails: ClassVar = dict.fromkeys(heads, "<|END_OF_TURN_TOKEN|>")
    alternates = False
    writes_reasoning = True

    def header(self, talk: Talk) -> str:
        return self.heads["assistant"] + "<|START_THINKING|>"

    def body(self, talk: Talk, i: int) -> str:
        thought = talk.thought(i)
        before = f"<|START_THINKING|>{thought}<|END_THINKING|>" if thought else ""
        return f"{before}<|START_TEXT|>{talk.text(i)}<|END_TEXT|>"

    def answer(self, talk: Talk, i: int) -> str:
        text = self.body(talk, i) + self.answer_end
        begins = text.removeprefix("<|START_THINKING|>")
        return begins if talk.thought(i) else f"<|END_THINKING|>{text}"


class Cohere2WithoutThinking(Cohere2):
    """Cohere 2 with `reasoning: false`: generation begins after an empty thought."""

    template = Cohere2.template.replace(
        "_TOKEN|><|START_THINKING|>'", "_TOKEN|><|START_THINKING|><|END_THINKING|>'"
    )

    def header(self, talk: Talk) -> str:
        return super().header(talk) + "<|END_THINKING|>"

    def answer(self, talk: Talk, i: int) -> str:
        return super().answer(talk, i).removeprefix("<|END_THINKING|>")

    def problems_of(self, talk: Talk, i: int, learned: bool) -> list[str]:
        found = super().problems_of(talk, i, learned)
        return [*found, NOT_THERE] if learned and talk.thought(i) else found


# --- DeepSeek ---

USER, BOT, EOS = "<｜User｜>", "<｜Assistant｜>", "<｜end▁of▁sentence｜>"
DEEPSEEK_RESULT = (
    "{%- elif m.role == 'tool' -%}{%- set ns.tool = true -%}"
    "{{- '<｜tool▁output▁begin｜>' + m.content + '<｜tool▁output▁end｜>' -}}{%- endif -%}{%- endfor -%}"
)
DEEPSEEK_CALLS = (
    "{{- '<｜tool▁calls▁begin｜>' -}}{%- for call in m.tool_calls -%}"
    "{{- '<｜tool▁call▁begin｜>' + call.function.name + '<｜tool▁sep｜>' + call.function.arguments -}}"
    "{{- '<｜tool▁call▁end｜>' -}}{%- endfor -%}{{- '<｜tool▁calls▁end｜><｜end▁of▁sentence｜>' -}}"
)


class DeepSeekV3(Family):
    """Writes calls only where the content is null, which transformers leaves out: so it writes none."""

    template = (
        "{%- set ns = namespace(tool=false, system='') -%}{%- for m in messages -%}"
        "{%- if m.role == 'system' -%}{%- set ns.system = m.content -%}{%- endif -%}{%- endfor -%}"
        "{{- bos_token ~ ns.system -}}{%- for m in messages -%}{%- if m.role == 'user' -%}"
        "{%- set ns.tool = false -%}{{- '<｜User｜>' + m.content -}}"
        "{%- elif m.role == 'assistant' and m.content is none -%}{{- '<｜Assistant｜>' -}}"
        + DEEPSEEK_CALLS
        + "{%- elif m.role == 'assistant' -%}"
        "{{- ('' if ns.tool else '<｜Assistant｜>') + m.content + '<｜end▁of▁sentence｜>' -}}"
        "{%- set ns.tool = false -%}"
        + DEEPSEEK_RESULT
        + "{%- if add_generation_prompt and not ns.tool -%}{{- '<｜Assistant｜>' -}}{%- endif -%}"
    )
    control = (
        "<｜begin▁of▁sentence｜> <｜end▁of▁sentence｜> <｜User｜> <｜Assistant｜> "
        "<｜tool▁calls▁begin｜> <｜tool▁calls▁end｜> <｜tool▁call▁begin｜> <｜tool▁call▁end｜> "
        "<｜tool▁sep｜> <｜tool▁output▁begin｜> <｜tool▁output▁end｜>"
    )
    stops = "<｜end▁of▁sentence｜>"
    writes_tools = False
    writes_text_with_calls = False

    def opening(self, talk: Talk) -> str:
        return "<｜begin▁of▁sentence｜>" + (talk.system or "")

    def header(self, talk: Talk) -> str:
        return "" if talk.role(len(talk.messages) - 1) == "tool" else BOT

    def body(self, talk: Talk, i: int) -> str:
        return talk.text(i)

    def history(self, talk: Talk, i: int) -> str:
        match talk.role(i):
            case "system":
                return ""
            case "user":
                return USER + talk.text(i)
            case "tool":
                return f"<｜tool▁output▁begin｜>{talk.text(i)}<｜tool▁output▁end｜>"
        return self.header(talk.upto(i)).removesuffix("<think>\n") + self.body(talk, i) + EOS

    def answer(self, talk: Talk, i: int) -> str:
        return self.body(talk, i) + EOS


class R1Early(DeepSeekV3):
    """Cuts the thinking out of every answer's content."""

    template = DeepSeekV3.template.replace(
        "+ m.content + '<｜end▁of▁sentence｜>'",
        "+ m.content.split('</think>')[-1] + '<｜end▁of▁sentence｜>'",
    )
    tags = "<think> </think>"

    def body(self, talk: Talk, i: int) -> str:
        return talk.text(i).split("</think>")[-1]

    def answer(self, talk: Talk, i: int) -> str:
        return talk.text(i) + EOS


class R1Late(R1Early):
    """Opens a thought for the model, too."""

    template = R1Early.template.replace(
        "{{- '<｜Assistant｜>' -}}{%- endif -%}", "{{- '<｜Assistant｜><think>\\n' -}}{%- endif -%}"
    )

    def header(self, talk: Talk) -> str:
        return "" if talk.role(len(talk.messages) - 1) == "tool" else f"{BOT}<think>\n"

    def answer(self, talk: Talk, i: int) -> str:
        written = super().answer(talk, i)
        if not self.header(talk.upto(i)):
            return written
        if "</think>" in talk.text(i):
            return written.removeprefix("<think>\n")
        return "\n</think>\n\n" + written


class R1Tokens(R1Late):
    """R1 whose tags around a thought are control tokens; its template looks for one of them."""

    control = R1Late.control + " <think> </think>"
    tags = ""


class DeepSeekV31(DeepSeekV3):
    """Begins answers after a closed thought; takes the arguments of calls as a text."""

    template = (
        "{%- set ns = namespace(tool=false, user=false, system='') -%}{%- for m in messages -%}"
        "{%- if m.role == 'system' -%}{%- set ns.system = m.content -%}{%- endif -%}{%- endfor -%}"
        "{{- bos_token ~ ns.system -}}{%- for m in messages -%}{%- if m.role == 'user' -%}"
        "{%- set ns.user = true -%}{%- set ns.tool = false -%}{{- '<｜User｜>' + m.content -}}"
        "{%- elif m.role == 'assistant' -%}"
        "{%- if ns.user -%}{{- '<｜Assistant｜></think>' -}}{%- endif -%}{%- set ns.user = false -%}"
        "{%- if m.tool_calls -%}{%- if m.content is not none -%}{{- m.content -}}{%- endif -%}"
        + DEEPSEEK_CALLS
        + "{%- elif ns.tool -%}{{- m.content + '<｜end▁of▁sentence｜>' -}}{%- set ns.tool = false -%}"
        "{%- else -%}{{- m.content.split('</think>', 1)[-1] + '<｜end▁of▁sentence｜>' -}}{%- endif -%}"
        + DEEPSEEK_RESULT
        + "{%- if add_generation_prompt and ns.user and not ns.tool -%}"
        "{{- '<｜Assistant｜></think>' -}}{%- endif -%}"
    )
    tags = "<think> </think>"
    writes_calls = True
    writes_text_with_calls = True

    def header(self, talk: Talk) -> str:
        return f"{BOT}</think>" if talk.role(len(talk.messages) - 1) == "user" else ""

    def body(self, talk: Talk, i: int) -> str:
        if not talk.calls(i):
            return talk.text(i).split("</think>", 1)[-1]
        calls = [
            f"<｜tool▁call▁begin｜>{f['name']}<｜tool▁sep｜>{spaced(f['arguments'])}<｜tool▁call▁end｜>"
            for f in talk.calls(i)
        ]
        return f"{talk.text(i)}<｜tool▁calls▁begin｜>{''.join(calls)}<｜tool▁calls▁end｜>"

    def problems_of(self, talk: Talk, i: int, learned: bool) -> list[str]:
        found = super().problems_of(talk, i, learned)
        return [*found, CLOSED] if learned and "</think>" in talk.text(i) else found


# --- reasoning models with templates of their own ---


class Glm46(Family):
    """Nothing ends a turn, so that the end of text is added; an empty thought where there is none."""

    template = (
        QWEN3_CONTENT + "{{- '[gMASK]<sop>' -}}"
        "{%- if tools -%}{{- '<|system|>\\n# Tools' -}}{%- for tool in tools -%}{{- '\\n' ~ (tool | tojson) -}}"
        "{%- endfor -%}{%- endif -%}"
        "{%- for m in messages -%}{%- if m.role in ['user', 'system'] -%}"
        "{{- '<|' ~ m.role ~ '|>\\n' ~ m.content -}}{%- elif m.role == 'assistant' -%}"
        + QWEN3_SPLIT
        + "{{- '<|assistant|>' -}}{%- if loop.index0 > ns.last and thought -%}"
        "{{- '\\n<think>' ~ thought.strip() ~ '</think>' -}}{%- else -%}{{- '\\n<think></think>' -}}{%- endif -%}"
        "{%- if content.strip() -%}{{- '\\n' ~ content.strip() -}}{%- endif -%}"
        "{%- for call in m.tool_calls -%}{{- '\\n<tool_call>' ~ call.function.name -}}"
        "{%- for key, value in call.function.arguments | items -%}"
        "{{- '\\n<arg_key>' ~ key ~ '</arg_key>\\n<arg_value>' -}}"
        "{{- value if value is string else value | tojson -}}{{- '</arg_value>' -}}{%- endfor -%}"
        "{{- '\\n</tool_call>' -}}{%- endfor -%}{%- elif m.role == 'tool' -%}"
        "{{- '<|observation|>\\n<tool_response>\\n' ~ m.content ~ '\\n</tool_response>' -}}{%- endif -%}"
        "{%- endfor -%}{%- if add_generation_prompt -%}{{- '<|assistant|>' -}}{%- endif -%}"
    )
    control = "<|endoftext|> [gMASK] <sop> <|system|> <|user|> <|assistant|> <|observation|>"
    tags = "<think> </think> <tool_call> </tool_call>"
    stops = "<|endoftext|> <|user|> <|observation|>"
    ends = False
    writes_calls = writes_reasoning = True

    def opening(self, talk: Talk) -> str:
        tools = "".join("\n" + spaced(tool) for tool in talk.tools)
        return "[gMASK]<sop>" + (f"<|system|>\n# Tools{tools}" if talk.tools else "")

    def header(self, talk: Talk) -> str:
        return "<|assistant|>"

    def calls(self, talk: Talk, i: int) -> str:
        written = ""
        for f in talk.calls(i):
            values = {k: v if isinstance(v, str) else spaced(v) for k, v in f["arguments"].items()}
            pairs = [
                f"\n<arg_key>{k}</arg_key>\n<arg_value>{v}</arg_value>" for k, v in values.items()
            ]
            written += f"\n<tool_call>{f['name']}{''.join(pairs)}\n</tool_call>"
        return written

    def body(self, talk: Talk, i: int) -> str:
        thought, text = split_thought(talk, i)
        thought = thought.strip() if i > talk.last_user else ""
        written = f"\n{text.strip()}" if text.strip() else ""
        return f"\n<think>{thought}</think>{written}{self.calls(talk, i)}"

    def history(self, talk: Talk, i: int) -> str:
        if talk.role(i) == "assistant":
            return "<|assistant|>" + self.body(talk, i)
        if talk.role(i) == "tool":
            return f"<|observation|>\n<tool_response>\n{talk.text(i)}\n</tool_response>"
        return f"<|{talk.role(i)}|>\n{talk.text(i)}"


class Glm47(Glm46):
    """Opens a thought for the model, and closes one where an answer has none."""

    template = (
        Glm46.template.replace("'\\n<think>' ~ thought", "'<think>' ~ thought")
        .replace("'\\n<think></think>'", "'</think>'")
        .replace("'\\n' ~ content.strip()", "content.strip()")
        .replace("'\\n<tool_call>'", "'<tool_call>'")
        .replace("'<|assistant|>' -}}{%- endif", "'<|assistant|><think>' -}}{%- endif")
    )

    def header(self, talk: Talk) -> str:
        return "<|assistant|><think>"

    def body(self, talk: Talk, i: int) -> str:
        thought, text = split_thought(talk, i)
        thought = thought.strip() if i > talk.last_user else ""
        calls = self.calls(talk, i).replace("\n<tool_call>", "<tool_call>")
        return ("<think>" + thought if thought else "") + "</think>" + text.strip() + calls

    def answer(self, talk: Talk, i: int) -> str:
        return self.body(talk, i).removeprefix("<think>")


class MiniMax(Family):
    """Opens a thought that an answer without reasoning does not have."""

    template = (
        QWEN3_CONTENT + "{{- ']~!b[]~b]system\\n' -}}"
        "{%- if messages[0].role == 'system' -%}{{- messages[0].content -}}{%- else -%}"
        "{{- 'You are MiniMax.' -}}{%- endif -%}"
        "{%- if tools -%}{{- '\\n\\n# Tools' -}}{%- for tool in tools -%}{{- '\\n' ~ (tool | tojson) -}}{%- endfor -%}"
        "{%- endif -%}{{- '[e~[\\n' -}}"
        "{%- for m in messages -%}{%- if m.role == 'user' -%}"
        "{{- ']~b]user\\n' ~ m.content ~ '[e~[\\n' -}}{%- elif m.role == 'assistant' -%}"
        + QWEN3_SPLIT
        + "{{- ']~b]ai\\n' -}}{%- if thought and loop.index0 > ns.last -%}"
        "{{- '<think>\\n' ~ thought ~ '\\n</think>\\n\\n' -}}{%- endif -%}"
        "{%- if content -%}{{- content -}}{%- endif -%}"
        "{%- if m.tool_calls -%}{{- '\\n<minimax:tool_call>\\n' -}}{%- for call in m.tool_calls -%}"
        "{{- '<invoke name=\"' ~ call.function.name ~ '\">\\n' -}}"
        "{%- for key, value in call.function.arguments | items -%}"
        "{{- '<parameter name=\"' ~ key ~ '\">' ~ (value if value is string else value | tojson) -}}"
        "{{- '</parameter>\\n' -}}{%- endfor -%}{{- '</invoke>\\n' -}}{%- endfor -%}"
        "{{- '</minimax:tool_call>' -}}{%- endif -%}{{- '[e~[\\n' -}}{%- elif m.role == 'tool' -%}"
        "{{- ']~b]tool\\n<response>' ~ m.content ~ '</response>[e~[\\n' -}}{%- endif -%}{%- endfor -%}"
        "{%- if add_generation_prompt -%}{{- ']~b]ai\\n<think>\\n' -}}{%- endif -%}"
    )
    control = "]~!b[ [e~[ ]~b]"
    tags = "<think> </think> <minimax:tool_call> </minimax:tool_call>"
    stops = "[e~["
    heads: ClassVar = {"user": "]~b]user\n", "assistant": "]~b]ai\n", "tool": "]~b]tool\n"}
    tails: ClassVar = dict.fromkeys(heads, "[e~[\n")
    writes_calls = writes_reasoning = True

    def opening(self, talk: Talk) -> str:
        system = "You are MiniMax." if talk.system is None else talk.system
        tools = "".join("\n" + spaced(tool) for tool in talk.tools)
        return f"]~!b[]~b]system\n{system}" + (f"\n\n# Tools{tools}" if tools else "") + "[e~[\n"

    def header(self, talk: Talk) -> str:
        return "]~b]ai\n<think>\n"

    def calls(self, talk: Talk, i: int) -> str:
        written = ""
        for f in talk.calls(i):
            values = {k: v if isinstance(v, str) else spaced(v) for k, v in f["arguments"].items()}
            inner = [f'<parameter name="{k}">{v}</parameter>\n' for k, v in values.items()]
            written += f'<invoke name="{f["name"]}">\n{"".join(inner)}</invoke>\n'
        return f"\n<minimax:tool_call>\n{written}</minimax:tool_call>" if written else ""

    def body(self, talk: Talk, i: int) -> str:
        if talk.role(i) == "tool":
            return f"<response>{talk.text(i)}</response>"
        if talk.role(i) == "user":
            return talk.text(i)
        thought, text = split_thought(talk, i)
        thinks = thought and i > talk.last_user
        before = f"<think>\n{thought}\n</think>\n\n" if thinks else ""
        return before + text + self.calls(talk, i)

    def history(self, talk: Talk, i: int) -> str:
        return "" if talk.role(i) == "system" else super().history(talk, i)

    def answer(self, talk: Talk, i: int) -> str:
        written = self.body(talk, i)
        thinks = written.startswith("<think>\n")
        if not thinks and "</think>" in talk.text(i):
            return talk.text(i) + "[e~["
        return (
            written.removeprefix("<think>\n") if thinks else "\n</think>\n\n" + written
        ) + "[e~["


class SeedOss(Family):
    """The token that begins every turn begins the text; thoughts between tokens of its own."""

    template = (
        APART
        + "{%- if system is defined or tools -%}{{- bos_token ~ 'system\\n' ~ (system or '') -}}"
        "{%- for tool in tools or [] -%}{{- '\\n' ~ (tool | tojson) -}}{%- endfor -%}{{- eos_token -}}"
        "{%- endif -%}{%- for m in turns -%}{{- bos_token ~ m.role -}}{%- if m.role == 'assistant' -%}"
        "{%- if m.reasoning_content is string and m.reasoning_content | trim -%}"
        "{{- '\\n<seed:think>' ~ (m.reasoning_content | trim) ~ '</seed:think>' -}}{%- endif -%}"
        "{%- if m.content is string and m.content | trim -%}{{- '\\n' ~ (m.content | trim) -}}{%- endif -%}"
        "{%- for call in m.tool_calls -%}"
        "{{- '\\n<seed:tool_call>\\n<function=' ~ call.function.name ~ '>\\n' -}}"
        "{%- for key, value in call.function.arguments | items -%}"
        "{{- '<parameter=' ~ key ~ '>' ~ (value if value is string else value | string) -}}"
        "{{- '</parameter>\\n' -}}{%- endfor -%}{{- '</function>\\n</seed:tool_call>' -}}{%- endfor -%}"
        "{%- else -%}{{- '\\n' ~ m.content -}}{%- endif -%}{{- eos_token -}}{%- endfor -%}"
        "{%- if add_generation_prompt -%}{{- bos_token ~ 'assistant\\n' -}}{%- endif -%}"
    )
    control = "<seed:bos> <seed:eos> <seed:think> </seed:think> <seed:tool_call> </seed:tool_call>"
    stops = "<seed:eos>"
    writes_calls = writes_reasoning = True

    def opening(self, talk: Talk) -> str:
        tools = "".join("\n" + spaced(tool) for tool in talk.tools)
        wanted = talk.system is not None or talk.tools
        return f"<seed:bos>system\n{talk.system or ''}{tools}<seed:eos>" if wanted else ""

    def header(self, talk: Talk) -> str:
        return "<seed:bos>assistant\n"

    def body(self, talk: Talk, i: int) -> str:
        parts = [f"<seed:think>{talk.thought(i).strip()}</seed:think>"] if talk.thought(i) else []
        parts += [talk.text(i).strip()] if talk.text(i).strip() else []
        for f in talk.calls(i):
            inner = [f"<parameter={k}>{v}</parameter>\n" for k, v in f["arguments"].items()]
            parts.append(
                f"<seed:tool_call>\n<function={f['name']}>\n{''.join(inner)}</function>\n</seed:tool_call>"
            )
        return "\n".join(parts)

    def history(self, talk: Talk, i: int) -> str:
        role = talk.role(i)
        if role == "system":
            return ""
        text = self.body(talk, i) if role == "assistant" else talk.text(i)
        return f"<seed:bos>{role}\n{text}<seed:eos>"

    def answer(self, talk: Talk, i: int) -> str:
        return self.body(talk, i) + "<seed:eos>"


class Nemotron(Family):
    """Writes the opened thought before the last answer itself, and never closes it."""

    template = (
        APART + "{{- '<SPECIAL_10>System\\n' ~ (system or '') -}}"
        "{%- for tool in tools or [] -%}{{- '\\n' ~ (tool.function | tojson) -}}{%- endfor -%}{{- '\\n\\n' -}}"
        "{%- for m in turns -%}{%- if m.role == 'user' -%}"
        "{{- '<SPECIAL_11>User\\n' ~ m.content.strip() ~ '\\n' -}}{%- elif m.role == 'tool' -%}"
        "{{- '<SPECIAL_11>User\\n<TOOL_RESPONSE>[' ~ m.content ~ ']</TOOL_RESPONSE>\\n\\n' -}}{%- else -%}"
        "{{- '<SPECIAL_11>Assistant\\n' -}}{%- if loop.last -%}{{- '<think>\\n' ~ m.content.strip() -}}"
        "{%- else -%}{{- m.content.split('</think>')[-1].strip() -}}{%- endif -%}"
        "{{- '\\n<SPECIAL_12>\\n\\n' -}}{%- endif -%}"
        "{%- endfor -%}{%- if add_generation_prompt -%}{{- '<SPECIAL_11>Assistant\\n<think>\\n' -}}{%- endif -%}"
    )
    control = "<SPECIAL_10> <SPECIAL_11> <SPECIAL_12>"
    tags = "<think> </think>"
    stops = "<SPECIAL_12>"
    heads: ClassVar = {"user": "<SPECIAL_11>User\n", "assistant": "<SPECIAL_11>Assistant\n"}
    tails: ClassVar = {"user": "\n", "assistant": "\n<SPECIAL_12>\n\n"}

    def opening(self, talk: Talk) -> str:
        tools = "".join("\n" + spaced(tool["function"]) for tool in talk.tools)
        return f"<SPECIAL_10>System\n{talk.system or ''}{tools}\n\n"

    def header(self, talk: Talk) -> str:
        return "<SPECIAL_11>Assistant\n<think>\n"

    def body(self, talk: Talk, i: int) -> str:
        text = talk.text(i)
        return (text.split("</think>")[-1] if talk.role(i) == "assistant" else text).strip()

    def history(self, talk: Talk, i: int) -> str:
        if talk.role(i) == "system":
            return ""
        if talk.role(i) == "tool":
            return f"<SPECIAL_11>User\n<TOOL_RESPONSE>[{talk.text(i)}]</TOOL_RESPONSE>\n\n"
        if talk.role(i) == "assistant" and i == len(talk.messages) - 1:
            return f"{self.header(talk)}{talk.text(i).strip()}\n<SPECIAL_12>\n\n"
        return super().history(talk, i)

    def answer(self, talk: Talk, i: int) -> str:
        text = talk.text(i).strip()
        closed = "</think>" in text
        written = text.removeprefix("<think>\n") if closed else "\n</think>\n\n" + text
        return written + "\n<SPECIAL_12>"


class Hunyuan(Family):
    """Tokens for the roles; the answer is cut out of a content that has thinking."""

    template = (
        "{{- bos_token -}}" + APART + "{%- if system is defined -%}"
        "{{- system ~ '<｜hy_place▁holder▁no▁3｜>' -}}{%- endif -%}"
        "{%- for m in turns -%}{%- if m.role == 'user' -%}{{- '<｜hy_User｜>' ~ m.content -}}"
        "{%- elif m.role == 'assistant' -%}{%- set content = m.content -%}"
        "{%- if '<answer>' in content and '</answer>' in content -%}"
        "{%- set content = content.split('<answer>')[-1].split('</answer>')[0].strip() -%}{%- endif -%}"
        "{{- '<｜hy_Assistant｜>' ~ content ~ '<｜hy_place▁holder▁no▁2｜>' -}}{%- endif -%}{%- endfor -%}"
        "{%- if add_generation_prompt -%}{{- '<｜hy_Assistant｜>' -}}{%- endif -%}"
    )
    control = (
        "<｜hy_begin▁of▁sentence｜> <｜hy_place▁holder▁no▁2｜> <｜hy_place▁holder▁no▁3｜> "
        "<｜hy_User｜> <｜hy_Assistant｜>"
    )
    tags = "<think> </think> <answer> </answer>"
    stops = "<｜hy_place▁holder▁no▁2｜>"
    begin = "<｜hy_begin▁of▁sentence｜>"
    heads: ClassVar = {"user": "<｜hy_User｜>", "assistant": "<｜hy_Assistant｜>"}
    tails: ClassVar = {"user": "", "assistant": "<｜hy_place▁holder▁no▁2｜>"}
    answer_end = "<｜hy_place▁holder▁no▁2｜>"
    writes_tools = writes_results = False

    def opening(self, talk: Talk) -> str:
        system = "" if talk.system is None else f"{talk.system}<｜hy_place▁holder▁no▁3｜>"
        return self.begin + system

    def history(self, talk: Talk, i: int) -> str:
        return "" if talk.role(i) == "system" else super().history(talk, i)


class GptOss(Family):
    """Channels; thinking and another end in the last answer only; text with a call is analysis."""

    template = (
        "{{- '<|start|>system<|message|>You are ChatGPT. Today: ' ~ strftime_now('%Y') ~ '<|end|>' -}}"
        + APART
        + "{%- if system or tools -%}{{- '<|start|>developer<|message|>' ~ (system or '') -}}"
        "{%- for tool in tools or [] -%}{{- '\\n' ~ (tool.function | tojson) -}}{%- endfor -%}{{- '<|end|>' -}}"
        "{%- endif -%}{%- set ns = namespace(name='') -%}"
        "{%- for m in turns -%}{%- if m.role == 'user' -%}"
        "{{- '<|start|>user<|message|>' ~ m.content ~ '<|end|>' -}}{%- elif m.role == 'tool' -%}"
        "{{- '<|start|>functions.' ~ ns.name ~ ' to=assistant<|channel|>commentary<|message|>' -}}"
        "{{- (m.content | tojson) ~ '<|end|>' -}}"
        "{%- elif m.tool_calls -%}{%- set thought = m.content or m.thinking -%}"
        "{%- if thought -%}"
        "{{- '<|start|>assistant<|channel|>analysis<|message|>' ~ thought ~ '<|end|>' -}}"
        "{%- endif -%}{%- set call = m.tool_calls[0].function -%}{%- set ns.name = call.name -%}"
        "{{- '<|start|>assistant to=functions.' ~ call.name ~ '<|channel|>commentary json<|message|>' -}}"
        "{{- (call.arguments | tojson) ~ '<|call|>' -}}"
        "{%- elif loop.last and not add_generation_prompt -%}{%- if m.thinking -%}"
        "{{- '<|start|>assistant<|channel|>analysis<|message|>' ~ m.thinking ~ '<|end|>' -}}{%- endif -%}"
        "{{- '<|start|>assistant<|channel|>final<|message|>' ~ m.content ~ '<|return|>' -}}"
        "{%- else -%}{{- '<|start|>assistant<|channel|>final<|message|>' ~ m.content ~ '<|end|>' -}}"
        "{%- endif -%}{%- endfor -%}{%- if add_generation_prompt -%}{{- '<|start|>assistant' -}}{%- endif -%}"
    )
    control = (
        "<|startoftext|> <|endoftext|> <|return|> <|call|> <|start|> <|end|> <|message|> "
        "<|channel|> <|constrain|>"
    )
    stops = "<|return|> <|call|> <|endoftext|>"
    reasoning_key = "thinking"
    most_calls = 1
    writes_calls = writes_reasoning = True

    def opening(self, talk: Talk) -> str:
        first = f"<|start|>system<|message|>You are ChatGPT. Today: {datetime.now().year}<|end|>"
        tools = "".join("\n" + spaced(tool["function"]) for tool in talk.tools)
        developer = f"<|start|>developer<|message|>{talk.system or ''}{tools}<|end|>"
        return first + (developer if talk.system or talk.tools else "")

    def header(self, talk: Talk) -> str:
        return "<|start|>assistant"

    def written(self, talk: Talk, i: int, last: bool) -> str:
        start = "<|start|>assistant<|channel|>"
        for f in talk.calls(i):
            thought = talk.text(i) or talk.thought(i)
            before = f"{start}analysis<|message|>{thought}<|end|>" if thought else ""
            call = (
                f"<|start|>assistant to=functions.{f['name']}<|channel|>commentary json<|message|>"
            )
            return f"{before}{call}{spaced(f['arguments'])}<|call|>"
        thinks = last and talk.thought(i)
        before = f"{start}analysis<|message|>{talk.thought(i)}<|end|>" if thinks else ""
        return f"{before}{start}final<|message|>{talk.text(i)}{'<|return|>' if last else '<|end|>'}"

    def history(self, talk: Talk, i: int) -> str:
        match talk.role(i):
            case "system":
                return ""
            case "user":
                return f"<|start|>user<|message|>{talk.text(i)}<|end|>"
            case "tool":
                name = next(f["name"] for k in range(i, -1, -1) for f in talk.calls(k))
                head = f"<|start|>functions.{name} to=assistant<|channel|>commentary<|message|>"
                return f"{head}{spaced(talk.text(i))}<|end|>"
        return self.written(talk, i, False)

    def answer(self, talk: Talk, i: int) -> str:
        return self.written(talk, i, True).removeprefix("<|start|>assistant")

    def problems_of(self, talk: Talk, i: int, learned: bool) -> list[str]:
        found = super().problems_of(talk, i, learned)
        both = learned and talk.calls(i) and talk.text(i) and talk.thought(i)
        return [*found, NO_REASONING] if both else found


FAMILIES: tuple[Family, ...] = tuple(
    family()
    for family in (
        Chatml,
        ChatmlAsText,
        SmolLm2,
        InternLm,
        Qwen25,
        Hermes,
        QwQ,
        Qwen3,
        Qwen3WithoutThinking,
        Qwen35,
        SmolLm3,
        NemotronNano,
        ThinksIfAsked,
        Bielik,
        ThinkTokens,
        DeepSeekV32,
        Lfm2,
        Phi4,
        Kimi,
        KimiWritingAsGiven,
        Llama2,
        Llama3,
        Llama31,
        Mistral1,
        Mistral3,
        MistralSmall,
        Ministral,
        Gemma2,
        Gemma3,
        Phi3,
        Phi3Base,
        Phi4Mini,
        Zephyr,
        Vicuna,
        Alpaca,
        Falcon3,
        Olmo2,
        Granite33,
        Exaone35,
        ExaoneDeep,
        CommandR,
        CommandR7b,
        CommandR7bBase,
        Cohere2,
        Cohere2WithoutThinking,
        DeepSeekV3,
        R1Early,
        R1Late,
        DeepSeekV31,
        Glm46,
        Glm47,
        MiniMax,
        SeedOss,
        Nemotron,
        Hunyuan,
        GptOss,
    )
)
