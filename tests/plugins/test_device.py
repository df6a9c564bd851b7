"""The plug-ins that move batches, in runs."""

from __future__ import annotations

import collections
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch.utils.data import TensorDataset

from helios import DataModule, Model, TrainingState
from helios.data import DataLoaderParams
from helios.errors import DeviceUnavailableError
from helios.plugins import CUDAPlugin, DevicePlugin
from helios.plugins.moving import move_to_device
from tests.plugins.batches import CONTAINERS, META, tensor, tensors_in
from tests.trainer.parts import ListData, make_trainer

if TYPE_CHECKING:
    from tests.gpu.driver import Driver


class Watching(Model):
    """Notes where its batches are."""

    def __init__(self) -> None:
        super().__init__("watching")
        self.places: list[str] = []

    def setup(self, fast_init: bool = False) -> None:
        del fast_init

    def train_step(self, batch: Any, state: TrainingState) -> None:
        del state
        self.note("train", batch)

    def valid_step(self, batch: Any, step: int) -> None:
        del step
        self.note("valid", batch)

    def test_step(self, batch: Any, step: int) -> None:
        del step
        self.note("test", batch)

    def note(self, phase: str, batch: Any) -> None:
        self.places.append(f"{phase} {tensors_in(batch)[0].device}")


@pytest.mark.parametrize(("device", "place"), [("meta", "meta"), ("cpu", "cpu"), (None, "cpu")])
def test_every_phase_gets_its_batches_on_the_device(device: str | None, place: str) -> None:
    """Training, validation and testing batches arrive on the device; without one, on the trainer's."""
    trainer, model = make_trainer(total_steps=1, valid_frequency=1), Watching()
    DevicePlugin(device).configure_trainer(trainer)
    data = ListData(1, 1, 1)
    trainer.fit(model, data)
    trainer.test(model, data)
    assert model.places == [f"train {place}", f"valid {place}", f"test {place}"]


def test_the_batches_are_claimed() -> None:
    """The three batch overrides are held, and `should_training_stop` is left to others."""
    claims = vars(DevicePlugin("cpu").unique_overrides)
    assert claims == {
        "training_batch": True,
        "validation_batch": True,
        "testing_batch": True,
        "should_training_stop": False,
    }


def test_the_device_is_the_one_that_the_run_assigns() -> None:
    """Without a device of its own, the plug-in follows `plugin.device`, which the trainer sets."""
    plugin = DevicePlugin()
    assert plugin.target == torch.device("cpu")
    plugin.device = META
    assert plugin.process_training_batch([tensor()], TrainingState())[0].device == META
    assert plugin.process_validation_batch((tensor(),), 0)[0].device == META
    assert plugin.process_testing_batch({"a": tensor()}, 0)["a"].device == META


