"""Exactly which tokens are supervised, on two chat templates."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
from support.models import tiny_loaded
from support.templates import BRACKETS, FORGETS, with_template

from forty2.data.formats import parse
from forty2.data.records import Chat, Message, Pair, Text
from forty2.errors import DataError, ModelError
from forty2.model.loading import LoadedModel
from forty2.text.encoder import Encoder, problem_of_length
from forty2.text.rows import Row


@pytest.fixture(scope="module")
def chatml(starter: LoadedModel) -> Any:
    return starter.tokenizer


@pytest.fixture(scope="module")
def brackets(starter: LoadedModel) -> Any:
    return with_template(starter, BRACKETS, "<|endoftext|>")


def user(text: str) -> Message:
    return {"role": "user", "content": text}


def assistant(text: str) -> Message:
    return {"role": "assistant", "content": text}


def supervised(tokenizer: Any, *messages: Message) -> list[str]:
    """Each run of supervised tokens, decoded."""
    (row,) = Encoder(tokenizer).encode_sft_record(Chat(messages=messages, origin="test:1"))
    assert len(row.ids) == len(row.mask)
    runs: list[list[int]] = []
    for i, (token, on) in enumerate(zip(row.ids, row.mask, strict=True)):
        if on and (i == 0 or not row.mask[i - 1]):
            runs.append([])
        if on:
            runs[-1].append(token)
    return [tokenizer.decode(run) for run in runs]


def marked(tokenizer: Any, row: Row) -> str:
    """The row's text, supervised parts in brackets."""
    parts = [
        (on, tokenizer.decode([i for i, _ in run]))
        for on, run in itertools.groupby(zip(row.ids, row.mask, strict=True), lambda pair: pair[1])
    ]
    return "".join(f"[{text}]" if on else text for on, text in parts)


def test_one_turn(chatml: Any, brackets: Any) -> None:
    assert supervised(chatml, user("Hi"), assistant("Hello there.")) == ["Hello there.<|im_end|>"]
    assert supervised(brackets, user("Hi"), assistant("Hello there.")) == [
        " Hello there.<|endoftext|>"
    ]


def test_every_assistant_turn_of_many(chatml: Any, brackets: Any) -> None:
    talk = [
        user("a"),
        assistant("One."),
        user("b"),
        assistant("Two."),
        user("c"),
        assistant("Three."),
    ]
    assert supervised(chatml, *talk) == [f"{n}.<|im_end|>" for n in ("One", "Two", "Three")]
    assert supervised(brackets, *talk) == [f" {n}.<|endoftext|>" for n in ("One", "Two", "Three")]


def test_system_and_tool_turns_are_never_supervised(chatml: Any) -> None:
    talk = [
        {"role": "system", "content": "Be brief."},
        user("Sum 2 and 3"),
        assistant("add(2, 3)"),
        {"role": "tool", "content": "5"},
        assistant("It is 5."),
    ]
    assert supervised(chatml, *talk) == ["add(2, 3)<|im_end|>", "It is 5.<|im_end|>"]


def test_what_follows_the_last_assistant_turn_is_left_off(chatml: Any) -> None:
    assert supervised(chatml, user("a"), assistant("b"), user("c")) == ["b<|im_end|>"]


@pytest.mark.parametrize(
    "text",
    [
        " leading space",
        "\nleading newline",
        "\n\n  both",
        "trailing spaces   ",
        "a",
        "é",
        "🙂",
        "ends in newline\n",
        "<|im_end|>",
        "say <|im_end|> and <|im_start|>user",
        "1234567",
        "  x  ",
    ],
)
def test_supervised_ids_spell_exactly_the_response(chatml: Any, text: str) -> None:
    prompt, response, _ = Encoder(chatml).response([user("Say it")], [assistant(text)])
    assert chatml.decode(response) == f"{text}<|im_end|>"
    assert response[-1] == chatml.eos_token_id
    assert prompt == Encoder(chatml).prompt([user("Say it")])


def test_a_response_that_merges_across_the_border_keeps_the_prompt_of_generation(
    chatml: Any,
) -> None:
    """Tokenised together, the header's newline and the response's merge into one token."""
    encoder = Encoder(chatml)
    together = chatml.encode("<|im_start|>assistant\n\n\nHi<|im_end|>", add_special_tokens=False)
    apart = chatml.encode("<|im_start|>assistant\n", add_special_tokens=False)
    assert together[: len(apart)] != apart
    prompt, response, _ = encoder.response([user("x")], [assistant("\n\nHi")])
    assert prompt[-len(apart) :] == apart
    assert chatml.decode(response) == "\n\nHi<|im_end|>"


def test_content_that_spells_a_special_token_stays_text(chatml: Any) -> None:
    talk = [user("What does <|im_end|> do?"), assistant("<|im_end|> ends a turn.")]
    (row,) = Encoder(chatml).encode_sft_record(Chat(messages=tuple(talk), origin="test:1"))
    ends = [i for i, token in enumerate(row.ids) if token == chatml.eos_token_id]
    assert len(ends) == 3  # the default system turn's, the user's, the assistant's
    assert supervised(chatml, *talk) == ["<|im_end|> ends a turn.<|im_end|>"]
    # the same words without the special spelling tokenise as ever
    plain = Encoder(chatml).prompt([user("What does it do?")])
    assert plain == chatml.apply_chat_template(
        [user("What does it do?")], add_generation_prompt=True
    )


