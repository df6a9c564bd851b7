"""The order of all hooks, written out."""

from __future__ import annotations

import inspect
from typing import Any

import pytest

from helios import Model, Plugin
from tests.trainer.parts import ListData, make_trainer
from tests.trainer.trace import ProcessingPlugin, TracingModel, TracingPlugin

SETUP = ["a.setup", "b.setup", "model.setup False"]


def hook(name: str, *arguments: object) -> list[str]:
    """The plug-ins' hooks in the order of registration, and then the model's of the same name."""
    text = " ".join([name, *map(str, arguments)])
    return [f"a.{text}", f"b.{text}", f"model.{text}"]


def step(number: int, in_epoch: int, accumulation_steps: int = 1) -> list[str]:
    """A training step, the `number`-th from 1: `b` processes the batch first; an iteration is so many batches."""
    completes = number % accumulation_steps == 0
    return [
        f"b.process_training_batch {number}",
        *hook("on_training_batch_start", number),
        f"model.train_step {100.0 + in_epoch} {number}",
        *(hook("on_optimizer_step", number) if completes else []),
        *hook("on_training_batch_end", number),
    ]


def evaluation_step(phase: str, step_name: str, first: float, number: int) -> list[str]:
    return [
        f"b.process_{phase}_batch {number}",
        *hook(f"on_{phase}_batch_start", number),
        f"model.{step_name} {first + number} {number}",
        *hook(f"on_{phase}_batch_end", number),
    ]


def validation(cycle: int) -> list[str]:
    return [
        "model.eval",
        *hook("on_validation_start", cycle),
        *evaluation_step("validation", "valid_step", 200.0, 0),
        *evaluation_step("validation", "valid_step", 200.0, 1),
        "model.train",
        *hook("on_validation_end", cycle),
    ]


END = [*hook("on_training_end"), "a.on_fit_end False", "b.on_fit_end False"]


def run(**options: Any) -> list[str]:
    """Train with two plug-ins and return everything that was called."""
    trace: list[str] = []
    trainer = make_trainer(**options)
    trainer.register_plugin(TracingPlugin("a", trace))
    trainer.register_plugin(ProcessingPlugin("b", trace))
    trainer.fit(TracingModel(trace), ListData())
    return trace


def test_the_tracers_override_every_hook() -> None:
    """Nothing can be missing from the trace: the two plug-ins and the model override all public hooks."""
    for base, tracer in ((Plugin, ProcessingPlugin), (Model, TracingModel)):
        hooks = [
            name for name, _ in inspect.getmembers(base, inspect.isfunction) if name.startswith(("on_", "process_"))
        ]
        assert len(hooks) >= 13
        assert [name for name in hooks if getattr(tracer, name) is getattr(base, name)] == []


def test_the_order_in_epochs() -> None:
    """Two epochs of three batches with a validation at the end of each, and two batches per optimizer step."""
    for accumulation_steps in (1, 2):
        trace = run(total_steps=2, valid_frequency=1, accumulation_steps=accumulation_steps)
        assert trace == [
            *SETUP,
            *hook("on_training_start"),
            "model.train",
            *hook("on_training_epoch_start", 1),
            *[line for i in range(3) for line in step(i + 1, i, accumulation_steps)],
            *validation(0),
            *hook("on_training_epoch_end", 1),
            *hook("on_training_epoch_start", 2),
            *[line for i in range(3) for line in step(i + 4, i, accumulation_steps)],
            *validation(1),
            *hook("on_training_epoch_end", 2),
            *END,
        ]


def test_the_order_in_iterations() -> None:
    """Five iterations over epochs of three batches, a validation after every second, the last epoch cut."""
    assert run(train_unit="iteration", total_steps=5, valid_frequency=2) == [
        *SETUP,
        *hook("on_training_start"),
        "model.train",
        *hook("on_training_epoch_start", 1),
        *step(1, 0),
        *step(2, 1),
        *validation(0),
        *step(3, 2),
        *hook("on_training_epoch_end", 1),
        *hook("on_training_epoch_start", 2),
        *step(4, 0),
        *validation(1),
        *step(5, 1),
        *hook("on_training_epoch_end", 2),
        *END,
    ]


def test_the_order_in_iterations_of_several_batches() -> None:
    """With accumulation an iteration is two batches, across the end of an epoch; validations count those."""
    assert run(train_unit="iteration", total_steps=3, valid_frequency=2, accumulation_steps=2) == [
        *SETUP,
        *hook("on_training_start"),
        "model.train",
        *hook("on_training_epoch_start", 1),
        *step(1, 0, 2),
        *step(2, 1, 2),
        *step(3, 2, 2),
        *hook("on_training_epoch_end", 1),
        *hook("on_training_epoch_start", 2),
        *step(4, 0, 2),
        *validation(0),
        *step(5, 1, 2),
        *step(6, 2, 2),
        *hook("on_training_epoch_end", 2),
        *END,
    ]


def test_the_order_of_testing() -> None:
    """Testing calls its own hooks alike, after a setup of the networks alone."""
    trace: list[str] = []
    trainer = make_trainer()
    trainer.register_plugin(TracingPlugin("a", trace))
    trainer.register_plugin(ProcessingPlugin("b", trace))
    assert trainer.test(TracingModel(trace), ListData())
    assert trace == [
        "a.setup",
        "b.setup",
        "model.setup True",
        "model.load_for_testing",
        "model.eval",
        *hook("on_testing_start"),
        *evaluation_step("testing", "test_step", 300.0, 0),
        *evaluation_step("testing", "test_step", 300.0, 1),
        *hook("on_testing_end"),
    ]


@pytest.mark.parametrize(
    ("options", "logged"),
    [
        ({"total_steps": 1, "print_frequency": 1}, [1, 2, 3]),
        ({"total_steps": 3, "print_frequency": 2}, [2, 4, 6, 8]),
        ({"total_steps": 3, "print_frequency": 2, "accumulation_steps": 3}, [2, 4, 6, 8]),
        ({"total_steps": 2}, []),
        ({"train_unit": "iteration", "total_steps": 7, "print_frequency": 3}, [3, 6]),
        ({"train_unit": "iteration", "total_steps": 4, "print_frequency": 2, "accumulation_steps": 2}, [4, 8]),
    ],
)
def test_print_frequency_counts_iterations_in_both_units(options: dict[str, Any], logged: list[int]) -> None:
    """`should_log` is true at every so many iterations; by epoch, each batch is an iteration."""
    lines = [line.split() for line in run(**options) if line.startswith("model.on_training_batch_end")]
    assert [int(words[1]) for words in lines if words[-1] == "log"] == logged
