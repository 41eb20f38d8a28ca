"""A data stream of the front: as EMQX's, a copy of the session with packet identifiers of its own, for one stream.

To mosquitto it is one more client, of whose CONNECT and CONNACK the one at the other end of the stream knows nothing.
"""

import asyncio
from collections import Counter
from dataclasses import replace
from typing import TYPE_CHECKING, override

from .packets import PacketType, Splitter

if TYPE_CHECKING:
    from .front_connection import FrontConnection


class FrontStream(asyncio.Protocol):
    """Relays one client stream beside the MQTT stream to the broker, once that has its session."""

    def __init__(self, owner: FrontConnection, stream_id: int) -> None:
        self.stream_id = stream_id
        self.packets: Counter[PacketType] = Counter()
        """MQTT packets by type that came from the client."""
        self.held = False
        """What comes is left lying."""
        self._owner = owner
        self._tcp: asyncio.Transport | None = None
        self._dial: asyncio.Task[None] | None = None
        self._waiting = bytearray()
        self._from_client = Splitter()
        self._from_broker = Splitter()
        self._connected = False
        self.ended = False

    def feed(self, data: bytes) -> None:
        """Take bytes from the client."""
        self.packets.update(PacketType(packet[0] >> 4) for packet in self._from_client.feed(data))
        if self.ended:
            return
        self._waiting += data
        self.begin()

    def begin(self) -> None:
        """Go on; data streams wait until the MQTT stream has its CONNACK."""
        if self._dial is None and self._owner.accepted and self._owner.front.policy.serve_data_streams:
            self._dial = self._owner.front.own(self._connect())
        elif self._connected:
            self._forward()

    async def _connect(self) -> None:
        try:
            transport, _ = await asyncio.get_running_loop().create_connection(lambda: self, *self._owner.front.broker)
        except OSError:
            self.end(reset=0)
            return
        if self.ended:
            transport.abort()
            return
        control = self._owner.connect
        assert control is not None
        self._tcp = transport
        connect = replace(
            control,
            client_id=f"{control.client_id}/{self.stream_id}",
            clean=True,
            keepalive=0,
            properties={},
            will=None,
        )
        transport.write(connect.encode())

    def _forward(self) -> None:
        if self._waiting and self._tcp is not None and not self.held:
            self._tcp.write(bytes(self._waiting))
            self._waiting.clear()

    @override
    def data_received(self, data: bytes) -> None:
        for packet in self._from_broker.feed(data):
            if packet[0] >> 4 == PacketType.CONNACK:
                self._connected = True
                self._forward()
            elif not self.ended:
                self._owner.quic.send_stream_data(self.stream_id, packet)
                self._owner.front.touch(self._owner)

    @override
    def connection_lost(self, exc: Exception | None) -> None:
        self._tcp = None
        self.end(reset=0)

    def end(self, *, reset: int | None = None) -> None:
        """End the stream alone: by RESET_STREAM and STOP_SENDING, or by a FIN."""
        if self.ended:
            return
        self.ended = True
        quic = self._owner.quic
        if not self._owner.closed:
            if reset is None:
                quic.send_stream_data(self.stream_id, b"", end_stream=True)
            else:
                quic.reset_stream(self.stream_id, reset)
                quic.stop_stream(self.stream_id, reset)
            self._owner.front.touch(self._owner)
        self.release()

    def release(self) -> None:
        """Leave the broker."""
        self.ended = True
        if self._dial is not None:
            self._dial.cancel()
        if self._tcp is not None:
            self._tcp.close()
            self._tcp = None
