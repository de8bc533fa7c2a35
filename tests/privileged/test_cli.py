"""The `pycontain` command as people type it: a process of its own, real containers, real terminals.

The grammar of every verb is tested without root in tests/cli; here is what only a kernel can show.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import userland

PYCONTAIN = [sys.executable, "-m", "pycontain"]
PATIENCE_SEC = 60.0  # a hang, not a measure
Ran = subprocess.CompletedProcess[str]


def pycontain(*words: str, stdin: str = "") -> Ran:
    """Run one command line to its end."""
    return subprocess.run(
        [*PYCONTAIN, *words], input=stdin, capture_output=True, text=True, timeout=PATIENCE_SEC
    )


def read_until(fd: int, wanted: bytes) -> bytes:
    """Everything that `fd` gives up to and including `wanted`."""
    found = b""
    deadline = time.monotonic() + PATIENCE_SEC
    while wanted not in found:
        assert time.monotonic() < deadline, f"{wanted!r} did not come, only {found!r}"
        if select.select([fd], [], [], 1.0)[0]:
            try:
                chunk = os.read(fd, 65536)
            except OSError:  # EIO: the terminal's last program has gone
                chunk = b""
            assert chunk, f"{wanted!r} did not come, only {found!r}"
            found += chunk
    return found


@pytest.fixture(autouse=True)
def nothing_stays() -> Iterator[None]:
    """Each test removes its containers; this says so if one does not, and removes it."""
    yield
    left = pycontain("ps", "-aq").stdout.split()
    if left:
        pycontain("rm", "-f", *left)
    pycontain("prune", "-f")
    assert left == []


@pytest.fixture
def shell(tmp_path: Path) -> tuple[str, ...]:
    """The words that choose a root file system with a shell."""
    directory = userland.make(tmp_path / "root").removeprefix("rootfs:")
    return ("-v", userland.USR, "--rootfs", directory)


class Terminal:
    """A pycontain command with a terminal of 80 x 24 that is the test's to type on."""

    def __init__(self, *words: str) -> None:
        self.fd, other = os.openpty()
        self.resize(24, 80)
        # A controlling terminal, so that a change of its size is a SIGWINCH.
        self.process = subprocess.Popen(
            ["setsid", "--ctty", "--wait", *PYCONTAIN, *words],
            stdin=other,
            stdout=other,
            stderr=other,
        )
        os.close(other)

    def resize(self, rows: int, columns: int) -> None:
        fcntl.ioctl(self.fd, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def type(self, keys: bytes) -> None:
        while keys:
            keys = keys[os.write(self.fd, keys) :]

    def see(self, wanted: bytes) -> bytes:
        return read_until(self.fd, wanted)

    def wait(self) -> int:
        """Its exit code; what it still prints is read, or it would wait for us."""
        deadline = time.monotonic() + PATIENCE_SEC
        while self.process.poll() is None and time.monotonic() < deadline:
            if select.select([self.fd], [], [], 0.05)[0]:
                try:
                    os.read(self.fd, 65536)
                except OSError:
                    break
        return self.process.wait(PATIENCE_SEC)

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        os.close(self.fd)


@pytest.fixture
def terminal() -> Iterator[Callable[..., Terminal]]:
    """Start commands on terminals of their own."""
    made: list[Terminal] = []

    def start(*words: str) -> Terminal:
        made.append(Terminal(*words))
        return made[-1]

    yield start
    for one in made:
        one.close()


# ---- the foreground --------------------------------------------------------------------------


def test_exit_code_and_streams_pass_through(shell: tuple[str, ...]) -> None:
    """The container has our own stdout and stderr; its exit code is ours."""
    ran = pycontain("run", "--rm", *shell, "sh", "-c", "echo out; echo err >&2; exit 7")
    assert (ran.returncode, ran.stdout, ran.stderr) == (7, "out\n", "err\n")


def test_stdin_only_with_i(shell: tuple[str, ...]) -> None:
    """As in docker: `while read` loops around `run` do not lose their input."""
    assert pycontain("run", "--rm", *shell, "cat", stdin="in").stdout == ""
    assert pycontain("run", "-i", "--rm", *shell, "cat", stdin="in").stdout == "in"


def test_the_embedded_image_runs_offline() -> None:
    """`pycontain run pycontain/hello` works on any machine."""
    ran = pycontain("run", "--rm", "pycontain/hello")
    assert ran.returncode == 0
    assert "Hello from a container" in ran.stdout


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (("no-such-command",), 127, "no-such-command"),
        (("/etc/passwd",), 126, "/etc/passwd"),
        (("-m", "1x"), 125, "--memory"),
        (("-v", "/no/such/dir:/data"), 125, "/no/such/dir"),
        (("-u", "nobody-here"), 125, "nobody-here"),
        (("--userns", "0:0:0"), 125, "--userns"),
        (("--cap-add", "NOPE"), 125, "NOPE"),
    ],
)
def test_mistakes_are_one_line_with_dockers_code(
    shell: tuple[str, ...], words: tuple[str, ...], code: int, message: str
) -> None:
    """One line that names what was refused; nothing is left behind, as the fixture sees."""
    options, command = ((), words) if words[0][0] != "-" else (words, ("true",))
    ran = pycontain("run", *options, *shell, *command)
    assert ran.returncode == code
    assert ran.stderr.startswith("pycontain: ")
    assert ran.stderr.count("\n") == 1
    assert message in ran.stderr


