#!/usr/bin/env python3
"""Recorded preemptions of spot nodes, replayed against real agents and workers in compressed time.

A trace has lines `milliseconds,add|remove,node`. Of the nodes that are there at a time the first CAP run an agent of one
worker each. Who is removed is killed with its workers, or told some seconds before, by turns that a seed draws. A training
that is done is followed by another, for as long as the replay lasts. Whatever happens, each ends with the weights of an
untouched one, bit for bit, every sample trained on once, and nothing left behind: no process, file or segment; and no agent
or worker holds more descriptors, in a world of one size, than when it first was in one of that size.

With etcd as store no node is special. With the embedded store the others end as requeue when its node goes, with all saved
that they had, and a new launch goes on from there.
"""
import argparse
import csv
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
from pathlib import Path

from rig import REQUEUE, STEP_LINE, TOP, Failure, Training, events_text, require_no_processes, stacks_of, untouched, wait_until
from etcd import Etcd

AGENT_OPTIONS = ["--worker-silence", 4, "--node-silence", 4, "--partition-wait", 4, "--restart-delay", 0.1, "--restarts", 1000,
                 "--form-wait", 0.5, "--rdzv-timeout", 10, "--grace", 60, "--frozen-timeout", 10]
CAP = 4
NOTICE_SHARE = 0.5
NOTICE_S = 5  # from the notice to the end; spot nodes have 120, of hours
KILLED = -signal.SIGKILL


def read_trace(path):
    with open(path) as file:
        events = [(int(at) / 1000, what, node) for at, what, node in csv.reader(file)]
    return [(at - events[0][0], what, node) for at, what, node in events]


def segments():
    """But for those of benchmarks, which may run beside this."""
    return {name for name in os.listdir("/dev/shm")
            if ("muster" in name or name.startswith("ucx")) and not name.startswith("muster-bench-")}


def children_of(pid):
    try:
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:  # it has ended
        return []


class Descriptors:
    """Of each process, how many it holds in a world of one size: the least of some samples, since saves and transfers take some for
    a while. `leaks` looks closer, at one job; here lives what is hit by everything."""
    SAMPLES = 3
    SLACK = 6
    EVERY_S = 0.2
    WARM_S = 2  # since a node was first in a view

    def __init__(self):
        self.trains, self.began = set(), {}
        self.samples, self.first, self.compared, self.next = {}, {}, 0, 0.0

    def look(self, training):
        if time.monotonic() < self.next:
            return
        self.next = time.monotonic() + self.EVERY_S
        for name, agent in training.agents.items():
            if agent not in self.trains:  # it starts, waits or learns
                if not any(event["event"] == "view ready" and event["from"] != "leader" for event in agent.events()):
                    continue
                self.trains.add(agent)
            pid = agent.process.pid
            self.note(pid, f"the agent of node {name}", training.world)
            for worker in children_of(pid):
                self.note(worker, f"the worker of node {name}", training.world)

    def note(self, pid, who, world):
        try:
            held = os.listdir(f"/proc/{pid}/fd")
        except OSError:  # it ends
            return
        if time.monotonic() - self.began.setdefault(pid, time.monotonic()) < self.WARM_S:
            return
        samples = self.samples.setdefault((pid, world), [])
        samples.append(len(held))
        if len(samples) < self.SAMPLES:
            return
        least = min(samples)
        samples.clear()
        first = self.first.setdefault((pid, world), least)
        self.compared += 1
        if least > first + self.SLACK:
            raise Failure(f"{who} held {first} descriptors in a world of {world}, and holds {least} now: " +
                          ", ".join(sorted(os.readlink(f"/proc/{pid}/fd/{fd}") for fd in os.listdir(f"/proc/{pid}/fd"))))


