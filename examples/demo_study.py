"""The second part of the demo: an uninterrupted study, and one that is killed twice and resumed."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import shutil
import uuid
from typing import TYPE_CHECKING, Any

import optuna
import torch
from optuna.trial import TrialState
from sqlalchemy import make_url

import helios.plugins.optuna as hlpo
import tuning
from demo_processes import Pulse, fork_ranks, run_process, say

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

# The middle of a trial's second epoch: there is a checkpoint to resume from, and no trial was pruned yet.
KILL_AT = 3 * (tuning.TRAINING // tuning.BATCH_SIZE) // 2


def tune(position: Path, storage: str, name: str, root: Path, trials: int, ranks: int) -> None:
    """Run the study to its end, from its current state. Each process calls this."""
    fork_ranks()
    torch.set_num_threads(1)  # More threads do not speed up such a small network.
    reduce_logging()
    objective = tuning.make_objective(root, Pulse(position), ranks=ranks)

    def printing_objective(trial: optuna.Trial) -> float:
        print(f" {trial.number}", end="", flush=True)
        return objective(trial)

    hlpo.run_study(lambda: tuning.load_study(storage, name), printing_objective, trials)


def reduce_logging() -> None:
    """Log warnings only: the output shows the numbers of the trials."""
    logging.getLogger("helios").setLevel(logging.WARNING)
    optuna.logging.set_verbosity(optuna.logging.WARNING)


def read_table(study: optuna.Study) -> list[dict[str, Any]]:
    """Return the part of the trials that a kill must not change, as plain data."""
    return [
        {
            "number": trial.number,
            "state": trial.state.name,
            "params": trial.params,
            "values": trial.values,
            "intermediate values": {str(step): trial.intermediate_values[step] for step in trial.intermediate_values},
        }
        for trial in study.trials
    ]


def hash_table(table: list[dict[str, Any]]) -> str:
    """Return the SHA-256 of a table."""
    return hashlib.sha256(json.dumps(table, sort_keys=True).encode()).hexdigest()


@contextlib.contextmanager
def fresh_storage(folder: Path, names: list[str]) -> Iterator[str]:
    """Yield the URL of the database; studies in the database of DATABASE_URL are deleted afterwards."""
    shutil.rmtree(folder, ignore_errors=True)  # From an earlier demo.
    folder.mkdir(parents=True)
    storage = tuning.find_storage(folder)
    try:
        yield storage
    finally:
        if os.environ.get("DATABASE_URL"):
            for name in names:
                with contextlib.suppress(KeyError):  # It was not created yet.
                    optuna.delete_study(study_name=name, storage=storage)


def run_with_kills(storage: str, name: str, root: Path, trials: int, ranks: int) -> None:
    """Run a study that is killed in two of its trials and started again each time."""
    print("trials:", end="", flush=True)
    for trial in (trials // 3, 2 * trials // 3):
        number, iteration = run_process(tune, storage, name, root, trials, ranks, kill_at=(trial, KILL_AT))
        finished = len(tuning.load_study(storage, name).get_trials(states=(TrialState.COMPLETE, TrialState.PRUNED)))
        print(f"\nSIGKILL in trial {number}, after iteration {iteration}; {finished} trials have finished")
        print("started again:", end="", flush=True)
    run_process(tune, storage, name, root, trials, ranks)
    print()


def report(left_alone: list[dict[str, Any]], resumed: list[dict[str, Any]], trials: int) -> bool:
    """Print a summary of both studies, and return whether they are equal and complete."""
    print(f"\n{'':20}{'trials':8}{'complete':10}{'pruned':8}SHA-256 of the table of trials")
    for label, table in (("left alone", left_alone), ("killed twice", resumed)):
        states = [row["state"] for row in table]
        counts = f"{len(table):<8}{states.count('COMPLETE'):<10}{states.count('PRUNED'):<8}"
        print(f"{label:20}{counts}{hash_table(table)}")
    is_equal = left_alone == resumed
    is_complete = len(resumed) == trials
    print(f"\nparameters, values, states and the values on the way: {'EQUAL' if is_equal else 'NOT EQUAL'}")
    if not is_complete:
        print(f"there are not {trials} trials, but {len(resumed)}")
    return is_equal and is_complete


def compare_studies(output: Path, trials: int, ranks: int) -> bool:
    """Run a study without and with two kills, print a comparison, and write a report.

    Args:
        output: the output folder.
        trials: the number of trials of the study.
        ranks: the number of processes that train each trial.

    Returns:
        Whether both studies have equal trials and the given number of them.
    """
    reduce_logging()
    run = uuid.uuid4().hex[:8]
    names = [f"helios-demo-{run}-left-alone", f"helios-demo-{run}-killed"]
    folder = output / "study"
    with fresh_storage(folder, names) as storage:
        kind = "a SQLite file" if make_url(storage).get_backend_name() == "sqlite" else "the database in DATABASE_URL"
        say(f"4 of 5: a study of {trials} trials in {kind}, left alone")
        print("trials:", end="", flush=True)
        run_process(tune, storage, names[0], folder / "left-alone", trials, ranks)
        print()
        say("5 of 5: the same study from its start, to be killed in the middle of two trials")
        run_with_kills(storage, names[1], folder / "killed", trials, ranks)

        studies = [tuning.load_study(storage, name) for name in names]
        is_good = report(read_table(studies[0]), read_table(studies[1]), trials)
        best = studies[1].best_trial
        params = (
            f"{name} {f'{value:.3g}' if isinstance(value, float) else value}" for name, value in best.params.items()
        )
        print(f"best trial: number {best.number}, accuracy {100 * studies[1].best_value:.2f} %, {', '.join(params)}")
        print(f"report: {hlpo.write_report(studies[1], output / 'study.html')}")
    return is_good
