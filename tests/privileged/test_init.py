"""The reaper: as pid 1 of a new pid namespace, and as a subreaper outside of one."""

from __future__ import annotations

import os
import pty
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from pycontain import _native

INIT = str(_native.binary_path("init"))
PID_1 = ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc"]

pytestmark = pytest.mark.needs("program:unshare")


def run(*arguments: str, **options: object) -> subprocess.CompletedProcess[str]:
    """Run init as pid 1 of its own pid namespace."""
    command = [*PID_1, INIT, *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.parametrize(
    ("script", "code"),
    [("exit 0", 0), ("exit 7", 7), ("kill -TERM $$", 128 + 15), ("kill -KILL $$", 128 + 9)],
)
def test_exit_code_is_the_commands(script: str, code: int) -> None:
    """Init ends with its command's code, or with 128 + the signal."""
    assert run("--", "sh", "-c", script).returncode == code


def test_init_is_pid_1_and_the_command_leads_its_own_group() -> None:
    """The command is init's child, in a process group of its own."""
    done = run("--", "sh", "-c", "echo $$ $PPID; cut -d' ' -f5 /proc/$$/stat")
    assert done.stdout == "2 1\n2\n", done.stderr


def test_arguments_need_no_separator_and_are_passed_on() -> None:
    """Without "--" the first word that is no option begins the command."""
    assert run("printf", "%s|", "-g", "--", "a b").stdout == "-g|--|a b|"


def test_orphans_are_reaped() -> None:
    """Processes that lose their parent leave no zombie behind."""
    script = """
(for i in 1 2 3 4 5; do (exit 3) & done; exec sh -c ':') &
wait
read pid < /proc/sys/kernel/ns_last_pid
(sh -c 'sh -c "exit 4" & echo $!' > /tmp/orphan.$$) ; orphan=$(cat /tmp/orphan.$$)
rm /tmp/orphan.$$
while [ -e /proc/$orphan ]; do :; done
grep -l '^State:.Z' /proc/[0-9]*/status
echo reaped
"""
    assert run("--", "sh", "-c", script).stdout == "reaped\n"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGINT])
def test_signals_are_passed_on(number: signal.Signals) -> None:
    """What init gets the command gets."""
    name = number.name.removeprefix("SIG")
    script = f"trap 'echo got {name}; exit 5' {name}; echo ready; while :; do sleep 0.01; done"
    with subprocess.Popen([INIT, "--", "sh", "-c", script], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        process.send_signal(number)
        assert process.stdout.read() == f"got {name}\n".encode()
    assert process.returncode == 5


def test_signals_reach_the_group_on_request() -> None:
    """With -g the command's own children get them too."""
    script = "(trap 'echo child; exit' USR1; echo ready; while :; do sleep 0.01; done) & wait"
    command = [INIT, "-g", "--", "sh", "-c", f"trap : USR1; {script}; wait"]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        process.send_signal(signal.SIGUSR1)
        assert process.stdout.read() == b"child\n"
    assert process.returncode == 0


def test_the_command_starts_with_fresh_signals() -> None:
    """Nothing blocked and nothing ignored, whatever init blocks or inherited."""
    command = ["sh", "-c", f"trap '' PIPE USR1; exec {INIT} -- grep -E '^Sig(Blk|Ign)' $0"]
    done = subprocess.run([*command, "/proc/self/status"], capture_output=True, check=True)
    masks = [int(line.split()[1], 16) for line in done.stdout.splitlines()]
    assert masks == [0, 0]


@pytest.mark.parametrize(
    ("command", "code", "message"),
    [
        ("no-such-command", 127, "not found"),
        ("/no/such/command", 127, "not found"),
        ("", 127, "not found"),
        ("/etc/passwd", 126, "permission denied"),
        ("/", 126, "permission denied"),
    ],
)
def test_what_cannot_be_executed_is_said(command: str, code: int, message: str) -> None:
    """One line, and the shell's codes: 127 not found, 126 not executable."""
    done = run("--", command)
    assert (done.returncode, done.stderr) == (code, f"pycontain-init: {command}: {message}\n")


def test_a_text_file_is_no_program(tmp_path: Path) -> None:
    """An executable file of no known format is named as that."""
    (tmp_path / "text").write_text("hello\n")
    (tmp_path / "text").chmod(0o755)
    done = run("--", str(tmp_path / "text"))
    assert done.returncode == 126
    assert "not an executable for this machine" in done.stderr


def test_path_of_the_environment_is_searched(tmp_path: Path) -> None:
    """Elements in order, past those that are no directories or hold no such file."""
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "tool").write_text(f"#!/bin/sh\necho {name}\n")
    (tmp_path / "two" / "tool").chmod(0o755)  # the first one is not executable
    environment = {"PATH": f"/etc/passwd:{tmp_path}/none:{tmp_path}/one:{tmp_path}/two"}
    done = subprocess.run([INIT, "tool"], env=environment, capture_output=True, check=False)
    assert done.stdout == b"two\n", done.stderr
    without = subprocess.run([INIT, "true"], env={}, check=False)
    assert without.returncode == 0


def test_no_command_is_a_usage_error() -> None:
    """125 is the runtime's own code, and the line says how it is used."""
    done = subprocess.run([INIT, "-g", "--"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr.startswith("pycontain-init: usage")) == (125, True)


def test_the_command_is_in_front_on_a_terminal() -> None:
    """On a terminal the command's group is the foreground one, so that Ctrl-C reaches it."""
    pid, master = pty.fork()
    if pid == 0:
        script = "trap 'echo interrupted; exit 3' INT; echo ready; while :; do sleep 0.01; done"
        os.execv(INIT, [INIT, "--", "sh", "-c", script])
    try:
        assert _read_until(master, b"ready")
        os.write(master, b"\x03")
        assert _read_until(master, b"interrupted")
    finally:
        status = os.waitpid(pid, 0)[1]
        os.close(master)
    assert os.waitstatus_to_exitcode(status) == 3


def _read_until(fd: int, word: bytes) -> bool:
    seen = b""
    while word not in seen:
        try:
            seen += os.read(fd, 1024)
        except OSError:  # the other side has closed
            return False
    return True


def test_a_subreaper_outside_a_pid_namespace() -> None:
    """Not pid 1, it still gets its command's orphans."""
    script = (
        "import os\n"
        "if os.fork() == 0:\n"
        "    if os.fork() == 0:\n"
        "        parent = os.getppid()\n"
        "        os.read(0, 1)\n"
        "        print(os.getppid() == int(os.environ['INIT']), flush=True)\n"
        "    os._exit(0)\n"
        "os.environ['INIT']\n"
        "os.wait(); os.write(1, b'go\\n'); os.read(0, 1)\n"
    )
    shell = f'export INIT=$$; exec {INIT} -- {sys.executable} -c "$0"'
    with subprocess.Popen(
        ["sh", "-c", shell, script], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdin is not None and process.stdout is not None
        assert process.stdout.readline() == b"go\n"
        process.stdin.write(b"12")
        process.stdin.close()
        assert process.stdout.read() == b"True\n"
    assert process.returncode == 0


def test_it_is_small() -> None:
    """A few KiB, static: it costs a container next to nothing."""
    data = Path(INIT).read_bytes()
    assert len(data) < 8192
    assert b"ld-linux" not in data
