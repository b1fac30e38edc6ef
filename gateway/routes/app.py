"""The tables of routes: what the public address answers, and what the admin address does.

The hot endpoints stand before FastAPI, found by their path: on the way through its middleware, router and wrappers of
`send` a request spent 75 of 420 µs, 22 of them in looking up environment variables. Everything else goes through it.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from fastapi import FastAPI, Request, Response
from starlette.exceptions import HTTPException
from starlette.routing import Route

from gateway.http.errors import Fault, method_not_allowed, not_found
from gateway.http.parse import request_id_of
from gateway.record import Record
from gateway.routes.endpoints import CallEndpoint, Front, ModelsEndpoint, Receive, Send
from tenancy.call import Kind

IsReady = Callable[[], bool]


class PublicApp:
    """What clients reach, as an ASGI application: calls at once, the rest through FastAPI."""

    def __init__(self, calls: Mapping[str, CallEndpoint], rest: FastAPI) -> None:
        self._calls = calls
        self._rest = rest

    def __call__(self, scope: dict[str, Any], receive: Receive, send: Send) -> Awaitable[None]:
        endpoint = self._calls.get(scope["path"])
        if endpoint is not None and scope["method"] == "POST":
            return endpoint(scope, receive, send)
        return self._rest(scope, receive, send)  # type: ignore[arg-type]


def public_app(front: Front, is_ready: IsReady, started_at: int) -> PublicApp:
    """What clients reach: `/v1/*`, `/healthz`, `/readyz`. `started_at` is seconds since the epoch, for `/v1/models`."""
    calls = {kind.value: CallEndpoint(kind, front) for kind in Kind}
    models = ModelsEndpoint(front, started_at)
    named = [Route(path, models, methods=["GET"]) for path in ("/v1/models", "/v1/models/{name:path}")]
    # Calls are routes of the rest, too: that is how it knows what to say to another method there.
    routes = [Route(path, endpoint, methods=["POST"]) for path, endpoint in calls.items()]
    return PublicApp(calls, _app([*routes, *named], front, is_ready))


def admin_app(front: Front, expose: Callable[[], bytes], is_ready: IsReady) -> FastAPI:
    """What operators reach: `/healthz`, `/readyz`, `/metrics`."""
    app = _app([], front, is_ready)

    @app.get("/metrics")
    async def metrics() -> Response:
        return Response(expose(), media_type="text/plain; version=0.0.4; charset=utf-8")

    return app


def _app(routes: list[Route], front: Front, is_ready: IsReady) -> FastAPI:
    # No /docs and no /openapi.json: whoever has no key learns nothing. No redirects: their address would be what the
    # client calls this host.
    app = FastAPI(openapi_url=None, docs_url=None, redoc_url=None, redirect_slashes=False, routes=list(routes))

    async def unanswered(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        return _unanswered(front, request, error)

    app.add_exception_handler(HTTPException, unanswered)

    @app.api_route("/healthz", methods=["GET", "HEAD"])
    async def healthz(request: Request, response: Response) -> dict[str, str]:
        response.headers["x-request-id"] = _request_id(front, request)
        return {"status": "ok"}

    @app.api_route("/readyz", methods=["GET", "HEAD"])
    async def readyz(request: Request, response: Response) -> dict[str, str]:
        response.headers["x-request-id"] = _request_id(front, request)
        if is_ready():
            return {"status": "ready"}
        response.status_code = 503
        return {"status": "not ready"}

    return app


def _request_id(front: Front, request: Request) -> str:
    return request_id_of(request.scope["headers"]) or front.new_id()


def _unanswered(front: Front, request: Request, error: HTTPException) -> Response:
    """Whatever no route answers, in the contract's form and noted like any other request."""
    allowed = (error.headers or {}).get("Allow", "")
    fault = _fault_of(request, error, allowed)
    request_id, now = _request_id(front, request), front.loop.time()
    front.take(Record(request_id, request.url.path[:200], now, status=fault.status, code=fault.code, ended_at=now))
    answer = Response(fault.body(), status_code=fault.status, headers={"x-request-id": request_id})
    for name, value in fault.headers():
        answer.headers[name.decode()] = value.decode()
    if allowed:
        answer.headers["allow"] = allowed
    return answer


def _fault_of(request: Request, error: HTTPException, allowed: str) -> Fault:
    if error.status_code == 405:
        return method_not_allowed(request.method, request.url.path, allowed or "another method")
    return not_found(request.method, request.url.path)
