"""A chat replies as if the whole conversation were read anew, and reads only what is new."""

from __future__ import annotations

import json
from pathlib import Path

import mlx.core as mx
import pytest
from support.models import tiny_loaded, tiny_model
from support.small_run import TEMPLATE, make_inputs

from forty2.errors import ModelError
from forty2.inference.chat import ChatSession, Exchange, chat
from forty2.inference.generation import stream_reply
from forty2.model.adapter import adapter_weights, attach_adapter, save_adapter
from forty2.model.loading import LoadedModel, load
from forty2.recipe.schema import Adapter
from forty2.text.encoder import Encoder

REWRITING = (
    "{% for m in messages %}{{ m['role'] }}: "
    "{{ m['content'] if loop.last else m['content'] | upper }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)
"""A template that shows earlier turns otherwise than the last one."""


def loaded(architecture: str = "llama", template: str = TEMPLATE, length: int = 512) -> LoadedModel:
    return tiny_loaded(tiny_model(architecture), template=template, length=length)


def with_adapter(kind: str) -> LoadedModel:
    """A tiny model with an adapter that changes its replies."""
    one = loaded()
    adapter = Adapter(type=kind, rank=2, scale=8.0, layers=3)  # type: ignore[arg-type]
    attach_adapter(one.model, adapter, seed=1)
    for name, value in adapter_weights(one.model).items():
        noise = mx.random.normal(value.shape, key=mx.random.key(len(name)))
        one.model.load_weights([(name, value + noise)], strict=False)
    return one


def replies_anew(one: LoadedModel, session: ChatSession, asked: list[str], **options: int) -> None:
    """Compare each reply with that to the whole conversation, read from its beginning."""
    for n, message in enumerate(asked):
        history = [*session.messages, {"role": "user", "content": message}]
        ids = Encoder(one.tokenizer).prompt(history)
        wanted = stream_reply(one, ids, temperature=session.temperature, seed=42 + n, **options)
        assert session.reply(message) == "".join(wanted)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("template", [TEMPLATE, REWRITING])
@pytest.mark.parametrize("architecture", ["llama", "sliding"])
def test_replies_are_those_to_the_whole_conversation(
    architecture: str, template: str, temperature: float
) -> None:
    one = loaded(architecture, template)
    session = ChatSession(one, system="Be brief.", temperature=temperature, max_tokens=6)
    replies_anew(one, session, ["Hello.", "And then?", "Why?"], max_tokens=6)


def test_a_turn_reads_only_what_is_new() -> None:
    session = ChatSession(loaded(), system="s" * 100, max_tokens=4)
    session.reply("a" * 60)
    assert session.tokens_read > 160
    session.reply("b")
    assert session.tokens_read < 100


def test_undo_and_reset_take_back_what_was_said() -> None:
    one = loaded()
    session = ChatSession(one, max_tokens=5)
    first = session.reply("One.")
    second = session.reply("Two.")
    assert session.undo() == Exchange("Two.", second)
    assert session.exchanges == [Exchange("One.", first)]
    assert session.reply("Two.") == second
    session.reset()
    assert session.messages == [] and session.undo() is None
    assert session.reply("One.") == first


def test_a_reply_that_is_stopped_keeps_what_was_said() -> None:
    one = loaded()
    session = ChatSession(one, max_tokens=50)
    pieces = session.stream("Hello.")
    said = next(pieces) + next(pieces)
    pieces.close()
    assert session.exchanges == [Exchange("Hello.", said)]
    session.max_tokens = 5
    ids = Encoder(one.tokenizer).prompt([*session.messages, {"role": "user", "content": "Go on."}])
    wanted = "".join(stream_reply(one, ids, max_tokens=5, temperature=0.0, seed=0))
    assert session.reply("Go on.") == wanted


@pytest.mark.parametrize("kind", ["lora", "dora"])
def test_the_base_replies_as_without_an_adapter(kind: str) -> None:
    one, plain = with_adapter(kind), ChatSession(loaded(), max_tokens=12)
    session = ChatSession(one, max_tokens=12)
    base = session.reply_of_base("Hello.")
    assert base == plain.reply("Hello.")
    assert session.exchanges == []
    tuned = session.reply("Hello.")
    assert tuned != base
    assert tuned == ChatSession(with_adapter(kind), max_tokens=12).reply("Hello.")


@pytest.mark.parametrize("since", [0, 2])
def test_the_base_has_a_conversation_of_its_own_whenever_it_is_first_asked(since: int) -> None:
    """It never reads what the tuned model said."""
    asked = ["Hello.", "And you?", "Why?"]
    base = ChatSession(loaded(), system="Be brief.", max_tokens=6)
    wanted = [base.reply(message) for message in asked]
    session = ChatSession(with_adapter("lora"), system="Be brief.", max_tokens=6)
    said = []
    for n, message in enumerate(asked):
        if n >= since:
            assert session.base_is_behind == (since if n == since else 0)
            said.append(session.reply_of_base(message))
        session.reply(message)
    assert said == wanted[since:]
    assert [exchange.reply for exchange in session.exchanges] != wanted
    session.undo()
    assert session.reply_of_base(asked[-1]) == wanted[-1]
    session.reset()
    assert session.reply_of_base(asked[0]) == wanted[0]


def test_what_the_base_did_not_say_or_said_before_a_reset_is_no_turn_of_its_chat() -> None:
    session = ChatSession(with_adapter("lora"), max_tokens=6)
    session.stream_of_base("Hello.").close()  # stopped before it said anything
    session.reply("Hello.")
    assert session.base_is_behind == 1
    session.reply_of_base("And you?")
    session.reset()
    session.reply("And you?")
    assert session.base_is_behind == 1


def test_a_reply_of_the_base_that_is_stopped_leaves_adapter_and_conversation_as_they_were() -> None:
    session = ChatSession(with_adapter("lora"), max_tokens=12)
    pieces = session.stream_of_base("Hello.")
    next(pieces)
    pieces.close()
    assert session.has_adapter and session.exchanges == []
    assert session.reply("Hello.") == ChatSession(with_adapter("lora"), max_tokens=12).reply(
        "Hello."
    )


def test_without_an_adapter_there_is_no_base() -> None:
    with pytest.raises(ModelError, match="has no adapter"):
        ChatSession(loaded()).reply_of_base("Hello.")


def test_the_oldest_exchanges_make_room() -> None:
    session = ChatSession(loaded(length=400), system="Be brief.", max_tokens=8)
    for message in ("a" * 40, "b" * 40):
        session.reply(message)
        assert session.make_room("") == 0
    assert session.make_room("c" * 110) == 1
    assert [exchange.message for exchange in session.exchanges] == ["b" * 40]
    assert session.messages[0] == {"role": "system", "content": "Be brief."}
    with pytest.raises(ModelError, match=r"the message and a reply: .* tokens are more than 400"):
        session.make_room("d" * 400)
    assert len(session.exchanges) == 1


def test_a_model_without_a_chat_template_is_refused() -> None:
    with pytest.raises(ModelError, match="no chat template"):
        ChatSession(tiny_loaded())


def test_a_chat_with_a_run_takes_over_the_system_prompt_of_its_rows(tmp_path: Path) -> None:
    inputs = make_inputs(tmp_path / "in")
    model, adapter = str(inputs / "model"), tmp_path / "phase1_sft"
    adapter.mkdir()
    one = load(model)
    attach_adapter(one.model, Adapter(rank=2, layers=1), seed=0)
    save_adapter(one.model, Adapter(rank=2, layers=1), adapter)
    assert chat(model, adapter=adapter).system is None
    (adapter / "phase.json").write_text('{"system": "Be brief."}')
    assert chat(model, adapter=adapter).system == "Be brief."
    assert chat(model, adapter=adapter, system="").system == ""
    assert chat(model, adapter=adapter, system="Sing.").system == "Sing."


def test_a_run_is_talked_to_by_its_recipe_s_folder_and_by_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inputs = make_inputs(tmp_path / "in")
    monkeypatch.chdir(tmp_path)
    folder = Path("adapters", "mine", "phase1_sft")
    folder.mkdir(parents=True)
    one = load(str(inputs / "model"))
    attach_adapter(one.model, Adapter(rank=2, layers=1), seed=0)
    save_adapter(one.model, Adapter(rank=2, layers=1), folder)
    (folder / "phase.json").write_text('{"system": "Be brief."}')
    (folder.parent / "run.json").write_text(json.dumps({"model": str(inputs / "model")}))
    Path("shop").mkdir()
    Path("shop", "recipe.yaml").write_text("name: mine")
    for name in ("shop", "shop/sft", "mine", "mine/sft"):
        session = chat(name)
        assert session.has_adapter and session.system == "Be brief."
        assert chat(inputs / "model", adapter=name).system == "Be brief."
