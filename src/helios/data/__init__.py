"""Data: datasets, data loaders, and the order of samples."""

from helios.data import transforms
from helios.data.datamodule import (
    COLLATE_FN_REGISTRY,
    DATASET_REGISTRY,
    DataLoaderParams,
    DataModule,
    Dataset,
    DatasetSplit,
    create_collate_fn,
    create_dataloader,
    create_dataset,
)
from helios.data.samplers import (
    SAMPLER_REGISTRY,
    ResumableDistributedSampler,
    ResumableRandomSampler,
    ResumableSampler,
    ResumableSequentialSampler,
    create_sampler,
)
from helios.data.transforms import TRANSFORM_REGISTRY, create_transform

__all__ = [
    "COLLATE_FN_REGISTRY",
    "DATASET_REGISTRY",
    "SAMPLER_REGISTRY",
    "TRANSFORM_REGISTRY",
    "DataLoaderParams",
    "DataModule",
    "Dataset",
    "DatasetSplit",
    "ResumableDistributedSampler",
    "ResumableRandomSampler",
    "ResumableSampler",
    "ResumableSequentialSampler",
    "create_collate_fn",
    "create_dataloader",
    "create_dataset",
    "create_sampler",
    "create_transform",
    "transforms",
]
