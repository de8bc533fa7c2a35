"""Pure parts of the cgroup code: the mount table, limits as text, accounting texts as Usage."""

from __future__ import annotations

from pathlib import Path

import pytest

from pycontain.errors import InvalidSpec, Unsupported
from pycontain.isolation.cgroups import (
    Mode,
    detect,
    oom_facts,
    parse_sections,
    usage_from_text,
)
from pycontain.isolation.cgroups_limits import shares_from_weight, v2_settings, weight_from_shares
from pycontain.isolation.cgroups_v1 import v1_settings
from pycontain.oci import IoLimit, Resources
from pycontain.usage import IoUsage, Pressure

V1 = ("cpu", "cpuset", "hugetlb", "io", "memory", "pids")


def table(root: Path, *lines: str) -> str:
    """mountinfo text; every mount point gets the files that a cgroup mount has."""
    text = []
    for number, line in enumerate(lines):
        kind, point, options, supers = line.split()
        directory = root / point
        directory.mkdir(parents=True, exist_ok=True)
        (directory / "cgroup.procs").write_text("")
        if kind == "cgroup2":
            (directory / "cgroup.controllers").write_text("hugetlb")
        text.append(f"{number} 1 0:{number} / {directory} {options} shared:1 - {kind} x {supers}")
    return "\n".join(text)


def test_hybrid_table(tmp_path: Path) -> None:
    """v1 controllers by their v2 names, co-mounted ones at one place, beside the v2 tree."""
    text = table(tmp_path, "cgroup a rw rw,cpu,cpuacct", "cgroup b rw rw,blkio", "cgroup2 u rw rw")
    layout = detect(text)
    assert layout.mode is Mode.HYBRID
    assert layout.v2_root == str(tmp_path / "u")
    assert layout.v1_mount("cpu") == layout.v1_mount("cpuacct") == str(tmp_path / "a")
    assert (layout.where("io"), layout.where("hugetlb"), layout.where("memory")) == (
        "v1",
        "v2",
        None,
    )


def test_other_tables(tmp_path: Path) -> None:
    """Named v1 hierarchies are no controllers; read-only and hidden mounts count as absent."""
    assert detect(table(tmp_path, "cgroup2 u rw rw", "cgroup s rw rw,name=x")).mode is Mode.UNIFIED
    assert detect(table(tmp_path, "cgroup a rw rw,memory")).mode is Mode.LEGACY
    readonly = detect(table(tmp_path, "cgroup2 u ro,nosuid rw"))
    assert (readonly.mode, readonly.readonly) == (Mode.NONE, (str(tmp_path / "u"),))
    hidden = table(tmp_path, "cgroup h rw rw,memory")
    (tmp_path / "h/cgroup.procs").unlink()
    assert detect(hidden).mode is Mode.NONE


def test_weights_convert_both_ways() -> None:
    """The ends and the default agree with the kernel's, and shares survive a round trip."""
    assert [weight_from_shares(shares) for shares in (2, 1024, 262_144)] == [1, 100, 10_000]
    assert [shares_from_weight(weight) for weight in (1, 100, 10_000)] == [2, 1024, 262_144]


def test_order_of_v2_writes() -> None:
    """Memory before swap, quota before burst, and idle last where it forbids a weight."""
    files = [
        setting.file
        for setting in v2_settings(
            Resources(
                memory_max_bytes=1,
                memory_swap_max_bytes=0,
                cpu_quota_usec=1000,
                cpu_burst_usec=5,
                cpu_idle=False,
                cpu_weight=7,
            )
        )
    ]
    assert files == [
        "memory.max",
        "memory.swap.max",
        "memory.oom.group",
        "cpu.max",
        "cpu.max.burst",
        "cpu.idle",
        "cpu.weight",
    ]


