"""What this host can do, and, where it can't, why not and what would help: `pycontain info`."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from pycontain import _native
from pycontain.errors import PycontainError
from pycontain.isolation import capabilities, cgroups
from pycontain.runtime.host import Host

__all__ = ["probe"]

_CONTROLLERS = ("cpu", "memory", "pids", "io", "cpuset", "hugetlb", "devices", "freezer")
_NAMESPACES = ("mnt", "pid", "ipc", "uts", "net", "cgroup", "user", "time")


def probe(host: Host) -> dict[str, Any]:
    """Return facts by topic, as JSON values; `problems` is a list of sentences."""
    problems: list[str] = []
    layout = cgroups.detect(refresh=True)
    facts: dict[str, Any] = {
        "version": _native.VERSION,
        "kernel": os.uname().release,
        "machine": os.uname().machine,
        "rootless": os.geteuid() != 0,
        "state_root": host.state_root,
        "data_root": host.data_root,
        "cgroups": _cgroups(layout, problems),
        "namespaces": {n: os.path.exists(f"/proc/self/ns/{n}") for n in _NAMESPACES},
        "features": _features(problems),
        "capabilities": list(capabilities.names(capabilities.available())),
        "systemd": os.path.isdir("/run/systemd/system"),
        "containers": _count(host),
        "problems": problems,
    }
    for name, there in facts["namespaces"].items():
        if not there:
            problems.append(f"{name} namespaces: this kernel has none")
    if os.geteuid() != 0:
        _rootless(problems)
    return facts


def _cgroups(layout: cgroups.Layout, problems: list[str]) -> dict[str, Any]:
    where = {}
    for controller in _CONTROLLERS:
        place = layout.where(controller)
        if place is None and controller in ("devices", "freezer") and layout.v2_root:
            place = "v2"  # an eBPF program and cgroup.freeze, without a controller
        where[controller] = place or "missing"
        if place is None:
            problems.append(
                f"cgroup controller {controller}: no mounted hierarchy has it, so its limits are "
                "refused (boot with cgroup_enable=..., or mount it)"
            )
    for path in layout.readonly:
        problems.append(f"{path} is mounted read-only: no cgroup can be made there")
    return {"mode": str(layout.mode), "v2_root": layout.v2_root, "controllers": where}


def _features(problems: list[str]) -> dict[str, bool]:
    checks: dict[str, tuple[Callable[[], Any], str]] = {
        "openat2": (lambda: os.close(_native.openat2(-100, "/", os.O_PATH, 0, 0)), "Linux 5.6"),
        "mount_api": (_mount_tmpfs, "Linux 5.12 and CAP_SYS_ADMIN"),
        "pidfd": (lambda: os.close(os.pidfd_open(os.getpid())), "Linux 5.3"),
        "overlay": (lambda: _filesystem("overlay"), "CONFIG_OVERLAY_FS (modprobe overlay)"),
        "seccomp": (lambda: _proc("sys/kernel/seccomp/actions_avail"), "CONFIG_SECCOMP_FILTER"),
        "pressure": (lambda: _proc("pressure/cpu"), "CONFIG_PSI (boot with psi=1)"),
        "pidfd_exit_info": (lambda: _release(6, 15), "Linux 6.15 (exit codes without a monitor)"),
    }
    found = {}
    for name, (check, needs) in checks.items():
        try:
            check()
            found[name] = True
        except (OSError, PycontainError):
            found[name] = False
            problems.append(f"{name}: not here, needs {needs}")
    return found


def _mount_tmpfs() -> None:
    os.close(_native.fs_mount("tmpfs", ("size=4k",)))


def _filesystem(name: str) -> None:
    with open("/proc/filesystems") as file:
        if name not in file.read().split():
            raise FileNotFoundError(name)


def _proc(path: str) -> None:
    with open(f"/proc/{path}") as file:
        file.read(1)


def _release(major: int, minor: int) -> None:
    numbers = os.uname().release.split("-")[0].split(".")
    if (int(numbers[0]), int(numbers[1])) < (major, minor):
        raise FileNotFoundError("kernel")


def _count(host: Host) -> int:
    try:
        return len(os.listdir(f"{host.state_root}/containers"))
    except OSError:
        return 0


def _rootless(problems: list[str]) -> None:
    """What usually stands in the way of an ordinary user."""
    for path, bad, text in (
        ("/proc/sys/kernel/unprivileged_userns_clone", "0", "that sysctl set to 1"),
        ("/proc/sys/user/max_user_namespaces", "0", "that sysctl set to 15000, say"),
        (
            "/proc/sys/kernel/apparmor_restrict_unprivileged_userns", "1",
            "an AppArmor profile with `userns,`",
        ),
    ):  # fmt: skip
        with suppress(OSError), open(path) as file:
            if file.read().strip() == bad:
                problems.append(f"user namespaces: {path} is {bad}, needs {text}")
