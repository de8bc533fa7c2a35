"""Spec -> Plan: what the child does, in the order that is safe.

Pure: descriptors come in as numbers, nothing is opened here. The order follows from the kernel and
from CVEs, and each step says which. Read next to `_native/child.c`.
"""

from __future__ import annotations

import resource
from collections.abc import Mapping, Sequence

from pycontain._native import C
from pycontain.errors import InvalidSpec
from pycontain.isolation import sysctl
from pycontain.isolation.devices import DEFAULT_SYMLINKS
from pycontain.isolation.mounts import add_dev, add_mount, id_map_text, make_filesystem, place
from pycontain.isolation.namespaces import (
    CLONE_FLAGS,
    clone_flags,
    join_namespaces,
    make_time_namespace,
)
from pycontain.isolation.plan import Plan
from pycontain.oci import Mount, Namespace, Process, Spec

__all__ = ["Launch", "compile_exec", "compile_init"]

_O_PATH, _O_DIRECTORY = 0o10000000, 0o200000
_MS_REC_PRIVATE = 0x4000 | 1 << 18
_RDONLY = 0x1
_ATTACH_DIR = "/newroot"  # in the monitor's own mount namespace, which holds nothing else
_DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


class Launch:
    """The descriptors and prepared bytes that one launch needs; all fds are borrowed.

    Attributes:
        rootfs_fd: detached mount of the root file system.
        cgroup_fd: directory of the cgroup v2 to be born in, or -1.
        join_fds: open `cgroup.procs` of cgroup v1 hierarchies.
        v1_hierarchies: v1 trees to show under /sys/fs/cgroup, as (directory, mount options).
        stdio: fds for 0, 1 and 2; None leaves /dev/null. Ignored with a terminal.
        mount_fds: index into spec.mounts -> (detached mount, is a directory).
        namespace_fds: namespace type -> fd to join (for exec: one pidfd under "pidfd").
        device_fds: device path -> detached bind mount, in a user namespace.
        seccomp_filter: struct sock_filter[], or None.
        init_fd: the reaper to execute in place of the command, or -1.
        park: stop before exec until the monitor is told START.
    """

    __slots__ = (
        "cgroup_fd", "device_fds", "init_fd", "join_fds", "keyring", "mount_fds", "namespace_fds",
        "park", "rootfs_fd", "seccomp_filter", "stdio", "v1_hierarchies",
    )  # fmt: skip

    def __init__(
        self,
        *,
        rootfs_fd: int = -1,
        cgroup_fd: int = -1,
        join_fds: tuple[int, ...] = (),
        v1_hierarchies: tuple[tuple[str, tuple[str, ...]], ...] = (),
        stdio: tuple[int, int, int] | None = None,
        mount_fds: Mapping[int, tuple[int, bool]] | None = None,
        namespace_fds: Mapping[str, int] | None = None,
        device_fds: Mapping[str, int] | None = None,
        seccomp_filter: bytes | None = None,
        init_fd: int = -1,
        park: bool = False,
        keyring: str = "",
    ) -> None:
        self.rootfs_fd = rootfs_fd
        self.cgroup_fd = cgroup_fd
        self.join_fds = join_fds
        self.v1_hierarchies = v1_hierarchies
        self.stdio = stdio
        self.mount_fds = mount_fds or {}
        self.namespace_fds = namespace_fds or {}
        self.device_fds = device_fds or {}
        self.seccomp_filter = seccomp_filter
        self.init_fd = init_fd
        self.park = park
        self.keyring = keyring


