"""Eval prompts: what passes, what a file may hold, what the replies show, and that asking leaves
no trace in training."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from mlx.utils import tree_flatten
from mlx_lm.tokenizer_utils import TokenizerWrapper
from support.benchmarks import result_of
from support.models import tiny_model
from support.tagged_tokenizer import CONTROL, TOKENIZER, ids
from transformers import PreTrainedTokenizerFast

from forty2.benchmark.eval_prompt_files import EvalPrompt, EvalPrompts, Match, load_eval_prompts
from forty2.benchmark.probing import check_replies, probe
from forty2.benchmark.replies import SEVERAL, garbage
from forty2.benchmark.results import Result
from forty2.benchmark.tasks.eval_prompts import (
    Asked,
    EvalPromptsTask,
)
from forty2.cli import main
from forty2.data.build.curriculum import eval_prompts as operator_prompts
from forty2.data.build.curriculum import operators
from forty2.errors import BenchmarkError
from forty2.model.adapter import attach_adapter
from forty2.model.gradient_checkpointing import checkpoint_gradients
from forty2.model.loading import LoadedModel
from forty2.recipe.schema import Adapter
from forty2.text.rows import Exchange, Row
from forty2.training.batched_loss import ConversationLoss
from forty2.training.objectives.sft import SftPhase
from forty2.training.optimizers import make_optimizer
from forty2.training.step import Stepper

MYPT: dict[str, Any] = {
    "description": "First words.",
    "system_prompt": "Be brief.",
    "prompts": {"say_1": "Say hello.", "say_2": "Say Hello.", "sum_1": "1 + 1?"},
    "expected_outputs": {"say_1": "hello.", "say_2": "Hello.", "sum_1": "2"},
}


def loaded(model: Any, length: int = 512) -> LoadedModel:
    config = {"max_position_embeddings": length}
    return LoadedModel(model, TOKENIZER, config, Path("nowhere"), "tiny")


def ask(one: LoadedModel, prompts: EvalPrompts, max_tokens: int) -> dict[str, Any]:
    return result_of(EvalPromptsTask(prompts=prompts.file, max_tokens=max_tokens), one, prompts)


def taught(replies: Mapping[str, str]) -> LoadedModel:
    """A tiny model that has learned what to say after each whole string."""
    model = tiny_model()
    rows = []
    for prompt, reply in replies.items():
        before, after = ids(prompt), ids(reply + "<end>")
        mask = [False] * len(before) + [True] * len(after)
        rows.append(Row(before + after, mask, "here"))
    objective = ConversationLoss(rows)
    arrays = objective.arrays(objective.batch(range(len(rows))))
    step = nn.value_and_grad(model, lambda model: objective.loss(model, arrays).total)
    optimizer = optim.Adam(1e-2)
    for _ in range(200):
        loss, gradients = step(model)
        optimizer.update(model, gradients)
        if loss.item() < 0.05 * len(rows):
            return loaded(model)
    raise AssertionError("learned nothing")


def templated(text: str) -> str:
    return f"<s>Be brief.<user>{text}</user><bot>"


def written(path: Path, **changes: Any) -> Path:
    """MyPT's shape with changes; None takes a key away."""
    content = {key: value for key, value in {**MYPT, **changes}.items() if value is not None}
    file = path / "prompts.json"
    file.write_text(json.dumps(content), "utf-8")
    return file


# --- what passes ---


@pytest.mark.parametrize(
    ("match", "expected", "right", "wrong"),
    [
        ("exact", "Hello.", ["Hello.", " Hello.\n"], ["Hello", "hello.", "Hello..", "Hello. Hi."]),
        ("exact", "Hello\n", ["Hello"], ["Hello."]),
        ("exact", "a  b", ["a  b"], ["a b"]),
        ("contains", " Paris ", ["Paris", "It is Paris."], ["paris", "Par is", ""]),
        ("regex", r"^\d+\.$", ["42.", " 42.\n"], ["42", "4 2.", "42.\n43."]),
        ("regex", "(?i)yes", ["Oh, YES!"], ["no", ""]),
        ("regex", "^[äö]$", ["ä"], ["a", "ää"]),
    ],
)
def test_what_passes(match: Match, expected: str, right: list[str], wrong: list[str]) -> None:
    prompt = EvalPrompt("x", "?", expected, match, "")
    assert all(prompt.passes(reply) for reply in right)
    assert not any(prompt.passes(reply) for reply in wrong)


