#!/usr/bin/env python3
"""Random schedules of losses, joins and preemptions against real processes.

Each schedule is drawn from a seed: the same seed draws the same schedule, though not the same interleaving. Whatever
happens, a run must end with the weights of an untouched one, bit for bit, with every sample trained on once, and leave
nothing behind. Some compress their gradients, by a codec that is drawn as well; so does the run they are compared with.
Some keep weights and moments in shards, which that run does not.
The node with the store (a) is lost only in the tests of its own (--store-lost), which all other nodes must end as
requeue, with all saved that they had.
"""
import argparse
import functools
import os
import random
import re
import signal
import sys
import time
import traceback

from rig import (CODECS, MICROBATCHES, REQUEUE, STEP_LINE, Failure, Job, check_result, events_text, gpt, newest_version,
                 require_no_processes, stacks_of, untouched, wait_until)

# Long enough that a machine with more processes than cores does not look like a lost node.
WORKER_SILENCE_S, NODE_SILENCE_S, PARTITION_WAIT_S = 4, 6, 3
NODES = 3
CODEC_SHARE = 0.4  # of the schedules whose reductions are compressed
SHARDED_SHARE = 0.4  # of those whose state is sharded
NOTHING_LEFT = "no member holds a whole version and none is saved"
HANG_S = 90  # without any step; many times what any recovery takes on a busy machine
# What a sanitizer has to say, in the output of agents and workers.
REPORT = re.compile(r"ERROR: AddressSanitizer|WARNING: ThreadSanitizer|runtime error: ")


def agent_options(patience):
    """`patience` is what an instrumented build is slower by."""
    return ["--worker-silence", patience * WORKER_SILENCE_S, "--node-silence", patience * NODE_SILENCE_S,
            "--partition-wait", patience * PARTITION_WAIT_S, "--restart-delay", 0.1, "--restarts", 1000, "--quarantine-losses", 0, "--form-wait", 0.5,
            "--rdzv-timeout", 30 * patience, "--grace", 60 * patience, "--frozen-timeout", 10 * patience]


def draw(seed):
    """A schedule: how it starts, and what happens when. An action waits for a share of the steps, or only for a
    moment after the one before it, so that losses fall into recoveries too."""
    chance = random.Random(seed)
    actions = []
    kinds = (["kill worker"] * 4 + ["freeze worker"] * 2 + ["thaw worker"] + ["kill node"] * 2 + ["freeze node"] + ["join node"] * 3 +
             ["preempt"])
    for _ in range(chance.randint(2, 6)):
        when = ("share", chance.uniform(0.02, 0.85)) if chance.random() < 0.6 else ("moment", chance.uniform(0, 0.5))
        actions.append({"kind": chance.choice(kinds), "when": when, "pick": chance.random(),
                        "workers": [chance.randint(1, 2) for _ in range(NODES)], "nodes": chance.randint(1, NODES),
                        "frozen_s": chance.uniform(0.05, 1.2), "after_s": chance.uniform(0, 0.03)})
    shares = iter(sorted(action["when"][1] for action in actions if action["when"][0] == "share"))
    for action in actions:
        if action["when"][0] == "share":
            action["when"] = ("share", next(shares))
    nodes, workers = chance.randint(1, NODES), [chance.randint(1, 2) for _ in range(NODES)]
    codec = chance.choice(CODECS) if chance.random() < CODEC_SHARE else "none"
    return {"nodes": nodes, "workers": workers, "actions": actions, "codec": codec,
            "sharded": chance.random() < SHARDED_SHARE}


