"""Which devices a container has and may use: nodes, links and the cgroup's device rules.

The rules become an eBPF program (cgroup v2) or lines for devices.allow and devices.deny (v1). Both
give each access bit of a request ("rwm") to the last rule that matches it; nothing matching is
a refusal. So "allow rwm" then "deny w" refuses an open for reading and writing.
Source: bpf-helpers(7), Documentation/admin-guide/cgroup-v1/devices.rst, linux/bpf.h.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from typing import NamedTuple

from pycontain.errors import InvalidSpec
from pycontain.oci import Device, DeviceRule

DEFAULT_DEVICES: tuple[Device, ...] = (
    Device("/dev/null", "c", 1, 3),
    Device("/dev/zero", "c", 1, 5),
    Device("/dev/full", "c", 1, 7),
    Device("/dev/random", "c", 1, 8),
    Device("/dev/urandom", "c", 1, 9),
    Device("/dev/tty", "c", 5, 0),
)

DEFAULT_SYMLINKS: tuple[tuple[str, str], ...] = (  # (path, target)
    ("/dev/fd", "/proc/self/fd"),
    ("/dev/stdin", "/proc/self/fd/0"),
    ("/dev/stdout", "/proc/self/fd/1"),
    ("/dev/stderr", "/proc/self/fd/2"),
    ("/dev/core", "/proc/kcore"),  # masked there; some old programs want the name
    ("/dev/ptmx", "pts/ptmx"),
)

# mknod of anything is harmless while use is refused (needs CAP_MKNOD anyhow; tar and debootstrap
# want it). No 10:200 (tun), which runc has for old images: nobody without CAP_NET_ADMIN can use
# it, and who has that can name the device. No 5:1: /dev/console is a bind of a pts.
DEFAULT_RULES: tuple[DeviceRule, ...] = (
    DeviceRule(False),
    DeviceRule(True, "c", access="m"),
    DeviceRule(True, "b", access="m"),
    *(DeviceRule(True, device.type, device.major, device.minor) for device in DEFAULT_DEVICES),
    DeviceRule(True, "c", 5, 2),  # ptmx
    DeviceRule(True, "c", 136),  # pts
)

_BLOCK, _CHAR = 1, 2  # BPF_DEVCG_DEV_*
_ACCESS = {"m": 1, "r": 2, "w": 4}  # BPF_DEVCG_ACC_*
_ALL_ACCESS = 7
_MAX_MAJOR, _MAX_MINOR = (1 << 12) - 1, (1 << 20) - 1

# eBPF: opcode bytes of the few instructions used (linux/bpf.h)
_LOAD32, _AND, _SHIFT_RIGHT, _MOVE, _EXIT = 0x61, 0x57, 0x77, 0xB7, 0x95
_JUMP_EQUAL, _JUMP_NOT_EQUAL, _JUMP_SET = 0x15, 0x55, 0x45
_R0, _CONTEXT, _TYPE, _WANTED, _MAJOR, _MINOR = range(6)  # registers


class _Match(NamedTuple):
    allow: bool
    type: int  # 0 = any
    major: int | None
    minor: int | None
    access: int

    @property
    def everything(self) -> bool:
        return self[1:] == (0, None, None, _ALL_ACCESS)


def rules_for(devices: Iterable[Device]) -> tuple[DeviceRule, ...]:
    """Return the rules that allow full use of `devices`, to be appended to others."""
    return tuple(
        DeviceRule(True, device.type, device.major, device.minor)
        for device in devices
        if device.type != "p"
    )


def device_program(rules: tuple[DeviceRule, ...]) -> bytes:
    """Return the BPF_PROG_TYPE_CGROUP_DEVICE instructions that decide as `rules` do.

    Last rule first, the program strikes off the bits that a rule allows from those wanted, and
    refuses as soon as a rule denies one that is left.

    Raises:
        InvalidSpec: a rule that can't match any device; the field is `devices[N]`.
    """
    code = [
        _insn(_LOAD32, _TYPE, _CONTEXT, 0),  # access_type: access << 16 | type
        _insn(_MOVE | 8, _WANTED, _TYPE),  # |8: from a register
        _insn(_AND, _TYPE, imm=0xFFFF),
        _insn(_SHIFT_RIGHT, _WANTED, imm=16),
        _insn(_LOAD32, _MAJOR, _CONTEXT, 4),
        _insn(_LOAD32, _MINOR, _CONTEXT, 8),
    ]
    for match in reversed(_parse(rules)):
        code += _rule_code(match)
        if match.everything:
            break  # earlier rules decide nothing, and the verifier refuses unreachable code
    else:
        code += _verdict(False)
    return b"".join(code)


def _rule_code(match: _Match) -> list[bytes]:
    """Return one rule's block; it falls through to the next block if the rule decides nothing."""
    if match.everything:
        return _verdict(match.allow)
    if match.allow:
        rest = _ALL_ACCESS & ~match.access
        body = [
            _insn(_AND, _WANTED, imm=rest),
            _insn(_JUMP_NOT_EQUAL, _WANTED, off=2, imm=0),
            *_verdict(True),
        ]
    else:
        body = [
            _insn(_JUMP_SET, _WANTED, off=1, imm=match.access),
            _insn(0x05, off=2),  # jump always
            *_verdict(False),
        ]
    tests = [(_TYPE, match.type or None), (_MAJOR, match.major), (_MINOR, match.minor)]
    for register, value in reversed(tests):
        if value is not None:
            body.insert(0, _insn(_JUMP_NOT_EQUAL, register, off=len(body), imm=value))
    return body


