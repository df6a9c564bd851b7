"""The names of `helios.core`, as code written for helios-ml 1.x imports them."""

from helios.core import (
    AverageTimer,
    ChdirContext,
    Registry,
    convert_to_list,
    find_pretrained_file,
    get_env_info_str,
    get_from_optional,
    get_trainer_safe_types_for_load,
    register_trainer_safe_types_for_load,
    safe_torch_load,
    update_all_registries,
)

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
