"""Contexts as the harness has them, batched answers as single ones, items that outlive a stop."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx_lm.tokenizer_utils import TokenizerWrapper
from support.models import ARCHITECTURES, tiny_model
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from forty2.benchmark.partial_results import PartialResults, weights
from forty2.benchmark.prompts import Prompts, Shot, pick
from forty2.errors import BenchmarkError
from forty2.inference.generation import (
    Reply,
    Sampling,
    common_prefix_length,
    generate_replies,
    supports_batches,
)
from forty2.model.loading import LoadedModel

SHOTS = (Shot("Q: 1?", "one"), Shot("Q: 2?", "two"))
ROLES = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}</>{% endfor %}"
    "{% if add_generation_prompt %}<assistant>\n{% endif %}"
)


def loaded(
    model: nn.Module | None = None,
    *,
    front: bool = False,
    template: str | None = None,
    length: int = 512,
    ends: Sequence[int] = (),
) -> LoadedModel:
    """A tiny model with a tokenizer of bytes: ids 0 and 1 are <s> and </s>."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {"<s>": 0, "</s>": 1, **{byte: i for i, byte in enumerate(alphabet, 2)}}
    bytewise = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    bytewise.add_special_tokens(["<s>", "</s>"])
    bytewise.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bytewise.decoder = decoders.ByteLevel()
    if front:
        bytewise.post_processor = processors.TemplateProcessing(
            single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 1)]
        )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bytewise, bos_token="<s>", eos_token="</s>", chat_template=template
    )
    return LoadedModel(
        model if model is not None else tiny_model(),
        TokenizerWrapper(tokenizer, eos_token_ids=list(ends)),
        {"max_position_embeddings": length},
        Path("nowhere"),
        "tiny",
    )


def said(one: LoadedModel, prompts: Sequence[list[int]], **options: Any) -> list[Reply]:
    """Answers in the prompts' order."""
    return [answer for _, answer in sorted(generate_replies(one, prompts, **options))]


# --- contexts ---


def test_a_plain_context_is_description_examples_and_question() -> None:
    prompts = Prompts(loaded())
    assert prompts.context("Q: 3?") == "Q: 3?"
    assert (
        prompts.context("Q: 3?", SHOTS, description="Sums.\n\n")
        == "Sums.\n\nQ: 1? one\n\nQ: 2? two\n\nQ: 3?"
    )
    assert prompts.context("Q: 3?", begun="It is") == "Q: 3? It is"
    assert prompts.context("Q: 3?\n", begun="It is") == "Q: 3?\nIt is"
    assert prompts.context("Q: 3?", begun="\nIt is") == "Q: 3?\nIt is"


def test_a_chat_has_examples_as_turns_or_in_the_users_one() -> None:
    turns = Prompts(loaded(template=ROLES), chat=True)
    assert turns.context("Q: 3?", SHOTS, description="Sums.\n\n") == (
        "<system>Sums.\n\n</><user>Q: 1?</><assistant>one</><user>Q: 2?</><assistant>two</>"
        "<user>Q: 3?</><assistant>\n"
    )
    one = Prompts(loaded(template=ROLES), chat=True, multiturn=False)
    assert one.context("Q: 3?", SHOTS, description="Sums.\n\n") == (
        "<system>Sums.\n\n</><user>Q: 1? one\n\nQ: 2? two\n\nQ: 3?</><assistant>\n"
    )
    assert turns.context("Q: 3?", begun="It is\n") == "<user>Q: 3?</><assistant>It is\n"


def test_a_template_without_system_turns_loses_the_description() -> None:
    refuses = (
        "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}" + ROLES
    )
    prompts = Prompts(loaded(template=refuses), chat=True)
    assert prompts.context("Q?", description="Sums.") == "<user>Q?</><assistant>\n"
    never = Prompts(loaded(template="{{ raise_exception('no chat') }}"), chat=True)
    with pytest.raises(BenchmarkError, match="refuses the prompt: no chat"):
        never.context("Q?")


