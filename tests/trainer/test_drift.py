"""Runs that are resumed with other settings than they were interrupted with."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch.utils.data import IterableDataset, TensorDataset

from helios import DataModule, Plugin, Trainer
from helios.checkpoint.archive import load_archive, save_archive
from helios.data import DataLoaderParams
from helios.errors import ArgumentTypeError, CheckpointMismatchError, ConfigurationError, RankFailedError
from helios.testing import TinyDataModule, TinyModel, are_equal
from helios.trainer import find_last_checkpoint
from tests.trainer.parts import CountingModel, ListData, make_trainer

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

SAMPLES = 12


def tiny_trainer(root: Path, steps: int = 4, **options: Any) -> Trainer:
    return make_trainer(root, total_steps=steps, **{"train_unit": "iteration", "chkpt_frequency": 1, **options})


def data(samples: int = SAMPLES, **params: Any) -> TinyDataModule:
    loading = DataLoaderParams(**{"batch_size": 4, "shuffle": True, **params})
    return TinyDataModule(samples=samples, params=loading)


def newest(root: Path, name: str = "tiny") -> Path:
    path = find_last_checkpoint(root / name)
    assert path is not None
    return path


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def warnings_in(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]


CHANGES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "seed was 6691 and is 1": ({"random_seed": 1}, {}),
    "train_unit was 'iteration' and is 'epoch'": ({"train_unit": "epoch"}, {}),
    "accumulation_steps was 1 and is 2": ({"accumulation_steps": 2}, {}),
    "train.length was 12 and is 13": ({}, {"samples": 13}),
    "train.batch_size was 4 and is 3": ({}, {"batch_size": 3}),
    "train.order was 'shuffled' and is 'sequential'": ({}, {"shuffle": False}),
    "train.drop_last was False and is True": ({}, {"drop_last": True}),
    "train.seed was None and is 3": ({}, {"random_seed": 3}),
    "trainer.data was 'v1' and is 'v2'": ({"passport": {"data": "v2"}}, {}),
}


@pytest.mark.parametrize("steps", [4, 6], ids=["in an epoch", "between epochs"])
def test_another_run_is_refused_and_the_right_one_continues(tmp_path: Path, steps: int) -> None:
    """Each drift is refused by both values before a step, the checkpoint is untouched, and the right run is exact."""
    own = {"passport": {"data": "v1"}}
    tiny_trainer(tmp_path / "whole", 9, **own).fit(whole := TinyModel(), data())
    tiny_trainer(tmp_path / "parts", steps, **own).fit(TinyModel(), data())
    before = contents(tmp_path / "parts" / "tiny")
    for message, (options, params) in CHANGES.items():
        model = TinyModel()
        with pytest.raises(CheckpointMismatchError, match=f"belongs to another run than this one: {message}. Resume"):
            tiny_trainer(tmp_path / "parts", 9, **{**own, **options}).fit(model, data(**params))
        assert model.batches_seen == 0
        assert contents(tmp_path / "parts" / "tiny") == before
    tiny_trainer(tmp_path / "parts", 9, **own).fit(resumed := TinyModel(), data())
    assert are_equal(resumed.state_dict(), whole.state_dict())


def test_what_cannot_change_the_bits_may_change(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """More steps, other frequencies, workers, a name, a validation and early stopping are no drift: nothing is said."""
    tiny_trainer(tmp_path / "whole", 9).fit(whole := TinyModel(), data())
    tiny_trainer(tmp_path / "parts", 4).fit(TinyModel(), data())
    options = {"valid_frequency": 2, "chkpt_frequency": 3, "print_frequency": 1, "run_name": "b"}
    tiny_trainer(tmp_path / "parts", 6, **options).fit(TinyModel(), data(num_workers=1, pin_memory=False))
    tiny_trainer(tmp_path / "parts", 9, chkpt_frequency=None).fit(resumed := TinyModel(), data())
    assert are_equal(resumed.net.state_dict(), whole.net.state_dict())
    assert warnings_in(caplog) == []


def rewrite(path: Path, **entries: Any) -> None:
    saved = load_archive(path)
    save_archive(path, {**saved, "passport": {**saved["passport"], **entries}})


def test_what_ends_bit_equality_is_warned_of_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Versions, threads, device and precision are one warning by name; the next checkpoint has the new values."""
    tiny_trainer(tmp_path).fit(TinyModel(), data())
    rewrite(newest(tmp_path), torch="1.0", python="2.7", device="cuda Tesla K80")
    threads, precision = torch.get_num_threads(), torch.backends.mkldnn.matmul.fp32_precision  # type: ignore[attr-defined]  # It is there at run time.
    try:
        torch.set_num_threads(threads + 1)
        torch.backends.mkldnn.matmul.fp32_precision = "bf16"  # type: ignore[attr-defined]  # As above.
        for steps in (5, 6):
            tiny_trainer(tmp_path, steps).fit(TinyModel(), data())
    finally:
        torch.set_num_threads(threads)
        torch.backends.mkldnn.matmul.fp32_precision = precision  # type: ignore[attr-defined]  # As above.
    (warning,) = warnings_in(caplog)
    for said in (
        "torch was '1.0' and is '2",
        "python was '2.7' and is '3",
        "device was 'cuda Tesla K80' and is 'cpu ",
        f"threads was {threads} and is {threads + 1}",
        "'matmul': 'bf16'",
    ):
        assert said in warning
    with pytest.raises(CheckpointMismatchError, match="threads was"):
        tiny_trainer(tmp_path, 7, on_drift="strict").fit(TinyModel(), data())


