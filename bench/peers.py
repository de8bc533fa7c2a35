"""The peers on PATH, each given the same container as pycontain: crun, runc, bwrap, podman."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any

from common import Contender, Setting, spawn_usec

# fmt: off
CAPABILITIES = [
    "CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FOWNER", "CAP_FSETID", "CAP_KILL",
    "CAP_NET_BIND_SERVICE", "CAP_SETFCAP", "CAP_SETGID", "CAP_SETPCAP", "CAP_SETUID",
    "CAP_SYS_CHROOT",
]
NAMESPACES = ("pid", "network", "ipc", "uts", "mount", "cgroup")
LOCKED = ("nosuid", "noexec", "nodev")
MOUNTS = (
    ("/proc", "proc", LOCKED),
    ("/dev", "tmpfs", ("nosuid", "strictatime", "mode=755", "size=65536k")),
    ("/dev/pts", "devpts",
     ("nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5")),
    ("/dev/shm", "tmpfs", (*LOCKED, "mode=1777", "size=65536k")),
    ("/dev/mqueue", "mqueue", LOCKED),
    ("/sys", "sysfs", (*LOCKED, "ro")),
    ("/sys/fs/cgroup", "cgroup", (*LOCKED, "relatime", "ro")),
)
MASKED = [
    "/proc/acpi", "/proc/asound", "/proc/interrupts", "/proc/kcore", "/proc/keys",
    "/proc/latency_stats", "/proc/sched_debug", "/proc/scsi", "/proc/timer_list",
    "/proc/timer_stats", "/sys/devices/virtual/powercap", "/sys/firmware", "/sys/fs/selinux",
]
READONLY = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"]
# fmt: on


def seccomp_profile() -> dict[str, Any]:
    """pycontain's own default filter as an OCI profile, as far as that format can say it."""
    from pycontain.isolation import capabilities, seccomp_profile

    held = capabilities.parse(CAPABILITIES)
    default = seccomp_profile.DEFAULT
    rules = [
        _oci_rule(rule)
        for rule in default.rules
        if held & rule.caps == rule.caps and not held & rule.not_caps and not rule.arches
    ]
    return {
        **_oci_action(default.default_action, ("defaultAction", "defaultErrnoRet")),
        "architectures": ["SCMP_ARCH_X86_64" if os.uname().machine == "x86_64"
                          else "SCMP_ARCH_AARCH64"],
        "syscalls": [rule for rule in rules if rule["action"] != "SCMP_ACT_KILL"],
    }  # fmt: skip


def _oci_rule(rule: Any) -> dict[str, Any]:
    args = [
        {"index": a.index, "value": a.value, "valueTwo": a.value_two, "op": a.op} for a in rule.args
    ]
    action = _oci_action(rule.action, ("action", "errnoRet"))
    return {"names": list(rule.names), **action, **({"args": args} if args else {})}


def _oci_action(action: int, keys: tuple[str, str]) -> dict[str, Any]:
    if action >> 16 == 0x0005:
        return {keys[0]: "SCMP_ACT_ERRNO", keys[1]: action & 0xFFFF}
    return {keys[0]: "SCMP_ACT_ALLOW" if action == 0x7FFF0000 else "SCMP_ACT_KILL"}


def write_bundle(directory: Path, rootfs: Path, args: list[str], *, memory: int = 0) -> Path:
    """Write an OCI bundle that asks for what pycontain does by default; return its directory.

    Device rules and raised rlimits are left out: neither works without CAP_SYS_RESOURCE.
    """
    directory.mkdir(parents=True)
    sets = dict.fromkeys(("bounding", "effective", "permitted"), CAPABILITIES)
    config: dict[str, Any] = {
        "ociVersion": "1.0.2",
        "process": {
            "user": {"uid": 0, "gid": 0},
            "args": args,
            "env": ["PATH=/bin"],
            "cwd": "/",
            "capabilities": sets,
            "noNewPrivileges": True,
        },
        "root": {"path": str(rootfs)},
        "hostname": "bench",
        "mounts": [
            {"destination": path, "type": kind, "source": kind, "options": list(options)}
            for path, kind, options in MOUNTS
        ],
        "linux": {
            "namespaces": [{"type": name} for name in NAMESPACES],
            "maskedPaths": MASKED,
            "readonlyPaths": READONLY,
            "seccomp": seccomp_profile(),
        },
    }
    if memory:
        config["linux"]["resources"] = {"memory": {"limit": memory, "swap": memory}}
    (directory / "config.json").write_text(json.dumps(config))
    return directory


