"""A container's life against a real kernel: states, execs, quotas, logs, crashes of programs."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import userland

from pycontain import DEVNULL, PIPE, Engine, Status
from pycontain.errors import (
    AlreadyExists,
    CommandNotFound,
    ContainerFailed,
    ContainerNotFound,
    InvalidInput,
    PycontainError,
    TimeoutExpired,
    WrongState,
)
from pycontain.runtime.container import Container

HELLO = "pycontain/hello"
FOREVER = ["--sleep", "1000"]
Make = Callable[..., Container]


@pytest.fixture
def make(engine: Engine, tmp_path: Path) -> Iterator[Make]:
    """Return containers that run a shell script, removed at the end of the test."""
    image = userland.make(tmp_path / "root")
    made: list[Container] = []

    def make(script: str, **words: Any) -> Container:
        volumes = [userland.USR, *words.pop("volumes", ())]
        container = engine.container(image, ["sh", "-c", script], volumes=volumes, **words)
        made.append(container)
        return container

    yield make
    for container in made:
        container.remove(force=True)


@pytest.fixture
def sleeper(engine: Engine) -> Iterator[Container]:
    """A running container in the foreground."""
    with engine.container(HELLO, FOREVER, memory="64M") as container:
        yield container.start()


# ---- states ------------------------------------------------------------------------------------


def test_states(engine: Engine) -> None:
    """created, running, paused, running, exited; and then it is gone."""
    container = engine.container(HELLO, FOREVER)
    assert container.create().status == Status.CREATED
    container.start()
    assert container.status == Status.RUNNING
    assert container.pid is not None and os.path.exists(f"/proc/{container.pid}")
    container.pause()
    assert container.status == Status.PAUSED
    container.resume()
    assert container.status == Status.RUNNING
    container.kill()
    assert container.wait().signal == signal.SIGKILL
    assert container.status == Status.EXITED
    assert container.exit == container.poll() == container.wait()
    container.remove()
    with pytest.raises(ContainerNotFound):
        engine.get(container.id)


def test_wait_in_time(sleeper: Container) -> None:
    """A wait with a timeout raises and leaves the container alone."""
    with pytest.raises(TimeoutExpired):
        sleeper.wait(0.05)
    assert sleeper.poll() is None
    assert sleeper.status == Status.RUNNING


def test_wrong_states_are_refused(sleeper: Container, engine: Engine) -> None:
    """What a state does not allow is WrongState, before and after."""
    with pytest.raises(WrongState):
        sleeper.start()
    with pytest.raises(WrongState):
        sleeper.remove()
    unborn = engine.container(HELLO)
    for act in (unborn.pause, unborn.resume, unborn.top, unborn.stats, unborn.pidfd, unborn.wait):
        with pytest.raises(WrongState):
            act()
    assert unborn.poll() is None
    sleeper.kill()
    sleeper.wait()
    with pytest.raises(WrongState):
        sleeper.send_signal(signal.SIGTERM)
    sleeper.kill()
    with pytest.raises(WrongState):
        sleeper.exec(["/hello"])


def test_stop_signal(make: Make) -> None:
    """`stop` sends the stop signal that was chosen."""
    container = make("trap 'exit 9' USR1; while :; do sleep 0.02; done", stop_signal="USR1")
    container.start()
    assert _eventually_stops(container).exit_code == 9


def _eventually_stops(container: Container) -> Any:
    """The shell may not have set its trap yet; a signal is ignored by pid 1 until then."""
    while True:
        with suppress(TimeoutExpired):
            container.terminate()
            return container.wait(0.1)


def test_stop_kills_who_does_not_listen(sleeper: Container) -> None:
    """Pid 1 without a handler ignores SIGTERM: it is killed when the time is up."""
    record = sleeper.stop(timeout_sec=0.05)
    assert record.signal == signal.SIGKILL
    assert sleeper.stop() == record


def test_stop_of_a_paused_one(sleeper: Container) -> None:
    """A paused container can be stopped."""
    sleeper.pause()
    assert sleeper.stop(timeout_sec=0.05).signal == signal.SIGKILL


def test_kill_of_a_paused_one(sleeper: Container) -> None:
    """A paused container dies of a kill at once."""
    sleeper.pause()
    sleeper.kill()
    assert sleeper.wait(20).signal == signal.SIGKILL


def test_start_again(make: Make) -> None:
    """An ended container starts anew with the files that it wrote, and a record of its own."""
    container = make("if [ -e /ran ]; then exit 2; fi; touch /ran; exit 1", detach=True)
    assert container.start().wait().exit_code == 1
    first = container.wait()
    assert container.start().wait().exit_code == 2
    assert container.wait().started_at > first.started_at


def test_a_failed_start_leaves_it_created(engine: Engine) -> None:
    """A start that was refused leaves the container as it was, and it can be removed."""
    with engine.container(HELLO, [], entrypoint="/nope") as container:
        with pytest.raises(CommandNotFound):
            container.start()
        assert container.status == Status.CREATED
        with pytest.raises(CommandNotFound):
            container.start()


def test_a_quiet_start_that_failed_is_removed(engine: Engine) -> None:
    """Leaving the block after a quiet start that failed removes everything."""
    with engine.container(HELLO, [], entrypoint="/nope") as container:
        container.start(quiet=True)
    assert engine.list() == []


def test_names(engine: Engine) -> None:
    """A name is unique while its container exists, and can be changed."""
    with engine.container(HELLO, name="alpha").create() as alpha:
        with pytest.raises(AlreadyExists, match="alpha"):
            engine.container(HELLO, name="alpha").create()
        alpha.rename("beta")
        assert alpha.name == "beta"
        assert engine.get("beta").id == engine.get(alpha.id[:9]).id == alpha.id
        with engine.container(HELLO, name="alpha").create() as other:
            with pytest.raises(AlreadyExists):
                other.rename("beta")
            assert {c.name for c in engine.list()} == {"alpha", "beta"}


# ---- looking in --------------------------------------------------------------------------------


def test_stats_and_top(make: Make) -> None:
    """Usage and processes of a running container."""
    container = make("sleep 1000 & sleep 1000").start()
    while len(container.top()) < 3:  # the shell starts them in its own time
        pass
    assert {p.command for p in container.top()} == {"sh", "sleep"}
    usage = container.stats()
    assert usage.pids_current == 3
    assert usage.memory_current_bytes
    container.kill()
    container.wait()
    assert container.stats() == container.wait().usage


def test_update(make: Make) -> None:
    """New quotas hold at once; a refused update changes nothing."""
    container = make("sleep 1000", memory="64M", pids=50).start()
    container.update(pids=7, memory="32M", cpus=0.5)
    script = "cat /sys/fs/cgroup/pids/pids.max /sys/fs/cgroup/pids.max 2>/dev/null"
    report = container.exec(["sh", "-c", script], capture_output=True)
    assert b"7" in report.stdout.split()
    with pytest.raises(InvalidInput, match="pids"):
        container.update(pids=0)
    with pytest.raises(PycontainError):
        container.update(colour="red")


def test_inspect(sleeper: Container) -> None:
    """inspect says what it is and how it is."""
    found = sleeper.inspect()
    assert found["Id"] == sleeper.id
    assert found["State"]["Running"] is True
    assert found["State"]["Pid"] == sleeper.pid
    assert found["HostConfig"]["Resources"]["memory_max_bytes"] == 64 << 20


# ---- exec --------------------------------------------------------------------------------------


def test_exec(make: Make) -> None:
    """An exec has the container's environment, plus what it is given; input goes in, output out."""
    container = make("sleep 1000", env={"A": "1"}).start()
    result = container.exec(
        ["sh", "-c", "echo $A $B; pwd; id -u; cat; exit 4"],
        env={"B": "2"}, cwd="/tmp", user="ann", input="in\n", capture_output=True, text=True,
    )  # fmt: skip
    assert result.stdout == "1 2\n/tmp\n1000\nin\n"
    assert (result.exit_code, result.known) == (4, True)
    with pytest.raises(ContainerFailed):
        container.exec(["false"], check=True, stdout=DEVNULL)


