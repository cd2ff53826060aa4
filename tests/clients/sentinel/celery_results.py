"""Sends tasks one after the other, for ever, and prints a line for each: result, wrong, or the error."""

import time

from celery_app import add

number = 0
while True:
    number += 1
    try:
        # A task may be lost with the master that has acknowledged it: it is not waited for much longer than a failover takes.
        answer = add.delay(number, 1).get(timeout=8)
        print("result" if answer == number + 1 else f"wrong: {answer} for {number} + 1", flush=True)
    except Exception as error:
        print(f"{type(error).__name__}: {error}", flush=True)
    time.sleep(0.2)
