"""A client without a library: it connects again after an I/O error or -LOADING, and ends at any other error reply."""

import socket
import time
from urllib.parse import urlsplit

from common import URL, Tally, ready, stopped

ADDRESS = (urlsplit(URL).hostname, urlsplit(URL).port)
KEY = "outage:raw"


class Client:
    def __init__(self):
        self.socket = socket.create_connection(ADDRESS, timeout=5)
        self.replies = self.socket.makefile("rb")

    def line(self):
        line = self.replies.readline()
        if not line.endswith(b"\r\n"):
            raise ConnectionResetError("closed")
        if line.startswith(b"-LOADING"):
            raise ConnectionResetError("loading")
        if line[:1] == b"-":
            raise SystemExit(f"error reply: {line.decode().strip()}")
        return line[1:-2]

    def ask(self, *words):
        self.socket.sendall(b" ".join(str(word).encode() for word in words) + b"\r\n")
        return self.line()

    def list(self):
        found = []
        for _ in range(int(self.ask("LRANGE", KEY, 0, -1))):
            self.line()
            found.append(int(self.replies.readline()))
        return found


client = Client()
client.ask("PING")
ready()
tally = Tally()
while not stopped.is_set():
    number, tally.sent = tally.sent, tally.sent + 1
    try:
        if client is None:
            client = Client()
        client.ask("RPUSH", KEY, number)
        tally.acknowledged.append(number)
    except OSError as error:
        client = None
        tally.failed(error)
    time.sleep(0.02)
tally.report((client or Client()).list())
