from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

import pytest
import torch

import helios.plugins as hlp
from helios import Plugin, Trainer, TrainingState
from helios.checkpoint.archive import load_archive
from helios.errors import ArgumentTypeError, ConfigurationError, DuplicateNameError, UnknownNameError
from helios.plugins import PLUGIN_REGISTRY, CUDAPlugin, DevicePlugin, create_plugin
from helios.trainer import find_last_checkpoint
from tests.trainer.parts import CountingModel, ListData, SimplePlugin, make_trainer

if TYPE_CHECKING:
    from pathlib import Path


def test_nothing_must_be_written() -> None:
    """Every hook of a bare plug-in is there and does nothing, `setup` too."""
    plugin, batch = Plugin("x"), object()
    assert plugin.plug_id == "x"
    hooks = [getattr(plugin, name) for name in dir(Plugin) if name.startswith("on_")]
    assert len(hooks) == 18
    for hook in [*hooks, plugin.setup, plugin.rank0_result]:
        parameters = inspect.signature(hook).parameters
        given = {name: TrainingState() if name == "state" else 1 for name in parameters}
        assert hook(**given) is None
    plugin.receive_result(3)
    assert plugin.has_stop_news() is True
    assert plugin.process_training_batch(batch, TrainingState()) is batch
    assert plugin.process_validation_batch(batch, 0) is plugin.process_testing_batch(batch, 0) is batch
    assert plugin.should_training_stop() is False
    assert plugin.state_dict() == {}
    plugin.load_state_dict({})
    plugin.configure_model(CountingModel())


@pytest.mark.parametrize("plug_id", ["", None, 3])
def test_an_id_is_a_string(plug_id: Any) -> None:
    """An id that is no string, or empty, is no key."""
    with pytest.raises(ConfigurationError, match="is no key: pass a string that is not empty"):
        SimplePlugin(plug_id)


class Remembering(SimplePlugin):
    """Keeps the sum of the batches."""

    def __init__(self, plug_id: str) -> None:
        super().__init__(plug_id)
        self.total = torch.zeros(1)
        self.loaded: list[dict[str, Any]] = []

    def on_training_batch_end(self, state: TrainingState) -> None:
        self.total = self.total + state.global_iteration

    def state_dict(self) -> dict[str, Any]:
        return {"total": self.total, "id": self.plug_id}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.loaded.append(state_dict)
        self.total = state_dict["total"]


HOSTILE = [
    "model",
    "training",
    "plugins",
    "format",
    "gradients",
    "helios",
    "../x",
    "a/b",
    "a.b",
    " ",
    "ü\n",
    "__class__",
]


def test_state_rides_under_any_id(tmp_path: Path) -> None:
    """Plug-ins with ids like the checkpoint's own keys, or like paths, get their own states back."""

    def run(epochs: int) -> tuple[list[Remembering], CountingModel]:
        trainer, model = make_trainer(tmp_path, total_steps=epochs), CountingModel()
        plugins = [Remembering(plug_id) for plug_id in HOSTILE]
        for plugin in plugins:
            trainer.register_plugin(plugin)
        trainer.fit(model, ListData())
        return plugins, model

    run(1)
    path = find_last_checkpoint(tmp_path / "counting")
    assert path is not None
    assert set(load_archive(path)["plugins"]) == set(HOSTILE)
    resumed, model = run(2)
    assert len(model.seen) == 6
    for plugin in resumed:
        assert [state["id"] for state in plugin.loaded] == [plugin.plug_id]
        assert float(plugin.total) == 1 + 2 + 3 + 4 + 5 + 6
    assert list(tmp_path.iterdir()) == [tmp_path / "counting"]


