#!/usr/bin/env python3
"""`muster sim` as people use it: good and hostile traces and options, the text, the JSON and the exit codes; 100,000 ranks;
and, where they are, the recorded traces of spot nodes."""
import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

RECORDED = Path(__file__).resolve().parent.parent.parent.parent / "shared" / "traces"
GOOD = ("0,add,a\n0,add,b\n600000,remove,b\n900000,add,b\n1800000,remove,a\n1800000,remove,b\n2100000,add,a\n2100000,add,b\n"
        "3600000,remove,a\n")


class Sim:
    def __init__(self, muster, folder, instrumented):
        self.muster, self.folder, self.instrumented = muster, folder, instrumented

    def run(self, *arguments, code=0):
        began = time.monotonic()
        done = subprocess.run([self.muster, "sim", *map(str, arguments)], capture_output=True, timeout=120, cwd=self.folder)
        self.took = time.monotonic() - began
        out, errors = done.stdout.decode(), done.stderr.decode()  # UTF-8, whatever was in the file
        assert done.returncode == code, f"{arguments}: {done.returncode} instead of {code}\n{out}{errors}"
        assert (not out) == (code != 0), (out, errors)
        return out or errors

    def json(self, *arguments):
        text = self.run(*arguments, "--json")
        assert text.count("\n") == 1, text
        return json.loads(text)

    def file(self, content, name="t.csv"):
        (self.folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
        return name


def sums_up(report):
    assert abs(report["useful_s"] + sum(report["lost_s"].values()) - report["total_s"]) < 1e-3 * max(1, report["total_s"]), report
    assert abs(report["goodput"] - report["useful_s"] / report["total_s"]) < 1e-9
    assert all(lost >= 0 for lost in report["lost_s"].values())


def good(sim):
    trace = sim.file(GOOD)
    base = ("--trace", trace, "--nodes", "1:2", "--step", 2, "--state", 10, "--stall", 1, "--price", 3.6)
    text = sim.run(*base)
    for word in ("goodput", "throughput", "lost to", "restarting", "saves", "minimum", "cost", "simulated    16 ranks, 9 events"):
        assert word in text, text
    report = sim.json(*base)
    sums_up(report)
    sums_up(report["restarting"])
    assert report["total_s"] == 3600 and report["ranks"] == 16 and report["events"] == 9
    assert abs(report["node_hours"] - (3300 + 600 + 900 + 1500) / 3600) < 1e-9
    assert abs(report["cost"] - 3.6 * report["node_hours"]) < 1e-9
    assert abs(report["cost_per_1000_steps"] - 1000 * report["cost"] / report["steps"]) < 1e-9
    assert report["wall_s"] >= report["replay_s"] >= 0 and report["peak_mib"] > 1
    # b's loss: 5 s of silence, 35 ms; then that of both, and of the store's node at the end, whose costs come too late.
    lost = report["lost_s"]
    assert (lost["detection"], lost["view_change"]) == (5, 0.035) and report["losses"] == 3, lost
    assert report["rollbacks"] == 1 and lost["rollback"] > 0 and lost["waiting_for_nodes"] > 300, lost
    best = max(report["intervals"], key=lambda one: one["steps"])
    assert min(one["value"] for one in report["intervals"]) <= report["best_interval_s"] <= 3600
    chosen = next(one for one in report["intervals"] if one["value"] == report["best_interval_s"])
    assert chosen["steps"] >= best["steps"] * (1 - 1.001e-4)
    assert report["best_minimum_nodes"] in (1, 2)

    assert sim.json(*base, "--interval", 60)["interval_s"] == 60
    assert sim.json(*base, "--interval", "auto")["interval_s"] == 0
    assert sim.json(*base, "--hours", 0.25)["total_s"] == 900
    assert sim.json(*base, "--notice", 120)["notices"]["shrink"] >= 1
    early, late = (sim.json(*base, "--notice", 300, *lead)["steps"] for lead in (("--notice-lead", 300), ()))
    assert late == sim.json(*base, "--notice", 120)["steps"] > early, (late, early)
    assert sim.json(*base, "--loss", "reset")["lost_s"]["detection"] == 0.025
    kept = sim.json("--trace", sim.file("0,add,a\n0,add,b\n600000,remove,a\n1200000,add,a\n"), *base[2:], "--external-store")
    assert (kept["requeues"], kept["rollbacks"], kept["best_interval_s"]) == (0, 0, None)
    sim.file(GOOD)
    for content in (GOOD.replace("\n", "\r\n"), "\ufeff" + GOOD, GOOD.rstrip("\n"), "\n" + GOOD + "\n\n"):
        same = sim.json("--trace", sim.file(content), *base[2:])
        assert same["steps"] == report["steps"], content
    once, again = (sim.json("--random", 10, "--nodes", "2:4", "--seed", 7) for _ in range(2))
    assert once["steps"] == again["steps"] and once["events"] == again["events"]
    assert sim.json("--random", 10, "--nodes", "2:4", "--seed", 8)["steps"] != once["steps"]


def bad_files(sim):
    def why(content, *parts):
        text = sim.run("--trace", sim.file(content), "--nodes", "1:2", code=78)
        assert text.startswith("muster sim: ") and text.count("\n") == 1 and len(text) < 300, text
        assert text.isprintable() or text[:-1].isprintable(), text
        for part in ("t.csv", *parts):
            assert part in text, text

    line = "a line is time_ms,add|remove,node"
    why("", "holds no event", line)
    why("\n\n", "holds no event", line)
    why("0,add,a\nhello\n", "line 2", "'hello' has not three fields", line)
    why("0,add,a\n5,add,b\n4,remove,b\n", "line 3", "the time goes back; sort the lines", line)
    why("0,remove,ghost\n", "line 1", "'ghost' is removed, and is not there", line)
    why("0,add,a\n9,add,a\n", "line 2", "'a' is added, and is there already", line)
    why("nan,add,a\n", "line 1", "'nan' is no time", line)
    why("1e3,add,a\n", "line 1", "is no time in whole milliseconds", line)
    why("99999999999999999999999,add,a\n", "line 1", "beyond all times", line)
    why("9000000000000000,add,a\n", "line 1", "100 years", line)
    why("-5,add,a\n", "line 1", "negative", line)
    why(b"0,add,a\n7,add,\xff\xfe\x1b[31m\n", "line 2", r"'\xff\xfe\x1b[31m'", line)
    why(b"\xff\xfe0\x00,\x00a\x00d\x00d\x00", "line 1", line)  # UTF-16
    why(os.urandom(4096), "line 1", line)
    why("0,add,a\n" + "x" * 1_000_000, "line 2", line)
    why("0,add,a\n", "at time 0", "--hours")
    why("time_ms,event,node\n" + GOOD, "line 1", "'time_ms' is no time", line)

    missing = sim.run("--trace", "nowhere.csv", "--nodes", "1:2", code=78)
    assert "nowhere.csv: No such file" in missing, missing
    assert "Is a directory" in sim.run("--trace", ".", "--nodes", "1:2", code=78)
    assert "never more than 2 nodes" in sim.run("--trace", sim.file(GOOD), "--nodes", "3:4", code=78)


def bad_options(sim):
    trace = sim.file(GOOD)

    def why(part, *arguments, nodes="1:2"):
        text = sim.run("--trace", trace, "--nodes", nodes, *arguments, code=78)
        assert part in text, text

    for nodes in ("2:1", "0:2", "2", ":", "1:2:3", "-1:4", "+1:2", " 1:2", "1:x", "99999999999:99999999999", "1:4294967296", ""):
        why("give MIN:MAX", nodes=nodes)
    why("MAX <= 1000000", nodes="1:4294967295")
    for number in ("nan", "inf", "-1", "0"):
        why("the network's bandwidth must be above 0", "--network", number)
        why("the storage's bandwidth must be above 0", "--storage", number)
        why("the step's time must be above 0", "--step", number)
        why("--interval", "--interval", number)
    for option in ("--reduce", "--state", "--stall", "--view-change", "--join", "--start", "--restart", "--notice", "--price"):
        for number in ("nan", "inf", "-1"):
            why("must be a number of 0 or more", option, number)
    why("--detect must be a number", "--detect", "nan")
    why("--hours", "--hours", "nan")
    why("100 years", "--hours", "1e9")
    why("mind the unit", "--state", "1e18")
    why("gives it up after 600 s", "--state", "1e6")
    why("would take 1e+300 s, and", "--state", 1, "--storage", "1e-300")
    why("would take 1e+300 s to a node", "--state", 1, "--network", "1e-300")
    for number in ("1e-310", "1e-15"):
        for interval in ("best", "auto", "600"):
            why("mind the unit of the step's time", "--step", number, "--interval", interval)
    why("a notice waits for must be a number", "--notice-lead", "nan")
    why("slower than 32 MB/s", "--state", 10, "--network", 0.01)
    why("a million saves", "--interval", "1e-9")
    why("1 to 1024 ranks", "--ranks-per-node", 0)
    why("of 4 lanes not every one of 16 ranks", "--lanes", 4)
    why("give vanish or reset", "--loss", "perhaps")
    why("either --trace FILE or --random HOURS", "--random", 3)
    for option in ("--seed", "--lanes", "--ranks-per-node"):
        sim.run("--random", 3, "--nodes", "1:2", option, "-1", code=78)
    for number in ("nan", "-3", "0"):
        assert sim.run("--random", number, "--nodes", "1:2", code=78)
    assert "three million events" in sim.run("--random", "1e-9", "--repair", "1e-9", "--nodes", "1:2", code=78)
    assert "100 years at most" in sim.run("--random", 1, "--hours", "inf", "--nodes", "1:2", code=78)
    for arguments in ((), ("--nodes", "1:2"), ("--trace", trace), ("--trace", trace, "--nodes", "1:2", "--step", "fast"),
                      ("--frobnicate",)):
        sim.run(*arguments, code=78)


def nothing_runs_for_hours(sim):
    base = ("--random", 1, "--repair", 1, "--nodes", "1:100", "--external-store")
    assert "three million events" in sim.run(*base, "--hours", 87600, code=78)
    assert sim.took < 20, sim.took
    # Losses every 36 s, whose saves cost nothing: paced, they are too many; and that is said before the searches.
    assert "a million saves" in sim.run(*base, "--hours", 5000, code=78)
    assert sim.instrumented or sim.took < 20, sim.took  # 2 s on an idle machine


def unwritten(sim):
    """What does not arrive is no success."""
    command = f"'{sim.muster}' sim --random 10 --nodes 2:4"
    for end in (">/dev/full", "--json >/dev/full", ">&-"):
        done = subprocess.run(["sh", "-c", f"{command} {end}"], capture_output=True, timeout=60)
        assert done.returncode == 74 and b"could not be written" in done.stderr, (end, done)


def manual(sim):
    text = sim.run("--help")
    for word in ("SECONDS", "GB/s", "MS", "HOURS", "MIN:MAX", "time_ms,add|remove,node", "Exit codes", "Example", "78", "74", "MAX / 64", "three million"):
        assert word in text, word


def hundred_thousand_ranks(sim):
    """A trace that somebody else has written, of 12,500 nodes with 8 ranks each, through the file as everything."""
    lines, absent = [f"0,add,host-{i}" for i in range(12_500)], []
    state = 1
    for at in range(1, 1440):  # a minute each
        state = state * 6364136223846793005 + 1442695040888963407 & (1 << 64) - 1
        for back in [back for back in absent if back[0] <= at]:
            absent.remove(back)
            lines.append(f"{at * 60_000},add,host-{back[1]}")
        host = (state >> 33) % 12_500
        if host not in [gone for _, gone in absent]:
            absent.append((at + 30, host))
            lines.append(f"{at * 60_000 + 1},remove,host-{host}")
    report = sim.json("--trace", sim.file("\n".join(lines)), "--nodes", "6000:12400", "--step", 10, "--state", 100, "--network", 50,
                      "--storage", 1000, "--stall", 2, "--external-store")
    sums_up(report)
    assert report["ranks"] == 12_400 * 8 and report["events"] == len(lines)
    assert report["losses"] > 1000 and report["goodput"] > 0.5, report["goodput"]
    # All that it tells of itself is true, and it is neither slow nor large; 2 s and 20 MiB on an idle machine.
    assert report["replay_s"] < report["wall_s"] < sim.took, (report["wall_s"], sim.took)
    if not sim.instrumented:
        assert sim.took < 60 and report["peak_mib"] < 200, (sim.took, report["peak_mib"])


def recorded(sim):
    if not RECORDED.is_dir():
        return f"no recorded traces in {RECORDED}"
    for name, nodes in (("p3", 16), ("g4dn", 12)):
        base = ("--trace", RECORDED / f"{name}-trace.csv", "--nodes", f"4:{nodes}", "--step", 5, "--state", 30, "--stall", 1, "--network", 2,
                "--storage", 5, "--price", 12)
        report = sim.json(*base)
        sums_up(report)
        sums_up(report["restarting"])
        assert 0 < report["throughput"] <= report["availability"] <= 1, name
        assert report["restarting"]["throughput"] < report["throughput"], name
        noticed = sim.json(*base, "--notice", 120)
        assert noticed["lost_s"]["repeated_step"] == 0 and noticed["goodput"] > report["goodput"], name
        assert sim.json(*base, "--external-store")["requeues"] <= report["requeues"], name
    return None


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--muster", required=True, type=lambda path: Path(path).resolve())
    parser.add_argument("--instrumented", action="store_true", help="of a sanitizer: it may be slow and large")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="muster-sim-") as folder:
        sim = Sim(options.muster, Path(folder), options.instrumented)
        for test in (good, bad_files, bad_options, nothing_runs_for_hours, unwritten, manual, hundred_thousand_ranks, recorded):
            skipped = test(sim)
            print(f"{test.__name__}: {'skipped, ' + skipped if skipped else 'ok'}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
