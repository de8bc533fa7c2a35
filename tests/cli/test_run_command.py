"""`run`, `create`, `start` and `exec`, against the fake engine."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
from conftest import Cli
from fake_engine import FakeContainer, FakeEngine, ended

from pycontain.errors import CommandNotFound, InvalidInput
from pycontain.runtime.options import RunOptions


def options_of(engine: FakeEngine) -> RunOptions:
    """The options of the last container that was made."""
    options = engine.made[-1][2]["options"]
    assert isinstance(options, RunOptions)
    return options


def test_the_foreground_passes_our_streams_and_the_exit_code(cli: Cli, engine: FakeEngine) -> None:
    """Without -i stdin is /dev/null, as in docker; with it, it is ours."""
    engine.end = ended(7)
    assert cli("run", "debian:12", "sh", "-c", "exit 7") == (7, "", "")
    image, command, options = engine.made[-1]
    assert (image, command) == ("debian:12", ["sh", "-c", "exit 7"])
    assert [options[name] for name in ("stdin", "stdout", "stderr", "detach")] == [-3, 1, 2, False]
    cli("run", "-i", "debian:12")
    assert engine.made[-1][2]["stdin"] == 0
    assert engine.made[-1][1] is None


def test_rm_removes_and_without_it_the_container_stays(cli: Cli, engine: FakeEngine) -> None:
    """--rm leaves nothing; otherwise `ps -a` has it."""
    cli("run", "--rm", "debian:12")
    assert engine.containers == []
    cli("run", "--name", "stays", "debian:12")
    assert [one.name for one in engine.containers] == ["stays"]


def test_every_option_reaches_the_engine(
    cli: Cli, engine: FakeEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Docker's words become the fields of RunOptions."""
    monkeypatch.setenv("FROM_CALLER", "yes")
    env_file = tmp_path / "env"
    env_file.write_text("# comment\nA=file\nB=file\n")
    words = (
        "run --name n -m 1g --memory-swap -1 --memory-reservation 5m --cpus 0.5 --cpu-weight 200 "
        "--cpuset-cpus 0 --pids-limit 64 --timeout 10 -e A=1 -e FROM_CALLER -e UNSET_HERE "
        f"--env-file {env_file} -v /a:/b:ro --tmpfs /run --mount type=tmpfs,target=/x -u 1:2 "
        "-w /srv --read-only --hostname h --net host --cap-add SYS_TIME --cap-drop ALL "
        "--security-opt seccomp=unconfined --security-opt no-new-privileges=false "
        "--device /dev/null --ulimit nofile=1:2 --sysctl net.x=1 --init --entrypoint /e -l a=b "
        "-l c --userns 0:1:2 --shm-size 1m --stop-signal INT --stop-timeout 3 --group-add 5 "
        "--oom-score-adj -5 --umask 027 --io-max 8:0_rbps=1 debian:12"
    )
    assert cli(*words.split()).err == ""
    assert options_of(engine) == RunOptions(
        name="n",
        memory="1g",
        memory_swap="-1",
        memory_reservation="5m",
        cpus="0.5",
        cpu_weight=200,
        cpuset_cpus="0",
        pids=64,
        timeout="10",
        env={"A": "1", "B": "file", "FROM_CALLER": "yes"},
        volumes=["/a:/b:ro"],
        tmpfs=["/run"],
        mounts=["type=tmpfs,target=/x"],
        user="1:2",
        cwd="/srv",
        read_only=True,
        hostname="h",
        network="host",
        cap_add=["SYS_TIME"],
        cap_drop=["ALL"],
        seccomp="unconfined",
        no_new_privileges=False,
        devices=["/dev/null"],
        ulimits=["nofile=1:2"],
        sysctls=["net.x=1"],
        init=True,
        entrypoint="/e",
        labels={"a": "b", "c": ""},
        userns="0:1:2",
        shm_size="1m",
        stop_signal="INT",
        stop_timeout="3",
        group_add=["5"],
        oom_score_adj=-5,
        umask=0o027,
        io_max=["8:0_rbps=1"],
    )


