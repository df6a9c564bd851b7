"""Databases that are full, deleted or damaged under a study: one error of ours with the remedy, and nothing is lost."""

from __future__ import annotations

import resource
import signal
from pathlib import Path
from typing import TYPE_CHECKING, Any

import optuna
import pytest
import sqlalchemy
from optuna.trial import TrialState

from helios.errors import ArgumentTypeError, StudyStorageError, TrainingError
from helios.plugins.optuna import ReproducibleSampler, resume_study, run_study, write_report

if TYPE_CHECKING:
    from collections.abc import Iterator

TRIALS = 6
BAD_MOMENT = 3
URL = "sqlite:///study.db"


class Disk:
    """A study, and a setting of SQLite's that all of its connections get."""

    def __init__(self) -> None:
        self.setting = "max_page_count = 1000000"

    def make_study(self) -> optuna.Study:
        study = optuna.create_study(
            study_name="s",
            storage=URL,
            load_if_exists=True,
            sampler=ReproducibleSampler(optuna.samplers.TPESampler, seed=1),
        )
        storage: Any = study._storage
        sqlalchemy.event.listen(storage._backend.engine, "checkout", self._set)
        return study

    def _set(self, connection: Any, *_: object) -> None:
        connection.execute(f"PRAGMA {self.setting}")


def objective(trial: optuna.Trial) -> float:
    x = trial.suggest_float("x", 0, 1)
    trial.set_user_attr("text", "y" * 20_000)
    return (x - 0.3) ** 2


def table(study: optuna.Study) -> list[Any]:
    return [(trial.number, trial.state, trial.params, trial.values, trial.user_attrs) for trial in study.trials]


@pytest.fixture
def expected(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Return the table of trials of the study that nobody disturbed; the test continues in a folder of its own."""
    for name in ("undisturbed", "disturbed"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path / "undisturbed")
    result = table(run_study(Disk().make_study, objective, TRIALS))
    monkeypatch.chdir(tmp_path / "disturbed")
    return result


@pytest.mark.parametrize(
    ("setting", "is_in_objective", "message"),
    [
        # SQLite takes no page more, as on a full disk.
        ("max_page_count = 1", True, r"\(database or disk is full\): its disk is full\. .*: make room, and then run"),
        ("query_only = ON", True, r"readonly database\): it was deleted, moved away or made read-only"),
        ("query_only = ON", False, r"readonly database\): it was deleted, moved away or made read-only"),
    ],
)
def test_a_database_that_cannot_be_written_loses_nothing(
    expected: list[Any], setting: str, message: str, *, is_in_objective: bool
) -> None:
    """Full or read-only, in the middle of a trial or at its end: no trial has failed, and the next call continues."""
    disk = Disk()

    def disturbed(trial: optuna.Trial) -> float:
        if trial.number != BAD_MOMENT:
            return objective(trial)
        trial.suggest_float("x", 0, 1)
        value = None if is_in_objective else objective(trial)
        disk.setting = setting
        return objective(trial) if value is None else value

    with pytest.raises(StudyStorageError, match=message):
        run_study(disk.make_study, disturbed, TRIALS)
    states = [trial.state for trial in optuna.load_study(study_name="s", storage=URL).trials]
    assert states[:-1] == [TrialState.COMPLETE] * BAD_MOMENT
    assert states[-1] in (TrialState.RUNNING, TrialState.WAITING)
    assert table(run_study(Disk().make_study, objective, TRIALS)) == expected


@pytest.mark.parametrize("is_in_objective", [True, False])
def test_a_database_that_is_deleted_is_kept(expected: list[Any], *, is_in_objective: bool) -> None:
    """What a deleted file held is written beside it and named; given the old name, the study continues."""

    def deleting(trial: optuna.Trial) -> float:
        value = 0.0 if is_in_objective else objective(trial)
        if trial.number == BAD_MOMENT:
            Path("study.db").unlink()
        return objective(trial) if is_in_objective else value

    with pytest.raises(StudyStorageError, match=r"study\.db', was deleted .* is in '.*study-rescued-1\.db'"):
        run_study(Disk().make_study, deleting, TRIALS)
    Path("study-rescued-1.db").rename("study.db")
    assert table(run_study(Disk().make_study, objective, TRIALS)) == expected


def test_a_file_that_is_no_database_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A damaged file is one error of ours, with the remedy, in every function that opens it; it is left as it is."""
    monkeypatch.chdir(tmp_path)
    Path("study.db").write_bytes(b"not a database at all" * 100)
    for attempt in (
        lambda: run_study(Disk().make_study, objective, 1),
        lambda: resume_study({"study_name": "s", "storage": URL, "load_if_exists": True}),
        lambda: write_report(URL, "page.html"),
    ):
        with pytest.raises(StudyStorageError, match="file is not a database.*: it is damaged.* from a backup"):
            attempt()
    assert Path("study.db").read_bytes() == b"not a database at all" * 100


def test_a_backup_without_room_changes_nothing(expected: list[Any]) -> None:
    """Where there is no room for the backup, `resume_study` says so, and the study is as it was."""

    def failing(trial: optuna.Trial) -> float:
        if trial.number == BAD_MOMENT:
            raise ArithmeticError
        return objective(trial)

    with pytest.raises(ArithmeticError):
        run_study(Disk().make_study, failing, TRIALS)
    before = Path("study.db").read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, limits[1]))
    arguments = {"study_name": "s", "storage": URL, "load_if_exists": True}
    try:
        with pytest.raises(StudyStorageError, match="could not be backed up .* and was not changed: make room"):
            resume_study(arguments)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert Path("study.db").read_bytes() == before
    assert not list(Path().glob("*backup*"))
    resume_study(arguments)
    assert table(run_study(Disk().make_study, objective, TRIALS)) == expected


def test_errors_of_the_objectives_own_stay(expected: list[Any]) -> None:
    """A database of the user's own that fails in the objective fails the trial, with its own error."""

    def failing(_: optuna.Trial) -> float:
        raise sqlalchemy.exc.OperationalError("statement", {}, ArithmeticError("own"))

    with pytest.raises(sqlalchemy.exc.OperationalError, match="own"):
        run_study(Disk().make_study, failing, TRIALS)
    assert [trial.state for trial in Disk().make_study().trials] == [TrialState.FAIL]
    assert expected


@pytest.mark.parametrize("values", [None, "1.5", [1.0, 2.0], [], [None]])
def test_an_objective_that_returns_no_number_is_named(values: Any) -> None:
    """What is no number ends the study with an error: Optuna alone would fail trials without end."""
    with pytest.raises(ArgumentTypeError, match="the objective returned .* for trial 0: return a number"):
        run_study(optuna.create_study, lambda _: values, 2)


def test_a_study_of_nan_alone_ends() -> None:
    """Some trials may come to nan; when a hundred in a row have, the study ends with an error in place of never."""
    values = iter([float("nan")] * 50 + [1.0] + [float("nan")] * 1000)
    study = optuna.create_study()
    with pytest.raises(TrainingError, match="returned nan for 100 trials in a row"):
        run_study(lambda: study, lambda _: next(values), 2)
    assert len(study.trials) == 151


@pytest.fixture(autouse=True)
def quiet_optuna() -> Iterator[None]:
    """Leave out what Optuna says about every trial."""
    level = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.CRITICAL)
    yield
    optuna.logging.set_verbosity(level)
