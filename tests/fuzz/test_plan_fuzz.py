"""Mutated plans: refused, or still safe by a second reading that shares no code with the first."""

from __future__ import annotations

import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1] / "native"))

import asan
import plans

from pycontain import _native as native
from pycontain._native import C

PLAN = native.encode_plan(*plans.every_op()[:2], **plans.every_op()[2])
RECORD = plans.record()
OP_BYTES = 64
PLAN_HEADER = struct.Struct("<8IQ2i4I")
OP = struct.Struct("<2I4I3iI3Q")

SETGROUPS, SECCOMP, EXEC = C.PYC_OP_SETGROUPS, C.PYC_OP_SECCOMP, C.PYC_OP_EXEC
# The slots that an op fills; every other slot that it names must hold a descriptor.
FILLS = {
    C.PYC_OP_FSMOUNT: 0,
    C.PYC_OP_OPEN_TREE: 1,
    C.PYC_OP_OPEN: 1,
    SECCOMP: 0,
}


def strings_end(arena: bytes, offset: int, count: int) -> int:
    """Return the offset behind `count` strings; ValueError or IndexError if one has no end."""
    assert offset < len(arena)
    for _ in range(count):
        offset = arena.index(b"\0", offset) + 1
    return offset


def assert_safe(plan: bytes, fds: int) -> None:
    """What child.c relies on, read from the bytes alone."""
    header = PLAN_HEADER.unpack_from(plan)
    abi, total, op_count, op_at, arena_at, arena_bytes, fd_count, slot_count = header[:8]
    clone_flags, cgroup_slot, pidns_slot, uid_map, gid_map, setgroups, pad = header[8:]
    assert (abi, total, fd_count, pad) == (C.PYC_ABI, len(plan), fds, 0)
    assert fds <= slot_count <= C.PYC_MAX_SLOTS and 1 <= op_count <= C.PYC_MAX_OPS
    assert -1 <= cgroup_slot < fds and -1 <= pidns_slot < fds
    assert clone_flags & ~0x7E020080 == 0
    arena = plan[arena_at : arena_at + arena_bytes]
    assert len(arena) == arena_bytes and arena_at >= 64 and arena[:1] == arena[-1:] == b"\0"
    assert op_at >= 64 and op_at + OP_BYTES * op_count <= len(plan)
    ops = [OP.unpack_from(plan, op_at + OP_BYTES * i) for i in range(op_count)]
    used = [(o, strings_end(arena, o, 1)) for o in (uid_map, gid_map, setgroups)]
    full = set(range(fds))
    maybe: set[int] = set()  # of these, what an optional OPEN_TREE may have left empty
    for i, (code, flags, *rest) in enumerate(ops):
        texts, slots, nums = rest[:4], rest[4:7], rest[8:11]
        assert (code == EXEC) == (i == op_count - 1)
        for n, slot in enumerate(slots):
            if slot == -1:
                continue
            assert 0 <= slot < slot_count
            if FILLS.get(code) == n:
                full.add(slot)
                (maybe.add if flags & C.PYC_F_OPTIONAL else maybe.discard)(slot)
                continue
            assert slot in full
            optional_move = code == C.PYC_OP_MOVE_MOUNT and n == 0 and flags & C.PYC_F_OPTIONAL
            assert slot not in maybe or optional_move
        if code == C.PYC_OP_CLOSE:
            full.remove(slots[0])
        used += areas(arena, code, texts, nums)
    scratch, size = ops[-1][5], 8 * (ops[-1][10] + ops[-1][11] + 2)
    assert (arena_at + scratch) % 8 == 0 and scratch > 0 and scratch + size <= len(arena)
    for begin, end in used:
        assert end <= scratch or begin >= scratch + size


def areas(arena: bytes, code: int, texts: Any, nums: Any) -> list[tuple[int, int]]:
    """Return the parts of the arena that an op reads, having checked that they exist."""
    found = []
    if code == SECCOMP:
        assert 1 <= nums[0] <= 4096 and texts[0] + 8 * nums[0] <= len(arena)
        found.append((texts[0], texts[0] + 8 * nums[0]))
    elif code == SETGROUPS:
        assert texts[0] + 4 * nums[0] <= len(arena)
        found.append((texts[0], texts[0] + 4 * nums[0]))
    elif code == EXEC:
        assert nums[0] >= 1
        found += [(texts[n], strings_end(arena, texts[n], nums[n])) for n in range(3)]
    elif code == C.PYC_OP_FSMOUNT:
        found.append((texts[1], strings_end(arena, texts[1], nums[0])))
    else:
        found += [(t, strings_end(arena, t, 1)) for t in texts if t]
    return found


interesting = st.one_of(
    st.integers(0, 64),
    st.integers(0, len(PLAN) + 8),
    st.sampled_from([0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 0xFFFFFFF8]),
)
field_edit = st.tuples(st.just("field"), st.integers(0, len(PLAN) // 4 - 1), interesting)
byte_edit = st.tuples(st.just("byte"), st.integers(0, len(PLAN) - 1), st.integers(0, 255))
op_count = len(plans.every_op()[0])
op_copy = st.tuples(st.just("op"), st.integers(0, op_count - 1), st.integers(0, op_count - 1))


@settings(max_examples=1500, deadline=None, database=None)
@given(st.lists(st.one_of(field_edit, byte_edit, op_copy), min_size=1, max_size=4))
@example([])
def test_accepted_plans_are_safe(edits: list[tuple[str, int, int]]) -> None:
    """Whatever the check lets pass stays inside its memory and its slots."""
    plan = bytearray(PLAN)
    for kind, at, value in edits:
        if kind == "field":
            plan[4 * at : 4 * at + 4] = value.to_bytes(4, "little")
        elif kind == "byte":
            plan[at] = value
        else:
            plan[64 + 64 * at : 128 + 64 * at] = plan[64 + 64 * value : 128 + 64 * value]
    if plans.refusal(RECORD + bytes(plan)) is None:
        assert_safe(bytes(plan), plans.RECEIVED)


@settings(max_examples=500, deadline=None, database=None)
@given(st.binary(max_size=400))
def test_noise_is_refused(noise: bytes) -> None:
    """Random bytes are neither a record nor a plan."""
    assert plans.refusal(noise) is not None
    assert plans.refusal(RECORD + noise) is not None


def test_mutants_under_sanitizers(tmp_path: Path) -> None:
    """No mutant makes the checks, or a child that trusts them, touch memory beside the plan."""
    try:
        program = asan.build(tmp_path)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("needs gcc with libasan and libubsan")
    summary = asan.run(program, 20_000)
    assert summary.startswith("20000 mutants")
