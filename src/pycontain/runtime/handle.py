"""What can be done with a container that somebody has made: a handle.

The object holds nothing of the container. What it is about lives in the state directory, the
monitor and the kernel, so any number of handles in any number of programs may speak of one
container, and one that is dropped loses nothing.
"""

from __future__ import annotations

import os
import signal as signals
from collections.abc import Generator, Iterator, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from pycontain.errors import NotFound, TimeoutExpired, WrongState
from pycontain.isolation.cgroups import Cgroup
from pycontain.oci import Resources
from pycontain.runtime import blueprint as blueprints
from pycontain.runtime import launch
from pycontain.runtime.blueprint import Blueprint
from pycontain.runtime.host import Host
from pycontain.runtime.run import Run
from pycontain.runtime.state import Status
from pycontain.usage import ExitRecord, Usage
from pycontain.values import replace

if TYPE_CHECKING:
    from pycontain._native import NativeLive
    from pycontain.runtime.logs import LogLine, Pause
    from pycontain.runtime.process import Exec, Result
    from pycontain.runtime.processes import ProcessInfo

__all__ = ["KILL_WAIT_SEC", "Handle"]

KILL_WAIT_SEC = 30.0


class Handle:
    """One existing container. The mutable state is `_run` (the current or last one) and `_cgroup`
    (opened when needed). Several threads may use it, but only one of them may wait at a time."""

    def __init__(self, host: Host, blueprint: Blueprint) -> None:
        self.host = host
        self.blueprint = blueprint
        self._cgroup: Cgroup | None = None
        self._exists = True
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

    def live(self) -> NativeLive | None:
        """The monitor's record of it while it lives, else None."""
        return self._run.live()

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
            return self.wait(KILL_WAIT_SEC)

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

        changes = resources or changed_resources(**options)
        self._running_cgroup().update(changes)
        self._remember(changes)

    def _remember(self, changes: Resources) -> None:
        """The definition says what holds now; -1 was the word for no limit."""
        given = {name: getattr(changes, name) for name in Resources.__match_args__}
        given = {k: v for k, v in given.items() if v not in (None, ()) and k != "memory_oom_group"}
        lifted = {name: None if value == -1 else value for name, value in given.items()}
        spec = self.blueprint.spec
        spec = replace(spec, resources=replace(spec.resources, **lifted))  # type: ignore[arg-type]
        self.blueprint = replace(self.blueprint, spec=spec)
        self.host.states.update(self.id, lambda _: blueprints.encode(self.blueprint))

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
        """Return a socket that is its terminal; closing it detaches. The caller owns it.

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
            pidfd = self._run.pidfd()  # proves that the pid was this container's
            with suppress(OSError):
                fd = os.open(f"/proc/{live.pid}/root", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
                try:
                    signals.pidfd_send_signal(pidfd, 0)  # and still is: the number was not reused
                    return fd
                except OSError:
                    os.close(fd)
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

    def inspect(self) -> dict[str, Any]:
        """Everything known of it, in docker's words."""
        from pycontain.runtime.inspection import inspect

        return inspect(self)