@given(st.text(min_size=1), st.text())
def test_exact_is_equality_of_trimmed_text(expected: str, reply: str) -> None:
    prompt = EvalPrompt("x", "?", expected, "exact", "")
    assert prompt.passes(f"\n {expected}\t")
    assert prompt.passes(reply) == (reply.strip() == expected.strip())


def test_no_pattern_takes_forever() -> None:
    """Where a backtracking engine would still be at it when the sun is cold."""
    prompt = EvalPrompt("x", "?", "^(a+)+$", "regex", "")
    started = time.perf_counter()
    assert not prompt.passes("a" * 5000 + "!")
    assert time.perf_counter() - started < 5


# --- the file ---


def test_a_file_in_mypts_shape_is_read_as_it_is(tmp_path: Path) -> None:
    found = load_eval_prompts(written(tmp_path))
    assert [(p.id, p.text, p.expected, p.match, p.system) for p in found.items] == [
        (key, text, MYPT["expected_outputs"][key], "exact", "Be brief.")
        for key, text in MYPT["prompts"].items()
    ]
    assert [p.bucket for p in found.items] == ["say", "say", "sum"]
    assert (found.form, found.gates) == (None, {})


def test_match_and_system_prompt_may_be_each_prompts_own(tmp_path: Path) -> None:
    file = written(tmp_path, match={"sum_1": "contains"}, system_prompt={"say_2": "Loud."})
    found = load_eval_prompts(file)
    assert [p.match for p in found.items] == ["exact", "exact", "contains"]
    assert [p.system for p in found.items] == ["", "Loud.", ""]
    assert {p.match for p in load_eval_prompts(written(tmp_path, match="regex")).items} == {"regex"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"prompts": None}, "prompts: must be an object of ids and texts"),
        ({"prompts": {}}, "prompts: must be an object"),
        ({"prompts": ["Say hello."]}, "prompts: must be an object"),
        (
            {"expected_outputs": {"say_1": 12}},
            'expected_outputs.say_1: must be a text: write "12", with the quotes',
        ),
        ({"prompts": {"say_1": " "}}, "prompts.say_1: must be a text, and not an empty one"),
        ({"expected_outputs": {"say_1": 2}}, "expected_outputs.say_1: must be a text"),
        ({"expected_outputs": {"say_1": "hello."}}, "prompts.say_2: has no expected output"),
        ({"prompts": {"say_1": "x"}}, "expected_outputs.say_2: there is no such prompt"),
        ({"match": "fuzzy"}, "match.say_1: 'fuzzy': must be one of exact, contains, regex"),
        ({"match": {"sum_1": 3}}, "match.sum_1: must be a text"),
        ({"match": {"sum_2": "exact"}}, "match.sum_2: there is no such prompt"),
        ({"match": ["exact"]}, "match: must be a text, or an object"),
        ({"system_prompt": {"sum_2": "x"}}, "system_prompt.sum_2: there is no such prompt"),
        ({"form": "chat"}, "form: must be one of user, full"),
        ({"expected_output": {}}, "expected_output: unknown key"),
        ({"gates": {"say": 0}}, "gates.say: must be a share above 0, at most 1"),
        ({"gates": {"say": 80}}, "gates.say: must be a share above 0, at most 1"),
        ({"gates": {"say": True}}, "gates.say: must be a share above 0, at most 1"),
        ({"gates": {"says": 0.8}}, "gates.says: no such bucket; there are say, sum"),
        ({"gates": [0.8]}, "gates: must be an object"),
        (
            {"prompts": {"all_1": "x"}, "expected_outputs": {"all_1": "x"}},
            "prompts.all: the bucket 'all' is that of every prompt",
        ),
    ],
)
def test_an_unusable_file_names_the_id(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    file = written(tmp_path, **changes)
    with pytest.raises(BenchmarkError) as caught:
        load_eval_prompts(file)
    assert str(caught.value).startswith(f"{file}: {message}") and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("(", "not a pattern in RE2's syntax: missing )"),
        ("(?=a)b", "not a pattern in RE2's syntax"),
        (r"(a)\1", "not a pattern in RE2's syntax"),
        (".*", "found in an empty reply, so every reply passes"),
        ("yes|", "found in an empty reply, so every reply passes"),
    ],
)
def test_a_pattern_is_judged_before_anything_runs(
    tmp_path: Path, pattern: str, message: str, capfd: pytest.CaptureFixture[str]
) -> None:
    expected = {**MYPT["expected_outputs"], "sum_1": pattern}
    file = written(tmp_path, expected_outputs=expected, match={"sum_1": "regex"})
    with pytest.raises(BenchmarkError, match=r"expected_outputs\.sum_1: ") as caught:
        load_eval_prompts(file)
    assert message in str(caught.value) and "\n" not in str(caught.value)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b" \n", "is empty"),
        (b"{", "not JSON: Expecting"),
        (b"[]", "not a JSON object but list"),
        (b"\xff{}", "not JSON: 'utf-8'"),
        (b'{"prompts": {"a": "x", "a": "y"}}', "not JSON: 'a' is there twice; remove one"),
        (b'{"prompts": {"a": "\\ud800"}}', "not JSON: 'utf-8' codec can't encode"),
        (b"[" * 100_000, "not JSON: nested too deeply"),
    ],
)
def test_what_is_no_json_object(tmp_path: Path, content: bytes, message: str) -> None:
    file = tmp_path / "prompts.json"
    file.write_bytes(content)
    with pytest.raises(BenchmarkError) as caught:
        load_eval_prompts(file)
    assert str(caught.value).startswith(f"{file}: {message}")
    with pytest.raises(BenchmarkError, match="cannot be read: No such file"):
        load_eval_prompts(tmp_path / "none.json")


