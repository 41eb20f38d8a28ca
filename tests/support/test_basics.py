"""The brokers, clients and the relaying front do their plain work."""

import asyncio
from pathlib import Path
import ssl

from cryptography import x509
import pytest

from .certs import Certificates
from .client import Client, ClientError
from .front_process import FrontProcess
from .mosquitto import Mosquitto, MosquittoOptions
from .packets import Connack, Connect, PacketType, Properties, Property, Publish, Subscription, Will, encode_disconnect
from .quic_front import Front
from .quic_probe import QuicProbe

pytestmark = pytest.mark.usefixtures("socket_enabled")


async def test_certificates(certs: Certificates) -> None:
    server = x509.load_pem_x509_certificate(certs.server.pem.encode())
    authority = x509.load_pem_x509_certificate(certs.ca_pem.encode())
    server.verify_directly_issued_by(authority)
    names = server.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["localhost"]
    assert [str(item) for item in names.get_values_for_type(x509.IPAddress)] == ["127.0.0.1", "::1"]
    expired = x509.load_pem_x509_certificate(certs.expired.pem.encode())
    assert expired.not_valid_after_utc < server.not_valid_after_utc
    with pytest.raises(ValueError, match="does not match"):
        x509.load_pem_x509_certificate(certs.untrusted_server.pem.encode()).verify_directly_issued_by(authority)


@pytest.mark.parametrize("version", [4, 5])
@pytest.mark.parametrize("qos", [0, 1, 2])
async def test_burst_arrives_whole_and_in_order(local_broker: Mosquitto, qos: int, version: int) -> None:
    payloads = [b"%d" % number for number in range(1000)]
    async with (
        Client(local_broker.host, local_broker.port, version=version) as receiver,
        Client(local_broker.host, local_broker.port, version=version) as sender,
    ):
        assert await receiver.subscribe("burst/#", qos=2) == [2]
        assert await sender.burst("burst/a", payloads, qos) == {}
        messages = await receiver.wait_for(1000)
    assert [message.payload for message in messages] == payloads
    assert {message.qos for message in messages} == {qos}


async def test_client_properties_retain_and_will(local_broker: Mosquitto) -> None:
    async with Client(local_broker.host, local_broker.port) as sender:
        properties: Properties = {Property.USER_PROPERTY: [("a", "b"), ("a", "c")], Property.CONTENT_TYPE: "text"}
        assert await sender.publish("kept", "x", 1, retain=True, properties=properties) == 0x10
        dying = Client(local_broker.host, local_broker.port, will=Will(topic="gone", payload=b"w", qos=1))
        await dying.connect()
        async with Client(local_broker.host, local_broker.port) as receiver:
            await receiver.subscribe(Subscription("#", 1, retain_as_published=True), "kept")
            await receiver.wait_for(1)
            dying.abort()
            messages = await receiver.wait_for(lambda found: any(item.topic == "gone" for item in found))
            assert await receiver.unsubscribe("nothing") == [0x11]
        await dying.wait_closed()
    kept = messages[0]
    assert (kept.topic, kept.payload, kept.retain, kept.properties) == ("kept", b"x", True, properties)


async def test_persistent_session_survives_a_restart_of_the_broker(local_broker: Mosquitto) -> None:
    client = Client(local_broker.host, local_broker.port, client_id="keeper", clean=False)
    assert not (await client.connect()).session_present
    await client.subscribe("a", qos=1)
    await client.disconnect()
    async with Client(local_broker.host, local_broker.port) as sender:
        await sender.publish("a", "while away", 1)
    port = local_broker.port
    await local_broker.restart()
    assert local_broker.port == port
    assert (await client.connect()).session_present
    await client.wait_for(1)
    assert client.payloads == [b"while away"]
    await client.disconnect()


async def test_broker_killed_and_frozen(local_broker: Mosquitto) -> None:
    client = Client(local_broker.host, local_broker.port)
    await client.connect()
    local_broker.freeze()
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.1):
            await client.ping()
    local_broker.thaw()
    await client.ping()
    await local_broker.kill()
    await client.wait_closed()
    await local_broker.start()
    await client.connect()
    await client.disconnect()


