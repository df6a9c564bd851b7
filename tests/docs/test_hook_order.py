"""The order of hooks that the docs print is the order in which they are called."""

from __future__ import annotations

import re
from typing import Any

import pytest

from helios import TrainingUnit
from tests.docs.snippets import ROOT, blocks
from tests.trainer.parts import ListData, make_trainer
from tests.trainer.trace import ProcessingPlugin, TracingModel, TracingPlugin

# Who is called for each prefix: two plug-ins, of which the second holds the claims on the batches.
_CALLED = {"plugins": ["a", "b"], "plugin": ["b"], "model": ["model"]}
_CALL = re.compile(r"(plugins|plugin|model)\.(\w+)\(")
_EPOCHS = 2
_BATCHES = {"training": 3, "validation": 2, "testing": 2}


def printed_order() -> str:
    """Return the block of docs/training.md."""
    (block,) = [b for b in blocks((ROOT / "docs/training.md").read_text("utf-8"), "text") if "each epoch:" in b]
    return block


def expand(order: str, section: str, unit: TrainingUnit = TrainingUnit.EPOCH) -> list[str]:
    """Return the calls that the printed order promises for a run of `_EPOCHS` epochs.

    Args:
        order: the printed order.
        section: "training", "validation" or "testing".
        unit: a validation follows each of this.
    """
    sections = dict(zip(("training", "validation", "testing"), order.split("\n\n"), strict=True))
    titles = 0 if section == "training" else 1
    lines = sections[section].splitlines()[titles:]
    return _expand([(len(line) - len(line.lstrip()), line.strip()) for line in lines], section, order, unit)


def _expand(lines: list[tuple[int, str]], section: str, order: str, unit: TrainingUnit) -> list[str]:
    calls: list[str] = []
    while lines:
        (indent, text), lines = lines[0], lines[1:]
        if text.startswith("each "):
            size = next((i for i, (deeper, _) in enumerate(lines) if deeper <= indent), len(lines))
            body, lines = lines[:size], lines[size:]
            times = _EPOCHS if text == "each epoch:" else _BATCHES[section]
            calls += times * _expand(body, section, order, unit)
        elif text.endswith(": validation"):
            calls += expand(order, "validation") if text == f"by {unit.value}s: validation" else []
        else:
            calls += [f"{who}.{hook}" for prefix, hook in _CALL.findall(text) for who in _CALLED[prefix]]
    return calls


def record(phase: str, **options: Any) -> list[str]:
    """Return the hooks and steps that a run calls, by name."""
    trace: list[str] = []
    trainer = make_trainer(**options)
    trainer.register_plugin(TracingPlugin("a", trace))
    trainer.register_plugin(ProcessingPlugin("b", trace))
    getattr(trainer, phase)(TracingModel(trace), ListData())
    called = [entry.split()[0] for entry in trace]
    not_hooks = ("setup", "train", "eval", "load_for_testing")
    return [call for call in called if call.split(".")[1] not in not_hooks]


@pytest.mark.parametrize(("unit", "steps"), [(TrainingUnit.EPOCH, 2), (TrainingUnit.ITERATION, 6)])
def test_training_calls_hooks_in_the_order_that_the_docs_print(unit: TrainingUnit, steps: int) -> None:
    """The trace of a whole run with two plug-ins equals the printed order, for both units."""
    expected = expand(printed_order(), "training", unit)
    assert record("fit", train_unit=unit, total_steps=steps, valid_frequency=1) == expected
    assert expected.count("model.train_step") == 6
    assert expected.count("model.on_validation_end") == steps


def test_testing_calls_hooks_in_the_order_that_the_docs_print() -> None:
    """Testing calls what the docs print for it."""
    expected = expand(printed_order(), "testing")
    assert record("test") == expected
    assert expected.count("b.process_testing_batch") == 2
