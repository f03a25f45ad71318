"""TruthfulQA: scores as a plain forward gives them, and what they amount to."""

from __future__ import annotations

import json
import os
import random
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import forty2  # first: it loads a fast BLAS before mlx

# isort: split
import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.utils import tree_map
from mlx_lm.models import llama, phi3, qwen2
from support.benchmarks import figures_of, result_of
from support.models import save_tiny
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from forty2.benchmark import scoring
from forty2.benchmark.metrics import METRICS, item_metrics
from forty2.benchmark.partial_results import weights
from forty2.benchmark.results import Result
from forty2.benchmark.tasks import truthfulqa as benchmark
from forty2.benchmark.tasks.truthfulqa import PRIMER, TruthfulQA, score
from forty2.benchmark.truthfulqa_questions import (
    Options,
    Question,
    Questions,
    load_questions,
    sample,
)
from forty2.errors import BenchmarkError
from forty2.model.kv_cache import keeps_plain_keys
from forty2.model.loading import LoadedModel
from forty2.progress import silent

DATA = Path(
    os.environ.get("FORTY2_BENCH_DATA") or Path(forty2.__file__).parents[2] / "shared" / "data"
)
V0 = DATA / "truthfulqa" / "mc_task_v0_817.json"
needs_data = pytest.mark.skipif(
    not V0.exists(), reason=f"no TruthfulQA under {DATA}; set FORTY2_BENCH_DATA"
)


# --- tiny models and tokenizers ---


