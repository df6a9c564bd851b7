"""What code for helios-ml 1.x assigns, calls and leaves out works here."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING, Any

import optuna
import pytest
import torch

import helios
from helios.errors import ArgumentTypeError, CheckpointError, MissingArgumentError, NotRunningError
from helios.plugins.optuna import OptunaPlugin, checkpoint_sampler, restore_sampler, resume_study
from helios.plugins.table import PluginTable
from helios.testing import TinyDataModule, TinyModel, are_equal
from helios.trainer import find_last_checkpoint
from tests.trainer.parts import CountingModel, ListData, Pruned, SimplePlugin, make_trainer

if TYPE_CHECKING:
    from pathlib import Path


def test_the_parts_of_a_trainer_can_be_assigned() -> None:
    """`model`, `datamodule`, `plugins`, `queue` and the exceptions of a trainer have setters, for tests of one part."""
    trainer = make_trainer()
    with pytest.raises(NotRunningError):
        _ = trainer.model
    model, data, plugin, queue = CountingModel(), ListData(), SimplePlugin("x"), object()
    trainer.model, trainer.datamodule, trainer.queue = model, data, queue
    assert (trainer.model, trainer.datamodule, trainer.queue) == (model, data, queue)
    trainer.plugins = {"x": plugin}
    assert isinstance(trainer.plugins, PluginTable)
    assert trainer.plugins["x"] is plugin
    trainer.train_exceptions, trainer.test_exceptions = [Pruned], [KeyError]
    assert (trainer.train_exceptions, trainer.test_exceptions) == ([Pruned], [KeyError])
    with pytest.raises(ArgumentTypeError, match="3 is no exception type: pass classes derived from BaseException"):
        trainer.train_exceptions = [3]  # type: ignore[list-item]  # the point
    with pytest.raises(ArgumentTypeError, match="plugins is 3, a int: pass a mapping of ids"):
        trainer.plugins = 3  # type: ignore[assignment]  # the point
    plugin.trainer = trainer
    assert plugin.trainer.queue is queue


def test_a_plugin_runs_under_a_key_that_is_not_its_id(tmp_path: Path) -> None:
    """`trainer.plugins["key"] = plugin` with another id registers the plug-in under the key, and saves it there."""

    class Counter(SimplePlugin):
        count = 0

        def on_training_batch_end(self, state: Any) -> None:
            self.count = state.global_iteration

    for epochs in (1, 2):
        trainer = make_trainer(tmp_path, total_steps=epochs)
        trainer.plugins["key"] = Counter("id")
        before = trainer.plugins["key"]
        trainer.fit(CountingModel(), ListData())
        assert (before.count, before.plug_id) == (3 * epochs, "id")  # type: ignore[attr-defined]  # Counter's


def test_overrides_is_unique_overrides() -> None:
    """`self._overrides` in a plug-in is its `unique_overrides`, and can be assigned."""
    plugin = SimplePlugin("x")
    plugin._overrides.training_batch = True
    assert plugin.unique_overrides.training_batch
    plugin._overrides = helios.plugins.UniquePluginOverrides(testing_batch=True)
    assert plugin.unique_overrides.testing_batch


def test_a_trained_state_dict_may_take_arguments() -> None:
    """`trained_state_dict` accepts what an override of it needs."""
    model = TinyModel()
    model.setup()
    assert list(model.trained_state_dict(0, name="x")) == ["net"]


def test_the_last_checkpoint_of_a_folder_of_any_name(tmp_path: Path) -> None:
    """`find_last_checkpoint` finds the newest in a folder that was renamed, and nothing for `None`."""
    assert find_last_checkpoint(None) is None
    make_trainer(tmp_path, chkpt_frequency=1, total_steps=11).fit(TinyModel("a_epoch_3"), TinyDataModule())
    shutil.move(tmp_path / "a_epoch_3", tmp_path / "elsewhere")
    assert find_last_checkpoint(tmp_path / "elsewhere") == tmp_path / "elsewhere" / "a_epoch_3_epoch_11_iter_33.pth"


def test_the_state_of_a_model_out_of_a_checkpoint(tmp_path: Path) -> None:
    """`helios.load_model_state` returns what `state_dict` returned: by name, for networks and optimizers."""
    model = TinyModel("tiny")
    make_trainer(tmp_path).fit(model, TinyDataModule())
    path = find_last_checkpoint(tmp_path / "tiny")
    assert path is not None
    state = helios.load_model_state(path)
    assert are_equal(state, model.state_dict())
    fresh = TinyModel()
    fresh.setup()
    fresh.net.load_state_dict(state["net"])
    assert are_equal(dict(fresh.net.state_dict()), dict(model.net.state_dict()))
    torch.save({"model": {"net": 3}}, tmp_path / "plain.pth")
    with pytest.raises(CheckpointError, match=r"plain.pth was written by torch.save without the checksum of Helios"):
        helios.load_model_state(tmp_path / "plain.pth")


def test_the_state_of_a_model_whose_attributes_share_objects(tmp_path: Path) -> None:
    """The networks can be read from a state whose other attributes refer to objects of the model."""

    class Sharing(TinyModel):
        def train_step(self, batch: Any, state: Any) -> None:
            super().train_step(batch, state)
            self.weights = list(self.net.parameters())

    make_trainer(tmp_path).fit(model := Sharing("sharing"), TinyDataModule())
    path = find_last_checkpoint(tmp_path / "sharing")
    assert path is not None
    fresh = TinyModel()
    fresh.setup()
    fresh.net.load_state_dict(helios.load_model_state(path)["net"])
    assert are_equal(dict(fresh.net.state_dict()), dict(model.net.state_dict()))


def test_the_state_of_a_model_that_returns_its_own(tmp_path: Path) -> None:
    """`load_model_state` gives back what a user's `state_dict` returned, with the types that it had."""

    class Own(CountingModel):
        def state_dict(self) -> dict[str, Any]:
            return {"weights": self.net.weight.detach().clone(), "names": ("a", {"b"})}

        def load_state_dict(self, state_dict: dict[str, Any], fast_init: bool = False) -> None:
            """Take nothing."""

    make_trainer(tmp_path).fit(model := Own(), ListData())
    path = find_last_checkpoint(tmp_path / "counting")
    assert path is not None
    assert are_equal(helios.load_model_state(path), model.state_dict())


