#!/usr/bin/env python3
"""`muster bench --explain` of worlds that are only described: tables and JSON held against costs computed by hand, and bad
words against their sentences. Measured worlds are in tests/system/comm.py, where there is an mpirun."""
import argparse
import json
import subprocess

# Latency in us, a message, ns for a byte. A folded byte is free, and the link hides what the cores do.
COSTS = "on-node=10,0,0 between=100,0,1 fold=0 unhidden=0"
KIB, MIB = 1 << 10, 1 << 20


class Bench:
    def __init__(self, muster):
        self.muster = muster

    def __call__(self, *arguments, code=0):
        done = subprocess.run([self.muster, "bench", *map(str, arguments)], capture_output=True, text=True, timeout=60)
        assert done.returncode == code, f"{arguments}: {done.returncode} instead of {code}\n{done.stdout}{done.stderr}"
        return done.stdout + done.stderr

    def described(self, ranks, nodes, costs=COSTS):
        table = json.loads(self("--explain", "--ranks", ranks, "--nodes", nodes, "--costs", costs, "--json"))
        return table, {(row["operation"], row["bytes"]): row for row in table["rows"]}


def close(found, expected):
    return abs(found - expected) <= 1e-6 * max(abs(expected), 1)


def costs_are_those_by_hand(bench):
    table, rows = bench.described(4, 2)
    assert (table["ranks"], table["nodes"], table["measured"]) == (4, 2, False), table
    assert table["numbers"] == COSTS, table["numbers"]
    small = {one["algorithm"]: one["us"] for one in rows["all_reduce", KIB]["costs"]}
    # One round between nodes, of two messages; a round on the node and one between; two rounds between.
    assert close(small["one-shot"], 100 + 2 * 1.024), small
    assert close(small["recursive doubling"], 10 + 100 + 1.024), small
    assert close(small["direct"], 2 * (100 + 2 * 0.256)), small
    # Of a half, half goes over the link, to and fro.
    assert close(small["hierarchical"], 2 * 10 + 2 * (100 + 0.256)), small
    assert rows["all_reduce", KIB]["algorithm"] == "one-shot"
    # Both ranks of a node send a quarter twice, and no message comes sooner than in a latency.
    assert close(rows["all_reduce", KIB]["bound_us"], 100 + 0.512), rows["all_reduce", KIB]
    # 16 MiB go in 16 parts of 1 MiB, or 8 of 2 MiB: one whole, and the others as fast as the link takes them.
    large = {one["algorithm"]: one["us"] for one in rows["all_reduce", 16 * MIB]["costs"]}
    half_ms = MIB / 1000
    assert close(large["hierarchical"], 2 * 10 + 2 * (100 + half_ms / 4) + 15 * half_ms / 2), large
    assert close(large["direct"], 2 * (100 + half_ms) + 7 * 2 * half_ms), large
    assert rows["all_reduce", 16 * MIB]["algorithm"] == "hierarchical"
    # Two nodes halve in one round; 41 parts, four of which have their scratch in 2 MiB.
    part_us = 104857 * 4 / 1000
    assert close(small["Rabenseifner"], small["hierarchical"]), small
    assert abs(large["Rabenseifner"] - (2 * 10 + 2 * (100 + part_us / 4) + 40 * part_us / 2)) < 1, large  # slices differ by one
    # Down a binomial tree of four: to the other node, then on each. One rank of a node sends, and has its link to itself.
    down = {one["algorithm"]: one["us"] for one in rows["broadcast", 16 * MIB]["costs"]}
    assert close(down["binomial"], 100 + 16 * half_ms / 2 + 10) and "double tree" in down, down


def every_row_says_what_it_chose(bench):
    for ranks, nodes in ((2, 2), (4, 2), (8, 1), (3, 2), (7, 3), (64, 16), (1000, 125)):
        table, rows = bench.described(ranks, nodes)
        assert len(rows) == 5 * 9, len(rows)
        for row in rows.values():
            by_name = {one["algorithm"]: one["us"] for one in row["costs"]}
            costs = [one["us"] for one in row["costs"]]
            assert costs == sorted(costs) and row["algorithm"] in by_name, row
            assert by_name[row["algorithm"]] == costs[0] or row["algorithm"] == row["default"], row
            assert row["bound_us"] <= costs[0] * (1 + 1e-9) and row["why"], row


def links_that_cost_nothing_are_said_in_numbers(bench):
    said = bench("--explain", "--ranks", 4, "--nodes", 2, "--costs", "on-node=0,0,0 between=0,0,0 fold=0 unhidden=0")
    assert "nan" not in said and "would save 0 %" in said, said


def text_has_what_json_has(bench):
    lines = bench("--explain", "--ranks", 4, "--nodes", 2, "--costs", COSTS).splitlines()
    assert lines[0] == f"4 ranks on 2 nodes; numbers given: {COSTS}", lines[0]
    assert len(lines) == 2 + 5 * 9, lines
    row = next(line for line in lines if line.startswith("all_reduce") and " 16 MiB " in line)
    assert "hierarchical" in row and "cheapest, and the default" in row and "others: " in row and "ring" in row, row


def bad_words_are_named(bench):
    for words, sentence in ((["--ranks", 4, "--explain"], "needs numbers: --costs"),
                            (["--ranks", 1, "--explain", "--costs", COSTS], "--ranks is 2 to 4095"),
                            (["--ranks", 4096, "--explain", "--costs", COSTS], "--ranks is 2 to 4095"),
                            (["--ranks", 4, "--nodes", 5, "--explain", "--costs", COSTS], "--nodes 1 to that"),
                            (["--ranks", 4, "--nodes", 0, "--explain", "--costs", COSTS], "--nodes 1 to that"),
                            (["--nodes", 2, "--explain", "--costs", COSTS], "--ranks is 2 to 4095"),
                            (["--ranks", 4, "--explain", "--costs", "fast"], "'fast' is no cost"),
                            (["--ranks", 4, "--nodes", 2, "--explain", "--costs", "between=1,1,1"], "lacks on-node="),
                            (["--ranks", 4, "--nodes", 4, "--explain", "--costs", "on-node=1,1,1"], "lacks on-node= or between="),
                            (["--ranks", "four", "--explain"], "--ranks"),
                            (["--explain"], "there is nobody to talk to"),
                            ([], "--explain is required")):
        said = bench(*words, code=78)
        assert sentence in said, f"{words}: {said}"


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--muster", required=True)
    bench = Bench(parser.parse_args().muster)
    for check in (costs_are_those_by_hand, every_row_says_what_it_chose, links_that_cost_nothing_are_said_in_numbers,
                  text_has_what_json_has, bad_words_are_named):
        check(bench)
        print("ok", check.__name__, flush=True)


if __name__ == "__main__":
    main()