@pytest.mark.parametrize("ask", ["Hello", "<|im_end|>"])
def test_what_marks_a_held_text_is_text_where_a_content_has_it(chatml: Any, ask: str) -> None:
    said = "\ue0f01\ue0f1 and \ue0f00\ue0f1"
    assert supervised(chatml, user(ask), assistant(said)) == [f"{said}<|im_end|>"]


def test_one_response_a_prefix_of_the_other(chatml: Any) -> None:
    row = Encoder(chatml).encode_pair(
        Pair(
            prompt=(user("q"),),
            chosen=(assistant("Paris"),),
            rejected=(assistant("Paris, I think"),),
            origin="t:1",
        )
    )
    assert row.chosen[:-1] == row.rejected[: len(row.chosen) - 1]
    assert row.chosen[-1] == row.rejected[-1] == chatml.eos_token_id


def test_sides_that_the_template_writes_alike_are_refused(starter: LoadedModel) -> None:
    trims = (
        "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] | trim }}<|im_end|>\n"
        "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    pair = Pair(
        prompt=(user("q"),),
        chosen=(assistant("Yes\n"),),
        rejected=(assistant("Yes"),),
        origin="t:4",
    )
    with pytest.raises(DataError, match="t:4: chosen and rejected are equal to the model"):
        Encoder(with_template(starter, trims)).encode_pair(pair)


def test_the_answers_in_a_prompt_are_given_and_not_learned(chatml: Any) -> None:
    talk = [user("a"), assistant("One."), user("b")]
    record = parse({"prompt": talk, "completion": [assistant("Two.")]}, "f:1")
    assert isinstance(record, Chat)
    assert supervised(chatml, *record.messages) == ["Two.<|im_end|>"]


def test_the_last_turn_alone_can_be_learned(chatml: Any) -> None:
    talk = Chat(messages=(user("a"), assistant("One."), user("b"), assistant("Two.")))
    (row,) = Encoder(chatml).training_on("last").encode_sft_record(talk)
    assert chatml.decode([i for i, on in zip(row.ids, row.mask, strict=True) if on]) == (
        "Two.<|im_end|>"
    )
    excluded = Chat(messages=(*talk.messages[:3], {**assistant("Two."), "train": False}))
    with pytest.raises(DataError, match="no turn is to be learned"):
        Encoder(chatml).training_on("last").encode_sft_record(excluded)


def test_only_the_assistant_s_turns_of_a_response_count(chatml: Any) -> None:
    chosen = (assistant("One."), user("Sure?"), assistant("Yes."))
    row = Encoder(chatml).encode_pair(
        Pair(prompt=(user("q"),), chosen=chosen, rejected=(assistant("No."),), origin="t:1")
    )
    kept = [i for i, on in zip(row.chosen, row.response_masks[0], strict=True) if on]
    assert chatml.decode(kept) == "One.<|im_end|>Yes.<|im_end|>"
    assert "Sure?" in chatml.decode(row.chosen) and all(row.response_masks[1])


def test_one_token_responses(chatml: Any) -> None:
    row = Encoder(chatml).encode_pair(
        Pair(
            prompt=(user("q"),),
            chosen=(assistant("Yes"),),
            rejected=(assistant("No"),),
            origin="t:1",
        )
    )
    assert len(row.chosen) == len(row.rejected) == 2


def test_pair_prompts_may_hold_earlier_assistant_turns(chatml: Any) -> None:
    prompt = (user("a"), assistant("b"), user("c"))
    row = Encoder(chatml).encode_pair(
        Pair(prompt=prompt, chosen=(assistant("Yes"),), rejected=(assistant("No"),), origin="t:1")
    )
    assert chatml.decode(row.prompt).endswith("<|im_start|>assistant\n")
    assert chatml.decode(row.chosen) == "Yes<|im_end|>"


def test_a_template_that_rewrites_history_gives_a_row_for_each_turn(starter: LoadedModel) -> None:
    """Each behind the prompt that generation would see, from which earlier thinking is gone."""
    talk = (user("a"), assistant("<think>hm</think>b"), user("c"), assistant("d"))
    tokenizer = with_template(starter, FORGETS)
    rows = Encoder(tokenizer).encode_sft_record(Chat(messages=talk, origin="test:7"))
    assert [marked(tokenizer, row) for row in rows] == [
        "<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\n[<think>hm</think>b<|im_end|>]",
        "<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\nb<|im_end|>\n"
        "<|im_start|>user\nc<|im_end|>\n<|im_start|>assistant\n[d<|im_end|>]",
    ]


