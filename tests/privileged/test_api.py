"""`run` and `Engine.run` against a real kernel: subprocess.run's promises, and each option's."""

from __future__ import annotations

import os
import select
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
import userland

import pycontain
from pycontain import DEVNULL, PIPE, STDOUT, ContainerFailed, Engine, Result
from pycontain.engine import default_engine
from pycontain.errors import (
    CommandNotExecutable,
    CommandNotFound,
    ImageNotFound,
    InvalidInput,
    KernelError,
    NotFound,
    PycontainError,
)

HELLO = "pycontain/hello"
Shell = Callable[..., Result]


@pytest.fixture
def image(tmp_path: Path) -> str:
    return userland.make(tmp_path / "root")


@pytest.fixture
def sh(engine: Engine, image: str) -> Shell:
    return userland.shell(engine, image)


def is_v1(controller: str) -> bool:
    """The controller is in use in a v1 hierarchy, so not on the v2 tree."""
    lines = Path("/proc/cgroups").read_text().splitlines()
    return any(line.split()[0] == controller and line.split()[1] != "0" for line in lines)


# ---- subprocess.run's words --------------------------------------------------------------------


def test_input_and_output(sh: Shell) -> None:
    """`input` is its stdin, both outputs are captured apart, and stdin ends."""
    result = sh("cat; echo bad >&2", input="a\r\nb", text=True)
    assert (result.stdout, result.stderr, result.exit_code) == ("a\nb", "bad\n", 0)


def test_bytes_of_any_size(sh: Shell) -> None:
    """Megabytes go through a container unharmed, in both directions at once."""
    data = os.urandom(3 << 20)
    assert sh("cat", input=data, text=False).stdout == data


def test_input_that_nobody_reads(sh: Shell) -> None:
    """A container that ends before its input does is no error, as with subprocess."""
    assert sh("exec true", input=b"x" * (1 << 20), text=False).exit_code == 0


def test_output_after_a_late_writer(sh: Shell) -> None:
    """What a background process wrote before the container's end is captured."""
    assert sh("(sleep 0.1; echo late) & wait").stdout == "late\n"


def test_encoding_and_errors(sh: Shell) -> None:
    """`encoding` and `errors` decode as subprocess does."""
    result = sh(r"printf '\344'", text=False, encoding="latin-1")
    assert result.stdout == "ä"
    result = sh(r"printf '\344'", text=False, errors="replace")
    assert result.stdout == "\N{REPLACEMENT CHARACTER}"


def test_streams_of_the_caller(sh: Shell, tmp_path: Path) -> None:
    """A file, a descriptor, DEVNULL and STDOUT mean what they mean to subprocess."""
    target = tmp_path / "out"
    source = tmp_path / "in"
    source.write_text("from a file")
    with source.open() as stdin, target.open("w") as stdout:
        sh("cat; echo err >&2", capture_output=False, stdin=stdin, stdout=stdout, stderr=STDOUT)
    assert target.read_text() == "from a fileerr\n"
    result = sh("cat; echo out", stdin=DEVNULL, capture_output=False, stdout=PIPE, stderr=DEVNULL)
    assert (result.stdout, result.stderr) == ("out\n", None)


def test_check_carries_the_result(sh: Shell) -> None:
    """With `check` a failure raises ContainerFailed that has the whole record."""
    with pytest.raises(ContainerFailed) as caught:
        sh("echo so far; exit 3", check=True)
    assert caught.value.result.exit_code == 3
    assert caught.value.result.stdout == "so far\n"


@pytest.mark.parametrize("code", [0, 1, 126, 127, 128, 255])
def test_exit_codes(engine: Engine, code: int) -> None:
    """Every exit code arrives as it was."""
    result = engine.run(HELLO, ["--exit", str(code)])
    assert (result.exit_code, result.signal, result.returncode) == (code, None, code)
    assert result.known


def test_death_by_signal(engine: Engine) -> None:
    """A signal is told from an exit code, as `Popen.returncode` does."""
    result = engine.run(HELLO, ["--signal", "11"], stdout=DEVNULL)
    assert (result.exit_code, result.signal, result.returncode) == (None, 11, -11)


