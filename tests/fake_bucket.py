"""Stands in for Cloud Storage: one bucket in memory, spoken to in the part of the JSON API that gcsfs and tensorstore use."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

BUCKET = "bucket"


class Bucket:
    """Objects by name: their bytes and the generation that counts how often anything was written."""

    def __init__(self) -> None:
        self.objects: dict[str, tuple[bytes, int]] = {}
        self.generation = 1
        self.lock = threading.Lock()

    def describe(self, name: str) -> dict[str, str]:
        data, generation = self.objects[name]
        facts = dict(kind="storage#object", bucket=BUCKET, name=name, size=str(len(data)), generation=str(generation))
        return facts | dict(metageneration="1", updated="2026-01-01T00:00:00Z", timeCreated="2026-01-01T00:00:00Z")

    def write(self, name: str, data: bytes) -> dict[str, str]:
        self.generation += 1
        self.objects[name] = (data, self.generation)
        return self.describe(name)

    def list(self, query: dict[str, str]) -> dict[str, Any]:
        prefix, delimiter = query.get("prefix", ""), query.get("delimiter")
        items, prefixes = [], set()
        for name in sorted(name for name in self.objects if name.startswith(prefix)):
            rest = name[len(prefix) :]
            if delimiter and delimiter in rest:
                prefixes.add(prefix + rest.split(delimiter)[0] + delimiter)
            else:
                items.append(self.describe(name))
        return {"kind": "storage#objects", "items": items, "prefixes": sorted(prefixes)}


class Handler(BaseHTTPRequestHandler):
    """One request."""

    protocol_version = "HTTP/1.1"
    bucket: Bucket

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def handle(self) -> None:
        with suppress(ConnectionError):  # clients hang up as they like
            super().handle()

    def do_GET(self) -> None:
        self.handle_with(self.read_or_list)

    def do_POST(self) -> None:
        self.handle_with(self.upload)

    def do_DELETE(self) -> None:
        self.handle_with(lambda name, query, body: self.delete(name, query))

    def handle_with(self, act: Any) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        parts = urlsplit(self.path)
        query = {key: values[0] for key, values in parse_qs(parts.query).items()}
        if parts.path.startswith("/batch"):
            return self.batch(body)
        found = re.fullmatch(r".*/b/([^/]+)(?:/o(?:/(.+))?)?", parts.path)
        if found is None or found[1] != BUCKET:
            return self.answer(404, b'{"error": {"code": 404, "message": "The specified bucket does not exist."}}')
        with self.bucket.lock:
            act(unquote(found[2] or "") or query.get("name", ""), query, body)

    def answer(self, code: int, body: bytes = b"", **headers: str) -> None:
        self.send_response(code)
        kind = {"Content-Type": "application/json", "Content-Length": str(len(body)), **headers}
        for name, value in kind.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if code not in (204, 304):
            self.wfile.write(body)

    def tell(self, value: Any) -> None:
        self.answer(200, json.dumps(value).encode())

    def refused(self, name: str, query: dict[str, str]) -> bool:
        """A condition on the generation that does not hold; 0 is an object that is not there."""
        now = self.bucket.objects.get(name, (b"", 0))[1]
        wanted, unwanted = query.get("ifGenerationMatch"), query.get("ifGenerationNotMatch")
        if (wanted is not None and int(wanted) != now) or (unwanted is not None and int(unwanted) == now):
            self.answer(304 if unwanted is not None else 412)
            return True
        return False

    def read_or_list(self, name: str, query: dict[str, str], _body: bytes) -> None:
        if not name:
            return self.tell(
                self.bucket.list(query) if "/o" in self.path else {"kind": "storage#bucket", "name": BUCKET}
            )
        if name not in self.bucket.objects:
            return self.answer(404, b'{"error": {"code": 404, "message": "No such object"}}')
        if query.get("alt") != "media":
            return self.tell(self.bucket.describe(name))
        if self.refused(name, query):
            return None
        data, generation = self.bucket.objects[name]
        size, code, extra = len(data), 200, {}
        if asked := re.fullmatch(r"bytes=(\d*)-(\d*)", self.headers.get("Range", "")):
            first = int(asked[1]) if asked[1] else size - int(asked[2])
            last = min(int(asked[2]) if asked[1] and asked[2] else size - 1, size - 1)
            if first > last:
                return self.answer(416)
            data, code, extra = data[first : last + 1], 206, {"Content_Range": f"bytes {first}-{last}/{size}"}
        return self.answer(
            code, data, Content_Type="application/octet-stream", x_goog_generation=str(generation), **extra
        )

    def upload(self, name: str, query: dict[str, str], body: bytes) -> None:
        if query.get("uploadType") == "multipart":
            _, about, content = body.split(b"--==0==", 2)
            name = json.loads(about.split(b"\n\n", 1)[1])["name"]
            body = content.split(b"\n\n", 1)[1].removesuffix(b"\n--==0==--")
        if query.get("uploadType") == "resumable" and "Content-Range" not in self.headers:  # where to send the bytes
            return self.answer(200, Location=f"http://{self.headers['Host']}{self.path}")
        if self.headers.get("Content-Range", "").endswith("/*"):  # a part: the test's files are smaller than one
            return self.answer(501)
        if not self.refused(name, query):
            self.tell(self.bucket.write(name, body))
        return None

    def delete(self, name: str, query: dict[str, str]) -> None:
        if name not in self.bucket.objects:
            self.answer(404)
        elif not self.refused(name, query):
            del self.bucket.objects[name]
            self.answer(204)

    def batch(self, body: bytes) -> None:
        with self.bucket.lock:
            names = [unquote(name) for name in re.findall(rf"DELETE \S*/b/{BUCKET}/o/([^ ?]+)", body.decode())]
            codes = [204 if self.bucket.objects.pop(name, None) else 404 for name in names]
        parts = [f"--edge\r\nContent-Type: application/http\r\n\r\nHTTP/1.1 {code} -\r\n\r\n" for code in codes]
        self.answer(200, "".join([*parts, "--edge--"]).encode(), Content_Type="multipart/mixed; boundary=edge")


@contextmanager
def serve() -> Iterator[str]:
    """Its address, while it is served."""
    handler = type("OneBucket", (Handler,), {"bucket": Bucket()})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()
