"""The results of a `ReproducibleSampler` and of its inner sampler: `python -m benchmarks sampler_quality`."""

from __future__ import annotations

import math
import random
import statistics
import time
import warnings
from typing import TYPE_CHECKING, Final

import numpy as np
import optuna
from optuna.distributions import FloatDistribution
from optuna.samplers import BaseSampler, CmaEsSampler, QMCSampler, RandomSampler, TPESampler

from benchmarks._table import Table
from helios.plugins.optuna.samplers.reproducible import ReproducibleSampler

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

_SEEDS: Final = 20
_TRIALS: Final = 30
_TIMED_TRIALS: Final = 10
_SIZES: Final = (100, 1000)


def run() -> list[Table]:
    """Compare wrapped and plain samplers: the best values, and the time for a trial."""
    verbosity = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            return [run_quality(), run_cost()]
    finally:
        optuna.logging.set_verbosity(verbosity)


def run_quality() -> Table:
    """Compare the best values that plain and wrapped samplers find, by a rank test."""
    rows, notes = [], []
    for sampler, make in _SAMPLERS.items():
        scores = []
        for i, (name, objective) in enumerate(_OBJECTIVES.items()):
            # Different seeds for each function: otherwise all functions would be evaluated at the same points.
            seeds = range(i * _SEEDS, (i + 1) * _SEEDS)
            plain = [_find_best(make(seed), objective) for seed in seeds]
            wrapped = [_find_best(ReproducibleSampler(make, seed), objective) for seed in seeds]
            scores.append(rank_score(wrapped, plain))
            medians = (f"{statistics.median(values):.4g}" for values in (plain, wrapped))
            rows.append((f"{sampler}, {name}", *medians, f"{_p_value(scores[-1]):.3f}"))
        together = sum(scores) / math.sqrt(len(scores))
        notes.append(f"{sampler}: z = {together:+.2f} over all functions, p = {_p_value(together):.3f}")
    return Table(
        f"Best value after {_TRIALS} trials: median over {_SEEDS} seeds",
        ("sampler, function", "plain", "wrapped", "p"),
        tuple(rows),
        (
            f"Two-sided Mann-Whitney test: of {len(rows)} values of p, one is below 0.05 by chance.",
            "z above 0: the wrapped sampler has higher values, which is worse.",
            *notes,
        ),
    )


def run_cost() -> Table:
    """Measure the time of a sampler for a trial with five parameters; the objective takes no time."""
    rows = []
    for sampler, make in _SAMPLERS.items():
        for size in _SIZES:
            times = (_time_per_trial(make(1), size), _time_per_trial(ReproducibleSampler(make, 1), size))
            rows.append((f"{sampler}, {size:,} trials", *(f"{1000 * seconds:.1f} ms" for seconds in times)))
    return Table("Time for a trial", ("sampler, finished", "plain", "wrapped"), tuple(rows))


def rank_score(values: Sequence[float], others: Sequence[float]) -> float:
    """Return the Mann-Whitney z score of `values` against `others` (1947, corrected for ties)."""
    unique, places = np.unique([*values, *others], return_inverse=True)
    counts = np.bincount(places, minlength=len(unique))
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[places]
    n, m = len(values), len(others)
    total = n + m
    above = ranks[:n].sum() - n * (n + 1) / 2 - n * m / 2
    variance = n * m / 12 * (total + 1 - float((counts**3 - counts).sum()) / (total * (total - 1)))
    return float(above / math.sqrt(variance)) if variance else 0.0


def _p_value(z: float) -> float:
    return math.erfc(abs(z) / math.sqrt(2))


def _find_best(sampler: BaseSampler, objective: Callable[[optuna.Trial], float]) -> float:
    study = optuna.create_study(sampler=sampler)
    study.optimize(objective, n_trials=_TRIALS)
    return study.best_value


def _time_per_trial(sampler: BaseSampler, finished: int) -> float:
    chance = random.Random(0)
    space = {f"x{i}": FloatDistribution(-1, 1) for i in range(5)}
    study = optuna.create_study(sampler=sampler)
    study.add_trials(
        [
            optuna.create_trial(
                params={name: chance.uniform(-1, 1) for name in space},
                distributions=dict(space),
                value=chance.random(),
            )
            for _ in range(finished)
        ]
    )

    def objective(trial: optuna.Trial) -> float:
        return sum(trial.suggest_float(name, -1, 1) ** 2 for name in space)

    study.optimize(objective, n_trials=2)
    begin = time.perf_counter()
    study.optimize(objective, n_trials=_TIMED_TRIALS)
    return (time.perf_counter() - begin) / _TIMED_TRIALS


def _sphere(trial: optuna.Trial) -> float:
    return sum((trial.suggest_float(f"x{i}", -5, 5) - 1.3) ** 2 for i in range(4))


def _rosenbrock(trial: optuna.Trial) -> float:
    x, y = trial.suggest_float("x", -2, 2), trial.suggest_float("y", -1, 3)
    return (1 - x) ** 2 + 100 * (y - x * x) ** 2


def _branin(trial: optuna.Trial) -> float:
    x, y = trial.suggest_float("x", -5, 10), trial.suggest_float("y", 0, 15)
    valley = y - 5.1 / (4 * math.pi**2) * x * x + 5 / math.pi * x - 6
    return valley**2 + 10 * (1 - 1 / (8 * math.pi)) * math.cos(x) + 10


def _rastrigin(trial: optuna.Trial) -> float:
    xs = [trial.suggest_float(f"x{i}", -5.12, 5.12) for i in range(3)]
    return 10 * len(xs) + sum(x * x - 10 * math.cos(2 * math.pi * x) for x in xs)


def _mixed(trial: optuna.Trial) -> float:
    """An objective with the parameters of a training run: a rate, a width, an optimizer and a decay."""
    rate = math.log10(trial.suggest_float("rate", 1e-5, 1, log=True))
    width = trial.suggest_int("width", 8, 256, log=True)
    value = (rate + 2.5) ** 2 + abs(math.log2(width) - 6) / 2
    kind = trial.suggest_categorical("kind", ["sgd", "adam", "rmsprop"])
    return value + {"sgd": 0.5, "adam": 0.0, "rmsprop": 0.3}[kind] + trial.suggest_float("decay", 0, 0.5)


_OBJECTIVES: Final = {
    "sphere": _sphere,
    "Rosenbrock": _rosenbrock,
    "Branin": _branin,
    "Rastrigin": _rastrigin,
    "mixed": _mixed,
}
_SAMPLERS: Final[dict[str, Callable[[int], BaseSampler]]] = {
    "Random": lambda seed: RandomSampler(seed=seed),
    "TPE": lambda seed: TPESampler(seed=seed),
    "CMA-ES": lambda seed: CmaEsSampler(seed=seed, warn_independent_sampling=False),
    "QMC": lambda seed: QMCSampler(seed=seed, scramble=True, warn_independent_sampling=False),
}
