"""The standard output and error streams, which may be full, closed or missing while training continues.

An error of these streams does not end a run. A stream that fails is not written to again; this is reported once, in the
log and on the other stream.
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
    """The current `sys.stdout` or `sys.stderr`; a program may replace them at any time."""

    def __init__(self, name: str, title: str) -> None:
        """Use a stream of `sys`.

        Args:
            name: "stdout" or "stderr".
            title: its name in messages.
        """
        self._name = name
        self._title = title
        self._broken: Any = _NONE_YET  # The object that has failed, which may be `None`.

    def use(self, action: Callable[[TextIO], object]) -> bool:
        """Call a function that writes to the stream, and write to the stream no more if it fails.

        Args:
            action: called with the stream.

        Returns:
            Whether the function was called and did not fail.
        """
        stream: TextIO | None = getattr(sys, self._name, None)
        if stream is self._broken:
            return False
        if stream is None:
            self._switch_off(None, "it does not exist")
            return False
        try:
            action(stream)
        except Exception as error:  # noqa: BLE001 - a program may put any object there, which may raise any error.
            self._switch_off(stream, f"{type(error).__name__}: {error}")
            return False
        return True

    def write(self, text: str, *, flush: bool = False) -> None:
        """Write text; characters that the stream's encoding lacks are written as escapes.

        Args:
            text: the text.
            flush: flush the stream afterwards.
        """

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
        if self is STDERR:  # The log is printed on this stream, so the warning above was not.
            STDOUT.write(f"{message}\n", flush=True)


STDOUT: Final = StandardStream("stdout", "standard output")
STDERR: Final = StandardStream("stderr", "standard error")
