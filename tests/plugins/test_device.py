from __future__ import annotations

import collections
import copy
import dataclasses
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.utils.rnn import PackedSequence, pack_sequence
from torch.utils.data import TensorDataset

from helios import DataModule, Model, TrainingState
from helios.data import DataLoaderParams
from helios.errors import DeviceUnavailableError
from helios.plugins import CUDAPlugin, DevicePlugin
from helios.plugins.plugin import move_to_device
from tests.trainer.parts import ListData, make_trainer

if TYPE_CHECKING:
    from collections.abc import Callable

META = torch.device("meta")


class Pair(NamedTuple):
    first: Any
    second: Any


@dataclasses.dataclass
class Sample:
    image: Any
    label: Any = 0
    derived: Any = dataclasses.field(init=False, default=None)


@dataclasses.dataclass(frozen=True)
class Frozen:
    image: Any
    derived: Any = dataclasses.field(init=False, default=None)

    def __post_init__(self) -> None:
        object.__setattr__(self, "derived", [self.image])


@dataclasses.dataclass(frozen=True, slots=True)
class Slotted:
    image: Any
    label: Any = 0


class TaggedList(list[Any]):
    """A list with an attribute."""

    tag: Any = None


class TaggedDict(dict[str, Any]):
    """A dictionary with an attribute."""

    tag: Any = None


class Tokens:
    """A batch class of somebody's, which knows how to move."""

    def __init__(self, ids: torch.Tensor) -> None:
        self.ids = ids

    def to(self, device: torch.device) -> Tokens:
        return Tokens(self.ids.to(device))


def tensor() -> torch.Tensor:
    return torch.arange(3.0)


def with_tag(container: Any) -> Any:
    container.tag = "kept"
    return container


def default_dict() -> Any:
    batch: collections.defaultdict[str, list[int]] = collections.defaultdict(list)
    batch["a"] = tensor()  # type: ignore[assignment]  # a batch of mixed content
    return batch


def tensors_in(batch: Any) -> list[torch.Tensor]:
    """Return all tensors of a batch, wherever they are."""
    if isinstance(batch, torch.Tensor):
        return [batch]
    if isinstance(batch, PackedSequence):
        return [batch.data]
    if isinstance(batch, Tokens):
        return [batch.ids]
    if isinstance(batch, dict):
        batch = list(batch.values())
    elif dataclasses.is_dataclass(batch) and not isinstance(batch, type):
        batch = [getattr(batch, field.name) for field in dataclasses.fields(batch)]
    return [found for part in batch for found in tensors_in(part)] if isinstance(batch, list | tuple) else []


CONTAINERS: dict[str, Callable[[], Any]] = {
    "tensor": tensor,
    "list": lambda: [tensor(), 3, "text"],
    "tuple": lambda: (tensor(), None),
    "dict": lambda: {"a": tensor(), "b": 3, 5: tensor()},
    "nested": lambda: {"a": [(tensor(), {"b": tensor()})], "c": "text"},
    "named tuple": lambda: Pair(tensor(), [tensor()]),
    "what torch returns": lambda: torch.max(torch.rand(3, 2), dim=0),
    "dataclass": lambda: Sample(tensor(), [tensor()]),
    "frozen dataclass": lambda: Frozen(tensor()),
    "slotted dataclass": lambda: Slotted(tensor(), "text"),
    "default dict": default_dict,
    "ordered dict": lambda: collections.OrderedDict([("z", tensor()), ("a", 1)]),
    "list of its own": lambda: with_tag(TaggedList([tensor()])),
    "dict of its own": lambda: with_tag(TaggedDict(a=tensor())),
    "packed sequence": lambda: pack_sequence([tensor(), tensor()[:2]]),
    "list of packed sequences": lambda: [pack_sequence([tensor()])],
    "object with to": lambda: Tokens(tensor()),
    "dict of objects with to": lambda: {"tokens": Tokens(tensor())},
}


@pytest.mark.parametrize("name", CONTAINERS)
def test_every_kind_of_batch_is_moved(name: str) -> None:
    """SPEC B3: all tensors are on the device, the container has its type, and the batch that came in is untouched."""
    batch = CONTAINERS[name]()
    before = tensors_in(batch)
    shallow = copy.copy(batch)
    moved = move_to_device(batch, META)
    assert before
    assert type(moved) is type(batch)
    assert len(tensors_in(moved)) == len(before)
    assert all(part.device == META for part in tensors_in(moved))
    assert all(new is old for new, old in zip(tensors_in(batch), before, strict=True))
    assert all(part.device.type == "cpu" for part in before)
    if isinstance(batch, dict | list):
        assert len(batch) == len(shallow)


