"""The data module: the datasets of a run, and how they are loaded."""

from __future__ import annotations

import abc
import dataclasses
import enum
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Final, TypeAlias

from helios.checkpoint.state.capture import AttributeCapture
from helios.core import rng
from helios.core.context import RunMember
from helios.core.registry import Registry
from helios.data.loading import (
    COLLATE_FN_REGISTRY,
    AnyDataset,
    create_collate_fn,
    create_dataloader,
    make_loader,
)
from helios.data.params import DataLoaderParams
from helios.errors import ArgumentTypeError, ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Collection

    import torch
    from torch.utils.data import DataLoader

    from helios.data.samplers import ResumableSampler

    Loader: TypeAlias = tuple[DataLoader[Any], ResumableSampler | None]

__all__ = [
    "COLLATE_FN_REGISTRY",
    "DATASET_REGISTRY",
    "DataLoaderParams",
    "DataModule",
    "Dataset",
    "DatasetSplit",
    "create_collate_fn",
    "create_dataloader",
    "create_dataset",
]

Arguments: TypeAlias = dict[str, Any]  # In the class below, `dict` is a method.

DATASET_REGISTRY: Final = Registry[Any]("dataset")


def create_dataset(type_name: str, *args: Any, **kwargs: Any) -> Any:
    """Make a dataset of a registered class.

    Args:
        type_name: the name of the class in `DATASET_REGISTRY`.
        *args: passed on to the class.
        **kwargs: passed on to the class.

    Raises:
        UnknownNameError: if there is no such class; the message lists the registered ones.
    """
    return DATASET_REGISTRY.create(type_name, *args, **kwargs)


class DatasetSplit(enum.Enum):
    """The phase that a dataset is for."""

    TRAIN = "train"
    VALID = "valid"
    TEST = "test"

    @classmethod
    def from_str(cls, label: str) -> DatasetSplit:
        """Return the split of this name, in upper or lower case.

        Raises:
            ConfigurationError: if there is no such split.
        """
        try:
            return cls(label.lower())
        except (ValueError, AttributeError):
            names = ", ".join(repr(split.value) for split in cls)
            raise ConfigurationError(f"dataset split {label!r} is unknown: choose one of {names}") from None


@dataclasses.dataclass(frozen=True)
class Dataset:
    """A dataset and how it is loaded.

    Attributes:
        dataset: a map-style dataset, or an `IterableDataset`.
        params: how it is loaded.
    """

    dataset: AnyDataset
    params: DataLoaderParams = dataclasses.field(default_factory=DataLoaderParams)

    def __post_init__(self) -> None:
        """Check the parameters.

        Raises:
            ArgumentTypeError: if they are not `DataLoaderParams`, or one has the wrong type.
            ConfigurationError: if one breaks a rule.
        """
        if not isinstance(self.params, DataLoaderParams):
            raise ArgumentTypeError(f"params is a {type(self.params).__name__}: pass DataLoaderParams")
        self.params.check()

    def dict(self) -> Arguments:
        """Return the dataset and its parameters by name, as arguments of `create_dataloader`.

        >>> import torch
        >>> from torch.utils.data import TensorDataset
        >>> dataset = Dataset(TensorDataset(torch.arange(4)), DataLoaderParams(batch_size=2))
        >>> loader, sampler = create_dataloader(**dataset.dict())
        >>> [batch.tolist() for (batch,) in loader]
        [[0, 1], [2, 3]]
        """
        return {"dataset": self.dataset, **self.params.to_dict()}

    def dataloader(
        self, default_seed: int | None = None, *, training: bool = True, device: torch.device | None = None
    ) -> Loader:
        """Make the loader, and the sampler that decides its order; see `create_dataloader`.

        Args:
            default_seed: the seed if the parameters have none.
            training: whether ranks may repeat samples so that all have the same number of batches.
            device: the device of the run; `None` outside of a run.

        Raises:
            ConfigurationError: if the seed is out of range, or the dataset is empty.
            ArgumentTypeError: if the dataset cannot be loaded.
        """
        seed = rng.get_default_seed() if default_seed is None else rng.check_seed(default_seed)
        return make_loader(self.dataset, self.params, seed, training=training, device=device)


