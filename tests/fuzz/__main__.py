"""`python -m tests.fuzz`: mutated requests against both listeners of a served program; status 1 for anything untrue."""

from __future__ import annotations

import argparse
import random
import sys
from functools import partial

import trio

from bench.serving import serving
from tests.fuzz.attack import Attack, Found

FAULTS_SHOWN = 20


def main() -> int:
    """Attack, and print what came of it."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--seed", type=int, default=None, help="of what is sent (a new one each time)")
    parser.add_argument(
        "--requests", type=int, default=20_000, help="connections, each with one request or some (20000)"
    )
    parser.add_argument("--seconds", type=float, default=None, help="attack for so long, instead")
    parser.add_argument("--rate", type=float, default=None, help="connections a second (as many as there can be)")
    parser.add_argument("--first", type=int, default=0, help="number of the first connection, to repeat one")
    parser.add_argument("--connections", type=int, default=32, help="at once (32)")
    asked = parser.parse_args()
    seed = random.randrange(2**31) if asked.seed is None else asked.seed
    print(f"seed {seed}", flush=True)
    requests = None if asked.seconds else asked.requests
    with serving() as program:
        attack = Attack(program, seed, first=asked.first, connections=asked.connections)
        found = trio.run(partial(attack.run, requests=requests, seconds=asked.seconds, rate=asked.rate))
    _print(found)
    if found.faults:
        print(f"repeat it with: python -m tests.fuzz --seed {seed}, or one connection: --first NUMBER --requests 1")
    return 1 if found.faults else 0


def _print(found: Found) -> None:
    print("seconds  connections  rss MiB  descriptors")
    for sample in found.samples:
        print(f"{sample.seconds:7.1f}  {sample.connections:11}  {sample.rss_mib:7.1f}  {sample.descriptors:11}")
    print("answers " + ", ".join(f"{status}: {count}" for status, count in sorted(found.statuses.items())))
    print(f"events  accepted {found.accepted}, counted {found.counted}, unsure {found.unsure}")
    print(f"faults  {len(found.faults)}")
    for fault in found.faults[:FAULTS_SHOWN]:
        print(f"  {fault}")


if __name__ == "__main__":
    sys.exit(main())
