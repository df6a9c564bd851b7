"""Gradients of sharded networks that some ranks have not exchanged yet, collected and given back."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import pytest
import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh

from helios import Model
from helios.checkpoint.state.fsdp import unsharded
from helios.errors import ConfigurationError
from helios.parallel.gradients import collect_gradients, restore_gradients
from helios.parallel.sharding import shard_network
from helios.ranks.mesh import make_mesh
from tests.ranks.ranks import run_ranks

if TYPE_CHECKING:
    from pathlib import Path

OPTIONS: Final[dict[str, dict[str, Any]]] = {
    "plain": {},
    "stays whole": {"reshard_after_forward": False},
    "half": {"mp_policy": (torch.bfloat16, None)},
    "added up in full": {"mp_policy": (torch.bfloat16, torch.float32)},
}
# Of each pass, whether gradients are exchanged, and whether the second unit is used.
PASSES: Final = {
    "unreduced": [(False, True), (False, True), (True, True)],
    "exchanged before": [(True, True), (False, True), (True, True)],
    "exchanged last": [(False, True), (True, True), (True, True)],
    "unit not used any more": [(False, True), (False, False), (True, False)],
}


class Branches(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Linear(3, 5), nn.Linear(3, 5)

    def forward(self, inputs: torch.Tensor, use_both: bool) -> torch.Tensor:
        outputs: torch.Tensor = self.first(inputs)
        return outputs.tanh() + self.second(inputs).tanh() if use_both else outputs.tanh()


class Accumulating(Model):
    def __init__(self, options: dict[str, Any]) -> None:
        super().__init__("accumulating")
        self._options = options

    def setup(self, fast_init: bool = False) -> None:
        del fast_init
        from torch.distributed.fsdp import MixedPrecisionPolicy  # noqa: PLC0415 - by the ranks alone.

        options = dict(self._options)
        if "mp_policy" in options:
            options["mp_policy"] = MixedPrecisionPolicy(*options["mp_policy"])
        network = Branches()
        self.net: Any = shard_network(network, make_mesh("cpu"), [network.second], **options)

    def accumulate(self, rank: int, step: int, is_exchanged: bool, use_both: bool) -> None:
        inputs = torch.randn(4, 3, generator=torch.Generator().manual_seed(10 * step + rank))
        self.net.set_requires_gradient_sync(is_exchanged)
        self.net.set_reshard_after_backward(self._options.get("reshard_after_forward", True))
        self.net(inputs, use_both).float().square().sum().backward()


def accumulate(rank: int, options: dict[str, Any], passes: list[tuple[bool, bool]]) -> Any:
    """Be a rank, and return the gradients after all passes: undisturbed, and made anew after each but the last."""
    results = []
    for renewed_after in (None, *range(len(passes) - 1)):
        model = Accumulating(options)
        model.setup()
        for step, (is_exchanged, use_both) in enumerate(passes):
            model.accumulate(rank, step, is_exchanged, use_both)
            with torch.no_grad(), unsharded([model.net]):  # As a validation does it, which may come in between.
                model.net(torch.ones(1, 3), use_both=True)
            if step == renewed_after:
                gradients = {name: gradient.clone() for name, gradient in collect_gradients(model).items()}
                model = Accumulating(options)
                model.setup()
                restore_gradients(model, gradients)
                again = collect_gradients(model)
                assert list(again) == list(gradients)
                assert {name: gradient.dtype for name, gradient in again.items()} == {
                    name: gradient.dtype for name, gradient in gradients.items()
                }
        left = collect_gradients(model)
        assert not [name for name in left if name.endswith("(unreduced)")]
        results.append({name: gradient.full_tensor() for name, gradient in left.items()})  # type: ignore[attr-defined]  # sharded
    return results


@pytest.mark.parametrize("passes", PASSES.values(), ids=PASSES)
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_unreduced_gradients_are_restored(
    options: dict[str, Any], passes: list[tuple[bool, bool]], tmp_path: Path
) -> None:
    """Made anew in an accumulation, a network ends it with the same bits, whatever was exchanged."""
    for undisturbed, *others in run_ranks(tmp_path, 2, accumulate, options, passes):
        assert set(undisturbed) == {"net.first.weight", "net.first.bias", "net.second.weight", "net.second.bias"}
        for gradients in others:
            assert list(gradients) == list(undisturbed)
            for name, gradient in gradients.items():
                assert torch.equal(gradient, undisturbed[name]), name


def exchange_halfway(rank: int) -> str:
    """Run one rank of an HSDP network, and return the error about a gradient that is reduced among some ranks only."""
    mesh = init_device_mesh("cpu", (2, 1), mesh_dim_names=("copies", "parts"))
    model = Accumulating({})
    model.net = shard_network(nn.Linear(2, 2), mesh)
    model.net.set_requires_all_reduce(False)
    model.net(torch.full((1, 2), float(rank))).sum().backward()
    with pytest.raises(ConfigurationError) as caught:
        collect_gradients(model)
    model.net.set_requires_all_reduce(True)
    model.net(torch.full((1, 2), float(rank))).sum().backward()
    assert set(collect_gradients(model)) == {"net.weight", "net.bias"}
    return str(caught.value)


def test_gradients_exchanged_halfway_are_refused(tmp_path: Path) -> None:
    """A sum that is in no tensor of this rank alone is not left out unnoticed; the message has the remedy."""
    for message in run_ranks(tmp_path, 2, exchange_halfway):
        assert "the gradient of net.weight is reduced among some ranks but not among all" in message
        assert "without set_requires_all_reduce(False)" in message
