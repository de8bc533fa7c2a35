"""plan_check.c and record_check.c: each rule refuses what it is there for, and nothing else."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from plans import (
    CLONE_NEWNS,
    RECEIVED,
    SLOTS,
    Refusal,
    every_op,
    op,
    os_path_flag,
    record,
    refusal,
)

from pycontain import _native as native
from pycontain._native import C, ffi
from pycontain.errors import InternalError

Ops = list[native.Op]
OPCODES = {getattr(C, n): n for n in dir(C) if n.startswith("PYC_OP_") and n != "PYC_OP_LAST"}


def plan(
    change: Callable[[Ops], object] = lambda ops: None,
    header: dict[str, int] | None = None,
    arena: bytes | None = None,
) -> bytes:
    ops, text, fields = every_op()
    change(ops)
    return native.encode_plan(ops, text if arena is None else arena, **{**fields, **(header or {})})


def check(
    change: Callable[[Ops], object] = lambda ops: None, header: dict[str, int] | None = None
) -> Refusal | None:
    return refusal(record() + plan(change, header))


def index_of(code: int, ops: Ops | None = None) -> int:
    return next(i for i, o in enumerate(ops or every_op()[0]) if o[0] == code)


def with_op(which: int, **changes: Any) -> Callable[[Ops], object]:
    """Return a change of the first op of this code: code, flags, texts, slots or nums."""

    def change(ops: Ops) -> None:
        i = index_of(which, ops)
        names = ("code", "flags", "texts", "slots", "nums")
        ops[i] = tuple(changes.get(n, v) for n, v in zip(names, ops[i], strict=True))  # type: ignore[assignment]

    return change


def edited(part: str, blob: bytes, **fields: int) -> bytes:
    """Return the blob with fields of the struct at its beginning changed."""
    size = ffi.sizeof(f"struct {part}")
    value = ffi.new(f"struct {part} *")
    ffi.memmove(value, blob, size)
    for name, number in fields.items():
        setattr(value, name, number)
    return bytes(ffi.buffer(value)) + blob[size:]


def test_a_plan_with_every_opcode_passes() -> None:
    """The sample has every opcode, in an order that the check allows."""
    assert {o[0] for o in every_op()[0]} == set(OPCODES)
    assert check() is None
    native.check_plan(record() + plan(), RECEIVED)


def test_refusal_becomes_an_internal_error() -> None:
    """check_plan names the part, the op and the line of the check."""
    blob = record() + plan(with_op(C.PYC_OP_UMASK, nums=(0o1000, 0, 0)))
    at = index_of(C.PYC_OP_UMASK)
    with pytest.raises(InternalError, match=rf"plan refused at op {at} \(plan_check.c, line \d+\)"):
        native.check_plan(blob, RECEIVED)


HEADER_CASES = {
    "abi": ({"abi": 2}, "abi == PYC_ABI"),
    "shorter": ({"total_bytes": 64}, "total_bytes == plan_bytes"),
    "pad": ({"pad": 1}, "pad == 0"),
    "no ops": ({"op_count": 0}, "op_count >= 1"),
    "too many ops": ({"op_count": C.PYC_MAX_OPS + 1}, "op_count <= PYC_MAX_OPS"),
    "ops unaligned": ({"op_offset": 68}, "op_offset % 8 == 0"),
    "ops in the header": ({"op_offset": 56}, "in_range(plan->op_offset"),
    "ops behind the end": ({"op_offset": 1 << 30}, "in_range(plan->op_offset"),
    "ops wrap": ({"op_offset": 0xFFFFFFF8}, "in_range(plan->op_offset"),
    "arena in the header": ({"arena_offset": 8}, "in_range(offset, bytes, header_bytes"),
    "arena too long": ({"arena_bytes": 1 << 30}, "in_range(offset, bytes, header_bytes"),
    "arena wraps": ({"arena_offset": 0xFFFFFFF0}, "in_range(offset, bytes, header_bytes"),
    "arena over ops": ({"arena_offset": 64, "arena_bytes": 4}, "part[offset] == '\\0'"),
    "no arena": ({"arena_bytes": 0}, "bytes >= 1"),
    "fds": ({"fd_count": RECEIVED + 1}, "fd_count == fds_received"),
    "fewer slots": ({"slot_count": RECEIVED - 1}, "fd_count <= plan->slot_count"),
    "slots": ({"slot_count": C.PYC_MAX_SLOTS + 1}, "slot_count <= PYC_MAX_SLOTS"),
    "clone flags": ({"clone_flags": 0x100}, "clone_flags & ~NEW_FLAGS"),
    "high clone flags": ({"clone_flags": 1 << 33}, "clone_flags & ~NEW_FLAGS"),
    "cgroup slot": ({"cgroup_slot": RECEIVED}, "cgroup_slot >= -1"),
    "cgroup slot -2": ({"cgroup_slot": -2}, "cgroup_slot >= -1"),
    "pidns slot": ({"pidns_slot": RECEIVED}, "pidns_slot >= -1"),
    "maps missing": ({"uid_map": 0}, "text[plan->uid_map] != '\\0'"),
    "map outside": ({"gid_map": 1 << 20}, "arena_has(a, plan->uid_map)"),
    "setgroups outside": ({"setgroups": 1 << 20}, "arena_has(a, plan->setgroups)"),
    "maps without userns": ({"clone_flags": CLONE_NEWNS}, "uid_map == 0 && plan->gid_map == 0"),
}


@pytest.mark.parametrize("case", HEADER_CASES)
def test_header(case: str) -> None:
    """A header field that would lead outside, or means nothing, is refused."""
    fields, expected = HEADER_CASES[case]
    found = refusal(record() + edited("pyc_plan", plan(), **fields))
    assert found is not None
    assert found.stage == C.PYC_STAGE_PLAN
    assert expected in found.text


def test_setgroups_is_deny_or_nothing() -> None:
    """The text for /proc/PID/setgroups can only be "deny"."""
    word = every_op()[2]["uid_map"]
    found = check(header={"setgroups": word})
    assert found is not None
    assert "deny[0]" in found.text


def test_arena_must_end_with_nul() -> None:
    """Without it the last string would run into whatever follows."""
    blob = plan()
    found = refusal(record() + blob[:-1] + b"x")
    assert found is not None
    assert "offset + bytes - 1" in found.text


def test_every_truncation_is_refused() -> None:
    """A blob cut anywhere is refused."""
    blob = record() + plan()
    assert all(refusal(blob[:size]) is not None for size in range(0, len(blob), 5))


TEXT_OPS = sorted(o[0] for o in every_op()[0] if o[2][0] and o[0] != C.PYC_OP_EXEC)


@pytest.mark.parametrize("code", TEXT_OPS, ids=OPCODES.get)
@pytest.mark.parametrize("which", range(4))
def test_string_outside_the_arena(code: int, which: int) -> None:
    """No op may name a string that begins outside; unused strings must be 0."""
    ops, _, _ = every_op()
    i = index_of(code, ops)
    for bad in (1 << 20, 0xFFFFFFFF):
        texts = tuple(bad if n == which else t for n, t in enumerate(ops[i][2]))
        found = check(with_op(code, texts=texts))
        assert found is not None
        assert found.op_index == i


REQUIRED = [
    (o[0], n)
    for o in every_op()[0]
    for n, t in enumerate(o[2])
    if t and o[0] not in (C.PYC_OP_OPEN_TREE, C.PYC_OP_KEYRING, C.PYC_OP_FSMOUNT, C.PYC_OP_EXEC)
]


@pytest.mark.parametrize(("code", "which"), REQUIRED)
def test_required_strings(code: int, which: int) -> None:
    """An op without a string that it needs is refused."""
    ops, _, _ = every_op()
    i = index_of(code, ops)
    texts = tuple(0 if n == which else t for n, t in enumerate(ops[i][2]))
    found = check(with_op(code, texts=texts))
    assert found is not None
    assert found.op_index == i


def test_paths() -> None:
    """A path isn't empty, and absolute where the op follows it from "/"."""
    _, arena, _ = every_op()
    empty = len(arena) - 1
    relative = every_op()[0][4][2][0]
    found = check(with_op(C.PYC_OP_MKDIR, texts=(empty, 0, 0, 0)))
    assert found is not None and "< PATH" in found.text
    for code in (C.PYC_OP_CHDIR, C.PYC_OP_ATTACH_ROOT):
        found = check(with_op(code, texts=(relative, 0, 0, 0)))
        assert found is not None and "!= ABS" in found.text


