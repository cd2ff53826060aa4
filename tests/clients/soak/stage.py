"""What the soak runs on: a server, redbouncer, the programs that use them, another host, a log's disk, and a look at all
of it every second."""

import http.client
import contextlib
import json
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path

HERE = Path(__file__).resolve().parent
PYTHON = HERE.parent / ".venv/bin/python"
CAP = 12  # upstream connections
CLIENT_MAX = 150
MEMORY_MAX = 64 << 20
TO_START = 60  # seconds a program may take
TELLING = 1  # second, by which a program that goes on has said so: it does every 0.2 s
LOG_DISK, LOG_KEPT = "4m", 1 << 20
# A lost host is known in 4 to 6 s instead of 11 to 15: the proportions are those of the defaults.
SETTINGS = (
    f"client.max={CLIENT_MAX}", f"client.memory_max={MEMORY_MAX >> 20}MiB", "client.user_timeout=4s",
    "client.keepalive_idle=1s", "client.keepalive_interval=1s", "client.keepalive_count=3",
    "auth.mode=open", "listen.protected_mode=false", "hygiene.interval=5s", "hygiene.heartbeat=2s",
    "hygiene.orphan_after=8s",
)


class Violation(Exception):
    """The run has shown a fault, or cannot show anything: `kind` is a word for it."""

    def __init__(self, kind, text):
        super().__init__(f"{kind}: {text}")
        self.kind = kind


def until(what, seconds, condition, pause=0.05, kind="stuck"):
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        if time.monotonic() > deadline:
            raise Violation(kind, f"not within {seconds} s: {what}")
        time.sleep(pause)
    return found


def free_port():
    """Below those that the kernel gives to outgoing connections, and not among those of tests/it, which may run beside this."""
    while True:
        with socket.socket() as probe, contextlib.suppress(OSError):
            port = random.randrange(9400, 12000)
            probe.bind(("127.0.0.1", port))
            return port


class Resp:
    """A connection that asks one thing at a time. Its name tells it from redbouncer's."""

    def __init__(self, port, timeout=5):
        self.socket = socket.create_connection(("127.0.0.1", port), timeout)
        self.replies = self.socket.makefile("rb")
        self.ask("CLIENT", "SETNAME", "soak")

    def ask(self, *words):
        words = [word if isinstance(word, bytes) else str(word).encode() for word in words]
        self.socket.sendall(b"*%d\r\n" % len(words) + b"".join(b"$%d\r\n%b\r\n" % (len(word), word) for word in words))
        line = self.replies.readline()
        if not line.endswith(b"\r\n"):
            raise ConnectionResetError("closed")
        return self.replies.read(int(line[1:]) + 2).decode() if line.startswith(b"$") else line.decode().strip()

    def close(self):
        self.replies.close()
        self.socket.close()


def ask(port, *words):
    client = Resp(port)
    try:
        return client.ask(*words)
    finally:
        client.close()


def answers(port):
    try:
        return ask(port, "PING") == "+PONG"
    except (OSError, ValueError):
        return False


def run(*command):
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True)
    if done.returncode:
        raise OSError(f"{' '.join(map(str, command))}: {done.stderr.strip()}")


class Network:
    """Another host: a network namespace that is joined to this one, and may vanish. Needs root."""

    def __init__(self):
        remove_stale()
        number, third, fourth = os.getpid() % 0x10000, random.randrange(256), random.randrange(64) * 4
        self.name, self.link = f"rb-soak-{os.getpid()}", f"rbs{number:04x}"
        guest, prefix = f"rbt{number:04x}", f"10.{random.randrange(128, 192)}.{third}"
        self.near, self.far = f"{prefix}.{fourth + 1}", f"{prefix}.{fourth + 2}"
        self.wrapper = ["ip", "netns", "exec", self.name]
        run("ip", "netns", "add", self.name)
        try:
            run("ip", "link", "add", self.link, "type", "veth", "peer", "name", guest, "netns", self.name)
            run("ip", "addr", "add", f"{self.near}/30", "dev", self.link)
            run("ip", "link", "set", self.link, "up")
            run("ip", "-n", self.name, "addr", "add", f"{self.far}/30", "dev", guest)
            run("ip", "-n", self.name, "link", "set", guest, "up")
            run("ip", "-n", self.name, "link", "set", "lo", "up")
            self.filter("-F")
        except OSError:
            self.remove()
            raise

    def filter(self, how, *rule):
        for chain in ("INPUT", "OUTPUT"):
            run(*self.wrapper, "iptables", "-w", how, chain, *rule)

    def vanish(self):
        self.filter("-I", "-j", "DROP")

    def come_back(self):
        self.filter("-F")

    def remove(self):
        for words in (("netns", "del", self.name), ("link", "del", self.link)):
            subprocess.run(["ip", *words], stderr=subprocess.DEVNULL)


