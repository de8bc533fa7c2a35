"""`Resources` as what is written into cgroup v2 files, checked before anything is made.

Pure: no file is touched here. Each `Setting` carries the option it came from, so that whatever
the kernel says about a write can be told in the caller's words.
Source: Linux Documentation/admin-guide/cgroup-v2.rst.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

from pycontain.errors import InvalidSpec
from pycontain.oci import IoLimit, Resources
from pycontain.values import frozen, replace

UNLIMITED = -1  # OCI's word for "no limit" in an update; the kernel's is "max"

# The option that a user gave, for each field of Resources that has another name there.
OPTION = {
    "memory_max_bytes": "memory",
    "memory_high_bytes": "memory_high",
    "memory_low_bytes": "memory_reservation",
    "memory_min_bytes": "memory_min",
    "memory_swap_max_bytes": "memory_swap",
    "cpu_quota_usec": "cpus",
    "cpu_period_usec": "cpu_period",
    "cpu_burst_usec": "cpu_burst",
    "pids_max": "pids",
}
# `unified` may set limits, never move processes, freeze, kill or hand out controllers
_UNIFIED_CGROUP_FILES = ("cgroup.max.depth", "cgroup.max.descendants")


@frozen
class Setting:
    """One write: `text` into `file` of `controller`, because of option `field`."""

    controller: str  # "" for the core's own cgroup.* files
    file: str
    text: str
    field: str
    key: str = ""  # first word of the line to restore, in a file with a line per device


def v2_settings(resources: Resources, *, update: bool = False) -> list[Setting]:
    """Every write that `resources` asks for, in an order that the kernel accepts.

    Args:
        update: leave out `memory_oom_group`, whose default can't be told from a wish.

    Raises:
        InvalidSpec: a value is out of the kernel's range or two contradict each other.
    """
    check(resources)
    settings = [*_memory(resources, update), *_cpu(resources)]
    if resources.pids_max is not None:
        settings.append(Setting("pids", "pids.max", amount(resources.pids_max), "pids"))
    if resources.io_weight is not None:
        settings.append(Setting("io", "io.weight", f"default {resources.io_weight}", "io_weight"))
    for index, limit in enumerate(resources.io_max):
        settings.append(_io_max(limit, f"io_max[{index}]"))
    for size, value in resources.hugetlb_max:
        settings.append(Setting("hugetlb", f"hugetlb.{size}.max", amount(value), "hugetlb_max"))
    for file, text in resources.unified:
        controller = file.partition(".")[0]
        controller = "" if controller == "cgroup" else controller
        settings.append(Setting(controller, file, text, f"cgroup_conf[{file}]"))
    return settings


def _memory(resources: Resources, update: bool) -> Iterator[Setting]:
    for name, file in (
        ("memory_max_bytes", "memory.max"),  # before swap: a swap limit alone moves the pressure
        ("memory_swap_max_bytes", "memory.swap.max"),
        ("memory_high_bytes", "memory.high"),
        ("memory_low_bytes", "memory.low"),
        ("memory_min_bytes", "memory.min"),
    ):
        value = getattr(resources, name)
        if value is not None:
            yield Setting("memory", file, amount(value), OPTION[name])
    # Without a limit only a host-wide OOM kill would ask for the group, so the write is saved.
    if resources.memory_oom_group and resources.memory_max_bytes is not None and not update:
        yield Setting("memory", "memory.oom.group", "1", "memory_oom_group")


def _cpu(resources: Resources) -> Iterator[Setting]:
    if resources.cpu_quota_usec is not None:
        text = f"{amount(resources.cpu_quota_usec)} {resources.cpu_period_usec}"
        yield Setting("cpu", "cpu.max", text, "cpus")
    if resources.cpu_burst_usec is not None:  # after cpu.max: it may not exceed the quota
        yield Setting("cpu", "cpu.max.burst", str(resources.cpu_burst_usec), "cpu_burst")
    if resources.cpu_idle is False:  # before the weight, which an idle group refuses
        yield Setting("cpu", "cpu.idle", "0", "cpu_idle")
    if resources.cpu_weight is not None:
        yield Setting("cpu", "cpu.weight", str(resources.cpu_weight), "cpu_weight")
    if resources.cpu_idle:
        yield Setting("cpu", "cpu.idle", "1", "cpu_idle")
    if resources.cpuset_cpus is not None:
        yield Setting("cpuset", "cpuset.cpus", resources.cpuset_cpus, "cpuset_cpus")
    if resources.cpuset_mems is not None:
        yield Setting("cpuset", "cpuset.mems", resources.cpuset_mems, "cpuset_mems")


def _io_max(limit: IoLimit, field: str) -> Setting:
    device = f"{limit.major}:{limit.minor}"
    words = [device]
    for key, value in (
        ("rbps", limit.read_bytes_per_sec),
        ("wbps", limit.write_bytes_per_sec),
        ("riops", limit.read_ops_per_sec),
        ("wiops", limit.write_ops_per_sec),
    ):
        if value is not None:
            words.append(f"{key}={amount(value)}")
    return Setting("io", "io.max", " ".join(words), field, key=device)


def amount(value: int) -> str:
    """A limit as the kernel's word."""
    return "max" if value == UNLIMITED else str(value)


