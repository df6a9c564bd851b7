"""What importing Helios costs, as far as a test can say it."""

from __future__ import annotations

import subprocess
import sys

SCRIPT = """
import sys
import torch
theirs = set(sys.modules)
import helios, helios.plugins, helios.core, helios.optim, helios.scheduler, helios.losses, helios.nn
print(*sorted({name.partition(".")[0] for name in set(sys.modules) - theirs}))
"""
HEAVY = {"optuna", "tensorboard", "pandas", "sklearn", "matplotlib", "plotly", "scipy", "rich", "wandb", "mlflow"}


def test_importing_helios_imports_nothing_heavy() -> None:
    """Issue 2: `import helios`, all of its rooms but Optuna's included, imports none of the optional packages."""
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, check=True, text=True)
    imported = set(done.stdout.split())
    assert "helios" in imported
    assert imported & HEAVY == set()
