"""Tests mirror the package: the tests of forty2/WING/MODULE.py are in tests/WING/test_MODULE.py."""

from __future__ import annotations

import ast
from pathlib import Path

import forty2

PACKAGE = Path(forty2.__file__).parent
TESTS = Path(__file__).parent

COVERED_BY = {
    "benchmark/question_files.py": "benchmark/test_truthfulqa_questions.py",
    "benchmark/eval_prompt_files.py": "benchmark/tasks/test_eval_prompts.py",
    "benchmark/probing.py": "benchmark/tasks/test_eval_prompts.py",
    "benchmark/mmlu_subjects.py": "benchmark/tasks/test_mmlu.py",
    "benchmark/runner.py": "benchmark/test_task.py",
    "benchmark/truthfulqa_task.py": "benchmark/tasks/test_truthfulqa.py",
    "benchmark/scoring.py": "benchmark/tasks/test_mmlu.py",
    "benchmark/recipe_tasks.py": "benchmark/test_stages.py",
    "benchmark/shared_items.py": "benchmark/test_compare.py",
    "benchmark/stage_scores.py": "benchmark/test_compare.py",
    "benchmark/stage_tables.py": "benchmark/test_stages.py",
    "benchmark/summary.py": "benchmark/test_stages.py",
    "benchmark/tasks/__init__.py": "benchmark/test_task.py",
    "benchmark/tasks/perplexity.py": "benchmark/test_results.py",
    "cli/": "cli/test_main.py",
    "data/build/__init__.py": "data/build/test_spark.py",
    "data/build/curriculum/": "data/build/test_curriculum.py",
    "data/build/dialectic.py": "data/build/test_spark.py",
    "data/build/twins.py": "data/build/test_knowledge.py",
    "data/checks/findings.py": "data/checks/test_lint.py",
    "data/library/__init__.py": "data/build/test_spark.py",
    "data/readers/": "data/test_sources.py",
    "data/record_texts.py": "data/checks/test_repetition.py",
    "data/records.py": "data/test_formats.py",
    "data/responses.py": "data/test_formats.py",
    "data/sets.py": "data/checks/test_lint.py",
    "data/unused_keys.py": "data/test_formats.py",
    "failures/arms.py": "failures/test_recover.py",
    "failures/arms_recipe.py": "failures/test_recover.py",
    "failures/builtin/": "failures/test_builtin.py",
    "failures/checking.py": "failures/test_find.py",
    "failures/examples.py": "failures/test_score.py",
    "failures/proposals.py": "failures/test_generate.py",
    "failures/targets.py": "failures/test_generate.py",
    "failures/teaching.py": "failures/test_generate.py",
    "failures/elsewhere.py": "failures/test_recover.py",
    "failures/recovery_record.py": "failures/test_recover.py",
    "failures/replies.py": "failures/test_find.py",
    "export/gguf/architecture.py": "export/gguf/test_exporting.py",
    "export/gguf/bpe.py": "export/gguf/test_vocabulary.py",
    "export/gguf/byte_level.py": "export/gguf/test_vocabulary.py",
    "export/gguf/sentence_piece.py": "export/gguf/test_vocabulary.py",
    "export/hub.py": "export/test_push.py",
    "export/record.py": "export/test_fusing.py",
    "failures/stored_embeddings.py": "failures/test_clustering.py",
    "model/gguf/": "model/test_gguf.py",
    "model/gradient_checkpointing.py": "training/test_loop.py",
    "model/loading.py": "cli/test_bad_models.py",
    "model/quantization.py": "export/test_fusing.py",
    "model/starter.py": "model/test_gguf.py",
    "model/wheels.py": "model/test_gguf.py",
    "recipe/document.py": "recipe/test_reading.py",
    "recipe/schema.py": "recipe/test_reading.py",
    "recipe/translation.py": "recipe/test_phasegpt.py",
    "report/axes.py": "report/test_charts.py",
    "report/canvas.py": "report/test_charts.py",
    "report/origin.py": "report/test_run.py",
    "report/run_answers.py": "report/test_run.py",
    "report/run_charts.py": "report/test_run.py",
    "report/run_sentences.py": "report/test_run.py",
    "report/run_tables.py": "report/test_run.py",
    "report/run_types.py": "report/test_records.py",
    "runs/archive/": "runs/test_archive.py",
    "runs/context.py": "runs/test_run_folder.py",
    "runs/fused.py": "runs/test_run_folder.py",
    "runs/inputs.py": "runs/test_end_to_end.py",
    "runs/measuring.py": "benchmark/test_stages.py",
    "runs/phase_data.py": "text/test_phase_rows.py",
    "runs/phase_training.py": "runs/test_end_to_end.py",
    "runs/pipeline.py": "runs/test_end_to_end.py",
    "runs/planning.py": "runs/test_end_to_end.py",
    "runs/records.py": "runs/test_folder.py",
    "serve/until_closed.py": "failures/test_chat_models.py",
    "speed/workers/": "speed/test_comparison.py",
    "text/preparing.py": "text/test_prepared.py",
    "text/row_kinds.py": "text/test_phase_rows.py",
    "text/tokenizer.py": "text/test_encoder.py",
    "text/tool_arguments.py": "text/test_template_families.py",
    "data/exchanges.py": "data/test_formats.py",
    "data/other_keys.py": "data/test_formats.py",
    "data/row_keys.py": "data/test_formats.py",
    "report/ablation_records.py": "report/test_ablation.py",
    "runs/ablation_variants.py": "runs/test_ablation.py",
    "runs/replicates.py": "runs/test_ablation.py",
    "recipe/phasegpt/": "recipe/test_phasegpt.py",
    "report/text_table.py": "report/test_ablation.py",
    "runs/reusing.py": "runs/test_extending.py",
    "runs/sweep/": "runs/test_sweep.py",
    "text/template_text.py": "text/test_template_families.py",
    "text/turn_shapes.py": "text/test_template_families.py",
    "text/turns.py": "text/test_template_families.py",
    "training/batched_loss/": "training/test_batched_loss.py",
    "training/evaluation.py": "training/test_loop.py",
    "training/kl_divergence.py": "training/objectives/test_kl_term.py",
    "training/objectives/cpo.py": "training/test_losses.py",
    "training/objectives/dpo.py": "training/test_losses.py",
    "training/objectives/orpo.py": "training/test_losses.py",
    "training/objectives/simpo.py": "training/test_losses.py",
    "training/objectives/phase.py": "training/test_loop.py",
    "training/objectives/sft.py": "training/test_loop.py",
    "training/reference_states.py": "training/objectives/test_kl_term.py",
    "training/stored_states.py": "training/test_frozen_states.py",
    "training/stop_signals.py": "runs/test_signals.py",
}
"""Modules without a test file of their name, and the file whose tests run them. A folder, ending in
a slash, stands for its modules without one."""

