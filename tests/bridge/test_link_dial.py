"""The remote cannot be reached, or does not let us in: from the first datagram to the CONNACK."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
import socket

from aioquic.quic.packet import QuicErrorCode
import pytest

from custom_components.quic_bridge.bridge.config import BrokerConfig, QuicConfig, TlsConfig
from custom_components.quic_bridge.bridge.errors import BridgeError, ErrorCode
from custom_components.quic_bridge.bridge.status import BridgeState, LinkState, Side

from ..support.certs import Certificates
from ..support.faults import delay_connack, refuse_connect
from ..support.processes import AT_ONCE, wait_until
from ..support.quic_front import Front
from .link_support import Numbers, Scene, make_scene, now

pytestmark = pytest.mark.usefixtures("socket_enabled")


@pytest.fixture
async def scene(socket_enabled: None, certs: Certificates, tmp_path: Path) -> AsyncIterator[Scene]:
    async with make_scene(certs, tmp_path) as scene:
        yield scene


async def back_again(scene: Scene) -> None:
    """The bridge comes up by itself, and messages cross both ways."""
    await scene.running()
    async with Numbers(scene) as numbers:
        numbers.start()
        await numbers.flowing()
        await numbers.settled()


# --- reaching the broker, and the handshake ---------------------------------------------------------------------------


async def _nothing(_scene: Scene) -> None:
    pass


async def _gone(scene: Scene) -> None:
    scene.front.die()


async def _silent(scene: Scene) -> None:
    scene.front.freeze()


async def _silent_after_first_answer(scene: Scene) -> None:
    seen: list[int] = []

    def drop(datagram: bytes) -> bool:
        seen.append(len(datagram))
        return len(seen) > 1

    scene.front.outgoing.drop = drop
    # A chain that does not fit into the first datagram.
    configuration = scene.front._configuration
    configuration.certificate_chain = [configuration.certificate] * 4


async def _overloaded(scene: Scene) -> None:
    scene.front.policy.refuse_handshake = 0x15A


async def _refuses(scene: Scene) -> None:
    scene.front.policy.refuse_handshake = QuicErrorCode.CONNECTION_REFUSED


async def _other_protocol(scene: Scene) -> None:
    scene.front.policy.alpn = ("h3",)


async def _wants_certificate(scene: Scene) -> None:
    assert scene.remote_config.tls is not None
    scene.front.policy.client_ca_pem = str(scene.remote_config.tls.ca)


async def _dialling(scene: Scene) -> None:
    await wait_until(
        lambda: scene.link.state is LinkState.CONNECTING and scene.front._endpoint.incoming.dropped,
        what="first datagram",
    )


async def _die_while_dialling(scene: Scene) -> None:
    await _dialling(scene)
    scene.front.die()


async def _die_in_handshake(scene: Scene) -> None:
    await wait_until(lambda: scene.front.connections, what="handshake")
    scene.front.die()


async def _mend(scene: Scene) -> None:
    scene.front.thaw()
    scene.front.outgoing.clear()
    scene.front._configuration.certificate_chain = []
    policy = scene.front.policy
    policy.refuse_handshake, policy.alpn, policy.client_ca_pem = None, ("mqtt",), None
    if not scene.front._endpoint.is_open:
        await scene.front.start()


@dataclass(frozen=True, kw_only=True)
class Dial:
    """Why no connection comes about, and what must be seen of it."""

    name: str
    before: Callable[[Scene], Awaitable[None]]
    code: ErrorCode
    says: str
    during: Callable[[Scene], Awaitable[None]] = _nothing
    reason: int | None = None
    timeout: float = 2 * AT_ONCE
    """Handshake timeout: what is noticed sooner was understood."""
    refused: bool = False


DIALS = (
    Dial(name="closed-port", before=_gone, code=ErrorCode.REFUSED, says="Nothing listens"),
    Dial(name="silent", before=_silent, code=ErrorCode.NO_ANSWER, says="did not answer within", timeout=0.5),
    Dial(
        name="silent-in-handshake",
        before=_silent_after_first_answer,
        code=ErrorCode.NO_ANSWER,
        says="handshake",
        timeout=0.5,
    ),
    Dial(
        name="gone-while-dialling",
        before=_silent,
        during=_die_while_dialling,
        code=ErrorCode.REFUSED,
        says="Nothing listens",
    ),
    Dial(
        name="gone-in-handshake",
        before=_silent_after_first_answer,
        during=_die_in_handshake,
        code=ErrorCode.REFUSED,
        says="Nothing listens",
    ),
    Dial(name="overloaded", before=_overloaded, code=ErrorCode.OVERLOADED, says="overloaded", reason=0x15A),
    Dial(name="takes-no-connections", before=_refuses, code=ErrorCode.OVERLOADED, says="CONNECTION_REFUSED", reason=2),
    Dial(
        name="not-mqtt",
        before=_other_protocol,
        code=ErrorCode.NOT_MQTT_QUIC,
        says="check the port",
        reason=0x178,
        refused=True,
    ),
    Dial(
        name="wants-a-certificate-after-the-handshake",
        before=_wants_certificate,
        code=ErrorCode.CLIENT_CERTIFICATE_REQUIRED,
        says="wants a client certificate",
        reason=0x174,
        refused=True,
    ),
)


@pytest.mark.parametrize("dial", DIALS, ids=lambda dial: dial.name)
async def test_no_connection(scene: Scene, dial: Dial) -> None:
    """Noticed in time, named rightly, tried again; up by itself when the cause is gone."""
    scene.tune(QuicConfig(handshake_timeout=dial.timeout))
    await dial.before(scene)
    before = now()
    await scene.local_up()
    await dial.during(scene)
    elapsed, link = await scene.noticed(before)
    error = link.error
    assert error is not None
    assert (error.code, error.reason_code) == (dial.code, dial.reason)
    assert dial.says in error.text
    assert elapsed < AT_ONCE
    assert link.state is (LinkState.REFUSED if dial.refused else LinkState.WAITING)
    assert link.next_attempt is not None
    assert link.next_attempt > error.at
    assert link.connected_at is None
    assert link.reconnects == 0
    await scene.until(lambda status: status.remote.attempts >= 2, "second attempt")
    assert scene.bridge.status.local.state is LinkState.CONNECTED
    await _mend(scene)
    await back_again(scene)
    assert scene.link.attempts == 0


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"ca": "other authority"}, ErrorCode.CERTIFICATE_UNTRUSTED),
        ({"server_name": "elsewhere.example.org"}, ErrorCode.CERTIFICATE_NAME),
        ({"certificate": "rubbish", "private_key": "rubbish"}, ErrorCode.CLIENT_CERTIFICATE_INVALID),
    ],
)
async def test_certificates_that_do_not_do(
    scene: Scene, certs: Certificates, changes: dict[str, str], code: ErrorCode
) -> None:
    if "ca" in changes:
        changes = {"ca": certs.other_authority.pem}
    scene.remote_config = replace(scene.remote_config, tls=replace(TlsConfig(ca=certs.ca_pem), **changes))  # type: ignore[arg-type]
    before = now()
    await scene.bridge.start()
    elapsed, link = await scene.noticed(before)
    assert link.error is not None
    assert link.error.code is code
    assert link.state is LinkState.REFUSED
    assert scene.bridge.status.state is BridgeState.REFUSED
    assert elapsed < AT_ONCE
    assert not scene.front.stats.connects


async def test_an_expired_certificate_and_its_renewal(scene: Scene, certs: Certificates) -> None:
    await scene.front.stop()
    expired = certs.expired
    async with Front(scene.remote.address, expired.cert_file, expired.key_file, port=scene.front.port):
        before = now()
        await scene.bridge.start()
        _, link = await scene.noticed(before)
        assert link.error is not None
        assert link.error.code is ErrorCode.CERTIFICATE_EXPIRED
        assert link.state is LinkState.REFUSED
    await scene.front.start()
    await back_again(scene)


@pytest.mark.parametrize("good", [True, False], ids=["accepted", "of-another-authority"])
async def test_client_certificates(scene: Scene, certs: Certificates, good: bool) -> None:
    scene.front.policy.client_ca_pem = certs.ca_pem
    mine = certs.client if good else certs.untrusted_client
    tls = TlsConfig(ca=certs.ca_pem, certificate=mine.pem, private_key=mine.key_pem)
    scene.remote_config = replace(scene.remote_config, tls=tls)
    if good:
        await back_again(scene)
        return
    before = now()
    await scene.bridge.start()
    _, link = await scene.noticed(before)
    assert link.error is not None
    assert (link.error.code, link.error.reason_code) == (ErrorCode.CLIENT_CERTIFICATE_REFUSED, 0x130)
    # The handshake was complete on our side; that is not "connected".
    assert scene.front.stats.handshakes >= 1
    assert LinkState.CONNECTED not in scene.states()
    assert link.state is LinkState.REFUSED


async def test_the_name_leads_elsewhere_after_a_while(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each attempt asks for the address anew, and a name server that fails stops nothing."""
    answers: list[list[object]] = []
    asked: list[str] = []

    def getaddrinfo(host: str, port: int, *_: object, **__: object) -> list[object]:
        if host != "broker.example.org":
            return genuine(host, port, *_, **__)  # type: ignore[arg-type,return-value]
        asked.append(host)
        if not answers:
            raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")
        return answers[-1]

    genuine = socket.getaddrinfo
    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    scene.tune(QuicConfig(handshake_timeout=0.5), host="broker.example.org")
    scene.remote_config = replace(
        scene.remote_config, tls=replace(scene.remote_config.tls or TlsConfig(), server_name="localhost")
    )
    before = now()
    await scene.bridge.start()
    _, link = await scene.noticed(before)
    assert link.error is not None
    assert link.error.code is ErrorCode.NAME_NOT_FOUND
    assert "broker.example.org" in link.error.text
    assert link.state is LinkState.WAITING
    # Then it leads to a port where nobody is, then to the broker.
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as nobody:
        nobody.bind(("127.0.0.1", 0))
        answers.append([(socket.AF_INET, socket.SOCK_DGRAM, 17, "", nobody.getsockname())])
        await wait_until(lambda: scene.errors()[-1].code is ErrorCode.NO_ANSWER, what="NO_ANSWER")
    answers.append([(socket.AF_INET, socket.SOCK_DGRAM, 17, "", scene.front.address)])
    await back_again(scene)
    assert len(asked) >= 3


