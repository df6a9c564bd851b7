"""What every test gets: one thread a process, and globals that are as they were when it ends."""

from __future__ import annotations

import logging
import multiprocessing
import os
import shutil
import signal
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

# Before torch is imported, and inherited by every process that a test starts: tests run side by side on few cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MKL_NUM_THREADS", "1")
# torch looks up the host names of processes that connect to a store, which takes 5 s without a name server.
os.environ.setdefault("RES_OPTIONS", "timeout:1 attempts:1")

import hypothesis
import pytest
import torch

from helios.core.distributed import DistributedInfo, init_dist, shutdown_dist
from helios.core.rng import get_rng_state_dict, load_rng_state_dict
from tests.gpu.tensors import gpus

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.gpu.driver import Driver

_MEASURED = pytest.StashKey[list[str]]()

torch.set_num_threads(1)

# A shell without job host_group starts what it puts into the background with Ctrl-C ignored; children inherit that.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
# As `nohup` does with the end of a session.
if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
    signal.signal(signal.SIGHUP, signal.SIG_DFL)

# A process of tests has one fork server, whoever starts it: it must have imported what any of them forks.
multiprocessing.set_forkserver_preload(
    ["tests.resume.runs", "tests.plugins.optuna.studies", "tests.distributed.parts", "tests.distributed.runs"]
)

# Files in memory where there is room: a killed process loses nothing there either, and an fsync costs nothing.
_MEMORY = Path("/dev/shm")  # noqa: S108 - pytest makes a folder of its own in it.
if _MEMORY.is_dir() and shutil.disk_usage(_MEMORY).free > 4 << 30:
    os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", str(_MEMORY))

# Machines that run the tests are shared: how long one example takes says nothing.
hypothesis.settings.register_profile("helios", deadline=None)
hypothesis.settings.load_profile("helios")


@pytest.fixture(autouse=True)
def restored_globals() -> Iterator[None]:
    """Put random number generators, the Helios logger and `warnings.showwarning` back to where the test found them."""
    generators = get_rng_state_dict()
    logger = logging.getLogger("helios")
    handlers, level, propagate = list(logger.handlers), logger.level, logger.propagate
    show_warning = warnings.showwarning
    yield
    warnings.showwarning = show_warning
    logger.handlers[:] = handlers
    logger.setLevel(level)
    logger.propagate = propagate
    load_rng_state_dict(generators)


@pytest.fixture
def forked_ranks() -> Iterator[None]:
    """Have `fit` fork its ranks from the tests' fork server, in place of starting interpreters, which takes seconds."""
    before = multiprocessing.get_start_method(allow_none=True)
    multiprocessing.set_start_method("forkserver", force=True)
    yield
    multiprocessing.set_start_method(before, force=True)


@pytest.fixture(params=["stand-in", pytest.param("gpu", marks=pytest.mark.gpu)])
def cuda(request: pytest.FixtureRequest) -> Iterator[Driver | None]:
    """Let there be two GPUs that are not there, and return their driver; or return `None`, and use those that are."""
    if request.param == "gpu":
        yield None
        torch.cuda.set_sync_debug_mode("default")
        return
    if torch.version.cuda is not None:
        pytest.skip("this build of torch has CUDA: what the stand-in shows, its GPUs show")
    with gpus(2) as fake:
        yield fake


@pytest.fixture
def measured(request: pytest.FixtureRequest) -> Callable[[str], None]:
    """Return what takes a line about a measurement, for the end of the session."""
    return request.config.stash.setdefault(_MEASURED, []).append


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Print what was measured."""
    lines = config.stash.get(_MEASURED, [])
    if lines:
        terminalreporter.section("measured")
        for line in lines:
            terminalreporter.write_line(line)


def pytest_addoption(parser: pytest.Parser) -> None:
    """Let a soak be as thorough as there is time."""
    parser.addoption(
        "--soak-kills",
        type=int,
        default=8,
        help="kills per combination of options in the soak (%(default)s); with 1000, every third instant",
    )


@pytest.fixture
def soak_kills(request: pytest.FixtureRequest) -> int:
    """Return at how many instants a run of the soak is killed."""
    kills: int = request.config.getoption("--soak-kills")
    return kills


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what needs a GPU where there is none."""
    if torch.cuda.is_available():
        return
    skip = pytest.mark.skip(reason="needs a CUDA device, and there is none")
    for item in items:
        if item.get_closest_marker("gpu"):  # Not keywords: a folder above the tests may be called "gpu", too.
            item.add_marker(skip)


@pytest.fixture
def alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Make this process the only rank of a group."""
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")
    init_dist(info=DistributedInfo(), backend="gloo", init_method=f"file://{tmp_path / 'meet'}")
    yield
    shutdown_dist()
