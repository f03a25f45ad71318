"""Mutation testing: does a test fail when one thing in a core module is changed?

    make mutants                          every module of MODULES
    make mutants MODULES="losses step"    some, by the end of their names

mutmut makes the changes and runs, for each, the module's tests that reach the changed function. A
mutant that no test notices survives; it fails this check, unless `equivalent_mutants.toml` says why
nobody could tell it from the original. Lines that raise an error are not changed: what they say is
prose. mutmut leaves out decorated functions, properties among them, and code outside of functions.

Results are kept in build/mutants/: a run that is stopped goes on, and after a change only the
survivors and the functions that changed are tried again. Delete the folder to begin anew.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import subprocess
import sys
import time
import tomllib
from pathlib import Path
from typing import NamedTuple

from mutmut.configuration import reset_config
from mutmut.mutation.diff_apply import get_diff_for_mutant
from mutmut.mutation.file_mutation import compute_function_hashes, mutate_file_contents
from mutmut.stats import status_by_exit_code
from mutmut.utils.format_utils import get_mutant_name

ROOT = Path(__file__).parents[1]
WORK = ROOT / "build" / "mutants"
SAMPLE, SEED = 60, 42
"""Mutants of a module that are tried, if it has more, and the seed of the draw."""
CAUGHT = ("killed", "timeout", "caught by type check")
CONFIG = """
[tool.mutmut]
source_paths = ["forty2"]
only_mutate = ["forty2/{module}.py"]
do_not_mutate_patterns = ['raise \\w+']
pytest_add_cli_args = ["-p", "no:cacheprovider"]
pytest_add_cli_args_test_selection = {selection}
process_isolation = "forkserver"
timeout_multiplier = 10.0
use_setproctitle = false
"""

MODULES = {
    "benchmark/compare": "benchmark/test_compare test_notebook",
    "benchmark/stage_scores": "benchmark/test_compare",
    "benchmark/stats": "benchmark/test_stats",
    "benchmark/verdict": "benchmark/test_verdict benchmark/test_compare",
    "data/thoughts": "data/test_thoughts text/test_template_families",
    "export/fusing": "export/test_fusing",
    "files": "test_files",
    "inference/logprobs": "inference/test_logprobs training/test_frozen_states "
    "training/objectives/test_kl_term training/test_tags",
    "inference/padding": "inference/test_padding inference/test_logprobs training/test_batches",
    "model/adapter": "model/test_adapter model/test_initial_adapter model/test_tag_rows "
    "model/test_phase_parameters model/test_phase_attention export/test_fusing",
    "model/merging": "model/test_merging model/test_phase_parameters export/test_fusing",
    "model/phase_attention": "model/test_phase_attention",
    "model/quantization": "export/test_fusing model/test_adapter model/test_merging",
    "model/surgery": "model/test_surgery inference/test_logprobs",
    "model/tag_rows": "model/test_tag_rows training/test_tags",
    "model/tags": "model/test_tags training/test_tags",
    "text/encoder": "text/test_encoder text/test_template_families",
    "text/marks": "text/test_marks text/test_encoder text/test_template_families",
    "text/special_tokens": "text/test_special_tokens text/test_encoder text/test_template_families",
    "text/thinking_parts": "text/test_thinking_parts text/test_template_families",
    "text/turn_shapes": "text/test_encoder text/test_template_families",
    "text/turns": "text/test_encoder text/test_template_families",
    "training/batched_loss/__init__": "training/test_batched_loss training/test_frozen_states "
    "training/objectives/test_kl_term training/test_tags",
    "training/batched_loss/base": "training/test_batched_loss training/test_step",
    "training/batched_loss/conversations": "training/test_batched_loss training/test_frozen_states "
    "training/test_tags model/test_phase_attention",
    "training/batched_loss/pairs": "training/test_batched_loss training/test_frozen_states "
    "training/objectives/test_pairs training/objectives/test_kl_term model/test_phase_attention",
    "training/batched_loss/rated": "training/test_frozen_states training/objectives/test_kto "
    "training/objectives/test_kl_term model/test_phase_attention",
    "training/batched_loss/responses": "training/test_batched_loss training/test_frozen_states "
    "training/objectives/test_kto training/objectives/test_kl_term "
    "model/test_phase_attention",
    "training/batches": "training/test_batches training/test_schedule training/test_curricula "
    "training/objectives/test_kto",
    "training/checkpoints": "training/test_checkpoints",
    "training/frozen_states": "training/test_frozen_states",
    "training/kl_divergence": "training/objectives/test_kl_term",
    "training/losses": "training/test_losses training/objectives/test_kto",
    "training/objectives/cpo": "training/test_losses training/objectives/test_pairs",
    "training/objectives/dpo": "training/test_losses training/test_batched_loss "
    "training/objectives/test_pairs",
    "training/objectives/kl_term": "training/objectives/test_kl_term",
    "training/objectives/kto": "training/objectives/test_kto",
    "training/objectives/orpo": "training/test_losses training/objectives/test_pairs",
    "training/objectives/pairs": "training/test_losses training/test_batched_loss "
    "training/objectives/test_pairs",
    "training/objectives/phase": "training/test_loop training/test_curricula",
    "training/objectives/simpo": "training/test_losses training/objectives/test_pairs",
    "training/reference": "training/test_reference training/test_curricula inference/test_logprobs",
    "training/reference_states": "training/objectives/test_kl_term",
    "training/schedule": "training/test_schedule training/test_curricula training/test_batches",
    "training/stored_states": "training/test_frozen_states training/objectives/test_kl_term",
    "training/step": "training/test_step training/objectives/test_kto "
    "training/objectives/test_kl_term",
}
"""Modules that are mutated, and the files of their tests."""
SLOW = [
    "inference/test_logprobs.py::test_log_sum_exp_does_not_drift_over_a_large_vocabulary",
    "training/objectives/test_kto.py::test_a_recipe_trains_on_rated_rows_and_on_pairs",
    "training/objectives/test_kto.py::test_real_answers_on_the_starter_model",
    "training/objectives/test_kto.py::test_training_tells_desirable_responses_from_others",
    "training/objectives/test_pairs.py::test_every_objective_begins_where_it_must_and_its_loss_falls",
    "training/test_batches.py::test_a_weight_comes_from_the_row",
    "training/test_frozen_states.py::test_pairs_of_any_shape",
    "training/test_frozen_states.py::test_real_pairs_on_the_starter_model",
    "training/test_loop.py::test_a_run_sent_back_and_killed_resumes_to_the_same_bytes",
    "training/test_reference.py::test_a_stored_reference_is_read_only_for_the_same_weights_adapter_and_tokens",
    "training/test_step.py::test_a_compiled_step_is_the_plain_one_even_when_it_is_skipped",
]
"""Tests that take too long to be run for each mutant."""


class Mutant(NamedTuple):
    """A mutant that no test noticed."""

    of: str
    """Module and function, `training.losses.kto_loss`."""
    was: str
    """The lines that the mutant changes, without indentation."""
    now: str


class Outcome(NamedTuple):
    """The mutants of a module."""

    mutants: int
    tried: int
    survivors: list[Mutant]
    seconds: float


def mutate(module: str) -> Outcome:
    """Run the tests of a module against its mutants."""
    work = WORK / module.replace("/", ".")
    work.mkdir(parents=True, exist_ok=True)
    for name in ("forty2", "tests"):
        if not (work / name).is_symlink():
            (work / name).symlink_to(ROOT / name)
    tests = [f"tests/{name}.py" for name in MODULES[module].split()]
    slow = [f"--deselect=tests/{name}" for name in SLOW]
    config = CONFIG.format(module=module, selection=json.dumps(["-m", "not slow", *slow, *tests]))
    pyproject = (ROOT / "pyproject.toml").read_text("utf-8") + config
    (work / "pyproject.toml").write_text(pyproject, "utf-8")
    (work / "mutants" / "mutmut-stats.json").unlink(missing_ok=True)  # which tests reach what
    source = Path("forty2", f"{module}.py")
    chosen, total = _choose(source, work)
    record = work / "mutants" / f"{source}.meta"
    start = time.monotonic()
    if todo := [name for name in chosen if name not in _caught(record, source, work)]:
        processes = len(os.sched_getaffinity(0)) if sys.platform == "linux" else 2
        command = ["-m", "mutmut", "run", "--max-children", str(processes), *todo]
        with (work / "log").open("w") as log:
            failed = subprocess.run([sys.executable, *command], cwd=work, stdout=log, stderr=log)
        if failed.returncode:
            sys.exit(f"mutmut failed on {module}; see {work / 'log'}")
    seconds = time.monotonic() - start
    caught = _caught(record, source, work)
    survivors = [_describe(name, source, work) for name in chosen if name not in caught]
    return Outcome(total, len(chosen), survivors, seconds)


def _choose(source: Path, work: Path) -> tuple[list[str], int]:
    """Draw the mutants of a module to try, and count all."""
    with contextlib.chdir(work):  # where mutmut looks for its configuration
        reset_config()
        made = mutate_file_contents(str(source), source.read_text("utf-8")).mutant_names
    names = [get_mutant_name(source, name) for name in made]
    few = random.Random(SEED).sample(names, min(SAMPLE, len(names)))
    return sorted(few, key=names.index), len(names)


def _caught(record: Path, source: Path, work: Path) -> set[str]:
    """Return the mutants that a test noticed, of functions that have not changed since."""
    if not record.exists():
        return set()
    results = json.loads(record.read_bytes())
    now = compute_function_hashes((work / source).read_text("utf-8"))
    unchanged = {f for f, one in results["hash_by_function_name"].items() if now.get(f) == one}
    return {
        name
        for name, code in results["exit_code_by_key"].items()
        if _noticed(code) and name.rpartition("__mutmut_")[0].rpartition(".")[2] in unchanged
    }


def _noticed(code: int | None) -> bool:
    """Return whether tests that end so have noticed a mutant; an exit code below 0 is a signal's."""
    return code is not None and (code < 0 or status_by_exit_code[code] in CAUGHT)


