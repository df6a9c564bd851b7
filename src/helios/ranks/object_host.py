"""Objects that stay in the process that called `fit`, and proxies by which ranks call them."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import pickle
from typing import TYPE_CHECKING, Any

from helios.errors import NotRunningError
from helios.ranks.failures import portable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    Ask = Callable[[int, str, tuple[Any, ...], dict[str, Any]], Any]


@dataclasses.dataclass(frozen=True)
class _Kind:
    """How proxies of the objects of a class are made, and how calls of them are answered."""

    represent: Callable[[Any, int], tuple[Callable[..., Any], tuple[Any, ...]]]
    answer: Callable[[Any, str, tuple[Any, ...], dict[str, Any]], Any]


_kinds: dict[type, _Kind] = {}
_channels: list[Ask] = []  # From this process to the hosts; the last one is used.


def register_proxy(
    kind: type,
    represent: Callable[[Any, int], tuple[Callable[..., Any], tuple[Any, ...]]],
    answer: Callable[[Any, str, tuple[Any, ...], dict[str, Any]], Any],
) -> None:
    """Send a proxy in place of each object of a class to other processes; the object stays in this one.

    Args:
        kind: the class.
        represent: returns a function and its arguments, which make the proxy in the other process; it gets the object
            and the number under which the object can be called.
        answer: answers a call; it gets the object, the name of the call, and its positional and keyword arguments.
    """
    _kinds[kind] = _Kind(represent, answer)


class ObjectHost:
    """Holds the objects that stay in the process that called `fit`, and answers calls of their proxies."""

    def __init__(self) -> None:
        self._kept: list[tuple[Any, _Kind]] = []

    def pack(self, value: Any) -> bytes:
        """Pickle a value for other processes, with proxies in place of the objects that stay here."""
        buffer = io.BytesIO()
        _Packer(buffer, self).dump(value)
        return buffer.getvalue()

    def keep(self, value: Any) -> tuple[Callable[..., Any], tuple[Any, ...]] | None:
        """Return what makes the proxy of an object that stays here; `None` if it is of no registered class."""
        kind = next((kind for base, kind in _kinds.items() if isinstance(value, base)), None)
        return None if kind is None else kind.represent(value, self._number_of(value, kind))

    def number_of(self, value: Any) -> int:
        """Return the number under which an object of a registered class can be called; it stays in this process."""
        return self._number_of(value, next(kind for base, kind in _kinds.items() if isinstance(value, base)))

    def _number_of(self, value: Any, kind: _Kind) -> int:
        number = next((number for number, (kept, _) in enumerate(self._kept) if kept is value), len(self._kept))
        if number == len(self._kept):
            self._kept.append((value, kind))
        return number

    def answer(self, request: bytes) -> bytes:
        """Answer a call of `call_host` that came over a pipe. An error is returned to the caller, and raised there."""
        number, name, arguments, options = pickle.loads(request)  # noqa: S301 - by a rank of this run, over its pipe.
        try:
            return pickle.dumps((True, self.call(number, name, arguments, options)))
        except Exception as error:  # noqa: BLE001 - it is raised in the calling rank.
            return pickle.dumps((False, portable(error)))

    def call(self, number: int, name: str, arguments: tuple[Any, ...], options: dict[str, Any]) -> Any:
        """Return the result of a call, or raise its error; see `call_host`."""
        value, kind = self._kept[number]
        return kind.answer(value, name, arguments, options)


class _Packer(pickle.Pickler):
    def __init__(self, file: io.BytesIO, host: ObjectHost) -> None:
        super().__init__(file)
        self._object_host = host

    def reducer_override(self, value: Any) -> Any:
        proxy = None if isinstance(value, type) else self._object_host.keep(value)
        return NotImplemented if proxy is None else proxy


@contextlib.contextmanager
def host_channel(ask: Callable[[bytes], bytes]) -> Iterator[None]:
    """Let `call_host` reach another process over a pipe while the context lasts.

    Args:
        ask: sends a pickled call and returns the pickled answer; no other process may have access to the pipe.
    """

    def ask_pickled(number: int, name: str, arguments: tuple[Any, ...], options: dict[str, Any]) -> Any:
        request = pickle.dumps((number, name, arguments, options))
        is_answered, answer = pickle.loads(ask(request))  # noqa: S301 - by the host, over the pipe to it.
        if not is_answered:
            raise answer
        return answer

    with ask_by(ask_pickled):
        yield


@contextlib.contextmanager
def ask_by(ask: Ask) -> Iterator[None]:
    """Let `call_host` reach another process through a function while the context lasts.

    Args:
        ask: gets the arguments of `call_host`, and returns or raises its result.
    """
    _channels.append(ask)
    try:
        yield
    finally:
        _channels.remove(ask)


def call_host(number: int, name: str, *arguments: Any, **options: Any) -> Any:
    """Call an object in the process that hosts it, and return the result.

    Args:
        number: the number of the object, which its proxy was made with.
        name: the name of the call.
        *arguments: passed on.
        **options: passed on.

    Raises:
        NotRunningError: if this process has no channel to a host.
        Exception: the error of the call.
    """
    if not _channels:
        raise NotRunningError(
            f"{name} calls the process that called fit, and there is no channel to it: a proxy works during a run only"
        )
    return _channels[-1](number, name, arguments, options)