class Launches(Training):
    """One training, over all its launches."""
    def __init__(self, options, number, store):
        super().__init__(options, "traces")
        self.store, self.job_name = store, f"traces-{number}"
        self.ends, self.told, self.seat, self.started = [], {}, None, 0
        self.world = 0

    def on_line(self, agent, line):
        super().on_line(agent, line)
        if found := STEP_LINE.search(line):
            self.world = int(found[4])

    def store_options(self):
        return ["--rdzv-lease", 3, "--job", self.job_name] if self.store else []

    def rendezvous(self):
        return self.store.url() if self.store else None

    def start(self, name):
        if not any(agent.alive() for agent in self.agents.values()):
            self.job.new_launch()
            self.agents, self.ends, self.seat, self.moved = {}, [], name, time.monotonic()
        self.started += 1
        self.agents[name] = self.job.start(name, 1, self.program(50), "1:8", self.on_line,
                                           extra=[*AGENT_OPTIONS, "--quiet", *self.store_options()], rdzv=self.rendezvous())
        if self.seat == name and not self.store:  # the others need it
            wait_until(lambda: any(event["event"] == "node joined" for event in self.agents[name].events()), 30,
                       "the store of the first node")

    def collect(self):
        """Who has ended. True: the training is done, or waits for a launch."""
        for name, agent in list(self.agents.items()):
            if agent.alive():
                continue
            code = agent.wait(1)
            if code not in (0, REQUEUE, KILLED):
                raise Failure(f"node {name} ended with {code}; its last lines:\n" + "\n".join(agent.lines[-20:]))
            self.say(f"node {name} has ended with {code}")
            self.ends.append(code)
            del self.agents[name]
        for name, deadline in list(self.told.items()):
            if name not in self.agents:
                del self.told[name]
            elif time.monotonic() > deadline:
                self.agents[name].kill_node()
        if self.agents and time.monotonic() - self.moved > self.HANG_S:
            raise Failure(f"no step for {self.HANG_S} s; the processes stand at\n{stacks_of(self.job)}")
        return not self.agents

    def done(self):
        return not self.agents and 0 in self.ends and Path(f"{self.summary}.weights").exists()

    def remove(self, name, with_notice):
        self.say(f"{'tells' if with_notice else 'kills'} node {name}")
        if with_notice:
            self.agents[name].signal(signal.SIGTERM)
            self.told[name] = time.monotonic() + NOTICE_S
        else:
            self.agents[name].kill_node()

    def ends_with_its_seat(self, name):
        """The embedded store's node was killed: nobody is left behind without it."""
        if self.store or name != self.seat:
            return
        for other, agent in self.agents.items():
            if other != name and (code := agent.wait(90)) not in (0, REQUEUE):
                raise Failure(f"node {other} ended with {code} when the store was lost; its last lines:\n" + "\n".join(agent.lines[-20:]))


class Replay:
    def __init__(self, options, trace, store, reference):
        self.options, self.events, self.store, self.reference = options, trace, store, reference
        self.chance = random.Random(options.seed)
        self.speed = trace[-1][0] / options.seconds if options.speed is None else options.speed
        self.there, self.next, self.rounds = [], 0, 0
        self.counts = dict.fromkeys(("trainings", "launches", "nodes started", "killed", "told", "steps"), 0)
        self.training = None
        self.descriptors = Descriptors()

    def wanted(self):
        return self.there[:CAP]

    def play_until(self, at):
        while self.next < len(self.events) and self.events[self.next][0] <= at:
            _, what, node = self.events[self.next]
            self.next += 1
            if what == "add":
                self.there.append(node)
            elif node in self.there:
                self.there.remove(node)

    def settle(self):
        """The nodes that run become those that the trace has."""
        training = self.training
        for name in list(training.agents):
            if name in self.wanted() or name in training.told or name not in training.agents:
                continue
            with_notice = self.chance.random() < NOTICE_SHARE
            self.counts["told" if with_notice else "killed"] += 1
            training.remove(name, with_notice)
            if not with_notice:
                training.ends_with_its_seat(name)
                training.collect()
        if training.done():
            return
        # A launch that ends, or whose store has moved or is about to, takes nobody any more: who came later would lead
        # a launch of its own, at the rendezvous that the first node has left.
        seat_leaves = training.seat in training.told or training.seat not in training.agents
        is_over = 0 in training.ends or (not self.store and seat_leaves)
        for name in self.wanted():
            if name not in training.agents and not (is_over and training.agents):
                training.start(name)

    def finish_training(self):
        training = self.training
        require_no_processes(training.job)
        training.check_result(self.reference)
        for what, count in (("trainings", 1), ("launches", training.job.launch), ("nodes started", training.started),
                            ("steps", training.steps)):
            self.counts[what] += count
        training.job.close(keep=self.options.keep)
        self.rounds += 1
        self.training = Launches(self.options, self.rounds, self.store)

    def run(self):
        self.training = Launches(self.options, 0, self.store)
        began, skipped = time.monotonic(), 0.0
        while time.monotonic() - began < self.options.seconds and self.next < len(self.events):
            at = (time.monotonic() - began) * self.speed + skipped
            if not self.there and not self.training.agents:  # nothing to see until a node comes
                skipped += max(0.0, self.events[self.next][0] - at)
                at = max(at, self.events[self.next][0])
            self.play_until(at)
            self.turn()
        self.there = self.there or ["last"]
        while self.training.agents or self.training.ends:
            number = self.rounds
            self.turn(start=not self.training.agents)
            if self.rounds != number:
                break
        self.training.job.close()

    def turn(self, start=True):
        if self.training.collect() and self.training.done():
            self.finish_training()
        elif start:
            self.settle()
        self.descriptors.look(self.training)
        time.sleep(0.02)