def test_what_containers_hold_besides_is_kept() -> None:
    """SPEC B3: factories, attributes, orders of keys and fields that no constructor takes survive the move."""
    moved = move_to_device(CONTAINERS["default dict"](), META)
    assert moved.default_factory is list
    assert move_to_device(CONTAINERS["list of its own"](), META).tag == "kept"
    assert move_to_device(CONTAINERS["dict of its own"](), META).tag == "kept"
    assert list(move_to_device(CONTAINERS["ordered dict"](), META)) == ["z", "a"]
    sample = Sample(1)
    sample.derived = tensor()
    assert move_to_device(sample, META).derived.device == META
    assert move_to_device(Frozen(tensor()), META).derived[0].device == META
    packed = pack_sequence([tensor(), tensor()[:1]])
    assert torch.equal(move_to_device(packed, META).batch_sizes, packed.batch_sizes)


STRANGERS = [None, 3, "text", b"x", 1.5, object(), {1, 2}, torch.float32, torch.Size([1]), Tokens, Sample, range(3)]


@pytest.mark.parametrize("thing", STRANGERS)
def test_everything_else_is_left_as_it_is(thing: Any) -> None:
    """SPEC B3: what is no tensor and holds none is passed on as the very same object, also from inside a container."""
    assert move_to_device(thing, META) is thing
    assert move_to_device([thing], META)[0] is thing


LEAVES = st.integers() | st.text(max_size=3) | st.none() | st.builds(tensor) | st.builds(lambda: Tokens(tensor()))
BATCHES = st.recursive(
    LEAVES,
    lambda parts: (
        st.lists(parts, max_size=3)
        | st.tuples(parts, parts)
        | st.dictionaries(st.text(max_size=3) | st.integers(), parts, max_size=3)
        | st.dictionaries(st.text(max_size=3), parts, max_size=3).map(collections.OrderedDict)
        | st.builds(Pair, parts, parts)
        | st.builds(Sample, parts, parts)
        | st.builds(Frozen, parts)
        | st.lists(parts, max_size=3).map(TaggedList)
    ),
    max_leaves=10,
)


def shape_of(batch: Any) -> Any:
    """Return the types and the plain leaves of a batch, with the identities of its tensors."""
    if isinstance(batch, torch.Tensor | Tokens):
        return type(batch)
    if isinstance(batch, dict):
        return type(batch), [(key, shape_of(value)) for key, value in batch.items()]
    if dataclasses.is_dataclass(batch) and not isinstance(batch, type):
        return type(batch), [shape_of(getattr(batch, field.name)) for field in dataclasses.fields(batch)]
    if isinstance(batch, list | tuple):
        return type(batch), [shape_of(part) for part in batch]
    return batch


@settings(max_examples=80)
@given(BATCHES)
def test_any_nesting_is_moved_and_never_changed(batch: Any) -> None:
    """SPEC B3: to any depth, everything moves, nothing else changes, and the input keeps its tensors and its shape."""
    identities, shape = [id(part) for part in tensors_in(batch)], shape_of(batch)
    moved = move_to_device(batch, META)
    assert shape_of(moved) == shape
    assert all(part.device == META for part in tensors_in(moved))
    assert len(tensors_in(moved)) == len(identities)
    assert [id(part) for part in tensors_in(batch)] == identities
    assert shape_of(batch) == shape


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
    """SPEC B1: training, validation and testing batches arrive on the device; without one, on the trainer's."""
    trainer, model = make_trainer(total_steps=1, valid_frequency=1), Watching()
    DevicePlugin(device).configure_trainer(trainer)
    data = ListData(1, 1, 1)
    trainer.fit(model, data)
    trainer.test(model, data)
    assert model.places == [f"train {place}", f"valid {place}", f"test {place}"]


def test_the_batches_are_claimed() -> None:
    """SPEC B1: the three batch overrides are held, and `should_training_stop` is left to others."""
    claims = vars(DevicePlugin("cpu").unique_overrides)
    assert claims == {
        "training_batch": True,
        "validation_batch": True,
        "testing_batch": True,
        "should_training_stop": False,
    }


