"""Every benchmark, or those named on the command line: `python -m benchmarks [name ...]`."""

from __future__ import annotations

import argparse
import importlib
import logging
import os
import platform
import time
from typing import Final

# Before torch is imported: the comparison must not depend on how many cores are idle.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch

from benchmarks._table import Table

NAMES: Final = (
    "step_overhead",
    "resume",
    "checkpoint",
    "state",
    "ordering",
    "importing",
    "tuning",
    "distributed",
    "resume_study",
    "sampler_quality",
)


def main() -> None:
    """Run benchmarks one after another, and print their tables."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="Measure Helios beside bare torch.")
    parser.add_argument("names", nargs="*", metavar="name", help=f"one of {', '.join(NAMES)}; all if there is none")
    names = parser.parse_args().names or NAMES
    unknown = [name for name in names if name not in NAMES]
    if unknown:
        parser.error(f"there is no benchmark {', '.join(unknown)}: choose from {', '.join(NAMES)}")
    torch.set_num_threads(1)
    # Each of the hundreds of small runs would say that it has ended.
    logging.getLogger("helios").addFilter(lambda record: record.levelno > logging.INFO)
    print(f"torch {torch.__version__}, Python {platform.python_version()}, {os.cpu_count()} cores, one thread\n")
    begin = time.perf_counter()
    for name in names:
        module = importlib.import_module(f"benchmarks.{name}")
        tables = module.run()
        for table in [tables] if isinstance(tables, Table) else tables:
            print(table.render(), end="\n\n", flush=True)
    print(f"Measured in {time.perf_counter() - begin:.0f} s.")


if __name__ == "__main__":
    main()
