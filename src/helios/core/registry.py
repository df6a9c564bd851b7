"""Registries of classes and functions by name."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Iterator, KeysView
from typing import TYPE_CHECKING, Any, Generic, TypeVar, overload

from helios.errors import ArgumentTypeError, DuplicateNameError, UnknownNameError

if TYPE_CHECKING:
    from types import ModuleType

ProductT = TypeVar("ProductT")
MakerT = TypeVar("MakerT", bound=Callable[..., Any])


class Registry(Generic[ProductT]):
    """A table of classes and functions that each make a `ProductT`, under unique names.

    Iterating yields pairs of a name and what is registered under it, in the order of registration; `keys` returns the
    names. `str` lists both.

    >>> shapes = Registry[str]("shape")
    >>> @shapes.register
    ... def circle(radius: int) -> str:
    ...     return f"a circle of radius {radius}"
    >>> shapes.get("circle")(2)
    'a circle of radius 2'
    >>> "square" in shapes
    False

    Args:
        name: the kind of the entries, such as "optimizer", for error messages.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._entries: dict[str, Callable[..., ProductT]] = {}

    @property
    def name(self) -> str:
        """The kind of the entries."""
        return self._name

    @overload
    def register(self, obj: MakerT, suffix: str | None = None, *, name: str | None = None) -> MakerT: ...

    @overload
    def register(
        self, obj: None = None, suffix: str | None = None, *, name: str | None = None
    ) -> Callable[[MakerT], MakerT]: ...

    def register(
        self, obj: MakerT | None = None, suffix: str | None = None, *, name: str | None = None
    ) -> MakerT | Callable[[MakerT], MakerT]:
        """Add a class or function to the table and return it unchanged.

        This is a decorator, with or without arguments, and an ordinary method.

        Args:
            obj: the class or function; `None` when this is a decorator with arguments.
            suffix: added to the name as `_suffix`.
            name: the name; `obj.__name__` if it is `None`.

        Raises:
            DuplicateNameError: if the name is taken; the table is unchanged.
            ArgumentTypeError: if `obj` cannot be called, or has no `__name__` and `name` is `None`.
        """
        if obj is None:
            return lambda decorated: self.register(decorated, suffix=suffix, name=name)
        full_name = _join(self._name_of(obj, name), suffix)
        if full_name in self._entries:
            raise DuplicateNameError(
                f"{full_name!r} is already a registered {self._name} ({_describe(self._entries[full_name])}): "
                f"pass another name= or a suffix= to register {_describe(obj)}; {self._list_names()}"
            )
        self._entries[full_name] = obj
        return obj

    def register_members(self, module: ModuleType, accept: Callable[[str, type], bool]) -> None:
        """Register the classes of a module under their public names.

        Args:
            module: the module.
            accept: called with the name and the class; whether to register it.
        """
        for name, member in vars(module).items():
            if inspect.isclass(member) and not name.startswith("_") and accept(name, member):
                self.register(member, name=name)

    def get(self, name: str, suffix: str | None = None) -> Callable[..., ProductT]:
        """Return the class or function that is registered as `name_suffix`, or, if there is none, as `name`.

        Args:
            name: the name.
            suffix: what may follow it; `None` for `name` alone.

        Raises:
            ArgumentTypeError: if the name or the suffix is no string.
            UnknownNameError: if there is no such name; the message lists the registered ones.
        """
        full_name = _join(name, suffix)
        for known in (full_name, name):
            if known in self._entries:
                return self._entries[known]
        close = difflib.get_close_matches(full_name, self._entries, n=1)
        hint = f"did you mean {close[0]!r}? " if close else ""
        raise UnknownNameError(f"{full_name!r} is not a registered {self._name}: {hint}{self._list_names()}")

    def create(self, type_name: str, /, *args: Any, **kwargs: Any) -> ProductT:
        """Call what is registered as `type_name`, and return the result.

        Args:
            type_name: the registered name.
            *args: passed on.
            **kwargs: passed on.

        Raises:
            UnknownNameError: if there is no such name; the message lists the registered ones.
        """
        return self.get(type_name)(*args, **kwargs)

    def keys(self) -> KeysView[str]:
        """Return a view of the names, which shows later registrations."""
        return self._entries.keys()

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and name in self._entries

    def __iter__(self) -> Iterator[tuple[str, Callable[..., ProductT]]]:
        return iter(self._entries.items())

    def __len__(self) -> int:
        return len(self._entries)

    def __str__(self) -> str:
        entries = [f"  {name}: {_describe(obj)}" for name, obj in self._entries.items()]
        return "\n".join([f"{self._name}: {len(self)} registered", *entries])

    def __repr__(self) -> str:
        return f"Registry({self._name!r}, {len(self)} names)"

    def _name_of(self, obj: object, name: str | None) -> str:
        if not callable(obj):
            raise ArgumentTypeError(
                f"{obj!r} cannot be a registered {self._name}: register a class or a function; to register it under "
                "another name, pass name="
            )
        own_name: str | None = name or getattr(obj, "__name__", None)
        if own_name is None:
            raise ArgumentTypeError(f"{obj!r} has no __name__: register it with name=")
        return own_name

    def _list_names(self) -> str:
        return f"there are {', '.join(sorted(self._entries)) or 'none yet'}"


def _join(name: str, suffix: str | None) -> str:
    for what, part in (("name", name), ("suffix", suffix or "")):
        if not isinstance(part, str):
            raise ArgumentTypeError(f"the {what} is {part!r}, a {type(part).__name__}: pass a string")
    return f"{name}_{suffix}" if suffix else name


def _describe(obj: object) -> str:
    return f"{getattr(obj, '__module__', '?')}.{getattr(obj, '__qualname__', repr(obj))}"
