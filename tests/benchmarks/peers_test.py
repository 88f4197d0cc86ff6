"""Which rows the benchmarks give when a peer is not there: programs that print what is written here take the place of those
that measure, so nothing is built and nothing timed."""
import json
import os
import sys
import tempfile
import unittest
from pathlib import Path
from unittest import mock

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))
import bench_checkpoint  # noqa: E402
import bench_codecs  # noqa: E402
import bench_collectives  # noqa: E402
import bench_gpu  # noqa: E402
import bench_network  # noqa: E402
import bench_recovery  # noqa: E402
import recovery_peers  # noqa: E402
import torch_python  # noqa: E402
import two_hosts  # noqa: E402

METRICS = ("seconds", "staged_seconds", "copy_seconds", "buffer_bytes", "read_bytes", "bytes", "memcpy_seconds", "digest_seconds",
           "plain_digest_seconds", "copy_then_plain_digest_seconds", "copy_then_digest_seconds", "digest_then_copy_seconds",
           "tiles_past_the_cache_seconds")
TURN = {"op": "all_reduce", "bytes": 4096, "owned": 0, "flushed": 0, "ranks": 2, "regime": "near", "wrong": 0, "us": [2.0]}


def executable(path, lines, code=0):
    path.parent.mkdir(exist_ok=True)
    path.write_text("#!/bin/sh\n" + "".join(f"echo '{line}'\n" for line in lines) + f"exit {code}\n")
    path.chmod(0o755)
    return path


def turn(competitor, **changes):
    return json.dumps({**TURN, "competitor": competitor, **changes})


