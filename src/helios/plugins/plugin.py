"""The base of all plug-ins, and those that move batches to a device."""

from __future__ import annotations

import abc
import dataclasses
from typing import TYPE_CHECKING, Any, ClassVar, Final

import torch

from helios.checkpoint.capture import AttributeCapture
from helios.core.context import RunMember
from helios.core.registry import Registry
from helios.errors import ArgumentTypeError, ConfigurationError, DeviceUnavailableError
from helios.plugins.moving import move_to_device

if TYPE_CHECKING:
    from collections.abc import Collection

    from helios.core.state import TrainingState

PLUGIN_REGISTRY: Final[Registry[Plugin]] = Registry("plugin")


def create_plugin(type_name: str, *args: Any, **kwargs: Any) -> Plugin:
    """Make a plug-in of a registered class.

    Args:
        type_name: the name of the class in `PLUGIN_REGISTRY`.
        *args: passed on to the class.
        **kwargs: passed on to the class.

    Raises:
        UnknownNameError: if there is no such class; the message lists those there are.
    """
    return PLUGIN_REGISTRY.create(type_name, *args, **kwargs)


@dataclasses.dataclass
class UniquePluginOverrides:
    """What at most one plug-in of a trainer may do; a plug-in sets the flags of what it claims.

    A plug-in that overrides the method holds the claim even if it forgets the flag.

    Attributes:
        training_batch: it processes training batches.
        validation_batch: it processes validation batches.
        testing_batch: it processes testing batches.
        should_training_stop: it may stop training.
    """

    training_batch: bool = False
    validation_batch: bool = False
    testing_batch: bool = False
    should_training_stop: bool = False


