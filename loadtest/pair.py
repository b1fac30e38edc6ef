"""One end of the socket pair between a run's two processes: messages in, messages out, each side with its own kinds."""

from __future__ import annotations

import asyncio
from typing import Generic, cast

from loadtest.messages import Frames, FromStreams, Message, ToStreams, encode


class End(asyncio.Protocol, Generic[Message]):
    """What this side reads comes into `messages`, as `frames` decodes it; `None` once the other end is closed."""

    def __init__(self, frames: Frames[Message]) -> None:
        self.messages: asyncio.Queue[Message | None] = asyncio.Queue()
        self._frames: Frames[Message] = frames
        self._transport: asyncio.WriteTransport | None = None

    @property
    def unread_bytes(self) -> int | None:
        """What was told and the other process has not taken yet; `None` where nobody listens any more."""
        return None if self._transport is None else self._transport.get_write_buffer_size()

    def tell(self, message: ToStreams | FromStreams) -> None:
        """Send a message, if the other end still listens."""
        if self._transport is not None:
            self._transport.write(encode(message))

    def close(self) -> None:
        """Close this end, once all that was told is out; `messages` then ends with `None`."""
        if self._transport is not None:
            self._transport.close()

    # ---- asyncio's callbacks

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.WriteTransport, transport)

    def data_received(self, data: bytes) -> None:
        for message in self._frames.feed(data):
            self.messages.put_nowait(message)

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        self.messages.put_nowait(None)
