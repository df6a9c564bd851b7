from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from helios import Trainer, TrainingUnit
from helios.core.distributed import DistributedInfo, get_dist_info
from helios.data import DataLoaderParams
from helios.errors import ArgumentTypeError, ConfigurationError, DeviceUnavailableError, HeliosError
from helios.trainer._options import TrainerOptions
from tests.trainer.parts import CountingModel, ListData

ALONE = DistributedInfo()
COUNTS = ["valid_frequency", "chkpt_frequency", "print_frequency", "accumulation_steps", "early_stop_cycles"]
FLAGS = [
    "enable_cudnn_benchmark",
    "enable_deterministic",
    "enable_tensorboard",
    "enable_file_logging",
    "capture_warnings",
    "enable_progress_bar",
    "print_banner",
]
PATHS = ["chkpt_root", "log_path", "run_path", "src_root"]
# What else must be given so that the value under test alone is wrong.
COMPANY: dict[str, dict[str, Any]] = {
    "early_stop_cycles": {"valid_frequency": 1},
    "chkpt_frequency": {"chkpt_root": "x"},
}


def refusal(**arguments: Any) -> HeliosError:
    """Return the error that these arguments of a trainer raise."""
    with pytest.raises(HeliosError) as caught:
        Trainer(**arguments)
    return caught.value


@pytest.mark.parametrize("name", [*COUNTS, "num_processes"])
@pytest.mark.parametrize("value", [0, -1])
def test_counts_start_at_one(name: str, value: int) -> None:
    """Frequencies and counts below 1 are a ValueError that names argument, value and rule."""
    error = refusal(**{**COMPANY.get(name, {}), name: value})
    assert isinstance(error, ConfigurationError)
    assert str(error) == f"{name} is {value}: pass at least 1"


@pytest.mark.parametrize("name", [*COUNTS, "num_processes"])
@pytest.mark.parametrize("value", ["1", 1.0, True, [1]])
def test_counts_are_integers(name: str, value: Any) -> None:
    """A count that is no integer is a TypeError that names argument, value and type."""
    error = refusal(**{**COMPANY.get(name, {}), name: value})
    assert isinstance(error, ArgumentTypeError)
    assert str(error) == f"{name} is {value!r}, a {type(value).__name__}: pass an integer of at least 1"


@pytest.mark.parametrize("name", FLAGS)
@pytest.mark.parametrize("value", [None, 1, "yes"])
def test_flags_are_booleans(name: str, value: Any) -> None:
    """A flag that is neither true nor false is a TypeError."""
    error = refusal(**{name: value})
    assert isinstance(error, ArgumentTypeError)
    assert str(error) == f"{name} is {value!r}, a {type(value).__name__}: pass True or False"


@pytest.mark.parametrize("name", PATHS)
@pytest.mark.parametrize("value", [1, b"x", ["x"]])
def test_places_are_paths(name: str, value: Any) -> None:
    """A place that is no path is a TypeError."""
    error = refusal(**{name: value})
    assert isinstance(error, ArgumentTypeError)
    assert str(error) == f"{name} is {value!r}, a {type(value).__name__}: pass a path or None"


