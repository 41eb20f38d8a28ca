"""The queue against a plain list: whatever is done to it, its figures are those of the messages that are in it."""

import random

import pytest

from custom_components.quic_bridge.bridge import codec
from custom_components.quic_bridge.bridge.backlog import Backlog
from custom_components.quic_bridge.bridge.message import Message
from custom_components.quic_bridge.bridge.routes import Plan


def message(number: random.Random) -> Message:
    """Return a message of any QoS, topic and size."""
    qos = number.randrange(3)
    mid = number.randrange(1, 100) if qos else 0
    packet = codec.encode_publish(
        codec.PUBLISH | qos << 1, number.choice([b"a", b"b"]), mid, b"", b"x" * number.randrange(9)
    )
    return Message(mid, packet[0], codec.header_length(packet), packet, Plan(None), v5=True)


def check(backlog: Backlog, model: list[Message]) -> None:
    assert list(backlog.messages) == model
    assert len(backlog) == len(model)
    assert backlog.bytes == sum(len(item.packet) for item in model)
    qos_0 = [item for item in model if not item.mid]
    assert backlog.qos_0 == len(qos_0)
    for topic in (b"a", b"b"):
        assert backlog.newest(topic) is next((item for item in reversed(qos_0) if item.topic_name == topic), None)


@pytest.mark.parametrize("seed", range(20))
def test_figures_are_those_of_the_messages(seed: int) -> None:
    chance = random.Random(seed)
    backlog = Backlog()
    model: list[Message] = []
    for _ in range(300):
        new = message(chance)
        step = chance.randrange(10)
        if step < 4:
            backlog.append(new)
            model.append(new)
        elif step < 6 and model:
            backlog.popleft(len(model.pop(0).packet))
        elif step == 6 and new.mid:
            backlog.put_back(new)
            model.insert(0, new)
        elif step == 7 and not new.mid and (older := backlog.newest(new.topic_name)):
            backlog.replace(older, new)
            model[model.index(older)] = new
        elif step == 8 and chance.random() < 0.3:
            backlog.put_first(lambda item: item.source_qos == 2)
            model.sort(key=lambda item: item.source_qos != 2)
        elif step == 9 and chance.random() < 0.3:
            taken = backlog.take_out(lambda item: item.source_qos == 1)
            assert taken == [item for item in model if item.source_qos == 1]
            model = [item for item in model if item.source_qos != 1]
        elif step == 9:
            sent, waiting = [message(chance) for _ in range(2)], [message(chance) for _ in range(2)]
            sent = [item for item in sent if item.mid]
            backlog.put_in_front(list(reversed(sent)), waiting)
            model = sent + waiting + model
        check(backlog, model)
