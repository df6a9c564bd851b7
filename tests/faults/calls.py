"""The public constructors and functions that take plain arguments, each with arguments that are right."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import optuna
import torch
import torch.distributed as dist
from torch.utils.data import TensorDataset

import helios.optim
import helios.plugins.optuna as hlpo
from helios import Trainer, TrainingUnit
from helios.core import (
    AverageTimer,
    ChdirContext,
    Registry,
    convert_to_list,
    rng,
    safe_torch_load,
    update_all_registries,
)
from helios.core.distributed import all_reduce_tensors, gather_into_tensor, global_print, init_dist
from helios.data import DataLoaderParams, Dataset, DatasetSplit, create_collate_fn, create_dataloader, create_dataset
from helios.data.samplers import (
    ResumableDistributedSampler,
    ResumableRandomSampler,
    ResumableSequentialSampler,
    create_sampler,
)
from helios.losses import create_loss_function
from helios.model import create_model
from helios.nn import create_network
from helios.plugins import DevicePlugin, create_plugin
from helios.scheduler import create_scheduler
from helios.testing import TinyDataModule, TinyModel
from helios.trainer import find_last_checkpoint
from tests.trainer.parts import CountingModel, SimplePlugin

if TYPE_CHECKING:
    from collections.abc import Callable

DATA: Final = TensorDataset(torch.arange(4.0))
TRIAL: Final = optuna.create_study().ask()
STUDY: Final = optuna.create_study()


@dataclasses.dataclass(frozen=True)
class Call:
    """A function, and arguments that it takes.

    Attributes:
        function: what is called.
        arguments: the right arguments by name.
    """

    function: Callable[..., object]
    arguments: dict[str, Any]


def _make_registry(name: Any, obj: Any, suffix: Any, new_name: Any) -> object:
    registry = Registry[Any](name)
    registry.register(obj, suffix=suffix, name=new_name)
    return [registry.get(key) for key, _ in registry]


def _read_space(text: Any) -> object:
    path = Path("space.toml")
    path.write_bytes(text if isinstance(text, bytes) else str(text).encode("utf-8", "surrogatepass"))
    return hlpo.SearchSpace.from_toml(path)


def _add_plugin(plugin: Any, key: Any) -> object:
    trainer = Trainer()
    trainer.plugins[key] = plugin
    return trainer.plugins[key]


def _register(plugin: Any) -> object:
    trainer = Trainer()
    trainer.register_plugin(plugin)
    return trainer.plugins[0]


def _fit(model: Any, datamodule: Any) -> object:
    return Trainer(total_steps=1, use_cpu=True, print_banner=False).fit(model, datamodule)


def _test(model: Any, datamodule: Any) -> object:
    return Trainer(use_cpu=True).test(model, datamodule)


def _create_dataset(params: Any) -> object:
    module = TinyDataModule()
    module._train_dataset = module._create_dataset(DATA, params)
    return module.train_dataloader()


def _suggest(kind: Any, name: Any, metric_name: Any) -> object:
    return hlpo.OptunaPlugin(optuna.trial.FixedTrial({"x": 1}), metric_name).suggest(kind, name, low=0, high=1)


def _enter(path: Any) -> None:
    with ChdirContext(path):
        pass


def _seek(epoch: Any, position: Any) -> object:
    sampler = ResumableRandomSampler(range(4), 1)
    sampler.seek(epoch, position)
    return list(sampler)


def _rename(save_name: Any) -> None:
    TinyModel().save_name = save_name


def _set_metrics(metrics: Any) -> None:
    TinyModel().metrics = metrics


def _run_study(make_study: Any, objective: Any, n_trials: Any) -> object:
    return hlpo.run_study(make_study, objective, n_trials)


def _make_study() -> optuna.Study:
    return optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))


def _objective(trial: optuna.Trial) -> float:
    return trial.suggest_float("x", 0, 1)


def _load_dataset(dataset: Any, params: Any, default_seed: Any) -> object:
    return Dataset(dataset, params).dataloader(default_seed)


def _wrap(network: Any) -> object:
    return TinyModel().wrap(network)


def _load_model(state_dict: Any) -> None:
    model = TinyModel()
    model.setup()
    model.load_state_dict(state_dict)


def _load_datamodule(state_dict: Any) -> None:
    TinyDataModule().load_state_dict(state_dict)


def _load_timer(state_dict: Any) -> None:
    AverageTimer().load_state_dict(state_dict)


def _load_optuna(state_dict: Any) -> None:
    hlpo.OptunaPlugin(optuna.create_study().ask(), "a").load_state_dict(state_dict)


def _append_exceptions(exc: Any) -> None:
    SimplePlugin()._append_train_exceptions(exc, Trainer())


SPACE: Final = {"x": {"kind": "float", "low": 0.0, "high": 1.0}}
STUDY_ARGS: Final = {"study_name": "s", "storage": "sqlite:///study.db", "load_if_exists": True}

CALLS: Final[dict[str, Call]] = {
    "Trainer": Call(
        Trainer,
        {
            "run_name": "a",
            "train_unit": "epoch",
            "total_steps": 3,
            "valid_frequency": 1,
            "chkpt_frequency": 1,
            "print_frequency": 1,
            "accumulation_steps": 1,
            "enable_cudnn_benchmark": False,
            "enable_deterministic": False,
            "early_stop_cycles": 1,
            "use_cpu": True,
            "gpus": None,
            "random_seed": 1,
            "enable_tensorboard": False,
            "enable_file_logging": False,
            "capture_warnings": False,
            "enable_progress_bar": False,
            "chkpt_root": "c",
            "log_path": "l",
            "run_path": "r",
            "src_root": "s",
            "import_prefix": "p",
            "print_banner": True,
            "num_processes": 1,
            "strategy": "ddp",
        },
    ),
    "TrainingUnit.from_str": Call(TrainingUnit.from_str, {"label": "epoch"}),
    "find_last_checkpoint": Call(find_last_checkpoint, {"root": "a"}),
    "Trainer.fit": Call(_fit, {"model": None, "datamodule": None}),
    "Trainer.test": Call(_test, {"model": None, "datamodule": None}),
    "Trainer.plugins": Call(_add_plugin, {"plugin": SimplePlugin(), "key": "simple"}),
    "Trainer.register_plugin": Call(_register, {"plugin": SimplePlugin()}),
    "Model": Call(CountingModel, {"save_name": "m"}),
    "Model.save_name": Call(_rename, {"save_name": "m"}),
    "Model.metrics": Call(_set_metrics, {"metrics": {}}),
    "DataLoaderParams": Call(
        DataLoaderParams,
        {
            "random_seed": 1,
            "batch_size": 1,
            "shuffle": False,
            "num_workers": 0,
            "pin_memory": False,
            "drop_last": False,
            "is_distributed": False,
            "sampler": None,
            "collate_fn": None,
            "debug_mode": False,
            "persistent_workers": False,
        },
    ),
    "DataLoaderParams.from_dict": Call(DataLoaderParams.from_dict, {"params": {"batch_size": 2}}),
    "DataModule._create_dataset": Call(_create_dataset, {"params": {"batch_size": 2}}),
    "create_dataloader": Call(
        create_dataloader,
        {"dataset": DATA, "random_seed": 1, "batch_size": 2, "shuffle": True, "is_distributed": False, "sampler": None},
    ),
    "Dataset.dataloader": Call(_load_dataset, {"dataset": DATA, "params": DataLoaderParams(), "default_seed": 1}),
    "DatasetSplit.from_str": Call(DatasetSplit.from_str, {"label": "train"}),
    "ResumableRandomSampler": Call(ResumableRandomSampler, {"data_source": range(4), "seed": 1}),
    "ResumableSequentialSampler": Call(ResumableSequentialSampler, {"data_source": range(4)}),
    "ResumableDistributedSampler": Call(
        ResumableDistributedSampler,
        {
            "data_source": range(4),
            "num_replicas": 2,
            "rank": 1,
            "shuffle": True,
            "seed": 1,
            "drop_last": False,
            "pad": True,
        },
    ),
    "ResumableSampler.seek": Call(_seek, {"epoch": 0, "position": 1}),
    "Model.wrap": Call(_wrap, {"network": torch.nn.Linear(1, 1)}),
    "Model.load_state_dict": Call(_load_model, {"state_dict": {}}),
    "DataModule.load_state_dict": Call(_load_datamodule, {"state_dict": {}}),
    "AverageTimer.load_state_dict": Call(_load_timer, {"state_dict": {}}),
    "OptunaPlugin.load_state_dict": Call(_load_optuna, {"state_dict": {}}),
    "Plugin._append_train_exceptions": Call(_append_exceptions, {"exc": ValueError}),
    "all_reduce_tensors": Call(all_reduce_tensors, {"tensor": torch.ones(2), "op": dist.ReduceOp.SUM}),
    "Plugin": Call(SimplePlugin, {"plug_id": "a"}),
    "DevicePlugin": Call(DevicePlugin, {"device": "cpu", "plug_id": "a"}),
    "OptunaPlugin": Call(hlpo.OptunaPlugin, {"trial": TRIAL, "metric_name": "a"}),
    "OptunaPlugin.suggest": Call(_suggest, {"kind": "int", "name": "x", "metric_name": "a"}),
    "Registry": Call(_make_registry, {"name": "a", "obj": dict, "suffix": "b", "new_name": "c"}),
    **{
        f"{create.__name__}": Call(create, {"type_name": "Missing"})
        for create in (
            *(create_model, create_dataset, create_collate_fn, create_sampler, create_plugin, create_scheduler),
            *(create_network, create_loss_function, helios.optim.create_optimizer),
        )
    },
    "update_all_registries": Call(update_all_registries, {"root": ".", "recurse": True, "import_prefix": "a"}),
    "safe_torch_load": Call(safe_torch_load, {"f": "a", "map_location": "cpu"}),
    "ChdirContext": Call(_enter, {"path": "."}),
    "convert_to_list": Call(convert_to_list, {"var": 1}),
    "seed_rngs": Call(rng.seed_rngs, {"seed": 1, "skip_torch": False}),
    "load_rng_state_dict": Call(rng.load_rng_state_dict, {"state_dict": rng.get_rng_state_dict()}),
    "init_dist": Call(
        init_dist, {"backend": None, "rank": None, "world_size": None, "info": None, "init_method": "env://"}
    ),
    "gather_into_tensor": Call(gather_into_tensor, {"tensor": torch.ones(2), "size": (2,)}),
    "global_print": Call(global_print, {"global_rank": 1, "sep": "", "end": "", "flush": True}),
    "checkpoint_sampler": Call(hlpo.checkpoint_sampler, {"trial": TRIAL, "chkpt_root": "a"}),
    "restore_sampler": Call(hlpo.restore_sampler, {"root": "a"}),
    "resume_study": Call(
        hlpo.resume_study,
        {"study_args": STUDY_ARGS, "failed_states": (optuna.trial.TrialState.FAIL,), "backup_study": True},
    ),
    **{
        f"resume_study({name})": Call(
            lambda value, name=name: hlpo.resume_study({**STUDY_ARGS, name: value}), {"value": STUDY_ARGS.get(name)}
        )
        for name in (*STUDY_ARGS, "sampler", "pruner", "direction", "directions")
    },
    "run_study": Call(_run_study, {"make_study": _make_study, "objective": _objective, "n_trials": 1}),
    "ReproducibleSampler": Call(hlpo.ReproducibleSampler, {"make_sampler": optuna.samplers.RandomSampler, "seed": 1}),
    "SearchSpace.from_dict": Call(hlpo.SearchSpace.from_dict, {"definitions": SPACE}),
    "SearchSpace.from_dict(x)": Call(lambda value: hlpo.SearchSpace.from_dict({"x": value}), {"value": SPACE["x"]}),
    **{
        f"SearchSpace.from_dict({key})": Call(
            lambda value, key=key: hlpo.SearchSpace.from_dict({"x": {**SPACE["x"], key: value}}), {"value": None}
        )
        for key in ("kind", "low", "high", "step", "log", "choices", "when")
    },
    "SearchSpace.from_toml": Call(_read_space, {"text": 'x = {kind = "float", low = 0, high = 1}'}),
    "SearchSpace.from_toml(path)": Call(hlpo.SearchSpace.from_toml, {"path": "a"}),
    "write_report": Call(hlpo.write_report, {"study_or_url": STUDY, "path": "page.html", "study_name": None}),
}
