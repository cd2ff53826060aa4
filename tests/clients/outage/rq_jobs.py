"""RQ: a worker that is started again when it ends, as a supervisor does, and a sender.

RQ's worker ends at an error while it has a job; the job stays in the list of those that were taken, or among the failed
ones, until somebody puts it back."""

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import redis
import rq

from common import FOLDER, URL, Tally, ready, stopped

journal = FOLDER / "rq.journal"
journal.touch()
os.environ["OUTAGE_JOURNAL"] = str(journal)
COMMAND = [Path(sys.executable).with_name("rq"), "worker", "--url", URL, "--worker-class", "rq.SimpleWorker",
           "--path", Path(__file__).parent, "--quiet", "outage"]
starts = []


def supervise():
    while True:
        starts.append(subprocess.Popen([str(word) for word in COMMAND], stdin=subprocess.DEVNULL, stdout=sys.stderr))
        starts[-1].wait()
        time.sleep(1)


def run():
    return [int(line) for line in journal.read_text().split()]


def is_kept(server, id):
    """Whether RQ has the job still, although it will not run it by itself."""
    if server.lpos(queue.key + ":intermediate", id) is not None:
        return True
    job = queue.fetch_job(id)
    return job is not None and job.get_status(refresh=False) in ("started", "failed")


queue = rq.Queue("outage", connection=redis.Redis.from_url(URL))
threading.Thread(target=supervise, daemon=True).start()
queue.enqueue("rq_tasks.note", -1)
while not run():
    time.sleep(0.1)
ready()
tally = Tally()
ids = tally.send_until_stopped(lambda number: queue.enqueue("rq_tasks.note", number, result_ttl=0).id,
                               (redis.ConnectionError, redis.TimeoutError))

# RQ connects again after 1, 2, 4, 8, 16 seconds.
deadline = time.monotonic() + 30
dropped = []
while time.monotonic() < deadline:
    done = [number for number in run() if number >= 0]
    missing = [number for number in ids if number not in done]
    dropped = [number for number in missing if is_kept(queue.connection, ids[number])]
    if missing == dropped:
        break
    time.sleep(0.2)
starts[-1].kill()
tally.report(done, deaf=not done or done[-1] < tally.sent - 5, dropped=dropped, starts=len(starts))
