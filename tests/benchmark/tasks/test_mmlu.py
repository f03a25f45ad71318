"""MMLU: prompts by hand, scores as a plain forward gives them, means as the harness weights them."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from click.testing import CliRunner
from mlx_lm.models import lfm2, mamba
from mlx_lm.tokenizer_utils import TokenizerWrapper
from support.benchmarks import figures_of
from support.models import ARCHITECTURES, save_tiny, tiny_model
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from forty2.benchmark import scoring
from forty2.benchmark.mmlu_subjects import GROUPS
from forty2.benchmark.prompts import Prompts, Shot, context_length, examples_sha256
from forty2.benchmark.runner import run
from forty2.benchmark.tasks.mmlu import (
    COLUMNS,
    LETTERS,
    Mmlu,
    Question,
    Subject,
    load_subjects,
    sample,
    score,
)
from forty2.cli import main
from forty2.errors import BenchmarkError
from forty2.inference.generation import supports_batches
from forty2.model.kv_cache import keeps_plain_keys
from forty2.model.loading import LoadedModel

ROLES = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}</>{% endfor %}"
    "{% if add_generation_prompt %}<assistant>\n{% endif %}"
)


def loaded(
    model: nn.Module | None = None, *, merges: Sequence[str] = (), length: int = 4096
) -> LoadedModel:
    """A tiny model with a tokenizer of bytes, some of them merged."""
    pairs = [(merge[0], merge[-1]) for merge in merges]
    vocabulary = sorted(pre_tokenizers.ByteLevel.alphabet()) + [f"{a}{b}" for a, b in pairs]
    bytewise = Tokenizer(
        models.BPE(vocab={token: i for i, token in enumerate(vocabulary, 2)}, merges=pairs)
    )
    bytewise.add_special_tokens(["</s>"])
    bytewise.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bytewise.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bytewise, eos_token="</s>", chat_template=ROLES
    )
    return LoadedModel(
        model if model is not None else tiny_model(),
        TokenizerWrapper(tokenizer),
        {"max_position_embeddings": length},
        Path("nowhere"),
        "tiny",
    )


def question(text: str = "Which?", answer: int = 0, number: int = 1) -> Question:
    return Question(text, ("one", "2", "three ", "f,our"), answer, number, f"here.csv:{number}")


SUBJECT = Subject(
    "moral_disputes",
    (question(" Is it? ", 3, 1), question("And this, too?", 1, 2), question("So?", 0, 3)),
    (question("Before?", 2).shot(),),
    "0" * 64,
)


def plain(one: LoadedModel, ids: Sequence[int]) -> Any:
    """Log-probabilities of what follows each id: one unpadded row, log-softmax in float64."""
    output = cast(Any, one.model)(mx.array([list(ids)]))[0].astype(mx.float32)
    logits = np.array(output, np.float64)
    logits -= logits.max(axis=-1, keepdims=True)
    return logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))


def check(one: LoadedModel, subject: Subject, *, chat: bool = False, tolerance: float) -> None:
    prompts = Prompts(one, chat=chat)
    for asked, item in zip(subject.questions, score(one, prompts, [subject]), strict=True):
        context = prompts.context(asked.asked(), subject.shots, description=subject.description)
        rows = prompts.rows(context, LETTERS)
        room = prompts.length + 1
        whole = [[*row.given, *row.scored][-room:] for row in rows]
        passes = {ids: plain(one, ids) for ids in {tuple(ids[:-1]) for ids in whole}}
        expected = [
            math.fsum(
                passes[tuple(ids[:-1])][at - 1, ids[at]]
                for at in range(len(ids) - len(row.scored), len(ids))
            )
            for row, ids in zip(rows, whole, strict=True)
        ]
        assert item["logps"] == pytest.approx(expected, abs=tolerance)
        assert item["choice"] == int(np.argmax(expected))
        assert item["answer"] == asked.answer
        assert item["right"] == (item["choice"] == asked.answer)
        assert (item["subject"], item["number"]) == (subject.name, asked.number)


# --- prompts ---


def test_a_prompt_is_description_examples_and_question() -> None:
    context = Prompts(loaded()).context(
        SUBJECT.questions[0].asked(), SUBJECT.shots, description=SUBJECT.description
    )
    assert context == (
        "The following are multiple choice questions (with answers) about moral disputes.\n\n"
        "Before?\nA. one\nB. 2\nC. three \nD. f,our\nAnswer: C\n\n"
        "Is it?\nA. one\nB. 2\nC. three \nD. f,our\nAnswer:"
    )


# --- scores ---


@pytest.mark.parametrize("chat", [False, True])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_scores_are_those_of_a_plain_forward(architecture: str, chat: bool) -> None:
    check(loaded(tiny_model(architecture)), SUBJECT, chat=chat, tolerance=1e-4)


@pytest.mark.parametrize("merges", [["Ġ A"], ["Ġ A", "Ġ B", "Ġ C", "Ġ D"], ["Ġ A", "Ġ B"]])
def test_letters_of_one_token_or_more_are_scored_alike(merges: list[str]) -> None:
    """Without merges, and with all, one pass is enough; with some, letters are continuations."""
    check(loaded(merges=merges), SUBJECT, tolerance=1e-4)


def recurrent() -> Any:
    """Takes neither a shared beginning nor rows of unequal length."""
    mx.random.seed(0)
    return mamba.Model(
        mamba.ModelArgs(
            model_type="mamba",
            vocab_size=300,
            hidden_size=32,
            intermediate_size=64,
            state_size=8,
            num_hidden_layers=2,
            conv_kernel=4,
            use_bias=False,
            use_conv_bias=True,
            time_step_rank=2,
        )
    )


def hybrid() -> Any:
    """Takes rows of unequal length, with mlx-lm's cache alone."""
    mx.random.seed(0)
    return lfm2.Model(
        lfm2.ModelArgs(
            model_type="lfm2",
            vocab_size=300,
            hidden_size=32,
            num_hidden_layers=3,
            block_dim=32,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=4096,
            norm_eps=1e-5,
            conv_bias=False,
            conv_L_cache=3,
            block_ff_dim=64,
            block_multiple_of=8,
            block_ffn_dim_multiplier=1.0,
            block_auto_adjust_ff_dim=False,
            full_attn_idxs=[1],
        )
    )