def test_no_chat_template_is_an_error() -> None:
    with pytest.raises(BenchmarkError, match="tiny: the tokenizer has no chat template"):
        Prompts(loaded(), chat=True)


def test_a_bos_is_in_front_once_and_no_eos_behind() -> None:
    bare, framed = Prompts(loaded()), Prompts(loaded(front=True))
    plain = bare.ids("hi")
    assert len(plain) == 2
    assert framed.ids("hi") == [0, *plain]
    assert framed.ids("<s>hi") == [0, *plain]


def test_a_long_prompt_loses_its_left_end() -> None:
    prompts = Prompts(loaded(length=10))
    assert prompts.prompt("abcdefgh", 4) == prompts.ids("cdefgh")
    with pytest.raises(BenchmarkError, match="10 tokens of answer do not fit into a context of 10"):
        prompts.prompt("abc", 10)


def test_a_continuation_is_what_the_whole_has_beyond_the_context() -> None:
    prompts = Prompts(loaded(front=True))
    (row,) = prompts.rows("Q?\nA:", ["B"])
    assert (row.given, row.scored) == (prompts.ids("Q?\nA:"), prompts.ids(" B")[1:])
    chat = Prompts(loaded(template=ROLES), chat=True)
    (row,) = chat.rows("<assistant>\n", ["B"])  # the white space moves over, and none is added
    assert (row.given, row.scored) == (chat.ids("<assistant>"), chat.ids("\nB"))


# --- answers ---


def slow_answer(model: nn.Module, prompt: Sequence[int], tokens: int) -> list[int]:
    """Greedy, one prompt alone, everything computed anew for each token."""
    ids = list(prompt)
    for _ in range(tokens):
        ids.append(cast(int, mx.argmax(cast(Any, model)(mx.array([ids]))[0, -1]).item()))
    return ids[len(prompt) :]


@pytest.mark.parametrize("shared", [0, 20])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_batched_answers_are_those_of_each_prompt_alone(architecture: str, shared: int) -> None:
    model = tiny_model(architecture)
    rng = np.random.default_rng(0)
    start = rng.integers(2, 258, shared).tolist()
    prompts = [start + rng.integers(2, 258, length).tolist() for length in (3, 17, 1, 9, 9, 30, 2)]
    prompts.append(prompts[1])
    one = loaded(model)
    expected = [slow_answer(model, prompt, 8) for prompt in prompts]
    for batch_size in (3, 8):
        got = said(one, prompts, max_tokens=8, batch_size=batch_size)
        for answer, ids in zip(got, expected, strict=True):
            length = ids.index(1) if 1 in ids else 8
            assert answer.tokens == length
            assert answer.text == one.tokenizer.decode(ids[:length], skip_special_tokens=True)
            assert answer.stopped == (1 in ids)


def test_models_that_take_no_batches_are_found_out() -> None:
    """mlx-lm's gemma2 takes a mask for each of two rows for one of each of two heads, silently."""
    assert not supports_batches(tiny_model("gemma2"))
    assert supports_batches(tiny_model("sliding"))


def test_the_starter_answers_a_batch_as_it_answers_one_by_one(starter: LoadedModel) -> None:
    prompts = Prompts(starter, chat=True)
    asked = (
        "What is the capital of France?",
        "Say yes.",
        "Write one sentence about the sea, another about the moon, and a third about both.",
    )
    ids = [prompts.prompt(prompts.context(text), 12) for text in asked]
    assert common_prefix_length(ids) > 8 and len({len(row) for row in ids}) == 3
    batched = said(starter, ids, max_tokens=12)
    assert batched == [said(starter, [row], max_tokens=12)[0] for row in ids]
    assert "Paris" in batched[0].text and batched[0].stopped
    assert not batched[2].stopped and batched[2].tokens == 12


class Alphabet:
    """Says the letter after the last one."""

    layers = (None,)

    def __call__(self, ids: mx.array, cache: Any = None) -> mx.array:
        if cache is not None:
            nothing = mx.zeros((ids.shape[0], 1, ids.shape[1], 1))
            cache[0].update_and_fetch(nothing, nothing)
        return 9.0 * (mx.arange(300) == ids[..., None] + 1)


