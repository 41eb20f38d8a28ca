"""The examples of docs/routes.md, looked up in the router and sent between real brokers."""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
import re
from typing import Any

from homeassistant.core import HomeAssistant
from homeassistant.util.yaml import parse_yaml
import pytest

from custom_components.quic_bridge.bridge.routes import Direction, Route, Router
from custom_components.quic_bridge.form_error import FormError
from custom_components.quic_bridge.route_forms import PRESETS, preset_routes, route_from_form, route_to_form

from .ha_helpers import bridge_entry, local_data, remote_data, set_up, wait_running
from .support.certs import Certificates
from .support.client import Client, Message
from .support.mosquitto import Mosquitto
from .support.quic_front import Front

DOCUMENT = Path(__file__).parents[1] / "docs" / "routes.md"
ARROWS = {"→": Direction.TO_REMOTE, "←": Direction.TO_LOCAL, "↔": Direction.BOTH}
ROUTE_HEAD = ["Direction", "Topics", "New name", "Exceptions"]
RESULT_HEAD = ["From", "Topic", "Becomes"]
REFUSED_HEAD = [*ROUTE_HEAD, "Why"]


@dataclass
class Example:
    """One section with its routes and what they do."""

    title: str
    preset: dict[str, Any] | None = None
    routes: list[Route] = field(default_factory=list)
    results: list[tuple[str, str, str | None]] = field(default_factory=list)
    """Side, topic, and its new name on the other side, if it crosses."""


def code(cell: str) -> list[str]:
    """Return what is quoted as code in a cell."""
    return re.findall(r"`([^`]+)`", cell)


def route(cells: list[str], number: int) -> Route:
    """Read a row of a table of routes."""
    direction, topics, name, exclude = cells[:4]
    return Route(
        id=str(number),
        direction=ARROWS[direction],
        topic_filter=code(topics)[0],
        target="".join(code(name)),
        exclude=tuple(code(exclude)),
    )


def tables(text: str) -> Iterator[tuple[list[str], list[list[str]]]]:
    """Find the tables of a text: their heads and rows."""
    for table in re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE):
        head, _, *rows = ([cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines())
        yield head, rows


def read() -> list[Example]:
    """Read all sections with examples."""
    examples = []
    for text in re.split(r"^### ", DOCUMENT.read_text(), flags=re.MULTILINE)[1:]:
        text = text.partition("\n## ")[0]  # noqa: PLW2901
        example = Example(text.partition("\n")[0])
        if block := re.search(r"```yaml\n(.*?)```", text, re.DOTALL):
            preset = parse_yaml(block[1])
            assert isinstance(preset, dict)
            example.preset = preset
        for head, rows in tables(text):
            if head == ROUTE_HEAD:
                example.routes = [route(cells, number) for number, cells in enumerate(rows)]
            else:
                assert head == RESULT_HEAD, head
                example.results = [(side, code(topic)[0], next(iter(code(new)), None)) for side, topic, new in rows]
        examples.append(example)
    return examples


EXAMPLES = read()


def test_examples_are_found() -> None:
    assert len(EXAMPLES) >= 15
    for example in EXAMPLES:
        assert example.routes, example.title
        assert example.results, example.title
    assert {example.preset["preset"] for example in EXAMPLES if example.preset} == set(PRESETS)


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: example.title)
def test_example(example: Example) -> None:
    for side, topic, expected in example.results:
        router = Router(example.routes, {"local": Direction.TO_REMOTE, "remote": Direction.TO_LOCAL}[side])
        plan = router.find(topic.encode())
        found = None if plan.route is None else (plan.topic or topic.encode()).decode()
        assert found == expected, topic
    for number, item in enumerate(example.routes):
        # The form takes it.
        assert route_from_form(str(number), route_to_form(item, enabled=True)) == item
    if example.preset is not None:
        made = preset_routes(PRESETS[example.preset["preset"]], example.preset)
        assert [replace(item, id=str(number)) for number, item in enumerate(made)] == example.routes


def test_refused() -> None:
    (rows,) = (rows for head, rows in tables(DOCUMENT.read_text()) if head == REFUSED_HEAD)
    assert len(rows) >= 10
    for number, cells in enumerate(rows):
        with pytest.raises(FormError):
            route_from_form("", route_to_form(route(cells, number), enabled=True))


async def test_between_brokers(
    hass: HomeAssistant, local_broker: Mosquitto, remote_broker: Mosquitto, quic_front: Front, certs: Certificates
) -> None:
    """All of them over one bridge, whose routes are changed from one example to the next."""
    entry = bridge_entry(local_data(local_broker), remote_data(quic_front.port, certs.ca_pem), [])
    await set_up(hass, entry)
    await wait_running(hass, entry)
    # What arrives after everything else.
    last = [
        Route(id="last local", direction=Direction.TO_REMOTE, topic_filter="last/local"),
        Route(id="last remote", direction=Direction.TO_LOCAL, topic_filter="last/remote"),
    ]
    async with Client(*local_broker.address) as home, Client(*remote_broker.address) as away:
        await home.subscribe("#", qos=1)
        await away.subscribe("#", qos=1)
        for example in EXAMPLES:
            await entry.runtime_data.bridge.apply_routes((*last, *example.routes))
            # Only brokers publish under $.
            results = [result for result in example.results if not result[1].startswith("$")]
            for side, here, there in (("local", home, away), ("remote", away, home)):
                there.messages.clear()
                payload = f"{example.title} from {side}".encode()
                for _, topic, _ in (result for result in results if result[0] == side):
                    await here.publish(topic, payload, 1)
                await here.publish(f"last/{side}", payload, 1)
                messages = await there.wait_for(partial(ends, payload))
                crossed = [message.topic for message in messages if message.payload == payload]
                assert crossed[:-1] == [new for origin, _, new in results if origin == side and new is not None]
    assert len(quic_front.stats.connects) == 1


def ends(payload: bytes, messages: list[Message]) -> bool:
    """Tell whether the last message of a round has come."""
    return any(message.topic.startswith("last/") and message.payload == payload for message in messages)
