"""One start: a blueprint becomes mounts, a cgroup, a plan, and a process owned by the monitor.

Everything that a start opens is closed again at its end, and everything that it made is unmade if
it fails: the cgroup by us until the monitor has accepted it, by the monitor's exit ops afterwards.
"""

from __future__ import annotations

import errno
import os
import signal
from collections.abc import Sequence
from contextlib import ExitStack
from typing import NamedTuple

from pycontain import _native
from pycontain._native import C
from pycontain.errors import (
    ChildSetupError,
    CommandNotExecutable,
    CommandNotFound,
    InternalError,
    KernelError,
    NotFound,
    PycontainError,
    Unsupported,
)
from pycontain.isolation import seccomp
from pycontain.isolation.cgroups import Cgroup
from pycontain.isolation.compiler import Launch, compile_exec, compile_init
from pycontain.isolation.mounts import open_host_mount
from pycontain.isolation.plan import OP_NAMES, Plan
from pycontain.oci import Mount, Process, Resources, Spec
from pycontain.runtime.blueprint import Blueprint
from pycontain.runtime.host import Host
from pycontain.runtime.launcher import Link
from pycontain.values import replace

__all__ = ["Started", "Stdio", "failure", "open_rootfs", "prepare", "spawn", "spawn_exec"]

Stdio = tuple[int, int, int] | None
_EXEC_FORMAT, _NOT_FOUND, _IS_DIRECTORY, _DENIED = 8, 2, 21, 13


class Started(NamedTuple):
    """A process on its way: the connection about it, and what its plan's refusals mean."""

    link: Link
    origins: Sequence[str]
    command: str


def open_rootfs(blueprint: Blueprint, *, mapped: bool = False) -> int:
    """Return a detached mount of the container's root file system; the caller closes the fd.

    Images have the container's ids on disk; `mapped` shows them as a user namespace has them. An
    overlay is always mapped, because its upper layer is written so.
    """
    mount, spec = blueprint.rootfs, blueprint.spec
    if spec.uid_mappings and (mapped or mount.type == "overlay"):
        mount = replace(mount, uid_mappings=spec.uid_mappings, gid_mappings=spec.gid_mappings)
    try:
        return open_host_mount(mount, "rootfs" + (" (userns)" if mount.uid_mappings else ""))[0]
    except KernelError as error:
        if error.errno == errno.EPERM:
            raise Unsupported("run", needs="CAP_SYS_ADMIN to mount: run it as root") from error
        raise


def filter_for(host: Host, blueprint: Blueprint, process: Process) -> bytes | None:
    """Return the seccomp program for a process, from the cache if it was ever built."""
    if blueprint.seccomp == "unconfined":
        return None
    capabilities = process.capabilities.bounding
    if blueprint.seccomp == "default":
        return seccomp.default_filter(capabilities, host.seccomp_cache)
    import json

    profile = seccomp.load_profile(json.loads(blueprint.seccomp))
    return seccomp.compile_filter(profile, capabilities, cache_dir=host.seccomp_cache)


def _expand_masks(spec: Spec) -> Spec:
    """Paths with a "*" depend on this machine's CPUs: find them on the host's own /sys."""
    patterns = [path for path in spec.masked_paths if "*" in path]
    if not patterns:
        return spec
    paths = [path for path in spec.masked_paths if "*" not in path]
    for pattern in patterns:
        # The first CPU always exists: what it lacks no other has, and that is one call, not ten.
        if os.path.lexists(pattern.replace("*", "0")):
            import glob

            paths += sorted(glob.glob(pattern))
    return replace(spec, masked_paths=tuple(paths))


def prepare(
    host: Host,
    blueprint: Blueprint,
    stack: ExitStack,
    *,
    stdio: Stdio = None,
    cgroup: Cgroup | None = None,
    rootfs_fd: int = -1,
    park: bool = False,
) -> Plan:
    """Open what the start needs and compile the plan; `stack` closes it all.

    Without `cgroup` and `rootfs_fd` nothing is made: that is a dry run.
    Raises: InvalidSpec, NotFound, Unsupported, KernelError: each names the option.
    """
    spec = _expand_masks(blueprint.spec)
    keyring = f"pycontain-{blueprint.id[:12]}"
    launch = Launch(stdio=stdio, rootfs_fd=rootfs_fd, keyring=keyring, park=park)
    mount_fds = {}
    for index, mount in enumerate(spec.mounts):
        if mount.type in ("bind", "none") or mount.source_fd >= 0 or "bind" in mount.options:
            fd, directory = open_host_mount(mount, f"mounts[{index}] {mount.destination}")
            stack.callback(os.close, fd)
            mount_fds[index] = (fd, directory)
    launch.mount_fds = mount_fds
    launch.namespace_fds = _open_namespaces(spec, stack)
    if any(n.type == "user" for n in spec.namespaces):
        launch.device_fds = _bind_devices(spec, stack)
    launch.seccomp_filter = filter_for(host, blueprint, spec.process)
    if spec.init:
        launch.init_fd = host.open_program("init")
        stack.callback(os.close, launch.init_fd)
    if cgroup is not None:
        launch.cgroup_fd = cgroup.dir_fd
        launch.join_fds = tuple(cgroup.join_fds)
        launch.v1_hierarchies = _v1_hierarchies(host) if launch.join_fds else ()
    return compile_init(spec, launch)