@pytest.mark.parametrize("merges", [[], ["Ġ A", "Ġ B", "Ġ C", "Ġ D"]])
@pytest.mark.parametrize(("make", "batched"), [(recurrent, False), (hybrid, True)])
def test_models_without_plain_keys_are_scored_too(
    make: Callable[[], Any], batched: bool, merges: list[str]
) -> None:
    model = make()
    model.eval()
    assert not keeps_plain_keys(model) and supports_batches(model) == batched
    check(loaded(model, merges=merges), SUBJECT, tolerance=1e-4)


def test_a_long_prompt_loses_its_left_end() -> None:
    length = len(Prompts(loaded()).ids(SUBJECT.questions[0].asked()))
    for room in (length, 200):
        check(loaded(length=room), SUBJECT, tolerance=1e-4)


def test_batches_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    one = loaded()
    expected = score(one, Prompts(one), [SUBJECT])
    for name in ("BATCH_TOKENS", "CACHE_TOKENS"):
        with monkeypatch.context() as patch:
            patch.setattr(scoring, name, 1)
            for item, other in zip(score(one, Prompts(one), [SUBJECT]), expected, strict=True):
                assert item["logps"] == pytest.approx(other["logps"], abs=1e-5)


def test_examples_run_once_and_a_question_is_one_pass() -> None:
    model, seen = tiny_model(), []

    class Counting:
        layers, parameters = model.layers, model.parameters

        def __call__(self, ids: mx.array, cache: Any = None) -> mx.array:
            seen.append(ids.shape)
            return cast(mx.array, model(ids, cache=cache))

    one = loaded(cast(Any, Counting()), merges=["Ġ A", "Ġ B", "Ġ C", "Ġ D"])
    prompts = Prompts(one)
    score(one, prompts, [SUBJECT])
    lengths = [len(prompts.ids(asked.asked())) for asked in SUBJECT.questions]
    examples = len(prompts.ids(prompts.context("", SUBJECT.shots, description=SUBJECT.description)))
    tries = ((1, 1), (2, 3), (4, 2), (4, 5))  # what the model allows
    ours = [shape for shape in seen if shape not in tries]
    assert ours == [(1, examples), (3, max(lengths))]


