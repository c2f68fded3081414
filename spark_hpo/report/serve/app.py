"""The addresses of the page, as an ASGI application."""

from __future__ import annotations

import asyncio
import gzip
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from functools import cache

from fastapi import FastAPI, Request, Response
from fastapi.responses import HTMLResponse, PlainTextResponse, StreamingResponse
from plotly.offline import get_plotlyjs
from starlette.concurrency import run_in_threadpool
from starlette.middleware.gzip import GZipMiddleware

from spark_hpo.errors import ConfigError, SparkHpoError
from spark_hpo.redact import redact
from spark_hpo.report.page import template_file
from spark_hpo.report.serve.access import Access, Guard
from spark_hpo.report.serve.catalog import Catalog, Entry
from spark_hpo.report.serve.pages import Pages, asset
from spark_hpo.report.serve.steering import status_code, steer

_HEARTBEAT_S = 15.0  # proxies close a connection on which nothing is sent
_MAX_STREAMS = 100
_MAX_REQUEST = 65_536  # bytes
_FOR_A_DAY = {"cache-control": "private, max-age=86400"}


class Streams:
    """The open streams of events. A slow browser gets only the latest state, so nothing piles up."""

    def __init__(self) -> None:
        self._streams: dict[Stream, None] = {}

    def open(self, ids: frozenset[str] | None) -> Stream:
        """Open a stream on the running event loop.

        Args:
            ids: of the studies; None: all.
        """
        stream = Stream(ids, asyncio.get_running_loop())
        self._streams[stream] = None
        return stream

    def close(self, stream: Stream) -> None:
        self._streams.pop(stream, None)

    def end(self) -> None:
        """End all streams, because the server stops. For any thread."""
        for stream in list(self._streams):
            stream.end()

    def __len__(self) -> int:
        return len(self._streams)

    def publish(self, entry: Entry) -> None:
        """Tell all pages that show a study of its change. For any thread."""
        for stream in list(self._streams):
            stream.mark(entry)

    def watched(self) -> set[str] | None:
        """Return the ids of studies that a page shows; None: no page is open."""
        streams = list(self._streams)
        return {i for stream in streams for i in stream.ids or ()} if streams else None


class Stream:
    """The events for one page."""

    def __init__(self, ids: frozenset[str] | None, loop: asyncio.AbstractEventLoop) -> None:
        self.ids = ids
        self._loop = loop
        self.is_ended = False
        self._changed: dict[str, Entry] = {}
        self._event = asyncio.Event()

    def mark(self, entry: Entry) -> None:
        if self.ids is None or entry.id in self.ids:
            self._loop.call_soon_threadsafe(self._mark, entry)

    def _mark(self, entry: Entry) -> None:
        self._changed[entry.id] = entry
        self._event.set()

    def end(self) -> None:
        self.is_ended = True
        with suppress(RuntimeError):  # the loop is closed
            self._loop.call_soon_threadsafe(self._event.set)

    async def wait(self) -> list[Entry]:
        """Return the studies that have changed since the last call; none after a quarter of a minute."""
        try:
            await asyncio.wait_for(self._event.wait(), _HEARTBEAT_S)
        except TimeoutError:
            return []
        self._event.clear()
        changed, self._changed = list(self._changed.values()), {}
        return changed