def _describe(name: str, source: Path, work: Path) -> Mutant:
    with contextlib.chdir(work):
        shown = get_diff_for_mutant(name, path=source)
    diff = [line for line in shown.splitlines() if line[:3] not in ("---", "+++")]
    was, now = (" ".join(" ".join(x[1:] for x in diff if x[:1] == s).split()) for s in "-+")
    # mutmut's names: forty2.MODULE.x_FUNCTION__mutmut_1, forty2.MODULE.xǁCLASSǁMETHOD__mutmut_1
    module, _, mangled = name.rpartition("__mutmut_")[0].rpartition(".")
    function = mangled[2:].replace("ǁ", ".")
    return Mutant(f"{module.removeprefix('forty2.')}.{function}", was, now)


def _module(mutant: Mutant) -> str:
    """Return the module of MODULES that a mutant belongs to."""
    names = {module.removesuffix("/__init__").replace("/", "."): module for module in MODULES}
    return names[max((name for name in names if mutant.of.startswith(f"{name}.")), key=len)]


def main(wanted: list[str]) -> int:
    """Mutate the modules whose names end like one of `wanted`; return the exit code."""
    listed = tomllib.loads((ROOT / "tests" / "equivalent_mutants.toml").read_text("utf-8"))
    equivalent = {Mutant(*mutant) for group in listed["group"] for mutant in group["mutants"]}
    found, strange = set(), 0
    whole: set[str] = set()  # modules of which every mutant was tried
    print(f"{'module':32} mutants tried  caught  equivalent  survived  seconds")
    for module in MODULES:
        if wanted and not any(module.endswith(name) for name in wanted):
            continue
        outcome = mutate(module)
        unlisted = [mutant for mutant in outcome.survivors if mutant not in equivalent]
        found.update(outcome.survivors)
        strange += len(unlisted)
        if outcome.tried == outcome.mutants:
            whole.add(module)
        count = len(outcome.survivors)
        numbers = f"{outcome.mutants:7} {outcome.tried:5} {outcome.tried - count:7} "
        numbers += f"{count - len(unlisted):11}"
        print(f"{module:32} {numbers} {len(unlisted):9} {outcome.seconds:8.0f}")
        for mutant in unlisted:
            print(f"    {mutant.of}\n      - {mutant.was}\n      + {mutant.now}")
    stale = [mutant for mutant in sorted(equivalent - found) if _module(mutant) in whole]
    for mutant in stale:
        print(f"equivalent_mutants.toml lists a mutant that is gone or caught: {mutant}")
    return 1 if strange or stale else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
