"""The kinds of state that users' models, plug-ins and data modules have: how each is made, and what training changes.

A kind is three functions of its owner: `make` runs in `setup`, `change` in every step, and `look` returns what must be
there at the end. All attributes of a kind begin with its name, so that one owner can have all of them.
"""

# ruff: noqa: ARG005 - a change is given the old value and the number of the step, whether it looks at them or not.

from __future__ import annotations

import array
import collections
import dataclasses
import datetime
import decimal
import enum
import fractions
import functools
import pathlib
import random
import re
import types
import uuid
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

if TYPE_CHECKING:
    from collections.abc import Callable


@dataclasses.dataclass(frozen=True)
class Kind:
    make: Callable[[Any], None]
    change: Callable[[Any, int], None]
    look: Callable[[Any], Any]


KINDS: dict[str, Kind] = {}
# What no checkpoint can hold: by kind, the path below the owner that must be named.
NAMED: dict[str, str] = {}


# ------------------------------------------------------------------------------------------------------------- classes


class Colour(enum.Enum):
    RED = "red"
    BLUE = "blue"


class Level(enum.IntEnum):
    LOW = 1
    HIGH = 2


class Access(enum.Flag):
    READ = 1
    WRITE = 2
    RUN = 4


@dataclasses.dataclass
class Plain:
    number: int
    items: list[int] = dataclasses.field(default_factory=list)


@dataclasses.dataclass(frozen=True)
class Frozen:
    number: int


class Point(NamedTuple):
    x: Any
    y: Any


Transition = collections.namedtuple("Transition", ("state", "action", "next_state", "reward"))  # noqa: PYI024 - as PyTorch's DQN tutorial has it.


class Text(str):
    __slots__ = ()


class Whole(int):
    pass


class Items(list[Any]):
    def __init__(self, *items: Any) -> None:
        super().__init__(items)
        self.note = "made"


class Table(dict[str, Any]):
    pass


class AttrDict(dict[str, Any]):
    """A dictionary whose keys are attributes."""

    def __init__(self, **items: Any) -> None:
        super().__init__(items)
        self.__dict__ = self


class SAM(torch.optim.Optimizer):
    """An optimizer around another one, with the same groups."""

    def __init__(self, params: Any) -> None:
        super().__init__(params, {"rho": 0.05})
        self.base_optimizer = torch.optim.SGD(self.param_groups, lr=0.1, momentum=0.9)
        self.param_groups = self.base_optimizer.param_groups

    def step(self, closure: Any = None) -> Any:
        return self.base_optimizer.step(closure)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self.base_optimizer.param_groups = self.param_groups


class Late(nn.Module):
    """Has a buffer and a parameter that the first batches make, and a part with a state of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 1)
        self.mean: torch.Tensor | None
        self.register_buffer("mean", None)
        self.average = Average()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.mean = x.mean(0)
        if "cache" not in self._buffers:
            self.register_buffer("cache", torch.zeros(2), persistent=False)
        self.get_buffer("cache").add_(1)
        self.average.total += 1
        result: torch.Tensor = self.layer(x)
        return result


class Slotted:
    __slots__ = ("number", "unset")

    def __init__(self) -> None:
        self.number = 0


class Node:
    """An object of a user's own, which refers to itself and to others."""

    def __init__(self, number: int, other: Node | None = None) -> None:
        self.number = number
        self.other = other
        self.me = self

    def bump(self) -> None:
        self.number += 1

    @property
    def twice(self) -> int:
        return 2 * self.number


class ReplayMemory:
    """As PyTorch's DQN tutorial has it."""

    def __init__(self, capacity: int) -> None:
        self.memory: collections.deque[Any] = collections.deque(maxlen=capacity)

    def push(self, *args: Any) -> None:
        self.memory.append(Transition(*args))


class EMA:
    """As it is pasted everywhere."""

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.model = model
        self.decay = decay
        self.shadow: dict[str, torch.Tensor] = {}
        self.backup: dict[str, torch.Tensor] = {}
        for name, param in model.named_parameters():
            self.shadow[name] = param.data.clone()

    def update(self) -> None:
        for name, param in self.model.named_parameters():
            self.shadow[name] = (1.0 - self.decay) * param.data + self.decay * self.shadow[name]


