"""What compressed gradients gain a training on a slow link: the GPT example on two hosts (two_hosts.py), a worker on each,
100 Mbit/s between them. For each seed with every codec, the same steps of the same samples from the same weights.

The loss that is waited for is what float32 has after four fifths of its steps with the same seed, in proportion between
two validations; it is not known before, so nothing can be fitted to it. Times begin with the end of the first step, and are
without those of the validations, which the first worker makes while the other waits: as many with every codec, and as long.
Medians over seeds; ratios are of the same seed. Besides float32 the peer is bf16, which nearly every trainer could do."""
import json
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from curves import picture
from two_hosts import LINKS, STEP_LINE, Refused, join_hosts, rows_of_sandbox, sent_bytes, set_link, train

LINK, LINK_BYTES_PER_S = "100 Mbit/s", 100e6 / 8
# Chosen when only the time of a step was known: so large that its gradients take the link more than four times
# as long as a worker takes for them, so few steps that a seed takes three minutes. A lane for each worker: each is sent.
STEPS, EVALUATE_EVERY = 200, 20
CONTEXT, SEQUENCES = 64, 2
MODEL = ["--layers", 4, "--width", 128, "--heads", 4, "--context", CONTEXT, "--sample-bytes", 1, "--report-every", 1]
SHARED = ["--microbatches", 2, "--lanes", 2]
# The same with so many sequences that computing takes about a quarter of that time: only the steps are measured.
MANY_SEQUENCES, MANY_STEPS, SKIPPED = 12, 12, 2
FULL, HONEST = "float32", "bf16"
CODECS = {FULL: "none", HONEST: "bf16", "int8": "int8", "int4": "int4"}
WAITED_FOR = 0.8  # of float32's steps
ALONE_STEPS = 30
PATIENCE = 300
EVALUATING, EVALUATED = re.compile(r"evaluating version (\d+)"), re.compile(r"evaluated version (\d+): ([\d.]+)")
CASE = f"gpt, {{}}, {{}} sequences, 2 hosts × 1, {LINK}"


def training(build, rounds, picture_file=None):
    try:
        yield from rows_of_sandbox(__file__, build.resolve(), rounds, picture_file or "")
    except Refused as refused:
        yield row("two hosts", "", "", None, f"not measured: {refused}")


def row(case, metric, unit, ours, peer=None, peer_value=None, ratio=None, bound=None, **more):
    """`ratio` where it is not that of the two values."""
    if ratio is None and peer_value and ours:
        ratio = peer_value / ours
    return {"bench": "training", "case": case, "metric": metric, "unit": unit, "ours": rounded(ours), "peer": peer,
            "peer_value": rounded(peer_value), "ratio": rounded(ratio), "bound": rounded(bound),
            "of_bound": rounded(bound / ours) if bound and ours else None, **more}


def rounded(value):
    return None if value is None else float(f"{value:.4g}")


class Curve:
    """Validation losses over the seconds of training, from the lines that a training prints."""

    def __init__(self):
        self.points = []  # (version, seconds, loss)
        self.began = self.paused = None
        self.pauses = 0.0

    def on_line(self, _, line):
        now = time.monotonic()
        if self.began is None and STEP_LINE.search(line):
            self.began = now
        elif EVALUATING.search(line):
            self.paused = now
        elif found := EVALUATED.search(line):
            self.points.append((int(found[1]), self.paused - self.began - self.pauses, float(found[2])))
            self.pauses += now - self.paused

    def loss_at(self, version):
        for before, after in zip(self.points, self.points[1:]):
            if before[0] <= version <= after[0]:
                return between(version, before[0], after[0], before[2], after[2])
        raise ValueError(f"no validations around version {version}")

    def seconds_to(self, loss):
        """None: it was never so low."""
        for before, after in zip(self.points, self.points[1:]):
            if after[2] <= loss < before[2]:
                return between(loss, before[2], after[2], before[1], after[1])
        return None

    def step_ms(self):
        version, seconds, _ = self.points[-1]
        return 1000 * seconds / (version - 1)

    def last_loss(self):
        return self.points[-1][2]


def between(x, x0, x1, y0, y1):
    return y0 + (y1 - y0) * (x - x0) / (x1 - x0)


# ---- measuring

def step_times(lines, tokens):
    """Milliseconds of each step but the first ones, which also find out how fast the machine is."""
    speeds = [int(found[8]) for line in lines if (found := STEP_LINE.search(line))]
    return [1000 * tokens / speed for speed in speeds[SKIPPED:]]


def alone(build, sequences):
    """Milliseconds that a worker takes for a step's computation when there is no other, and the bytes of its gradients."""
    with tempfile.TemporaryDirectory(prefix="muster-bench-") as folder:
        summary = Path(folder) / "summary"
        command = ["env", "OMP_NUM_THREADS=1", build / "bin" / "gpt", *MODEL, "--sequences", sequences, "--steps", ALONE_STEPS,
                   "--microbatches", 1, "--lanes", 1, "--summary", summary]
        done = subprocess.run([str(word) for word in command], capture_output=True, text=True, timeout=PATIENCE)
        if done.returncode != 0:
            raise RuntimeError(f"gpt alone ended with {done.returncode}: {done.stderr.strip()[-300:]}")
        return (statistics.median(step_times(done.stdout.splitlines(), sequences * CONTEXT)),
                summary.with_name(summary.name + ".weights").stat().st_size)  # as many as gradients