@pytest.mark.parametrize(
    ("stop", "text", "tokens", "stopped"),
    [
        ([], "bcdefghi", 8, False),
        (["never", "fg"], "bcde", 6, True),
        (["g", "de"], "bc", 4, True),
        (["hi"], "bcdefg", 8, True),  # with the last token there was room for
        (["ij"], "bcdefghi", 8, False),
        (["ab", "a"], "bcdefghi", 8, False),  # in the prompt only
        (["b"], "", 1, True),
    ],
)
def test_an_answer_is_cut_at_its_first_stop_string(
    stop: list[str], text: str, tokens: int, stopped: bool
) -> None:
    one = loaded(cast(Any, Alphabet()))
    prompt = Prompts(one).ids("a")
    assert said(one, [prompt], max_tokens=8, stop=stop) == [Reply(text, tokens, stopped)]


def test_an_end_token_ends_an_answer_and_is_not_in_it() -> None:
    end = Prompts(loaded()).ids("f")
    one = loaded(cast(Any, Alphabet()), ends=end)
    prompts = [Prompts(one).ids(text) for text in ("a", "xyc", "e", "g")]
    assert said(one, prompts, max_tokens=4) == [
        Reply("bcde", 4, False),
        Reply("de", 2, True),
        Reply("", 0, True),
        Reply("hijk", 4, False),
    ]


def test_sampled_answers_depend_on_their_seed_alone() -> None:
    one = loaded()
    prompts = [list(range(40, 50))] * 4 + [list(range(90, 120))] * 2
    options: dict[str, Any] = {"max_tokens": 16, "sampling": Sampling(1.0, 0.9)}
    seeds = [1, 2, 3, 1, 4, 5]
    first = said(one, prompts, seeds=seeds, **options)
    assert first == said(one, prompts, seeds=seeds, batch_size=2, **options)
    assert first[2:3] == said(one, prompts[2:3], seeds=seeds[2:3], **options)
    assert first[0] == first[3]
    assert len({answer.text for answer in first}) == 5


def test_draws_follow_temperature_then_nucleus() -> None:
    """At temperature 0.5, odds of 1 : 2 : 4 become 1 : 4 : 16: the nucleus of 0.9 drops the first.

    Before the temperature it would have kept it: 6 of 7 are less than 0.9.
    """
    from forty2.inference.generation import _Draw

    logprobs = mx.log(mx.array([[1 / 7, 2 / 7, 4 / 7]]))
    draw = _Draw(Sampling(0.5, 0.9), seed=3)
    drawn = [cast(int, draw(logprobs).item()) for _ in range(400)]
    assert set(drawn) == {1, 2}
    assert drawn.count(2) / 400 == pytest.approx(16 / 20, abs=0.06)


def test_what_prompts_have_in_common_runs_once() -> None:
    model, seen = tiny_model(), []

    class Counting:
        layers = model.layers

        def __call__(self, ids: mx.array, cache: Any = None) -> mx.array:
            seen.append(ids.size)
            return cast(mx.array, model(ids, cache=cache))

    start = list(range(30, 130))
    one = replace(loaded(), model=cast(Any, Counting()))
    said(one, [[*start, 4, 5], [*start, 6, 7], [*start, 8, 9]], max_tokens=2)
    assert seen.count(100) == 1 and sum(seen) < 150
    seen.clear()
    said(one, [start] * 3, max_tokens=2, sampling=Sampling(1.0), seeds=[1, 2, 3])
    assert seen.count(99) == 1 and sum(seen) < 150


def test_progress_and_no_prompts() -> None:
    told: list[tuple[str, int, int]] = []
    list(
        generate_replies(
            loaded(),
            [[5, 6], [7]],
            max_tokens=2,
            stage="here",
            progress=lambda stage, done, total, info: told.append((stage, done, total)),
        )
    )
    assert told == [("here", 1, 2), ("here", 2, 2)]
    assert said(loaded(), []) == []