def test_other_examples_are_another_measurement() -> None:
    one, other = (Shot("Q\nAnswer:", letter) for letter in "AB")
    assert examples_sha256([]) is examples_sha256([(), ()]) is None
    assert examples_sha256([(one,)]) == examples_sha256([(one,)]) != examples_sha256([(other,)])


def test_the_context_is_what_transformers_fills_in() -> None:
    """Of Gemma 3 the published configuration names no length of its text model."""
    sparse = replace(loaded(), config={"model_type": "gemma3", "text_config": {"hidden_size": 64}})
    assert context_length(sparse) == 131072
    unknown = replace(loaded(), config={"model_type": "nobody", "n_ctx": 512})
    assert context_length(unknown) == 512
    silent = replace(loaded(), config={"model_type": "nobody"})
    silent.tokenizer.model_max_length = 3000
    assert context_length(silent) == 3000


def test_a_broken_model_is_an_error_that_names_the_line() -> None:
    model = tiny_model()
    model.update({"model": {"norm": {"weight": mx.full((32,), float("nan"))}}})
    one = loaded(model)
    with pytest.raises(BenchmarkError, match=r"here\.csv:\d: a letter scores .*nan"):
        score(one, Prompts(one), [SUBJECT])


@pytest.mark.parametrize("chat", [False, True])
def test_the_starter_scores_as_a_plain_forward(
    chat: bool, starter: LoadedModel, bench_data: Path
) -> None:
    (subject,) = load_subjects(bench_data / "mmlu", ["global_facts"], shots=0 if chat else 1)
    shortest = sorted(subject.questions, key=lambda asked: len(asked.text))
    few = replace(subject, questions=tuple(shortest[:2]))
    check(starter, few, chat=chat, tolerance=2e-4)


# --- what the scores amount to ---


def scored(**subjects: str) -> list[dict[str, Any]]:
    """Items by subject, + right and - wrong."""
    return [
        {
            "subject": name,
            "right": mark == "+",
            "answer": 0,
            "logps": [0.0, -1.0, -2.0, -3.0] if mark == "+" else [-1.0, 0.0, -2.0, -3.0],
        }
        for name, marks in subjects.items()
        for mark in marks
    ]


def test_means_are_weighted_by_size_and_variances_pooled() -> None:
    """anatomy 3 of 4, virology 1 of 2: 4 of 6.

    Variances within: 4 values of mean 3/4 have a sum of squares of 3/4, 2 of mean 1/2 have 1/2;
    pooled (3/4 + 1/2) / (6 - 2) = 5/16, and the standard error √(5/16 / 6).
    """
    measured = figures_of(Mmlu, scored(anatomy="++-+", virology="-+"))
    assert measured["acc"] == pytest.approx(4 / 6)
    assert measured["stderr"] == pytest.approx(math.sqrt(5 / 16 / 6))
    assert measured["n"] == 6
    assert measured["groups"] == {
        "stem": measured["subjects"]["anatomy"],
        "other": measured["subjects"]["virology"],
    }
    anatomy = measured["subjects"]["anatomy"]
    assert anatomy["acc"] == 0.75 and anatomy["n"] == 4
    assert anatomy["stderr"] == pytest.approx(math.sqrt(0.75 / 3 / 4))


