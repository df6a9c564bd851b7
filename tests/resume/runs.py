"""Small runs with everything in them that a resume could lose, and processes that are killed while they train.

The processes are forked from a server that has imported this module and run nothing: that takes tens of milliseconds,
where a new interpreter takes seconds.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import logging
import math
import multiprocessing
import os
import random
import signal
import time
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch._dynamo  # Optimizers import it, in a second or two, when they step first: once here, for all processes.
from torch import nn
from torch.optim.swa_utils import AveragedModel
from torch.utils.data import Dataset, IterableDataset, get_worker_info

from helios import DataModule, Model, Plugin, Trainer, TrainingState
from helios.checkpoint import archive, files
from helios.checkpoint.archive import load_archive, save_archive
from helios.checkpoint.state.parts import unwrap_module
from helios.core.distributed import get_dist_info
from helios.core.rng import get_default_numpy_rng
from tests.resume.mutations import apply_mutation

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

torch.set_num_threads(1)


@dataclasses.dataclass(frozen=True)
class RunSpec:
    """What a run is like."""

    unit: str = "epoch"
    total: float = 3
    shuffle: bool = True
    accumulation: int = 1
    valid_every: int | None = None
    workers: int = 0
    save_every: int = 1
    samples: int = 11
    batch_size: int = 3
    early_stop: int | None = None
    extra_plugin: bool = False
    sleep: float = 0.0
    stream: bool = False
    persistent: bool = False
    ranks: int = 1
    no_sync: bool = False  # Whether gradients are exchanged at optimizer steps only.
    by_hand: int = 0  # Batches that the model accumulates by itself, whatever the trainer knows of it; 0 for none.
    zero_first: bool = False  # Whether gradients are set to zero before those of the next step, and not after a step.
    root: str = "checkpoints"

    def __str__(self) -> str:
        """Return what differs from the defaults, as a test's id."""
        parts = [
            f"{field.name}={getattr(self, field.name)}"
            for field in dataclasses.fields(self)
            if getattr(self, field.name) != field.default
        ]
        return ",".join(parts) or "plain"


class Killer:
    """Counts what happens in a process, and sends it, or others, a signal at the count it was given."""

    def __init__(self, at: int | None, number: int = signal.SIGKILL) -> None:
        self.at = at
        self.number = number
        self.victims: Callable[[], list[int]] = lambda: [os.getpid()]
        self.count = 0

    def tick(self) -> None:
        self.count += 1
        if self.count == self.at:
            for victim in self.victims():
                with contextlib.suppress(ProcessLookupError):  # One may be gone already, and drag others along.
                    os.kill(victim, self.number)


KILLER = Killer(None)


def draw() -> list[float]:
    """Draw from every generator that user code draws from."""
    return [
        float(torch.rand(())),
        float(np.random.standard_normal()),
        float(get_default_numpy_rng().generator.random()),
        random.gauss(0, 1),
    ]


class Noisy(Dataset[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]):
    """Samples with random augmentation, that say which they are."""

    def __init__(self, size: int) -> None:
        self._size = size

    def __len__(self) -> int:
        return self._size

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        noise = torch.tensor(draw(), dtype=torch.float32)
        return noise + index / self._size, torch.tensor([math.sin(index)]), torch.tensor(index)


class Stream(IterableDataset[Any]):
    """An endless stream that divides itself into epochs of uneven length, and continues at its saved position.

    Every rank, and every worker of it, has a part of its own; some of them are longer than others.
    """

    def __init__(self, size: int) -> None:
        self._size = size
        self._position = 0
        self._rounds = 0
        self._total = 0

    def __iter__(self) -> Iterator[Any]:
        info, ranks = get_worker_info(), get_dist_info()
        worker, workers = (0, 1) if info is None else (info.id, info.num_workers)
        part, parts = worker * ranks.world_size + ranks.rank, workers * ranks.world_size
        mine = list(range(part, self._size + self._rounds, parts))
        while self._position < len(mine):
            index = mine[self._position]
            self._position += 1
            self._total += index  # Something that no other part of the stream has.
            noise = torch.tensor(draw(), dtype=torch.float32)
            yield noise + self._total / 100, torch.tensor([math.sin(index + self._rounds)]), torch.tensor(index)
        self._position = 0
        self._rounds += 1

    def state_dict(self) -> dict[str, Any]:
        return {"position": self._position, "rounds": self._rounds, "total": self._total}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._position, self._rounds, self._total = (state_dict[key] for key in ("position", "rounds", "total"))


