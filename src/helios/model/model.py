"""The model: everything that trains, and what one step of training does."""

from __future__ import annotations

import abc
import contextlib
from typing import TYPE_CHECKING, Any, ClassVar, Final

from torch import nn

from helios.checkpoint.state.capture import AttributeCapture
from helios.checkpoint.state.details import get_modes, set_modes
from helios.checkpoint.state.parts import get_network_state, networks_of
from helios.core.context import RunMember
from helios.core.logging import get_root_logger
from helios.core.paths import can_be_in_name
from helios.core.registry import Registry
from helios.errors import ArgumentTypeError, ConfigurationError
from helios.model.hooks import ModelHooks
from helios.parallel.strategies import SingleProcessStrategy

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

    from helios.core.state import TrainingState
    from helios.parallel.strategy import Strategy

_ALWAYS_SAVED: Final = ("_helios_metrics", "_loss_items", "_running_losses", "_val_scores", "_test_scores")

MODEL_REGISTRY: Final[Registry[Model]] = Registry("model")


def create_model(type_name: str, *args: Any, **kwargs: Any) -> Model:
    """Make a model of a registered class.

    Args:
        type_name: the name of the class in `MODEL_REGISTRY`.
        *args: passed on to the class.
        **kwargs: passed on to the class.

    Raises:
        UnknownNameError: if there is no such class; the message lists those there are.
    """
    return MODEL_REGISTRY.create(type_name, *args, **kwargs)


