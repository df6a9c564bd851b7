"""The public surface: names, signatures and fields that code written for Helios relies on.

A test here that turns red says that such code would break.
"""

from __future__ import annotations

import dataclasses
import importlib
import inspect
from typing import Any

import pytest

import helios
from helios import DataModule, Model, Plugin, Trainer, TrainingState, TrainingUnit
from helios.core import Registry
from helios.data import DataLoaderParams
from helios.plugins import UniquePluginOverrides

DATAMODULE = [
    *("DataModule", "DataLoaderParams", "Dataset", "DatasetSplit", "create_dataloader", "DATASET_REGISTRY"),
    *("create_dataset", "COLLATE_FN_REGISTRY", "create_collate_fn"),
]
PLUGIN = ["Plugin", "UniquePluginOverrides", "CUDAPlugin", "DevicePlugin", "PLUGIN_REGISTRY", "create_plugin"]

NAMES = {
    "helios": [
        "Trainer",
        "Model",
        "DataModule",
        "Plugin",
        "TrainingState",
        "TrainingUnit",
        "__version__",
        "load_model_state",
    ],
    "helios.trainer": ["Trainer", "TrainingState", "TrainingUnit", "find_last_checkpoint"],
    "helios.model": ["Model", "MODEL_REGISTRY", "create_model"],
    "helios.model.model": ["Model"],
    "helios.data": DATAMODULE,
    "helios.data.datamodule": DATAMODULE,
    "helios.data.samplers": [
        *("ResumableSampler", "ResumableRandomSampler", "ResumableSequentialSampler", "ResumableDistributedSampler"),
        *("SAMPLER_REGISTRY", "create_sampler"),
    ],
    "helios.plugins": PLUGIN,
    "helios.plugins.plugin": PLUGIN,
    "helios.core": [
        *("Registry", "update_all_registries", "safe_torch_load", "get_from_optional", "convert_to_list"),
        *("AverageTimer", "ChdirContext"),
    ],
    "helios.core.rng": [
        *("get_default_seed", "seed_rngs", "get_default_numpy_rng", "get_rng_state_dict", "load_rng_state_dict"),
    ],
    "helios.core.distributed": [
        *("is_using_torchrun", "init_dist", "shutdown_dist", "is_dist_active", "get_dist_info", "DistributedInfo"),
        *("get_local_rank", "get_global_rank", "get_local_world_size", "get_world_size", "all_reduce_tensors"),
        *("gather_into_tensor", "safe_barrier", "global_print", "local_print"),
    ],
    "helios.core.logging": ["get_root_logger", "get_tensorboard_writer", "is_root_logger_active"],
    "helios.optim": ["OPTIMIZER_REGISTRY", "create_optimizer"],
    "helios.scheduler": ["SCHEDULER_REGISTRY", "create_scheduler"],
    "helios.losses": ["LOSS_REGISTRY", "create_loss_function"],
    "helios.nn": ["NETWORK_REGISTRY", "create_network"],
    "helios.plugins.optuna": [
        *("OptunaPlugin", "checkpoint_sampler", "restore_sampler", "resume_study", "run_study"),
        *("ReproducibleSampler", "SearchSpace", "write_report"),
    ],
}

TRAINER = {
    "run_name": "",
    "train_unit": TrainingUnit.EPOCH,
    "total_steps": 0,
    "valid_frequency": None,
    "chkpt_frequency": None,
    "print_frequency": None,
    "accumulation_steps": 1,
    "enable_cudnn_benchmark": False,
    "enable_deterministic": False,
    "early_stop_cycles": None,
    "use_cpu": None,
    "gpus": None,
    "random_seed": None,
    "enable_tensorboard": False,
    "enable_file_logging": False,
    "capture_warnings": False,
    "enable_progress_bar": False,
    "chkpt_root": None,
    "log_path": None,
    "run_path": None,
    "src_root": None,
    "import_prefix": "",
    "print_banner": True,
    "num_processes": None,
    "strategy": "ddp",
    "passport": None,
    "on_drift": "refuse",
}

