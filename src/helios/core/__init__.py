"""Tools that do not depend on training: seeds, registries, logging, paths, ranks and environment variables."""

from helios.core.conversion import convert_to_list, get_from_optional
from helios.core.env_info import get_env_info_str
from helios.core.paths import ChdirContext
from helios.core.registry import Registry, update_all_registries
from helios.core.safe_load import safe_torch_load
from helios.core.timing import AverageTimer

__all__ = [
    "AverageTimer",
    "ChdirContext",
    "Registry",
    "convert_to_list",
    "get_env_info_str",
    "get_from_optional",
    "safe_torch_load",
    "update_all_registries",
]
