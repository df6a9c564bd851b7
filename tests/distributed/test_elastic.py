"""Runs on several ranks, compared with such on one, and runs whose number of ranks changes."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import pytest
import torch

from helios.errors import CheckpointMismatchError, ConfigurationError, RankFailedError
from helios.trainer import find_last_checkpoint
from tests.distributed.elastic import Elastic, Numbered, Plan, batches, make_trainer, train

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.usefixtures("forked_ranks")


def assert_equal(left: list[torch.Tensor], right: list[torch.Tensor]) -> None:
    """Check that two lists of tensors are the same to the bit."""
    assert all(torch.equal(a, b) for a, b in zip(left, right, strict=True))


def assert_close(left: list[torch.Tensor], right: list[torch.Tensor]) -> None:
    """Check that two lists of float64 tensors are the same but for rounding."""
    for a, b in zip(left, right, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_gradients_of_two_ranks_are_those_of_the_joint_batch(strategy: str, tmp_path: Path) -> None:
    """Two ranks have the gradients, and so the weights, of one process that trains on both their batches."""
    (alone,) = train(Plan(), tmp_path / "alone")
    together = train(Plan(ranks=2, strategy=strategy), tmp_path / "together")
    for rank in together:
        assert_close([rank["gradient"]], [alone["gradient"]])
        assert_close(rank["weights"], alone["weights"])
    assert_equal(together[0]["weights"], together[1]["weights"])
    assert batches(together) == batches([alone])
    assert together[0]["seen"] != together[1]["seen"]


@pytest.mark.parametrize(("samples", "epochs"), [(48, 1), (60, 2)])
def test_the_number_of_ranks_changes_within_an_epoch(samples: int, epochs: int, tmp_path: Path) -> None:
    """1, 2, 4 and 1 ranks in turn see every sample once an epoch, in the global batches of one process."""
    per_epoch = samples // 12
    (alone,) = train(Plan(iterations=epochs * per_epoch, samples=samples), tmp_path / "alone")
    seen: dict[int, list[int]] = {}
    told = []
    ends = [per_epoch - 3, per_epoch - 2, per_epoch - 1, epochs * per_epoch]
    for ranks, end in zip((1, 2, 4, 1), ends, strict=True):
        told = train(Plan(ranks=ranks, iterations=end, samples=samples), tmp_path / "changing")
        parts = batches(told)
        assert not set(parts) & set(seen)
        seen |= parts
    assert seen == batches([alone])
    for epoch in range(epochs):
        of_epoch = [index for n in range(epoch * per_epoch, (epoch + 1) * per_epoch) for index in seen[n]]
        assert sorted(of_epoch) == list(range(samples))
    assert_close(told[0]["weights"], alone["weights"])


def test_validation_repeats_no_sample(tmp_path: Path) -> None:
    """7 samples in batches of 2 on two ranks: each is validated once, though one rank has a batch more."""
    told = train(Plan(ranks=2, iterations=2, options={"valid_frequency": 2}), tmp_path)
    assert sorted(told[0]["validated"] + told[1]["validated"]) == list(range(7))
    assert [len(rank["validated"]) for rank in told] == [4, 3]


def test_losses_are_averaged_when_they_are_logged(tmp_path: Path) -> None:
    """A logged loss is the mean over the ranks, and so is the running one; ranks log the same numbers."""
    options = {"print_frequency": 3}
    (alone,) = train(Plan(options=options, iterations=6), tmp_path / "alone")
    first, second = train(Plan(ranks=2, options=options, iterations=6), tmp_path / "together")
    assert first["logged"] == second["logged"]
    assert [iteration for iteration, *_ in first["logged"]] == [3, 6]
    for one, both in zip(alone["logged"], first["logged"], strict=True):
        assert both == pytest.approx(one, rel=1e-6)


def test_ranks_with_unequal_streams_end_an_epoch_together(tmp_path: Path) -> None:
    """With 14 numbers on rank 0, 13 on rank 1 and batches of 6, both train on 2 full batches and a short one."""
    with pytest.warns(UserWarning, match="no state_dict"):
        (alone,) = train(Plan(stream=True, iterations=3), tmp_path / "alone")
    assert [len(indices) for _, indices in alone["seen"]] == [12, 12, 3]
    told = train(Plan(ranks=2, stream=True, iterations=6), tmp_path / "together")
    assert [len(indices) for _, indices in told[0]["seen"]] == [6, 6, 2, 6, 6, 2]
    assert [len(indices) for _, indices in told[1]["seen"]] == [6, 6, 1, 6, 6, 1]


def test_a_stream_in_progress_needs_as_many_ranks(tmp_path: Path) -> None:
    """Each rank reads its own part of a stream; resuming with another number of ranks is refused, with the remedy."""
    train(Plan(ranks=2, stream=True, iterations=2), tmp_path)
    plan = Plan(stream=True, iterations=4)
    with (
        pytest.warns(UserWarning, match="no state_dict"),
        pytest.raises(
            CheckpointMismatchError, match="each of 2 ranks had its own part, and now there are 1: resume with"
        ),
    ):
        make_trainer(plan, tmp_path).fit(Elastic(plan), Numbered(plan))


def test_an_unknown_strategy_is_refused(tmp_path: Path) -> None:
    """The constructor of the trainer refuses an unknown strategy; the message lists the known ones."""
    with pytest.raises(ConfigurationError, match="strategy is 'pipeline': choose one of 'ddp', 'fsdp'"):
        make_trainer(Plan(strategy="pipeline"), tmp_path)


# ---------------------------------------------------------------------------------------------------------------- FSDP2


def test_a_sharded_run_is_resumed_by_any_number_of_ranks(tmp_path: Path) -> None:
    """A sharded checkpoint of 2 ranks is resumed to the bit by 1, 2 and 3 ranks, and by DDP."""
    plan = Plan(ranks=2, strategy="fsdp", iterations=6, options={"valid_frequency": 2})
    whole = train(plan, tmp_path / "whole")
    for name, change in {
        "as before": {},
        "one process": {"ranks": 1},
        "three ranks": {"ranks": 3},
        "copies": {"strategy": "ddp"},
    }.items():
        train(dataclasses.replace(plan, iterations=3), tmp_path / name)
        folder = find_last_checkpoint(tmp_path / name / "elastic")
        assert folder is not None
        assert folder.is_dir()
        resumed = train(dataclasses.replace(plan, **change), tmp_path / name)  # type: ignore[arg-type]  # fields by name
        assert min(resumed[0]["seen"])[0] == 3
        compare = assert_close if change else assert_equal
        compare(resumed[0]["weights"], whole[0]["weights"])
    assert sorted(whole[0]["validated"] + whole[1]["validated"]) == sorted([*range(7)] * 3)


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_streams_of_unequal_length_are_validated_on(strategy: str, tmp_path: Path) -> None:
    """One rank validates on two batches of its stream, the other on one, and neither waits for the other.

    Where ranks share a network, a forward pass brings its units together, for which all would have to be there. How
    long a stream is, nobody knows beforehand. What is trained is what is trained without a validation.
    """
    plan = Plan(ranks=2, strategy=strategy, valid_stream=5, options={"valid_frequency": 2})
    told = train(plan, tmp_path / "validated")
    assert [rank["validated"] for rank in told] == [[0, 2, 4] * 2, [1, 3] * 2]
    plain = train(dataclasses.replace(plan, options={}), tmp_path / "plain")
    for rank, other in zip(told, plain, strict=True):
        assert_equal(rank["weights"], other["weights"])


def test_a_file_is_resumed_by_sharded_ranks(tmp_path: Path) -> None:
    """Two sharded ranks resume the checkpoint of one process, and replace it with theirs of the same name."""
    (alone,) = train(Plan(iterations=6), tmp_path / "alone")
    train(Plan(iterations=3), tmp_path / "changing")
    told = train(Plan(ranks=2, strategy="fsdp", iterations=6), tmp_path / "changing")
    assert_close(told[0]["weights"], alone["weights"])
    (again,) = train(Plan(iterations=6), tmp_path / "changing")
    assert_equal(again["weights"][:6], told[0]["weights"][:6])


def test_a_sharded_run_that_is_killed(tmp_path: Path) -> None:
    """Rank 1 of two that share a network is killed in its fourth step; the run ends with the same bits."""
    plan = Plan(ranks=2, strategy="fsdp", iterations=6)
    whole = train(plan, tmp_path / "whole")
    with pytest.raises(RankFailedError, match="rank 1 .* it was ended by SIGKILL") as caught:
        train(dataclasses.replace(plan, kill_at=3), tmp_path / "killed")
    assert caught.value.rank == 1
    resumed = train(plan, tmp_path / "killed")
    assert [iteration for iteration, _ in resumed[0]["seen"]] == [3, 4, 5]
    assert_equal(resumed[0]["weights"], whole[0]["weights"])


@pytest.mark.parametrize(("stop", "unreduced"), [(1, True), (2, True), (2, False)])
def test_a_sharded_run_is_resumed_in_an_accumulation(stop: int, unreduced: bool, tmp_path: Path) -> None:
    """A checkpoint after 1 or 2 of 3 accumulated batches holds the gradients.

    Each rank has unreduced gradients, or its shard of the reduced ones. Two ranks resume to the bit; one and three
    ranks, and DDP, up to rounding. Two sharded ranks also resume a checkpoint of DDP.
    """
    options = {"train_unit": "epoch", "accumulation_steps": 3, "valid_frequency": 1}
    plan = Plan(ranks=2, strategy="fsdp", iterations=3, unreduced=unreduced, options=options)
    (alone,) = train(dataclasses.replace(plan, ranks=1), tmp_path / "alone")
    whole = train(plan, tmp_path / "whole")
    assert_close(whole[0]["weights"], alone["weights"])
    copies = dataclasses.replace(plan, strategy="ddp")
    for name, before, after in (
        ("as before", plan, plan),
        ("one process", plan, dataclasses.replace(plan, ranks=1)),
        ("three ranks", plan, dataclasses.replace(plan, ranks=3)),
        ("to copies", plan, copies),
        ("from copies", copies, plan),
    ):
        train(dataclasses.replace(before, iterations=stop), tmp_path / name)
        resumed = train(after, tmp_path / name)
        assert min(resumed[0]["seen"])[0] == 4 * stop
        compare = assert_equal if before is after else assert_close
        compare(resumed[0]["weights"], whole[0]["weights"])


def test_weights_of_sharded_ranks_can_be_tested(tmp_path: Path) -> None:
    """Two sharded ranks, and one process, test what was trained, with a checkpoint and without one."""
    plan = Plan(ranks=2, strategy="fsdp", iterations=2)
    trainer, model = make_trainer(plan, tmp_path), Elastic(plan)
    assert trainer.fit(model, Numbered(plan))
    assert trainer.test(model, Numbered(plan))
    alone = Plan()
    tested = Elastic(alone)
    assert make_trainer(alone, tmp_path).test(tested, Numbered(alone))
    assert tested.notes.validated == list(range(7))
