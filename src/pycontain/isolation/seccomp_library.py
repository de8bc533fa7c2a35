"""libseccomp, in process: rules go in, classic BPF comes out.

Loaded when a filter has to be built, and never otherwise (its declarations are parsed by pycparser,
which takes longer than everything else here). Also the few instructions of our own that go before
libseccomp's.
Source: seccomp_init(3), seccomp_rule_add(3), seccomp_export_bpf(3), linux/filter.h.
"""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import Sequence
from functools import cache
from types import TracebackType
from typing import Any, Self

from pycontain.errors import InternalError, Unsupported
from pycontain.isolation.seccomp_profile import ERRNO, KILL_THREAD, Arg, Denied

_DECLARATIONS = """
typedef void *scmp_filter_ctx;
struct scmp_arg_cmp { unsigned int arg; int op; uint64_t datum_a; uint64_t datum_b; };
scmp_filter_ctx seccomp_init(uint32_t def_action);
void seccomp_release(scmp_filter_ctx ctx);
uint32_t seccomp_arch_native(void);
int seccomp_arch_add(scmp_filter_ctx ctx, uint32_t arch_token);
int seccomp_arch_remove(scmp_filter_ctx ctx, uint32_t arch_token);
int seccomp_attr_set(scmp_filter_ctx ctx, int attr, uint32_t value);
int seccomp_syscall_resolve_name(const char *name);
int seccomp_syscall_resolve_name_arch(uint32_t arch_token, const char *name);
int seccomp_rule_add_array(scmp_filter_ctx ctx, uint32_t action, int syscall,
                           unsigned int arg_cnt, const struct scmp_arg_cmp *arg_array);
int seccomp_export_bpf(scmp_filter_ctx ctx, int fd);
"""
OPERATORS = {
    "SCMP_CMP_NE": 1,
    "SCMP_CMP_LT": 2,
    "SCMP_CMP_LE": 3,
    "SCMP_CMP_EQ": 4,
    "SCMP_CMP_GE": 5,
    "SCMP_CMP_GT": 6,
    "SCMP_CMP_MASKED_EQ": 7,
}
_ATTR_BAD_ARCH, _ATTR_OPTIMIZE = 2, 8  # SCMP_FLTATR_*
_BINARY_TREE = 2
_UNKNOWN_NAME = -1  # __NR_SCMP_ERROR; other negative numbers stand for calls of other machines

_LOAD, _EQUAL, _GREATER, _AT_LEAST, _RETURN = 0x20, 0x15, 0x25, 0x35, 0x06
_X32_BIT = 0x40000000


@cache
def _library() -> tuple[Any, Any]:
    """Return (ffi, lib).

    Raises:
        Unsupported: libseccomp is not installed.
    """
    import cffi

    ffi = cffi.FFI()
    ffi.cdef(_DECLARATIONS)
    try:
        return ffi, ffi.dlopen("libseccomp.so.2")
    except OSError as error:
        raise Unsupported(
            "a seccomp filter that is not in the cache yet",
            needs="libseccomp2 (apt install libseccomp2, dnf install libseccomp)",
            hint="or run without one: seccomp=unconfined",
        ) from error


