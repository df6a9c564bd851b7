"""Tools that do not depend on training: seeds, registries, logging, paths, ranks and environment variables."""

from helios.core.conversion import convert_to_list, get_from_optional
from helios.core.discovery import update_all_registries
from helios.core.env_info import get_env_info_str
from helios.core.paths import ChdirContext
from helios.core.pretrained import find_pretrained_file
from helios.core.registry import Registry
from helios.core.safe_load import (
    get_trainer_safe_types_for_load,
    register_trainer_safe_types_for_load,
    safe_torch_load,
)
from helios.core.timing import AverageTimer

__all__ = [
    "AverageTimer",
    "ChdirContext",
    "Registry",
    "convert_to_list",
    "find_pretrained_file",
    "get_env_info_str",
    "get_from_optional",
    "get_trainer_safe_types_for_load",
    "register_trainer_safe_types_for_load",
    "safe_torch_load",
    "update_all_registries",
]