# Beside the arguments: the default of each, `...` for none.
BATCH_HOOKS = {
    "on_training_batch_start": {"state": ...},
    "on_training_epoch_start": {"current_epoch": ...},
    "on_training_epoch_end": {"current_epoch": ...},
    "on_validation_start": {"validation_cycle": ...},
    "on_validation_end": {"validation_cycle": ...},
    **{key: {} for key in ("on_training_start", "on_training_end", "on_testing_start", "on_testing_end")},
    "should_training_stop": {},
    "state_dict": {},
}
STEP_HOOKS = ["on_validation_batch_start", "on_validation_batch_end", "on_testing_batch_start", "on_testing_batch_end"]
METHODS: dict[type, dict[str, dict[str, Any]]] = {
    Trainer: {
        "__init__": TRAINER,
        "fit": {"model": ..., "datamodule": ...},
        "test": {"model": ..., "datamodule": ...},
        "register_plugin": {"plugin": ...},
    },
    Model: {
        "__init__": {"save_name": ...},
        "setup": {"fast_init": False},
        "train_step": {"batch": ..., "state": ...},
        "valid_step": {"batch": ..., "step": ...},
        "test_step": {"batch": ..., "step": ...},
        **BATCH_HOOKS,
        **{key: {"step": ...} for key in STEP_HOOKS},
        "on_training_batch_end": {"state": ..., "should_log": False},
        "load_state_dict": {"state_dict": ..., "fast_init": False},
        **{key: {} for key in ("train", "eval", "load_for_testing", "have_metrics_improved")},
        "append_metadata_to_chkpt_name": {"chkpt_name": ...},
        "append_to_banner": {"banner": ...},
        "is_optimizer_step": {"state": ...},
    },
    Plugin: {
        "__init__": {"plug_id": ...},
        "configure_trainer": {"trainer": ...},
        "configure_model": {"model": ...},
        "setup": {},
        "process_training_batch": {"batch": ..., "state": ...},
        "process_validation_batch": {"batch": ..., "step": ...},
        "process_testing_batch": {"batch": ..., "step": ...},
        **BATCH_HOOKS,
        "on_training_batch_end": {"state": ...},
        "load_state_dict": {"state_dict": ...},
        "_append_train_exceptions": {"exc": ..., "trainer": ...},
        "_append_test_exceptions": {"exc": ..., "trainer": ...},
        "_register_in_trainer": {"trainer": ...},
    },
    DataModule: {
        **{key: {} for key in ("prepare_data", "setup", "teardown")},
        **{key: {} for key in ("train_dataloader", "valid_dataloader", "test_dataloader")},
        "_create_dataset": {"dataset": ..., "params": None},
    },
    Registry: {
        "__init__": {"name": ...},
        "register": {"obj": None, "suffix": None, "name": None},
        "get": {"name": ..., "suffix": None},
        "keys": {},
    },
    DataLoaderParams: {"from_dict": {"params": ...}, "to_dict": {}},
    TrainingUnit: {"from_str": {"label": ...}},
}

RUN_PROPERTIES = ["is_distributed", "map_loc", "device", "rank", "trainer"]
PROPERTIES: dict[type, list[str]] = {
    Trainer: [
        *("model", "datamodule", "plugins", "queue", "rank", "local_rank", "gpu_ids"),
        *("train_exceptions", "test_exceptions"),
    ],
    Model: [*RUN_PROPERTIES, "save_name", "metrics"],
    Plugin: [*RUN_PROPERTIES, "unique_overrides", "plug_id"],
    DataModule: ["trainer", "is_distributed", "train_dataset", "valid_dataset", "test_dataset"],
}

