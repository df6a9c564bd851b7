"""Objects that stay in the process that called `fit`, and the way back to them from the ranks."""

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
    """How the objects of a class are represented elsewhere, and how questions to them are answered here."""

    represent: Callable[[Any, int], tuple[Callable[..., Any], tuple[Any, ...]]]
    answer: Callable[[Any, str, tuple[Any, ...], dict[str, Any]], Any]


_kinds: dict[type, _Kind] = {}
_ways: list[Ask] = []  # Of this process to its home; the last one counts.


def register_proxy(
    kind: type,
    represent: Callable[[Any, int], tuple[Callable[..., Any], tuple[Any, ...]]],
    answer: Callable[[Any, str, tuple[Any, ...], dict[str, Any]], Any],
) -> None:
    """Keep the objects of a class in this process when what holds them is sent to others, which get a proxy.

    Args:
        kind: the class.
        represent: returns what makes the stand-in elsewhere, a function and its arguments, from the object and the
            number under which it can be asked.
        answer: answers a question to the object: gets the object, the question's name and its arguments.
    """
    _kinds[kind] = _Kind(represent, answer)


class ObjectHost:
    """The side of the process that called `fit`: keeps what does not travel, and answers questions to it."""

    def __init__(self) -> None:
        self._kept: list[tuple[Any, _Kind]] = []

    def pack(self, value: Any) -> bytes:
        """Pickle a value for other processes, with stand-ins in the place of what stays here."""
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

    def answer(self, question: bytes) -> bytes:
        """Answer a call of `call_host` that came over a pipe. An error is returned to the caller, and raised there."""
        number, name, arguments, options = pickle.loads(question)  # noqa: S301 - by a rank of this run, over its pipe.
        try:
            return pickle.dumps((True, self.call(number, name, arguments, options)))
        except Exception as error:  # noqa: BLE001 - it is the asker's.
            return pickle.dumps((False, portable(error)))

    def call(self, number: int, name: str, arguments: tuple[Any, ...], options: dict[str, Any]) -> Any:
        """Return the answer to a question, or raise what answering raises; see `call_host`."""
        value, kind = self._kept[number]
        return kind.answer(value, name, arguments, options)


class _Packer(pickle.Pickler):
    def __init__(self, file: io.BytesIO, home: ObjectHost) -> None:
        super().__init__(file)
        self._object_host = home

    def reducer_override(self, value: Any) -> Any:
        stand_in = None if isinstance(value, type) else self._object_host.keep(value)
        return NotImplemented if stand_in is None else stand_in


@contextlib.contextmanager
def host_channel(ask: Callable[[bytes], bytes]) -> Iterator[None]:
    """Let `call_host` reach another process over a pipe while the context lasts.

    Args:
        ask: takes a pickled question there, and returns the pickled answer: nobody else may have access to the pipe.
    """

    def ask_pickled(number: int, name: str, arguments: tuple[Any, ...], options: dict[str, Any]) -> Any:
        question = pickle.dumps((number, name, arguments, options))
        is_answered, answer = pickle.loads(ask(question))  # noqa: S301 - by home, over the pipe to it.
        if not is_answered:
            raise answer
        return answer

    with ask_by(ask_pickled):
        yield


@contextlib.contextmanager
def ask_by(ask: Ask) -> Iterator[None]:
    """Let `call_host` reach another process through a function while the context lasts.

    Args:
        ask: gets what `call_host` gets, and returns or raises what that must.
    """
    _ways.append(ask)
    try:
        yield
    finally:
        _ways.remove(ask)


def call_host(number: int, name: str, *arguments: Any, **options: Any) -> Any:
    """Call an object in the process that hosts it, and return its answer.

    Args:
        number: the number that the object's stand-in was made with.
        name: what is asked.
        *arguments: passed on.
        **options: passed on.

    Raises:
        NotRunningError: if this process was not sent out by any.
        Exception: whatever answering has raised there.
    """
    if not _ways:
        raise NotRunningError(
            f"{name} asks the process that called fit, and there is no way to it: a stand-in can be used in a run only"
        )
    return _ways[-1](number, name, arguments, options)
