"""The calls of the mount interface by descriptors, Linux 5.2 and later. All raise KernelError.

A mount is made detached, configured while nobody can see it, and then attached to a descriptor.
Every fd that comes back is O_CLOEXEC and the caller's to close. The GIL is released meanwhile.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

from pycontain._native.extension import ffi, lib
from pycontain._native.text import (
    AT_FDCWD,
    PathLike,
    fd_text,
    flags_text,
    path_bytes,
    string_text,
)
from pycontain.errors import KernelError, Unsupported

__all__ = [
    "AT_EMPTY_PATH",
    "AT_NO_AUTOMOUNT",
    "AT_RECURSIVE",
    "AT_SYMLINK_NOFOLLOW",
    "MNT_DETACH",
    "MOUNT_ATTR_IDMAP",
    "MOUNT_ATTR_NOATIME",
    "MOUNT_ATTR_NODEV",
    "MOUNT_ATTR_NODIRATIME",
    "MOUNT_ATTR_NOEXEC",
    "MOUNT_ATTR_NOSUID",
    "MOUNT_ATTR_NOSYMFOLLOW",
    "MOUNT_ATTR_RDONLY",
    "MOUNT_ATTR_STRICTATIME",
    "MOUNT_ATTR__ATIME",
    "MOVE_MOUNT_F_EMPTY_PATH",
    "MOVE_MOUNT_F_SYMLINKS",
    "MOVE_MOUNT_T_EMPTY_PATH",
    "MOVE_MOUNT_T_SYMLINKS",
    "MS_PRIVATE",
    "MS_REC",
    "MS_SHARED",
    "MS_SLAVE",
    "MS_UNBINDABLE",
    "OPEN_TREE_CLOEXEC",
    "OPEN_TREE_CLONE",
    "UMOUNT_NOFOLLOW",
    "fs_magic",
    "fs_mount",
    "mount_attach",
    "mount_setattr",
    "move_mount",
    "open_tree",
    "umount2",
]

# linux/fcntl.h, linux/mount.h
AT_SYMLINK_NOFOLLOW = 0x100
AT_NO_AUTOMOUNT = 0x800
AT_EMPTY_PATH = 0x1000
AT_RECURSIVE = 0x8000
OPEN_TREE_CLONE = 1
OPEN_TREE_CLOEXEC = os.O_CLOEXEC
MOVE_MOUNT_F_SYMLINKS = 0x01
MOVE_MOUNT_F_EMPTY_PATH = 0x04
MOVE_MOUNT_T_SYMLINKS = 0x10
MOVE_MOUNT_T_EMPTY_PATH = 0x40
MOUNT_ATTR_RDONLY = 0x01
MOUNT_ATTR_NOSUID = 0x02
MOUNT_ATTR_NODEV = 0x04
MOUNT_ATTR_NOEXEC = 0x08
MOUNT_ATTR_NOATIME = 0x10
MOUNT_ATTR_STRICTATIME = 0x20
MOUNT_ATTR__ATIME = 0x70
MOUNT_ATTR_NODIRATIME = 0x80
MOUNT_ATTR_IDMAP = 0x100000
MOUNT_ATTR_NOSYMFOLLOW = 0x200000
MS_REC = 0x4000
MS_UNBINDABLE = 1 << 17
MS_PRIVATE = 1 << 18
MS_SLAVE = 1 << 19
MS_SHARED = 1 << 20
MNT_DETACH = 2
UMOUNT_NOFOLLOW = 8

_LOG_BYTES = 4096
_VALUE_BYTES = 255  # fsconfig(2) refuses longer strings
_ATTR_NAMES = {n: v for n, v in list(globals().items()) if n.startswith("MOUNT_ATTR_")}
_TREE_NAMES = {
    "OPEN_TREE_CLONE": OPEN_TREE_CLONE,
    "OPEN_TREE_CLOEXEC": OPEN_TREE_CLOEXEC,
    "AT_EMPTY_PATH": AT_EMPTY_PATH,
    "AT_RECURSIVE": AT_RECURSIVE,
    "AT_SYMLINK_NOFOLLOW": AT_SYMLINK_NOFOLLOW,
    "AT_NO_AUTOMOUNT": AT_NO_AUTOMOUNT,
}
_MOVE_NAMES = {n: v for n, v in list(globals().items()) if n.startswith("MOVE_MOUNT_")}


def open_tree(dir_fd: int, path: PathLike, flags: int) -> int:
    """Return an fd of the mount at `path`; with OPEN_TREE_CLONE a detached copy of it.

    An empty path is `dir_fd` itself. Source: open_tree(2).
    """
    raw = path_bytes(path)
    flags |= OPEN_TREE_CLOEXEC | (AT_EMPTY_PATH if not raw else 0)
    result = lib.pyc_open_tree(dir_fd, raw, flags)
    if result < 0:
        call = f"open_tree({fd_text(dir_fd)}, {string_text(raw)}, {flags_text(flags, _TREE_NAMES)})"
        raise KernelError(-result, call)
    return result


def move_mount(
    from_fd: int, from_path: PathLike, to_fd: int, to_path: PathLike, flags: int = 0
) -> None:
    """Attach the mount at (from_fd, from_path) at (to_fd, to_path); an empty path is the fd itself.

    Source: move_mount(2).
    """
    source, target = path_bytes(from_path), path_bytes(to_path)
    flags |= (MOVE_MOUNT_F_EMPTY_PATH if not source else 0) | (
        MOVE_MOUNT_T_EMPTY_PATH if not target else 0
    )
    result = lib.pyc_move_mount(from_fd, source, to_fd, target, flags)
    if result < 0:
        parts = [fd_text(from_fd), string_text(source), fd_text(to_fd), string_text(target)]
        text = f"move_mount({', '.join(parts)}, {flags_text(flags, _MOVE_NAMES)})"
        raise KernelError(-result, text)


def mount_attach(mount_fd: int, path: PathLike) -> None:
    """Attach a detached mount at `path`, following no symbolic link in its last component."""
    move_mount(mount_fd, "", AT_FDCWD, path)


def fs_mount(fstype: str, options: Sequence[str], attr_flags: int = 0) -> int:
    """Make a file system instance and return it as a detached mount.

    Args:
        fstype: "overlay", "tmpfs", ...
        options: "key=value" or "key", given to fsconfig(2) one by one. The kernel takes at most
            255 bytes of a value; an overlay's layers may be given as repeated "lowerdir+=", and
            those of one longer "lowerdir=" are named by descriptors instead.
        attr_flags: MOUNT_ATTR_*.

    Raises:
        KernelError: names the failing step; the kernel's own explanation is the hint.
        Unsupported: so many layers that even so they do not fit.

    Source: fsopen(2), fsconfig(2), fsmount(2).
    """
    encoded = [path_bytes(option) for option in options]
    for index, option in enumerate(encoded):
        if option.startswith(b"lowerdir=") and len(option) > len(b"lowerdir=") + _VALUE_BYTES:
            fds: list[int] = []
            try:
                encoded[index] = _short_lowerdir(option, fds)
                return _fs_mount(fstype, encoded, attr_flags)
            finally:
                for fd in fds:
                    os.close(fd)
    return _fs_mount(fstype, encoded, attr_flags)


def _short_lowerdir(option: bytes, fds: list[int]) -> bytes:
    """The same layers by short names; their descriptors, the caller's, are appended to `fds`."""
    layers = option.removeprefix(b"lowerdir=").replace(b"\\:", b"\0").split(b":")
    for layer in layers:
        path = layer.replace(b"\0", b":").replace(b"\\\\", b"\\")
        try:
            fds.append(os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC))
        except OSError as error:
            raise KernelError(error.errno or 0, f"open({string_text(path)}, O_PATH)") from error
    # udev's link makes room for 23 layers instead of 15
    directory = b"/dev/fd" if os.path.islink("/dev/fd") else b"/proc/self/fd"
    value = b":".join(b"%s/%d" % (directory, fd) for fd in fds)
    if len(value) > _VALUE_BYTES:
        raise Unsupported(f"an image of {len(layers)} layers", needs="Linux 6.8 (lowerdir+)")
    return b"lowerdir=" + value