def replay(options, name, embedded, reference):
    before = segments()
    folder = Path(tempfile.mkdtemp(prefix="muster-traces-etcd-"))
    store, run = None, None
    title = f"{name}, {'embedded store' if embedded else 'etcd'}"
    try:
        store = None if embedded else Etcd(folder)
        run = Replay(options, read_trace(options.traces / f"{name}-trace.csv"), store, reference)
        run.run()
        if left := segments() - before:
            raise Failure(f"left behind in /dev/shm: {sorted(left)}")
        run.counts["times descriptors were compared"] = run.descriptors.compared - len(run.descriptors.first)
        if run.counts["trainings"] == 0 or run.counts["killed"] + run.counts["told"] == 0:
            raise Failure(f"the replay has shown nothing: {run.counts}")
        print(f"traces: {title}: ok, {run.next} of {len(run.events)} events at {run.speed:.0f} times their speed: " +
              ", ".join(f"{count} {what}" for what, count in run.counts.items()), flush=True)
        return True
    except Exception as problem:  # a defect of the test itself is reported like one of the product
        text = str(problem) if isinstance(problem, Failure) else traceback.format_exc()
        training = run.training if run else None
        done = "\n".join(training.log) + f"\nevents:\n{events_text(training.job)}" if training else ""
        print(f"traces: {title}: FAILED: {text}\nwhat was done:\n{done}", flush=True)
        return False
    finally:
        if run and run.training:
            run.training.job.close(keep=options.keep)
        if store:
            store.close()
        shutil.rmtree(folder, ignore_errors=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--build", required=True)
    parser.add_argument("--traces", type=Path, default=TOP.parent / "shared" / "traces", help="the folder of the traces")
    parser.add_argument("--trace", choices=("p3", "g4dn"), help="default: both")
    parser.add_argument("--store", choices=("etcd", "embedded"), help="default: both")
    parser.add_argument("--seconds", type=float, default=1800, help="of each replay, but for its last training")
    parser.add_argument("--speed", type=float, help="trace seconds in a second; default: the whole trace in --seconds")
    parser.add_argument("--steps", type=int, default=1200, help="of each training")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--keep", action="store_true")
    options = parser.parse_args()
    if not options.traces.is_dir():
        print(f"traces: skipped: no traces in {options.traces}; give their folder with --traces")
        return 77
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended by SIGTERM"))  # so that everything is cleaned up
    reference = untouched(options)
    passed = True
    for name in (options.trace,) if options.trace else ("p3", "g4dn"):
        for kind in (options.store,) if options.store else ("etcd", "embedded"):
            if kind == "etcd" and not shutil.which("etcd"):
                print(f"traces: {name}, etcd: skipped: no etcd here (Debian: etcd-server)")
                continue
            passed = replay(options, name, kind == "embedded", reference) and passed
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
