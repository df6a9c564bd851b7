"""A study under `torchrun` in whose first trial rank 1 waits until a stranger has come by, and suggests then."""

from __future__ import annotations

import sys
from pathlib import Path

import optuna

from helios.core.distributed import get_dist_info
from helios.plugins.optuna import run_study
from tests.distributed.parts import wait_for

FOLDER = Path(sys.argv[1])


def objective(trial: optuna.Trial) -> float:
    """Wait on rank 1."""
    if get_dist_info().rank == 1:
        (FOLDER / "waiting").touch()
        wait_for(FOLDER / "visited")
    return trial.suggest_float("x", 0, 1)


if __name__ == "__main__":
    run_study(optuna.create_study, objective, 3)
