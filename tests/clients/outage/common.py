"""What the Python programs of this suite share: told to stop by a line on stdin, they print one line of JSON."""

import json
import os
import sys
import threading
import time
from pathlib import Path

URL = os.environ["REDIS_URL"]
FOLDER = Path(os.environ["OUTAGE_FOLDER"])  # for files of the program's own
stopped = threading.Event()


def ready():
    def wait():
        sys.stdin.readline()
        stopped.set()

    threading.Thread(target=wait, daemon=True).start()
    print("ready", flush=True)


class Tally:
    """What was sent, what was acknowledged, and what failed."""

    def __init__(self):
        self.sent, self.acknowledged, self.errors, self.last_error = 0, [], {}, 0.0

    def failed(self, error):
        text = f"{type(error).__name__}: {error}"[:100]
        self.errors[text] = self.errors.get(text, 0) + 1
        self.last_error = time.monotonic()

    def send_until_stopped(self, send, failures):
        """Sends numbered jobs, `send(number)` being the id of each, until it is stopped. Returns the ids of those that were
        acknowledged, by their numbers; `failures` are counted."""
        ids = {}
        while not stopped.is_set():
            number, self.sent = self.sent, self.sent + 1
            try:
                ids[number] = send(number)
                self.acknowledged.append(number)
            except failures as error:
                self.failed(error)
            time.sleep(0.05)
        return ids

    def report(self, found, deaf=False, dropped=(), **more):
        """`found`: what is there, or was done, with repetitions; `dropped`: what the library itself took and did not do."""
        there = set(found)
        missing = set(self.acknowledged) - there - set(dropped)
        print(json.dumps({
            "sent": self.sent, "acknowledged": len(self.acknowledged), "errors": self.errors,
            "quiet": time.monotonic() - self.last_error, "doubled": len(found) - len(there),
            "lost": len(missing), "deaf": deaf, "dropped": len(dropped), **more,
        }), flush=True)
        os._exit(0)
