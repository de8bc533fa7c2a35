"""The same `Resources` on cgroup v1 hierarchies, through cgroupspy.

Hosts still boot this way (hybrid): the v2 tree serves for kill, freeze and PSI, and here are the
limits. What v1 has no word for is Unsupported; what it says differently is converted:
`memory_low_bytes` is v1's soft limit (OCI's reservation is both), swap becomes memory plus swap,
weights become shares. `memory_oom_group` does not exist: the kernel kills one process.
Source: Linux Documentation/admin-guide/cgroup-v1/.
"""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import time
from collections.abc import Iterable, Iterator

from pycontain.errors import InvalidSpec, TimeoutExpired, Unsupported
from pycontain.isolation import cgroups_fs as fs
from pycontain.isolation.cgroups_layout import Layout, Mode
from pycontain.isolation.cgroups_limits import (
    OPTION,
    UNLIMITED,
    Setting,
    blkio_from_io_weight,
    shares_from_weight,
)
from pycontain.isolation.cgroups_v2 import host_swaps
from pycontain.oci import DeviceRule, Resources
from pycontain.values import frozen

# Joined by every container for its usage and OOM facts. `cpu` and `cpuset` only when asked for.
ACCOUNTING = frozenset(("memory", "pids", "io"))
# Without a v2 tree the freezer is what makes killing all processes free of races.
LEGACY_ACCOUNTING = ACCOUNTING | {"cpuacct", "freezer"}
LEGACY_SUB = frozenset(("freezer", "pids"))
_FREEZE_POLL_SEC = 0.001


def v1_settings(resources: Resources, controllers: Iterable[str]) -> list[Setting]:
    """The writes for those of the `controllers` that this host has on v1, in order.

    Raises:
        Unsupported: v1 can't express it. InvalidSpec: it needs another option beside it.
    """
    wanted = frozenset(controllers)
    settings = [
        *_memory(resources),
        *_cpu(resources),
        *_io(resources),
    ]
    if resources.pids_max is not None:
        text = "max" if resources.pids_max == UNLIMITED else str(resources.pids_max)
        settings.append(Setting("pids", "pids.max", text, "pids"))
    for size, value in resources.hugetlb_max:
        file = f"hugetlb.{size}.limit_in_bytes"
        settings.append(Setting("hugetlb", file, str(value), "hugetlb_max"))
    settings = [setting for setting in settings if setting.controller in wanted]
    if "memory" in wanted:
        _refuse_memory(resources)
    return settings


def device_settings(rules: tuple[DeviceRule, ...]) -> list[Setting]:
    """The devices controller's lines, which the kernel applies one after another."""
    from pycontain.isolation.devices import v1_lines

    return [Setting("devices", file, line, "devices") for file, line in v1_lines(rules)]


def _refuse_memory(resources: Resources) -> None:
    for name in ("memory_high_bytes", "memory_min_bytes"):
        if getattr(resources, name) is not None:
            raise Unsupported(OPTION[name], needs="the memory controller on cgroup v2")
    if resources.memory_swap_max_bytes is not None and resources.memory_max_bytes is None:
        raise InvalidSpec(
            "cgroup v1 limits memory and swap together: give memory too", field="memory_swap"
        )


def _memory(resources: Resources) -> Iterator[Setting]:
    limit, swap = resources.memory_max_bytes, resources.memory_swap_max_bytes
    if limit is not None:
        yield Setting("memory", "memory.limit_in_bytes", str(limit), "memory")
    if limit is not None and swap is not None:
        both = UNLIMITED if UNLIMITED in (limit, swap) else limit + swap
        yield Setting("memory", "memory.memsw.limit_in_bytes", str(both), "memory_swap")
    if resources.memory_low_bytes is not None:
        text = str(resources.memory_low_bytes)
        yield Setting("memory", "memory.soft_limit_in_bytes", text, "memory_reservation")


