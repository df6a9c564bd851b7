"""The batches of a run, from any epoch and position; the position is returned as plain data for a checkpoint."""

from helios.data.sources.batch_source import BatchSource
from helios.data.sources.factory import make_source
from helios.data.sources.sampler_source import SamplerSource
from helios.data.sources.sequence_source import SequenceSource
from helios.data.sources.stream_source import StreamSource

__all__ = ["BatchSource", "SamplerSource", "SequenceSource", "StreamSource", "make_source"]
