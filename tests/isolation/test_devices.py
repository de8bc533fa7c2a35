"""Device rules, decided by an interpreter of the eBPF instructions that they compile to."""

from __future__ import annotations

import itertools
import struct

import pytest

from pycontain.errors import InvalidSpec
from pycontain.isolation.devices import (
    DEFAULT_DEVICES,
    DEFAULT_RULES,
    DEFAULT_SYMLINKS,
    device_program,
    rules_for,
    v1_lines,
)
from pycontain.oci import Device, DeviceRule

BITS = {"m": 1, "r": 2, "w": 4}


def run(program: bytes, type_: str, major: int, minor: int, access: str) -> bool:
    """Interpret `program` as the kernel would for one request."""
    wanted = sum(BITS[letter] for letter in access)
    context = struct.pack("<III", wanted << 16 | {"b": 1, "c": 2}[type_], major, minor)
    registers, pc = [0] * 11, 0
    while True:
        code, regs, off, imm = struct.unpack_from("<BBhi", program, pc * 8)
        dst, src = regs & 15, regs >> 4
        pc += 1
        match code:
            case 0x61:
                assert src == 1, "loads only from the context"
                registers[dst] = struct.unpack_from("<I", context, off)[0]
            case 0xBF:
                registers[dst] = registers[src]
            case 0xB7:
                registers[dst] = imm
            case 0x57:
                registers[dst] &= imm
            case 0x77:
                registers[dst] >>= imm
            case 0x05:
                pc += off
            case 0x15:
                pc += off if registers[dst] == imm else 0
            case 0x55:
                pc += off if registers[dst] != imm else 0
            case 0x45:
                pc += off if registers[dst] & imm else 0
            case 0x95:
                return bool(registers[0])
            case _:
                raise AssertionError(f"unexpected instruction {code:#x}")


def decide(rules: tuple[DeviceRule, ...], type_: str, major: int, minor: int, access: str) -> bool:
    """The semantics in plain words: each bit goes to the last rule that matches it."""
    for letter in access:
        for rule in reversed(rules):
            if (
                rule.type in ("a", type_)
                and rule.major in (None, major)
                and rule.minor in (None, minor)
                and letter in rule.access
            ):
                if not rule.allow:
                    return False
                break
        else:
            return False
    return True


@pytest.mark.parametrize(
    ("request_", "allowed"),
    [
        (("c", 1, 3, "rw"), True),
        (("c", 1, 3, "rwm"), True),
        (("c", 1, 1, "r"), False),  # /dev/mem
        (("c", 1, 1, "m"), True),
        (("b", 8, 0, "r"), False),
        (("b", 8, 0, "m"), True),
        (("b", 8, 0, "rm"), False),
        (("b", 1, 3, "r"), False),  # a block device with null's numbers
        (("c", 136, 7, "rw"), True),
        (("c", 5, 2, "rw"), True),
        (("c", 5, 1, "w"), False),
        (("c", 10, 200, "rw"), False),
        (("c", 10, 229, "r"), False),
    ],
)
def test_default_rules(request_: tuple[str, int, int, str], allowed: bool) -> None:
    """The defaults allow the standard nodes and mknod, nothing else."""
    assert run(device_program(DEFAULT_RULES), *request_) is allowed


def test_no_rules_deny_everything() -> None:
    """Deny is what is left when nothing matches."""
    assert not run(device_program(()), "c", 1, 3, "r")


def test_last_match_wins_for_each_access_bit() -> None:
    """A later deny of writing also refuses reading and writing at once."""
    rules = (DeviceRule(True, "c", 1, 3), DeviceRule(False, "c", 1, 3, "w"))
    program = device_program(rules)
    assert run(program, "c", 1, 3, "r")
    assert not run(program, "c", 1, 3, "w")
    assert not run(program, "c", 1, 3, "rw")


def test_allowed_bits_add_up_over_rules() -> None:
    """Reading from one rule and writing from another make both together."""
    rules = (DeviceRule(True, "c", 1, 3, "r"), DeviceRule(True, "c", 1, 3, "w"))
    assert run(device_program(rules), "c", 1, 3, "rw")
    assert not run(device_program(rules), "c", 1, 3, "rwm")


def test_program_agrees_with_the_plain_semantics() -> None:
    """All pairs and some triples of a rule pool give the plain answer to every request."""
    pool = [
        DeviceRule(allow, *rest)
        for allow in (True, False)
        for rest in (
            ("a", None, None, "rwm"),
            ("a", 1, None, "r"),
            ("c", None, 3, "rw"),
            ("c", 1, 3, "wm"),
            ("b", 1, None, "rwm"),
        )
    ]
    requests = list(itertools.product("bc", (1, 2), (3, 4), ("r", "w", "m", "rw", "rwm")))
    chains = itertools.chain(
        itertools.product(pool, repeat=2),
        itertools.islice(itertools.product(pool, repeat=3), 0, None, 7),
    )
    for chain in chains:
        program = device_program(chain)
        for request in requests:
            assert run(program, *request) is decide(chain, *request), (chain, request)


def test_unreachable_rules_are_not_compiled() -> None:
    """Rules before one that decides everything cost nothing (and the verifier refuses them)."""
    assert device_program((DeviceRule(True, "c", 1, 3), DeviceRule(False))) == device_program(
        (DeviceRule(False),)
    )


def test_v1_lines_of_the_defaults() -> None:
    """The v1 form starts by denying all and then lists exceptions."""
    lines = v1_lines(DEFAULT_RULES)
    assert lines[:3] == [
        ("devices.deny", "a"),
        ("devices.allow", "c *:* m"),
        ("devices.allow", "b *:* m"),
    ]
    assert ("devices.allow", "c 1:3 rwm") in lines
    assert lines[-1] == ("devices.allow", "c 136:* rwm")


def test_v1_never_writes_a_with_numbers() -> None:
    """The kernel reads "a 1:3 r" as everything, so it is split in two."""
    assert v1_lines((DeviceRule(True, "a", 1, 3, "mr"),)) == [
        ("devices.allow", "c 1:3 rm"),
        ("devices.allow", "b 1:3 rm"),
    ]


@pytest.mark.parametrize(
    "rule",
    [
        DeviceRule(True, "x"),
        DeviceRule(True, "c", 1, 3, ""),
        DeviceRule(True, "c", 1, 3, "rx"),
        DeviceRule(True, "c", -1),
        DeviceRule(True, "c", 1, 1 << 20),
    ],
)
def test_bad_rules_are_named(rule: DeviceRule) -> None:
    """An impossible rule is refused by index, in both forms."""
    for compiler in (device_program, v1_lines):
        with pytest.raises(InvalidSpec, match=r"devices\[1\]"):
            compiler((DeviceRule(False), rule))


def test_rules_for_devices_allow_just_them() -> None:
    """A device given to the container can be used; a FIFO needs no rule."""
    rules = rules_for((Device("/dev/fuse", "c", 10, 229), Device("/run/p", "p")))
    assert rules == (DeviceRule(True, "c", 10, 229, "rwm"),)


def test_default_nodes_are_usable_and_links_are_relative_to_dev() -> None:
    """Each default node passes the default rules; every link lies in /dev."""
    program = device_program(DEFAULT_RULES)
    assert all(run(program, d.type, d.major, d.minor, "rw") for d in DEFAULT_DEVICES)
    assert {path for path, _ in DEFAULT_SYMLINKS} == {
        f"/dev/{name}" for name in ("fd", "stdin", "stdout", "stderr", "core", "ptmx")
    }
