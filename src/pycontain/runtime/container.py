"""A container as an object: `subprocess.Popen` with walls around it."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from pycontain.errors import (
    ContainerNotFound,
    NotFound,
    PycontainError,
    TimeoutExpired,
    WrongState,
)
from pycontain.isolation.cgroups import Cgroup
from pycontain.runtime import blueprint as blueprints
from pycontain.runtime import launch
from pycontain.runtime.blueprint import Blueprint
from pycontain.runtime.handle import KILL_WAIT_SEC, Handle
from pycontain.runtime.host import Host
from pycontain.runtime.liveness import is_alive
from pycontain.runtime.pins import pin_pidfd, unpin_pidfd
from pycontain.runtime.run import Run
from pycontain.runtime.stdio import Streams, communicate

__all__ = ["Container"]

_KILL_AGAIN_SEC = 0.1


class Container(Handle):
    """One container. As a context manager it is killed, waited for and removed at the end.

    The handle that starts it holds the monitor's connection on which the end is announced; any
    other asks for one when it waits. To a handle's mutable state this adds `_streams`, our ends of
    its pipes, and `_exists`.
    """

    def __init__(
        self,
        host: Host,
        blueprint: Blueprint,
        *,
        stdin: Any = None,
        stdout: Any = None,
        stderr: Any = None,
        prepare: Callable[[], None] | None = None,
        exists: bool = False,
    ) -> None:
        super().__init__(host, blueprint)
        self._stdio = (stdin, stdout, stderr)
        self._streams: Streams | None = None
        self._exists = exists
        self._prepare = prepare

    # -- life -----------------------------------------------------------------------------------

    def create(self) -> Container:
        """It exists: its state and its writable layer are there, nothing runs.

        Raises: AlreadyExists: the name is taken.
        """
        if not self._exists:
            self.host.states.create(self.id, self.name, blueprints.dumps(self.blueprint))
            self._exists = True
            try:
                if self._prepare is not None:
                    self._prepare()
            except BaseException:
                self.remove()
                raise
        return self

    def start(self, *, quiet: bool = False, wait: bool = True, attach: bool = False) -> Container:
        """Its process has executed the command; a second start of an ended one begins anew.

        Args:
            quiet: do not wait for the exec; an error is then raised by the first wait.
            wait: False leaves the waiting to `finish_start`, once `fileno` is readable.
            attach: the next `attach` gives a terminal that misses nothing from the exec on.
        Raises: CommandNotFound, CommandNotExecutable, ChildSetupError, Unsupported, KernelError,
            each naming the option or spec field; the container is then as before the start.
        """
        self.create()
        self._forget_last_run()
        self._streams = None
        state_dir = self.state_dir
        stdio: launch.Stdio = None
        close: list[int] = []
        try:
            if self.blueprint.log:
                os.makedirs(self.host.data_dir(self.id), 0o700, exist_ok=True)
            if self.blueprint.log and not self.blueprint.spec.process.terminal:
                stdio = self._open_fifos(state_dir, close)
            elif not self.blueprint.spec.process.terminal:
                self._streams = Streams(*self._stdio)
                stdio = self._streams.child
            started, self._cgroup = launch.spawn(
                self.host,
                self.blueprint,
                state_dir=state_dir,
                log_path=self.log_path,
                stdio=stdio,
                quiet=quiet,
                park=attach,
            )
            self._run = Run(self.host.launcher, self.id, state_dir, started)
            if attach or (wait and not quiet):
                self._run.await_start()
                self._pin()
        except BaseException:
            self._close_run()
            raise
        finally:
            for fd in close:
                os.close(fd)
            if self._streams is not None:
                self._streams.started()
        return self

    def finish_start(self) -> None:
        """Its process has executed the command: the second half of `start(wait=False)`.

        Raises: as `start`.
        """
        try:
            self._run.await_start()
            self._pin()
        except BaseException:
            self._close_run()
            raise

    def _pin(self) -> None:
        """Its exit code is to be had even if keeper and worker are both killed before it ends."""
        if self.blueprint.survive and os.geteuid() == 0:
            with suppress(WrongState):  # it has ended already, and its exit code is on disk
                pin_pidfd(self.pidfd(), f"{self.state_dir}/pidfd")

    def _open_fifos(self, state_dir: str, close: list[int]) -> tuple[int, int, int]:
        """FIFOs that the container itself holds open both ways: no reader's death is its EPIPE."""
        names = ("in", "out", "err") if self.blueprint.interactive else ("out", "err")
        fds = {}
        for name in names:
            path = f"{state_dir}/{name}"
            with suppress(FileExistsError):
                os.mkfifo(path, 0o600)
            fds[name] = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
            close.append(fds[name])
        if "in" not in fds:
            fds["in"] = os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC)
            close.append(fds["in"])
        return fds["in"], fds["out"], fds["err"]

    def _forget_last_run(self) -> None:
        if self._is_alive() and self._run.poll() is None:
            raise WrongState(f"{self.name} is running", status="running")
        unpin_pidfd(f"{self.state_dir}/pidfd")
        for name in ("exit", "live"):
            with suppress(FileNotFoundError):
                os.unlink(f"{self.state_dir}/{name}")
        self._close_run()
        self._run = Run(self.host.launcher, self.id, self.state_dir)

    def _is_alive(self) -> bool:
        """Whether its process is there, if only as a zombie, or about to be.

        The file `live` goes a moment after its end or its failed start has been told.
        """
        live = self._run.live()
        return live is not None and (live.pid <= 0 or is_alive(live.pid, live.pid_start_ticks))

    def _close_run(self) -> None:
        self._run.close()  # how it ended stays known, as with Popen
        if self._cgroup is not None:
            self._cgroup.close()
            self._cgroup = None
        if self._streams is not None:
            self._streams.close()
            self._streams = None

    @property
    def streams(self) -> Streams | None:
        """Our ends of its pipes, if it was started with any."""
        return self._streams

    def communicate(
        self, data: bytes | None = None, timeout: float | None = None
    ) -> tuple[bytes | None, bytes | None]:
        """Feed `data` to its stdin pipe and read its output pipes until it has ended.

        Raises: TimeoutExpired: it runs on; what was read so far is lost, as with Popen.
        """
        if self._streams is None or not self._streams.parent:
            self.wait(timeout)
            return None, None
        out, err, ended = communicate(self._streams, self._run, data, timeout)
        if not ended:
            raise TimeoutExpired(f"{self.name} did not end within {timeout} s")
        return out, err

    # -- bookkeeping ----------------------------------------------------------------------------

    def rename(self, name: str) -> None:
        """It answers to `name` from now on.

        Raises: AlreadyExists: the name is taken.
        """
        from pycontain.values import replace

        self.host.states.rename(self.id, name)  # first: a name that is taken leaves all as it was
        self.blueprint = replace(self.blueprint, name=name)

    def remove(self, force: bool = False) -> None:
        """Nothing of it is left: no process, cgroup, layer, log or state. Idempotent.

        Raises: WrongState: it runs and `force` is not given.
        """
        if not self._exists:
            return
        try:
            ended = self.poll()
        except PycontainError:  # a quiet start failed and nobody waited for it: nothing runs
            ended = None
        if ended is None and self._is_alive():
            if not force:
                raise WrongState(
                    f"{self.name} is running", status="running", hint="stop it, or use force"
                )
            self._kill_and_wait()
        self._close_run()
        remove_traces(self.host, self.id, self.blueprint.cgroup, self.name)
        self._exists = False

    def _kill_and_wait(self) -> None:
        """It has ended. Killed again and again: the monitor may be about to make its process,
        which a kill before that moment does not reach."""
        deadline = time.monotonic() + KILL_WAIT_SEC
        while True:
            self.kill()
            try:
                self.wait(_KILL_AGAIN_SEC)
                return
            except TimeoutExpired:
                if time.monotonic() > deadline:
                    raise
            except PycontainError:  # a start that was refused after all, or an end unrecorded
                return

    def __enter__(self) -> Container:
        return self

    def __exit__(self, *exc: object) -> None:
        self.remove(force=True)
        self._close_run()

    def __del__(self) -> None:
        with suppress(Exception):
            self._run.close()
            if self._cgroup is not None:
                self._cgroup.close()


def remove_traces(host: Host, container_id: str, cgroup: str, name: str | None = None) -> None:
    """Remove the cgroup with what runs in it, the data, and at last the state."""
    if cgroup:
        with suppress(NotFound):
            group = Cgroup.open(host.layout(), cgroup)
            group.kill()
            group.remove()
    host.remove_data(container_id)
    unpin_pidfd(f"{host.states.path(container_id)}/pidfd")
    with suppress(ContainerNotFound):
        host.states.remove(container_id, name)
