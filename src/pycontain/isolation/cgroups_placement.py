"""Which limit goes to which tree of this host; what fits nowhere is refused at once."""

from __future__ import annotations

from pycontain.errors import Unsupported
from pycontain.isolation.cgroups_layout import Layout
from pycontain.isolation.cgroups_limits import Setting, v2_settings
from pycontain.isolation.cgroups_v1 import v1_settings
from pycontain.oci import Resources


def place(
    layout: Layout, resources: Resources, asks: list[Setting]
) -> tuple[list[Setting], list[Setting]]:
    """(writes on v2, writes on v1); every ask is in one of them or refused.

    Raises:
        Unsupported: naming the first option that this host has no controller for.
    """
    on_v2: list[Setting] = []
    v1_controllers: set[str] = set()
    for setting in asks:
        tree = layout.where(setting.controller)
        if not setting.controller and layout.v2_root:
            tree = "v2"
        if tree == "v2":
            on_v2.append(setting)
        elif tree == "v1" and not setting.field.startswith("cgroup_conf"):
            v1_controllers.add(setting.controller)
        else:
            needs = f"the {setting.controller or 'core'} controller"
            needs += " on cgroup v2" if tree == "v1" else ", which no mounted cgroup tree has"
            raise Unsupported(setting.field, needs=needs, hint=_why_not(layout))
    return on_v2, v1_settings(resources, v1_controllers) if v1_controllers else []


def _why_not(layout: Layout) -> str | None:
    if layout.readonly:
        return f"{layout.readonly[0]} is mounted read-only"
    return None


def unenforceable(layout: Layout, resources: Resources) -> Unsupported | None:
    """Why this host can't enforce `resources`, or None; nothing is touched.

    Raises:
        InvalidSpec: they are impossible anywhere.
    """
    try:
        place(layout, resources, v2_settings(resources))
    except Unsupported as error:
        return error
    return None
