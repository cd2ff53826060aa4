"""Celery with its own settings: a worker process, and a sender that looks for the stored result of every task."""

import atexit
import os
import subprocess
import sys
import time
from pathlib import Path

import redis

from common import URL, Tally, ready, stopped

PREFIX = "outage:celery:"
os.environ["CELERY_PREFIX"] = PREFIX
APPLICATION = Path(__file__).resolve().parent.parent / "python"
sys.path.insert(0, str(APPLICATION))

from celery_app import add, app  # noqa: E402

worker = subprocess.Popen(
    [sys.executable, "-m", "celery", "-A", "celery_app", "worker", "--pool", "solo", "--loglevel", "WARNING"],
    cwd=APPLICATION, env={**os.environ, "C_FORCE_ROOT": "1"}, stdin=subprocess.DEVNULL, stdout=sys.stderr)
atexit.register(worker.kill)
if add.delay(1, 1).get(timeout=30) != 2:
    raise SystemExit("a wrong result")
ready()
tally = Tally()
tasks = {}
while not stopped.is_set():
    number, tally.sent = tally.sent, tally.sent + 1
    try:
        tasks[number] = f"{PREFIX}{app.backend.task_keyprefix.decode().removeprefix(PREFIX)}{add.delay(number, 0).id}"
        tally.acknowledged.append(number)
    except (add.OperationalError, redis.ConnectionError, redis.TimeoutError) as error:
        tally.failed(error)
    time.sleep(0.05)

results = redis.Redis.from_url(URL)
deadline = time.monotonic() + 15
done = []
while len(done) < len(tasks) and time.monotonic() < deadline:
    done = [number for number, key in tasks.items() if results.exists(key)]
    time.sleep(0.2)
is_dead = worker.poll() is not None
worker.kill()
if is_dead:
    raise SystemExit("error: the worker has ended")
tally.report(done, deaf=not done or done[-1] < tally.sent - 5)