def test_what_is_not_given_is_left_to_the_defaults(cli: Cli, engine: FakeEngine) -> None:
    """A bare run has the defaults of RunOptions."""
    cli("run", "debian:12")
    assert options_of(engine) == RunOptions(env={}, labels={})


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--cpu-weight", "x"), "--cpu-weight: 'x' is not a whole number from 1 on"),
        (("--umask", "9"), "--umask: '9' is not an octal mode"),
        (("--label", "=b"), "--label: '=b' is not KEY=VALUE"),
        (("--env-file", "/nope"), "--env-file: /nope: No such file or directory"),
        (("--security-opt", "apparmor=x"), "--security-opt: 'apparmor=x' is not known"),
        (("-e", "=x"), "--env: '' is no name"),
        (("--cidfile", "/proc/nope"), "--cidfile: /proc/nope: No such file or directory"),
    ],
)
def test_bad_values_are_refused_before_anything_is_made(
    cli: Cli, engine: FakeEngine, words: tuple[str, ...], message: str
) -> None:
    """Exit code 125, one line that names the option, no container."""
    ran = cli("run", *words, "debian:12")
    assert ran.code == 125
    assert ran.err.startswith(f"pycontain: {message}")
    assert engine.calls == []


def test_an_unknown_image_is_125(cli: Cli) -> None:
    """The engine's message and hint, in one line."""
    assert cli("run", "nope") == (
        125,
        "",
        "pycontain: no image 'nope' (see 'pycontain image ls')\n",
    )
    assert cli("run").err.startswith("pycontain: IMAGE: missing")


def test_a_failed_start_leaves_nothing(cli: Cli, engine: FakeEngine, tmp_path: Path) -> None:
    """127, the container is removed and so is the cidfile."""
    engine.start_error = CommandNotFound("no such command in the image: 'nope'")
    for mode in ((), ("-d",)):
        ran = cli("run", *mode, "--cidfile", str(tmp_path / "cid"), "debian:12", "nope")
        assert (ran.code, ran.out) == (127, "")
        assert ran.err == "pycontain: no such command in the image: 'nope'\n"
        assert engine.containers == []
        assert list(tmp_path.iterdir()) == []


def test_detached_prints_the_id_and_writes_the_cidfile(
    cli: Cli, engine: FakeEngine, tmp_path: Path
) -> None:
    """The full id; output is logged; the container outlives the command."""
    engine.ends_at_once = False
    ran = cli("run", "-d", "--rm", "--cidfile", str(tmp_path / "cid"), "debian:12")
    [container] = engine.containers
    assert ran == (0, container.id + "\n", "")
    assert (tmp_path / "cid").read_text() == container.id
    assert engine.made[-1][2]["detach"] is True
    assert container.blueprint.auto_remove
    again = cli("run", "--cidfile", str(tmp_path / "cid"), "debian:12")
    assert again.err.endswith("cid: File exists\n")


def test_the_name_of_an_ended_rm_container_is_free(cli: Cli, engine: FakeEngine) -> None:
    """`run -d --rm --name n` twice works once the first has ended; without --rm it does not."""
    engine.add("n", auto_remove=True, status="exited", exit=ended())
    assert cli("run", "--name", "n", "debian:12").code == 0
    ran = cli("run", "--name", "n", "debian:12")
    assert (ran.code, ran.err) == (125, "pycontain: the name 'n' is taken\n")


def test_rootfs_takes_the_place_of_the_image(cli: Cli, engine: FakeEngine, tmp_path: Path) -> None:
    """With --rootfs all operands are the command."""
    cli("run", "--rootfs", str(tmp_path), "ls", "-l")
    assert engine.made[-1][:2] == (f"rootfs:{tmp_path}", ["ls", "-l"])


def test_dry_run_makes_nothing(cli: Cli, engine: FakeEngine) -> None:
    """The plan is printed."""
    assert cli("run", "--dry-run", "debian:12", "x") == (0, "plan of debian:12 ['x']\n", "")
    assert engine.made == []


def test_it_says_which_limit_ended_it(cli: Cli, engine: FakeEngine) -> None:
    """137 alone does not tell a timeout from a lack of memory."""
    engine.end = ended(None, 9, timed_out=True)
    ran = cli("run", "--name", "a", "debian:12")
    assert (ran.code, ran.err) == (137, "pycontain: a: killed: its --timeout ran out\n")
    engine.end = ended(None, 9, oom_killed=True)
    assert "out of memory" in cli("run", "debian:12").err
    engine.end = ended(None, None, known=False)
    assert cli("run", "--rm", "debian:12").code == 255