def test_times_are_of_this_run(engine: Engine) -> None:
    """`started_at` and `ended_at` enclose the run."""
    result = engine.run(HELLO, ["--sleep", "0.05"])
    assert result.ended_at - result.started_at >= 0.05


# ---- limits and what they report ---------------------------------------------------------------


def test_timeout_kills_the_whole_tree(sh: Shell) -> None:
    """setsid, a double fork and an ignored SIGTERM do not outlive `timeout`."""
    result = sh(
        "trap '' TERM; setsid sh -c '(trap \"\" TERM; sleep 987) & sleep 987' & "
        "(setsid sleep 987 &); sleep 987",
        timeout=0.5,
    )
    assert result.timed_out
    assert (result.signal, result.exit_code) == (9, None)
    assert "sleep\x00987" not in _all_commands()


def _all_commands() -> str:
    found = []
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                found.append(Path("/proc", entry, "cmdline").read_text())
            except OSError:
                continue
    return "\n".join(found)


def test_out_of_memory(engine: Engine) -> None:
    """The memory limit kills, and the record says that it was that."""
    result = engine.run(HELLO, ["--alloc", "64M"], memory="16M", stdout=DEVNULL)
    assert (result.signal, result.oom_killed, result.timed_out) == (9, True, False)


def test_out_of_memory_of_a_child_only(sh: Shell) -> None:
    """`oom_killed` is also true when only a child was killed and the first process lived."""
    # v2 kills all processes of a container unless told not to, v1 has no choice but one.
    words = {"cgroup_conf": {"memory.oom.group": "0"}} if not is_v1("memory") else {}
    result = sh(
        "(echo 1000 > /proc/self/oom_score_adj; head -c 64M /dev/zero | tail -c 64M > /dev/null); "
        "exit 5", memory="24M", **words,
    )  # fmt: skip
    assert (result.exit_code, result.oom_killed) == (5, True)


def test_pids_limit(engine: Engine) -> None:
    """A fork bomb is stopped by `pids`, and the record says so."""
    result = engine.run(HELLO, ["--fork", "100"], pids=10, capture_output=True, text=True)
    assert result.pids_limit_hit
    assert "forked 9 of 100: EAGAIN" in result.stdout


def test_usage_is_measured(engine: Engine) -> None:
    """The record has the CPU time and the memory peak of the run."""
    result = engine.run(HELLO, ["--alloc", "20M", "--burn", "0.3"], stdout=DEVNULL)
    assert result.usage.cpu_usec is not None and result.usage.memory_peak_bytes is not None
    assert result.usage.cpu_usec > 50_000
    assert result.usage.memory_peak_bytes > 20 << 20


def test_cpu_quota(engine: Engine) -> None:
    """Half a CPU is throttled where one would not be."""
    words = ["--burn", "0.5"]
    result = engine.run(HELLO, words, cpus=0.2, stdout=DEVNULL)
    assert result.usage.cpu_usec is not None
    assert result.usage.cpu_usec < 400_000


def test_ulimits(sh: Shell) -> None:
    """Limits are set as given."""
    result = sh("ulimit -n; ulimit -c; ulimit -Hn", ulimits=["nofile=77:88", "core=0"])
    assert result.stdout.split() == ["77", "0", "88"]


# ---- the process -------------------------------------------------------------------------------


def test_environment_and_directory(sh: Shell) -> None:
    """`env` adds to the image's, `cwd` is made current; nothing of ours leaks in."""
    os.environ["PYCONTAIN_TEST_LEAK"] = "1"
    try:
        result = sh("pwd; env", env={"A": "x y", "PATH": "/usr/bin"}, cwd="/tmp")
    finally:
        del os.environ["PYCONTAIN_TEST_LEAK"]
    lines = result.stdout.splitlines()
    assert lines[0] == "/tmp"
    assert "A=x y" in lines
    assert not any("LEAK" in line for line in lines)


