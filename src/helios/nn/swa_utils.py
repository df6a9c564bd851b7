"""Averages of a network's weights over training."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from helios.errors import ConfigurationError

if TYPE_CHECKING:
    import torch
    from torch import nn

__all__ = ["EMA"]


class EMA(AveragedModel):
    """The exponential moving average of a network's parameters.

    After each `update_parameters(network)` the average is `decay * average + (1 - decay) * parameters`; the first call
    copies the parameters. The average is a module: calling it runs the averaged network, and checkpoints save it like
    any other module.

    >>> import torch
    >>> network = torch.nn.Linear(1, 1, bias=False)
    >>> average = EMA(network, decay=0.5)
    >>> for value in (0.0, 1.0):
    ...     _ = torch.nn.init.constant_(network.weight, value)
    ...     average.update_parameters(network)
    >>> average(torch.ones(1)).item()
    0.5

    Args:
        network: the network to average; its weights are copied.
        decay: the factor of the average at each update, in [0, 1].
        device: the device of the average; that of the network if it is `None`.
        use_buffers: average the buffers, such as the statistics of batch normalization, as well. Otherwise they are
            copied from the network at each update.

    Raises:
        ConfigurationError: if `decay` is out of range.
    """

    def __init__(
        self,
        network: nn.Module,
        decay: float = 0.999,
        device: torch.device | int | str | None = None,
        use_buffers: bool = True,
    ) -> None:
        if not 0.0 <= decay <= 1.0:
            raise ConfigurationError(f"decay is {decay!r}: pass a number from 0 to 1")
        super().__init__(network, device, multi_avg_fn=get_ema_multi_avg_fn(decay), use_buffers=use_buffers)  # type: ignore[no-untyped-call, arg-type]  # torch has annotated neither the factory nor all types of `device`.
        self.decay = decay
