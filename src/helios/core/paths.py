"""Where the process stands in the file system."""

from __future__ import annotations

import contextlib
from os import PathLike


class ChdirContext(contextlib.chdir[str | PathLike[str]]):
    """A context in which `path` is the working directory; the one before is restored on exit.

    It may be entered again within itself. The working directory belongs to the whole process: other threads see it too.

    Args:
        path: the directory to enter.

    Raises:
        OSError: on entry, if the directory cannot be entered.
    """
