"""A TcpTransport connected to a peer, with or without TLS."""

from pathlib import Path
import ssl

from custom_components.quic_bridge.bridge.config import TlsConfig
from custom_components.quic_bridge.bridge.transport import TcpTransport

from ..support.certs import Certificate
from .transport_support import Peer, PeerConnection, Receiver, tcp_config


def server_context(certificate: Certificate, client_ca: Path | None = None) -> ssl.SSLContext:
    """Make the server's side of TLS."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate.cert_file, certificate.key_file)
    if client_ca is not None:
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_verify_locations(client_ca)
    return context


class Pair:
    """A connected transport and the peer's end of it."""

    def __init__(self, transport: TcpTransport, receiver: Receiver, far: PeerConnection) -> None:
        """See `connect`."""
        self.transport = transport
        self.receiver = receiver
        self.far = far


async def connect(peer: Peer, tls: TlsConfig | None = None) -> Pair:
    """Connect a transport to the peer."""
    transport = TcpTransport(tcp_config(peer.address, tls=tls))
    receiver = Receiver()
    receiver.transport = transport
    number = len(peer.connections) + 1
    await transport.connect(receiver)
    return Pair(transport, receiver, await peer.connection(number))