def test_without_cuda_there_is_no_cuda_plugin(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where there is no CUDA, the constructor raises and names DevicePlugin."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(DeviceUnavailableError, match=r"needs CUDA, which is not available here: use DevicePlugin\(\)"):
        CUDAPlugin()
    assert issubclass(DeviceUnavailableError, RuntimeError)


def test_one_method_moves_a_batch_of_ones_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """The guide's CUDA sample for dictionaries of lists of tensors runs as printed, in all three phases."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)

    class MyCUDAPlugin(CUDAPlugin):
        # Only need to override this function. Everything else will work automatically.
        def _move_collection_to_device(self, batch: dict[str, list[torch.Tensor]]) -> dict[str, list[torch.Tensor]]:
            for key, value in batch.items():
                for i in range(len(value)):
                    value[i] = value[i].to(self.device)
                batch[key] = value

            return batch

    plugin = MyCUDAPlugin()
    assert plugin.plug_id == "cuda"
    assert plugin.device == torch.device("cuda", 0)
    plugin.device = META  # What a run does, where there is no GPU to test with.
    processes: list[Any] = [
        plugin.process_training_batch,
        plugin.process_validation_batch,
        plugin.process_testing_batch,
    ]
    for process in processes:
        batch = process({"a": [tensor(), tensor()]}, 0)
        assert [part.device for part in batch["a"]] == [META, META]


class Spy(torch.Tensor):
    """Says that it is pinned, and notes how it is copied."""

    copies: list[tuple[torch.device, bool]]
    pinned: bool

    def is_pinned(self, device: Any = None) -> bool:
        del device
        return self.pinned

    def to(self, device: Any, non_blocking: bool = False) -> Any:  # type: ignore[override]  # as it is called here
        self.copies.append((device, non_blocking))
        return self


@pytest.mark.parametrize(
    ("pinned", "device", "non_blocking"),
    [(True, "cuda", True), (False, "cuda", False), (True, "cpu", False), (True, "xpu", True)],
)
def test_only_pinned_copies_do_not_block(device: str, *, pinned: bool, non_blocking: bool) -> None:
    """A copy out of pinned memory to a device is `non_blocking`; no other is: it could read stale memory."""
    spy = tensor().as_subclass(Spy)
    spy.copies, spy.pinned = [], pinned
    move_to_device({"a": [spy]}, torch.device(device))
    assert spy.copies == [(torch.device(device), non_blocking)]


class Encoding(collections.UserDict[str, Any]):
    """A mapping that moves itself, as tokenizers of transformers return it."""

    def to(self, device: Any, *, non_blocking: bool = False) -> Encoding:
        return Encoding({name: value.to(device, non_blocking=non_blocking) for name, value in self.items()})


@pytest.mark.parametrize("pinned", [[True, True], [True, False]])
def test_a_mapping_that_moves_itself_does_not_block(pinned: list[bool]) -> None:
    """A mapping of pinned tensors that has a `to` of its own is asked to be moved without blocking."""
    spies = {name: tensor().as_subclass(Spy) for name in "ab"}
    for spy, is_pinned in zip(spies.values(), pinned, strict=True):
        spy.copies, spy.pinned = [], is_pinned
    assert isinstance(move_to_device([Encoding(spies)], torch.device("cuda"))[0], Encoding)
    assert [spy.copies for spy in spies.values()] == [[(torch.device("cuda"), all(pinned))]] * 2


# ------------------------------------------------------------------------------------- with a GPU, or its stand-in


class Samples(DataModule):
    def __init__(self, *, pin: bool) -> None:
        super().__init__()
        self.pin = pin

    def setup(self) -> None:
        data = TensorDataset(torch.arange(32.0).reshape(16, 2))
        self._train_dataset = self._create_dataset(data, DataLoaderParams(batch_size=4, pin_memory=self.pin))
        self._valid_dataset = self._test_dataset = self._train_dataset


@pytest.mark.parametrize("index", [0, -1])
def test_batches_are_on_the_gpu_of_the_run(index: int, cuda: Driver | None) -> None:
    """With a GPU, all three phases get their batches on the one that the trainer was given."""
    del cuda
    gpu = index % torch.cuda.device_count()
    trainer, model = make_trainer(total_steps=1, valid_frequency=1, use_cpu=None, gpus=[gpu]), Watching()
    CUDAPlugin().configure_trainer(trainer)
    trainer.fit(model, Samples(pin=True))
    trainer.test(model, Samples(pin=True))
    assert set(model.places) == {f"{phase} cuda:{gpu}" for phase in ("train", "valid", "test")}
    assert trainer.gpu_ids == [gpu]


def test_every_kind_of_batch_is_moved_to_the_gpu(cuda: Driver | None) -> None:
    """On a GPU all containers arrive with the same content."""
    del cuda
    device = torch.device("cuda", 0)
    for make in CONTAINERS.values():
        batch = make()
        moved = move_to_device(batch, device)
        assert all(map(torch.equal, [part.cpu() for part in tensors_in(moved)], tensors_in(batch)))
        assert all(part.device == device for part in tensors_in(moved))
