"""Encoding of Optuna's samplers as plain data, and decoding without running code that the data names.

A pickle would not be safe even with an allow-list: `GPSampler` has tensors, and the function with which tensors are
unpickled loads *any* pickle in turn; and one opcode sets attributes of any object, classes included. So each object
of a sampler is encoded as the name of its class and its attributes, and decoded without calling its class.

The names below include private classes of Optuna, as strings: they are looked up when a sampler is encoded or decoded.
A test encodes every sampler of the installed Optuna, and fails where a new release has added or renamed a class.
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

from helios.errors import ArgumentTypeError, CorruptCheckpointError

if TYPE_CHECKING:
    from collections.abc import Callable

# The classes of the objects in Optuna 5's samplers, before and after trials.
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
_LAZY_GENERATOR: Final = "optuna.samplers._lazy_random_state:LazyRandomState"
_MERSENNE_TWISTER: Final = "MT19937"
_MERSENNE_WORDS: Final = 624


def encode_sampler(sampler: BaseSampler) -> Any:
    """Return a sampler of Optuna as plain data for `decode_sampler`.

    Raises:
        ArgumentTypeError: if a part of it is not one of Optuna's classes or functions; the message contains its path.
    """
    return _Encoder().encode(sampler, type(sampler).__name__)


def decode_sampler(plain: Any) -> BaseSampler:
    """Return the sampler that `encode_sampler` encoded, with its state.

    Raises:
        CorruptCheckpointError: if the data name a class or function that is not part of Optuna's samplers, or have
            another form than the result of `encode_sampler`.
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
        raise CorruptCheckpointError(f"it names {name!r}, which is not part of Optuna's samplers")
    module, _, attribute = name.partition(":")
    return getattr(importlib.import_module(module), attribute)


class _Encoder:
    """Encodes objects. An object that occurs again is encoded as a reference, so that it stays shared."""

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
        if name == _LAZY_GENERATOR:
            value.rng  # noqa: B018 - the first access seeds a generator without a seed, and that seed is saved.
        attributes = {key: self.encode(part, f"{path}.{key}") for key, part in vars(value).items()}
        return {"kind": "object", "class": name, "attributes": attributes}

    def _admit(self, value: type | types.FunctionType, what: str, admitted: frozenset[str]) -> str:
        name = _name_of(value)
        # A class outside of Optuna can have the same `__module__` and `__qualname__`.
        if name not in admitted or _resolve(name, admitted) is not value:
            raise ArgumentTypeError(
                f"{what} {name.replace(':', '.')}, which is not a part of Optuna's own samplers: a sampler with it "
                "could be restored only by running code from a file. Use Optuna's classes and functions only, or wrap "
                "the sampler in ReproducibleSampler, which needs no checkpoint"
            )
        return name


class _Decoder:
    """Decodes the objects that `_Encoder` encoded, and rejects all other data."""

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
        return self._class(node, tuple)(*self._decode_all(node["items"]))  # Named tuples, whose classes run no code.

    def _decode_object(self, node: dict[str, Any]) -> Any:
        value = object.__new__(self._class(node, object))
        self._objects.append(value)
        for name, part in node["attributes"].items():
            if name.startswith("__") or hasattr(type(value), name):
                raise CorruptCheckpointError(
                    f"it sets {name!r}, which is an attribute of the class {type(value).__name__}"
                )
            vars(value)[name] = self.decode(part)
        return value

    def _class(self, node: dict[str, Any], base: type) -> Any:
        cls = _resolve(node["class"], _CLASSES)
        if not issubclass(cls, base):
            raise CorruptCheckpointError(f"it names {node['class']!r}, which is not a {base.__name__}")
        return cls


def _decode_generator(node: dict[str, Any]) -> np.random.RandomState:
    words, position = np.asarray(node["words"]), int(node["position"])
    # NumPy does not check the position, and would read outside of its array.
    if words.shape != (_MERSENNE_WORDS,) or not 0 <= position <= _MERSENNE_WORDS:
        raise CorruptCheckpointError(f"a generator has {words.shape} words and the position {position}")
    generator = np.random.RandomState(0)
    generator.set_state((_MERSENNE_TWISTER, words, position, int(node["has_gauss"]), float(node["gauss"])))
    return generator