FIELDS: dict[Any, dict[str, Any]] = {
    TrainingState: {
        **dict.fromkeys(("current_iteration", "global_iteration", "global_epoch", "validation_cycles"), 0),
        **dict.fromkeys(
            ("dataset_iter", "early_stop_count", "average_iter_time", "running_iter", "optimizer_steps"), 0
        ),
    },
    UniquePluginOverrides: dict.fromkeys(
        ("training_batch", "validation_batch", "testing_batch", "should_training_stop"), False
    ),
    DataLoaderParams: {
        "random_seed": None,
        "batch_size": 1,
        "shuffle": False,
        "num_workers": 0,
        "pin_memory": None,
        "drop_last": False,
        "is_distributed": None,
        "sampler": None,
        "collate_fn": None,
        "debug_mode": False,
        "persistent_workers": False,
        "timeout": 0,
    },
}


@pytest.mark.parametrize("module", NAMES)
def test_the_names_are_there(module: str) -> None:
    """Every name can be imported from its module, and a package says so in `__all__`."""
    imported = importlib.import_module(module)
    assert [name for name in NAMES[module] if not hasattr(imported, name)] == []
    if hasattr(imported, "__all__"):
        assert set(NAMES[module]) <= set(imported.__all__)


def test_the_package_has_no_other_names() -> None:
    """`helios` offers what is listed and nothing else."""
    assert sorted(helios.__all__) == sorted(NAMES["helios"])


def test_one_thing_has_one_identity() -> None:
    """A name that can be imported from several modules is the same object in all of them."""
    for name in {name for names in NAMES.values() for name in names}:
        modules = [importlib.import_module(module) for module, names in NAMES.items() if name in names]
        assert len({id(getattr(module, name)) for module in modules}) == 1, name


@pytest.mark.parametrize(
    ("owner", "method"), [(owner, method) for owner, methods in METHODS.items() for method in methods]
)
def test_the_arguments_of_methods(owner: type, method: str) -> None:
    """Names, order and defaults of the arguments."""
    parameters = list(inspect.signature(getattr(owner, method)).parameters.values())
    arguments = [p for p in parameters if p.name not in ("self", "cls")]
    found = {p.name: ... if p.default is inspect.Parameter.empty else p.default for p in arguments}
    expected = METHODS[owner][method]
    assert list(found.items()) == list(expected.items())


@pytest.mark.parametrize("owner", PROPERTIES, ids=lambda owner: owner.__name__)
def test_the_properties(owner: type) -> None:
    """The properties are properties; those that a run gives a plug-in can be set."""
    found = {name: inspect.getattr_static(owner, name) for name in PROPERTIES[owner]}
    assert [name for name, value in found.items() if not isinstance(value, property)] == []
    if owner is Plugin:
        assert all(found[name].fset is not None for name in RUN_PROPERTIES)


@pytest.mark.parametrize("owner", FIELDS, ids=lambda owner: owner.__name__)
def test_the_fields_of_dataclasses(owner: Any) -> None:
    """The fields and their defaults."""
    found = {field.name: field.default for field in dataclasses.fields(owner)}
    assert list(found.items()) == list(FIELDS[owner].items())


def test_what_subclasses_rely_on() -> None:
    """The protected members that models and data modules use, and what is abstract."""

    class Minimal(Model):
        def setup(self, fast_init: bool = False) -> None:
            """Make nothing."""

    class MinimalData(DataModule):
        def setup(self) -> None:
            """Make nothing."""

    model, data = Minimal("minimal"), MinimalData()
    assert [model._loss_items, model._running_losses, model._val_scores, model._test_scores] == [{}, {}, {}, {}]
    assert [data._train_dataset, data._valid_dataset, data._test_dataset] == [None, None, None]
    for base in (Model, DataModule):
        assert base.__abstractmethods__ == {"setup"}
    Plugin("minimal").setup()


def test_names_and_values() -> None:
    """Units by their names, and the default seed."""
    assert [unit.value for unit in TrainingUnit] == ["epoch", "iteration"]
    assert TrainingUnit.from_str("ITERATION") is TrainingUnit.ITERATION
    assert helios.core.rng.get_default_seed() == 6691