CAPABILITIES = {
    "benchmark/test_parity.py": "every benchmark against other people's code",
    "cli/test_bad_benchmarks.py": "bad question and result files, to every command",
    "cli/test_bad_commands.py": "bad options and arguments, to every command",
    "cli/test_bad_data.py": "bad data files, to every command",
    "cli/test_bad_models.py": "bad models, adapters and GGUF files, to every command",
    "cli/test_bad_recipes.py": "bad recipes, to every command",
    "cli/test_main.py": "the command line as a whole",
    "docs/test_contributing.py": "the worked examples of CONTRIBUTING",
    "docs/test_examples.py": "the example scripts of the manual",
    "docs/test_pages.py": "the pages of the manual against the code",
    "docs/test_results.py": "the results page against the figures, and the search for the gold master",
    "model/test_strangers.py": "security of the whole package: code in data, secrets, links",
    "report/test_report_in_browser.py": "reports in a real browser",
    "serve/test_page_in_browser.py": "the page in a real browser",
    "serve/test_serve_command.py": "the command that serves, in a process of its own",
    "runs/test_chaos.py": "runs killed at any point",
    "runs/test_end_to_end.py": "recipe to report on the real starter model",
    "runs/test_carried_optimizer.py": "phases that hand their optimizer on",
    "runs/test_init_from.py": "runs that go on from an adapter",
    "runs/test_parallel_runs.py": "several processes at work on one folder or cache",
    "runs/test_phase_parameters.py": "runs whose phases train different parts",
    "runs/test_replay.py": "runs whose phases replay rows of earlier ones",
    "runs/test_run_folder.py": "a run as a user meets it, by its commands",
    "runs/test_signals.py": "signals to every command",
    "runs/test_soak.py": "long runs, and the tool that watches them",
    "runs/test_version_drift.py": "runs that older releases began",
    "runs/test_wrecked.py": "training that wrecks a model, as the user is told",
    "text/test_template_families.py": "the encoder on the chat templates of real model families",
    "test_import_rules.py": "who may import whom, in the whole package",
    "test_layout.py": "this file",
    "test_packaging.py": "extras, bounds, formula and release workflow",
    "test_public_api.py": "the names that `import forty2` offers",
    "failures/test_commands.py": "clusters, labels and their page, by their commands",
    "inference/test_embedding_parity.py": "embeddings beside transformers' code",
    "export/test_peft_parity.py": "adapters of PEFT beside PEFT's code",
    "training/test_trl_parity.py": "losses of pairs against TRL's code",
    "training/objectives/test_new_objective.py": "an objective added in one file",
    "training/test_phase_parameters.py": "full fine-tuning and trained embeddings, step by step",
    "training/test_tags.py": "rows of tags and weights of tokens in training",
    "training/test_curricula.py": "rows ordered, left out and divided, from keys to batches",
}
"""Test files that mirror no module because they test several at once, and what they test."""