class Builder:
    """One filter under construction; leaving the `with` block frees it."""

    def __init__(
        self, default_action: int, target: int, others: Sequence[int], bad_arch_action: int
    ) -> None:
        self._ffi, self._lib = _library()
        self._target = target
        native = self._lib.seccomp_arch_native()
        self.is_native = native == target
        self._context = self._lib.seccomp_init(default_action)
        if self._context == self._ffi.NULL:
            raise InternalError(f"seccomp_init({default_action:#x}) failed")
        for token in ([] if self.is_native else [target]) + list(others):
            self._check(self._lib.seccomp_arch_add(self._context, token), "seccomp_arch_add")
        if not self.is_native:
            self._check(self._lib.seccomp_arch_remove(self._context, native), "seccomp_arch_remove")
        if bad_arch_action != KILL_THREAD:  # which is the default
            attr = self._lib.seccomp_attr_set(self._context, _ATTR_BAD_ARCH, bad_arch_action)
            self._check(attr, "seccomp_attr_set(ACT_BADARCH)")
        # Just an optimization: fails before libseccomp 2.5.
        self._lib.seccomp_attr_set(self._context, _ATTR_OPTIMIZE, _BINARY_TREE)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._lib.seccomp_release(self._context)

    def number(self, name: str) -> int | None:
        """Return the number that `add` takes for a call, None if libseccomp doesn't know it."""
        number = int(self._lib.seccomp_syscall_resolve_name(name.encode("ascii", "replace")))
        return None if number == _UNKNOWN_NAME else number

    def target_number(self, name: str) -> int:
        """Return the call's number on the filter's own machine."""
        encoded = name.encode("ascii")
        return int(self._lib.seccomp_syscall_resolve_name_arch(self._target, encoded))

    def add(self, action: int, number: int, name: str, args: Sequence[Arg]) -> bool:
        """Add a rule, unless an earlier one is about the same calls and arguments.

        Return False if it can't be: the call has no number on one of the filter's machines.
        """
        tests = self._ffi.new("struct scmp_arg_cmp[]", max(len(args), 1))
        for test, arg in zip(tests, args, strict=False):
            test.arg, test.op = arg.index, OPERATORS[arg.op]
            test.datum_a, test.datum_b = arg.value, arg.value_two
        result = self._lib.seccomp_rule_add_array(self._context, action, number, len(args), tests)
        if result == -errno.EEXIST:
            return True
        if result in (-errno.EFAULT, -errno.EDOM):
            return False
        self._check(result, f"seccomp_rule_add_array({name})")
        return True

    def export(self) -> bytes:
        """Return the filter so far as struct sock_filter[]."""
        fd = os.memfd_create("seccomp", os.MFD_CLOEXEC)
        with open(fd, "rb") as file:
            self._check(self._lib.seccomp_export_bpf(self._context, fd), "seccomp_export_bpf")
            file.seek(0)
            return file.read()

    def _check(self, result: int, call: str) -> None:
        if result < 0:
            raise InternalError(f"{call}: {os.strerror(-result)}")


def denied_code(denied: Denied, audit: int, number: int) -> bytes:
    """Return instructions that answer a denied argument, and fall through on everything else."""
    # The low half comes first on both of our (little-endian) machines.
    test = [_insn(_LOAD, 16 + 8 * denied.index)]
    for index, value in enumerate(denied.values):
        last = index == len(denied.values) - 1
        test.append(_insn(_EQUAL, value, len(denied.values) - 1 - index, 1 if last else 0))
    test.append(_insn(_RETURN, denied.action))
    return b"".join(
        [
            _insn(_LOAD, 4),  # arch
            _insn(_EQUAL, audit, 0, 2 + len(test)),
            _insn(_LOAD, 0),  # nr
            _insn(_EQUAL, number, 0, len(test)),
            *test,
        ]
    )


def newer_code(newest: int, audit: int, *, skip_x32: bool) -> bytes:
    """Return instructions that answer calls above `newest` with ENOSYS.

    libc tries new calls first and falls back on ENOSYS, not on EPERM, so a profile that names no
    call of a later kernel must look like the kernel it was written for (runc does the same).
    """
    skip = [_insn(_AT_LEAST, _X32_BIT, 2, 0)] if skip_x32 else []
    return b"".join(
        [
            _insn(_LOAD, 4),
            _insn(_EQUAL, audit, 0, 3 + len(skip)),
            _insn(_LOAD, 0),
            *skip,
            _insn(_GREATER, newest, 0, 1),
            _insn(_RETURN, ERRNO | errno.ENOSYS),
        ]
    )


def _insn(code: int, k: int, if_true: int = 0, if_false: int = 0) -> bytes:
    return struct.pack("<HBBI", code, if_true, if_false, k)
