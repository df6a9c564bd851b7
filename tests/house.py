"""Rules of this repository that no linter checks: `python -m tests.house [PATH ...]` prints what breaks them."""

from __future__ import annotations

import ast
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

ROOT: Final = Path(__file__).parent.parent
SOURCE: Final = ROOT / "src" / "helios"
LONGEST_FILE: Final = 300  # Lines.
NEWLINE: Final = "\n"
LONGEST_FUNCTION: Final = 40  # Lines of its body, without the docstring.

# Each regular expression, and what to write in its place.
WORDS: Final = {
    r"data sets?": "dataset",
    r"shall": "must, should or will",
    r"go on|goes on|went on|gone on|going on": "continue, resume",
    r"(come|comes|came|coming|bring|brings|brought) home": "is returned",
    r"(ride|rides|riding) (in|through)": "is saved in",
    r"at home": "belongs in",
    r"way home": "channel to the calling process",
    r"in hand": "current",
    r"(let|lets|letting) go of": "release",
    r"lookouts?": "monitor",
    r"attends?": "watch",
    r"keep at home|kept at home|stays? at home": "register_proxy",
    r"hears?|heard": "receive",
    r"crew": "rank pool",
    r"dues": "buffer_sync_flags",
    r"go_back": "restore",
    r"keyers?": "seed_fn",
    r"kept back|keeps? back": "unreduced",
    r"parting": "shutdown",
    r"gone on from": "is resumed",
}
# Between the words of a phrase: a space, the underscore of a name, or the end of a line, before a comment's next one.
_GAP: Final = r"(?:[ _]|[ \t]*\n[ \t#]*)"
_WORD: Final = re.compile(r"(?<![A-Za-z])(" + "|".join(WORDS).replace(" ", _GAP) + r")(?![A-Za-z])", re.IGNORECASE)

# Files of the package that may read private names of torch, Optuna or another library, and why no public one does.
PRIVATE: Final = {
    "checkpoint/state/contents.py": "a module's own tensors, those that are None included, are in private tables only",
    "checkpoint/state/details.py": "as contents.py; which buffers are not persistent is private, too",
    "checkpoint/state/structure.py": "hooks, and parameters that two modules hold, are in private tables only",
    "checkpoint/state/digest.py": "the public `indices` and `values` refuse a sparse tensor that is not coalesced",
    "checkpoint/state/encoding.py": "`_name_` and `_value_` are documented for the metaclass of enumerations",
    "checkpoint/state/fsdp.py": "FSDP2 has no public way to read unreduced gradients, or to keep parameters unsharded",
    "checkpoint/state/parts.py": "versions in a state_dict, the wrapper of torch.compile, the mark of a first step",
    "checkpoint/state/tensors.py": "the documented way to switch `__torch_function__` off",
    "core/rng/state_dict.py": "whether CUDA can be used in a forked process",
    "data/sources/stream_source.py": "`_replace` is documented for named tuples",
    "data/streaming.py": "as stream_source.py",
    "parallel/ddp.py": "DDP synchronizes buffers in a private method only",
    "plugins/optuna/optuna_internals.py": "what the bridge needs of Optuna and has no public name; each with a test",
    "ranks/process_group.py": "torch has no public way to abort a process group yet",
    "trainer/_watches.py": "the mark that an optimizer has stepped, where torch's schedulers look for it",
    "trainer/launch/spawn.py": "whether this process is importing the main script is known to multiprocessing alone",
}


def python_files(paths: Iterable[Path]) -> list[Path]:
    """Return the Python files at or below these paths."""
    return sorted(file for path in paths for file in (path.rglob("*.py") if path.is_dir() else [path]))


def text_files(paths: Iterable[Path]) -> list[Path]:
    """Return the files with text at or below these paths, but for this one, which lists the words to avoid."""
    files = [file for path in paths for file in (sorted(path.rglob("*")) if path.is_dir() else [path])]
    return [file for file in files if file.suffix in (".py", ".md", ".toml") and file != Path(__file__)]