def _cpu(resources: Resources) -> Iterator[Setting]:
    if resources.cpu_quota_usec is not None:
        yield Setting("cpu", "cpu.cfs_period_us", str(resources.cpu_period_usec), "cpu_period")
        yield Setting("cpu", "cpu.cfs_quota_us", str(resources.cpu_quota_usec), "cpus")
    if resources.cpu_burst_usec is not None:
        yield Setting("cpu", "cpu.cfs_burst_us", str(resources.cpu_burst_usec), "cpu_burst")
    if resources.cpu_idle is False:
        yield Setting("cpu", "cpu.idle", "0", "cpu_idle")
    if resources.cpu_weight is not None:
        text = str(shares_from_weight(resources.cpu_weight))
        yield Setting("cpu", "cpu.shares", text, "cpu_weight")
    if resources.cpu_idle:
        yield Setting("cpu", "cpu.idle", "1", "cpu_idle")
    if resources.cpuset_cpus is not None:
        yield Setting("cpuset", "cpuset.cpus", resources.cpuset_cpus, "cpuset_cpus")
    if resources.cpuset_mems is not None:
        yield Setting("cpuset", "cpuset.mems", resources.cpuset_mems, "cpuset_mems")


def _io(resources: Resources) -> Iterator[Setting]:
    if resources.io_weight is not None:
        weight = str(blkio_from_io_weight(resources.io_weight))
        yield Setting("io", "blkio.bfq.weight", weight, "io_weight")
    for index, limit in enumerate(resources.io_max):
        device = f"{limit.major}:{limit.minor}"
        for file, value in (
            ("read_bps", limit.read_bytes_per_sec),
            ("write_bps", limit.write_bytes_per_sec),
            ("read_iops", limit.read_ops_per_sec),
            ("write_iops", limit.write_ops_per_sec),
        ):
            if value is not None:
                text = f"{device} {0 if value == UNLIMITED else value}"  # 0 lifts a throttle
                name = f"blkio.throttle.{file}_device"
                yield Setting("io", name, text, f"io_max[{index}]", key=device)


@frozen
class _Directory:
    """As much of a cgroupspy Node as its controllers look at; Node itself loads `logging`."""

    full_path: str


class V1Group:
    """One cgroup's directories, at most one in each v1 hierarchy."""

    def __init__(self, layout: Layout, name: str) -> None:
        self.layout = layout
        self.name = name
        self.paths: dict[str, str] = {}  # controller -> directory; co-mounted ones share it

    def find(self) -> bool:
        """`paths` has the directories that exist; True if any does."""
        for controller, mount_point in self.layout.v1:
            directory = f"{mount_point}/{self.name}"
            if os.path.isdir(directory):
                self.paths[controller] = directory
        return bool(self.paths)

    def possible_paths(self) -> list[str]:
        """Where directories of this cgroup are or may come to be (by a later update)."""
        return list(dict.fromkeys(f"{mount}/{self.name}" for _, mount in self.layout.v1))

    def directories(self) -> list[str]:
        """The distinct directories."""
        return list(dict.fromkeys(self.paths.values()))

    def make(self, controllers: Iterable[str], needed: Iterable[str]) -> None:
        """There is a directory for each controller; those not `needed` may be forbidden to us.

        Raises:
            FileExistsError: another cgroup has this name.
            Unsupported: a needed hierarchy can't be written.
        """
        needed = frozenset(needed)
        made: set[str] = set(self.paths.values())
        for controller in sorted(controllers):
            mount_point = self.layout.v1_mount(controller)
            if mount_point is None or controller in self.paths:
                continue
            directory = f"{mount_point}/{self.name}"
            if directory not in made:
                try:
                    self._mkdir(mount_point, directory)
                except OSError as error:
                    if error.errno not in fs.DENIED:
                        raise
                    if controller in needed:
                        needs = f"permission to create {directory}"
                        raise Unsupported(f"cgroup controller {controller}", needs=needs) from error
                    continue
                made.add(directory)
            self.paths[controller] = directory

    def _mkdir(self, mount_point: str, directory: str) -> None:
        cpuset = mount_point == self.layout.v1_mount("cpuset")
        try:
            os.mkdir(directory, 0o755)
        except FileNotFoundError:
            ancestor = mount_point
            for part in os.path.dirname(self.name).split("/"):
                ancestor = f"{ancestor}/{part}"
                with contextlib.suppress(FileExistsError):
                    os.mkdir(ancestor, 0o755)
                if cpuset:
                    _inherit_cpuset(ancestor)
            os.mkdir(directory, 0o755)
        if cpuset:
            _inherit_cpuset(directory)

    def write(self, setting: Setting) -> None:
        """The setting is in force.

        Raises:
            InvalidSpec, Unsupported, KernelError: naming the option.
        """
        directory = self.paths[setting.controller]
        try:
            _controller(directory).set_property(setting.file, setting.text)
        except OSError as refused:
            error = refused
            path = f"{directory}/{setting.file}"
            if not os.path.exists(path):  # open for writing says EACCES there, not ENOENT
                if setting.field == "memory_swap" and not host_swaps():
                    return  # no swap accounting, but no swap either
                error = FileNotFoundError(errno.ENOENT, "no such file", path)
            raise fs.refusal(error, path, setting.text, setting.field) from error

    def read(self, setting: Setting) -> str:
        """What the setting's file says now."""
        return str(_controller(self.paths[setting.controller]).get_property(setting.file))

    def in_order(self, settings: list[Setting]) -> list[Setting]:
        """For an update: memory plus swap may never be less than memory, at no moment."""
        files = {setting.file: setting for setting in settings}
        limit = files.get("memory.limit_in_bytes")
        both = files.get("memory.memsw.limit_in_bytes")
        if limit is None or both is None or "memory" not in self.paths:
            return settings
        try:
            now = int(self.read(both))
        except (OSError, ValueError):
            return settings
        if limit.text != str(UNLIMITED) and int(limit.text) <= now:
            return settings
        rest = [setting for setting in settings if setting not in (limit, both)]
        return [both, limit, *rest]

    def adopt(self, pids: Iterable[int], controllers: Iterable[str]) -> None:
        """These processes are in the directories of these controllers."""
        for directory in dict.fromkeys(self.paths[name] for name in controllers):
            for pid in pids:
                with contextlib.suppress(ProcessLookupError):
                    fs.write(directory, "cgroup.procs", str(pid))


