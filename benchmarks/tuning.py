"""The cost of `OptunaPlugin` in training; run with `python -m benchmarks tuning`."""

from __future__ import annotations

import functools
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any, Final

import optuna
from optuna.storages import RDBStorage

from benchmarks._idle import Idle, Ready
from benchmarks._table import Table
from benchmarks._timing import interleave, verdict
from helios import Trainer
from helios.plugins.optuna import OptunaPlugin

_SIZES: Final = (20, 1_000, 10_000)  # Finished trials.
_REPORTS: Final = 4  # Of each finished trial.
_STEPS: Final = 20_000
_ROUNDS: Final = 9
_REPORTS_TIMED: Final = 15


def _make_study(folder: Path, trials: int) -> optuna.Study:
    """Return a study in a SQLite file with finished trials and their intermediate values."""
    database = RDBStorage(f"sqlite:///{folder / f'{trials}.db'}")
    study = optuna.create_study(
        storage=database,
        sampler=optuna.samplers.RandomSampler(seed=0),
        pruner=optuna.pruners.MedianPruner(),
    )
    _fill(database, database.get_study_id_from_name(study.study_name), trials)
    return study


def _fill(database: RDBStorage, study_id: int, trials: int) -> None:
    """Write the trials into the tables: Optuna would take tens of milliseconds for each."""
    from optuna.storages._rdb import models  # noqa: PLC0415 - Optuna has no public method for that.
    from sqlalchemy import insert  # noqa: PLC0415 - as above.

    now = optuna.trial.create_trial(value=0.0).datetime_start
    numbers = range(trials)
    distribution = optuna.distributions.distribution_to_json(optuna.distributions.FloatDistribution(0.0, 1.0))
    rows: dict[Any, list[dict[str, Any]]] = {
        models.TrialModel: [
            {
                "trial_id": n + 1,
                "number": n,
                "study_id": study_id,
                "state": optuna.trial.TrialState.COMPLETE,
                "datetime_start": now,
                "datetime_complete": now,
            }
            for n in numbers
        ],
        models.TrialParamModel: [
            {"trial_id": n + 1, "param_name": "x", "param_value": n / trials, "distribution_json": distribution}
            for n in numbers
        ],
        models.TrialValueModel: [
            {
                "trial_id": n + 1,
                "objective": 0,
                "value": n / trials,
                "value_type": models.TrialValueModel.TrialValueType.FINITE,
            }
            for n in numbers
        ],
        models.TrialIntermediateValueModel: [
            {
                "trial_id": n + 1,
                "step": step,
                "intermediate_value": n / trials,
                "intermediate_value_type": models.TrialIntermediateValueModel.TrialIntermediateValueType.FINITE,
            }
            for n in numbers
            for step in range(_REPORTS)
        ],
    }
    with database.engine.begin() as connection:
        for model, values in rows.items():
            connection.execute(insert(model), values)


def _fit(trial: optuna.Trial | None, batches: list[int]) -> None:
    trainer, model = Trainer(total_steps=1, use_cpu=True, print_banner=False), Idle("idle")
    if trial is not None:
        OptunaPlugin(trial, "score").configure_trainer(trainer)
    trainer.fit(model, Ready(batches))


def _time_reports(study: optuna.Study) -> list[float]:
    """Return the times of a trial's reports in milliseconds, each with a call of `should_prune`."""
    trial = study.ask()
    trial.suggest_float("x", 0.0, 1.0)
    milliseconds = []
    for step in range(_REPORTS_TIMED):
        begin = time.perf_counter()
        trial.report(0.0, step)
        trial.should_prune()
        milliseconds.append((time.perf_counter() - begin) * 1e3)
    study.tell(trial, 0.0)
    return milliseconds


def run() -> Table:
    """Measure a training step and a report, with studies of few and of many finished trials."""
    batches = [0] * _STEPS
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    with tempfile.TemporaryDirectory() as folder:
        studies = {trials: _make_study(Path(folder), trials) for trials in _SIZES}
        trials = {size: study.ask() for size, study in studies.items()}
        seconds = interleave(
            {
                "without start": lambda: _fit(None, [0]),
                "without": lambda: _fit(None, batches),
                **{f"{size} start": functools.partial(_fit, trials[size], [0]) for size in _SIZES},
                **{f"{size}": functools.partial(_fit, trials[size], batches) for size in _SIZES},
            },
            _ROUNDS,
            clock=time.process_time,
        )
        reports = {size: _time_reports(study) for size, study in studies.items()}
    # The start and the end of a run depend on the size of the study, and are subtracted.
    per_step = {
        name: [
            (whole - start) / _STEPS * 1e6 for whole, start in zip(seconds[name], seconds[f"{name} start"], strict=True)
        ]
        for name in ("without", *map(str, _SIZES))
    }
    without = statistics.median(per_step["without"])
    rows = [("without the plug-in", f"{without:.2f} µs", "", "", "", "")]
    for size in _SIZES:
        added = statistics.median(a - b for a, b in zip(per_step[str(size)], per_step["without"], strict=True))
        rows.append(
            (
                f"{size:,} finished trials",
                f"{statistics.median(per_step[str(size)]):.2f} µs",
                f"{added:+.2f} µs",
                verdict(added, 5, "at most 5 µs"),
                f"{statistics.median(reports[size]):.1f} ms",
                f"{reports[size][0]:.1f} ms",
            )
        )
    return Table(
        "An empty step with OptunaPlugin, and a report",
        ("study on SQLite", "per step", "added", "target", "a report", "the first one"),
        tuple(rows),
        (
            f"{_STEPS:,} steps, without start and end of a run; medians of {_ROUNDS} rounds, in processor time.",
            f"A report calls the median pruner: medians of {_REPORTS_TIMED}; Optuna reads the study at the first one.",
        ),
    )