# --- CONNECT and CONNACK ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", [5, 4], ids=["mqtt-5", "mqtt-3.1.1"])
@pytest.mark.parametrize(
    ("code", "v3_code", "expected"),
    [
        (0x86, 4, ErrorCode.BAD_CREDENTIALS),
        (0x87, 5, ErrorCode.NOT_AUTHORIZED),
        (0x8A, 5, ErrorCode.BANNED),
        (0x85, 2, ErrorCode.CLIENT_ID_REFUSED),
    ],
)
async def test_refused_credentials_are_no_storm(
    scene: Scene, code: int, v3_code: int, expected: ErrorCode, version: int
) -> None:
    if version == 4:
        scene.front.add_rule(refuse_connect(0x84, version=5))
        code, expected = v3_code, ErrorCode.NOT_AUTHORIZED if v3_code == 5 else expected
    refusal = refuse_connect({4: 0x86, 5: 0x87, 2: 0x85}.get(code, code))
    scene.front.add_rule(refusal)
    scene.backoff = replace(scene.backoff, refused_base=0.2, refused_cap=0.2)
    times: list[float] = []
    scene.front.policy.on_connect = lambda connection: (
        times.append(asyncio.get_running_loop().time()) if connection.v5 == (version == 5) else None
    )
    before = now()
    await scene.local_up()
    elapsed, link = await scene.noticed(before)
    error = link.error
    assert error is not None
    assert (error.code, error.reason_code) == (expected, code)
    assert "refused the connection" in error.text
    assert link.state is LinkState.REFUSED
    assert link.protocol == ("5" if version == 5 else "3.1.1")
    assert elapsed < AT_ONCE
    await wait_until(lambda: len(times) >= 3, what="third attempt")
    assert all(after - earlier >= 0.1 for earlier, after in pairwise(times))
    assert LinkState.CONNECTED not in scene.states()
    assert all(status.state is not BridgeState.RUNNING for _, status in scene.history)
    scene.front.clear_rules()
    await scene.running()