@pytest.mark.parametrize("code", sorted(OPCODES), ids=OPCODES.get)
def test_slots(code: int) -> None:
    """Every slot is in range and filled, or -1 where the op takes none."""
    ops, _, _ = every_op()
    i = index_of(code, ops)
    for n, slot in enumerate(ops[i][3]):
        for bad in (SLOTS, -2, 2**31 - 1, -(2**31)):
            slots = tuple(bad if k == n else s for k, s in enumerate(ops[i][3]))
            found = check(with_op(code, slots=slots))
            assert found is not None and found.op_index == i
        if slot < 0 and (code, n) != (C.PYC_OP_EXEC, 0):
            slots = tuple(0 if k == n else s for k, s in enumerate(ops[i][3]))
            found = check(with_op(code, slots=slots))
            assert found is not None and "use != 0" in found.text


def test_slot_must_be_filled_before_use() -> None:
    """A slot that nothing has filled yet, or that was closed, can't be used."""
    found = check(with_op(C.PYC_OP_READONLY, slots=(11, -1, -1)))
    assert found is not None and "(*open & bit) != 0" in found.text
    closed = op(C.PYC_OP_CLOSE, (), (0,))
    found = check(lambda ops: ops.insert(index_of(C.PYC_OP_READONLY, ops), closed))
    assert found is not None and found.op_index == index_of(C.PYC_OP_READONLY) + 1


