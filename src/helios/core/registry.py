"""Tables of things that are made by name, and the import of the modules that fill them."""

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
    """A table of classes and functions that each make a `ProductT`, under names that are taken once.

    It iterates over its names, in the order in which they were registered.

    >>> shapes = Registry[str]("shape")
    >>> @shapes.register
    ... def circle(radius: int) -> str:
    ...     return f"a circle of radius {radius}"
    >>> shapes.get("circle")(2)
    'a circle of radius 2'
    >>> "square" in shapes
    False

    Args:
        name: what an entry is ("optimizer"); error messages use it.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._entries: dict[str, Callable[..., ProductT]] = {}

    @property
    def name(self) -> str:
        """What an entry is."""
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
        """Enter a class or function and return it unchanged; a decorator, with or without arguments, or a plain call.

        Args:
            obj: the class or function; left out when this is a decorator with arguments.
            suffix: if given, `_suffix` is added to the name.
            name: the name; `obj.__name__` if it is not given.

        Raises:
            DuplicateNameError: if the name is taken; the table is left as it was.
            ArgumentTypeError: if `obj` cannot be called, or has no name of its own and is given none.
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
        """Register the public classes among a module's attributes for which `accept(name, class)` is true."""
        for name, member in vars(module).items():
            if inspect.isclass(member) and not name.startswith("_") and accept(name, member):
                self.register(member, name=name)

    def get(self, name: str, suffix: str | None = None) -> Callable[..., ProductT]:
        """Return the class or function that is registered as `name`, or as `name_suffix` if a suffix is given.

        Raises:
            ArgumentTypeError: if the name, or the suffix, is no string.
            UnknownNameError: if there is none; the message lists the names there are.
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
        """Call what is registered as `type_name` with the arguments given, and return what it makes.

        Raises:
            UnknownNameError: if there is no such name.
        """
        return self.get(type_name)(*args, **kwargs)

    def keys(self) -> KeysView[str]:
        """Return a live view of the names."""
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
                f"{obj!r} cannot be a registered {self._name}: register a class or a function, "
                "and pass the name, if it shall have another, as name="
            )
        own_name: str | None = name or getattr(obj, "__name__", None)
        if own_name is None:
            raise ArgumentTypeError(f"{obj!r} has no name of its own: register it with name=")
        return own_name

    def _list_names(self) -> str:
        return f"there are {', '.join(sorted(self._entries)) or 'none yet'}"


def update_all_registries(root: str | Path, recurse: bool = True, import_prefix: str = "") -> None:
    """Import the modules under `root` that register something, and no others.

    A module registers something if it calls, or decorates with, the `register` of a name that ends in `_REGISTRY`; the
    source is read for that, not run. A module that was imported before, also as the program's main script, is left
    alone.

    Args:
        root: the directory to search.
        recurse: search the directories below it too, other than hidden ones and those no package could be named.
        import_prefix: the dotted name under which `root` itself is imported (`"project.models"`). If it is empty, the
            name is that which `root` has below the nearest directory on `sys.path`.

    Raises:
        ConfigurationError: if `root` is no directory, if nothing on `sys.path` leads to it, or if one of the modules
            cannot be imported; the message names the file and the reason.
    """
    if not isinstance(import_prefix, str):
        raise ArgumentTypeError(f"import_prefix is {import_prefix!r}, a {type(import_prefix).__name__}: pass a string")
    folder = to_path(root, "root")
    try:
        folder = folder.resolve()
        is_directory = folder.is_dir()
    except (OSError, RuntimeError):  # Too long a name, a link to itself.
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
            # Leaves out hidden directories, and the insides of virtual environments (python3.11, site-packages).
            if recurse and path.name.isidentifier() and path.name != "__pycache__":
                yield from _find_sources(path, recurse=recurse)
        elif path.suffix == ".py" and path.stem != "__main__":  # Importing __main__ would run a program.
            if path.is_file():
                yield path
            else:  # Opening a FIFO would wait for ever, and editors leave links that lead nowhere.
                get_root_logger().warning("passed over '%s': it is no file", path)


def _registers_something(path: Path) -> bool:
    source = path.read_bytes()
    # Most files are told apart by this, without being parsed.
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
    # Compared by file and not by name: the main script is loaded as __main__, and must not run a second time.
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
        "or pass import_prefix= with the dotted name that the directory is imported under"
    )


def _get_module_parts(path: Path, root: Path) -> tuple[str, ...]:
    parts = path.relative_to(root).with_suffix("").parts
    return parts[:-1] if parts[-1] == "__init__" else parts


def _import_file(path: Path, name: str) -> None:
    if _is_loaded(path):  # Perhaps by one of the modules before it.
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