def _fs_mount(fstype: str, encoded: Sequence[bytes], attr_flags: int) -> int:
    block = b"".join(option + b"\0" for option in encoded)
    step, log = ffi.new("uint32_t *"), ffi.new("char[]", _LOG_BYTES)
    result = lib.pyc_fs_mount(
        path_bytes(fstype), block, len(encoded), attr_flags, step, log, _LOG_BYTES
    )
    if result >= 0:
        return result
    at = step[0]
    if at == 0:
        call = f"fsopen({string_text(fstype)}, FSOPEN_CLOEXEC)"
    elif at <= len(encoded):
        key, equals, value = encoded[at - 1].partition(b"=")
        rest = f"SET_STRING, {string_text(key)}, {string_text(value)}"
        if not equals:
            rest = f"SET_FLAG, {string_text(key)}"
        call = f"fsconfig({string_text(fstype)}, FSCONFIG_{rest})"
    elif at == len(encoded) + 1:
        shown = ",".join(option.decode("utf-8", "backslashreplace") for option in encoded)
        call = f"fsconfig({string_text(fstype)}, FSCONFIG_CMD_CREATE) [{shown}]"
    else:
        attrs = flags_text(attr_flags, _ATTR_NAMES)
        call = f"fsmount({string_text(fstype)}, FSMOUNT_CLOEXEC, {attrs})"
    # Each line of the kernel's log begins with its level: "e tmpfs: Bad value for 'size'".
    lines = ffi.string(log).decode("utf-8", "backslashreplace").splitlines()
    raise KernelError(-result, call, hint="; ".join(line[2:] for line in lines) or None)


