"""What moved between two runs of the benchmarks, as their --json files tell. Of a row is compared what a machine's mood changes
least: its ratio to the peer of the same run, else its part of the bound, else the figure itself, of which nobody can say here which
way is better."""
import json
import re
from collections import namedtuple

# `better` is None where it cannot be said; a figure is None in a run that lacks the row.
Move = namedtuple("Move", "name what before after factor better")
COMPARED = ("ratio", "of_bound", "ours")


def read_rows(text):
    """By name: the rounds of a run, which a case may tell, are no part of it."""
    rows = {}
    for line in text.splitlines():
        row = json.loads(line)
        if "bench" in row:
            case = re.sub(r", \d+ times", "", row["case"])
            peer = re.split(r"[,:]", row["peer"])[0] if row["peer"] else None
            rows[" | ".join(filter(None, (row["bench"], case, f"{row['metric']} {row['unit']}", peer)))] = row
    return rows


def moves(before, after, least=1.25):
    """Of the benches that both runs have: rows that moved by `least` or more, the most first, and those that only one has."""
    benches = {row["bench"] for row in before.values()} & {row["bench"] for row in after.values()}
    found = []
    for name in {**before, **after}:
        old, new = before.get(name), after.get(name)
        if (old or new)["bench"] not in benches:
            continue
        if old is None or new is None:
            found.append(Move(name, "row", old and old["ours"], new and new["ours"], float("inf"), None))
            continue
        what = next((key for key in COMPARED if old.get(key) and new.get(key)), None)
        if what is None:
            continue
        quotient = new[what] / old[what]
        # A figure may be negative, as what lies beyond a bound.
        factor = float("inf") if quotient <= 0 else max(quotient, 1 / quotient)
        if factor >= least:
            found.append(Move(name, what, old[what], new[what], factor, None if what == "ours" else quotient > 1))
    return sorted(found, key=lambda move: (-move.factor, move.name))


def lines(found):
    for move in found:
        verdict = {None: "moved", True: "better", False: "worse"}[move.better]
        yield f"{verdict:<7}{move.what:<9}{shown(move.before):>10} -> {shown(move.after):>10}  {move.name}"


def shown(figure):
    return "-" if figure is None else f"{figure:g}"
