"""Importing the modules that register something."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from helios.core.discovery import update_all_registries
from helios.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_HOST = """
from helios.core.registry import Registry
THING_REGISTRY = Registry("thing")
IMPORTED = []
"""
_ENTRY = """
import {host} as host
host.IMPORTED.append(__name__)
@host.THING_REGISTRY.register
class {name}: ...
"""
_BOMB = "raise RuntimeError('imported, though it registers nothing')\n"


class Project:
    """A source tree under `tmp/<base>`, whose base is on sys.path, with a host module that records imports."""

    def __init__(self, base: Path, host: str) -> None:
        self.base = base
        self.host = host
        self.write(f"{host}.py", _HOST)

    def write(self, path: str, source: str) -> Path:
        file = self.base / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(source)
        return file

    def entry(self, path: str, name: str) -> Path:
        return self.write(path, _ENTRY.format(host=self.host, name=name))

    @property
    def imported(self) -> list[str]:
        module = sys.modules.get(self.host)
        return list(module.IMPORTED) if module else []


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Iterator[Project]:
    loaded = set(sys.modules)
    monkeypatch.syspath_prepend(tmp_path)
    with contextlib.ExitStack() as stack:
        stack.callback(lambda: [sys.modules.pop(name) for name in set(sys.modules) - loaded])
        yield Project(tmp_path, f"host_{abs(hash(request.node.name))}")


def test_only_modules_that_register_are_imported(project: Project) -> None:
    """Modules with a call of `..._REGISTRY.register`, in any form, are imported, and no others."""
    project.entry("app/decorated.py", "Decorated")
    call = f"import {project.host} as h\nh.IMPORTED.append(__name__)\nh.THING_REGISTRY.register(dict, suffix='a')\n"
    project.write("app/called.py", call)
    project.write(
        "app/imported_name.py",
        f"from {project.host} import *\nIMPORTED.append(__name__)\n@THING_REGISTRY.register(name='f')\ndef g(): ...\n",
    )
    project.write("app/idle.py", _BOMB)
    project.write("app/reader.py", _BOMB + "print(THING_REGISTRY.get('Decorated'))\n")
    project.write("app/prose.py", _BOMB + "# THING_REGISTRY.register\nTEXT = 'THING_REGISTRY.register(x)'\n")
    project.write("app/other.py", _BOMB + "# no THING_REGISTRY\natexit.register(print)\nself.plugins.register(print)\n")
    project.write("app/notes.txt", "THING_REGISTRY.register(x)")
    update_all_registries(project.base / "app")
    assert project.imported == ["app.called", "app.decorated", "app.imported_name"]
    assert list(sys.modules[project.host].THING_REGISTRY.keys()) == ["dict_a", "Decorated", "f"]


def test_packages_and_recursion(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    """Packages, their `__init__` and nested directories are found; `recurse=False` stays in the root.

    A package is imported by its full name even where its own directory is on sys.path.
    """
    monkeypatch.syspath_prepend(project.base / "pkg")
    project.entry("pkg/__init__.py", "Root")
    project.entry("pkg/a.py", "A")
    project.entry("pkg/deep/er/b.py", "B")
    project.entry("pkg/.hidden/c.py", "Hidden")
    project.entry("pkg/not-a-package/c.py", "NoPackage")
    project.write("pkg/__main__.py", _BOMB + "THING_REGISTRY.register(dict)\n")
    update_all_registries(project.base / "pkg", recurse=False)
    assert project.imported == ["pkg", "pkg.a"]
    update_all_registries(str(project.base / "pkg"))
    assert project.imported == ["pkg", "pkg.a", "pkg.deep.er.b"]


def test_modules_are_imported_once(project: Project) -> None:
    """A second call, and a module that was imported under another name before, import nothing again."""
    project.entry("once/a.py", "A")
    update_all_registries(project.base / "once")
    update_all_registries(project.base / "once")
    update_all_registries(project.base / "once", import_prefix="elsewhere")
    assert project.imported == ["once.a"]


def test_the_root_itself_may_be_on_the_path(project: Project) -> None:
    """A root on sys.path gives names without a prefix, and a prefix may end in a dot or not."""
    project.entry("flat.py", "Flat")
    update_all_registries(project.base, recurse=False)
    assert project.imported == ["flat"]
    project.entry("under/x.py", "X")
    project.entry("under/y/z.py", "Z")
    update_all_registries(project.base / "under" / "y", import_prefix="under.")
    assert project.imported == ["flat", "under.y.z"]


def test_the_prefix_is_the_package_that_contains_the_root(project: Project) -> None:
    """With `import_prefix="project"`, the folder `models` is imported as `project.models`, its subfolders below it."""
    project.entry("project/models/net.py", "Net")
    project.entry("project/models/deep/er.py", "Deeper")
    update_all_registries(project.base / "project" / "models", import_prefix="project")
    assert project.imported == ["project.models.deep.er", "project.models.net"]


@pytest.mark.parametrize(
    "source",
    [
        "from {host} import THING_REGISTRY as MODELS\n@MODELS.register\nclass A: ...\n",
        "from {host} import THING_REGISTRY as my_registry\n@my_registry.register(suffix='b')\nclass A: ...\n",
        "import {host} as h\nh.Registry = h.THING_REGISTRY\nh.Registry.register(dict)\n",
        "from {host} import Registry\nthings = Registry('a')\n@things.register\ndef f(): ...\n",
        "import {host} as h\nthings: h.Registry[int] = h.Registry[int]('a')\nthings.register(int)\n",
    ],
    ids=["upper case", "my_registry", "Registry", "assigned", "annotated"],
)
def test_a_registry_may_have_any_name(project: Project, source: str) -> None:
    """Names in upper case, names with "registry", and names that the module assigns a `Registry` are found."""
    project.write(
        "names/a.py",
        source.format(host=project.host) + f"import {project.host}\n{project.host}.IMPORTED.append(__name__)\n",
    )
    update_all_registries(project.base / "names")
    assert project.imported == ["names.a"]


def test_the_main_script_is_not_run_twice(tmp_path: Path) -> None:
    """A script that registers a class and searches its own directory does not run again."""
    (tmp_path / "other.py").write_text(
        "THING_REGISTRY = []\nif THING_REGISTRY: THING_REGISTRY.register()\nprint('other')"
    )
    script = tmp_path / "train.py"
    script.write_text(
        "from pathlib import Path\n"
        "from helios.core import Registry, update_all_registries\n"
        "THING_REGISTRY = Registry('thing')\n"
        "@THING_REGISTRY.register\n"
        "class Mine: ...\n"
        "print('ran')\n"
        "update_all_registries(Path(__file__).parent)\n"
    )
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, check=True)
    assert done.stdout == "ran\nother\n"


def test_a_failing_import_names_file_and_reason(project: Project) -> None:
    """The error for a module that raises, is not valid Python or has no valid name names file and reason."""
    broken = project.write("broken/a.py", "import no_such_module_anywhere\nTHING_REGISTRY.register(dict)\n")
    with pytest.raises(ConfigurationError, match="ModuleNotFoundError: No module named 'no_such_module_any") as caught:
        update_all_registries(project.base / "broken")
    assert f"'{broken}'" in str(caught.value)
    assert isinstance(caught.value.__cause__, ModuleNotFoundError)

    torn = project.write("torn/a.py", "THING_REGISTRY.register(\n")
    with pytest.raises(ConfigurationError, match="it is not valid Python: '\\(' was never closed") as caught:
        update_all_registries(project.base / "torn")
    assert f"'{torn}'" in str(caught.value)

    project.entry("dashed/my-model.py", "A")
    with pytest.raises(ConfigurationError, match=r"my-model.py' registers something but cannot be imported .* rename"):
        update_all_registries(project.base / "dashed")


def test_a_module_of_the_same_name_elsewhere_is_noticed(project: Project) -> None:
    """Importing another file under the name of the one that was found is an error."""
    project.entry("mine/tokenize.py", "A")
    with pytest.raises(ConfigurationError, match="importing 'tokenize' gave '.*tokenize.py' instead"):
        sys.path.append(str(project.base / "mine"))
        try:
            update_all_registries(project.base / "mine")
        finally:
            sys.path.pop()


def test_a_root_that_cannot_be_used_is_refused(
    project: Project, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A root that is no directory, or is below no directory on sys.path, is a ValueError with the remedy."""
    with pytest.raises(ConfigurationError, match="nowhere' .* is not a directory"):
        update_all_registries(project.base / "nowhere")
    lost = tmp_path_factory.mktemp("lost")
    (lost / "a.py").write_text("THING_REGISTRY.register(dict)\n")
    monkeypatch.setattr(sys, "path", [str(project.base)])
    with pytest.raises(ConfigurationError, match=r"no directory on sys.path leads to .* or pass import_prefix="):
        update_all_registries(lost)
