"""Against other people's code, on the starter model. `make parity` installs it and runs these."""

from __future__ import annotations

import ast
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import mlx.core as mx
import numpy as np
import pytest
import yaml
from mlx.utils import tree_flatten
from support.benchmarks import figures_of, records_of

from forty2.benchmark.compare import compare
from forty2.benchmark.harness_form import forms_of, lines_of
from forty2.benchmark.harness_samples import read_samples
from forty2.benchmark.mmlu_subjects import GROUPS
from forty2.benchmark.prompts import Prompts
from forty2.benchmark.results import Result
from forty2.benchmark.sandbox import Outcome
from forty2.benchmark.tasks.gsm8k import METRICS, STOP, Gsm8k, Problem
from forty2.benchmark.tasks.gsm8k import judged as judge_gsm8k
from forty2.benchmark.tasks.gsm8k import load_problems as load_gsm8k
from forty2.benchmark.tasks.humaneval import STOP as HUMANEVAL_STOP
from forty2.benchmark.tasks.humaneval import HumanEval, Problems
from forty2.benchmark.tasks.humaneval import load_problems as load_humaneval
from forty2.benchmark.tasks.mmlu import Mmlu, load_subjects
from forty2.benchmark.tasks.mmlu import score as score_mmlu
from forty2.benchmark.tasks.truthfulqa import score
from forty2.benchmark.truthfulqa_questions import load_questions, sample
from forty2.export.fusing import fuse
from forty2.inference.generation import Reply
from forty2.model.adapter import attach_adapter, save_adapter
from forty2.model.loading import LoadedModel, load
from forty2.recipe.schema import Adapter

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]

HARNESS = """task: local_{kind}
dataset_path: json
dataset_kwargs: {{data_files: {{validation: {data}}}}}
output_type: multiple_choice
validation_split: validation
num_fewshot: 0
doc_to_text: "{{{{primer + '\\n\\nQ: ' + question + '\\nA:'}}}}"
doc_to_target: 0
doc_to_choice: "{{{{{kind}_targets.choices}}}}"
metric_list: [{{metric: acc, aggregation: mean, higher_is_better: true}}]
metadata: {{version: 1.0}}
"""


@pytest.mark.parametrize("chat, n", [(False, 16), (True, 6)])
def test_the_harness_scores_every_option_as_we_do(
    chat: bool, n: int, starter: LoadedModel, bench_data: Path, tmp_path: Path
) -> None:
    """Its prompt comes from its own task file; our data goes through its local-task door."""
    lm_eval = pytest.importorskip("lm_eval", reason="make parity installs lm-evaluation-harness")
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    source = bench_data / "truthfulqa" / "mc_task_v0_817.json"
    questions = sample(load_questions(str(source)), n, seed=7)
    asked = [item.question for item in questions.items]
    raw = {row["question"]: row for row in json.loads(source.read_text("utf-8"))}
    primer = _primer(Path(lm_eval.__file__).parent)
    data = tmp_path / "rows.jsonl"
    with data.open("w") as file:
        for question in asked:
            row: dict[str, Any] = {"question": question, "primer": primer}
            for kind in ("mc1_targets", "mc2_targets"):
                row[kind] = {"choices": list(raw[question][kind])}
            file.write(json.dumps(row) + "\n")
    for kind in ("mc1", "mc2"):
        task = HARNESS.format(kind=kind, data=data)
        (tmp_path / f"{kind}.yaml").write_text(task)
    model = HFLM(pretrained=starter.name, dtype="float32", device="cpu", batch_size=8)
    result = lm_eval.simple_evaluate(
        model,
        tasks=["local_mc1", "local_mc2"],
        task_manager=TaskManager(include_path=str(tmp_path)),
        apply_chat_template=chat,
        bootstrap_iters=0,
    )
    ours = score(starter.model, starter.tokenizer, questions, chat_template=chat)
    for kind in ("mc1", "mc2"):
        for sampled in result["samples"][f"local_{kind}"]:
            item = ours[asked.index(sampled["doc"]["question"])]
            theirs = [response[0] for response in sampled["filtered_resps"]]
            mine = item[kind]["loglik"]
            np.testing.assert_allclose(mine, theirs, atol=1e-3)
            assert np.argmax(mine) == np.argmax(theirs)


