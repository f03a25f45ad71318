"""Eval prompts, answered greedily and scored: the shares that pass, by bucket."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from forty2.benchmark.eval_prompt_files import ALL, EvalPrompt, EvalPrompts, Form, load_eval_prompts
from forty2.benchmark.prompts import context_length
from forty2.benchmark.replies import Tags, faults_of
from forty2.benchmark.results import Item, Result
from forty2.benchmark.stats import stderr
from forty2.benchmark.task import BATCH_SIZE, Report, Source, Task, as_share, with_error
from forty2.errors import BenchmarkError, DataError
from forty2.files import JsonObject
from forty2.text.encoder import Encoder

if TYPE_CHECKING:  # a result is read without the model wing
    from forty2.benchmark.partial_results import PartialResults
    from forty2.inference.generation import Reply
    from forty2.model.loading import LoadedModel

MAX_TOKENS = 64
_TAGGED = re.compile(r"\s*<[^<>\s]+>")


@dataclass(frozen=True, kw_only=True)
class EvalPromptsTask(Task[EvalPrompts]):
    """Prompts of your own with expected outputs: exact, contained or by pattern."""

    prompts: str | Path
    """The JSON file."""
    max_tokens: int = MAX_TOKENS
    """Longest reply."""
    batch_size: int = BATCH_SIZE
    """Replies generated at a time."""

    name = "eval_prompts"
    data_key = "prompts"
    judged = ("passed",)
    must_agree = ("form", "max_tokens")
    category_key = "bucket"

    def load(self) -> EvalPrompts:
        return load_eval_prompts(self.prompts)

    def source(self, questions: EvalPrompts) -> Source:
        return Source(questions.file, questions.sha256, len(questions.items))

    def question_texts(self, questions: EvalPrompts) -> list[tuple[str, ...]]:
        return [
            (prompt.text, *([] if prompt.match == "regex" else [prompt.expected]))
            for prompt in questions.items
        ]

    def settings(self, questions: EvalPrompts, loaded: LoadedModel) -> JsonObject:
        form = questions.form or _form(questions, Tags(loaded.tokenizer).spelled)
        return {"form": form, "max_tokens": self.max_tokens}

    def notes(self, questions: EvalPrompts, items: Sequence[Item]) -> JsonObject:
        return {"gates": gates_of(items, questions.gates)}

    def score(
        self, loaded: LoadedModel, questions: EvalPrompts, partial: PartialResults, report: Report
    ) -> list[JsonObject]:
        """Answer the prompts greedily, without an effect on training that goes on afterwards.

        Raises:
            BenchmarkError: a prompt does not fit the model, or its scores are not finite.
        """
        from forty2.inference.generation import generate_replies
        from forty2.model.surgery import evaluating

        encoded = Asked(loaded, questions, self.max_tokens)
        with evaluating(loaded.model, restore_random=True):
            replies = dict(
                generate_replies(
                    loaded,
                    encoded.ids,
                    max_tokens=self.max_tokens,
                    batch_size=self.batch_size,
                    progress=lambda _, done, total, figures: report(done, total, figures),
                )
            )
        records: list[JsonObject] = []
        for n, (prompt, ids) in enumerate(zip(questions.items, encoded.ids, strict=True)):
            turn = encoded.tags.turn(ids, replies[n].ids, stopped=replies[n].stopped)
            # decoded with control tokens: a reply that holds one is not the expected text
            reply = str(loaded.tokenizer.decode(list(replies[n].ids[: turn.length])))
            records.append(
                {
                    "id": prompt.id,
                    "prompt": prompt.text,
                    "expected": prompt.expected,
                    "match": prompt.match,
                    "reply": reply,
                    "passed": prompt.passes(reply),
                    "stopped": replies[n].stopped,
                    "broken": turn.broken,
                    "tags": encoded.emitted(n, replies[n]),
                    "bucket": prompt.bucket,
                }
            )
        return records

    @classmethod
    def figures(cls, items: Sequence[Item]) -> JsonObject:
        """Compute the shares of replies that passed and that ended by themselves; list faults."""
        buckets: dict[str, list[float]] = {}
        for item in items:
            buckets.setdefault(str(item.category), []).append(item.scores["passed"])
        passed = [item.scores["passed"] for item in items]
        records = [item.record for item in items]
        return {
            "n": len(items),
            "passed": _share(passed),
            "stderr": stderr(passed) if len(passed) > 1 else None,
            "buckets": {
                name: {"n": len(values), "passed": _share(values)}
                for name, values in buckets.items()
            },
            "stop_rate": _share([float(record["stopped"]) for record in records]),
            "distinct": len({record["reply"] for record in records}),
            "faults": [one for part in faults_of(records) for one in part],
        }

    @classmethod
    def scores(cls, record: JsonObject) -> dict[str, float]:
        passed = as_share(record["passed"])
        return {"passed": passed, f"passed: {record['bucket']}": passed}

    @classmethod
    def identify(cls, record: JsonObject) -> tuple[str, object]:
        return record["id"], record["prompt"]

    @classmethod
    def stored_means(cls, figures: JsonObject) -> dict[str, float]:
        buckets = {f"passed: {name}": part["passed"] for name, part in figures["buckets"].items()}
        return {"passed": figures["passed"], **buckets}

    @classmethod
    def text(cls, result: Result) -> str:
        figures = result.figures
        lines = [
            f"{figures['n']} prompts, read as {result.settings['form']}; {figures['distinct']} "
            "replies",
            f"{'passed':<18}{with_error(figures['passed'], figures['stderr'])}",
        ]
        for name, bucket in figures["buckets"].items():
            lines.append(f"  {name:<16}{bucket['passed']:.4f}  {bucket['n']:>6} prompts")
        lines.append(
            f"{'stopped':<18}{figures['stop_rate']:.1%} of replies, the others cut at the limit"
        )
        for name, gate in figures["gates"].items():
            verdict = "passed" if gate["passed"] else "FAILED"
            share, least = gate["share"], gate["least"]
            lines.append(f"gate {name:<13}{share:.1%}, at least {least:.0%}: {verdict}")
        return "\n".join(lines)


def gates_of(items: Sequence[Item], gates: Mapping[str, float]) -> JsonObject:
    """Return for each gate the share required, the share that passed, and whether that is enough."""
    passed: dict[str, list[float]] = {ALL: [item.scores["passed"] for item in items]}
    for item in items:
        passed.setdefault(str(item.category), []).append(item.scores["passed"])
    shares = {name: _share(passed[name]) for name in gates}
    return {
        name: {"least": least, "share": shares[name], "passed": shares[name] >= least}
        for name, least in gates.items()
    }


def _share(values: Sequence[float]) -> float:
    return sum(values) / len(values)


class Asked:
    """Eval prompts as token ids, for one model.

    Raises:
        BenchmarkError: the form of the prompts is unclear, the chat template refuses one, or a reply
            or the expected text does not fit.
    """

    def __init__(
        self, loaded: LoadedModel, prompts: EvalPrompts, max_tokens: int = MAX_TOKENS
    ) -> None:
        self.tags = Tags(loaded.tokenizer)
        self.form = prompts.form or _form(prompts, self.tags.spelled)
        self.ids: list[list[int]] = []
        self._loaded, self._prompts = loaded, prompts.items
        encoder = Encoder(loaded.tokenizer) if self.form == "user" else None
        length = context_length(loaded)
        for prompt in prompts.items:
            where = f"{prompts.file}: prompts.{prompt.id}"
            if encoder is None:
                ids = list(loaded.tokenizer.encode(prompt.text, add_special_tokens=False))
            else:
                ids = _templated(encoder, prompt, where)
            if len(ids) + max_tokens > length:
                raise BenchmarkError(
                    f"{where}: its {len(ids)} tokens and {max_tokens} of reply do not fit into a "
                    f"context of {length}; shorten it"
                )
            needed = len(loaded.tokenizer.encode(prompt.expected.strip(), add_special_tokens=False))
            if prompt.match != "regex" and needed > max_tokens:
                raise BenchmarkError(
                    f"{prompts.file}: expected_outputs.{prompt.id}: its {needed} tokens are beyond "
                    f"the longest reply, {max_tokens}; allow longer ones, or shorten it"
                )
            self.ids.append(ids)

    def emitted(self, n: int, reply: Reply) -> dict[str, bool]:
        """Return for each tag that the reply to prompt `n` should hold whether it does, by its spelling.

        A reply to a prompt that does not expect an exact text may be long, and be cut.
        """
        prompt, tokenizer = self._prompts[n], self._loaded.tokenizer
        if prompt.match != "exact" and not reply.stopped:
            return {}
        text = prompt.expected.strip() if prompt.match != "regex" else ""
        answer = list(tokenizer.encode(text, add_special_tokens=False))
        if prompt.match == "exact":
            answer.append(max(tokenizer.eos_token_ids))  # of several, tags were added last
        owed = self.tags.owed(self.ids[n], answer)
        return self.tags.emitted(owed, reply.ids, stopped=reply.stopped)


def _form(prompts: EvalPrompts, control: Sequence[str]) -> Form:
    """Decide the form of prompts that do not state it: whole strings hold control tokens."""
    full = [prompt for prompt in prompts.items if any(token in prompt.text for token in control)]
    if len(full) == len(prompts.items):
        return "full"
    if full:
        other = next(prompt for prompt in prompts.items if prompt not in full)
        raise BenchmarkError(
            f"{prompts.file}: prompts.{full[0].id} holds control tokens of the tokenizer and "
            f'prompts.{other.id} none; say "form": "full" or "form": "user"'
        )
    for prompt in prompts.items:
        if found := _TAGGED.match(prompt.text):
            raise BenchmarkError(
                f"{prompts.file}: prompts.{prompt.id}: begins with {found[0].strip()}, which is no "
                'control token of this tokenizer; if that is text, say "form": "user"'
            )
    return "user"


def _templated(encoder: Encoder, prompt: EvalPrompt, where: str) -> list[int]:
    turns = [("system", prompt.system)] if prompt.system else []
    messages = [{"role": role, "content": text} for role, text in (*turns, ("user", prompt.text))]
    try:
        return encoder.prompt(messages)
    except DataError as error:
        raise BenchmarkError(f"{where}: {str(error).removeprefix(': ')}") from error
