"""A valid blob with every opcode in it, as editable parts, and the check that C runs on it."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from pycontain import _native as native
from pycontain._native import C, ffi

NATIVE_DIR = Path(__file__).parents[2] / "src/pycontain/_native"
CLONE_NEWUSER = 0x10000000
CLONE_NEWNS = 0x00020000


class Refusal(NamedTuple):
    stage: int
    op_index: int
    text: str  # the check in plan_check.c or record_check.c that said no


class Arena:
    """Strings under construction; every method returns an offset."""

    def __init__(self) -> None:
        self.data = bytearray(8)

    def text(self, *values: str) -> int:
        offset = len(self.data)
        for value in values:
            self.data += value.encode() + b"\0"
        return offset

    def raw(self, data: bytes) -> int:
        self.data += bytes(-len(self.data) % 8)
        offset = len(self.data)
        self.data += data
        return offset


def op(
    code: int,
    texts: tuple[int, ...] = (),
    slots: tuple[int, ...] = (),
    nums: tuple[int, ...] = (),
    flags: int = 0,
) -> native.Op:
    t = (*texts, 0, 0, 0, 0)
    s = (*slots, -1, -1, -1)
    n = (*nums, 0, 0, 0)
    return (code, flags, (t[0], t[1], t[2], t[3]), (s[0], s[1], s[2]), (n[0], n[1], n[2]))


RECEIVED = 6  # slots 0 .. 5; 0 = rootfs, 1 = namespace, 2 = stdio, 3 = socket, 4 = null, 5 = dir
SLOTS = 12


def every_op() -> tuple[list[native.Op], bytes, dict[str, int]]:
    """Return ops with every opcode in a legal order, their arena, and header fields."""
    a = Arena()
    path = a.text("/proc/x")
    word = a.text("word")
    argv, env, candidates = a.text("sh", "-c", "true"), a.text("A=1", "B=2"), a.text("/bin/sh")
    options = a.text("size=64k", "ro")
    groups = a.raw(bytes(12))
    insns = a.raw(bytes(24))
    a.text("end")
    scratch = a.raw(bytes(8 * (3 + 2 + 2)))
    uid_map, deny = a.text("0 1000 1"), a.text("deny")
    ops = [
        op(C.PYC_OP_GATE, nums=(C.PYC_GATE_MAPPED,)),
        op(C.PYC_OP_SETSID),
        op(C.PYC_OP_SETNS, slots=(1,), nums=(CLONE_NEWNS,)),
        op(C.PYC_OP_UNSHARE, nums=(CLONE_NEWNS,)),
        op(C.PYC_OP_WRITE_FD, (word,), (2,)),
        op(C.PYC_OP_WRITE_AT, (path, word), (5,), flags=C.PYC_F_OPTIONAL),
        op(C.PYC_OP_SETHOSTNAME, (word,)),
        op(C.PYC_OP_SETDOMAINNAME, (word,)),
        op(C.PYC_OP_LOOPBACK_UP),
        op(C.PYC_OP_PROPAGATION, nums=(native.MS_REC | native.MS_PRIVATE,)),
        op(C.PYC_OP_ATTACH_ROOT, (path,), (0,)),
        op(C.PYC_OP_FSMOUNT, (word, options), (6,), (2, 0xF)),
        op(C.PYC_OP_MOUNT_SETATTR, (), (6, 1), (1, 2, 0), C.PYC_F_RECURSIVE),
        op(C.PYC_OP_MOVE_MOUNT, (path,), (6, 0), flags=C.PYC_F_MAKE_DIR),
        op(C.PYC_OP_OPEN_TREE, (path,), (0, 7), (1,), C.PYC_F_OPTIONAL | C.PYC_F_NO_SYMLINKS),
        op(C.PYC_OP_MOVE_MOUNT, (path,), (7, 0), flags=C.PYC_F_OPTIONAL),
        op(C.PYC_OP_MKDIR, (path,), (0,), (0o755,), C.PYC_F_EXIST_OK),
        op(C.PYC_OP_MKNOD, (path,), (0,), (0o20666, 0x103, 5 << 32 | 6)),
        op(C.PYC_OP_SYMLINK, (path, word), (0,)),
        op(C.PYC_OP_MASK, (path,), (0, 4, 5)),
        op(C.PYC_OP_READONLY, (path,), (0,)),
        op(C.PYC_OP_OPEN, (path,), (0, 8), (os_path_flag(),)),
        op(C.PYC_OP_FSTYPE, (), (8,), (0x9FA0,)),
        op(C.PYC_OP_TERMINAL, (), (0, 3), (24 << 32 | 80, 0), C.PYC_F_CONSOLE),
        op(C.PYC_OP_SETUSER, nums=(0, 0)),
        op(C.PYC_OP_PIVOT_ROOT, (), (0,)),
        op(C.PYC_OP_CHDIR, (path,), nums=(1 << 32 | 1,), flags=C.PYC_F_MAKE_DIR),
        op(C.PYC_OP_JOIN_TIMENS),
        op(C.PYC_OP_PERSONALITY, nums=(0x40000,)),
        op(C.PYC_OP_RLIMIT, nums=(7, 1024, 2**64 - 1)),
        op(C.PYC_OP_UMASK, nums=(0o22,)),
        op(C.PYC_OP_KEYRING, (word,), flags=C.PYC_F_OPTIONAL),
        op(C.PYC_OP_GATE, nums=(C.PYC_GATE_START,)),
        op(C.PYC_OP_CAP_BOUND, nums=(2**64 - 1,)),
        op(C.PYC_OP_SETGROUPS, (groups,), nums=(3,)),
        op(C.PYC_OP_SETUSER, nums=(1000, 1000)),
        op(C.PYC_OP_CAPSET, nums=(1, 2, 3)),
        op(C.PYC_OP_CAP_AMBIENT, nums=(1,)),
        op(C.PYC_OP_NO_NEW_PRIVS),
        op(C.PYC_OP_PDEATHSIG, nums=(9,)),
        op(C.PYC_OP_SECCOMP, (insns,), (9,), (3, 0)),
        op(C.PYC_OP_STDIO, (), (2,), (1,)),
        op(C.PYC_OP_CLOSE, (), (2,)),
        op(C.PYC_OP_EXEC, (argv, env, candidates, scratch), (), (3, 2, 1)),
    ]
    header = {
        "fd_count": RECEIVED,
        "slot_count": SLOTS,
        "clone_flags": CLONE_NEWUSER | CLONE_NEWNS,
        "cgroup_slot": 5,
        "pidns_slot": 1,
        "uid_map": uid_map,
        "gid_map": uid_map,
        "setgroups": deny,
    }
    return ops, bytes(a.data), header


def os_path_flag() -> int:
    return 0o10000000  # O_PATH


def record(**changes: Any) -> bytes:
    fields: dict[str, Any] = {
        "flags": C.PYC_R_LOG | C.PYC_R_PARK,
        "id": "web/1",
        "state_dir": "/run/pycontain/containers/web",
        "log_path": "/var/lib/pycontain/containers/web/log",
        "kill_path": "/sys/fs/cgroup/x/cgroup.kill",
        "timeout_usec": 1_000_000,
        "exit_ops": [
            (C.PYC_EXIT_READ, b"/sys/fs/cgroup/x/memory.peak", b"memory.peak"),
            (C.PYC_EXIT_WRITE, b"/sys/fs/cgroup/x/cgroup.kill", b"1"),
            (C.PYC_EXIT_RMDIR, b"/sys/fs/cgroup/x", b""),
        ],
    }
    return native.encode_record(**{**fields, **changes})


def refusal(blob: bytes, fds: int = RECEIVED) -> Refusal | None:
    """Run the C check; return what it refused and the text of the check, or None."""
    memory = ffi.new("uint64_t[]", len(blob) // 8 + 1)
    ffi.memmove(memory, blob, len(blob))
    where = ffi.new("uint32_t[3]")
    if native.lib.pyc_blob_check(memory, len(blob), fds, where) == 0:
        return None
    # A macro that spans two lines reports the first one; show both.
    stage, index, line = where
    name = "record_check.c" if stage == C.PYC_STAGE_RECORD else "plan_check.c"
    lines = (NATIVE_DIR / name).read_text().splitlines()
    shared = (NATIVE_DIR / "check.h").read_text().splitlines()
    text = " ".join(part.strip() for part in lines[line - 1 : line + 1])
    if "REFUSE_UNLESS" not in lines[line - 1] and line <= len(shared):
        text = shared[line - 1].strip()
    return Refusal(stage, index, text)