def _primer(package: Path) -> str:
    """The six questions before each, as the harness renders them."""
    import jinja2
    import yaml

    class Loader(yaml.SafeLoader):
        pass

    Loader.add_multi_constructor("!", lambda *_: None)
    file = package / "tasks" / "truthfulqa" / "truthfulqa_mc1.yaml"
    prompt = yaml.load(file.read_text("utf-8"), Loader)["doc_to_text"]
    text = jinja2.Template(prompt).render(question="<<question>>")
    primer, _, rest = text.partition("\n\nQ: <<question>>")
    assert rest == "\nA:"
    return str(primer)


def test_a_fused_model_is_the_same_in_transformers(starter: LoadedModel, tmp_path: Path) -> None:
    torch = pytest.importorskip("torch", reason="make parity installs torch")
    from transformers import AutoModelForCausalLM, AutoTokenizer

    adapted = load(starter.name)
    spec = Adapter(rank=4, scale=2.0, dropout=0.0, layers=4, keys=None)
    attach_adapter(adapted.model, spec, seed=1)
    mx.random.seed(3)
    trained = tree_flatten(adapted.model.trainable_parameters())
    moved = [(name, mx.random.normal(value.shape) * 0.02) for name, value in trained]
    adapted.model.load_weights(moved, strict=False)
    (tmp_path / "adapter").mkdir()
    save_adapter(adapted.model, spec, tmp_path / "adapter")
    fused = fuse(starter.name, tmp_path / "adapter", tmp_path / "fused").path
    text = "The northern lights are caused by particles from the sun."
    tokenizer = AutoTokenizer.from_pretrained(fused)
    ids = tokenizer(text)["input_ids"]
    assert ids == adapted.tokenizer.encode(text)
    model = AutoModelForCausalLM.from_pretrained(fused, dtype=torch.float32)
    with torch.no_grad():
        theirs = model(torch.tensor([ids])).logits[0].numpy()
    mine = np.asarray(adapted.model(mx.array([ids])).astype(mx.float32))[0]
    bare = np.asarray(starter.model(mx.array([ids])).astype(mx.float32))[0]
    assert np.abs(mine - bare).max() > 0.5  # the adapter does something
    np.testing.assert_allclose(theirs, mine, atol=0.05)  # weights are stored in 16 bits


# --- mmlu, gsm8k, humaneval: the harness's own task files, on our data ---


def harness(
    folder: Path, tasks: Sequence[str], model: LoadedModel, *, chat: bool, multiturn: bool = True
) -> Any:
    """Evaluate the tasks that are defined in a folder."""
    lm_eval = pytest.importorskip("lm_eval", reason="make parity installs lm-evaluation-harness")
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    return lm_eval.simple_evaluate(
        HFLM(pretrained=str(model.path), dtype="float32", device="cpu", batch_size=4),
        tasks=list(tasks),
        task_manager=TaskManager(include_path=str(folder)),
        apply_chat_template=chat,
        fewshot_as_multiturn=chat and multiturn,
        confirm_run_unsafe_code=True,
    )


def task_files() -> Path:
    """The folder of the harness's tasks."""
    lm_eval = pytest.importorskip("lm_eval", reason="make parity installs lm-evaluation-harness")
    return Path(lm_eval.__file__).parent / "tasks"


def json_lines(file: Path, rows: Iterable[Mapping[str, Any]]) -> Path:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return file


def define(file: Path, settings: Mapping[str, Any]) -> None:
    """Write a task file; JSON is YAML."""
    file.write_text(json.dumps(settings), "utf-8")


MMLU_SUBJECTS = ("anatomy", "global_facts", "moral_disputes", "econometrics", "virology")