def compile_init(spec: Spec, launch: Launch) -> Plan:
    """Return the plan that makes a new container of `spec` and executes its process.

    Raises: InvalidSpec: contradicting or unknown fields, named.
    """
    kinds = {n.type for n in spec.namespaces if n.path is None}
    plan, root = _world(spec, launch, kinds)
    if "uts" in kinds:
        if spec.hostname:
            plan.op(C.PYC_OP_SETHOSTNAME, "hostname", text=(plan.string(spec.hostname),))
        if spec.domainname:
            plan.op(C.PYC_OP_SETDOMAINNAME, "domainname", text=(plan.string(spec.domainname),))
    elif spec.hostname:
        raise InvalidSpec("needs a uts namespace of its own", field="hostname")
    if launch.keyring:
        # Else the container would hold the keys of whoever started the monitor.
        plan.op(
            C.PYC_OP_KEYRING, "keyring", text=(plan.string(launch.keyring),),
            flags=C.PYC_F_OPTIONAL,
        )  # fmt: skip
    _process(plan, spec.process, launch, root, init=spec.init)
    return plan


# What differs between two containers of one kind comes last in a plan (name, process), so the
# larger part is compiled once a kind. Keyed by value; replaced whole when full, so no lock.
_worlds: dict[tuple[object, ...], tuple[Plan, tuple[object, ...], int]] = {}
_MAX_WORLDS = 64


def _world(spec: Spec, launch: Launch, kinds: set[str]) -> tuple[Plan, int]:
    """Namespaces, cgroups and files: the plan so far, and the slot of the root or -1."""
    roles: dict[object, int] = {"rootfs": launch.rootfs_fd, "cgroup": launch.cgroup_fd}
    roles.update(enumerate(launch.join_fds))
    roles.update({("mount", index): found[0] for index, found in launch.mount_fds.items()})
    roles.update({("namespace", kind): fd for kind, fd in launch.namespace_fds.items()})
    roles.update(launch.device_fds)
    process = spec.process
    key = (
        spec.mounts, spec.namespaces, spec.devices, spec.masked_paths, spec.readonly_paths,
        spec.sysctl, spec.root_readonly, spec.uid_mappings, spec.gid_mappings, spec.time_offsets,
        process.terminal and (process.console_rows, process.console_columns, process.user),
        process.oom_score_adj, launch.v1_hierarchies, tuple(roles), launch.cgroup_fd >= 0,
        tuple(directory for _, directory in launch.mount_fds.values()),
    )  # fmt: skip
    known = _worlds.get(key)
    if known is None:
        plan = Plan(clone_flags(spec.namespaces, cgroup_later=bool(launch.join_fds)))
        _enter(plan, spec, launch, kinds)
        if "network" in kinds:
            plan.op(C.PYC_OP_LOOPBACK_UP, "namespaces network")
        root = _root_filesystem(plan, spec, launch, kinds) if "mount" in kinds else -1
        by_fd = {fd: role for role, fd in roles.items()}
        if len(_worlds) >= _MAX_WORLDS:
            _worlds.clear()
        known = _worlds[key] = (plan, tuple(by_fd[fd] for fd in plan.fds), root)
    template, order, root = known
    return template.copy([roles[role] for role in order]), root


def compile_exec(process: Process, launch: Launch, namespaces: Sequence[Namespace]) -> Plan:
    """Return the plan that runs one more process in a container.

    `launch.namespace_fds["pidfd"]` is the container's pidfd: one setns enters all namespaces that
    differ (Linux 5.8), and the monitor joins the pid namespace before it clones.
    """
    pidfd = launch.namespace_fds["pidfd"]
    plan = Plan()
    flags = 0
    for namespace in namespaces:
        if namespace.type == "pid":
            plan.pidns_slot = plan.send(pidfd)
        else:
            flags |= CLONE_FLAGS[namespace.type]
    _join_cgroups(plan, launch)
    if flags:
        plan.op(C.PYC_OP_SETNS, "exec", slots=(plan.send(pidfd),), nums=(flags,))
    if flags & CLONE_FLAGS["user"]:
        plan.op(C.PYC_OP_SETUSER, "exec user namespace")
    plan.op(C.PYC_OP_SETSID, "exec")
    if launch.keyring:
        plan.op(
            C.PYC_OP_KEYRING, "keyring", text=(plan.string(launch.keyring),),
            flags=C.PYC_F_OPTIONAL,
        )  # fmt: skip
    root = -1
    if process.terminal:
        root = plan.out()
        plan.op(
            C.PYC_OP_OPEN, "process.terminal", text=(plan.string("/"),), slots=(-1, root),
            nums=(_O_PATH | _O_DIRECTORY,),
        )  # fmt: skip
        _terminal(plan, process, root, console=False)
    _process(plan, process, launch, -1, init=False)
    return plan


