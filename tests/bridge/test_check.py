"""What the config flow asks: can this broker be reached, and does it let us in."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from custom_components.quic_bridge.bridge.check import check_broker, check_settings, forget_session
from custom_components.quic_bridge.bridge.config import BrokerConfig, QuicConfig, TlsConfig
from custom_components.quic_bridge.bridge.errors import BridgeError, ErrorCode
from custom_components.quic_bridge.bridge.limits import Limits
from custom_components.quic_bridge.bridge.status import BridgeState

from ..support.certs import Certificates
from ..support.client import Client
from ..support.faults import delay_connack, refuse_connect
from ..support.mosquitto import Mosquitto, MosquittoOptions
from ..support.packets import Properties, Property, encode_disconnect
from ..support.processes import free_port, wait_until
from ..support.scripted_broker import ScriptedBroker
from .link_support import Numbers, Scene, make_scene

pytestmark = pytest.mark.usefixtures("socket_enabled")


@pytest.fixture
async def scene(socket_enabled: None, certs: Certificates, tmp_path: Path) -> AsyncIterator[Scene]:
    async with make_scene(certs, tmp_path) as scene:
        yield scene


async def refusal(config: BrokerConfig) -> BridgeError:
    """The error that the check ends with."""
    with pytest.raises(BridgeError) as caught:
        await check_broker(config)
    return caught.value


async def test_a_good_broker_over_quic_and_tcp(scene: Scene) -> None:
    await check_broker(scene.remote_config)
    await check_broker(scene.local_config)
    [connect] = scene.front.stats.connects
    assert connect.client_id.startswith("bridge-check-")
    assert connect.clean
    # It says goodbye, and the broker has nothing to remember.
    assert scene.front.stats.disconnects == [0]
    await wait_until(lambda: scene.front.stats.closes, what="CONNECTION_CLOSE")
    assert [close.error_code for close in scene.front.stats.closes] == [0]


async def test_what_the_broker_allows() -> None:
    announced: Properties = {
        Property.RECEIVE_MAXIMUM: 7,
        Property.MAXIMUM_PACKET_SIZE: 4000,
        Property.MAXIMUM_QOS: 1,
        Property.RETAIN_AVAILABLE: 0,
        Property.WILDCARD_AVAILABLE: 0,
        Property.SHARED_AVAILABLE: 0,
        Property.SUBSCRIPTION_IDENTIFIER_AVAILABLE: 0,
        Property.TOPIC_ALIAS_MAXIMUM: 3,
        Property.SERVER_KEEP_ALIVE: 45,
        Property.SESSION_EXPIRY: 600,
    }
    async with ScriptedBroker() as broker:
        task = asyncio.create_task(check_broker(BrokerConfig(host="127.0.0.1", port=broker.port, client_id="x")))
        connection = await broker.accept()
        await connection.handshake(properties=announced)
        check = await task
        assert connection.pings == 1
    assert check.protocol == "5"
    assert check.limits == Limits(
        window=7,
        receive_maximum=7,
        max_packet=4000,
        max_qos=1,
        retain=False,
        wildcards=False,
        shared_subscriptions=False,
        subscription_identifiers=False,
        topic_alias_maximum=3,
        server_keep_alive=45,
        session_expiry=600,
    )


async def test_a_broker_that_lets_us_in_and_goes() -> None:
    async with ScriptedBroker() as broker:
        task = asyncio.create_task(refusal(BrokerConfig(host="127.0.0.1", port=broker.port, client_id="x")))
        connection = await broker.accept()
        await connection.handshake()
        connection.send(encode_disconnect(0x8B))
        assert (await task).code is ErrorCode.SHUTTING_DOWN


async def test_a_bridge_that_runs_is_not_disturbed(scene: Scene) -> None:
    await scene.running()
    async with Numbers(scene) as numbers:
        numbers.start()
        await numbers.flowing()
        await asyncio.gather(*(check_broker(scene.remote_config) for _ in range(3)))
        await check_broker(scene.local_config)
        await numbers.flowing()
        await numbers.settled()
    assert scene.bridge.status.state is BridgeState.RUNNING
    assert scene.link.reconnects == scene.bridge.status.local.reconnects == 0


async def test_user_name_and_password(tmp_path: Path) -> None:
    options = MosquittoOptions(users={"user": "secret"})
    async with Mosquitto(tmp_path, options) as broker:
        config = BrokerConfig(host=broker.host, port=broker.port, client_id="x", username="user", password="secret")
        await check_broker(config)
        for wrong in (replace(config, password="wrong"), replace(config, username=None, password=None)):
            error = await refusal(wrong)
            assert error.code in {ErrorCode.BAD_CREDENTIALS, ErrorCode.NOT_AUTHORIZED}
            assert "secret" not in error.text
            assert "wrong" not in error.text


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        (0x86, ErrorCode.BAD_CREDENTIALS),
        (0x87, ErrorCode.NOT_AUTHORIZED),
        (0x8A, ErrorCode.BANNED),
        (0x85, ErrorCode.CLIENT_ID_REFUSED),
        (0x89, ErrorCode.OVERLOADED),
        (0x80, ErrorCode.CONNECT_REFUSED),
    ],
)
async def test_refusals(scene: Scene, code: int, expected: ErrorCode) -> None:
    scene.front.add_rule(refuse_connect(code))
    error = await refusal(scene.remote_config)
    assert (error.code, error.reason_code) == (expected, code)
    assert len(scene.front.stats.connects) == 1


async def test_a_broker_that_goes_by_the_client_identifier(scene: Scene) -> None:
    """It refuses visitors. The bridge is let in, and what the broker keeps for it stays there."""
    where = scene.remote.host, scene.remote.port
    async with Client(*where, client_id="bridge", clean=False) as client:
        await client.subscribe("down/#", qos=1)
    async with Client(*where) as client:
        await client.publish("down/lamp", b"on", qos=1)
    scene.front.add_rule(refuse_connect(0x87, but={"bridge"}))
    assert (await refusal(scene.remote_config)).code is ErrorCode.NOT_AUTHORIZED
    await check_settings(scene.remote_config)
    async with Client(*where, client_id="bridge", clean=False) as client:
        await client.wait_for(1)
        assert client.payloads == [b"on"]
    with pytest.raises(BridgeError) as caught:
        await check_settings(replace(scene.remote_config, client_id="another"))
    assert caught.value.code is ErrorCode.NOT_AUTHORIZED


async def test_what_cannot_be_reached(scene: Scene, certs: Certificates) -> None:
    tcp = BrokerConfig(host="127.0.0.1", port=free_port(), client_id="x")
    assert (await refusal(tcp)).code is ErrorCode.REFUSED
    # The TCP port of a broker, asked over QUIC.
    assert (await refusal(replace(scene.remote_config, port=scene.remote.port))).code is ErrorCode.REFUSED
    scene.front.freeze()
    silent = replace(scene.remote_config, quic=QuicConfig(handshake_timeout=0.3))
    assert (await refusal(silent)).code is ErrorCode.NO_ANSWER
    scene.front.thaw()
    untrusted = replace(scene.remote_config, tls=TlsConfig(ca=certs.other_authority.pem))
    assert (await refusal(untrusted)).code is ErrorCode.CERTIFICATE_UNTRUSTED


async def test_a_client_certificate_that_is_wanted_after_the_handshake(scene: Scene, certs: Certificates) -> None:
    scene.front.policy.client_ca_pem = certs.ca_pem
    assert (await refusal(scene.remote_config)).code is ErrorCode.CLIENT_CERTIFICATE_REQUIRED
    tls = TlsConfig(ca=certs.ca_pem, certificate=certs.client.pem, private_key=certs.client.key_pem)
    await check_broker(replace(scene.remote_config, tls=tls))


async def test_no_connack(scene: Scene) -> None:
    scene.front.add_rule(delay_connack(None))
    error = await refusal(replace(scene.remote_config, connack_timeout=0.2))
    assert error.code is ErrorCode.NO_CONNACK


@pytest.mark.parametrize("how", ["reason-0x84", "code-1", "hangs-up", "silent"])
async def test_a_broker_of_3_1_1(how: str) -> None:
    async with ScriptedBroker() as broker:
        timeout = 1.0 if how == "silent" else 10.0
        config = BrokerConfig(host="127.0.0.1", port=broker.port, client_id="x", connack_timeout=timeout)
        check = asyncio.create_task(check_broker(config))
        connection = await broker.accept()
        assert connection.connect.level == 5
        if how == "reason-0x84":
            await connection.handshake(code=0x84)
        elif how == "code-1":
            connection.send(b"\x20\x02\x00\x01")
        elif how == "hangs-up":
            await connection.close()
        connection = await broker.accept()
        assert connection.connect.level == 4
        assert connection.connect.clean
        await connection.handshake()
        assert await connection.receive() == b"\xe0\x00"
        await connection.close()
        await check


async def test_a_broker_that_hangs_up_whatever_is_said() -> None:
    async with ScriptedBroker() as broker:
        config = BrokerConfig(host="127.0.0.1", port=broker.port, client_id="x")
        check = asyncio.create_task(check_broker(config))
        for level in (5, 4):
            connection = await broker.accept()
            assert connection.connect.level == level
            await connection.close()
        with pytest.raises(BridgeError) as caught:
            await check
        assert caught.value.code is ErrorCode.CLOSED_BY_BROKER


async def test_the_last_word_counts() -> None:
    """Hung up on with MQTT 5, refused with 3.1.1: the refusal is what helps."""
    async with ScriptedBroker() as broker:
        config = BrokerConfig(host="127.0.0.1", port=broker.port, client_id="x")
        check = asyncio.create_task(check_broker(config))
        await (await broker.accept()).close()
        await (await broker.accept()).handshake(code=4)
        with pytest.raises(BridgeError) as caught:
            await check
        assert caught.value.code is ErrorCode.BAD_CREDENTIALS


async def test_cancelled_at_any_moment(scene: Scene) -> None:
    """Somebody closes the dialog: nothing is left behind."""
    for number in range(30):
        check = asyncio.create_task(check_broker(scene.remote_config))
        for _ in range(number):
            await asyncio.sleep(0.0005)
        check.cancel()
        await asyncio.wait((check,))
        assert check.cancelled() or check.exception() is None
    await wait_until(lambda: not scene.front.live, what="end of all connections")


async def test_a_session_is_forgotten_on_request(scene: Scene) -> None:
    """When the bridge is removed, the broker must not queue for it any more."""
    await scene.running()
    await scene.renew()
    await forget_session(scene.remote_config)
    async with Client(scene.remote.host, scene.remote.port, client_id="bridge", clean=False) as client:
        assert client.connack is not None
        assert not client.connack.session_present
