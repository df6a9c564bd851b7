"""A sampler of Optuna as plain data, and back, without running anything that the data asks for.

A pickle could not do this safely, however short the list of names it may ask for: `GPSampler` holds tensors, and the
function that pickles of tensors ask for loads *any* pickle in turn; and one opcode sets attributes of whatever was
asked for, classes included. So a sampler is taken apart into plain data here, each of its objects into the name of its
class and its attributes, and put together again from objects that were made without calling their classes.
"""

from __future__ import annotations

import datetime
import enum
import importlib
import types
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch
from optuna.samplers import BaseSampler
from optuna.samplers._lazy_random_state import LazyRandomState

from helios.errors import ArgumentTypeError, CorruptCheckpointError

if TYPE_CHECKING:
    from collections.abc import Callable

# What the samplers of Optuna 5 are made of: found by taking apart each of them, before and after trials.
_CLASSES: Final = frozenset({
    "optuna._gp.gp:GPRegressor",
    "optuna.distributions:CategoricalDistribution",
    "optuna.distributions:FloatDistribution",
    "optuna.distributions:IntDistribution",
    "optuna.samplers._brute_force:BruteForceSampler",
    "optuna.samplers._cmaes:CmaEsSampler",
    "optuna.samplers._gp.sampler:GPSampler",
    "optuna.samplers._grid:GridSampler",
    "optuna.samplers._lazy_random_state:LazyRandomState",
    "optuna.samplers._nsgaiii._elite_population_selection_strategy:NSGAIIIElitePopulationSelectionStrategy",
    "optuna.samplers._nsgaiii._sampler:NSGAIIISampler",
    "optuna.samplers._partial_fixed:PartialFixedSampler",
    "optuna.samplers._qmc:QMCSampler",
    "optuna.samplers._random:RandomSampler",
    "optuna.samplers._tpe.parzen_estimator:_ParzenEstimator",
    "optuna.samplers._tpe.parzen_estimator:_ParzenEstimatorParameters",
    "optuna.samplers._tpe.sampler:TPESampler",
    "optuna.samplers.nsgaii._after_trial_strategy:NSGAIIAfterTrialStrategy",
    "optuna.samplers.nsgaii._child_generation_strategy:NSGAIIChildGenerationStrategy",
    "optuna.samplers.nsgaii._crossovers._blxalpha:BLXAlphaCrossover",
    "optuna.samplers.nsgaii._crossovers._sbx:SBXCrossover",
    "optuna.samplers.nsgaii._crossovers._spx:SPXCrossover",
    "optuna.samplers.nsgaii._crossovers._undx:UNDXCrossover",
    "optuna.samplers.nsgaii._crossovers._uniform:UniformCrossover",
    "optuna.samplers.nsgaii._crossovers._vsbx:VSBXCrossover",
    "optuna.samplers.nsgaii._elite_population_selection_strategy:NSGAIIElitePopulationSelectionStrategy",
    "optuna.samplers.nsgaii._mutations._polynomial:PolynomialMutation",
    "optuna.samplers.nsgaii._sampler:NSGAIISampler",
    "optuna.search_space.group_decomposed:_GroupDecomposedSearchSpace",
    "optuna.search_space.group_decomposed:_SearchSpaceGroup",
    "optuna.search_space.intersection:IntersectionSearchSpace",
    "optuna.trial._frozen:FrozenTrial",  # CmaEsSampler(source_trials=...)
    "optuna.trial._state:TrialState",
})  # fmt: skip
_FUNCTIONS: Final = frozenset({
    "optuna._gp.prior:default_log_prior",
    "optuna.samplers._tpe.sampler:default_gamma",
    "optuna.samplers._tpe.sampler:default_gamma_multiobjective",
    "optuna.samplers._tpe.sampler:default_weights",
    "optuna.samplers._tpe.sampler:hyperopt_default_gamma",
})  # fmt: skip

