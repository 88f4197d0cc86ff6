#!/usr/bin/env python3
"""What lives through many losses holds no more afterwards than before.

A job of two nodes loses a worker again and again, by death and by a freeze, and node c joins and is killed. Each time the
same world is back, the agents and the workers that have lived from the beginning are counted: descriptors, threads, mappings. The first
rounds fill caches and arenas; after them no count may go on growing, so what is lost with each view is found, however small.
"""
import argparse
import os
import re
import signal
import sys
import time
from collections import Counter
from pathlib import Path

from rig import REQUEUE, STEP_LINE, Failure, Training, require_no_processes, run_tests, stacks_of, wait_until

# A window so short that no death counts by the time of the next: the delay before a restart doubles with each that does. Nor is
# the node that loses them left out.
AGENT_OPTIONS = ["--quarantine-losses", 0, "--worker-silence", 2, "--node-silence", 4, "--partition-wait", 2,
                 "--restart-delay", 0.05, "--restart-window", 1, "--form-wait", 0.5, "--quiet"]
FOREVER = 100000000
WARM_ROUNDS = 3
WORKERS = 2


def holdings(pid):
    """What a process holds: kind → count."""
    found = Counter()
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        try:
            found["descriptors of " + re.sub(r"\d+", "N", os.readlink(entry))] += 1
        except FileNotFoundError:
            pass  # closed in between
    found["threads"] = len(list(Path(f"/proc/{pid}/task").iterdir()))
    for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
        parts = line.split(maxsplit=5)
        found["mappings of " + (re.sub(r"\d+", "N", parts[5]) if len(parts) > 5 else "memory")] += 1
    return found


def settled(pid):
    """The least that it holds in a while: what a step or a save takes for a moment does not count."""
    samples = []
    for _ in range(10):
        samples.append(holdings(pid))
        time.sleep(0.05)
    kinds = set().union(*samples)
    return Counter({kind: min(sample[kind] for sample in samples) for kind in kinds})


class Run(Training):
    def __init__(self, options):
        super().__init__(options, "leaks")
        self.world = 0

    def on_line(self, agent, line):
        super().on_line(agent, line)
        if found := STEP_LINE.search(line):
            self.world = int(found[4])

    def start(self, name):
        self.agents[name] = self.job.start(name, WORKERS, self.program(500), "1:8", self.on_line, extra=AGENT_OPTIONS)

    def until_world(self, world):
        """It is there, and goes on."""
        try:
            wait_until(lambda: self.world == world, 60, f"a world of {world}")
        except Failure as failure:
            raise Failure(f"{failure}; it is {self.world}; the processes stand at\n{stacks_of(self.job)}") from None
        self.until_step(self.step + 20)

    def round(self, number):
        """One change of each kind, and the same world again."""
        victim = list(self.agents["b"].worker_pids().values())[-1]
        os.kill(victim, signal.SIGSTOP if number % 2 else signal.SIGKILL)
        wait_until(lambda: victim not in self.agents["b"].worker_pids().values(), 30, f"the end of worker {victim}")
        self.until_world(2 * WORKERS)
        if number % 3 == 2:
            self.start("c")
            self.until_world(3 * WORKERS)
            self.agents.pop("c").kill_node()
            self.until_world(2 * WORKERS)
        time.sleep(1)  # the window of --restart-window


def holds_no_more(options):
    run = Run(options)
    try:
        for name in "ab":
            run.start(name)
            if name == "a":
                wait_until(lambda: any(event["event"] == "node joined" for event in run.agents["a"].events()), 30, "the store")
        run.until_world(2 * WORKERS)
        lasting = {"agent a": run.agents["a"].process.pid, "agent b": run.agents["b"].process.pid,
                   "first worker of a": run.agents["a"].worker_pids()[0], "second worker of a": run.agents["a"].worker_pids()[1],
                   "first worker of b": run.agents["b"].worker_pids()[0]}
        before = {}
        for number in range(options.rounds):
            run.round(number)
            if number == WARM_ROUNDS - 1:
                before = {who: settled(pid) for who, pid in lasting.items()}
        between = options.rounds - WARM_ROUNDS
        problems = []
        for who, pid in lasting.items():
            after = settled(pid)
            for kind in sorted(set(after) | set(before[who])):
                grown = after[kind] - before[who][kind]
                if options.verbose and grown:
                    print(f"leaks: {who}: {kind}: {before[who][kind]} → {after[kind]}")
                if 2 * grown >= between:
                    problems.append(f"{who}: {before[who][kind]} {kind}, after {between} more rounds {after[kind]}")
        if problems:
            raise Failure("; ".join(problems))
        for agent in run.agents.values():
            agent.signal(signal.SIGTERM)
        for agent in run.agents.values():
            if (code := agent.wait(60)) != REQUEUE:
                raise Failure(f"node {agent.name} ended with {code}, expected {REQUEUE}")
        require_no_processes(run.job)
    finally:
        run.job.close(keep=options.keep)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--build", required=True)
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--keep", action="store_true")
    parser.add_argument("--verbose", action="store_true")
    options = parser.parse_args()
    options.steps = FOREVER
    # Short-lived threads (a lesson's, a save's) draw one of glibc's many arenas at random, each with a mapping of its own: it
    # takes dozens of rounds until all have been drawn.
    os.environ["MALLOC_ARENA_MAX"] = "2"
    if options.rounds < 2 * WARM_ROUNDS:
        parser.error(f"--rounds wants {2 * WARM_ROUNDS} or more")
    return run_tests([("many losses", lambda: holds_no_more(options))], "leaks")


if __name__ == "__main__":
    sys.exit(main())
