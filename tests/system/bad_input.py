#!/usr/bin/env python3
"""What a user gets wrong: each mistake must end with one sentence that names the thing and with the right exit code,
and must leave what was saved as it was. What `muster run` itself refuses is covered by tests/launcher.
"""
import argparse
import ctypes
import ctypes.util
import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

from rig import MISUSE, Failure, Job, newest_version, require_no_processes, run_tests

STEPS, MORE_STEPS = 10, 12


class Hash128(ctypes.Structure):
    _fields_ = [("low", ctypes.c_uint64), ("high", ctypes.c_uint64)]


def xxh3_128(data):
    """Hex digest, high half first; None where libxxhash is missing."""
    name = ctypes.util.find_library("xxhash")
    if not name:
        return None
    function = ctypes.CDLL(name).XXH3_128bits
    function.argtypes, function.restype = [ctypes.c_char_p, ctypes.c_size_t], Hash128
    value = function(data, len(data))
    return f"{value.high:016x}{value.low:016x}"


def content_of(folder):
    """Every published save in the folder: name → digest of its files."""
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
            for manifest in folder.glob("v*/manifest.json") for path in sorted(manifest.parent.iterdir())}


class Mistakes:
    def __init__(self, build):
        self.job = Job(build, "bad-input")
        self.job.folder.chmod(0o755)  # another user's process has to get at the checkpoints
        self.good = self.job.folder / "good"
        code, text = self.run(self.program(self.good, STEPS))
        if code != 0:
            raise Failure(f"the good run ended with {code}: {text}")
        if newest_version(self.good) != STEPS:
            raise Failure(f"the good run's newest save is version {newest_version(self.good)}")

    def program(self, checkpoints, steps, width=32, microbatches=8):
        return [self.job.build / "bin" / "gpt", "--layers", 1, "--width", width, "--heads", 2, "--context", 16, "--sequences", 1,
                "--steps", steps, "--warmup", 5, "--microbatches", microbatches, "--lanes", 8, "--report-every", 100,
                "--sample-bytes", 10, "--checkpoint-dir", checkpoints, "--checkpoint-every", 5]

    def run(self, command, env=None, before=()):
        """Exit code and all that was said."""
        done = subprocess.run([str(part) for part in (*before, *command)], capture_output=True, text=True,
                              errors="replace", timeout=100, env=dict(os.environ, **(env or {})))
        return done.returncode, (done.stdout + done.stderr).strip()

    def refused(self, said, command, code=MISUSE, env=None, before=()):
        """`command` must end with `code` and one line that has all of `said`; the good saves stay as they are."""
        saved = content_of(self.good)
        ended, text = self.run(command, env, before)
        lines = [line for line in text.splitlines() if line.strip()]
        if ended != code:
            raise Failure(f"ended with {ended}, not {code}: {text}")
        if len(lines) != 1:
            raise Failure(f"said {len(lines)} lines instead of one: {text}")
        if missing := [word for word in said if word not in lines[0]]:
            raise Failure(f"does not say {missing}: {text}")
        if content_of(self.good) != saved:
            raise Failure("what was saved has changed")

    def copy(self, name):
        return Path(shutil.copytree(self.good, self.job.folder / name))

    # ---- one mistake each

    def twins(self):
        self.refused(["two tensors", "'weights'"], [self.job.build / "bin" / "system_careless", "twins"])

    def weights(self, mistake, workers, env=None):
        careless = self.job.build / "bin" / "system_careless"
        code, text = self.run([self.job.muster, "run", "--nproc", workers, "--", careless, mistake], env)
        found = re.findall(r"weights \S+ \S+ \S+ \S+", text)
        if code != 0 or len(found) != workers:
            raise Failure(f"{workers} workers, mistake {mistake}: ended with {code}: {text}")
        return set(found), text

    def forked_children(self):
        """Children that ask their parent's run for something hear that they may not, and end without a trace."""
        expected, _ = self.weights("none", 1)
        for env in ({}, {"MUSTER_SHARED_MEMORY": "0"}):
            actual, text = self.weights("forks", 3, env)
            if actual != expected or "generation 2" in text:
                raise Failure(f"weights {actual} instead of {expected}: {text}")

    def left_out_update(self):
        """One rank leaves an update out: it must not go on computing old gradients for the others' next steps."""
        expected, _ = self.weights("none", 1)
        actual, text = self.weights("skips", 3)
        if actual != expected:
            raise Failure(f"weights {actual} instead of {expected}: {text}")
        if "at different steps" not in text:
            raise Failure(f"nothing tells of the update that was left out: {text}")

    def other_shapes(self):
        self.refused(["embedding.byte", "[256, 32]", "[256, 64]"], self.program(self.good, MORE_STEPS, width=64))

    def other_constants(self):
        self.refused(["microbatches", "8", "16"], self.program(self.good, MORE_STEPS, microbatches=16))

    def other_codec(self):
        self.refused(["codec", "'none'", "'int8'", "another folder"], [*self.program(self.good, MORE_STEPS), "--codec", "int8"])

    def unknown_variable(self):
        self.refused(["MUSTER_NPORC", "MUSTER_NPROC", "; unset it"], self.program(self.good, MORE_STEPS),
                     env={"MUSTER_NPORC": "2"})
        self.refused(["MUSTER_NPORC"], [self.job.build / "bin" / "hello"], env={"MUSTER_NPORC": "2"})

    def read_only_folder(self):
        before = []
        folder = self.copy("read-only")
        if os.geteuid() == 0:
            if not shutil.which("setpriv"):
                return "setpriv is missing, and root may write everywhere"
            # Still root, so that a clone in /root can be read, but bound by the modes of files.
            power = "-dac_override,-dac_read_search,-fowner"
            before = ["setpriv", f"--bounding-set={power}", f"--inh-caps={power}"]
        for path in (*folder.rglob("*"), folder):
            path.chmod(0o555 if path.is_dir() else 0o444)
        try:
            self.refused([str(folder), "Permission denied"], self.program(folder, MORE_STEPS), before=before)
        finally:
            for path in (folder, *folder.rglob("*")):
                path.chmod(0o755)
        return None

    def later_format(self):
        if xxh3_128(b"") is None:
            return "libxxhash is missing"
        folder = self.copy("later-format")
        manifest = max(folder.glob("v*/manifest.json"))
        body, trailer = manifest.read_bytes().split(b"\nxxh3-128 ")
        if trailer.strip().decode() != xxh3_128(body + b"\n"):
            raise Failure("this test computes another digest than the manifest has; compare with docs/formats")
        changed = json.loads(body)
        changed["format_major"] = 6  # 2 to 5 are manifests with linked parts, sharded ones, a seal and compressed parts, which this version reads
        body = json.dumps(changed, separators=(",", ":")).encode() + b"\n"
        manifest.write_bytes(body + b"xxh3-128 " + xxh3_128(body).encode() + b"\n")
        saved = content_of(folder)
        self.refused(["manifest.json", "format version 6"], self.program(folder, MORE_STEPS))
        if content_of(folder) != saved:
            raise Failure("a save of a later format was changed")
        return None

    def full_disk(self):
        """Training goes on without the save, says so, ends as requeue since the last version is not kept, and the
        older save stays."""
        if os.geteuid() != 0:
            return "only root can mount a small disk"
        disk = self.job.folder / "disk"
        disk.mkdir()
        if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1400k", "tmpfs", disk], capture_output=True).returncode != 0:
            return "mount is not permitted here"
        try:
            folder = Path(shutil.copytree(self.good, disk / "checkpoints"))
            try:
                with open(disk / "filler", "wb", buffering=0) as filler:
                    while True:
                        filler.write(bytes(4096))
            except OSError:
                pass  # full; a little goes back, so that the folder can be owned but no save fits
            os.truncate(disk / "filler", max((disk / "filler").stat().st_size - 24 * 1024, 0))
            saved = content_of(folder)
            code, text = self.run([self.job.muster, "run", "--nproc", 1, "--", *self.program(folder, MORE_STEPS)])
            if "save failed" not in text or "No space left" not in text or str(folder) not in text:
                raise Failure(f"does not say that {folder} is full: {text}")
            if f"save durable: version {MORE_STEPS}" in text:
                raise Failure(f"a save on a full disk was reported as done: {text}")
            if content_of(folder) != saved:
                raise Failure("the saves that were there have changed")
            if code != 75 or "is NOT saved" not in text:
                raise Failure(f"ends with {code}, though the last version is not saved: {text}")
        finally:
            subprocess.run(["umount", "-l", disk], check=False)
        return None


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--build", help="the build folder; default: build/dev")
    parser.add_argument("--only", help="only the test of this name")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended by SIGTERM"))
    job = None
    try:
        mistakes = Mistakes(options.build)
        job = mistakes.job
        names = ["twins", "left_out_update", "forked_children", "other_shapes", "other_constants", "other_codec", "unknown_variable", "read_only_folder", "later_format", "full_disk"]
        tests = [(name, getattr(mistakes, name)) for name in names if options.only in (None, name)]
        code = run_tests([*tests, ("nothing left behind", lambda: require_no_processes(job))], "bad_input")
    finally:
        if job:
            job.close()
    return code


if __name__ == "__main__":
    sys.exit(main())