def test_exec_sees_the_container(make: Make) -> None:
    """It shares the container's processes, files and hostname, and its confinement."""
    container = make("sleep 1000", hostname="box").start()
    result = container.exec(
        ["sh", "-c", "cat /proc/1/comm; cat /proc/sys/kernel/hostname; "
                     "grep -E 'Seccomp:|NoNewPrivs|CapBnd' /proc/self/status /proc/1/status"],
        capture_output=True, text=True,
    )  # fmt: skip
    lines = result.stdout.splitlines()
    assert lines[:2] == ["sh", "box"] or lines[:2] == ["sleep", "box"]
    mine = [line.split(":", 1)[1] for line in lines[2:] if line.startswith("/proc/self")]
    first = [line.split(":", 1)[1] for line in lines[2:] if line.startswith("/proc/1")]
    assert mine == first and len(mine) == 3


def test_exec_timeout_kills_its_tree(make: Make) -> None:
    """The timeout of an exec kills all that it started, and nothing else."""
    container = make("sleep 1000").start()
    result = container.exec(["sh", "-c", "setsid sleep 999 & sleep 999"], timeout=0.3)
    assert result.timed_out and result.signal == signal.SIGKILL
    while any("999" in p.args for p in container.top()):
        pass  # killed, and gone in a moment
    assert container.status == Status.RUNNING


