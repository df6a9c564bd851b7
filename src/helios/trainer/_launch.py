"""How a run gets its processes, and how its results come home."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

from helios.core.distributed import is_using_torchrun
from helios.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from helios.trainer._options import TrainerOptions


class Launcher(Protocol):
    """Runs a job in as many processes as it needs."""

    @property
    def queue(self) -> Any:
        """The way home for what ranks put into it; `None` if the job runs in this process."""
        ...

    def launch(self, job: Callable[[], bool]) -> bool:
        """Run the job, and return what it returns on rank 0."""
        ...


class Inline:
    """Runs the job in this process."""

    queue = None

    def launch(self, job: Callable[[], bool]) -> bool:
        """Run the job."""
        return job()


def select_launcher(environment: Mapping[str, str], options: TrainerOptions) -> Launcher:
    """Return the launcher that an environment and the trainer's arguments ask for.

    Raises:
        ConfigurationError: if they ask for more than one process, which this version does not run.
    """
    world_size = int(environment["WORLD_SIZE"]) if is_using_torchrun(environment) else options.world_size
    if world_size > 1:
        raise ConfigurationError(
            f"{world_size} processes were asked for, and this version of Helios trains in one: leave num_processes "
            "out, name one GPU in gpus, and start without torchrun or with --nproc-per-node 1",
        )
    return Inline()