@pytest.mark.parametrize(
    ("before", "cut"),
    [
        ("{% set end = '</think>' %}", "m['content'].split(end)[-1]"),
        ("{% set tag = {'end': '</' ~ 'think>'} %}", "m['content'].split(tag.end)[-1].strip()"),
        (
            "{% macro cut(t, end='</think>') %}{{ t.split(end)[-1] }}{% endmacro %}",
            "cut(m.content)",
        ),
    ],
)
@pytest.mark.parametrize("opened", ["", "<think>\n"])
def test_a_template_may_cut_thoughts_at_a_tag_wherever_it_has_it_from(
    starter: LoadedModel, before: str, cut: str, opened: str
) -> None:
    template = (
        f"{before}{{% for m in messages %}}<|im_start|>{{{{ m['role'] }}}}\n{{% if m['role'] == "
        f"'assistant' %}}{{{{ {cut} }}}}{{% else %}}{{{{ m['content'] }}}}{{% endif %}}<|im_end|>\n"
        f"{{% endfor %}}{{% if add_generation_prompt %}}<|im_start|>assistant\n{opened}{{% endif %}}"
    )
    tokenizer = with_template(starter, template)
    own = "" if opened else "<think>\n"
    talk = (user("a"), assistant(f"{own}One</think>b"), user("c"), assistant(f"{own}Two</think>d"))
    rows = Encoder(tokenizer).encode_sft_record(Chat(messages=talk, origin="test:7"))
    first = f"<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\n{opened}"
    assert [marked(tokenizer, row) for row in rows] == [
        f"{first}[{own}One</think>b<|im_end|>]",
        f"{first.removesuffix(opened)}b<|im_end|>\n<|im_start|>user\nc<|im_end|>\n"
        f"<|im_start|>assistant\n{opened}[{own}Two</think>d<|im_end|>]",
    ]


@pytest.mark.parametrize(
    ("closed", "answer"),
    [
        ("<think></think>", "One</think>b"),
        ("<think>\n\n</think>\n\n", "</think>b"),
        ("<think>\n", "<think>One"),
    ],
)
def test_a_thought_behind_one_that_is_closed_is_refused(
    starter: LoadedModel, closed: str, answer: str
) -> None:
    template = (
        "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n"
        "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n"
        f"{{{{ {closed!r} }}}}{{% endif %}}{{# </think> #}}"
    )
    encoder = Encoder(with_template(starter, template))
    with pytest.raises(DataError, match="would follow a thought that is closed already"):
        encoder.response([user("a")], [assistant(answer)])


@pytest.mark.parametrize(
    "tag", ["<AI>", "<bot>", "<reserved_107>", "<assistant>\n", "<im:answer> "]
)
@pytest.mark.parametrize("rewrites", [False, True])
def test_a_tag_that_is_the_header_of_an_answer_opens_no_thought(
    starter: LoadedModel, tag: str, rewrites: bool
) -> None:
    content = "m['content'].split('</think>')[-1]" if rewrites else "m['content']"
    template = (
        "{% for m in messages %}{% if m['role'] == 'user' %}<human>{{ m['content'] }}"
        f"{{% else %}}{{{{ {tag!r} }}}}{{{{ m['content'] if loop.last else {content} }}}}<|im_end|>"
        f"{{% endif %}}{{% endfor %}}{{% if add_generation_prompt %}}{{{{ {tag!r} }}}}{{% endif %}}"
    )
    tokenizer = with_template(starter, template)
    talk = (user("a"), assistant("b"), user("c"), assistant("d"))
    rows = Encoder(tokenizer).encode_sft_record(Chat(messages=talk, origin="test:7"))
    answers = f"<human>a{tag}[b<|im_end|>]<human>c{tag}[d<|im_end|>]"
    assert [marked(tokenizer, row) for row in rows] == [answers]


@pytest.mark.parametrize(
    ("tag", "closing"), [("think", ""), ("seed:think", ""), ("scratch", "{# </scratch> #}")]
)
def test_an_answer_behind_a_thought_that_generation_opens_begins_by_closing_it(
    starter: LoadedModel, tag: str, closing: str
) -> None:
    template = (
        f"{closing}{{% for m in messages %}}<|im_start|>{{{{ m['role'] }}}}\n{{{{ m['content'] }}}}"
        "<|im_end|>{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n"
        f"<{tag}>\n{{% endif %}}"
    )
    tokenizer = with_template(starter, template)
    _, ids, _ = Encoder(tokenizer).response([user("a")], [assistant("b")])
    assert tokenizer.decode(ids) == f"\n</{tag}>\n\nb<|im_end|>"


@pytest.mark.parametrize(
    ("written", "closing"),
    [
        ("{% if r %}<think>{{ r }}</think>{% endif %}{{ m['content'] }}", "</think>"),
        ("{% if r %}<think>{{ r }} </think> {% endif %}- {{ m['content'] }}", " </think> - "),
        (
            "{% if r %}{{ raise_exception('No!') }}{% endif %}{% set c = m['content'] %}{% if "
            "'</think>' in c %}<think>{{ c.split('</think>')[0].split('<think>')[1].strip() }}</think>\n"
            "{% endif %}{{ c.split('</think>')[-1].strip() }}",
            "</think>\n",
        ),
        ("{{ m['content'].split('</think>')[-1].strip() }}", "\n</think>\n\n"),
        ("- {{ m['content'].split('</think>')[-1].strip() }}", "\n</think>\n\n- "),
    ],
)
def test_an_answer_without_reasoning_closes_the_thought_as_its_template_does(
    starter: LoadedModel, written: str, closing: str
) -> None:
    template = (
        "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{% set r = m['reasoning_content'] %}"
        f"{written}<|im_end|>\n{{% endfor %}}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n<think>\n{% endif %}"
    )
    tokenizer = with_template(starter, template)
    _, ids, _ = Encoder(tokenizer).response([user("a")], [assistant("b")])
    assert tokenizer.decode(ids) == f"{closing}b<|im_end|>"


