"""The arguments of the trainer, checked once."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from helios.checkpoint.passport import DriftPolicy, to_entries
from helios.core import rng
from helios.core.logging import check_tensorboard
from helios.core.paths import as_path, can_be_in_name
from helios.core.state import TrainingUnit
from helios.errors import ArgumentTypeError, ConfigurationError, DeviceUnavailableError
from helios.parallel.strategies import DDPStrategy, as_strategy

if TYPE_CHECKING:
    from collections.abc import Mapping

    from helios.core.distributed import DistributedInfo
    from helios.parallel.strategy import Strategy


@dataclasses.dataclass(frozen=True)
class TrainerOptions:
    """The arguments of a `Trainer`, which documents them."""

    run_name: str = ""
    train_unit: TrainingUnit = TrainingUnit.EPOCH
    total_steps: float = 0
    valid_frequency: int | None = None
    chkpt_frequency: int | None = None
    print_frequency: int | None = None
    accumulation_steps: int = 1
    enable_cudnn_benchmark: bool = False
    enable_deterministic: bool = False
    early_stop_cycles: int | None = None
    use_cpu: bool | None = None
    gpus: list[int] | None = None
    random_seed: int | None = None
    enable_tensorboard: bool = False
    enable_file_logging: bool = False
    capture_warnings: bool = False
    enable_progress_bar: bool = False
    chkpt_root: Path | None = None
    log_path: Path | None = None
    run_path: Path | None = None
    src_root: Path | None = None
    import_prefix: str = ""
    print_banner: bool = True
    num_processes: int | None = None
    strategy: Strategy = dataclasses.field(default_factory=DDPStrategy)  # A name is replaced by the instance.
    passport: Mapping[str, Any] | None = None
    on_drift: str | Mapping[str, str] = "refuse"

    def __post_init__(self) -> None:
        """Check all values and combinations, and replace defaults that depend on the machine.

        Raises:
            ConfigurationError: if a value is out of range, or two contradict each other.
            ArgumentTypeError: if a value has the wrong type.
            DeviceUnavailableError: if a requested GPU does not exist.
        """
        self._check_types()
        self._check_steps()
        self._check_places()
        self._settle_devices()
        self._set("strategy", as_strategy(self.strategy))
        _ = self.drift_policy  # Makes the passport's entries as well, and checks both.
        self._set(
            "random_seed", rng.get_default_seed() if self.random_seed is None else rng.check_seed(self.random_seed)
        )

    def _set(self, name: str, value: Any) -> None:
        object.__setattr__(self, name, value)

    def _check_types(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.type == "bool" and not isinstance(value, bool):
                raise ArgumentTypeError(f"{field.name} is {value!r}, a {type(value).__name__}: pass True or False")
            if field.type == "str" and not isinstance(value, str):
                raise ArgumentTypeError(f"{field.name} is {value!r}, a {type(value).__name__}: pass a string")
            if field.type == "Path | None":
                if not isinstance(value, str | Path | None):
                    raise ArgumentTypeError(f"{field.name} is {value!r}, a {type(value).__name__}: pass a path or None")
                self._set(field.name, as_path(value, field.name))
        if self.use_cpu is not None and not isinstance(self.use_cpu, bool):
            raise ArgumentTypeError(f"use_cpu is {self.use_cpu!r}: pass True, False, or None to let Helios choose")
        if not can_be_in_name(self.run_name) or self.run_name in (".", ".."):
            raise ConfigurationError(
                f"run_name {self.run_name!r} cannot be the name of a folder: use letters, digits, '-' and '_'"
            )
        if isinstance(self.train_unit, str):
            self._set("train_unit", TrainingUnit.from_str(self.train_unit))
        if not isinstance(self.train_unit, TrainingUnit):
            raise ArgumentTypeError(f"train_unit is {self.train_unit!r}: pass a TrainingUnit, 'epoch' or 'iteration'")

    def _check_steps(self) -> None:
        steps = self.total_steps
        is_whole = isinstance(steps, int) and not isinstance(steps, bool)
        if not is_whole and steps != math.inf:
            kind = ConfigurationError if isinstance(steps, float) else ArgumentTypeError
            raise kind(f"total_steps is {steps!r}: pass a whole number of {self.train_unit.value}s, or float('inf')")
        if steps < 0:
            raise ConfigurationError(f"total_steps is {steps}: pass 0 or more")
        _check_positive("accumulation_steps", self.accumulation_steps)
        for name in ("valid_frequency", "chkpt_frequency", "print_frequency", "early_stop_cycles", "num_processes"):
            if getattr(self, name) is not None:
                _check_positive(name, getattr(self, name))
        if self.early_stop_cycles is not None and self.valid_frequency is None:
            raise ConfigurationError(
                f"early_stop_cycles={self.early_stop_cycles} counts validations, but there are none: set "
                "valid_frequency",
            )

    def _check_places(self) -> None:
        for wish, place in (
            ("chkpt_frequency", "chkpt_root"),
            ("enable_file_logging", "log_path"),
            ("enable_tensorboard", "run_path"),
        ):
            if getattr(self, wish) and getattr(self, place) is None:
                raise ConfigurationError(f"{wish}={getattr(self, wish)} needs a place to write to: set {place}")
        for name in ("chkpt_root", "log_path", "run_path"):
            path = getattr(self, name)
            if path is not None and path.exists() and not path.is_dir():
                raise ConfigurationError(f"{name} is {str(path)!r}, which is a file: pass a folder")
        if self.enable_tensorboard:
            check_tensorboard()
        if self.import_prefix and self.src_root is None:
            raise ConfigurationError(
                f"import_prefix={self.import_prefix!r} says how src_root is imported: set src_root, too"
            )

    def _settle_devices(self) -> None:
        if self.enable_deterministic and self.enable_cudnn_benchmark:
            raise ConfigurationError(
                "enable_deterministic and enable_cudnn_benchmark contradict each other: the benchmark picks whichever "
                "algorithm was faster this time; turn one of them off",
            )
        if self.gpus is not None:
            self._check_gpus(self.gpus)
        if self.num_processes is not None and (self.gpus is not None or self.use_cpu is False):
            raise ConfigurationError(
                f"num_processes={self.num_processes} counts CPU ranks: leave gpus and use_cpu alone"
            )
        if self.use_cpu is False and not torch.cuda.is_available():
            raise DeviceUnavailableError("use_cpu=False needs CUDA, which is not available here: leave use_cpu at None")
        on_cpu = self.use_cpu or self.num_processes is not None or not torch.cuda.is_available()
        self._set("use_cpu", bool(on_cpu))
        if self.gpus is None and not on_cpu:
            self._set("gpus", list(range(torch.cuda.device_count())))

    def _check_gpus(self, gpus: list[int]) -> None:
        is_list = isinstance(gpus, list | tuple) and all(isinstance(i, int) and not isinstance(i, bool) for i in gpus)
        if not is_list:
            raise ArgumentTypeError(f"gpus is {gpus!r}: pass a list of GPU numbers, such as [0]")
        if self.use_cpu:
            raise ConfigurationError(f"use_cpu=True and gpus={gpus} contradict each other: leave one of them out")
        if not gpus or len(set(gpus)) < len(gpus):
            raise ConfigurationError(f"gpus is {gpus}: name at least one GPU, and none of them twice")
        count = torch.cuda.device_count()
        if not torch.cuda.is_available() or not all(0 <= i < count for i in gpus):
            raise DeviceUnavailableError(
                f"gpus is {gpus}, but this machine has {count} CUDA GPUs: choose from {[*range(count)]}"
            )

    @property
    def seed(self) -> int:
        """The seed, which is never `None` once the options are made."""
        assert self.random_seed is not None  # noqa: S101 - for the type checker: set in __post_init__.
        return self.random_seed

    @property
    def added_entries(self) -> dict[str, Any]:
        """What the user has added to the passport of the run, by name."""
        return {} if self.passport is None else to_entries("trainer.", self.passport, "passport")

    @property
    def drift_policy(self) -> DriftPolicy:
        """What is done when a checkpoint's passport is not that of the run."""
        return DriftPolicy(self.on_drift, self.added_entries)

    @property
    def world_size(self) -> int:
        """How many processes the arguments ask for."""
        return self.num_processes or len(self.gpus or [0])

    def gpus_of(self, local_world_size: int) -> list[int]:
        """Return the GPUs of the ranks of this machine, in the order of their local ranks; empty on the CPU.

        They are the first of those named, or else of all. There may be fewer than ranks.

        Args:
            local_world_size: how many ranks this machine has.
        """
        if self.use_cpu:
            return []
        return list(self.gpus or ())[:local_world_size]

    def device_of(self, info: DistributedInfo) -> torch.device:
        """Return the device of a rank: on a GPU, that of `gpus_of` which stands at its local rank.

        Raises:
            DeviceUnavailableError: if the machine has more ranks than GPUs.
        """
        if self.use_cpu:
            return torch.device("cpu")
        gpus = self.gpus_of(info.local_world_size)
        if info.local_rank >= len(gpus):
            raise DeviceUnavailableError(
                f"this machine has {info.local_world_size} ranks, and GPUs {gpus} for them: start one for each GPU, "
                "and let every rank see all GPUs of its machine (CUDA_VISIBLE_DEVICES), or train on the CPU with "
                "use_cpu=True"
            )
        return torch.device("cuda", gpus[info.local_rank])


def _check_positive(name: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise ArgumentTypeError(f"{name} is {value!r}, a {type(value).__name__}: pass an integer of at least 1")
    if value < 1:
        raise ConfigurationError(f"{name} is {value}: pass at least 1")
