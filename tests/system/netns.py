#!/usr/bin/env python3
"""Nodes whose network is cut, deaf on one side, or slow: real agents and trainings, each node in a network namespace of its
own behind a router that can lose what one side sends to the other, or throttle a node's link.

Whoever keeps the store goes on, the others freeze and end as requeue; where the network comes back in time nobody is
lost; and the weights are those of an untouched run, bit for bit.

The test makes a sandbox for itself (namespaces for users, mounts, processes and networks) and starts anew inside: when it
ends, so does everything in it, and nothing of it was ever seen outside.
"""
import argparse
import sys
import time
import traceback
from pathlib import Path

from rig import REQUEUE, Failure, Training, events_text, newest_version, require_no_processes, untouched, wait_until

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "support"))
from namespaces import RoutedHosts, enter_sandbox, furnish_sandbox, is_inside  # noqa: E402

HEARTBEAT_S, SILENCE_S, PARTITION_WAIT_S = 0.2, 3, 5
AGENT_OPTIONS = ["--heartbeat", HEARTBEAT_S, "--node-silence", SILENCE_S, "--partition-wait", PARTITION_WAIT_S,
                 "--worker-silence", 6, "--restart-delay", 0.1, "--form-wait", 0.5, "--rdzv-timeout", 30,
                 "--frozen-timeout", 20, "--quiet"]
STEADY_RATE = "30mbit"  # at which a training of 300 steps outlasts two cuts, however fast the machine
SLOW_RATE = "4mbit"  # at which a step takes a good part of a second


class Run(Training):
    def __init__(self, options, nodes):
        self.network = RoutedHosts(nodes)
        super().__init__(options, "netns")

    def start(self, name, nodes):
        # UCX takes two namespaces of one machine for one host, and would meet the other on the loopback device.
        self.agents[name] = self.job.start(
            name, 1, self.program(50), nodes, self.on_line, env={"UCX_NET_DEVICES": "eth"}, extra=AGENT_OPTIONS,
            rdzv=f"{self.network.address(next(iter(self.agents), name))}:{self.job.port}",
            prefix=self.network.inside(name))
        return self.agents[name]

    def launch(self, names, nodes="1:8"):
        self.job.new_launch()
        self.agents, self.step = {}, 0
        for name in names:
            agent = self.start(name, nodes)
            if len(self.agents) == 1:
                wait_until(lambda: any(event["event"] == "node joined" for event in agent.events()), 30, "the store")
        wait_until(lambda: self.nodes_in_view() >= set(names), 60, "all nodes in the view")

    def count(self, kind, names=None):
        """Events of a kind that the leader, or an agent, has told."""
        return [event for name, agent in self.agents.items() if names is None or name in names
                for event in agent.events() if event["event"] == kind and not event["from"].startswith("worker")]

    def generation(self):
        return max((event["generation"] for event in self.count("view ready")), default=0)

    def require_code(self, name, code, seconds=60):
        if (got := self.agents[name].wait(seconds)) != code:
            raise Failure(f"node {name} ended with {got}, expected {code}; its last lines:\n" +
                          "\n".join(self.agents[name].lines[-20:]))

    def require_frozen(self, names, generation):
        """They have frozen, ended as requeue, and entered no view after `generation`."""
        for name in names:
            self.require_code(name, REQUEUE)
            if not self.count("frozen", [name]):
                raise Failure(f"node {name} does not say that it froze")
            entered = [event["generation"] for event in self.agents[name].events() if event["event"] == "view ready"]
            if max(entered) > generation:
                raise Failure(f"node {name}, which the store's side had lost, entered generation {max(entered)}")
        self.say(f"{' and '.join(names)} froze, and ended as requeue")

    def require_nobody_lost(self):
        """As long as the job went on."""
        ended = min((event["at_ns"] for event in self.count("job ended")), default=float("inf"))
        for kind in ("node lost", "member lost", "frozen", "worker ended"):
            if found := [event for event in self.count(kind) if event["at_ns"] < ended]:
                raise Failure(f"somebody was lost: {found[0]}")

    def finish(self, reference, names):
        for name in names:
            self.require_code(name, 0, 120)
        require_no_processes(self.job)
        self.check_result(reference)

    def close(self, keep=False):
        self.job.close(keep=keep)
        self.network.close()


def parted(run, reference, side, other, how, after_s=0.0):
    """`side` has the store. It goes on, not earlier than `after_s`; the others freeze."""
    run.launch(side + other)
    run.until_step(run.steps * 0.2)
    generation = run.generation()
    how()
    cut_at = time.monotonic()
    run.say("the network is cut")
    wait_until(lambda: run.generation() > generation, 60, "a view of the side that has the store")
    took = time.monotonic() - cut_at
    run.say(f"{' and '.join(side)} go on, {took:.2f} s after the cut")
    if took < after_s:
        raise Failure(f"more than half of the nodes were given up after {took:.2f} s, before the {after_s} s of the wait")
    step = run.step
    run.until_step(step + 5)
    run.require_frozen(other, generation)
    run.finish(reference, side)


def partition_of_two(run, reference):
    parted(run, reference, ["a"], ["b"], lambda: run.network.cut(["a"], ["b"]))


def even_split(run, reference):
    parted(run, reference, ["a", "b"], ["c", "d"], lambda: run.network.cut(["a", "b"], ["c", "d"]))