# --- asking ---


@pytest.fixture(scope="module")
def model() -> LoadedModel:
    """Says "3" for 1 + 1, all else in MyPT's shape as expected, and one tag too many to "Tags?"."""
    replies = {
        "Say hello.": "hello.</bot>",
        "Say Hello.": "Hello.</bot>",
        "1 + 1?": "3</bot>",
        "Tags?": "Yes.<s></bot>",
        "Long?": "abc" * 9,
    }
    return taught({templated(text): reply for text, reply in replies.items()})


def test_replies_are_scored_by_prompt_bucket_and_gate(model: LoadedModel, tmp_path: Path) -> None:
    file = written(tmp_path, gates={"say": 1, "sum": 0.5, "all": 0.6})
    measured = ask(model, load_eval_prompts(file), max_tokens=12)
    assert [item["reply"] for item in measured["items"]] == ["hello.", "Hello.", "3"]
    assert [item["passed"] for item in measured["items"]] == [True, True, False]
    assert measured["passed"] == pytest.approx(2 / 3) and measured["n"] == 3
    assert measured["buckets"] == {"say": {"n": 2, "passed": 1}, "sum": {"n": 1, "passed": 0}}
    gates = {name: gate["passed"] for name, gate in measured["gates"].items()}
    assert gates == {"say": True, "sum": False, "all": True}
    assert (measured["stop_rate"], measured["distinct"], measured["faults"]) == (1, 3, [])
    shares = {"passed": 2 / 3, "passed_say": 1.0, "passed_sum": 0.0, "stopped": 1.0}
    assert [*probe(model, load_eval_prompts(file), max_tokens=12)] == [shares, [], "", [], []]
    assert measured["items"][0]["tags"] == {"</bot>": True, "<end>": True}


def answered(*replies: str, match: str = "exact", expected: str = "Say it again.") -> list[Any]:
    return [
        {
            "prompt": f"Say {n}.",
            "reply": one,
            "expected": expected,
            "match": match,
            "passed": one == expected,
        }
        for n, one in enumerate(replies)
    ]


def test_replies_that_have_nothing_of_what_is_expected_aregarbage() -> None:
    records = answered("xx qq zz", "the of and", "", "4 4 4 4", "lorem")
    assert garbage(records) == (
        "5 of 5 eval prompts got a reply that has nothing of the text they expect. One of them: to "
        "'Say 0.', 'Say it again.' is expected, and the reply was 'xx qq zz'"
    )


def test_what_is_counted_and_what_is_not_is_said_with_an_example_of_the_bad_ones() -> None:
    texts = answered("Say it!", *["b" * 99] * 11)
    records = [
        {**texts[1], "prompt": "x" * 99},
        *texts[2:],
        texts[0],
        *answered("no", match="regex"),
    ]
    said = garbage([texts[0], *records[:-2], records[-1]])
    assert said.startswith("11 of 13 eval prompts got a reply")
    assert (
        "they expect; 1 other expects a pattern and is not counted. One of them: to '…xxx" in said
    )
    assert said.endswith("is expected, and the reply was '" + "b" * 80 + "…'")