@pytest.mark.parametrize(
    ("code", "expected", "refused"),
    [
        (0x88, ErrorCode.OVERLOADED, False),
        (0x89, ErrorCode.OVERLOADED, False),
        (0x97, ErrorCode.OVERLOADED, False),
        (0x9F, ErrorCode.OVERLOADED, False),
        (0x80, ErrorCode.CONNECT_REFUSED, True),
        (0x9C, ErrorCode.CONNECT_REFUSED, True),
    ],
)
async def test_other_refusals(scene: Scene, code: int, expected: ErrorCode, refused: bool) -> None:
    scene.front.add_rule(refuse_connect(code, times=1))
    before = now()
    await scene.bridge.start()
    _, link = await scene.noticed(before)
    assert link.error is not None
    assert (link.error.code, link.error.reason_code) == (expected, code)
    assert link.state is (LinkState.REFUSED if refused else LinkState.WAITING)
    await scene.running()
    assert len(scene.front.stats.connects) == 2


async def test_no_connack(scene: Scene) -> None:
    scene.front.add_rule(delay_connack(None, times=1))
    scene.tune(connack_timeout=0.3)
    before = now()
    await scene.bridge.start()
    elapsed, link = await scene.noticed(before)
    assert link.error is not None
    assert link.error.code is ErrorCode.NO_CONNACK
    assert "0.3 s" in link.error.text
    assert 0.3 <= elapsed < AT_ONCE
    assert link.state is LinkState.WAITING
    await back_again(scene)


