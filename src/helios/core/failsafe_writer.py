"""A TensorBoard writer that stops writing when its files cannot be written, so that training continues."""

from __future__ import annotations

import functools
import logging
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch.utils.tensorboard import SummaryWriter

# The logger of helios.core.logging, which imports this module.
_LOGGER: Final = logging.getLogger("helios")


def make_failsafe(writer_class: type[SummaryWriter]) -> type[SummaryWriter]:
    """Return a class of writers whose methods do nothing after a file could not be written; a warning says so once.

    Args:
        writer_class: torch's `SummaryWriter`; a parameter, because it takes seconds to import and is optional.
    """

    class FailsafeWriter(writer_class):  # type: ignore[misc, valid-type]  # mypy does not know the class.
        _is_off = False

        def __getattribute__(self, name: str) -> Any:
            attribute = super().__getattribute__(name)
            return self._guard(attribute) if name.startswith("add_") or name in ("flush", "close") else attribute

        def _guard(self, method: Callable[..., Any]) -> Callable[..., Any]:
            @functools.wraps(method)
            def call(*args: Any, **kwargs: Any) -> Any:
                if self._is_off:
                    return None
                try:
                    return method(*args, **kwargs)
                except OSError as error:
                    self._is_off = True
                    _LOGGER.warning(
                        "TensorBoard's files in '%s' cannot be written (%s): nothing more is written to them, and "
                        "training continues",
                        self.log_dir,
                        error,
                    )
                    return None

            return call

    return FailsafeWriter
