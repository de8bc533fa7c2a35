"""What a caller may ask of one run, in docker's words, and the grammar of each word.

`RunOptions` keeps what was typed; `spec.build_spec` turns it into numbers. The parsers stand alone,
so that the command line can check a flag where it is given.

There is no `privileged`: it is a dozen unrelated grants under one word, and nobody who types it
wants all of them. Each has its own option here (cap_add, devices, seccomp, unmask, cgroupns).
"""

from __future__ import annotations

import os
import stat as stat_
from collections.abc import Callable, Iterable, Mapping, Sequence

from pycontain.errors import InvalidInput
from pycontain.oci import Device, DeviceRule, IdMap, IoLimit, Mount, Rlimit
from pycontain.runtime.units import parse_bytes
from pycontain.values import frozen

__all__ = [
    "RunOptions",
    "parse_device",
    "parse_env",
    "parse_env_file",
    "parse_io_max",
    "parse_pairs",
    "parse_signal",
    "parse_ulimit",
    "parse_userns",
]

UNLIMITED = 2**64 - 1  # RLIM_INFINITY
RLIMIT_NAMES = frozenset(
    [
        "as",
        "core",
        "cpu",
        "data",
        "fsize",
        "locks",
        "memlock",
        "msgqueue",
        "nice",
        "nofile",
        "nproc",
        "rss",
        "rtprio",
        "rttime",
        "sigpending",
        "stack",
    ]
)
_IO_KEYS = ("rbps", "wbps", "riops", "wiops")  # in the order of IoLimit
_MAX_ID = 2**32 - 2  # (uid_t)-1 means "no id" to the kernel
IdMaps = tuple[tuple[IdMap, ...], tuple[IdMap, ...]]


@frozen(kw_only=True)
class RunOptions:
    """Everything about a run but the image and the command. None means docker's default.

    Amounts are bytes or words such as "256M"; times are seconds or words such as "1m30s".
    """

    # Quotas
    memory: int | str | None = None
    memory_swap: int | str | None = None  # memory and swap together; -1 is no limit
    memory_reservation: int | str | None = None
    cpus: float | str | None = None
    cpu_weight: int | None = None  # 1..10000
    cpuset_cpus: str | None = None
    cpuset_mems: str | None = None
    pids: int | None = None  # None is 2048; -1 is no limit
    io_weight: int | None = None  # 1..10000
    io_max: Sequence[str | IoLimit] = ()  # "8:0 rbps=1M wiops=100"
    cgroup_conf: Mapping[str, str] | Sequence[str] = ()  # any cgroup v2 file
    timeout: float | str | None = None  # killed as a whole after that long
    ulimits: Sequence[str | Rlimit] = ()  # "nofile=1024:2048"
    oom_score_adj: int | None = None
    # The process
    env: Mapping[str, str] | Sequence[str] = ()
    cwd: str | None = None
    user: str | None = None  # "name", "name:group", "uid:gid"
    group_add: Sequence[str | int] = ()
    umask: int | None = None  # None is 0o022
    entrypoint: str | Sequence[str] | None = None  # "" or () drops the image's
    init: bool = False
    tty: bool = False
    interactive: bool = False
    stop_signal: str | int | None = None
    stop_timeout: float | str | None = None  # None is 10 s
    # Rights
    cap_add: Sequence[str] = ()
    cap_drop: Sequence[str] = ()
    seccomp: str | Mapping[str, object] = "default"  # "unconfined", a path, or an OCI profile
    no_new_privileges: bool = True
    devices: Sequence[str | tuple[Device, DeviceRule]] = ()  # "/dev/fuse:/dev/x:rwm"
    sysctls: Mapping[str, str] | Sequence[str] = ()
    mask: Sequence[str] = ()  # paths to hide as well
    unmask: Sequence[str] = ()  # paths not to hide or protect; "ALL"
    # Files
    read_only: bool = False
    mounts: Sequence[str | Mount] = ()
    volumes: Sequence[str] = ()  # "/host:/container:ro"
    tmpfs: Sequence[str] = ()  # "/run:size=64m"
    shm_size: int | str | None = None  # None is 64 MiB
    # Namespaces: "private" (a new one), "host" or "ns:PATH"
    hostname: str | None = None  # None is the short id
    domainname: str | None = None
    network: str = "none"  # "none" is a new one with only a loopback
    pid: str = "private"
    ipc: str = "private"
    uts: str = "private"
    cgroupns: str = "private"
    time: str = "host"
    userns: str | IdMaps = "host"  # or maps: "0:100000:65536"
    # Bookkeeping
    name: str | None = None
    labels: Mapping[str, str] | Sequence[str] = ()
    cgroup_parent: str | None = None
    log: bool = True
    log_max_bytes: int | str | None = None  # of one file; None is 16 MiB
    log_max_files: int | None = None  # None is 2


