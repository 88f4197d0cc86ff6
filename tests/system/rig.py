"""What the system tests share: small trainings of real processes, and what must hold when they are over."""
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

TOP = Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(TOP / "scripts"))
from jobs import STEP_LINE, Failure, Job, check_ledgers, wait_until  # noqa: E402, F401

REQUEUE, MISUSE = 75, 78
MICROBATCHES = 8  # and lanes
CODECS = ("bf16", "fp16", "int8", "int4", "mxfp8")

# Everything that docs/formats names, leftovers of crashes included.
CHECKPOINT_FILES = re.compile(
    r"owner\.lock|owner\.json|branch-\d{10,}\.[ab]\.json|v\d{12,}-[0-9a-f]{16}(/(shard-\d{6,}-[0-9a-f]{16}\.h5|"
    r"manifest\.json|verified\.json|index\.h5))?|(.*/)?[^/]*\.tmp-[^/]*")


def gpt(build, steps, *extra, microbatches=MICROBATCHES):
    """A model so small that a step takes some milliseconds, and whose gradients make several buckets."""
    return [build / "bin" / "gpt", "--layers", 1, "--width", 32, "--heads", 2, "--context", 16, "--sequences", 1,
            "--steps", steps, "--warmup", 5, "--microbatches", microbatches, "--lanes", microbatches, "--report-every", 1, "--bucket-kib", 16,
            "--sample-bytes", 10, *extra]


def weights_of(summary):
    """The digest of the weights that rank 0 wrote at the end."""
    path = Path(f"{summary}.weights")
    if not path.exists():
        raise Failure(f"no process wrote the final weights ({path.name})")
    return hashlib.sha256(path.read_bytes()).hexdigest()


def processes_with(text):
    """Process ids and command lines of all living processes that have `text` in their command line."""
    found = {}
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit() or int(folder.name) == os.getpid():
            continue
        try:
            command = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if text in command:
            found[int(folder.name)] = command
    return found


def require_no_processes(job, seconds=10):
    """Nothing of the job runs any more. `seconds` are for what SIGKILL leaves to the kernel."""
    deadline = time.monotonic() + seconds
    while found := processes_with(str(job.folder)):
        if time.monotonic() > deadline:
            raise Failure(f"left behind: {found}")
        time.sleep(0.05)


def require_clean_checkpoints(folder, steps):
    """Only files of the format are there, and the newest save is the last version's."""
    for path in sorted(Path(folder).rglob("*")):
        name = str(path.relative_to(folder))
        if not CHECKPOINT_FILES.fullmatch(name):
            raise Failure(f"left behind in the checkpoint folder: {name}")
    newest = newest_version(folder)
    if newest != steps:
        raise Failure(f"the newest save is version {newest}, not {steps}")


def newest_version(folder):
    return max((int(path.parent.name[1:13]) for path in Path(folder).glob("v*/manifest.json")), default=-1)


def stacks_of(job):
    """Where each process of the job stands, for the report of one that hangs."""
    if not shutil.which("gdb"):
        return "(no gdb here, so no stacks)"
    texts = []
    for pid, command in processes_with(str(job.folder)).items():
        try:
            stack = subprocess.run(["gdb", "-p", str(pid), "-batch", "-nx", "-ex", "thread apply all bt 14"],
                                   capture_output=True, text=True, timeout=30).stdout
        except subprocess.TimeoutExpired:
            stack = "(gdb took longer than 30 s)"
        frames = [line for line in stack.splitlines() if line.startswith(("#", "Thread"))]
        texts.append(f"process {pid}: {command[:120]}\n" + "\n".join(frames))
    return "\n".join(texts)