def remove_stale():
    """What a run that was killed itself has left behind."""
    listed = subprocess.run(["ip", "netns", "list"], capture_output=True, text=True).stdout
    for name in re.findall(r"^rb-soak-(\d+)", listed, re.M):
        if not Path(f"/proc/{name}").exists():
            subprocess.run(["ip", "netns", "del", f"rb-soak-{name}"])


class LogDisk:
    """A small file system for redbouncer's log. Needs root."""

    def __init__(self, folder):
        self.folder = folder / "log"
        self.folder.mkdir()
        run("mount", "-t", "tmpfs", "-o", f"size={LOG_DISK}", "soak", self.folder)
        self.log, self.filler = self.folder / "redbouncer.log", self.folder / "filler"

    def fill(self):
        """To the last byte: a block that the log has begun takes lines as well."""
        for path, piece in ((self.filler, bytes(4096)), (self.log, b"\n")):
            with path.open("ab", buffering=0) as file:
                try:
                    while file.write(piece):
                        pass
                except OSError:
                    pass

    def free(self):
        self.filler.unlink(missing_ok=True)
        if self.log.stat().st_size > LOG_KEPT:
            os.truncate(self.log, 0)

    def remove(self):
        subprocess.run(["umount", "-l", str(self.folder)])


class Program:
    """A client program that may be killed and started again; its numbers are those of all its lives."""

    def __init__(self, stage, name, command, remote=False):
        self.stage, self.name, self.command, self.remote = stage, name, [str(word) for word in command], remote
        self.log = stage.folder / f"{name}.log"
        self.past, self.current = Counter(), Counter()
        self.process = None
        self.last_error = self.last_progress = 0.0

    def start(self):
        stage = self.stage
        host = stage.network.near if self.remote and stage.network else "127.0.0.1"
        wrapper = stage.network.wrapper if self.remote and stage.network else []
        environment = {**os.environ, "REDIS_URL": f"redis://{host}:{stage.port}", "PYTHONDONTWRITEBYTECODE": "1"}
        here = {"ADDRESS": f"{host}:{stage.port}", "RATE": str(stage.rate)}
        command = [here.get(word, word) for word in self.command]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen([*wrapper, *command], cwd=HERE, env=environment, stdin=subprocess.PIPE,
                                            stdout=subprocess.PIPE, stderr=log, text=True)
        self.is_ready = threading.Event()
        self.reader = threading.Thread(target=self.read, args=(self.process, self.is_ready), daemon=True)
        self.reader.start()

    def read(self, process, is_ready):
        for line in process.stdout:
            if line == "ready\n":
                is_ready.set()
                continue
            try:
                told = json.loads(line)
            except ValueError:
                continue  # it was killed within a line
            if "done" in told:
                self.stage.jobs.done[told["done"]] += 1
            elif "acknowledged" in told:
                self.stage.jobs.acknowledged.add(told["acknowledged"])
            else:
                now, told = time.monotonic(), Counter(told)
                if told["errors"] > self.current["errors"]:
                    self.last_error = now
                if told["ok"] > self.current["ok"]:
                    self.last_progress = now
                self.current = told

    def until_ready(self):
        until(f"{self.name} is ready\n{self.said()}", TO_START, self.is_ready.is_set)

    def tell(self, line):
        try:
            self.process.stdin.write(line + "\n")
            self.process.stdin.flush()
        except (BrokenPipeError, ValueError):
            pass  # it has ended by itself, which is found elsewhere

    def end(self):
        """Its process has ended, or is about to: what it has said counts from now on as its past."""
        self.process.wait()
        self.reader.join(10)
        self.past += Counter({key: value for key, value in self.current.items() if key != "connected"})
        self.current = Counter()

    def kill(self):
        self.process.kill()
        self.end()

    def stop(self, seconds=45):
        self.tell("stop")
        try:
            self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise Violation("stuck", f"{self.name} does not end") from None
        finally:
            self.end()

    def totals(self):
        return self.past + self.current

    def is_settled(self, since, seconds):
        """Whether it has gone on without an error for so long, `since` then at the earliest."""
        now = time.monotonic()
        if self.process.poll() is not None:
            raise Violation("program", f"{self.name} has ended by itself ({self.process.returncode})\n{self.said()}")
        return now - max(since, self.last_error) >= seconds and now - self.last_progress < TELLING

    def said(self, lines=12):
        try:
            return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])
        except OSError:
            return ""