ARGUMENTS: list[tuple[dict[str, Any], type[HeliosError], str]] = [
    ({"run_name": 3}, ArgumentTypeError, "run_name is 3, a int: pass a string"),
    ({"run_name": "a/b"}, ConfigurationError, "run_name 'a/b' cannot be the name of a folder: use letters"),
    ({"run_name": ".."}, ConfigurationError, "run_name '..' cannot be the name of a folder: use letters"),
    ({"import_prefix": None}, ArgumentTypeError, "import_prefix is None, a NoneType: pass a string"),
    ({"train_unit": "step"}, ConfigurationError, "'step' is unknown: choose one of 'epoch', 'iteration'"),
    ({"train_unit": 1}, ArgumentTypeError, "train_unit is 1: pass a TrainingUnit, 'epoch' or 'iteration'"),
    ({"total_steps": -1}, ConfigurationError, "total_steps is -1: pass 0 or more"),
    ({"total_steps": 1.5}, ConfigurationError, "total_steps is 1.5: pass a whole number of epochs, or float('inf')"),
    ({"total_steps": 2.0}, ConfigurationError, "total_steps is 2.0: pass a whole number of epochs, or float('inf')"),
    ({"total_steps": math.nan}, ConfigurationError, "total_steps is nan: pass a whole number"),
    ({"total_steps": -math.inf}, ConfigurationError, "total_steps is -inf: pass a whole number"),
    ({"total_steps": "3"}, ArgumentTypeError, "total_steps is '3': pass a whole number of epochs"),
    ({"total_steps": True}, ArgumentTypeError, "total_steps is True: pass a whole number of epochs"),
    ({"total_steps": None}, ArgumentTypeError, "total_steps is None: pass a whole number of epochs"),
    (
        {"early_stop_cycles": 2},
        ConfigurationError,
        "early_stop_cycles=2 counts validations, but there are none: set valid_frequency",
    ),
    ({"chkpt_frequency": 2}, ConfigurationError, "chkpt_frequency=2 needs a place to write to: set chkpt_root"),
    ({"enable_file_logging": True}, ConfigurationError, "enable_file_logging=True needs a place .*: set log_path"),
    ({"enable_tensorboard": True}, ConfigurationError, "enable_tensorboard=True needs a place .*: set run_path"),
    ({"import_prefix": "a"}, ConfigurationError, "import_prefix='a' says how src_root is imported: set src_root"),
    (
        {"enable_deterministic": True, "enable_cudnn_benchmark": True},
        ConfigurationError,
        "enable_deterministic and enable_cudnn_benchmark contradict each other.*; turn one of them off",
    ),
    ({"use_cpu": "yes"}, ArgumentTypeError, "use_cpu is 'yes': pass True, False, or None"),
    ({"use_cpu": True, "gpus": [0]}, ConfigurationError, "use_cpu=True and gpus=.0. contradict each other: leave one"),
    ({"gpus": []}, ConfigurationError, "gpus is ..: name at least one GPU, and none of them twice"),
    ({"gpus": [0, 0]}, ConfigurationError, "gpus is .0, 0.: name at least one GPU, and none of them twice"),
    ({"gpus": 0}, ArgumentTypeError, "gpus is 0: pass a list of GPU numbers, such as .0."),
    ({"gpus": ["0"]}, ArgumentTypeError, "gpus is .'0'.: pass a list of GPU numbers"),
    ({"gpus": [True]}, ArgumentTypeError, "gpus is .True.: pass a list of GPU numbers"),
    ({"gpus": [-1]}, DeviceUnavailableError, "gpus is .-1., but this machine has [0-9]+ CUDA GPUs: choose from"),
    ({"gpus": [99]}, DeviceUnavailableError, "gpus is .99., but this machine has [0-9]+ CUDA GPUs: choose from"),
    ({"num_processes": 2, "use_cpu": False}, ConfigurationError, "num_processes=2 counts CPU ranks: leave gpus and"),
    ({"random_seed": -1}, ConfigurationError, r"random seed -1 is out of range: pass an integer in \[0, 2\*\*63\)"),
    ({"random_seed": 2**63}, ConfigurationError, "random seed 9223372036854775808 is out of range"),
    ({"random_seed": 1.0}, ConfigurationError, "random seed 1.0 is out of range: pass an integer"),
]


@pytest.mark.parametrize(("arguments", "kind", "message"), ARGUMENTS, ids=[str(entry[0]) for entry in ARGUMENTS])
def test_a_wrong_argument_is_refused(arguments: dict[str, Any], kind: type[HeliosError], message: str) -> None:
    """Each wrong value or combination is refused at construction, naming value, rule and remedy."""
    with pytest.raises(kind, match=message.replace("(", r"\(").replace(")", r"\)").replace(r"\\", "\\")) as caught:
        Trainer(**arguments)
    builtin = {ConfigurationError: ValueError, ArgumentTypeError: TypeError, DeviceUnavailableError: RuntimeError}[kind]
    assert isinstance(caught.value, builtin)


