"""The standard output and error streams, which may be full, closed or missing while training continues.

What a run says there is never worth the run: a stream that fails is left alone from then on, and that is said once, in
the log and on the other stream.
"""

from __future__ import annotations

import logging
import sys
from typing import TYPE_CHECKING, Any, Final, TextIO

if TYPE_CHECKING:
    from collections.abc import Callable

# The logger of helios.core.logging, which imports this module.
_LOGGER: Final = logging.getLogger("helios")
_NONE_YET: Final = object()


class StandardStream:
    """One of the two streams of the moment: a program may replace them at any time."""

    def __init__(self, name: str, title: str) -> None:
        """Find it by its name in `sys`.

        Args:
            name: "stdout" or "stderr".
            title: what messages call it.
        """
        self._name = name
        self._title = title
        self._broken: Any = _NONE_YET  # The object that has failed, which may be `None`.

    def use(self, action: Callable[[TextIO], object]) -> bool:
        """Do something that writes to the stream, and switch the stream off if that fails.

        Returns:
            Whether it was done.
        """
        stream: TextIO | None = getattr(sys, self._name, None)
        if stream is self._broken:
            return False
        if stream is None:
            self._switch_off(None, "there is none")
            return False
        try:
            action(stream)
        except Exception as error:  # noqa: BLE001 - programs put objects of all kinds there, which raise what they like.
            self._switch_off(stream, f"{type(error).__name__}: {error}")
            return False
        return True

    def write(self, text: str, *, flush: bool = False) -> None:
        """Write text, with escapes for characters that the stream's encoding lacks."""

        def write_to(stream: TextIO) -> None:
            try:
                stream.write(text)
            except UnicodeEncodeError as error:
                stream.write(text.encode(error.encoding, "backslashreplace").decode(error.encoding))
            if flush:
                stream.flush()

        self.use(write_to)

    def _switch_off(self, stream: TextIO | None, reason: str) -> None:
        self._broken = stream
        message = f"{self._title} cannot be written ({reason}): nothing more is written to it, and training continues"
        _LOGGER.warning(message)
        if self is STDERR:  # The console of the log is this very stream.
            STDOUT.write(f"{message}\n", flush=True)


STDOUT: Final = StandardStream("stdout", "standard output")
STDERR: Final = StandardStream("stderr", "standard error")