def test_slot_that_may_be_empty() -> None:
    """What an optional OPEN_TREE may leave empty only an optional MOVE_MOUNT takes: to others an
    empty slot would look like none given, and their path would begin at "/"."""
    for use in (
        op(C.PYC_OP_MOVE_MOUNT, (8,), (7, 0)),
        op(C.PYC_OP_MOVE_MOUNT, (8,), (0, 7), flags=C.PYC_F_OPTIONAL),
        op(C.PYC_OP_OPEN, (8,), (7, 8), (os_path_flag(),)),
        op(C.PYC_OP_OPEN_TREE, (8,), (7, 8), (1,)),
    ):
        at = index_of(C.PYC_OP_MKDIR)
        found = check(lambda ops, use=use, at=at: ops.insert(at, use))  # type: ignore[misc]
        assert found is not None and found.op_index == at and "*open & bit" in found.text


def test_results_do_not_replace_received_descriptors() -> None:
    """An op's result may go into a fresh slot or one of its own kind, or after CLOSE."""
    at = index_of(C.PYC_OP_MKDIR)

    def insert(*new: native.Op) -> Callable[[Ops], object]:
        return lambda ops: ops.__setitem__(slice(at, at), list(new))

    def into(slot: int) -> native.Op:
        return op(C.PYC_OP_OPEN, (8,), (0, slot), (os_path_flag(),))

    found = check(insert(into(2)))
    assert found is not None and ">= w->fd_count" in found.text
    assert check(insert(op(C.PYC_OP_CLOSE, (), (2,)), into(2))) is None
    assert check(insert(into(6))) is None


UNUSED_NUMBERS = [
    (o[0], n)
    for o in every_op()[0]
    for n in range(3)
    if not any(p[4][n] for p in every_op()[0] if p[0] == o[0])
    and (o[0], n) not in {(C.PYC_OP_MOUNT_SETATTR, 2), (C.PYC_OP_SECCOMP, 1),
                          (C.PYC_OP_TERMINAL, 1), (C.PYC_OP_SETUSER, 0), (C.PYC_OP_SETUSER, 1)}
]  # fmt: skip


@pytest.mark.parametrize(("code", "which"), sorted(set(UNUSED_NUMBERS)))
def test_unused_numbers_are_zero(code: int, which: int) -> None:
    """A number that an op does not know is refused, so that it can get a meaning later."""
    ops, _, _ = every_op()
    i = index_of(code, ops)
    nums = tuple(1 if n == which else v for n, v in enumerate(ops[i][4]))
    found = check(with_op(code, nums=nums))
    assert found is not None and "rule->max[i]" in found.text and found.op_index == i


