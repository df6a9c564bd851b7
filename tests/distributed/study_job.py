"""A study under `torchrun`, as tests.plugins.optuna.studies makes it, in a database that outlives the job."""

import sys
from pathlib import Path

from helios.plugins.optuna import run_study
from tests.plugins.optuna.studies import StudySpec, make_objective, make_study

if __name__ == "__main__":
    folder, spec = Path(sys.argv[1]), StudySpec(trials=int(sys.argv[2]), sleep=float(sys.argv[3]))
    run_study(lambda: make_study(spec, folder), make_objective(spec, folder), spec.trials)
