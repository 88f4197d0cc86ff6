#!/usr/bin/env python3
"""Random notices against the GPT: from a random source, with a random time left, in every phase of a training, with members
dying meanwhile. Each must end with 75 before its deadline, with nobody killed, nothing left behind, and the newest step saved
whenever the leader said that a save fits. What the training did at the moment of each notice is read from the events, and
counted: a long run must have hit every phase."""
import argparse
import os
import re
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path
from random import Random

from rig import REQUEUE, Failure, Job, gpt, newest_version, require_no_processes, run_tests, wait_until
from jobs import free_port  # noqa: E402, from scripts/, which rig adds

FOREVER = 100000000
SOURCES = ("SIGTERM", "SIGUSR1", "file", "HTTP")
# What the training does when the notice comes. Each seed takes the next one, so that a run of eleven has them all.
PHASES = ("start", "steps", "restore", "save", "save, slow disk", "view change", "a member dies after", "stall", "two notices",
          "first step", "evaluation")
# What a notice may have met, as the events tell it afterwards, and how many notices must have met each.
LANDINGS = ("before a view", "restoring", "before the first step", "between revocation and view", "a save being written",
            "evaluating", "all workers standing still", "steps")
LONG_RUN = 100
SHARDED_SHARE = 0.4  # of the seeds whose state is sharded
KILLED = (-signal.SIGKILL, 128 + signal.SIGKILL)


