"""What running something to its end returns, as `subprocess.run` would."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pycontain.errors import ContainerFailed
from pycontain.usage import ExitRecord, Usage
from pycontain.values import frozen

__all__ = ["Result", "decoder", "finish"]


@frozen
class Result:
    """How a container or exec ended, with what it wrote if that was captured.

    Exactly one of `exit_code` and `signal` is not None, unless nobody could know (`known`).
    Times are seconds since the epoch; `usage` is the kernel's own account, after the last process.
    """

    id: str
    args: tuple[str, ...]
    exit_code: int | None
    signal: int | None
    known: bool
    oom_killed: bool
    pids_limit_hit: bool
    timed_out: bool
    started_at: float
    ended_at: float
    usage: Usage
    stdout: Any = None
    stderr: Any = None

    @property
    def returncode(self) -> int:
        """As `subprocess` has it: the exit code, or minus the signal; 255 if unknown."""
        if self.exit_code is not None:
            return self.exit_code
        return -self.signal if self.signal is not None else 255

    def check(self) -> Result:
        """Return self if the exit code is 0.

        Raises: ContainerFailed: else; it carries this record.
        """
        if self.exit_code == 0:
            return self
        how = f"exit code {self.exit_code}"
        if self.oom_killed:
            how = "killed for lack of memory"
        elif self.timed_out:
            how = "killed at its timeout"
        elif self.signal is not None:
            how = f"killed by signal {self.signal}"
        elif not self.known:
            how = "unknown: it ended while nobody watched"
        raise ContainerFailed(f"{' '.join(self.args)[:200]}: {how}", result=self)


def finish(run_id: str, args: Sequence[str], record: ExitRecord, out: Any, err: Any) -> Result:
    """Return the record and the output as one value."""
    return Result(
        run_id, tuple(args), record.exit_code, record.signal, record.known, record.oom_killed,
        record.pids_limit_hit, record.timed_out, record.started_at, record.ended_at, record.usage,
        out, err,
    )  # fmt: skip


class decoder:
    """Turns captured bytes into what the caller asked for, as `subprocess` does."""

    def __init__(self, text: bool, encoding: str | None, errors: str | None) -> None:
        self.text = bool(text or encoding or errors)
        self.encoding, self.errors = encoding or "utf-8", errors or "strict"

    def decode(self, data: bytes | None) -> Any:
        """bytes, or str with universal newlines."""
        if data is None or not self.text:
            return data
        return data.decode(self.encoding, self.errors).replace("\r\n", "\n").replace("\r", "\n")

    def encode(self, data: Any) -> bytes | None:
        """The input as bytes."""
        if isinstance(data, str):
            return data.encode(self.encoding, self.errors)
        return None if data is None else bytes(data)