def test_a_subject_with_one_question_tells_no_variance() -> None:
    """The four questions are then one sample of mean 3/4: √(3/4 / 3 / 4)."""
    measured = figures_of(Mmlu, scored(anatomy="+-", virology="+", ours="+"))
    assert measured["subjects"]["virology"] == {"acc": 1.0, "stderr": None, "n": 1}
    assert measured["acc"] == 0.75
    assert measured["stderr"] == pytest.approx(0.25)
    assert "ours" in measured["subjects"] and set(measured["groups"]) == {"stem", "other"}
    assert figures_of(Mmlu, scored(anatomy="+"))["stderr"] is None


# --- questions ---


ROW = dict(zip(COLUMNS, ("Is it {1, 2}?", "yes", "no", '{"a": 1}', "", "1"), strict=True))


def write(folder: Path, name: str, rows: Sequence[dict[str, str]]) -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


def data(folder: Path, **sizes: int) -> Path:
    """MMLU's folder, with a few questions of each subject and two examples."""
    for name, size in sizes.items():
        rows = [ROW | {"question": f"{name} {n}?", "answer": str(n % 4)} for n in range(size)]
        write(folder, f"test/{name}_test.csv", rows)
        write(folder, f"dev/{name}_dev.csv", rows[:2])
    return folder


def test_the_published_files_are_read(bench_data: Path) -> None:
    subjects = load_subjects(bench_data / "mmlu")
    sizes = {subject.name: len(subject.questions) for subject in subjects}
    assert len(sizes) == 57 and sum(sizes.values()) == 14042
    by_group = {group: sum(sizes[name] for name in names) for group, names in GROUPS.items()}
    assert by_group == {"stem": 3153, "humanities": 4705, "social_sciences": 3077, "other": 3107}
    assert all(len(subject.shots) == 5 for subject in subjects)
    (algebra,) = load_subjects(bench_data / "mmlu" / "test" / "abstract_algebra_test.csv", shots=2)
    assert algebra == replace(subjects[0], shots=subjects[0].shots[:2])
    assert algebra.questions[1].origin.endswith("abstract_algebra_test.csv:3")


def test_subjects_are_named_singly_or_by_group(bench_data: Path) -> None:
    named = load_subjects(bench_data / "mmlu", ["other", "anatomy", "virology"], shots=0)
    assert [subject.name for subject in named] == sorted({*GROUPS["other"], "anatomy"})


def test_a_sample_is_spread_over_subjects_by_size(tmp_path: Path) -> None:
    """10 of 12 + 6 + 2: 6, 3, 1. 7 of them: 4.2, 2.1, 0.7, and the 0.7 rounds up."""
    subjects = load_subjects(data(tmp_path, a=12, b=6, c=2), shots=0)
    for n, sizes in ((10, [6, 3, 1]), (7, [4, 2, 1]), (20, [12, 6, 2]), (1, [1])):
        drawn = sample(subjects, n, 0)
        assert [len(subject.questions) for subject in drawn] == sizes
        assert drawn == sample(subjects, n, 0)
        for subject in drawn:
            numbers = [asked.number for asked in subject.questions]
            assert numbers == sorted(set(numbers))
    assert sample(subjects, 7, 0) != sample(subjects, 7, 1)
    for n in (0, 21):
        with pytest.raises(BenchmarkError, match=f"cannot sample {n} of 20"):
            sample(subjects, n, 0)