def test_stats_are_printed_to_stderr(cli: Cli, engine: FakeEngine) -> None:
    """The usage table; what the kernel can't measure is said to be so."""
    ran = cli("run", "--rm", "--stats", "debian:12")
    assert ran.out == ""
    lines = dict(line.split("  ", 1) for line in ran.err.splitlines())
    assert lines["ended"].strip() == "exit code 0"
    assert lines["elapsed"].strip() == "2.000 s"
    assert lines["cpu"].strip() == "1.500 s (user 1.000 s, system 0.500 s)"
    assert lines["memory peak"].strip() == "8MiB"
    assert lines["io"].strip() == "not measured by this kernel"


def test_signals_are_sent_on(cli: Cli, engine: FakeEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    """SIGTERM to the command reaches the container and does not end the command."""
    engine.ends_at_once = False
    engine.ends_on_signal = True
    monkeypatch.setattr(
        FakeContainer, "start", lambda self, attach: os.kill(os.getpid(), signal.SIGTERM)
    )
    assert cli("run", "--name", "c", "debian:12").code == 0
    assert ("c", "send_signal", signal.SIGTERM) in engine.calls
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_the_third_ctrl_c_kills(
    cli: Cli, engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pid 1 of a container ignores SIGINT unless it has a handler."""
    engine.ends_at_once = False
    engine.end = ended(None, 9)

    def interrupt(self: FakeContainer, number: int = 0, *, attach: bool = False) -> None:
        self.engine.calls.append((self.name, "interrupted"))
        os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(FakeContainer, "start", interrupt)
    monkeypatch.setattr(FakeContainer, "send_signal", interrupt)
    ran = cli("run", "--name", "c", "debian:12")
    assert ran.code == 137
    assert "asked to end three times" in ran.err
    assert engine.calls.count(("c", "interrupted")) == 3
    assert ("c", "kill") in engine.calls


def test_it_needs_a_terminal(cli: Cli) -> None:
    """Said before anything is made, as stdin is none here."""
    for words in (("run", "-it", "debian:12"), ("exec", "-it", "c", "sh")):
        ran = cli(*words)
        assert (ran.code, ran.out) == (125, "")
        assert ran.err.startswith("pycontain: --tty: stdin is not a terminal")


def test_create_then_start(cli: Cli, engine: FakeEngine) -> None:
    """`create` prints the id and starts nothing; `start` echoes what it started."""
    created = cli("create", "--name", "c", "debian:12")
    [container] = engine.containers
    assert created.out == container.id + "\n"
    assert ("c", "start") not in engine.calls
    assert cli("start", "c") == (0, "c\n", "")
    assert ("c", "start") in engine.calls


def test_start_of_a_foreground_container_needs_a(cli: Cli, engine: FakeEngine) -> None:
    """Its output has nowhere to go without us."""
    engine.add("c", log=False, status="exited")
    ran = cli("start", "c")
    assert ran.code == 125
    assert "start it with -a" in ran.err
    assert cli("start", "-a", "c").code == 0


def test_exec_passes_its_options(cli: Cli, engine: FakeEngine) -> None:
    """Options before the container, everything after it is the command."""
    container = engine.add("c", end=ended(3))
    words = "exec -e A=1 -u 5 -w /x --timeout 2 -m 8m --cpus 0.1 --pids-limit 9 c ls -l"
    assert cli(*words.split()) == (3, "", "")
    assert container.calls[-1] == (
        "popen",
        ["ls", "-l"],
        {
            "stdin": -3,
            "stdout": 1,
            "stderr": 2,
            "env": {"A": "1"},
            "cwd": "/x",
            "user": "5",
            "timeout": "2",
            "memory": "8m",
            "cpus": "0.1",
            "pids": 9,
        },
    )
    assert cli("exec", "-d", "c", "x").code == 0
    assert container.calls[-1] == ("popen", ["x"], {"detach": True})
    assert cli("exec", "c").err.startswith("pycontain: COMMAND: missing")


def test_an_option_that_the_engine_refuses_is_named(cli: Cli, engine: FakeEngine) -> None:
    """The field in the library's error is shown as the option."""
    engine.start_error = None
    container = engine.add("c")
    container.popen = None  # type: ignore[assignment,method-assign]

    def refuse(*args: object, **options: object) -> None:
        raise InvalidInput("'x' is not an amount", field="memory")

    container.popen = refuse  # type: ignore[assignment,method-assign]
    assert cli("exec", "-m", "x", "c", "y").err == "pycontain: --memory: 'x' is not an amount\n"
