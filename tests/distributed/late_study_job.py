"""A study in which rank 1 is late: it changes and asks its trial when rank 0 is through with it."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import optuna

from helios.core.distributed import get_dist_info
from helios.plugins.optuna import run_study


def objective(trial: optuna.Trial) -> float:
    """Prune the second trial; on rank 1, note its number in it, late."""
    value = trial.suggest_float("x", 0, 1)
    if get_dist_info().rank == 1:
        time.sleep(0.3)
        trial.set_user_attr("late", trial.number)
        assert trial.params == {"x": value}
    if trial.number == 1:
        raise optuna.TrialPruned
    return value


if __name__ == "__main__":
    study = run_study(optuna.create_study, objective, 3)
    told = [[trial.number, trial.state.name, trial.user_attrs] for trial in study.trials]
    Path(sys.argv[1], f"rank{get_dist_info().rank}").write_text(json.dumps(told), encoding="utf-8")
