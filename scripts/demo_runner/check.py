"""`scripts/demo --check`: the demo without a person. Passes only if everything on its list was seen."""

import asyncio
from collections.abc import Awaitable, Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass
import time
from typing import Final

import aiohttp

from tests.support.client import Client, ClientError
from tests.support.hass_api import ApiError

from .stage import HOST, Stage

CONNECTED: Final = {"local_connection": "on", "remote_connection": "on", "status": "running"}
CONNECT_TIMEOUT: Final = 20.0
CROSSING_TIMEOUT: Final = 10.0
LOSS_TIMEOUT: Final = 10.0
"""A lost remote broker must be noticed within this."""
RETURN_TIMEOUT: Final = 60.0
"""The bridge's longest wait between two attempts is 30 s, and the attempt itself may take 10 s."""
DRAIN_TIMEOUT: Final = 30.0
GOODBYE_TIMEOUT: Final = 5.0
MESSAGES: Final = 200


class CheckError(Exception):
    """Something that was to be seen was not."""


@dataclass(kw_only=True)
class Row:
    """One line of the table."""

    what: str
    seen: str = ""
    seconds: float = 0.0
    passed: bool = False


class Check:
    """Walks through the list; the table is complete up to the first thing that was not seen."""

    def __init__(self, stage: Stage) -> None:
        """Take the stage, not yet running."""
        self._stage = stage
        self.rows: list[Row] = []

    @contextmanager
    def _row(self, what: str) -> Generator[Row]:
        row = Row(what=what)
        self.rows.append(row)
        started = time.monotonic()
        try:
            yield row
        except (CheckError, ApiError, ClientError, aiohttp.ClientError, RuntimeError, TimeoutError) as error:
            row.seen = f"{error}" or type(error).__name__
            raise CheckError(f"{what}: {row.seen}") from error
        else:
            row.passed = True
        finally:
            row.seconds = time.monotonic() - started

    async def run(self) -> None:
        """Do it all; raises CheckError at the first thing that was not seen."""
        stage = self._stage
        with self._row("brokers, QUIC front and Home Assistant start; the bridge is added through its own flow") as row:
            await stage.start()
            row.seen = f"{len(stage.entities)} entities"
        try:
            await self._bridge()
            before = self._goodbyes()
            with self._row("Home Assistant stops cleanly, the bridge says goodbye to both brokers") as row:
                await stage.api.close()
                await stage.hass.stop()
                row.seen = f"exit code {stage.hass.exit_code}, {await self._until_goodbyes(before)}"
                if stage.hass.exit_code != 0:
                    raise CheckError(row.seen)
        finally:
            await stage.stop()
        with self._row("no error and no traceback from the integration in the log") as row:
            if complaints := stage.hass.complaints():
                raise CheckError("\n".join(complaints))
            row.seen = f"{len(stage.hass.records())} records read"

    async def _bridge(self) -> None:
        stage = self._stage
        with self._row("the entities exist and say connected") as row:
            row.seen = await self._until_states(CONNECTED, CONNECT_TIMEOUT)
        async with Client(HOST, stage.ports.local) as local, Client(HOST, stage.ports.remote) as remote:
            await local.subscribe("office/#", qos=1)
            await remote.subscribe("home/#", qos=1)
            with self._row("a message crosses from the local to the remote broker") as row:
                row.seen = await _crosses(local, remote, "home/hello")
            with self._row("a message crosses from the remote to the local broker") as row:
                row.seen = await _crosses(remote, local, "office/hello")
            await self._outage(local, remote)
            await self._disable_and_enable(local, remote)

    async def _outage(self, local: Client, remote: Client) -> None:
        stage = self._stage
        sent = [f"{number}".encode() for number in range(MESSAGES)]
        before_loss = len(sent) // 2
        remote.messages.clear()
        with self._row("QUIC front killed (-9): Home Assistant lives, the remote sensor turns off") as row:
            await stage.front.kill()
            # Half of them while the bridge still believes in its connection.
            await _publish(local, sent[:before_loss])
            row.seen = await self._until_states({"remote_connection": "off", "local_connection": "on"}, LOSS_TIMEOUT)
            if not stage.hass.running:
                raise CheckError("Home Assistant ended")
        with self._row(f"{MESSAGES} QoS 1 messages published meanwhile") as row:
            await _publish(local, sent[before_loss:])
            if remote.messages:
                raise CheckError(f"{len(remote.messages)} of them arrived without a QUIC front")
            row.seen = "accepted by the local broker, none at the remote one"
        with self._row("QUIC front back: the sensor turns on") as row:
            await stage.front.start()
            row.seen = await self._until_states(CONNECTED, RETURN_TIMEOUT)
        with self._row(f"all {MESSAGES} arrive, in order") as row:
            await remote.wait_for(lambda _: len(set(remote.payloads)) >= MESSAGES, DRAIN_TIMEOUT)
            order = list(dict.fromkeys(remote.payloads))
            if order != sent:
                raise CheckError("they came in another order")
            row.seen = f"{MESSAGES} of {MESSAGES}, {len(remote.payloads) - MESSAGES} duplicates"

    async def _disable_and_enable(self, local: Client, remote: Client) -> None:
        stage = self._stage
        with self._row("the entry is disabled through the API: the bridge says goodbye to both brokers") as row:
            before = self._goodbyes()
            await stage.api.set_entry_enabled(stage.entry_id, enabled=False)
            states = await stage.states()
            if any(state != "unavailable" for state in states.values()):
                raise CheckError(f"entities that still say something: {states}")
            state = (await stage.api.entry(stage.entry_id))["state"]
            row.seen = f"{state}, {await self._until_goodbyes(before)}"
        with self._row("the entry is enabled: connected again, a message crosses") as row:
            await stage.api.set_entry_enabled(stage.entry_id, enabled=True)
            await self._until_states(CONNECTED, CONNECT_TIMEOUT)
            row.seen = await _crosses(local, remote, "home/again")

    def _goodbyes(self) -> list[int]:
        """Count the MQTT DISCONNECTs of bridges in the logs of the local and the remote broker."""
        return [
            broker.log.count("Received DISCONNECT from quic-bridge-")
            for broker in (self._stage.local, self._stage.remote)
        ]

    async def _until_goodbyes(self, before: list[int]) -> str:
        async def missing() -> str | None:
            now = self._goodbyes()
            return None if now == [count + 1 for count in before] else f"DISCONNECTs: {before} before, now {now}"

        await _until(missing, GOODBYE_TIMEOUT)
        return "a DISCONNECT at each"

    async def _until_states(self, wanted: dict[str, str], timeout: float) -> str:  # noqa: ASYNC109
        """Wait for states of the bridge's entities and say how long it took."""
        started = time.monotonic()
        missing = wanted.keys() - self._stage.entities.keys()
        if missing:
            raise CheckError(f"no such entity: {', '.join(sorted(missing))}")

        async def reached() -> str | None:
            states = await self._stage.states()
            differing = {key: states.get(key, "none") for key, state in wanted.items() if states.get(key) != state}
            return ", ".join(f"{key} is {state}" for key, state in differing.items()) or None

        await _until(reached, timeout)
        return (
            f"{', '.join(f'{key} {state}' for key, state in wanted.items())} after {time.monotonic() - started:.1f} s"
        )


