"""A QuicTransport connected to the QUIC front, both ends at hand."""

from typing import TYPE_CHECKING

from custom_components.quic_bridge.bridge.config import QuicConfig
from custom_components.quic_bridge.bridge.transport import QuicTransport

from ..support.certs import Certificates
from ..support.processes import wait_until
from ..support.quic_front import Front
from .transport_support import Peer, PeerConnection, Receiver, quic_config

if TYPE_CHECKING:
    from ..support.front_connection import FrontConnection


class Pair:
    """A connected transport, and the peer's end of it."""

    def __init__(self, transport: QuicTransport, receiver: Receiver, front: Front, peer: Peer) -> None:
        """See `connect`."""
        self.transport = transport
        self.receiver = receiver
        self.front = front
        self.peer = peer

    @property
    def quic(self) -> FrontConnection:
        """The front's end of the QUIC connection."""
        return self.front.connection

    async def peer_connection(self) -> PeerConnection:
        """Return the far end of the stream; it exists only once we have written something."""
        self.transport.write(b"\0")
        far = await self.peer.connection()
        await far.wait_data(1)
        return far

    async def sent(self, stream_id: int, size: int) -> None:
        """Wait until the front has sent so much of a stream."""
        sender = self.quic.quic._streams[stream_id].sender
        await wait_until(lambda: sender.highest_offset >= size, what="bytes of the front on their way")

    async def settled(self) -> None:
        """Wait until the broker has acknowledged everything."""
        await wait_until(lambda: not self.transport.backlog, what="acknowledgement of everything")


async def connect(front: Front, certs: Certificates, peer: Peer, quic: QuicConfig | None = None) -> Pair:
    """Connect a transport to the front."""
    transport = QuicTransport(quic_config(front.address, certs.ca_pem, quic=quic))
    receiver = Receiver()
    receiver.transport = transport
    await transport.connect(receiver)
    return Pair(transport, receiver, front, peer)
