"""The tables of routes: what the public address answers, and what the admin address does.

The hot endpoints are plain routes, because FastAPI's own machinery (dependencies, validation, response models)
costs more than the whole admission; the control endpoints use it.
"""

from __future__ import annotations

from collections.abc import Callable

from fastapi import FastAPI, Request, Response
from starlette.exceptions import HTTPException
from starlette.routing import Route

from gateway.http.errors import Fault, method_not_allowed, not_found
from gateway.routes.endpoints import CallEndpoint, Front, ModelsEndpoint
from tenancy.call import Kind

IsReady = Callable[[], bool]


def public_app(front: Front, is_ready: IsReady, started_at: int) -> FastAPI:
    """What clients reach: `/v1/*`, `/healthz`, `/readyz`. `started_at` is seconds since the epoch, for `/v1/models`."""
    hot = [Route(kind.value, CallEndpoint(kind, front), methods=["POST"]) for kind in Kind]
    app = _app([*hot, Route("/v1/models", ModelsEndpoint(front, started_at), methods=["GET"])])
    _add_health(app, is_ready)
    return app


def admin_app(expose: Callable[[], bytes], is_ready: IsReady) -> FastAPI:
    """What operators reach: `/healthz`, `/readyz`, `/metrics`."""
    app = _app([])
    _add_health(app, is_ready)

    @app.get("/metrics")
    async def metrics() -> Response:
        return Response(expose(), media_type="text/plain; version=0.0.4; charset=utf-8")

    return app


def _app(routes: list[Route]) -> FastAPI:
    # No /docs and no /openapi.json: whoever has no key learns nothing.
    app = FastAPI(openapi_url=None, docs_url=None, redoc_url=None, routes=list(routes))
    app.add_exception_handler(HTTPException, _fault_answer)
    return app


def _add_health(app: FastAPI, is_ready: IsReady) -> None:
    @app.get("/healthz")
    async def healthz() -> dict[str, str]:
        return {"status": "ok"}

    @app.get("/readyz")
    async def readyz(response: Response) -> dict[str, str]:
        if is_ready():
            return {"status": "ready"}
        response.status_code = 503
        return {"status": "not ready"}


async def _fault_answer(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    fault = _fault_of(request, error)
    answer = Response(fault.body(), status_code=fault.status)
    for name, value in fault.headers():
        answer.headers[name.decode()] = value.decode()
    return answer


def _fault_of(request: Request, error: HTTPException) -> Fault:
    if error.status_code == 405:
        allowed = (error.headers or {}).get("Allow", "another method")
        return method_not_allowed(request.method, request.url.path, allowed)
    return not_found(request.method, request.url.path)