class Data(DataModule):
    def __init__(self, spec: RunSpec) -> None:
        super().__init__()
        self._spec = spec

    def setup(self) -> None:
        spec = self._spec
        params = {"batch_size": spec.batch_size, "num_workers": spec.workers}
        if spec.stream:
            self._train_dataset = self._create_dataset(
                Stream(spec.samples), {**params, "persistent_workers": spec.persistent}
            )
        else:
            self._train_dataset = self._create_dataset(Noisy(spec.samples), {**params, "shuffle": spec.shuffle})
        self._valid_dataset = self._create_dataset(Noisy(5), {"batch_size": 2, "shuffle": spec.shuffle})


class Subject(Model):
    """A model that uses a bit of everything, and draws in every hook."""

    def __init__(self, spec: RunSpec) -> None:
        super().__init__("subject")
        self._spec = spec
        self.trace: list[Any] = []
        self.best = math.inf
        self.drawn = 0.0

    def setup(self, fast_init: bool = False) -> None:
        del fast_init
        net = self._make_network()
        self._net = self.wrap(net)
        self._ema = AveragedModel(net)
        self._optimizer = torch.optim.Adam(self._net.parameters(), lr=1e-2)
        self._scheduler = torch.optim.lr_scheduler.ExponentialLR(self._optimizer, 0.8)
        self._generator = torch.Generator().manual_seed(1 + self.rank)
        self._has_stepped = False

    def _make_network(self) -> nn.Module:
        return nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Dropout(0.4), nn.ReLU(), nn.Linear(6, 1))

    def _note(self, *entry: Any) -> None:
        self.trace.append(entry)
        self.drawn += sum(draw())
        KILLER.tick()

    def on_training_epoch_start(self, current_epoch: int) -> None:
        self._note("epoch start", current_epoch)

    def on_training_batch_start(self, state: TrainingState) -> None:
        self._note("batch start", state.global_iteration)

    def train_step(self, batch: Any, state: TrainingState) -> None:
        if self._spec.sleep:
            time.sleep(self._spec.sleep)
        inputs, targets, indices = batch
        self.trace.append(("batch", indices.tolist(), float(inputs.double().sum())))
        inputs = inputs + 0.1 * torch.randn(inputs.shape, generator=self._generator) + sum(draw())
        if self._spec.zero_first and self._has_stepped:
            self._optimizer.zero_grad()
        with self._exchange(state):
            # Two samples at least, or batch normalization has nothing to normalize by.
            loss = nn.functional.mse_loss(self._net(torch.cat([inputs, inputs + 1])), torch.cat([targets, targets]))
            self._loss_items["loss"] = loss
            loss.backward()  # type: ignore[no-untyped-call]  # torch's own method
        KILLER.tick()
        self._has_stepped = self._is_step(state)
        if self._has_stepped:
            self._optimizer.step()
            if not self._spec.zero_first:
                self._optimizer.zero_grad()
            self._ema.update_parameters(unwrap_module(self._net))

    def _is_step(self, state: TrainingState) -> bool:
        if self._spec.by_hand:
            return state.global_iteration % self._spec.by_hand == 0
        return self.is_optimizer_step(state)

    def _exchange(self, state: TrainingState) -> contextlib.AbstractContextManager[None]:
        """Return a context in which gradients are reduced, or stay unreduced until an optimizer step."""
        if not self._spec.no_sync or self.is_optimizer_step(state):
            return contextlib.nullcontext()
        unreduced: contextlib.AbstractContextManager[None] = self._net.no_sync()  # type: ignore[operator]  # of a wrapped network
        return unreduced

    def on_training_batch_end(self, state: TrainingState, should_log: bool = False) -> None:
        counts = dataclasses.asdict(state)
        del counts["average_iter_time"]
        self._note("batch end", counts, should_log, {k: float(v) for k, v in self._running_losses.items()})

    def on_training_epoch_end(self, current_epoch: int) -> None:
        self._note("epoch end", current_epoch)
        self._scheduler.step()
        KILLER.tick()

    def on_training_end(self) -> None:
        self._note("end")

    def on_validation_start(self, validation_cycle: int) -> None:
        self._note("validation start", validation_cycle)

    def valid_step(self, batch: Any, step: int) -> None:
        inputs, _, indices = batch
        self._note("validation", step, indices.tolist())
        self._val_scores["sum"] = self._val_scores.get("sum", 0.0) + float(self._net(inputs).double().sum()) + draw()[0]

    def on_validation_end(self, validation_cycle: int) -> None:
        self.metrics["score"] = self._val_scores["sum"]
        self._note("validation end", validation_cycle)

    def have_metrics_improved(self) -> bool:
        improved = bool(self.metrics["score"] < self.best)
        self.best = min(self.best, self.metrics["score"])
        return improved