class Jobs:
    """BullMQ jobs: what was acknowledged, and how often each was done."""

    def __init__(self):
        self.acknowledged, self.done = set(), Counter()

    def missing(self):
        return {name for name in list(self.acknowledged) if not self.done[name]}

    def doubled(self):
        return sum(times > 1 for times in self.done.values())


class Sampler(threading.Thread):
    """Looks at redbouncer from outside: from the kernel, from the server, and by its own metrics."""

    def __init__(self, stage, interval):
        super().__init__(daemon=True)
        self.stage, self.interval = stage, interval
        self.samples = []  # (seconds, {what: value})
        self.rows = []  # the server's connections at the last look
        self.server = None
        self.ended = threading.Event()
        self.most_upstream = 0

    def run(self):
        while not self.ended.wait(self.interval):
            sample = self.sample()
            if sample:
                self.samples.append((time.monotonic(), sample))

    def sample(self):
        """None while the server or redbouncer does not say."""
        stage = self.stage
        try:
            status = Path(f"/proc/{stage.proxy.pid}/status").read_text()
            files = len(os.listdir(f"/proc/{stage.proxy.pid}/fd"))
            metrics = stage.metrics()
            self.server = self.server or Resp(stage.server_port, timeout=2)
            rows = [row for row in self.server.ask("CLIENT", "LIST").splitlines() if " addr=" in row]
            self.rows = [row for row in rows if " name=soak " not in row]
        except (OSError, ValueError, http.client.HTTPException):
            if self.server:
                self.server.close()
            self.server = None
            return None
        self.most_upstream = max(self.most_upstream, len(self.rows))
        clients, tasks = total(metrics, "redbouncer_clients"), total(metrics, "redbouncer_tasks")
        connections = clients + len(self.rows)
        return {
            "memory": int(re.search(r"^RssAnon:\s+(\d+) kB", status, re.M)[1]),
            "files": files,
            "tasks": tasks,
            "upstream": len(self.rows),
            "clients": clients,
            "held": total(metrics, "redbouncer_client_memory_bytes") / 1024,
            "other files": files - connections,
            "other tasks": tasks - connections,
        }

    def end(self):
        self.ended.set()
        self.join(10)


def total(metrics, name, label=""):
    """The sum of a metric's series that have this label."""
    return sum(value for series, value in metrics.items() if series.split("{")[0] == name and label in series)