async def test_a_connack_that_takes_its_time_is_waited_for(scene: Scene) -> None:
    """EMQX needs 3 s when the client identifier was taken over a moment before: giving up sooner never ends."""
    scene.front.add_rule(delay_connack(1.0, times=1))
    scene.tune(connack_timeout=5.0)
    await scene.local_up()
    connection = await scene.front.wait_session(1)
    await back_again(scene)
    assert len(scene.front.stats.connects) == 1
    assert connection is scene.front.connection
    # Nothing was said before the broker accepted us.
    assert scene.errors() == []
    assert scene.states() == [LinkState.STOPPED, LinkState.CONNECTING, LinkState.CONNECTED]


# --- our own side -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("error", [RuntimeError("x"), OSError("y"), asyncio.InvalidStateError("z"), TimeoutError()])
async def test_no_error_of_ours_ends_the_attempts(
    scene: Scene, error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    """Whatever goes wrong while dialling, the link goes on."""
    failures = [error, error]

    def settings() -> BrokerConfig:
        if failures:
            raise failures.pop()
        return scene.local_config

    scene.settings = settings
    await scene.running()
    assert not failures
    errors = [status.local.error for _, status in scene.history if status.local.error is not None]
    assert errors[0].code is ErrorCode.INTERNAL
    assert repr(error) in errors[0].text
    assert "Unexpected error" in caplog.text


async def test_no_error_of_a_listener_ends_the_attempts(scene: Scene, caplog: pytest.LogCaptureFixture) -> None:
    scene.listener_error = RuntimeError("a listener broke")
    await scene.running()
    await scene.front.stop()
    await scene.until(lambda status: status.remote.state is LinkState.WAITING, "loss")
    await scene.front.start()
    await scene.running()
    await scene.bridge.stop()
    assert scene.bridge.status.state is BridgeState.STOPPED
    assert "a listener broke" in caplog.text


async def test_a_local_broker_that_is_not_set_up_is_asked_for_again(scene: Scene) -> None:
    def missing() -> BrokerConfig:
        raise BridgeError(ErrorCode.LOCAL_ENTRY_MISSING, "no MQTT entry")

    genuine, scene.settings = scene.settings, missing
    await scene.bridge.start()
    await scene.until(lambda status: status.local.state is LinkState.REFUSED, "local refused")
    assert scene.bridge.status.state is BridgeState.REFUSED
    await scene.until(lambda status: status.remote.state is LinkState.CONNECTED, "remote")
    scene.settings = genuine
    scene.bridge.reconnect(Side.LOCAL)
    await back_again(scene)
