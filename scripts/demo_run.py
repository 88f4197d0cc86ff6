#!/usr/bin/env python3
"""The main job, live: a GPT is trained by agents and workers that are killed, lost, joined, preempted and resumed, from a
damaged checkpoint too; then once more undisturbed. Both must end with the same weights, bit for bit.

Called by scripts/demo. Exits non-zero if anything differs from what Muster promises.
"""
import argparse
import hashlib
import json
import os
import signal
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
from jobs import STEP_LINE, Failure, Job, check_ledgers, wait_until  # noqa: E402

MICROBATCHES, LANES = 16, 8


class Display:
    """One line that moves while training goes on, and lines that stay for what happened."""

    def __init__(self, steps):
        self.steps, self.step, self.tty = steps, 0, sys.stdout.isatty()
        self.loss, self.world, self.nodes, self.generation, self.saved, self.speed = "-", 0, 0, 0, -1, 0
        self.began, self.last = time.monotonic(), 0.0

    def begin(self):
        self.began, self.step, self.base = time.monotonic(), 0, None

    def on_line(self, agent, line):
        found = STEP_LINE.search(line)
        if not found:
            return
        self.step, self.loss = int(found[1]), found[3]
        self.world, self.nodes, self.generation, self.saved, self.speed = (int(found[i]) for i in (4, 5, 6, 7, 8))
        if self.base is None:
            self.base = (self.step, time.monotonic())
        now = time.monotonic()
        if now - self.last < (0.1 if self.tty else 2.0) and self.step < self.steps:
            return
        self.last = now
        print("\r" + self.text() if self.tty else self.text(), end="" if self.tty else "\n", flush=True)

    def text(self):
        filled = 24 * self.step // self.steps
        steps, since = self.step - self.base[0], time.monotonic() - self.base[1]
        left = f"{since / steps * (self.steps - self.step):3.0f} s left" if steps > 0 else "         "
        return (f"[{'#' * filled}{'.' * (24 - filled)}] step {self.step:4}/{self.steps}  loss {self.loss}  world {self.world}"
                f" on {self.nodes}  generation {self.generation:2}  saved {self.saved:4}  {self.speed / 1000:5.1f} kB/s  {left}")

    def say(self, text):
        print(("\r\033[K" if self.tty else "") + f"  {time.monotonic() - self.began:6.1f} s  {text}", flush=True)


