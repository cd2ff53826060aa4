"""How often a server that is killed takes an element with it: pushed and acknowledged, popped, and not delivered.

  tests/clients/.venv/bin/python tests/clients/outage/pops.py [--proxy PATH_OF_REDBOUNCER] [--set KEY=VALUE] [--kills N]
    [--appendfsync always|everysec]

Two clients push 20 elements a second each, one takes them with BLPOP. The server is killed (SIGKILL) and started again at
once. Without --proxy all connect to the server. Its files are on the disk of this directory: with `always` it does not
answer before they are written there.
"""

import argparse
import random
import tempfile
import threading
import time
from importlib.machinery import SourceFileLoader
from importlib.util import module_from_spec, spec_from_loader
from pathlib import Path

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

HERE = Path(__file__).resolve().parent
loader = SourceFileLoader("outage", str(HERE / "run"))
outage = module_from_spec(spec_from_loader("outage", loader))
loader.exec_module(outage)

KEY = "outage:pops"
stopped = threading.Event()


def work(port, step):
    """Calls `step(client)` again and again; what was in flight when a connection failed is not sent again."""
    client = redis.Redis(port=port, retry=Retry(NoBackoff(), 0))
    while not stopped.is_set():
        try:
            step(client)
        except redis.RedisError:
            time.sleep(0.01)


def count(side, kills):
    """How many were acknowledged, how many of them are neither taken nor in the list, and how many of those were not kept."""
    acknowledged, taken, numbers = [], set(), iter(range(10**9))

    def push(client):
        time.sleep(0.05)
        number = next(numbers)
        client.rpush(KEY, number)
        acknowledged.append(number)

    def pop(client):
        found = client.blpop(KEY, 1)
        if found:
            taken.add(int(found[1]))

    threads = [threading.Thread(target=work, args=(side.port, step)) for step in (push, push, pop)]
    for thread in threads:
        thread.start()
    for _ in range(kills):
        before, deadline = len(taken), time.monotonic() + 20
        while len(taken) < before + 5:
            if time.monotonic() > deadline:
                stopped.set()
                raise SystemExit("nothing is taken any more")
            time.sleep(0.01)
        time.sleep(random.random() * 0.2)
        side.fail("at once")
        side.until_answers(side.server_port)
    time.sleep(2)
    stopped.set()
    for thread in threads:
        thread.join()
    left = {int(number) for number in redis.Redis(port=side.server_port).lrange(KEY, 0, -1)}
    missing = set(acknowledged) - taken - left
    return len(acknowledged), len(missing), len(missing - pushed(side))


def pushed(side):
    """The elements whose push is in the append-only file."""
    numbers = set()
    for file in side.folder.glob("appendonlydir/*.incr.aof"):
        words = file.read_bytes().split(b"\r\n")
        numbers |= {int(words[at + 4]) for at, word in enumerate(words[:-4]) if word.upper() == b"RPUSH"}
    return numbers


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--proxy", type=lambda path: Path(path).resolve(strict=True))
    parser.add_argument("--set", action="append", default=[])
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--appendfsync", choices=("always", "everysec"), default="always")
    options = parser.parse_args()
    outage.FAULTS["at once"] = 0
    with tempfile.TemporaryDirectory(dir=HERE) as folder:
        side = outage.Side(Path(folder) / "side", options.proxy, options.appendfsync, options.set)
        try:
            acknowledged, missing, unwritten = count(side, options.kills)
        finally:
            stopped.set()
            side.stop()
    print(f"{options.kills} kills, {acknowledged} elements acknowledged, {missing - unwritten} popped and not delivered, "
          f"{unwritten} not in the append-only file")


main()