def test_a_checkpoint_of_helios_ml_says_so(tmp_path: Path) -> None:
    """A file of torch.save under the name of a checkpoint is no run to resume: the error says what to do with it."""
    (tmp_path / "counting").mkdir()
    path = tmp_path / "counting" / "counting_epoch_1_iter_3.pth"
    torch.save({"model": {}, "training_state": None}, path)
    with pytest.raises(CheckpointError, match=r"as helios-ml 1.x does: such a run cannot be resumed; load its weights"):
        make_trainer(tmp_path).fit(CountingModel(), ListData())
    assert path.exists()


def test_the_trial_of_a_plugin_can_be_assigned() -> None:
    """`OptunaPlugin.trial` has a setter, and `suggest` takes `type_name`."""
    study = optuna.create_study()
    plugin = OptunaPlugin(study.ask(), "score")
    plugin.trial = trial = study.ask()
    assert plugin.suggest(type_name="int", name="n", low=1, high=5) == trial.params["n"]


def test_the_argument_names_of_a_sampler_checkpoint(tmp_path: Path) -> None:
    """`checkpoint_sampler(trial, chkpt_root=...)` saves where `restore_sampler` looks."""
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=1))
    trial = study.ask()
    checkpoint_sampler(trial=trial, chkpt_root=tmp_path)
    assert isinstance(restore_sampler(tmp_path), optuna.samplers.RandomSampler)


def test_a_study_is_resumed_without_its_name(tmp_path: Path) -> None:
    """`resume_study` without `study_name` continues the only study of a database; of several it asks for a name."""
    arguments = {"storage": f"sqlite:///{tmp_path / 'study.db'}", "load_if_exists": True}
    study = resume_study(arguments)
    study.tell(study.ask(), 1.0)
    assert resume_study(arguments).study_name == study.study_name
    optuna.create_study(storage=arguments["storage"], study_name="second")  # type: ignore[arg-type]  # it is a string
    with pytest.raises(MissingArgumentError, match=r"lacks study_name, and the database has 2: choose from .*second"):
        resume_study(arguments)
