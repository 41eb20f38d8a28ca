"""Fixtures of the interoperability tests: each foreign stack in turn, between a bridge and its remote broker."""

from collections.abc import AsyncIterator
import os
from pathlib import Path

import pytest

from ..bridge.link_support import BridgeScene, make_brokers
from ..support.certs import Certificates
from ..support.host_network import HostNetwork
from ..support.mosquitto import Mosquitto
from .foreign_front import ForeignFront, Stack


class ForeignScene(BridgeScene):
    """A bridge whose remote broker is reached through a foreign stack. The front is not started yet."""

    def __init__(
        self, local: Mosquitto, remote: Mosquitto, front: ForeignFront, certs: Certificates, folder: Path
    ) -> None:
        super().__init__(local, remote, front.address, certs, folder)
        self.front = front
        self.certs = certs

    async def up(self) -> None:
        """Start the front and the bridge, and wait until both sides are up."""
        await self.front.start()
        await self.running()


@pytest.fixture(params=list(Stack))
def stack(request: pytest.FixtureRequest) -> Stack:
    """Each foreign stack; where one is not prepared the tests are skipped, but not in CI."""
    stack: Stack = request.param
    if stack.missing is not None:
        if os.environ.get("CI"):
            pytest.fail(f"{stack}: {stack.missing}")
        pytest.skip(f"{stack}: {stack.missing}")
    return stack


@pytest.fixture
def host_network(socket_enabled: None, monkeypatch: pytest.MonkeyPatch) -> HostNetwork:
    """A host whose address can change."""
    return HostNetwork(monkeypatch)


@pytest.fixture
async def scene(socket_enabled: None, stack: Stack, certs: Certificates, tmp_path: Path) -> AsyncIterator[ForeignScene]:
    """Two brokers, the foreign front and a bridge, of which only the brokers run."""
    async with make_brokers(tmp_path) as (local, remote):
        front = ForeignFront(stack, tmp_path, remote.address, certs.server)
        scene = ForeignScene(local, remote, front, certs, tmp_path)
        try:
            yield scene
        finally:
            await scene.bridge.stop()
            await front.stop()
