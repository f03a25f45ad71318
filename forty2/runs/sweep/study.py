"""TPE search: Optuna proposes configurations, from the results so far; its study is in the sweep.

Optuna's sampler holds random numbers that it does not store. So each proposal has a sampler of its
own, seeded with the number of proposals before it: a search that was stopped goes on as it would
have without the stop.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from forty2.errors import RunError
from forty2.recipe.differences import on_one_line
from forty2.recipe.grid import Grid, Parameter

if TYPE_CHECKING:
    import optuna

_NAME = "sweep"


class Proposal(NamedTuple):
    """A configuration that the search proposes."""

    number: int
    """Its number, from 1."""
    settings: Mapping[str, object]


def need_optuna() -> None:
    """Refuse to search where Optuna is not installed.

    Raises:
        RunError: it is not.
    """
    try:
        import optuna
    except ImportError as error:
        raise RunError(
            "method: tpe needs Optuna; install it with pip install optuna, or write method: random"
        ) from error
    optuna.logging.set_verbosity(optuna.logging.WARNING)


class Study:
    """The study of one sweep; only one process may use it at a time."""

    def __init__(self, path: Path, grid: Grid, seed: int) -> None:
        """Prepare a study, without reading its file.

        Args:
            path: the study's file.
            seed: seed of the search.
        """
        need_optuna()
        self._url = f"sqlite:///{path.resolve()}"
        self._grid = grid
        self._seed = seed

    def proposals(self) -> list[Proposal]:
        """Return the configurations proposed so far."""
        trials = self._whole(self._study())
        return [Proposal(n, self._settings(trial.params)) for n, trial in enumerate(trials, 1)]

    def propose(self) -> Proposal | None:
        """Propose one more; None: `run_cap` is reached."""
        import optuna

        study = self._study()
        trials = self._whole(study)
        if len(trials) >= (self._grid.run_cap or 0):
            return None
        whole = {trial.number for trial in trials}
        for trial in study.get_trials(deepcopy=False):
            if trial.number not in whole and not trial.state.is_finished():
                study.tell(trial.number, state=optuna.trial.TrialState.FAIL)
        study.sampler = optuna.samplers.TPESampler(seed=self._seed + len(trials))
        asked = study.ask(
            {parameter.key: _distribution(parameter) for parameter in self._grid.parameters}
        )
        return Proposal(len(trials) + 1, self._settings(asked.params))

    def tell(self, number: int, value: float | None) -> None:
        """Report the value of a configuration; higher is better, None: its training broke off."""
        import optuna

        study = self._study()
        trial = self._whole(study)[number - 1]
        if trial.state.is_finished():
            return
        if value is None:
            study.tell(trial.number, state=optuna.trial.TrialState.PRUNED)
        else:
            study.tell(trial.number, value)

    def _study(self) -> optuna.Study:
        import optuna

        return optuna.create_study(
            storage=self._url, study_name=_NAME, direction="maximize", load_if_exists=True
        )

    def _whole(self, study: optuna.Study) -> list[Any]:
        """Return the trials that have all their settings; a proposal that was cut off is none."""
        keys = {parameter.key for parameter in self._grid.parameters}
        return [trial for trial in study.get_trials(deepcopy=False) if trial.params.keys() == keys]

    def _settings(self, params: Mapping[str, Any]) -> dict[str, object]:
        settings: dict[str, object] = {}
        for parameter in self._grid.parameters:
            value = params[parameter.key]
            if parameter.values:
                value = next(v for v in parameter.values if on_one_line(v) == value)
            settings[parameter.key] = value
        return settings


def _distribution(parameter: Parameter) -> Any:
    import optuna

    if parameter.values:
        return optuna.distributions.CategoricalDistribution(
            list(map(on_one_line, parameter.values))
        )
    if parameter.whole:
        return optuna.distributions.IntDistribution(
            int(parameter.low), int(parameter.high), step=int(parameter.step or 1)
        )
    return optuna.distributions.FloatDistribution(
        parameter.low, parameter.high, log=parameter.log, step=parameter.step
    )
