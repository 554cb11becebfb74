"""Start the server: checks before anything is loaded, then uvicorn until it is stopped."""

from __future__ import annotations

import importlib.util
import secrets
import sys
from collections.abc import Callable
from typing import Any

from unimodal.errors import UsageError
from unimodal.use.index import open_index
from unimodal.use.serve.app import Server, make_app
from unimodal.use.serve.batching import Batcher

LOCAL = ("localhost", "127.0.0.1", "::1")
NEEDS = {"starlette": "starlette", "uvicorn": "uvicorn", "multipart": "python-multipart"}


def serve(
    load: Callable[[], Any],
    *,
    host: str = "localhost",
    port: int = 8000,
    token: str | None = None,
    index: str | None = None,
    batch_size: int = 32,
    most: int = 16 * 2**20,
    timeout: float = 60.0,
) -> None:
    """Serve a model until Ctrl-C. Beyond this machine (a host that is not local) a token is needed: one is made if none is
    given. Raises UsageError for what is not installed, or a port that is taken."""
    if missing := [name for module, name in NEEDS.items() if importlib.util.find_spec(module) is None]:
        raise UsageError(f"serving takes {', '.join(missing)}: pip install 'unimodal[serve]'")
    import uvicorn

    if not 0 < port < 65536:
        raise UsageError(f"--port must be from 1 to 65535, but is {port}")
    found = None if index is None else open_index(index)
    _check_port(host, port)
    local = host in LOCAL
    if not local and token is None:
        token = secrets.token_urlsafe(24)
        print(f"token: {token}", file=sys.stderr)
    loaded = load()
    if found is not None:  # a query of other weights would be compared with vectors that mean something else
        if (task := found.made_by.get("task")) is not None:
            loaded.task(task)
        found.check({**found.made_by, **loaded.made_by(task)})  # but not its dtype, which a server does not choose
    server = Server(loaded, Batcher(loaded, batch_size=batch_size), found, timeout)
    app = make_app(server, most=most, token=token, hosts=["localhost", "127.0.0.1", "[::1]", "::1"] if local else None)
    print(f"http://{host}:{port} answers for {loaded.path}; Ctrl-C ends it", file=sys.stderr, flush=True)
    uvicorn.run(app, host=host, port=port, log_level="warning", timeout_keep_alive=15, server_header=False)


def _check_port(host: str, port: int) -> None:
    import socket

    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except OSError as error:
        raise UsageError(f"cannot serve at {host}:{port}: {error.strerror}; give another --port") from error
