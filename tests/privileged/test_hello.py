"""The program /hello: its report, and the options that use resources and die on demand."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest

from pycontain import _native
from pycontain.isolation import capabilities

HELLO = str(_native.binary_path("hello"))


def run(*arguments: str, before: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    """Run /hello, through the command `before` if given."""
    command = [*before, HELLO, *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def report(*before: str) -> dict[str, Any]:
    """Its report as a dictionary."""
    done = run("--json", before=before)
    assert done.returncode == 0, done.stderr
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def test_report_has_its_sections() -> None:
    """Alone it prints the report as text, and exits with 0."""
    done = run()
    sections = [line for line in done.stdout.splitlines() if line and not line.startswith(" ")]
    assert sections[1:] == ["process", "namespaces", "rights", "limits", "network", "mounts"]
    assert done.returncode == 0
    assert all(len(line) <= 100 for line in done.stdout.split("mounts")[0].splitlines())


def test_json_has_the_same_as_the_kernel() -> None:
    """Ids, names, limits and namespaces are those that the kernel gives us too."""
    said = report()
    assert said["process"]["parent"] == os.getpid()
    assert said["process"]["hostname"] == os.uname().nodename
    assert said["process"]["kernel"] == os.uname().release
    assert said["namespaces"]["mnt"] == os.readlink("/proc/self/ns/mnt")
    nofile = resource.getrlimit(resource.RLIMIT_NOFILE)
    assert said["limits"]["nofile"] == f"{nofile[0]} {nofile[1]}"
    mounts = Path("/proc/self/mountinfo").read_text().splitlines()
    targets = [mount["target"] for mount in said["mounts"]["table"]]
    assert targets == [line.split()[4] for line in mounts]


def test_capabilities_are_decoded() -> None:
    """The sets come by name, and the bounding set is the one in /proc."""
    said = report()["rights"]
    status = Path("/proc/self/status").read_text()
    bounding = int(status.split("CapBnd:\t")[1].split()[0], 16)
    assert capabilities.parse(said["bounding"]) == bounding & capabilities.ALL
    assert said["ambient"] == []


@pytest.mark.needs("program:setpriv")
def test_dropped_rights_are_seen() -> None:
    """Fewer capabilities, no new privileges and another user show up."""
    said = report(
        "setpriv", "--no-new-privs", "--bounding-set=-all,+chown", "--reuid=99", "--regid=98",
        "--clear-groups",
    )  # fmt: skip
    assert said["rights"]["no_new_privs"] is True
    assert said["rights"]["bounding"] == ["chown"]
    assert said["rights"]["effective"] == []
    assert (said["process"]["uid"], said["process"]["gid"]) == (99, 98)


@pytest.mark.needs("program:unshare")
def test_isolation_is_seen() -> None:
    """In new namespaces it is pid 1 and has no network beyond lo."""
    said = report("unshare", "--pid", "--fork", "--kill-child", "--net", "--mount-proc")
    assert (said["process"]["pid"], said["process"]["parent"]) == (1, 0)
    assert next(name.split("(")[0] for name in said["network"]["interfaces"]) == "lo"
    assert said["network"]["IPv4_route_out"] is False
    assert said["network"]["IPv6_route_out"] is False
    assert said["namespaces"]["net"] != os.readlink("/proc/self/ns/net")


@pytest.mark.needs("program:chroot")
def test_it_needs_no_files(tmp_path: Path) -> None:
    """In an empty root, without /proc and /sys, it says what is unknown."""
    (tmp_path / "hello").write_bytes(Path(HELLO).read_bytes())
    (tmp_path / "hello").chmod(0o755)
    command = ["chroot", str(tmp_path), "/hello", "--json", "--report"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    said, end = json.JSONDecoder().raw_decode(done.stdout)
    assert said["namespaces"]["pid"] is None
    assert said["mounts"] == {"table": None}
    assert said["limits"]["memory.max"] is None
    assert said["rights"]["seccomp"] in ("off", "filter")
    assert "unknown" in done.stdout[end:]
    assert done.returncode == 0


def test_open_files_are_listed(tmp_path: Path) -> None:
    """A descriptor that leaked in is seen."""
    with open(tmp_path / "x", "w") as file:
        done = subprocess.run(
            [HELLO, "--json"], pass_fds=[file.fileno()], capture_output=True, check=True
        )
        assert file.fileno() in json.loads(done.stdout)["process"]["open_files"]


@pytest.mark.parametrize("code", [0, 1, 42, 255])
def test_exit_code(code: int) -> None:
    """--exit says nothing and exits."""
    done = run("--exit", str(code))
    assert (done.returncode, done.stdout) == (code, "")


def test_options_go_in_order() -> None:
    """Each is done in turn, until --exit."""
    done = run("--alloc", "64K", "--sleep", "0.01", "--fork", "3", "--exit", "9", "--alloc", "1")
    assert done.stdout == "allocated 65536 bytes\nforked 3 of 3\n"
    assert done.returncode == 9


def test_burn_uses_cpu() -> None:
    """The CPU time that it took is at least what it says."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = run("--burn", "0.05")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    words = done.stdout.split()
    assert words[:1] + words[2:7] == ["burned", "ms", "of", "CPU", "in", words[6]]
    assert int(words[6]) >= 50
    used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    assert used * 1000 >= int(words[1]) - 10


