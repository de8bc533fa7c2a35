"""The client of the monitor against a stand-in that speaks the protocol, without any process."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pycontain import _native
from pycontain._native import C, NativeReply, ffi
from pycontain.errors import InternalError, NotFound, TimeoutExpired, WrongState
from pycontain.runtime import launcher as launcher_module
from pycontain.runtime.launcher import Launcher, MonitorLost

Answer = Callable[["Stand", socket.socket, int, list[int]], None]


def message(kind: int, **fields: object) -> bytes:
    return bytes(
        ffi.buffer(ffi.new("struct pyc_reply *", dict(abi=C.PYC_ABI, kind=kind, **fields)))
    )


OK = message(C.PYC_REP_OK)


class Stand:
    """Listens like a monitor; each request but INFO is answered by `answer`."""

    def __init__(self, root: Path) -> None:
        self.kinds: list[int] = []
        self.connections: list[socket.socket] = []
        self.answer: Answer = lambda _stand, peer, _kind, _fds: peer.send(OK) and None
        self.info = message(C.PYC_REP_INFO, pid=os.getpid())
        self.listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(root / "monitor.sock")
        self.listener.bind(str(root / "monitor.sock"))
        self.listener.listen()
        self.threads = [threading.Thread(target=self._accept)]
        self.threads[0].start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                peer, _ = self.listener.accept()
                self.connections.append(peer)
                self.threads.append(threading.Thread(target=self._serve, args=(peer,)))
                self.threads[-1].start()

    def _serve(self, peer: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while True:
                data, fds, _, _ = socket.recv_fds(peer, 4096, 8)
                if not data:
                    return
                kind = int.from_bytes(data[4:8], "little")
                self.kinds.append(kind)
                if kind == C.PYC_REQ_INFO:
                    peer.send(self.info)
                else:
                    self.answer(self, peer, kind, fds)
                for fd in fds:
                    os.close(fd)

    def hang_up(self) -> None:
        for peer in self.connections:
            with contextlib.suppress(OSError):
                peer.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()
        self.hang_up()
        for thread in self.threads:
            thread.join()
        for peer in self.connections:
            peer.close()


@pytest.fixture
def stand(tmp_path: Path) -> Iterator[Stand]:
    made = Stand(tmp_path)
    yield made
    made.close()


@pytest.fixture
def launcher(tmp_path: Path, stand: Stand) -> Iterator[Launcher]:
    made = Launcher(str(tmp_path))
    yield made
    made.close()


def test_connection_is_used_again(launcher: Launcher, stand: Stand) -> None:
    """Requests one after the other take one connection, greeted once."""
    for _ in range(3):
        assert launcher.request(C.PYC_REQ_RESIZE, "box").kind == C.PYC_REP_OK
    assert len(stand.connections) == 1
    assert stand.kinds == [C.PYC_REQ_INFO, *[C.PYC_REQ_RESIZE] * 3]


@pytest.mark.parametrize("second", [10.0, None])
def test_released_connection_waits_again(
    launcher: Launcher, stand: Stand, second: float | None
) -> None:
    """A connection that was waited on with a timeout waits as long as its next user says."""
    go = threading.Event()

    def late(_stand: Stand, peer: socket.socket, _kind: int, _fds: list[int]) -> None:
        go.wait(10)
        peer.send(OK)

    for timeout_sec in (10.0, second):
        stand.answer = late
        link = launcher.watch("box")
        threading.Timer(0.01, go.set).start()
        assert isinstance(link.read_reply(timeout_sec), NativeReply)
        link.release()
        go.clear()
    assert len(stand.connections) == 1


def test_wait_ends_in_time(launcher: Launcher, stand: Stand) -> None:
    """No reply within the timeout is TimeoutExpired, and the link can wait on."""
    stand.answer = lambda *_: None
    with contextlib.closing(launcher.watch("box")) as link:
        for timeout_sec in (0, 0.001):
            with pytest.raises(TimeoutExpired):
                link.read_reply(timeout_sec)
        stand.connections[0].send(OK)
        assert isinstance(link.read_reply(10), NativeReply)


def test_lost_monitor_is_told(launcher: Launcher, stand: Stand) -> None:
    """A connection that ends in mid-wait is MonitorLost."""
    stand.answer = lambda *_: None
    with contextlib.closing(launcher.watch("box")) as link:
        stand.hang_up()
        with pytest.raises(MonitorLost):
            link.read_reply(10)


def test_dead_pooled_connection_is_replaced(launcher: Launcher, stand: Stand) -> None:
    """A request on a connection that died while it was idle goes out on a new one."""
    launcher.info()
    stand.hang_up()
    assert launcher.request(C.PYC_REQ_RESIZE, "box").kind == C.PYC_REP_OK
    assert len(stand.connections) == 2


def test_forked_child_has_its_own_connections(
    launcher: Launcher, stand: Stand, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The pool belongs to the process that filled it."""
    launcher.info()
    monkeypatch.setattr(launcher_module.os, "getpid", lambda: -1)
    launcher.info()
    assert len(stand.connections) == 2


