"""The code samples of the plug-in guide that users of Helios 1.x know, as printed there.

Each sample is quoted between the markers of a string, and run. Where the guide prints `...`, the sample is quoted with
what takes its place, in a line of its own.
"""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING, Any

import pytest
import torch

import helios.plugins as hlp
import helios.trainer as hlt
from helios import DataModule
from helios.testing import TinyDataModule, TinyModel

if TYPE_CHECKING:
    from helios import TrainingState
    from tests.gpu.driver import Driver

REGISTERING = """
   import helios.plugins as hlp
   import helios.trainer as hlt

   class MyPlugin(hlp.Plugin):
       def __init__(self):
           super().__init__("my_plugin")

       def configure_trainer(self, trainer: hlt.Trainer) -> None:
           self._register_in_trainer(trainer) # <- Automatically registers the plug-in.
"""

UNIQUE = """
   import helios.plugins as hlp

   class MyPlugin(hlp.Plugin):
       def __init__(self):
           super().__init__("my_plugin")

           self.unique_overrides.training_batch = True
           self.unique_overrides.should_training_stop = True

       def process_training_batch(self, batch, state):
           return batch

       def should_training_stop(self):
           return self.stops
"""

SHORTENING = """
   def process_training_batch(self, batch: list[torch.Tensor]) -> list[torch.Tensor]:
       return batch[:2] # <- Take the first two elements of the batch.
"""

CUDA_BY_ID = """
       import helios.plugins as hlp
       import helios.trainer as hlt

       trainer = hlt.Trainer()
       plugin = hlp.CUDAPlugin()
       plugin.configure_trainer(trainer)
       trainer.plugins[hlp.CUDAPlugin.plugin_id] # <- Access the plug-in like this.
"""

DICT_OF_LISTS = """
   import helios.plugins as hlp
   import torch

   class MyCUDAPlugin(hlp.CUDAPlugin):
       # Only need to override this function. Everything else will work automatically.
       def _move_collection_to_device(
           self, batch: dict[str, list[torch.Tensor]]
       ) -> dict[str, list[torch.Tensor]]:
           for key, value in batch.items():
               for i in range(len(value)):
                   value[i] = value[i].to(self.device)
               batch[key] = value

           return batch
"""

ACCESS = """
   def train_step(model, batch, state):
      model.trainer.plugins["foo"] # <- Access plug-in with name "foo"
"""


def run_sample(sample: str) -> dict[str, Any]:
    """Run a sample as a module of its own and return its names."""
    namespace: dict[str, Any] = {"torch": torch, "__name__": "guide"}
    exec(compile(textwrap.dedent(sample), "guide", "exec", dont_inherit=True), namespace)  # noqa: S102 - quoted above.
    return namespace


def make_plugin(sample: str, name: str, **members: Any) -> Any:
    """Return a plug-in of a sample's class, with the members that the guide leaves out."""
    base = run_sample(sample)[name]
    return type(name, (base,), {"setup": lambda _: None, **members})()


def make_trainer(*plugins: hlp.Plugin, **options: Any) -> hlt.Trainer:
    trainer = hlt.Trainer(total_steps=2, print_banner=False, use_cpu=True, **options)
    for plugin in plugins:
        plugin.configure_trainer(trainer)
    return trainer


def test_a_plugin_registers_itself() -> None:
    """The sample's `configure_trainer` registers the plug-in; doing it once more does no harm."""
    plugin = make_plugin(REGISTERING, "MyPlugin")
    trainer = make_trainer(plugin)
    assert trainer.plugins["my_plugin"] is plugin
    trainer.register_plugin(plugin)
    assert list(trainer.plugins) == ["my_plugin"]
    assert trainer.fit(TinyModel(), TinyDataModule())


