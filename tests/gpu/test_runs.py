"""Runs on a GPU: on the one that is there, or on a stand-in for it, which shows all but time."""

from __future__ import annotations

import multiprocessing
import signal
import statistics
import time
from typing import TYPE_CHECKING, Any

import pytest
import torch

from helios.core.rng import derive_seed, get_default_seed, make_seed_fn
from helios.plugins import CUDAPlugin, DevicePlugin
from tests.gpu.ranks import stay_on_gpus
from tests.gpu.runs import BATCHES, Gambler, Killed, OnDevice, Samples, make_trainer

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from helios import TrainingState
    from tests.gpu.driver import Driver

ON_EPOCHS: dict[str, Any] = {"accumulation_steps": 2}
ON_ITERATIONS: dict[str, Any] = {"train_unit": "iteration", "total_steps": 7}


@pytest.mark.parametrize("plugin", ["device", "cuda"])
@pytest.mark.parametrize("is_initialized", [False, True])
def test_a_run_starts_whether_cuda_was_used_before_or_not(plugin: str, *, is_initialized: bool, cuda: Driver) -> None:
    """Torch has no generators of GPUs before CUDA is initialised; a run on one starts all the same."""
    if is_initialized:
        torch.zeros(1, device="cuda")
    elif cuda is not None:
        assert cuda.calls == [], "nothing has initialised CUDA yet"
    trainer, model = make_trainer(plugin=plugin, total_steps=1), OnDevice()
    if cuda is not None and not is_initialized:
        assert cuda.calls == [], "nor has the trainer, which may train in other processes"
    assert trainer.fit(model, Samples())
    assert {(where, str(device)) for where, device, _ in model.notes.places} == {
        ("setup", "cuda:0"),
        ("train", "cuda:0"),
    }
    assert trainer.gpu_ids == [0]


def _start_untouched(plugin: str) -> None:
    assert not torch.cuda.is_initialized()  # type: ignore[no-untyped-call]  # torch has not annotated it.
    assert make_trainer(plugin=plugin, total_steps=1).fit(OnDevice(), Samples())


@pytest.mark.gpu
@pytest.mark.parametrize("plugin", ["device", "cuda"])
def test_a_run_starts_in_a_process_that_has_not_used_the_gpu(plugin: str) -> None:
    """The same in a new process, with a real GPU."""
    process = multiprocessing.get_context("spawn").Process(target=_start_untouched, args=(plugin,))
    process.start()
    process.join(120)
    process.kill()
    assert process.exitcode == 0


def test_a_run_has_its_gpu_for_the_current_one(cuda: Driver | None) -> None:
    """In `setup`, steps and tests the GPU of the run is the current one; afterwards that from before is."""
    last = torch.cuda.device_count() - 1
    device = torch.device("cuda", last)
    trainer, model = make_trainer(total_steps=1, valid_frequency=1, gpus=[last]), OnDevice()
    assert trainer.fit(model, Samples())
    assert torch.cuda.current_device() == 0
    assert trainer.test(model, Samples())
    assert torch.cuda.current_device() == 0
    assert model.notes.places == {(where, device, last) for where in ("setup", "train", "valid", "test")}
    with pytest.raises(Killed):
        make_trainer(total_steps=1, gpus=[last]).fit(OnDevice(kill_at=1), Samples())
    assert torch.cuda.current_device() == 0
    if cuda is not None:
        assert cuda.used == {last}, "no other GPU has any memory of this process, pinned memory's context included"
    if last > 0:
        torch.cuda.set_device(last)
        assert make_trainer(total_steps=1, gpus=[0]).fit(OnDevice(), Samples())
        assert torch.cuda.current_device() == last
        torch.cuda.set_device(0)


