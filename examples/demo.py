"""Kill a training run and a study, start them again, and compare them with such that were left alone.

`python examples/demo.py` trains a classifier twice, and runs a study of two dozen trials twice. Each run is a process
of its own. One of each pair is left alone. The other is ended by SIGKILL, which no program can catch, and then started
again. Both trainings must end with the same weights, to the bit; both studies with the same trials.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import classifier
import helios
import tuning
from demo_study import compare_studies
from demo_training import compare_trainings

if TYPE_CHECKING:
    from collections.abc import Sequence

OUTPUT = Path("demo-output")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the demo.

    Returns:
        The exit code: 0 if the runs of each pair are equal, and the trained network is accurate enough.
    """
    parser = argparse.ArgumentParser(description="Kill training runs and studies, resume them, and compare.")
    parser.add_argument("--iterations", type=int, default=classifier.ITERATIONS, help="how long to train (%(default)s)")
    parser.add_argument("--trials", type=int, default=tuning.TRIALS, help="trials of the study (%(default)s)")
    parser.add_argument("--ranks", type=int, default=1, help="processes that train together (%(default)s)")
    options = parser.parse_args(arguments)
    began = time.monotonic()
    print(f"Helios {helios.__version__}: everything is done twice, and one of the two is killed on the way.")
    verdicts = [
        compare_trainings(OUTPUT, options.iterations, options.ranks),
        compare_studies(OUTPUT, options.trials, options.ranks),
    ]
    print(f"\n{time.monotonic() - began:.0f} seconds")
    return 0 if all(verdicts) else 1


if __name__ == "__main__":
    sys.exit(main())
