"""Classes by name: whose objects a checkpoint may construct, and which attributes a class itself has.

A checkpoint names classes, and a manipulated one could name any class. An object is constructed only if the program
has imported its class, and either defines the class itself or has constructed an object of it before the checkpoint was
read. No code of the class is called: the object is made by `__new__` of `object` or of a builtin, and gets its
attributes.
"""

from __future__ import annotations

import collections
import functools
import sys
import sysconfig
import types
import weakref
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Iterator

# Packages whose objects are tools and hold no state. Through their attributes, a search could reach the whole program.
_TOOLS: Final = frozenset(
    {
        *("_thread", "asyncio", "concurrent", "contextvars", "importlib", "inspect", "logging", "multiprocessing"),
        *("selectors", "socket", "sqlite3", "ssl", "subprocess", "tempfile", "threading", "traceback", "warnings"),
        *("weakref", "_weakref", "helios", "matplotlib", "mlflow", "optuna", "plotly", "psycopg", "psycopg2"),
        *("pyarrow", "rich", "sqlalchemy", "tensorboard", "tqdm", "trackio", "wandb"),
    },
)
_TORCH_TOOLS: Final = (
    *("torch.distributed", "torch.utils.tensorboard", "torch.utils.hooks", "torch.cuda", "torch.profiler"),
    *("torch._C", "torch._dynamo", "torch.autograd"),
)
_MAIN: Final = ("__main__", "__mp_main__")  # The second is the name of the script in a spawned process.

# Classes of the standard library whose objects consist of their attributes only.
_DATA: Final = (types.SimpleNamespace, collections.ChainMap, collections.UserDict, collections.UserList)

_SLOTS: Final[weakref.WeakKeyDictionary[type, list[str]]] = weakref.WeakKeyDictionary()

ClassName = tuple[str, str]


def name_of(cls: type) -> ClassName:
    """Return the module and the qualified name of a class; a script has one name in every process."""
    module = cls.__module__
    return ("__main__" if module in _MAIN else module), cls.__qualname__


def show(cls: type) -> str:
    """Return the name of a class for messages."""
    name = cls.__qualname__ if cls.__module__ in _MAIN else f"{cls.__module__}.{cls.__qualname__}"
    return f"{'an' if name[0].lower() in 'aeiou' else 'a'} {name}"


def is_tool(cls: type) -> bool:
    """Return whether objects of a class are tools (a logger, a lock, a study), which hold no state."""
    module = cls.__module__
    if _matches(module, "helios.testing") or module.startswith("helios.data"):
        return False  # What stands in for a user's, and the dataset with its parameters.
    if module == "multiprocessing.sharedctypes":
        return False  # Values that processes share.
    return module.partition(".")[0] in _TOOLS or any(_matches(module, name) for name in _TORCH_TOOLS)


def _matches(module: str, package: str) -> bool:
    return module == package or module.startswith(package + ".")


@functools.cache
def _library_folders() -> tuple[str, ...]:
    paths = sysconfig.get_paths()
    return tuple({paths[name] for name in ("stdlib", "platstdlib", "purelib", "platlib")})


@functools.cache
def is_own_module(name: str) -> bool:
    """Return whether a module belongs to the program: not to the standard library or an installed package."""
    if name in _MAIN:
        return True
    root = name.partition(".")[0]
    module = sys.modules.get(name)
    file = getattr(module, "__file__", None)
    if module is None or root in sys.stdlib_module_names or root in ("helios", "torch", "numpy"):
        return _matches(name, "helios.testing")
    return file is None or not file.startswith(_library_folders())


def is_own(cls: type) -> bool:
    """Return whether a class belongs to the program, and not to the standard library or an installed package."""
    return is_own_module(cls.__module__)


class ClassTable:
    """The classes whose objects may be constructed."""

    def __init__(self) -> None:
        self._seen: dict[ClassName, type] = {}

    def note(self, cls: type) -> None:
        """Add the class of an object that the program has constructed."""
        self._seen.setdefault(name_of(cls), cls)

    def may_make(self, cls: type) -> bool:
        """Return whether `find` would return this class."""
        return self.find(name_of(cls)) is cls

    def find(self, name: ClassName) -> type | None:
        """Return the class of this name; `None` if there is none, or if its objects may not be constructed."""
        seen = self._seen.get(name)
        if seen is not None:
            return seen
        for cls in _DATA:
            if name_of(cls) == name:
                return cls
        module, qualname = name
        for candidate in _MAIN if module == "__main__" else (module,):
            value: Any = sys.modules.get(candidate)
            for part in qualname.split("."):
                value = getattr(value, part, None)
            if isinstance(value, type) and is_own(value) and name_of(value) == name and not hasattr(value, "__del__"):
                return value
        return None


def allocate(cls: type) -> Any:
    """Return a new object of a class without calling Python code of the class."""
    makers = (vars(base).get("__new__") for base in cls.__mro__)
    make: Any = next(make for make in makers if isinstance(make, types.BuiltinFunctionType))
    return make(cls)


def data_of(cls: type) -> dict[str, Any]:
    """Return the data attributes of a class, such as counters and tables: no methods and no descriptors."""
    return {
        name: value
        for name, value in vars(cls).items()
        if not (name.startswith("__") or name == "_abc_impl" or isinstance(value, type) or _is_descriptor(value))
    }


def functions_of(cls: type) -> dict[str, types.FunctionType]:
    """Return the functions that a class itself defines, by name."""
    members = {name: getattr(member, "__func__", member) for name, member in vars(cls).items()}
    return {name: member for name, member in members.items() if isinstance(member, types.FunctionType)}


def _is_descriptor(value: object) -> bool:
    return hasattr(type(value), "__get__") or isinstance(value, property | types.MemberDescriptorType)


def own_bases(cls: type) -> Iterator[type]:
    """Iterate over a class and those of its bases that belong to the program."""
    return (base for base in cls.__mro__ if is_own(base))


def slots_of(cls: type) -> list[str]:
    """Return the names of the slots of a class and its bases."""
    if cls not in _SLOTS:
        _SLOTS[cls] = _find_slots(cls)
    return _SLOTS[cls]


def _find_slots(cls: type) -> list[str]:
    found: dict[str, None] = {}
    for base in cls.__mro__:
        slots = vars(base).get("__slots__", ())
        for slot in (slots,) if isinstance(slots, str) else slots:
            name = f"_{base.__name__.lstrip('_')}{slot}" if slot.startswith("__") and not slot.endswith("__") else slot
            if name not in ("__dict__", "__weakref__"):
                found[name] = None
    return list(found)