class Model(ModelHooks, RunMember, abc.ABC):
    """Networks, optimizers and whatever else a run trains with, and what a step of the run does with them.

    A subclass makes them in `setup` and trains them in `train_step`. Whatever training changes in an attribute is saved
    in checkpoints and restored, or named in the log if no checkpoint can hold it; a model that overrides `state_dict`
    and `load_state_dict` looks after its state itself.

    Args:
        save_name: the name of the model's folder of checkpoints.

    Attributes:
        non_persistent_attributes: names of attributes that checkpoints leave out, such as caches. Any class may have
            this attribute.
    """

    non_persistent_attributes: ClassVar[Collection[str]] = ()

    def __init__(self, save_name: str) -> None:
        """Name the model.

        Raises:
            ConfigurationError: if the name cannot be the name of a folder.
        """
        set_by_subclass = frozenset(vars(self))
        super().__init__()
        self._helios_save_name = _check_save_name(save_name)
        self._helios_strategy: Strategy = SingleProcessStrategy()
        self._helios_metrics: dict[str, Any] = {}
        self._helios_warned_of: set[str] = set()
        own = frozenset(vars(self)) - set_by_subclass
        self._helios_capture = AttributeCapture(self, ignore=own, always=_ALWAYS_SAVED)

    @property
    def save_name(self) -> str:
        """The name of the model's folder of checkpoints."""
        return self._helios_save_name

    @save_name.setter
    def save_name(self, save_name: str) -> None:
        self._helios_save_name = _check_save_name(save_name)

    @property
    def metrics(self) -> dict[str, Any]:
        """The model's latest scores by name; they are saved in checkpoints."""
        return self._helios_metrics

    @metrics.setter
    def metrics(self, metrics: dict[str, Any]) -> None:
        self._helios_metrics = check_metrics(metrics, type(self).__name__)

    @abc.abstractmethod
    def setup(self, fast_init: bool = False) -> None:
        """Make everything that the model trains with.

        Random numbers drawn here depend on the seed of the trainer alone and are alike on every rank.

        Args:
            fast_init: make only what testing needs, the networks.
        """

    def train_step(self, batch: Any, state: TrainingState) -> None:
        """Train on one batch.

        Args:
            batch: what the data loader gave, after the plug-ins have processed it.
            state: the progress of training; it counts this batch.
        """
        del batch, state
        self._helios_warn_of_step("train_step")

    def valid_step(self, batch: Any, step: int) -> None:
        """Validate on one batch, the `step`-th from 0; gradients are off."""
        del batch, step
        self._helios_warn_of_step("valid_step")

    def test_step(self, batch: Any, step: int) -> None:
        """Test on one batch, the `step`-th from 0; gradients are off."""
        del batch, step
        self._helios_warn_of_step("test_step")

    def _helios_warn_of_step(self, name: str) -> None:
        if name not in self._helios_warned_of:
            self._helios_warned_of.add(name)
            get_root_logger().warning(
                "Model.%s was called for %s and does nothing: override it, without calling super().%s()",
                name,
                type(self).__name__,
                name,
            )

    def wrap(self, network: nn.Module, units: Iterable[nn.Module] = (), **options: Any) -> nn.Module:
        """Return a network on this process's device, ready to be trained by all ranks together.

        To be called in `setup`, before the optimizer is made. In one process, it only moves the network. With several
        ranks, gradients are averaged over them: every rank has a copy (DDP), or, if the trainer was given
        `strategy="fsdp"`, a part of it (FSDP2). Checkpoints do not show it.

        Args:
            network: the network.
            units: with "fsdp", the parts of it that are gathered one at a time, such as the blocks of a transformer.
            **options: passed on to `torch.nn.parallel.DistributedDataParallel` or
                `torch.distributed.fsdp.fully_shard`.

        Raises:
            ConfigurationError: if a unit is no part of the network.
            ArgumentTypeError: if the network is no module.
        """
        if not isinstance(network, nn.Module):
            raise ArgumentTypeError(f"network is {network!r}, a {type(network).__name__}: pass a torch.nn.Module")
        return self._helios_strategy.wrap(network, self.device, units, options)

    def no_sync(self, network: nn.Module, *, enabled: bool = True) -> contextlib.AbstractContextManager[None]:
        """Return a context in which gradients of a network are not reduced over the ranks.

        Forward and backward passes of all but the last batch of an accumulation run in it. In one process it does
        nothing.

        Args:
            network: what `wrap` returned.
            enabled: whether the context has an effect: `not self.is_optimizer_step(state)`, for example.
        """
        return self._helios_strategy.no_sync(network) if enabled else contextlib.nullcontext()

    def is_optimizer_step(self, state: TrainingState) -> bool:
        """Return whether the current batch completes an accumulation: then call `optimizer.step()` and `zero_grad()`.

        It may be called in every hook that gets the state, and is always true unless the trainer's `accumulation_steps`
        is above 1.
        """
        return state.global_iteration % self.trainer.accumulation_steps == 0

    def train(self) -> None:
        """Put every network among the attributes into training mode."""
        for network in networks_of(self).values():
            network.train()

    def eval(self) -> None:
        """Put every network among the attributes into evaluation mode."""
        for network in networks_of(self).values():
            network.eval()

    def state_dict(self) -> dict[str, Any]:
        """Return the state of the model as plain data.

        Returns:
            By path, the states of everything that has one (networks without the wrappers that distribute or compile
            them); under "plain attributes", by name, the other attributes that are not as they were constructed; and
            what else has changed in networks, optimizers and classes.
        """
        return self._helios_capture.collect()

    def load_state_dict(self, state_dict: dict[str, Any], fast_init: bool = False) -> None:
        """Take over what `state_dict` returned.

        Args:
            state_dict: the states by name.
            fast_init: only the networks have been set up: the rest is to be left out.

        Raises:
            CheckpointMismatchError: if the states are not those of this model's attributes.
        """
        self._helios_capture.restore(state_dict, partial=fast_init)

    def trained_state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Return the states of the networks alone, by name: what is worth keeping after training.

        Args:
            *args: not used; an override may take arguments.
            **kwargs: not used; as above.
        """
        del args, kwargs
        return {name: get_network_state(network) for name, network in networks_of(self).items()}

    def load_for_testing(self) -> None:
        """Load the networks from where they are kept, because `test` has found no checkpoint of this model."""

    def _helios_base_state(self) -> dict[str, Any]:
        """Return what a resumed run must find again, whatever the subclass makes of its state."""
        check_metrics(self.metrics, type(self).__name__)
        networks = networks_of(self)
        return {
            "attributes": self._helios_capture.collect_base(),
            "modes": {name: get_modes(network) for name, network in networks.items()},
            "buffer_sync_flags": self._helios_strategy.get_buffer_sync_flags(networks),
        }

    def _helios_load_base_state(self, state: dict[str, Any]) -> None:
        self._helios_capture.restore_base(state["attributes"])
        networks = networks_of(self)
        for name, modes in state["modes"].items():
            if name in networks:
                set_modes(networks[name], modes)
        self._helios_strategy.restore_buffer_sync_flags(networks, state["buffer_sync_flags"])


def check_metrics(metrics: object, owner: str) -> dict[str, Any]:
    """Return `metrics` if it is a dictionary.

    Raises:
        ArgumentTypeError: if it is not.
    """
    if not isinstance(metrics, dict):
        raise ArgumentTypeError(
            f"{owner}.metrics is {metrics!r}, a {type(metrics).__name__}: it must be a dict of scores by name",
        )
    return metrics


def _check_save_name(save_name: str) -> str:
    is_folder_name = isinstance(save_name, str) and save_name.strip() not in ("", ".", "..")
    if not is_folder_name or not can_be_in_name(save_name):
        raise ConfigurationError(f"save name {save_name!r} cannot be a folder's name: use letters, digits, '-' and '_'")
    return save_name
