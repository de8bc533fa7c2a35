"""Processes of a container beyond its first, and what running one to its end returns."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from pycontain.errors import InvalidInput, PycontainError, TimeoutExpired, WrongState
from pycontain.isolation import capabilities
from pycontain.oci import Process, Resources
from pycontain.runtime import launch
from pycontain.runtime.options import parse_env
from pycontain.runtime.quotas import changed_resources
from pycontain.runtime.result import Result, decoder, finish
from pycontain.runtime.run import Run
from pycontain.runtime.stdio import DEVNULL, PIPE, Stream, Streams, communicate
from pycontain.runtime.units import parse_duration
from pycontain.usage import ExitRecord, Usage
from pycontain.values import replace

if TYPE_CHECKING:
    from pycontain.isolation.cgroups import Cgroup
    from pycontain.runtime.handle import Handle

__all__ = ["Exec", "Result", "decoder", "finish", "run_exec"]

_QUOTAS = ("memory", "memory_swap", "cpus", "cpu_weight", "cpuset_cpus", "pids", "io_max")


class Exec:
    """A process started in a running container, in a cgroup of its own: `kill` takes all it made.

    The mutable state is `_run` and `_streams`; close it, or use it as a context manager.
    """

    def __init__(
        self, container: Handle, exec_id: str, args: tuple[str, ...], run: Run, cgroup: Cgroup,
        streams: Streams | None,
    ) -> None:  # fmt: skip
        self.container = container
        self.id = exec_id
        self.args = args
        self._run = run
        self._cgroup = cgroup
        self._streams = streams

    @classmethod
    def start(
        cls,
        container: Handle,
        args: Sequence[str],
        *,
        stdin: Stream = None,
        stdout: Stream = None,
        stderr: Stream = None,
        env: Mapping[str, str] | Sequence[str] = (),
        cwd: str | None = None,
        user: str | None = None,
        tty: bool = False,
        rows: int = 0,
        columns: int = 0,
        timeout: float | str | None = None,
        detach: bool = False,
        wait: bool = True,
        attach: bool = False,
        **quotas: Any,
    ) -> Exec:
        """Return the started process.

        Args:
            wait: False leaves the waiting for the exec to `finish_start`.
            attach: the first `attach` gives a terminal that misses nothing from the exec on.
            timeout: seconds after which the monitor kills it and all its descendants.
            detach: it outlives this handle and this program; its output goes nowhere.
            quotas: memory, cpus, pids, ... of this process alone, inside the container's.
        Raises: WrongState: the container does not run.  CommandNotFound and the like: as `run`.
        """
        process = _process(container, args, env, cwd, user, tty, rows, columns)
        exec_id = "x" + os.urandom(6).hex()
        state_dir = f"{container.state_dir}/exec/{exec_id}"
        if detach:
            os.makedirs(state_dir, 0o700)
            stdin = stdout = stderr = DEVNULL
        pidfd, cgroup = _own_cgroup(container, exec_id, quotas)
        streams = None
        try:
            streams = None if tty else Streams(stdin, stdout, stderr)
            started = launch.spawn_exec(
                container.host, container.blueprint, process, exec_id=exec_id, pidfd=pidfd,
                cgroup=cgroup, stdio=streams.child if streams else None, survive=detach,
                timeout_usec=0 if timeout is None else parse_duration(timeout, field="timeout"),
                state_dir=state_dir, park=attach,
            )  # fmt: skip
        except BaseException:
            if streams is not None:
                streams.close()
            cgroup.remove()
            raise
        if streams is not None:
            streams.started()
        run = Run(container.host.launcher, f"{container.id}/{exec_id}", state_dir, started)
        process_ = cls(container, exec_id, process.args, run, cgroup, streams)
        if wait:
            process_.finish_start()
        return process_

    def finish_start(self) -> None:
        """The process has executed the command: the second half of `start(wait=False)`.

        Raises: as `start`.
        """
        try:
            self._run.await_start()
        except BaseException:
            self.close()
            self._cgroup.remove()
            raise

    def fileno(self) -> int:
        """A descriptor that is readable once it has ended."""
        return self._run.fileno()

    @property
    def connected(self) -> bool:
        """Whether `fileno` is at hand: no monitor has to be asked for it."""
        return self._run.connected

    def wait(self, timeout: float | None = None) -> ExitRecord:
        """Return how it ended, once it has.

        Raises: TimeoutExpired: it runs on.
        """
        return self._run.wait(timeout)

    def poll(self) -> ExitRecord | None:
        """Return how it ended, or None."""
        return self._run.poll()

    def communicate(
        self, data: bytes | None = None, timeout: float | None = None
    ) -> tuple[bytes | None, bytes | None]:
        """Feed and read its pipes until it has ended.

        Raises: TimeoutExpired: it runs on.
        """
        if self._streams is None or not self._streams.parent:
            self.wait(timeout)
            return None, None
        out, err, ended = communicate(self._streams, self._run, data, timeout)
        if not ended:
            raise TimeoutExpired(f"the exec did not end within {timeout} s")
        return out, err

    def send_signal(self, signal: int) -> None:
        """The process has been sent `signal`."""
        self._run.send_signal(signal)

    def kill(self) -> None:
        """The process and everything that it started have been sent SIGKILL."""
        with suppress(WrongState):
            self._cgroup.kill()

    def stats(self) -> Usage:
        """What it uses now."""
        return self._cgroup.stat()

    def attach(self) -> Any:
        """Return a socket that is its terminal (tty=True); the caller owns it."""
        return self._run.attach()

    def resize(self, rows: int, columns: int) -> None:
        """Its terminal has this size."""
        self.container.host.launcher.resize(self._run.id, rows, columns)

    @property
    def streams(self) -> Streams | None:
        """Our ends of its pipes, if it was started with any."""
        return self._streams

    def close(self) -> None:
        """Let go. Unless detached it is killed if it still runs."""
        self._run.close()
        self._cgroup.close()
        if self._streams is not None:
            self._streams.close()
            self._streams = None

    def __enter__(self) -> Exec:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def __del__(self) -> None:
        with suppress(Exception):
            self.close()


def _own_cgroup(container: Handle, exec_id: str, quotas: Mapping[str, Any]) -> tuple[int, Cgroup]:
    """The pidfd of the running container, its handle's to close, and a new cgroup inside its."""
    unknown = quotas.keys() - set(_QUOTAS)
    if unknown:
        raise InvalidInput("unknown option", field=min(unknown))
    given = {name: value for name, value in quotas.items() if value is not None}
    resources = changed_resources(**given) if given else Resources()
    _require_running(container)
    pidfd = container.pidfd()
    try:
        return pidfd, container.open_cgroup().sub(exec_id, resources)
    except PycontainError:
        _require_running(container)  # it ended meanwhile: that is the better answer
        raise


