"""Fixtures for every test: certificates, the two brokers, and QUIC in front of the remote one."""

from collections.abc import AsyncIterator
import logging
from pathlib import Path

from hypothesis import HealthCheck, settings
import pytest

# Before Home Assistant's harness puts its own package of that name first.
import custom_components.quic_bridge.bridge  # noqa: F401

from .support.certs import Certificates
from .support.mosquitto import Mosquitto, MosquittoOptions
from .support.quic_front import Front

# How long an example or a callback takes says something of the machine alone.
settings.register_profile("patient", settings(), deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("patient")
logging.getLogger("asyncio").addFilter(lambda record: not str(record.msg).startswith("Executing "))


@pytest.fixture(scope="session")
def certs(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    """Certificates for loopback, made once a session."""
    return Certificates(tmp_path_factory.mktemp("certs"))


@pytest.fixture
async def local_broker(socket_enabled: None, tmp_path: Path) -> AsyncIterator[Mosquitto]:
    """The home's broker: open to all, sessions kept over a restart, queues without a bound."""
    options = MosquittoOptions(persistence=True, max_queued_messages=0)
    async with Mosquitto(tmp_path / "local", options, name="local") as broker:
        yield broker


@pytest.fixture
async def remote_broker(socket_enabled: None, tmp_path: Path) -> AsyncIterator[Mosquitto]:
    """The broker behind the QUIC front: open to all, sessions kept over a restart, queues without a bound."""
    options = MosquittoOptions(persistence=True, max_queued_messages=0)
    async with Mosquitto(tmp_path / "remote", options, name="remote") as broker:
        yield broker


@pytest.fixture
async def quic_front(remote_broker: Mosquitto, certs: Certificates) -> AsyncIterator[Front]:
    """The remote broker over QUIC, in this process, with every fault at hand."""
    async with Front(remote_broker.address, certs.server.cert_file, certs.server.key_file) as front:
        yield front


from .ha_fixtures import *  # noqa: E402, F403 # Home Assistant's rules, for the tests that use it