class Round:
    def __init__(self, test, seed):
        self.test, self.job, self.seed = test, test.job, seed
        self.random = random = Random(seed)
        self.phase = PHASES[seed % len(PHASES)]
        self.source, self.left = random.choice(SOURCES), random.choice((6, 12, 30))
        self.workers = random.choice((2, 3)) if self.phase in ("view change", "a member dies after") else random.choice((1, 2))
        self.every = random.choice((7, 100))
        self.sharded = Random(-1 - seed).random() < SHARDED_SHARE
        self.name = f"r{seed}"
        self.checkpoints = self.job.folder / f"checkpoints-{seed}"
        self.file = self.job.folder / f"notice-{seed}"
        self.slow = self.job.folder / f"slow-{seed}"
        self.slow_reads = self.job.folder / f"slow-reads-{seed}"
        self.address = f"127.0.0.1:{free_port()}"
        self.victims = set()
        self.resumes = -1

    def what(self):
        return (f"seed {self.seed}: {self.phase}, {self.source}, {self.left} s, {self.workers} workers, a save every {self.every}{', sharded' if self.sharded else ''}")

    def launch(self):
        self.job.new_launch()
        program = gpt(self.job.build, FOREVER, "--checkpoint-dir", self.checkpoints, "--checkpoint-every", self.every,
                      *(["--evaluate-every", 10] if self.phase == "evaluation" else []),
                      *(["--shard-optimizer"] if self.sharded else []))
        env = {}
        if self.phase in ("save, slow disk", "restore"):
            env = {"LD_PRELOAD": self.job.build / "lib" / "system_slow_disk.so", "SLOW_DISK": self.slow,
                   "SLOW_READS": self.slow_reads}
        self.agent = self.job.start(self.name, self.workers, program, "1:1", env={key: str(value) for key, value in env.items()},
                                    extra=["--grace", str(self.left), "--notice-file", str(self.file), "--notice-listen",
                                           self.address, "--restart-delay", "0.2"])

    def steps(self):
        return sum(line.startswith(f"[{self.name}/0] step ") for line in self.agent.lines)

    def said(self, text):
        return any(text in line for line in self.agent.lines)

    def listens(self):
        status = Path(f"/proc/{self.agent.process.pid}/status").read_text()
        blocked = int(re.search(r"^SigBlk:\s*(\w+)", status, re.MULTILINE)[1], 16)
        return blocked >> (signal.SIGTERM - 1) & 1

    def kill_worker(self):
        pids = self.agent.worker_pids()
        if pids:
            slot = self.random.choice(sorted(pids))
            try:
                os.kill(pids[slot], signal.SIGKILL)
            except ProcessLookupError:
                return  # it had saved and ended before
            self.victims.add(slot)

    # ---- before the notice

    def come_to_phase(self):
        pause = self.random.uniform
        if self.phase == "restore":
            self.launch()
            wait_until(lambda: self.steps() > 15, 60, "steps to restore")
            self.agent.signal(signal.SIGTERM)
            self.agent.wait(60)
            self.resumes = newest_version(self.checkpoints)
            self.slow_reads.write_text(str(round(pause(0.05, 0.2), 2)))
        self.launch()
        wait_until(self.listens, 20, "the agent to hold its signals: before that it is the scheduler's loss")
        if self.phase == "start":
            return time.sleep(pause(0, 0.9))
        if self.phase in ("restore", "first step"):
            # What comes next takes some milliseconds, or with slow reads some tenths of a second.
            wait_until(lambda: self.happened("view ready"), 60, "the first view")
            return time.sleep(pause(0, 0.3) if self.phase == "restore" else pause(0, 0.03))
        wait_until(lambda: self.steps() > 3, 60, "the first steps")
        time.sleep(pause(0, 0.5))
        if self.phase == "save":
            # Of the next periodic save, wherever it is: between its opening and its manifest lie some milliseconds.
            count = sum("save started" in line for line in self.agent.lines)
            wait_until(lambda: sum("save started" in line for line in self.agent.lines) > count, 60, "a save")
            time.sleep(pause(0, 0.02))
        if self.phase == "save, slow disk":
            self.slow.write_text(str(round(pause(0.1, 0.4), 2)))
            time.sleep(pause(0, 1.0))
        if self.phase == "view change":
            self.kill_worker()
            if self.random.random() < 0.5:
                wait_until(lambda: self.happened("revoked"), 20, "the revocation")
            else:
                time.sleep(pause(0, 0.6))  # the death, the view of those who are left, the restart, the join
        if self.phase == "evaluation":
            wait_until(self.evaluates, 60, "an evaluation")
            time.sleep(pause(0, 0.1))
        if self.phase == "stall":
            for pid in self.agent.worker_pids().values():
                os.kill(pid, signal.SIGSTOP)
            time.sleep(pause(0, 0.5))
        return None

    def happened(self, what):
        return any(event["event"] == what for event in self.agent.events())

    def evaluates(self):
        lines = self.agent.lines
        return sum("evaluating version" in line for line in lines) > sum("evaluated version" in line for line in lines)

    # ---- the notice, and what comes with it

    def give_notice(self):
        self.began = time.monotonic()
        self.raise_notice(self.source, self.left)
        if self.phase == "a member dies after":
            time.sleep(self.random.uniform(0, 0.05))
            self.kill_worker()
        if self.phase == "stall":
            time.sleep(self.random.uniform(0, 1.0))
            for pid in self.agent.worker_pids().values():
                os.kill(pid, signal.SIGCONT)
        if self.phase == "two notices":
            time.sleep(self.random.uniform(0, 0.05))
            other = self.random.choice([source for source in ("file", "HTTP", "SIGUSR1") if source != self.source])
            self.raise_notice(other, self.left)

    def raise_notice(self, source, left):
        if source == "file":
            self.file.write_text(f"job {left}")
        elif source == "HTTP":
            wait_until(lambda: not self.agent.alive() or self.tell(left) == 0, 10, "the agent to take a notice")
        else:
            self.agent.signal(getattr(signal, source))

    def tell(self, left):
        return subprocess.run([self.job.muster, "notice", "--to", self.address, f"job {left}"], capture_output=True,
                              timeout=90).returncode

    # ---- what it met

    def landing(self):
        """By the events before the first notice, which is the agent's own, and by the lines that the program printed."""
        before = []
        for event in self.agent.events():
            if event["event"] == "notice":
                break
            before.append(event["event"])
        if "view ready" not in before:
            return "before a view"
        if "step" not in before:
            return "restoring" if self.resumes >= 0 and "resumed" not in before else "before the first step"
        if before.count("revoked") and "view ready" not in before[len(before) - before[::-1].index("revoked"):]:
            return "between revocation and view"
        if before.count("save started") > before.count("save durable") + before.count("save failed"):
            return "a save being written"
        if self.phase == "stall":
            return "all workers standing still"
        lines = self.agent.lines
        told = next((index for index, line in enumerate(lines) if "] notice: " in line), len(lines))
        evaluating = sum("evaluating version" in line for line in lines[:told])
        if evaluating > sum("evaluated version" in line for line in lines[:told]):
            return "evaluating"
        return "steps"

    # ---- what must hold

    def judge(self):
        try:
            code = self.agent.wait(self.left + 10)
        except Failure as failure:
            raise Failure(f"{self.what()}: hung: {failure}") from None
        took = time.monotonic() - self.began
        events = self.agent.events()
        text = "\n".join(f"{event['from']}: {event['event']}: {event['text']}" for event in events
                         if event["event"] not in ("step", "save staged"))[-4000:]

        def fail(words):
            raise Failure(f"{self.what()}, after {took:.2f} s: {words}:\n{text}")
        if code != REQUEUE:
            fail(f"ended with {code}")
        if took > self.left:
            fail("its deadline was missed")
        if not any(event["event"] == "safe to kill" for event in events):
            fail("it did not say that it can be killed")
        if self.said("stopping at once"):
            fail("it was ended by its deadline, not by its save")
        killed = [event["subject"] for event in events if event["event"] == "worker ended" and event["amount"] in KILLED]
        if len(killed) > len(self.victims):
            fail(f"workers {killed} were killed, and {sorted(self.victims)} by this test")
        newest = max((event["version"] for event in events if event["event"] == "step"), default=self.resumes - 1) + 1
        saved = newest_version(self.checkpoints)
        fits = [event["text"] for event in events if event["event"] == "notice plan" and event["text"].startswith("full save")]
        if fits and saved < newest:
            fail(f"a save that fits was planned, version {newest} was committed, and {saved} is saved")
        if saved < self.resumes:
            fail(f"version {self.resumes} was there before, and {saved} is the newest now")
        if saved >= 0:
            self.verify()
        return took, bool(fits)

    def verify(self):
        done = subprocess.run([self.job.muster, "ckpt", "verify", self.checkpoints], capture_output=True, text=True, timeout=60)
        if done.returncode != 0:
            raise Failure(f"{self.what()}: what was saved is damaged: {done.stdout}{done.stderr}")


