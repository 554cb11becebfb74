"""The routes of the server. Whatever is asked, an answer or an error is one JSON object; files come by upload alone."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path, PurePath
from typing import Any

import numpy as np

from unimodal.answers import SOUND, TEXT, Asked
from unimodal.errors import UsageError
from unimodal.use.index import Index
from unimodal.use.inputs import Entry, joined, kind_of, record_of
from unimodal.use.serve.batching import Batcher, FullError
from unimodal.use.serve.limits import Guard

HERE = Path(__file__).parent
MOST_STEPS, MOST_CLASSES, MOST_TOP, MOST_BEAM = 512, 256, 100, 64
TIMES = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)  # seconds, as buckets of the metrics


class Refused(Exception):
    """A request that is answered with `status` and one line."""

    def __init__(self, status: int, why: str):
        super().__init__(why)
        self.status = status


@dataclass
class Server:
    """A model, maybe with an index, and what a request may ask of it."""

    loaded: Any  # a `Loaded`
    batcher: Batcher  # joins requests into batches
    index: Index | None = None  # that is searched; None: no search
    timeout: float = 60.0  # seconds that an answer may take

    def __post_init__(self) -> None:
        self.requests: dict[int, int] = {}
        self.seconds: list[int] = [0] * (len(TIMES) + 1)
        self.spent = 0.0
        self.offers = {
            # names: whether it chooses among names that come with the request
            name: [dict(gives=a.gives, reads=a.reads, names=a.once is not None) for a in self._answers(name)]
            for name in self.loaded.tasks
        }

    def _answers(self, name: str) -> Any:
        try:
            return self.loaded.answers(name, Asked(classes=("yes", "no")))
        except UsageError:
            return []

    async def tasks(self, request: Any) -> dict[str, Any]:
        return {"model": Path(self.loaded.path).name, "tasks": self.offers, "search": self.index is not None}

    async def predict(self, request: Any) -> dict[str, Any]:
        entry, said = await read_request(request)
        task, gives, asked = question(said)
        return await self.ask(task, gives, asked, entry)

    async def search(self, request: Any) -> dict[str, Any]:
        """Find what is nearest to a text, a file, or both: asked together where the model reads both, else by their sum."""
        if self.index is None:
            raise Refused(404, "this server has no index: start it with --index=FOLDER")
        entry, said = await read_request(request, several=True)
        task, _, asked = question(said)
        made = self.index.made_by.get("task")
        if made is not None and task not in (None, made):
            raise Refused(400, f"the index was made by the task {made!r}, so {task!r} cannot search it")
        task = made or task
        entries = [entry] if entry.reads != (TEXT,) or "text" not in said else []
        if isinstance(said.get("text"), str) and said["text"].strip():
            entries.append(text_entry(said["text"]))
        if not entries:
            raise Refused(400, "the text is empty")
        if len(entries) > 1 and self.reads(task, (whole := joined(entries)).reads[0]):
            entries = [whole]
        found = [(await self.ask(task, "embedding", Asked(), one))["embedding"] for one in entries]
        total = np.sum(np.asarray(found, np.float32), axis=0)
        total /= max(float(np.linalg.norm(total)), 1e-12)
        return {"results": await asyncio.to_thread(self.index.nearest, total, asked.top)}

    def reads(self, task: str | None, modality: str) -> bool:
        """Whether a task, or any, has an answer that reads this."""
        return any(
            one["reads"] == modality for name, all_ in self.offers.items() for one in all_ if task in (None, name)
        )

    async def item(self, request: Any) -> Any:
        """The file of a row of the index. It is named by its number: no path comes from outside."""
        from starlette.responses import FileResponse

        place = int(request.path_params["row"])
        if self.index is None or place >= self.index.rows:
            raise Refused(404, "there is no such row")
        path = Path(self.index.row(place)["id"])
        if kind_of(path) is None or not path.is_file():
            raise Refused(404, "the row is not a file")
        return FileResponse(path)

    async def ask(self, task: str | None, gives: str | None, asked: Asked, entry: Entry) -> dict[str, Any]:
        """One answer. Raises Refused for an error of the input, and where it takes too long."""
        if task is not None and task not in self.loaded.tasks:
            raise Refused(400, f"there is no task {task!r}; there is {', '.join(self.loaded.tasks)}")
        try:
            future = self.batcher.submit((task, gives, asked), entry, self.timeout)
        except FullError as error:
            raise Refused(429, str(error)) from None
        try:
            row = await asyncio.wait_for(asyncio.wrap_future(future), self.timeout)
        except TimeoutError:
            raise Refused(503, f"no answer within {self.timeout:g} s; try again later") from None
        if "error" in row:
            raise Refused(400, row["error"])
        return {name: value for name, value in row.items() if name != "id"}

    async def health(self, request: Any) -> dict[str, Any]:
        return {"status": "ok", "waiting": self.batcher.waiting}

    async def metrics(self, request: Any) -> Any:
        from starlette.responses import PlainTextResponse

        lines = [f'unimodal_requests_total{{status="{s}"}} {n}' for s, n in sorted(self.requests.items())]
        total = 0
        for limit, count in zip([*TIMES, "+Inf"], self.seconds, strict=True):
            total += count
            lines.append(f'unimodal_request_seconds_bucket{{le="{limit}"}} {total}')
        lines += [f"unimodal_request_seconds_sum {self.spent:.6f}", f"unimodal_request_seconds_count {total}"]
        lines += [f"unimodal_batches_total {self.batcher.batches}", f"unimodal_answers_total {self.batcher.answered}"]
        return PlainTextResponse("\n".join([*lines, f"unimodal_waiting {self.batcher.waiting}"]) + "\n")

    def note(self, status: int, seconds: float) -> None:
        """Count a request."""
        self.requests[status] = self.requests.get(status, 0) + 1
        self.seconds[sum(seconds > limit for limit in TIMES)] += 1
        self.spent += seconds


def make_app(server: Server, *, most: int, token: str | None, hosts: list[str] | None) -> Any:
    """The application. most: bytes of a request. hosts: names that a request may call this machine by; None: any."""
    from starlette.applications import Starlette
    from starlette.exceptions import HTTPException
    from starlette.middleware import Middleware
    from starlette.middleware.trustedhost import TrustedHostMiddleware
    from starlette.responses import FileResponse, JSONResponse, Response
    from starlette.routing import Route

    class Json(JSONResponse):
        def render(self, content: Any) -> bytes:
            return json.dumps(content, allow_nan=False).encode()  # in ASCII: a name that is not UTF-8 has surrogates

    def route(path: str, call: Callable[..., Any], method: str = "GET") -> Any:
        async def handle(request: Any) -> Response:
            began = time.monotonic()
            try:
                made = await call(request)
                answer = made if isinstance(made, Response) else Json(made)
            except Refused as error:
                answer = Json({"error": str(error)}, error.status)
            except UsageError as error:
                answer = Json({"error": " ".join(str(error).split())}, 400)
            if path.startswith("/v1"):
                server.note(answer.status_code, time.monotonic() - began)
            return answer

        return Route(path, handle, methods=[method])

    async def file(name: str, request: Any) -> Any:
        return FileResponse(HERE / name)

    async def refused(request: Any, error: Any) -> Response:
        return Json({"error": str(error.detail)}, error.status_code)

    async def broken(request: Any, error: Exception) -> Response:
        return Json({"error": f"the server failed: {type(error).__name__}"}, 500)

    @contextlib.asynccontextmanager
    async def lifespan(app: Any) -> AsyncIterator[None]:
        yield
        server.batcher.close()

    routes = [
        route("/", partial(file, "page.html")),
        route("/page.css", partial(file, "page.css")),
        route("/page.js", partial(file, "page.js")),
        route("/health", server.health),
        route("/metrics", server.metrics),
        route("/v1/tasks", server.tasks),
        route("/v1/items/{row:int}", server.item),
        route("/v1/predict", server.predict, "POST"),
        route("/v1/search", server.search, "POST"),
    ]
    middleware = [] if hosts is None else [Middleware(TrustedHostMiddleware, allowed_hosts=hosts, www_redirect=False)]
    handlers: Any = {HTTPException: refused, Exception: broken}
    inner = Starlette(routes=routes, middleware=middleware, exception_handlers=handlers, lifespan=lifespan)
    return Guard(inner, most=most, token=token)


async def read_request(request: Any, *, several: bool = False) -> tuple[Entry, Mapping[str, Any]]:
    """The input and what is said along with it: a JSON object with `text`, or a form with a `file`. several: a form may
    have a text, too. Raises Refused."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind == "application/json":
        try:
            said = json.loads(await request.body())
        except (ValueError, RecursionError):
            raise Refused(400, "the body is not JSON") from None
        if not isinstance(said, dict):
            raise Refused(400, "the body should be a JSON object")
        if not isinstance(said.get("text"), str):
            raise Refused(400, 'the body has no "text"; pictures and sounds come as multipart/form-data, as "file"')
        return text_entry(said["text"]), said
    if kind != "multipart/form-data":
        raise Refused(415, "send application/json or multipart/form-data")
    from starlette.exceptions import HTTPException

    try:
        form = await request.form(max_files=1, max_fields=32)
    except (HTTPException, ValueError, AssertionError) as error:
        raise Refused(400, f"the form cannot be read: {getattr(error, 'detail', error)}") from None
    try:
        return await _of_form(form, several)
    finally:
        await form.close()