def _v1_hierarchies(host: Host) -> tuple[tuple[str, tuple[str, ...]], ...]:
    """The v1 trees of this host by mount point, with the options that name each (cgroups(7))."""
    found: dict[str, list[str]] = {}
    for controller, mount_point in host.layout().v1:
        found.setdefault(mount_point, []).append({"io": "blkio"}.get(controller, controller))
    return tuple((os.path.basename(point), tuple(names)) for point, names in found.items())


def _open_namespaces(spec: Spec, stack: ExitStack) -> dict[str, int]:
    fds = {}
    for index, namespace in enumerate(spec.namespaces):
        if namespace.path is not None:
            try:
                fd = os.open(namespace.path, os.O_RDONLY | os.O_CLOEXEC)
            except OSError as error:
                raise NotFound(
                    f"namespaces[{index}].path: {namespace.path}: {error.strerror}"
                ) from None
            stack.callback(os.close, fd)
            fds[namespace.type] = fd
    return fds


def _bind_devices(spec: Spec, stack: ExitStack) -> dict[str, int]:
    """mknod is refused in a user namespace, so the host's own nodes are mounted instead."""
    fds = {}
    for index, device in enumerate(spec.devices):
        source = Mount(device.path, "bind", device.path, ("bind", "nosuid", "noexec"))
        fd, _ = open_host_mount(source, f"devices[{index}]")
        stack.callback(os.close, fd)
        fds[device.path] = fd
    return fds


def spawn(
    host: Host,
    blueprint: Blueprint,
    *,
    state_dir: str,
    log_path: str,
    stdio: Stdio,
    quiet: bool,
    park: bool = False,
) -> tuple[Started, Cgroup]:
    """Start the container's process; returns once it is on its way (`quiet`) or has executed.

    With `park` it stops before the exec, says PARKED, and waits for the START request.

    The caller owns the link and the cgroup object; closing the link of a container that does not
    survive kills it. Without `quiet` the reply is still to be read.
    Raises: whatever was refused before the monitor took over; nothing is left behind then.
    """
    with ExitStack() as stack, ExitStack() as undo:
        rootfs_fd = open_rootfs(blueprint, mapped=True)
        stack.callback(os.close, rootfs_fd)
        cgroup = make_cgroup(host, blueprint.cgroup, blueprint.spec.resources)
        undo.callback(cgroup.remove)
        plan = prepare(
            host, blueprint, stack, stdio=stdio, cgroup=cgroup, rootfs_fd=rootfs_fd, park=park
        )
        spec = blueprint.spec
        flags = (
            (0 if blueprint.survive else C.PYC_R_LIFELINE)
            | (C.PYC_R_QUIET if quiet else 0)
            | (C.PYC_R_LOG if blueprint.log else 0)
            | (C.PYC_R_TERMINAL if spec.process.terminal else 0)
            | (C.PYC_R_PARK if park else 0)
        )
        record = _native.encode_record(
            flags=flags,
            id=blueprint.id,
            state_dir=state_dir,
            log_path=log_path if blueprint.log else "",
            kill_path=cgroup.kill_path or "",
            log_max_bytes=blueprint.log_max_bytes,
            log_max_files=blueprint.log_max_files,
            timeout_usec=blueprint.timeout_usec,
            exit_ops=cgroup.exit_ops(),
        )
        link = host.launcher.spawn(record + plan.encode(), plan.fds)
        undo.pop_all()
    return Started(link, plan.origins, spec.process.args[0]), cgroup


def make_cgroup(host: Host, name: str, resources: Resources) -> Cgroup:
    """Make the cgroup with its limits written, empty."""
    return Cgroup.create(host.layout(), name, resources)


def spawn_exec(
    host: Host,
    blueprint: Blueprint,
    process: Process,
    *,
    exec_id: str,
    pidfd: int,
    cgroup: Cgroup,
    stdio: Stdio,
    timeout_usec: int,
    survive: bool,
    state_dir: str,
    park: bool = False,
) -> Started:
    """Start one more process in a running container, in its own cgroup `cgroup`.

    A `state_dir` makes the exec survive the monitor (its exit is recorded there).
    """
    launch = Launch(
        cgroup_fd=cgroup.dir_fd,
        join_fds=tuple(cgroup.join_fds),
        stdio=stdio,
        namespace_fds={"pidfd": pidfd},
        seccomp_filter=filter_for(host, blueprint, process),
        keyring=f"pycontain-{blueprint.id[:12]}",
        park=park,
    )
    plan = compile_exec(process, launch, blueprint.spec.namespaces)
    record = _native.encode_record(
        flags=(0 if survive else C.PYC_R_LIFELINE)
        | (C.PYC_R_TERMINAL if process.terminal else 0)
        | (C.PYC_R_PARK if park else 0)
        | (0 if survive else C.PYC_R_EPHEMERAL),
        id=f"{blueprint.id}/{exec_id}",
        state_dir=state_dir if survive else "",
        log_path="",
        kill_path=cgroup.kill_path or "",
        log_max_bytes=0,
        log_max_files=0,
        timeout_usec=timeout_usec,
        exit_ops=cgroup.exit_ops(),
    )
    link = host.launcher.spawn(record + plan.encode(), plan.fds)
    return Started(link, plan.origins, process.args[0])