def tokenizer(
    vocabulary: int = 400, *, front: str = "", behind: str = "", split: bool = True
) -> PreTrainedTokenizerFast:
    """A byte-level BPE trained on the primer. Without `split`, merges may cross words."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=split)
    made.decoder = decoders.ByteLevel()
    made.train_from_iterator(
        [PRIMER] * 3,
        trainers.BpeTrainer(
            vocab_size=vocabulary,
            special_tokens=["<s>", "</s>"],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    if front or behind:
        made.post_processor = processors.TemplateProcessing(
            single=f"{front} $A {behind}".strip(), special_tokens=[("<s>", 0), ("</s>", 1)]
        )
    return PreTrainedTokenizerFast(tokenizer_object=made, bos_token="<s>", eos_token="</s>")


SIZES = {
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "intermediate_size": 48,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-5,
    "vocab_size": 500,
}
ARCHITECTURES = {"llama": llama, "qwen2": qwen2, "phi3": phi3}


def tiny(name: str = "llama", seed: int = 0, **fields: Any) -> nn.Module:
    """A random model whose weights are large enough for its predictions to differ."""
    mx.random.seed(seed)
    module = ARCHITECTURES[name]
    model: nn.Module = module.Model(module.ModelArgs(model_type=name, **{**SIZES, **fields}))
    model.update(tree_map(lambda w: w + 0.2 * mx.random.normal(w.shape), model.parameters()))
    model.eval()
    return model


class Constant:
    """Every next token is as likely as any other, or nothing is a number."""

    def __init__(self, value: float = 0.0) -> None:
        self.value = value

    def __call__(self, ids: mx.array, cache: Any = None) -> mx.array:
        return mx.full((*ids.shape, 500), self.value)

    def make_cache(self) -> list[object]:
        return [object()]  # nothing that could be shared


def made(*items: Question) -> Questions:
    return Questions(items, "0" * 64, "ours", None)


ITEMS = made(
    Question(
        "Is the sky green?",
        "Colours",
        Options(("No.", "Yes, it is green.", "Only on Sundays."), (1, 0, 0)),
        Options(("No.", "It is blue.", "Yes, it is green.", "Only on Sundays."), (1, 1, 0, 0)),
    ),
    Question(
        "1992: where were the Olympics held?",
        "Sport",
        Options(("In Rome.", "In Barcelona, Spain."), (0, 1)),
        Options(("In Paris.", "Barcelona.", "Nowhere."), (0, 1, 0)),
    ),
    Question(
        "Do telescopes use lenses?",
        "Sport",
        Options(("They use tea.", "Telescopes use lenses or mirrors.", "Never."), (0, 1, 0)),
        Options(("They use tea.", "Telescopes use lenses or mirrors.", "Never."), (0, 1, 0)),
    ),
)


def plain(model: nn.Module, front: list[int], context: list[int], whole: list[int]) -> float:
    """Log-probability of `whole` beyond `context`: one unpadded row, log-softmax in float64."""
    border = next(
        (i for i, (a, b) in enumerate(zip(context, whole, strict=False)) if a != b), len(context)
    )
    ids = [*front, *whole]
    logits = np.array(model(mx.array([ids[:-1]]))[0].astype(mx.float32), np.float64)
    logits -= logits.max(axis=-1, keepdims=True)
    logps = logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
    start = len(front) + border
    return float(sum(logps[at - 1, ids[at]] for at in range(start, len(ids))))


def check(
    model: nn.Module, tok: Any, asked: Questions, front: list[int], tolerance: float = 1e-4
) -> None:
    items = score(model, tok, asked)
    for item, scored in zip(asked.items, items, strict=True):
        context = f"{PRIMER}Q: {item.question}\nA:"
        ids = tok.encode(context, add_special_tokens=False)
        expected = {
            choice: plain(
                model, front, ids, tok.encode(f"{context} {choice}", add_special_tokens=False)
            )
            for choice in {*item.mc1.choices, *item.mc2.choices}
        }
        for options, part in ((item.mc1, scored["mc1"]), (item.mc2, scored["mc2"])):
            assert part["labels"] == list(options.labels)
            assert part["loglik"] == pytest.approx(
                [expected[choice] for choice in options.choices], abs=tolerance
            ), item.question


# --- scores ---


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_scores_equal_a_plain_forward(name: str) -> None:
    model = tiny(name)
    assert keeps_plain_keys(model)
    check(model, tokenizer(), ITEMS, front=[])


def test_scores_equal_a_plain_forward_with_a_sliding_window() -> None:
    layers = ["sliding_attention", "full_attention", "sliding_attention"]
    check(tiny(layer_types=layers, sliding_window=24), tokenizer(), ITEMS, front=[])


@pytest.mark.parametrize("behind", ["", "</s>"])
def test_a_bos_stays_in_front_and_no_eos_is_scored(behind: str) -> None:
    check(tiny(), tokenizer(front="<s>", behind=behind), ITEMS, front=[0])


def test_merges_across_the_border_are_scored_from_where_ids_differ() -> None:
    tok = tokenizer(500, split=False)
    item = Question(
        "What is the square root of banana?",
        "Fruit",
        Options(("I have no comment.", "Human life.", "He belonged."), (1, 0, 0)),
        Options(("I have no comment.", "Human life.", "He belonged."), (1, 0, 0)),
    )
    context = f"{PRIMER}Q: {item.question}\nA:"
    alone, whole = tok.encode(context), tok.encode(f"{context} {item.mc1.choices[0]}")
    assert whole[: len(alone)] != alone, "this tokenizer was meant to merge across the border"
    check(tiny(), tok, made(item, *ITEMS.items), front=[])


def test_a_question_that_merges_with_the_primer_is_scored_right() -> None:
    """Its context does not begin with the ids that all others share."""
    tok = tokenizer(500, split=False)
    item = replace(ITEMS.items[0], question="Which party did he belong to?")
    check(tiny(), tok, made(item, *ITEMS.items), front=[])


def test_shared_and_whole_rows_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    model, tok = tiny(), tokenizer()
    shared = score(model, tok, ITEMS)
    monkeypatch.setattr(scoring, "keeps_plain_keys", lambda _: False)
    whole = score(model, tok, ITEMS)
    for one, other in zip(shared, whole, strict=True):
        for part in ("mc1", "mc2"):
            assert one[part]["loglik"] == pytest.approx(other[part]["loglik"], abs=1e-4)


@pytest.mark.parametrize("share", [True, False])
def test_fewer_questions_at_once_change_nothing(
    share: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, tok = tiny(), tokenizer()
    expected = score(model, tok, ITEMS)
    monkeypatch.setattr(scoring, "keeps_plain_keys", lambda _: share)
    monkeypatch.setattr(benchmark, "BATCH_QUESTIONS", 1)
    for one, other in zip(score(model, tok, ITEMS), expected, strict=True):
        assert one["mc2"]["loglik"] == pytest.approx(other["mc2"]["loglik"], abs=1e-4)


def test_an_option_in_both_lists_is_scored_once_and_the_same() -> None:
    item = score(tiny(), tokenizer(), ITEMS)[0]
    assert item["mc1"]["loglik"][0] == item["mc2"]["loglik"][0]
    assert item["mc1"]["loglik"][1:] == item["mc2"]["loglik"][2:]


def test_the_primer_runs_once() -> None:
    """The primer, then all questions at once, then their options in fewer runs than questions."""
    model, seen = tiny(), []

    class Counting:
        layers, parameters = model.layers, model.parameters

        def __call__(self, ids: mx.array, cache: Any = None) -> mx.array:
            seen.append(ids.size)
            return model(ids, cache=cache)  # type: ignore[no-any-return]

    tok = tokenizer()
    score(cast(Any, Counting()), tok, ITEMS)
    primer = len(tok.encode(PRIMER))
    at = next(n for n, size in enumerate(seen) if size > primer / 2)
    assert max(seen[at + 1 :]) < primer
    assert len(seen[at:]) < 2 + len(ITEMS.items)  # before it, what the model allows is tried


def test_a_chat_template_takes_the_context_as_one_user_turn() -> None:
    model, tok = tiny(), tokenizer(front="<s>")
    tok.chat_template = (
        "{% for m in messages %}<s>{{ m.role }}\n{{ m.content }}</s>\n{% endfor %}"
        "{% if add_generation_prompt %}<s>assistant\n{% endif %}"
    )
    items = score(model, tok, ITEMS, chat_template=True)
    item = ITEMS.items[0]
    context = f"<s>user\n{PRIMER}Q: {item.question}\nA:</s>\n<s>assistant"
    ids, whole = (
        tok.encode(text, add_special_tokens=False)
        for text in (context, f"{context}\n{item.mc1.choices[1]}")
    )
    assert items[0]["mc1"]["loglik"][1] == pytest.approx(plain(model, [], ids, whole), abs=1e-4)


def test_a_template_without_a_bos_leaves_it_to_the_tokenizer() -> None:
    model, tok = tiny(), tokenizer(front="<s>")
    tok.chat_template = "{% for m in messages %}{{ m.content }}\n{% endfor %}Reply:"
    items = score(model, tok, ITEMS, chat_template=True)
    item = ITEMS.items[0]
    context = f"{PRIMER}Q: {item.question}\nA:\nReply:"
    ids, whole = (
        tok.encode(text, add_special_tokens=False)
        for text in (context, f"{context}{item.mc1.choices[1]}")
    )
    expected = plain(model, [0], ids, whole)
    assert items[0]["mc1"]["loglik"][1] == pytest.approx(expected, abs=1e-4)
    tok.chat_template = "{{ raise_exception('no') }}"
    with pytest.raises(BenchmarkError, match="the chat template refuses the prompt: no"):
        score(model, tok, ITEMS, chat_template=True)


def test_without_a_chat_template_asking_for_it_is_an_error() -> None:
    with pytest.raises(BenchmarkError, match="no chat template"):
        score(tiny(), tokenizer(), ITEMS, chat_template=True)


def test_a_constant_model_gets_nothing_right() -> None:
    """With equally long options all scores tie; argmax would call the first, true one chosen."""
    options = Options(("aaaa", "bbbb", "cccc"), (1, 0, 0))
    asked = made(*(Question(f"{n}?", "c", options, options) for n in range(4)))
    records = score(cast(Any, Constant()), tokenizer(260), asked)
    measured = figures_of(TruthfulQA, records)
    assert (measured["mc1"], measured["mc3"]) == (0.0, 0.0)
    assert measured["mc2"] == pytest.approx(1 / 3)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_broken_model_is_an_error_that_names_the_question(value: float) -> None:
    with pytest.raises(BenchmarkError, match=r"Is the sky green\?.*nan"):
        score(cast(Any, Constant(value)), tokenizer(), ITEMS)


def test_shuffling_the_options_changes_no_decision() -> None:
    """The true option comes first in the published files: a scorer must not know."""
    rng = random.Random(0)

    def shuffled(options: Options) -> Options:
        pairs = list(zip(*options, strict=True))
        rng.shuffle(pairs)
        return Options(tuple(c for c, _ in pairs), tuple(label for _, label in pairs))

    mixed = made(*(replace(i, mc1=shuffled(i.mc1), mc2=shuffled(i.mc2)) for i in ITEMS.items))
    assert mixed.items != ITEMS.items
    for seed in range(3):
        model = tiny(seed=seed)
        before, after = (score(model, tokenizer(), asked) for asked in (ITEMS, mixed))
        for one, other in zip(before, after, strict=True):
            assert item_metrics(one) == pytest.approx(item_metrics(other), abs=1e-4)


def test_a_result_holds_what_it_takes_to_believe_it(tmp_path: Path) -> None:
    calls: list[tuple[int, int]] = []
    loaded = LoadedModel(tiny(), tokenizer(), {}, tmp_path, "m")
    measured = result_of(
        TruthfulQA(seed=7),
        loaded,
        ITEMS,
        lambda done, total, _: calls.append((done, total)),
        adapter="a",
    )
    assert calls == [(1, 3), (2, 3), (3, 3)]
    items = measured["items"]
    values = [item_metrics(item) for item in items]
    for name in METRICS:
        each = [value[name] for value in values]
        assert measured[name] == pytest.approx(np.mean(each))
        assert measured["stderr"][name] == pytest.approx(np.std(each, ddof=1) / 3**0.5)
    assert measured["per_category"]["Sport"]["n"] == 2
    assert measured["per_category"]["Sport"]["mc2"] == pytest.approx(
        np.mean([value["mc2"] for value in values[1:]])
    )
    assert (measured["n"], measured["seed"], measured["adapter"]) == (3, 7, "a")
    assert measured["questions_sha256"] == ITEMS.sha256
    assert "mlx" in measured["versions"]
    assert [item["scores"] for item in items] == values
    assert json.loads(json.dumps(measured, allow_nan=False)) == measured
    assert Result.from_json(measured, "it").to_json() == measured


# --- the real thing ---


@needs_data
@pytest.mark.parametrize("n", [1, pytest.param(8, marks=pytest.mark.slow)])
def test_the_starter_model_scores_as_a_plain_forward(n: int) -> None:
    """The first questions of the published file, every option, through the front door's model."""
    from forty2.model.loading import load

    loaded = load("smollm2")
    asked = load_questions(V0)
    first = replace(asked, items=asked.items[:n])
    check(loaded.model, loaded.tokenizer, first, front=[], tolerance=5e-4)


