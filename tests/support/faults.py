"""Ready-made packet rules for the front: what a broker can answer, withhold or send by itself."""

import asyncio
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace

from .front_connection import FrontConnection
from .front_policy import Direction, Rule
from .packets import (
    Connack,
    Connect,
    PacketType,
    Properties,
    Property,
    Publish,
    body_of,
    decode_ack,
    decode_suback,
    decode_subscribe,
    encode_ack,
    encode_suback,
    encode_subscribe,
)

ACKNOWLEDGEMENTS = frozenset({PacketType.PUBACK, PacketType.PUBREC, PacketType.PUBREL, PacketType.PUBCOMP})

_V3_CODES = {0x84: 1, 0x85: 2, 0x88: 3, 0x86: 4, 0x87: 5, 0x8A: 5}


# CONNECT and CONNACK


def refuse_connect(
    code: int,
    *,
    times: int | None = None,
    version: int | None = None,
    v3_code: bool = False,
    but: Collection[str] | None = None,
) -> Rule:
    """Refuse sessions: CONNACK with a code, FIN, and CONNECTION_CLOSE 1 after the policy's delay.

    `code` is MQTT 5's; an MQTT 3.1.1 client gets the code that EMQX uses in its place. With `version` only clients of
    that version (4 or 5) are refused, with `but` only those whose client identifier is not among these. With `v3_code`
    an MQTT 5 client is answered as by a broker that knows 3.1.1 alone. `refuse_connect(0x84, version=5)` and the same
    with `v3_code` make a client fall back.
    """

    def apply(connection: FrontConnection, packet: bytes) -> bytes:
        v5 = connection.v5 and not v3_code
        answer = Connack(code=code if v5 else _V3_CODES.get(code, 5), properties={} if v5 else None)
        connection.end_stream(data=answer.encode())
        return b""

    def wanted(packet: bytes) -> bool:
        connect = Connect.decode(packet)
        return (version is None or connect.level & 0x7F == version) and (but is None or connect.client_id not in but)

    return Rule(direction=Direction.TO_BROKER, types={PacketType.CONNECT}, apply=apply, when=wanted, times=times)


def delay_connack(seconds: float | None, *, times: int | None = None) -> Rule:
    """Hold the CONNACK and all that follows it back for so long, or for ever (None)."""

    def apply(connection: FrontConnection, packet: bytes) -> bytes:
        connection.stop_writing()
        if seconds is not None:
            connection.call_later(seconds, connection.resume_writing)
        return packet

    return Rule(direction=Direction.TO_CLIENT, types={PacketType.CONNACK}, apply=apply, times=times)


def rewrite_connack(
    properties: Properties | None = None,
    *,
    remove: Collection[Property] = (),
    session_present: bool | None = None,
    times: int | None = None,
) -> Rule:
    """Change what a successful CONNACK says: set properties (MQTT 5), remove some, the session present flag.

    It only says so: what the broker then does with packets beyond such a limit is `enforce_receive_maximum` and
    `enforce_packet_size`.
    """

    def apply(connection: FrontConnection, packet: bytes) -> bytes:
        connack = Connack.decode(packet)
        if connack.code:
            return packet
        if session_present is not None:
            connack.session_present = session_present
        if connack.properties is not None:
            connack.properties = {name: value for name, value in connack.properties.items() if name not in remove} | (
                properties or {}
            )
        return connack.encode()

    return Rule(direction=Direction.TO_CLIENT, types={PacketType.CONNACK}, apply=apply, times=times)


# Limits


def enforce_receive_maximum(limit: int) -> tuple[Rule, Rule]:
    """Disconnect (0x93) a client with more unacknowledged QoS 1 and 2 messages than this."""
    open_ids: dict[FrontConnection, set[int]] = {}

    def publish(connection: FrontConnection, packet: bytes) -> bytes:
        if message_id := Publish.decode(packet, v5=connection.v5).packet_id:
            mine = open_ids.setdefault(connection, set())
            mine.add(message_id)
            if len(mine) > limit:
                connection.end_stream(disconnect=0x93)
                return b""
        return packet

    def acknowledge(connection: FrontConnection, packet: bytes) -> bytes:
        packet_id, code = decode_ack(packet)
        if packet[0] >> 4 != PacketType.PUBREC or code >= 0x80:
            open_ids.get(connection, set()).discard(packet_id)
        return packet

    return (
        Rule(direction=Direction.TO_BROKER, types={PacketType.PUBLISH}, apply=publish),
        Rule(
            direction=Direction.TO_CLIENT,
            types={PacketType.PUBACK, PacketType.PUBREC, PacketType.PUBCOMP},
            apply=acknowledge,
        ),
    )


def enforce_packet_size(limit: int) -> Rule:
    """Disconnect (0x95) a client that sends a PUBLISH of more bytes than this, its header included."""

    def apply(connection: FrontConnection, packet: bytes) -> bytes:
        connection.end_stream(disconnect=0x95)
        return b""

    return Rule(
        direction=Direction.TO_BROKER, types={PacketType.PUBLISH}, apply=apply, when=lambda packet: len(packet) > limit
    )