def test_user_by_name(sh: Shell) -> None:
    """A user's name is looked up in the image; it has no capabilities and its groups."""
    result = sh("id -u; id -g; id -G; grep CapEff /proc/self/status", user="ann")
    assert result.stdout.split()[:2] == ["1000", "1000"]
    assert "50" in result.stdout
    assert "CapEff:\t0000000000000000" in result.stdout


def test_user_by_number(sh: Shell) -> None:
    """Numbers need no entry in the image."""
    assert sh("id -u; id -g", user="4321:8765").stdout.split() == ["4321", "8765"]


def test_hostname(sh: Shell) -> None:
    """`hostname` is that of the container alone."""
    assert sh("cat /proc/sys/kernel/hostname", hostname="box").stdout == "box\n"
    assert os.uname().nodename != "box"


def test_sysctls(sh: Shell) -> None:
    """A namespaced sysctl is set inside."""
    result = sh(
        "cat /proc/sys/net/ipv4/ip_unprivileged_port_start /proc/sys/kernel/msgmax",
        sysctls={"net.ipv4.ip_unprivileged_port_start": "77", "kernel.msgmax": "4444"},
    )
    assert result.stdout.split() == ["77", "4444"]


def test_init_reaps(sh: Shell) -> None:
    """With init=True orphans are reaped and signals forwarded; the exit code is the command's."""
    result = sh(
        "(sleep 0.05 & ) ; cat /proc/1/comm; sleep 0.3; "
        "for p in /proc/[0-9]*; do grep -l zombie $p/status; done; exit 6",
        init=True,
    )
    assert result.exit_code == 6
    assert "init" in result.stdout.splitlines()[0]
    assert "/status" not in result.stdout


def test_capabilities(sh: Shell) -> None:
    """`cap_add` and `cap_drop` change the bounding set."""
    show = "grep CapBnd /proc/self/status | cut -f 2"
    default = int(sh(show).stdout, 16)
    more = int(sh(show, cap_add=["NET_ADMIN"]).stdout, 16)
    none = int(sh(show, cap_drop=["ALL"]).stdout, 16)
    assert more == default | 1 << 12
    assert none == 0


