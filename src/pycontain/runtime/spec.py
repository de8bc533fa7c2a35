"""An image's config and a caller's options become one `Spec`, by docker's rules.

Pure but for one thing: a device or disk named by path is looked at on the host. Hostile here is
the image's config, so every text of it passes the same checks as the caller's.
Source: docker run reference, moby daemon/oci_linux.go's behaviour; reference defaults of
containers/common.
"""

from __future__ import annotations

import posixpath
from collections.abc import Callable, Sequence
from functools import lru_cache

from pycontain.errors import InvalidInput, InvalidSpec
from pycontain.isolation import capabilities
from pycontain.isolation.devices import DEFAULT_DEVICES, DEFAULT_RULES
from pycontain.oci import (
    Capabilities,
    Device,
    DeviceRule,
    IdMap,
    ImageConfig,
    Mount,
    Namespace,
    Process,
    Rlimit,
    Spec,
    User,
)
from pycontain.runtime.options import (
    RunOptions,
    parse_device,
    parse_env,
    parse_pairs,
    parse_ulimit,
    parse_userns,
)
from pycontain.runtime.quotas import build_resources
from pycontain.runtime.units import parse_bytes
from pycontain.runtime.validation import validate
from pycontain.values import replace

__all__ = [
    "DEFAULT_MASKED_PATHS",
    "DEFAULT_MOUNTS",
    "DEFAULT_READONLY_PATHS",
    "ResolveUser",
    "build_spec",
    "validate",
]

ResolveUser = Callable[[str, Sequence[str | int]], tuple[User, str]]

DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

_SHM_OPTIONS = ("nosuid", "noexec", "nodev", "mode=1777")
_SYS = Mount("/sys", "sysfs", "sysfs", ("ro", "nosuid", "noexec", "nodev"))
_PTS_OPTIONS = ("nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620")
# In the order in which they are mounted.
DEFAULT_MOUNTS: tuple[Mount, ...] = (
    Mount("/proc", "proc", "proc", ("nosuid", "noexec", "nodev")),
    Mount("/dev", "tmpfs", "tmpfs", ("nosuid", "strictatime", "mode=755", "size=65536k")),
    Mount("/dev/pts", "devpts", "devpts", (*_PTS_OPTIONS, "gid=5")),
    Mount("/dev/shm", "tmpfs", "shm", (*_SHM_OPTIONS, "size=65536k")),
    Mount("/dev/mqueue", "mqueue", "mqueue", ("nosuid", "noexec", "nodev")),
    _SYS,
    Mount("/sys/fs/cgroup", "cgroup", "cgroup", ("ro", "nosuid", "noexec", "nodev")),
)
# Docker's and podman's together. The pattern is expanded when the plan is compiled.
DEFAULT_MASKED_PATHS: tuple[str, ...] = (
    "/proc/acpi",
    "/proc/asound",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/sys/devices/system/cpu/cpu*/thermal_throttle",
    "/sys/devices/virtual/powercap",
    "/sys/firmware",
    "/sys/fs/selinux",
)
DEFAULT_READONLY_PATHS: tuple[str, ...] = (
    "/proc/bus",
    "/proc/fs",
    "/proc/irq",
    "/proc/sys",
    "/proc/sysrq-trigger",
)
_DEFAULT_NAMESPACES = tuple(
    Namespace(kind) for kind in ("mount", "pid", "ipc", "uts", "network", "cgroup")
)


def build_spec(
    config: ImageConfig,
    command: Sequence[str],
    options: RunOptions,
    *,
    resolve_user: ResolveUser,
    container_id: str,
) -> Spec:
    """The container that `docker run` with these options and this image would be.

    `resolve_user` takes what `user` names and `group_add`, as `users.lookup` behind its first
    argument.

    Raises:
        InvalidInput: an option that is malformed; `field` is its name in `RunOptions`.
        InvalidSpec: options or config fields that contradict each other or can't work.
    """
    user_text = config.user if options.user is None else options.user
    user, home = resolve_user(user_text, options.group_add)
    if options.umask is not None:
        user = User(user.uid, user.gid, user.additional_gids, options.umask)
    maps = parse_userns(options.userns)
    hostname = _hostname(options, container_id)
    nodes, rules = _devices(options)
    process = Process(
        args=_args(config, command, options),
        env=_env(config, options, hostname, home),
        cwd=_cwd(config, options),
        user=user,
        capabilities=_capabilities(
            tuple(options.cap_add), tuple(options.cap_drop), maps is not None, user.uid
        ),
        rlimits=_rlimits(options),
        no_new_privileges=options.no_new_privileges,
        terminal=options.tty,
        oom_score_adj=options.oom_score_adj,
    )
    spec = Spec(
        process=process,
        mounts=_mounts(options, maps),
        namespaces=_namespaces(options, maps is not None),
        hostname=hostname,
        domainname=options.domainname or "",
        root_readonly=options.read_only,
        uid_mappings=maps[0] if maps else (),
        gid_mappings=maps[1] if maps else (),
        devices=nodes,
        masked_paths=_hidden((*DEFAULT_MASKED_PATHS, *options.mask), options),
        readonly_paths=_hidden(DEFAULT_READONLY_PATHS, options),
        sysctl=tuple(parse_pairs(options.sysctls, field="sysctls").items()),
        resources=build_resources(options, rules),
        init=options.init,
    )
    validate(spec)
    return spec


