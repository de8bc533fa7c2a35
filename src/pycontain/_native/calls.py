"""Processes, memory files, user namespaces, eBPF: calls that Python lacks. All raise KernelError.

Every fd that comes back is O_CLOEXEC and the caller's to close. The GIL is released meanwhile.
"""

from __future__ import annotations

import os
from errno import EINVAL, EMFILE

from pycontain._native.extension import ffi, lib
from pycontain._native.text import PathLike, fd_text, path_bytes, string_text
from pycontain.errors import InvalidInput, KernelError

__all__ = [
    "BPF_CGROUP_DEVICE",
    "BPF_F_ALLOW_MULTI",
    "BPF_F_ALLOW_OVERRIDE",
    "BPF_F_REPLACE",
    "BPF_PROG_TYPE_CGROUP_DEVICE",
    "CLOSE_RANGE_CLOEXEC",
    "F_SEALS",
    "MFD_ALLOW_SEALING",
    "MFD_EXEC",
    "MFD_NOEXEC_SEAL",
    "bpf_prog_attach",
    "bpf_prog_detach",
    "bpf_prog_load",
    "close_range",
    "inotify_add_watch",
    "inotify_init",
    "make_userns",
    "memfd",
    "pidfd_getfd",
    "pidfd_open",
    "pidfd_send_signal",
    "syncfs",
]

# linux/close_range.h
CLOSE_RANGE_CLOEXEC = 4
# linux/memfd.h, linux/fcntl.h
MFD_ALLOW_SEALING = 2
MFD_NOEXEC_SEAL = 8
MFD_EXEC = 16
F_SEALS = 1 | 2 | 4 | 8  # SEAL, SHRINK, GROW, WRITE
# linux/bpf.h
BPF_PROG_TYPE_CGROUP_DEVICE = 15
BPF_CGROUP_DEVICE = 6
BPF_F_ALLOW_OVERRIDE = 1
BPF_F_ALLOW_MULTI = 2
BPF_F_REPLACE = 4

_LOG_BYTES = 65536


def pidfd_open(pid: int, flags: int = 0) -> int:
    """Return an fd of the process, readable when it has ended. Source: pidfd_open(2)."""
    result = lib.pyc_pidfd_open(pid, flags)
    if result < 0:
        raise KernelError(-result, f"pidfd_open({pid}, {flags:#x})")
    return result


def pidfd_send_signal(pidfd: int, signal: int) -> None:
    """Signal exactly that process; ESRCH once it has ended. Source: pidfd_send_signal(2)."""
    result = lib.pyc_pidfd_send_signal(pidfd, signal)
    if result < 0:
        raise KernelError(-result, f"pidfd_send_signal({fd_text(pidfd)}, {signal})")


def pidfd_getfd(pidfd: int, fd: int) -> int:
    """Return a duplicate of another process' fd. Source: pidfd_getfd(2)."""
    result = lib.pyc_pidfd_getfd(pidfd, fd)
    if result < 0:
        raise KernelError(-result, f"pidfd_getfd({fd_text(pidfd)}, {fd}, 0)")
    return result


def close_range(first: int, last: int = 0xFFFFFFFF, *, cloexec: bool = False) -> None:
    """Close all fds from `first` to `last`, or only mark them close-on-exec.

    Source: close_range(2).
    """
    result = lib.pyc_close_range(first, last, CLOSE_RANGE_CLOEXEC if cloexec else 0)
    if result < 0:
        raise KernelError(-result, f"close_range({first}, {last}, {int(cloexec) * 4})")


def syncfs(fd: int) -> None:
    """Everything written to the file system that holds `fd` is on its disk. Source: syncfs(2)."""
    result = lib.pyc_syncfs(fd)
    if result < 0:
        raise KernelError(-result, f"syncfs({fd_text(fd)})")


def inotify_init() -> int:
    """Return an O_CLOEXEC, non-blocking inotify fd. Source: inotify(7)."""
    result = lib.pyc_inotify_init(os.O_CLOEXEC | os.O_NONBLOCK)
    if result < 0:
        hint = "fs.inotify.max_user_instances is a limit" if result == -EMFILE else None
        raise KernelError(-result, "inotify_init1(IN_CLOEXEC|IN_NONBLOCK)", hint=hint)
    return result


def inotify_add_watch(fd: int, path: PathLike, mask: int) -> int:
    """Watch `path` for the events of `mask` (IN_*) and return the watch's number.

    Source: inotify_add_watch(2).
    """
    raw = path_bytes(path)
    result = lib.pyc_inotify_add_watch(fd, raw, mask)
    if result < 0:
        raise KernelError(-result, f"inotify_add_watch({fd}, {string_text(raw)}, {mask:#x})")
    return result


