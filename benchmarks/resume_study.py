"""The time of `resume_study`; run with `python -m benchmarks resume_study`.

With `DATABASE_URL=postgresql://...` it is also measured in that database, which should be empty.
"""

from __future__ import annotations

import contextlib
import datetime
import statistics
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import optuna
import sqlalchemy as sql
from optuna.distributions import FloatDistribution, distribution_to_json
from optuna.storages import RDBStorage
from optuna.storages._rdb import models
from optuna.trial import TrialState

from benchmarks._table import Table
from helios.core.environment import read_environment
from helios.plugins.optuna import resume_study

if TYPE_CHECKING:
    from collections.abc import Iterator

_SIZES: Final = (100, 1_000, 10_000)
_PARAMS: Final = 3
_REPORTS: Final = 10
_REPEATS: Final = 3


def run() -> Table:
    """Measure studies with 100, 1,000 and 10,000 trials, of which 10% have failed."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    server = read_environment().get("DATABASE_URL")
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        rows += [_measure("SQLite", f"sqlite:///{Path(folder) / f'{size}.db'}", size) for size in _SIZES]
    if server:
        rows += [_measure(sql.make_url(server).get_backend_name(), server, size) for size in _SIZES]
    return Table(
        "resume_study",
        ("study", "with a backup", "without a backup"),
        tuple(rows),
        (
            f"Each trial has {_PARAMS} parameters and {_REPORTS} reports. Medians of {_REPEATS} calls.",
            "Each call opens the database and sets 10% of the trials to waiting.",
        ),
    )


def _measure(database: str, url: str, size: int) -> tuple[str, ...]:
    seconds: dict[bool, list[float]] = {True: [], False: []}
    name = f"bench {size} {time.time_ns()}"
    _fill(url, name, size)
    for turn in range(2 * _REPEATS):
        has_backup = turn % 2 == 0
        begin = time.perf_counter()
        study = resume_study({"study_name": name, "storage": url, "load_if_exists": True}, backup_study=has_backup)
        seconds[has_backup].append(time.perf_counter() - begin)
        waiting = study.get_trials(deepcopy=False, states=(TrialState.WAITING,))
        assert len(waiting) == size // 10
        with _connect(url) as connection:
            trials = models.TrialModel.__table__
            failed = sql.update(trials).where(trials.c.state == TrialState.WAITING).values(state=TrialState.FAIL)
            connection.execute(failed)
    return (
        f"{database}, {size:,} trials",
        *(f"{1000 * statistics.median(seconds[has_backup]):,.0f} ms" for has_backup in (True, False)),
    )


@contextlib.contextmanager
def _connect(url: str) -> Iterator[sql.Connection]:
    engine = RDBStorage(url).engine
    with engine.begin() as connection:
        yield connection
    engine.dispose()


def _fill(url: str, name: str, size: int) -> None:
    """Write the trials into the tables: Optuna would take tens of milliseconds for each."""
    optuna.create_study(storage=url, study_name=name)
    studies, trials = models.StudyModel.__table__, models.TrialModel.__table__
    with _connect(url) as connection:
        study_id = connection.execute(sql.select(studies.c.study_id).where(studies.c.study_name == name)).scalar_one()
        connection.execute(trials.insert(), [_trial(study_id, number) for number in range(size)])
        ids = connection.execute(sql.select(trials.c.trial_id).where(trials.c.study_id == study_id)).scalars().all()
        connection.execute(models.TrialParamModel.__table__.insert(), [row for i in ids for row in _params(i)])
        connection.execute(
            models.TrialIntermediateValueModel.__table__.insert(), [row for i in ids for row in _reports(i)]
        )


def _trial(study_id: int, number: int) -> dict[str, Any]:
    state = TrialState.FAIL if number % 10 == 0 else TrialState.COMPLETE
    now = datetime.datetime(2031, 1, 1)  # noqa: DTZ001 - Optuna's dates have no time zone.
    return {"study_id": study_id, "number": number, "state": state, "datetime_start": now, "datetime_complete": now}


def _params(trial_id: int) -> list[dict[str, Any]]:
    distribution = distribution_to_json(FloatDistribution(0.0, 1.0))
    return [
        {"trial_id": trial_id, "param_name": f"p{i}", "param_value": 0.5, "distribution_json": distribution}
        for i in range(_PARAMS)
    ]


def _reports(trial_id: int) -> list[dict[str, Any]]:
    kind = models.TrialIntermediateValueModel.TrialIntermediateValueType.FINITE
    return [
        {"trial_id": trial_id, "step": step, "intermediate_value": 0.25, "intermediate_value_type": kind}
        for step in range(_REPORTS)
    ]


if __name__ == "__main__":
    print(run().render())
