"""Celery: a worker, beat, and a sender that looks for the stored result of every task."""

import os
import subprocess
import sys
import time

import redis

from common import FOLDER, URL, Tally, ready, stopped

journal = FOLDER / "celery.journal"
os.environ["OUTAGE_JOURNAL"] = str(journal)

from celery_tasks import add, app  # noqa: E402


def start(*words):
    return subprocess.Popen(
        [sys.executable, "-m", "celery", "-A", "celery_tasks", *words, "--loglevel", "WARNING"],
        env={**os.environ, "C_FORCE_ROOT": "1"}, stdin=subprocess.DEVNULL, stdout=sys.stderr)


def noted(what):
    return [line.split()[1] for line in journal.read_text().splitlines() if line.startswith(what)]


services = {"worker": start("worker", "--pool", "solo"),
            "beat": start("beat", "--schedule", str(FOLDER / "celery.schedule"), "--pidfile=")}
if add.delay(-1, 0).get(timeout=40) != -1:
    raise SystemExit("error: a wrong result")
while not noted("tick"):
    time.sleep(0.1)
ready()
tally = Tally()
ids = tally.send_until_stopped(lambda number: add.delay(number, 0).id,
                               (add.OperationalError, redis.ConnectionError, redis.TimeoutError))

server = redis.Redis.from_url(URL)
prefix = app.backend.task_keyprefix
deadline = time.monotonic() + 30
missing = ids
ticks = len(noted("tick"))
# Celery connects again after 2, 4, 6, … seconds.
while time.monotonic() < deadline and (missing or len(noted("tick")) == ticks):
    missing = {number: id for number, id in missing.items() if not server.exists(prefix + id.encode())}
    time.sleep(0.2)
ended = [name for name, service in services.items() if service.poll() is not None]
for service in services.values():
    service.kill()
if ended:
    raise SystemExit(f"error: {' and '.join(ended)} ended")
came = set(noted("came"))
run = noted("done")
dropped = [number for number, id in missing.items() if id in came and str(number) not in run]
ran = [int(number) for number in run if int(number) >= 0]
there = [number for number in ran if number not in missing]
tally.report(there, deaf=len(noted("tick")) == ticks, dropped=dropped)