def test_exec_has_quotas_of_its_own(make: Make) -> None:
    """An exec that exceeds its own memory dies; the container lives on."""
    container = make("sleep 1000", memory="200M").start()
    script = "head -c 80M /dev/zero | tail -c 80M > /dev/null"
    result = container.exec(["sh", "-c", script], memory="20M", stderr=DEVNULL)
    assert result.oom_killed
    assert container.status == Status.RUNNING
    assert container.exec(["sh", "-c", script]).exit_code == 0


def test_exec_of_nothing(sleeper: Container) -> None:
    """A missing command is told, and the container lives on."""
    with pytest.raises(CommandNotFound, match="nope"):
        sleeper.exec(["/nope"])
    assert sleeper.exec(["/hello", "--exit", "3"]).exit_code == 3


def test_popen(make: Make) -> None:
    """An exec as a handle: wait, poll, kill."""
    container = make("sleep 1000").start()
    with container.popen(["sleep", "1000"], stdout=PIPE) as process:
        assert process.poll() is None
        process.kill()
        assert process.wait().signal == signal.SIGKILL
    with container.popen(["sleep", "998"]):
        pass  # closing kills
    container.exec(["true"])
    while any("998" in p.args for p in container.top()):
        pass


def test_exec_ends_with_its_container(make: Make) -> None:
    """When the container dies its execs die with it, and say so."""
    container = make("sleep 1000").start()
    with container.popen(["sleep", "1000"]) as process:
        container.kill()
        assert process.wait().signal == signal.SIGKILL


def test_many_execs_at_once(sleeper: Container) -> None:
    """Execs from many threads do not mix up their results."""
    codes: dict[int, int | None] = {}

    def work(number: int) -> None:
        codes[number] = sleeper.exec(["/hello", "--exit", str(number)]).exit_code

    threads = [threading.Thread(target=work, args=(n,)) for n in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert codes == {n: n for n in range(12)}


# ---- logs --------------------------------------------------------------------------------------


def test_logs(make: Make) -> None:
    """A detached container's output is logged line by line, with streams and order."""
    container = make("echo one; echo two >&2; sleep 0.05; printf three", detach=True).start()
    container.wait()
    lines = list(container.logs())
    assert sorted(line.text for line in lines) == ["one", "three", "two"]
    assert [line.stream for line in lines if line.text == "two"] == ["stderr"]
    assert [line.text for line in container.logs(tail=1)] == ["three"]
    assert list(container.logs(since=container.wait().ended_at + 60)) == []


def test_following_ends_with_the_container(make: Make) -> None:
    """`follow` yields what comes and ends when the container has ended."""
    container = make("for i in 1 2 3 4 5; do echo $i; sleep 0.02; done", detach=True).start()
    assert [line.text for line in container.logs(follow=True)] == ["1", "2", "3", "4", "5"]


def test_logs_rotate(make: Make) -> None:
    """With a size and a number of files the newest lines are kept, none twice."""
    container = make("seq 1 200000", detach=True, log_max_bytes="64K", log_max_files=3).start()
    container.wait()
    numbers = [int(text) for text in b"".join(_pieces(container)).split()]
    del numbers[0]  # the rest of a line that began in a file that is gone
    assert numbers[-1] == 200000
    assert numbers == list(range(numbers[0], 200001))
    assert numbers[0] > 1


def _pieces(container: Container) -> Iterator[bytes]:
    for line in container.logs():
        yield line.data if line.partial else line.data + b"\n"


def test_no_log_in_the_foreground(sleeper: Container) -> None:
    """What was passed through was not logged, and says so."""
    with pytest.raises(WrongState, match="not logged"):
        list(sleeper.logs())


# ---- files -------------------------------------------------------------------------------------


@pytest.mark.parametrize("running", [True, False])
def test_copy(engine: Engine, tmp_path: Path, running: bool) -> None:
    """Files go in and come out, whether it runs or not."""
    (tmp_path / "a").write_text("in and out")
    with engine.container(HELLO, FOREVER).create() as container:
        if running:
            container.start()
        container.copy_in(str(tmp_path / "a"), "/tmp/b")
        container.copy_out("/tmp/b", str(tmp_path / "c"))
    assert (tmp_path / "c").read_text() == "in and out"


# ---- several programs, and their crashes -------------------------------------------------------

PROGRAM = """
import sys, pycontain
engine = pycontain.Engine()
image, how = sys.argv[1:]
container = engine.container(image, ["--sleep", "1000"], detach=how == "detach", name=how)
container.start()
print(container.id, flush=True)
sys.stdin.read()
"""


def _program(how: str) -> tuple[subprocess.Popen[str], str]:
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, HELLO, how],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout is not None
    return process, process.stdout.readline().strip()


