"""Replies in a batch are those of each prompt alone, and end where they should."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from support.family_tokenizers import KINDS, tokenizer_of
from support.models import ARCHITECTURES, tiny_model
from support.models import tiny_loaded as loaded
from support.small_run import make_inputs
from support.template_families import Chatml

from forty2.errors import BenchmarkError
from forty2.inference.generation import (
    Reply,
    Sampling,
    _Ending,
    common_prefix_length,
    generate,
    generate_replies,
    stream_reply,
    supports_batches,
)
from forty2.model.adapter import attach_adapter, save_adapter
from forty2.model.loading import LoadedModel, load
from forty2.recipe.schema import Adapter


def said(one: LoadedModel, prompts: Sequence[list[int]], **options: Any) -> list[Reply]:
    """Answers in the prompts' order."""
    return [answer for _, answer in sorted(generate_replies(one, prompts, **options))]


def encode(one: LoadedModel, text: str) -> list[int]:
    return list(one.tokenizer.encode(text, add_special_tokens=False))


def slow_answer(model: nn.Module, prompt: Sequence[int], tokens: int) -> list[int]:
    """Greedy, one prompt alone, everything computed anew for each token."""
    ids = list(prompt)
    for _ in range(tokens):
        ids.append(cast(int, mx.argmax(model(mx.array([ids]))[0, -1]).item()))
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
    asked = (
        "What is the capital of France?",
        "Say yes.",
        "Write one sentence about the sea, another about the moon, and a third about both.",
    )
    ids = [
        starter.tokenizer.apply_chat_template(
            [{"role": "user", "content": text}], add_generation_prompt=True
        )
        for text in asked
    ]
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
    prompt = encode(one, "a")
    assert said(one, [prompt], max_tokens=8, stop=stop) == [Reply(text, tokens, stopped)]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("text", ["    return x\n", " user", "The answer is 20", "\n\n x", "é"])
def test_a_reply_keeps_the_space_it_begins_with(kind: str, text: str) -> None:
    """SentencePiece tokenizers drop a space at the beginning of what they decode."""
    tokenizer = tokenizer_of(Chatml(), kind)
    # as the model writes it: behind the prompt's header
    before = tokenizer.encode("<|im_start|>assistant\n", add_special_tokens=False)
    whole = tokenizer.encode(f"<|im_start|>assistant\n{text}", add_special_tokens=False)
    assume = whole[: len(before)] == before
    ids = whole[len(before) :] if assume else tokenizer.encode(text, add_special_tokens=False)
    assert _Ending(tokenizer, ["STOP"]).cut([*ids]) == (text, False) or not assume


def test_an_end_token_ends_an_answer_and_is_not_in_it() -> None:
    end = encode(loaded(), "f")
    one = loaded(cast(Any, Alphabet()), ends=end)
    prompts = [encode(one, text) for text in ("a", "xyc", "e", "g")]
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
    from forty2.inference.generation import _Sampler

    logprobs = mx.log(mx.array([[1 / 7, 2 / 7, 4 / 7]]))
    draw = _Sampler(Sampling(0.5, 0.9), seed=3)
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
    calls: list[tuple[str, int, int]] = []
    list(
        generate_replies(
            loaded(),
            [[5, 6], [7]],
            max_tokens=2,
            progress=lambda stage, done, total, info: calls.append((stage, done, total)),
        )
    )
    assert calls == [("answers", 1, 2), ("answers", 2, 2)]
    assert said(loaded(), []) == []


def test_a_broken_model_is_an_error() -> None:
    model = tiny_model()
    model.update({"model": {"norm": {"weight": mx.full((32,), float("nan"))}}})
    with pytest.raises(BenchmarkError, match="prompt 1: the model's scores are not finite"):
        said(loaded(model), [[5, 6]], max_tokens=2)


def test_a_streamed_reply_is_the_batched_one() -> None:
    one, prompt = loaded(), list(range(40, 50))
    pieces = stream_reply(one, prompt, max_tokens=8, temperature=0.0, seed=1)
    assert "".join(pieces) == said(one, [prompt], max_tokens=8)[0].text


def test_a_prompt_and_a_list_are_answered_alike_and_in_order(tmp_path: Path) -> None:
    model = make_inputs(tmp_path / "in") / "model"
    short: Any = {"max_tokens": 6, "temperature": 1.0}
    one = generate(model, "One?", system="Be brief.", seed=3, **short)
    assert str(one) == one.text and one.tokens <= 6
    turns = [("system", "Be brief."), ("user", "One?")]
    messages = [{"role": role, "content": content} for role, content in turns]
    found = generate(model, [messages, "A much longer question?", "Two?"], seed=3, **short)
    assert found[0] == one and len(found) == 3
    assert generate(model, ["Two?"], seed=5, **short) == found[2:]
    assert generate(model, []) == []


def test_texts_get_the_system_message_that_the_run_trained_with(tmp_path: Path) -> None:
    model, folder = make_inputs(tmp_path / "in") / "model", tmp_path / "phase1_sft"
    folder.mkdir()
    one = load(str(model))
    attach_adapter(one.model, Adapter(rank=2, layers=1), seed=0)
    save_adapter(one.model, Adapter(rank=2, layers=1), folder)
    options: Any = {"adapter": folder, "max_tokens": 6}
    plain = generate(model, "One?", **options)
    briefly = generate(model, "One?", system="Be brief.", **options)
    assert plain != briefly == generate(model, ["One?"], system="Be brief.", **options)[0]
    (folder / "phase.json").write_text('{"system": "Be brief."}')
    assert generate(model, "One?", **options) == briefly
    assert generate(model, "One?", system="", **options) == plain
    conversation = [{"role": "user", "content": "One?"}]
    assert generate(model, [conversation], **options) == [plain]