@pytest.mark.parametrize(
    ("limits", "field"),
    [
        ({"memory_max_bytes": -2}, "memory"),
        ({"pids_max": 0}, "pids"),
        ({"cpu_quota_usec": 999}, "cpus"),
        ({"cpu_weight": 10_001}, "cpu_weight"),
        ({"cpu_idle": True, "cpu_weight": 5}, "cpu_idle"),
        ({"cpuset_cpus": "3-1"}, "cpuset_cpus"),
        ({"cpuset_mems": "a"}, "cpuset_mems"),
        ({"io_max": (IoLimit(8, 0),)}, "io_max[0]"),
        ({"hugetlb_max": (("../x", 1),)}, "hugetlb_max"),
        ({"unified": (("memory.max/../x", "1"),)}, "cgroup_conf[memory.max/../x]"),
        ({"unified": (("cgroup.procs", "1"),)}, "cgroup_conf[cgroup.procs]"),
    ],
)
def test_impossible_values_name_their_option(limits: dict[str, object], field: str) -> None:
    """Refused before the kernel is asked."""
    with pytest.raises(InvalidSpec) as caught:
        v2_settings(Resources(**limits))  # type: ignore[arg-type]
    assert caught.value.field == field


def test_v1_words() -> None:
    """The same limits in v1's files: swap as the sum, weight as shares, one file per throttle."""
    limits = Resources(
        memory_max_bytes=100,
        memory_swap_max_bytes=20,
        cpu_weight=100,
        pids_max=-1,
        io_max=(IoLimit(8, 0, read_bytes_per_sec=9, write_ops_per_sec=-1),),
    )
    assert [(setting.file, setting.text) for setting in v1_settings(limits, V1)] == [
        ("memory.limit_in_bytes", "100"),
        ("memory.memsw.limit_in_bytes", "120"),
        ("cpu.shares", "1024"),
        ("blkio.throttle.read_bps_device", "8:0 9"),
        ("blkio.throttle.write_iops_device", "8:0 0"),
        ("pids.max", "max"),
    ]


def test_v1_can_not_say_it() -> None:
    """memory.high has no v1 word; swap alone needs its memory."""
    with pytest.raises(Unsupported, match="memory_high"):
        v1_settings(Resources(memory_high_bytes=1), V1)
    with pytest.raises(InvalidSpec, match="memory_swap"):
        v1_settings(Resources(memory_swap_max_bytes=1), V1)


def test_exit_text_of_v2() -> None:
    """Sections of an exit record become numbers; absent files stay None."""
    sections = parse_sections(
        b"=cpu.stat\nusage_usec 30\nuser_usec 20\nsystem_usec 10\nnr_periods 4\nnr_throttled 2\n"
        b"throttled_usec 99\n=memory.events\nlow 0\nhigh 0\nmax 5\noom 1\noom_kill 1\n"
        b"=pids.events\nmax 3\n=io.stat\n8:0 rbytes=1 wbytes=2 rios=3 wios=4 dbytes=0 dios=0\n"
        b"=cpu.pressure\nsome avg10=0.00 avg60=0.00 avg300=0.00 total=8\n"
    )
    usage = usage_from_text(sections)
    assert (usage.cpu_usec, usage.cpu_throttled_periods, usage.cpu_throttled_usec) == (30, 2, 99)
    assert usage.io == (IoUsage(8, 0, 1, 2, 3, 4),)
    assert usage.cpu_pressure == Pressure(8, None)
    assert usage.memory_peak_bytes is None and usage.memory_pressure is None
    assert oom_facts(sections) == (True, True)


def test_exit_text_of_v1() -> None:
    """v1 counts nanoseconds, prefixes totals, and keeps OOM kills elsewhere."""
    sections = {
        "v1/cpuacct.usage": "5000\n",
        "v1/cpu.stat": "nr_periods 4\nnr_throttled 2\nthrottled_time 7000\n",
        "v1/memory.oom_control": "oom_kill_disable 0\nunder_oom 0\noom_kill 2\n",
        "v1/memory.stat": "cache 1\nrss 2\ntotal_cache 3\ntotal_rss 4\n",
        "v1/pids.events": "max 0\n",
        "v1/blkio.throttle.io_service_bytes_recursive": "8:0 Read 1\n8:0 Write 2\nTotal 3\n",
        "v1/blkio.throttle.io_serviced_recursive": "8:0 Read 3\n8:0 Write 4\nTotal 7\n",
    }
    usage = usage_from_text(sections)
    assert (usage.cpu_usec, usage.cpu_throttled_usec, usage.oom_kills) == (5, 7, 2)
    assert (usage.memory_anon_bytes, usage.memory_file_bytes) == (4, 3)
    assert usage.io == (IoUsage(8, 0, 1, 2, 3, 4),)
    assert usage.memory_max_events is None
    assert oom_facts(sections) == (True, False)
