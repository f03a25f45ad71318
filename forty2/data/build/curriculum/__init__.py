"""A first curriculum: answer in the asked form, copy exactly, then operate on what was copied.

A model that has never seen a chat learns the frame before it learns facts. `format_lock` gives short
questions with one short answer, `echo` instructions to copy (and ones that only look like it), and
`operators` copying, wrapping and extracting with templates and payloads that validation never shares
with training. All are English and German, pure functions of their arguments, and hold no user text
twice. What they are composed from lies in `library/curriculum/`.
"""

from forty2.data.build.curriculum._echo import echo
from forty2.data.build.curriculum._format_lock import format_lock
from forty2.data.build.curriculum._operators import eval_prompts, operators

__all__ = ["echo", "eval_prompts", "format_lock", "operators"]