class Stage:
    def __init__(self, folder, options):
        self.folder, self.options = folder, options
        self.server_port, self.port, self.admin = free_port(), free_port(), free_port()
        self.random = random.Random(options.seed)
        self.jobs, self.programs = Jobs(), {}
        self.rate = 0  # commands a second of the raw client; 0: as many as can be
        self.network = self.disk = self.server = self.proxy = None
        self.missing = {}  # fault: why it cannot be brought about here

    def set_up(self):
        for name, make, fault in (("network", Network, "host lost"), ("disk", lambda: LogDisk(self.folder), "log disk full")):
            if self.options.stand_in:
                continue
            try:
                if os.geteuid():
                    raise OSError("needs root")
                setattr(self, name, make())
            except OSError as error:
                self.missing[fault] = str(error)
        self.start_server()
        until("the server answers", 15, lambda: answers(self.server_port))
        self.start_proxy()

    def start_server(self):
        with (self.folder / "redis.log").open("ab") as log:
            # It acknowledges nothing that it may lose. Connections that are killed with it must not be in its way.
            self.server = subprocess.Popen([
                "redis-server", "--port", str(self.server_port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "yes",
                "--appendfsync", "always", "--auto-aof-rewrite-min-size", "128mb", "--dir", str(self.folder),
            ], stdout=log, stderr=log)

    def start_proxy(self):
        listen = ["--listen", f"127.0.0.1:{self.port}"]
        if self.network:
            listen += ["--listen", f"{self.network.near}:{self.port}"]
        settings = [word for setting in SETTINGS for word in ("--set", setting)]
        self.log = self.disk.log if self.disk else self.folder / "redbouncer.log"
        with self.log.open("ab") as log:
            self.proxy = subprocess.Popen([
                str(self.options.proxy), *listen, "--upstream", f"redis://127.0.0.1:{self.server_port}",
                "--admin", f"127.0.0.1:{self.admin}", "--max-connections", str(CAP), *settings,
            ], stdout=log, stderr=log)

        def is_there():
            self.check_alive()
            return answers(self.port)

        until("redbouncer answers", 15, is_there)

    def program(self, name, command, remote=False):
        self.programs[name] = Program(self, name, command, remote)
        self.programs[name].start()

    def metrics(self):
        connection = http.client.HTTPConnection("127.0.0.1", self.admin, timeout=5)
        try:
            connection.request("GET", "/metrics")
            text = connection.getresponse().read().decode()
        finally:
            connection.close()
        samples = (line.rsplit(" ", 1) for line in text.splitlines() if line and not line.startswith("#"))
        return {series: float(value) for series, value in samples}

    def counted(self, name, label=""):
        return total(self.metrics(), name, label)

    def totals(self):
        return {name: program.totals() for name, program in self.programs.items()}

    def errors(self):
        return {name: totals["errors"] for name, totals in self.totals().items()}

    def check_alive(self):
        if self.proxy.poll() is not None:
            raise Violation("redbouncer", f"it has ended ({self.proxy.returncode})\n{self.log_end()}")

    def until_settled(self, seconds, within):
        """Until all programs go on without errors, for so many seconds from now on."""
        since = time.monotonic()

        def late():
            return [program for program in self.programs.values() if not program.is_settled(since, seconds)]

        while late():
            self.check_alive()
            self.check_replies()
            now = time.monotonic()
            if now > since + within:
                told = [f"{program.name}: last error {now - program.last_error:.1f} s ago, last progress "
                        f"{now - program.last_progress:.1f} s ago\n{program.said()}" for program in late()]
                raise Violation("stuck", f"not all programs go on within {within} s\n" + "\n".join(told)
                                + f"\n{self.log_end()}")
            time.sleep(0.05)

    def check_replies(self):
        """A reply that belongs elsewhere ends the run; so does a command that is not answered at all."""
        for name, totals in self.totals().items():
            for key, kind in (("mismatches", "mismatch"), ("silent", "silence")):
                if totals[key]:
                    said = [line for line in self.programs[name].said(1000).splitlines() if "wanted" in line or "MISM" in line]
                    raise Violation(kind, f"{totals[key]} of {name}\n" + "\n".join(said[:5]))

    def log_end(self, lines=30):
        try:
            return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])
        except OSError:
            return ""

    def close(self):
        for program in self.programs.values():
            if program.process:
                program.process.kill()
                program.process.wait()
        for process in (self.proxy, self.server):
            if process and process.poll() is None:
                process.send_signal(signal.SIGCONT)
                process.kill()
                process.wait()
        if self.options.keep:
            self.options.keep.mkdir(parents=True, exist_ok=True)
            for log in [*self.folder.glob("*.log"), *self.folder.glob("log/*.log")]:
                shutil.copy(log, self.options.keep)
        for part in (self.disk, self.network):
            if part:
                part.remove()


def note(text):
    print(text, file=sys.stderr, flush=True)