@pytest.mark.parametrize("options", [ON_EPOCHS, ON_ITERATIONS], ids=["epochs", "iterations"])
@pytest.mark.parametrize("kind", ["host", "device", "drawing"])
def test_a_run_on_a_gpu_is_resumed_to_the_bit(
    options: dict[str, Any], kind: str, cuda: Driver | None, tmp_path: Path
) -> None:
    """Killed after any batch and resumed, a run on a GPU ends with the bits, and the draws, of a whole one."""
    gpus = [torch.cuda.device_count() - 1]
    options = {"enable_deterministic": cuda is None, "valid_frequency": 1, "gpus": gpus, **options}
    whole = OnDevice()
    assert make_trainer(**options).fit(whole, Samples(kind))
    last = max(whole.notes.drawn)
    assert last == (4 * BATCHES if "accumulation_steps" in options else 7)
    for kill_at in range(1, last):
        root = tmp_path / f"{kill_at}"
        killed = OnDevice(kill_at=kill_at)
        with pytest.raises(Killed):
            make_trainer(root, **options).fit(killed, Samples(kind))
        torch.rand(5, device="cuda")  # Whatever the process does in between.
        model = OnDevice()
        assert make_trainer(root, **options).fit(model, Samples(kind))
        expected, got = whole.tell(), model.tell()
        assert all(map(torch.equal, got.pop("tensors"), expected.pop("tensors"))), kill_at
        assert got["rate"] == expected["rate"]
        for life in (killed, model):
            assert life.notes.drawn.items() <= whole.notes.drawn.items(), kill_at
        assert model.notes.places == whole.notes.places


def test_a_run_in_mixed_precision_is_resumed_to_the_bit(cuda: Driver | None, tmp_path: Path) -> None:
    """The scale of the loss, and when it grows next, are those of a run that was not killed."""
    del cuda
    whole = OnDevice(scales=True)
    assert make_trainer(**ON_EPOCHS).fit(whole, Samples())
    for kill_at in (4, 7, 11):
        root = tmp_path / f"{kill_at}"
        with pytest.raises(Killed):
            make_trainer(root, **ON_EPOCHS).fit(OnDevice(scales=True, kill_at=kill_at), Samples())
        model = OnDevice(scales=True)
        assert make_trainer(root, **ON_EPOCHS).fit(model, Samples())
        expected, got = whole.tell(), model.tell()
        assert all(map(torch.equal, got.pop("tensors"), expected.pop("tensors"))), kill_at
        assert got["scale"] == expected["scale"] == 4 * 2.0**16, kill_at


def _be_killed(root: Path, *, on_stand_in: bool) -> None:
    if on_stand_in:
        stay_on_gpus(2)
    make_trainer(root, **ON_EPOCHS).fit(OnDevice(kill_at=8, by_signal=True), Samples())


def test_a_run_that_was_killed_is_resumed_in_another_process(cuda: Driver | None, tmp_path: Path) -> None:
    """After SIGKILL, a process that has never used the GPU before ends with the bits of a whole run."""
    context: Any = multiprocessing.get_context("spawn" if cuda is None else "forkserver")
    process = context.Process(target=_be_killed, args=(tmp_path,), kwargs={"on_stand_in": cuda is not None})
    process.start()
    process.join(120)
    assert process.exitcode == -signal.SIGKILL
    whole, resumed = OnDevice(), OnDevice()
    assert make_trainer(tmp_path, **ON_EPOCHS).fit(resumed, Samples())
    assert make_trainer(**ON_EPOCHS).fit(whole, Samples())
    assert all(map(torch.equal, resumed.tell()["tensors"], whole.tell()["tensors"]))
    assert min(resumed.notes.drawn) == 2 * BATCHES + 1


def test_a_run_is_resumed_on_another_gpu(cuda: Driver | None, tmp_path: Path) -> None:
    """A run may be resumed on another GPU of the machine than the one it began on."""
    del cuda
    last = torch.cuda.device_count() - 1
    whole, killed, resumed = OnDevice(), OnDevice(kill_at=5), OnDevice()
    assert make_trainer(gpus=[0], **ON_EPOCHS).fit(whole, Samples())
    with pytest.raises(Killed):
        make_trainer(tmp_path, gpus=[last], **ON_EPOCHS).fit(killed, Samples())
    assert make_trainer(tmp_path, gpus=[0], **ON_EPOCHS).fit(resumed, Samples())
    assert all(map(torch.equal, resumed.tell()["tensors"], whole.tell()["tensors"]))
    assert {str(device) for _, device, _ in resumed.notes.places} == {"cuda:0"}