class Peers(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.build = Path(folder.name)
        self.name_python(executable(self.build / "bare", [], 3))

    def name_python(self, path):
        """As MUSTER_BENCH_TORCH does."""
        patch = mock.patch.object(torch_python, "NAMED", str(path))
        patch.start()
        self.addCleanup(patch.stop)
        torch_python.torch_python.cache_clear()
        self.addCleanup(torch_python.torch_python.cache_clear)

    def program(self, name, *lines):
        executable(self.build / "bin" / name, lines)

    def assert_told(self, rows, *peers):
        told = [row["peer"] for row in rows if row["peer"] and "not measured" in row["peer"]]
        self.assertEqual([name.split(":")[0] for name in told], list(peers))
        for name in told:
            self.assertIn(str(self.build / "bare"), name)

    def test_a_python_without_torch_is_told_with_its_reason(self):
        python, reason = torch_python.torch_python()
        self.assertIsNone(python)
        self.assertIn("ended with 3", reason)

    def test_the_first_python_that_has_torch_is_taken_and_its_versions_told(self):
        self.name_python(executable(self.build / "good", ["torch 9"]))
        self.assertEqual(torch_python.torch_python(), (str(self.build / "good"), "torch 9"))
        with mock.patch.multiple(torch_python, NAMED=None, DEBIANS=str(self.build / "good")), \
                mock.patch.object(sys, "executable", str(self.build / "bare")):
            torch_python.torch_python.cache_clear()
            self.assertEqual(torch_python.torch_python()[0], str(self.build / "good"))

    def test_a_python_that_lacks_a_module_beside_torch_is_told(self):
        python = self.build / "picky"
        python.write_text('#!/bin/sh\n[ -z "$3" ] || { echo "no module $3" >&2; exit 1; }\necho torch 9\n')
        python.chmod(0o755)
        self.name_python(python)
        self.assertEqual(torch_python.torch_python()[1], "torch 9")
        self.assertIn("no module torchft", torch_python.torch_python("torchft")[1])

    def test_agents_do_not_see_the_variable(self):
        self.assertNotIn("MUSTER_BENCH_TORCH", os.environ)

    def test_recovery(self):
        self.assert_told([bench_recovery.torch_row("case", 1.0, bench_recovery.Torchrun, 1, None),
                          bench_recovery.torch_row("case", 1.0, bench_recovery.Torchft, 1, None, "torchft")], "torchrun", "torchft")

    def test_a_cut_link_without_a_sandbox_is_told_with_the_reason(self):
        with mock.patch.object(two_hosts, "sandbox_command", lambda: "no unshare here"):
            rows = list(bench_recovery.link_cut_rows(self.build, 1))
        self.assertEqual([(row["ours"], row["peer"]) for row in rows], [(None, "no unshare here")])

    def test_cuts_are_told_beside_their_detection_and_what_was_not_measured_with_its_reason(self):
        cuts = [{"case": "pulled", "detection": 2000, "committed": ms, "frozen": 3000, "last": 5} for ms in (2100, 2900, 2200)]
        with mock.patch.object(bench_recovery, "cut_links", lambda *_: [*cuts, {"case": "etcd", "lacking": "no etcd"}]):
            rows = list(bench_recovery.link_cut_rows(self.build, 1))
        told = {row["metric"]: (row["ours"], row["of_bound"]) for row in rows if row["case"] == "pulled, 3 times"}
        self.assertEqual(told["next commit p50"], (2200, 1.14))
        self.assertEqual(told["next commit max"], (2900, 0.86))
        self.assertEqual(told["beyond detection p50"], (200, None))
        self.assertEqual([row["peer"] for row in rows if row["case"] == "etcd"], ["no etcd"])

    def test_a_joins_stall_is_told_in_steps_of_the_same_run(self):
        joins = [bench_recovery.Join(20, 10, 1), bench_recovery.Join(40, 80, 2), bench_recovery.Join(20, 20, 30)]
        told = {(row["metric"], row["unit"]): row["ours"] for row in bench_recovery.join_rows("join", joins)}
        self.assertEqual(told, {("stall of others p50", "ms"): 20, ("stall of others p50", "steps"): 1, ("stall of others max", "steps"): 2,
                                ("no join p50", "steps"): 0.1, ("no join max", "steps"): 1.5})

    def test_a_gap_belongs_to_the_while_in_which_it_ends(self):
        moments = [at * 1_000_000 for at in (0, 20, 40, 140, 160)]
        self.assertEqual(bench_recovery.gaps_of(moments, 30_000_000, 150_000_000), [20, 100])

    def test_peers_of_recovery_without_a_script_are_told(self):
        told = [row["peer"].split(":")[0] for row in bench_recovery.unmeasured_rows("case", 1.0)]
        self.assertEqual(told, ["PCCL"])

    def test_steps_of_torchft_are_those_of_one_quorum_since_a_kill(self):
        peer = recovery_peers.Torchft.__new__(recovery_peers.Torchft)
        peer.folder, peer.sources = self.build, {}
        # Quorums of 2, of 3, and, after a kill at 25, of 2 again, whose first step the second makes later.
        peer.steps = {1: {1: (10, 2), 2: (20, 3), 3: (30, 2), 4: (40, 2)}, 2: {1: (11, 2), 2: (21, 3), 3: (36, 2), 4: (46, 2)}}
        self.assertEqual(peer.steps_of({1, 2}, 1, 25), 36)
        self.assertEqual(peer.steps_of({1, 2}, 3), 11)

    def test_network(self):
        with mock.patch.object(two_hosts, "sandbox_command", lambda: ["true"]):
            self.assert_told(bench_network.network(self.build, 1), "Gloo")

    def test_collectives(self):
        self.program("bench_collectives", turn("muster"))
        self.assert_told(bench_collectives.collectives(self.build, 1), "Gloo")

    def test_an_operation_that_a_competitor_lacks_is_told(self):
        self.program("bench_collectives", turn("muster"), '{"op": "reduce_scatter", "ranks": 2, "competitor": "Gloo", "lacking": 1}')
        rows = list(bench_collectives.collectives(self.build, 1))
        self.assertIn("Gloo has none", [row["peer"] for row in rows if row["case"].startswith("reduce_scatter")])

    def test_a_wrong_result_ends_the_benchmark(self):
        self.program("bench_collectives", turn("muster"), turn("Gloo", wrong=1))
        with self.assertRaisesRegex(RuntimeError, "Gloo computed a wrong all_reduce"):
            list(bench_collectives.collectives(self.build, 1))

    def test_checkpoint(self):
        self.program("bench_checkpoint", *(f"{metric} 1" for metric in METRICS))
        peers = ["torch.save+fsync", "torch's distributed checkpoint", "torch.load", "torch's distributed checkpoint"]
        self.assert_told(bench_checkpoint.checkpoint(self.build, 1), *2 * peers)

    def test_a_way_that_this_torch_lacks_is_told(self):
        self.name_python(executable(self.build / "good", ["missing no such module"]))
        self.program("bench_checkpoint", *(f"{metric} 1" for metric in METRICS))
        seen = bench_checkpoint.measure_torch("dcp_save", str(self.build), 1024, 2)
        row = bench_checkpoint.torch_row("case", 1.0, 2.0, "peer", [seen])
        self.assertEqual(row["peer"], "peer: not measured (no such module)")

    def test_codecs(self):
        self.program("bench_codecs", "roof|2|1", "memcpy|1|1", "int8 encode|1|0.5")
        self.assert_told(bench_codecs.codecs(self.build, 1), "PyTorch")

    def test_gpu(self):
        self.program("bench_gpu", "copy|2|1", "int8 encode|1|0.5")
        rows = list(bench_gpu.gpu(self.build, 1))
        self.assert_told(rows, "PyTorch")
        self.assertEqual([row["ours"] for row in rows], [2, 1, None])

    def test_a_machine_without_a_gpu_is_told_with_the_reason(self):
        executable(self.build / "bin" / "bench_gpu", ["nothing"], 77).write_text('#!/bin/sh\n[ "$1" = values ] && exit 0\necho skipped: no driver >&2; exit 77\n')
        self.assertEqual([row["peer"] for row in bench_gpu.gpu(self.build, 1)], ["not measured: skipped: no driver"])


if __name__ == "__main__":
    unittest.main()