def test_pidfd_comes_with_the_reply(launcher: Launcher, stand: Stand) -> None:
    """The descriptor of SPAWNED is the link's until it is taken."""
    spawned = message(C.PYC_REP_SPAWNED, pid=7)

    def answer(_stand: Stand, peer: socket.socket, _kind: int, fds: list[int]) -> None:
        socket.send_fds(peer, [spawned], fds[:1])

    stand.answer = answer
    link = launcher.spawn(b"the plan", ())
    reply = link.read_reply(10)
    assert isinstance(reply, NativeReply)
    assert reply.pid == 7
    fd = link.take_pidfd()
    assert os.pread(fd, 100, 0) == b"the plan"
    assert not os.get_inheritable(fd)
    os.close(fd)
    link.close()
    link.close()
    assert link.fileno() == -1


def test_missing_id_is_not_found(launcher: Launcher, stand: Stand) -> None:
    """FAILED(REQUEST, ENOENT) is NotFound for waits, attach, resize and start."""
    refused = message(C.PYC_REP_FAILED, stage=C.PYC_STAGE_REQUEST, err=2)
    stand.answer = lambda _stand, peer, _kind, _fds: peer.send(refused) and None
    with contextlib.closing(launcher.watch("box")) as link, pytest.raises(NotFound):
        link.read_reply(10)
    for call in (launcher.attach, launcher.start, lambda id: launcher.resize(id, 1, 2)):
        with pytest.raises(NotFound):
            call("box")


def test_wrong_state_is_said(launcher: Launcher, stand: Stand) -> None:
    """Another refusal of a request about a living container is WrongState."""
    refused = message(C.PYC_REP_FAILED, stage=C.PYC_STAGE_REQUEST, err=16)
    stand.answer = lambda _stand, peer, _kind, _fds: peer.send(refused) and None
    with pytest.raises(WrongState):
        launcher.start("box")


def test_attached_socket_is_passed_on(launcher: Launcher, stand: Stand) -> None:
    """What `attach` returns is connected to the socket that the monitor got."""
    kept: list[int] = []

    def answer(_stand: Stand, peer: socket.socket, _kind: int, fds: list[int]) -> None:
        kept.append(os.dup(fds[0]))
        peer.send(OK)

    stand.answer = answer
    with launcher.attach("box") as terminal:
        os.write(kept[0], b"prompt")
        os.close(kept[0])
        assert terminal.recv(100) == b"prompt"
        assert terminal.recv(100) == b""


def test_other_protocol_is_refused(launcher: Launcher, stand: Stand) -> None:
    """A monitor that answers INFO with something else is of another version."""
    stand.info = message(C.PYC_REP_FAILED, stage=C.PYC_STAGE_REQUEST, err=71)
    with pytest.raises(InternalError, match="protocol"):
        launcher.info()


def test_long_state_root_can_be_reached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A path longer than a socket address is reached through its directory's descriptor."""
    root = tmp_path / ("d" * 100)
    root.mkdir()
    monkeypatch.chdir(root)
    stand = Stand(Path("."))
    launcher = Launcher(str(root))
    try:
        assert launcher.info().kind == C.PYC_REP_INFO
    finally:
        launcher.close()
        stand.close()


def test_shutdown_without_a_monitor_is_done(tmp_path: Path) -> None:
    """Where no monitor lives there is nothing to shut down, and none is started for it."""
    assert Launcher(str(tmp_path)).shutdown()
    assert list(tmp_path.iterdir()) == []


def test_reply_of_another_abi_is_refused() -> None:
    """Bytes of another ABI are never interpreted."""
    data = bytearray(OK)
    data[0] += 1
    with pytest.raises(InternalError):
        _native.decode_reply(bytes(data))
