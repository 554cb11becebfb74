"""Limits before the application: how large a request may be, who may ask, and what a browser may do with an answer."""

from __future__ import annotations

import hmac
import json
from typing import Any

HEADERS = [
    (b"content-security-policy", b"default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
     b"img-src 'self' blob: data:; media-src 'self' blob:; base-uri 'none'; form-action 'self'; frame-ancestors 'none'"),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cache-control", b"no-store"),
]  # fmt: skip
OPEN = ("/", "/page.css", "/page.js", "/health")  # without a token: they say nothing of the model's answers


BODIES = 64  # as many of the largest requests may be held in memory at a time


class _Held:
    """The bytes of one request, counted among those of all."""

    def __init__(self, guard: Guard):
        self.guard, self.own = guard, 0

    def add(self, count: int) -> None:
        self.own += count
        self.guard.held += count

    def release(self) -> None:
        self.guard.held -= self.own
        self.own = 0


class Guard:
    """An ASGI application before another. most: bytes of a body; token: what callers must know, None for nothing."""

    def __init__(self, app: Any, *, most: int, token: str | None):
        self.app, self.most, self.token = app, most, token
        self.held, self.most_held = 0, most * BODIES  # bytes of all bodies that are being answered

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        async def guarded(message: Any) -> None:
            if message["type"] == "http.response.start":
                message = {**message, "headers": [*message.get("headers", []), *HEADERS]}
            await send(message)

        headers = {name.lower(): value for name, value in scope["headers"]}
        if self.token is not None and scope["path"] not in OPEN and not self._knows(headers):
            await _refuse(guarded, 401, "a token is needed: send it as Authorization: Bearer TOKEN")
            return
        length = headers.get(b"content-length", b"0")
        if not length.isdigit() or int(length) > self.most:
            await _refuse(guarded, 413, f"a request may have {self.most:,} bytes at most")
            return
        held = _Held(self)
        try:
            await self._whole(scope, receive, guarded, held)
        finally:
            held.release()

    async def _whole(self, scope: Any, receive: Any, send: Any, held: _Held) -> None:
        """Read the body, within the limits, and hand it on."""
        parts: list[bytes] = []
        while scope["method"] not in ("GET", "HEAD"):
            message = await receive()
            if message["type"] == "http.disconnect":
                return
            parts.append(message.get("body", b""))
            held.add(len(parts[-1]))
            if held.own > self.most:  # sent in chunks, without saying how many
                await _refuse(send, 413, f"a request may have {self.most:,} bytes at most")
                return
            if self.held > self.most_held:
                await _refuse(send, 429, "too many requests are on their way; try again in a moment")
                return
            if not message.get("more_body"):
                break
        body, given = b"".join(parts), False

        async def replay() -> Any:
            nonlocal given
            if given:
                return await receive()
            given = True
            return {"type": "http.request", "body": body, "more_body": False}

        await self.app(scope, replay, send)

    def _knows(self, headers: dict[bytes, bytes]) -> bool:
        said = headers.get(b"authorization", b"")
        return hmac.compare_digest(said, b"Bearer " + str(self.token).encode())


async def _refuse(send: Any, status: int, why: str) -> None:
    body = json.dumps({"error": why}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
