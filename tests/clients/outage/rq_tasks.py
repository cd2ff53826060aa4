"""What RQ runs."""

import os


def note(number):
    with open(os.environ["OUTAGE_JOURNAL"], "a") as journal:
        journal.write(f"{number}\n")