def test_the_model_gets_what_the_plugin_returns() -> None:
    """With the sample's `return batch[:2]`, the step receives the first two of three tensors."""
    lengths = []

    class Model(TinyModel):
        def train_step(self, batch: list[torch.Tensor], state: TrainingState) -> None:
            lengths.append(len(batch))
            super().train_step(batch, state)

    class Data(DataModule):
        def setup(self) -> None:
            """The batches below are data enough."""

        def train_dataloader(self) -> Any:
            return [[torch.ones(4, 3), torch.ones(4, 1), torch.ones(4)]], None

    plugin = make_plugin(
        REGISTERING, "MyPlugin", process_training_batch=run_sample(SHORTENING)["process_training_batch"]
    )
    make_trainer(plugin).fit(Model(), Data())
    assert lengths == [2, 2]


def test_unique_overrides_are_unique() -> None:
    """Two plug-ins that claim as the sample does are refused, whichever claim they share."""
    plugin = make_plugin(UNIQUE, "MyPlugin", stops=False)
    assert plugin.unique_overrides == hlp.UniquePluginOverrides(training_batch=True, should_training_stop=True)
    trainer = make_trainer(plugin)
    rival = make_plugin(UNIQUE, "MyPlugin", plug_id="rival", stops=False)
    with pytest.raises(ValueError, match="'rival' claims training_batch, already held by 'my_plugin'"):
        trainer.register_plugin(rival)
    assert list(trainer.plugins) == ["my_plugin"]


@pytest.mark.parametrize(("stops", "batches"), [(False, 6), (True, 1)])
def test_a_plugin_stops_training(stops: bool, batches: int) -> None:
    """The sample's `should_training_stop` ends training after the current batch; `fit` returns normally."""
    model = TinyModel()
    assert make_trainer(make_plugin(UNIQUE, "MyPlugin", stops=stops)).fit(model, TinyDataModule())
    assert model.batches_seen == batches


def test_the_model_reaches_a_plugin_by_its_name() -> None:
    """`model.trainer.plugins["foo"]` within the training step is the plug-in; another name is a KeyError."""
    found = []

    class Model(TinyModel):
        def train_step(self, batch: list[torch.Tensor], state: TrainingState) -> None:
            run_sample(ACCESS)["train_step"](self, batch, state)
            found.append(self.trainer.plugins["foo"])
            with pytest.raises(KeyError, match="there are \\['foo'\\]"):
                self.trainer.plugins["bar"]
            super().train_step(batch, state)

    plugin = make_plugin(REGISTERING, "MyPlugin", plug_id="foo")
    make_trainer(plugin).fit(Model(), TinyDataModule())
    assert found == [plugin] * 6


def test_a_dictionary_of_lists_needs_one_method() -> None:
    """The sample, derived from DevicePlugin, moves every tensor in each of the three phases."""
    names = run_sample(DICT_OF_LISTS.replace("hlp.CUDAPlugin", "hlp.DevicePlugin"))
    plugin = names["MyCUDAPlugin"]()
    plugin.device = torch.device("meta")
    for process in (plugin.process_training_batch, plugin.process_validation_batch, plugin.process_testing_batch):
        moved = process({"a": [torch.ones(2)], "b": [torch.ones(1), torch.zeros(3)]}, 0)
        assert [[t.device.type for t in tensors] for tensors in moved.values()] == [["meta"], ["meta", "meta"]]


def test_a_dictionary_of_lists_on_a_gpu(cuda: Driver | None) -> None:
    """The sample as printed moves every tensor to the GPU."""
    del cuda
    plugin = run_sample(DICT_OF_LISTS)["MyCUDAPlugin"]()
    moved = plugin.process_training_batch({"a": [torch.ones(2)], "b": [torch.ones(1)]}, None)
    assert all(tensor.is_cuda for tensors in moved.values() for tensor in tensors)


def test_the_cuda_plugin_is_found_by_its_id(cuda: Driver | None) -> None:
    """The sample runs, and the id finds the plug-in."""
    del cuda
    names = run_sample(CUDA_BY_ID)
    assert names["trainer"].plugins["cuda"] is names["plugin"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="shows what happens without a GPU")
def test_the_cuda_plugin_says_what_to_use_without_a_gpu() -> None:
    """Without CUDA the sample ends with an error that names DevicePlugin."""
    with pytest.raises(RuntimeError, match="use DevicePlugin"):
        run_sample(CUDA_BY_ID)