def enforce_keepalive(*, disconnect: int | None = 0x8D) -> Rule:
    """Disconnect a client from which no whole packet came for one and a half times its Keep Alive, as EMQX does.

    The broker behind is told of a long one.
    """
    loop = asyncio.get_running_loop()
    heard: dict[FrontConnection, float] = {}

    def apply(connection: FrontConnection, packet: bytes) -> bytes:
        heard[connection] = loop.time()
        if packet[0] >> 4 != PacketType.CONNECT:
            return packet
        connect = Connect.decode(packet)
        watch(connection, 1.5 * connect.keepalive)
        return replace(connect, keepalive=3600).encode()

    def watch(connection: FrontConnection, patience: float) -> None:
        rest = heard[connection] + patience - loop.time()
        if rest > 0:
            connection.call_later(rest, lambda: watch(connection, patience))
        else:
            connection.end_stream(disconnect=disconnect)

    return Rule(direction=Direction.TO_BROKER, types=set(PacketType), apply=apply)


# Acknowledgements


def refuse_publish(code: int, *, topic: str | None = None, times: int | None = None, skip: int = 0) -> Rule:
    """Refuse messages (of one topic) with a reason code, so that they do not reach the broker.

    0x87 not authorised, 0x97 quota exceeded, 0x83, 0x99 ... QoS 0 is dropped in silence. MQTT 3.1.1 has no codes: a
    client of that version sees an ordinary PUBACK or PUBREC, as from EMQX.
    """

    def apply(connection: FrontConnection, packet: bytes) -> bytes:
        message = Publish.decode(packet, v5=connection.v5)
        if message.qos:
            kind = PacketType.PUBACK if message.qos == 1 else PacketType.PUBREC
            connection.send(encode_ack(kind, message.packet_id, code if connection.v5 else 0))
        return b""

    return Rule(
        direction=Direction.TO_BROKER,
        types={PacketType.PUBLISH},
        apply=apply,
        when=None if topic is None else lambda packet: body_of(packet).text() == topic,
        times=times,
        skip=skip,
    )


def replace_reason(kind: PacketType, code: int, *, times: int | None = None, skip: int = 0) -> Rule:
    """Put another reason code into PUBACK, PUBREC or PUBCOMP packets; the broker did take the message."""

    def apply(connection: FrontConnection, packet: bytes) -> bytes:
        return encode_ack(kind, decode_ack(packet)[0], code)

    return Rule(direction=Direction.TO_CLIENT, types={kind}, apply=apply, times=times, skip=skip)


def refuse_filters(codes: Mapping[str, int]) -> tuple[Rule, Rule]:
    """Refuse subscriptions by their filter, in the SUBACK; the broker never sees them."""
    answers: dict[tuple[FrontConnection, int], list[int | None]] = {}

    def subscribe(connection: FrontConnection, packet: bytes) -> bytes:
        packet_id, wanted = decode_subscribe(packet, v5=connection.v5)
        answer = [codes.get(item.topic_filter) for item in wanted]
        if not any(answer):
            return packet
        left = [item for item in wanted if item.topic_filter not in codes]
        if left:
            answers[connection, packet_id] = answer
            return encode_subscribe(packet_id, left, v5=connection.v5)
        connection.send(encode_suback(packet_id, [code or 0 for code in answer], v5=connection.v5))
        return b""

    def suback(connection: FrontConnection, packet: bytes) -> bytes:
        packet_id, granted = decode_suback(packet, v5=connection.v5)
        answer = answers.pop((connection, packet_id), None)
        if answer is None:
            return packet
        rest = iter(granted)
        full = [next(rest) if code is None else code for code in answer]
        return encode_suback(packet_id, full, v5=connection.v5)

    return (
        Rule(direction=Direction.TO_BROKER, types={PacketType.SUBSCRIBE}, apply=subscribe),
        Rule(direction=Direction.TO_CLIENT, types={PacketType.SUBACK}, apply=suback),
    )


# Packets in general


def swallow(direction: Direction, *types: PacketType, times: int | None = None, skip: int = 0) -> Rule:
    """Do not forward packets.

    `swallow(Direction.TO_CLIENT, *ACKNOWLEDGEMENTS)` is a broker that stops acknowledging.
    """
    return Rule(direction=direction, types=types, apply=lambda *_: b"", times=times, skip=skip)


def inject(kind: PacketType, data: bytes, *, after: bool = False, times: int | None = 1, skip: int = 0) -> Rule:
    """Send bytes to the client just before (or after) a packet of this type: a queued PUBLISH before the SUBACK."""

    def apply(connection: FrontConnection, packet: bytes) -> bytes:
        return packet + data if after else data + packet

    return Rule(direction=Direction.TO_CLIENT, types={kind}, apply=apply, times=times, skip=skip)


def on_packet(
    direction: Direction,
    kind: PacketType,
    action: Callable[[FrontConnection], None],
    *,
    forward: bool = True,
    times: int | None = 1,
    skip: int = 0,
) -> Rule:
    """Do something when a packet comes by, for instance `lambda connection: connection.kick(0x8E)`."""

    def apply(connection: FrontConnection, packet: bytes) -> bytes:
        action(connection)
        return packet if forward else b""

    return Rule(direction=direction, types={kind}, apply=apply, times=times, skip=skip)
