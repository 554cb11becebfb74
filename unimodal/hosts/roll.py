"""The roll call: before JAX starts, every process connects to process 0, or an error names who is missing."""

from __future__ import annotations

import json
import socket
import sys
import time

from unimodal.errors import UsageError
from unimodal.hosts.peer import LostError, Peer, listed

WORD_SECONDS = 20.0  # without a newcomer, until process 0 says for whom all wait


def call_the_roll(process: int, count: int, address: str, port: int, seconds: float) -> list[Peer]:
    """Connect every process with process 0 on `port` of the host in `address`.

    Raises LostError, naming who is missing, if they are not all there within `seconds`.
    """
    host = address.rsplit(":", 1)[0].strip("[]")
    deadline = time.monotonic() + seconds
    return _listen_for(count, port, deadline, seconds) if process == 0 else [_call(process, host, port, deadline)]


def _listen_for(count: int, port: int, deadline: float, seconds: float) -> list[Peer]:
    family = socket.AF_INET6 if socket.has_dualstack_ipv6() else socket.AF_INET
    try:
        listener = socket.create_server(
            ("", port), family=family, dualstack_ipv6=family == socket.AF_INET6, backlog=1024
        )
    except OSError as error:
        raise UsageError(
            f"process 0 cannot listen on port {port}: {error.strerror}; is another run on this machine? "
            f"Set UNIMODAL_GUARD_PORT to a free one everywhere"
        ) from error
    peers: dict[int, Peer] = {}
    with listener:
        while len(peers) < count - 1 and (left := deadline - time.monotonic()) > 0:
            listener.settimeout(min(left, WORD_SECONDS))
            try:
                connection, _ = listener.accept()
            except OSError:  # nobody came
                if deadline - time.monotonic() > 1:
                    missing = listed([f"process {p}" for p in range(1, count) if p not in peers])
                    print(f"waiting for {missing} of {count}", file=sys.stderr, flush=True)
                continue
            try:
                peer = _greeted(connection)
            except (OSError, ValueError, KeyError):  # somebody who is not one of us
                connection.close()
                continue
            if not 0 < peer.process < count or peer.process in peers:
                peer.send(kind="refused", text=f"process {peer.process} is not wanted, or is there already")
                connection.close()
                continue
            peers[peer.process] = peer
    if missing := [f"process {p}" for p in range(1, count) if p not in peers]:
        text = (
            f"{listed(missing)} of {count} did not come within {seconds:.0f} s; the others are there: look at the log of "
            f"the missing, or run launch.py doctor"
        )
        for peer in peers.values():
            peer.send(kind="refused", text=text)
            peer.connection.close()
        raise LostError(text)
    for peer in peers.values():
        peer.send(kind="welcome", host=socket.gethostname())
    return list(peers.values())


def _greeted(connection: socket.socket) -> Peer:
    connection.settimeout(5)
    hello = json.loads(_line(connection))
    connection.settimeout(None)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return Peer(int(hello["process"]), str(hello["host"]), connection, time.monotonic())


def _call(process: int, host: str, port: int, deadline: float) -> Peer:
    why = "no answer"
    began = time.monotonic()
    while (left := deadline - time.monotonic()) > 0:
        connection = None
        try:
            connection = socket.create_connection((host, port), timeout=left)
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            hello = {"process": process, "host": socket.gethostname()}
            connection.sendall(json.dumps(hello).encode() + b"\n")
            connection.settimeout(left + 10)  # process 0 waits for the others
            answer = json.loads(_line(connection))
        except (OSError, ValueError) as error:
            why = str(error) or type(error).__name__
            if connection is not None:
                connection.close()
            time.sleep(0.2)
            continue
        if answer["kind"] == "refused":
            connection.close()
            raise LostError(answer["text"])
        connection.settimeout(None)
        return Peer(0, answer["host"], connection, time.monotonic())
    raise LostError(
        f"process {process} cannot reach process 0 at {host}:{port} ({why}) for {time.monotonic() - began:.0f} s: it has not "
        f"started, or a firewall lies between"
    )


def _line(connection: socket.socket) -> bytes:
    found = b""
    while not found.endswith(b"\n"):
        byte = connection.recv(1)
        if not byte or len(found) > 10_000:
            raise ValueError("closed before a whole line came")
        found += byte
    return found
