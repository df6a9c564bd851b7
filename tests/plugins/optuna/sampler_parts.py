"""All samplers of Optuna, small studies for them, and studies that are killed at any point of a trial."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any, Final

import optuna
from optuna.samplers import (
    BaseSampler,
    BruteForceSampler,
    CmaEsSampler,
    GPSampler,
    GridSampler,
    NSGAIIISampler,
    NSGAIISampler,
    PartialFixedSampler,
    QMCSampler,
    RandomSampler,
    TPESampler,
    nsgaii,
)
from optuna.storages import InMemoryStorage
from optuna.trial import TrialState

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from optuna.storages import BaseStorage

GRID: Final[dict[str, Sequence[str | float]]] = {"x": [-1.0, 0.0, 0.5, 1.0], "n": [1, 2, 3], "c": ["a", "b"]}

# Few startup trials and small populations, so that a short study covers all phases of a sampler.
MAKERS: Final[dict[str, Callable[[int], BaseSampler]]] = {
    "random": lambda seed: RandomSampler(seed=seed),
    "tpe": lambda seed: TPESampler(seed=seed, n_startup_trials=4, multivariate=False),
    "tpe-multivariate": lambda seed: TPESampler(seed=seed, n_startup_trials=4, multivariate=True),
    "tpe-group": lambda seed: TPESampler(seed=seed, n_startup_trials=4, multivariate=True, group=True),
    "cmaes": lambda seed: CmaEsSampler(seed=seed, warn_independent_sampling=False, popsize=4),
    "cmaes-margin": lambda seed: CmaEsSampler(
        seed=seed, warn_independent_sampling=False, popsize=4, with_margin=True, consider_pruned_trials=True
    ),
    "qmc": lambda seed: QMCSampler(seed=seed, warn_independent_sampling=False),
    "qmc-scrambled": lambda seed: QMCSampler(
        seed=seed, scramble=True, qmc_type="halton", warn_independent_sampling=False
    ),
    "nsga2": lambda seed: NSGAIISampler(seed=seed, population_size=5),
    "nsga2-crossover": lambda seed: NSGAIISampler(
        seed=seed, population_size=5, crossover=nsgaii.SBXCrossover(), mutation=nsgaii.PolynomialMutation()
    ),
    "nsga3": lambda seed: NSGAIIISampler(seed=seed, population_size=5),
    "grid": lambda seed: GridSampler(GRID, seed=seed),
    "brute-force": lambda seed: BruteForceSampler(seed=seed),
    "partial": lambda seed: PartialFixedSampler({"n": 2}, NSGAIISampler(seed=seed, population_size=5)),
    "gp": lambda seed: GPSampler(seed=seed, n_startup_trials=4, warn_independent_sampling=False),
}
_FINITE: Final = ("grid", "brute-force")
_UNCONDITIONAL: Final = ("qmc", "cmaes")  # They do not support conditional parameters.


class Killed(BaseException):
    """Simulates a kill: it is not an `Exception`, so that Optuna does not record it."""


def make_objective(name: str, stop: Callable[[optuna.Trial], None]) -> Callable[[optuna.Trial], float]:
    """Return an objective for a sampler, which calls `stop` before and after each suggestion."""

    def finite(trial: optuna.Trial) -> float:
        stop(trial)
        x = trial.suggest_float("x", -1, 1, step=0.5)
        stop(trial)
        n = trial.suggest_int("n", 1, 3)
        stop(trial)
        c = trial.suggest_categorical("c", ["a", "b"])
        stop(trial)
        return (x - 0.2) ** 2 * n + (c == "a")

    def mixed(trial: optuna.Trial) -> float:
        stop(trial)
        x = trial.suggest_float("x", -1, 1)
        stop(trial)
        rate = trial.suggest_float("rate", 1e-4, 1, log=True)
        stop(trial)
        n = trial.suggest_int("n", 1, 8)
        stop(trial)
        value = (x - 0.3) ** 2 + abs(rate - 0.01) + 0.1 * n
        c = trial.suggest_categorical("c", ["a", "b", "c"])
        stop(trial)
        if c == "a" and not name.startswith(_UNCONDITIONAL):
            value += trial.suggest_float("only-a", 0, 1)
            stop(trial)
        if trial.number % 6 == 5:
            trial.report(value, 0)
            raise optuna.TrialPruned
        return value

    return finite if name in _FINITE else mixed


def table(study: optuna.Study) -> list[tuple[Any, ...]]:
    """Return the content of a study's trials."""
    return [(t.number, t.state.name, t.params, t.values, t.intermediate_values) for t in study.trials]


def run_study(
    name: str,
    make_sampler: Callable[[], BaseSampler],
    trials: int,
    *,
    storage: BaseStorage | None = None,
    stop: Callable[[optuna.Trial], None] = lambda _: None,
    study_name: str = "study",
) -> optuna.Study:
    """Run a study to its number of trials; after each kill with new objects and the killed trial set to waiting."""
    storage = InMemoryStorage() if storage is None else storage
    objective = make_objective(name, stop)
    while True:
        study = optuna.create_study(storage=storage, study_name=study_name, load_if_exists=True, sampler=make_sampler())
        try:
            while len(study.get_trials(deepcopy=False, states=(TrialState.COMPLETE, TrialState.PRUNED))) < trials:
                study.optimize(objective, n_trials=1)
        except Killed:
            for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
                storage.set_trial_state_values(trial._trial_id, TrialState.WAITING)
        else:
            return study


class EveryNth:
    """Kills every n-th trial once, each time at another suggestion."""

    def __init__(self, n: int) -> None:
        self._n = n
        self._passed: dict[int, int] = {}
        self.kills = 0

    def __call__(self, trial: optuna.Trial) -> None:
        if trial.number % self._n == 0:
            passed = self._passed[trial.number] = self._passed.get(trial.number, -1) + 1
            if passed == trial.number // self._n % 4:
                self.kills += 1
                raise Killed


class MortalStorage(InMemoryStorage):
    """A storage whose process is sometimes killed just after a write."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self._chance = random.Random(seed)
        self.kills = 0

    def set_study_system_attr(self, study_id: int, key: str, value: Any) -> None:
        super().set_study_system_attr(study_id, key, value)
        self._maybe_die()

    def set_trial_system_attr(self, trial_id: int, key: str, value: Any) -> None:
        super().set_trial_system_attr(trial_id, key, value)
        self._maybe_die()

    def set_trial_param(self, *args: Any, **kwargs: Any) -> None:
        super().set_trial_param(*args, **kwargs)
        self._maybe_die()

    def _maybe_die(self) -> None:
        if self._chance.random() < 0.2:
            self.kills += 1
            raise Killed
