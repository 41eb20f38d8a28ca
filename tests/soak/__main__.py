"""Runs the bridge for as long as one wants through everything that can go wrong, and says whether it lost anything.

    scripts/soak [--minutes N] [--seed S] [--round N] [--rate N] [--steady] [--keep]

Numbered messages of QoS 0, 1 and 2 cross both ways between two real brokers over real QUIC, while a seeded generator
kills, stops, freezes and disturbs everything: the QUIC front, the network, both brokers, the bridge's process, its disk
and its routes. After each round it checks: nothing of QoS 1 and 2 lost, but what fell over a bound and was counted;
nothing of QoS 2 or 0 twice, everything in order, and no task, socket, timer, thread or memory left over. Exit code 0:
nothing was wrong.
"""

import argparse
import asyncio
import logging
from pathlib import Path
import shutil
import signal
import sys
import tempfile
import time

from .driver import Soak
from .judge import Verdict


def _say(text: str) -> None:
    print(text, flush=True)


async def _run(arguments: argparse.Namespace, folder: Path) -> Verdict:
    # They warn of writes to a broker that was stopped, and of damaged datagrams: all of it on purpose here.
    logging.getLogger("asyncio").setLevel(logging.ERROR)
    logging.getLogger("quic").setLevel(logging.CRITICAL)
    task = asyncio.current_task()
    assert task is not None
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    soak = Soak(folder, arguments.seed, _say, rate=arguments.rate, steady=arguments.steady)
    try:
        return await soak.run(arguments.minutes * 60, arguments.round_seconds, arguments.round)
    except asyncio.CancelledError:
        _say("stopped before the time was over")
        return soak.verdict


def main() -> int:
    """Run and print the verdict."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--minutes", type=float, default=10.0, help="how long (10)")
    parser.add_argument("--seed", type=int, default=None, help="the same seed makes the same decisions (random)")
    parser.add_argument("--round", type=int, default=0, help="number of the first round, to repeat one (0)")
    parser.add_argument("--round-seconds", type=float, default=30.0, help="length of a round (30)")
    parser.add_argument("--rate", type=float, default=200.0, help="messages a second in all (200)")
    parser.add_argument("--steady", action="store_true", help="one process of the bridge, which is never restarted")
    parser.add_argument("--keep", action="store_true", help="keep the folder with the logs also when all is well")
    arguments = parser.parse_args()
    if arguments.seed is None:
        arguments.seed = int(time.time()) % 1_000_000
    _say(f"seed {arguments.seed}, {arguments.minutes:g} minutes, {arguments.rate:g} messages a second")
    folder = Path(tempfile.mkdtemp(prefix="quic-bridge-soak-"))
    verdict = Verdict(problems=["did not run"])
    try:
        verdict = asyncio.run(_run(arguments, folder))
    finally:
        if verdict.good and not arguments.keep:
            shutil.rmtree(folder, ignore_errors=True)
        else:
            _say(f"logs: {folder}")
    _say(
        f"\n{'GOOD' if verdict.good else 'BAD'}: seed {arguments.seed}, {verdict.rounds} rounds, "
        f"{verdict.faults} faults; {verdict.published} messages published, {verdict.arrived} arrived, "
        f"{verdict.unasked} of QoS 0 dropped while a broker was away, {verdict.repeats} repeated with QoS 1, "
        f"{verdict.fallen} fallen over a bound and counted, {verdict.unproven} more with a bridge that was killed, "
        f"{verdict.forgiven} that a broker itself sent twice or too late"
    )
    for problem in verdict.problems:
        _say(f"  {problem}")
    return 0 if verdict.good else 1


if __name__ == "__main__":
    sys.exit(main())
