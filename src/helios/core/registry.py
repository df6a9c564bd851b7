"""Registries of classes and functions by name, and the import of the modules that register them."""

from __future__ import annotations

import ast
import difflib
import importlib
import inspect
import sys
from collections.abc import Callable, Iterator, KeysView
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar, overload

from helios.core.logging import get_root_logger
from helios.core.paths import to_path
from helios.errors import ArgumentTypeError, ConfigurationError, DuplicateNameError, UnknownNameError

if TYPE_CHECKING:
    from types import ModuleType

ProductT = TypeVar("ProductT")
MakerT = TypeVar("MakerT", bound=Callable[..., Any])


class Registry(Generic[ProductT]):
    """A table of classes and functions that each make a `ProductT`, under unique names.

    Iterating yields the names, in the order of registration.

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
    def register(self, obj: MakerT, *, suffix: str | None = None, name: str | None = None) -> MakerT: ...

    @overload
    def register(
        self, obj: None = None, *, suffix: str | None = None, name: str | None = None
    ) -> Callable[[MakerT], MakerT]: ...

    def register(
        self, obj: MakerT | None = None, *, suffix: str | None = None, name: str | None = None
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
        """Return the class or function that is registered as `name`, or as `name_suffix` if a suffix is given.

        Raises:
            ArgumentTypeError: if the name or the suffix is no string.
            UnknownNameError: if there is no such name; the message lists the registered ones.
        """
        full_name = _join(name, suffix)
        try:
            return self._entries[full_name]
        except KeyError:
            close = difflib.get_close_matches(full_name, self._entries, n=1)
            hint = f"did you mean {close[0]!r}? " if close else ""
            raise UnknownNameError(
                f"{full_name!r} is not a registered {self._name}: {hint}{self._list_names()}"
            ) from None

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

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

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


def update_all_registries(root: str | Path, recurse: bool = True, import_prefix: str = "") -> None:
    """Import the modules under `root` that register something, and no others.

    A module registers something if it calls, or decorates with, the `register` of a name that ends in `_REGISTRY`; the
    source is parsed for that, not run. A module that was imported before, also as the program's main script, is not
    imported again.

    Args:
        root: the directory to search.
        recurse: also search the directories below it whose names are identifiers.
        import_prefix: the dotted name under which `root` itself is imported, such as `"project.models"`. If it is
            empty, the name is derived from the path of `root` below the nearest directory on `sys.path`.

    Raises:
        ArgumentTypeError: if an argument has the wrong type.
        ConfigurationError: if `root` is no directory, if no directory on `sys.path` contains it, or if one of the
            modules cannot be imported; the message names the file and the reason.
    """
    if not isinstance(import_prefix, str):
        raise ArgumentTypeError(f"import_prefix is {import_prefix!r}, a {type(import_prefix).__name__}: pass a string")
    folder = to_path(root, "root")
    try:
        folder = folder.resolve()
        is_directory = folder.is_dir()
    except (OSError, RuntimeError):  # The name is too long, or is a link to itself.
        is_directory = False
    if not is_directory:
        raise ConfigurationError(f"cannot search '{folder}' for modules that register something: it is not a directory")
    paths = [path for path in _find_sources(folder, recurse=recurse) if _registers_something(path)]
    if not all(map(_is_loaded, paths)):
        prefix = import_prefix.strip(".") or _find_import_name(folder)
        for path in paths:
            _import_file(path, ".".join(filter(None, (prefix, *_get_module_parts(path, folder)))))


def _join(name: str, suffix: str | None) -> str:
    for what, part in (("name", name), ("suffix", suffix or "")):
        if not isinstance(part, str):
            raise ArgumentTypeError(f"the {what} is {part!r}, a {type(part).__name__}: pass a string")
    return f"{name}_{suffix}" if suffix else name


def _describe(obj: object) -> str:
    return f"{getattr(obj, '__module__', '?')}.{getattr(obj, '__qualname__', repr(obj))}"


def _find_sources(directory: Path, *, recurse: bool) -> Iterator[Path]:
    # Sorted, so that the order of registration does not depend on the file system.
    for path in sorted(directory.iterdir()):
        if path.is_dir():
            # Hidden directories and virtual environments (python3.11, site-packages) have other names.
            if recurse and path.name.isidentifier() and path.name != "__pycache__":
                yield from _find_sources(path, recurse=recurse)
        elif path.suffix == ".py" and path.stem != "__main__":  # Importing __main__ would run a program.
            if path.is_file():
                yield path
            else:  # Opening a FIFO would wait forever, and some editors make dangling links as lock files.
                get_root_logger().warning("skipped '%s': it is no file", path)


def _registers_something(path: Path) -> bool:
    source = path.read_bytes()
    # This search excludes most files without parsing them.
    if b"_REGISTRY" not in source:
        return False
    try:
        tree = ast.parse(source, filename=str(path))
    except (SyntaxError, ValueError) as error:
        raise ConfigurationError(f"cannot tell what '{path}' registers, it is not valid Python: {error}") from error
    return any(_is_register(called) for node in ast.walk(tree) for called in _get_called(node))


def _get_called(node: ast.AST) -> list[ast.expr]:
    match node:
        case ast.Call():
            return [node.func]
        case ast.ClassDef() | ast.FunctionDef() | ast.AsyncFunctionDef():
            return node.decorator_list
        case _:
            return []


def _is_register(node: ast.expr) -> bool:
    match node:
        case ast.Attribute(attr="register", value=ast.Name(id=owner) | ast.Attribute(attr=owner)):
            return owner.endswith("_REGISTRY")
        case _:
            return False


def _is_loaded(path: Path) -> bool:
    # Compared by file and not by name: the main script is loaded as __main__, and must not run again.
    files = (getattr(module, "__file__", None) for module in list(sys.modules.values()))
    return any(Path(file).resolve() == path for file in files if file and file.endswith(path.name))


def _find_import_name(root: Path) -> str:
    search_path = {Path(entry).resolve() for entry in sys.path}
    parts: list[str] = []
    for directory in (root, *root.parents):
        if directory in search_path and not (directory / "__init__.py").exists():
            return ".".join(reversed(parts))
        parts.append(directory.name)
    raise ConfigurationError(
        f"no directory on sys.path leads to '{root}': add one (PYTHONPATH, or install the package), "
        "or pass import_prefix= with the dotted name under which the directory is imported"
    )


def _get_module_parts(path: Path, root: Path) -> tuple[str, ...]:
    parts = path.relative_to(root).with_suffix("").parts
    return parts[:-1] if parts[-1] == "__init__" else parts


def _import_file(path: Path, name: str) -> None:
    if _is_loaded(path):  # One of the modules before it may have imported it.
        return
    if not all(part.isidentifier() for part in name.split(".")):
        raise ConfigurationError(f"'{path}' registers something but cannot be imported as {name!r}: rename it")
    try:
        module = importlib.import_module(name)
    except Exception as error:
        raise ConfigurationError(
            f"'{path}' registers something but importing it as {name!r} failed: {type(error).__name__}: {error}"
        ) from error
    found = getattr(module, "__file__", None)
    if found is None or Path(found).resolve() != path:
        raise ConfigurationError(
            f"'{path}' registers something but importing {name!r} gave '{found}' instead: "
            "rename one of the two, or pass import_prefix="
        )