def oci_runtime(name: str, used: Setting, bundle: Path, verb: str = "run") -> Contender | None:
    """``NAME run`` of a bundle, a new container each time; None if it is not on PATH."""
    program = shutil.which(name)
    if program is None:
        return None
    root = used.scratch / f"{name}-root"
    numbers = count()
    prefix = f"{name}-{bundle.name}"
    options = ["--cgroup-manager=cgroupfs"] if name == "crun" else []
    _set_cgroup_path(bundle, f"/{used.cgroup.name}/{prefix}")

    def run() -> float:
        container = f"{prefix}-{next(numbers)}"
        return spawn_usec(
            [program, "--root", str(root), *options, verb, "--bundle", str(bundle), container]
        )

    return run


def _set_cgroup_path(bundle: Path, path: str) -> None:
    config = json.loads((bundle / "config.json").read_text())
    config["linux"]["cgroupsPath"] = path
    (bundle / "config.json").write_text(json.dumps(config))


@contextmanager
def oci_exec(name: str, used: Setting) -> Iterator[Contender | None]:
    """``NAME exec CONTAINER /true`` into a running container; None if it is not on PATH."""
    program = shutil.which(name)
    if program is None:
        yield None
        return
    bundle = write_bundle(used.scratch / f"{name}-exec", used.rootfs, ["/pause"])
    _set_cgroup_path(bundle, f"/{used.cgroup.name}/{name}-exec")
    options = ["--cgroup-manager=cgroupfs"] if name == "crun" else []
    command = [program, "--root", str(used.scratch / f"{name}-exec-root"), *options]
    container = f"{name}-exec-{os.getpid()}"
    spawn_usec([*command, "run", "--detach", "--bundle", str(bundle), container])
    try:
        yield lambda: spawn_usec([*command, "exec", container, "/true"])
    finally:
        spawn_usec([*command, "delete", "--force", container])


def bubblewrap(used: Setting) -> Contender | None:
    """``bwrap`` with the namespaces and mounts it has: no cgroup, no masks, no filter."""
    program = shutil.which("bwrap")
    if program is None:
        return None
    command = [program, "--unshare-all", "--new-session", "--bind", str(used.rootfs), "/"]
    command += ["--proc", "/proc", "--dev", "/dev", "--mqueue", "/dev/mqueue", "--", "/true"]
    return lambda: spawn_usec(command)


def podman(used: Setting) -> Contender | None:
    """``podman run --rm --network none`` with stores of its own."""
    program = shutil.which("podman")
    if program is None:
        return None
    store = used.scratch / "podman"
    command = [
        *(program, "--root", str(store / "root"), "--runroot", str(store / "run")),
        # vfs: overlay would leave a mount behind, and --rootfs needs no driver at all
        *("--storage-driver", "vfs", "--runtime", "crun"),
        *("--cgroup-manager", "cgroupfs", "--events-backend", "none"),
        *("run", "--rm", "--network", "none", "--log-driver", "none"),
        # without CAP_SYS_RESOURCE its defaults fail: raised limits, and device rules, which it
        # has whenever it has a cgroup; so it does a little less than the others
        *("--ulimit", "nofile=1000:1000", "--ulimit", "nproc=1000:1000", "--cgroups", "disabled"),
        *("--rootfs", str(used.rootfs), "/true"),
    ]
    return lambda: spawn_usec(command)
