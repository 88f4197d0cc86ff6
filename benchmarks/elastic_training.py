"""Trainings that lose workers, agents and networks while they are measured: their agents, the events that these tell, and the
moments at which their workers (recovery_worker.cpp) have closed updates."""
import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "scripts"))
from jobs import free_port  # noqa: E402

STATE_BYTES, UPDATED_BYTES, SLEEP_MS = 64 << 20, 1 << 20, 20
WORKERS = 4  # of each agent
PATIENCE = 60
FOREVER = 1_000_000_000


def boot_ns():
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME)


def until(condition, what, seconds=PATIENCE, pause=0.002):
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        if time.monotonic() > deadline:
            raise RuntimeError(f"after {seconds} s still waiting for {what}")
        time.sleep(pause)
    return value


class Lines:
    """The whole lines of a file that grows, read as they come."""

    def __init__(self, path):
        self.path, self.offset, self.rest = path, 0, b""

    def read(self):
        try:
            with open(self.path, "rb") as file:
                file.seek(self.offset)
                new = file.read()
        except FileNotFoundError:
            return []
        self.offset += len(new)
        *whole, self.rest = (self.rest + new).split(b"\n")
        return [line.decode(errors="replace") for line in whole]


class Training:
    """Agents, by name, their events and their workers' lines. The first agent keeps the store, and the others are started when
    it does."""

    STATE_BYTES, UPDATED_BYTES = STATE_BYTES, UPDATED_BYTES
    AGENT_OPTIONS = ["--restarts", 1000, "--quarantine-losses", 0, "--restart-window", 1, "--restart-delay", 0.2]
    ENVIRONMENT = {}

    def __init__(self, build, program_extra=(), sleep_ms=SLEEP_MS, steps=FOREVER, nodes="1:2", state="whole", names="ab",
                 workers=WORKERS):
        self.build, self.sleep_ms, self.steps, self.extra, self.state = build, sleep_ms, steps, list(program_extra), state
        self.folder = Path(tempfile.mkdtemp(prefix="muster-bench-"))
        (self.folder / "updates").mkdir()
        self.secret = self.folder / "secret"
        self.secret.write_text(secrets.token_hex(32))
        self.secret.chmod(0o600)
        self.port = free_port()
        self.nodes, self.names, self.workers = nodes, names, workers
        self.agents, self.sources, self.pids, self.events, self.count = {}, {}, {}, [], 0
        try:
            for name in names:
                self.start(name)
            self.until_world(len(names) * workers)
        except BaseException:
            self.close()
            raise

    def rendezvous(self):
        return ["--rdzv", f"127.0.0.1:{self.port}"]

    def prefix(self, name):
        """Of the command that starts this agent."""
        return []

    def start(self, name):
        self.count += 1
        events = self.folder / f"events-{self.count}"
        command = [*self.prefix(name), self.build / "bin" / "muster", "run", "--quiet", "--nnodes", self.nodes, "--nproc", self.workers,
                   *self.rendezvous(), "--secret-file", self.secret, "--node-name", name, "--events", events, "--form-wait", 1,
                   *self.AGENT_OPTIONS, "--", self.build / "bin" / "bench_recovery", self.state, self.STATE_BYTES, self.UPDATED_BYTES,
                   self.sleep_ms, self.steps, self.folder / "updates", *self.extra]
        self.pids[name] = {}
        self.sources[Lines(events)] = name
        with open(self.said(name), "w") as said:
            self.agents[name] = subprocess.Popen([str(part) for part in command], stdout=subprocess.DEVNULL, stderr=said,
                                                 env=dict(os.environ, **self.ENVIRONMENT), start_new_session=True)
        if name == self.names[0]:
            until(lambda: self.look() or any(event["event"] == "node joined" for event in self.events), "the store")

    def said(self, name):
        """The file of this agent's own words."""
        return self.folder / f"said-{name}"

    def look(self):
        """Takes in what is new."""
        for lines, name in self.sources.items():
            for line in lines.read():
                event = json.loads(line)
                self.events.append(event)
                if event["event"] == "worker started":
                    self.pids[name][event["subject"]] = event["amount"]
                elif event["event"] == "worker ended":
                    self.pids[name].pop(event["subject"], None)

    def read_updates(self, pids=None):
        """generation → version → moments of the updates, of these processes or of all; read at leisure."""
        found = {}
        for path in (self.folder / "updates").iterdir():
            if pids is not None and int(path.name) not in pids:
                continue
            for line in path.read_text(errors="replace").splitlines():
                words = line.split()
                if len(words) != 4 or words[0] == "cpu" or words[3] == "0":
                    continue
                version, generation, at, world = (int(word) for word in words)
                found.setdefault(generation, {}).setdefault(version, []).append((at, world))
        return found

    def newest_version(self):
        return max((version for versions in self.read_updates().values() for version in versions), default=0)

    def views(self):
        self.look()
        return [event for event in self.events if event["event"] == "view ready" and event["from"] == "leader"]

    def until_world(self, size, seconds=PATIENCE):
        """The newest view has so many members, and has made some steps. Its generation."""
        def there():
            views = self.views()
            if not views:
                return None
            generation = views[-1]["generation"]
            installed = [event for event in self.events if event["event"] == "view installed" and
                         event["generation"] == generation and event["from"] == "leader"]
            return generation if installed and installed[-1]["amount"] == size else None
        generation = until(there, f"a view of {size} members", seconds)
        time.sleep(0.4)
        return until(there, f"a view of {size} members", seconds)

    def recovery(self, killed_at, generation, size):
        """Milliseconds from a kill to the ready view, and to the first update that all of it have closed."""
        def ready():
            return [view for view in self.views() if view["generation"] > generation]
        view = until(ready, "the next view")[0]

        def committed():
            versions = self.read_updates().get(view["generation"], {})
            done = [max(at for at, _ in moments) for moments in versions.values() if len(moments) >= size]
            return min(done, default=None)
        time.sleep(0.15)  # reading must not take the processor from what is measured
        done = until(committed, "an update of the next view")
        return (view["at_ns"] - killed_at) / 1e6, (done - killed_at) / 1e6

    def close(self):
        for agent in self.agents.values():
            if agent.poll() is None:
                os.killpg(agent.pid, signal.SIGKILL)
                agent.wait(10)
        shutil.rmtree(self.folder, ignore_errors=True)
