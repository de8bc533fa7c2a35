"""`inspect`: everything known of a container, under docker's names where docker has one."""

from __future__ import annotations

import dataclasses
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from pycontain.isolation.capabilities import names as capability_names
from pycontain.runtime.state import Status

if TYPE_CHECKING:
    from pycontain.runtime.handle import Handle
    from pycontain.usage import ExitRecord

__all__ = ["inspect", "timestamp"]


def timestamp(seconds: float) -> str:
    """Seconds since the epoch as RFC 3339 text in UTC; "" for 0."""
    if not seconds:
        return ""
    moment = datetime.fromtimestamp(seconds, UTC)
    return moment.strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def inspect(container: Handle) -> dict[str, Any]:
    """Return the description as JSON values."""
    blueprint = container.blueprint
    spec, process = blueprint.spec, blueprint.spec.process
    status = container.status
    ended = container.poll() if status == Status.EXITED else None
    usage = None
    if ended is not None:
        usage = ended.usage
    elif status in (Status.RUNNING, Status.PAUSED):
        usage = container.stats()
    return {
        "Id": blueprint.id,
        "Name": blueprint.name,
        "Created": timestamp(blueprint.created_at),
        "Path": process.args[0] if process.args else "",
        "Args": list(process.args[1:]),
        "Image": blueprint.image_id,
        "State": _state(container, status, ended),
        "Config": {
            "Image": blueprint.image,
            "Hostname": spec.hostname,
            "Domainname": spec.domainname,
            "User": f"{process.user.uid}:{process.user.gid}",
            "Env": list(process.env),
            "Cmd": list(process.args),
            "WorkingDir": process.cwd,
            "Labels": dict(blueprint.labels),
            "Tty": process.terminal,
            "OpenStdin": blueprint.interactive,
            "StopSignal": blueprint.stop_signal,
            "StopTimeout": blueprint.stop_timeout_usec / 1e6,
        },
        "HostConfig": _host_config(container),
        "Mounts": [
            {
                "Type": mount.type,
                "Source": mount.source or "",
                "Destination": mount.destination,
                "Options": list(mount.options),
                "RW": "ro" not in mount.options,
            }
            for mount in spec.mounts
        ],
        "LogPath": container.log_path if blueprint.log else "",
        "Usage": dataclasses.asdict(usage) if usage is not None else None,
    }


def _state(container: Handle, status: Status, ended: ExitRecord | None) -> dict[str, Any]:
    live = container.live()
    started = ended.started_at if ended else (live.started_usec / 1e6 if live else 0.0)
    return {
        "Status": str(status),
        "Running": status in (Status.RUNNING, Status.PAUSED),
        "Paused": status == Status.PAUSED,
        "Pid": live.pid if live and not ended else 0,
        "ExitCode": ended.exit_code if ended else None,
        "Signal": ended.signal if ended else None,
        "ExitKnown": ended.known if ended else None,
        "OOMKilled": ended.oom_killed if ended else False,
        "PidsLimitHit": ended.pids_limit_hit if ended else False,
        "TimedOut": ended.timed_out if ended else False,
        "StartedAt": timestamp(started),
        "FinishedAt": timestamp(ended.ended_at) if ended else "",
    }


def _host_config(container: Handle) -> dict[str, Any]:
    blueprint = container.blueprint
    spec, resources = blueprint.spec, blueprint.spec.resources
    return {
        "AutoRemove": blueprint.auto_remove,
        "CgroupPath": blueprint.cgroup,
        "ReadonlyRootfs": spec.root_readonly,
        "Init": spec.init,
        "NoNewPrivileges": spec.process.no_new_privileges,
        "Seccomp": blueprint.seccomp if len(blueprint.seccomp) < 20 else "custom profile",
        "Capabilities": list(capability_names(spec.process.capabilities.bounding)),
        "Namespaces": {n.type: n.path or "private" for n in spec.namespaces},
        "UidMappings": [dataclasses.asdict(m) for m in spec.uid_mappings],
        "GidMappings": [dataclasses.asdict(m) for m in spec.gid_mappings],
        "MaskedPaths": list(spec.masked_paths),
        "ReadonlyPaths": list(spec.readonly_paths),
        "Sysctls": dict(spec.sysctl),
        "Ulimits": [dataclasses.asdict(limit) for limit in spec.process.rlimits],
        "OomScoreAdj": spec.process.oom_score_adj,
        "Timeout": blueprint.timeout_usec / 1e6 or None,
        "Resources": {
            key: value
            for key, value in dataclasses.asdict(resources).items()
            if value not in (None, ()) and key != "devices"
        },
    }