def test_a_checkpoint_without_a_passport_is_resumed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """One of an earlier version continues, exactly, and the log says that nothing was compared."""
    caplog.set_level("INFO")
    tiny_trainer(tmp_path / "whole", 9).fit(whole := TinyModel(), data())
    tiny_trainer(tmp_path / "parts").fit(TinyModel(), data())
    path = newest(tmp_path / "parts")
    save_archive(path, {name: value for name, value in load_archive(path).items() if name != "passport"})
    tiny_trainer(tmp_path / "parts", 9).fit(resumed := TinyModel(), data())
    assert are_equal(resumed.state_dict(), whole.state_dict())
    assert f"{path} has no passport" in caplog.text


def test_an_accepted_drift_is_said_and_kept(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """`on_drift` lets a run continue with another seed; from the next checkpoint on, that seed is the run's."""
    tiny_trainer(tmp_path).fit(TinyModel(), data())
    for verdict in ("warn", {"seed": "warn"}):
        tiny_trainer(tmp_path, 5, random_seed=1, on_drift=verdict).fit(TinyModel(), data())
        assert "seed was 6691 and is 1" in caplog.text
        caplog.clear()
        newest(tmp_path).unlink()
    tiny_trainer(tmp_path, 5, random_seed=1, on_drift="ignore").fit(TinyModel(), data())
    assert warnings_in(caplog) == []
    tiny_trainer(tmp_path, 6, random_seed=1).fit(TinyModel(), data())


def test_a_test_is_never_refused(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """`test` reads a checkpoint of any seed, data and version without a word."""
    tiny_trainer(tmp_path).fit(TinyModel(), data())
    rewrite(newest(tmp_path), torch="1.0")
    assert make_trainer(tmp_path, random_seed=1, on_drift="strict").test(TinyModel(), data(samples=5, batch_size=1))
    assert warnings_in(caplog) == []


class Wide(CountingModel):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width

    def passport(self) -> dict[str, Any]:
        return {"width": self.width, "net": list(self.net.weight.shape)}  # After setup.


class Versioned(ListData):
    def __init__(self, version: str) -> None:
        super().__init__()
        self.version = version

    def passport(self) -> Mapping[str, Any]:
        return {"version": self.version}


class Augmenting(Plugin):
    def __init__(self, strength: float) -> None:
        super().__init__("augmenting")
        self.strength = strength

    def setup(self) -> None:
        """Get nothing ready."""

    def passport(self) -> dict[str, Any]:
        return {"strength": self.strength}


def test_every_part_adds_to_the_passport(tmp_path: Path) -> None:
    """What `passport()` of model, data module and plug-ins returns is compared, under the name of the part."""

    def run(steps: int, width: int = 1, version: str = "a", strength: float = 0.5, **options: Any) -> None:
        trainer = make_trainer(tmp_path, total_steps=steps, **options)
        trainer.register_plugin(Augmenting(strength))
        trainer.fit(Wide(width), Versioned(version))

    run(1)
    added = {
        name: value for name, value in load_archive(newest(tmp_path, "counting"))["passport"].items() if "." in name
    }
    assert added["model.net"] == [1, 1]
    for changes, message in (
        ({"width": 2}, "model.width was 1 and is 2"),
        ({"version": "b"}, "datamodule.version was 'a' and is 'b'"),
        ({"strength": 0.1}, "plugins.augmenting.strength was 0.5 and is 0.1"),
    ):
        with pytest.raises(CheckpointMismatchError, match=message):
            run(2, **changes)
    run(2, width=2, on_drift={"model.width": "ignore"})


class Unplain(CountingModel):
    def passport(self) -> dict[str, Any]:
        return {"weights": torch.zeros(2)}


def test_a_bad_passport_is_refused_early(tmp_path: Path) -> None:
    """The trainer's own is checked at construction, that of a part before the first batch."""
    with pytest.raises(ArgumentTypeError, match=r"the passport entry 'trainer.a' is tensor\(.*give a number"):
        make_trainer(tmp_path, passport={"a": torch.zeros(2)})
    with pytest.raises(ArgumentTypeError, match="passport is 3: give a dictionary"):
        make_trainer(tmp_path, passport=3)
    with pytest.raises(ConfigurationError, match="on_drift has 'data', .* trainer.data, and"):
        make_trainer(tmp_path, passport={"data": 1}, on_drift={"data": "warn"})
    model = Unplain()
    with pytest.raises(ArgumentTypeError, match=r"the passport entry 'model.weights' is tensor"):
        make_trainer(tmp_path).fit(model, ListData())
    assert model.seen == []


class Endless(IterableDataset[Any]):
    def __iter__(self) -> Iterator[Any]:
        return (torch.ones(1) for _ in range(6))

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


class AnyData(DataModule):
    def __init__(self, dataset: Any, **params: Any) -> None:
        super().__init__()
        self.dataset, self.params = dataset, params

    def setup(self) -> None:
        self._train_dataset = self._create_dataset(self.dataset, {"batch_size": 2, **self.params})


def test_other_kinds_of_data(tmp_path: Path) -> None:
    """A list of batches has a length, an iterable dataset has none; one in the place of the other is another run."""
    run = make_trainer(tmp_path, total_steps=1)
    run.fit(CountingModel(), ListData())
    with pytest.raises(CheckpointMismatchError, match="train.length was 3 and is 4"):
        make_trainer(tmp_path).fit(CountingModel(), ListData(train=4))
    with pytest.raises(CheckpointMismatchError, match="train.kind was 'list of batches' and is 'iterable dataset'"):
        make_trainer(tmp_path).fit(CountingModel(), AnyData(Endless()))
    make_trainer(tmp_path / "stream", total_steps=1).fit(CountingModel(), AnyData(Endless()))
    with pytest.raises(CheckpointMismatchError, match="one: train.batch_size was 2 and is 3. Resume"):
        make_trainer(tmp_path / "stream").fit(CountingModel(), AnyData(Endless(), batch_size=3))
    make_trainer(tmp_path / "stream").fit(CountingModel(), AnyData(Endless()))
    entries = load_archive(newest(tmp_path / "stream", "counting"))["passport"]
    assert entries["train.length"] is None
    tensors = TensorDataset(torch.ones(6, 1))
    with pytest.raises(CheckpointMismatchError, match="and is 'map-style dataset'; train.length was None and is 6"):
        make_trainer(tmp_path / "stream").fit(CountingModel(), AnyData(tensors))


def test_the_validation_dataset_has_a_length(tmp_path: Path) -> None:
    """Validated on another number of samples, scores cannot be compared: that is another run."""
    make_trainer(tmp_path, total_steps=1, valid_frequency=1).fit(CountingModel(), ListData())
    with pytest.raises(CheckpointMismatchError, match="valid.length was 2 and is 3"):
        make_trainer(tmp_path, valid_frequency=1).fit(CountingModel(), ListData(valid=3))
    make_trainer(tmp_path).fit(CountingModel(), ListData(valid=3))


@pytest.mark.usefixtures("forked_ranks")
def test_ranks_have_one_passport(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Two ranks refuse another seed together; one process with batches as large is told of the ranks."""
    tiny_trainer(tmp_path, num_processes=2, use_cpu=None).fit(TinyModel(), data(batch_size=2))
    entries = load_archive(newest(tmp_path))["passport"]
    assert (entries["ranks"], entries["strategy"], entries["train.order"]) == (2, "ddp", "shuffled")
    assert entries["threads"] == 1
    with pytest.raises(RankFailedError, match="seed was 6691 and is 1") as refused:
        tiny_trainer(tmp_path, num_processes=2, use_cpu=None, random_seed=1).fit(TinyModel(), data(batch_size=2))
    assert isinstance(refused.value.__cause__, CheckpointMismatchError)
    tiny_trainer(tmp_path, 5).fit(TinyModel(), data(batch_size=4))
    (warning,) = warnings_in(caplog)
    assert warning.endswith("interrupted one: ranks was 2 and is 1")