@pytest.mark.parametrize(
    "replies",
    [
        ["say it again", "SAY IT", "Say again!", "I say it again"],  # case, templates
        ["Say it again.", "no", "no", "no", "no"],  # an answer is right now and then
        ["xx", "qq", "zz"],  # too few to tell
    ],
)
def test_wrong_replies_alone_are_nogarbage(replies: list[str]) -> None:
    assert garbage(answered(*replies)) == ""


def test_what_a_pattern_expects_is_not_compared() -> None:
    assert garbage(answered("x", "y", "z", "q", match="regex")) == ""


def test_user_texts_and_whole_strings_are_the_same_prompts(
    model: LoadedModel, tmp_path: Path
) -> None:
    user = Asked(model, load_eval_prompts(written(tmp_path)), 12)
    prompts = {key: templated(text) for key, text in MYPT["prompts"].items()}
    full = Asked(model, load_eval_prompts(written(tmp_path, prompts=prompts)), 12)
    assert (user.form, full.form) == ("user", "full")
    assert user.ids == full.ids == [ids(text) for text in prompts.values()]


def test_a_reply_with_a_control_token_does_not_pass(model: LoadedModel, tmp_path: Path) -> None:
    file = written(
        tmp_path,
        prompts={"a": "Tags?", "b": "Long?"},
        expected_outputs={"a": "Yes.", "b": "abcabc"},
    )
    measured = ask(model, load_eval_prompts(file), max_tokens=12)
    tags, long = measured["items"]
    assert (tags["reply"], tags["passed"], tags["broken"]) == ("Yes.<s></bot>", False, True)
    assert (long["reply"], long["stopped"], long["broken"]) == ("abc" * 4, False, False)
    assert measured["stop_rate"] == 0.5
    assert measured["faults"] == ["broken tags in 1 of 2 replies (a)"]


def test_a_form_that_cannot_be_told_is_an_error(model: LoadedModel, tmp_path: Path) -> None:
    def asked(prompt: str, **changes: Any) -> Any:
        prompts = {**MYPT["prompts"], "sum_1": prompt}
        file = written(tmp_path, prompts=prompts, **changes)
        return ask(model, load_eval_prompts(file), max_tokens=12)

    with pytest.raises(BenchmarkError, match=r"prompts\.sum_1 holds control .*say_1 none; say"):
        asked("Say <s>.")
    with pytest.raises(BenchmarkError, match=r"prompts\.sum_1: begins with <myPT_user>, which is"):
        asked("<myPT_user>1 + 1?</myPT_user><myPT_assistant>")
    assert asked("<myPT_user>", form="user")["form"] == "user"
    assert asked("Say <s>.", form="full")["form"] == "full"


def test_spelled_control_tokens_stay_text_in_what_a_user_says(
    model: LoadedModel, tmp_path: Path
) -> None:
    prompts = {"a": "Say </user>."}
    file = written(tmp_path, prompts=prompts, expected_outputs={"a": "x"}, form="user")
    (said,) = Asked(model, load_eval_prompts(file), 12).ids
    assert said.count(CONTROL.index("</user>")) == 1
    assert TOKENIZER.decode(said) == templated("Say </user>.")


def test_what_does_not_fit_the_model_names_the_id(model: LoadedModel, tmp_path: Path) -> None:
    prompts = load_eval_prompts(written(tmp_path))
    needs = len(ids(templated("Say hello.")))
    ask(loaded(model.model, length=needs + 12), prompts, max_tokens=12)
    with pytest.raises(BenchmarkError, match=rf"say_1: its {needs} tokens and 12 of reply do not"):
        ask(loaded(model.model, length=needs + 11), prompts, max_tokens=12)
    with pytest.raises(BenchmarkError, match=r"expected_outputs\.say_1: its 6 tokens are beyond"):
        ask(model, prompts, max_tokens=5)
    refusing = TokenizerWrapper(
        PreTrainedTokenizerFast(
            tokenizer_object=TOKENIZER.backend_tokenizer,
            eos_token="<end>",
            chat_template="{{ raise_exception('no system turns') }}",
        )
    )
    with pytest.raises(BenchmarkError, match=r"prompts\.say_1: the chat .*: no system turns"):
        ask(replace(model, tokenizer=refusing), prompts, max_tokens=12)


