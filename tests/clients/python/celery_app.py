"""A Celery application as its tutorial has it: Redis as broker and as result store, all other settings default."""

import os

from celery import Celery

app = Celery("clients", broker=os.environ["REDIS_URL"], backend=os.environ["REDIS_URL"])
# Keys and channels of one run, so that runs do not take each other's tasks and leave nothing behind.
prefix = {"global_keyprefix": os.environ["CELERY_PREFIX"]}
app.conf.broker_transport_options = prefix
app.conf.result_backend_transport_options = prefix
app.conf.broker_connection_retry_on_startup = True


@app.task
def add(x, y):
    return x + y


@app.task
def total(numbers):
    return sum(numbers)


@app.task(bind=True, max_retries=2)
def flaky(self):
    if self.request.retries < 2:
        raise self.retry(countdown=0.1)
    return self.request.retries