def _require_running(container: Handle) -> None:
    if container.recorded() is not None:
        raise WrongState(f"{container.name} is not running", status="exited")


def _process(
    container: Handle,
    args: Sequence[str],
    env: Mapping[str, str] | Sequence[str],
    cwd: str | None,
    user: str | None,
    tty: bool,
    rows: int,
    columns: int,
) -> Process:
    """The container's own process with what differs; never with more rights than it has."""
    base = container.blueprint.spec.process
    if isinstance(args, str):
        raise InvalidInput("one string", field="args", hint='give a list, or ["sh", "-c", text]')
    merged = dict(pair.split("=", 1) for pair in base.env)
    if tty:
        merged.setdefault("TERM", "xterm")
    if env:
        merged.update(parse_env(env))
    process = replace(
        base,
        args=tuple(args),
        env=tuple(f"{name}={value}" for name, value in merged.items()),
        cwd=cwd or base.cwd,
        terminal=tty,
        console_rows=rows,
        console_columns=columns,
        oom_score_adj=None,
    )
    if user is None:
        return process
    from pycontain.runtime import users

    root_fd = container.open_root()
    try:
        found, _home = users.lookup(root_fd, user)
    finally:
        os.close(root_fd)
    sets = capabilities.process_sets(base.capabilities.bounding, uid=found.uid)
    return replace(process, user=replace(found, umask=base.user.umask), capabilities=sets)


def run_exec(
    container: Handle,
    args: Sequence[str],
    *,
    input: Any = None,
    capture_output: bool = False,
    text: bool = False,
    encoding: str | None = None,
    errors: str | None = None,
    check: bool = False,
    stdin: Stream = None,
    stdout: Stream = None,
    stderr: Stream = None,
    **options: Any,
) -> Result:
    """Run one process in the container to its end; the words are those of `subprocess.run`."""
    codec = decoder(text, encoding, errors)
    if input is not None:
        stdin = PIPE
    if capture_output:
        stdout = stderr = PIPE
    with Exec.start(
        container, args, stdin=stdin, stdout=stdout, stderr=stderr, **options
    ) as process:
        out, err = process.communicate(codec.encode(input))
        record = process.wait()
        result = finish(
            f"{container.id}/{process.id}", process.args, record,
            codec.decode(out), codec.decode(err),
        )  # fmt: skip
    return result.check() if check else result
