"""Limits, accounting, freezing and killing as the kernel does them, in whatever mode it is.

The controllers sit on v1 here and on v2 there; every test says the same of both. The processes
are one small static C program that enters the cgroup by itself and then misbehaves as told.
"""

from __future__ import annotations

import itertools
import os
import select
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pycontain.errors import AlreadyExists, InvalidSpec, NotFound, Unsupported
from pycontain.isolation.cgroups import (
    Cgroup,
    Layout,
    children,
    detect,
    oom_facts,
    remove_parent,
)
from pycontain.isolation.cgroups_devices import forget_programs
from pycontain.isolation.cgroups_systemd import (
    booted_with_systemd,
    scope_name,
    systemd_scope,
)
from pycontain.oci import DeviceRule, IoLimit, Resources

MIB = 1 << 20
PARENT = f"pycontain-test-{os.getpid()}"
END_TIMEOUT_MSEC = 30_000  # a hang, not a measure
_serial = itertools.count()

PROGRAM = r"""
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static void say(const char *word) { printf("%s\n", word); fflush(stdout); }

static int alloc(long mib) {            /* in a child: the parent tells how the child ended */
    pid_t pid = fork();
    if (pid == 0) {
        for (long i = 0; i < mib; i++) {
            char *part = malloc(1 << 20);
            if (!part) _exit(3);
            memset(part, 1, 1 << 20);
        }
        _exit(0);
    }
    int status;
    waitpid(pid, &status, 0);
    printf("%d\n", WIFSIGNALED(status) ? WTERMSIG(status) : 0);
    return 0;
}

static int spin(long msec) {            /* of CPU time */
    struct timespec now;
    do clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &now);
    while (now.tv_sec * 1000 + now.tv_nsec / 1000000 < msec);
    return 0;
}

static int forks(long count) {
    long refused = 0;
    for (long i = 0; i < count; i++) {
        pid_t pid = fork();
        if (pid == 0) { pause(); _exit(0); }
        refused += pid < 0 && errno == EAGAIN;
    }
    printf("%ld\n", refused);
    fflush(stdout);
    signal(SIGTERM, SIG_IGN);
    kill(0, SIGTERM);
    return 0;
}

static int tree(void) {                 /* a child in a session of its own, and its child */
    int ready[2];
    if (pipe(ready)) return 3;
    if (fork() == 0) {
        setsid();
        fork();
        signal(SIGTERM, SIG_IGN);
        write(ready[1], "r", 1);
        for (;;) pause();
    }
    char byte;
    for (int i = 0; i < 2; i++) read(ready[0], &byte, 1);
    say("ready");
    for (;;) pause();
}

int main(int argc, char **argv) {
    int i = 1;
    for (; i < argc && strcmp(argv[i], "--"); i++) {
        int fd = atoi(argv[i]);
        if (write(fd, "0", 1) != 1) { perror("join"); return 99; }
    }
    const char *action = argv[i + 1], *arg = i + 2 < argc ? argv[i + 2] : "0";
    if (!strcmp(action, "alloc")) return alloc(atol(arg));
    if (!strcmp(action, "spin")) return spin(atol(arg));
    if (!strcmp(action, "forks")) return setpgid(0, 0), forks(atol(arg));
    if (!strcmp(action, "tree")) return tree();
    if (!strcmp(action, "open")) {
        int fd = open(arg, O_RDONLY);
        printf("%d\n", fd < 0 ? errno : 0);
        return 0;
    }
    say("ready");
    for (char byte; read(0, &byte, 1) == 1;) say("answer");
    return 0;
}
"""


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The static C program; needs a compiler only where it was not built before."""
    ready = os.environ.get("PYCONTAIN_TEST_CGROUP_PROGRAM")
    if ready:
        return ready
    directory = tmp_path_factory.mktemp("cgroup-program")
    source = directory / "program.c"
    source.write_text(PROGRAM)
    target = directory / "program"
    try:
        subprocess.run(["cc", "-O1", "-w", "-static", "-o", target, source], check=True)
    except FileNotFoundError:
        pytest.skip("needs program:cc")
    return str(target)


def layouts() -> list[str]:
    """The host as it is; and where it has v1 hierarchies, as if it had no v2 tree."""
    return ["host", "legacy"] if detect().v1 else ["host"]


@pytest.fixture(scope="module", params=layouts())
def layout(request: pytest.FixtureRequest) -> Iterator[Layout]:
    """This machine's layout; afterwards no directory of these tests is left."""
    found = detect(refresh=True)
    if request.param == "legacy":
        mounts = Path("/proc/self/mountinfo").read_text().splitlines()
        found = detect("\n".join(line for line in mounts if " - cgroup2 " not in line))
    if found.v2_root is None and not found.v1:
        pytest.skip("needs a writable cgroup tree")
    yield found
    remove_parent(found, PARENT)


