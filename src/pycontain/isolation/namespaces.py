"""Namespaces: which are made by clone3, which are joined, in which order.

Source: namespaces(7), setns(2), time_namespaces(7), runtime-spec config-linux.md "Namespaces".
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from pycontain._native import C
from pycontain.errors import InvalidSpec
from pycontain.isolation.plan import Plan
from pycontain.oci import Namespace, Spec

__all__ = ["CLONE_FLAGS", "clone_flags", "join_namespaces", "make_time_namespace"]

# include/uapi/linux/sched.h
CLONE_FLAGS = {
    "user": 0x10000000,
    "mount": 0x00020000,
    "cgroup": 0x02000000,
    "uts": 0x04000000,
    "ipc": 0x08000000,
    "pid": 0x20000000,
    "network": 0x40000000,
    "time": 0x00000080,
}
_CLOCKS = {"monotonic": 1, "boottime": 7}


def clone_flags(namespaces: Sequence[Namespace], *, cgroup_later: bool) -> int:
    """Return the CLONE_NEW* flags of the namespaces to be made at clone.

    The time namespace is made by the child, because its offsets must be written before anybody is
    in it. So is the cgroup namespace with `cgroup_later`: on cgroup v1 the child is moved into its
    cgroups after the clone, and the namespace's root is where its maker is.
    Raises: InvalidSpec: unknown type, or one type twice.
    """
    flags = 0
    seen = set()
    for index, namespace in enumerate(namespaces):
        if namespace.type not in CLONE_FLAGS:
            raise InvalidSpec(
                f"unknown namespace {namespace.type!r}",
                field=f"namespaces[{index}].type",
                hint="one of " + ", ".join(CLONE_FLAGS),
            )
        if namespace.type in seen:
            raise InvalidSpec(f"{namespace.type} given twice", field=f"namespaces[{index}].type")
        seen.add(namespace.type)
        later = namespace.type == "time" or (namespace.type == "cgroup" and cgroup_later)
        if namespace.path is None and not later:
            flags |= CLONE_FLAGS[namespace.type]
    return flags


def join_namespaces(plan: Plan, namespaces: Sequence[Namespace], fds: Mapping[str, int]) -> None:
    """Append the ops that enter existing namespaces: the user namespace first, since the rights to
    enter the others may come from it. The pid namespace is entered by the monitor before clone."""
    for kind in ("user", "cgroup", "uts", "ipc", "network", "time", "mount"):
        if kind in fds and kind != "pid":
            plan.op(
                C.PYC_OP_SETNS,
                next(f"namespaces[{i}].path" for i, n in enumerate(namespaces) if n.type == kind),
                slots=(plan.send(fds[kind]),),
                nums=(CLONE_FLAGS[kind],),
            )


def make_time_namespace(plan: Plan, spec: Spec) -> None:
    """Append the ops that make a time namespace, set its clocks and enter it.

    Entering at exec is only automatic since Linux 6.3, so setns does it on every kernel.
    """
    plan.op(C.PYC_OP_UNSHARE, "namespaces time", nums=(CLONE_FLAGS["time"],))
    if spec.time_offsets:
        proc = plan.out()
        lines = []
        for clock, seconds, nanoseconds in spec.time_offsets:
            if clock not in _CLOCKS:
                raise InvalidSpec(
                    f"unknown clock {clock!r}", field="timeOffsets", hint="monotonic or boottime"
                )
            lines.append(f"{_CLOCKS[clock]} {seconds} {nanoseconds}\n")
        plan.op(
            C.PYC_OP_OPEN, "timeOffsets", text=(plan.string("/proc"),), slots=(-1, proc),
            nums=(_O_PATH_DIRECTORY,),
        )  # fmt: skip
        plan.op(
            C.PYC_OP_WRITE_AT,
            "timeOffsets",
            text=(plan.string("self/timens_offsets"), plan.string("".join(lines))),
            slots=(proc,),
        )
    plan.op(C.PYC_OP_JOIN_TIMENS, "namespaces time")


_O_PATH_DIRECTORY = 0o10000000 | 0o200000