def test_unknown_images_are_125() -> None:
    """With a hint about what an image may be."""
    ran = pycontain("run", "no/such:image")
    assert ran.returncode == 125
    assert "no/such:image" in ran.stderr


def test_a_timeout_kills_and_says_so(shell: tuple[str, ...]) -> None:
    """137, and one line that tells it from any other SIGKILL."""
    ran = pycontain("run", "--rm", "--timeout", "0.3", *shell, "sleep", "1000")
    assert ran.returncode == 137
    assert "--timeout ran out" in ran.stderr


def test_signals_reach_the_container(shell: tuple[str, ...]) -> None:
    """SIGTERM to the command is the container's, whose exit code comes back."""
    script = "trap 'echo caught; exit 5' TERM; echo ready; while :; do sleep 0.05; done"
    with subprocess.Popen(
        [*PYCONTAIN, "run", "--rm", *shell, "sh", "-c", script], stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        read_until(process.stdout.fileno(), b"ready\n")
        process.send_signal(signal.SIGTERM)
        assert process.wait(PATIENCE_SEC) == 5
        assert process.stdout.read() == b"caught\n"


def test_killing_the_command_kills_the_container(shell: tuple[str, ...]) -> None:
    """Even kill -9: nothing of a foreground run outlives its command."""
    with subprocess.Popen(
        [*PYCONTAIN, "run", "--name", "fg", *shell, "sh", "-c", "echo ready; sleep 1000"],
        stdout=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None
        read_until(process.stdout.fileno(), b"ready\n")
        process.kill()
        process.wait()
    assert pycontain("wait", "fg").stdout == "137\n"
    assert pycontain("rm", "fg").returncode == 0


def test_stats_and_cidfile(shell: tuple[str, ...], tmp_path: Path) -> None:
    """--stats prints what was used; --cidfile has the id."""
    ran = pycontain(
        "run", "--stats", "--cidfile", str(tmp_path / "cid"), "--name", "s", *shell, "true"
    )
    assert "memory peak" in ran.stderr
    assert "exit code 0" in ran.stderr
    container_id = (tmp_path / "cid").read_text()
    assert pycontain("inspect", "-f", "{{.Id}}", "s").stdout.strip() == container_id
    assert pycontain("rm", container_id[:12]).returncode == 0


def test_dry_run_makes_nothing(shell: tuple[str, ...]) -> None:
    """The plan with the quota is printed."""
    ran = pycontain("run", "--dry-run", "-m", "64m", *shell, "true")
    assert ran.returncode == 0
    assert "67108864" in ran.stdout
    assert "execve" in ran.stdout or "exec" in ran.stdout


# ---- detached --------------------------------------------------------------------------------


def test_the_life_of_a_detached_container(shell: tuple[str, ...]) -> None:
    """run -d, ps, logs, exec, top, pause, update, stop, wait, logs again, rm."""
    script = "trap 'echo bye; exit 4' TERM; echo hello; while :; do sleep 0.05; done"
    ran = pycontain("run", "-d", "--name", "web", "-l", "a=b", *shell, "sh", "-c", script)
    container_id = ran.stdout.strip()
    assert len(container_id) == 64
    assert pycontain("ps", "--format", "{{.Names}} {{.State}} {{.Labels}}").stdout == (
        "web running a=b\n"
    )
    followed = subprocess.Popen([*PYCONTAIN, "logs", "-f", "web"], stdout=subprocess.PIPE)
    with followed:
        assert followed.stdout is not None
        read_until(followed.stdout.fileno(), b"hello\n")
        ran = pycontain("exec", "-e", "A=1", "web", "sh", "-c", "echo $A; exit 9")
        assert (ran.returncode, ran.stdout) == (9, "1\n")
        assert "sh -c" in pycontain("top", "web").stdout
        assert pycontain("pause", "web").stdout == "web\n"
        assert "(Paused)" in pycontain("ps").stdout
        assert pycontain("unpause", "web").returncode == 0
        assert pycontain("update", "--pids-limit", "50", "web").returncode == 0
        stats = json.loads(pycontain("stats", "--no-stream", "--format", "json").stdout)
        assert stats["Name"] == "web"
        assert stats["CPUPerc"].endswith("%")
        assert pycontain("stop", "web").stdout == "web\n"
        assert followed.wait(PATIENCE_SEC) == 0
        assert followed.stdout.read() == b"bye\n"
    assert pycontain("wait", "web").stdout == "4\n"
    assert pycontain("logs", "web").stdout == "hello\nbye\n"
    assert pycontain("logs", "-n", "1", "web").stdout == "bye\n"
    assert "Exited (4)" in pycontain("ps", "-a").stdout
    assert pycontain("rename", "web", "web2").returncode == 0
    assert pycontain("rm", "web2").stdout == "web2\n"


def test_create_start_attached(shell: tuple[str, ...]) -> None:
    """`start -a` shows what it prints and ends with its exit code; a second start begins anew."""
    assert pycontain("create", "--name", "c", *shell, "sh", "-c", "echo hi; exit 3").returncode == 0
    assert "Created" in pycontain("ps", "-a").stdout
    for _ in range(2):
        ran = pycontain("start", "-a", "c")
        assert (ran.returncode, ran.stdout) == (3, "hi\n")
    assert pycontain("rm", "c").returncode == 0


def test_detached_rm_is_gone_once_it_has_ended(shell: tuple[str, ...]) -> None:
    """It is hidden at once, and its name is free for the next."""
    for _ in range(2):
        container_id = pycontain(
            "run", "-d", "--rm", "--name", "gone", *shell, "true"
        ).stdout.strip()
        assert len(container_id) == 64
        pycontain("wait", container_id)
        assert pycontain("ps", "-aq").stdout == ""
    assert container_id in pycontain("prune", "-f").stdout


def test_exec_has_its_own_timeout_and_errors(shell: tuple[str, ...]) -> None:
    """A timeout takes what it started with it and leaves the container alone."""
    pycontain("run", "-d", "--name", "c", *shell, "sleep", "1000")
    ran = pycontain("exec", "--timeout", "0.3", "c", "sh", "-c", "setsid sleep 500 & sleep 500")
    assert ran.returncode == 137
    assert "--timeout ran out" in ran.stderr
    assert "sleep 500" not in pycontain("top", "c").stdout
    assert pycontain("exec", "c", "no-such").returncode == 127
    assert pycontain("exec", "-i", "c", "cat", stdin="in").stdout == "in"
    assert pycontain("rm", "-f", "c").returncode == 0


def test_cp_both_ways(shell: tuple[str, ...], tmp_path: Path) -> None:
    """Into a container that never ran, and out again."""
    (tmp_path / "file").write_text("content")
    pycontain("create", "--name", "c", *shell, "cat", "/data/file")
    ran = pycontain("cp", str(tmp_path / "file"), "c:/data/")
    assert (ran.returncode, ran.stderr) == (0, "")
    assert pycontain("start", "-a", "c").stdout == "content"
    assert pycontain("cp", "c:/data/file", str(tmp_path / "back")).returncode == 0
    assert (tmp_path / "back").read_text() == "content"
    pycontain("rm", "c")


def test_a_reader_that_leaves_is_no_error(shell: tuple[str, ...]) -> None:
    """`pycontain logs | head` says nothing on stderr and ends with 141."""
    script = "i=0; while [ $i -lt 20000 ]; do echo a line of the log $i; i=$((i+1)); done"
    pycontain("run", "-d", "--name", "c", *shell, "sh", "-c", script)
    pycontain("wait", "c")
    with subprocess.Popen(
        [*PYCONTAIN, "logs", "c"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.read(10)
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait(PATIENCE_SEC) == 141
    pycontain("rm", "c")


# ---- terminals -------------------------------------------------------------------------------


def test_a_terminal_has_size_ctrl_c_and_exit_code(
    shell: tuple[str, ...], terminal: Callable[..., Terminal]
) -> None:
    """-it: the size follows ours, ctrl-C goes to the container's program, not to us."""
    user = terminal("run", "-it", "--rm", *shell, "sh")
    user.type(b"stty size\n")
    user.see(b"24 80\r\n")
    user.resize(30, 100)
    user.type(b"trap 'echo resized' WINCH; while [ \"$(stty size)\" != '30 100' ]; do :; done\n")
    user.type(b"stty size\n")
    user.see(b"30 100\r\n")
    user.type(b"echo up; cat\n")
    user.see(b"up\r\n")
    user.type(b"x\n")
    user.see(b"x\r\nx\r\n")
    user.type(b"\x03")
    user.see(b"^C")
    user.see(b"# ")  # the shell's prompt: before it, the dying cat could still read what is typed
    user.type(b"exit 5\n")
    assert user.wait() == 5


def test_detach_keys_leave_it_running(
    shell: tuple[str, ...], terminal: Callable[..., Terminal]
) -> None:
    """ctrl-p ctrl-q leaves with 0; `attach` finds the same shell again."""
    user = terminal("run", "-it", "--name", "t", *shell, "sh")
    user.type(b"A=42; echo s'e't\n")
    user.see(b"set\r\n")
    user.type(b"\x10\x11")
    assert user.wait() == 0
    assert pycontain("ps", "--format", "{{.Names}}").stdout == "t\n"
    again = terminal("attach", "--detach-keys", "ctrl-a,d", "t")
    again.type(b"echo is $A\n")
    again.see(b"is 42\r\n")
    again.type(b"exit 3\n")
    assert again.wait() == 3
    assert pycontain("rm", "t").returncode == 0


def test_a_paste_of_64_kib_arrives_whole(
    shell: tuple[str, ...], terminal: Callable[..., Terminal]
) -> None:
    """Nothing is dropped, however slowly the container reads."""
    data = bytes(ord("a") + i % 26 for i in range(65536))
    user = terminal("run", "-it", "--rm", *shell, "sh")
    user.type(b"stty -echo -icanon; echo go; head -c 65536 | md5sum\n")
    user.see(b"go\r\n")
    user.type(data)
    user.see(hashlib.md5(data).hexdigest().encode())
    user.type(b"exit\n")
    assert user.wait() == 0


def test_exec_has_a_terminal(shell: tuple[str, ...], terminal: Callable[..., Terminal]) -> None:
    """`exec -it`: a shell in a container that has no terminal itself."""
    pycontain("run", "-d", "--name", "c", *shell, "sleep", "1000")
    user = terminal("exec", "-it", "c", "sh")
    user.type(b"tty; stty size\n")
    user.see(b"/dev/pts/")
    user.see(b"24 80\r\n")
    user.type(b"exit 6\n")
    assert user.wait() == 6
    pycontain("rm", "-f", "c")


def test_a_quick_command_with_a_terminal_loses_nothing(shell: tuple[str, ...]) -> None:
    """We are attached before it executes; ten of ten."""
    for number in range(10):
        ran = pycontain("run", "-t", "--rm", *shell, "echo", str(number))
        assert (ran.returncode, ran.stdout) == (0, f"{number}\n")