class Average:
    """Has a state of its own."""

    def __init__(self) -> None:
        self.total = 0.0

    def state_dict(self) -> dict[str, Any]:
        return {"total": self.total, "kinds": collections.Counter("ab")}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        assert type(state_dict["kinds"]) is collections.Counter
        self.total = state_dict["total"]


class Counting(nn.Module):
    """Counts on itself, keeps a buffer out of its state, and lets others see a buffer."""

    calls_of_class = 0

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 2)
        self.drop = nn.Dropout(0.5)
        self.norm = nn.BatchNorm1d(2)
        self.calls = 0
        self.cache: torch.Tensor
        self.register_buffer("cache", torch.zeros(2), persistent=False)
        self.register_buffer("center", torch.zeros(2))
        self.register_buffer("queue", torch.zeros(1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        Counting.calls_of_class += 1
        self.cache = self.cache + 1
        result: torch.Tensor = self.norm(self.drop(self.layer(x)))
        return result


class Named(torch.Tensor):
    """A subclass of a tensor, with an attribute."""


class WithDouble(torch.optim.SGD):
    """An optimizer with an attribute of its own, and a state in double precision."""

    def __init__(self, params: Any) -> None:
        super().__init__(params, lr=0.1)
        self.steps_of_mine = 0

    def step(self, closure: Any = None) -> Any:
        self.steps_of_mine += 1
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                total = state.get("total", torch.zeros((), dtype=torch.float64))
                state["total"] = total + parameter.grad.double().sum() / 3
        return super().step(closure)


# ------------------------------------------------------------------------------------------------------------ values


def done(*_: Any) -> None:
    """Return nothing: the change was made in place."""


def value(name: str, first: Any, change: Callable[[Any, int], Any]) -> None:
    """Add a kind of one attribute, that a step assigns or, if the change returns `None`, changes in place."""

    def step(owner: Any, number: int) -> None:
        changed = change(getattr(owner, name), number)
        if changed is not None:
            setattr(owner, name, changed)

    def make(owner: Any) -> None:
        setattr(owner, name, first())

    KINDS[name] = Kind(make, step, lambda owner: getattr(owner, name))


value("integer", lambda: 0, lambda old, n: old + n)
value("none_to_text", lambda: None, lambda old, n: f"{old} {n}")
value("complex_number", lambda: 0j, lambda old, n: old + complex(n, 1))
value("raw_bytes", lambda: b"a", lambda old, n: b"" if n == 5 else old + b"x")
value("decimal", lambda: decimal.Decimal("0.10"), lambda old, n: old + n)
value("fraction", lambda: fractions.Fraction(1, 3), lambda old, n: old + fractions.Fraction(1, n))
value("identifier", lambda: uuid.UUID(int=1), lambda old, n: uuid.UUID(int=n))
value("path", lambda: pathlib.Path("a"), lambda old, n: old / str(n))
value("moment", lambda: datetime.datetime(2020, 1, 1, tzinfo=datetime.UTC),
      lambda old, n: old + datetime.timedelta(days=n, microseconds=1))  # fmt: skip
value("day", lambda: datetime.date(2020, 1, 1), lambda old, n: old + datetime.timedelta(days=n))
value("duration", datetime.timedelta, lambda old, n: old + datetime.timedelta(seconds=n))
value("span", lambda: range(3), lambda old, n: range(n))
value("cut", lambda: slice(1), lambda old, n: slice(n, None, 2))
value("pattern", lambda: re.compile("a"), lambda old, n: re.compile(f"a{n}", re.IGNORECASE))
value("member", lambda: Colour.RED, lambda old, n: Colour.BLUE)
value("whole_member", lambda: Level.LOW, lambda old, n: Level.HIGH)
value("flags", lambda: Access.READ, lambda old, n: Access.READ | Access.RUN)
value("text_of_mine", lambda: Text("a"), lambda old, n: Text(f"{old}{n}"))
value("whole_of_mine", lambda: Whole(1), lambda old, n: Whole(n))
value("class_of_mine", lambda: Plain, lambda old, n: Frozen)
value("frozen_set", lambda: frozenset({0}), lambda old, n: old | {n})
value("pair", lambda: (0, "a"), lambda old, n: (n, [n]))
value("point", lambda: Point(0, 0), lambda old, n: Point(n, torch.full((2,), float(n))))
value("frozen_class", lambda: Frozen(0), lambda old, n: Frozen(n))
value("dtype", lambda: torch.float32, lambda old, n: torch.bfloat16)
value("number_of_numpy", lambda: np.float32(0), lambda old, n: np.float32(old + 0.1))
value("long_double", lambda: np.longdouble(0), lambda old, n: old + np.longdouble(1) / 3)
value("moment_of_numpy", lambda: np.datetime64("2020-01-01"), lambda old, n: old + np.timedelta64(n, "D"))

# --------------------------------------------------------------------------------------------------------- containers


value("numbers", list, lambda old, n: old.append(n))
value("numbers_of_numpy", list, lambda old, n: old.append(np.float32(n) / 3))
value("with_a_path", lambda: [1], lambda old, n: old.append(pathlib.Path(str(n))))
value("a_set", lambda: {0}, lambda old, n: old.add(n))
value("a_deque", lambda: collections.deque([0], maxlen=3), lambda old, n: old.append(n))
value("a_bytearray", lambda: bytearray(b"a"), lambda old, n: old.extend(b"b"))
value("an_array", lambda: array.array("d", [0.0]), lambda old, n: old.append(n / 3))
value("a_default", lambda: collections.defaultdict(list), lambda old, n: old[n % 3].append(n))
value("a_default_of_mine", lambda: collections.defaultdict(lambda: [0]), lambda old, n: old[n % 3].append(n))
value("a_counter", collections.Counter, lambda old, n: old.update("ab"))
value("an_ordered", lambda: collections.OrderedDict(a=1, b=2), lambda old, n: old.move_to_end(("a", "b")[n % 2]))
value("an_lru", lambda: collections.OrderedDict.fromkeys("abc"), lambda old, n: old.move_to_end("abc"[n % 3]))
value("keys_as_attributes", lambda: AttrDict(n=0), lambda old, n: AttrDict(n=n))
value("a_long", lambda: 1, lambda old, n: old << 1000)
value("longs", lambda: [1], lambda old, n: old.append(n << 3000))
value("a_chain", lambda: collections.ChainMap({}), lambda old, n: old.update({str(n): n}))
value("a_namespace", lambda: types.SimpleNamespace(n=0), lambda old, n: setattr(old, "n", n))
value("a_data_class", lambda: Plain(0), lambda old, n: old.items.append(n))
value("an_object", lambda: Node(0), lambda old, n: setattr(old, "other", Node(n, old)))
value("a_slotted", Slotted, lambda old, n: setattr(old, "number", n))
value("items_of_mine", lambda: Items(1), lambda old, n: done(old.append(n), vars(old).update(note=str(n))))
value("table_of_mine", Table, lambda old, n: old.update({str(n): n}))
value("odd_keys", dict, lambda old, n: old.update({(n, "a"): n, frozenset({n}): n, Colour.RED: n, None: n, n: n}))
value("with_our_mark", dict, lambda old, n: old.update({"$": n, "items": []}))
value(
    "order_of_keys",
    lambda: {"a": 0, "b": 0},
    lambda old, n: old.update({("a", "b")[n % 2]: old.pop(("a", "b")[n % 2])}),
)
value("nested", lambda: {"a": [{"b": (1, {2})}]}, lambda old, n: old["a"][0].update(c=[n, {"d": {n}}]))
value("history", list, lambda old, n: old.append({"loss": torch.tensor(n / 3), "step": n}))
value("a_user_dict", lambda: collections.UserDict(a=1), lambda old, n: old.update(b=n))
value("a_memory", lambda: ReplayMemory(4),
      lambda old, n: old.push(torch.full((1, 2), n / 3), torch.tensor([[n]]), None, torch.ones(1)))  # fmt: skip
value("objects", lambda: np.array([None, {}], dtype=object), lambda old, n: old[1].update(n=n))

# -------------------------------------------------------------------------------------------------- arrays and tensors


value("numbers_in_place", lambda: np.zeros(3), lambda old, n: old.__setitem__(n % 3, n / 3))
value("fortran", lambda: np.zeros((2, 3), order="F"), lambda old, n: np.asfortranarray(old + n))
value(
    "structured", lambda: np.zeros(2, dtype=[("a", "i4"), ("b", "f8", (2,))]), lambda old, n: old["b"].__setitem__(0, n)
)
value("dates", lambda: np.array(["2020-01-01"], dtype="M8[D]"), lambda old, n: old + n)
value("long_doubles", lambda: np.zeros(2, np.longdouble), lambda old, n: old + np.longdouble(1) / 3)
value("texts_of_numpy", lambda: np.array(["a"]), lambda old, n: np.array(["a" * n]))
value("masked", lambda: np.ma.array([1.0, 2.0], mask=[False, True], fill_value=7.0), lambda old, n: old + n)
value(
    "masked_in_place",
    lambda: np.ma.array([1, 2], mask=[False, False]),
    lambda old, n: old.__setitem__(n % 2, np.ma.masked),
)
value("tensor", lambda: torch.zeros(2), lambda old, n: done(old.add_(n / 3)))
value("tensor_assigned", lambda: torch.zeros(2), lambda old, n: old + n / 3)
value("tensor_data", lambda: torch.zeros(2), lambda old, n: done(old.data.add_(n)))
value("tensor_by_numpy", lambda: torch.zeros(2), lambda old, n: done(old.numpy().__iadd__(n)))
value("tensor_grown", lambda: torch.zeros(1), lambda old, n: done(old.resize_(n).fill_(n)))
value("half", lambda: torch.zeros(2, dtype=torch.bfloat16), lambda old, n: old + n / 3)
value(
    "eighth",
    lambda: torch.zeros(2).to(torch.float8_e4m3fn),
    lambda old, n: torch.full((2,), n / 3).to(torch.float8_e4m3fn),
)
value("complex_tensor", lambda: torch.zeros(2, dtype=torch.complex64), lambda old, n: (old + n).conj())
value("booleans", lambda: torch.zeros(2, dtype=torch.bool), lambda old, n: ~old)
value("sparse", lambda: torch.eye(2).to_sparse(), lambda old, n: old * n)
value("sparse_rows", lambda: torch.eye(2).to_sparse_csr(), lambda old, n: old * n)
value(
    "named_tensor", lambda: torch.zeros(2).as_subclass(Named), lambda old, n: done(old.add_(n), vars(old).update(tag=n))
)
value("tensor_with_attribute", lambda: torch.zeros(2), lambda old, n: setattr(old, "tag", [n]))
value("strided", lambda: torch.zeros(2, 3), lambda old, n: (old.t() + n).t())
value("inference", lambda: torch.zeros(2), lambda old, n: _infer(n))


def _infer(number: int) -> torch.Tensor:
    with torch.inference_mode():
        return torch.full((2,), float(number))


# ------------------------------------------------------------------------------------------------ random generators


value("torch_generator", lambda: torch.Generator().manual_seed(1), lambda old, n: done(torch.rand(1, generator=old)))
value("numpy_generator", lambda: np.random.default_rng(1), lambda old, n: done(old.integers(9, dtype=np.uint32)))
value("philox", lambda: np.random.Generator(np.random.Philox(1)), lambda old, n: done(old.random()))
value("bits", lambda: np.random.SFC64(1), lambda old, n: done(old.random_raw()))
value("random_state", lambda: np.random.RandomState(1), lambda old, n: done(old.randn()))
value("python_generator", lambda: random.Random(1), lambda old, n: done(old.gauss(0, 1)))
value("generator_assigned", lambda: None, lambda old, n: np.random.default_rng(n))


# ------------------------------------------------------------------------------------------------ identity, networks


def _add(name: str, kind: type) -> None:
    KINDS[name] = Kind(kind.make, kind.change, kind.look)  # type: ignore[attr-defined]  # each class below has the three


class _Shared:
    """Two attributes are one list, until a step assigns one of them."""

    @staticmethod
    def make(o: Any) -> None:
        o.shared_a = o.shared_b = [0]
        o.shared_c = o.shared_d = [0]
        o.shared_e = o.shared_f = None

    @staticmethod
    def change(o: Any, n: int) -> None:
        o.shared_a.append(n)
        o.shared_c = [n]
        o.shared_e = o.shared_f = bytearray([n])

    @staticmethod
    def look(o: Any) -> Any:
        return [
            o.shared_e is o.shared_f,
            o.shared_e,
            o.shared_a is o.shared_b,
            o.shared_c is o.shared_d,
            o.shared_a,
            o.shared_c,
            o.shared_d,
        ]


class _Cycle:
    @staticmethod
    def make(o: Any) -> None:
        o.cycle = []

    @staticmethod
    def change(o: Any, n: int) -> None:
        o.cycle = [n]
        o.cycle.append(o.cycle)

    @staticmethod
    def look(o: Any) -> Any:
        return [o.cycle[0], o.cycle[1] is o.cycle]


class _Late:
    """An attribute that a step makes, and one that it deletes."""

    @staticmethod
    def make(o: Any) -> None:
        o.late_deleted = 1

    @staticmethod
    def change(o: Any, n: int) -> None:
        o.late_made = [n]
        vars(o).pop("late_deleted", None)

    @staticmethod
    def look(o: Any) -> Any:
        return [o.late_made, hasattr(o, "late_deleted")]


class _Alpha:
    """A free tensor with an optimizer, as soft actor-critic has it, and a free parameter."""

    @staticmethod
    def make(o: Any) -> None:
        o.alpha_log = torch.zeros(1, requires_grad=True)
        o.alpha_parameter = nn.Parameter(torch.ones(1))
        o.alpha_optimizer = torch.optim.Adam([o.alpha_log, o.alpha_parameter], lr=0.1)

    @staticmethod
    def change(o: Any, n: int) -> None:
        o.alpha_optimizer.zero_grad()
        (o.alpha_log.exp() * o.alpha_parameter * n).sum().backward()
        o.alpha_optimizer.step()

    @staticmethod
    def look(o: Any) -> Any:
        held = o.alpha_optimizer.param_groups[0]["params"]
        return [o.alpha_log, o.alpha_parameter, held[0] is o.alpha_log, held[1] is o.alpha_parameter]


class _Network:
    """A network, seen through aliases, whose parts are frozen, switched and counted while it trains."""

    @staticmethod
    def make(o: Any) -> None:
        o.network_net = Counting()
        o.network_teacher = nn.Dropout(0.1).eval()
        o.network_params = list(o.network_net.parameters())
        o.network_optimizer = WithDouble(o.network_net.layer.parameters())
        o.network_group = o.network_optimizer.param_groups[0]
        o.network_center = o.network_net.center
        o.network_scheduler = torch.optim.lr_scheduler.LambdaLR(o.network_optimizer, lambda n: 1 / (n + 1))
        o.network_average = AveragedModel(o.network_net.layer)
        o.network_ema = EMA(o.network_net.layer, 0.9)
        o.network_mean = Average()

    @staticmethod
    def change(o: Any, n: int) -> None:
        net = o.network_net
        net.zero_grad()
        net(torch.tensor([[1.0, n], [n, 0.5]])).pow(2).sum().backward()
        nn.utils.clip_grad_norm_(o.network_params, 0.1)
        o.network_optimizer.step()
        o.network_scheduler.step()
        o.network_group["lr"] *= 0.9
        o.network_average.update_parameters(net.layer)
        o.network_ema.update()
        o.network_mean.total += n / 3
        net.center.add_(1)
        net.queue = torch.cat([net.queue, torch.ones(1)])
        net.layer.bias.requires_grad_(n % 4 != 1)
        net.drop.p = 0.5 / n
        net.norm.train(n % 3 != 1)

    @staticmethod
    def look(o: Any) -> Any:
        net = o.network_net
        return [
            [parameter is held for parameter, held in zip(net.parameters(), o.network_params, strict=True)],
            [parameter.requires_grad for parameter in net.parameters()],
            [module.training for module in (net, net.norm, net.drop, o.network_teacher)],
            [net.calls, net.cache, net.queue, net.drop.p, dict(net.state_dict())],
            [o.network_center, o.network_center is net.center, o.network_group is o.network_optimizer.param_groups[0]],
            [o.network_optimizer.steps_of_mine, o.network_optimizer.state_dict(), o.network_scheduler.state_dict()],
            [dict(o.network_average.state_dict()), o.network_ema.shadow, o.network_ema.model is net.layer],
            o.network_mean.total,
        ]


class _Nets:
    """Networks in containers, with keys and neighbours of other kinds."""

    @staticmethod
    def make(o: Any) -> None:
        o.nets_by_colour = {Colour.RED: nn.Linear(1, 1), Colour.BLUE: nn.Dropout(0.2)}
        o.nets_mixed = (nn.Linear(1, 1), 3, {"count": 0})
        o.nets_object = types.SimpleNamespace(net=nn.Linear(1, 1), steps=0)

    @staticmethod
    def change(o: Any, n: int) -> None:
        with torch.no_grad():
            for net in (o.nets_by_colour[Colour.RED], o.nets_mixed[0], o.nets_object.net):
                net.weight.add_(n / 3)
        o.nets_mixed[2]["count"] += 1
        o.nets_object.steps += 1

    @staticmethod
    def look(o: Any) -> Any:
        nets = [o.nets_by_colour[Colour.RED], o.nets_mixed[0], o.nets_object.net]
        return [*[dict(net.state_dict()) for net in nets], o.nets_mixed[1:], o.nets_object.steps]


class _Groups:
    """Progressive unfreezing: an optimizer is given parameters while it trains, and another is made anew."""

    @staticmethod
    def make(o: Any) -> None:
        o.groups_net = nn.Sequential(nn.Linear(1, 1), nn.Linear(1, 1))
        o.groups_optimizer = torch.optim.SGD(o.groups_net[1].parameters(), lr=0.1, momentum=0.9)
        o.groups_again = torch.optim.SGD(o.groups_net[0].parameters(), lr=0.1, momentum=0.9)

    @staticmethod
    def change(o: Any, n: int) -> None:
        if len(o.groups_optimizer.param_groups) == 1:
            o.groups_optimizer.add_param_group({"params": list(o.groups_net[0].parameters()), "lr": 0.01})
        if n % 2 == 0:
            o.groups_again = torch.optim.SGD(o.groups_net[0].parameters(), lr=0.1 / n, momentum=0.9)
        o.groups_net.zero_grad()
        o.groups_net(torch.full((1, 1), n / 3)).sum().backward()
        o.groups_optimizer.step()
        o.groups_again.step()

    @staticmethod
    def look(o: Any) -> Any:
        return [dict(o.groups_net.state_dict()), o.groups_optimizer.state_dict(), o.groups_again.state_dict()]


class _Swapped:
    """Networks, optimizers, lists and functions that change places, as target networks do."""

    @staticmethod
    def make(o: Any) -> None:
        o.swapped_a, o.swapped_b = nn.Linear(1, 1), nn.Linear(1, 1)
        o.swapped_optimizers = [torch.optim.SGD(net.parameters(), lr=0.1) for net in (o.swapped_a, o.swapped_b)]
        o.swapped_c, o.swapped_d = [1], [2]
        o.swapped_f, o.swapped_g = functools.partial(min, 1), functools.partial(max, 2)

    @staticmethod
    def change(o: Any, n: int) -> None:
        o.swapped_a, o.swapped_b = o.swapped_b, o.swapped_a
        o.swapped_c, o.swapped_d = o.swapped_d, o.swapped_c
        o.swapped_f, o.swapped_g = o.swapped_g, o.swapped_f
        o.swapped_optimizers.reverse()
        o.swapped_c.append(n)
        with torch.no_grad():
            o.swapped_a.weight.mul_(n / 3)
        o.swapped_optimizers[0].param_groups[0]["lr"] += 0.1

    @staticmethod
    def look(o: Any) -> Any:
        held = [optimizer.param_groups[0]["params"][0] for optimizer in o.swapped_optimizers]
        return [
            [dict(o.swapped_a.state_dict()), dict(o.swapped_b.state_dict()), o.swapped_c, o.swapped_d],
            [o.swapped_f(5), o.swapped_g(5), held[0] is o.swapped_a.weight, held[1] is o.swapped_b.weight],
            [optimizer.param_groups[0]["lr"] for optimizer in o.swapped_optimizers],
        ]


class _Corners:
    """A view of weights that are assigned, a prompt that is frozen, wrapped optimizers, tensors that appear."""

    @staticmethod
    def make(o: Any) -> None:
        o.corners_net = Late()
        o.corners_view = [parameter.data for parameter in o.corners_net.parameters()]
        o.corners_sam = SAM(o.corners_net.parameters())
        o.corners_prompt = nn.Parameter(torch.zeros(2))
        o.corners_f = o.corners_g = None

    @staticmethod
    def change(o: Any, n: int) -> None:
        net = o.corners_net
        net.zero_grad()
        net(torch.full((2, 2), n / 3)).sum().backward()
        o.corners_sam.step()
        o.corners_sam.base_optimizer.param_groups[0]["lr"] *= 0.9
        net.layer.weight.data = net.layer.weight.data * 0.9
        o.corners_prompt.requires_grad_(requires_grad=n % 4 == 0)
        o.corners_f = o.corners_g = functools.partial(make_pair, n)

    @staticmethod
    def look(o: Any) -> Any:
        net, sam = o.corners_net, o.corners_sam
        return [
            [dict(net.state_dict()), net.mean, net.get_buffer("cache"), net.average.total, o.corners_prompt],
            [sam.state_dict(), sam.base_optimizer.state_dict(), sam.param_groups is sam.base_optimizer.param_groups],
            [o.corners_f is o.corners_g, o.corners_f(1)],
        ]


def make_pair(first: int, second: int) -> tuple[int, int]:
    return first, second


class _Closure:
    """A counter in a closure, one on a function, one on a class, and a method that is called by another name."""

    @staticmethod
    def make(o: Any) -> None:
        count = 0

        def call() -> int:
            nonlocal count
            count += 1
            return count

        o.closure_call = call
        o.closure_node = Node(0)
        o.closure_set = functools.partial(setattr, o.closure_node, "number")
        o.closure_method = None
        o.closure_class = Slotted

    @staticmethod
    def change(o: Any, n: int) -> None:
        o.closure_call()
        o.closure_call.calls = n
        o.closure_set(n)
        o.closure_method = o.closure_node.bump

    @staticmethod
    def look(o: Any) -> Any:
        method = o.closure_method
        return [o.closure_call(), o.closure_call.calls, o.closure_node.number, method.__self__ is o.closure_node]


class _Class:
    @staticmethod
    def make(o: Any) -> None:
        o.class_net = Counting()

    @staticmethod
    def change(o: Any, n: int) -> None:
        del n
        o.class_net(torch.ones(2, 2))

    @staticmethod
    def look(o: Any) -> Any:
        del o
        return Counting.calls_of_class


class _Tied:
    """Weights that training ties and unties, within a network and between two."""

    @staticmethod
    def make(o: Any) -> None:
        o.tied_net = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2), nn.Linear(2, 2))
        o.tied_other = nn.Linear(2, 2)
        o.tied_net[2].bias = o.tied_net[0].bias

    @staticmethod
    def change(o: Any, n: int) -> None:
        net = o.tied_net
        if n == 1:
            net[1].weight = net[0].weight
            o.tied_other.weight = net[2].weight
            net[2].bias = nn.Parameter(torch.zeros(2))
        with torch.no_grad():
            net[0].weight.add_(n)
            net[2].weight.mul_(2)
            net[2].bias.sub_(n)

    @staticmethod
    def look(o: Any) -> Any:
        net, other = o.tied_net, o.tied_other
        ties = [net[1].weight is net[0].weight, other.weight is net[2].weight, net[2].bias is net[0].bias]
        return [ties, dict(net.state_dict()), dict(other.state_dict())]


