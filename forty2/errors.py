"""One family of errors. Each is also the standard-library type that a caller would expect.

A message says what is wrong, where (file and line when there is one) and what to do, in that
order. The command line prints it and exits with code 2; anything outside this family is a bug and
keeps its traceback.
"""


class Forty2Error(Exception):
    """Something that the user can put right."""


class RecipeError(Forty2Error, ValueError):
    """A recipe cannot be run as written. Lists every problem, one a line."""


class DataError(Forty2Error, ValueError):
    """A data file or one of its rows is unusable."""


class ModelError(Forty2Error, ValueError):
    """A model, tokenizer or adapter cannot be loaded, or does not fit."""


class BenchmarkError(Forty2Error, ValueError):
    """A question file or a result file is unusable, or a score is not finite."""


class TrainingError(Forty2Error, RuntimeError):
    """Training cannot go on: the loss is not finite, or the reference does not match."""


class Interrupted(Forty2Error):
    """A signal asked a run to stop; what was done is saved, and the message says how to go on."""


class RunError(Forty2Error, RuntimeError):
    """A run directory is in use, unreadable, or not what it should be."""