def test_a_plugin_that_left_or_came_is_no_obstacle(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A resume without a plug-in says that its state is dropped; one with a new plug-in starts it afresh."""
    trainer = make_trainer(tmp_path, total_steps=1)
    trainer.register_plugin(Remembering("old"))
    trainer.register_plugin(SimplePlugin("stateless"))
    trainer.fit(CountingModel(), ListData())
    caplog.clear()
    trainer, new = make_trainer(tmp_path, total_steps=2), Remembering("new")
    trainer.register_plugin(new)
    trainer.fit(CountingModel(), ListData())
    assert new.loaded == []
    dropped = [record.getMessage() for record in caplog.records if "dropped" in record.getMessage()]
    assert len(dropped) == 1
    assert "'old', which is not registered" in dropped[0]


def test_a_state_dict_that_is_no_dict_is_refused_before_training(tmp_path: Path) -> None:
    """A plug-in whose `state_dict` returns a list is told so before the first batch."""

    class Wrong(SimplePlugin):
        def state_dict(self) -> dict[str, Any]:
            return [1]  # type: ignore[return-value]  # the point

    trainer, model = make_trainer(tmp_path), CountingModel()
    trainer.register_plugin(Wrong("x"))
    with pytest.raises(ArgumentTypeError, match=r"Wrong.state_dict\(\) returned a list: return a dict of plain data"):
        trainer.fit(model, ListData())
    assert model.seen == []


def test_state_that_is_not_plain_is_refused_before_training(tmp_path: Path) -> None:
    """A plug-in whose state could not be read back is told so, with the path to it, before the first batch."""

    class Wrong(SimplePlugin):
        def state_dict(self) -> dict[str, Any]:
            return {"deep": [{"inside": object()}]}

    trainer, model = make_trainer(tmp_path), CountingModel()
    trainer.register_plugin(Wrong("my id"))
    with pytest.raises(TypeError, match=r"Wrong.state_dict\(\)\['deep'\]\[0\]\['inside'\] is a builtins.object"):
        trainer.fit(model, ListData())
    assert model.seen == []


class FirstHalf(SimplePlugin):
    """The guide's sample: only a part of each batch is passed on."""

    def process_training_batch(self, batch: Any, state: TrainingState) -> Any:
        assert state.dataset_iter == (state.global_iteration - 1) % 3 + 1
        return batch[:2]

    def process_validation_batch(self, batch: Any, step: int) -> Any:
        return batch + step

    def process_testing_batch(self, batch: Any, step: int) -> Any:
        return -batch * (step + 1)


def test_the_model_gets_what_the_plugin_returns() -> None:
    """`train_step`, `valid_step` and `test_step` receive what `process_*_batch` returned."""

    class Keeping(CountingModel):
        def __init__(self) -> None:
            super().__init__()
            self.got: dict[str, list[list[float]]] = {"train": [], "valid": [], "test": []}

        def train_step(self, batch: torch.Tensor, state: TrainingState) -> None:
            del state
            self.got["train"].append(batch.tolist())

        def valid_step(self, batch: torch.Tensor, step: int) -> None:
            del step
            self.got["valid"].append(batch.tolist())

        def test_step(self, batch: torch.Tensor, step: int) -> None:
            del step
            self.got["test"].append(batch.tolist())

    class Wide(ListData):
        def _batches(self, which: int, first: int) -> Any:
            return [torch.arange(3.0) + first + 10 * i for i in range(self.sizes[which])], None

    trainer, model = make_trainer(total_steps=1, valid_frequency=1), Keeping()
    trainer.register_plugin(FirstHalf("half"))
    trainer.fit(model, Wide())
    trainer.test(model, Wide())
    assert model.got == {
        "train": [[100, 101], [110, 111], [120, 121]],
        "valid": [[200, 201, 202], [211, 212, 213]],
        "test": [[-300, -301, -302], [-620, -622, -624]],
    }


def test_shipped_plugins_know_their_id() -> None:
    """The class attribute `plugin_id` is the id under which a shipped plug-in is registered."""
    assert CUDAPlugin.plugin_id == "cuda"
    assert DevicePlugin.plugin_id == "device"
    trainer = Trainer()
    DevicePlugin().configure_trainer(trainer)
    assert isinstance(trainer.plugins[DevicePlugin.plugin_id], DevicePlugin)
    assert DevicePlugin("cpu", plug_id="mine").plug_id == "mine"


def test_plugins_are_made_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """`PLUGIN_REGISTRY.register` decorates; `create_plugin` passes arguments on; both know bad names."""
    assert {"CUDAPlugin", "DevicePlugin"} <= set(PLUGIN_REGISTRY.keys())
    plugin = create_plugin("DevicePlugin", "meta", plug_id="x")
    assert isinstance(plugin, DevicePlugin)
    assert (plugin.target, plugin.plug_id) == (torch.device("meta"), "x")
    monkeypatch.setattr(PLUGIN_REGISTRY, "_entries", dict(PLUGIN_REGISTRY._entries))

    @PLUGIN_REGISTRY.register
    class Registered(SimplePlugin):
        pass

    assert isinstance(create_plugin("Registered", "y"), Registered)
    with pytest.raises(DuplicateNameError, match="Registered"):
        PLUGIN_REGISTRY.register(Registered)
    with pytest.raises(UnknownNameError, match="CUDAPlugin.*DevicePlugin.*Registered"):
        create_plugin("Missing")


def test_the_guides_registration_sample_runs() -> None:
    """A plug-in that registers itself in `configure_trainer`, as the guide prints it, is in the table."""

    class MyPlugin(hlp.Plugin):
        def __init__(self) -> None:
            super().__init__("my_plugin")

        def setup(self) -> None: ...

        def configure_trainer(self, trainer: Trainer) -> None:
            self._register_in_trainer(trainer)

    trainer, plugin = Trainer(), MyPlugin()
    plugin.configure_trainer(trainer)
    assert trainer.plugins["my_plugin"] is plugin


def test_exceptions_are_appended_once() -> None:
    """Types are appended one by one or as a list, each once; what is no exception type is refused."""
    trainer, plugin = Trainer(), SimplePlugin("x")
    plugin._append_train_exceptions(KeyError, trainer)
    plugin._append_train_exceptions([KeyError, ValueError], trainer)
    plugin._append_test_exceptions([OSError], trainer)
    assert trainer.train_exceptions == [KeyError, ValueError]
    assert trainer.test_exceptions == [OSError]
    for wrong in (int, "x", KeyError("x")):
        with pytest.raises(ArgumentTypeError, match="is no exception type"):
            plugin._append_train_exceptions(wrong, trainer)  # type: ignore[arg-type]  # the point
    assert trainer.train_exceptions == [KeyError, ValueError]


def test_the_run_is_within_reach_of_all_its_parts() -> None:
    """Plug-in, model and data module see the trainer and through it each other, during a run."""
    seen: dict[str, Any] = {}

    class Looking(SimplePlugin):
        def setup(self) -> None:
            seen["plugin"] = self.trainer.model, self.device, self.rank, self.map_loc, self.is_distributed

    class Data(ListData):
        def setup(self) -> None:
            seen["data"] = self.trainer.plugins["foo"]

    class Asking(CountingModel):
        def train_step(self, batch: torch.Tensor, state: TrainingState) -> None:
            del batch, state
            seen["model"] = self.trainer.plugins["foo"], self.trainer.datamodule, self.trainer.random_seed

    trainer, plugin, model, data = make_trainer(random_seed=7), Looking("foo"), Asking(), Data()
    trainer.register_plugin(plugin)
    trainer.fit(model, data)
    assert seen == {
        "plugin": (model, torch.device("cpu"), 0, "cpu", False),
        "data": plugin,
        "model": (plugin, data, 7),
    }
    assert (trainer.model, trainer.datamodule, trainer.queue) == (model, data, None)
