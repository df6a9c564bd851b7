"""What can be known to be wrong before, or right after, the first batch is trained."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch.amp.grad_scaler import GradScaler
from torch.optim import Optimizer

from helios.core.state import Phase
from helios.data.datamodule import DataModule
from helios.errors import ArgumentTypeError, ConfigurationError, TrainingError
from helios.model.model import Model, check_metrics
from helios.plugins.table import overrides

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch.utils.hooks import RemovableHandle

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


class OptimizerWatch:
    """Notices a model whose optimizers never step: it would train for days and learn nothing."""

    def __init__(self, model: Model) -> None:
        """Watch the optimizers among a model's attributes."""
        self._owner = type(model).__name__
        self._handles: list[RemovableHandle] = []
        optimizers = list(_find_optimizers(list(vars(model).values())))
        # A gradient scaler leaves out steps until it has found its scale.
        has_scaler = any(isinstance(value, GradScaler) for value in vars(model).values())
        self._patience = 20 if has_scaler else 1
        self._is_waiting = bool(optimizers)
        for optimizer in optimizers:
            self._handles.append(optimizer.register_step_post_hook(self._note))

    def _note(self, *_: Any) -> None:
        self._is_waiting = False  # The handle stays for now: torch is iterating over its hooks.

    def close(self) -> None:
        """Stop watching."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def check(self, iterations: int) -> None:
        """Check that an optimizer has stepped.

        Args:
            iterations: how many iterations have been trained since watching began.

        Raises:
            TrainingError: if there are optimizers, but none has stepped in all of them.
        """
        if not self._is_waiting:
            self.close()
        elif iterations >= self._patience:
            raise TrainingError(
                f"{self._owner} has trained {iterations} iterations without a step of any of its optimizers, so its "
                "weights have not changed: call optimizer.step() in train_step, whenever "
                "self.is_optimizer_step(state) is true if batches are accumulated",
            )


def _find_optimizers(values: list[Any]) -> Iterator[Optimizer]:
    for value in values:
        if isinstance(value, Optimizer):
            yield value
        elif isinstance(value, list | tuple):
            yield from _find_optimizers(list(value))
        elif isinstance(value, dict):
            yield from _find_optimizers(list(value.values()))
