"""What the Python programs of this suite share: told to stop by a line on stdin, they print one line of JSON."""

import json
import os
import sys
import threading
import time

URL = os.environ["REDIS_URL"]
stopped = threading.Event()


def ready():
    def wait():
        sys.stdin.readline()
        stopped.set()

    threading.Thread(target=wait, daemon=True).start()
    print("ready", flush=True)


class Tally:
    def __init__(self):
        self.sent, self.acknowledged, self.errors, self.last_error = 0, [], {}, 0.0
        self.first_failed = None

    def failed(self, error):
        text = f"{type(error).__name__}: {error}"[:100]
        self.errors[text] = self.errors.get(text, 0) + 1
        self.last_error = time.monotonic()
        if self.first_failed is None:
            self.first_failed = self.sent - 1

    def report(self, found, deaf=False):
        there = set(found)
        missing = sorted(set(self.acknowledged) - there)
        print(json.dumps({
            "sent": self.sent, "done": len(self.acknowledged), "errors": self.errors,
            "quiet": time.monotonic() - self.last_error, "doubled": len(found) - len(there),
            "lost": len(missing), "deaf": deaf,
            "missing": missing[:5], "first_failed": self.first_failed,
        }), flush=True)
        os._exit(0)
