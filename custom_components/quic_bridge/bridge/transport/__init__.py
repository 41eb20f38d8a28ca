"""The two ways bytes reach a broker."""

from ..config import BrokerConfig, TransportKind
from .base import Transport
from .quic import QuicTransport
from .tcp import TcpTransport


def make_transport(config: BrokerConfig) -> Transport:
    """Make the transport that the configuration asks for, not yet connected."""
    return QuicTransport(config) if config.transport is TransportKind.QUIC else TcpTransport(config)


__all__ = ["QuicTransport", "TcpTransport", "make_transport"]
