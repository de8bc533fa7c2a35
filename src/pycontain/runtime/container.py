"""A container as an object: `subprocess.Popen` with walls around it.

The object is a handle. What it is about lives in the state directory, the monitor and the kernel,
so any number of handles in any number of programs may speak of one container, and one that is
dropped loses nothing. The handle that started it holds the monitor's connection on which the end
is announced; any other asks for one when it waits.
"""

from __future__ import annotations

import os
import signal as signals
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from pycontain.errors import (
    ContainerNotFound,
    NotFound,
    PycontainError,
    TimeoutExpired,
    WrongState,
)
from pycontain.isolation.cgroups import Cgroup
from pycontain.oci import Resources
from pycontain.runtime import blueprint as blueprints
from pycontain.runtime import launch
from pycontain.runtime.blueprint import Blueprint
from pycontain.runtime.host import Host
from pycontain.runtime.liveness import is_alive
from pycontain.runtime.run import Run
from pycontain.runtime.state import Status
from pycontain.runtime.stdio import Streams, communicate
from pycontain.usage import ExitRecord, Usage

if TYPE_CHECKING:
    from pycontain._native import NativeLive
    from pycontain.runtime.logs import LogLine, Pause
    from pycontain.runtime.process import Exec, Result
    from pycontain.runtime.processes import ProcessInfo

__all__ = ["Container"]

_KILL_WAIT_SEC = 30.0