def events_text(job, limit=250):
    """The job's events without the steps, oldest first."""
    events = [event for event in job.events() if event["event"] != "step"][-limit:]
    began = events[0]["at_ns"] if events else 0
    return "\n".join(f"{(event['at_ns'] - began) / 1e9:8.3f} [{event['node']} {event['from']}] {event['event']} "
                     f"generation {event['generation']} version {event['version']} subject {event['subject']} "
                     f"amount {event['amount']}: {event['text']}" for event in events)


def run_tests(tests, name):
    """Runs (title, function) pairs; a function returns None, or the reason why it cannot run here. An exit code."""
    failed = 0
    for title, test in tests:
        began = time.monotonic()
        try:
            skipped = test()
            said = f"skipped, {skipped}" if skipped else "ok"
        except Failure as failure:
            failed += 1
            said = f"FAILED: {failure}"
        print(f"{name}: {title}: {said} ({time.monotonic() - began:.1f} s)", flush=True)
    return 1 if failed else 0


def read_json(path):
    return json.loads(Path(path).read_text())


class Training:
    """Agents, by name, that train the small model together, and how far they have come."""
    HANG_S = 90  # without any step; many times what any recovery takes on a busy machine
    MICROBATCHES = MICROBATCHES

    def __init__(self, options, name):
        self.options, self.steps = options, options.steps
        self.job = Job(options.build, name)
        self.checkpoints, self.summary = self.job.folder / "checkpoints", self.job.folder / "summary.json"
        self.agents, self.log, self.step, self.moved = {}, [], 0, time.monotonic()
        self.began = time.monotonic()

    def say(self, text):
        self.log.append(f"{time.monotonic() - self.began:7.2f} s, step {self.step}: {text}")

    def on_line(self, agent, line):
        if found := STEP_LINE.search(line):
            self.step, self.moved = int(found[1]), time.monotonic()

    def program(self, checkpoint_every):
        return gpt(self.job.build, self.steps, "--ledger", self.job.ledger(), "--summary", self.summary,
                   "--checkpoint-dir", self.checkpoints, "--checkpoint-every", checkpoint_every,
                   microbatches=self.MICROBATCHES)

    def nodes_in_view(self):
        return {name for name, agent in self.agents.items()
                if any(event["event"] == "view ready" and event["from"] != "leader" for event in agent.events())}

    def until_step(self, step):
        def there():
            if time.monotonic() - self.moved > self.HANG_S:
                raise Failure(f"no step for {self.HANG_S} s; the processes stand at\n{stacks_of(self.job)}")
            return self.step >= step
        wait_until(there, 120, f"step {step}")

    def check_result(self, reference):
        check_result(self.job, self.summary, self.checkpoints, self.steps, reference, self.MICROBATCHES)


def check_result(job, summary, checkpoints, steps, reference, microbatches=MICROBATCHES):
    """The weights and the samples are those of the untouched run, and nothing but saves is in the folder."""
    if (weights := weights_of(summary)) != reference["weights"]:
        raise Failure(f"the weights differ from the untouched run's: {weights}, not {reference['weights']}")
    ledgers = [job.ledger(number) for number in range(1, job.launch + 1)]
    if check_ledgers(ledgers, steps, microbatches) != reference["samples"]:
        raise Failure("some step had other samples than in the untouched run")
    require_clean_checkpoints(checkpoints, steps)


def untouched(options, *extra, microbatches=MICROBATCHES):
    """The run that all others are compared with; `extra`: of the program's options."""
    job = Job(options.build, "reference")
    try:
        job.new_launch()
        summary = job.folder / "summary.json"
        program = gpt(job.build, options.steps, "--ledger", job.ledger(), "--summary", summary, *extra, microbatches=microbatches)
        agent = job.start("quiet", 1, program, "1:1", extra=["--quiet"])
        if (code := agent.wait(120)) != 0:
            raise Failure(f"the untouched run ended with {code}; last lines:\n" + "\n".join(agent.lines[-20:]))
        return {"weights": weights_of(summary), "samples": check_ledgers([job.ledger()], options.steps, microbatches)}
    finally:
        job.close()
