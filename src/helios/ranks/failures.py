"""Descriptions of failures that can be sent to other processes."""

from __future__ import annotations

import builtins
import dataclasses
import pickle
import re
import socket
import time
import traceback
from typing import TYPE_CHECKING, Any, Final

from helios import errors
from helios.errors import ArgumentTypeError, RankFailedError, TrainingError
from helios.ranks.messages import decode_message, encode_message, foreign_content

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

_GONE: Final = re.compile(
    r"gloo/transport|Connection (closed|reset|refused)|Broken pipe|Failed to recv|NCCL error|ncclRemoteError"
)

_FIELDS: Final = {  # Of a failure in a store.
    **dict.fromkeys(("host", "text", "traceback", "kind"), str),
    **dict.fromkeys(("is_echo", "is_control_flow", "is_lost"), bool),
    "rank": int,
    "when": float,
    "arguments": tuple,
}


@dataclasses.dataclass(frozen=True)
class Failure:
    """How a rank has failed: plain data, and the exception itself if it can be pickled.

    The pickled exception is sent only over the pipe to the process that has started the rank. A store gets only the
    plain data.

    Attributes:
        rank: the global rank.
        host: the name of its machine.
        when: the monotonic time of that machine, in seconds.
        text: what has happened, in one line.
        traceback: the traceback, as Python prints it; empty for a rank that was killed.
        pickled: the exception; `None` if it cannot be pickled or unpickled.
        is_echo: whether the error only says that another rank is gone.
        is_control_flow: whether its type is registered as control flow, perhaps only on the rank that raised it.
        is_lost: whether the rank is gone and has raised no exception.
        kind: the full name of the exception's type; empty for a rank that was killed.
        arguments: the arguments to construct an exception of this type.
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
    kind: str = ""
    arguments: tuple[Any, ...] = ()

    @classmethod
    def lost(cls, rank: int, host: str, text: str) -> Failure:
        """Return the failure of a rank that is gone."""
        return cls(rank, host, time.monotonic(), text, is_lost=True)

    @classmethod
    def of(cls, error: BaseException, rank: int, control_flow: Sequence[type[BaseException]] = ()) -> Failure:
        """Return the failure for an exception of this process."""
        kind, arguments, text = describe_error(error)
        return cls(
            rank,
            socket.gethostname(),
            time.monotonic(),
            text=text,
            traceback=_format(error),
            pickled=_pickle(error),
            is_echo=_is_echo(error),
            is_control_flow=isinstance(error, tuple(control_flow)),
            kind=kind,
            arguments=arguments,
        )

    def to_message(self) -> bytes:
        """Return all but the pickled exception as plain data, for the store of a run."""
        return encode_message({name: getattr(self, name) for name in _FIELDS})

    @classmethod
    def from_message(cls, message: bytes, key: str) -> Failure:
        """Return the failure that stands in the store of a run.

        Args:
            message: the content of the store.
            key: its key, for the error.

        Raises:
            StoreContentError: if it is not a failure.
        """
        fields = decode_message(message, key)
        if not isinstance(fields, dict) or {name: type(value) for name, value in fields.items()} != _FIELDS:
            raise foreign_content(key, message)
        return cls(**fields)

    def to_error(self, control_flow: Sequence[type[BaseException]] = ()) -> BaseException:
        """Return the exception that another process must raise.

        Args:
            control_flow: exceptions of these types are raised as they are.

        Returns:
            The exception itself if it is control flow, otherwise a `RankFailedError` with the exception as its cause.
            An exception that was sent as plain data is constructed again if its type is Python's, Helios' or one of
            `control_flow`.
        """
        # `is_control_flow` counts only with a pickled exception: the plain data in a store may come from anyone.
        is_pickled = self.pickled is not None
        known = tuple(control_flow)
        error = _unpickle(self.pickled) if self.pickled is not None else make_error(self.kind, self.arguments, known)
        report = RankFailedError(self.describe(), self.rank, self.is_lost)
        if isinstance(error, RankFailedError):
            return error  # It already names the failed rank.
        if error is not None and ((is_pickled and self.is_control_flow) or isinstance(error, known)):
            error.__cause__ = report  # Its traceback shows where the exception was raised.
            return error
        report.__cause__ = error
        return report

    def describe(self) -> str:
        """Return which rank failed and how, for messages."""
        told = f"\n\n{self.traceback}" if self.traceback else ""
        return f"rank {self.rank} (on {self.host}) failed first: {self.text}{told}"


def describe_error(error: BaseException) -> tuple[str, tuple[Any, ...], str]:
    """Return an exception as plain data: the full name of its type, its arguments, and its text.

    Arguments that are not plain data are replaced by the text.
    """
    arguments = error.args
    if isinstance(error, RankFailedError | OSError):  # These have further arguments, such as the name of a file.
        arguments = tuple(error.__reduce__()[1])
    try:
        encode_message(arguments)
    except ArgumentTypeError:
        arguments = (str(error),)
    return _name_of(type(error)), arguments, "".join(traceback.format_exception_only(error)).strip()


def make_error(
    kind: str, arguments: tuple[Any, ...], known: Sequence[type[BaseException]] = ()
) -> BaseException | None:
    """Construct an exception from plain data, which may be untrusted.

    Args:
        kind: the full name of its type, which must be Python's, Helios', or a known one.
        arguments: the arguments of its constructor.
        known: further types; their subclasses in this program are known as well.

    Returns:
        The exception; `None` if its type is not known, or does not accept these arguments.
    """
    types = (*vars(builtins).values(), *vars(errors).values(), *_with_subclasses(known))
    for known_type in types:
        if isinstance(known_type, type) and issubclass(known_type, BaseException) and _name_of(known_type) == kind:
            try:
                return known_type(*arguments)
            except Exception:  # noqa: BLE001 - a constructor may raise anything; the text is kept in any case.
                return None
    return None


def _with_subclasses(types: Sequence[type[BaseException]]) -> Iterator[type[BaseException]]:
    for kind in types:
        yield kind
        yield from _with_subclasses(kind.__subclasses__())


def _name_of(kind: type) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"


def _is_echo(error: BaseException | None) -> bool:
    """Return whether an error, or one of its causes, was raised because another rank has failed.

    gloo has no exception class for a closed connection; its messages begin with a position in its source code.
    """
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        if isinstance(error, RankFailedError) or (isinstance(error, RuntimeError) and _GONE.search(str(error))):
            return True
        error = error.__cause__ or error.__context__
    return False


def portable(error: BaseException) -> BaseException:
    """Return the error if it can be pickled, otherwise a `TrainingError` with the same text."""
    return error if _pickle(error) is not None else TrainingError(describe_error(error)[2])


def _format(error: BaseException) -> str:
    return "".join(traceback.format_exception(error)).rstrip()


def _pickle(error: BaseException) -> bytes | None:
    try:
        pickled = pickle.dumps(error)
    except Exception:  # noqa: BLE001 - attributes of the exception may raise anything; its text is sent in any case.
        return None
    return None if _unpickle(pickled) is None else pickled


def _unpickle(pickled: bytes) -> BaseException | None:
    try:
        error = pickle.loads(pickled)  # noqa: S301 - from a process of this run, over its own channel.
    except Exception:  # noqa: BLE001 - some exceptions cannot be unpickled; see _pickle.
        return None
    return error if isinstance(error, BaseException) else None