def parse_pairs(pairs: Mapping[str, str] | Sequence[str], *, field: str) -> dict[str, str]:
    """The mapping, or the one that ["key=value", ...] means; a later key wins.

    Raises:
        InvalidInput: an item without "=", an empty key or a NUL.
    """
    if isinstance(pairs, Mapping):
        items: Iterable[tuple[str, str]] = pairs.items()
    else:
        if isinstance(pairs, str):
            raise InvalidInput("give a list or a mapping, not one string", field=field)
        items = []
        for pair in pairs:
            key, equals, value = pair.partition("=")
            if not equals:
                raise InvalidInput(f"{pair!r} is not NAME=VALUE", field=field)
            items.append((key, value))
    found = {}
    for key, value in items:
        if not isinstance(key, str) or not isinstance(value, str):
            raise InvalidInput(f"{key!r}: names and values are text", field=field)
        if not key or "=" in key or "\0" in key or "\0" in value:
            raise InvalidInput(f"{key!r} is no name, or has a NUL in it", field=field)
        found[key] = value
    return found


def parse_env(
    env: Mapping[str, str] | Sequence[str], *, environ: Mapping[str, str] | None = None
) -> dict[str, str]:
    """The variables of `env`. With `environ`, a bare NAME copies from there if it is set there.

    Only the command line passes `environ`: a library must not leak its host's environment because
    of a forgotten "=".

    Raises:
        InvalidInput: no name, a NUL, or a bare NAME without `environ`.
    """
    if environ is None or isinstance(env, Mapping):
        return parse_pairs(env, field="env")
    pairs = []
    for item in env:
        if "=" in item:
            pairs.append(item)
        elif item in environ:
            pairs.append(f"{item}={environ[item]}")
    return parse_pairs(pairs, field="env")


def parse_env_file(text: str, *, environ: Mapping[str, str]) -> dict[str, str]:
    """The variables of an `--env-file`: lines of NAME=VALUE verbatim, or NAME to copy; # comments.

    Raises:
        InvalidInput: a name that is empty or has white space; the message has the line's number.
    """
    lines = []
    for number, line in enumerate(text.removeprefix("\ufeff").split("\n"), 1):
        line = line.removesuffix("\r").lstrip()
        if not line or line.startswith("#"):
            continue
        name = line.partition("=")[0]
        if not name or any(char.isspace() for char in name):
            raise InvalidInput(f"line {number}: {name!r} is not a name", field="env_file")
        lines.append(line)
    return parse_env(lines, environ=environ)


def parse_ulimit(text: str) -> Rlimit:
    """The limit that `nofile=1024:2048`, `core=0` or `memlock=-1` means; -1 is unlimited.

    Raises:
        InvalidInput: an unknown name, no number, or a soft limit over the hard one.
    """
    name, equals, values = text.partition("=")
    soft_text, colon, hard_text = values.partition(":")
    name = name.lower().removeprefix("rlimit_")
    if not equals or name not in RLIMIT_NAMES:
        raise InvalidInput(
            f"{text!r} is not NAME=SOFT[:HARD]",
            field="ulimits",
            hint=f"names are {', '.join(sorted(RLIMIT_NAMES))}",
        )
    soft = _rlimit_value(soft_text, text)
    hard = _rlimit_value(hard_text, text) if colon else soft
    if soft > hard:
        raise InvalidInput(f"{text!r}: the soft limit is over the hard one", field="ulimits")
    return Rlimit("RLIMIT_" + name.upper(), soft, hard)


def parse_device(
    text: str, *, stat: Callable[[str], os.stat_result] = os.stat
) -> tuple[Device, DeviceRule]:
    """The node to make, and the access to allow, for `/dev/fuse[:/dev/x][:rwm]`.

    Numbers, mode and owner are those of the host's node, as docker has it.

    Raises:
        InvalidInput: not such a text, or no such device on the host.
    """
    parts = text.split(":")
    access = "rwm"
    if len(parts) > 1 and not parts[-1].startswith("/"):
        access = parts.pop()
    source, target = parts[0], parts[-1]
    if len(parts) > 2 or not access or set(access) - set("rwm") or len(set(access)) < len(access):
        raise InvalidInput(f"{text!r} is not HOST[:CONTAINER][:rwm]", field="devices")
    if not source.startswith("/") or "\0" in text:
        raise InvalidInput(f"{source!r} is not an absolute path", field="devices")
    try:
        status = stat(source)
    except OSError as error:
        raise InvalidInput(f"{source}: {error.strerror}", field="devices") from None
    if stat_.S_ISCHR(status.st_mode):
        kind = "c"
    elif stat_.S_ISBLK(status.st_mode):
        kind = "b"
    else:
        raise InvalidInput(f"{source} is not a device", field="devices")
    major, minor = os.major(status.st_rdev), os.minor(status.st_rdev)
    node = Device(target, kind, major, minor, status.st_mode & 0o777, status.st_uid, status.st_gid)
    return node, DeviceRule(True, kind, major, minor, access)


