"""The kernel's accounting files: which to read, and what they say as `Usage`.

Texts come labelled: a v2 file by its name (`cpu.stat`), a v1 file with "v1/" before it. An absent
file leaves None, never 0. Fast, because `Cgroup.stat` calls it every second for many containers:
single numbers are cut out of the texts, which are not parsed whole.
Source: Linux Documentation/admin-guide/cgroup-v2.rst, cgroup-v1/memory.rst, accounting/psi.rst.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterable, Iterator, Mapping

from pycontain.usage import IoUsage, Pressure, Usage

# Read when a container has ended. Few: each costs some microseconds of every run.
V2_EXIT_FILES = (
    "cpu.stat",
    "memory.peak",
    "memory.events",
    "pids.peak",
    "pids.events",
    "io.stat",
    "cpu.pressure",
    "memory.pressure",
    "io.pressure",
)
V2_STAT_FILES = (
    *V2_EXIT_FILES,
    "memory.current",
    "memory.stat",
    "memory.swap.current",
    "pids.current",
)
V1_EXIT_FILES = (
    ("memory", "memory.max_usage_in_bytes"),
    ("memory", "memory.oom_control"),
    ("pids", "pids.peak"),
    ("pids", "pids.events"),
    ("cpu", "cpu.stat"),
    ("io", "blkio.throttle.io_service_bytes_recursive"),
    ("io", "blkio.throttle.io_serviced_recursive"),
    ("cpuacct", "cpuacct.usage"),
    ("cpuacct", "cpuacct.usage_user"),
    ("cpuacct", "cpuacct.usage_sys"),
)
V1_STAT_FILES = (
    *V1_EXIT_FILES,
    ("memory", "memory.usage_in_bytes"),
    ("memory", "memory.kmem.usage_in_bytes"),
    ("memory", "memory.stat"),
    ("pids", "pids.current"),
)


_READ_BYTES = 65_536


class AccountingFiles:
    """The accounting files of one cgroup, which stay open once they were read.

    Args:
        v1_paths: the owner's map of v1 controllers to directories; it may grow.
    """

    def __init__(self, v1_paths: Mapping[str, str]) -> None:
        self._v1_paths = v1_paths
        self._v2_path = ""
        self._v2_names: frozenset[str] = frozenset()
        self._fds: dict[str, int] | None = None
        self._lock = threading.Lock()  # guards _fds: reads and close may be concurrent

    def has_v2(self, path: str, names: frozenset[str]) -> None:
        """The cgroup has a v2 directory with these files."""
        self._v2_path, self._v2_names = path, names

    def at_exit(self) -> Iterator[tuple[str, str]]:
        """(label, path) of what is worth reading when the process has ended."""
        return self._existing(V2_EXIT_FILES, V1_EXIT_FILES)

    def read(self) -> dict[str, str]:
        """The texts by label; those that can't be read are left out."""
        texts: dict[str, str] = {}
        with self._lock:
            if self._fds is None:
                self._fds = self._open()
            for label, fd in self._fds.items():
                with contextlib.suppress(OSError):  # ENODEV: the cgroup is gone
                    texts[label] = os.pread(fd, _READ_BYTES, 0).decode("ascii", "replace")
        return texts

    def close(self) -> None:
        """No file is open; the next read opens them again."""
        with self._lock:
            fds, self._fds = self._fds, None
        for fd in (fds or {}).values():
            os.close(fd)

    def _open(self) -> dict[str, int]:
        fds: dict[str, int] = {}
        for label, path in self._existing(V2_STAT_FILES, V1_STAT_FILES):
            with contextlib.suppress(OSError):
                fds[label] = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        return fds

    def _existing(
        self, v2_files: Iterable[str], v1_files: Iterable[tuple[str, str]]
    ) -> Iterator[tuple[str, str]]:
        for file in v2_files:
            if file in self._v2_names:
                yield file, f"{self._v2_path}/{file}"
        for controller, file in v1_files:
            directory = self._v1_paths.get(controller)
            if directory:
                yield f"v1/{file}", f"{directory}/{file}"


def parse_sections(text: bytes) -> dict[str, str]:
    """The files in an exit record's text, by label.

    The monitor writes "=label", a newline and the file's text for each. No escaping is needed:
    every line of these files starts with a key, a device number or a digit, never with "=".
    """
    sections: dict[str, str] = {}
    for block in ("\n" + text.decode("ascii", "replace")).split("\n=")[1:]:
        label, _, content = block.partition("\n")
        sections[label] = content
    return sections


def oom_facts(sections: Mapping[str, str]) -> tuple[bool, bool]:
    """(something was killed for lack of memory, a fork was refused by the pids limit)."""
    usage_oom = _oom_kills(sections)
    refused = _pids_max_events(sections)
    return bool(usage_oom), bool(refused)