def _enter(plan: Plan, spec: Spec, launch: Launch, kinds: set[str]) -> None:
    """From the first instruction to being in every namespace and cgroup."""
    in_user_namespace = "user" in kinds
    if in_user_namespace:
        plan.uid_map = plan.string(id_map_text(spec.uid_mappings) or _missing("uid_mappings"))
        plan.gid_map = plan.string(id_map_text(spec.gid_mappings) or _missing("gid_mappings"))
        plan.op(C.PYC_OP_GATE, "uid_mappings", nums=(C.PYC_GATE_MAPPED,))
    _join_cgroups(plan, launch)
    if spec.process.oom_score_adj is not None:
        # Before the ids change: the file belongs to the id that cloned us.
        proc = plan.out()
        plan.op(
            C.PYC_OP_OPEN, "oom_score_adj", text=(plan.string("/proc"),), slots=(-1, proc),
            nums=(_O_PATH | _O_DIRECTORY,),
        )  # fmt: skip
        text = (plan.string("self/oom_score_adj"), plan.string(str(spec.process.oom_score_adj)))
        plan.op(C.PYC_OP_WRITE_AT, "oom_score_adj", text=text, slots=(proc,))
    if "time" in kinds:
        make_time_namespace(plan, spec)
    join_namespaces(plan, spec.namespaces, launch.namespace_fds)
    if "pid" in launch.namespace_fds:
        plan.pidns_slot = plan.send(launch.namespace_fds["pid"])
    if in_user_namespace or "user" in launch.namespace_fds:
        plan.op(C.PYC_OP_SETUSER, "user namespace")  # become its root, to own what is made
    if "cgroup" in kinds and launch.join_fds:
        plan.op(C.PYC_OP_UNSHARE, "namespaces cgroup", nums=(CLONE_FLAGS["cgroup"],))
    plan.op(C.PYC_OP_SETSID, "process")


def _missing(name: str) -> str:
    raise InvalidSpec("a user namespace needs it", field=name)


def _join_cgroups(plan: Plan, launch: Launch) -> None:
    if launch.cgroup_fd >= 0:
        plan.cgroup_slot = plan.send(launch.cgroup_fd)
    for fd in launch.join_fds:
        text = (plan.string("0"),)  # "0" is the writer itself, whatever its pid is called here
        plan.op(C.PYC_OP_WRITE_FD, "cgroup", text=text, slots=(plan.send(fd),))


