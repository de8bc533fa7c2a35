"""The quota options become `Resources`: whole bytes, microseconds and the cgroup's own words."""

from __future__ import annotations

from pycontain.errors import InvalidInput, InvalidSpec
from pycontain.isolation.devices import DEFAULT_RULES
from pycontain.oci import DeviceRule, IoLimit, Resources
from pycontain.runtime.options import RunOptions, parse_io_max, parse_pairs
from pycontain.runtime.units import parse_bytes, parse_cpus
from pycontain.values import replace

__all__ = ["DEFAULT_PIDS", "build_resources", "changed_resources"]

DEFAULT_PIDS = 2048  # podman's; docker has none, so a fork bomb takes the host's pids
_DEFAULT_RESOURCES = Resources(pids_max=DEFAULT_PIDS, devices=DEFAULT_RULES)


def build_resources(options: RunOptions, rules: tuple[DeviceRule, ...]) -> Resources:
    """The limits that `options` ask for, with the device rules `rules`.

    Raises:
        InvalidInput: an amount that is malformed.
        InvalidSpec: `memory_swap` without or below `memory`.
    """
    memory = options.memory
    if (
        memory is None
        and rules is DEFAULT_RULES
        and options.cpus is None
        and options.pids is None
        and _no_rare_quota(options)
    ):
        return _DEFAULT_RESOURCES
    memory_bytes = None if memory is None else parse_bytes(memory, field="memory")
    pids = DEFAULT_PIDS if options.pids is None else options.pids
    reservation = options.memory_reservation
    return Resources(
        memory_max_bytes=memory_bytes,
        memory_low_bytes=(
            None if reservation is None else parse_bytes(reservation, field="memory_reservation")
        ),
        memory_swap_max_bytes=_swap_bytes(options, memory_bytes),
        cpu_quota_usec=None if options.cpus is None else parse_cpus(options.cpus),
        cpu_weight=options.cpu_weight,
        cpuset_cpus=options.cpuset_cpus,
        cpuset_mems=options.cpuset_mems,
        pids_max=None if pids == -1 else pids,
        io_weight=options.io_weight,
        io_max=tuple(
            limit if isinstance(limit, IoLimit) else parse_io_max(limit) for limit in options.io_max
        ),
        unified=tuple(parse_pairs(options.cgroup_conf, field="cgroup_conf").items()),
        devices=rules,
    )


def _no_rare_quota(options: RunOptions) -> bool:
    return (
        options.memory_swap is None
        and options.memory_reservation is None
        and options.cpu_weight is None
        and options.cpuset_cpus is None
        and options.cpuset_mems is None
        and options.io_weight is None
        and not options.io_max
        and not options.cgroup_conf
    )


def _swap_bytes(options: RunOptions, memory_bytes: int | None) -> int | None:
    """Swap alone: none with a memory limit, unless `memory_swap` (docker: the total) allows it."""
    total = options.memory_swap
    if total is None:
        return None if memory_bytes is None else 0
    if str(total).strip() == "-1":
        return None
    if memory_bytes is None:
        raise InvalidSpec("needs memory too", field="memory_swap", hint="-1 is no limit")
    swap_bytes = parse_bytes(total, field="memory_swap") - memory_bytes
    if swap_bytes < 0:
        raise InvalidSpec(
            "is the total of memory and swap, so at least memory", field="memory_swap"
        )
    return swap_bytes


def changed_resources(**options: object) -> Resources:
    """The limits that `Container.update` was asked to change, and no others; -1 lifts one.

    Raises:
        InvalidInput: an amount that is malformed, or a word that is no quota.
    """
    lifted = {name for name, value in options.items() if str(value).strip() == "-1"}
    words = {"memory", "memory_swap", "memory_reservation", "cpus", "cpu_weight", "cpuset_cpus"}
    words |= {"cpuset_mems", "pids", "io_weight", "io_max", "cgroup_conf"}
    unknown = options.keys() - words
    if unknown:
        raise InvalidInput("is no quota that can change", field=min(unknown))
    given = {name: value for name, value in options.items() if name not in lifted}
    found = build_resources(RunOptions(**given), ())  # type: ignore[arg-type]
    changes: dict[str, int | None] = {}
    if given.get("pids") is None:
        changes["pids_max"] = -1 if "pids" in lifted else None
    if "memory_swap" not in options:
        changes["memory_swap_max_bytes"] = None  # memory alone changes memory alone
    if "memory_swap" in lifted:
        changes["memory_swap_max_bytes"] = -1
    if "memory" in lifted:
        changes["memory_max_bytes"] = -1
    if "memory_reservation" in lifted:
        changes["memory_low_bytes"] = -1
    if "cpus" in lifted:
        changes["cpu_quota_usec"] = -1
    return replace(found, **changes)  # type: ignore[arg-type]