def memfd(name: str, data: bytes, *, seal: bool = False, executable: bool = False) -> int:
    """Return an O_CLOEXEC memory file that holds `data`, its offset at 0.

    Args:
        seal: nobody can change it any more, us included.
        executable: it may be executed; others get MFD_NOEXEC_SEAL where the kernel knows it.

    Source: memfd_create(2); MFD_EXEC and MFD_NOEXEC_SEAL came with Linux 6.3.
    """
    raw = path_bytes(name)
    seals = F_SEALS if seal else 0
    kind = MFD_EXEC if executable else MFD_NOEXEC_SEAL
    result = lib.pyc_memfd(raw, data, len(data), MFD_ALLOW_SEALING | kind, seals)
    if result == -EINVAL:
        result = lib.pyc_memfd(raw, data, len(data), MFD_ALLOW_SEALING, seals)
    if result < 0:
        raise KernelError(-result, f"memfd_create({string_text(raw)}) of {len(data)} bytes")
    return result


def make_userns(uid_map: str, gid_map: str, *, deny_setgroups: bool = False) -> int:
    """Return an fd of a new user namespace with these maps and no process in it.

    It keeps the namespace alive; closing it ends it, mounts that use it excepted. Safe in a
    threaded host program, beside waitpid(-1) and SIGCHLD handlers of others.

    Args:
        uid_map: lines "inside outside count", as in /proc/PID/uid_map.
        gid_map: likewise.
        deny_setgroups: needed to map a gid without CAP_SETGID.

    Source: user_namespaces(7); mount_setattr(2), MOUNT_ATTR_IDMAP.
    """
    step = ffi.new("uint32_t *")
    uid, gid = path_bytes(uid_map), path_bytes(gid_map)
    if not uid.strip() or not gid.strip():
        raise InvalidInput("a user namespace for mounts needs both maps")
    result = lib.pyc_make_userns(uid, gid, deny_setgroups, step)
    if result < 0:
        calls = (
            "clone(CLONE_VM|CLONE_NEWUSER|CLONE_PIDFD)",
            'open("/proc/PID/ns/user")',
            'write("/proc/PID/setgroups", "deny")',
            f'write("/proc/PID/uid_map", {string_text(uid)})',
            f'write("/proc/PID/gid_map", {string_text(gid)})',
        )
        raise KernelError(-result, calls[step[0]])
    return result


def bpf_prog_load(prog_type: int, insns: bytes, *, attach_type: int = 0) -> int:
    """Return an fd of a verified eBPF program; the verifier's last words are the error's hint.

    Args:
        insns: struct bpf_insn[], 8 bytes each.

    Source: bpf(2), BPF_PROG_LOAD.
    """
    if len(insns) % 8 or not insns:
        raise InvalidInput(f"{len(insns)} bytes are no eBPF program")
    log = ffi.new("char[]", _LOG_BYTES)
    result = lib.pyc_bpf_prog_load(prog_type, attach_type, insns, len(insns) // 8, log, _LOG_BYTES)
    if result < 0:
        text = ffi.string(log).decode("utf-8", "backslashreplace").strip()
        call = f"bpf(BPF_PROG_LOAD, {{type={prog_type}, {len(insns) // 8} insns}})"
        raise KernelError(-result, call, hint="; ".join(text.splitlines()[-3:]) or None)
    return result


def bpf_prog_attach(prog_fd: int, target_fd: int, attach_type: int, flags: int = 0) -> None:
    """Attach a program to a cgroup (`target_fd`). Source: bpf(2), BPF_PROG_ATTACH."""
    result = lib.pyc_bpf_prog_attach(prog_fd, target_fd, attach_type, flags)
    if result < 0:
        where = f"{fd_text(target_fd)}, type={attach_type}, flags={flags:#x}"
        raise KernelError(-result, f"bpf(BPF_PROG_ATTACH, {{{where}}})")


def bpf_prog_detach(prog_fd: int, target_fd: int, attach_type: int) -> None:
    """Detach a program from a cgroup (`target_fd`). Source: bpf(2), BPF_PROG_DETACH."""
    result = lib.pyc_bpf_prog_detach(prog_fd, target_fd, attach_type)
    if result < 0:
        where = f"{fd_text(target_fd)}, type={attach_type}"
        raise KernelError(-result, f"bpf(BPF_PROG_DETACH, {{{where}}})")