def check(resources: Resources) -> None:
    """Nothing in `resources` is out of range by itself; the kernel judges the rest.

    Raises:
        InvalidSpec: naming the option.
    """
    for name, floor in (
        ("memory_max_bytes", 1),
        ("memory_high_bytes", 1),
        ("memory_low_bytes", 0),
        ("memory_min_bytes", 0),
        ("memory_swap_max_bytes", 0),
        ("pids_max", 1),
        ("cpu_quota_usec", 1000),
        ("cpu_burst_usec", 0),
    ):
        value = getattr(resources, name)
        if value is not None and value < floor and value != UNLIMITED:
            raise InvalidSpec(f"{value} is less than {floor}", field=OPTION[name])
    _check_range(resources.cpu_period_usec, 1000, 1_000_000, "cpu_period")
    for weight, field in ((resources.cpu_weight, "cpu_weight"), (resources.io_weight, "io_weight")):
        if weight is not None:
            _check_range(weight, 1, 10_000, field)
    if resources.cpu_idle and resources.cpu_weight is not None:
        raise InvalidSpec("an idle group has no weight", field="cpu_idle")
    for cpus, field in (
        (resources.cpuset_cpus, "cpuset_cpus"),
        (resources.cpuset_mems, "cpuset_mems"),
    ):
        if cpus is not None:
            parse_cpuset(cpus, field)
    for index, limit in enumerate(resources.io_max):
        _check_io_limit(limit, f"io_max[{index}]")
    for size, value in resources.hugetlb_max:
        if not size.isalnum() or value < UNLIMITED:
            raise InvalidSpec(f"{size!r}: {value} is no page size and limit", field="hugetlb_max")
    for file, text in resources.unified:
        _check_unified(file, text)


def _check_range(value: int, low: int, high: int, field: str) -> None:
    if not low <= value <= high:
        raise InvalidSpec(f"{value} is not in {low}..{high}", field=field)


def _check_io_limit(limit: IoLimit, field: str) -> None:
    values = (
        limit.read_bytes_per_sec,
        limit.write_bytes_per_sec,
        limit.read_ops_per_sec,
        limit.write_ops_per_sec,
    )
    if all(value is None for value in values):
        raise InvalidSpec("no ceiling given", field=field)
    if any(value is not None and value < 1 and value != UNLIMITED for value in values):
        raise InvalidSpec("a ceiling is less than 1", field=field)


def _check_unified(file: str, text: str) -> None:
    """A name with "/" would leave the container's cgroup (runc GHSA, `unified` keys)."""
    field = f"cgroup_conf[{file}]"
    controller, dot, rest = file.partition(".")
    if not controller.isalnum() or not dot or not rest or "/" in file or "\0" in file:
        raise InvalidSpec("not the name of a cgroup v2 file", field=field)
    if controller == "cgroup" and file not in _UNIFIED_CGROUP_FILES:
        raise InvalidSpec("the runtime itself uses this file", field=field)
    if not text or "\0" in text:
        raise InvalidSpec("no value given", field=field)


def parse_cpuset(text: str, field: str) -> frozenset[int]:
    """The numbers in a list such as "0-2,7".

    Raises:
        InvalidSpec: it is no such list, or an empty one.
    """
    numbers: set[int] = set()
    for part in text.strip().split(","):
        first, dash, last = part.partition("-")
        if not (first.isdecimal() and len(first) <= 5 and (not dash or last.isdecimal())):
            raise InvalidSpec(f"{text!r} is no list such as 0-2,7", field=field)
        low, high = int(first), int(last) if dash else int(first)
        if high < low or high > 65_535:
            raise InvalidSpec(f"{text!r}: {part} is no range", field=field)
        numbers.update(range(low, high + 1))
    return frozenset(numbers)


def weight_from_shares(shares: int) -> int:
    """cpu.weight for v1 cpu.shares: 2 -> 1, 1024 -> 100, 262144 -> 10000.

    Source: crun and runc since 2025 (reference formula; the older linear one mapped 1024 to 39).
    """
    log = math.log2(min(max(shares, 2), 262_144))
    return min(max(math.ceil(10 ** ((log * log + 125 * log) / 612 - 7 / 34)), 1), 10_000)


def shares_from_weight(weight: int) -> int:
    """v1 cpu.shares for a cpu.weight: the inverse of `weight_from_shares`."""
    product = 612 * (math.log10(weight) + 7 / 34)
    log = (math.sqrt(125 * 125 + 4 * product) - 125) / 2
    return min(max(round(2**log), 2), 262_144)


def blkio_from_io_weight(weight: int) -> int:
    """v1 blkio weight for an io.weight: 1..10000 -> 10..1000."""
    return 10 + round((weight - 1) * 990 / 9999)


def restoring(setting: Setting, old_text: str) -> Setting:
    """The write that undoes `setting`, given what its file said before."""
    if setting.key:
        lines = [line for line in old_text.splitlines() if line.startswith(setting.key + " ")]
        unlimited = "rbps=max wbps=max riops=max wiops=max" if setting.file == "io.max" else "0"
        text = lines[0] if lines else f"{setting.key} {unlimited}"
    else:
        text = old_text.partition("\n")[0] or "\n"  # "\n" empties a cpuset; "" would be no write
    return replace(setting, text=text)
