"""Checks while a model trains: optimizers that never step, losses that are not finite."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import torch
from torch.amp.grad_scaler import GradScaler
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_post_hook

from helios.checkpoint.state.parts import networks_of, parts_of
from helios.core.logging import get_root_logger

if TYPE_CHECKING:
    from torch.utils.hooks import RemovableHandle

    from helios.model.model import Model

_FIRST_ITERATIONS: Final = 10  # A model that accumulates by itself may skip some steps.
_ITERATIONS_TO_SCALE: Final = 20  # A gradient scaler skips steps until it has found its scale.


class OptimizerWatch:
    """Detects a model whose optimizers never step, which would train for days and learn nothing.

    It checks each iteration until an optimizer has stepped, in this process or before the resume.

    Attributes:
        has_stepped: whether an optimizer has stepped.
    """

    def __init__(self, model: Model) -> None:
        """Watch the optimizers among a model's attributes."""
        self.has_stepped = False
        self._owner = type(model).__name__
        self._optimizers = list(parts_of(model, Optimizer).values())
        has_scaler = any(isinstance(value, GradScaler) for value in vars(model).values())
        self._patience = _ITERATIONS_TO_SCALE if has_scaler else 1
        self._first_iterations = max(_FIRST_ITERATIONS, self._patience)
        self._versions: list[int] | None = None
        self._has_warned = False
        self._handle: RemovableHandle | None = None

    @property
    def is_waiting(self) -> bool:
        """Whether there are optimizers, none of which has stepped yet."""
        return bool(self._optimizers) and not self.has_stepped

    def open(self) -> None:
        """Start watching."""
        if self.is_waiting:
            # For all optimizers, because a hook of the model may create another one.
            self._handle = register_optimizer_step_post_hook(self._note)
        elif self.has_stepped:
            for optimizer in self._optimizers:
                # They have stepped in an earlier process: torch must not warn if a scheduler steps first in this one.
                optimizer._opt_called = True  # type: ignore[attr-defined]  # noqa: SLF001 - torch's own mark, set in `step`.

    def _note(self, *_: Any) -> None:
        self.has_stepped = True  # The handle is removed later, because torch is iterating over its hooks.

    def close(self) -> None:
        """Stop watching."""
        if self._handle is not None:
            self._handle.remove()
            self._handle = None

    def look(self, iterations: int) -> bool:
        """Check after an iteration whether an optimizer has stepped; warn if none has after the first ones.

        Args:
            iterations: the number of iterations since the start of the run.

        Returns:
            Whether to check again after the next one.
        """
        if not self._is_idle():
            self.close()
            return False
        if iterations >= self._first_iterations:
            self._warn(iterations)
        return True

    def check(self, iterations: int) -> None:
        """Warn, at the end of an epoch, if there are optimizers but none has stepped.

        Args:
            iterations: how many iterations have been trained since the start of the run.
        """
        if self.is_waiting and iterations >= self._patience and self._is_idle():
            self._warn(iterations)

    def _warn(self, iterations: int) -> None:
        if not self._has_warned:
            self._has_warned = True
            get_root_logger().warning(
                "%s has trained %d iterations without a step of any of its optimizers, so its weights have not "
                "changed: call optimizer.step() in train_step, whenever self.is_optimizer_step(state) is true if "
                "batches are accumulated; this is fine if it collects data first, or accumulates over more batches",
                self._owner,
                iterations,
            )

    def _is_idle(self) -> bool:
        """Return whether the weights have not changed in any way since the first call."""
        if not self.is_waiting:
            return False
        # A model may train without its optimizer. Each change in place increments the version of a tensor.
        groups = (group for optimizer in self._optimizers for group in optimizer.param_groups)
        versions = [parameter._version for group in groups for parameter in group["params"]]  # noqa: SLF001 - no public name.
        if self._versions is not None and versions != self._versions:
            self.has_stepped = True
            return False
        self._versions = versions
        return True


class LossWatch:
    """Detects losses that are NaN or infinite, and warns once.

    Each check synchronizes with the device, so it is made only where this happens anyway: at logs, validations,
    checkpoints and ends of epochs. A running loss that was not finite once stays so.
    """

    def __init__(self, model: Model) -> None:
        """Watch the losses of a model."""
        self._model = model
        self._finite_until = 0
        self._has_warned = False

    def look(self, batches: int) -> None:
        """Check the running losses, and warn if one of them is not finite.

        Args:
            batches: the number of batches since the start of the run.
        """
        if self._has_warned:
            return
        found = _find_not_finite(self._model._running_losses)  # noqa: SLF001 - subclasses use it.
        if found is None:
            self._finite_until = batches
            return
        self._has_warned = True
        first = self._finite_until + 1
        get_root_logger().warning(
            "%s: the loss %r has become %s in %s; training continues, with weights that are likely not finite: to "
            "find the cause, train those batches again from a checkpoint before them, under "
            "torch.autograd.detect_anomaly()",
            type(self._model).__name__,
            *found,
            f"batch {batches}" if first >= batches else f"one of the batches {first} to {batches}",
        )


def _find_not_finite(losses: dict[str, torch.Tensor]) -> tuple[str, str] | None:
    """Return the name of a loss that is not finite, and "NaN" or "infinite"; `None` if all are finite."""
    for name, loss in losses.items():
        if loss.is_meta or bool(loss.isfinite().all()):
            continue
        if bool(loss.isnan().any()):
            return name, "NaN"
        if loss.dtype != torch.float16:  # In float16, even a sum of small numbers overflows.
            return name, "infinite"
    return None


def warn_of_evaluation_mode(model: Model) -> None:
    """Warn about networks that are trained in evaluation mode, in which some libraries return pretrained ones."""
    optimizers = list(parts_of(model, Optimizer).values())
    groups = [group for optimizer in optimizers for group in optimizer.param_groups]
    optimized = {id(parameter) for group in groups for parameter in group["params"]}
    for name, network in networks_of(model).items():
        if not network.training and any(id(parameter) in optimized for parameter in network.parameters()):
            get_root_logger().warning(
                "%s.%s is in evaluation mode, and an optimizer has its parameters: dropout and batch normalization do "
                "not act as in training; if they should, call train() on it in setup",
                type(model).__name__,
                name,
            )
