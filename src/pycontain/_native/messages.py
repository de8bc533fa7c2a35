"""The structs of plan.h as bytes and back: what travels between us and the monitor.

The layout is the compiler's (CFFI), never a format string: plan.h is the only copy.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from pycontain._native.extension import ABI, ffi, lib
from pycontain.errors import InternalError, InvalidInput

__all__ = [
    "ExitOp",
    "NativeExit",
    "NativeLive",
    "NativeReply",
    "Op",
    "check_plan",
    "decode_exit",
    "decode_live",
    "decode_reply",
    "encode_plan",
    "encode_record",
    "encode_request",
    "kind_of",
]

# One op: code, flags, four arena offsets, three slots (-1 = none), three numbers.
Op = tuple[int, int, tuple[int, int, int, int], tuple[int, int, int], tuple[int, int, int]]
ExitOp = tuple[int, bytes, bytes]

_STAGES = {lib.PYC_STAGE_RECORD: "record", lib.PYC_STAGE_PLAN: "plan"}


class NativeExit(NamedTuple):
    """struct pyc_exit and the text that follows it. Times are CLOCK_REALTIME in microseconds."""

    kind: int
    flags: int
    code: int
    status: int
    pid: int
    started_usec: int
    ended_usec: int
    duration_usec: int
    utime_usec: int
    stime_usec: int
    maxrss_bytes: int
    minflt: int
    majflt: int
    inblock: int
    oublock: int
    nvcsw: int
    nivcsw: int
    text: bytes


class NativeReply(NamedTuple):
    """struct pyc_reply."""

    kind: int
    stage: int
    op_index: int
    opcode: int
    err: int
    pid: int
    num: tuple[int, int]


class NativeLive(NamedTuple):
    """struct pyc_record of a living container, as the monitor keeps it in the file `live`."""

    flags: int
    id: str
    state_dir: str
    log_path: str
    kill_path: str
    log_max_bytes: int
    log_max_files: int
    timeout_usec: int
    pid_start_ticks: int
    pid: int
    status: int
    started_usec: int
    deadline_usec: int


def encode_plan(
    ops: Sequence[Op],
    arena: bytes,
    *,
    fd_count: int,
    slot_count: int,
    clone_flags: int,
    cgroup_slot: int = -1,
    pidns_slot: int = -1,
    uid_map: int = 0,
    gid_map: int = 0,
    setgroups: int = 0,
) -> bytes:
    """Return the plan part of a SPAWN memfd: header, ops, arena; its length is a multiple of 8.

    Args:
        ops: (code, flags, (str0..str3), (slot0..slot2), (num0..num2)); 0 and -1 = not given.
        arena: NUL-terminated strings; offset 0 is the empty string. It begins 8-aligned, so an
            offset that is a multiple of 8 is aligned. Padded with NULs at the end.
        fd_count: slots 0 .. fd_count-1 travel with the message.
        slot_count: all slots.
        uid_map, gid_map, setgroups: arena offsets.
    """
    arena += bytes(-len(arena) % 8)
    header_bytes = ffi.sizeof("struct pyc_plan")
    op_bytes = ffi.sizeof("struct pyc_op") * len(ops)
    arena_offset = header_bytes + op_bytes
    try:
        head = ffi.new(
            "struct pyc_plan *",
            {
                "abi": ABI,
                "total_bytes": arena_offset + len(arena),
                "op_count": len(ops),
                "op_offset": header_bytes,
                "arena_offset": arena_offset,
                "arena_bytes": len(arena),
                "fd_count": fd_count,
                "slot_count": slot_count,
                "clone_flags": clone_flags,
                "cgroup_slot": cgroup_slot,
                "pidns_slot": pidns_slot,
                "uid_map": uid_map,
                "gid_map": gid_map,
                "setgroups": setgroups,
            },
        )
        body = ffi.new("struct pyc_op[]", [(c, f, t, s, 0, n) for c, f, t, s, n in ops])
    except OverflowError as error:
        raise InvalidInput(f"a number of the plan does not fit its field: {error}") from error
    return bytes(ffi.buffer(head)) + bytes(ffi.buffer(body)) + arena


def encode_record(
    *,
    flags: int,
    id: str,
    state_dir: str = "",
    log_path: str = "",
    kill_path: str = "",
    log_max_bytes: int = 0,
    log_max_files: int = 0,
    timeout_usec: int = 0,
    exit_ops: Sequence[ExitOp] = (),
) -> bytes:
    """Return the record part of a SPAWN memfd; append the plan to it.

    Args:
        flags: PYC_R_*.
        exit_ops: (PYC_EXIT_*, path, label or text).
    """
    arena = bytearray(1)

    def put(text: bytes) -> int:
        if not text:
            return 0
        if b"\0" in text:
            raise InvalidInput(f"NUL in {text!r}")
        arena.extend(text + b"\0")
        return len(arena) - len(text) - 1

    names = [put(name.encode("utf-8", "surrogateescape")) for name in (id, state_dir)]
    names += [put(path.encode("utf-8", "surrogateescape")) for path in (log_path, kill_path)]
    offsets = [(code, 0, (put(path), put(text))) for code, path, text in exit_ops]
    arena.extend(bytes(-len(arena) % 8))
    op_offset = ffi.sizeof("struct pyc_record")
    arena_offset = op_offset + ffi.sizeof("struct pyc_exit_op") * len(offsets)
    try:
        head = ffi.new("struct pyc_record *")
        head.abi, head.flags = ABI, flags
        head.record_bytes = arena_offset + len(arena)
        head.arena_offset, head.arena_bytes = arena_offset, len(arena)
        head.exit_op_count, head.exit_op_offset = len(offsets), op_offset
        head.id, head.state_dir, head.log_path, head.kill_path = names
        head.log_max_bytes, head.log_max_files = log_max_bytes, log_max_files
        head.timeout_usec = timeout_usec
        body = ffi.new("struct pyc_exit_op[]", offsets)
    except OverflowError as error:
        raise InvalidInput(f"a number of the record does not fit its field: {error}") from error
    return bytes(ffi.buffer(head)) + bytes(ffi.buffer(body)) + bytes(arena)


def check_plan(blob: bytes, fds: int) -> None:
    """Return if the monitor will take record and plan; it runs the same C check.

    Raises:
        InternalError: refused; it names the op and the line of plan_check.c.
    """
    # A copy: the checks want 8-aligned memory, which ffi.new gives.
    memory = ffi.new("uint64_t[]", len(blob) // 8 + 1)
    ffi.memmove(memory, blob, len(blob))
    where = ffi.new("uint32_t[3]")
    if lib.pyc_blob_check(memory, len(blob), fds, where) != 0:
        stage, op_index, line = where
        raise InternalError(
            f"{_STAGES[stage]} refused at op {op_index} (plan_check.c, line {line})"
        )


def encode_request(kind: int, id: bytes = b"", num0: int = 0, num1: int = 0) -> bytes:
    """Return a request to the monitor; `id` is shorter than PYC_ID_BYTES."""
    if len(id) >= lib.PYC_ID_BYTES or b"\0" in id:
        raise InvalidInput(f"{id!r} is no id")
    return bytes(ffi.buffer(ffi.new("struct pyc_request *", (ABI, kind, (num0, num1), id))))


def decode_reply(data: bytes) -> NativeReply:
    """Return the reply that a datagram from the monitor holds."""
    reply = _view("struct pyc_reply", data)
    return NativeReply(
        reply.kind,
        reply.stage,
        reply.op_index,
        reply.opcode,
        reply.err,
        reply.pid,
        (reply.num[0], reply.num[1]),
    )


def decode_exit(data: bytes) -> NativeExit:
    """Return what an EXIT message or an `exit` file holds."""
    values = _view("struct pyc_exit", data)
    begin = ffi.sizeof("struct pyc_exit")
    end = begin + values.text_bytes
    if end > len(data):
        raise InternalError(f"an exit record of {len(data)} bytes announces {end}")
    return NativeExit._make(
        [*(getattr(values, name) for name in NativeExit._fields[:-1]), data[begin:end]]
    )


def decode_live(data: bytes) -> NativeLive:
    """Return the record that a `live` file holds."""
    record = _view("struct pyc_record", data)
    begin, size = record.arena_offset, record.arena_bytes
    if begin + size > len(data) or not size or data[begin + size - 1]:
        raise InternalError("a live record's arena is cut off")
    arena = data[begin : begin + size]

    def text(offset: int) -> str:
        if offset >= size:
            raise InternalError("a live record's string lies outside its arena")
        return arena[offset : arena.index(b"\0", offset)].decode("utf-8", "surrogateescape")

    names = ("id", "state_dir", "log_path", "kill_path")
    return NativeLive._make(
        text(getattr(record, name)) if name in names else getattr(record, name)
        for name in NativeLive._fields
    )


def kind_of(data: bytes) -> int:
    """Return the PYC_REP_* of a datagram from the monitor, so that the right decoder is taken."""
    if len(data) < 8:
        raise InternalError(f"the monitor sent {len(data)} bytes")
    return int.from_bytes(data[4:8], "little")


def _view(struct: str, data: bytes) -> Any:
    """Return a copy of the struct at the beginning of `data`, of our ABI."""
    size = ffi.sizeof(struct)
    if len(data) < size:
        raise InternalError(f"{len(data)} bytes are no {struct} ({size} bytes)")
    value = ffi.new(f"{struct} *")
    ffi.memmove(value, data, size)
    if value.abi != ABI:
        raise InternalError(
            f"{struct} of ABI {value.abi}, we speak {ABI}",
            hint="a monitor of another version is running",
        )
    return value