# What the kernel was asked to do by an op, for messages.
_CALLS = {
    "GATE": "read(gate)", "WRITE_FD": "write(cgroup.procs)", "WRITE_AT": "write",
    "LOOPBACK_UP": "ioctl(SIOCSIFFLAGS, lo)", "PROPAGATION": "mount(/, MS_PRIVATE)",
    "FSMOUNT": "fsmount", "MOVE_MOUNT": "move_mount", "ATTACH_ROOT": "move_mount(rootfs)",
    "MASK": "move_mount(mask)", "READONLY": "mount_setattr(MOUNT_ATTR_RDONLY)",
    "TERMINAL": "open(/dev/pts/ptmx)", "RLIMIT": "prlimit64", "CAP_BOUND": "prctl(CAPBSET_DROP)",
    "SETUSER": "setresuid", "CAP_AMBIENT": "prctl(CAP_AMBIENT)", "EXEC": "execve",
    "NO_NEW_PRIVS": "prctl(NO_NEW_PRIVS)", "KEYRING": "keyctl(JOIN_SESSION_KEYRING)",
}  # fmt: skip
_HINTS = {
    ("MOVE_MOUNT", 40): "a symbolic link of the image stands in the way, which is refused",
    ("MOVE_MOUNT", 2): "a symbolic link on the way leads to nothing in the image",
    ("MOVE_MOUNT", 30): "the mount point does not exist and the root file system is read-only",
    ("MOVE_MOUNT", 20): "a file can only be mounted on a file, a directory on a directory",
    ("RLIMIT", 1): "raising a hard limit needs CAP_SYS_RESOURCE",
    ("CHDIR", 20): "it is not a directory",
    ("WRITE_AT", 2): "this kernel does not have it",
    ("SECCOMP", 22): "the kernel refused the filter",
    ("FSMOUNT", 1): "not allowed in this user namespace",
    ("FSMOUNT", 19): "this kernel does not have the file system",
}


def failure(
    reply: _native.NativeReply, origins: Sequence[str] = (), command: str = "the command"
) -> PycontainError:
    """Return the error that a FAILED reply means; the message names the spec field."""
    if reply.stage == C.PYC_STAGE_OP:
        if reply.opcode == 0:  # before the first op (child.c): no field is at fault
            return KernelError(reply.err, "close_range, rt_sigprocmask in the child")
        name = OP_NAMES.get(reply.opcode, "?")
        origin = origins[reply.op_index] if reply.op_index < len(origins) else None
        if name == "EXEC":
            return _exec_failure(reply.err, command)
        return ChildSetupError(
            reply.err,
            _CALLS.get(name, name.lower()),
            field=origin,
            op_index=reply.op_index,
            op=name,
            hint=_HINTS.get((name, reply.err)),
        )
    if reply.stage == C.PYC_STAGE_MAP:
        return KernelError(
            reply.err, "write(uid_map, gid_map)", field="userns",
            hint="extents must not overlap and the ids must be ours to give (user_namespaces(7))",
        )  # fmt: skip
    if reply.stage == C.PYC_STAGE_CLONE:
        hint = {
            28: "a limit in /proc/sys/user/max_*_namespaces or the nesting depth is reached",
            11: "the host's pids limit is reached",
            16: "the cgroup takes no processes (its controllers are enabled for children)",
            38: "needs Linux 5.7 (clone3 with CLONE_INTO_CGROUP)",
        }.get(reply.err)
        return KernelError(reply.err, "clone3", field="namespaces", hint=hint)
    if reply.stage == C.PYC_STAGE_STATE:
        return KernelError(reply.err, "open(state directory)", hint="FIFOs, log or `live` file")
    if reply.stage == C.PYC_STAGE_DIED:
        name = signal.Signals(reply.err).name if reply.err in _SIGNALS else str(reply.err)
        return KernelError(4, f"the child was killed by {name} before it could execute {command}",
                           hint="the memory limit may be too small to start")  # fmt: skip
    return InternalError(f"the monitor refused the request: stage {reply.stage}, op "
                         f"{reply.op_index}, check {reply.opcode}, errno {reply.err}")  # fmt: skip


_SIGNALS = frozenset(s.value for s in signal.Signals)


def _exec_failure(err: int, command: str) -> PycontainError:
    if err == _NOT_FOUND:
        return CommandNotFound(
            f"{command}: no such command in the container",
            hint="if it is there, its interpreter or loader is missing",
        )
    text = {
        _EXEC_FORMAT: "not a program for this machine, or a script without #!",
        _IS_DIRECTORY: "a directory",
        _DENIED: "not executable, or on a noexec mount",
    }.get(err, os.strerror(err))
    return CommandNotExecutable(f"{command}: can't be executed: {text}")