def minority_with_store(run, reference):
    """More than half of the nodes are silent: their return is waited for (rule 11)."""
    parted(run, reference, ["a"], ["b", "c"], lambda: run.network.cut(["a"], ["b", "c"]), PARTITION_WAIT_S)


def deaf(run, reference):
    """Node b hears nothing any more, and is heard for a while."""
    parted(run, reference, ["a", "c"], ["b"], lambda: run.network.lose(["a", "c"], ["b"]))


def mute(run, reference):
    """Node b hears all, and nobody hears it."""
    parted(run, reference, ["a", "c"], ["b"], lambda: run.network.lose(["b"], ["a", "c"]))


def heals(run, reference):
    """The cut is over before anybody is given up: one view from the beginning to the end, so no step is repeated. TCP doubles
    the intervals at which it sends again, so the end of a cut is noticed after up to twice its length."""
    run.launch(["a", "b"])
    run.network.throttle("b", STEADY_RATE)
    run.until_step(run.steps * 0.2)
    generation = run.generation()
    cut_s = SILENCE_S * 0.25
    for _ in range(2):
        run.network.cut(["a"], ["b"])
        time.sleep(cut_s)
        run.network.heal()
        step = run.step
        run.until_step(step + 10)
        time.sleep(2 * cut_s)  # each connection doubles on its own; a cut before that is over is one long cut to it
    run.finish(reference, ["a", "b"])
    run.require_nobody_lost()
    if run.generation() != generation:
        raise Failure(f"the view changed, from generation {generation} to {run.generation()}")


def heals_late(run, reference):
    """More than half of the nodes are silent, and come back before the wait for them is over: all stay members."""
    run.launch(["a", "b", "c"])
    run.until_step(run.steps * 0.2)
    run.network.cut(["a"], ["b", "c"])
    wait_until(lambda: len(run.count("node lost")) >= 2, 60, "both nodes silent")
    run.network.heal()
    run.say("the network is whole again")
    run.finish(reference, ["a", "b", "c"])
    if lost := run.count("member lost"):
        raise Failure(f"somebody was lost: {lost[0]}")


def throttled(run, reference):
    """A slow link makes a slow training, and no loss; also one that joins over it is not given up."""
    run.launch(["a", "b"])
    for name in ("b", "c"):
        run.network.throttle(name, SLOW_RATE)
    began, step = time.monotonic(), run.step
    run.until_step(step + run.steps // 10)
    run.say(f"{(time.monotonic() - began) / (run.step - step):.3f} s a step over {SLOW_RATE}")
    run.start("c", "1:8")
    wait_until(lambda: "c" in run.nodes_in_view(), 90, "node c in the view")
    run.say("c has joined")
    run.until_step(run.step + 10)
    for name in ("b", "c"):
        run.network.unthrottle(name)
    run.finish(reference, ["a", "b", "c"])
    run.require_nobody_lost()


def too_few(run, reference):
    """The side with the store has fewer than MIN nodes: it saves and ends as requeue too, and a new launch goes on."""
    run.launch(["a", "b"], "2:8")
    run.until_step(run.steps * 0.3)
    run.network.cut(["a"], ["b"])
    step = run.step
    for name in ("b", "a"):
        run.require_code(name, REQUEUE)
    if (saved := newest_version(run.checkpoints)) < step:
        raise Failure(f"the newest save is version {saved}, but step {step} was done")
    run.network.heal()
    run.launch(["a", "b"], "2:8")
    run.finish(reference, ["a", "b"])


TESTS = {"partition": (partition_of_two, "ab"), "deaf": (deaf, "abc"), "heals": (heals, "ab"), "mute": (mute, "abc"),
         "even-split": (even_split, "abcd"), "minority-with-store": (minority_with_store, "abc"),
         "heals-late": (heals_late, "abc"), "throttled": (throttled, "abc"), "too-few": (too_few, "ab")}
SHORT = ["partition", "even-split", "deaf", "heals", "throttled"]


def attempt(options, title, reference):
    test, nodes = TESTS[title]
    run = Run(options, nodes)
    try:
        test(run, reference)
        print(f"netns: {title}: ok, {time.monotonic() - run.began:.1f} s", flush=True)
        if options.verbose:
            print("\n".join(run.log), flush=True)
        return True
    except Exception as problem:  # a defect of the test itself is reported like one of the product
        text = str(problem) if isinstance(problem, Failure) else traceback.format_exc()
        print(f"netns: {title}: FAILED: {text}\nwhat was done:\n" + "\n".join(run.log) +
              f"\nevents:\n{events_text(run.job)}", flush=True)
        return False
    finally:
        run.close(keep=options.keep)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--build", required=True)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--short", action="store_true", help=f"only {', '.join(SHORT)}")
    parser.add_argument("--only", choices=sorted(TESTS))
    parser.add_argument("--keep", action="store_true")
    parser.add_argument("--verbose", action="store_true")
    options = parser.parse_args()
    if not is_inside():
        outcome = enter_sandbox()
        if isinstance(outcome, int):
            return outcome
        print(f"netns: skipped: {outcome}")
        return 77
    furnish_sandbox()
    reference = untouched(options)
    titles = [options.only] if options.only else SHORT if options.short else list(TESTS)
    return 0 if all([attempt(options, title, reference) for title in titles]) else 1


if __name__ == "__main__":
    sys.exit(main())
