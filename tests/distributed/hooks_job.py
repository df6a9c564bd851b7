"""A job of `torchrun` that runs into faults, one after the other, and writes down what each rank was told."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

from helios.core.distributed import get_dist_info
from tests.faults.hooks import Fault, run


def main(folder: Path, faults: list[tuple[str, int]]) -> None:
    """Run into each of these."""
    for number, (place, rank) in enumerate(faults):
        home = folder / f"{number}"
        home.mkdir(exist_ok=True)
        try:
            run(Fault(home, place, rank), None)
        except Exception as error:  # noqa: BLE001 - whatever it is, it is what is looked at.
            told = {"type": type(error).__name__, "text": str(error), "when": time.monotonic()}
        else:
            told = {"type": "", "text": "", "when": time.monotonic()}
        (home / f"told-{get_dist_info().rank}").write_text(json.dumps(told), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]), json.loads(sys.argv[2]))