def test_a_broken_model_is_an_error() -> None:
    model = tiny_model()
    model.update({"model": {"norm": {"weight": mx.full((32,), float("nan"))}}})
    with pytest.raises(BenchmarkError, match="prompt 1: the model's scores are not finite"):
        said(loaded(model), [[5, 6]], max_tokens=2)


# --- which questions ---


def test_questions_are_picked_seeded_and_in_order() -> None:
    assert pick(4, n=None, limit=None, seed=1) == [0, 1, 2, 3]
    assert pick(9, n=None, limit=3, seed=1) == [0, 1, 2]
    assert pick(2, n=None, limit=30, seed=1) == [0, 1]
    drawn = pick(100, n=10, limit=None, seed=1)
    assert drawn == sorted(set(drawn)) == pick(100, n=10, limit=None, seed=1)
    assert drawn != pick(100, n=10, limit=None, seed=2)
    assert max(pick(100, n=10, limit=12, seed=1)) < 12
    for n, limit in ((1, None), (101, None), (None, 1), (5, 4)):
        with pytest.raises(BenchmarkError, match="cannot ask"):
            pick(100, n=n, limit=limit, seed=1)


# --- items on disk ---


def test_a_stopped_measurement_goes_on(tmp_path: Path) -> None:
    out, settings = tmp_path / "deep" / "out.json", {"shots": 5, "weights": [["a", 1]]}
    part = out.with_name("out.json.part")
    with PartialResults.open(out, settings, resume=False) as kept:
        kept.add("1", {"right": True, "text": "ä"})
        kept.add("2", {"right": False})
        with pytest.raises(BenchmarkError, match="another process is writing it"):
            PartialResults.open(out, settings, resume=True)
    with part.open("ab") as file:  # a third item was being written when it stopped
        file.write(b'["3", {"ri')
    with pytest.raises(BenchmarkError, match="2 items of a measurement that stopped; go on with"):
        PartialResults.open(out, settings, resume=False)
    with pytest.raises(BenchmarkError, match=r"another shots \(5, now 0\)"):
        PartialResults.open(out, {**settings, "shots": 0}, resume=True)
    with PartialResults.open(out, settings, resume=True) as kept:
        assert "2" in kept and "3" not in kept
        assert kept["1"] == {"right": True, "text": "ä"}
        kept.add("3", {"right": True})
        keys = [json.loads(line)[0] for line in part.read_text().splitlines()[1:]]
        assert keys == ["1", "2", "3"]
        kept.finish({"acc": 1.0})
    assert json.loads(out.read_text()) == {"acc": 1.0}
    assert list(out.parent.iterdir()) == [out]


def test_a_measurement_that_kept_nothing_just_starts(tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    with PartialResults.open(out, {"n": 1}, resume=False):
        pass
    with PartialResults.open(out, {"n": 2}, resume=False) as kept:
        kept.add("1", {})
        assert "1" in kept and "2" not in kept


def test_without_a_file_nothing_is_kept(tmp_path: Path) -> None:
    with PartialResults.open(None, {}, resume=False) as kept:
        kept.add("1", {"a": 1})
        kept.finish({})
        assert kept["1"] == {"a": 1}


def test_places_that_cannot_be_written_are_one_line(tmp_path: Path) -> None:
    with pytest.raises(BenchmarkError, match="is a folder"):
        PartialResults.open(tmp_path, {}, resume=False)
    (tmp_path / "file").touch()
    with pytest.raises(BenchmarkError, match="cannot be written"):
        PartialResults.open(tmp_path / "file" / "out.json", {}, resume=False)
    (tmp_path / "out.json.part").write_text("rubbish\n[]\n")
    with pytest.raises(BenchmarkError, match=r"damaged .*; remove it"):
        PartialResults.open(tmp_path / "out.json", {}, resume=True)


def test_other_weights_are_told_apart(tmp_path: Path) -> None:
    one = replace(loaded(), path=tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"1")
    before = weights(one, None)
    (tmp_path / "model.safetensors").write_bytes(b"12")
    assert weights(one, None) != before
    assert before[0][:2] == ["model.safetensors", 1]
