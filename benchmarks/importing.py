"""What `import helios` takes on top of `import torch`; run with `python -m benchmarks.importing`."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
from typing import Any, Final

from benchmarks._table import Table
from benchmarks._timing import verdict

_ROUNDS: Final = 7
HEAVY: Final = ("optuna", "tensorboard", "pandas", "sklearn", "matplotlib", "plotly", "scipy")
_SCRIPT: Final = """
import json, sys, time
begin = time.process_time()
import torch
middle = time.process_time()
theirs = set(sys.modules)
import helios
end = time.process_time()
tops = {name.partition(".")[0] for name in set(sys.modules) - theirs}
print(json.dumps({"torch": middle - begin, "helios": end - middle, "tops": sorted(tops)}))
"""


def _measure() -> dict[str, Any]:
    """Return the seconds of both imports, and what helios imports, in an interpreter of their own."""
    done = subprocess.run([sys.executable, "-c", _SCRIPT], capture_output=True, check=True, text=True)
    measured: dict[str, Any] = json.loads(done.stdout)
    return measured


def run() -> Table:
    """Measure in several interpreters, after one that fills the disk's cache."""
    rounds = [_measure() for _ in range(_ROUNDS + 1)][1:]
    torch_ms, helios_ms = (statistics.median(one[name] for one in rounds) * 1e3 for name in ("torch", "helios"))
    heavy = [name for name in HEAVY if name in rounds[0]["tops"]]
    return Table(
        "Importing",
        ("what", "measured", "target"),
        (
            ("import torch", f"{torch_ms:.0f} ms", ""),
            ("import helios, after it", f"{helios_ms:.0f} ms", verdict(helios_ms, 100, "at most 100 ms")),
            ("heavy packages imported", ", ".join(heavy) or "none", verdict(len(heavy), 0, "none")),
        ),
        (f"Medians of {_ROUNDS} interpreters, in processor time. Heavy are: {', '.join(HEAVY)}.",),
    )


if __name__ == "__main__":
    print(run().render())