class RandomNotices:
    def __init__(self, build):
        self.job = Job(build and Path(build), "random-notices")
        self.took = {phase: [] for phase in PHASES}
        self.landings = {landing: 0 for landing in LANDINGS}
        self.planned = 0

    def run(self, seed, count):
        for number in range(seed, seed + count):
            one = Round(self, number)
            one.come_to_phase()
            one.give_notice()
            took, planned = one.judge()
            require_no_processes(self.job)
            self.took[one.phase].append(took)
            self.planned += planned
            landing = one.landing()
            self.landings[landing] += 1
            print(f"random notices: {one.what()}: met {landing}, {took:.2f} s", flush=True)
        for phase, times in self.took.items():
            if times:
                print(f"random notices: {phase}: {len(times)} times, median {statistics.median(times):.2f} s, "
                      f"longest {max(times):.2f} s")
        met = ", ".join(f"{landing} {number}" for landing, number in self.landings.items())
        print(f"random notices: met: {met}")
        missed = [landing for landing, number in self.landings.items() if number == 0]
        if count >= LONG_RUN and missed:
            raise Failure(f"no notice met the training at: {', '.join(missed)}")
        print(f"random notices: {count} of {count} in time, {self.planned} with a save that was said to fit; nobody was killed",
              flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--build", help="the build folder; default: build/dev")
    parser.add_argument("--count", type=int, default=len(PHASES), help="notices; every eleventh is of the same phase")
    parser.add_argument("--seed", type=int, default=0, help="of the first notice; one that failed is repeated by its own")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended by SIGTERM"))
    test = RandomNotices(options.build)
    try:
        return run_tests([(f"{options.count} of them", lambda: test.run(options.seed, options.count))], "random notices")
    finally:
        test.job.close()


if __name__ == "__main__":
    sys.exit(main())