def build_app(catalog: Catalog, access: Access) -> FastAPI:
    """Return the application. Its start also starts the thread that follows the studies."""
    streams = Streams()
    catalog.on_change, catalog.watched = streams.publish, streams.watched
    pages = Pages(catalog, access.csrf)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        catalog.start()
        yield
        catalog.close()

    app = FastAPI(lifespan=lifespan, docs_url=None, redoc_url=None, openapi_url=None)
    app.state.end_streams = streams.end
    app.add_middleware(GZipMiddleware, minimum_size=1000, compresslevel=5)
    app.add_middleware(Guard, access=access)

    def shown(study_id: str, draw: Callable[[Entry], str | None], *, is_patient: bool = True) -> Response:
        entry = catalog.get(study_id, is_patient=is_patient)
        if entry is None:
            return HTMLResponse(
                pages.problem("No such study", "It is not below the directories any more."), 404
            )
        if entry.tally is None and (is_patient or entry.error is not None):
            return HTMLResponse(pages.problem(entry.name, entry.error or "It cannot be read."), 503)
        try:
            text = draw(entry)
        except SparkHpoError as exc:
            return HTMLResponse(pages.problem(entry.name, str(exc)), 503)
        if text is None:
            return HTMLResponse(pages.problem("No such trial", f"{entry.name} has no such trial."), 404)
        return HTMLResponse(text)

    @app.get("/")
    def studies() -> Response:
        return HTMLResponse(pages.studies())

    @app.get("/study")
    def study(id: str, fresh: bool = False) -> Response:
        return shown(id, lambda entry: pages.study(entry, fresh=fresh), is_patient=fresh)

    @app.get("/trials")
    def trials(id: str, page: int = 1, state: str | None = None) -> Response:
        return shown(id, lambda entry: pages.trials(entry, page=page, state=state or None))

    @app.get("/trial")
    def trial(id: str, trial: int) -> Response:
        return shown(id, lambda entry: pages.trial(entry, trial))

    @app.get("/compare")
    def compare(request: Request) -> Response:
        found = [catalog.get(study_id) for study_id in request.query_params.getlist("id")]
        return HTMLResponse(pages.comparison([entry for entry in found if entry is not None]))

    @app.post("/steer")
    async def steer_study(request: Request, id: str) -> Response:
        entry = await run_in_threadpool(catalog.get, id)
        if entry is None:
            return PlainTextResponse("there is no such study", 404)
        length = request.headers.get("content-length", "")
        if not length.isdecimal() or int(length) > _MAX_REQUEST:
            return PlainTextResponse("this is too long", 413)
        try:
            record = json.loads(await request.body())
            verb, text = str(record["verb"]), str(record["text"])
        except (ValueError, KeyError, TypeError):
            return PlainTextResponse("this is not a request", 400)
        try:
            answer = await run_in_threadpool(steer, entry.storage, verb, text)
        except ConfigError as exc:
            return PlainTextResponse(str(exc), 400)
        except SparkHpoError as exc:
            return PlainTextResponse(str(exc), 503)
        return PlainTextResponse(redact(answer.message), status_code(answer))

    @app.get("/events")
    async def events(follow: str) -> Response:
        if len(streams) >= _MAX_STREAMS:
            return PlainTextResponse("too many pages are open\n", 503)
        ids = None if follow == "all" else frozenset(follow.split(","))
        headers = {"cache-control": "no-cache", "x-accel-buffering": "no"}
        return StreamingResponse(_messages(ids), media_type="text/event-stream", headers=headers)

    async def _messages(ids: frozenset[str] | None) -> AsyncIterator[str]:
        stream = streams.open(ids)
        try:
            catalog.wake()
            yield "retry: 2000\n\n"
            first = [entry for entry in catalog.known() if ids is None or entry.id in ids]
            changed = first
            while not stream.is_ended:
                if changed:
                    yield f"data: {_news(changed, ids)}\n\n"
                else:
                    yield ": still here\n\n"
                changed = await stream.wait()
        finally:
            streams.close(stream)

    def _news(changed: list[Entry], ids: frozenset[str] | None) -> str:
        if ids is None:
            parts = {f"study-{entry.id}": pages.row(entry) for entry in changed}
        else:
            parts = {"top": pages.top(changed[0])} if len(ids) == 1 else {}
        points = pages.points(changed[0]) if ids is not None and len(ids) == 1 else []
        version = sum(entry.version for entry in catalog.known() if ids is None or entry.id in ids)
        return json.dumps({"parts": parts, "version": version, "points": points})

    @app.get("/plotly.js")
    def plotly_js() -> Response:
        headers = {**_FOR_A_DAY, "content-encoding": "gzip", "vary": "accept-encoding"}
        return Response(_plotly(), media_type="text/javascript", headers=headers)

    for name, read in (
        ("page.css", template_file),
        ("figures.js", template_file),
        ("serve.css", asset),
        ("serve.js", asset),
    ):
        app.get(f"/{name}")(_file(name, read))
    return app


def _file(name: str, read: Callable[[str], str | None]) -> Callable[[], Response]:
    kind = "text/css" if name.endswith(".css") else "text/javascript"

    def file() -> Response:
        return Response(read(name), media_type=kind, headers={"cache-control": "private, no-cache"})

    return file


@cache
def _plotly() -> bytes:
    return gzip.compress(get_plotlyjs().encode(), 6)
