"""From a notice to "safe to kill", for states of several sizes, beside a raw write of as many bytes to the same file system
in the same round. `ratio` is raw/ours as everywhere; the promise is ours <= 1.2 x raw + 50 ms, in `of_bound` (1: just met)."""
import json
import mmap
import os
import shutil
import signal
import statistics
import subprocess
import tempfile
import time
from pathlib import Path

SIZES = {"64 MiB": 64 << 20, "1 GiB": 1 << 30, "4 GiB": 4 << 30}
PIECE = 8 << 20
PATIENCE = 100


def boot_time():
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def raw_write(folder, size):
    """Seconds to write `size` bytes past the page cache, as fast as one thread does, and have them durable."""
    path = folder / "raw"
    block = mmap.mmap(-1, PIECE)
    block.write(os.urandom(1 << 20) * (PIECE >> 20))
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
    try:
        file = os.open(path, flags | os.O_DIRECT, 0o600)
    except OSError:
        file = os.open(path, flags, 0o600)
    try:
        began = boot_time()
        os.posix_fallocate(file, 0, size)
        for offset in range(0, size, PIECE):
            os.pwrite(file, block, offset)
        os.fsync(file)
        return boot_time() - began
    finally:
        os.close(file)
        path.unlink()


def until_safe(build, folder, size):
    """Seconds from SIGTERM to the agent's "safe to kill", the state durable in between."""
    events, checkpoints = folder / "events.jsonl", folder / "checkpoints"
    command = [build / "bin" / "muster", "run", "--quiet", "--grace", "120", "--events", events, "--", build / "bin" / "bench_preemption",
               size, checkpoints]
    process = subprocess.Popen([str(part) for part in command], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        for line in process.stdout:
            if "ready" in line:
                break
        else:
            raise RuntimeError(f"the training ended with {process.wait(10)} before its tenth step")
        began = boot_time()
        process.send_signal(signal.SIGTERM)
        code = process.wait(PATIENCE)
    finally:
        if process.poll() is None:
            process.kill()
    found = [json.loads(line) for line in events.read_text().splitlines()]
    safe = [event["at_ns"] / 1e9 for event in found if event["event"] == "safe to kill"]
    durable = [event for event in found if event["event"] == "save durable"]
    if code != 75 or not safe or not durable:
        raise RuntimeError(f"the training ended with {code}, {len(durable)} saves and {len(safe)} times safe to kill")
    events.unlink()
    shutil.rmtree(checkpoints)
    return safe[0] - began


def preemption(build, rounds, sizes=None):
    for name, size in SIZES.items():
        if sizes and name not in sizes:
            continue
        ours, raw = [], []
        for number in range(rounds):
            folder = Path(tempfile.mkdtemp(prefix="muster-bench-"))
            turns = [lambda: ours.append(until_safe(build, folder, size)), lambda: raw.append(raw_write(folder, size))]
            try:
                for turn in turns if number % 2 == 0 else turns[::-1]:
                    turn()
            finally:
                shutil.rmtree(folder, ignore_errors=True)
        mine, peer = statistics.median(ours), statistics.median(raw)
        bound = 1.2 * peer + 0.05
        yield {"bench": "preemption", "case": f"state of {name}", "metric": "safe to kill", "unit": "ms",
               "ours": round(mine * 1e3, 1), "peer": "raw write", "peer_value": round(peer * 1e3, 1),
               "ratio": round(peer / mine, 3), "bound": round(bound * 1e3, 1), "of_bound": round(bound / mine, 3)}