def test_without_cuda_a_gpu_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """`use_cpu=False` and `gpus` without CUDA are refused; `use_cpu=None` then means the CPU."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert "use_cpu=False needs CUDA, which is not available here" in str(refusal(use_cpu=False))
    assert "gpus is [0], but this machine has 0 CUDA GPUs" in str(refusal(gpus=[0]))
    options = TrainerOptions()
    assert (options.use_cpu, options.gpus_of(1), options.device_of(ALONE)) == (True, [], torch.device("cpu"))


def test_the_device_follows_the_arguments(monkeypatch: pytest.MonkeyPatch) -> None:
    """With CUDA all GPUs are the default, a rank each; `gpus` chooses among them, and `use_cpu=True` uses none."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    for choice, device in (
        (TrainerOptions(), torch.device("cuda", 0)),
        (TrainerOptions(use_cpu=False), torch.device("cuda", 0)),
        (TrainerOptions(gpus=[2]), torch.device("cuda", 2)),
        (TrainerOptions(use_cpu=True), torch.device("cpu")),
        (TrainerOptions(num_processes=2), torch.device("cpu")),
    ):
        assert choice.device_of(ALONE) == device
    assert (TrainerOptions(gpus=[0, 2]).world_size, TrainerOptions(num_processes=3).world_size) == (2, 3)
    assert (TrainerOptions().world_size, TrainerOptions(use_cpu=True).world_size) == (3, 1)


def test_ranks_share_the_gpus_of_a_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """A rank has the GPU of its local rank among those named, or all; one too many is told the remedy."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    second = DistributedInfo(local_rank=1, local_world_size=4, rank=5, world_size=8)
    assert TrainerOptions().device_of(second) == torch.device("cuda", 1)
    assert TrainerOptions(gpus=[2, 0]).device_of(second) == torch.device("cuda", 0)
    assert TrainerOptions(use_cpu=True).device_of(second) == torch.device("cpu")
    fourth = DistributedInfo(local_rank=3, local_world_size=4, rank=7, world_size=8)
    with pytest.raises(
        DeviceUnavailableError, match=r"this machine has 4 ranks, and GPUs \[0, 1, 2\] for them: start one"
    ):
        TrainerOptions().device_of(fourth)


@pytest.mark.parametrize(
    ("local_ranks", "gpus", "expected"),
    [
        (None, None, [0, 1, 2]),
        (None, [1], [1]),
        (None, [2, 0], [2, 0]),
        (1, None, [0]),
        (1, [2, 0], [2]),
        (2, None, [0, 1]),
        (2, [2, 0, 1], [2, 0]),
        (3, None, [0, 1, 2]),
    ],
)
def test_the_gpus_of_a_trainer_are_those_of_its_ranks(
    local_ranks: int | None, gpus: list[int] | None, expected: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """`gpu_ids` has the GPU of each rank of this machine at its local rank, under torchrun, too."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    names = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    last = (local_ranks or 1) - 1
    values = (f"{4 + last}", f"{last}", "8", f"{local_ranks}", "localhost", "29500")
    for name, value in zip(names, values, strict=True):
        if local_ranks is None:
            monkeypatch.delenv(name, raising=False)
        else:
            monkeypatch.setenv(name, value)
    trainer = Trainer(gpus=gpus)
    assert trainer.gpu_ids == expected
    assert trainer._options.device_of(get_dist_info()) == torch.device("cuda", expected[trainer.local_rank])
    assert Trainer(use_cpu=True).gpu_ids == []


def test_everything_has_a_default() -> None:
    """A trainer is made without arguments; positions, defaults and the seed are the documented ones."""
    trainer = Trainer("run", TrainingUnit.ITERATION, 7, 1, None, 2, 3)
    options = trainer._options
    assert (options.run_name, options.train_unit, options.total_steps) == ("run", TrainingUnit.ITERATION, 7)
    assert (options.valid_frequency, options.chkpt_frequency, options.print_frequency) == (1, None, 2)
    assert trainer.accumulation_steps == 3
    trainer = Trainer()
    assert (trainer.random_seed, trainer.rank, trainer.local_rank, trainer.queue) == (6691, 0, 0, None)
    assert (trainer.train_exceptions, trainer.test_exceptions, len(trainer.plugins)) == ([], [], 0)
    assert Trainer(train_unit="ITERATION", total_steps=math.inf)._options.train_unit is TrainingUnit.ITERATION


