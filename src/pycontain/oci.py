"""Value types that several rooms share: what an image says, what a container is to be.

All are frozen and compare by value. Numbers carry their unit in the name; None means "not given".
Source: OCI image-spec 1.1 (config, descriptor), OCI runtime-spec 1.3 (config.md, config-linux.md).
"""

from __future__ import annotations

from typing import NewType

from pycontain.values import field, frozen

Digest = NewType("Digest", str)  # "sha256:<64 hex>" or "sha512:<128 hex>", checked where it enters
ContainerId = NewType("ContainerId", str)


@frozen
class Platform:
    """An image platform, in Go's words (amd64, arm64)."""

    os: str
    architecture: str
    variant: str | None = None


@frozen
class Descriptor:
    """Names content by digest and size (image-spec descriptor.md)."""

    media_type: str
    digest: Digest
    size_bytes: int
    platform: Platform | None = None
    annotations: tuple[tuple[str, str], ...] = ()


@frozen
class ImageConfig:
    """What an image asks of its container. Hostile input: validate before use."""

    user: str = ""
    env: tuple[str, ...] = ()
    entrypoint: tuple[str, ...] = ()
    cmd: tuple[str, ...] = ()
    working_dir: str = ""
    labels: tuple[tuple[str, str], ...] = ()
    stop_signal: str = ""
    volumes: tuple[str, ...] = ()
    exposed_ports: tuple[str, ...] = ()
    platform: Platform | None = None
    created: str = ""


@frozen
class IdMap:
    """One extent of a user namespace's uid or gid map."""

    container_id: int
    host_id: int
    size: int


@frozen
class Mount:
    """The lingua franca: snapshots and volumes emit mounts, isolation consumes them.

    `options` are runtime-spec words ("ro", "rbind", "nosuid", "rprivate", "size=64k"); for the
    type "bind" `source` is a host path. `source_fd`, if >= 0, is a detached mount that the sender
    owns and that is used instead of `source`.
    """

    destination: str
    type: str
    source: str | None = None
    options: tuple[str, ...] = ()
    uid_mappings: tuple[IdMap, ...] = ()
    gid_mappings: tuple[IdMap, ...] = ()
    source_fd: int = -1


@frozen
class User:
    """Numeric ids; names were looked up in the image before."""

    uid: int = 0
    gid: int = 0
    additional_gids: tuple[int, ...] = ()
    umask: int = 0o022


@frozen
class Capabilities:
    """The five sets, as masks of 1 << CAP_*."""

    bounding: int = 0
    effective: int = 0
    permitted: int = 0
    inheritable: int = 0
    ambient: int = 0


@frozen
class Rlimit:
    """`type` is a name such as RLIMIT_NOFILE; values in the limit's own unit."""

    type: str
    soft: int
    hard: int


@frozen
class Process:
    """What is executed, as whom, with which rights."""

    args: tuple[str, ...]
    env: tuple[str, ...] = ()
    cwd: str = "/"
    user: User = User()
    capabilities: Capabilities = Capabilities()
    rlimits: tuple[Rlimit, ...] = ()
    no_new_privileges: bool = True
    terminal: bool = False
    console_rows: int = 0
    console_columns: int = 0
    oom_score_adj: int | None = None


@frozen
class Namespace:
    """`type`: mount, pid, ipc, uts, network, cgroup, user or time; new unless `path` names one."""

    type: str
    path: str | None = None


@frozen
class Device:
    """A device node in the container; `type` is c, b or p."""

    path: str
    type: str
    major: int = 0
    minor: int = 0
    mode: int = 0o666
    uid: int = 0
    gid: int = 0


@frozen
class DeviceRule:
    """Allow or deny access ("rwm") to devices; None matches any number, type "a" any type."""

    allow: bool
    type: str = "a"
    major: int | None = None
    minor: int | None = None
    access: str = "rwm"


@frozen
class IoLimit:
    """Ceilings for one block device; None is no ceiling (cgroup-v2.rst, io.max)."""

    major: int
    minor: int
    read_bytes_per_sec: int | None = None
    write_bytes_per_sec: int | None = None
    read_ops_per_sec: int | None = None
    write_ops_per_sec: int | None = None


@frozen
class Resources:
    """Quotas of one cgroup. None leaves the kernel's default (no limit)."""

    memory_max_bytes: int | None = None
    memory_high_bytes: int | None = None
    memory_low_bytes: int | None = None
    memory_min_bytes: int | None = None
    memory_swap_max_bytes: int | None = None  # swap alone, not memory plus swap
    memory_oom_group: bool = True
    cpu_quota_usec: int | None = None  # CPU time per period; cpus=0.5 is 50000 of 100000
    cpu_period_usec: int = 100_000
    cpu_burst_usec: int | None = None
    cpu_weight: int | None = None  # 1..10000, kernel default 100
    cpu_idle: bool | None = None
    cpuset_cpus: str | None = None
    cpuset_mems: str | None = None
    pids_max: int | None = None
    io_weight: int | None = None  # 1..10000, kernel default 100
    io_max: tuple[IoLimit, ...] = ()
    hugetlb_max: tuple[tuple[str, int], ...] = ()  # ("2MB", bytes)
    unified: tuple[tuple[str, str], ...] = ()  # any cgroup v2 file
    devices: tuple[DeviceRule, ...] = ()


@frozen
class Spec:
    """A container to be: everything isolation needs, nothing of the image or of the lifecycle."""

    process: Process
    mounts: tuple[Mount, ...] = ()
    namespaces: tuple[Namespace, ...] = ()
    hostname: str = ""
    domainname: str = ""
    root_readonly: bool = False
    rootfs_propagation: str = ""
    uid_mappings: tuple[IdMap, ...] = ()
    gid_mappings: tuple[IdMap, ...] = ()
    devices: tuple[Device, ...] = ()
    masked_paths: tuple[str, ...] = ()
    readonly_paths: tuple[str, ...] = ()
    sysctl: tuple[tuple[str, str], ...] = ()
    time_offsets: tuple[tuple[str, int, int], ...] = ()  # (clock, seconds, nanoseconds)
    resources: Resources = field(default_factory=Resources)
    init: bool = False  # run our reaper as pid 1 and the process as its child