def test_the_device_is_the_one_that_the_run_assigns() -> None:
    """SPEC B1: without a device of its own, the plug-in follows `plugin.device`, which the trainer sets."""
    plugin = DevicePlugin()
    assert plugin.target == torch.device("cpu")
    plugin.device = META
    assert plugin.process_training_batch([tensor()], TrainingState())[0].device == META
    assert plugin.process_validation_batch((tensor(),), 0)[0].device == META
    assert plugin.process_testing_batch({"a": tensor()}, 0)["a"].device == META


def test_without_cuda_there_is_no_cuda_plugin(monkeypatch: pytest.MonkeyPatch) -> None:
    """SPEC B2: where there is no CUDA, the constructor raises and names DevicePlugin."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(DeviceUnavailableError, match=r"needs CUDA, which is not available here: use DevicePlugin\(\)"):
        CUDAPlugin()
    assert issubclass(DeviceUnavailableError, RuntimeError)


def test_one_method_moves_a_batch_of_ones_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """SPEC B4: the guide's CUDA sample for dictionaries of lists of tensors runs as printed, in all three phases."""
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
    """SPEC B5: a copy out of pinned memory to a device is `non_blocking`; no other is: it could read stale memory."""
    spy = tensor().as_subclass(Spy)
    spy.copies, spy.pinned = [], pinned
    move_to_device({"a": [spy]}, torch.device(device))
    assert spy.copies == [(torch.device(device), non_blocking)]


# ---------------------------------------------------------------------------------------------------------- with a GPU


class Samples(DataModule):
    def __init__(self, *, pin: bool) -> None:
        super().__init__()
        self.pin = pin

    def setup(self) -> None:
        data = TensorDataset(torch.arange(32.0).reshape(16, 2))
        self._train_dataset = self._create_dataset(data, DataLoaderParams(batch_size=4, pin_memory=self.pin))
        self._valid_dataset = self._test_dataset = self._train_dataset


@pytest.mark.gpu
@pytest.mark.parametrize("index", [0, -1])
def test_batches_are_on_the_gpu_of_the_run(index: int) -> None:
    """SPEC B1: with a GPU, all three phases get their batches on the one that the trainer was given."""
    gpu = index % torch.cuda.device_count()
    trainer, model = make_trainer(total_steps=1, valid_frequency=1, use_cpu=None, gpus=[gpu]), Watching()
    CUDAPlugin().configure_trainer(trainer)
    trainer.fit(model, Samples(pin=True))
    trainer.test(model, Samples(pin=True))
    assert set(model.places) == {f"{phase} cuda:{gpu}" for phase in ("train", "valid", "test")}
    assert trainer.gpu_ids == [gpu]


@pytest.mark.gpu
def test_every_kind_of_batch_is_moved_to_the_gpu() -> None:
    """SPEC B3: on a real GPU all containers arrive with the same content."""
    device = torch.device("cuda", 0)
    for make in CONTAINERS.values():
        batch = make()
        moved = move_to_device(batch, device)
        assert all(map(torch.equal, [part.cpu() for part in tensors_in(moved)], tensors_in(batch)))
        assert all(part.device == device for part in tensors_in(moved))


class OnGPU(Watching):
    """A step on the GPU that itself never waits for it."""

    def setup(self, fast_init: bool = False) -> None:
        del fast_init
        self.net = torch.nn.Linear(2, 1).to(self.device)
        self.optimizer = torch.optim.SGD(self.net.parameters(), lr=0.1)

    def train_step(self, batch: Any, state: TrainingState) -> None:
        del state
        if not self.places:
            torch.cuda.set_sync_debug_mode("error")  # From the first step on, whatever waits for the GPU raises.
        self.note("train", batch)
        loss = self.net(batch[0]).sum()
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        self._loss_items["loss"] = loss


@pytest.mark.gpu
def test_nothing_in_the_step_path_waits_for_the_gpu() -> None:
    """SPEC B5: from one step to the next, hooks and running losses included, nothing synchronises the device."""
    trainer, model = make_trainer(total_steps=2, use_cpu=None, gpus=[0], print_frequency=1), OnGPU()
    CUDAPlugin().configure_trainer(trainer)
    try:
        trainer.fit(model, Samples(pin=True))
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert len(model.places) == 8
    assert model._running_losses["loss"].device.type == "cuda"