def _root_filesystem(plan: Plan, spec: Spec, launch: Launch, kinds: set[str]) -> int:
    """The container's view of files, complete before pivot_root lets go of the old one."""
    root = plan.send(launch.rootfs_fd)
    plan.op(C.PYC_OP_PROPAGATION, "mounts", nums=(_MS_REC_PRIVATE,))
    plan.op(C.PYC_OP_ATTACH_ROOT, "rootfs", text=(plan.string(_ATTACH_DIR),), slots=(root,))
    dev = proc = -1
    for index, mount in enumerate(spec.mounts):
        name = f"mounts[{index}] {mount.destination}"
        if index in launch.mount_fds:
            fd, directory = launch.mount_fds[index]
            place(plan, plan.send(fd), root, mount.destination, name, directory=directory)
        elif mount.destination == "/dev" and mount.type == "tmpfs":
            host = {path: plan.send(fd) for path, fd in launch.device_fds.items()}
            dev = add_dev(
                plan, mount, root, name, devices=spec.devices, symlinks=DEFAULT_SYMLINKS,
                console=spec.process.terminal, host_devices=host,
            )  # fmt: skip
        elif mount.type == "cgroup" and launch.v1_hierarchies:
            _cgroup_v1_mounts(plan, mount, root, name, launch.v1_hierarchies)
        else:
            slot = add_mount(plan, mount, root, name)
            proc = slot if mount.type == "proc" else proc
    sysctls = sysctl.check(spec.sysctl, spec.namespaces)
    if sysctls and proc < 0:
        raise InvalidSpec("needs a proc mount", field="sysctl")
    for path, value in sysctls:  # before /proc/sys becomes read-only
        text = (plan.fresh(f"sys/{path}".encode()), plan.fresh(value.encode()))
        plan.op(C.PYC_OP_WRITE_AT, f"sysctl {path}", text=text, slots=(proc,))
    _hide_paths(plan, spec, root, dev)
    if spec.process.terminal:
        _terminal(plan, spec.process, root, console=dev >= 0)
    if spec.root_readonly:
        plan.op(C.PYC_OP_MOUNT_SETATTR, "read_only", slots=(root,), nums=(_RDONLY,))
    plan.op(C.PYC_OP_PIVOT_ROOT, "rootfs", slots=(root,))
    return root


def _cgroup_v1_mounts(
    plan: Plan,
    mount: Mount,
    root: int,
    name: str,
    hierarchies: Sequence[tuple[str, tuple[str, ...]]],
) -> None:
    """On cgroup v1 show each hierarchy in its own directory, as Docker and podman do."""
    options = tuple(o for o in mount.options if o != "ro")
    base = Mount(mount.destination, "tmpfs", "tmpfs", (*options, "mode=755", "size=64k"))
    tree = add_mount(plan, base, root, name)
    for directory, words in hierarchies:
        slot = plan.out()
        plan.op(
            C.PYC_OP_FSMOUNT,
            name,
            text=(plan.string("cgroup"), plan.block(words)),
            slots=(slot,),
            nums=(len(words), 0xF),  # ro, nosuid, nodev, noexec
        )
        place(plan, slot, root, f"{mount.destination}/{directory}", name, directory=True)
    plan.op(C.PYC_OP_MOUNT_SETATTR, name, slots=(tree,), nums=(_RDONLY,))


def _hide_paths(plan: Plan, spec: Spec, root: int, dev: int) -> None:
    """Read-only first: a masked path may lie below a read-only one and must stay on top."""
    for path in spec.readonly_paths:
        text = (plan.fresh(path.lstrip("/").encode()),)
        plan.op(C.PYC_OP_READONLY, f"readonly_paths {path}", text=text, slots=(root,))
    if not spec.masked_paths:
        return
    if dev < 0:
        raise InvalidSpec("needs a tmpfs on /dev (its null device covers files)",
                          field="masked_paths")  # fmt: skip
    null, empty = plan.out(), make_filesystem(plan, _EMPTY, "masked_paths")
    plan.op(
        C.PYC_OP_OPEN, "masked_paths", text=(plan.string("null"),), slots=(dev, null),
        nums=(_O_PATH,), flags=C.PYC_F_NO_SYMLINKS,
    )  # fmt: skip
    for path in spec.masked_paths:
        text = (plan.fresh(path.lstrip("/").encode()),)
        plan.op(C.PYC_OP_MASK, f"masked_paths {path}", text=text, slots=(root, null, empty))


_EMPTY = Mount("", "tmpfs", "tmpfs", ("ro", "nosuid", "nodev", "noexec", "nr_blocks=1",
                                      "nr_inodes=1"))  # fmt: skip


def _terminal(plan: Plan, process: Process, root: int, *, console: bool) -> None:
    plan.op(
        C.PYC_OP_TERMINAL,
        "process.terminal",
        slots=(root,),
        nums=(
            process.console_rows << 32 | process.console_columns,
            process.user.uid << 32 | process.user.gid,
        ),
        flags=C.PYC_F_CONSOLE if console else 0,
    )


