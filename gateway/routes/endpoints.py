"""The endpoints that clients call: the hot ones as plain ASGI, and the list of models.

A hot endpoint is the first steps of a request's way: the key, the body, the call. From there it is `exchange`'s.
Every request ends in one `Record`, whatever became of it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import msgspec

from gateway.exchange import LEFT_STATUS, Exchange
from gateway.http.client import EXTENSION, Client
from gateway.http.errors import INTERNAL_ERROR, INVALID_API_KEY, Fault, model_not_found
from gateway.http.parse import key_of, parse_call, request_id_of
from gateway.leaving import Leaving
from gateway.observe.metrics import OTHER
from gateway.record import Record
from gateway.stream.sink import ClientSink
from tenancy.call import Kind
from tenancy.directory import Directory, ModelFound
from tenancy.policy import Model

Scope = Mapping[str, Any]
Receive = Callable[[], Awaitable[Mapping[str, Any]]]
Send = Callable[[Any], Awaitable[None]]


class Front:
    """What every endpoint needs: who may call, where calls go, and who takes the record. `directory` changes with
    the policy.
    """

    def __init__(
        self,
        directory: Directory,
        exchange: Exchange,
        *,
        loop: asyncio.AbstractEventLoop,
        epoch: Callable[[], float],
        new_id: Callable[[], str],
        take: Callable[[Record], None],
        crashed: Callable[[Exception, str], None],
    ) -> None:
        self.directory = directory
        self.exchange = exchange
        self.loop = loop
        self.epoch = epoch
        self.new_id = new_id
        self.take = take
        self.crashed = crashed
        self.open_calls = 0
        self.on_quiet: Callable[[], None] | None = None

    def opened(self) -> None:
        """A call has begun."""
        self.open_calls += 1

    def closed(self) -> None:
        """A call has ended."""
        self.open_calls -= 1
        if self.open_calls == 0 and self.on_quiet is not None:
            self.on_quiet()


class CallEndpoint:
    """`POST` of one kind of call, as an ASGI application."""

    def __init__(self, kind: Kind, front: Front) -> None:
        self._kind = kind
        self._front = front

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        front = self._front
        client: Client = scope["extensions"][EXTENSION]
        headers: list[tuple[bytes, bytes]] = scope["headers"]
        request_id = request_id_of(headers) or front.new_id()
        record = Record(request_id, self._kind.path, front.loop.time())
        sink = ClientSink(client)
        front.opened()
        try:
            fault = await self._call(client, headers, receive, sink, record)
            if fault is not None:
                record.code = fault.code
                record.detail = fault.param or ""  # not the message: it may quote the client
                record.status = fault.status
                record.ended_at = front.loop.time()
                await _tell(sink, fault, request_id)
        except Exception as error:
            front.crashed(error, request_id)
            record.code, record.status = INTERNAL_ERROR.code, INTERNAL_ERROR.status
            await _tell(sink, INTERNAL_ERROR, request_id)
        finally:
            front.closed()
            record.status = record.status or INTERNAL_ERROR.status
            record.ended_at = record.ended_at or front.loop.time()
            front.take(record)

    async def _call(
        self, client: Client, headers: list[tuple[bytes, bytes]], receive: Receive, sink: ClientSink, record: Record
    ) -> Fault | None:
        front = self._front
        found = front.directory.find(key_of(headers), front.epoch())
        if found is None:
            return INVALID_API_KEY
        tenant, key = found
        record.tenant, record.key = tenant.name, key.name
        body = await client.read(receive)
        if not isinstance(body, bytes):
            record.status = LEFT_STATUS if body is None else body.status
            record.code = "" if body is None else body.code
            record.client_left = body is None
            record.ended_at = front.loop.time()
            return None
        record.bytes_in = len(body)
        call = parse_call(
            self._kind,
            body,
            headers,
            tenant,
            key,
            front.directory,
            arrived_at=record.arrived_at,
            request_id=record.request_id,
        )
        if isinstance(call, Fault):
            record.model = OTHER if call.param == "model" else ""
            return call
        record.model, record.streamed = call.model, call.streamed
        leaving = Leaving()
        client.on_leave(leaving.leave)
        await front.exchange.run(call, sink, leaving, record)
        return None


async def _tell(sink: ClientSink, fault: Fault, request_id: str) -> None:
    """Tell `fault` of a call outside its exchange: as an answer, or as one event where the head is out."""
    if sink.is_started:
        sink.write_event(fault.event())
        await sink.end()
    else:
        await sink.answer(fault.status, [*fault.headers(), (b"x-request-id", request_id.encode())], fault.body())


class ModelsEndpoint:
    """`GET /v1/models`: those that this key may use; with a name after it, that one."""

    def __init__(self, front: Front, created: int) -> None:
        self._front = front
        self._created = created

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        front = self._front
        headers: list[tuple[bytes, bytes]] = scope["headers"]
        request_id = request_id_of(headers) or front.new_id()
        record = Record(request_id, "/v1/models", front.loop.time())
        sink = ClientSink(scope["extensions"][EXTENSION])
        answer = self._answer(key_of(headers), scope["path_params"].get("name"), record)
        if isinstance(answer, Fault):
            record.code, record.status = answer.code, answer.status
            fields, body = answer.headers(), answer.body()
        else:
            record.status = 200
            fields, body = [(b"content-type", b"application/json")], msgspec.json.encode(answer)
        await sink.answer(record.status, [*fields, (b"x-request-id", request_id.encode())], body)
        record.ended_at = front.loop.time()
        front.take(record)

    def _answer(self, key_text: str, name: str | None, record: Record) -> Fault | dict[str, Any]:
        directory = self._front.directory
        found = directory.find(key_text, self._front.epoch())
        if found is None:
            return INVALID_API_KEY
        tenant, key = found
        record.tenant, record.key = tenant.name, key.name
        if name is None:
            return {"object": "list", "data": [self._told(model) for model in directory.models(tenant, key)]}
        known = directory.model(tenant, key, name)
        for model in directory.models(tenant, key):
            if isinstance(known, ModelFound) and model.name == known.name:
                return self._told(model)
        return model_not_found(name)

    def _told(self, model: Model) -> dict[str, Any]:
        told = {"id": model.name, "object": "model", "created": self._created, "owned_by": "penstock"}
        return told if model.context_tokens is None else {**told, "max_model_len": model.context_tokens}
