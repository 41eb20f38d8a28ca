"""Command line of the demo; started by `scripts/demo`."""

import argparse
import asyncio
from collections.abc import Coroutine, Generator
from contextlib import contextmanager
from pathlib import Path
import signal
import sys
import tempfile
import time

from tests.support.hass import CHECKOUT

from .check import Check, CheckError, table
from .live import show
from .stage import DemoError, Ports, Stage, kept_ports, port_is_free

_CHECK_TIMEOUT = 300.0
# Where they are expected; others are taken when these are in use.
_USUAL = Ports(hass=8123, local=1883, remote=2883, quic=14567)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="scripts/demo",
        description="Two real brokers, a QUIC listener and a real Home Assistant with the bridge, all on loopback.",
    )
    parser.add_argument("--check", action="store_true", help="run it without a person; exit code 0: all was seen")
    parser.add_argument("--keep", action="store_true", help="keep the data in .demo, and go on with it the next time")
    usual = " (default: %s if it is free)"
    parser.add_argument("--hass-port", type=int, default=0, help="Home Assistant" + usual % _USUAL.hass)
    parser.add_argument("--local-port", type=int, default=0, help="the local broker" + usual % _USUAL.local)
    parser.add_argument("--remote-port", type=int, default=0, help="the remote broker over TCP" + usual % _USUAL.remote)
    parser.add_argument("--quic-port", type=int, default=0, help="the remote broker over QUIC" + usual % _USUAL.quic)
    return parser.parse_args()


def _ports(arguments: argparse.Namespace) -> Ports:
    def port(given: int, usual: int) -> int:
        return given or (usual if not arguments.check and port_is_free(usual) else 0)

    return Ports(
        hass=port(arguments.hass_port, _USUAL.hass),
        local=port(arguments.local_port, _USUAL.local),
        remote=port(arguments.remote_port, _USUAL.remote),
        quic=port(arguments.quic_port, _USUAL.quic),
    )


@contextmanager
def _folder(*, keep: bool) -> Generator[Path]:
    if keep:
        folder = CHECKOUT / ".demo"
        folder.mkdir(exist_ok=True)
        yield folder
    else:
        with tempfile.TemporaryDirectory(prefix="quic_bridge_demo_") as name:
            yield Path(name)


async def _live(folder: Path, ports: Ports) -> int:
    stage = Stage(folder, ports)
    print("starting two brokers, a QUIC listener and Home Assistant ...", flush=True)
    started = time.monotonic()
    async with stage:
        print(f"running after {time.monotonic() - started:.1f} s")
        await show(stage)
    return 0


async def _check(folder: Path, ports: Ports) -> int:
    stage = Stage(folder, ports)
    check = Check(stage)
    try:
        async with asyncio.timeout(_CHECK_TIMEOUT):
            await check.run()
    except (CheckError, TimeoutError) as error:
        print(table(check.rows))
        print(f"\ndemo --check FAILED: {str(error) or 'it took too long'}\n\nEnd of Home Assistant's log:")
        for record in stage.hass.records()[-30:]:
            # In full where it may be about the bridge.
            print(record if "quic_bridge" in record else record.partition("\n")[0])
        return 1
    print(table(check.rows))
    print(f"\ndemo --check passed in {sum(row.seconds for row in check.rows):.0f} s")
    return 0


async def _until_signal(work: Coroutine[object, object, int]) -> int | None:
    """Run it; the first SIGINT, SIGTERM or SIGHUP ends it in good order, in a few seconds, and the result is None."""
    task = asyncio.ensure_future(work)
    stopped = False

    def stop() -> None:
        nonlocal stopped
        if not stopped:
            stopped = True
            print("\nstopping ...", flush=True)
            task.cancel()

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        asyncio.get_running_loop().add_signal_handler(number, stop)
    try:
        return await task
    except asyncio.CancelledError:
        print("stopped, nothing is left running")
        return None


def main() -> int:
    """Run the demo and return the exit code; ending the demo for a person is success, ending a check is not."""
    arguments = _arguments()
    try:
        with _folder(keep=arguments.keep) as folder:
            run = _check if arguments.check else _live
            code = asyncio.run(_until_signal(run(folder, kept_ports(folder, _ports(arguments)))))
    except (DemoError, RuntimeError) as error:
        print(f"demo: {error}", file=sys.stderr)
        return 1
    if code is None:
        return 130 if arguments.check else 0
    return code


if __name__ == "__main__":
    sys.exit(main())