def defines_public_names(path: Path) -> bool:
    """Return whether a module has functions or classes for others to use."""
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    return any(
        isinstance(node, kinds) and not node.name.startswith("_")
        for node in ast.parse(path.read_text("utf-8")).body
    )


def mirrored_test(module: Path) -> str:
    """Return the test file of a module or package, both relative to their roots."""
    named = module.parent if module.name == "__init__.py" else module.with_suffix("")
    return (named.parent / f"test_{named.name.strip('_')}.py").as_posix()


MODULES = {
    path.relative_to(PACKAGE).as_posix(): mirrored_test(path.relative_to(PACKAGE))
    for path in sorted(PACKAGE.rglob("*.py"))
    if path != PACKAGE / "__init__.py"
}
"""Every module of the package, and the test file that would mirror it."""
TEST_FILES = {
    path.relative_to(TESTS).as_posix()
    for path in TESTS.rglob("test_*.py")
    if "old_runs" not in path.parts
}


def test_every_module_has_a_test_file_of_its_name_or_is_listed() -> None:
    missing = {
        module: test
        for module, test in MODULES.items()
        if defines_public_names(PACKAGE / module)
        and test not in TEST_FILES
        and module not in COVERED_BY
        and not any(module.startswith(name) for name in COVERED_BY if name.endswith("/"))
    }
    assert not missing, "write these test files, or add the modules to COVERED_BY"


def test_every_test_file_mirrors_a_module_or_is_listed() -> None:
    strange = TEST_FILES - set(MODULES.values()) - CAPABILITIES.keys()
    assert not strange, "move these to the module that they test, or add them to CAPABILITIES"


def test_the_lists_name_only_files_that_need_them() -> None:
    superfluous = [
        name
        for name, test in COVERED_BY.items()
        if test not in TEST_FILES
        or MODULES.get(name) in TEST_FILES
        or not (PACKAGE / name).exists()
    ]
    superfluous += [
        test for test in CAPABILITIES if test not in TEST_FILES or test in MODULES.values()
    ]
    assert not superfluous, "remove these: the file is gone, or a test file of its own exists"
