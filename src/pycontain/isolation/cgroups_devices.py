"""Device rules on a cgroup: an eBPF program where there is a v2 tree, else v1's lines.

The program works on hybrid hosts as well, where it spares the process a v1 hierarchy to join.
"""

from __future__ import annotations

import errno
import os
import threading

from pycontain.errors import KernelError, Unsupported
from pycontain.isolation.cgroups_layout import Layout
from pycontain.isolation.cgroups_limits import Setting
from pycontain.isolation.cgroups_v1 import device_settings
from pycontain.oci import DeviceRule

_MAX_LOADED = 32  # distinct rule sets whose program stays loaded; each is one fd
_NO_BPF = frozenset((errno.ENOSYS, errno.EPERM, errno.EACCES, errno.EINVAL, errno.EOPNOTSUPP))

_programs: dict[bytes, int] = {}  # eBPF -> fd, for the life of the process
_compiled: dict[tuple[DeviceRule, ...], bytes] = {}
_lock = threading.Lock()
_bpf_refused = False  # learnt once: this kernel or this process can't


def attach_devices(
    layout: Layout, dir_fd: int, rules: tuple[DeviceRule, ...], program: bytes | None
) -> list[Setting]:
    """The rules hold for the v2 cgroup `dir_fd`; or the v1 lines that remain to be written.

    Raises:
        Unsupported: neither way exists here.
        KernelError: the program was refused though there is a device controller for it.
    """
    global _bpf_refused
    refusal: KernelError | None = None
    if dir_fd >= 0 and not _bpf_refused:
        try:
            _attach(dir_fd, program or _compile(rules))
            return []
        except KernelError as error:
            if error.errno not in _NO_BPF:
                raise
            refusal = error
    if layout.v1_mount("devices"):
        _bpf_refused = True
        return device_settings(rules)
    needs = "cgroup v2 with CONFIG_CGROUP_BPF and CAP_BPF, or the v1 devices controller"
    raise Unsupported("devices", needs=needs) from refusal


def _compile(rules: tuple[DeviceRule, ...]) -> bytes:
    from pycontain.isolation.devices import device_program

    program = _compiled.get(rules)
    if program is None:
        program = device_program(rules)
        if len(_compiled) < _MAX_LOADED:
            _compiled[rules] = program
    return program


def _attach(dir_fd: int, program: bytes) -> None:
    from pycontain import _native

    with _lock:
        fd = _programs.get(program, -1)
        if fd < 0:
            fd = _native.bpf_prog_load(_native.BPF_PROG_TYPE_CGROUP_DEVICE, program)
            if len(_programs) >= _MAX_LOADED:
                _close_one()
            _programs[program] = fd
        # Inside the lock: another thread's load may close this fd to make room. MULTI lets an
        # exec's cgroup have stricter rules of its own: all programs on the path must agree.
        _native.bpf_prog_attach(fd, dir_fd, _native.BPF_CGROUP_DEVICE, _native.BPF_F_ALLOW_MULTI)


def forget_programs() -> None:
    """No program is kept loaded; where one is attached, it stays in force."""
    with _lock:
        while _programs:
            _close_one()


def _close_one() -> None:
    os.close(_programs.pop(next(iter(_programs))))