@pytest.fixture
def make(layout: Layout) -> Iterator[Callable[..., Cgroup]]:
    """`make(memory_max_bytes=...)`: a cgroup that is killed and removed after the test."""
    made: list[Cgroup] = []

    def make_one(**limits: object) -> Cgroup:
        name = f"{PARENT}/c{next(_serial)}"
        made.append(Cgroup.create(layout, name, Resources(**limits)))  # type: ignore[arg-type]
        return made[-1]

    yield make_one
    for cgroup in made:
        cgroup.kill()
        cgroup.remove()
    forget_programs()


class Inside:
    """The program, run inside a cgroup."""

    def __init__(self, program: str, cgroup: Cgroup, *action: str) -> None:
        fds = list(cgroup.join_fds)
        if cgroup.dir_fd >= 0:
            fds.append(os.open("cgroup.procs", os.O_WRONLY, dir_fd=cgroup.dir_fd))
        self.process = subprocess.Popen(
            [program, *map(str, fds), "--", *action],
            pass_fds=fds,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,
        )
        if cgroup.dir_fd >= 0:
            os.close(fds[-1])

    def line(self) -> str:
        """The next line that it prints."""
        assert self.process.stdout is not None
        return self.process.stdout.readline().decode().strip()

    def ask(self) -> None:
        """Have the waiting program print one more line."""
        assert self.process.stdin is not None
        self.process.stdin.write(b"?")

    def answers(self, timeout_msec: int) -> bool:
        """It prints something within that time."""
        assert self.process.stdout is not None
        poller = select.poll()
        poller.register(self.process.stdout, select.POLLIN)
        return bool(poller.poll(timeout_msec))

    def end(self) -> int:
        """Its return code, as `subprocess` has it."""
        with self.process:
            return self.process.wait(END_TIMEOUT_MSEC / 1000)


def needs_controller(layout: Layout, *controllers: str) -> None:
    """Skips where no tree has one of them."""
    for controller in controllers:
        if layout.where(controller) is None:
            pytest.skip(f"needs cgroup-controller:{controller}")


def in_cgroup(pid: int, cgroup: Cgroup) -> bool:
    """The process is in this cgroup, or below it, in some hierarchy."""
    lines = Path(f"/proc/{pid}/cgroup").read_text().splitlines()
    return any(f"/{cgroup.name}" in line for line in lines)


def test_memory_limit_kills_and_is_told(
    make: Callable[..., Cgroup], layout: Layout, program: str
) -> None:
    """Allocating beyond the limit is an OOM kill that the facts name, with a peak below it."""
    needs_controller(layout, "memory")
    cgroup = make(memory_max_bytes=16 * MIB, memory_swap_max_bytes=0)
    inside = Inside(program, cgroup, "alloc", "64")
    told = inside.line()
    code = inside.end()
    # v2 kills the whole group (memory.oom.group), v1 the child alone.
    assert told == "9" or code == -signal.SIGKILL
    usage = cgroup.stat()
    assert oom_facts(cgroup.sections()) == (True, False)
    assert usage.oom_kills is not None and usage.oom_kills >= 1
    if layout.where("memory") == "v2":
        assert usage.memory_max_events is not None and usage.memory_max_events >= 1
    if usage.memory_peak_bytes is not None:  # memory.peak is of Linux 5.19
        assert 8 * MIB < usage.memory_peak_bytes <= 16 * MIB


def test_memory_within_the_limit_is_no_oom(
    make: Callable[..., Cgroup], layout: Layout, program: str
) -> None:
    """A process that stays below its limit ends well, and the facts say so."""
    needs_controller(layout, "memory")
    cgroup = make(memory_max_bytes=64 * MIB)
    inside = Inside(program, cgroup, "alloc", "8")
    assert inside.line() == "0"
    assert inside.end() == 0
    assert oom_facts(cgroup.sections()) == (False, False)