class _Memory:
    """Views that training makes of what was constructed, and what NumPy and Python share in setup."""

    @staticmethod
    def make(o: Any) -> None:
        o.memory_base = torch.zeros(6)
        o.memory_net = nn.Linear(2, 2)
        o.memory_view = o.memory_data = None
        o.memory_array = np.zeros(4)
        o.memory_tensor = torch.from_numpy(o.memory_array)
        o.memory_slice = o.memory_array[1:3]
        o.memory_bytes = bytearray(3)
        o.memory_bytes_view = memoryview(o.memory_bytes)
        o.memory_strings = np.array(["a", "b"], dtype=np.dtypes.StringDType())

    @staticmethod
    def change(o: Any, n: int) -> None:
        if n == 1:
            o.memory_view, o.memory_data = o.memory_base[1:4], o.memory_net.weight.data[0]
        o.memory_view += n
        o.memory_data.add_(n)
        o.memory_tensor += n
        o.memory_slice *= 2
        o.memory_bytes_view[n % 3] = n
        o.memory_strings[0] += "z" * n

    @staticmethod
    def look(o: Any) -> Any:
        o.memory_view.add_(1)
        o.memory_data.add_(1)
        o.memory_tensor.add_(1)
        return [
            [o.memory_base, o.memory_net.weight.detach(), o.memory_array, o.memory_slice],
            [bytes(o.memory_bytes), bytes(o.memory_bytes_view), o.memory_strings.tolist()],
            isinstance(o.memory_strings.dtype, np.dtypes.StringDType),
        ]