@pytest.mark.parametrize(
    ("shots", "chat", "multiturn"),
    [(0, False, True), (5, False, True), (0, True, True), (2, True, True), (2, True, False)],
)
def test_the_harness_scores_mmlu_as_we_do(
    shots: int, chat: bool, multiturn: bool, starter: LoadedModel, bench_data: Path, tmp_path: Path
) -> None:
    subjects = load_subjects(bench_data / "mmlu", MMLU_SUBJECTS, shots=shots)
    # the shortest of each: long ones only take long
    asked = [
        replace(
            subject,
            questions=tuple(
                sorted(
                    sorted(subject.questions, key=lambda q: len(q.asked()))[:size],
                    key=lambda q: q.number,
                )
            ),
        )
        for subject, size in zip(subjects, (3, 2, 3, 4, 2), strict=True)
    ]
    for subject in asked:
        every = load_subjects(bench_data / "mmlu" / "dev" / f"{subject.name}_dev.csv", shots=0)
        files = {
            split: str(
                json_lines(
                    tmp_path / f"{subject.name}_{split}.jsonl",
                    ({"question": q.text, "choices": q.choices, "answer": q.answer} for q in rows),
                )
            )
            for split, rows in (("test", subject.questions), ("dev", every[0].questions))
        }
        define(
            tmp_path / f"{subject.name}.yaml",
            {
                "include": str(task_files() / "mmlu" / "default" / f"mmlu_{subject.name}.yaml"),
                "task": f"local_{subject.name}",
                "tag": f"local_{_group(subject.name)}_tasks",
                "dataset_path": "json",
                "dataset_name": None,
                "dataset_kwargs": {"data_files": files},
                "num_fewshot": shots,
            },
        )
    groups = sorted({_group(subject.name) for subject in asked})
    weighted = {"aggregate_metric_list": [{"metric": "acc", "weight_by_size": True}]}
    for group in groups:
        inside = {"group": f"local_{group}", "task": [f"local_{group}_tasks"]}
        define(tmp_path / f"_{group}.yaml", {**inside, **weighted})
    all_groups = {"group": "local_mmlu", "task": [f"local_{group}" for group in groups]}
    define(tmp_path / "_mmlu.yaml", {**all_groups, **weighted})
    theirs = harness(tmp_path, ["local_mmlu"], starter, chat=chat, multiturn=multiturn)
    prompts = Prompts(starter, chat=chat, multiturn=multiturn)
    items = score_mmlu(starter, prompts, asked)
    worst = 0.0
    for subject in asked:
        ours = [item for item in items if item["subject"] == subject.name]
        samples = sorted(theirs["samples"][f"local_{subject.name}"], key=lambda s: s["doc_id"])
        for question, item, sampled in zip(subject.questions, ours, samples, strict=True):
            context = prompts.context(
                question.asked(), subject.shots, description=subject.description
            )
            assert sampled["arguments"][0][0] == context
            scores = [response[0] for response in sampled["filtered_resps"]]
            worst = max(worst, np.abs(np.subtract(item["logps"], scores)).max())
            assert item["choice"] == np.argmax(scores)
            assert item["right"] == (sampled["acc"] == 1.0)
    print(
        f"mmlu, {shots} shots, chat {chat}, multiturn {multiturn}: largest difference {worst:.1e}"
    )
    assert worst < 1e-3
    measured = figures_of(Mmlu, items)
    figures = {
        "local_mmlu": measured,
        **{f"local_{name}": part for name, part in measured["groups"].items()},
        **{f"local_{name}": part for name, part in measured["subjects"].items()},
    }
    for name, part in figures.items():
        figure = theirs["groups" if name in theirs["groups"] else "results"][name]
        assert part["acc"] == pytest.approx(figure["acc,none"])
        assert part["stderr"] == pytest.approx(figure["acc_stderr,none"])


def _group(subject: str) -> str:
    return next(group for group, names in GROUPS.items() if subject in names)


