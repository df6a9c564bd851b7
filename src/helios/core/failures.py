"""Errors on their way from one process to another."""

from __future__ import annotations

import dataclasses
import pickle
import re
import socket
import time
import traceback
from typing import TYPE_CHECKING, Final

from helios.errors import RankFailedError, TrainingError

if TYPE_CHECKING:
    from collections.abc import Sequence

_GONE: Final = re.compile(
    r"gloo/transport|Connection (closed|reset|refused)|Broken pipe|Failed to recv|NCCL error|ncclRemoteError"
)


@dataclasses.dataclass(frozen=True)
class Failure:
    """How a rank has failed: plain data, which always travels, and the exception itself where that can.

    Attributes:
        rank: the global rank.
        host: the name of its machine.
        when: the monotonic time of that machine, in seconds.
        text: what has happened, in a line.
        traceback: the traceback, as Python prints it; empty for a rank that was killed.
        pickled: the exception; `None` where it cannot be pickled, or not be made again.
        is_echo: whether it says no more than that another rank is gone.
        is_control_flow: whether it is no error to the rank that raised it, which may be the only one to know.
        is_lost: whether the rank is gone, and has raised nothing.
    """

    rank: int
    host: str
    when: float
    text: str
    traceback: str = ""
    pickled: bytes | None = None
    is_echo: bool = False
    is_control_flow: bool = False
    is_lost: bool = False

    @classmethod
    def lost(cls, rank: int, host: str, text: str) -> Failure:
        """Describe that a rank is gone."""
        return cls(rank, host, time.monotonic(), text, is_lost=True)

    @classmethod
    def of(cls, error: BaseException, rank: int, control_flow: Sequence[type[BaseException]] = ()) -> Failure:
        """Describe what this process is about to raise."""
        return cls(
            rank,
            socket.gethostname(),
            time.monotonic(),
            text="".join(traceback.format_exception_only(error)).strip(),
            traceback=_format(error),
            pickled=_pickle(error),
            is_echo=_is_echo(error),
            is_control_flow=isinstance(error, tuple(control_flow)),
        )

    def to_error(self, control_flow: Sequence[type[BaseException]] = ()) -> BaseException:
        """Return what another process shall raise.

        Args:
            control_flow: exceptions of these types come home as they are.

        Returns:
            The exception itself if it is control flow, and else a `RankFailedError` of which it is the cause.
        """
        error = None if self.pickled is None else _unpickle(self.pickled)
        report = RankFailedError(self.describe(), self.rank, self.is_lost)
        if isinstance(error, RankFailedError):
            return error  # It says itself who failed.
        if error is not None and (self.is_control_flow or isinstance(error, tuple(control_flow))):
            error.__cause__ = report  # For whoever prints it: where it was raised.
            return error
        report.__cause__ = error
        return report

    def describe(self) -> str:
        """Return who failed and how, for people."""
        told = f"\n\n{self.traceback}" if self.traceback else ""
        return f"rank {self.rank} (on {self.host}) failed first: {self.text}{told}"


def _is_echo(error: BaseException | None) -> bool:
    """Whether an error, or one that it goes back to, was raised because another rank has failed.

    gloo has no class for the end of a connection, but begins its messages with a place in its source.
    """
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        if isinstance(error, RankFailedError) or (isinstance(error, RuntimeError) and _GONE.search(str(error))):
            return True
        error = error.__cause__ or error.__context__
    return False


def portable(error: BaseException) -> BaseException:
    """Return the error if another process can be given it, and else one that says the same."""
    if _pickle(error) is not None:
        return error
    return TrainingError("".join(traceback.format_exception_only(error)).strip())


def _format(error: BaseException) -> str:
    return "".join(traceback.format_exception(error)).rstrip()


def _pickle(error: BaseException) -> bytes | None:
    try:
        pickled = pickle.dumps(error)
    except Exception:  # noqa: BLE001 - whatever an exception holds may refuse, in any way; its text travels all the same.
        return None
    return None if _unpickle(pickled) is None else pickled


def _unpickle(pickled: bytes) -> BaseException | None:
    try:
        error = pickle.loads(pickled)  # noqa: S301 - from a process of this run, over its own channel.
    except Exception:  # noqa: BLE001 - an exception with arguments of its own may not be made again; see _pickle.
        return None
    return error if isinstance(error, BaseException) else None