async def _of_form(form: Any, several: bool) -> tuple[Entry, Mapping[str, Any]]:
    said = {name: value for name, value in form.items() if isinstance(value, str)}
    upload: Any = form.get("file")
    if upload is None or isinstance(upload, str):
        if several and said.get("text", "").strip():
            return text_entry(said["text"]), said
        raise Refused(400, 'the form has no file called "file"')
    name = str(upload.filename)[-64:].replace("\0", "")
    modality = kind_of(Path("x" + PurePath(name).suffix))
    if modality is None and str(upload.content_type).startswith("audio/"):
        modality = SOUND
    if modality is None:
        raise Refused(415, "the file's name should end like a picture's, a sound's or a text's: .png, .wav, .txt, …")
    content = await upload.read()
    return Entry("upload", partial(record_of, modality, content, "upload"), (modality,)), said


def text_entry(text: str) -> Entry:
    """A text as an input; never a path."""
    return Entry("text", partial(dict, id="text", text=text), (TEXT,))


def question(said: Mapping[str, Any]) -> tuple[str | None, str | None, Asked]:
    """Task, what it is to give, and what is said along, within the server's limits. Raises Refused."""
    asked, kinds = Asked(), {field.name: type(field.default) for field in fields(Asked)}
    found: dict[str, Any] = {}
    for name, kind in kinds.items():
        value = said.get(name)
        if value is None or value == "":
            continue
        try:
            if kind is tuple:
                parts = value.split(",") if isinstance(value, str) else value
                if not isinstance(parts, list) or not all(isinstance(part, str) for part in parts):
                    raise TypeError
                found[name] = tuple(dict.fromkeys(str(part).strip() for part in parts if str(part).strip()))
            else:
                found[name] = kind(value)
        except (TypeError, ValueError, OverflowError):
            raise Refused(400, f"{name} should be {'names' if kind is tuple else f'a {kind.__name__}'}") from None
    limits = dict(steps=MOST_STEPS, top=MOST_TOP, beam=MOST_BEAM)
    for name, most in limits.items():
        if not 0 <= found.get(name, 0) <= most:
            raise Refused(400, f"{name} may be {most} at most")
    if len(found.get("classes", ())) > MOST_CLASSES:
        raise Refused(400, f"there may be {MOST_CLASSES} classes at most")
    if not 0 <= found.get("seed", 0) < 2**32:
        raise Refused(400, "seed should be from 0 to 2³² − 1")
    for name in ("task", "gives"):
        if said.get(name) is not None and not isinstance(said[name], str):
            raise Refused(400, f"{name} should be a word")
    return said.get("task") or None, said.get("gives") or None, replace(asked, **found)
