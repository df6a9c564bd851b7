"""What can be known to be wrong before the first batch is trained."""

from __future__ import annotations

from typing import TYPE_CHECKING

from helios.core.state import Phase
from helios.data.datamodule import DataModule
from helios.errors import ArgumentTypeError, ConfigurationError
from helios.model.model import Model, check_metrics
from helios.plugins.table import overrides

if TYPE_CHECKING:
    from helios.trainer._options import TrainerOptions

_STEPS = {Phase.TRAINING: "train_step", Phase.VALIDATION: "valid_step", Phase.TESTING: "test_step"}


def check_parts(model: object, datamodule: object) -> None:
    """Check that a model and a data module are what they should be.

    Raises:
        ArgumentTypeError: if one of them is something else.
    """
    for part, kind in ((model, Model), (datamodule, DataModule)):
        if not isinstance(part, kind):
            hint = (
                f"pass an object, {part.__name__}(...)" if isinstance(part, type) else f"derive it from {kind.__name__}"
            )
            raise ArgumentTypeError(f"{part!r} is no {kind.__name__}: {hint}")


def check_training(model: Model, options: TrainerOptions) -> None:
    """Check, before anything is set up, that a model can do what the trainer is going to ask of it.

    Raises:
        ConfigurationError: if it cannot.
        ArgumentTypeError: if its metrics are no dictionary.
    """
    if options.total_steps == 0:
        raise ConfigurationError(f"total_steps is 0: tell the trainer how many {options.train_unit.value}s to train")
    check_step(model, Phase.TRAINING)
    if options.valid_frequency is not None:
        check_step(model, Phase.VALIDATION)
    check_metrics(model.metrics, type(model).__name__)


def check_step(model: Model, phase: Phase) -> None:
    """Check that a model has the step of a phase.

    Raises:
        ConfigurationError: if it has not.
    """
    if not overrides(model, _STEPS[phase], Model):
        raise ConfigurationError(f"{type(model).__name__} has no {_STEPS[phase]}: override it, {phase.value} calls it")
