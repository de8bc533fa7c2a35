"""A plan: the flat list of operations that the child executes between clone and exec.

Pure values, no kernel: a plan can be built, dumped and compared without root. `origin` of an op is
the spec field that asked for it, so that (op index, errno) from the child becomes
`mounts[3].source: ...`. The format and its rules are in `_native/plan.h`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from pycontain import _native
from pycontain._native import C
from pycontain.errors import InvalidInput

__all__ = ["OP_NAMES", "Plan"]

OP_NAMES = {
    getattr(C, name): name[len("PYC_OP_") :]
    for name in dir(C)
    if name.startswith("PYC_OP_") and name != "PYC_OP_LAST"
}

# Slots below receive the descriptors that travel with the plan, slots from here on are filled by
# ops; the split lets ops name their results before all received descriptors are known.
_FIRST_OUT_SLOT = 112
_LIMIT = C.PYC_MAX_SLOTS

_Op = tuple[int, int, tuple[int, int, int, int], tuple[int, int, int], tuple[int, int, int]]


class Plan:
    """A plan under construction: ops, their origins, one arena of strings, the fds to send.

    The mutable state is `ops`, `origins`, `arena` and `fds`; a plan belongs to one thread. The
    descriptors are borrowed: whoever opened them closes them.
    """

    __slots__ = (
        "_strings",
        "arena",
        "cgroup_slot",
        "clone_flags",
        "fds",
        "gid_map",
        "next_out",
        "ops",
        "origins",
        "pidns_slot",
        "setgroups",
        "uid_map",
    )

    def __init__(self, clone_flags: int = 0) -> None:
        self.ops: list[_Op] = []
        self.origins: list[str] = []
        self.arena = bytearray(8)  # offset 0 is the empty string; 8 keeps what follows aligned
        self.fds: list[int] = []
        self.clone_flags = clone_flags
        self.cgroup_slot = self.pidns_slot = -1
        self.uid_map = self.gid_map = self.setgroups = 0
        self.next_out = _FIRST_OUT_SLOT
        self._strings: dict[bytes, int] = {}

    def copy(self, fds: list[int]) -> Plan:
        """Return a plan of its own that goes on from here, with other descriptors to send."""
        twin = Plan(self.clone_flags)
        twin.ops, twin.origins, twin.arena = self.ops[:], self.origins[:], self.arena[:]
        twin.fds, twin.next_out = fds, self.next_out
        twin.cgroup_slot, twin.pidns_slot = self.cgroup_slot, self.pidns_slot
        twin.uid_map, twin.gid_map, twin.setgroups = self.uid_map, self.gid_map, self.setgroups
        return twin

    def op(
        self,
        code: int,
        origin: str,
        *,
        text: Sequence[int] = (),
        slots: Sequence[int] = (),
        nums: Sequence[int] = (),
        flags: int = 0,
    ) -> None:
        """Append one op. `text` are arena offsets, `slots` slot numbers, `nums` the numbers."""
        t0, t1, t2, t3 = (*text, 0, 0, 0, 0)[:4]
        s0, s1, s2 = (*slots, -1, -1, -1)[:3]
        n0, n1, n2 = (*nums, 0, 0, 0)[:3]
        self.ops.append((code, flags, (t0, t1, t2, t3), (s0, s1, s2), (n0, n1, n2)))
        self.origins.append(origin)

    def send(self, fd: int) -> int:
        """Return the slot in which `fd` arrives; the same fd keeps its slot."""
        if fd in self.fds:
            return self.fds.index(fd)
        if len(self.fds) >= _FIRST_OUT_SLOT:
            raise InvalidInput(
                f"more than {_FIRST_OUT_SLOT} descriptors for one container", field="mounts"
            )
        self.fds.append(fd)
        return len(self.fds) - 1

    def out(self) -> int:
        """Return a fresh slot for the result of an op."""
        if self.next_out >= _LIMIT:
            raise InvalidInput("too many mounts for one container", field="mounts")
        self.next_out += 1
        return self.next_out - 1

    def string(self, value: str | bytes) -> int:
        """Return the arena offset of a NUL-terminated copy; equal strings share one."""
        data = value.encode("utf-8", "surrogateescape") if isinstance(value, str) else value
        if not data:
            return 0
        offset = self._strings.get(data)
        if offset is None:
            offset = self._strings[data] = self.fresh(data)
        return offset

    def fresh(self, data: bytes) -> int:
        """As `string`, but never shared: for strings that the child changes in place."""
        if b"\0" in data:
            raise InvalidInput(f"NUL byte in {data[:40]!r}", field="spec")
        offset = len(self.arena)
        self.arena += data
        self.arena.append(0)
        return offset

    def block(self, values: Iterable[str | bytes]) -> int:
        """Return the arena offset of the values, one NUL-terminated string after the other."""
        offset = len(self.arena)
        for value in values:
            data = value.encode("utf-8", "surrogateescape") if isinstance(value, str) else value
            self.fresh(data)
        if len(self.arena) == offset:
            self.arena.append(0)
        return offset

    def raw(self, data: bytes, align: int = 8) -> int:
        """Return the aligned arena offset of arbitrary bytes."""
        self.arena += bytes(-len(self.arena) % align)
        offset = len(self.arena)
        self.arena += data
        return offset

    def encode(self) -> bytes:
        """Return the plan as the child reads it."""
        return _native.encode_plan(
            self.ops,
            bytes(self.arena) + b"\0",
            fd_count=len(self.fds),
            slot_count=self.next_out if self.next_out > _FIRST_OUT_SLOT else len(self.fds),
            clone_flags=self.clone_flags,
            cgroup_slot=self.cgroup_slot,
            pidns_slot=self.pidns_slot,
            uid_map=self.uid_map,
            gid_map=self.gid_map,
            setgroups=self.setgroups,
        )

    def dump(self) -> str:
        """Return the plan as text, one op a line: what `--dry-run` shows and golden tests hold."""
        lines = []
        for (code, flags, texts, slots, nums), origin in zip(self.ops, self.origins, strict=True):
            words = [OP_NAMES[code].lower()]
            words += [f"slot{i}={s}" for i, s in enumerate(slots) if s >= 0]
            if code == C.PYC_OP_SECCOMP:
                words.append(f"instructions={nums[0]}")
            elif code in (C.PYC_OP_EXEC, C.PYC_OP_FSMOUNT):
                words += self._blocks(code, texts, nums)
            elif code != C.PYC_OP_SETGROUPS:
                words += [repr(self._text(t)) for t in texts if t]
                words += [hex(n) for n in nums[: max(_last_nonzero(nums), 0)]]
            if flags:
                words.append(f"flags={flags:#x}")
            lines.append(f"{' '.join(words):<78} # {origin}".rstrip())
        return "\n".join(lines) + "\n"

    def _text(self, offset: int) -> str:
        return self.arena[offset : self.arena.index(0, offset)].decode("utf-8", "replace")

    def _blocks(self, code: int, texts: Sequence[int], nums: Sequence[int]) -> list[str]:
        if code == C.PYC_OP_FSMOUNT:
            return [self._text(texts[0]), *self._strings_at(texts[1], nums[0]), hex(nums[1])]
        return [
            f"argv={self._strings_at(texts[0], nums[0])}",
            f"env={self._strings_at(texts[1], nums[1])}",
            f"candidates={self._strings_at(texts[2], nums[2])}",
        ]

    def _strings_at(self, offset: int, count: int) -> list[str]:
        found = []
        for _ in range(count):
            found.append(self._text(offset))
            offset = self.arena.index(0, offset) + 1
        return found


def _last_nonzero(nums: Sequence[int]) -> int:
    return max((i + 1 for i, n in enumerate(nums) if n), default=0)