def _args(config: ImageConfig, command: Sequence[str], options: RunOptions) -> tuple[str, ...]:
    """Entrypoint and command; a given entrypoint drops the image's command too, as in docker."""
    if isinstance(command, str):
        raise InvalidInput(
            "one string", field="command", hint='give a list of words, or ["sh", "-c", text]'
        )
    arguments = tuple(command)
    given = options.entrypoint
    if given is None:
        entrypoint = config.entrypoint
        arguments = arguments or config.cmd
    elif isinstance(given, str):
        entrypoint = (given,) if given else ()
    else:
        entrypoint = tuple(given)
    if not entrypoint and not arguments:
        raise InvalidSpec(
            "there is none", field="command", hint="the image has no default: say what to run"
        )
    return (*entrypoint, *arguments)


def _env(config: ImageConfig, options: RunOptions, hostname: str, home: str) -> tuple[str, ...]:
    """Defaults, then the image's variables, then the caller's; a later one replaces in place."""
    env = {"PATH": DEFAULT_PATH}
    if hostname:
        env["HOSTNAME"] = hostname
    if options.tty:
        env["TERM"] = "xterm"
    for pair in config.env:
        name, equals, value = pair.partition("=")
        if name and equals and "\0" not in pair:  # hostile, so dropped rather than guessed at
            env[name] = value
    if options.env:
        env.update(parse_env(options.env))
    env.setdefault("HOME", home)
    return tuple([f"{name}={value}" for name, value in env.items()])


def _cwd(config: ImageConfig, options: RunOptions) -> str:
    if options.cwd is not None:
        if not options.cwd.startswith("/"):
            raise InvalidInput(f"{options.cwd!r} is not an absolute path", field="cwd")
        path = options.cwd
    else:
        path = "/" + config.working_dir
    return "/" if path == "/" else "/" + posixpath.normpath(path).lstrip("/")


def _hostname(options: RunOptions, container_id: str) -> str:
    if options.hostname is not None:
        if options.uts == "host":
            raise InvalidSpec("can't be set in the host's UTS namespace", field="hostname")
        return options.hostname
    return container_id[:12] if options.uts == "private" else ""


@lru_cache(maxsize=64)
def _capabilities(
    add: tuple[str, ...], drop: tuple[str, ...], new_userns: bool, uid: int
) -> Capabilities:
    host = capabilities.available(new_user_namespace=new_userns)
    bounding = capabilities.resolve(capabilities.DEFAULT, add, drop, host=host)
    return capabilities.process_sets(bounding, uid=uid)


def _rlimits(options: RunOptions) -> tuple[Rlimit, ...]:
    """One limit per type: the last that was given."""
    limits = [parse_ulimit(limit) if isinstance(limit, str) else limit for limit in options.ulimits]
    return tuple({limit.type: limit for limit in limits}.values())


def _devices(options: RunOptions) -> tuple[tuple[Device, ...], tuple[DeviceRule, ...]]:
    if not options.devices:
        return DEFAULT_DEVICES, DEFAULT_RULES
    nodes = {device.path: device for device in DEFAULT_DEVICES}
    rules = list(DEFAULT_RULES)
    for device in options.devices:
        node, rule = parse_device(device) if isinstance(device, str) else device
        nodes[node.path] = node
        rules.append(rule)
    return tuple(nodes.values()), tuple(rules)


def _namespaces(options: RunOptions, user: bool) -> tuple[Namespace, ...]:
    choices = (options.pid, options.ipc, options.uts, options.network, options.cgroupns)
    network = options.network
    if choices == ("private", "private", "private", "none", "private"):
        namespaces = _DEFAULT_NAMESPACES
    else:
        found = [Namespace("mount")]
        for kind, word, field in (
            ("pid", options.pid, "pid"),
            ("ipc", options.ipc, "ipc"),
            ("uts", options.uts, "uts"),
            ("network", "private" if network == "none" else network, "network"),
            ("cgroup", options.cgroupns, "cgroupns"),
        ):
            found.extend(_namespace(kind, word, field))
        namespaces = tuple(found)
    if user:
        namespaces += (Namespace("user"),)
    if options.time != "host":
        namespaces += _namespace("time", options.time, "time")
    return namespaces


