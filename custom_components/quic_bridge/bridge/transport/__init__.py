"""The two ways bytes reach a broker."""

from ..config import BrokerConfig, TransportKind
from .base import Transport
from .quic import QuicTransport
from .quic_tickets import TicketStore
from .tcp import TcpTransport


def make_transport(config: BrokerConfig, tickets: TicketStore | None = None) -> Transport:
    """Make the transport that the configuration asks for, not yet connected; with `tickets` QUIC resumes sessions."""
    return QuicTransport(config, tickets) if config.transport is TransportKind.QUIC else TcpTransport(config)


__all__ = ["QuicTransport", "TcpTransport", "TicketStore", "make_transport"]