def test_alloc_touches_memory() -> None:
    """What it allocates is resident."""
    done = subprocess.run(
        ["sh", "-c", f"{HELLO} --alloc 32M --sleep 60 & cat /dev/stdin; kill $!; wait $!"],
        input="", capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 128 + signal.SIGTERM
    with subprocess.Popen([HELLO, "--alloc", "32M"], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.read() == b"allocated 33554432 bytes\n"
        _, _, usage = os.wait4(process.pid, 0)
        process.returncode = 0
    assert usage.ru_maxrss >= 32 * 1024


@pytest.mark.needs("program:prlimit")
def test_failures_are_said_and_in_the_exit_code() -> None:
    """A refused allocation and a refused fork give their errno and code 1."""
    done = run("--alloc", "64G", before=("prlimit", "--as=100000000"))
    expected = "could not allocate 68719476736 bytes: ENOMEM (12)\n"
    assert (done.returncode, done.stdout) == (1, expected)


@pytest.mark.needs("program:prlimit", "program:setpriv")
def test_fork_says_how_many() -> None:
    """Under a limit it reports how far it came, and reaps all of them."""
    user = ("setpriv", "--reuid=54321", "--clear-groups", "--bounding-set=-all")
    done = run("--fork", "10", before=("prlimit", "--nproc=5", *user))
    assert (done.returncode, done.stdout) == (1, "forked 4 of 10: EAGAIN (11)\n")


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGSEGV, signal.SIGABRT])
def test_signal_ends_it(number: int) -> None:
    """It dies of the signal that it sends itself."""
    assert run("--signal", str(int(number))).returncode == -number


@pytest.mark.needs("program:unshare")
def test_pid_1_survives_a_signal_but_not_a_fault() -> None:
    """The kernel keeps pid 1 from dying of its own kill; --signal 11 is a real fault there."""
    before = ("unshare", "--pid", "--fork", "--kill-child")
    done = run("--signal", "15", before=before)
    assert (done.returncode, done.stdout) == (1, "signal 15 did not end process 1\n")
    assert run("--signal", "11", before=before).returncode in (-signal.SIGSEGV, 139)


@pytest.mark.parametrize("arguments", [("--what",), ("--exit",), ("--burn", "x"), ("extra",)])
def test_bad_options_are_refused(arguments: tuple[str, ...]) -> None:
    """Usage and code 2."""
    done = run(*arguments)
    assert done.returncode == 2
    assert done.stdout.startswith(f"/hello: {arguments[0]}: ")


def test_it_is_small() -> None:
    """A static program of a few KiB: the embedded image is nothing else."""
    data = Path(HELLO).read_bytes()
    assert len(data) < 16384
    assert b"ld-linux" not in data