def test_a_thought_that_a_variable_asks_for_is_closed(starter: LoadedModel) -> None:
    template = (
        "{% set flag = '/think' %}{% for m in messages %}<|im_start|>{{ m['role'] }}\n"
        "{{ m['content'] }}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}"
        "<|im_start|>assistant\n{% if flag in messages[-1]['content'] %}<think>\n{% endif %}{% endif %}"
    )
    tokenizer = with_template(starter, template)
    for asked, written in (("QxZ1ZxQ", "b"), ("a /think", "\n</think>\n\nb")):
        _, ids, _ = Encoder(tokenizer).response([user(asked)], [assistant("b")])
        assert tokenizer.decode(ids) == f"{written}<|im_end|>"
    with pytest.raises(DataError, match="a text before this turn holds 'QxZ1ZxQ'"):
        Encoder(tokenizer).response([user("QxZ1ZxQ /think")], [assistant("b")])


def test_a_tag_that_generation_alone_writes_and_nothing_closes_is_refused(
    starter: LoadedModel,
) -> None:
    template = (
        "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}<|im_end|>{% endfor %}"
        "{% if add_generation_prompt %}assistant: <bot>{% endif %}"
    )
    with pytest.raises(DataError, match="would begin this answer with '<bot>', which the"):
        Encoder(with_template(starter, template)).response([user("a")], [assistant("b")])


@pytest.mark.parametrize(
    ("header", "shown"),
    [
        ("<|im_start|>" + "x" * 50 + "<|im_start|>assistant", "<|im_start|>assistant"),
        ("y" * 61, "y" * 60),
    ],
)
def test_a_header_that_no_answer_has_is_quoted_from_the_beginning_of_a_token(
    starter: LoadedModel, header: str, shown: str
) -> None:
    template = (
        "{% for m in messages %}{{ m['content'] }}<|im_end|>{% endfor %}"
        f"{{% if add_generation_prompt %}}{header}{{% endif %}}"
    )
    with pytest.raises(DataError, match="would begin this answer with") as error:
        Encoder(with_template(starter, template)).response([user("a")], [assistant("b")])
    assert str(error.value).endswith(
        f" '{shown}', which the chat template does not write before it; use another template "
        "(chat_template) or other template_options"
    )


def test_a_control_token_that_generation_alone_writes_opens_no_thought(
    starter: LoadedModel,
) -> None:
    template = (
        "{# <|im_end|> #}{% for m in messages %}{{ m['content'] }}<|im_end|>{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>{% endif %}"
    )
    with pytest.raises(DataError, match="would begin this answer with"):
        Encoder(with_template(starter, template)).response([user("a")], [assistant("b")])


def test_what_a_template_writes_behind_the_end_of_a_turn_is_not_supervised(
    starter: LoadedModel,
) -> None:
    template = (
        "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n"
        "{% if m['role'] == 'assistant' %}<|im_start|>{{ m['content'] }}<|im_end|>\n{% endif %}"
        "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    tokenizer = with_template(starter, template)
    talk = (user("a"), assistant("b"), user("c"), assistant("d"))
    rows = Encoder(tokenizer).encode_sft_record(Chat(messages=talk, origin="test:7"))
    assert [marked(tokenizer, row) for row in rows] == [
        "<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\n[b<|im_end|>]\n<|im_start|>b<|im_end|>\n"
        "<|im_start|>user\nc<|im_end|>\n<|im_start|>assistant\n[d<|im_end|>]"
    ]


CALLS = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}"
    "{% for call in m['tool_calls'] or [] %}{% set f = call['function'] %}"
    "WRITTEN{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def calls(starter: LoadedModel, written: str, *arguments: dict[str, Any]) -> Encoder:
    """Encode a turn with each of the arguments, under a template that writes calls so."""
    encoder = Encoder(with_template(starter, CALLS.replace("WRITTEN", written)))
    for each in arguments:
        call = {"type": "function", "function": {"name": "book", "arguments": each}}
        turn: Message = {"role": "assistant", "content": "", "tool_calls": [call]}
        encoder.response([user("a")], [turn])
    return encoder


@pytest.mark.parametrize(
    ("arguments", "unwritten"),
    [
        ({"name": "x", "nights": 2}, "nights"),
        ({"name": "x", "late": True}, "late"),
        ({"name": "x", "late": False}, "late"),
        ({"name": "x", "price": 0}, "price"),
        ({"name": "x", "note": ""}, "note"),
        ({"name": "x", "guests": [1, 2]}, "guests"),
        ({"name": "x", "guests": []}, "guests"),
    ],
)
def test_a_template_that_leaves_out_an_argument_of_a_call_is_refused(
    starter: LoadedModel, arguments: dict[str, Any], unwritten: str
) -> None:
    strings = (
        "{{ f['name'] }}({% for k, v in f['arguments'].items() %}"
        "{% if v is string and v %}{{ k }}={{ v }}{% endif %}{% endfor %})"
    )
    calls(starter, strings, {"name": "x"})
    with pytest.raises(DataError, match=rf"messages\[1\]: .* the argument '{unwritten}'"):
        calls(starter, strings, arguments)
    whole = "{{ f['name'] }}({{ f['arguments'] | tojson }})"
    calls(starter, whole, arguments, {"name": "x", "none": None})


