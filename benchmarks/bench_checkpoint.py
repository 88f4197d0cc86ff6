"""scripts/bench checkpoint: 1 GiB over two and over four ranks on the disk of the build folder. The bound is a raw
O_DIRECT writer of plain files of the same size, and the better of two raw O_DIRECT readers. All take turns."""
import os
import shutil
import statistics
import subprocess
import tempfile

MIB, COPIED_MIB = 1024, 256
MODES = ("raw_write", "save", "save_64", "hdf5_write", "raw_read", "restore", "raw_read_uring", "verify")


def measure(build, mode, folder, mib, ranks):
    done = subprocess.run([build / "bin" / "bench_checkpoint", mode, folder, str(mib), str(ranks)], capture_output=True,
                          text=True, timeout=120, env=dict(os.environ, MUSTER_MODULE_PATH=str(build / "lib")))
    if done.returncode != 0:
        raise RuntimeError(f"bench_checkpoint {mode} ended with {done.returncode}: {done.stderr.strip()[-300:]}")
    return {line.split()[0]: float(line.split()[1]) for line in done.stdout.splitlines()}


def row(case, metric, unit, ours, peer, peer_value, better, bound=None):
    """`better`: how often better Muster is than the peer; of_bound: the share of the bound that is reached."""
    return {"bench": "checkpoint", "case": case, "metric": metric, "unit": unit, "ours": round(ours, 3), "peer": peer,
            "peer_value": round(peer_value, 3), "ratio": round(better, 3), "bound": bound and round(bound, 3),
            "of_bound": bound and round(ours / bound, 3)}


def one_round(build, ranks, seen):
    folder = tempfile.mkdtemp(prefix="bench-", dir=build)
    try:
        for mode in MODES:
            seen[mode].append(measure(build, mode, folder, MIB, ranks))
            if mode in ("save_64", "hdf5_write"):
                # One save is left to read; the disk is not to fill up.
                for name in sorted(name for name in os.listdir(folder) if name.startswith("v"))[1:]:
                    shutil.rmtree(os.path.join(folder, name))
    finally:
        shutil.rmtree(folder)


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