@pytest.mark.parametrize(
    ("code", "nums"),
    [
        (C.PYC_OP_SETNS, (0x1, 0, 0)),
        (C.PYC_OP_UNSHARE, (0x100, 0, 0)),
        (C.PYC_OP_UNSHARE, (0, 0, 0)),
        (C.PYC_OP_MKDIR, (0o10000, 0, 0)),
        (C.PYC_OP_MKNOD, (0o200000, 0, 0)),
        (C.PYC_OP_UMASK, (0o1000, 0, 0)),
        (C.PYC_OP_RLIMIT, (16, 0, 0)),
        (C.PYC_OP_SETUSER, (2**32 - 1, 0, 0)),
        (C.PYC_OP_SETUSER, (0, 2**32 - 1, 0)),
        (C.PYC_OP_STDIO, (3, 0, 0)),
        (C.PYC_OP_TERMINAL, (0x10000, 0, 0)),
        (C.PYC_OP_TERMINAL, (0x10000 << 32, 0, 0)),
        (C.PYC_OP_PDEATHSIG, (65, 0, 0)),
        (C.PYC_OP_SETGROUPS, (65537, 0, 0)),
        (C.PYC_OP_SETGROUPS, (1000, 0, 0)),
        (C.PYC_OP_SECCOMP, (0, 0, 0)),
        (C.PYC_OP_SECCOMP, (C.PYC_MAX_FILTER + 1, 0, 0)),
        (C.PYC_OP_SECCOMP, (C.PYC_MAX_FILTER, 0, 0)),
        (C.PYC_OP_FSMOUNT, (257, 0, 0)),
        (C.PYC_OP_FSMOUNT, (200, 0, 0)),
        (C.PYC_OP_EXEC, (0, 2, 1)),
        (C.PYC_OP_EXEC, (3, 2, 0)),
        (C.PYC_OP_EXEC, (300, 2, 1)),
        (C.PYC_OP_EXEC, (3, 300, 1)),
        (C.PYC_OP_EXEC, (3, 2, 300)),
        (C.PYC_OP_EXEC, (2**63, 2**63, 1)),
        (C.PYC_OP_EXEC, (2**61 - 2, 0, 1)),
        (C.PYC_OP_GATE, (0, 0, 0)),
        (C.PYC_OP_GATE, (3, 0, 0)),
    ],
)
def test_numbers_out_of_range(code: int, nums: tuple[int, int, int]) -> None:
    """Counts, ids and modes stay where kernel and child expect them; nothing overflows."""
    assert check(with_op(code, nums=nums)) is not None


@pytest.mark.parametrize("code", sorted(OPCODES), ids=OPCODES.get)
def test_unknown_flags(code: int) -> None:
    """A flag that the op does not know is refused."""
    found = check(with_op(code, flags=1 << 30))
    assert found is not None and "~rule->flags" in found.text


@pytest.mark.parametrize("code", [0, C.PYC_OP_LAST + 1, 2**32 - 1])
def test_unknown_opcode(code: int) -> None:
    """Only opcodes of this ABI pass."""
    found = check(with_op(C.PYC_OP_SETSID, code=code))
    assert found is not None and "PYC_OP_LAST" in found.text


def test_padding_is_zero() -> None:
    """The padding of an op is reserved."""
    blob = bytearray(plan())
    at = ffi.sizeof("struct pyc_plan") + 64 * 3 + 36
    blob[at] = 1
    found = refusal(record() + bytes(blob))
    assert found is not None and found.op_index == 3 and "op->pad" in found.text


def moved(code: int, to: int, which: int = 0) -> Callable[[Ops], object]:
    def change(ops: Ops) -> None:
        at = [i for i, o in enumerate(ops) if o[0] == code][which]
        ops.insert(to, ops.pop(at))

    return change


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (moved(C.PYC_OP_GATE, 5), "mapped =="),
        (lambda ops: ops.pop(0), "mapped =="),
        (lambda ops: ops.insert(1, ops[0]), "mapped =="),
        (lambda ops: ops.insert(9, op(C.PYC_OP_GATE, nums=(2,))), "!w->started"),
        (lambda ops: ops.pop(), "exec->code == PYC_OP_EXEC"),
        (lambda ops: ops.insert(9, ops[-1]), "== (index == w->op_count - 1)"),
        (moved(C.PYC_OP_UMASK, -1), "!w->filtered"),
        (moved(C.PYC_OP_GATE, -1, which=1), "!w->filtered"),
        (moved(C.PYC_OP_MKDIR, -1), "!w->filtered"),
        (moved(C.PYC_OP_SETUSER, 5, which=1), "PYC_OP_PIVOT_ROOT || !w->dropped"),
    ],
)
def test_order(change: Callable[[Ops], object], text: str) -> None:
    """Gates, pivot, user change, filter and exec stand where their safety needs them."""
    found = check(change)
    assert found is not None and text in found.text


