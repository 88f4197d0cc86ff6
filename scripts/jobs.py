"""Drives jobs of real agents from Python: for the demo and the system tests.

A Job is one launch or several of the same training; an Agent is one `muster run` in a process group of its own. All
waits have deadlines. Everything is ended and removed by Job.close().
"""
import json
import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
import time
from pathlib import Path

TOP = Path(__file__).resolve().parent.parent


class Failure(Exception):
    """Something did not happen that must, or the other way round; the text says what."""


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Agent:
    """One `muster run`: its output lines and events, as they come."""

    def __init__(self, job, name, command, on_line=None, env=None):
        self.job, self.name, self.on_line = job, name, on_line
        self.events_path = job.folder / f"events-{name}-{time.monotonic_ns()}.jsonl"
        self.lines = []
        environment = dict(os.environ, **(env or {}))
        self.process = subprocess.Popen(
            [str(part) for part in command] if not callable(command) else command(self.events_path),
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace", env=environment,
            start_new_session=True)
        self.reader = threading.Thread(target=self._read, daemon=True)
        self.reader.start()

    def _read(self):
        for line in self.process.stdout:
            line = line.rstrip("\n")
            self.lines.append(line)
            if self.on_line:
                self.on_line(self, line)

    def events(self):
        """All events that were written whole so far."""
        try:
            text = self.events_path.read_text(errors="replace")
        except FileNotFoundError:
            return []
        found = []
        for line in text.splitlines():
            try:
                found.append(json.loads(line))
            except json.JSONDecodeError:
                pass  # the line that is being written
        return found

    def worker_pids(self):
        """Process ids of this agent's living workers, by local rank."""
        pids = {}
        for event in self.events():
            if event["event"] == "worker started":
                pids[event["subject"]] = event["amount"]
            elif event["event"] == "worker ended":
                pids.pop(event["subject"], None)
        return pids

    def alive(self):
        return self.process.poll() is None

    def signal(self, number):
        if self.alive():
            os.kill(self.process.pid, number)

    def signal_node(self, number):
        """To agent and workers at once."""
        for pid in [self.process.pid, *self.worker_pids().values()]:
            try:
                os.kill(pid, number)
            except ProcessLookupError:
                pass

    def kill_node(self):
        """The node's power goes."""
        self.signal_node(signal.SIGKILL)
        self.process.wait(10)

    def wait(self, seconds):
        """Its exit code. An agent that does not end in time is killed, and that is a failure."""
        try:
            code = self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            tail = "\n".join(self.lines[-30:])
            self.kill_node()
            raise Failure(f"agent {self.name} did not end within {seconds} s; its last lines:\n{tail}") from None
        self.reader.join(5)
        return code


class Job:
    def __init__(self, build=None, name="job"):
        self.build = Path(build or TOP / "build" / "dev")
        self.muster = self.build / "bin" / "muster"
        self.folder = Path(tempfile.mkdtemp(prefix=f"muster-{name}-"))
        self.secret = self.folder / "secret"
        self.secret.write_text(secrets.token_hex(32))
        self.secret.chmod(0o600)
        self.port = free_port()
        self.agents = []
        self.launch = 0

    def new_launch(self):
        """A fresh rendezvous, as a scheduler gives one to a requeued job; and a ledger of its own."""
        self.launch += 1
        self.port = free_port()
        self.ledger().mkdir(exist_ok=True)

    def ledger(self, launch=None):
        return self.folder / f"ledger-{self.launch if launch is None else launch:03d}"

    def start(self, name, workers, program, nodes="1:8", on_line=None, env=None, extra=(), rdzv=None, prefix=()):
        """Starts an agent of this job. `program` is the worker's command line; `prefix` a command that becomes the agent."""
        self.ledger().mkdir(exist_ok=True)

        def command(events):
            return [str(part) for part in (
                *prefix, self.muster, "run", "--nnodes", nodes, "--nproc", workers, "--rdzv",
                rdzv or f"127.0.0.1:{self.port}",
                "--secret-file", self.secret, "--node-name", name, "--events", events, *extra, "--", *program)]

        agent = Agent(self, name, command, on_line, env)
        self.agents.append(agent)
        return agent

    def events(self):
        return sorted((event for agent in self.agents for event in agent.events()), key=lambda event: event["at_ns"])

    def close(self, keep=False):
        for agent in self.agents:
            if agent.alive():
                agent.kill_node()
        if not keep:
            shutil.rmtree(self.folder, ignore_errors=True)


def wait_until(condition, seconds, what):
    """Polls `condition` until it is true; its value."""
    deadline = time.monotonic() + seconds
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > deadline:
            raise Failure(f"after {seconds} s still waiting for {what}")
        time.sleep(0.02)


def check_ledgers(folders, steps, microbatches):
    """Every sample of every step exactly once: of the newest try of a step that any process applied, each microbatch
    was contributed by exactly one process, and all tries of a microbatch had the same samples. `folders` in the order of
    the launches. Returns the samples of each step, in the order of its microbatches."""
    contributed, applied = {}, {}  # step → (launch, generation) → microbatch → samples; step → tries
    for launch, folder in enumerate(folders):
        for path in sorted(Path(folder).glob("ledger-*.txt")):
            for line in path.read_text().splitlines():
                kind, *numbers = line.split()
                step, generation, *rest = (int(number) for number in numbers)
                if kind == "a":
                    applied.setdefault(step, set()).add((launch, generation))
                    continue
                microbatch, samples = rest[0], tuple(rest[1:])
                tries = contributed.setdefault(step, {}).setdefault((launch, generation), {})
                if microbatch in tries:
                    raise Failure(f"step {step}, generation {generation}: microbatch {microbatch} was contributed twice")
                tries[microbatch] = samples
    order = []
    for step in range(steps):
        if step not in applied:
            raise Failure(f"no process has applied step {step}")
        counts = contributed.get(step, {}).get(max(applied[step]), {})
        if sorted(counts) != list(range(microbatches)):
            raise Failure(f"step {step} was applied with microbatches {sorted(counts)} of {microbatches}")
        for tries in contributed[step].values():
            if any(counts[index] != samples for index, samples in tries.items()):
                raise Failure(f"step {step}: two tries of one microbatch had different samples")
        order.append(tuple(counts[index] for index in range(microbatches)))
    # Each epoch visits every sample once: what repeats does so only after all others were there.
    samples = [sample for counts in order for part in counts for sample in part]
    distinct = len(set(samples))
    if len(set(samples[:distinct])) != distinct:
        raise Failure(f"of {distinct} samples one came again before all had been seen")
    return order


STEP_LINE = re.compile(r"step (\d+)/(\d+) loss ([\d.naif]+) world (\d+) nodes (\d+) generation (\d+) saved (-?\d+) "
                       r"speed (\d+)")