def _namespace(kind: str, word: str, field: str) -> tuple[Namespace, ...]:
    if word == "private":
        return (Namespace(kind),)
    if word == "host":
        return ()
    if word.startswith("ns:/") and "\0" not in word:
        return (Namespace(kind, word[3:]),)
    first = "none" if kind == "network" else "private"
    raise InvalidInput(f"{word!r} is unknown", field=field, hint=f"use {first}, host or ns:PATH")


def _mounts(
    options: RunOptions, maps: tuple[tuple[IdMap, ...], tuple[IdMap, ...]] | None
) -> tuple[Mount, ...]:
    """The defaults, less those whose place the caller's take, then the caller's, parents first."""
    defaults = DEFAULT_MOUNTS
    if options.shm_size is not None or options.ipc != "private" or maps is not None:
        defaults = tuple([_adapted(mount, options, maps) for mount in DEFAULT_MOUNTS])
    if not (options.mounts or options.volumes or options.tmpfs):
        return defaults
    from pycontain.runtime.volumes import parse_mount, parse_tmpfs, parse_volume

    own = [parse_mount(m) if isinstance(m, str) else _normal(m) for m in options.mounts]
    own += [parse_volume(text) for text in options.volumes]
    own += [parse_tmpfs(text) for text in options.tmpfs]
    if maps is not None:
        own = [_with_maps(mount, maps) for mount in own]
    places = [mount.destination for mount in own]
    for place in places:
        if places.count(place) > 1:
            raise InvalidSpec(f"two mounts on {place}", field="mounts")
    own.sort(key=lambda mount: mount.destination.rstrip("/").count("/"))
    return (*(mount for mount in defaults if mount.destination not in places), *own)


def _adapted(
    mount: Mount, options: RunOptions, maps: tuple[tuple[IdMap, ...], tuple[IdMap, ...]] | None
) -> Mount:
    """A default mount as it has to be in shared namespaces or with mapped ids."""
    if options.ipc != "private" and mount.destination == "/dev/shm":
        if options.ipc == "host":  # POSIX shared memory is files: share the files as well
            return Mount("/dev/shm", "bind", "/dev/shm", ("rbind", "rprivate"))
    elif options.shm_size is not None and mount.destination == "/dev/shm":
        size_bytes = parse_bytes(options.shm_size, field="shm_size")
        return Mount("/dev/shm", "tmpfs", "shm", (*_SHM_OPTIONS, f"size={size_bytes}"))
    if maps is None:
        return mount
    if mount.type == "devpts" and not any(
        m.container_id <= 5 < m.container_id + m.size for m in maps[1]
    ):
        return Mount(mount.destination, mount.type, mount.source, _PTS_OPTIONS)
    if options.network == "host" and mount is _SYS:
        # The kernel gives a fresh sysfs only to the owner of the network namespace.
        options_ = ("rbind", "rro", "rnosuid", "rnoexec", "rnodev", "rprivate")
        return Mount("/sys", "bind", "/sys", options_)
    if options.ipc != "private" and mount.type == "mqueue":
        return Mount("/dev/mqueue", "bind", "/dev/mqueue", ("bind", "rprivate"))
    return mount


def _normal(mount: Mount) -> Mount:
    """The mount with a normalised destination, so that no spelling hides what it covers."""
    from pycontain.runtime.volumes import destination

    path = destination(mount.destination, "mounts")
    return mount if path == mount.destination else replace(mount, destination=path)


def _with_maps(mount: Mount, maps: tuple[tuple[IdMap, ...], tuple[IdMap, ...]]) -> Mount:
    """The mount with the container's maps, if it asks for `idmap` without its own."""
    if mount.uid_mappings or not {"idmap", "ridmap"} & set(mount.options):
        return mount
    return Mount(mount.destination, mount.type, mount.source, mount.options, *maps, mount.source_fd)


def _hidden(paths: tuple[str, ...], options: RunOptions) -> tuple[str, ...]:
    """The paths but for those that `unmask` names or matches."""
    if not options.unmask:
        return paths
    from fnmatch import fnmatchcase

    if any(word.upper() == "ALL" for word in options.unmask):
        return tuple(path for path in paths if path in options.mask)
    return tuple(
        path
        for path in paths
        if path in options.mask or not any(fnmatchcase(path, word) for word in options.unmask)
    )
