"""The held-out rows of a run: validation rows and eval prompts of its phases, chosen to be measured."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import groupby

from forty2.benchmark.eval_prompt_files import EvalPrompts, load_eval_prompts
from forty2.benchmark.tasks.divergence import spread
from forty2.benchmark.tasks.held_out import HeldOutPrompt, HeldOutRow, HeldOutRows, Side
from forty2.data.record_texts import prompt_turns
from forty2.data.row_values import as_text
from forty2.data.sources import read_rows
from forty2.errors import DataError
from forty2.recipe.schema import Recipe
from forty2.runs.phase_data import PhaseData, names_held_out_rows
from forty2.text.rows import AnyRow, PairRow, RatedRow, Row, first_exchanges
from forty2.training.objectives.phase import Phase

ROWS = 200
"""Most rows of each kind that are measured, spread evenly over all: enough for an interval of ±7%."""
PROMPTS = 12
"""Most prompts that are answered."""


def is_measured(recipe: Recipe) -> bool:
    """Return whether a run of this recipe measures its stages.

    It does unless the recipe wants neither benchmarks nor held-out rows; with `benchmark: null`, only
    if a phase has validation rows or eval prompts.
    """
    if recipe.benchmark is not None:
        return bool(recipe.benchmark.tasks) or recipe.benchmark.held_out
    return any(
        phase.eval_prompts is not None or names_held_out_rows(phase)
        for phase in recipe.phases.values()
    )


def measures_phase(recipe: Recipe, phase: str, only: str | None = None) -> bool:
    """Return whether a measured run takes a measurement after this phase.

    Args:
        only: the phase with which the run stops; None: it does not.
    """
    if recipe.benchmark is None or recipe.benchmark.each_phase or phase == only:
        return True
    return recipe.fuse is None and phase == [*recipe.phases][-1]


def held_out_rows(
    recipe: Recipe, data: Mapping[str, PhaseData], decode: Callable[[Sequence[int]], str]
) -> HeldOutRows | None:
    """Choose what is measured on the validation rows and eval prompts of all phases.

    A row or prompt that several phases have counts once.

    Args:
        data: by phase.
        decode: function from token ids to text, without control tokens.

    Returns:
        None if there are none, or the recipe wants no measurement.
    """
    if recipe.benchmark is not None and not recipe.benchmark.held_out:
        return None
    n = recipe.benchmark.n if recipe.benchmark is not None else None
    rows: dict[object, HeldOutRow] = {}
    prompts: list[dict[tuple[int, ...], HeldOutPrompt]] = []
    files: dict[str, EvalPrompts] = {}
    for name, phase in recipe.phases.items():
        if phase.eval_prompts is not None:
            file = load_eval_prompts(phase.eval_prompts)
            files.setdefault(file.sha256, file)
        part = data[name]
        # Without validation rows, those held out by their keys are all that there is: the benefit.
        apart = _values_of(phase) if part.valid is not None else ""
        for fitted, label in ((part.valid, ""), (part.hold_out, apart)):
            for row in fitted.rows if fitted is not None else ():
                for scored in _scored(name, row):
                    scored = scored._replace(apart=label)
                    rows.setdefault((scored.kind, str(scored.sides), scored.desirable), scored)
        if part.valid is not None:
            prompts.append(_prompts(name, phase, part, decode))
    chosen = _spread_by_kind(list(rows.values()), min(ROWS, n or ROWS))
    if not chosen and not files:
        return None
    replied = tuple(_take_turns(prompts, min(PROMPTS, n or PROMPTS)))
    return HeldOutRows(tuple(chosen), replied, tuple(files.values()))


def _values_of(phase: Phase) -> str:
    """Write the values of the rows that a phase holds out by their keys, e.g. "arts/law"."""
    values = [
        value if isinstance(value, list) else [value] for value in (phase.hold_out or {}).values()
    ]
    return ", ".join("/".join(map(as_text, each)) for each in values)


def _scored(phase: str, row: AnyRow) -> Iterator[HeldOutRow]:
    if isinstance(row, Row):
        for ids, mask in _unpacked(row):
            if any(mask[1:]):
                yield HeldOutRow("chat", phase, row.origin, (Side(ids, [False, *mask[1:]]),))
        return
    sides = [
        Side([*row.prompt, *response], [False] * len(row.prompt) + list(mask))
        for response, mask in zip(row.responses, row.response_masks, strict=True)
    ]
    if isinstance(row, PairRow):
        yield HeldOutRow("pair", phase, row.origin, tuple(sides))
    else:
        yield HeldOutRow("rating", phase, row.origin, (sides[0],), row.desirable)


def _unpacked(row: Row) -> Iterator[tuple[list[int], list[bool]]]:
    """Yield ids and mask of each row that was packed into this one."""
    places = range(len(row.ids))
    for _, group in groupby(places, key=lambda i: 0 if row.segments is None else row.segments[i]):
        which = list(group)
        yield [row.ids[i] for i in which], [row.mask[i] for i in which]


def _prompts(
    name: str, phase: Phase, data: PhaseData, decode: Callable[[Sequence[int]], str]
) -> dict[tuple[int, ...], HeldOutPrompt]:
    """Return different prompts of a phase's validation rows, with the user's last turn and the answer."""
    assert data.valid is not None
    rows = [row for row in data.valid.rows if not (isinstance(row, Row) and row.is_text)]
    turns: dict[str, list[str]] = {}
    if data.valid_source is not None:
        for origin, raw in read_rows(data.valid_source):
            try:
                turns[origin] = prompt_turns(phase.row_kind.parse(raw, origin))
            except DataError:
                continue  # the row was not taken, so nobody asks for its text
    found: dict[tuple[int, ...], HeldOutPrompt] = {}
    for row in spread(rows, 4 * PROMPTS):
        is_good = row.desirable if isinstance(row, RatedRow) else True
        for ids, answer in first_exchanges([row], 1):
            whole, expected = decode(ids), decode(answer) if is_good else ""
            places = [(whole.rfind(text), text) for text in turns.get(row.origin, ()) if text]
            at, text = max(places, default=(-1, ""))
            shown = text if at >= 0 else whole
            found.setdefault(tuple(ids), HeldOutPrompt(name, shown, ids, expected.strip()))
    return found


def _take_turns(
    prompts: Sequence[Mapping[tuple[int, ...], HeldOutPrompt]], most: int
) -> list[HeldOutPrompt]:
    """Take prompts from each phase in turn, each prompt once."""
    taken: dict[tuple[int, ...], HeldOutPrompt] = {}
    queues = [list(one.items())[::-1] for one in prompts]
    while any(queues) and len(taken) < most:
        for queue in queues:
            if queue and len(taken) < most:
                taken.setdefault(*queue.pop())
    return list(taken.values())


def _spread_by_kind(rows: Sequence[HeldOutRow], most: int) -> list[HeldOutRow]:
    kinds: dict[tuple[str, str], list[HeldOutRow]] = {}
    for row in rows:
        kinds.setdefault((row.kind, row.apart), []).append(row)
    return [row for each in kinds.values() for row in spread(each, most)]
