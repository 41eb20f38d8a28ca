"""The two ways bytes reach a broker."""

from ..config import BrokerConfig, TransportKind
from .base import Transport
from .quic import QuicTransport
from .quic_resources import QuicResources
from .tcp import TcpTransport


def make_transport(config: BrokerConfig, resources: QuicResources | None = None) -> Transport:
    """Make the transport that the configuration asks for, not yet connected; `resources` are for QUIC."""
    return QuicTransport(config, resources) if config.transport is TransportKind.QUIC else TcpTransport(config)


__all__ = ["QuicResources", "QuicTransport", "TcpTransport", "make_transport"]
