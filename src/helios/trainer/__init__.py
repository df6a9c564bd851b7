"""The trainer and the state of a run; by convention, `import helios.trainer as hlt`."""

from helios.checkpoint.finding import find_last_checkpoint
from helios.core.state import TrainingState, TrainingUnit
from helios.trainer._trainer import Trainer

__all__ = ["Trainer", "TrainingState", "TrainingUnit", "find_last_checkpoint"]