def test_no_gate_without_a_user_namespace() -> None:
    """Nobody would open it: the child would wait for ever."""
    header = {"clone_flags": CLONE_NEWNS, "uid_map": 0, "gid_map": 0, "setgroups": 0}
    found = check(header=header)
    assert found is not None and "mapped ==" in found.text
    assert check(lambda ops: ops.pop(0), header=header) is None


@pytest.mark.parametrize("code", [C.PYC_OP_SECCOMP, C.PYC_OP_SETGROUPS])
def test_arrays_are_aligned_and_inside(code: int) -> None:
    """An array lies in the arena as a whole, at an address that its type allows."""
    ops, arena, _ = every_op()
    at = ops[index_of(code, ops)][2][0]
    for bad, text in [(at + 1, "% align"), (len(arena) - 4, "in_range"), (0, "in_range")]:
        found = check(with_op(code, texts=(bad, 0, 0, 0)))
        assert found is not None and text in found.text


def exec_texts() -> tuple[int, int, int, int]:
    return every_op()[0][-1][2]


def test_scratch() -> None:
    """What the child writes is aligned, inside, and shared with nothing."""
    argv, env, candidates, scratch = exec_texts()
    _, arena, _ = every_op()
    inside_a_string = next(i for i in range(8, len(arena), 8) if arena[i - 1])
    for bad, text in [
        (scratch + 4, "% align"),
        (0, "in_range"),
        ((len(arena) - 16) // 8 * 8, "in_range"),
        (1 << 31, "in_range"),
        (inside_a_string, "exec->str[3] - 1"),
    ]:
        found = check(with_op(C.PYC_OP_EXEC, texts=(argv, env, candidates, bad)))
        assert found is not None and text in found.text
    for texts in [
        (scratch, env, candidates),
        (argv, scratch + 8, candidates),
        (argv, env, scratch),
    ]:
        found = check(with_op(C.PYC_OP_EXEC, texts=(*texts, scratch)))
        assert found is not None and "arena_has" in found.text
    found = check(with_op(C.PYC_OP_SETHOSTNAME, texts=(scratch + 3, 0, 0, 0)))
    assert found is not None and "arena_has" in found.text
    found = check(with_op(C.PYC_OP_SETGROUPS, texts=(scratch, 0, 0, 0)))
    assert found is not None and "scratch_end" in found.text
    assert check(header={"uid_map": scratch}) is not None


def test_block_does_not_run_into_the_scratch() -> None:
    """A block's strings all end before the scratch begins."""
    argv, env, _, scratch = exec_texts()
    _, arena, _ = every_op()
    before = arena[argv:scratch].count(b"\0")
    texts = (argv, env, argv, scratch)
    assert check(with_op(C.PYC_OP_EXEC, texts=texts, nums=(3, 2, before))) is None
    found = check(with_op(C.PYC_OP_EXEC, texts=texts, nums=(3, 2, before + 1)))
    assert found is not None and "at < end" in found.text


# ---- the record ------------------------------------------------------------------------------


def check_record(**changes: Any) -> Refusal | None:
    return refusal(record(**changes) + plan())


RECORD_CASES = {
    "abi": ({"abi": 2}, "abi == PYC_ABI"),
    "unaligned": ({"record_bytes": 108}, "record_bytes % 8"),
    "too short": ({"record_bytes": 96}, "record_bytes % 8"),
    "too long": ({"record_bytes": 1 << 20}, "PYC_MAX_RECORD_BYTES"),
    "flags": ({"flags": 64}, "~known"),
    "pad": ({"pad": 1}, "pad == 0"),
    "pad2": ({"pad2": 1}, "pad == 0"),
    "arena": ({"arena_offset": 1 << 16}, "in_range(offset, bytes"),
    "arena wraps": ({"arena_bytes": 0xFFFFFFFF}, "in_range(offset, bytes"),
    "id outside": ({"id": 1 << 16}, "arena_has(&a, r->id)"),
    "state_dir outside": ({"state_dir": 1 << 16}, "arena_has(a, offset)"),
    "kill_path outside": ({"kill_path": 1 << 16}, "arena_has(a, offset)"),
    "log bytes": ({"log_max_bytes": 1 << 63}, "INT64_MAX"),
    "log files": ({"log_max_files": 1001}, "log_max_files"),
    "timeout": ({"timeout_usec": 1 << 62}, "INT64_MAX / 1000"),
    "exit ops": ({"exit_op_count": C.PYC_MAX_EXIT_OPS + 1}, "PYC_MAX_EXIT_OPS"),
    "exit ops unaligned": ({"exit_op_offset": 108}, "exit_op_offset % 8"),
    "exit ops outside": ({"exit_op_offset": 0xFFFFFFF8}, "in_range(r->exit_op_offset"),
}


@pytest.mark.parametrize("case", RECORD_CASES)
def test_record_header(case: str) -> None:
    """A record's field that would lead outside, or means nothing, is refused."""
    fields, expected = RECORD_CASES[case]
    found = refusal(edited("pyc_record", record(), **fields) + plan())
    assert found is not None
    assert found.stage == C.PYC_STAGE_RECORD
    assert expected in found.text


@pytest.mark.parametrize("id_", ["a", "a/b", "A-z_0.9+", "a" * 127, ".hidden", "..a"])
def test_good_ids(id_: str) -> None:
    """Letters, digits, "_.+-" and one slash make an id."""
    assert check_record(id=id_) is None


@pytest.mark.parametrize(
    "id_",
    [
        "",
        "a" * 128,
        "/a",
        "a/",
        "a//b",
        "a/b/c",
        ".",
        "..",
        "../a",
        "a/..",
        "a b",
        "a\n",
        "ä",
        "a:",
    ],
)
def test_bad_ids(id_: str) -> None:
    """An id can't climb, hide a line break, or be too long for a message."""
    assert check_record(id=id_) is not None


@pytest.mark.parametrize("field", ["state_dir", "log_path", "kill_path"])
@pytest.mark.parametrize("path", ["relative", "/a/../b", "/..", "/a/..", "/" + "x" * 4000])
def test_bad_paths(field: str, path: str) -> None:
    """Paths are absolute, without "..", and leave room for a name."""
    assert check_record(**{field: path}) is not None


@pytest.mark.parametrize("path", ["/a..b", "/..a", "/a./b", "/a/...", "/"])
def test_good_paths(path: str) -> None:
    """Dots that do not climb are names like any other."""
    assert check_record(state_dir=path) is None


def test_what_flags_need() -> None:
    """A log needs its path; a state directory is needed unless the container is ephemeral."""
    assert check_record(log_path="") is not None
    assert check_record(log_path="", flags=0) is None
    assert check_record(state_dir="", flags=0) is not None
    assert check_record(state_dir="", flags=C.PYC_R_EPHEMERAL) is None


@pytest.mark.parametrize(
    "exit_op",
    [
        (0, b"/a", b"x"),
        (4, b"/a", b"x"),
        (C.PYC_EXIT_READ, b"a", b"x"),
        (C.PYC_EXIT_READ, b"/a/../b", b"x"),
        (C.PYC_EXIT_READ, b"/a", b""),
        (C.PYC_EXIT_READ, b"/a", b"x\ny"),
        (C.PYC_EXIT_READ, b"/a", b"x y"),
        (C.PYC_EXIT_RMDIR, b"", b""),
        (C.PYC_EXIT_RMDIR, b"/a", b"x"),
        (C.PYC_EXIT_WRITE, b"/a", b""),
    ],
)
def test_bad_exit_ops(exit_op: native.ExitOp) -> None:
    """Exit ops name absolute paths, and a label that can't forge another section."""
    good = (C.PYC_EXIT_RMDIR, b"/a", b"")
    found = check_record(exit_ops=[good, exit_op])
    assert found is not None
    assert found.op_index == 1