_ATOMS: Final = (type(None), bool, int, float, str)
_SEQUENCES: Final = {"list": list, "tuple": tuple, "set": set}
_MERSENNE_TWISTER: Final = "MT19937"
_MERSENNE_WORDS: Final = 624


def encode_sampler(sampler: BaseSampler) -> Any:
    """Return a sampler of Optuna as plain data that `decode_sampler` takes back.

    Raises:
        ArgumentTypeError: if a part of it is not Optuna's own; the message has its path and says what to do.
    """
    return _Encoder().encode(sampler, type(sampler).__name__)


def decode_sampler(plain: Any) -> BaseSampler:
    """Return the sampler that `encode_sampler` took apart, in the state that it was in.

    Raises:
        CorruptCheckpointError: if the data asks for anything that no sampler of Optuna is made of, by name, or is not
            what `encode_sampler` makes.
    """
    try:
        sampler = _Decoder().decode(plain)
    except CorruptCheckpointError:
        raise
    except (AttributeError, LookupError, OverflowError, RecursionError, TypeError, ValueError) as error:
        raise CorruptCheckpointError(f"the data of the sampler are malformed: {error!r}") from error
    if not isinstance(sampler, BaseSampler):
        raise CorruptCheckpointError(f"the data are those of a {type(sampler).__name__}, not of a sampler")
    return sampler


def _name_of(value: type | types.FunctionType) -> str:
    return f"{value.__module__}:{value.__qualname__}"


def _resolve(name: Any, admitted: frozenset[str]) -> Any:
    if name not in admitted:
        raise CorruptCheckpointError(f"it asks for {name!r}, which no sampler of Optuna is made of")
    module, _, attribute = name.partition(":")
    return getattr(importlib.import_module(module), attribute)


class _Encoder:
    """Takes objects apart; one that is met again is referred to, so that what was shared stays shared."""

    def __init__(self) -> None:
        self._numbers: dict[int, int] = {}

    def encode(self, value: Any, path: str) -> Any:  # noqa: PLR0911 - one return for each kind of data.
        kind = type(value)
        if kind in _ATOMS:
            return value
        if kind in _SEQUENCES.values():
            return {"kind": kind.__name__, "items": self._encode_all(value, path)}
        if kind is dict:
            return {"kind": "dict", "keys": self._encode_all(value, path), "values": self._encode_values(value, path)}
        if isinstance(value, np.ndarray | np.generic | torch.Tensor):
            return {"kind": "numbers", "value": value}
        if kind is np.random.RandomState:
            return self._encode_generator(value, path)
        if kind is datetime.datetime:
            return {"kind": "datetime", "value": value.isoformat()}
        if isinstance(value, types.FunctionType | type):
            return {"kind": "name", "name": self._admit(value, f"{path} is", _FUNCTIONS | _CLASSES)}
        return self._encode_object(value, path)

    def _encode_all(self, values: Any, path: str) -> list[Any]:
        return [self.encode(value, f"{path}[{i}]") for i, value in enumerate(values)]

    def _encode_values(self, values: dict[Any, Any], path: str) -> list[Any]:
        return [self.encode(value, f"{path}[{key!r}]") for key, value in values.items()]

    def _encode_generator(self, generator: np.random.RandomState, path: str) -> dict[str, Any]:
        state: Any = generator.get_state(legacy=False)
        if state["bit_generator"] != _MERSENNE_TWISTER:
            raise ArgumentTypeError(f"{path} draws from {state['bit_generator']}: Optuna's samplers use MT19937")
        return {
            "kind": "generator",
            "words": state["state"]["key"],
            "position": state["state"]["pos"],
            "has_gauss": state["has_gauss"],
            "gauss": state["gauss"],
        }

    def _encode_object(self, value: Any, path: str) -> dict[str, Any]:
        name = self._admit(type(value), f"{path} is a", _CLASSES)
        if isinstance(value, enum.Enum):
            return {"kind": "member", "class": name, "name": value.name}
        if isinstance(value, tuple):
            return {"kind": "record", "class": name, "items": self._encode_all(value, path)}
        if id(value) in self._numbers:
            return {"kind": "same", "as": self._numbers[id(value)]}
        self._numbers[id(value)] = len(self._numbers)
        if isinstance(value, LazyRandomState):
            value.rng  # noqa: B018 - a generator without a seed gets one when asked for: the one that is saved.
        attributes = {key: self.encode(part, f"{path}.{key}") for key, part in vars(value).items()}
        return {"kind": "object", "class": name, "attributes": attributes}

    def _admit(self, value: type | types.FunctionType, what: str, admitted: frozenset[str]) -> str:
        name = _name_of(value)
        # Anybody can write Optuna's name on a class of their own.
        if name not in admitted or _resolve(name, admitted) is not value:
            raise ArgumentTypeError(
                f"{what} {name.replace(':', '.')}, which is not a part of Optuna's own samplers: a sampler with it "
                "could be restored only by running code from a file. Use what Optuna ships, or wrap the sampler in "
                "ReproducibleSampler, which needs no checkpoint"
            )
        return name


