"""Importing the modules of a project that register something."""

from __future__ import annotations

import ast
import importlib
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from helios.core.logging import get_root_logger
from helios.core.paths import to_path
from helios.errors import ArgumentTypeError, ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Iterator


def update_all_registries(root: str | Path, recurse: bool = True, import_prefix: str = "") -> None:
    """Import the modules under `root` that register something, and no others.

    A module registers something if it calls, or decorates with, the `register` of a registry: of a name in upper case
    (`MODELS.register`), of one that contains "registry" in upper or lower case, or of one that the module itself
    assigns a `Registry`. The source is parsed for that, not run. A module that was imported before, also as the
    program's main script, is not imported again.

    Args:
        root: the directory to search.
        recurse: also search the directories below it whose names are identifiers.
        import_prefix: the dotted name of the package that contains `root`: with `"project"`, a module `net.py` in the
            folder `models` is imported as `project.models.net`. If it is empty, the name is derived from the path of
            `root` below the nearest directory on `sys.path`.

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
        parent = import_prefix.strip(".")
        prefix = f"{parent}.{folder.name}" if parent else _find_import_name(folder)
        for path in paths:
            _import_file(path, ".".join(filter(None, (prefix, *_get_module_parts(path, folder)))))


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
    if b".register" not in source:
        return False
    try:
        tree = ast.parse(source, filename=str(path))
    except (SyntaxError, ValueError) as error:
        raise ConfigurationError(f"cannot tell what '{path}' registers, it is not valid Python: {error}") from error
    nodes = list(ast.walk(tree))
    own = {name for node in nodes for name in _get_registries(node)}
    return any(_is_register(called, own) for node in nodes for called in _get_called(node))


def _get_registries(node: ast.AST) -> list[str]:
    """Return the names to which a statement assigns a new `Registry`."""
    match node:
        case ast.Assign(targets=targets, value=value):
            pass
        case ast.AnnAssign(target=target, value=value):
            targets = [target]
        case _:
            return []
    match value:
        case ast.Call(func=ast.Name(id="Registry") | ast.Attribute(attr="Registry")):
            pass
        case ast.Call(func=ast.Subscript(value=ast.Name(id="Registry") | ast.Attribute(attr="Registry"))):
            pass
        case _:
            return []
    return [target.id for target in targets if isinstance(target, ast.Name)]


def _get_called(node: ast.AST) -> list[ast.expr]:
    match node:
        case ast.Call():
            return [node.func]
        case ast.ClassDef() | ast.FunctionDef() | ast.AsyncFunctionDef():
            return node.decorator_list
        case _:
            return []


def _is_register(node: ast.expr, registries: set[str]) -> bool:
    match node:
        case ast.Attribute(attr="register", value=ast.Name(id=owner) | ast.Attribute(attr=owner)):
            return owner.isupper() or "registry" in owner.lower() or owner in registries
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