class DataModule(RunMember, abc.ABC):
    """The datasets of a run.

    `setup` assigns what `self._create_dataset` returns to `self._train_dataset`, `self._valid_dataset` and
    `self._test_dataset`; one that is not needed stays `None`.

    Attributes:
        non_persistent_attributes: names of attributes that are not saved in checkpoints. A dataset may have this
            attribute, too.
    """

    non_persistent_attributes: ClassVar[Collection[str]] = ()

    def __init__(self) -> None:
        """Start without data."""
        set_by_subclass = frozenset(vars(self))
        super().__init__()
        self._helios_capture = AttributeCapture(self, ignore=frozenset(vars(self)) - set_by_subclass)
        self._train_dataset: Dataset | None = None
        self._valid_dataset: Dataset | None = None
        self._test_dataset: Dataset | None = None

    def prepare_data(self) -> None:
        """Prepare what all processes use, such as downloads; runs once, in the process that called `fit` or `test`."""

    @abc.abstractmethod
    def setup(self) -> None:
        """Make the datasets; runs in every process that trains."""

    def teardown(self) -> None:
        """Release what `setup` acquired; runs in every process, also after an error."""

    def state_dict(self) -> dict[str, Any]:
        """Return the state that a resumed run loads into this data module.

        By default, it contains every attribute of the data module and of its datasets that training has changed: the
        level of a curriculum, for example.
        """
        return self._helios_capture.collect()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load what `state_dict` returned.

        Raises:
            CheckpointMismatchError: if it does not fit the attributes of this data module.
        """
        self._helios_capture.restore(state_dict)

    @property
    def train_dataset(self) -> AnyDataset | None:
        """The dataset to train on."""
        return None if self._train_dataset is None else self._train_dataset.dataset

    @property
    def valid_dataset(self) -> AnyDataset | None:
        """The dataset to validate on."""
        return None if self._valid_dataset is None else self._valid_dataset.dataset

    @property
    def test_dataset(self) -> AnyDataset | None:
        """The dataset to test on."""
        return None if self._test_dataset is None else self._test_dataset.dataset

    def train_dataloader(self) -> Loader | None:
        """Return the loader to train with and its sampler; `None` if there is nothing to train on."""
        return self._helios_make_loader(self._train_dataset, training=True)

    def valid_dataloader(self) -> Loader | None:
        """Return the loader to validate with and its sampler; `None` if there is nothing to validate on."""
        return self._helios_make_loader(self._valid_dataset, training=False)

    def test_dataloader(self) -> Loader | None:
        """Return the loader to test with and its sampler; `None` if there is nothing to test on."""
        return self._helios_make_loader(self._test_dataset, training=False)

    def _helios_make_loader(self, dataset: Dataset | None, *, training: bool) -> Loader | None:
        if dataset is None:
            return None
        if self._helios_trainer is None:
            return dataset.dataloader(rng.get_default_seed(), training=training)
        return dataset.dataloader(self._helios_trainer.random_seed, training=training, device=self.device)

    def _create_dataset(
        self, dataset: AnyDataset, params: DataLoaderParams | Mapping[str, Any] | None = None
    ) -> Dataset:
        """Combine a dataset with how it is loaded.

        Args:
            dataset: a map-style dataset, or an `IterableDataset`.
            params: how it is loaded; `DataLoaderParams`, a mapping of its fields, or `None` for the defaults.

        Raises:
            ConfigurationError: if a parameter breaks a rule.
            ArgumentTypeError: if `params` is of another type, or a parameter is.
        """
        if isinstance(params, Mapping):
            params = DataLoaderParams.from_dict(params)
        elif params is None:
            params = DataLoaderParams()
        elif not isinstance(params, DataLoaderParams):
            raise ArgumentTypeError(
                f"params is a {type(params).__name__}: pass DataLoaderParams or a dict of its fields"
            )
        return Dataset(dataset, params)
