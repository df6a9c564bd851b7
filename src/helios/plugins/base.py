"""The base class of all plug-ins."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from helios.checkpoint.state.capture import AttributeCapture
from helios.core.context import RunMember
from helios.core.conversion import as_exception_types
from helios.errors import ArgumentTypeError, ConfigurationError
from helios.plugins.claims import StopRequest, UniquePluginOverrides

if TYPE_CHECKING:
    from collections.abc import Collection
    from pathlib import Path

    import torch

    from helios.core.context import RunContext
    from helios.core.state import TrainingState


class Plugin(RunMember):
    """Something that takes part in training without being the model.

    Its hooks run before the model's hooks of the same name. A hook that is not overridden costs nothing.

    Args:
        plug_id: the key of the plug-in in `Trainer.plugins`.

    Attributes:
        draws_nothing: whether no hook of this class draws a random number: the generators are not keyed for it then,
            which takes about 2 µs. It is not inherited, as a subclass may draw. A plug-in that draws all the same takes
            numbers from the streams of others, and changes what they draw.
        non_persistent_attributes: names of attributes that checkpoints leave out.
        stop_is_final: whether a stop for which `should_training_stop` answers true ends the run for good; see
            `request_stop`.
    """

    draws_nothing: ClassVar[bool] = False
    non_persistent_attributes: ClassVar[Collection[str]] = ()
    stop_is_final: ClassVar[bool] = True

    def __init__(self, plug_id: str) -> None:
        """Name the plug-in.

        Raises:
            ConfigurationError: if the name is no string or empty.
        """
        set_by_subclass = frozenset(vars(self))
        super().__init__()
        if not isinstance(plug_id, str) or not plug_id:
            raise ConfigurationError(f"plug-in id {plug_id!r} is no key: pass a string that is not empty")
        self._helios_plug_id = plug_id
        self._helios_unique_overrides = UniquePluginOverrides()
        self._helios_stop_requests: list[StopRequest] = []
        self._helios_capture = AttributeCapture(self, ignore=frozenset(vars(self)) - set_by_subclass)

    def _helios_join_run(self, trainer: RunContext, device: torch.device, *, is_distributed: bool) -> None:
        super()._helios_join_run(trainer, device, is_distributed=is_distributed)
        self._helios_stop_requests = []

    def _helios_draws(self) -> bool:
        return vars(type(self)).get("draws_nothing", False) is not True

    @property
    def plug_id(self) -> str:
        """The key of the plug-in in `Trainer.plugins`."""
        return self._helios_plug_id

    @property
    def unique_overrides(self) -> UniquePluginOverrides:
        """What this plug-in claims for itself."""
        return self._helios_unique_overrides

    @unique_overrides.setter
    def unique_overrides(self, overrides: UniquePluginOverrides) -> None:
        self._helios_unique_overrides = overrides

    @property
    def _overrides(self) -> UniquePluginOverrides:
        """The same as `unique_overrides`, under the name that subclasses for Helios 1.x use."""
        return self.unique_overrides

    @_overrides.setter
    def _overrides(self, overrides: UniquePluginOverrides) -> None:
        self.unique_overrides = overrides

    # The trainer is `Any` so that an override may annotate helios.Trainer, which this package must not import.
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

    def setup(self) -> None:
        """Prepare for a run, which has set `trainer`, `device`, `rank` and `is_distributed`."""

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed run must restore in this plug-in.

        Unless this is overridden, it is every attribute that training has changed, as in a model.
        """
        return self._helios_capture.collect()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore what `state_dict` returned.

        Raises:
            CheckpointMismatchError: if it does not fit the attributes of this plug-in.
        """
        self._helios_capture.restore(state_dict)

    def on_training_start(self) -> None:
        """Run when training starts or is resumed, after everything has been set up and restored."""

    def on_training_epoch_start(self, current_epoch: int) -> None:
        """Run before the first batch of an epoch; `current_epoch` counts from 1."""

    def process_training_batch(self, batch: Any, state: TrainingState) -> Any:
        """Return what the model trains on in place of `batch`; `state` counts the batch."""
        del state
        return batch

    def on_training_batch_start(self, state: TrainingState) -> None:
        """Run before the model's step; `state` counts the batch."""

    def on_optimizer_step(self, state: TrainingState) -> None:
        """Run after a batch that completes an accumulation, once the model's step has returned.

        An accumulation is `Trainer(accumulation_steps=...)` batches. A model that follows `is_optimizer_step` has
        stepped its optimizers then. It runs before `on_training_batch_end`, and `state` counts the batch.
        """

    def on_training_batch_end(self, state: TrainingState) -> None:
        """Run after the model's step; `state` counts the batch."""

    def on_training_epoch_end(self, current_epoch: int) -> None:
        """Run after the last batch of an epoch and the validation that belongs to it."""

    def on_training_end(self) -> None:
        """Run when training has ended; not when a signal has interrupted it."""

    def on_validation_start(self, validation_cycle: int) -> None:
        """Run before a validation; `validation_cycle` counts from 0."""

    def process_validation_batch(self, batch: Any, step: int) -> Any:
        """Return what the model validates on in place of `batch`; `step` counts from 0."""
        del step
        return batch

    def on_validation_batch_start(self, step: int) -> None:
        """Run before the model's `valid_step`; `step` counts from 0."""

    def on_validation_batch_end(self, step: int) -> None:
        """Run after the model's `valid_step`; `step` counts from 0."""

    def on_validation_end(self, validation_cycle: int) -> None:
        """Run after a validation."""

    def on_testing_start(self) -> None:
        """Run before testing."""

    def process_testing_batch(self, batch: Any, step: int) -> Any:
        """Return what the model is tested on in place of `batch`; `step` counts from 0."""
        del step
        return batch

    def on_testing_batch_start(self, step: int) -> None:
        """Run before the model's `test_step`; `step` counts from 0."""

    def on_testing_batch_end(self, step: int) -> None:
        """Run after the model's `test_step`; `step` counts from 0."""

    def on_testing_end(self) -> None:
        """Run after testing."""

    def on_checkpoint_saved(self, path: Path, state: TrainingState) -> None:
        """Run on every rank after a checkpoint has been written and is durable.

        What this changes in the plug-in is in the next checkpoint, not in this one.

        Args:
            path: the checkpoint: a file, or a folder if its tensors are sharded. Rank 0 has written it.
            state: the progress of training that it holds.
        """

    def on_fit_end(self, *, interrupted: bool) -> None:
        """Run on every rank as the last hook of `fit`, after `on_training_end`; what it raises leaves `fit`.

        Args:
            interrupted: whether a signal has stopped training, which the next call of `fit` continues.
        """

    # --------------------------------------------------------------------------------------------------- stopping

    def request_stop(self, reason: str, *, final: bool = True) -> None:
        """Request that training stops; any number of plug-ins may, in any hook of training.

        In one process, training stops after the current batch. With several ranks, a request that is made on any of
        them is honoured by all at the next place where they agree: after a validation, at the end of an epoch, or where
        a checkpoint is due. A plug-in that must stop several ranks after an arbitrary batch overrides
        `should_training_stop` instead.

        Args:
            reason: why, for the log.
            final: whether the run is over: a last checkpoint is written, and a resumed run does not train further.
                Otherwise no checkpoint is written, and the next call of `fit` continues from the newest one.

        Raises:
            ArgumentTypeError: if the reason is not a string.
        """
        if not isinstance(reason, str):
            raise ArgumentTypeError(
                f"reason is {reason!r}, a {type(reason).__name__}: say in a string why training stops"
            )
        self._helios_stop_requests.append(StopRequest(self.plug_id, reason, final))

    def should_training_stop(self) -> bool:
        """Return whether training stops after the current batch; at most one plug-in of a trainer overrides this.

        All ranks stop if one of them answers true. It is asked after every batch for which `has_stop_news` is true.
        """
        return False

    def has_stop_news(self) -> bool:
        """Return whether `should_training_stop` may answer otherwise than when it was last asked.

        Asking exchanges a message between the ranks. A plug-in whose answer changes at certain events only overrides
        this method; it must return the same on every rank.
        """
        return True

    # ------------------------------------------------------------------------------------------------------ results

    def rank0_result(self) -> Any:
        """Return what rank 0's plug-in passes to those of the other ranks and of the process that called `fit`.

        It is called on rank 0 when a run of several ranks has ended. The value must be picklable.
        """
        return None

    def receive_result(self, result: Any) -> None:
        """Take over what `rank0_result` has returned; called on all ranks, and in the process that called `fit`.

        Args:
            result: what the plug-in of the same id has returned on rank 0.
        """

    def _register_in_trainer(self, trainer: Any) -> None:
        """Add this plug-in to the trainer's table, under its id."""
        trainer.plugins[self.plug_id] = self

    def _append_train_exceptions(self, exc: type[BaseException] | list[type[BaseException]], trainer: Any) -> None:
        """Let exceptions of these types leave `fit` unchanged and unlogged: they are control flow."""
        _append_new(trainer.train_exceptions, exc)

    def _append_test_exceptions(self, exc: type[BaseException] | list[type[BaseException]], trainer: Any) -> None:
        """Let exceptions of these types leave `test` unchanged and unlogged: they are control flow."""
        _append_new(trainer.test_exceptions, exc)


def _append_new(known: list[type[BaseException]], new: type[BaseException] | list[type[BaseException]]) -> None:
    known.extend(kind for kind in as_exception_types(new) if kind not in known)
