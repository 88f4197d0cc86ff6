"""scripts/bench checkpoint: 1 GiB over two and over four ranks on the disk of the build folder. The bound is a raw
O_DIRECT writer of plain files of the same size, and the better of two raw O_DIRECT readers. Peers: H5Dwrite and fsync;
torch.save, fsync and torch.load of a file of each rank; torch's distributed checkpoint. All take turns, all writes are durable
when their time ends, and all reads begin with nothing in the page cache."""
import os
import shutil
import socket
import statistics
import subprocess
import tempfile
from pathlib import Path

from torch_python import not_measured, torch_python

MIB, COPIED_MIB = 1024, 256
MODES = ("raw_write", "save", "save_64", "hdf5_write", "torch_save", "dcp_save", "raw_read", "restore", "torch_load", "dcp_load",
         "raw_read_uring", "verify")
TORCH_MODES = ("torch_save", "dcp_save", "torch_load", "dcp_load")
TORCH_SCRIPT = Path(__file__).parent / "checkpoint_torch.py"


def measure(build, mode, folder, mib, ranks):
    done = subprocess.run([build / "bin" / "bench_checkpoint", mode, folder, str(mib), str(ranks)], capture_output=True,
                          text=True, timeout=120, env=dict(os.environ, MUSTER_MODULE_PATH=str(build / "lib")))
    if done.returncode != 0:
        raise RuntimeError(f"bench_checkpoint {mode} ended with {done.returncode}: {done.stderr.strip()[-300:]}")
    return {line.split()[0]: float(line.split()[1]) for line in done.stdout.splitlines()}


def measure_torch(mode, folder, mib, ranks):
    """The seconds; or why they are missing."""
    python = torch_python()[0]
    if not python:
        return {}
    files = os.path.join(folder, mode.split("_")[0])  # what is saved there is loaded from there
    os.makedirs(files, exist_ok=True)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = dict(os.environ, OMP_NUM_THREADS="1", GLOO_SOCKET_IFNAME="lo")
    workers = [subprocess.Popen([python, str(TORCH_SCRIPT), mode, files, *(str(number) for number in (mib, rank, ranks, port))],
                                stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)
               for rank in range(ranks)]
    try:
        said = [worker.communicate(timeout=120) for worker in workers]
    finally:
        for worker in workers:
            worker.kill()
            worker.wait()
    for worker, (_, errors) in zip(workers, said):
        if worker.returncode != 0:
            raise RuntimeError(f"checkpoint_torch.py {mode} ended with {worker.returncode}: {errors.strip()[-300:]}")
    word, value = said[0][0].strip().split(maxsplit=1)
    return {word: float(value) if word == "seconds" else value}


def row(case, metric, unit, ours, peer, peer_value, better, bound=None):
    """`better`: how often better Muster is than the peer; of_bound: the share of the bound that is reached."""
    return {"bench": "checkpoint", "case": case, "metric": metric, "unit": unit, "ours": round(ours, 3), "peer": peer,
            "peer_value": peer_value and round(peer_value, 3), "ratio": better and round(better, 3),
            "bound": bound and round(bound, 3),
            "of_bound": bound and round(ours / bound, 3)}


def one_round(build, ranks, seen):
    folder = tempfile.mkdtemp(prefix="bench-", dir=build)
    try:
        for mode in MODES:
            seen[mode].append(measure_torch(mode, folder, MIB, ranks) if mode in TORCH_MODES
                              else measure(build, mode, folder, MIB, ranks))
            if mode in ("save_64", "hdf5_write"):
                # One save is left to read; the disk is not to fill up.
                for name in sorted(name for name in os.listdir(folder) if name.startswith("v"))[1:]:
                    shutil.rmtree(os.path.join(folder, name))
    finally:
        shutil.rmtree(folder)


def torch_row(case, ours, bound, peer, seen):
    if not torch_python()[0]:
        return row(case, "rate", "GiB/s", ours, not_measured(peer), None, None, bound)
    if "missing" in seen[0]:
        return row(case, "rate", "GiB/s", ours, f"{peer}: not measured ({seen[0]['missing']})", None, None, bound)
    value = MIB / 1024 / statistics.median(one["seconds"] for one in seen)
    return row(case, "rate", "GiB/s", ours, peer, value, ours / value, bound)


def rows_of(ranks, seen):
    median = lambda mode, what="seconds": statistics.median(value[what] for value in seen[mode])
    rate = lambda mode: MIB / 1024 / median(mode)
    size = f"{MIB // 1024} GiB p={ranks}"
    write, read = rate("raw_write"), max(rate("raw_read"), rate("raw_read_uring"))
    yield row(f"save {size}", "rate", "GiB/s", rate("save"), "H5Dwrite+fsync", rate("hdf5_write"),
              rate("save") / rate("hdf5_write"), write)
    yield row(f"save {size} 64 MiB staging", "rate", "GiB/s", rate("save_64"), "H5Dwrite+fsync", rate("hdf5_write"),
              rate("save_64") / rate("hdf5_write"), write)
    yield row(f"restore {size}, cold", "rate", "GiB/s", rate("restore"), "raw O_DIRECT reader", read, rate("restore") / read,
              read)
    yield torch_row(f"save {size}", rate("save"), write, "torch.save+fsync", seen["torch_save"])
    yield torch_row(f"save {size}", rate("save"), write, "torch's distributed checkpoint", seen["dcp_save"])
    yield torch_row(f"restore {size}, cold", rate("restore"), read, "torch.load", seen["torch_load"])
    yield torch_row(f"restore {size}, cold", rate("restore"), read, "torch's distributed checkpoint", seen["dcp_load"])
    buffers, moved = median("restore", "buffer_bytes") / 2**20, median("restore", "read_bytes") / 2**20
    yield row(f"restore {size}", "buffers", "MiB", buffers, "of the state", MIB / ranks, MIB / ranks / buffers)
    yield row(f"restore {size}", "read", "MiB", moved, "needed", MIB, MIB / moved)
    staged, copied = median("save", "staged_seconds"), median("save", "copy_seconds")
    yield row(f"stall {size}", "time", "s", staged, "one memcpy", copied, copied / staged)
    yield row(f"verify {size}, one core", "rate", "GiB/s", rate("verify"), "target", 3.0, rate("verify") / 3.0)


def checkpoint(build, rounds):
    seen = {ranks: {mode: [] for mode in MODES} for ranks in (2, 4)}
    for _ in range(rounds):
        for ranks, values in seen.items():
            one_round(build, ranks, values)
    for ranks, values in seen.items():
        yield from rows_of(ranks, values)
    with tempfile.TemporaryDirectory() as folder:
        copies = [measure(build, "copies", folder, COPIED_MIB, 1) for _ in range(rounds)]
        manifest = measure(build, "manifest", folder, MIB, 1)
    copied = lambda way: COPIED_MIB / 1024 / statistics.median(value[way + "_seconds"] for value in copies)
    for way in ("plain_digest", "digest", "copy_then_plain_digest", "copy_then_digest", "digest_then_copy",
                "tiles_past_the_cache"):
        yield row(way.replace("_", " "), "rate", "GiB/s", copied(way), "one memcpy", copied("memcpy"),
                  copied(way) / copied("memcpy"))
    yield row("manifest 10000 ranks x 1000", "load", "s", manifest["seconds"], "target", 1.0, 1 / manifest["seconds"])
    yield row("manifest 10000 ranks x 1000", "size", "MiB", manifest["bytes"] / 2**20, "target", 4.0,
              4 * 2**20 / manifest["bytes"])