def mount_setattr(
    fd: int,
    path: PathLike = "",
    *,
    set: int = 0,
    clear: int = 0,
    propagation: int = 0,
    userns_fd: int = -1,
    recursive: bool = False,
) -> None:
    """Change the attributes of the mount at (fd, path); an empty path is the fd itself.

    Args:
        set: MOUNT_ATTR_* to set; IDMAP is added when `userns_fd` is given.
        clear: MOUNT_ATTR_* to clear; MOUNT_ATTR__ATIME first, when one of its values is set.
        propagation: MS_PRIVATE, MS_SLAVE, MS_SHARED or MS_UNBINDABLE; 0 = as it is.
        userns_fd: the user namespace whose maps the mount shall have; stays the caller's.
        recursive: the whole tree below, all or nothing.

    Source: mount_setattr(2).
    """
    raw = path_bytes(path)
    flags = (AT_EMPTY_PATH if not raw else 0) | (AT_RECURSIVE if recursive else 0)
    set |= MOUNT_ATTR_IDMAP if userns_fd >= 0 else 0
    result = lib.pyc_mount_setattr(fd, raw, flags, set, clear, propagation, userns_fd)
    if result < 0:
        attrs = f"set={flags_text(set, _ATTR_NAMES)}, clear={flags_text(clear, _ATTR_NAMES)}"
        where = f"{fd_text(fd)}, {string_text(raw)}, {flags_text(flags, _TREE_NAMES)}"
        call = f"mount_setattr({where}, {{{attrs}, propagation={propagation:#x}}})"
        raise KernelError(-result, call)


def umount2(path: PathLike, flags: int = 0) -> None:
    """Detach the topmost mount at `path`. Source: umount2(2)."""
    raw = path_bytes(path)
    result = lib.pyc_umount2(raw, flags)
    if result < 0:
        names = {"MNT_DETACH": MNT_DETACH, "UMOUNT_NOFOLLOW": UMOUNT_NOFOLLOW}
        raise KernelError(-result, f"umount2({string_text(raw)}, {flags_text(flags, names)})")


def fs_magic(fd: int) -> int:
    """Return the magic number of the file system that `fd` lies on. Source: statfs(2)."""
    result = lib.pyc_fs_magic(fd)
    if result < 0:
        raise KernelError(-result, f"fstatfs({fd_text(fd)})")
    return result
