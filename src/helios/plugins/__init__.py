"""Plug-ins: by convention, `import helios.plugins as hlp`."""

from helios.plugins.plugin import (
    PLUGIN_REGISTRY,
    CUDAPlugin,
    DevicePlugin,
    Plugin,
    UniquePluginOverrides,
    create_plugin,
)
from helios.plugins.table import PluginTable

__all__ = [
    "PLUGIN_REGISTRY",
    "CUDAPlugin",
    "DevicePlugin",
    "Plugin",
    "PluginTable",
    "UniquePluginOverrides",
    "create_plugin",
]
