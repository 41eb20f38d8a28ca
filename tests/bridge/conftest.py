"""Fixtures of the transports' tests."""

from collections.abc import AsyncIterator

import pytest

from ..support.certs import Certificates
from ..support.quic_front import Front
from .quic_transport_support import Pair, connect
from .tcp_transport_support import server_context
from .transport_support import QUICK, Peer


@pytest.fixture
async def peer() -> AsyncIterator[Peer]:
    """A server on plain TCP: what a transport talks to, or what lies behind the front."""
    peer = Peer()
    await peer.start()
    yield peer
    await peer.stop()


@pytest.fixture
async def front(peer: Peer, certs: Certificates) -> AsyncIterator[Front]:
    """QUIC in front of the peer."""
    async with Front(peer.address, certs.server.cert_file, certs.server.key_file) as front:
        yield front


@pytest.fixture
async def pair(front: Front, certs: Certificates, peer: Peer) -> AsyncIterator[Pair]:
    """A connection with default settings."""
    pair = await connect(front, certs, peer)
    yield pair
    pair.transport.abort()


@pytest.fixture
async def quick(front: Front, certs: Certificates, peer: Peer) -> AsyncIterator[Pair]:
    """A connection that asks for signs of life every 0.3 s."""
    pair = await connect(front, certs, peer, QUICK)
    yield pair
    pair.transport.abort()


@pytest.fixture
async def tls_peer(certs: Certificates) -> AsyncIterator[Peer]:
    """A server on TLS."""
    peer = Peer()
    await peer.start(server_context(certs.server))
    yield peer
    await peer.stop()