class Container:
    """One container. As a context manager it is killed, waited for and removed at the end.

    The mutable state is `_run` (the current or last one), `_cgroup` (opened when needed) and
    `_streams` (our ends of its pipes). A handle may be used by several threads, but only one of
    them may wait at a time.
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
        self.host = host
        self.blueprint = blueprint
        self._stdio = (stdin, stdout, stderr)
        self._streams: Streams | None = None
        self._cgroup: Cgroup | None = None
        self._exists = exists
        self._prepare = prepare
        self._run = Run(host.launcher, blueprint.id, self.state_dir)

    def __repr__(self) -> str:
        return f"<Container {self.name} {self.short_id}>"

    # -- who it is ------------------------------------------------------------------------------

    @property
    def id(self) -> str:
        """64 hexadecimal digits."""
        return self.blueprint.id

    @property
    def short_id(self) -> str:
        """The first 12 digits."""
        return self.blueprint.id[:12]

    @property
    def name(self) -> str:
        """Its unique name."""
        return self.blueprint.name

    @property
    def image(self) -> str:
        """The image as it was named."""
        return self.blueprint.image

    @property
    def args(self) -> tuple[str, ...]:
        """What it executes."""
        return self.blueprint.spec.process.args

    @property
    def labels(self) -> dict[str, str]:
        """Labels, of the image and given."""
        return dict(self.blueprint.labels)

    @property
    def created_at(self) -> float:
        """Seconds since the epoch."""
        return self.blueprint.created_at

    @property
    def state_dir(self) -> str:
        """Where the monitor keeps what it knows of it."""
        return self.host.states.path(self.id)

    @property
    def log_path(self) -> str:
        """The newest log file, in the container runtime interface's line format."""
        return f"{self.host.data_dir(self.id)}/log"

    # -- how it is ------------------------------------------------------------------------------

    @property
    def status(self) -> Status:
        """created, running, paused, exited or unknown, as the files and the kernel say now."""
        return self.host.states.status(self.id, frozen=self._is_frozen)

    def _is_frozen(self) -> bool:
        with suppress(NotFound, OSError):
            return bool(self.open_cgroup().frozen)
        return False

    @property
    def pid(self) -> int | None:
        """Its first process's pid on the host while it runs."""
        live = self._run.live()
        return live.pid if live is not None and live.pid > 0 else None

    @property
    def exit(self) -> ExitRecord | None:
        """How it ended, or None while it has not."""
        return self.poll()

    # -- life -----------------------------------------------------------------------------------

    def live(self) -> NativeLive | None:
        """The monitor's record of it while it lives, else None."""
        return self._run.live()

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

    def start(
        self, *, quiet: bool = False, wait: bool = True, attach: bool = False
    ) -> Container:
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
        except BaseException:
            self._close_run()
            raise

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
        for name in ("exit", "live"):
            with suppress(FileNotFoundError):
                os.unlink(f"{self.state_dir}/{name}")
        self._close_run()

    def _is_alive(self) -> bool:
        """Whether its process is there, if only as a zombie, or about to be.

        The file `live` goes a moment after its end or its failed start has been told.
        """
        live = self._run.live()
        return live is not None and (live.pid <= 0 or is_alive(live.pid, live.pid_start_ticks))

    def _close_run(self) -> None:
        self._run.close()
        self._run = Run(self.host.launcher, self.id, self._run.state_dir)
        if self._cgroup is not None:
            self._cgroup.close()
            self._cgroup = None
        if self._streams is not None:
            self._streams.close()
            self._streams = None

    # -- the end --------------------------------------------------------------------------------

    def fileno(self) -> int:
        """A descriptor that is readable once the container has ended; for selectors."""
        return self._run.fileno()

    @property
    def connected(self) -> bool:
        """Whether `fileno` is at hand: no monitor has to be asked for it."""
        return self._run.connected

    def wait(self, timeout: float | None = None) -> ExitRecord:
        """Return how it ended, once it has.

        Raises: TimeoutExpired: it runs on.  WrongState: it was never started.
        """
        return self._run.wait(timeout)

    def poll(self) -> ExitRecord | None:
        """Return how it ended, or None if it has not; never waits."""
        return self._run.poll()

    def recorded(self) -> ExitRecord | None:
        """Return how it ended if that is on disk, or None; any thread may ask at any time."""
        return self._run.recorded()

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

    # -- signals --------------------------------------------------------------------------------

    def send_signal(self, signal: int) -> None:
        """Its first process has been sent `signal`.

        Raises: WrongState: it does not run.
        """
        self._run.send_signal(signal)

    def terminate(self) -> None:
        """It has been sent its stop signal (SIGTERM unless the image or the caller chose)."""
        self.send_signal(self.blueprint.stop_signal)

    def kill(self) -> None:
        """Every process in it has been sent SIGKILL. Nothing happens if it does not run."""
        with suppress(NotFound, WrongState):
            self.open_cgroup().kill()
        with suppress(WrongState):
            self.send_signal(signals.SIGKILL)

    def stop(self, timeout_sec: float | None = None) -> ExitRecord:
        """It has ended: asked by its stop signal, killed if that took too long.

        Raises: WrongState: it was never started.
        """
        if timeout_sec is None:
            timeout_sec = self.blueprint.stop_timeout_usec / 1e6
        ended = self.poll()
        if ended is not None:
            return ended
        self.ask_to_stop()
        try:
            return self.wait(timeout_sec)
        except TimeoutExpired:
            self.kill()
            return self.wait(_KILL_WAIT_SEC)

    def ask_to_stop(self) -> None:
        """It has its stop signal and is not frozen; nothing happens if it does not run."""
        with suppress(WrongState):
            self.terminate()
        with suppress(WrongState, OSError, NotFound):
            if self._is_frozen():  # a frozen process can't act on a signal
                self.resume()

    # -- quotas, accounting, freezing -----------------------------------------------------------

    def pidfd(self) -> int:
        """A pidfd of its first process, owned by this handle.

        Raises: WrongState: it does not run.
        """
        return self._run.pidfd()

    def open_cgroup(self) -> Cgroup:
        """Its cgroup, owned by this handle.

        Raises: NotFound: it does not run.
        """
        if self._cgroup is None:
            self._cgroup = Cgroup.open(self.host.layout(), self.blueprint.cgroup)
        return self._cgroup

    def stats(self) -> Usage:
        """What it uses now; of an ended one, what it used in all.

        Raises: WrongState: it was never started.
        """
        ended = self.recorded()  # leaves the connection to who waits
        if ended is not None:
            return ended.usage
        try:
            return self.open_cgroup().stat()
        except NotFound:
            raise WrongState(f"{self.name} is not running", status="created") from None

    def pause(self) -> None:
        """None of its processes runs until `resume`."""
        self._running_cgroup().freeze()

    def resume(self) -> None:
        """Its processes run again."""
        self._running_cgroup().thaw()

    def update(self, resources: Resources | None = None, **options: Any) -> None:
        """The given quotas (the words of `run`: memory, cpus, pids, ...) hold from now on.

        Raises: InvalidInput, Unsupported, KernelError: the old ones still hold, all of them.
        """
        from pycontain.runtime.quotas import changed_resources

        self._running_cgroup().update(resources or changed_resources(**options))

    def _running_cgroup(self) -> Cgroup:
        try:
            return self.open_cgroup()
        except NotFound:
            status = str(self.status) if self._exists else None
            raise WrongState(f"{self.name} is not running", status=status) from None

    def top(self) -> list[ProcessInfo]:
        """Its processes, by pid of the host."""
        from pycontain.runtime.processes import describe

        return describe(self._running_cgroup().pids())

    # -- output, terminal, files ----------------------------------------------------------------

    def logs(
        self,
        *,
        follow: bool = False,
        since: float | None = None,
        until: float | None = None,
        tail: int | None = None,
    ) -> Iterator[LogLine]:
        """Yield its log lines, oldest first, across rotations.

        Raises: WrongState: its output was not logged.
        """
        from pycontain.runtime import logs

        return logs.read(
            self._require_log(), since=since, until=until, tail=tail, follow=follow,
            state_dir=self.state_dir,
        )  # fmt: skip

    def log_steps(self, **options: Any) -> Generator[LogLine | Pause, None, None]:
        """As `logs`, for who waits in other ways: yields a `logs.Pause` where that would wait."""
        from pycontain.runtime import logs

        return logs.steps(self._require_log(), state_dir=self.state_dir, **options)

    def _require_log(self) -> str:
        if not self.blueprint.log:
            raise WrongState(
                f"the output of {self.name} was not logged: it ran in the foreground",
                hint="start it detached, or with log=True",
            )
        return self.log_path

    def attach(self) -> Any:
        """Return a socket that is the container's terminal; closing it detaches. The caller owns it.

        Raises: WrongState: it has no terminal, or does not run.
        """
        if not self.blueprint.spec.process.terminal:
            raise WrongState(f"{self.name} has no terminal", hint="run it with -t")
        return self._run.attach()

    def resize(self, rows: int, columns: int) -> None:
        """Its terminal has this size, and its programs know (SIGWINCH)."""
        self.host.launcher.resize(self.id, rows, columns)

    def open_root(self) -> int:
        """Return an O_PATH fd of its root: the running one's own, else its layers mounted for us.

        The caller closes it; the mount goes with the fd.
        """
        live = self._run.live()
        if live is not None and live.pid > 0 and self.poll() is None:
            self._run.pidfd()  # proves that the pid is still this container's
            return os.open(f"/proc/{live.pid}/root", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        return launch.open_rootfs(self.blueprint)

    def copy_in(self, source: str, destination: str, *, archive: bool = False) -> None:
        """A host file or directory is in the container, as `docker cp` places it."""
        from pycontain.runtime import cp

        root_fd = self.open_root()
        try:
            cp.copy_in(root_fd, source, destination, archive=archive)
        finally:
            os.close(root_fd)

    def copy_out(self, source: str, destination: str, *, archive: bool = False) -> None:
        """A file or directory of the container is on the host."""
        from pycontain.runtime import cp

        root_fd = self.open_root()
        try:
            cp.copy_out(root_fd, source, destination, archive=archive)
        finally:
            os.close(root_fd)

    # -- more processes -------------------------------------------------------------------------

    def popen(self, args: Sequence[str], **options: Any) -> Exec:
        """Return a started process in the container; see `process.Exec.start` for the options."""
        from pycontain.runtime.process import Exec

        return Exec.start(self, args, **options)

    def exec(self, args: Sequence[str], **options: Any) -> Result:
        """Run one more process in the container to its end, as `subprocess.run` would.

        Options: input, capture_output, text, encoding, errors, timeout, check, stdin, stdout,
        stderr, env, cwd, user, memory, cpus, pids. A timeout kills everything it started.
        """
        from pycontain.runtime.process import run_exec

        return run_exec(self, args, **options)

    # -- bookkeeping ----------------------------------------------------------------------------

    def rename(self, name: str) -> None:
        """It answers to `name` from now on.

        Raises: AlreadyExists: the name is taken.
        """
        from dataclasses import replace

        self.blueprint = replace(self.blueprint, name=name)
        self.host.states.rename(self.id, name)

    def inspect(self) -> dict[str, Any]:
        """Everything known of it, in docker's words."""
        from pycontain.runtime.inspection import inspect

        return inspect(self)

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
            self.kill()
            try:
                self.wait(_KILL_WAIT_SEC)
            except TimeoutExpired:
                raise
            except PycontainError:  # a start that was refused after all, or an end unrecorded
                pass
        self._close_run()
        remove_traces(self.host, self.id, self.blueprint.cgroup, self.name)
        self._exists = False

    def __enter__(self) -> Container:
        return self

    def __exit__(self, *exc: object) -> None:
        self.remove(force=True)
        self._close_run()

    def __del__(self) -> None:
        with suppress(Exception):  # no new Run as in _close_run: that would make the state root
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
    with suppress(ContainerNotFound):
        host.states.remove(container_id, name)