def usage_from_text(sections: Mapping[str, str]) -> Usage:
    """Usage as these files have it; v2's file is believed where v1 has one too."""
    get = sections.get
    cpu = get("cpu.stat")
    limits = cpu if _value(cpu, "nr_periods") is not None else get("v1/cpu.stat")
    throttled_usec = _value(limits, "throttled_usec")
    if throttled_usec is None:
        throttled_usec = _thousandth(_value(limits, "throttled_time"))
    memory, v1_memory = get("memory.stat"), get("v1/memory.stat")
    events = get("memory.events")
    return Usage(
        cpu_usec=_first(_value(cpu, "usage_usec"), _nsec(get("v1/cpuacct.usage"))),
        cpu_user_usec=_first(_value(cpu, "user_usec"), _nsec(get("v1/cpuacct.usage_user"))),
        cpu_system_usec=_first(_value(cpu, "system_usec"), _nsec(get("v1/cpuacct.usage_sys"))),
        cpu_periods=_value(limits, "nr_periods"),
        cpu_throttled_periods=_value(limits, "nr_throttled"),
        cpu_throttled_usec=throttled_usec,
        memory_current_bytes=_number(get("memory.current", get("v1/memory.usage_in_bytes"))),
        memory_peak_bytes=_number(get("memory.peak", get("v1/memory.max_usage_in_bytes"))),
        memory_swap_current_bytes=_first(
            _number(get("memory.swap.current")), _value(v1_memory, "total_swap")
        ),
        memory_anon_bytes=_first(_value(memory, "anon"), _value(v1_memory, "total_rss")),
        memory_file_bytes=_first(_value(memory, "file"), _value(v1_memory, "total_cache")),
        memory_kernel_bytes=_first(
            _value(memory, "kernel"), _number(get("v1/memory.kmem.usage_in_bytes"))
        ),
        memory_shmem_bytes=_first(_value(memory, "shmem"), _value(v1_memory, "total_shmem")),
        # v1's memory.failcnt stays 0 on recent kernels (6.18) whatever happens: not believed.
        memory_max_events=_value(events, "max"),
        oom_events=_value(events, "oom"),
        oom_kills=_oom_kills(sections),
        page_faults=_first(_value(memory, "pgfault"), _value(v1_memory, "total_pgfault")),
        major_page_faults=_first(
            _value(memory, "pgmajfault"), _value(v1_memory, "total_pgmajfault")
        ),
        pids_current=_number(get("pids.current", get("v1/pids.current"))),
        pids_peak=_number(get("pids.peak", get("v1/pids.peak"))),
        pids_max_events=_pids_max_events(sections),
        io=_io(sections),
        cpu_pressure=_pressure(get("cpu.pressure")),
        memory_pressure=_pressure(get("memory.pressure")),
        io_pressure=_pressure(get("io.pressure")),
    )


def _oom_kills(sections: Mapping[str, str]) -> int | None:
    return _first(
        _value(sections.get("memory.events"), "oom_kill"),
        _value(sections.get("v1/memory.oom_control"), "oom_kill"),
    )


def _pids_max_events(sections: Mapping[str, str]) -> int | None:
    return _value(sections.get("pids.events", sections.get("v1/pids.events")), "max")


def _value(text: str | None, key: str) -> int | None:
    """The number after `key` in a file of "key number" lines."""
    if text is None:
        return None
    if text.startswith(key + " "):
        start = len(key) + 1
    else:
        start = text.find(f"\n{key} ") + len(key) + 2
        if start == len(key) + 1:
            return None
    end = text.find("\n", start)
    return _number(text[start:end] if end >= 0 else text[start:])


def _number(text: str | None) -> int | None:
    if text is None:
        return None
    text = text.strip()
    return int(text) if text.isdecimal() else None  # cut short by a full exit record


def _nsec(text: str | None) -> int | None:
    return _thousandth(_number(text))


def _thousandth(value: int | None) -> int | None:
    return None if value is None else value // 1000


def _first(value: int | None, otherwise: int | None) -> int | None:
    return otherwise if value is None else value


def _pressure(text: str | None) -> Pressure | None:
    """PSI: "some avg10=0.00 avg60=0.00 avg300=0.00 total=0"; older kernels lack cpu's full."""
    totals: dict[str, int] = {}
    for line in (text or "").splitlines():
        kind, _, rest = line.partition(" ")
        total = _number(rest.rpartition("total=")[2])
        if total is not None:
            totals[kind] = total
    some = totals.get("some")
    return None if some is None else Pressure(some, totals.get("full"))


def _io(sections: Mapping[str, str]) -> tuple[IoUsage, ...] | None:
    v2 = sections.get("io.stat")
    if v2 is not None:
        return _io_v2(v2)
    sizes = sections.get("v1/blkio.throttle.io_service_bytes_recursive")
    counts = sections.get("v1/blkio.throttle.io_serviced_recursive")
    if sizes is None or counts is None:
        return None
    return _io_v1(sizes, counts)


def _io_v2(text: str) -> tuple[IoUsage, ...]:
    """Lines such as "8:0 rbytes=1 wbytes=2 rios=3 wios=4 dbytes=0 dios=0"."""
    devices = []
    for line in text.splitlines():
        device, _, rest = line.partition(" ")
        major, colon, minor = device.partition(":")
        values = dict(word.split("=", 1) for word in rest.split() if "=" in word)
        if colon and major.isdecimal() and minor.isdecimal() and "rbytes" in values:
            numbers = [_number(values.get(k)) or 0 for k in ("rbytes", "wbytes", "rios", "wios")]
            devices.append(IoUsage(int(major), int(minor), *numbers))
    return tuple(devices)


def _io_v1(sizes: str, counts: str) -> tuple[IoUsage, ...]:
    """Lines such as "8:0 Read 4096", and a "Total" without a device."""
    found: dict[tuple[int, int], list[int]] = {}
    for text, offset in ((sizes, 0), (counts, 2)):
        for line in text.splitlines():
            words = line.split()
            if len(words) != 3 or words[1] not in ("Read", "Write"):
                continue
            major, _, minor = words[0].partition(":")
            row = found.setdefault((int(major), int(minor)), [0, 0, 0, 0])
            row[offset + (words[1] == "Write")] = int(words[2])
    return tuple(IoUsage(major, minor, *row) for (major, minor), row in sorted(found.items()))
