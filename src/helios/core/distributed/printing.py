"""Printing on one rank."""

from __future__ import annotations

import io
from typing import Any, TextIO

from helios.core.distributed.group import get_global_rank, get_local_rank
from helios.core.streams import STDOUT


def global_print(*args: Any, global_rank: int = 0, **kwargs: Any) -> None:
    """Print on one rank.

    Standard output that cannot be written (a full disk, a broken pipe) does not end a run: it is logged once, and
    nothing more is printed there. Errors of a file that the caller passes are raised.

    Args:
        *args: as for `print`.
        global_rank: the rank that prints.
        **kwargs: as for `print`.
    """
    if get_global_rank() == global_rank:
        _print(*args, **kwargs)


def local_print(*args: Any, local_rank: int = 0, **kwargs: Any) -> None:
    """Print on one rank of each machine; see `global_print`.

    Args:
        *args: as for `print`.
        local_rank: the local rank that prints.
        **kwargs: as for `print`.
    """
    if get_local_rank() == local_rank:
        _print(*args, **kwargs)


def _print(*args: Any, file: TextIO | None = None, flush: bool = False, **kwargs: Any) -> None:
    if file is not None:
        print(*args, file=file, flush=flush, **kwargs)
        return
    text = io.StringIO()
    print(*args, file=text, **kwargs)
    STDOUT.write(text.getvalue(), flush=flush)