class Demo:
    def __init__(self, options):
        self.options, self.steps = options, options.steps
        self.job, self.display = Job(options.build, "demo"), Display(options.steps)
        self.checkpoints = self.job.folder / "checkpoints"
        self.losses = []  # (what, seconds until the world trained again)

    def program(self, summary, checkpoints=None):
        program = [self.job.build / "bin" / "gpt", "--steps", self.steps, "--microbatches", MICROBATCHES, "--lanes", LANES,
                   "--report-every", 1, "--ledger", self.job.ledger(), "--summary", summary, "--sample-bytes", 240]
        if checkpoints:
            program += ["--checkpoint-dir", checkpoints, "--checkpoint-every", max(self.steps // 12, 1)]
        return program

    def agent(self, name, workers, summary, nodes="1:4"):
        return self.job.start(name, workers, self.program(summary, self.checkpoints), nodes, self.display.on_line,
                              extra=["--form-wait", "4", "--quiet"])

    def reach(self, share, agents):
        target = int(self.steps * share)

        def there():
            ended = [agent for agent in agents if not agent.alive()]
            if ended:
                raise Failure(f"agent {ended[0].name} ended early; its last lines:\n" + "\n".join(ended[0].lines[-20:]))
            return self.display.step >= target

        wait_until(there, 120, f"step {target}")

    def recovery(self, what, began, condition, seconds=60):
        """Time from `began` until `condition`, and then one more step."""
        wait_until(condition, seconds, what)
        step = self.display.step
        wait_until(lambda: self.display.step > step, seconds, f"a step after: {what}")
        self.losses.append((what, time.monotonic() - began))
        self.display.say(f"training again {self.losses[-1][1]:.2f} s after: {what} "
                         f"(world {self.display.world}, generation {self.display.generation})")

    def preempt(self, agents, why):
        self.display.say(f"{why}: SIGTERM to all agents")
        began = time.monotonic()
        for agent in agents:
            agent.signal(signal.SIGTERM)
        codes = [agent.wait(40) for agent in agents]
        if set(codes) != {75}:
            raise Failure(f"after the preemption the agents ended with {codes}, expected 75 (requeue)")
        saved = self.newest()
        self.losses.append((why, time.monotonic() - began))
        self.display.say(f"saved version {saved[0]} and ended with code 75 after {time.monotonic() - began:.2f} s")

    def newest(self):
        """(version, folder) of the newest published save."""
        published = sorted(path.parent for path in self.checkpoints.glob("v*/manifest.json"))
        if not published:
            raise Failure(f"no checkpoint was published in {self.checkpoints}")
        return int(published[-1].name[1:13]), published[-1]

    def tortured(self, summary):
        display = self.display
        display.begin()
        self.job.new_launch()
        a = self.agent("a", 2, summary)
        wait_until(lambda: any(event["event"] == "node joined" for event in a.events()), 30, "the store of node a")
        b = self.agent("b", 2, summary)
        self.reach(0.10, [a, b])
        victim = wait_until(lambda: b.worker_pids().get(1), 30, "worker 1 of node b")
        display.say(f"killing worker 1 of node b (process {victim}) with SIGKILL")
        began, generation = time.monotonic(), display.generation
        os.kill(victim, signal.SIGKILL)
        self.recovery("a worker killed", began, lambda: display.generation > generation and display.world == 3)
        self.recovery("its replacement joins", began, lambda: display.world == 4)
        self.reach(0.25, [a, b])
        display.say("killing node b: the agent and its workers, with SIGKILL")
        began = time.monotonic()
        b.kill_node()
        self.recovery("a node lost", began, lambda: display.world == 2)
        self.reach(0.33, [a])
        display.say("starting node c, which joins while the others train")
        began = time.monotonic()
        c = self.agent("c", 2, summary)
        self.recovery("a node joins", began, lambda: display.world == 4)
        self.reach(0.50, [a, c])
        self.preempt([a, c], "preemption")
        self.second_launch(summary)
        self.third_launch(summary)

    def second_launch(self, summary):
        self.display.say("resuming with 3 workers on one node")
        self.job.new_launch()
        began, self.display.step = time.monotonic(), -1
        a = self.agent("a", 3, summary, "1:4")
        self.recovery("resume with 3 workers", began, lambda: self.display.step >= 0 and self.display.world == 3)
        self.reach(0.70, [a])
        self.preempt([a], "second preemption")

    def third_launch(self, summary):
        version, folder = self.newest()
        shard = sorted(folder.glob("shard-*.h5"))[0]
        content = bytearray(shard.read_bytes())
        position = len(content) // 2
        content[position] ^= 0x10
        shard.write_bytes(content)
        self.display.say(f"flipped one bit at byte {position} of {shard.name} of version {version}")
        self.job.new_launch()
        began, self.display.step = time.monotonic(), -1
        a = self.agent("a", 2, summary, "1:4")
        self.recovery("resume from an older version", began, lambda: self.display.step >= 0)
        rejected = [event for event in a.events() if event["event"] == "rejected" and shard.name in event["text"]]
        resumed = [event for event in a.events() if event["event"] == "resumed"]
        if not rejected or not resumed or resumed[0]["version"] >= version:
            raise Failure(f"version {version} is damaged, but the resume did not say so and fall back: "
                          f"{rejected + resumed}")
        self.display.say(f"said so: {rejected[0]['text']}")
        self.display.say(f"fell back to version {resumed[0]['version']}")
        code = a.wait(120)
        if code != 0:
            raise Failure(f"the run ended with {code}, expected 0; last lines:\n" + "\n".join(a.lines[-20:]))

    def untouched(self, summary):
        self.display.say("the same training, untouched, with 2 workers")
        self.display.begin()
        self.job.new_launch()
        agent = self.job.start("quiet", 2, self.program(summary), "1:1", self.display.on_line, extra=["--quiet"])
        code = agent.wait(180)
        if code != 0:
            raise Failure(f"the untouched run ended with {code}; last lines:\n" + "\n".join(agent.lines[-20:]))

    def compare(self, tortured, quiet, launches):
        results = [json.loads(path.read_text()) for path in (tortured, quiet)]
        hashes = [hashlib.sha256(Path(f"{path}.weights").read_bytes()).hexdigest() for path in (tortured, quiet)]
        same = hashes[0] == hashes[1]
        print(f"\nweights identical: {'yes' if same else 'NO'} (sha256 {hashes[0]}{'' if same else ' and ' + hashes[1]})")
        ledgers = [self.job.ledger(number) for number in range(1, launches + 1)]
        one = check_ledgers(ledgers, self.steps, MICROBATCHES)
        other = check_ledgers([self.job.ledger(launches + 1)], self.steps, MICROBATCHES)
        if one != other:
            raise Failure("the two runs trained on different samples in some step")
        count = sum(len(samples) for step in one for samples in step)
        print(f"samples: {count} of {self.steps} steps, each seen exactly once, the same in both runs")
        print(f"final losses: training {results[0]['training']:.6f} and {results[1]['training']:.6f}, validation "
              f"{results[0]['validation']:.4f} and {results[1]['validation']:.4f} nats/byte")
        print(f"interpolated byte bigram {results[0]['bigram']:.4f}: beaten by "
              f"{results[0]['bigram'] - results[0]['validation']:.3f}; trigram {results[0]['trigram']:.4f}")
        print("time lost per event (from the event to the next step of the new world):")
        for what, seconds in self.losses:
            print(f"  {seconds:6.2f} s  {what}")
        if not same or results[0]["training"] != results[1]["training"]:
            raise Failure("the tortured run's result differs from the untouched one's")
        if not self.options.short and results[0]["bigram"] - results[0]["validation"] < 0.15:
            raise Failure("the validation loss does not beat the bigram by 0.15 nats a byte")

    def run(self):
        tortured, quiet = self.job.folder / "tortured.json", self.job.folder / "quiet.json"
        self.tortured(tortured)
        launches = self.job.launch
        self.untouched(quiet)
        self.compare(tortured, quiet, launches)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--build", help="the build folder; default: build/dev")
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--short", action="store_true", help="do not ask for a good loss; for tests with few steps")
    parser.add_argument("--keep", action="store_true", help="keep the working folder")
    options = parser.parse_args()
    began = time.monotonic()
    demo = Demo(options)
    try:
        demo.run()
        print(f"demo: all as promised, in {time.monotonic() - began:.0f} s")
        return 0
    except Failure as failure:
        print(f"\ndemo FAILED: {failure}", file=sys.stderr)
        for agent in demo.job.agents:
            print(f"---- events of agent {agent.name}", file=sys.stderr)
            for event in agent.events()[-40:]:
                print(json.dumps(event), file=sys.stderr)
        return 1
    finally:
        demo.job.close(keep=options.keep)


if __name__ == "__main__":
    sys.exit(main())
