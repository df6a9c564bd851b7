"""A job of which one rank gets into trouble, or waits for who comes to kill it, while the other one waits for it.

Each rank leaves a file in a folder if it was told what has happened, with the time, and with what it was told.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final
from unittest import mock

import optuna

from helios.core import lookout
from helios.core.distributed import get_dist_info
from helios.errors import RankFailedError
from helios.plugins.optuna import run_study
from tests.distributed.parts import PATIENCE, Trouble, fit_into

if TYPE_CHECKING:
    from collections.abc import Callable

SILENCE: Final = 3.0  # Seconds, in place of a minute: a thread of its own beats once a second, on a busy machine too.
GRACE: Final = 1.0  # Seconds. Who is ended here is stuck, and would not notice in five either.


def train(trouble: Trouble) -> None:
    """Train on all ranks."""
    fit_into(trouble, workers=0)


def search(trouble: Trouble) -> None:
    """Run a study of which rank 0 has a long trial, the others a short one: they wait for the next."""

    def objective(trial: optuna.Trial) -> float:
        del trial
        if get_dist_info().rank == 0:
            trouble.mark("waiting")
            time.sleep(PATIENCE)
        return 0.0

    run_study(optuna.create_study, objective, 2)


def main(what: str, folder: Path, rank: int) -> None:
    """Do one of the above, with trouble on a rank."""
    mock.patch.object(lookout, "_SILENCE", SILENCE).start()
    mock.patch.object(lookout, "_GRACE", GRACE).start()
    jobs: dict[str, Callable[[Trouble], None]] = {"train": train, "search": search}
    try:
        jobs[what](Trouble(folder, "backward", rank, "wait"))
    except RankFailedError as error:
        told = {"when": time.monotonic(), "rank": error.rank, "text": str(error)}
        (folder / f"told-{get_dist_info().rank}").write_text(json.dumps(told), encoding="utf-8")
        raise


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]))
