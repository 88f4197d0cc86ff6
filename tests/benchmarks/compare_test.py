"""What benchmarks/compare.py says of two runs."""
import json
import sys
import unittest
from pathlib import Path

TOP = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(TOP / "benchmarks"))
from compare import lines, moves, read_rows  # noqa: E402


def row(case="kill, 50 times", metric="commit", ours=60.0, ratio=None, of_bound=None, bench="recovery", peer=None):
    return {"bench": bench, "case": case, "metric": metric, "unit": "ms", "ours": ours, "peer": peer, "peer_value": None,
            "ratio": ratio, "bound": None, "of_bound": of_bound}


def between(before, after):
    return moves(*(read_rows("\n".join(json.dumps(one) for one in run)) for run in (before, after)))


class Compare(unittest.TestCase):
    def test_a_ratio_counts_more_than_the_figures(self):
        found = between([row(ratio=100)], [row(ours=300.0, ratio=110)])
        self.assertEqual(found, [])
        found = between([row(ratio=100)], [row(ratio=50)])
        self.assertEqual([(one.what, one.factor, one.better) for one in found], [("ratio", 2, False)])

    def test_then_the_part_of_the_bound_and_then_the_figure(self):
        self.assertTrue(between([row(of_bound=0.5)], [row(of_bound=1.0)])[0].better)
        self.assertIsNone(between([row(ours=50.0)], [row(ours=100.0)])[0].better)

    def test_the_number_of_rounds_and_versions_of_a_peer_are_no_part_of_a_name(self):
        found = between([row(ratio=10, peer="torchrun, 5 times, torch 1.13")], [row("kill, 10 times", ratio=20, peer="torchrun, 1 times")])
        self.assertEqual([one.better for one in found], [True])

    def test_rows_that_one_run_lacks_are_told_and_benches_that_were_not_run_are_not(self):
        found = between([row(), row(bench="scale")], [row(), row(metric="ready")])
        self.assertEqual([(one.before, one.after) for one in found], [(None, 60.0)])

    def test_the_most_moved_comes_first_and_signs_count(self):
        found = between([row(metric="a", ours=1.0), row(metric="b", ours=1.0)], [row(metric="a", ours=2.0), row(metric="b", ours=-1.0)])
        self.assertEqual([one.after for one in found], [-1.0, 2.0])

    def test_what_is_no_row_is_passed_over(self):
        self.assertEqual(read_rows('{"machine": "any"}\n'), {})

    def test_each_committed_baseline_is_read_and_has_not_moved_from_itself(self):
        files = list((TOP / "benchmarks" / "baseline").glob("*.jsonl"))
        self.assertTrue(files)
        for file in files:
            rows = read_rows(file.read_text())
            self.assertGreater(len(rows), 1, file)
            self.assertEqual({one["bench"] for one in rows.values()}, {file.stem})
            self.assertEqual(list(lines(moves(rows, rows))), [])


unittest.main()
