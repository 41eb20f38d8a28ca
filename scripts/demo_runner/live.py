"""The demo for a person: says where everything is, shows the bridge's state, and lets the link be cut."""

import asyncio
from collections.abc import Callable, Generator
from contextlib import contextmanager
import shutil
import sys
import time

import aiohttp

from .stage import HOST, PASSWORD, USER, Stage

_INTERVAL = 1.0
_SHOWN = {
    "status": "bridge",
    "local_connection": "local",
    "remote_connection": "remote",
    "messages_sent": "sent",
    "messages_received": "received",
    "messages_waiting": "waiting",
    "messages_dropped": "dropped",
    "remote_reconnects": "reconnects",
    "remote_last_error": "last error",
}


async def introduction(stage: Stage) -> str:
    """Say where everything is and what to try."""
    ports = stage.ports
    return f"""\

Home Assistant   {stage.hass.url}   user {USER}, password {PASSWORD}
The bridge in it {await stage.device_url()}
Local broker     {HOST}:{ports.local} (MQTT over TCP)
Remote broker    {HOST}:{ports.quic} (MQTT over QUIC, used by the bridge) and {HOST}:{ports.remote} (TCP, to look at it)
Logs             {stage.hass.log_file}

home/# is sent to the remote broker. Watch it there, and publish here, in two other terminals:
  scripts/mqtt watch --port {ports.remote} 'home/#'
  scripts/mqtt publish --port {ports.local} home/kitchen/temperature 21.5
office/# is received from the remote broker:
  scripts/mqtt watch --port {ports.local} 'office/#'
  scripts/mqtt publish --port {ports.remote} office/door open

Enter cuts the QUIC link (kill -9 of the remote's QUIC listener), and Enter brings it back. Ctrl-C stops everything.
"""


async def show(stage: Stage) -> None:
    """Print the introduction and then the state, for ever; raises RuntimeError when Home Assistant ends."""
    print(await introduction(stage), flush=True)
    pressed = asyncio.Event()
    with _enter_key(pressed.set):
        last = ""
        while stage.hass.running:
            line = await _line(stage)
            if sys.stdout.isatty():
                shown = f"{time.strftime('%H:%M:%S')}  {line}"[: shutil.get_terminal_size().columns - 1]
                print(f"\r\x1b[K{shown}", end="", flush=True)
            elif line != last:
                print(f"{time.strftime('%H:%M:%S')}  {line}", flush=True)
            last = line
            try:
                async with asyncio.timeout(_INTERVAL):
                    await pressed.wait()
            except TimeoutError:
                continue
            pressed.clear()
            if stage.front.running:
                await stage.front.kill()
            else:
                await stage.front.start()
    raise RuntimeError(f"Home Assistant ended with exit code {stage.hass.exit_code}; see {stage.hass.log_file}")


async def _line(stage: Stage) -> str:
    try:
        states = await stage.states()
    except (aiohttp.ClientError, TimeoutError) as error:
        return f"Home Assistant does not answer: {error}"
    shown = [f"{name} {states[key]}" for key, name in _SHOWN.items() if key in states]
    return " | ".join(shown if stage.front.running else ["QUIC listener killed", *shown])


@contextmanager
def _enter_key(pressed: Callable[[], object]) -> Generator[None]:
    """Call `pressed` at each line on the terminal; without a terminal there is no Enter key."""
    if not sys.stdin.isatty():
        yield
        return
    loop = asyncio.get_running_loop()

    def read() -> None:
        if sys.stdin.readline():
            pressed()
        else:
            loop.remove_reader(sys.stdin)

    loop.add_reader(sys.stdin, read)
    try:
        yield
    finally:
        loop.remove_reader(sys.stdin)
