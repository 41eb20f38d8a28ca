"""What a QUIC stream of its own gains: small messages beside a large one, over a network that loses packets.

    python -m benchmarks.streams [--loss PERCENT] [--rtt MS] [--large BYTES] [--rate N] [--runs N] [--json]

Small messages are published on a clock while one large message is on its way to the remote broker: once all on the
session's stream, once with the large one on the stream of its route. The delay and the loss are made in the QUIC front.
Everything but the two brokers is one process, in both cases alike. What each figure means is said in
docs/benchmarks.md.
"""

import argparse
import asyncio
from contextlib import AsyncExitStack
from dataclasses import asdict, dataclass
import json
from pathlib import Path
import statistics
import sys
import tempfile
from typing import Final

from custom_components.quic_bridge.bridge.bridge import Bridge
from custom_components.quic_bridge.bridge.config import BridgeConfig, BrokerConfig, TlsConfig, TransportKind
from custom_components.quic_bridge.bridge.routes import Direction, Route
from custom_components.quic_bridge.bridge.status import BridgeState
from tests.support.certs import Certificates
from tests.support.client import Client
from tests.support.mosquitto import Mosquitto, MosquittoOptions
from tests.support.processes import wait_until
from tests.support.quic_front import Front

from . import common

_LARGE: Final = "large/file"
_SMALL: Final = "small/lamp"
_LIMIT: Final = 300.0
"""Seconds that one run may take."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """One run. Delays run from the publisher's call to the subscriber's, in one process, by one clock."""

    large_s: float
    """From the publisher's call until the large message had arrived."""
    small: int
    """Small messages published in that time."""
    p50_ms: float
    p99_ms: float
    longest_ms: float


async def measure(arguments: argparse.Namespace, *, own_stream: bool) -> Measured:
    """Set everything up, send the large message and the small ones beside it."""
    loop = asyncio.get_running_loop()
    async with asyncio.timeout(_LIMIT), AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="quic-bridge-benchmark-")))
        options = MosquittoOptions(max_queued_messages=0, extra=["log_type none", "log_type error"])
        local, remote = Mosquitto(folder / "local", options), Mosquitto(folder / "remote", options)
        for broker in (local, remote):
            await stack.enter_async_context(broker)
        certificates = Certificates(folder)
        server = certificates.server
        front = await stack.enter_async_context(Front(remote.address, server.cert_file, server.key_file))
        for way in (front.incoming, front.outgoing):
            way.delay, way.loss = arguments.rtt / 2000, arguments.loss / 100
        bridge = Bridge(
            BridgeConfig(
                remote=BrokerConfig(
                    host=front.host,
                    port=front.port,
                    client_id="benchmark",
                    transport=TransportKind.QUIC,
                    tls=TlsConfig(ca=certificates.ca_pem),
                ),
                routes=(
                    Route(id="large", direction=Direction.TO_REMOTE, topic_filter="large/#", own_stream=own_stream),
                    Route(id="small", direction=Direction.TO_REMOTE, topic_filter="small/#"),
                ),
            ),
            lambda: BrokerConfig(host=local.host, port=local.port, client_id="benchmark"),
            lambda _status: None,
        )
        await bridge.start()
        stack.push_async_callback(bridge.stop)
        publisher = await stack.enter_async_context(Client(local.host, local.port))
        subscriber = await stack.enter_async_context(Client(remote.host, remote.port))
        await subscriber.subscribe("large/#", "small/#", qos=1)
        await wait_until(lambda: bridge.status.state is BridgeState.RUNNING, 30)

        large_sent = loop.time()
        await publisher.publish(_LARGE, bytes(arguments.large), 1)
        sent: list[float] = []
        while not (arrived := [message for message in subscriber.messages if message.topic == _LARGE]):
            await asyncio.sleep(large_sent + (len(sent) + 1) / arguments.rate - loop.time())
            sent.append(loop.time())
            await publisher.publish(_SMALL, len(sent).to_bytes(8).ljust(arguments.size, b"."), 1)
        await subscriber.wait_for(1 + len(sent), timeout=60)
        small = [message for message in subscriber.messages if message.topic == _SMALL]
        delays = [message.time - sent[int.from_bytes(message.payload[:8]) - 1] for message in small]
    percentiles = statistics.quantiles(delays, n=100, method="inclusive")
    return Measured(
        large_s=arrived[0].time - large_sent,
        small=len(sent),
        p50_ms=percentiles[49] * 1000,
        p99_ms=percentiles[98] * 1000,
        longest_ms=max(delays) * 1000,
    )


async def run_all(arguments: argparse.Namespace) -> dict[str, list[Measured]]:
    """Repeat both in turn."""
    results: dict[str, list[Measured]] = {"common stream": [], "stream of its own": []}
    for number in range(arguments.runs):
        for name, runs in results.items():
            common.progress(f"run {number + 1} of {arguments.runs}: {name}")
            runs.append(await measure(arguments, own_stream=name == "stream of its own"))
    return results


def show(results: dict[str, list[Measured]]) -> str:
    """Set the table: medians, and the worst of the longest."""
    rows = [
        (
            name,
            common.figure(common.median([run.large_s for run in runs]), 1),
            common.figure(common.median([run.p50_ms for run in runs])),
            common.figure(common.median([run.p99_ms for run in runs])),
            common.figure(max(run.longest_ms for run in runs)),
        )
        for name, runs in results.items()
    ]
    return common.table(("the large message on", "large s", "small p50 ms", "p99 ms", "longest"), rows)


def main() -> int:
    """Measure and print."""
    parser = common.parser(__doc__, runs=3)
    parser.add_argument("--loss", type=float, default=2.0, help="percent of datagrams lost, each way (2)")
    parser.add_argument("--rtt", type=float, default=50.0, help="round-trip time of the network in ms (50)")
    parser.add_argument("--large", type=int, default=5_000_000, help="bytes of the large message (5,000,000)")
    parser.add_argument("--rate", type=float, default=20.0, help="small messages a second (20)")
    arguments = parser.parse_args()
    around = common.surroundings()
    results = common.run(run_all(arguments), 2 * arguments.runs * _LIMIT)
    if arguments.json:
        lines = [{"way": name, "runs": [asdict(run) for run in runs]} for name, runs in results.items()]
        settings = {name: getattr(arguments, name) for name in ("loss", "rtt", "large", "rate", "size")}
        json.dump({"benchmark": "streams", **settings, "surroundings": around, "lines": lines}, sys.stdout, indent=2)
        print()
    else:
        print(
            f"{arguments.large:,} bytes beside {arguments.rate:g} messages of {arguments.size} bytes a second, QoS 1, "
            f"{arguments.loss:g} % loss, {arguments.rtt:g} ms round trip, median of {arguments.runs} runs\n"
        )
        print(show(results))
        print(f"\n{common.describe(around)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