def _kill(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.communicate()


def test_another_programs_container(engine: Engine) -> None:
    """A container of another program can be seen, entered, waited for and removed."""
    process, container_id = _program("detach")
    try:
        container = engine.get("detach")
        assert container.id == container_id
        assert container.status == Status.RUNNING
        assert container.exec(["/hello", "--exit", "8"]).exit_code == 8
        threading.Timer(0.1, engine.get(container_id).kill).start()
        assert container.wait().signal == signal.SIGKILL
    finally:
        _kill(process)
        engine.get(container_id).remove(force=True)


def test_a_killed_program_takes_its_containers_along(engine: Engine) -> None:
    """SIGKILL of the program kills its foreground container; prune then finds the rest."""
    process, container_id = _program("foreground")
    _kill(process)
    record = engine.get(container_id).wait(20)
    assert record.signal == signal.SIGKILL
    assert engine.prune().containers == (container_id,)
    assert engine.list() == []


def test_a_detached_one_outlives_its_program(engine: Engine) -> None:
    """SIGKILL of the program leaves a detached container alone, and prune does too."""
    process, container_id = _program("detach")
    _kill(process)
    assert engine.prune().containers == ()
    container = engine.get(container_id)
    assert container.status == Status.RUNNING
    container.remove(force=True)


def _worker_pid(engine: Engine) -> int:
    return engine.host.launcher.info().pid


def test_a_killed_monitor_loses_no_exit_code(make: Make, engine: Engine) -> None:
    """SIGKILL of the monitor's worker: a detached container runs on and its code is recorded."""
    container = make("read x; echo $x; exit 42", detach=True, interactive=True).start()
    worker = _worker_pid(engine)
    os.kill(worker, signal.SIGKILL)
    with open(f"{container.state_dir}/in", "w") as stdin:
        stdin.write("hello\n")
    record = container.wait(20)
    assert (record.exit_code, record.known) == (42, True)
    assert [line.text for line in container.logs()] == ["hello"]
    assert _worker_pid(engine) != worker


def test_a_killed_monitor_loses_no_output(make: Make, engine: Engine) -> None:
    """A foreground container, too, runs on: its output and its exit code reach us."""
    container = make("echo before; read x; echo $x; exit 43", stdin=PIPE, stdout=PIPE).start()
    os.kill(_worker_pid(engine), signal.SIGKILL)
    out, _ = container.communicate(b"after\n")
    assert out == b"before\nafter\n"
    assert container.wait().exit_code == 43


def test_an_end_while_nobody_looks(make: Make, engine: Engine) -> None:
    """A container that ended while its program was away is found with its exit code."""
    container = make("exit 17", detach=True).start()
    container_id = container.id
    del container
    assert engine.get(container_id).wait(20).exit_code == 17
    engine.get(container_id).remove()