def test_cpu_quota_throttles(make: Callable[..., Cgroup], layout: Layout, program: str) -> None:
    """Wanting more CPU than the quota means being throttled, and it is counted."""
    needs_controller(layout, "cpu")
    cgroup = make(cpu_quota_usec=10_000, cpu_period_usec=50_000)
    inside = Inside(program, cgroup, "spin", "40")
    assert inside.end() == 0
    usage = cgroup.stat()
    assert usage.cpu_throttled_periods is not None and usage.cpu_throttled_periods > 0
    assert usage.cpu_throttled_usec is not None and usage.cpu_throttled_usec > 0
    assert usage.cpu_usec is not None and usage.cpu_usec > 0


def test_pids_limit_refuses_forks(
    make: Callable[..., Cgroup], layout: Layout, program: str
) -> None:
    """A fork beyond the limit fails, and the facts name it."""
    needs_controller(layout, "pids")
    cgroup = make(pids_max=4)
    inside = Inside(program, cgroup, "forks", "10")
    assert inside.line() == "7"
    cgroup.kill()
    inside.end()
    assert oom_facts(cgroup.sections()) == (False, True)
    peak = cgroup.stat().pids_peak
    assert peak is None or peak == 4  # pids.peak is of Linux 6.1


def test_frozen_processes_stand_still(make: Callable[..., Cgroup], program: str) -> None:
    """A frozen process does not answer what it was asked; thawed, it does."""
    cgroup = make()
    inside = Inside(program, cgroup, "wait")
    assert inside.line() == "ready"
    cgroup.freeze()
    inside.ask()
    assert not inside.answers(50)
    cgroup.thaw()
    assert inside.answers(END_TIMEOUT_MSEC)
    inside.process.terminate()
    assert inside.end() == -signal.SIGTERM


def test_kill_reaches_everybody(make: Callable[..., Cgroup], program: str) -> None:
    """A process in a session of its own that ignores SIGTERM is listed and killed, even frozen."""
    cgroup = make()
    inside = Inside(program, cgroup, "tree")
    assert inside.line() == "ready"
    assert len(cgroup.pids()) == 3
    assert inside.process.pid in cgroup.pids()
    cgroup.freeze()
    cgroup.kill()
    assert inside.end() == -signal.SIGKILL
    cgroup.remove()
    assert cgroup.pids() == []
    cgroup.kill()


def test_devices_are_refused_by_the_rules(
    make: Callable[..., Cgroup], layout: Layout, program: str
) -> None:
    """Only the allowed device can be opened: EPERM for the other."""
    rules = (DeviceRule(False), DeviceRule(True, "c", 1, 3))
    cgroup = make(devices=rules)
    answers = []
    for path in ("/dev/null", "/dev/zero"):
        inside = Inside(program, cgroup, "open", path)
        answers.append(inside.line())
        inside.end()
    assert answers == ["0", "1"]


