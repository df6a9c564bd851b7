"""How the ranks of a run train a network together: the interface."""

from __future__ import annotations

import abc
import contextlib
from typing import TYPE_CHECKING, Any

from helios.checkpoint.state.fsdp import unsharded
from helios.parallel import ddp

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Mapping

    import torch
    from torch import nn

    from helios.ranks.mesh import Mesh


class Strategy(abc.ABC):
    """How the ranks of a run train a network together.

    `Trainer(strategy=...)` takes an instance of a subclass. It is pickled to the ranks that the trainer starts. One
    process trains with `SingleProcessStrategy`, whatever the trainer was given.

    A subclass implements `wrap`. The other methods handle every `DistributedDataParallel` and `fully_shard` module in
    the networks they are given, including those that users have wrapped without `Model.wrap`; a strategy with wrappers
    of its own extends them.
    """

    @property
    def name(self) -> str:
        """The name that `Trainer.strategy` returns and that checkpoints record; by default that of the class."""
        return type(self).__name__

    @abc.abstractmethod
    def wrap(
        self, network: nn.Module, device: torch.device, units: Iterable[nn.Module], options: Mapping[str, Any]
    ) -> nn.Module:
        """Return a network on the device, ready to be trained by all ranks; see `Model.wrap`.

        All ranks call this in the same order, before the optimizer is created. `state_dict()` of the returned module
        must have the names and shapes of the network's own, except for the prefix of a torch wrapper.

        Args:
            network: the network. It may be on the meta device; see `place_network`.
            device: the device of this rank.
            units: the submodules that are sharded as units of their own.
            options: further arguments of `Model.wrap`.
        """

    def make_mesh(self, device: torch.device) -> Mesh | None:
        """Return the device mesh that sharded tensors of a checkpoint are loaded on; `None` to load them unsharded.

        Args:
            device: the device of this rank.
        """
        del device
        return None

    @contextlib.contextmanager
    def local_forward(self, networks: Collection[nn.Module], *, is_uneven: bool) -> Iterator[None]:
        """Let forward passes without gradients run without collectives, so that ranks may run different numbers.

        All ranks enter this context together, before a validation or a test, and leave it separately.

        Args:
            networks: the networks of the model.
            is_uneven: whether the ranks run different numbers of passes. If not, collectives do no harm.
        """
        with contextlib.ExitStack() as stack:
            stack.enter_context(ddp.local_forward(networks))
            if is_uneven:
                stack.enter_context(unsharded(networks))
            yield

    @contextlib.contextmanager
    def no_sync(self, network: nn.Module) -> Iterator[None]:
        """Run forward and backward passes without reducing gradients; see `Model.no_sync`.

        Args:
            network: what `wrap` returned. The context does nothing for a network whose gradients nobody reduces.
        """
        if hasattr(network, "set_requires_gradient_sync"):  # FSDP2.
            network.set_requires_gradient_sync(False)  # type: ignore[operator]  # a method of FSDPModule
            try:
                yield
            finally:
                network.set_requires_gradient_sync(True)  # type: ignore[operator]  # as above
        elif hasattr(network, "no_sync"):  # DDP.
            with network.no_sync():  # type: ignore[operator]  # a method of DistributedDataParallel
                yield
        else:
            yield

    def get_buffer_sync_flags(self, networks: Mapping[str, nn.Module]) -> dict[str, bool]:
        """Return, per wrapped network, whether its next forward pass broadcasts the buffers of rank 0.

        Checkpoints save the flags: a DDP network does not broadcast buffers after a pass under `no_sync`.

        Args:
            networks: the networks of the model by name.
        """
        return ddp.get_buffer_sync_flags(networks)

    def restore_buffer_sync_flags(self, networks: Mapping[str, nn.Module], flags: Mapping[str, bool]) -> None:
        """Restore the flags that `get_buffer_sync_flags` returned.

        Args:
            networks: the networks of the model by name.
            flags: the flags by name. A wrapped network that has none broadcasts its buffers.
        """
        ddp.restore_buffer_sync_flags(networks, flags)

    def mark_used(
        self, networks: Mapping[str, nn.Module], in_flight: Iterable[torch.Tensor], unreduced: Iterable[torch.Tensor]
    ) -> None:
        """Make the next gradient exchange include these parameters, even if no backward pass uses them until then.

        Called on all ranks when gradients are restored in the middle of an accumulation, after
        `restore_buffer_sync_flags` and before the gradients are set.

        Args:
            networks: the networks of the model by name.
            in_flight: the parameters that have a gradient.
            unreduced: those whose gradient has not been exchanged since it was computed.
        """
        ddp.mark_used(networks, in_flight, unreduced)
