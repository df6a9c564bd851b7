"""Tuning with Optuna: by convention, `import helios.plugins.optuna as hlpo`.

Raises:
    ImportError: on import, if optuna is not installed; the message names the extra to install.
"""

try:
    import optuna as _optuna  # noqa: F401 - whether it is there decides about everything below.
except ImportError as error:
    raise ImportError(
        "helios.plugins.optuna needs optuna, which is not installed: pip install 'helios-train[tune]'"
    ) from error

from helios.plugins.optuna.plugin import OptunaPlugin, TrialInterrupted
from helios.plugins.optuna.report.report import write_report
from helios.plugins.optuna.resume import resume_study
from helios.plugins.optuna.runner import run_study
from helios.plugins.optuna.samplers.checkpoint import checkpoint_sampler, restore_sampler
from helios.plugins.optuna.samplers.reproducible import ReproducibleSampler
from helios.plugins.optuna.space.space import SearchSpace

__all__ = [
    "OptunaPlugin",
    "ReproducibleSampler",
    "SearchSpace",
    "TrialInterrupted",
    "checkpoint_sampler",
    "restore_sampler",
    "resume_study",
    "run_study",
    "write_report",
]