def test_v1_device_rules(
    make: Callable[..., Cgroup], layout: Layout, program: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where eBPF is refused, the devices controller of v1 enforces the same rules."""
    if layout.v1_mount("devices") is None:
        pytest.skip("needs v1-controller:devices")
    monkeypatch.setattr("pycontain.isolation.cgroups_devices._bpf_refused", True)
    test_devices_are_refused_by_the_rules(make, layout, program)


def test_cpuset_is_applied(make: Callable[..., Cgroup], layout: Layout, program: str) -> None:
    """A process in the cgroup may run on the given CPU alone."""
    needs_controller(layout, "cpuset")
    cpu = min(os.sched_getaffinity(0))
    cgroup = make(cpuset_cpus=str(cpu), cpuset_mems="0")
    inside = Inside(program, cgroup, "wait")
    assert inside.line() == "ready"
    assert os.sched_getaffinity(inside.process.pid) == {cpu}
    cgroup.kill()
    inside.end()


@pytest.mark.parametrize(
    ("limits", "controller", "field"),
    [
        ({"cpuset_cpus": "4000"}, "cpuset", "cpuset_cpus"),
        ({"io_max": (IoLimit(4095, 77, read_bytes_per_sec=1 << 20),)}, "io", "io_max[0]"),
    ],
)
def test_impossible_limit_leaves_nothing(
    layout: Layout, limits: dict[str, object], controller: str, field: str
) -> None:
    """What the kernel refuses is an error that names the option, and no directory remains."""
    needs_controller(layout, controller)
    name = f"{PARENT}/impossible"
    with pytest.raises(InvalidSpec) as caught:
        Cgroup.create(layout, name, Resources(**limits))  # type: ignore[arg-type]
    assert caught.value.field == field
    assert "impossible" not in children(layout, PARENT)
    with pytest.raises(NotFound):
        Cgroup.open(layout, name)


def test_unknown_controller_is_refused(layout: Layout) -> None:
    """A key that no controller answers to is Unsupported before anything is made."""
    with pytest.raises(Unsupported, match="nosuch"):
        Cgroup.create(layout, f"{PARENT}/no", Resources(unified=(("nosuch.max", "1"),)))
    assert "no" not in children(layout, PARENT)


def test_name_is_taken(make: Callable[..., Cgroup], layout: Layout, program: str) -> None:
    """A second cgroup of the same name is refused and does not disturb the first."""
    cgroup = make()
    inside = Inside(program, cgroup, "wait")
    assert inside.line() == "ready"
    with pytest.raises(AlreadyExists):
        Cgroup.create(layout, cgroup.name)
    assert cgroup.pids() == [inside.process.pid]
    cgroup.kill()
    inside.end()


def test_update_while_it_runs(make: Callable[..., Cgroup], layout: Layout, program: str) -> None:
    """A limit of a controller that the container had no limit in holds for its processes."""
    needs_controller(layout, "cpu", "cpuset")
    cgroup = make()
    inside = Inside(program, cgroup, "wait")
    assert inside.line() == "ready"
    cpu = min(os.sched_getaffinity(0))
    cgroup.update(Resources(cpuset_cpus=str(cpu)))
    assert os.sched_getaffinity(inside.process.pid) == {cpu}
    cgroup.update(Resources(cpu_quota_usec=5_000, cpu_period_usec=100_000))
    cgroup.update(Resources(cpu_quota_usec=-1))
    cgroup.kill()
    inside.end()


def test_failed_update_changes_nothing(make: Callable[..., Cgroup], layout: Layout) -> None:
    """If one limit is refused, those written before it are as they were."""
    needs_controller(layout, "memory", "cpuset", "pids")
    cgroup = make(memory_max_bytes=64 * MIB, memory_swap_max_bytes=0, pids_max=8)
    before = limit_files(cgroup)
    with pytest.raises(InvalidSpec, match="cpuset_cpus"):
        cgroup.update(
            Resources(memory_max_bytes=96 * MIB, memory_swap_max_bytes=0, cpuset_cpus="4000")
        )
    assert limit_files(cgroup) == before
    cgroup.update(Resources(memory_max_bytes=96 * MIB, memory_swap_max_bytes=0))
    assert limit_files(cgroup) != before


def limit_files(cgroup: Cgroup) -> dict[str, str]:
    """The memory limits of both generations."""
    names = ("memory.max", "memory.limit_in_bytes", "memory.memsw.limit_in_bytes")
    paths = [Path(directory, name) for directory in cgroup.paths for name in names]
    return {str(path): path.read_text() for path in paths if path.exists()}


def test_exec_has_its_own_count_and_kill(make: Callable[..., Cgroup], program: str) -> None:
    """A sub-cgroup's processes are the container's too; killing it leaves the container's."""
    cgroup = make()
    main = Inside(program, cgroup, "wait")
    assert main.line() == "ready"
    sub = cgroup.sub("e1")
    exec_ = Inside(program, sub, "tree")
    assert exec_.line() == "ready"
    assert len(sub.pids()) == 3
    assert len(cgroup.pids()) == 4
    assert in_cgroup(exec_.process.pid, sub)
    sub.kill()
    assert exec_.end() == -signal.SIGKILL
    sub.remove()
    assert cgroup.pids() == [main.process.pid]
    cgroup.kill()
    main.end()


def test_exec_with_a_limit_of_its_own(
    make: Callable[..., Cgroup], layout: Layout, program: str
) -> None:
    """The limit holds in the exec; the container's processes keep theirs and their place."""
    needs_controller(layout, "pids")
    cgroup = make(pids_max=50)
    main = Inside(program, cgroup, "wait")
    assert main.line() == "ready"
    sub = cgroup.sub("e1", Resources(pids_max=3))
    exec_ = Inside(program, sub, "forks", "6")
    assert exec_.line() == "4"
    assert oom_facts(sub.sections())[1] is True
    assert in_cgroup(main.process.pid, cgroup)
    sub.kill()
    exec_.end()
    sub.remove()
    again = cgroup.sub("e2")
    second = Inside(program, again, "wait")
    assert second.line() == "ready"
    assert sorted(cgroup.pids()) == sorted([main.process.pid, second.process.pid])
    cgroup.kill()
    main.end()
    second.end()
    again.remove()


def test_v2_split_moves_the_processes_once(
    make: Callable[..., Cgroup], layout: Layout, program: str
) -> None:
    """On v2 an exec with limits finds the container's processes in the leaf `main`, running."""
    if not layout.v2_controllers & {"hugetlb", "pids"}:
        pytest.skip("needs v2-controller:hugetlb or pids")
    cgroup = make()
    main = Inside(program, cgroup, "wait")
    assert main.line() == "ready"
    if "hugetlb" in layout.v2_controllers:
        limits = Resources(hugetlb_max=(("2MB", 0),))
    else:
        limits = Resources(pids_max=5)
    sub = cgroup.sub("e1", limits)
    lines = Path(f"/proc/{main.process.pid}/cgroup").read_text().splitlines()
    assert f"0::/{cgroup.name}/main" in lines
    sub.remove()
    cgroup.sub("e2", limits).remove()
    main.process.terminate()
    assert main.end() == -signal.SIGTERM


def test_another_process_opens_it(
    make: Callable[..., Cgroup], layout: Layout, program: str
) -> None:
    """`open` finds all of a cgroup: its processes, its usage, and it removes it whole."""
    cgroup = make()
    inside = Inside(program, cgroup, "wait")
    assert inside.line() == "ready"
    with Cgroup.open(layout, cgroup.name) as other:
        assert set(other.paths) == set(cgroup.paths)
        assert other.pids() == [inside.process.pid]
        assert other.kill_path == cgroup.kill_path
        other.kill()
        inside.end()
        other.remove()
    assert not any(os.path.exists(path) for path in cgroup.paths)


def test_removing_twice(make: Callable[..., Cgroup]) -> None:
    """Removal waits for nothing, leaves nothing and may be repeated."""
    cgroup = make()
    cgroup.sub("left-behind").close()
    paths = cgroup.paths
    cgroup.remove()
    cgroup.remove()
    assert not any(os.path.exists(path) for path in paths)


def test_exit_ops_name_what_exists(make: Callable[..., Cgroup], layout: Layout) -> None:
    """Every accounting file that the monitor will read exists; directories come deepest first."""
    from pycontain._native import C

    cgroup = make(memory_max_bytes=32 * MIB) if layout.where("memory") else make()
    ops = cgroup.exit_ops()
    for code, path, label in ops:
        if code == C.PYC_EXIT_READ:
            assert os.path.exists(path)
            assert label.removeprefix(b"v1/").decode() == os.path.basename(path).decode()
    removed = [path.decode() for code, path, _ in ops if code == C.PYC_EXIT_RMDIR]
    assert set(cgroup.paths) <= set(removed)
    assert [code for code, _, _ in ops] == sorted(
        (code for code, _, _ in ops),
        key=[C.PYC_EXIT_READ, C.PYC_EXIT_WRITE, C.PYC_EXIT_RMDIR].index,
    )


def test_systemd_hands_out_a_scope(layout: Layout, program: str) -> None:
    """On a systemd host the containers' parent is a delegated scope; a second call finds it."""
    if not booted_with_systemd():
        pytest.skip("needs systemd")
    root = f"/run/pycontain-test-{os.getpid()}"
    stand_in = subprocess.Popen(["sleep", "1000"])  # for the monitor
    try:
        parent = systemd_scope(layout, [stand_in.pid], state_root=root)
        assert parent.endswith(scope_name(root))
        own = Path(f"/proc/{stand_in.pid}/cgroup").read_text().strip().splitlines()
        assert f"0::/{parent}/monitor" in own
        cgroup = Cgroup.create(layout, f"{parent}/c1", Resources(pids_max=7))
        inside = Inside(program, cgroup, "wait")
        assert inside.line() == "ready"
        assert cgroup.pids() == [inside.process.pid]
        assert systemd_scope(layout, [stand_in.pid], state_root=root) == parent
        cgroup.kill()
        inside.end()
        cgroup.remove()
        remove_parent(layout, parent)
        assert os.path.isdir(f"{layout.v2_root}/{parent}")
    finally:
        stand_in.kill()
        stand_in.wait()
