"""Command line of the small MQTT client; started by `scripts/mqtt`."""

import argparse
import asyncio
import contextlib
import sys

from tests.support.client import Client, ClientError

from .stage import HOST


async def _watch(client: Client, topic_filter: str) -> None:
    await client.subscribe(topic_filter, qos=2)
    while True:
        await client.wait_for(1, timeout=float("inf"))
        for message in client.messages:
            print(f"{message.topic} {message.payload.decode(errors='replace')}", flush=True)
        client.messages.clear()


async def _run(arguments: argparse.Namespace) -> None:
    async with Client(arguments.host, arguments.port, keepalive=30) as client:
        if arguments.action == "watch":
            await _watch(client, arguments.topic)
        else:
            await client.publish(arguments.topic, arguments.message, qos=arguments.qos, retain=arguments.retain)


def main() -> int:
    """Publish a message, or print messages until Ctrl-C."""
    parser = argparse.ArgumentParser(prog="scripts/mqtt", description="A small MQTT client for the demo's brokers.")
    actions = parser.add_subparsers(dest="action", required=True)
    for name in ("publish", "watch"):
        action = actions.add_parser(name)
        action.add_argument("--host", default=HOST)
        action.add_argument("--port", type=int, required=True)
        action.add_argument("topic")
        if name == "publish":
            action.add_argument("message")
            action.add_argument("--qos", type=int, choices=(0, 1, 2), default=1)
            action.add_argument("--retain", action="store_true")
    arguments = parser.parse_args()
    with contextlib.suppress(KeyboardInterrupt):
        try:
            asyncio.run(_run(arguments))
        except (ClientError, OSError, TimeoutError) as error:
            print(f"mqtt: {str(error) or type(error).__name__}", file=sys.stderr)
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
