"""A spec that can't work is refused before anything was made, by the name of what is wrong.

What the kernel would answer with a bare EINVAL halfway through a start gets its reason here. This
is about sense, not about safety: the plan checker and the kernel refuse what is unsafe by
themselves.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from posixpath import normpath

from pycontain.errors import InvalidSpec
from pycontain.isolation import sysctl
from pycontain.oci import Device, IdMap, Mount, Process, Resources, Spec

__all__ = ["validate"]

_PAGE_BYTES = 4096
_MAX_NAME_BYTES = 64  # __NEW_UTS_LEN
# lxcfs replaces these; anything else below /proc would deceive us, who trust it (CVE-2019-16884).
_PROC_MOUNTS = frozenset(
    f"/proc/{name}"
    for name in [
        "cpuinfo",
        "diskstats",
        "meminfo",
        "stat",
        "swaps",
        "uptime",
        "loadavg",
        "slabinfo",
    ]
)
_NAMESPACES = frozenset(("mount", "pid", "ipc", "uts", "network", "cgroup", "user", "time"))
_NAME_CHARACTERS = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-")


def validate(spec: Spec) -> None:
    """Every part of `spec` is possible and none contradicts another.

    Raises:
        InvalidSpec: the first that is not; `field` is the option, or `mounts[3].destination`.
    """
    kinds = [namespace.type for namespace in spec.namespaces]
    if not _NAMESPACES.issuperset(kinds) or len(set(kinds)) < len(kinds):
        raise InvalidSpec(f"unknown or repeated types in {kinds}", field="namespaces")
    if "mount" not in kinds:
        raise InvalidSpec("a container has a mount namespace of its own", field="namespaces")
    _validate_names(spec, kinds)
    _validate_process(spec.process)
    _validate_user_namespace(spec, kinds)
    for index, mount in enumerate(spec.mounts):
        if mount.type == "proc" and mount.destination == "/proc":
            continue
        _validate_mount(mount, index)
    _validate_devices(spec.devices)
    _validate_resources(spec.resources)
    for field, paths in (("mask", spec.masked_paths), ("readonly_paths", spec.readonly_paths)):
        for path in paths:
            if path[:1] != "/" or "\0" in path or "/../" in path or path[-3:] == "/..":
                raise InvalidSpec(f"{path!r} is not an absolute path", field=field)
    if spec.sysctl:
        sysctl.check(spec.sysctl, spec.namespaces)


def _validate_names(spec: Spec, kinds: Sequence[str]) -> None:
    for field, name in (("hostname", spec.hostname), ("domainname", spec.domainname)):
        if not name:
            continue
        if "uts" not in kinds:
            raise InvalidSpec("can't be set in the host's UTS namespace", field=field)
        if len(name) > _MAX_NAME_BYTES or not _NAME_CHARACTERS.issuperset(name):
            raise InvalidSpec(
                f"{name!r} is not at most {_MAX_NAME_BYTES} letters, digits, '.', '-', '_'",
                field=field,
            )


def _validate_process(process: Process) -> None:
    if not process.args or not process.args[0]:
        raise InvalidSpec("there is none", field="command")
    for field, texts in (("command", process.args), ("env", process.env)):
        if "\0" in "".join(texts):
            raise InvalidSpec("a NUL can't be passed to a program", field=field)
    if process.cwd[:1] != "/" or "\0" in process.cwd or len(process.cwd) >= 4096:
        raise InvalidSpec(f"{process.cwd!r} is not an absolute path", field="cwd")
    if not 0 <= process.user.umask <= 0o777:
        raise InvalidSpec(f"{process.user.umask:#o} is not in 0..0o777", field="umask")
    if process.oom_score_adj is not None and not -1000 <= process.oom_score_adj <= 1000:
        raise InvalidSpec(f"{process.oom_score_adj} is not in -1000..1000", field="oom_score_adj")
    for limit in process.rlimits:
        if not 0 <= limit.soft <= limit.hard < 2**64:
            raise InvalidSpec(f"{limit.type}: not 0 <= soft <= hard", field="ulimits")


def _validate_user_namespace(spec: Spec, kinds: Sequence[str]) -> None:
    new = any(n.type == "user" and n.path is None for n in spec.namespaces)
    if not new:
        if spec.uid_mappings or spec.gid_mappings:
            raise InvalidSpec("id maps need a new user namespace", field="userns")
        return
    if not spec.uid_mappings or not spec.gid_mappings:
        raise InvalidSpec("a user namespace needs uid and gid maps", field="userns")
    user = spec.process.user
    _require_mapped(spec.uid_mappings, (user.uid,), "uid")
    _require_mapped(spec.gid_mappings, (user.gid, *user.additional_gids), "gid")
    if "pid" not in kinds:
        raise InvalidSpec(
            "can't be the host's in a user namespace: the kernel refuses to mount /proc",
            field="pid",
        )


def _require_mapped(maps: Iterable[IdMap], ids: Iterable[int], kind: str) -> None:
    for id_ in ids:
        if not any(m.container_id <= id_ < m.container_id + m.size for m in maps):
            raise InvalidSpec(f"{kind} {id_} of the process is not in the map", field="userns")


def _validate_mount(mount: Mount, index: int) -> None:
    path = mount.destination
    if path[:1] != "/" or path[:2] in ("/", "//") or "\0" in path or normpath(path) != path:
        raise InvalidSpec(
            f"{path!r} is not a normal absolute path below /", field=f"mounts[{index}].destination"
        )
    if (path == "/proc" or path.startswith("/proc/")) and path not in _PROC_MOUNTS:
        raise InvalidSpec(f"nothing may be mounted on {path}", field=f"mounts[{index}].destination")
    if mount.type == "bind" and mount.source_fd < 0:
        source = mount.source
        if not source or source[0] != "/" or "\0" in source:
            raise InvalidSpec(
                f"{source!r} is not an absolute path", field=f"mounts[{index}].source"
            )


def _validate_devices(devices: Sequence[Device]) -> None:
    for index, device in enumerate(devices):
        name = device.path.removeprefix("/dev/")
        if name == device.path or not name or ".." in name.split("/") or "\0" in name:
            raise InvalidSpec(f"{device.path!r} is not below /dev", field=f"devices[{index}].path")
        if name in ("pts", "shm", "mqueue", "console", "ptmx", "fd") or name.startswith("pts/"):
            raise InvalidSpec(f"{device.path!r} is taken", field=f"devices[{index}].path")


def _validate_resources(resources: Resources) -> None:
    for field, amount in (
        ("memory", resources.memory_max_bytes),
        ("memory_reservation", resources.memory_low_bytes),
    ):
        if amount is not None and amount < _PAGE_BYTES:
            raise InvalidSpec(
                f"{amount} bytes is less than one page", field=field, hint="no limit: leave it out"
            )
    memory, low = resources.memory_max_bytes, resources.memory_low_bytes
    if memory is not None and low is not None and low > memory:
        raise InvalidSpec("is over memory", field="memory_reservation")
    for field, weight in (("cpu_weight", resources.cpu_weight), ("io_weight", resources.io_weight)):
        if weight is not None and not 1 <= weight <= 10_000:
            raise InvalidSpec(f"{weight} is not in 1..10000", field=field)
    if resources.pids_max is not None and resources.pids_max < 1:
        raise InvalidSpec(
            f"{resources.pids_max} processes can't run anything", field="pids", hint="-1: no limit"
        )
    for field, text in (
        ("cpuset_cpus", resources.cpuset_cpus),
        ("cpuset_mems", resources.cpuset_mems),
    ):
        if text is not None and not _is_list(text):
            raise InvalidSpec(f"{text!r} is not a list such as 0-3,5", field=field)
    for name, value in resources.unified:
        # A "/" would reach into another cgroup, a newline be a second write.
        if "/" in name or name.startswith(".") or "." not in name or "\0" in name + value:
            raise InvalidSpec(f"{name!r} is not a cgroup file's name", field="cgroup_conf")


def _is_list(text: str) -> bool:
    """Whether `text` is numbers and rising ranges, separated by commas."""
    for part in text.split(","):
        first, dash, last = part.partition("-")
        for number in (first, last) if dash else (first,):
            if not number.isascii() or not number.isdigit() or len(number) > 5:
                return False
        if dash and int(first) > int(last):
            return False
    return True
