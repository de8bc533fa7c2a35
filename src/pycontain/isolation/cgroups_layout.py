"""Where this host keeps its cgroup controllers: on v2, on v1 hierarchies, or nowhere.

Read from the mount table, never guessed from well-known paths: a container, a hybrid boot and a
private mount namespace all put the trees elsewhere. Read-only mounts count as absent.
Source: Linux Documentation/admin-guide/cgroup-v2.rst, cgroup-v1/cgroups.rst; proc(5), mountinfo.
"""

from __future__ import annotations

import os
from enum import StrEnum

from pycontain.values import frozen

V1_CONTROLLERS = frozenset(
    ("blkio", "cpu", "cpuacct", "cpuset", "devices", "freezer", "hugetlb", "memory", "pids")
)
V2_NAME_OF_V1 = {"blkio": "io"}  # the only controller that both generations have by two names


class Mode(StrEnum):
    """How the controllers are spread over the two generations of cgroups."""

    UNIFIED = "unified"  # all on v2
    HYBRID = "hybrid"  # controllers on v1, and a v2 tree for kill, freeze and PSI
    LEGACY = "legacy"  # v1 alone
    NONE = "none"  # no writable cgroup tree at all


@frozen
class Layout:
    """What is mounted where. Controllers carry their v2 names (`io`, also for v1's blkio)."""

    mode: Mode
    v2_root: str | None = None  # mount point of the v2 tree
    v2_controllers: frozenset[str] = frozenset()
    v1: tuple[tuple[str, str], ...] = ()  # (controller, mount point), sorted
    own_v2: str = "/"  # this process's own cgroup, relative to v2_root
    readonly: tuple[str, ...] = ()  # mount points passed over because they are read-only

    def where(self, controller: str) -> str | None:
        """ "v2", "v1", or None if no mounted tree has this controller."""
        if controller in self.v2_controllers:
            return "v2"
        return "v1" if self.v1_mount(controller) else None

    def v1_mount(self, controller: str) -> str | None:
        """The mount point of the v1 hierarchy that has this controller."""
        for name, mount_point in self.v1:
            if name == controller:
                return mount_point
        return None


_detected: Layout | None = None


def detect(mountinfo: str | None = None, *, refresh: bool = False) -> Layout:
    """The host's layout; kept for the life of the process unless `refresh`.

    Args:
        mountinfo: text to read instead of /proc/self/mountinfo; nothing is cached then.
        refresh: look again, because something may have been mounted since.
    """
    global _detected
    if mountinfo is not None:
        return _parse(mountinfo, "")
    if _detected is None or refresh:
        with open("/proc/self/mountinfo") as table, open("/proc/self/cgroup") as own:
            _detected = _parse(table.read(), own.read())
    return _detected


def _parse(mountinfo: str, own_cgroups: str) -> Layout:
    v2: tuple[str, str] | None = None  # mount point, root of the mount within its hierarchy
    v1: dict[str, str] = {}
    readonly = []
    for line in mountinfo.splitlines():
        before, _, after = line.partition(" - ")
        if not after.startswith("cgroup"):
            continue
        _, _, _, root, mount_point, options, *_ = before.split(" ")
        fs_type, _, super_options = after.split(" ", 2)
        mount_point = _unescape(mount_point)
        if not os.path.exists(os.path.join(mount_point, "cgroup.procs")):
            continue  # the table also lists what a later mount over a parent directory hides
        if "ro" in options.split(","):
            readonly.append(mount_point)
        elif fs_type == "cgroup2":
            v2 = v2 or (mount_point, _unescape(root))
        elif fs_type == "cgroup":
            for option in super_options.split(","):
                if option in V1_CONTROLLERS:
                    v1.setdefault(V2_NAME_OF_V1.get(option, option), mount_point)
    controllers = _controllers(v2[0]) if v2 else frozenset()
    return Layout(
        mode=_mode(bool(v2), bool(v1)),
        v2_root=v2[0] if v2 else None,
        v2_controllers=controllers,
        v1=tuple(sorted(v1.items())),
        own_v2=_own_v2(own_cgroups, v2[1] if v2 else "/"),
        readonly=tuple(readonly),
    )


def _mode(v2: bool, v1: bool) -> Mode:
    if v1:
        return Mode.HYBRID if v2 else Mode.LEGACY
    return Mode.UNIFIED if v2 else Mode.NONE


def _controllers(v2_root: str) -> frozenset[str]:
    with open(os.path.join(v2_root, "cgroup.controllers")) as file:
        return frozenset(file.read().split())


def _own_v2(own_cgroups: str, mount_root: str) -> str:
    """Our path below the v2 mount: a mount made without a cgroup namespace shows a subtree."""
    for line in own_cgroups.splitlines():
        if line.startswith("0::"):
            path = line[3:]
            prefix = mount_root.rstrip("/")
            return (path.removeprefix(prefix) or "/") if path.startswith(prefix) else "/"
    return "/"


def _unescape(text: str) -> str:
    """Undo the octal escapes of mountinfo (space, tab, newline, backslash)."""
    if "\\" not in text:
        return text
    for code, char in (("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")):
        text = text.replace(code, char)
    return text
