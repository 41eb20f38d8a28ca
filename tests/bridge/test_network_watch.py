"""A network that comes while the bridge waits for its next attempt."""

import asyncio

import pytest
import pytest_socket

from benchmarks.line import Namespace, why_not
from custom_components.quic_bridge.bridge.bridge import Bridge
from custom_components.quic_bridge.bridge.config import BackoffConfig, BridgeConfig, BrokerConfig
from custom_components.quic_bridge.bridge.errors import ErrorCode
from custom_components.quic_bridge.bridge.status import LinkState

from ..support.processes import wait_until
from ..support.scripted_broker import ScriptedBroker

pytestmark = [
    pytest.mark.usefixtures("socket_enabled"),
    pytest.mark.skipif(why_not() is not None, reason=why_not() or ""),
]

AWAY = "10.99.0.1"
SLOWLY = BackoffConfig(base=3600, cap=3600, refused_base=3600, refused_cap=3600)


async def ip(command: str) -> None:
    """Change the network."""
    process = await asyncio.create_subprocess_exec("ip", *command.split())
    assert await process.wait() == 0


async def test_the_network_comes() -> None:
    """Neither side waits for an hour then; one that is refused by its host is left to wait."""
    pytest_socket.socket_allow_hosts([AWAY, "127.0.0.1"])
    network = Namespace()
    broker = ScriptedBroker()
    broker.host = "0.0.0.0"  # in a network of our own
    try:
        async with network.entered():
            await ip("link set lo up")
            async with broker:
                remote = BrokerConfig(host=AWAY, port=broker.port, client_id="bridge")
                local = BrokerConfig(host="127.0.0.1", port=1, client_id="bridge")
                config = BridgeConfig(remote=remote, routes=(), backoff=SLOWLY, local_backoff=SLOWLY)
                bridge = Bridge(config, lambda: local, lambda _: None)
                await bridge.start()
                try:
                    await wait_until(lambda: bridge.status.remote.error, what="the failure")
                    assert bridge.status.remote.error is not None
                    assert bridge.status.remote.error.code is ErrorCode.UNREACHABLE
                    assert "Network is unreachable" in bridge.status.remote.error.text
                    await ip(f"address add {AWAY}/32 dev lo")
                    connection = await broker.accept()
                    await connection.handshake()
                    await wait_until(lambda: bridge.status.remote.state is LinkState.CONNECTED, what="connected")
                    assert bridge.status.local.attempts == 1
                finally:
                    await bridge.stop()
    finally:
        network.close()
