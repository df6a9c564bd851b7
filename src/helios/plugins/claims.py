"""What a plug-in claims for itself alone, and what it requests."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass
class UniquePluginOverrides:
    """What at most one plug-in of a trainer may do; a plug-in sets the flags of what it claims.

    A plug-in that overrides the method holds the claim even if it forgets the flag.

    Attributes:
        training_batch: it processes training batches.
        validation_batch: it processes validation batches.
        testing_batch: it processes testing batches.
        should_training_stop: it may stop training.
    """

    training_batch: bool = False
    validation_batch: bool = False
    testing_batch: bool = False
    should_training_stop: bool = False


@dataclasses.dataclass(frozen=True)
class StopRequest:
    """A request of a plug-in that training stops.

    Attributes:
        plug_id: who requests it.
        reason: why, for the log.
        is_final: whether the run is over then, or continued by the next call of `fit`.
    """

    plug_id: str
    reason: str
    is_final: bool
