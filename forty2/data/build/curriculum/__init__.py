"""A first curriculum: answer in the required form, copy exactly, then operate on what was copied.

A model that has never seen a chat learns the form of an answer before it learns facts. `format_lock`
gives short questions with one short answer, `echo` instructions to copy (and ones that only look
like it), and `operators` copying, wrapping and extracting with templates and payloads that
validation never shares with training. All are English and German, pure functions of their
arguments, and hold no user text twice. They are composed from `library/curriculum/`. `stage` divides them
into the stages of MyPT's phase 3a, whose eval prompts `stage_prompts` gives.
"""

from forty2.data.build.curriculum.echo_set import echo
from forty2.data.build.curriculum.format_lock_set import format_lock
from forty2.data.build.curriculum.operators_set import eval_prompts, operators
from forty2.data.build.curriculum.stages_set import STAGES, stage, stage_prompts

__all__ = ["STAGES", "echo", "eval_prompts", "format_lock", "operators", "stage", "stage_prompts"]
