"""Mounts: runtime-spec words to kernel flags, detached mounts on the host, mount ops in the plan.

Two kinds of mounts exist. What comes from the host (the root file system, bind mounts) is made
here, by the client, as a *detached* mount with its final flags, and travels as a descriptor: the
child, whose mount namespace holds nothing of the host, only moves it into place. What belongs to
the container's own namespaces (proc, sysfs, devpts, mqueue, tmpfs, cgroup) the child makes.
Source: runtime-spec config.md "Linux mount options", mount_setattr(2), fsopen(2).
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterable, Sequence
from contextlib import ExitStack

from pycontain import _native
from pycontain._native import C
from pycontain.errors import InvalidSpec, KernelError, NotFound, Unsupported
from pycontain.isolation.plan import Plan
from pycontain.oci import Device, IdMap, Mount
from pycontain.values import frozen, replace

__all__ = [
    "MountOptions",
    "add_dev",
    "add_mount",
    "id_map_text",
    "open_host_mount",
    "parse_options",
]

# include/uapi/linux/mount.h
_RDONLY, _NOSUID, _NODEV, _NOEXEC = 0x1, 0x2, 0x4, 0x8
_ATIME, _NOATIME, _STRICTATIME, _NODIRATIME, _IDMAP = 0x70, 0x10, 0x20, 0x80, 0x100000
_NOSYMFOLLOW = 0x200000
_OPEN_TREE_CLONE, _AT_RECURSIVE = 0x1, 0x8000
_MS_UNBINDABLE, _MS_PRIVATE, _MS_SLAVE, _MS_SHARED = 1 << 17, 1 << 18, 1 << 19, 1 << 20

# word -> (bits to set, bits to clear)
_ATTRIBUTES = {
    "ro": (_RDONLY, 0), "rw": (0, _RDONLY),
    "nosuid": (_NOSUID, 0), "suid": (0, _NOSUID),
    "nodev": (_NODEV, 0), "dev": (0, _NODEV),
    "noexec": (_NOEXEC, 0), "exec": (0, _NOEXEC),
    "noatime": (_NOATIME, _ATIME), "strictatime": (_STRICTATIME, _ATIME), "relatime": (0, _ATIME),
    "nodiratime": (_NODIRATIME, 0), "diratime": (0, _NODIRATIME),
    "nosymfollow": (_NOSYMFOLLOW, 0), "symfollow": (0, _NOSYMFOLLOW),
}  # fmt: skip
_PROPAGATION = {
    "private": _MS_PRIVATE,
    "shared": _MS_SHARED,
    "slave": _MS_SLAVE,
    "unbindable": _MS_UNBINDABLE,
}
_IGNORED = frozenset(("defaults", "async", "auto", "noauto", "user", "nouser", "_netdev", "z", "Z"))


@frozen
class MountOptions:
    """The words of a mount, sorted out. `recursive_*` apply to the whole tree (mount_setattr)."""

    set: int = 0
    clear: int = 0
    recursive_set: int = 0
    recursive_clear: int = 0
    propagation: int = 0
    propagation_recursive: bool = False
    bind: bool = False
    recursive_bind: bool = False
    idmap: bool = False
    idmap_recursive: bool = False
    data: tuple[str, ...] = ()  # for the file system itself


def parse_options(options: Iterable[str], field: str = "mounts") -> MountOptions:
    """Sort a mount's words into attributes, propagation, bind kind and file system data.

    Raises: InvalidSpec: two propagations at once (`field` names the mount).
    """
    bits = {"set": 0, "clear": 0, "recursive_set": 0, "recursive_clear": 0}
    found: dict[str, int | bool] = {}
    data = []
    for word in options:
        base = word[1:] if word[:1] == "r" and word[1:] in _ATTRIBUTES else None
        if word in _ATTRIBUTES:
            _add_bits(bits, "", *_ATTRIBUTES[word])
        elif base is not None:  # rro, rnosuid, ... ("relatime" and "rw" matched above)
            _add_bits(bits, "recursive_", *_ATTRIBUTES[base])
        elif word in _PROPAGATION or (word[1:] in _PROPAGATION and word[0] == "r"):
            if "propagation" in found:
                raise InvalidSpec("two propagation options", field=f"{field}.options")
            found["propagation"] = _PROPAGATION[word if word in _PROPAGATION else word[1:]]
            found["propagation_recursive"] = word not in _PROPAGATION
        elif word in ("bind", "rbind"):
            found["bind"] = True
            found["recursive_bind"] = word == "rbind"
        elif word in ("idmap", "ridmap"):
            found["idmap"] = True
            found["idmap_recursive"] = word == "ridmap"
        elif word not in _IGNORED and word != "":
            data.append(word)
    return MountOptions(**bits, **found, data=tuple(data))  # type: ignore[arg-type]


def _add_bits(bits: dict[str, int], prefix: str, set_: int, clear: int) -> None:
    """The later word wins: "ro,rw" is rw."""
    bits[prefix + "set"] = bits[prefix + "set"] & ~clear | set_
    bits[prefix + "clear"] = bits[prefix + "clear"] & ~set_ | clear


def id_map_text(maps: Sequence[IdMap]) -> str:
    """Return the maps as /proc/PID/uid_map takes them (user_namespaces(7))."""
    return "".join(f"{m.container_id} {m.host_id} {m.size}\n" for m in maps)


def open_host_mount(mount: Mount, field: str) -> tuple[int, bool]:
    """Make a detached mount of a host path or of an overlay, its flags already set.

    Returns: (fd, is_directory); the caller owns the O_CLOEXEC fd and closing it unmounts.
    Raises:  NotFound: a bind source that does not exist.  KernelError: what the kernel refused;
             both name `field`.
    """
    options = parse_options(mount.options, field)
    if mount.source_fd >= 0:
        fd = os.dup(mount.source_fd)
    elif mount.type == "overlay":
        return _open_overlay(mount, options, field), True
    else:
        fd = _open_bind(mount, options, field)
    try:
        is_directory = stat.S_ISDIR(os.fstat(fd).st_mode)
        _set_attributes(fd, mount, options, field)
    except BaseException:
        os.close(fd)
        raise
    return fd, is_directory


def _open_bind(mount: Mount, options: MountOptions, field: str) -> int:
    if not mount.source or not os.path.isabs(mount.source):
        raise InvalidSpec(f"{mount.source!r} is not an absolute path", field=f"{field}.source")
    flags = _OPEN_TREE_CLONE | (_AT_RECURSIVE if options.recursive_bind else 0)
    try:
        return _native.open_tree(-100, mount.source, flags)  # AT_FDCWD; the path is absolute
    except KernelError as error:
        if error.errno == 2:  # ENOENT
            raise NotFound(
                f"{field}.source: {mount.source} does not exist",
                hint="pycontain creates no missing bind sources",
            ) from None
        error.field = f"{field}.source"
        raise


def _open_overlay(mount: Mount, options: MountOptions, field: str) -> int:
    """An overlay can't be idmapped, but its layers can: each is cloned, mapped, and stacked by fd.

    The upper layer is not: the kernel writes to it with our ids, which a map does not have, so on
    disk it has the host's. Detached mounts as layers need Linux 6.15
    (tools/testing/selftests/filesystems/overlayfs/set_layers_via_fds.c).
    """
    if not mount.uid_mappings:
        return _native.fs_mount("overlay", options.data, options.set)
    mapped = replace(mount, type="bind", options=("bind", "idmap"))
    with ExitStack() as stack:
        data = []
        for word in options.data:
            key, _, value = word.partition("=")
            if key == "lowerdir":  # one option for all, as before Linux 6.8
                raise Unsupported("userns with layers", needs="Linux 6.15")
            if key == "lowerdir+":
                fd, _ = open_host_mount(replace(mapped, source=value), field)
                stack.callback(os.close, fd)
                word = f"{key}=/proc/self/fd/{fd}"
            data.append(word)
        try:
            return _native.fs_mount("overlay", data, options.set)
        except KernelError as error:
            if error.errno != errno.EINVAL:
                raise
            raise Unsupported(
                "userns with layers", needs="Linux 6.15", hint="or use rootfs:DIRECTORY"
            ) from error


def _set_attributes(fd: int, mount: Mount, options: MountOptions, field: str) -> None:
    if options.recursive_set or options.recursive_clear:
        _native.mount_setattr(
            fd, "", set=options.recursive_set, clear=options.recursive_clear, recursive=True
        )
    if options.set or options.clear:
        _native.mount_setattr(fd, "", set=options.set, clear=options.clear)
    if options.idmap or mount.uid_mappings:
        if not mount.uid_mappings or not mount.gid_mappings:
            raise InvalidSpec("idmap needs uidMappings and gidMappings", field=field)
        userns_fd = _native.make_userns(
            id_map_text(mount.uid_mappings), id_map_text(mount.gid_mappings)
        )
        try:
            _native.mount_setattr(
                fd, "", set=_IDMAP, userns_fd=userns_fd, recursive=options.idmap_recursive
            )
        finally:
            os.close(userns_fd)
    # A bind mount joins the host's peer group unless told otherwise: private, so that nothing
    # mounted inside shows up on the host, or the other way round.
    _native.mount_setattr(
        fd, "", propagation=options.propagation or _MS_PRIVATE,
        recursive=options.propagation_recursive or not options.propagation,
    )  # fmt: skip


def add_mount(plan: Plan, mount: Mount, root: int, field: str) -> int:
    """Append the ops that make one file system of the container's own and put it in place.

    Returns the slot of the mount. /proc and /sys may not be reached through a symbolic link of the
    image: what is mounted there is trusted afterwards (CVE-2019-19921, CVE-2023-27561).
    """
    slot = make_filesystem(plan, mount, field)
    place(plan, slot, root, mount.destination, field, directory=True)
    return slot


def make_filesystem(plan: Plan, mount: Mount, field: str, *, writable: bool = False) -> int:
    """Append the op that makes a detached file system; `writable` leaves read-only for later."""
    options = parse_options(mount.options, field)
    kind = {"cgroup": "cgroup2"}.get(mount.type, mount.type)
    data = [word for word in options.data if word != "newinstance"]  # always so since Linux 4.7
    if kind in ("proc", "sysfs", "mqueue", "cgroup2"):
        data = [word for word in data if "=" in word]
    attributes = options.set & ~(_RDONLY if writable else 0)
    slot = plan.out()
    plan.op(
        C.PYC_OP_FSMOUNT,
        field,
        text=(plan.string(kind), plan.block(data)),
        slots=(slot,),
        nums=(len(data), attributes),
    )
    return slot


def place(
    plan: Plan, slot: int, root: int, destination: str, field: str, *, directory: bool
) -> None:
    """Append the op that moves a detached mount to its destination, made there if missing."""
    flags = C.PYC_F_MAKE_DIR if directory else C.PYC_F_MAKE_FILE
    if destination in ("/proc", "/sys", "/dev") or destination.startswith(("/proc/", "/sys/")):
        flags |= C.PYC_F_NO_SYMLINKS
    path = plan.fresh(destination.lstrip("/").encode("utf-8", "surrogateescape"))
    plan.op(C.PYC_OP_MOVE_MOUNT, field, text=(path,), slots=(slot, root), flags=flags)


def add_dev(
    plan: Plan,
    mount: Mount,
    root: int,
    field: str,
    *,
    devices: Sequence[Device],
    symlinks: Sequence[tuple[str, str]],
    console: bool,
    host_devices: dict[str, int],
) -> int:
    """Append the ops for /dev: a tmpfs that is filled before anybody can see it.

    Nodes and links are made relative to the detached tmpfs, so an image whose /dev is a symbolic
    link changes nothing on the host (CVE-2026-41579). Devices in `host_devices` (path -> slot of a
    detached bind mount) are mounted instead of made: mknod is refused in a user namespace.
    Returns the slot of the tmpfs.
    """
    slot = make_filesystem(plan, mount, field, writable=True)
    made: set[str] = set()
    for name in ("pts", "shm", "mqueue"):
        _make_dir(plan, slot, name, made, field)
    for index, device in enumerate(devices):
        name = device.path.removeprefix("/dev/")
        for i in (i for i, char in enumerate(name) if char == "/"):
            _make_dir(plan, slot, name[:i], made, f"devices[{index}]")
        if device.path not in host_devices:
            _make_node(plan, slot, name, device, f"devices[{index}]")
    for name, target in symlinks:
        plan.op(
            C.PYC_OP_SYMLINK, field, slots=(slot,), flags=C.PYC_F_EXIST_OK,
            text=(plan.fresh(name.removeprefix("/dev/").encode()), plan.string(target)),
        )  # fmt: skip
    if console:
        node = Device("/dev/console", "f", mode=0o600)
        _make_node(plan, slot, "console", node, "process.terminal")
    place(plan, slot, root, mount.destination, field, directory=True)
    for path, tree in host_devices.items():
        place(plan, tree, root, path, f"devices {path}", directory=False)
    return slot


def _make_dir(plan: Plan, slot: int, name: str, made: set[str], field: str) -> None:
    if name not in made:
        made.add(name)
        plan.op(
            C.PYC_OP_MKDIR, field, text=(plan.fresh(name.encode()),), slots=(slot,),
            nums=(0o755,), flags=C.PYC_F_EXIST_OK,
        )  # fmt: skip


def _make_node(plan: Plan, slot: int, name: str, device: Device, field: str) -> None:
    kinds = {"c": stat.S_IFCHR, "u": stat.S_IFCHR, "b": stat.S_IFBLK, "p": stat.S_IFIFO}
    kind = kinds.get(device.type, stat.S_IFREG)
    plan.op(
        C.PYC_OP_MKNOD,
        field,
        text=(plan.fresh(name.encode()),),
        slots=(slot,),
        nums=(
            kind | device.mode,
            os.makedev(device.major, device.minor),
            device.uid << 32 | device.gid,
        ),
        flags=C.PYC_F_EXIST_OK,
    )
