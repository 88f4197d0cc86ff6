#!/usr/bin/env python3
"""Many ranks: 64 workers on 8 agents of one machine form, shrink when three nodes lose their power at once, grow again when
these come back, lose a worker on each of four nodes, and end with the weights of an untouched run, bit for bit.
"""
import argparse
import os
import signal
import sys
import time
import traceback

from rig import Failure, Training, events_text, require_no_processes, untouched, wait_until

NODES, WORKERS = 8, 8
WORLD = NODES * WORKERS
# So many processes on few cores: who waits for a core is not dead.
AGENT_OPTIONS = ["--worker-silence", 60, "--node-silence", 20, "--partition-wait", 20, "--restart-delay", 0.1, "--form-wait", 60,
                 "--rdzv-timeout", 120, "--frozen-timeout", 120, "--ready-timeout", 120, "--quiet"]


class Many(Training):
    HANG_S = 150
    MICROBATCHES = WORLD

    def start(self, name):
        self.agents[name] = self.job.start(name, WORKERS, self.program(10), f"4:{NODES}", self.on_line, extra=AGENT_OPTIONS)

    def worlds(self):
        """Sizes of all views that became ready, in order."""
        events = self.agents["n0"].events()
        sizes = {event["generation"]: event["amount"] for event in events if event["event"] == "view installed"}
        return [sizes[event["generation"]] for event in events if event["event"] == "view ready" and event["from"] == "leader"]

    def until_world(self, size, views=0):
        """A view of `size` ranks runs, one after the first `views` of them, and some steps are made in it."""
        def there():
            if time.monotonic() - self.moved > self.HANG_S:
                raise Failure(f"no step for {self.HANG_S} s at a world of {size}: views of {self.worlds()}")
            if dead := [name for name, agent in self.agents.items() if not agent.alive()]:
                raise Failure(f"{dead} ended at a world of {size}")
            worlds = self.worlds()
            return len(worlds) > views and worlds[-1] == size
        self.moved = time.monotonic()
        wait_until(there, 400, f"a world of {size}")
        self.say(f"a world of {size}")
        self.until_step(self.step + 3)


def train(options, reference):
    training = Many(options, "many")
    try:
        training.job.new_launch()
        training.start("n0")
        wait_until(lambda: any(event["event"] == "node joined" for event in training.agents["n0"].events()), 60, "the first node")
        for number in range(1, NODES):
            training.start(f"n{number}")
        training.until_world(WORLD)
        lost = ("n3", "n5", "n6")
        for name in lost:
            training.agents.pop(name).kill_node()
        training.say(f"{len(lost)} nodes are lost")
        training.until_world(WORLD - len(lost) * WORKERS)
        for name in lost:
            training.start(name)
        training.until_world(WORLD)
        views = len(training.worlds())
        for name in ("n1", "n2", "n3", "n7"):
            os.kill(training.agents[name].worker_pids()[5], signal.SIGKILL)
        training.say("4 workers are killed")
        training.until_world(WORLD, views)
        for name, agent in training.agents.items():
            if (code := agent.wait(400)) != 0:
                raise Failure(f"agent {name} ended with {code}; its last lines:\n" + "\n".join(agent.lines[-20:]))
        training.check_result(reference)
        require_no_processes(training.job)
        training.say(f"done; views of {training.worlds()}")
        print("many: ok\n" + "\n".join(training.log), flush=True)
        return 0
    except Exception as problem:  # a defect of the test itself is reported like one of the product
        text = str(problem) if isinstance(problem, Failure) else traceback.format_exc()
        done = "\n".join(training.log)
        print(f"many: FAILED: {text}\nwhat was done:\n{done}\nevents:\n{events_text(training.job)}", flush=True)
        return 1
    finally:
        training.job.close(keep=options.keep)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--build", required=True)
    parser.add_argument("--steps", type=int, default=45)
    parser.add_argument("--keep", action="store_true")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended by SIGTERM"))  # so that everything is cleaned up
    return train(options, untouched(options, microbatches=WORLD))


if __name__ == "__main__":
    sys.exit(main())
