"""Known ways to break exactness on several ranks, each of which the kill campaign must notice.

A mutation is applied in the ranks, and nowhere else, before anything is set up there.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any
from unittest import mock

from helios.checkpoint import store
from helios.data import datamodule
from helios.parallel import Strategy, ddp
from helios.ranks.host_group import HostGroup
from helios.trainer import _loop

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from torch.nn.parallel import DistributedDataParallel

collect_rank_deltas = store.collect_rank_deltas  # type: ignore[attr-defined]  # not exported


def _keep_of_overlays(is_kept: Callable[[tuple[Any, ...]], bool]) -> None:
    """Leave out of checkpoints a part of what ranks have apart from rank 0."""

    def collect(data: dict[str, Any], host_group: HostGroup) -> Any:
        rank_deltas = collect_rank_deltas(data, host_group)
        return [[entry for entry in rank_delta if is_kept(entry[0])] for rank_delta in rank_deltas]

    mock.patch.object(store, "collect_rank_deltas", collect).start()


def _state_of_rank_0_for_all() -> None:
    """A checkpoint has nothing of the other ranks."""
    _keep_of_overlays(lambda _: False)


def _gradients_of_rank_0_for_all() -> None:
    """The gradients in flight that a rank has not exchanged yet are lost, and rank 0's count twice."""
    _keep_of_overlays(lambda path: path[0] != "gradients")


def _stream_of_rank_0_for_all() -> None:
    """Every rank continues its own part of a stream at the position of rank 0."""
    _keep_of_overlays(lambda path: path[:2] != ("training", "feed"))


def _plugins_of_rank_0_for_all() -> None:
    """The plug-ins of all ranks continue with the state of those of rank 0."""
    _keep_of_overlays(lambda path: path[0] != "plugins")


def _each_leaves_where_it_is() -> None:
    """A rank that is asked to leave does so at once, whatever the others do."""

    def agree(self: HostGroup, was_asked: Callable[[], bool], position: Callable[[], int]) -> Callable[[], bool]:
        del self, position
        return was_asked

    mock.patch.object(HostGroup, "make_stop_check", agree).start()


def _each_judges_for_itself() -> None:
    """Whether metrics have improved is every rank's own business."""
    broadcast = HostGroup.broadcast_object

    def keep(self: HostGroup, value: Any) -> Any:
        return value if isinstance(value, bool) else broadcast(self, value)

    mock.patch.object(HostGroup, "broadcast_object", keep).start()


def _validation_padded() -> None:
    """Ranks validate samples twice, so that all have equally many."""
    make_loader = datamodule.make_loader  # type: ignore[attr-defined]  # not exported

    def pad(*arguments: Any, **options: Any) -> Any:
        return make_loader(*arguments, **{**options, "training": True})

    mock.patch.object(datamodule, "make_loader", pad).start()


def _validation_with_own_buffers() -> None:
    """Ranks validate with whatever batch normalization has seen there."""

    @contextlib.contextmanager
    def keep_quiet(network: DistributedDataParallel) -> Iterator[None]:
        network.require_forward_param_sync = False
        yield
        network.require_forward_param_sync = True

    mock.patch.object(ddp, "_broadcast_buffers_once", keep_quiet).start()


def _validation_with_buffers_when_due() -> None:
    """In the middle of an accumulation, a validation takes over no more than the next forward pass would."""
    take_over = ddp._broadcast_buffers_once

    def take_over_when_due(network: DistributedDataParallel) -> contextlib.AbstractContextManager[None]:
        return take_over(network) if network.require_forward_param_sync else contextlib.nullcontext()

    mock.patch.object(ddp, "_broadcast_buffers_once", take_over_when_due).start()


def _buffer_sync_flags_forgotten() -> None:
    """The first forward pass of a process always broadcasts the buffers of rank 0."""
    mock.patch.object(Strategy, "restore_buffer_sync_flags").start()


def _validation_not_quiet() -> None:
    """Each forward pass of a validation exchanges buffers, and some ranks make one more than others."""
    mock.patch.object(Strategy, "local_forward").start()


def _streams_not_in_step() -> None:
    """A rank whose stream is longer trains on what it has."""
    mock.patch.object(_loop, "in_step", lambda batches, _: batches).start()


def _buckets_not_settled() -> None:
    """Gradients are laid out anew after the first backward pass of a process."""
    mock.patch.object(ddp, "_settle_buckets").start()


MUTATIONS: dict[str, Callable[[], None]] = {
    "state of rank 0 for all": _state_of_rank_0_for_all,
    "gradients of rank 0 for all": _gradients_of_rank_0_for_all,
    "stream of rank 0 for all": _stream_of_rank_0_for_all,
    "plug-ins of rank 0 for all": _plugins_of_rank_0_for_all,
    "each leaves where it is": _each_leaves_where_it_is,
    "each judges for itself": _each_judges_for_itself,
    "validation padded": _validation_padded,
    "validation with own buffers": _validation_with_own_buffers,
    "validation with buffers when due": _validation_with_buffers_when_due,
    "flags forgotten": _buffer_sync_flags_forgotten,
    "validation not quiet": _validation_not_quiet,
    "streams not in step": _streams_not_in_step,
    "buckets not settled": _buckets_not_settled,
}


def apply_mutation(name: str) -> None:
    """Break the library in this process."""
    MUTATIONS[name]()
