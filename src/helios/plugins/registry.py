"""Plug-ins by name."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from helios.core.registry import Registry

if TYPE_CHECKING:
    from helios.plugins.base import Plugin

PLUGIN_REGISTRY: Final[Registry[Plugin]] = Registry("plugin")


def create_plugin(type_name: str, *args: Any, **kwargs: Any) -> Plugin:
    """Make a plug-in of a registered class.

    Args:
        type_name: the name of the class in `PLUGIN_REGISTRY`.
        *args: passed on to the class.
        **kwargs: passed on to the class.

    Raises:
        UnknownNameError: if there is no such class; the message lists those there are.
    """
    return PLUGIN_REGISTRY.create(type_name, *args, **kwargs)