@needs_data
def test_the_front_door(tmp_path: Path) -> None:
    out = tmp_path / "deep" / "result.json"
    told: list[tuple[str, int, int]] = []
    measured = benchmark.truthfulqa(
        "smollm2",
        questions=V0,
        n=3,
        out=out,
        progress=lambda stage, done, total, info: told.append((stage, done, total)),
    ).to_json()
    assert json.loads(out.read_text("utf-8")) == measured
    assert told[-1] == ("truthfulqa", 3, 3)
    assert measured["questions"] == "TruthfulQA v0 (mc_task_v0_817.json)"
    drawn = sample(load_questions(V0), 3, 42)
    assert [item["question"] for item in measured["items"]] == [q.question for q in drawn.items]


def test_the_result_says_how_well_calibrated_the_model_is() -> None:
    found = figures_of(TruthfulQA, score(tiny(), tokenizer(), ITEMS))["calibration"]
    assert sum(bin["n"] for bin in found["bins"]) == len(ITEMS.items)
    assert 0 <= found["ece"] <= 1


def test_a_measurement_that_stopped_goes_on_to_the_same_result(tmp_path: Path) -> None:
    model = save_tiny(tmp_path / "model")

    def measured(name: str, progress: Any, **more: Any) -> dict[str, Any]:
        return benchmark.truthfulqa(
            str(model), questions="probe", n=3, out=tmp_path / name, progress=progress, **more
        ).to_json()

    whole = measured("whole.json", silent)

    def stop(stage: str, done: int, total: int, info: Any) -> None:
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        measured("out.json", stop)
    kept = (tmp_path / "out.json.part").read_bytes().count(b"\n")
    assert kept == 3  # what is measured, and two questions
    with pytest.raises(BenchmarkError, match="2 items of a measurement that stopped"):
        measured("out.json", silent)
    assert measured("out.json", silent, resume=True) == whole
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "out.json", "whole.json"]


def test_what_a_measurement_rests_on_are_an_adapters_settings_too(tmp_path: Path) -> None:
    for name in ("model", "adapter"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "adapters.safetensors").write_bytes(b"")
    (tmp_path / "adapter" / "adapter_config.json").write_text('{"scale": 2}')
    loaded = LoadedModel(cast(Any, None), None, {}, tmp_path / "model", "m")
    before = weights(loaded, tmp_path / "adapter")
    assert weights(loaded, tmp_path / "adapter") == before
    (tmp_path / "adapter" / "adapter_config.json").write_text('{"scale": 20}')
    assert weights(loaded, tmp_path / "adapter") != before