@pytest.mark.parametrize(
    ("first", "then"),
    [
        ({"price": 5}, {"price": 0}),
        ({"late": True}, {"late": False}),
        ({"guests": [1]}, {"guests": [0]}),
        ({"name": "x"}, {"nights": 0}),
        ({"name": "x"}, {"name": ""}),
    ],
)
def test_what_held_for_one_call_is_not_believed_of_another(
    starter: LoadedModel, first: dict[str, Any], then: dict[str, Any]
) -> None:
    truthy = (
        "{{ f['name'] }}({% for k, v in f['arguments'].items() if v and v != [0] %}"
        "{{ k }}={{ v | tojson }}{% endfor %})"
    )
    encoder = calls(starter, truthy, first)
    call = {"type": "function", "function": {"name": "book", "arguments": then}}
    turn: Message = {"role": "assistant", "content": "", "tool_calls": [call]}
    with pytest.raises(DataError, match=f"does not write the argument '{next(iter(then))}"):
        encoder.response([user("a")], [turn])


def test_an_argument_that_is_left_out_is_found_in_earlier_turns_too(starter: LoadedModel) -> None:
    tokenizer = with_template(starter, CALLS.replace("WRITTEN", "{{ f['name'] }}"))
    for arguments, says in (
        ({"n": 1}, "the argument 'n'"),
        ({"n": "x"}, "use a template for tools"),
    ):
        call = {"type": "function", "function": {"name": "book", "arguments": arguments}}
        turn: Message = {"role": "assistant", "content": "", "tool_calls": [call]}
        for more in ((), (user("b"),), (user("b"), assistant("c"))):
            talk = Chat(messages=(user("a"), turn, *more), origin="test:7")
            with pytest.raises(DataError, match=rf"^test:7: messages\[1\]: .*{says}"):
                Encoder(tokenizer).encode_sft_record(talk)
        with pytest.raises(DataError, match=rf"messages\[1\]: .*{says}"):
            Encoder(tokenizer).response([user("a"), turn, user("b")], [assistant("c")])


def test_an_answer_whose_reasoning_the_template_rewrites_is_learned_as_it_is_written(
    starter: LoadedModel,
) -> None:
    template = (
        "{% for m in messages %}{% if m.role == 'user' %}<user>{{ m.content }}{% else %}"
        "<bot><think>{{ m.reasoning.split() | join(' ') }}</think>{{ m.content }}<|im_end|>"
        "{% endif %}{% endfor %}{% if add_generation_prompt %}<bot>{% endif %}"
    )
    tokenizer = with_template(starter, template)
    answer: Message = {**assistant("Yes."), "reasoning": "one\ntwo"}
    _, response, _ = Encoder(tokenizer).response([user("q")], [answer])
    assert tokenizer.decode(response) == "<think>one two</think>Yes.<|im_end|>"


def test_a_header_that_goes_by_the_answer_is_refused(starter: LoadedModel) -> None:
    template = (
        "{% for m in messages %}{% if m.role == 'user' %}<user>{{ m.content }}{% else %}"
        "{{ '<a>' if '</think>' in m.content else '<b>' }}{{ m.content.split('</think>')[-1] }}"
        "<|im_end|>{% endif %}{% endfor %}{% if add_generation_prompt %}<b>{% endif %}"
    )
    with pytest.raises(DataError, match="the chat template alters the content"):
        Encoder(with_template(starter, template)).response(
            [user("q")], [assistant("t</think>Yes.")]
        )


def test_a_template_that_forgets_turns_is_refused_with_what_to_do(starter: LoadedModel) -> None:
    template = (
        "{% for m in (messages[-1:] if add_generation_prompt else messages[-2:]) %}"
        "<{{ m.role }}>{{ m.content }}{% if m.role == 'assistant' %}<|im_end|>{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}<assistant>{% endif %}"
    )
    tokenizer = with_template(starter, template)
    talk = Chat(messages=(user("q"), assistant("a")) * 2, origin="test:1")
    with pytest.raises(DataError) as error:
        Encoder(tokenizer).encode_sft_record(talk)
    assert str(error.value) == (
        "test:1: messages[0]: the chat template leaves out or alters the content of this user turn; "
        "use one that writes contents as they are (chat_template)"
    )


def test_a_thought_behind_a_closed_one_is_refused_by_its_message(starter: LoadedModel) -> None:
    template = (
        "{% for m in messages %}{% if m.role == 'user' %}<user>{{ m.content }}{% else %}"
        "<bot>{{ m.content }}<|im_end|>{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}<bot><think>{% endif %}"
    )
    with pytest.raises(DataError, match=r"messages\[1\]: the reasoning in this answer"):
        Encoder(with_template(starter, template)).response(
            [user("q")], [assistant("</think>b</think>c")]
        )


@pytest.mark.parametrize("again", ["", "{% if m.reasoning %}[{{ m.reasoning }}]{% endif %}"])
def test_the_end_of_a_thought_is_the_template_s_own(starter: LoadedModel, again: str) -> None:
    """An answer without reasoning, behind a prompt that opens a thought, closes it as the template does.

    The template takes a system turn, then turns of user and assistant by turns.
    """
    template = (
        "{{ messages[0].content if messages[0].role == 'system' }}"
        "{% for m in messages if m.role != 'system' %}"
        "{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('Not by turns!') }}"
        "{% elif m.role == 'user' %}<user>{{ m.content }}{% else %}"
        "<bot>{% if m.reasoning %}<think>{{ m.reasoning }}</think>{% endif %}{{ m.content }}<|im_end|>"
        "AGAIN{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}<bot><think>{% endif %}"
    )
    tokenizer = with_template(starter, template.replace("AGAIN", again))
    system: Message = {"role": "system", "content": "s"}
    for earlier in ((), (user("a"), {**assistant("b"), "reasoning": "t"})):
        _, response, _ = Encoder(tokenizer).response(
            [system, *earlier, user("q")], [assistant("Yes.")]
        )
        assert tokenizer.decode(response) == "</think>Yes.<|im_end|>"


