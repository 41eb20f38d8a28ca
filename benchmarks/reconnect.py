"""From dialling to the first message that the broker has acknowledged: full handshakes, resumed ones, and early data.

    python -m benchmarks.reconnect [--runs N] [--json]

Beside them TLS 1.3 over TCP. The round trips are made between two network namespaces (see benchmarks/line.py), so it
needs root; elsewhere it says so and does nothing. What each figure means is said in docs/benchmarks.md.
"""

import argparse
import asyncio
from collections.abc import Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from enum import StrEnum
import json
from pathlib import Path
import sys
import tempfile
import time
from typing import Final

from custom_components.quic_bridge.bridge.config import BrokerConfig, QuicConfig, TlsConfig, TransportKind
from custom_components.quic_bridge.bridge.errors import BridgeError
from custom_components.quic_bridge.bridge.transport import QuicResources, make_transport
from custom_components.quic_bridge.bridge.transport.quic_tickets import TicketStore
from tests.support.certs import Certificates
from tests.support.front_process import FrontProcess
from tests.support.mosquitto import Mosquitto, MosquittoOptions
from tests.support.packets import Connect, PacketType, Publish, Splitter

from . import common
from .line import AWAY_ADDRESS, DEVICE, HOME_ADDRESS, Line, why_not

ROUND_TRIPS: Final = (0.0, 0.05, 0.2)
"""In seconds."""
OTHER_ADDRESS: Final = "10.77.0.3"
_PATIENCE: Final = 10.0
_TICKET_TIME: Final = 0.3
"""Seconds for a broker to give a ticket, beyond a round trip."""