def _controller(directory: str):  # type: ignore[no-untyped-def]  # cgroupspy is untyped
    from cgroupspy.controllers import Controller

    return Controller(_Directory(directory))


def _inherit_cpuset(directory: str) -> None:
    """A new v1 cpuset is empty and admits nobody until it has CPUs and memory nodes."""
    parent = os.path.dirname(directory)
    for file in ("cpuset.cpus", "cpuset.mems"):
        if not _controller(directory).get_property(file):
            _controller(directory).set_property(file, _controller(parent).get_property(file))


def accounting(layout: Layout, *, sub: bool) -> frozenset[str]:
    """v1 controllers that a cgroup joins though no option asks for them."""
    if layout.mode is Mode.LEGACY:
        return LEGACY_SUB if sub else LEGACY_ACCOUNTING
    return frozenset() if sub else ACCOUNTING - layout.v2_controllers


def is_frozen(freezer_path: str) -> bool:
    """It was asked to freeze, and may be on its way."""
    return fs.read(freezer_path, "freezer.state").strip() != "THAWED"


def set_frozen(freezer_path: str, frozen: bool, timeout_sec: float) -> None:
    """All processes of the v1 freezer cgroup stand still, or run again.

    Raises:
        TimeoutExpired: a process did not stop in time; the cgroup is thawed again.
    """
    wanted = "FROZEN" if frozen else "THAWED"
    fs.write(freezer_path, "freezer.state", wanted)
    deadline = time.monotonic() + timeout_sec
    while fs.read(freezer_path, "freezer.state").strip() != wanted:
        if time.monotonic() > deadline:
            fs.write(freezer_path, "freezer.state", "THAWED")
            raise TimeoutExpired(f"{freezer_path} did not become {wanted} in {timeout_sec} s")
        time.sleep(_FREEZE_POLL_SEC)  # v1 has no event for it


def kill(freezer_path: str, timeout_sec: float) -> None:
    """Every process of the v1 freezer cgroup has been sent SIGKILL; frozen, so none could fork."""
    set_frozen(freezer_path, True, timeout_sec)
    try:
        for pid in fs.pids(freezer_path):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
    finally:
        set_frozen(freezer_path, False, timeout_sec)