def test_the_harness_groups_mmlu_as_we_do() -> None:
    found: dict[str, set[str]] = {}
    for file in (task_files() / "mmlu" / "default").glob("mmlu_*.yaml"):
        settings = yaml.safe_load(file.read_text("utf-8"))
        group = settings["tag"].removeprefix("mmlu_").removesuffix("_tasks")
        found.setdefault(group, set()).add(settings["dataset_name"])
    assert found == {group: set(names) for group, names in GROUPS.items()}
    assert sum(map(len, found.values())) == 57


@pytest.mark.parametrize(("shots", "chat"), [(5, False), (2, True)])
def test_the_harness_answers_gsm8k_as_we_do(
    shots: int, chat: bool, starter: LoadedModel, bench_data: Path, tmp_path: Path
) -> None:
    """The first problems, so that both draw the same examples; answers of at most 96 tokens."""
    problems = load_gsm8k(bench_data / "gsm8k", shots=shots)
    places, length = range(5), 96
    rows = [json.loads(line) for line in (bench_data / "gsm8k" / "test.jsonl").open()][
        : len(places)
    ]
    files = {
        "test": str(json_lines(tmp_path / "test.jsonl", rows)),
        "train": str(bench_data / "gsm8k" / "train.jsonl"),
    }
    file = task_files() / "gsm8k" / "gsm8k.yaml"
    settings = {**yaml.safe_load(file.read_text("utf-8"))["generation_kwargs"]}
    define(
        tmp_path / "gsm8k.yaml",
        {
            "include": str(file),
            "task": "local_gsm8k",
            "tag": [],
            "dataset_path": "json",
            "dataset_name": None,
            "dataset_kwargs": {"data_files": files},
            "num_fewshot": shots,
            "generation_kwargs": {**settings, "max_gen_toks": length},
        },
    )
    theirs = harness(tmp_path, ["local_gsm8k"], starter, chat=chat)
    prompts = Prompts(starter, chat=chat)
    task = Gsm8k(data="", chat_template=chat, max_tokens=length)
    items = records_of(task, starter, problems.only(places))
    same = set()
    for sampled in theirs["samples"]["local_gsm8k"]:
        place = sampled["doc_id"]
        item, problem = items[place], problems.items[place]
        assert sampled["arguments"][0][0] == prompts.context(problem.asked(), problems.shots[place])
        assert tuple(sampled["arguments"][0][1]["until"])[: len(STOP)] == STOP
        key, metric = {
            "strict-match": ("strict", "strict_match"),
            "flexible-extract": ("flexible", "flexible_extract"),
        }[sampled["filter"]]
        reply = sampled["resps"][0][0]
        # what is found in their reply, and whether it is right, is for every reply as they have it
        judged = judge_gsm8k(problem, Reply(reply, 0, True))
        assert judged[key] == sampled["filtered_resps"][0]
        assert judged[metric] == bool(sampled["exact_match"])
        if reply == item["reply"]:
            same.add(place)
    print(f"gsm8k, {shots} shots, chat {chat}: {len(same)} of {len(places)} replies equal")
    assert same == set(places)
    measured = figures_of(Gsm8k, items)
    figure = theirs["results"]["local_gsm8k"]
    for metric, filtered in zip(METRICS, ("strict-match", "flexible-extract"), strict=True):
        assert measured[metric] == pytest.approx(figure[f"exact_match,{filtered}"])
        assert measured["stderr"][metric] == pytest.approx(figure[f"exact_match_stderr,{filtered}"])