async def _until(problem: Callable[[], Awaitable[str | None]], timeout: float) -> None:  # noqa: ASYNC109
    deadline = time.monotonic() + timeout
    while (what := await problem()) is not None:
        if time.monotonic() > deadline:
            raise CheckError(f"after {timeout:g} s {what}")
        await asyncio.sleep(0.1)


async def _crosses(source: Client, target: Client, topic: str) -> str:
    started = time.monotonic()
    await source.publish(topic, b"hello", qos=1)
    messages = await target.wait_for(
        lambda messages: any(message.topic == topic for message in messages), CROSSING_TIMEOUT
    )
    if [message.payload for message in messages if message.topic == topic] != [b"hello"]:
        raise CheckError(f"{topic} came with another payload, or more than once")
    return f"{topic} after {(time.monotonic() - started) * 1000:.0f} ms"


async def _publish(client: Client, payloads: list[bytes]) -> None:
    if failures := await client.burst("home/count", payloads, qos=1):
        raise CheckError(f"the local broker refused messages: {failures}")


def table(rows: list[Row]) -> str:
    """Write the rows as a table."""
    lines = []
    for row in rows:
        first, *more = row.seen.splitlines() or [""]
        lines.append(f"{'ok  ' if row.passed else 'FAIL'} {row.seconds:6.1f} s  {row.what}")
        lines.append(f"{'':15}{first}")
        lines += [f"{'':15}{line}" for line in more]
    return "\n".join(lines)