def _process(plan: Plan, process: Process, launch: Launch, root: int, *, init: bool) -> None:
    """Working directory, stdio, limits, identity, filter, exec: rights only ever shrink."""
    user = process.user
    plan.op(
        C.PYC_OP_CHDIR, "cwd", text=(plan.fresh(process.cwd.encode()),),
        nums=(user.uid << 32 | user.gid,), flags=C.PYC_F_MAKE_DIR if root >= 0 else 0,
    )  # fmt: skip
    if launch.stdio is not None and not process.terminal:
        for number, fd in enumerate(launch.stdio):
            if fd >= 0:
                plan.op(C.PYC_OP_STDIO, "stdio", slots=(plan.send(fd),), nums=(number,))
    for limit in process.rlimits:
        kind = getattr(resource, limit.type, None)
        if kind is None:
            raise InvalidSpec(f"unknown limit {limit.type}", field="ulimits")
        nums = (kind, limit.soft & _U64, limit.hard & _U64)
        plan.op(C.PYC_OP_RLIMIT, f"ulimits {limit.type}", nums=nums)
    plan.op(C.PYC_OP_UMASK, "umask", nums=(user.umask,))
    if launch.park:
        plan.op(C.PYC_OP_GATE, "start", nums=(C.PYC_GATE_START,))
    early = launch.seccomp_filter if not process.no_new_privileges else None
    if early is not None:  # without no_new_privs a filter needs CAP_SYS_ADMIN: while we have it
        _seccomp(plan, early)
    capabilities = process.capabilities
    plan.op(C.PYC_OP_CAP_BOUND, "capabilities", nums=(capabilities.bounding,))
    gids = b"".join(gid.to_bytes(4, "little") for gid in user.additional_gids)
    plan.op(
        C.PYC_OP_SETGROUPS, "user.additional_gids", text=(plan.raw(gids),) if gids else (),
        nums=(len(user.additional_gids),),
    )  # fmt: skip
    plan.op(C.PYC_OP_SETUSER, "user", nums=(user.uid, user.gid))
    sets = (capabilities.effective, capabilities.permitted, capabilities.inheritable)
    plan.op(C.PYC_OP_CAPSET, "capabilities", nums=sets)
    if capabilities.ambient:
        plan.op(C.PYC_OP_CAP_AMBIENT, "capabilities.ambient", nums=(capabilities.ambient,))
    if process.no_new_privileges:
        plan.op(C.PYC_OP_NO_NEW_PRIVS, "no_new_privileges")
        if launch.seccomp_filter is not None:
            _seccomp(plan, launch.seccomp_filter)
    _exec(plan, process, launch.init_fd if init else -1)


_U64 = 2**64 - 1


def _seccomp(plan: Plan, program: bytes) -> None:
    plan.op(C.PYC_OP_SECCOMP, "seccomp", text=(plan.raw(program),), nums=(len(program) // 8,))


def _exec(plan: Plan, process: Process, init_fd: int) -> None:
    args = process.args
    if not args or not args[0]:
        raise InvalidSpec("no command: the image has none and none was given", field="args")
    if init_fd >= 0:
        args = ("pycontain-init", "--", *args)
        candidates: tuple[str, ...] = ()
    elif "/" in args[0]:
        candidates = (args[0],)
    else:
        path = next((e[5:] for e in process.env if e.startswith("PATH=")), _DEFAULT_PATH)
        candidates = tuple(f"{d or '.'}/{args[0]}" for d in path.split(":"))
    plan.op(
        C.PYC_OP_EXEC,
        "args[0]",
        text=(
            plan.block(args),
            plan.block(process.env),
            plan.block(candidates),
            plan.raw(bytes(8 * (len(args) + len(process.env) + 2))),
        ),
        slots=(plan.send(init_fd),) if init_fd >= 0 else (),
        nums=(len(args), len(process.env), len(candidates)),
    )
