"""How a run gets its processes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

from helios.core.distributed import find_missing_variables, get_world_size, is_dist_active, is_using_torchrun
from helios.core.environment import current_device
from helios.errors import ConfigurationError
from helios.ranks.host_group import HostGroup
from helios.trainer._jobs import run_task
from helios.trainer._session import open_log, report_errors
from helios.trainer.launch.spawn import Spawn
from helios.trainer.launch.torchrun import Torchrun

if TYPE_CHECKING:
    from collections.abc import Mapping

    from helios.trainer._options import TrainerOptions
    from helios.trainer._task import Result, Task


class Launcher(Protocol):
    """Runs a task in as many processes as it needs."""

    @property
    def trains_here(self) -> bool:
        """Whether the model is trained in this process, and not a copy of it in another one."""
        ...

    @property
    def queue(self) -> Any:
        """The queue from ranks to this process; `None` if the task runs in this process alone."""
        ...

    def launch(self, task: Task) -> Result:
        """Run the task, and return what it returns on rank 0."""
        ...


class Inline:
    """Runs the task in this process."""

    trains_here = True
    queue = None

    def launch(self, task: Task) -> Result:
        """Run the task."""
        with open_log(task.options, rank=0), report_errors(task.phase, task.control_flow):
            task.prepare()
            host_group = HostGroup()
            with current_device(task.options.device_of(host_group.info)):
                return run_task(task, host_group)


def select_launcher(environment: Mapping[str, str], options: TrainerOptions) -> Launcher:
    """Return the launcher for an environment and the trainer's arguments.

    Args:
        environment: the environment variables of this process; those of `torchrun` have priority over the arguments.
        options: the arguments of the trainer.

    Raises:
        ConfigurationError: if the two contradict each other.
    """
    if not is_using_torchrun(environment):
        return Spawn(options.world_size) if options.world_size > 1 else Inline()
    world_size = int(environment["WORLD_SIZE"])
    if options.num_processes not in (None, world_size):
        raise ConfigurationError(
            f"num_processes={options.num_processes}, but torchrun has started {world_size} processes: leave "
            "num_processes out, torchrun's --nproc-per-node decides"
        )
    return Torchrun() if world_size > 1 else Inline()


def check_group(launcher: object) -> None:
    """Check that the launcher knows about an active process group, if there is one.

    Raises:
        ConfigurationError: if it does not: every process would train alone, on its share of the data.
    """
    if isinstance(launcher, Inline | Spawn) and is_dist_active() and get_world_size() > 1:
        missing = ", ".join(find_missing_variables()) or "a WORLD_SIZE that is the group's"
        raise ConfigurationError(
            f"a process group of {get_world_size()} processes is active, and without {missing} in the environment each "
            "would train alone: set what torchrun sets, or start the processes with it"
        )