async def test_broker_with_users_acl_limits_and_tls(tmp_path: Path, certs: Certificates) -> None:
    options = MosquittoOptions(
        users={"ada": "secret"},
        acl="user ada\ntopic write allowed\n",
        max_inflight_messages=7,
        max_packet_size=2000,
        tls=certs.server,
        client_ca_file=certs.ca_file,
        extra=["max_keepalive 120"],
    )
    context = ssl.create_default_context(cadata=certs.ca_pem)
    context.load_cert_chain(certs.client.cert_file, certs.client.key_file)
    async with Mosquitto(tmp_path, options) as broker:
        with pytest.raises(ClientError) as refused:
            await Client(broker.host, broker.port, username="ada", password="wrong").connect()
        assert refused.value.code == 0x87
        async with Client(
            broker.host, broker.tls_port, tls=context, server_hostname="localhost", username="ada", password="secret"
        ) as client:
            assert client.connack is not None
            assert client.connack.properties is not None
            assert client.connack.properties[Property.RECEIVE_MAXIMUM] == client.send_window == 7
            assert client.connack.properties[Property.MAXIMUM_PACKET_SIZE] == 2000
            assert await client.publish("allowed", "x", 1) == 0x10
            assert await client.publish("forbidden", "x", 1) == 0x87
        assert "forbidden" in broker.log


async def test_front_relays_both_ways(quic_front: Front, remote_broker: Mosquitto, certs: Certificates) -> None:
    async with (
        QuicProbe(quic_front.address, certs.ca_pem) as probe,
        Client(remote_broker.host, remote_broker.port) as client,
    ):
        await client.subscribe("up")
        await probe.mqtt(Connect(client_id="probe", keepalive=30))
        probe.send(Publish(topic="up", payload=b"hello", qos=1, packet_id=1, properties={}).encode())
        assert await probe.wait_packet(PacketType.PUBACK) == b"\x40\x02\x00\x01"
        await client.wait_for(1)
        connection = await quic_front.wait_session()
        assert connection.connect is not None
        assert (connection.connect.client_id, connection.connect.keepalive) == ("probe", 30)
        probe.send(b"\xc0\x00" + encode_disconnect(0))
        await probe.wait_until(lambda: probe.fin)
        assert quic_front.stats.pingreqs == 1
        assert quic_front.stats.disconnects == [0]
        assert quic_front.stats.from_client[PacketType.PUBLISH] == 1
        probe.close()
        await quic_front.wait_until(lambda: connection.closed)
    assert [close.error_code for close in quic_front.stats.closes] == [0]


async def test_front_pushes_back(quic_front: Front, remote_broker: Mosquitto, certs: Certificates) -> None:
    """A client that does not read stops the broker's side; a broker that does not read stops the client."""
    async with QuicProbe(quic_front.address, certs.ca_pem) as probe:
        await probe.mqtt()
        remote_broker.freeze()
        size = 8 * 1024 * 1024
        probe.send(Publish(topic="big", payload=bytes(size), qos=1, packet_id=1, properties={}).encode())
        connection = quic_front.connection
        sent = -1
        while sent != connection.quic.consumed:
            sent = connection.quic.consumed
            await asyncio.sleep(0.3)
        assert sent < size * 3 // 4
        remote_broker.thaw()
        await probe.wait_packet(PacketType.PUBACK)
        assert connection.quic.consumed > size


async def test_front_as_a_process(remote_broker: Mosquitto, certs: Certificates, tmp_path: Path) -> None:
    async with FrontProcess(tmp_path, remote_broker.address, certs.server) as front:
        async with QuicProbe(front.address, certs.ca_pem) as probe:
            await probe.mqtt()
            await front.kill()
            assert probe.terminated is None
        port = front.port
        await front.start()
        assert front.port == port
        async with QuicProbe(front.address, certs.ca_pem) as probe:
            await probe.mqtt()
            assert Connack.decode(probe.packets[0]).code == 0
            await front.stop()
            await probe.wait_until(lambda: probe.terminated)
            assert probe.terminated is not None
            assert (probe.terminated.error_code, probe.terminated.frame_type) == (0, None)
