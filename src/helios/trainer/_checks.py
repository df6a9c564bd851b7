"""Checks before the first batch is trained."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

from helios.checkpoint.state.parts import networks_of
from helios.data.datamodule import DataModule
from helios.errors import ArgumentTypeError, CheckpointMismatchError, ConfigurationError
from helios.model.model import Model, check_metrics
from helios.plugins.table import overrides

if TYPE_CHECKING:
    from collections.abc import Mapping

    from helios.trainer._options import TrainerOptions


def check_parts(model: object, datamodule: object) -> None:
    """Check the types of a model and a data module.

    Raises:
        ArgumentTypeError: if one of them has another type.
    """
    for part, kind in ((model, Model), (datamodule, DataModule)):
        if not isinstance(part, kind):
            hint = (
                f"pass an object, {part.__name__}(...)" if isinstance(part, type) else f"derive it from {kind.__name__}"
            )
            raise ArgumentTypeError(f"{part!r} is no {kind.__name__}: {hint}")


def check_training(model: Model, options: TrainerOptions) -> None:
    """Check, before the setup, that a model has the methods that training needs.

    Raises:
        ConfigurationError: if one is missing.
        ArgumentTypeError: if its metrics are not a dictionary.
    """
    if options.total_steps == 0:
        raise ConfigurationError(f"total_steps is 0: tell the trainer how many {options.train_unit.value}s to train")
    if not overrides(model, "train_step", Model):
        raise ConfigurationError(f"{type(model).__name__} has no train_step: override it, training calls it")
    check_metrics(model.metrics, type(model).__name__)


def list_dtypes(model: Model) -> dict[str, list[str]]:
    """Return, as plain data, the dtypes that the parameters and buffers of each network of a model have."""
    tensors = {
        name: itertools.chain(network.parameters(), network.buffers()) for name, network in networks_of(model).items()
    }
    return {name: sorted({str(tensor.dtype) for tensor in own}) for name, own in tensors.items()}


def check_dtypes(saved: Mapping[str, list[str]], present: Mapping[str, list[str]], owner: str) -> None:
    """Check that the networks have the same dtypes as in the earlier processes of the run.

    Raises:
        CheckpointMismatchError: if they have not: the run would continue in another precision.
    """
    for name, dtypes in saved.items():
        now = present.get(name, dtypes)
        if now != dtypes:
            raise CheckpointMismatchError(
                f"setup made {owner}.{name} of {', '.join(dtypes)} in the run that has written the checkpoint, and has "
                f"made it of {', '.join(now)} now: make it as it was, or begin another run, under another save_name; "
                "to test in another precision, convert the network in on_testing_start"
            )
