"""Helios trains PyTorch networks; a run that was killed and resumed ends with the same bits as an uninterrupted one."""

from helios._version import __version__
from helios.checkpoint.finding import load_model_state
from helios.data import DataModule
from helios.model import Model
from helios.plugins import Plugin
from helios.trainer import Trainer, TrainingState, TrainingUnit

__all__ = [
    "DataModule",
    "Model",
    "Plugin",
    "Trainer",
    "TrainingState",
    "TrainingUnit",
    "__version__",
    "load_model_state",
]