def test_the_harness_finds_answers_in_odd_replies_as_we_do() -> None:
    """Its own filters and metric, on replies that no small model happens to write."""
    pytest.importorskip("lm_eval", reason="make parity installs lm-evaluation-harness")
    from lm_eval.api.metrics import exact_match_hf_evaluate
    from lm_eval.filters.extraction import RegexFilter

    settings = yaml.safe_load((task_files() / "gsm8k" / "gsm8k.yaml").read_text("utf-8"))
    (metric,) = settings["metric_list"]
    ignored = {
        key: metric[key] for key in ("regexes_to_ignore", "ignore_case", "ignore_punctuation")
    }
    filters = [
        RegexFilter(**_without(each["filter"][0], "function")) for each in settings["filter_list"]
    ]
    problem = Problem("?", "So <<1000+18=1018>>1018.\n#### 1,018", 1)
    replies = (
        "",
        "none",
        "#### 1,018",
        "#### 1018.",
        "#### $1018",
        "####1018",
        "#### -1018 #### 1018",
        "It is $1,018.",
        "1,018 dollars, or 7 each...",
        "-1018",
        "7",
        "a. b, c.",
        "1018.00",
        "#### .",
        "1018\n#### 5\nQ",
        "x" * 40 + "#### 1018" + " 3",
        "1 018",
        "£1018",
        "1.018,-",
    )
    for reply in replies:
        judged = judge_gsm8k(problem, Reply(reply, 0, True))
        for key, name, found in zip(("strict", "flexible"), METRICS, filters, strict=True):
            ((theirs,),) = found.apply([[reply]], [])
            assert judged[key] == theirs, reply
            right = exact_match_hf_evaluate([theirs], [problem.answer], **ignored)["exact_match"]
            assert judged[name] == bool(right), reply


def _without(mapping: Mapping[str, Any], *keys: str) -> dict[str, Any]:
    return {key: value for key, value in mapping.items() if key not in keys}


@pytest.mark.parametrize("chat", [False, True])
@pytest.mark.parametrize("instruct", [False, True])
def test_the_harness_answers_humaneval_as_we_do(
    instruct: bool, chat: bool, starter: LoadedModel, bench_data: Path, tmp_path: Path
) -> None:
    """Prompts, replies of at most 64 tokens, and the programs made of them."""
    problems = load_humaneval(bench_data / "humaneval").items
    some = [problems[place] for place in (23, 53, 13)]
    length = 64
    name = "humaneval_instruct" if instruct else "humaneval"
    folder = task_files() / "humaneval"
    theirs = _humaneval_settings(folder, name)
    rows = [
        {"task_id": p.task_id, "prompt": p.prompt, "test": p.test, "entry_point": p.entry_point}
        for p in some
    ]
    data = json_lines(tmp_path / "humaneval.jsonl", rows)
    # its utils.py fetches a metric from the hub when imported: only what makes programs is taken
    tree = ast.parse((folder / "utils.py").read_text("utf-8"))
    functions = [node for node in tree.body if isinstance(node, ast.FunctionDef)]
    makers = [ast.unparse(node) for node in functions if node.name.startswith("build")]
    counted = "def counted(references, predictions, **_):\n    return {'runs': len(predictions)}"
    (tmp_path / "local.py").write_text("\n".join([*makers, counted]), "utf-8")
    maker = theirs["filter_list"][0]["filter"][0]["filter_fn"].removeprefix("utils.")
    settings = _without(theirs, "include", "filter_list", "metric_list", "dataset_path")
    settings["generation_kwargs"] = {**settings["generation_kwargs"], "max_gen_toks": length}
    text = json.dumps(
        {
            **settings,
            "task": "local_humaneval",
            "dataset_path": "json",
            "dataset_kwargs": {"data_files": {"test": str(data)}},
        }
    )
    (tmp_path / "humaneval.yaml").write_text(
        text[:-1]
        + ', "metric_list": [{metric: !function local.counted, aggregation: mean,'
        + " higher_is_better: true}],"
        + ' "filter_list": [{name: create_test, filter: [{function: custom,'
        + f" filter_fn: !function local.{maker}}}]}}]}}",
        "utf-8",
    )
    samples = harness(tmp_path, ["local_humaneval"], starter, chat=chat)["samples"]
    prompts = Prompts(starter, chat=chat)
    run: list[str] = []

    def record(program: str) -> Outcome:
        run.append(program)
        return Outcome(False, "not run")

    task = HumanEval(data="", instruct=instruct, chat_template=chat, max_tokens=length, run=record)
    items = records_of(task, starter, Problems(tuple(some), ""))
    for sampled in samples["local_humaneval"]:
        problem, item = some[sampled["doc_id"]], items[sampled["doc_id"]]
        assert sampled["arguments"][0][0] == problem.context(prompts, instruct=instruct)
        assert tuple(sampled["arguments"][0][1]["until"])[: len(HUMANEVAL_STOP)] == HUMANEVAL_STOP
        assert item["samples"][0]["reply"] == sampled["resps"][0][0]
        ((program,),) = sampled["filtered_resps"]
        assert f"{program}\n{sampled['target']}" in run