def test_seccomp(sh: Shell) -> None:
    """The default filter is there, unconfined has none, a profile of the caller decides."""
    show = "grep Seccomp: /proc/self/status | cut -f 2"
    assert sh(show).stdout == "2\n"
    assert sh(show, seccomp="unconfined").stdout == "0\n"
    profile = {
        "defaultAction": "SCMP_ACT_ALLOW",
        "syscalls": [{"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 28}],
    }
    result = sh("mkdir /tmp/x", seccomp=profile)
    assert "No space left" in result.stderr


def test_devices(sh: Shell) -> None:
    """A device is made and may be opened; others may not, even with mknod."""
    result = sh("dd if=/dev/spare bs=1 count=1 2>/dev/null | od -An -tx1",
                devices=["/dev/zero:/dev/spare:r"])  # fmt: skip
    assert result.stdout.split() == ["00"]
    result = sh("mknod /tmp/kmsg c 1 11 && cat /tmp/kmsg", cap_add=["MKNOD"], timeout=5)
    assert result.exit_code != 0
    assert "not permitted" in result.stderr


# ---- files -------------------------------------------------------------------------------------


def test_read_only_root(sh: Shell) -> None:
    """A read-only root can't be written, a tmpfs in it can."""
    result = sh("touch /x; touch /run/y && echo fine", read_only=True, tmpfs=["/run:size=1m"])
    assert "Read-only file system" in result.stderr
    assert result.stdout == "fine\n"


def test_volumes(sh: Shell, tmp_path: Path) -> None:
    """A volume is the host's directory; `ro` can't be written."""
    shared = tmp_path / "shared"
    shared.mkdir()
    (shared / "a").write_text("from outside")
    both = [f"{shared}:/data", f"{shared}:/home:ro"]
    result = sh("cat /data/a; echo inside > /data/b; touch /home/c", volumes=both)
    assert result.stdout == "from outside"
    assert "Read-only" in result.stderr
    assert (shared / "b").read_text() == "inside\n"
    assert not (shared / "c").exists()


def test_tmpfs_has_a_size(sh: Shell) -> None:
    """What exceeds a tmpfs's size is refused inside."""
    result = sh("head -c 2M /dev/zero > /data/x", tmpfs=["/data:size=1m"])
    assert "No space left" in result.stderr


def test_missing_bind_source(sh: Shell) -> None:
    """A bind source that is not there is refused and named; it is not created."""
    with pytest.raises(NotFound, match="/nowhere/at/all"):
        sh("true", mounts=["type=bind,src=/nowhere/at/all,dst=/data"])
    assert not os.path.exists("/nowhere")


# ---- user namespaces ---------------------------------------------------------------------------


def test_user_namespace_of_a_directory(sh: Shell, tmp_path: Path) -> None:
    """Root inside is somebody else outside, and the root directory's files are its own."""
    result = sh("id -u; stat -c %u /etc/passwd; touch /mine && stat -c %u /mine; "
                "cat /proc/self/uid_map", userns="0:100000:65536")  # fmt: skip
    assert result.stdout.split()[:3] == ["0", "0", "0"]
    assert result.stdout.split()[3:] == ["0", "100000", "65536"]
    assert (tmp_path / "root/mine").stat().st_uid == 0  # on disk the directory keeps its ids


@pytest.mark.needs("kernel:6.15")
def test_user_namespace_of_an_image(engine: Engine) -> None:
    """The layers' files belong to the container's root, which may write among them."""
    result = engine.run(
        HELLO, ["-c", "exec /usr/bin/stat -c %u /hello /etc /tmp /"], entrypoint="/usr/bin/dash",
        volumes=[userland.USR, "/usr/lib:/lib:ro", "/usr/lib64:/lib64:ro"],
        userns="0:100000:65536", capture_output=True, text=True,
    )  # fmt: skip
    assert result.stdout.split() == ["0", "0", "0", "0"], result.stderr


@pytest.mark.needs("kernel:6.15")
def test_user_namespace_writes_to_an_image(engine: Engine) -> None:
    """What the container's root writes is its own inside and the mapped user's on the host."""
    script = "cd /etc; echo x > new; echo y >> passwd; exec /usr/bin/stat -c %u new passwd"
    with engine.container(
        HELLO, ["-c", script], entrypoint="/usr/bin/dash", stdout=PIPE,
        volumes=[userland.USR, "/usr/lib:/lib:ro", "/usr/lib64:/lib64:ro"],
        userns="0:100000:65536",
    ) as container:  # fmt: skip
        out, _ = container.start().communicate()
        assert out == b"0\n0\n"
        upper = Path(engine.data_root, "containers", container.id, "upper/etc")
        assert (upper / "new").stat().st_uid == (upper / "passwd").stat().st_uid == 100000


# ---- refusals ----------------------------------------------------------------------------------


def test_without_the_right_to_mount() -> None:
    """Not root: one line that says what is needed, and nothing left behind."""
    script = (
        "import pycontain\n"
        "try: pycontain.run('pycontain/hello')\n"
        "except pycontain.Unsupported as error: print(error)"
    )
    command = ["setpriv", "--bounding-set=-sys_admin", sys.executable, "-c", script]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.startswith("run: not possible on this host, needs CAP_SYS_ADMIN"), done


def test_unknown_image(engine: Engine) -> None:
    """An image that is not there is refused by name."""
    with pytest.raises(ImageNotFound, match="no/such"):
        engine.run("no/such:image")


def test_no_such_command(engine: Engine) -> None:
    """A command that is not in the image is an exception, not an exit code."""
    with pytest.raises(CommandNotFound, match="/nope"):
        engine.run(HELLO, [], entrypoint="/nope")


def test_command_not_executable(engine: Engine) -> None:
    """A command that can't be executed is told from one that is missing."""
    with pytest.raises(CommandNotExecutable, match="/etc/passwd"):
        engine.run(HELLO, [], entrypoint="/etc/passwd")


@pytest.mark.parametrize(
    ("words", "field"),
    [
        ({"memory": "lots"}, "memory"),
        ({"memory": -5}, "memory"),
        ({"cpus": 0}, "cpus"),
        ({"cpus": "many"}, "cpus"),
        ({"pids": 0}, "pids"),
        ({"userns": "0:0"}, "userns"),
        ({"userns": "0:100000:10,5:200000:10"}, "userns"),
        ({"ulimits": ["nofile=2:1"]}, "ulimits"),
        ({"cap_add": ["FLY"]}, "cap_add"),
        ({"sysctls": {"kernel.panic": "1"}}, "sysctl"),
        ({"volumes": ["relative"]}, "volumes"),
        ({"mounts": ["type=bind,dst=/x"]}, "mounts"),
        ({"tmpfs": ["/"]}, "tmpfs"),
        ({"devices": ["/dev/nope"]}, "devices"),
        ({"env": ["NOVALUE"]}, "env"),
        ({"hostname": "a" * 70}, "hostname"),
        ({"timeout": "soon"}, "timeout"),
        ({"seccomp": "/no/such/profile"}, "seccomp"),
        ({"stop_signal": "SIGNOPE"}, "stop_signal"),
        ({"network": "nope"}, "network"),
        ({"name": "bad name"}, "name"),
        ({"stdout": "text"}, "stdout"),
        ({"colour": "red"}, "colour"),
    ],
)
def test_bad_options_are_named(engine: Engine, words: dict[str, object], field: str) -> None:
    """What can't be right is refused before anything runs, and the message names the option."""
    with pytest.raises(InvalidInput, match=field):
        engine.run(HELLO, **words)


def test_impossible_limit(engine: Engine) -> None:
    """A memory limit in which nothing can start is an error that says so."""
    with pytest.raises(PycontainError, match="memory"):
        engine.run(HELLO, memory=1)


def test_ids_that_are_not_in_the_map(engine: Engine) -> None:
    """A user outside the user namespace's map is refused by name."""
    with pytest.raises(InvalidInput, match="userns"):
        engine.run(HELLO, user="5000", userns="0:100000:10")


def test_a_mount_on_a_link_out(engine: Engine, image: str, tmp_path: Path) -> None:
    """A destination that is a symbolic link leads nowhere outside the root."""
    (tmp_path / "root/evil").symlink_to("/../../../../../../" + str(tmp_path))
    before = {*os.listdir(tmp_path), "data"}  # the data root may be made meanwhile
    with suppress(KernelError):
        engine.run(image, ["sh", "-c", "true"], volumes=[userland.USR], tmpfs=["/evil/x"])
    assert {*os.listdir(tmp_path), "data"} == before


# ---- around a run --------------------------------------------------------------------------------


def test_plan_makes_nothing(engine: Engine) -> None:
    """A dry run says what would be done, and does none of it."""
    text = engine.plan(HELLO, ["--exit", "3"], memory="64M", read_only=True)
    assert "memory_max_bytes" in text and str(64 << 20) in text
    assert "argv=['/hello', '--exit', '3']" in text
    assert engine.list() == []


def test_info(engine: Engine) -> None:
    """What this host can do is told without running anything."""
    assert engine.info()


def test_the_module_alone() -> None:
    """`pycontain.run` and `pycontain.Container` need no engine of the caller's."""
    assert pycontain.run(HELLO, ["--exit", "6"]).exit_code == 6
    with pycontain.Container(HELLO, ["--sleep", "1000"]) as container:
        container.start()
        assert select.select([container], [], [], 0)[0] == []
        container.kill()
        assert select.select([container], [], [], 30)[0] == [container]
        assert container.poll() is not None
    default_engine().close()


# ---- the host program --------------------------------------------------------------------------


def test_importing_starts_nothing(state_root: Path) -> None:
    """Importing the library makes no file, no process and no thread."""
    code = (
        "import threading, os, pycontain, pycontain.engine; "
        "assert threading.active_count() == 1; assert not os.listdir(os.environ['PYCONTAIN_STATE'])"
    )
    subprocess.run([os.sys.executable, "-c", code], check=True)  # type: ignore[attr-defined]
