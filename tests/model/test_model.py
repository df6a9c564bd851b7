from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

from helios import Model, TrainingState
from helios.checkpoint.archive import load_archive
from helios.errors import CheckpointMismatchError, DuplicateNameError, NotRunningError, UnknownNameError
from helios.model import MODEL_REGISTRY, create_model
from helios.parallel.gradients import collect_gradients, restore_gradients
from helios.testing import TinyModel, are_equal
from helios.trainer import find_last_checkpoint
from tests.trainer.parts import CountingModel, ListData, make_trainer

if TYPE_CHECKING:
    from pathlib import Path


class Wrapped(nn.Module):
    """As torch.compile wraps a network, without compiling it."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self._orig_mod = module

    def forward(self, x: torch.Tensor) -> Any:
        return self._orig_mod(x)


class Everything(Model):
    """Has an attribute of each stateful kind, and plain ones that change and do not change."""

    def __init__(self, *, wrap: bool = False) -> None:
        self.made_before = [1, 2]
        super().__init__("everything")
        self.wraps = wrap
        self.path = "where it was made"

    def setup(self, fast_init: bool = False) -> None:
        network: nn.Module = nn.Linear(1, 1)
        self.net = Wrapped(nn.DataParallel(network)) if self.wraps else network
        self.heads = [nn.Linear(1, 1), nn.Linear(1, 1)]
        if fast_init:
            return
        self.optimizer = torch.optim.Adam(network.parameters(), lr=0.1)
        self.scheduler = torch.optim.lr_scheduler.ExponentialLR(self.optimizer, 0.5)
        self.scaler = torch.amp.GradScaler("cpu")
        self.average = AveragedModel(network)
        self.generators = {"torch": torch.Generator(), "numpy": np.random.default_rng(0), "python": random.Random(0)}
        self.counter = 0
        self.best: float | None = None
        self.history: list[float] = []
        self.fixed = {"classes": ["a", "b"]}
        self.table = np.arange(1000.0)

    def train_step(self, batch: torch.Tensor, state: TrainingState) -> None:
        generators: Any = self.generators
        noise = (
            torch.rand(1, generator=generators["torch"]) + generators["numpy"].random() + generators["python"].gauss()
        )
        loss = self.net(batch + noise).sum()
        self.optimizer.zero_grad()
        self.scaler.scale(loss).backward()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.average.update_parameters(self.net._orig_mod.module if self.wraps else self.net)  # type: ignore[arg-type,union-attr]
        self.counter += 1
        self.history.append(float(loss.detach()))
        self.best = min(self.history)
        self.late = {"iteration": state.global_iteration}

    def test_step(self, batch: torch.Tensor, step: int) -> None:
        """Learn nothing."""

    def on_training_epoch_end(self, current_epoch: int) -> None:
        del current_epoch
        self.scheduler.step()


def train(root: Path, epochs: int, *, wrap: bool = False) -> Everything:
    model = Everything(wrap=wrap)
    assert make_trainer(root, total_steps=epochs).fit(model, ListData())
    return model


def saved_state(root: Path) -> dict[str, Any]:
    path = find_last_checkpoint(root / "everything")
    assert path is not None
    state: dict[str, Any] = load_archive(path)["model"]["state"]
    return state


@pytest.mark.parametrize("wrap", [False, True])
def test_every_stateful_attribute_is_saved(tmp_path: Path, *, wrap: bool) -> None:
    """Network, optimizer, scheduler, scaler, average, generators and changed attributes resume exactly."""
    whole = train(tmp_path / "whole", 4, wrap=wrap)
    train(tmp_path / "parts", 1, wrap=wrap)
    train(tmp_path / "parts", 2, wrap=wrap)
    resumed = train(tmp_path / "parts", 4, wrap=wrap)
    assert are_equal(resumed.state_dict(), whole.state_dict())
    assert (resumed.counter, len(resumed.history), resumed.best) == (12, 12, whole.best)
    assert resumed.late == {"iteration": 12}


def test_what_is_saved_is_what_changed(tmp_path: Path) -> None:
    """Attributes that nobody changed since `setup` are not in the checkpoint, large arrays neither."""
    train(tmp_path, 1)
    state = saved_state(tmp_path)
    assert set(state["plain attributes"]) == {"counter", "best", "history", "late", "generators"}
    stateful = {"net", "heads[0]", "heads[1]", "optimizer", "scheduler", "scaler", "average"}
    assert set(state) == stateful | {"plain attributes"}


def test_a_wrapped_network_is_saved_unwrapped(tmp_path: Path) -> None:
    """The checkpoint of a wrapped network loads into a bare one, and the other way round."""
    wrapped = train(tmp_path, 1, wrap=True)
    assert list(saved_state(tmp_path)["net"]) == ["weight", "bias"]
    assert list(wrapped.trained_state_dict()) == ["net", "average", "heads[0]", "heads[1]"]
    bare = train(tmp_path, 2)
    assert are_equal(dict(train(tmp_path, 2, wrap=True).trained_state_dict()), dict(bare.trained_state_dict()))


def test_testing_restores_networks_and_plain_attributes(tmp_path: Path) -> None:
    """With `fast_init`, what trains the networks is left out; thresholds and the like come back with them."""
    trained, model = train(tmp_path, 1), Everything()
    assert make_trainer(tmp_path).test(model, ListData())
    assert are_equal(dict(model.net.state_dict()), dict(trained.net.state_dict()))
    assert torch.equal(model.heads[1].weight, trained.heads[1].weight)
    assert not {"optimizer", "scheduler", "scaler"} & set(vars(model))
    assert (model.counter, model.late, model.best) == (3, {"iteration": 3}, trained.best)


class Custom(CountingModel):
    """Looks after its state itself."""

    def state_dict(self) -> dict[str, Any]:
        return {"mine": self.net.weight.detach().clone(), "count": len(self.seen)}

    def load_state_dict(self, state_dict: dict[str, Any], fast_init: bool = False) -> None:
        assert not fast_init
        self.restored = state_dict["count"]
        self.net.load_state_dict({"weight": state_dict["mine"]})


def test_a_model_can_look_after_its_state_itself(tmp_path: Path) -> None:
    """A model that overrides `state_dict` and `load_state_dict` has that saved, and nothing else."""
    whole = Custom("whole")
    make_trainer(tmp_path, total_steps=2).fit(whole, ListData())
    make_trainer(tmp_path, total_steps=1).fit(Custom(), ListData())
    model = Custom()
    make_trainer(tmp_path, total_steps=2).fit(model, ListData())
    assert model.restored == 3
    assert model.weight == whole.weight
    path = find_last_checkpoint(tmp_path / "counting")
    assert path is not None
    assert list(load_archive(path)["model"]["state"]) == ["mine", "count"]


def test_metrics_come_back(tmp_path: Path) -> None:
    """The metrics of the last validation are there after a resume, numbers by NumPy too."""

    class Scoring(CountingModel):
        def on_validation_end(self, validation_cycle: int) -> None:
            self.metrics["score"] = np.float64(validation_cycle / 2)
            self.metrics["count"] = validation_cycle

    make_trainer(tmp_path, total_steps=2, valid_frequency=1).fit(Scoring(), ListData())
    model = Scoring()
    make_trainer(tmp_path, total_steps=2, valid_frequency=1).fit(model, ListData())
    assert model.metrics == {"score": 0.5, "count": 1}


def test_modes_switch_every_network() -> None:
    """`train` and `eval` switch every network among the attributes, in collections too."""
    model = Everything()
    model.setup()
    networks = [model.net, *model.heads, model.average]
    model.eval()
    assert not any(network.training for network in networks)
    model.train()
    assert all(network.training for network in networks)


def test_initial_weights_depend_on_the_seed_alone() -> None:
    """`setup` draws the same whatever was drawn before, and differently for another seed."""

    def weight(seed: int, *, disturb: bool) -> float:
        class Noisy(ListData):
            def setup(self) -> None:
                if disturb:
                    torch.rand(7)

        class Initial(CountingModel):
            def on_training_start(self) -> None:
                self.initial = self.weight

        model = Initial()
        make_trainer(random_seed=seed).fit(model, Noisy())
        return model.initial

    assert weight(1, disturb=False) == weight(1, disturb=True) != weight(2, disturb=False)


def test_models_are_made_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """`MODEL_REGISTRY.register` decorates, `create_model` passes arguments on; bad names are told."""
    monkeypatch.setattr(MODEL_REGISTRY, "_entries", {})

    @MODEL_REGISTRY.register
    class Registered(TinyModel):
        pass

    model = create_model("Registered", "some_name", learning_rate=0.5)
    assert isinstance(model, Registered)
    assert model.save_name == "some_name"
    with pytest.raises(UnknownNameError, match="Registered"):
        create_model("Missing")
    with pytest.raises(DuplicateNameError, match="Registered"):
        MODEL_REGISTRY.register(Registered)


def test_a_save_name_can_be_changed() -> None:
    """`save_name` reads back, and a plug-in may append to it."""
    model = TinyModel("a")
    model.save_name += "_trial-3"
    assert model.save_name == "a_trial-3"
    with pytest.raises(NotRunningError, match="TinyModel.trainer is only set in a run"):
        model.is_optimizer_step(TrainingState())


def test_gradients_in_flight_come_back() -> None:
    """Gradients are collected by name, without those that are `None`, and given back as they were."""
    first, second = Everything(), Everything(wrap=True)
    for model in (first, second):
        model.setup()
    first.net(torch.ones(1)).backward()
    for network in second.heads:
        network(torch.ones(1)).backward()
    gradients = collect_gradients(first)
    assert set(gradients) == {"net.weight", "net.bias"}
    restore_gradients(second, gradients)
    assert are_equal(collect_gradients(second), gradients)
    assert second.heads[0].weight.grad is None
    for bad in ({"other.weight": torch.ones(1, 1)}, {"net.weight": torch.ones(2, 2)}):
        with pytest.raises(CheckpointMismatchError, match=r"the checkpoint has a gradient of (other|net).weight"):
            restore_gradients(second, bad)