class OwnRandom(random.Random):
    """A generator of a class of the user's, with an attribute."""

    draws = 0

    def draw(self) -> float:
        self.draws += 1
        return self.random()


class OwnState(np.random.RandomState):
    pass


class OwnGenerator(np.random.Generator):
    pass


class _Generators:
    @staticmethod
    def make(o: Any) -> None:
        o.generators_mine = [OwnRandom(1), OwnState(1), OwnGenerator(np.random.PCG64(1))]

    @staticmethod
    def change(o: Any, n: int) -> None:
        del n
        o.generators_mine[0].draw()
        o.generators_mine[1].rand()
        o.generators_mine[2].random()

    @staticmethod
    def look(o: Any) -> Any:
        mine, state, generator = o.generators_mine
        return [mine.draws, mine.draw(), state.rand(), generator.random()]


def remember(item: int, memory: list[int] = [], *, last: dict[str, int] = {}) -> None:  # noqa: B006 - the point
    memory.append(item)
    last["item"] = item


class _Defaults:
    """Defaults of arguments, of a function and of a method, and an attribute of a member of an enumeration."""

    @staticmethod
    def make(o: Any) -> None:
        o.defaults_function = remember
        o.defaults_node = Keeping()
        o.defaults_member = Rated.GOOD

    @staticmethod
    def change(o: Any, n: int) -> None:
        o.defaults_function(n)
        o.defaults_node.keep(n)
        Rated.GOOD.count = n

    @staticmethod
    def look(o: Any) -> Any:
        keep = Keeping.keep.__defaults__ or ()
        return [o.defaults_function.__defaults__, o.defaults_function.__kwdefaults__, list(keep), Rated.GOOD.count]


