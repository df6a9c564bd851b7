"""Samplers that continue at any position of any epoch.

A sampler keeps no count of what it has yielded. `seek(epoch, position)` sets where the next iteration starts, and the
indices are computed from these two numbers. The position counts samples of the global order, those of all ranks
together, so that a run with another number of ranks can continue in the middle of an epoch.
"""

from helios.data.samplers.distributed import ResumableDistributedSampler
from helios.data.samplers.resumable import SAMPLER_REGISTRY, ResumableSampler, create_sampler
from helios.data.samplers.single import ResumableRandomSampler, ResumableSequentialSampler

__all__ = [
    "SAMPLER_REGISTRY",
    "ResumableDistributedSampler",
    "ResumableRandomSampler",
    "ResumableSampler",
    "ResumableSequentialSampler",
    "create_sampler",
]