def _verdict(allow: bool) -> list[bytes]:
    return [_insn(_MOVE, _R0, imm=int(allow)), _insn(_EXIT)]


def _insn(code: int, dst: int = 0, src: int = 0, off: int = 0, imm: int = 0) -> bytes:
    return struct.pack("<BBhi", code, src << 4 | dst, off, imm)


def v1_lines(rules: tuple[DeviceRule, ...]) -> list[tuple[str, str]]:
    """Return what to write where, in order, as ("devices.deny", "c 1:3 rwm").

    The kernel takes "a" as everything, whatever follows it, so other rules for any type are
    written for character and for block devices.

    Raises:
        InvalidSpec: as `device_program`.
    """
    lines = []
    for match in _parse(rules):
        file = "devices.allow" if match.allow else "devices.deny"
        if match.everything:
            lines.append((file, "a"))
            continue
        major = "*" if match.major is None else match.major
        minor = "*" if match.minor is None else match.minor
        access = "".join(letter for letter in "rwm" if _ACCESS[letter] & match.access)
        for letter, number in (("c", _CHAR), ("b", _BLOCK)):
            if match.type in (0, number):
                lines.append((file, f"{letter} {major}:{minor} {access}"))
    return lines


def _parse(rules: tuple[DeviceRule, ...]) -> list[_Match]:
    matches = []
    for index, rule in enumerate(rules):
        field = f"devices[{index}]"
        types = {"a": 0, "b": _BLOCK, "c": _CHAR, "u": _CHAR}
        if rule.type not in types:
            raise InvalidSpec(f"type {rule.type!r} is not a, b or c", field=field)
        if not rule.access or not set(rule.access) <= set("rwm"):
            raise InvalidSpec(f"access {rule.access!r} is not made of r, w and m", field=field)
        for name, value, most in (
            ("major", rule.major, _MAX_MAJOR),
            ("minor", rule.minor, _MAX_MINOR),
        ):
            if value is not None and not 0 <= value <= most:
                raise InvalidSpec(f"{name} {value} is not in 0..{most}", field=field)
        access = sum(_ACCESS[letter] for letter in set(rule.access))
        matches.append(_Match(rule.allow, types[rule.type], rule.major, rule.minor, access))
    return matches