def find_long_files(paths: Iterable[Path]) -> list[str]:
    """Return the files that are longer than `LONGEST_FILE` lines."""
    lengths = {path: len(path.read_text(encoding="utf-8").splitlines()) for path in python_files(paths)}
    return [f"{_name(path)}: {length} lines" for path, length in lengths.items() if length > LONGEST_FILE]


def find_long_functions(paths: Iterable[Path]) -> list[str]:
    """Return the functions whose body is longer than `LONGEST_FUNCTION` lines."""
    return [
        f"{_name(path)}:{function.lineno} {function.name}: {length} lines"
        for path in python_files(paths)
        for function in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef)
        for length in [_body_length(function)]
        if length > LONGEST_FUNCTION
    ]


def _body_length(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    body = function.body[1:] if ast.get_docstring(function) is not None else function.body
    return (body[-1].end_lineno or 0) - body[0].lineno + 1 if body else 0


def find_words(files: Iterable[Path]) -> list[str]:
    """Return where a word or phrase stands that `WORDS` replaces."""
    return [
        f"{_name(path)}:{text.count(NEWLINE, 0, match.start()) + 1} {found!r}: {_replacement(found)}"
        for path in files
        for text in [path.read_text(encoding="utf-8")]
        for match in _WORD.finditer(text)
        for found in [re.sub(_GAP, " ", match.group(0))]
    ]


def _replacement(found: str) -> str:
    return next(better for word, better in WORDS.items() if re.fullmatch(word, found, re.IGNORECASE))


def find_private_names(package: Path = SOURCE) -> dict[str, list[str]]:
    """Return, by file, the private names that the package reads and does not define: those of other libraries."""
    trees = {path: ast.parse(path.read_text(encoding="utf-8")) for path in python_files([package])}
    own = {name for tree in trees.values() for name in _defined(tree)}
    used = {path: [name for name in _used(tree) if name.split(".")[-1] not in own] for path, tree in trees.items()}
    return {str(path.relative_to(package)): names for path, names in used.items() if names}


def _is_private(name: str) -> bool:
    return name.startswith("_") and not name.endswith("__") and name.strip("_") != ""


def _defined(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id
        elif (
            isinstance(node, ast.Attribute)
            and isinstance(node.ctx, ast.Store)
            and isinstance(node.value, ast.Name)
            and node.value.id in ("self", "cls")
        ):
            yield node.attr


def _used(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and _is_private(node.attr):
            yield node.attr
        elif isinstance(node, ast.ImportFrom) and not (node.module or "").startswith("helios"):
            names = [*(node.module or "").split("."), *(alias.name for alias in node.names)]
            yield from (f"{node.module}.{name}" for name in names if _is_private(name))
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if any(map(_is_private, alias.name.split("."))))
        elif (
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Name)
            and node.func.id in ("getattr", "hasattr", "setattr")
            and isinstance(node.args[1], ast.Constant)
            and _is_private(str(node.args[1].value))
        ):
            yield str(node.args[1].value)


def _name(path: Path) -> str:
    return str(path.resolve().relative_to(ROOT))


def main(arguments: list[str]) -> None:
    """Print what breaks the rules at these paths, or in the whole repository."""
    paths = [Path(argument).resolve() for argument in arguments] or [ROOT / part for part in ("src", "tests", "docs")]
    found = [
        *find_long_files(path for path in paths if SOURCE in (path, *path.parents) or SOURCE.is_relative_to(path)),
        *find_long_functions(path for path in paths if SOURCE in (path, *path.parents) or SOURCE.is_relative_to(path)),
        *find_words(text_files(paths)),
        *(f"src/helios/{file}: private {sorted(set(names))}" for file, names in find_private_names().items()),
    ]
    print("\n".join(found))  # noqa: T201 - its output.


if __name__ == "__main__":
    main(sys.argv[1:])