class Recorder(Plugin):
    """A plug-in with a state, that changes batches and draws."""

    def __init__(self) -> None:
        super().__init__("recorder")
        self.unique_overrides.training_batch = True
        self.seen: list[Any] = []

    def setup(self) -> None:
        pass

    def process_training_batch(self, batch: Any, state: TrainingState) -> Any:
        self.seen.append(("process", state.global_iteration, draw()))
        inputs, targets, indices = batch
        return inputs + draw()[0], targets, indices

    def on_training_epoch_end(self, current_epoch: int) -> None:
        self.seen.append(("epoch end", current_epoch, draw()))

    def on_validation_end(self, validation_cycle: int) -> None:
        self.seen.append(("validation end", validation_cycle, draw()))

    def state_dict(self) -> dict[str, Any]:
        return {"seen": list(self.seen)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.seen = list(state_dict["seen"])


class Gambler(Plugin):
    """Draws in every hook, a number of times that changes, and does nothing with it."""

    def __init__(self) -> None:
        super().__init__("gambler")
        self.unique_overrides.validation_batch = True
        self.unique_overrides.testing_batch = True
        self.unique_overrides.should_training_stop = True
        self._calls = itertools.count()

    def _gamble(self) -> None:
        for _ in range(next(self._calls) % 3 + 1):
            draw()

    def setup(self) -> None:
        self._gamble()

    def on_training_start(self) -> None:
        self._gamble()

    def on_training_epoch_start(self, current_epoch: int) -> None:
        del current_epoch
        self._gamble()

    def on_training_batch_start(self, state: TrainingState) -> None:
        del state
        self._gamble()

    def on_training_batch_end(self, state: TrainingState) -> None:
        del state
        self._gamble()

    def on_training_epoch_end(self, current_epoch: int) -> None:
        del current_epoch
        self._gamble()

    def on_training_end(self) -> None:
        self._gamble()

    def on_validation_start(self, validation_cycle: int) -> None:
        del validation_cycle
        self._gamble()

    def process_validation_batch(self, batch: Any, step: int) -> Any:
        del step
        self._gamble()
        return batch

    def on_validation_end(self, validation_cycle: int) -> None:
        del validation_cycle
        self._gamble()

    def on_testing_start(self) -> None:
        self._gamble()

    def process_testing_batch(self, batch: Any, step: int) -> Any:
        del step
        self._gamble()
        return batch

    def on_testing_end(self) -> None:
        self._gamble()

    def should_training_stop(self) -> bool:
        self._gamble()
        return False


def make_trainer(spec: RunSpec, folder: Path) -> Trainer:
    trainer = Trainer(
        train_unit=spec.unit,
        total_steps=spec.total,
        valid_frequency=spec.valid_every,
        chkpt_frequency=spec.save_every,
        print_frequency=2,
        accumulation_steps=spec.accumulation,
        early_stop_cycles=spec.early_stop,
        use_cpu=True,
        num_processes=None if spec.ranks == 1 else spec.ranks,
        chkpt_root=folder / spec.root,
        print_banner=False,
    )
    # The gambler comes first: what it draws must not reach the other plug-in either.
    if spec.extra_plugin:
        Gambler().configure_trainer(trainer)
    Recorder().configure_trainer(trainer)
    return trainer


def run(spec: RunSpec, folder: Path) -> dict[str, Any]:
    """Train in this process, and return all there is to compare."""
    trainer, model = make_trainer(spec, folder), Subject(spec)
    finished = trainer.fit(model, Data(spec))
    return {"finished": finished, **outcome(model)}


def outcome(model: Subject) -> dict[str, Any]:
    """Return all there is to compare of a model that was trained in this process.

    `on_training_start` runs once in every process, by design, and is left out.
    """
    recorder = model.trainer.plugins[Recorder]
    gradients = {name: parameter.grad for name, parameter in unwrap_module(model._net).named_parameters()}
    return {
        "state": model.state_dict(),
        "gradients": {name: gradient for name, gradient in gradients.items() if gradient is not None},
        "trace": model.trace,
        "metrics": dict(model.metrics),
        "losses": dict(model._running_losses),
        "seen": recorder.seen,
    }


def count_writing() -> None:
    """Tick while a checkpoint is written, too: at every piece of it, and around making it durable and naming it."""
    write, fsync, replace = archive._Sealer.write, os.fsync, Path.replace

    pieces = itertools.count()

    def ticking_write(self: Any, data: Any) -> int:
        if next(pieces) % 64 == 0:  # A small checkpoint is written in hundreds of pieces.
            KILLER.tick()
        return write(self, data)

    def ticking_fsync(descriptor: int) -> None:
        KILLER.tick()
        fsync(descriptor)

    def ticking_replace(self: Path, target: Any) -> Path:
        KILLER.tick()
        moved = replace(self, target)
        KILLER.tick()
        return moved

    archive._Sealer.write = ticking_write  # type: ignore[method-assign]  # counted in this process only
    files.os.fsync = ticking_fsync  # type: ignore[attr-defined]  # counted in this process only
    Path.replace = ticking_replace  # type: ignore[method-assign,assignment]  # counted in this process only


def prepare_process() -> None:
    """Get a process ready that was forked from the server, and will fork the workers of a data loader."""
    logging.getLogger("helios").setLevel(logging.ERROR)
    warnings.simplefilter("error")
    warnings.filterwarnings("ignore", message="This DataLoader will create")  # More workers than cores, on purpose.
    multiprocessing.set_start_method("fork", force=True)  # It is the quickest.
    multiprocessing.current_process()._config.pop("tempdir", None)  # type: ignore[attr-defined]  # not the parent's


def child(spec: RunSpec, folder: str, kill_at: int | None, mutation: str | None, number: int) -> None:
    """Train in this process, and leave the result in a file."""
    prepare_process()
    KILLER.at, KILLER.number = kill_at, number
    count_writing()
    if mutation is not None:
        apply_mutation(mutation)
    result = run(spec, Path(folder))
    KILLER.at = None
    save_archive(Path(folder) / "result", {**result, "ticks": KILLER.count})


_context = multiprocessing.get_context("forkserver")


def start(
    spec: RunSpec,
    folder: Path,
    *,
    kill_at: int | None = None,
    mutation: str | None = None,
    number: int = signal.SIGKILL,
) -> Any:
    """Start training in a process of its own, that sends itself a signal at a count."""
    process = _context.Process(target=child, args=(spec, str(folder), kill_at, mutation, number), daemon=False)
    process.start()
    return process


def life(spec: RunSpec, folder: Path, *, kill_at: int | None = None, mutation: str | None = None) -> bool:
    """Train in a process of its own until it is done or killed.

    Returns:
        Whether it was killed.
    """
    process = start(spec, folder, kill_at=kill_at, mutation=mutation)
    process.join(120)
    if process.exitcode is None:
        process.kill()
        raise AssertionError(f"the run hangs: {spec}, killed at {kill_at}")
    if process.exitcode not in (0, -signal.SIGKILL):
        raise AssertionError(f"the run failed with {process.exitcode}: {spec}, killed at {kill_at}")
    return bool(process.exitcode)


def asked_to_leave_at(spec: RunSpec, folder: Path, count: int) -> tuple[bool, dict[str, Any]]:
    """Run until a SIGTERM at this count, and then once more.

    Returns:
        Whether the first process left before training was complete, and the result in the end.
    """
    process = start(spec, folder, kill_at=count, number=signal.SIGTERM)
    process.join(120)
    assert process.exitcode == 0
    left = not load_result(folder)["finished"]
    if left:
        assert not life(spec, folder)
    return left, load_result(folder)


def load_result(folder: Path) -> dict[str, Any]:
    return load_archive(folder / "result")


def undisturbed(spec: RunSpec, folder: Path) -> dict[str, Any]:
    """Return the result of the run that nobody kills."""
    assert not life(spec, folder)
    return load_result(folder)


def killed_at(spec: RunSpec, folder: Path, counts: list[int], mutation: str | None = None) -> dict[str, Any]:
    """Return the result of a run whose processes are killed at these counts, and which is then left alone."""
    for count in counts:
        if not life(spec, folder, kill_at=count, mutation=mutation):
            break
    else:
        assert not life(spec, folder, mutation=mutation)
    return load_result(folder)


def killed_at_random(
    spec: RunSpec, folder: Path, *, kills: int, longest: float, chance: random.Random
) -> dict[str, Any]:
    """Return the result of a run that is killed from outside, at random instants, and then left alone."""
    for _ in range(kills):
        process = start(spec, folder)
        process.join(chance.uniform(0.0, longest))
        with contextlib.suppress(ProcessLookupError):
            os.kill(process.pid, signal.SIGKILL)
        process.join()
        if process.exitcode == 0:
            break
        assert process.exitcode == -signal.SIGKILL
    else:
        assert not life(spec, folder)
    return load_result(folder)


def differences(left: Any, right: Any, path: str = "result") -> list[str]:  # noqa: PLR0911 - one return a kind.
    """Return the paths at which two results are not the same to the bit."""
    if type(left) is not type(right):
        return [f"{path}: {type(left).__name__} and {type(right).__name__}"]
    if isinstance(left, torch.Tensor):
        same = left.dtype == right.dtype and left.shape == right.shape and _bits(left) == _bits(right)
        return [] if same else [path]
    if isinstance(left, dict):
        if list(left) != list(right):
            return [f"{path}: keys {list(left)} and {list(right)}"]
        return [entry for key in left for entry in differences(left[key], right[key], f"{path}[{key!r}]")]
    if isinstance(left, list | tuple):
        if len(left) != len(right):
            return [f"{path}: {len(left)} and {len(right)} entries"]
        return [
            entry
            for i, pair in enumerate(zip(left, right, strict=True))
            for entry in differences(*pair, f"{path}[{i}]")
        ]
    return [] if repr(left) == repr(right) else [f"{path}: {left!r} and {right!r}"]


def _bits(tensor: torch.Tensor) -> bytes:
    return tensor.detach().contiguous().numpy().tobytes()


def assert_same(left: dict[str, Any], right: dict[str, Any], *, ignore: tuple[str, ...] = ("ticks",)) -> None:
    """Check that two results are the same to the bit."""
    found = differences(
        {key: value for key, value in left.items() if key not in ignore},
        {key: value for key, value in right.items() if key not in ignore},
    )
    assert not found, found[:10]
