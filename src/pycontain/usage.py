"""What a container used and how it ended: frozen values, measured by the kernel.

None means "this kernel or cgroup mode can't measure it"; it is never 0 instead.
Source: Linux Documentation/admin-guide/cgroup-v2.rst, accounting/psi.rst.
"""

from __future__ import annotations

from pycontain.values import frozen


@frozen
class Pressure:
    """Total stall time of one resource since the cgroup was made, in microseconds (PSI)."""

    some_usec: int
    full_usec: int | None


@frozen
class IoUsage:
    """Transfers on one block device."""

    major: int
    minor: int
    read_bytes: int
    write_bytes: int
    read_ops: int
    write_ops: int


@frozen
class Usage:
    """Resource usage of one container (or exec) at one moment, or in all once it has ended."""

    cpu_usec: int | None = None
    cpu_user_usec: int | None = None
    cpu_system_usec: int | None = None
    cpu_periods: int | None = None
    cpu_throttled_periods: int | None = None
    cpu_throttled_usec: int | None = None
    memory_current_bytes: int | None = None
    memory_peak_bytes: int | None = None
    memory_swap_current_bytes: int | None = None
    memory_anon_bytes: int | None = None
    memory_file_bytes: int | None = None
    memory_kernel_bytes: int | None = None
    memory_shmem_bytes: int | None = None
    memory_max_events: int | None = None  # times that the limit was hit (memory.events max)
    oom_events: int | None = None  # memory.events oom
    oom_kills: int | None = None  # memory.events oom_kill
    page_faults: int | None = None
    major_page_faults: int | None = None
    pids_current: int | None = None
    pids_peak: int | None = None
    pids_max_events: int | None = None  # forks refused by pids.max
    io: tuple[IoUsage, ...] | None = None
    cpu_pressure: Pressure | None = None
    memory_pressure: Pressure | None = None
    io_pressure: Pressure | None = None


@frozen
class ExitRecord:
    """How a container or exec ended. Exactly one of `exit_code` and `signal` is not None, except
    when both are unknown because it ended while nobody could watch (`known` is False then)."""

    exit_code: int | None
    signal: int | None
    known: bool
    oom_killed: bool
    pids_limit_hit: bool
    timed_out: bool
    started_at: float  # seconds since the epoch
    ended_at: float
    usage: Usage

    @property
    def returncode(self) -> int:
        """As `subprocess` has it: the exit code, or minus the signal; 255 if unknown."""
        if self.exit_code is not None:
            return self.exit_code
        return -self.signal if self.signal is not None else 255
