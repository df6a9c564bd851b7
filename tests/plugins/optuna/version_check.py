"""Uses each part of the Optuna bridge once: `python -m tests.plugins.optuna.version_check FOLDER` prints its version.

`test_optuna_versions.py` runs it with other releases of Optuna than the installed one.
"""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import optuna
from optuna.trial import TrialState

from helios.plugins.optuna import checkpoint_sampler, restore_sampler, resume_study, run_study, write_report
from tests.plugins.optuna.studies import StudySpec, make_objective, make_study, table, url_of

if TYPE_CHECKING:
    from collections.abc import Callable

SPEC = StudySpec("tpe", "median", trials=6)
INTERRUPTED = 2
FAILED = 4


def disturbed(objective: Callable[[optuna.Trial], float]) -> Callable[[optuna.Trial], float]:
    """Return the objective, which raises once in each of two trials: Ctrl-C after the training, and an error before."""
    disturbed_trials = set()

    def run(trial: optuna.Trial) -> float:
        is_first = trial.number not in disturbed_trials
        disturbed_trials.add(trial.number)
        if trial.number == FAILED and is_first:
            raise ArithmeticError
        try:
            return objective(trial)
        finally:
            if trial.number == INTERRUPTED and is_first:
                raise KeyboardInterrupt

    return run


def check_resumed_study(folder: Path) -> optuna.Study:
    """Run a study, and one that is interrupted, fails and is resumed: both have the same trials, some pruned."""
    for name in ("whole", "resumed"):
        (folder / name / "study").mkdir(parents=True)
    whole, resumed = folder / "whole" / "study", folder / "resumed" / "study"
    run_study(lambda: make_study(SPEC, whole), make_objective(SPEC, whole), SPEC.trials)
    objective = disturbed(make_objective(SPEC, resumed))
    with contextlib.suppress(KeyboardInterrupt):
        run_study(lambda: make_study(SPEC, resumed), objective, SPEC.trials)
    with contextlib.suppress(ArithmeticError):
        run_study(lambda: make_study(SPEC, resumed), objective, SPEC.trials)
    study = make_study(SPEC, resumed)
    assert study.trials[INTERRUPTED].state.is_finished()
    assert study.trials[FAILED].state is TrialState.FAIL
    args: dict[str, Any] = {"study_name": "study", "storage": url_of(SPEC, resumed), "load_if_exists": True}
    assert resume_study(args).trials[FAILED].state is TrialState.WAITING
    study = run_study(lambda: make_study(SPEC, resumed), objective, SPEC.trials)
    assert table(SPEC, resumed) == table(SPEC, whole)
    assert {trial.state for trial in study.trials} == {TrialState.COMPLETE, TrialState.PRUNED}
    return study


def check_saved_sampler(folder: Path) -> None:
    """Save a sampler after each trial, and restore it: the last trial is the same as without the break."""

    def objective(trial: optuna.Trial) -> float:
        value = trial.suggest_float("x", 0, 1)
        checkpoint_sampler(trial, folder / "samplers")
        return value

    study = optuna.create_study(sampler=optuna.samplers.TPESampler(seed=1, n_startup_trials=2))
    study.optimize(objective, n_trials=3)
    other = optuna.create_study(sampler=restore_sampler(folder / "samplers"))
    other.add_trials(study.trials)
    for each in (study, other):
        each.optimize(lambda trial: trial.suggest_float("x", 0, 1), n_trials=1)
    assert study.trials[-1].params == other.trials[-1].params


def main(folder: Path) -> None:
    """Check everything, and print which Optuna was used."""
    study = check_resumed_study(folder)
    check_saved_sampler(folder)
    report = write_report(study, folder / "report.html").read_text(encoding="utf-8")
    assert "Trials" in report
    print(optuna.__version__, optuna.__file__)  # noqa: T201 - its output.


if __name__ == "__main__":
    main(Path(sys.argv[1]))