class Schedule:
    def __init__(self, options, seed, plan):
        self.options, self.seed, self.plan, self.steps = options, seed, plan, options.steps
        self.codec, self.sharded = (plan["codec"], plan["sharded"]) if plan else ("none", options.state == "sharded")
        self.job = Job(options.build, f"random-{seed}")
        self.checkpoints, self.summary = self.job.folder / "checkpoints", self.job.folder / "summary.json"
        self.agents, self.log, self.frozen = [], [], []  # living agents; what was done; (time, pid, agent) to watch
        self.step, self.moved, self.names, self.base = 0, time.monotonic(), 0, 0
        self.late = False  # something was done to the end: what a worker has then still to do is the next launch's
        self.began = time.monotonic()
        self.reports = []

    def say(self, text):
        self.log.append(f"{time.monotonic() - self.began:7.2f} s, step {self.step}: {text}")

    def on_line(self, agent, line):
        if REPORT.search(line):
            self.reports.append(line)
        if found := STEP_LINE.search(line):
            self.step, self.moved = int(found[1]), time.monotonic()

    def start(self, workers):
        name = "abcdefghijklmnopqrstuvwxyz"[self.names % 26] + ("" if self.names < 26 else str(self.names // 26))
        self.names += 1
        program = gpt(self.job.build, self.steps, "--ledger", self.job.ledger(), "--summary", self.summary,
                      "--checkpoint-dir", self.checkpoints, "--checkpoint-every", 7, "--codec", self.codec,
                      *(["--shard-optimizer"] if self.sharded else []))
        agent = self.job.start(name, workers, program, "1:8", self.on_line, extra=[*agent_options(self.options.patience), "--quiet"])
        self.agents.append(agent)
        self.say(f"starts node {name} with {workers} workers (agent {agent.process.pid})")
        return agent

    def launch(self, nodes, workers):
        self.job.new_launch()
        self.agents, self.names, self.moved, self.preempted = [], 0, time.monotonic(), False
        store = self.start(workers[0])
        wait_until(lambda: any(event["event"] == "node joined" for event in store.events()), 30, "the store of node a")
        for count in workers[1:nodes]:
            self.start(count)

    # ---- waiting

    def over(self):
        """The store's agent has ended, so the launch has."""
        return not self.agents[0].alive()

    def watch(self):
        """Called again and again: fails where something hangs."""
        if time.monotonic() - self.moved > (hang := self.options.patience * HANG_S):
            raise Failure(f"no step for {hang} s; the processes stand at\n{stacks_of(self.job)}")
        for entry in list(self.frozen):
            since, pid, agent = entry
            if not agent.alive() or pid not in agent.worker_pids().values():
                self.frozen.remove(entry)
            elif time.monotonic() - since > (patience := self.options.patience * (WORKER_SILENCE_S + 30)):
                raise Failure(f"worker process {pid} of node {agent.name} is frozen for {patience} s and "
                              "was not replaced")

    def wait_for(self, action):
        kind, amount = action["when"]
        if kind == "share":
            while self.step < amount * self.steps and not self.over():
                self.watch()
                time.sleep(0.005)
            time.sleep(action["after_s"])
        else:
            time.sleep(amount)
            self.watch()

    # ---- actions

    def pick(self, action, among):
        return among[int(action["pick"] * len(among))] if among else None

    def worker(self, action):
        workers = [(agent, pid) for agent in self.agents if agent.alive() for pid in agent.worker_pids().values()]
        return self.pick(action, workers)

    def signal_worker(self, action, number, what):
        if not (chosen := self.worker(action)):
            return self.say(f"nothing to {what}")
        agent, pid = chosen
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            return self.say(f"worker process {pid} of node {agent.name} is gone already")
        self.say(f"{what}: process {pid} of node {agent.name}")
        return chosen

    def act(self, action):
        kind = action["kind"]
        if kind == "kill worker":
            self.signal_worker(action, signal.SIGKILL, "kills a worker")
        elif kind == "freeze worker":
            if chosen := self.signal_worker(action, signal.SIGSTOP, "freezes a worker"):
                self.frozen.append((time.monotonic(), chosen[1], chosen[0]))
        elif kind == "thaw worker":
            if chosen := self.signal_worker(action, signal.SIGSTOP, f"freezes for {action['frozen_s']:.2f} s a worker"):
                time.sleep(action["frozen_s"])
                try:
                    os.kill(chosen[1], signal.SIGCONT)
                except ProcessLookupError:
                    pass
        elif kind == "kill node":
            if agent := self.pick(action, [agent for agent in self.agents[1:] if agent.alive()]):
                agent.kill_node()
                self.agents.remove(agent)
                self.say(f"killed node {agent.name}")
        elif kind == "freeze node":
            # As a machine that stops: the others go on, and nothing it does when it wakes counts.
            if agent := self.pick(action, [agent for agent in self.agents[1:] if agent.alive()]):
                frozen_s = 7 * action["frozen_s"]  # longer than --node-silence now and then
                agent.signal_node(signal.SIGSTOP)
                time.sleep(frozen_s)
                agent.signal_node(signal.SIGCONT)
                self.say(f"froze node {agent.name} for {frozen_s:.2f} s")
        elif kind == "join node":
            if sum(agent.alive() for agent in self.agents) < NODES:
                self.start(action["workers"][0])
        elif kind == "preempt":
            self.preempt(action)

    def preempt(self, action):
        self.say("preempts all nodes")
        for agent in self.agents:
            agent.signal(signal.SIGTERM)
        self.preempted = True
        if self.codes() == 0:
            return
        self.say(f"was preempted with version {newest_version(self.checkpoints)} saved; resumes")
        self.launch(action["nodes"], action["workers"])

    # ---- the end

    def codes(self):
        """Waits for all agents; their exit code. The store's agent decides; the others must agree with it, but for
        those that came too late to join, or were not even told apart from a plain process yet, or had no worker when
        they were told to go while the job was ending."""
        deadline = time.monotonic() + 90 * self.options.patience
        for agent in self.agents:
            while agent.alive():
                if time.monotonic() > deadline:
                    raise Failure(f"agent {agent.name} does not end; the processes stand at\n{stacks_of(self.job)}")
                time.sleep(0.01)
        code = self.agents[0].wait(1)
        joined = {event["text"] for event in self.agents[0].events() if event["event"] == "node joined"}
        for agent in self.agents[1:]:
            other = agent.wait(1)
            told_to_go = self.preempted and other == REQUEUE
            # What was killed after the last step leaves something to do on its own node only.
            told_to_go = told_to_go or (self.late and {code, other} == {0, REQUEUE})
            if other != code and not told_to_go and (agent.name in joined or other not in (REQUEUE, -signal.SIGTERM)):
                raise Failure(f"node {agent.name} ended with {other}, node a with {code}; its last lines:\n" +
                              "\n".join(agent.lines[-10:]))
        if code not in (0, REQUEUE):
            raise Failure(f"node a ended with {code}; its last lines:\n" + "\n".join(self.agents[0].lines[-20:]))
        return code

    def finish(self):
        while not self.over():
            self.watch()
            time.sleep(0.01)
        code = self.codes()
        if self.late and REQUEUE in [agent.wait(1) for agent in self.agents]:
            self.say("a worker was killed after the last step; launches once more for what it had still to do")
            self.late = False
            self.launch(1, [2])
            return self.finish()
        # Both copies of a shard were lost before anything was saved: two losses in a row, or a node with both.
        if code == REQUEUE and self.sharded and any(NOTHING_LEFT in line for line in self.agents[0].lines):
            self.say("a shard was lost with its copies, and nothing is saved; launches again from the beginning")
            self.launch(1, [2])
            return self.finish()
        if code != 0:
            raise Failure(f"the job ended with {code} without a reason for it; last lines:\n" +
                          "\n".join(self.agents[0].lines[-20:]))

    def check(self, reference):
        require_no_processes(self.job)
        if self.reports:
            raise Failure("a sanitizer has something to say: " + self.reports[0])
        check_result(self.job, self.summary, self.checkpoints, self.steps, reference)

    def run(self, reference):
        self.launch(self.plan["nodes"], self.plan["workers"])
        done = 0
        for action in self.plan["actions"]:
            self.wait_for(action)
            if self.over():
                break
            self.act(action)
            self.late = self.late or self.step >= self.steps - 8
            done += 1
            if self.over() and self.agents[0].wait(1) == 0:
                break
        self.say(f"{done} of {len(self.plan['actions'])} actions done")
        self.finish()
        self.check(reference)

    def store_lost(self, reference, freeze=False):
        """Node a dies, or is frozen: a silence, in which it still owns the checkpoint folder. The others save what they
        have and end as requeue; a new launch goes on from there."""
        self.launch(3, [1, 2, 1])
        wait_until(lambda: self.watch() or self.step > self.steps * 0.4, 90, "40 % of the steps")
        wait_until(lambda: len({e["node"] for e in self.job.events() if e["event"] == "view ready"}) == 3, 60,
                   "all nodes in the view")
        step = self.step
        if freeze:
            self.agents[0].signal_node(signal.SIGSTOP)
        else:
            self.agents[0].kill_node()
        self.say(f"{'froze' if freeze else 'killed'} node a, which has the store")
        for agent in self.agents[1:]:
            if (code := agent.wait(60)) != REQUEUE:
                raise Failure(f"node {agent.name} ended with {code} when the store was lost, expected {REQUEUE}")
        if freeze:
            self.agents[0].kill_node()
        require_no_processes(self.job)
        self.say(f"the others ended as requeue, with version {newest_version(self.checkpoints)} saved")
        if newest_version(self.checkpoints) < step:
            raise Failure(f"the newest save is version {newest_version(self.checkpoints)}, but step {step} was done")
        if not any(event["event"] == "rescued" for event in self.job.events()):
            raise Failure("no agent said that it had saved what the workers held")
        self.launch(1, [2])
        self.finish()
        self.check(reference)


    def agent_killed(self, reference):
        """Only the one agent dies: its workers must follow at once, and leave the folder to a relaunch."""
        self.launch(1, [2])
        wait_until(lambda: self.watch() or self.step > self.steps * 0.4, 90, "40 % of the steps")
        self.agents[0].signal(signal.SIGKILL)
        self.agents[0].process.wait(10)
        self.say("killed the agent alone")
        require_no_processes(self.job)
        self.launch(1, [2])
        self.finish()
        self.check(reference)


def attempt(options, seed, plan, reference_of):
    schedule = Schedule(options, seed, plan)
    keep = options.keep
    try:
        reference = reference_of(schedule.codec)
        if plan:
            schedule.run(reference)
        elif seed == "agent-killed":
            schedule.agent_killed(reference)
        else:
            schedule.store_lost(reference, freeze=seed == "store-frozen")
        print(f"random_schedules: seed {seed}, codec {schedule.codec}{', sharded' if schedule.sharded else ''}: ok, {schedule.job.launch} launches, "
              f"{len(schedule.log)} entries, {time.monotonic() - schedule.began:.1f} s", flush=True)
        if options.verbose:
            print("\n".join(schedule.log), flush=True)
        return True
    except Exception as problem:  # a defect of the test itself is reported like one of the product
        keep = keep or options.keep_failed
        text = str(problem) if isinstance(problem, Failure) else traceback.format_exc()
        print(f"random_schedules: seed {seed}: FAILED: {text}\nplan: {plan}\nwhat was done:\n" + "\n".join(schedule.log) +
              f"\nevents:\n{events_text(schedule.job)}", flush=True)
        if keep:
            print(f"kept: {schedule.job.folder}")
        return False
    finally:
        schedule.job.close(keep=keep)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--build", help="the build folder; default: build/dev")
    parser.add_argument("--seed", type=int, help="of the first schedule; default: by the clock")
    parser.add_argument("--count", type=int, default=4)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--codec", choices=("none", *CODECS), help="of all schedules; default: drawn")
    parser.add_argument("--state", choices=("whole", "sharded"), help="of all schedules; default: drawn")
    parser.add_argument("--seconds", type=float, default=1e9, help="start no further schedule after so long")
    parser.add_argument("--patience", type=int, default=1, help="of an instrumented build: all deadlines times this")
    parser.add_argument("--store-lost", action="store_true", help="also lose the node with the store, first")
    parser.add_argument("--verbose", action="store_true", help="print what was done in each schedule")
    parser.add_argument("--keep", action="store_true", help="keep all working folders")
    parser.add_argument("--keep-failed", action="store_true", help="keep the working folders of failed schedules")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended by SIGTERM"))  # so that everything is cleaned up
    seed = options.seed if options.seed is not None else int(time.time())
    began = time.monotonic()
    reference_of = functools.cache(lambda codec: untouched(options, "--codec", codec))
    assert MICROBATCHES >= 2 * NODES
    results = [attempt(options, seed_of, None, reference_of) for seed_of in ("agent-killed", "store-lost", "store-frozen")
               if options.store_lost]
    for number in range(seed, seed + options.count):
        if time.monotonic() - began > options.seconds:
            break
        plan = draw(number)
        plan["codec"] = options.codec or plan["codec"]
        plan["sharded"] = options.state == "sharded" if options.state else plan["sharded"]
        results.append(attempt(options, number, plan, reference_of))
    print(f"random_schedules: {sum(results)} of {len(results)} passed, from seed {seed}, in "
          f"{time.monotonic() - began:.0f} s", flush=True)
    return 0 if results and all(results) else 1


if __name__ == "__main__":
    sys.exit(main())
