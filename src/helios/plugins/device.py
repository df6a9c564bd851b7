"""Plug-ins that move batches to a device."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import torch

from helios.errors import ArgumentTypeError, ConfigurationError, DeviceUnavailableError
from helios.plugins.base import Plugin
from helios.plugins.moving import move_to_device
from helios.plugins.registry import PLUGIN_REGISTRY

if TYPE_CHECKING:
    from helios.core.state import TrainingState


class DevicePlugin(Plugin):
    """Moves every batch to a device.

    Tensors are found in lists, tuples and dictionaries of any nesting, in named tuples, dataclasses, packed sequences,
    and wherever an object has a `to(device)` method. Everything else stays as it is, containers keep their type, and
    the batch that came in is not changed. Copies out of pinned memory do not block the host.

    Args:
        device: where to; the device that the trainer assigned if it is `None`.
        plug_id: the key in `Trainer.plugins`.

    Raises:
        ArgumentTypeError: if `device` is neither a device nor a string.
        ConfigurationError: if there is no kind of device of this name.
    """

    plugin_id: ClassVar[str] = "device"
    draws_nothing: ClassVar[bool] = True

    def __init__(self, device: torch.device | str | None = None, plug_id: str | None = None) -> None:
        """Claim the batches."""
        super().__init__(self.plugin_id if plug_id is None else plug_id)
        self._target = None if device is None else _to_device(device)
        self.unique_overrides.training_batch = True
        self.unique_overrides.validation_batch = True
        self.unique_overrides.testing_batch = True

    @property
    def target(self) -> torch.device:
        """The device that batches are moved to."""
        return self.device if self._target is None else self._target

    def setup(self) -> None:
        """Nothing to prepare."""

    def process_training_batch(self, batch: Any, state: TrainingState) -> Any:
        """Return the batch on the device."""
        del state
        return self._move_collection_to_device(batch)

    def process_validation_batch(self, batch: Any, step: int) -> Any:
        """Return the batch on the device."""
        del step
        return self._move_collection_to_device(batch)

    def process_testing_batch(self, batch: Any, step: int) -> Any:
        """Return the batch on the device."""
        del step
        return self._move_collection_to_device(batch)

    def _move_collection_to_device(self, batch: Any) -> Any:
        """Return the batch on the device; override this method for a batch type of your own."""
        return move_to_device(batch, self.target)


def _to_device(device: object) -> torch.device:
    if not isinstance(device, str | torch.device):
        raise ArgumentTypeError(f"device is {device!r}, a {type(device).__name__}: pass a torch.device, or its name")
    try:
        return torch.device(device)
    except RuntimeError as error:
        first_line = str(error).partition("\n")[0]
        raise ConfigurationError(f"device is {device!r}: {first_line}") from error


def _check_cuda() -> None:
    if not torch.cuda.is_available():
        raise DeviceUnavailableError(
            "CUDAPlugin needs CUDA, which is not available here: use DevicePlugin(), which moves batches to whatever "
            "device the trainer assigns, or no plug-in at all on the CPU",
        )


@PLUGIN_REGISTRY.register
class CUDAPlugin(DevicePlugin):
    """Moves every batch to the GPU that the trainer assigned to this process.

    Raises:
        DeviceUnavailableError: on construction, if CUDA is not available.
    """

    plugin_id: ClassVar[str] = "cuda"
    draws_nothing: ClassVar[bool] = True

    def __init__(self) -> None:
        """Claim the batches, if there is a GPU."""
        _check_cuda()
        super().__init__()
        # Until a run assigns one. Before CUDA is initialised, the current device is the first; to ask for it would
        # initialise CUDA, and a process that trains in others needs none.
        is_initialized = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]  # torch has not annotated it.
        self.device = torch.device("cuda", torch.cuda.current_device() if is_initialized else 0)


PLUGIN_REGISTRY.register(DevicePlugin)