def test_places_are_fixed_when_they_are_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Strings and paths are taken, and a later change of the working folder moves nothing."""
    monkeypatch.chdir(tmp_path)
    options = TrainerOptions(chkpt_root=Path("a"), log_path="b")  # type: ignore[arg-type]  # as the trainer passes it
    assert (options.chkpt_root, options.log_path) == (tmp_path / "a", tmp_path / "b")


def test_parts_of_the_wrong_kind_are_refused() -> None:
    """A class in place of an object, or something else, is a TypeError that says what to pass."""
    trainer, model, data = Trainer(total_steps=1), CountingModel(), ListData()
    wrong: list[tuple[Any, Any, str]] = [
        (CountingModel, data, r"is no Model: pass an object, CountingModel\(...\)"),
        (torch.nn.Linear(1, 1), data, "is no Model: derive it from Model"),
        (model, ListData, r"is no DataModule: pass an object, ListData\(...\)"),
        (model, [1], r"\[1\] is no DataModule: derive it from DataModule"),
    ]
    for some_model, some_data, message in wrong:
        with pytest.raises(ArgumentTypeError, match=message):
            trainer.fit(some_model, some_data)
        with pytest.raises(ArgumentTypeError, match=message):
            trainer.test(some_model, some_data)


def test_a_trainer_must_know_how_long(tmp_path: Path) -> None:
    """`fit` without `total_steps` says so before anything is made."""
    with pytest.raises(ConfigurationError, match="total_steps is 0: tell the trainer how many epochs to train"):
        Trainer(chkpt_root=tmp_path / "x").fit(CountingModel(), ListData())
    assert not (tmp_path / "x").exists()


PARAMS: list[tuple[dict[str, Any], type[HeliosError], str]] = [
    ({"batch_size": 0}, ConfigurationError, "batch_size is 0: pass at least 1"),
    ({"batch_size": 1.5}, ArgumentTypeError, "batch_size is 1.5, a float: pass an integer of at least 1"),
    ({"batch_size": None}, ArgumentTypeError, "batch_size is None, a NoneType: pass an integer"),
    ({"num_workers": -1}, ConfigurationError, "num_workers is -1: pass at least 0"),
    ({"num_workers": True}, ArgumentTypeError, "num_workers is True, a bool: pass an integer of at least 0"),
    ({"shuffle": 1}, ArgumentTypeError, "shuffle is 1, a int: pass True or False"),
    ({"drop_last": None}, ArgumentTypeError, "drop_last is None, a NoneType: pass True or False"),
    ({"debug_mode": "x"}, ArgumentTypeError, "debug_mode is 'x', a str: pass True or False"),
    ({"pin_memory": 0}, ArgumentTypeError, "pin_memory is 0, a int: pass True or False"),
    ({"is_distributed": 0}, ArgumentTypeError, "is_distributed is 0, a int: pass True or False"),
    ({"persistent_workers": True}, ConfigurationError, "persistent_workers=True needs workers: set num_workers"),
    ({"random_seed": -1}, ConfigurationError, "random seed -1 is out of range"),
    ({"sampler": [0, 1]}, ArgumentTypeError, "sampler list cannot be resumed: derive it from ResumableSampler"),
    ({"collate_fn": 3}, ArgumentTypeError, "collate_fn 3 cannot be called: pass a function"),
]


@pytest.mark.parametrize(("params", "kind", "message"), PARAMS, ids=[str(entry[0]) for entry in PARAMS])
def test_wrong_loader_parameters_are_refused(params: dict[str, Any], kind: type[HeliosError], message: str) -> None:
    """Each wrong value of `DataLoaderParams` is refused when they are made, directly or from a dictionary."""
    with pytest.raises(kind, match=message):
        DataLoaderParams(**params)
    with pytest.raises(kind, match=message):
        DataLoaderParams.from_dict(params)
