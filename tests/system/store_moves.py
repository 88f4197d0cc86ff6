#!/usr/bin/env python3
"""The first agent, which leads and holds the store, is told that its node ends: the store moves to another, the job goes
on there without a repeated step, and ends with the weights of an untouched run."""
import argparse
import signal
import sys
import time
from pathlib import Path

from rig import REQUEUE, Failure, Training, require_no_processes, run_tests, untouched, wait_until

GRACE_S = 40


def repeated(job):
    return [event for event in job.events() if event["event"] == "step repeated"]


def ended(agent, code):
    if (got := agent.wait(120)) != code:
        text = "\n".join(line for line in agent.lines if "] step " not in line)[-3000:]
        raise Failure(f"agent {agent.name} ended with {got}, not {code}:\n{text}")


class Moves(Training):
    """Nodes a (first, so it leads), b and c; `drained` are told one after the other, each while the others train."""

    def start(self, name, program, nodes):
        self.agents[name] = self.job.start(name, 2, program, nodes, on_line=self.on_line, extra=["--grace", GRACE_S])

    def said(self, event, text=""):
        return sum(said["event"] == event and said["from"] == "leader" and text in said["text"] for said in self.job.events())

    def wait_for_nodes(self, names):
        wait_until(lambda: self.nodes_in_view() >= set(names), 60, f"a view of {names}")

    def run(self, drained, reference):
        self.job.new_launch()
        program = self.program(checkpoint_every=1000000)
        for number, name in enumerate("abc"):  # in this order: a leads, and the store goes to the first that joined
            self.start(name, program, "1:3")
            wait_until(lambda: self.said("node joined") > number, 30, f"node {name} with the leader")
        self.wait_for_nodes("abc")
        self.until_step(20)
        for name in drained:
            began = time.monotonic()
            before = self.step
            self.agents[name].signal(signal.SIGTERM)
            self.say(f"SIGTERM to {name}")
            ended(self.agents[name], REQUEUE)
            self.say(f"{name} has ended after {time.monotonic() - began:.2f} s")
            self.until_step(before + 10)
        for name in "abc":
            if name not in drained:
                ended(self.agents[name], 0)
        if again := repeated(self.job):
            raise Failure(f"steps were repeated: {[event['version'] for event in again]}")
        if (moves := self.said("leader", "which leads from now on")) != len(drained):
            raise Failure(f"the store moved {moves} times, not {len(drained)}")
        self.check_result(reference)
        require_no_processes(self.job)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--build", type=Path, help="the build folder; default: build/dev")
    parser.add_argument("--steps", type=int, default=2500)
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended by SIGTERM"))
    reference = untouched(options)

    def test(drained):
        def run():
            moves = Moves(options, "store-moves")
            try:
                moves.run(drained, reference)
            except Failure as failure:
                raise Failure(f"{failure}\n" + "\n".join(moves.log)) from None
            finally:
                moves.job.close()
        return run

    return run_tests([("the first node is drained", test("a")), ("so is the second leader's", test("ab"))], "store_moves")


if __name__ == "__main__":
    sys.exit(main())