class Way(StrEnum):
    """How the connection is made."""

    FULL = "QUIC, full handshake"
    RESUMED = "QUIC, resumed"
    EARLY = "QUIC, resumed, early data"
    REFUSED = "QUIC, early data refused"
    TLS = "TLS 1.3 over TCP"
    MOVED = "QUIC, address changed"
    """No reconnect: the same connection, the moment after our only address was replaced by another."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """One connection; times in milliseconds from the call of `connect`, or from the change of address."""

    handshake_ms: float | None
    connack_ms: float | None
    puback_ms: float
    cpu_ms: float
    """Of this process, in all that."""


class Visitor:
    """Logs in, publishes one message with QoS 1 as soon as it may, and notes when what came."""

    def __init__(self, config: BrokerConfig, store: TicketStore) -> None:
        self.transport = make_transport(config, QuicResources(store))
        self._loop = asyncio.get_running_loop()
        self._splitter = Splitter()
        self._connack = 0.0
        self._puback: asyncio.Future[float] = self._loop.create_future()

    async def visit(self) -> Measured:
        """Do it all once, and leave."""
        measured = await self._log_in()
        await asyncio.sleep(_TICKET_TIME)
        await self.transport.close()
        return measured

    async def move(self, change_address: Callable[[], Awaitable[None]]) -> Measured:
        """Log in, change the address, publish once more, and leave."""
        await self._log_in()
        await asyncio.sleep(_TICKET_TIME)
        self._puback = self._loop.create_future()
        await change_address()
        cpu, started = time.process_time(), self._loop.time()
        self._publish()
        async with asyncio.timeout(_PATIENCE):
            puback = await self._puback
        cpu = time.process_time() - cpu
        if self.transport.status.migrations != 1:
            raise RuntimeError("the connection did not move")
        await self.transport.close()
        return Measured(handshake_ms=None, connack_ms=None, puback_ms=(puback - started) * 1000, cpu_ms=cpu * 1000)

    def _publish(self) -> None:
        self.transport.write(Publish(topic="reconnect", payload=b"first", qos=1, packet_id=1, properties={}).encode())

    async def _log_in(self) -> Measured:
        cpu, started = time.process_time(), self._loop.time()
        async with asyncio.timeout(_PATIENCE):
            await self.transport.connect(self, Connect(client_id="visitor").encode())
            handshake = self._loop.time()
            puback = await self._puback
        cpu = time.process_time() - cpu
        return Measured(
            handshake_ms=(handshake - started) * 1000,
            connack_ms=(self._connack - started) * 1000,
            puback_ms=(puback - started) * 1000,
            cpu_ms=cpu * 1000,
        )

    def data_received(self, data: bytes) -> None:
        """See TransportReceiver."""
        for packet in self._splitter.feed(data):
            if packet[0] >> 4 == PacketType.CONNACK:
                self._connack = self._loop.time()
                self._publish()
            elif packet[0] >> 4 == PacketType.PUBACK:
                self._puback.set_result(self._loop.time())

    def pause_writing(self) -> None:
        """See TransportReceiver."""

    def resume_writing(self) -> None:
        """See TransportReceiver."""

    def connection_lost(self, error: BridgeError) -> None:
        """See TransportReceiver."""
        if not self._puback.done():
            self._puback.set_exception(error)


class Stage(AsyncExitStack):
    """A broker at the far end of a line, over QUIC and over TLS."""

    _address = HOME_ADDRESS

    async def set_up(self) -> None:
        """Start everything."""
        self.line = await self.enter_async_context(Line())
        self._folder = Path(self.enter_context(tempfile.TemporaryDirectory(prefix="quic-bridge-benchmark-")))
        certificates = Certificates(self._folder)
        options = MosquittoOptions(tls=certificates.server, extra=["log_type none", "log_type error"])
        broker = Mosquitto(self._folder, options, name="remote")
        broker.host = AWAY_ADDRESS
        async with self.line.away.entered():
            await self.enter_async_context(broker)
            self.front = FrontProcess(self._folder, broker.address, certificates.server, arguments=("--tickets",))
            self.front.host = AWAY_ADDRESS
            await self.enter_async_context(self.front)
        tls = TlsConfig(ca=certificates.ca_pem, server_name="localhost")
        self._quic = BrokerConfig(
            host=AWAY_ADDRESS, port=self.front.port, client_id="visitor", transport=TransportKind.QUIC, tls=tls
        )
        self._tls = replace(self._quic, port=broker.tls_port, transport=TransportKind.TCP)

    async def visit(self, config: BrokerConfig, store: TicketStore) -> Measured:
        """Connect from the near end."""
        async with self.line.home.entered():
            return await Visitor(config, store).visit()

    async def measure(self, way: Way) -> Measured:
        """Connect once in a certain way; what has to be before is done before."""
        with self._tickets() as store:
            config = self._quic
            if way in {Way.EARLY, Way.REFUSED}:
                config = replace(config, quic=QuicConfig(early_data=True))
            if way in {Way.RESUMED, Way.EARLY, Way.REFUSED}:
                await self.visit(config, store)
            if way is Way.MOVED:
                async with self.line.home.entered():
                    measured = await Visitor(config, store).move(self._change_address)
                await store.close()
                return measured
            if way is Way.REFUSED:
                async with self.line.away.entered():
                    await self.front.stop()
                    await self.front.start()
            measured = await self.visit(self._tls if way is Way.TLS else config, store)
            await store.close()
            return measured

    async def _change_address(self) -> None:
        """Give the near end another address in place of the one it has; called in its namespace."""
        old, self._address = self._address, OTHER_ADDRESS if self._address == HOME_ADDRESS else HOME_ADDRESS
        for command in ("del", old), ("add", self._address):
            what, address = command
            process = await asyncio.create_subprocess_exec("ip", "address", what, f"{address}/24", "dev", DEVICE)
            if await process.wait():
                raise RuntimeError(f"ip address {what} failed")

    @contextmanager
    def _tickets(self) -> Iterator[TicketStore]:
        """Have a store without a past."""
        file = self._folder / "tickets"
        file.unlink(missing_ok=True)
        yield TicketStore(file)


async def run_all(runs: int) -> dict[float, dict[Way, list[Measured]]]:
    """Measure every way at every round trip, in turn."""
    results: dict[float, dict[Way, list[Measured]]] = {rtt: {way: [] for way in Way} for rtt in ROUND_TRIPS}
    async with Stage() as stage:
        await stage.set_up()
        for rtt, ways in results.items():
            await stage.line.shape(0.0, rtt)
            for number in range(runs):
                common.progress(f"round trip {rtt * 1000:g} ms, run {number + 1} of {runs}")
                for way, measured in ways.items():
                    measured.append(await stage.measure(way))
    return results


def show(results: dict[float, dict[Way, list[Measured]]]) -> str:
    """Set the table: medians, and the longest of the last column."""
    head = ("", "round trip ms", "handshake ms", "CONNACK ms", "PUBACK ms", "longest", "CPU ms")
    rows = []
    for rtt, ways in results.items():
        for way, runs in ways.items():
            rows.append(
                (
                    str(way),
                    common.figure(rtt * 1000),
                    common.figure(common.median([run.handshake_ms for run in runs]), 1),
                    common.figure(common.median([run.connack_ms for run in runs]), 1),
                    common.figure(common.median([run.puback_ms for run in runs]), 1),
                    common.figure(max(run.puback_ms for run in runs), 1),
                    common.figure(common.median([run.cpu_ms for run in runs]), 1),
                )
            )
    return common.table(head, rows)


def main() -> None:
    """Parse the command line, measure, print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument(
        "--runs", type=int, default=10, help="connections of each kind, of which medians are shown (10)"
    )
    parser.add_argument("--json", action="store_true", help="print all runs as JSON instead of a table")
    arguments = parser.parse_args()
    if (reason := why_not()) is not None:
        sys.exit(f"benchmarks.reconnect cannot run here: {reason}")
    around = common.surroundings()
    results = common.run(run_all(arguments.runs), 60.0 + 30.0 * arguments.runs)
    if arguments.json:
        found = {
            f"{rtt * 1000:g}": {way: [asdict(run) for run in runs] for way, runs in ways.items()}
            for rtt, ways in results.items()
        }
        print(json.dumps({"surroundings": around, "results": found}))
    else:
        print(f"{common.describe(around)}\n\n{show(results)}")


if __name__ == "__main__":
    main()