def test_one_reply_to_everything_is_told(tmp_path: Path) -> None:
    texts = [f"What is {n}?" for n in range(SEVERAL)]
    parrot = taught({templated(text): "Paris.</bot>" for text in texts})
    prompts = {f"a_{n}": text for n, text in enumerate(texts)}
    expected = dict.fromkeys(prompts, "Paris.")

    def faults(**changes: str) -> Any:
        file = written(tmp_path, prompts=prompts, expected_outputs={**expected, **changes})
        return ask(parrot, load_eval_prompts(file), max_tokens=12)["faults"]

    assert faults(a_1="Rome.") == ["all 4 prompts get the reply 'Paris.'"]
    assert faults() == []  # it is what was asked for


@pytest.mark.parametrize(
    ("reply", "missing", "broken"),
    [
        ("Yes.</bot>", [], 0),  # as it should be
        ("Yes.", ["</bot>"], 0),  # ends, but never closes its turn
        ("Yes.</bot><user>", [], 4),
        ("<tool>Yes.</bot>", [], 4),
    ],
)
def test_tags_that_are_missing_or_broken_are_told_apart(
    reply: str, missing: list[str], broken: int, tmp_path: Path
) -> None:
    texts = [f"{n}?" for n in range(SEVERAL)]
    model = taught({templated(text): reply for text in texts})
    prompts = {f"a_{n}": text for n, text in enumerate(texts)}
    expected = dict.fromkeys(prompts, "Yes.")
    file = written(tmp_path, prompts=prompts, expected_outputs=expected)
    found = probe(model, load_eval_prompts(file), max_tokens=14)
    assert [line.partition(" ")[0] for line in found.missing_tags] == missing
    assert [line.split()[3] for line in found.broken_tags] == [str(broken)] * bool(broken)


def test_a_reply_that_never_ends_is_told_only_where_its_text_is_known(tmp_path: Path) -> None:
    texts = [f"{n}?" for n in range(SEVERAL)]
    model = taught({templated(text): "2 2 2 2 2 2" for text in texts})
    prompts = {f"a_{n}": text for n, text in enumerate(texts)}

    def missing(match: str) -> list[str]:
        expected = {f"a_{n}": str(n) for n in range(SEVERAL)}
        file = written(tmp_path, prompts=prompts, expected_outputs=expected, match=match)
        return [*probe(model, load_eval_prompts(file), max_tokens=8).missing_tags]

    assert missing("exact") == [
        f"{tag} is in none of the 4 replies that should hold it" for tag in ("<end>", "</bot>")
    ]
    assert missing("contains") == missing("regex") == []


def test_rows_say_which_tags_their_replies_should_hold() -> None:
    texts = [f"{n}?" for n in range(SEVERAL)]
    model = taught({templated(text): "2." for text in texts})

    def missing(answer: str) -> list[str]:
        exchanges = [Exchange(ids(templated(text)), ids(answer)) for text in texts]
        return [line.split()[0] for line in check_replies(model, exchanges).missing_tags]

    assert missing("2.") == ["</bot>"]
    assert missing("<tool>2</tool>2.") == ["<tool>", "</tool>", "</bot>"]
    assert missing("2" * 40) == []  # too long for the few tokens that are looked at


# --- without a trace ---


