"""What outlives one QUIC connection."""

from dataclasses import dataclass
from typing import Self

from ..config import BridgeConfig
from .quic_logs import QuicLogs
from .quic_tickets import TicketStore


@dataclass(frozen=True, slots=True)
class QuicResources:
    """The tickets of a bridge's remote, and its logs for experts, as far as they are wanted."""

    tickets: TicketStore | None = None
    logs: QuicLogs | None = None

    @classmethod
    def of(cls, config: BridgeConfig) -> Self:
        """Make what the configuration asks for; nothing is read or written yet."""
        return cls(
            None if config.tickets is None else TicketStore(config.tickets),
            None if config.quic_logs is None else QuicLogs(config.quic_logs),
        )

    async def close(self) -> None:
        """Write what was not written yet; it can be used again."""
        for resource in (self.tickets, self.logs):
            if resource is not None:
                await resource.close()
