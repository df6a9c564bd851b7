"""Jobs of which one rank waits for who comes to kill it or to cut it off, and the other for that one.

A rank that is told what has become of the other leaves a file with what, and when.
"""

from __future__ import annotations

import json
import signal
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final
from unittest import mock

import optuna

from helios.core.distributed import get_dist_info
from helios.errors import RankFailedError
from helios.plugins.optuna import run_study
from helios.ranks import limits
from tests.distributed.parts import PATIENCE, Broken, Trouble, fit_into

if TYPE_CHECKING:
    from collections.abc import Callable

GRACE: Final = 1.0  # Seconds in place of five: who is ended here is stuck, and will not notice anything by itself.


def train(trouble: Trouble) -> None:
    """Wait in one rank's backward pass, and so in the exchange of gradients on the other."""
    fit_into(trouble, workers=0)


def search(trouble: Trouble) -> None:
    """Wait in a trial on rank 0, and for the next one on rank 1."""

    def objective(trial: optuna.Trial) -> float:
        del trial
        if get_dist_info().rank == 0:
            time.sleep(PATIENCE)
        trouble.mark("waiting")
        return 0.0

    run_study(optuna.create_study, objective, 2)


def fail(trouble: Trouble) -> None:
    """Wait in a trial on rank 0, and raise an error in that of rank 1."""

    def objective(trial: optuna.Trial) -> float:
        del trial
        if get_dist_info().rank == 0:
            time.sleep(PATIENCE)
        trouble.mark("waiting")
        raise Broken

    run_study(optuna.create_study, objective, 2)


JOBS: Final[dict[str, Callable[[Trouble], None]]] = {"train": train, "search": search, "fail": fail}


def main(what: str, folder: Path, rank: int, silence: float) -> None:
    """Do one of these, with a rank that waits and so much silence that is borne."""
    mock.patch.object(limits, "SILENCE", silence).start()
    mock.patch.object(limits, "GRACE", GRACE).start()
    # An agent that has lost its store ends its ranks: maybe before they have found out by themselves.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        JOBS[what](Trouble(folder, "backward", rank, "wait"))
    except RankFailedError as error:
        told = {"when": time.monotonic(), "rank": error.rank, "text": str(error)}
        (folder / f"told-{get_dist_info().rank}").write_text(json.dumps(told), encoding="utf-8")
        raise


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4]))