@pytest.mark.parametrize("grad_checkpoint", [False, True])
def test_training_goes_on_as_if_nothing_had_been_asked(
    tmp_path: Path, grad_checkpoint: bool
) -> None:
    """With dropout, and asked between any two steps: the same weights, bit for bit."""
    prompts = load_eval_prompts(written(tmp_path))
    spec = Adapter(rank=4, scale=4.0, layers=2, dropout=0.3)
    texts = [ids(f"<user>{n}</user><bot>{n * 7}</bot><end>") for n in range(6)]
    rows = [Row(text, [n > 3 for n in range(len(text))], "here") for text in texts]
    phase = SftPhase(objective="sft", data="x", steps=6, lr=1e-2, batch_size=2)

    def trained(asking: bool) -> tuple[dict[str, mx.array], list[dict[str, Any]]]:
        tiny, objective = tiny_model(), ConversationLoss(rows)
        attach_adapter(tiny, spec, seed=1)
        checkpoint_gradients(tiny, grad_checkpoint)
        optimizer = make_optimizer(phase)
        optimizer.init(tiny.trainable_parameters())
        stepper = Stepper(tiny, optimizer, objective, phase)
        tiny.train()
        mx.random.seed(3)
        asked = []
        for step in range(6):
            stepper.step([objective.batch([step, 5 - step])], 1e-2)
            if asking:
                asked.append(ask(loaded(tiny), prompts, max_tokens=6))
        return dict(tree_flatten(tiny.trainable_parameters())), asked

    (plain, _), (probed, asked) = trained(False), trained(True)
    assert all(mx.array_equal(plain[key], probed[key]).item() for key in plain)
    assert any(not mx.array_equal(value, 0 * value).item() for value in plain.values())
    assert len({json.dumps(one["items"]) for one in asked}) > 1  # the model as it stood each time


def test_replies_are_those_without_dropout(tmp_path: Path) -> None:
    prompts = load_eval_prompts(written(tmp_path))
    tiny = tiny_model()
    attach_adapter(tiny, Adapter(rank=4, scale=90.0, layers=3, dropout=0.5), seed=1)
    tiny.apply_to_modules(_stir)
    said = []
    for training, checkpointed in ((False, False), (True, False), (True, True), (False, True)):
        tiny.train(training)
        checkpoint_gradients(tiny, checkpointed)
        said.append(ask(loaded(tiny), prompts, max_tokens=6))
        assert tiny.training == training
    assert said[1:] == said[:-1]


def _stir(_: str, module: Any) -> None:
    """Make an adapter do something, so that its dropout shows."""
    if "lora_b" in module:
        module.lora_b = mx.random.normal(module.lora_b.shape, key=mx.random.key(4))


# --- operators, and the command ---


def test_operators_become_prompts_never_trained_on(tmp_path: Path) -> None:
    ran = CliRunner().invoke(main, ["data", "operators", "--output-dir", str(tmp_path / "ops")])
    assert ran.exit_code == 0 and "198 eval prompts" in ran.output
    found = load_eval_prompts(tmp_path / "ops" / "eval_prompts.json")
    train_rows = (tmp_path / "ops" / "train.jsonl").read_text("utf-8").splitlines()
    payloads = {json.loads(line)["payload"] for line in train_rows}
    texts = {json.loads(line)["messages"][1]["content"] for line in train_rows}
    by_bucket: dict[str, list[EvalPrompt]] = {}
    for item in found.items:
        by_bucket.setdefault(item.bucket, []).append(item)
    assert {name: len(items) for name, items in by_bucket.items()} == {
        "copy": 66,
        "wrap": 66,
        "extract": 66,
    }
    assert found.gates == {"copy": 0.8, "wrap": 0.8, "extract": 0.6, "all": 0.75}
    assert found.form == "user" and {item.system for item in found.items} == {
        row["messages"][0]["content"] for row in operators(42).valid
    }
    for item in found.items:
        assert item.text not in texts and item.passes(item.expected)
        assert item.expected not in payloads
        assert item.bucket == "wrap" or item.expected in item.text
    assert operator_prompts(operators(42).valid) != operator_prompts(operators(7).valid)


def test_the_command_asks_the_starter(starter_path: Path, tmp_path: Path) -> None:
    file, out = tmp_path / "prompts.json", tmp_path / "out.json"
    content = {
        "prompts": {"fact_1": "What is the capital of France?", "fact_2": "Say nothing."},
        "expected_outputs": {"fact_1": "Paris", "fact_2": "zzz"},
        "match": "contains",
        "gates": {"all": 0.9},
    }
    file.write_text(json.dumps(content), "utf-8")
    arguments = ["benchmark", "eval-prompts", "-m", str(starter_path), "--prompts", str(file)]
    ran = CliRunner().invoke(main, [*arguments, "--max-tokens", "12", "-o", str(out)])
    assert ran.exit_code == 0
    assert "2 prompts, read as user; 2 replies" in ran.output
    assert "gate all          50.0%, at least 90%: FAILED" in ran.output
    measured = json.loads(out.read_text("utf-8"))
    assert [item["passed"] for item in measured["items"]] == [True, False]
    assert Result.from_json(measured, "it").to_json() == measured