def _humaneval_settings(folder: Path, name: str) -> dict[str, Any]:
    """A task file with what it includes; functions as their names."""

    class Loader(yaml.SafeLoader):
        pass

    Loader.add_constructor(
        "!function", lambda loader, node: loader.construct_scalar(cast(Any, node))
    )
    settings: dict[str, Any] = yaml.load((folder / f"{name}.yaml").read_text("utf-8"), Loader)
    if "include" in settings:
        base = _humaneval_settings(folder, settings["include"].removesuffix(".yaml"))
        settings = {**base, **settings}
    return settings


# --- what the harness writes, and what we write in its form ---


def test_samples_that_the_harness_writes_are_read_with_its_means(tmp_path: Path) -> None:
    lm_eval = pytest.importorskip("lm_eval", reason="make parity installs lm-evaluation-harness")
    from lm_eval.loggers import EvaluationTracker
    from lm_eval.models.dummy import DummyLM
    from lm_eval.result_schema import SampleResult
    from lm_eval.tasks import TaskManager

    class Counting(DummyLM):  # type: ignore[misc]
        def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
            return [f"#### {place % 4 + 1}" for place, _ in enumerate(requests)]

    docs = [
        {"question": f"{n} plus 1?", "answer": f"So it is {n + 1}.\n#### {n + 1}"}
        for n in range(12)
    ]
    data = str(json_lines(tmp_path / "sums.jsonl", docs))
    define(
        tmp_path / "sums.yaml",
        {
            "include": str(task_files() / "gsm8k" / "gsm8k.yaml"),
            "task": "gsm8k",
            "dataset_path": "json",
            "dataset_name": None,
            "dataset_kwargs": {"data_files": {"test": data, "train": data}},
            "num_fewshot": 2,
        },
    )
    tracker = EvaluationTracker(output_path=str(tmp_path / "out"))
    tracker.general_config_tracker.log_experiment_args(
        model_source="dummy",
        model_args="pretrained=tiny",
        system_instruction=None,
        chat_template=None,
        fewshot_as_multiturn=False,
    )
    found = lm_eval.simple_evaluate(
        Counting(),
        tasks=["gsm8k"],
        task_manager=TaskManager(include_path=str(tmp_path), include_defaults=False),
        log_samples=True,
        bootstrap_iters=0,
    )
    logged = found.pop("samples")
    tracker.save_results_aggregated(results=found, samples=logged)
    tracker.save_results_samples(task_name="gsm8k", samples=logged["gsm8k"])
    task = read_samples(tmp_path / "out").tasks["gsm8k"]
    assert len(task.items) == 12 and task.settings["n-shot"] == 2
    for name in ("exact_match,strict-match", "exact_match,flexible-extract"):
        mean = np.mean([item.scores[name] for item in task.items])
        assert 0 < mean == pytest.approx(found["results"]["gsm8k"][name])

    records = [
        judge_gsm8k(Problem(doc["question"], doc["answer"], n), Reply("It is 3.", 4, True))
        for n, doc in enumerate(docs, 1)
    ]
    items = Gsm8k.items(records)
    ours = Result(
        benchmark="gsm8k", model="m", adapter=None, seed=1, data="sums", data_sha256=None, versions={},
        settings={"shots": 2}, figures=Gsm8k.figures(items), items=items,
    )  # fmt: skip
    line = next(iter(lines_of(forms_of(ours)["gsm8k"])))
    assert {*line} == SampleResult.__required_keys__ | {"exact_match"}
    change = compare(read_samples(tmp_path / "out"), ours).metrics["exact_match,strict-match"]
    assert change.n == 12