def test_what_a_gpu_draws_is_a_function_of_the_step(cuda: Driver | None) -> None:
    """A step's numbers from the GPU are those of its key, whatever else draws there; no two are alike."""
    del cuda
    alone, beside = OnDevice(), OnDevice()
    make_trainer().fit(alone, Samples())
    trainer = make_trainer(valid_frequency=1)
    trainer.register_plugin(Gambler())
    trainer.fit(beside, Samples())
    assert alone.notes.drawn == beside.notes.drawn
    assert len({tuple(drawn) for drawn in alone.notes.drawn.values()}) == len(alone.notes.drawn) == 4 * BATCHES
    make_seed_fn(torch.device("cuda", 0))(derive_seed(get_default_seed(), "step", 0, 0))
    assert torch.rand(4, 2, device="cuda:0").flatten().tolist() == alone.notes.drawn[1]


@pytest.mark.parametrize("kind", ["host", "device"])
def test_nothing_in_a_run_waits_for_the_gpu(kind: str, cuda: Driver | None) -> None:
    """From step to step, fetching and losses included, and in validations the host waits for no GPU."""
    trainer, model = make_trainer(valid_frequency=1, print_frequency=None), OnDevice(is_strict=True)
    assert trainer.fit(model, Samples(kind))
    assert {name: loss.device.type for name, loss in model._val_scores.items()} == dict.fromkeys("012", "cuda")
    if cuda is not None:
        batches = [copy for copy in cuda.copies if copy.target.type == "cuda" and copy.non_blocking]
        assert len(batches) == 4 * 2 * BATCHES
        assert all(copy.pinned for copy in batches)


@pytest.mark.parametrize("plugin", [DevicePlugin, CUDAPlugin])
def test_a_step_that_waits_is_noticed(plugin: type[DevicePlugin], cuda: Driver | None) -> None:
    """The test above can fail: reading a loss, and copying out of memory that is not pinned, raise there."""
    del cuda
    mover = plugin()
    mover.device = torch.device("cuda", 0)
    pinned, batch = torch.ones(2).pin_memory(), torch.ones(2)
    state: Any = None
    torch.cuda.set_sync_debug_mode("error")
    moved = mover.process_training_batch([pinned, {"a": pinned}], state)
    with pytest.raises(RuntimeError, match="called a synchronizing CUDA operation"):
        mover.process_training_batch([batch], state)
    with pytest.raises(RuntimeError, match="called a synchronizing CUDA operation"):
        float(moved[0].sum())
    torch.cuda.set_sync_debug_mode("default")
    assert torch.equal(moved[1]["a"].cpu(), batch)


def test_a_run_on_the_cpu_leaves_gpus_alone(cuda: Driver | None) -> None:
    """With `use_cpu=True`, where there is CUDA, nothing initialises it, and no memory is pinned."""
    trainer, model, data = make_trainer(total_steps=1, valid_frequency=1, use_cpu=True), OnDevice(), Samples()
    assert trainer.fit(model, data)
    assert trainer.test(model, data)
    assert {str(device) for _, device, _ in model.notes.places} == {"cpu"}
    assert trainer.gpu_ids == []
    assert data.train_dataset is not None
    loader = data.train_dataloader()
    assert loader is not None
    assert not loader[0].pin_memory
    if cuda is not None:
        assert cuda.calls == []


def test_workers_fetch_for_a_run_on_a_gpu(cuda: Driver | None) -> None:
    """With workers, which cannot use the GPU, a run on one sees the same batches and draws the same."""
    if cuda is not None:
        pytest.skip("the stand-in's pinned memory does not come through torch's own thread")
    alone, fetched = OnDevice(), OnDevice()
    make_trainer(total_steps=2).fit(alone, Samples())
    make_trainer(total_steps=2).fit(fetched, Samples(workers=2))
    assert alone.notes.drawn == fetched.notes.drawn
    assert all(map(torch.equal, alone.tell()["tensors"], fetched.tell()["tensors"]))