class Keeping:
    def keep(self, item: int, kept: list[int] = []) -> None:  # noqa: B006 - the point
        kept.append(item)


class Rated(enum.Enum):
    GOOD = "good"
    count: int


for _name, _kind in {
    "tied": _Tied, "memory": _Memory, "generators": _Generators, "defaults": _Defaults,
    "shared": _Shared, "cycle": _Cycle, "late": _Late, "alpha": _Alpha, "network": _Network, "nets": _Nets,
    "groups": _Groups,
    "swapped": _Swapped, "corners": _Corners, "closure": _Closure, "class": _Class,
}.items():  # fmt: skip
    _add(_name, _kind)


# ------------------------------------------------------------------------------------- what no checkpoint can hold


def _deep(levels: int) -> list[Any]:
    items: list[Any] = []
    for _ in range(levels):
        items = [items]
    return items


def cannot(name: str, first: Callable[[], Any], change: Callable[[Any, int], Any], path: str = "") -> None:
    """Add a kind that is named in the log."""
    value(name, first, change)
    NAMED[name] = f"{name}{path}"


class Money(decimal.Decimal):
    pass


cannot("an_error", lambda: None, lambda old, n: ValueError(n))
cannot("a_decimal_of_mine", lambda: None, lambda old, n: Money(n))
cannot("a_reduction", lambda: torch.sum, lambda old, n: torch.mean)
cannot("an_iterator", lambda: iter([1, 2, 3] * 99), lambda old, n: done(next(old)))
cannot("a_generator", lambda: (n for n in range(999)), lambda old, n: done(next(old)))
cannot("a_file", lambda: open("/dev/null", "rb"), lambda old, n: done(old.read(0)))  # noqa: SIM115, PTH123 - the point
cannot("a_lambda", lambda: None, lambda old, n: lambda: n)
cannot("a_deep_list", list, lambda old, n: _deep(5000))
cannot("a_new_network", lambda: None, lambda old, n: nn.Linear(1, 1))
cannot("a_new_optimizer", lambda: torch.optim.SGD([torch.zeros(1)]), lambda old, n: torch.optim.Adam([torch.zeros(1)]))
cannot("a_graph", lambda: torch.ones(1, requires_grad=True), lambda old, n: old * 2 if old.is_leaf else old)
cannot("a_shared_array", lambda: [np.zeros(4), None], lambda old, n: old.__setitem__(1, old[0][1:]), "[1]")
cannot("in_a_list", list, lambda old, n: old.append(iter("a")), "[0]")
cannot("in_an_object", lambda: Node(0), lambda old, n: setattr(old, "other", iter("a")), ".other")