class _Decoder:
    """Puts objects together from what `_Encoder` made of them, and admits nothing else."""

    def __init__(self) -> None:
        self._objects: list[Any] = []
        self._decoders: dict[str, Callable[[dict[str, Any]], Any]] = {
            **dict.fromkeys(_SEQUENCES, lambda node: _SEQUENCES[node["kind"]](self._decode_all(node["items"]))),
            "dict": lambda node: dict(
                zip(self._decode_all(node["keys"]), self._decode_all(node["values"]), strict=True)
            ),
            "numbers": lambda node: node["value"],
            "generator": _decode_generator,
            "datetime": lambda node: datetime.datetime.fromisoformat(node["value"]),
            "name": lambda node: _resolve(node["name"], _FUNCTIONS | _CLASSES),
            "member": self._decode_member,
            "record": self._decode_record,
            "same": lambda node: self._objects[node["as"]],
            "object": self._decode_object,
        }

    def decode(self, node: Any) -> Any:
        return node if type(node) in _ATOMS else self._decoders[node["kind"]](node)

    def _decode_all(self, nodes: list[Any]) -> list[Any]:
        return [self.decode(node) for node in nodes]

    def _decode_member(self, node: dict[str, Any]) -> Any:
        return self._class(node, enum.Enum)[node["name"]]

    def _decode_record(self, node: dict[str, Any]) -> Any:
        cls = self._class(node, tuple)
        items = self._decode_all(node["items"])
        if len(items) != len(cls._fields):
            raise CorruptCheckpointError(f"it has {len(items)} fields for a {cls.__name__}")
        return tuple.__new__(cls, items)

    def _decode_object(self, node: dict[str, Any]) -> Any:
        value = object.__new__(self._class(node, object))
        self._objects.append(value)
        for name, part in node["attributes"].items():
            if name.startswith("__") or hasattr(type(value), name):
                raise CorruptCheckpointError(f"it would put {name!r} in the place of what {type(value).__name__} has")
            vars(value)[name] = self.decode(part)
        return value

    def _class(self, node: dict[str, Any], base: type) -> Any:
        cls = _resolve(node["class"], _CLASSES)
        if not issubclass(cls, base):
            raise CorruptCheckpointError(f"it takes {node['class']!r} for a {base.__name__}")
        return cls


def _decode_generator(node: dict[str, Any]) -> np.random.RandomState:
    words, position = np.asarray(node["words"]), int(node["position"])
    # NumPy would read memory that is not its own at a position that it was not told by itself.
    if words.shape != (_MERSENNE_WORDS,) or not 0 <= position <= _MERSENNE_WORDS:
        raise CorruptCheckpointError(f"a generator has {words.shape} words and stands at {position}")
    generator = np.random.RandomState(0)
    generator.set_state((_MERSENNE_TWISTER, words, position, int(node["has_gauss"]), float(node["gauss"])))
    return generator