class Plugin(RunMember, abc.ABC):
    """Something that takes part in training without being the model.

    Its hooks run before the model's hooks of the same name. A hook that is not overridden costs nothing.

    Args:
        plug_id: the key of the plug-in in `Trainer.plugins`.

    Attributes:
        draws_nothing: whether no hook of this class draws a random number: the generators are not keyed for it then,
            which takes 8 µs. It is not inherited, as a subclass may well draw. One that draws all the same draws from
            wherever the generators happen to be, and changes what others draw.
        non_persistent_attributes: names of attributes that checkpoints leave out.
    """

    draws_nothing: ClassVar[bool] = False
    non_persistent_attributes: ClassVar[Collection[str]] = ()

    # Whether a stop that this plug-in asks for is the end of the run, whoever resumes it. One that must be asked again
    # each time sets it to False, and answers from what it restores.
    _stops_for_good: ClassVar[bool] = True

    def __init__(self, plug_id: str) -> None:
        """Name the plug-in.

        Raises:
            ConfigurationError: if the name is no string or empty.
        """
        set_by_subclass = frozenset(vars(self))
        super().__init__()
        if not isinstance(plug_id, str) or not plug_id:
            raise ConfigurationError(f"plug-in id {plug_id!r} is no key: pass a string that is not empty")
        self._plug_id = plug_id
        self._unique_overrides = UniquePluginOverrides()
        self._attribute_states = AttributeCapture(self, ignore=frozenset(vars(self)) - set_by_subclass)

    def _draws(self) -> bool:
        return vars(type(self)).get("draws_nothing", False) is not True

    @property
    def plug_id(self) -> str:
        """The key of the plug-in in `Trainer.plugins`."""
        return self._plug_id

    @property
    def unique_overrides(self) -> UniquePluginOverrides:
        """What this plug-in claims for itself."""
        return self._unique_overrides

    @unique_overrides.setter
    def unique_overrides(self, overrides: UniquePluginOverrides) -> None:
        self._unique_overrides = overrides

    # The trainer is `Any` so that an override may ask for a helios.Trainer, which this room must not import.
    def configure_trainer(self, trainer: Any) -> None:
        """Prepare a trainer for this plug-in, registration included.

        Args:
            trainer: the trainer; without an override, the plug-in is registered in it.
        """
        self._register_in_trainer(trainer)

    def configure_model(self, model: Any) -> None:
        """Prepare a model for this plug-in.

        Args:
            model: the model that is going to be trained.
        """

    @abc.abstractmethod
    def setup(self) -> None:
        """Get ready: a run has started and has set `trainer`, `device`, `rank` and the rest."""

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed run must give back to this plug-in.

        Unless this is overridden, it is every attribute that training has changed, as in a model.
        """
        return self._attribute_states.collect()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over what `state_dict` returned.

        Raises:
            CheckpointMismatchError: if it does not fit the attributes of this plug-in.
        """
        self._attribute_states.restore(state_dict)

    def on_training_start(self) -> None:
        """Run when training starts or goes on, after everything has been set up and restored."""

    def on_training_epoch_start(self, current_epoch: int) -> None:
        """Run before the first batch of an epoch; `current_epoch` counts from 1."""

    def process_training_batch(self, batch: Any, state: TrainingState) -> Any:
        """Return what the model shall train on in place of `batch`."""
        del state
        return batch

    def on_training_batch_start(self, state: TrainingState) -> None:
        """Run before the model's step; `state` counts the batches before this one."""

    def on_training_batch_end(self, state: TrainingState) -> None:
        """Run after the model's step; `state` counts this batch, too."""

    def on_training_epoch_end(self, current_epoch: int) -> None:
        """Run after the last batch of an epoch and the validation that belongs to it."""

    def on_training_end(self) -> None:
        """Run when training has come to its end."""

    def on_validation_start(self, validation_cycle: int) -> None:
        """Run before a validation; `validation_cycle` counts from 1."""

    def process_validation_batch(self, batch: Any, step: int) -> Any:
        """Return what the model shall validate on in place of `batch`, the `step`-th from 0."""
        del step
        return batch

    def on_validation_end(self, validation_cycle: int) -> None:
        """Run after a validation."""

    def on_testing_start(self) -> None:
        """Run before testing."""

    def process_testing_batch(self, batch: Any, step: int) -> Any:
        """Return what the model shall be tested on in place of `batch`, the `step`-th from 0."""
        del step
        return batch

    def on_testing_end(self) -> None:
        """Run after testing."""

    def should_training_stop(self) -> bool:
        """Whether training shall end after the batch in hand."""
        return False

    def _has_stop_news(self) -> bool:
        """Whether `should_training_stop` may answer otherwise than when it was last asked.

        It is asked only then; in a run of several ranks, that takes a message around all of them. A plug-in whose
        answer changes at certain events alone overrides this, so that it answers alike on every rank.
        """
        return True

    def _parting_words(self) -> Any:
        """Return what rank 0's plug-in has to tell the others, and the one in the process that called `fit`."""
        return None

    def _take_parting_words(self, words: Any) -> None:
        """Take over what rank 0's plug-in has told; called when a run of several ranks is over, on all of them."""

    def _after_training(self, *, interrupted: bool) -> None:
        """Have the last word before `fit` returns: what this raises leaves it.

        Args:
            interrupted: whether a signal has stopped training, which will go on later.
        """

    def _register_in_trainer(self, trainer: Any) -> None:
        """Put this plug-in into the trainer's table, under its id."""
        trainer.plugins[self.plug_id] = self

    def _append_train_exceptions(self, exc: type[BaseException] | list[type[BaseException]], trainer: Any) -> None:
        """Have `fit` pass exceptions of these types on as they are, unlogged: they are control flow."""
        _append_new(trainer.train_exceptions, exc)

    def _append_test_exceptions(self, exc: type[BaseException] | list[type[BaseException]], trainer: Any) -> None:
        """Have `test` pass exceptions of these types on as they are, unlogged: they are control flow."""
        _append_new(trainer.test_exceptions, exc)


def _append_new(known: list[type[BaseException]], new: type[BaseException] | list[type[BaseException]]) -> None:
    types = list(new) if isinstance(new, list | tuple) else [new]
    for kind in types:
        if not (isinstance(kind, type) and issubclass(kind, BaseException)):
            raise ArgumentTypeError(f"{kind!r} is no exception type: pass classes derived from BaseException")
    known.extend(kind for kind in types if kind not in known)


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
        """There is nothing to get ready."""

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
        """Return the batch on the device: the one method to override for a batch type of one's own."""
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