def parse_io_max(text: str, *, stat: Callable[[str], os.stat_result] = os.stat) -> IoLimit:
    """The ceilings that `8:0 rbps=1M wiops=100` or `/dev/sda:rbps=1M,wbps=max` means.

    Raises:
        InvalidInput: not such a text, or no such block device on the host.
    """
    if text.startswith("/"):
        path, colon, rest = text.partition(":")
        try:
            status = stat(path)
        except OSError as error:
            raise InvalidInput(f"{path}: {error.strerror}", field="io_max") from None
        if not colon or not stat_.S_ISBLK(status.st_mode):
            raise InvalidInput(f"{path} is not a block device with limits", field="io_max")
        numbers = (os.major(status.st_rdev), os.minor(status.st_rdev))
    else:
        device, _, rest = text.strip().partition(" ")
        major, _, minor = device.partition(":")
        if not _is_number(major) or not _is_number(minor):
            raise InvalidInput(
                f"{text!r} names no device", field="io_max", hint='use "8:0 rbps=1M wiops=100"'
            )
        numbers = (int(major), int(minor))
    limits: dict[str, int | None] = {}
    for pair in rest.replace(",", " ").split():
        key, equals, value = pair.partition("=")
        if not equals or key not in _IO_KEYS:
            raise InvalidInput(
                f"{pair!r} is not one of rbps=, wbps=, riops=, wiops=", field="io_max"
            )
        limits[key] = None if value == "max" else parse_bytes(value, field="io_max")
        if limits[key] == 0:
            raise InvalidInput(f"{pair!r}: 0 would stop all transfers", field="io_max")
    if not limits:
        raise InvalidInput(f"{text!r} sets no limit", field="io_max")
    return IoLimit(*numbers, *map(limits.get, _IO_KEYS))


def parse_userns(value: str | IdMaps) -> IdMaps | None:
    """(uid map, gid map) of `0:100000:65536[,...]`; None for "host", no user namespace.

    An extent is CONTAINER:HOST:SIZE for both maps; a `u` or `g` in front restricts it to one.

    Raises:
        InvalidInput: not such a text, or ids that are out of range or overlap.
    """
    if value == "host":
        return None
    if isinstance(value, str):
        uids: list[IdMap] = []
        gids: list[IdMap] = []
        for text in value.split(","):
            parts = text.lstrip("ug").split(":")
            if len(parts) != 3 or not all(map(_is_number, parts)) or text[1:2] in ("u", "g"):
                raise InvalidInput(
                    f"{text!r} is not CONTAINER:HOST:SIZE",
                    field="userns",
                    hint='use "host" or maps such as 0:100000:65536',
                )
            extent = IdMap(*map(int, parts))
            if text[0] != "g":
                uids.append(extent)
            if text[0] != "u":
                gids.append(extent)
        value = (tuple(uids), tuple(gids))
    for extents in value:
        check_id_map(extents)
    return value


def parse_signal(value: str | int, *, field: str = "signal") -> int:
    """The number of a signal given as 15, "15", "TERM", "SIGTERM" or "RTMIN+3".

    Raises:
        InvalidInput: no such signal.
    """
    import signal

    text = str(value).strip().upper().removeprefix("SIG")
    number = 0
    if _is_number(text):
        number = int(text)
    elif text.startswith(("RTMIN+", "RTMAX-")) and _is_number(text[6:]):
        offset = int(text[6:])
        number = signal.SIGRTMIN + offset if text[3:5] == "IN" else signal.SIGRTMAX - offset
        if not signal.SIGRTMIN <= number <= signal.SIGRTMAX:
            number = 0
    elif text and not text.startswith("_"):
        number = int(getattr(signal, f"SIG{text}", 0))
    if not 1 <= number <= 64:
        raise InvalidInput(f"{value!r} is not a signal", field=field)
    return number


def check_id_map(extents: Sequence[IdMap]) -> None:
    """Nothing is wrong with one map that the kernel would refuse with a bare EINVAL.

    Raises:
        InvalidInput: empty, out of range, overlapping, or more than 340 extents.
    """
    if not 1 <= len(extents) <= 340:
        raise InvalidInput(f"a map has 1 to 340 extents, not {len(extents)}", field="userns")
    for side in ("container_id", "host_id"):
        end = 0
        for extent in sorted(extents, key=lambda extent: int(getattr(extent, side))):
            first = int(getattr(extent, side))
            text = f"{extent.container_id}:{extent.host_id}:{extent.size}"
            if extent.size < 1 or first < 0 or first + extent.size - 1 > _MAX_ID:
                raise InvalidInput(f"{text}: ids are 0..{_MAX_ID}, sizes >= 1", field="userns")
            if first < end:
                raise InvalidInput(f"{text} overlaps another extent", field="userns")
            end = first + extent.size


def _rlimit_value(text: str, whole: str) -> int:
    if text in ("-1", "unlimited"):
        return UNLIMITED
    if not _is_number(text) or int(text) > UNLIMITED:
        raise InvalidInput(f"{whole!r}: {text!r} is not a limit", field="ulimits")
    return int(text)


def _is_number(text: str) -> bool:
    """ASCII digits only, and few enough for int() to be quick."""
    return 0 < len(text) <= 20 and text.isascii() and text.isdigit()