def turns(rounds):
    """(seed, codec): every codec with a seed before the next one."""
    for seed in range(1, rounds + 1):
        for name in CODECS if seed % 2 else reversed(CODECS):
            yield seed, name


def trained(build, rounds):
    """{codec: [(curve, bytes that a host sent in a step), one for each seed]}"""
    found = {name: [] for name in CODECS}
    for seed, name in turns(rounds):
        curve, before = Curve(), sent_bytes()
        train(build, [*MODEL, *SHARED, "--sequences", SEQUENCES, "--steps", STEPS, "--evaluate-every", EVALUATE_EVERY,
                      "--codec", CODECS[name], "--seed", seed], curve.on_line, PATIENCE)
        found[name].append((curve, (sent_bytes() - before) / 2 / STEPS))
    return found


def steps_of_many(build, rounds):
    """{codec: [milliseconds of a step, one for each seed]}"""
    found = {name: [] for name in CODECS}
    for seed, name in turns(rounds):
        lines = train(build, [*MODEL, *SHARED, "--sequences", MANY_SEQUENCES, "--steps", MANY_STEPS, "--codec", CODECS[name],
                              "--seed", seed])
        found[name].append(statistics.median(step_times(lines, 2 * MANY_SEQUENCES * CONTEXT)))
    return found


# ---- telling

def middle(values):
    """The median; none where one is missing."""
    return None if None in values else statistics.median(values)


def alone_row(sequences, computation_ms, gradient_bytes):
    link_ms = 1000 * gradient_bytes / LINK_BYTES_PER_S
    return row(f"gpt, {sequences} sequences, computation of a worker alone", "step", "ms", computation_ms,
               f"its float32 gradients at {LINK}", link_ms)


def codec_row(metric, unit, values, name, peer=FULL, sequences=SEQUENCES, bound=None):
    """`values`: of each codec, with each seed. The ratio is the median of the seeds'; all are in the row."""
    case, ours, others = CASE.format(name, sequences), values[name], values[peer]
    if name == peer:
        return row(case, metric, unit, middle(ours), bound=bound)
    found = [rounded(other / one) for one, other in zip(ours, others) if None not in (one, other)]
    return row(case, metric, unit, middle(ours), peer, middle(others), middle(found or [None]), bound, ratios=found)


def training_rows(found):
    goals = [curve.loss_at(WAITED_FOR * STEPS) for curve, _ in found[FULL]]
    times, steps, sent, losses = {}, {}, {}, {}
    for name, runs in found.items():
        times[name] = [curve.seconds_to(goal) for (curve, _), goal in zip(runs, goals)]
        steps[name] = [curve.step_ms() for curve, _ in runs]
        sent[name] = [count / 1e6 for _, count in runs]
        losses[name] = [curve.last_loss() for curve, _ in runs]
    for name in CODECS:
        for peer in (FULL,) if name in (FULL, HONEST) else (FULL, HONEST):
            yield codec_row(f"to loss {statistics.median(goals):.2f}", "s", times, name, peer)
        link_ms = 1e9 * statistics.median(sent[name]) / LINK_BYTES_PER_S
        yield codec_row("step", "ms", steps, name, bound=link_ms)
        yield codec_row("host sends/step", "MB", sent, name)
        yield codec_row("last loss", "nats", losses, name)


def drawn(found):
    curves = {name: [[point[1:] for point in curve.points] for curve, _ in runs] for name, runs in found.items()}
    losses = [curve.loss_at(WAITED_FOR * STEPS) for curve, _ in found[FULL]]
    marks = {name: [(seconds, loss) for (curve, _), loss in zip(runs, losses) if (seconds := curve.seconds_to(loss)) is not None]
             for name, runs in found.items()}
    seeds = len(losses)
    return picture(f"GPT, two hosts, {LINK}: {STEPS} steps, {seeds} seed{'s' if seeds > 1 else ''}; dots: float32's loss after "
                   f"{100 * WAITED_FOR:g} % of its steps", "seconds of training, without validations",
                   "validation loss, nats a byte", curves, marks)


def main():
    build, rounds, picture_file = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
    computations = {sequences: alone(build, sequences) for sequences in (SEQUENCES, MANY_SEQUENCES)}
    join_hosts()
    set_link(LINKS[LINK])
    found = trained(build, rounds)
    tell(alone_row(SEQUENCES, *computations[SEQUENCES]))
    for one in training_rows(found):
        tell(one)
    if picture_file:
        Path(picture_file).write_text(drawn(found))
    tell(alone_row(MANY_SEQUENCES, *computations[MANY_SEQUENCES]))
    steps = steps_of_many(build, rounds)
    for name in CODECS:
        tell(codec_row("step", "ms", steps, name, sequences=MANY_SEQUENCES))


def tell(one):
    print(json.dumps(one), flush=True)


if __name__ == "__main__":
    main()