@pytest.mark.parametrize(
    "method", ["strip()", "lstrip()", "rstrip()", "strip('\\n')", "strip(' ')"]
)
def test_blanks_that_a_template_strips_are_not_learned(starter: LoadedModel, method: str) -> None:
    template = (
        "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'].METHOD }}<|im_end|>\n"
        "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    tokenizer = with_template(starter, template.replace("METHOD", method))
    for content in (" a ", "\na\n", " \na\n "):
        expected = eval(f"content.{method}", {"content": content}) + "<|im_end|>"
        _, ids, _ = Encoder(tokenizer).response([user(" q ")], [assistant(content)])
        assert tokenizer.decode(ids) == expected


def test_a_system_turn_that_a_template_refuses_is_refused_with_what_to_do(
    starter: LoadedModel,
) -> None:
    template = (
        "{% for m in messages %}{% if m['role'] == 'system' %}{{ raise_exception('No system!') }}"
        "{% endif %}{{ m['role'] }}: {{ m['content'] }}<|im_end|>{% endfor %}"
        "{% if add_generation_prompt %}assistant: {% endif %}"
    )
    encoder = Encoder(with_template(starter, template))
    system: Message = {"role": "system", "content": "s"}
    with pytest.raises(
        DataError, match=r"refuses these messages: No system!; it takes no system turn"
    ):
        encoder.response([system, user("a")], [assistant("b")])


def test_a_system_turn_that_a_template_leaves_out_is_refused_with_what_to_do(
    starter: LoadedModel,
) -> None:
    template = (
        "{% for m in messages if m['role'] != 'system' %}<|im_start|>{{ m['role'] }}\n"
        "{{ m['content'] }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    with pytest.raises(DataError) as error:
        Encoder(with_template(starter, template)).response(
            [{"role": "system", "content": "s"}, user("a")], [assistant("b")], origin="f:1"
        )
    assert str(error.value) == (
        "f:1: messages[0]: the chat template leaves out the system turn; merge it into the first user "
        "turn (system_turn: fold in a recipe, else `system_turn=fold`)"
    )


@pytest.mark.parametrize(
    "roles",
    ["system system user assistant", "user system user assistant", "system user system assistant"],
)
@pytest.mark.parametrize("refuses", [True, False])
def test_folding_is_not_advised_for_what_it_does_not_fold(
    starter: LoadedModel, roles: str, refuses: bool
) -> None:
    template = (
        "{% for m in messages %}{% if m['role'] != 'system' %}{{ m['role'] }}: {{ m['content'] }}"
        "<|im_end|>{% elif refuses %}{{ raise_exception('No system!') }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}assistant: {% endif %}"
    )
    *prompt, answer = ({"role": role, "content": "a"} for role in roles.split())
    tokenizer = with_template(starter, f"{{% set refuses = {refuses} %}}{template}")
    with pytest.raises(DataError) as error:
        Encoder(tokenizer).response(prompt, [answer])
    said = "merge each system turn into the user turn after it, in the file"
    assert str(error.value).endswith(said) and "fold" not in str(error.value)


def test_a_template_that_needs_tools_is_said_to(starter: LoadedModel) -> None:
    needy = f"{{% if not tools %}}{{{{ raise_exception('No tools!') }}}}{{% endif %}}{BRACKETS}"
    with pytest.raises(DataError) as error:
        Encoder(with_template(starter, needy, "<|endoftext|>")).prompt([user("a")])
    said = "; it needs tools, and there are none: give the row tools, or use another template"
    assert str(error.value).endswith(said)


def test_what_would_not_help_is_not_advised(starter: LoadedModel) -> None:
    """Where a template refuses more than the system turn, or refuses it with nothing beside it."""
    template = (
        "{% if tools %}{{ raise_exception('No tools!') }}{% endif %}"
        "{% for m in messages %}{% if m['role'] == 'system' or m['content'] == 'bad' %}"
        "{{ raise_exception('No ' + m['role'] + '!') }}{% endif %}"
        "{{ m['role'] }}: {{ m['content'] }}<|im_end|>{% endfor %}"
        "{% if add_generation_prompt %}assistant: {% endif %}"
    )
    encoder = Encoder(with_template(starter, template))
    system: Message = {"role": "system", "content": "s"}
    tool = {"type": "function", "function": {"name": "f", "parameters": {}}}
    with pytest.raises(DataError, match=r"No system!; it takes no system turn"):
        encoder.prompt([system, user("a")])
    for messages, tools, said in (
        ([user("bad")], (), "No user!"),
        ([system, user("bad")], (), "No system!"),
        ([system], (), "No system!"),
        ([system, user("a")], [tool], "No tools!"),
    ):
        with pytest.raises(DataError) as error:
            encoder.prompt(messages, tools)
        assert str(error.value) == f"the chat template refuses these messages: {said}"


def test_a_template_gets_no_list_of_tools_where_there_are_none(starter: LoadedModel) -> None:
    template = (
        "{% if tools is not none %}Tools: {{ tools | length }}\n{% endif %}"
        "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n"
        "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    tokenizer = with_template(starter, template)
    ids = Encoder(tokenizer).prompt([user("a")])
    assert tokenizer.decode(ids) == "<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\n"


def test_a_conversation_of_several_rows_is_measured_whole(starter: LoadedModel) -> None:
    talk = (user("a"), assistant("<think>hm</think>b"), user("c"), assistant("d"))
    record = Chat(messages=talk, origin="test:7")
    encoder = Encoder(with_template(starter, FORGETS))
    rows = encoder.encode_sft_record(record)
    assert len(rows) == 2
    assert encoder.measure(record) == (
        sum(len(row.ids) for row in rows),
        sum(sum(row.mask) for row in rows),
    )


def test_a_record_that_is_too_long_is_named_by_what_does_not_fit(chatml: Any) -> None:
    encoder = Encoder(chatml)
    pair = Pair(
        prompt=(user("one two three four five six"),),
        chosen=(assistant("yes"),),
        rejected=(assistant("no"),),
        origin="f:1",
    )
    row = encoder.encode_pair(pair)
    whole = len(row.prompt) + max(map(len, row.responses))
    assert problem_of_length(encoder, pair, whole) is None
    shorter = f"its prompt does not fit into {whole - 1} tokens"
    assert problem_of_length(encoder, pair, whole - 1) == shorter
    assert problem_of_length(encoder, pair, 2) == "its response does not fit into 2 tokens"


def test_rows_carry_weight_and_origin_and_are_measured(chatml: Any) -> None:
    encoder = Encoder(chatml)
    chat = Chat(messages=(user("q"), assistant("a")), origin="f:1", meta={"weight": 2})
    pair = Pair(
        prompt=(user("q"),),
        chosen=(assistant("a"),),
        rejected=(assistant("b"),),
        origin="f:2",
        meta={"weight": 3},
    )
    text = Text(text="One line.", origin="f:3", meta={"weight": 4})
    (one,), two, (three,) = encoder.encode(chat), encoder.encode_pair(pair), encoder.encode(text)
    assert [(row.origin, row.weight) for row in (one, two, three)] == [
        ("f:1", 2.0),
        ("f:2", 3.0),
        ("f:3", 4.0),
    ]
    assert isinstance(one, Row) and isinstance(three, Row)
    assert three.is_text and not one.is_text
    assert encoder.measure(chat) == (len(one.ids), sum(one.mask))
    assert encoder.measure(text) == (len(three.ids), len(three.ids) - 1)
    responses = len(two.chosen) + len(two.rejected)
    assert encoder.measure(pair) == (len(two.prompt) + responses, responses)
    alike = Pair(prompt=pair.prompt, chosen=(assistant(""),), rejected=pair.rejected, origin="f:9")
    with pytest.raises(DataError, match=r"^f:9: "):
        encoder.encode_pair(alike)


def test_arguments_without_their_names_are_refused(starter: LoadedModel) -> None:
    values = "{{ f['name'] }}({{ f['arguments'].values() | list | tojson }})"
    with pytest.raises(DataError, match="the argument 'name'"):
        calls(starter, values, {"name": "x"})


def test_a_template_that_reads_arguments_as_text_may_refuse_a_header_behind_an_answer(
    starter: LoadedModel,
) -> None:
    strict = (
        "{% if add_generation_prompt and messages[-1]['role'] == 'assistant' %}"
        "{{ raise_exception('No!') }}{% endif %}"
    )
    written = CALLS.replace("WRITTEN", "{{ f['name'] }} {{ f['arguments'] }}")
    tokenizer = with_template(starter, strict + written)
    call = {"type": "function", "function": {"name": "book", "arguments": {"nights": "two"}}}
    turn: Message = {"role": "assistant", "content": "", "tool_calls": [call]}
    _, ids, _ = Encoder(tokenizer).response([user("a")], [turn])
    assert tokenizer.decode(ids) == 'book {"nights": "two"}<|im_end|>'


def test_a_template_does_not_see_which_turns_are_learned(starter: LoadedModel) -> None:
    template = (
        "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}"
        "{% if 'train' in m %} (given){% endif %}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    tokenizer = with_template(starter, template)
    talk = (user("a"), {**assistant("b"), "train": False}, user("c"), assistant("d"))
    (row,) = Encoder(tokenizer).encode_sft_record(Chat(messages=talk, origin="test:1"))
    assert "given" not in tokenizer.decode(row.ids)


def test_a_call_behind_the_end_of_the_turn_is_refused(starter: LoadedModel) -> None:
    ends = "<|im_end|>{{ f['name'] }}{{ f['arguments'] | tojson }}"
    encoder = Encoder(with_template(starter, CALLS.replace("WRITTEN", ends)))
    call = {"type": "function", "function": {"name": "book", "arguments": {}}}
    turn: Message = {"role": "assistant", "content": "Yes.", "tool_calls": [call]}
    with pytest.raises(DataError, match="ends the turn before its tool_calls"):
        encoder.response([user("a")], [turn])


@pytest.mark.parametrize(
    "template",
    [
        # an answer's end that depends on what it says
        "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>"
        "{% if 'bye' in m['content'] %}{{ '\n\n' }}{% else %}{{ '\n' }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}",
    ],
)
def test_what_a_template_writes_around_a_text_may_not_depend_on_it(
    starter: LoadedModel, template: str
) -> None:
    encoder = Encoder(with_template(starter, template))
    encoder.response([user("a")], [assistant("hello")])
    with pytest.raises(DataError, match="alters the content"):
        encoder.response([user("a")], [assistant("good bye")])


def test_an_answer_that_a_template_leaves_out_because_of_its_question_is_refused(
    starter: LoadedModel,
) -> None:
    template = (
        "{% for m in messages %}{% if m['role'] == 'user' or 'bye' not in messages[0]['content'] %}"
        "<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    encoder = Encoder(with_template(starter, template))
    encoder.response([user("a")], [assistant("b")])
    with pytest.raises(DataError, match=r"messages\[1\]: the chat template leaves out or alters"):
        encoder.response([user("good bye")], [assistant("b")])


@pytest.mark.parametrize("written", ["m['content']", "m['content'] | tojson"])
def test_a_template_that_writes_a_list_of_parts_as_it_is_does_not_read_thoughts(
    starter: LoadedModel, written: str
) -> None:
    template = (
        "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{% if m['content'] is string %}"
        f"{{{{ m['content'] }}}}{{% else %}}{{{{ {written} }}}}{{% endif %}}<|im_end|>\n{{% endfor %}}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    encoder = Encoder(with_template(starter, template))
    with pytest.raises(DataError, match="does not write this turn's reasoning_content"):
        encoder.response([user("a")], [{**assistant("b"), "reasoning_content": "One."}])


def test_a_template_that_alters_content_is_refused(starter: LoadedModel) -> None:
    upper = (
        "{% for m in messages %}{{ m['role'] }}: {{ m['content'] | upper }}<|im_end|>{% endfor %}"
    )
    with pytest.raises(DataError, match="alters the content"):
        Encoder(with_template(starter, upper)).response([user("a")], [assistant("quiet")])


def test_a_template_without_an_end_of_turn_gets_the_end_of_text(starter: LoadedModel) -> None:
    bare = (
        "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
        "{% if add_generation_prompt %}assistant: {% endif %}"
    )
    tokenizer = with_template(starter, bare)
    _, response, _ = Encoder(tokenizer).response([user("a")], [assistant("Yes")])
    assert response[-1] == tokenizer.eos_token_id


def test_no_chat_template_is_refused(starter: LoadedModel) -> None:
    with pytest.raises(ModelError, match="no chat template"):
        Encoder(with_template(starter, None))


@pytest.mark.parametrize("front", [False, True])
@pytest.mark.parametrize(
    "text", ["ab", "<s>ab", "ab</s>", "<s>ab</s>", "<s>ab</s></s>", "ab</s>\n"]
)
def test_a_text_begins_and_ends_once_whoever_spells_it(text: str, front: bool) -> None:
    tokenizer = tiny_loaded(template="{{ messages }}", front=front).tokenizer
    (row,) = Encoder(tokenizer).encode_sft_record(Text(text=text, origin="f:1", meta={}))
    begins = front or text.startswith("<s>")
    assert tokenizer.decode(list(row.ids)) == "<s>" * begins + "ab</s>"
    assert row.mask == [False] + [True] * (len(row.ids) - 1)


def test_a_text_may_end_at_a_token_at_which_generation_came_to_stop_later() -> None:
    """A run adds the ends of its rows' turns to a tokenizer that its encoder has already."""
    tokenizer = tiny_loaded(template="{{ messages }}").tokenizer
    encoder = Encoder(tokenizer)
    (full_stop,) = tokenizer.encode(".", add_special_tokens=False)
    tokenizer.eos_token_ids = {*tokenizer.eos_token_ids, full_stop}
    (row,) = encoder.encode_sft([Text(text="A b.", origin="f:1")])
    assert tokenizer.decode(row.ids) == "A b."


def test_a_rendered_conversation_as_text_ends_at_its_last_end(chatml: Any) -> None:
    turn = "<|im_start|>assistant\nYo<|im_end|>"
    for blanks in ("", "\n", " \n\n"):
        (row,) = Encoder(chatml).encode_sft_record(Text(text=turn + blanks, origin="f:1"))
        assert chatml.decode(list(row.ids)) == turn
    (row,) = Encoder(chatml).encode_sft_record(Text(text="One.\n", origin="f:1"))
    assert chatml.decode(list(row.ids)) == "One.\n<|im_end|>"


def test_a_response_that_begins_with_a_turn_not_learned_follows_the_same_prompt(
    chatml: Any,
) -> None:
    given = {**assistant("Perhaps."), "train": False}
    row = {
        "prompt": "Is it?",
        "chosen": [given, user("Sure?"), assistant("Yes.")],
        "rejected": "No.",
    }
    encoder = Encoder(chatml)
    pair = encoder.encode_pair(parse(row, "f:1"))  # type: ignore[arg-type]
    assert pair.prompt == encoder.prompt([user("Is it?")])
    kept = [i for i, on in zip(pair.chosen, pair.response_masks[0], strict=True) if on]
    assert chatml.decode(kept) == "Yes.<|im_end|>"
    assert chatml.decode(pair.chosen).startswith("Perhaps.<|im_end|>")


def test_a_text_above_the_tokenizers_own_limit_is_encoded_without_a_warning() -> None:
    tokenizer = tiny_loaded(template="{{ messages }}").tokenizer
    tokenizer._tokenizer.model_max_length = 4
    Encoder(tokenizer).encode_sft_record(Text(text="several tokens", origin="f:1", meta={}))
    assert not any("sequence-length" in key for key in tokenizer._tokenizer.deprecation_warnings)