def test_malformed_files_are_one_line_with_file_and_line(tmp_path: Path) -> None:
    def fails(message: str, source: Path, **options: Any) -> None:
        with pytest.raises(BenchmarkError, match=message) as caught:
            load_subjects(source, **options)
        assert "\n" not in str(caught.value) and str(tmp_path) in str(caught.value)

    folder = data(tmp_path / "good", anatomy=3)
    test = folder / "test" / "anatomy_test.csv"
    fails("no questions of astronomy, cooking", folder, names=["astronomy", "anatomy", "cooking"])
    fails(r"anatomy_dev\.csv: holds 2 examples, not 5", folder)
    fails(r"no test/\*\.csv; give MMLU's folder", tmp_path)
    fails("none.csv: cannot be read: No such file", tmp_path / "none.csv", shots=0)
    (folder / "dev" / "anatomy_dev.csv").unlink()
    fails(r"anatomy_dev\.csv: cannot be read", folder, shots=1)
    assert len(load_subjects(folder, shots=0)[0].questions) == 3
    old = {"answer": "A", "question": "?"}
    fails(r"x\.csv:1: wrong columns, choice0, choice1", write(tmp_path, "x.csv", [old]), shots=0)
    wrong = [ROW, ROW | {"question": "over\ntwo lines", "answer": "A"}]
    fails(r"x\.csv:3: the answer is 'A'", write(tmp_path, "x.csv", wrong), shots=0)
    wrong = [ROW | {"question": "over\ntwo lines"}, ROW | {"question": " "}]
    fails(r"x\.csv:4: the question is empty", write(tmp_path, "x.csv", wrong), shots=0)
    for line in ("a,b,c,d,e", "a,b,c,d,e,1,2"):
        test.write_text(",".join(COLUMNS) + f"\n{line}\n")
        fails(r"anatomy_test\.csv:2: has another number of cells", folder, shots=0)
    test.write_text(",".join(COLUMNS) + "\n")
    fails(r"anatomy_test\.csv: holds no questions", folder, shots=0)
    test.write_bytes(b"")
    fails(r"anatomy_test\.csv:1: wrong columns", folder, shots=0)
    test.write_bytes(b"\xff\xfe")
    fails(r"anatomy_test\.csv: not readable as CSV", folder, shots=0)


def test_cells_are_taken_as_they_are(tmp_path: Path) -> None:
    (subject,) = load_subjects(write(tmp_path, "ours.csv", [ROW]), shots=0)
    assert subject.questions[0].text == "Is it {1, 2}?"
    assert subject.questions[0].choices == ("yes", "no", '{"a": 1}', "")


# --- the front door ---


def test_a_measurement_that_stopped_goes_on_to_the_same_result(tmp_path: Path) -> None:
    folder, out = data(tmp_path / "mmlu", anatomy=2, virology=3), tmp_path / "out.json"
    task, model = Mmlu(data=folder, shots=1), save_tiny(tmp_path / "model")
    whole = run(task, str(model), out=tmp_path / "whole.json").to_json()
    assert json.loads((tmp_path / "whole.json").read_text()) == whole
    assert (whole["n"], whole["shots"], whole["chat_template"]) == (5, 1, False)
    assert [item["number"] for item in whole["items"]] == [1, 2, 1, 2, 3]

    def stop(stage: str, done: int, total: int, info: Any) -> None:
        told.append((stage, done, total))
        if done == 2 and not resumed:
            raise KeyboardInterrupt

    told: list[tuple[str, int, int]] = []
    resumed = False
    with pytest.raises(KeyboardInterrupt):
        run(task, str(model), out=out, progress=stop)
    assert not out.exists() and told == [("mmlu", 2, 5)]
    resumed = True
    assert run(task, str(model), out=out, resume=True, progress=stop).to_json() == whole
    assert told[1:] == [("mmlu", 5, 5)]
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "mmlu",
        "model",
        "out.json",
        "whole.json",
    ]


def test_the_command(tmp_path: Path) -> None:
    folder, out = data(tmp_path / "mmlu", anatomy=2, virology=3), tmp_path / "out.json"

    def command(*arguments: str) -> Any:
        base = ["benchmark", "mmlu", "-m", "smollm2", "-d", str(folder), *arguments]
        return CliRunner().invoke(main, base)

    done = command("--shots", "0", "--chat", "-s", "virology", "--n", "2", "-o", str(out))
    assert done.exit_code == 0, done.output
    measured = json.loads(out.read_text())
    assert [item["subject"] for item in measured["items"]] == ["virology"] * 2
    assert measured["chat_template"] and measured["data"] == str(folder)
    figures = f"{measured['acc']:.4f} ± {measured['stderr']:.4f}"
    assert f"MMLU{'':<32}{figures}       2 questions" in done.output
    for wrong, message in ((["--resume"], "--resume needs"), (["-s", "x"], "no questions of x")):
        failed = command("--shots", "1", *wrong)
        assert failed.exit_code == 2 and message in failed.output
