"""The structure of a network: the classes of its modules, hooks, and tied parameters.

A resumed run constructs its network again. Weights that training has tied or untied are tied or untied again. Another
class of a module, or another hook, can only be made by the program, so there is a warning about it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import torch
from torch import nn

from helios.checkpoint.state.classes import is_own_module, name_of
from helios.checkpoint.state.contents import join, modules_of, tensors_of

if TYPE_CHECKING:
    from collections.abc import Mapping

# The attributes in which torch holds the hooks of a module and of a tensor; there is no public list.
_HOOKS: Final = (
    *("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks"),
    *("_state_dict_hooks", "_state_dict_pre_hooks", "_load_state_dict_pre_hooks", "_load_state_dict_post_hooks"),
)
_TENSOR_HOOKS: Final = ("_backward_hooks", "_post_accumulate_grad_hooks")


def find_ties(network: nn.Module, path: str, holders: dict[int, str]) -> dict[str, dict[str, str]]:
    """Return the tied tensors of a network: by module and name, the path at which an earlier module holds the tensor.

    Args:
        network: the network.
        path: its path.
        holders: the paths of the tensors of other networks, by id; those of this network are added.
    """
    ties: dict[str, dict[str, str]] = {}
    for name, module in modules_of(network).items():
        for key, tensor in tensors_of(module).items():
            where = f"{join(path, name)}.{key}"
            if holders.setdefault(id(tensor), where) != where:
                ties.setdefault(name, {})[key] = holders[id(tensor)]
    return ties


def describe_structure(network: nn.Module) -> dict[str, tuple[str, int]]:
    """Return, for each module of a network by name, its class and the number of hooks of the program."""
    return {name: (class_of(module), _count_hooks(module)) for name, module in modules_of(network).items()}


def class_of(module: nn.Module) -> str:
    """Return the name of the class that a module was constructed as; for a lazy module, the class that it becomes."""
    # `fully_shard` gives a module a class derived from FSDPModule and from the module's own class.
    classes = type(module).__mro__
    kind = next(each for each in classes if not any(base.__name__ == "FSDPModule" for base in each.__mro__))
    # `cls_to_become` is the class of a lazy module after the first batch, or `None` for the same class.
    return ".".join(name_of(getattr(kind, "cls_to_become", None) or kind))


def compare_structures(
    constructed: Mapping[str, tuple[str, int]], present: Mapping[str, tuple[str, int]], path: str
) -> dict[str, str]:
    """Return the differences that a resumed run would have: reasons by path."""
    findings: dict[str, str] = {}
    for name, (kind, hooks) in present.items():
        if name not in constructed:
            continue
        kind_before, hooks_before = constructed[name]
        if kind != kind_before:
            findings[join(path, name)] = (
                f"is a {kind} now, and was constructed as a {kind_before}, which a resumed run makes: make it in setup"
            )
        elif hooks != hooks_before:
            findings[join(path, name)] = (
                f"has {hooks} hooks, and was constructed with {hooks_before}, as a resumed run makes it: register them "
                "in setup, and let them ask an attribute what to do"
            )
    names = sorted(set(constructed) ^ set(present))
    if names:
        findings[path] = (
            f"has other modules than when it was constructed ({', '.join(map(repr, names[:5]))}), which a resumed run "
            "does not make: make them in setup"
        )
    return findings


def _count_hooks(module: nn.Module) -> int:
    tables: list[Any] = [hooks for name in _HOOKS if (hooks := getattr(module, name, None))]
    for tensor in tensors_of(module).values():
        tables += [hooks for name in _TENSOR_HOOKS if (hooks := getattr(tensor, name, None))]
    # Hooks of libraries, such as DDP and FSDP, are registered again in every process.
    return sum(is_own_module(_module_of(hook)) for hooks in tables for hook in hooks.values())


def _module_of(hook: Any) -> str:
    # torch wraps hooks of a state_dict in an object; a bound method belongs to the module of its function.
    function = getattr(hook, "hook", hook)
    return getattr(function, "__module__", None) or type(function).__module__


def tie(network: nn.Module, path: str, ties: Mapping[str, Mapping[str, str]], known: Mapping[str, Any]) -> None:
    """Tie tensors as `find_ties` returned them; other tensors stay as they are.

    Args:
        network: the network.
        path: its path.
        ties: by module and name, the path of the tensor to hold.
        known: the tensors of other networks, by path.
    """
    modules = modules_of(network)
    own = {
        f"{join(path, name)}.{key}": tensor
        for name, module in modules.items()
        for key, tensor in tensors_of(module).items()
    }
    for name, tensors in ties.items():
        for key, where in tensors.items():
            tensor = own.get(where, known.get(where))
            if name in modules and isinstance(tensor, torch.Tensor):
                table: dict[str, Any] = (
                    modules[name]._parameters if isinstance(tensor, nn.Parameter) else modules[name]._buffers  # noqa: SLF001 - torch refuses to register a parameter again.
                )
                table[key] = tensor