class Averaging(OnDevice):
    """Keeps tensors on the device that are neither a network's nor an optimizer's, and changes them."""

    def setup(self, fast_init: bool = False) -> None:
        super().setup(fast_init)
        self.mean = torch.zeros(2, device=self.device)
        self.by_name: dict[str, torch.Tensor] = {}
        self.replaced = torch.zeros(2, device=self.device)

    def train_step(self, batch: list[torch.Tensor], state: TrainingState) -> None:
        super().train_step(batch, state)
        self.mean.mul_(0.9).add_(batch[0].mean(dim=0))
        self.by_name["last"] = batch[0].sum(dim=0) + self.by_name.get("last", self.mean)
        self.replaced = self.replaced * 0.5 + batch[0].amax(dim=0)


def test_a_changed_tensor_comes_back_on_its_device(cuda: Driver | None, tmp_path: Path) -> None:
    """Tensors that a model keeps besides its networks, and losses, are where they were after a resume."""
    del cuda
    lives = [Averaging(), Averaging(kill_at=5), Averaging()]
    assert make_trainer(**ON_EPOCHS).fit(lives[0], Samples())
    with pytest.raises(Killed):
        make_trainer(tmp_path, **ON_EPOCHS).fit(lives[1], Samples())
    assert make_trainer(tmp_path, **ON_EPOCHS).fit(lives[2], Samples())
    whole, _, resumed = ([model.mean, model.by_name["last"], model.replaced] for model in lives)
    assert all(map(torch.equal, resumed, whole))
    assert {tensor.device for tensor in resumed} == {torch.device("cuda", 0)}
    assert lives[2].tell()["losses"] == lives[0].tell()["losses"] == {"loss": "cuda", "count": "cpu"}


# ------------------------------------------------------------------------------------------- what only a GPU can show


@pytest.mark.gpu
def test_copies_run_while_the_host_continues(measured: Callable[[str], None]) -> None:
    """`process_training_batch` returns while a batch in pinned memory is still being copied."""
    mover = CUDAPlugin()
    mover.device = torch.device("cuda", 0)
    batch, state = torch.ones(64, 1024, 1024).pin_memory(), None  # 256 MB
    mover.process_training_batch([batch], state)  # type: ignore[arg-type]  # it looks at none
    torch.cuda.synchronize()
    copied: Any = torch.cuda.Event()  # type: ignore[no-untyped-call]  # torch has not annotated it.
    began = time.perf_counter()
    torch.cuda._sleep(1_000_000_000)  # type: ignore[no-untyped-call]  # As above. The GPU is busy for a good while.
    (moved,) = mover.process_training_batch([batch], state)  # type: ignore[arg-type]  # as above
    copied.record()
    returned = time.perf_counter() - began
    assert not copied.query(), "the host has waited until the GPU had finished what it was at"
    torch.cuda.synchronize()
    measured(
        f"256 MB out of pinned memory: queued after {returned * 1e3:.2f} ms, there after "
        f"{(time.perf_counter() - began) * 1e3:.0f} ms"
    )
    assert torch.equal(moved.cpu(), batch)


@pytest.mark.gpu
def test_what_a_step_costs_on_the_gpu(measured: Callable[[str], None]) -> None:
    """The time of a step is printed, so that whoever changes something there sees it; nothing is demanded."""
    times = []
    for _ in range(3):
        trainer = make_trainer(train_unit="iteration", total_steps=300)
        began = time.perf_counter()
        trainer.fit(OnDevice(is_strict=True), Samples())
        torch.cuda.synchronize()
        times.append((time.perf_counter() - began) / 300)
    name = torch.cuda.get_device_name()
    measured(
        f"a step of a small network on {name}, start and end of the run included: {min(times) * 1e6:.0f} µs "
        f"(median {statistics.median(times) * 1e6:.0f} µs)"
    )
