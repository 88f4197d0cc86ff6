#!/usr/bin/env python3
"""`muster ckpt` as people use it: files made here byte by byte, commands run, tables, JSON and exit codes held
against what is known. With --peer FOLDER, files also go through the `safetensors` package in both directions."""
import argparse
import ctypes
import fcntl
import json
import os
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "support"))
from fetch import fetch  # noqa: E402


def safetensors(tensors, metadata=None):
    header, data = ({"__metadata__": metadata} if metadata else {}), b""
    for name, (dtype, shape, raw) in tensors.items():
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [len(data), len(data) + len(raw)]}
        data += raw
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def read_safetensors(path):
    raw = Path(path).read_bytes()
    (length,) = struct.unpack("<Q", raw[:8])
    header, data = json.loads(raw[8:8 + length]), raw[8 + length:]
    metadata = header.pop("__metadata__", {})
    return {n: (e["dtype"], e["shape"], data[slice(*e["data_offsets"])]) for n, e in header.items()}, metadata


class Ckpt:
    def __init__(self, muster, folder):
        self.muster, self.folder = muster, folder

    def __call__(self, *arguments, code=0):
        done = subprocess.run([self.muster, "ckpt", *map(str, arguments)], capture_output=True, text=True, timeout=60,
                              cwd=self.folder)
        assert done.returncode == code, f"{arguments}: {done.returncode} instead of {code}\n{done.stdout}{done.stderr}"
        return done.stdout + done.stderr

    def json(self, *arguments, code=0):
        return json.loads(self(*arguments, "--json", code=code))


FLOATS = struct.pack("<6f", 1, -2, 0, float("nan"), 5, 4)
TENSORS = {"w": ("F32", [2, 3], FLOATS), "step": ("I64", [], struct.pack("<q", 7)),
           "half": ("BF16", [2], struct.pack("<2H", 0x3f80, 0xc040)), "f8": ("F8_E4M3", [3], bytes([0x38, 0x7e, 0x01]))}


def looks(ckpt, folder):
    (folder / "a.safetensors").write_bytes(safetensors(TENSORS))
    ckpt("import", "a.safetensors", "ckpt", "--version", 100, "--job", "lanes=8", "--job", "codec=int8")
    changed = dict(TENSORS, w=("F32", [2, 3], struct.pack("<6f", 1, -2, 0, 9, 5, 4.5)))
    del changed["f8"]
    (folder / "b.safetensors").write_bytes(safetensors(changed))
    ckpt("import", "b.safetensors", "ckpt/", "--version", 200, "--shards", 3)

    saves = ckpt.json("ls", "ckpt")["saves"]
    assert [(s["version"], s["state"], s["shards"], s["tensors"]) for s in saves] == [(200, "durable", 3, 3),
                                                                                    (100, "durable", 1, 4)], saves
    on_disk = sum(f.stat().st_size for f in Path(saves[1]["folder"] if os.path.isabs(saves[1]["folder"]) else
                                                 folder / saves[1]["folder"]).glob("shard-*"))
    assert saves[1]["bytes"] == on_disk
    table = ckpt("ls", "ckpt").splitlines()
    assert table[0].split()[:4] == ["version", "save", "state", "size"] and len(table) == 3, table

    shown = ckpt.json("show", "ckpt@100", "--stats")
    assert shown["job"]["lanes"] == 8 and shown["job"]["codec"] == "int8"
    stats = {t["name"]: t["statistics"] for t in shown["tensors"]}
    assert (stats["w"]["min"], stats["w"]["max"], stats["w"]["nans"], stats["w"]["zeros"]) == (-2, 5, 1, 1)
    assert stats["w"]["mean"] == 8 / 5 and stats["f8"]["max"] == 448 and stats["half"]["min"] == -3
    assert "NaN" in ckpt("show", "ckpt@100", "--stats", "--tensor", "w")
    assert "dimension" not in ckpt("show", "ckpt")

    different = ckpt.json("diff", "ckpt@100", "ckpt@200", code=1)
    w = next(t for t in different["tensors"] if t["name"] == "w")
    assert (w["differing"], w["count"], w["first_differing"], w["largest"]) == (2, 6, 3, 0.5), w
    assert {"name": "f8", "only_in": "A"} in different["tensors"] and different["equal"] == 2
    assert "4 tensors equal, 0 different" in ckpt("diff", "ckpt@100", "ckpt@100")
    assert "only in B" in ckpt("diff", "ckpt@200", "ckpt@100", code=1)


def digest_line(text):
    """As small files of a checkpoint end."""
    class Hash128(ctypes.Structure):
        _fields_ = [("low", ctypes.c_uint64), ("high", ctypes.c_uint64)]
    xxhash = ctypes.CDLL("libxxhash.so.0")
    xxhash.XXH3_128bits.restype = Hash128
    xxhash.XXH3_128bits.argtypes = [ctypes.c_char_p, ctypes.c_size_t]
    digest = xxhash.XXH3_128bits(text, len(text))
    return b"xxh3-128 %016x%016x\n" % (digest.high, digest.low)


def shows_what_is_shared(ckpt, folder):
    manifest = next((folder / "ckpt").glob("v*100-*/manifest.json"))
    text = manifest.read_bytes()
    saved, line = text.splitlines(keepends=True)
    assert line == digest_line(saved)
    assert ckpt.json("show", "ckpt@100")["clones"] == []
    fields = json.loads(saved)
    fields["clones"] = [[0, 90, "00000000000000ab", 1]]
    changed = json.dumps(fields, separators=(",", ":")).encode() + b"\n"
    manifest.write_bytes(changed + digest_line(changed))
    assert ckpt.json("show", "ckpt@100")["clones"] == [
        {"shard": 0, "slabs": 1, "shared_slabs": 1, "origin": {"version": 90, "nonce": "00000000000000ab"}}]
    assert "1 of 1 slabs with files that began with version 90" in ckpt("show", "ckpt@100")
    manifest.write_bytes(text)


def exchanges(ckpt, folder):
    ckpt("export", "ckpt@100", "out.safetensors")
    tensors, metadata = read_safetensors(folder / "out.safetensors")
    assert tensors == TENSORS
    assert json.loads(metadata["muster"])["version"] == 100
    ckpt("import", "out.safetensors", "again")
    assert ckpt.json("show", "again")["job"] == ckpt.json("show", "ckpt@100")["job"]
    ckpt("diff", "ckpt@100", "again")
    import h5py
    assert list(h5py.File(next((folder / "ckpt").glob("v*100-*/index.h5")))["tensors/w"][0])[:2] == [1, -2]
    next((folder / "ckpt").glob("v*100-*/index.h5")).unlink()
    assert "index.h5" in ckpt("index", "ckpt@100")
    assert h5py.File(next((folder / "ckpt").glob("v*100-*/index.h5")))["tensors/step"][()] == 7
    ckpt("export", "ckpt@100", "half.safetensors", "--tensor", "half")
    assert list(read_safetensors(folder / "half.safetensors")[0]) == ["half"]
    cast = ckpt.json("export", "ckpt@100", "cast.safetensors", "--cast", "bfloat16")
    assert (cast["cast"], cast["became_infinite"], cast["kept_floats"]) == (1, 0, 1), cast
    assert "1 tensor of 8-bit floats was not cast" in ckpt("export", "ckpt@100", "cast2.safetensors", "--cast", "float16")
    tensors, metadata = read_safetensors(folder / "cast.safetensors")
    assert tensors["w"] == ("BF16", [2, 3], b"".join(struct.pack("<f", x)[2:] for x in struct.unpack("<6f", FLOATS))), tensors["w"]
    assert {name: tensors[name] for name in TENSORS if name != "w"} == {n: t for n, t in TENSORS.items() if n != "w"}
    assert "muster" not in metadata
    ckpt("export", "ckpt@100", "int.safetensors", "--cast", "int8", code=78)
    assert "exists" in ckpt("export", "ckpt@100", "out.safetensors", code=78)


def verifies(ckpt, folder):
    assert "good" in ckpt("verify", "ckpt")
    assert [s["good"] for s in ckpt.json("verify", "ckpt", "--all")["saves"]] == [True, True]
    shard = sorted((folder / "ckpt").glob("v*200-*/shard-*"))[1]
    good = shard.read_bytes()
    shard.write_bytes(good[:-5000] + bytes([good[-5000] ^ 1]) + good[-4999:])
    assert shard.name in ckpt("verify", "ckpt@200", code=1)
    verdict = ckpt.json("verify", "ckpt", "--all", code=1)["saves"]
    assert [s["good"] for s in verdict] == [False, True] and len(verdict[0]["problems"]) == 1
    ckpt("export", "ckpt@200", "bad.safetensors", code=1)
    assert not (folder / "bad.safetensors").exists()
    ckpt("diff", "ckpt@200", "ckpt@100", code=2)
    shard.write_bytes(good)
    manifest = next((folder / "ckpt").glob("v*200-*/manifest.json"))
    text = manifest.read_bytes()
    manifest.write_bytes(text.replace(b"200", b"201", 1))
    assert "damaged" in ckpt("ls", "ckpt", code=1)
    assert ckpt.json("show", "ckpt")["version"] == 100, "the newest usable one"
    ckpt("show", "ckpt@200", code=1)
    manifest.write_bytes(text)


def removed_meanwhile(ckpt, folder):
    """Retention removes a save while `verify --all` is still busy with a newer one: that is no damage."""
    (folder / "leave.safetensors").write_bytes(safetensors(TENSORS))
    for version in (1, 2):
        ckpt("import", "leave.safetensors", "leave", "--version", version)
    newer, older = (next((folder / "leave").glob(f"v*{version}-*")) for version in (2, 1))
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGIO])
    shard = os.open(next(newer.glob("shard-*")), os.O_RDONLY)
    fcntl.fcntl(shard, fcntl.F_SETLEASE, fcntl.F_WRLCK)  # whoever opens it now waits, and is told of by SIGIO
    verify = subprocess.Popen([ckpt.muster, "ckpt", "verify", "leave", "--all"], cwd=folder, stdout=subprocess.PIPE, text=True)
    assert signal.sigtimedwait([signal.SIGIO], 60), "verify did not open the newer one's shard"
    (older / "manifest.json").unlink()
    shutil.rmtree(older)
    os.close(shard)
    said = verify.communicate(timeout=60)[0]
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGIO])
    assert verify.returncode == 0 and "good" in said and "version 1 " in said and "removed while it was verified" in said, said


def speaks_plainly(ckpt, folder):
    """What is shown of what anybody may have written does nothing to a terminal."""
    ckpt("import", "a.safetensors", "run@3", "--version", 5)
    manifest = next((folder / "run@3").glob("v*5-*/manifest.json"))
    fields = json.loads(manifest.read_bytes().splitlines()[0])
    fields["saved_by"] = "a\x1b[2Jb\x7f\x9bcß\n"
    text = json.dumps(fields, separators=(",", ":")).encode() + b"\n"
    manifest.write_bytes(text + digest_line(text))
    shown = ckpt("show", "run@3") + ckpt("show", "run@3@5")
    assert shown.count(r"a\x1b[2Jb\x7f\xc2\x9bcß\x0a") == 2 and not set(shown) & set("\x1b\x7f\x9b"), shown
    assert ckpt.json("show", "run@3/")["saved_by"] == fields["saved_by"]
    (folder / "inf.safetensors").write_bytes(safetensors({"w": ("F32", [2, 3], struct.pack("<6f", 1, -2, 0, 9, float("inf"), 4))}))
    ckpt("import", "inf.safetensors", "inf", "--version", 1)
    different = ckpt.json("diff", "ckpt@100", "inf", "--tensor", "w", code=1)["tensors"][0]
    assert (different["differing"], different["largest"], different["not_finite"]) == (2, 0, 2), different


def flip(path, at):
    raw = bytearray(path.read_bytes())
    raw[at] ^= 1
    path.write_bytes(raw)


def contents(folder):
    return {p.relative_to(folder): p.read_bytes() for p in sorted(folder.glob("v*/*"))}


def repairs(ckpt, folder):
    tensors = {"w": ("F32", [400, 500], bytes(range(256)) * 3125), "b": ("F16", [30], bytes(60))}
    (folder / "big.safetensors").write_bytes(safetensors(tensors))
    for version in (1, 2):
        ckpt("import", "big.safetensors", "rep", "--version", version, "--shards", 5)
    root = folder / "rep"
    shards = sorted(root.glob("v*2-*/shard-*"))
    bare = contents(root)
    flip(shards[3], 200_000 % shards[3].stat().st_size)
    out = ckpt("repair", "rep", code=1)
    assert shards[3].name in out and "lost" in out and "no parity file" in out, out
    flip(shards[3], 200_000 % shards[3].stat().st_size)
    assert contents(root) == bare and "nothing to repair in 2 saves" in ckpt("repair", "rep")

    assert "dry run" in ckpt("repair", "rep", "--parity", 3, "--dry-run") and contents(root) == bare
    assert ckpt("repair", "rep", "--parity", 3).count("written") == 4
    good = contents(root)
    assert {p: b for p, b in good.items() if "parity" not in p.name} == bare and len(good) == len(bare) + 4
    verdict = ckpt.json("verify", "rep", "--all")["saves"]
    assert [s["parity"] for s in verdict] == [{"files": 2, "problems": []}] * 2, verdict
    ckpt("repair", "rep", "--parity", 1, code=78)

    # Of each group one file, in both versions, and a manifest; found, foretold, and made right.
    flip(shards[0], 5000)
    shards[1].write_bytes(shards[1].read_bytes()[:9999])
    manifest = next(root.glob("v*1-*/manifest.json"))
    flip(manifest, 100)
    sorted(root.glob("v*1-*/shard-*"))[4].unlink()
    bad = contents(root)
    verdict = ckpt.json("verify", "rep", "--all", code=1)["saves"]
    assert [(s["good"], s["repairable"]) for s in verdict] == [(False, True)] * 2, verdict
    assert "muster ckpt repair" in ckpt("verify", "rep@2", code=1)
    foretold = ckpt.json("repair", "rep", "--dry-run")
    assert contents(root) == bad
    only = ckpt.json("repair", "rep", 2)
    assert only["saves"] == foretold["saves"][:1] and only["saves"][0]["right"]
    assert [(f["file"], f["outcome"]) for f in only["saves"][0]["files"]] == [
        (shards[0].name, "rebuilt"), (shards[1].name, "rebuilt")], only
    out = ckpt("repair", "rep")
    assert "manifest.json" in out and "it is missing" in out and contents(root) == good, out
    assert [s["was_right"] for s in ckpt.json("repair", "rep")["saves"]] == [True, True]

    # Both files of a group in one place: named, and left as they are. And a parity file alone is repaired.
    flip(shards[0], 5000)
    flip(shards[2], 5000)
    bad = contents(root)
    out = ckpt("repair", "rep@2", code=1)
    assert out.count("lost") == 2 and "participant 2" in out and contents(root) == bad, out
    assert "would make it right" not in ckpt("verify", "rep@2", code=1)
    flip(shards[0], 5000)
    flip(shards[2], 5000)
    parity = sorted(root.glob("v*2-*/parity-*"))[1]
    flip(parity, 20_000)
    out = ckpt("verify", "rep", code=1)
    assert "good" in out and parity.name in out and "would make it right" in out, out
    assert "written" in ckpt("repair", "rep") and contents(root) == good

    # Without a manifest it is no checkpoint, unless somebody says that it is.
    manifest.unlink()
    assert contents(root) != good and "nothing to repair in 1 save" in ckpt("repair", "rep")
    assert "manifest.json" in ckpt("repair", "rep", 1) and contents(root) == good
    # A folder on which a job runs.
    lock = open(root / "owner.lock", "r+b")
    fcntl.lockf(lock, fcntl.LOCK_EX)
    ckpt("repair", "rep", code=2)
    ckpt("repair", "rep", "--dry-run")
    lock.close()


def refuses(ckpt, folder):
    assert "no version '300'; there are: 200, 100" in ckpt("show", "ckpt@300", code=78)
    assert "not a folder" in ckpt("ls", "nowhere", code=78)
    assert "did you mean 'half'" in ckpt("show", "ckpt@100", "--tensor", "halv", code=78)
    assert "not a whole number" in ckpt("import", "a.safetensors", "new", "--job", "lanes=x", code=78)
    assert "did you mean 'lanes'" in ckpt("import", "a.safetensors", "new", "--job", "lane=2", code=78)
    assert not (folder / "new").exists(), "a refused import makes no folder"
    (folder / "short.safetensors").write_bytes(safetensors(TENSORS)[:-1])
    for version in (-1, 2**63, 2**64 - 1, 2**64):
        ckpt("import", "a.safetensors", "new", "--version", version, code=78)
    assert not (folder / "new").exists(), "nor does one of a version that cannot be"
    said = ckpt("import", "a.safetensors", "ckpt", "--version", 100, code=78)
    assert "has version 100" in said and "give another --version" in said, said
    assert "bytes of data" in ckpt("import", "short.safetensors", "new", code=78)
    assert "cannot open" in ckpt("import", "nothing.safetensors", "new", code=2)
    ckpt("frobnicate", code=78)
    ckpt("ls", code=78)
    lock = open(folder / "ckpt" / "owner.lock", "r+")
    fcntl.lockf(lock, fcntl.LOCK_EX)
    assert "belongs to another running process" in ckpt("prune", "ckpt", code=2)
    assert "belongs to another running process" in ckpt("import", "a.safetensors", "ckpt", code=2)
    ckpt("ls", "ckpt")
    lock.close()


def prunes(ckpt, folder):
    """Only verified saves count as successors, so nothing that was merely imported makes another go."""
    assert "nothing to remove" in ckpt("prune", "ckpt", "--keep", 1)
    ckpt("verify", "ckpt@200", "--mark")
    assert ckpt.json("ls", "ckpt")["saves"][0]["state"] == "verified"
    assert "would remove" in ckpt("prune", "ckpt", "--keep", 1, "--dry-run")
    assert len(ckpt.json("ls", "ckpt")["saves"]) == 2
    assert len(ckpt.json("prune", "ckpt", "--keep", 1)["removed"]) == 1
    assert [s["version"] for s in ckpt.json("ls", "ckpt")["saves"]] == [200]


def seals(ckpt, folder):
    """A key in its file, what is sealed with it, and what it is to who has it, another one, or none."""
    made = ckpt.json("keygen", "key")
    assert os.stat(folder / "key").st_mode & 0o777 == 0o600 and os.stat(folder / "key").st_size == 32
    assert "exists" in ckpt("keygen", "key", code=78)
    assert "No such file" in ckpt("keygen", "nowhere/key", code=2)
    ckpt("keygen", "other")
    assert (folder / "key").read_bytes() != (folder / "other").read_bytes()
    key, other = ("--key-file", "key"), ("--key-file", "other")
    ckpt("import", "a.safetensors", "sealed", "--version", 100, "--shards", 2, *key)
    ckpt("import", "b.safetensors", "sealed", "--version", 200, *key)
    for more in key, ():
        save = ckpt.json("ls", "sealed", *more)["saves"][0]
        assert (save["sealed"], save["seal_checked"], save["usable"]) == (made["key_id"], bool(more), True), save
        assert "good" in ckpt("verify", "sealed@100", *more)
        assert all(s["good"] for s in ckpt.json("verify", "sealed", "--all", *more)["saves"])
        assert "0 different" in ckpt("diff", "sealed@100", "sealed@100", *more)
        ckpt("export", "sealed@100", f"sealed{len(more)}.safetensors", *more)
    assert (folder / "sealed0.safetensors").read_bytes() == (folder / "sealed2.safetensors").read_bytes()
    assert made["key_id"] in ckpt("ls", "sealed")
    assert "is the one given" in ckpt("show", "sealed", *key) and "is not checked" in ckpt("show", "sealed")
    assert ckpt.json("show", "sealed@100", *key)["sealed"] == made["key_id"]
    assert "is sealed with the key " + made["key_id"] in ckpt("verify", "sealed", *other, code=78)
    for command in ("verify", "show"):
        ckpt(command, "sealed@100", *other, code=78)
    for command in ("export", "diff"):
        ckpt(command, "sealed@100", "sealed@200", *other, code=78)
    assert [s["state"] for s in ckpt.json("ls", "sealed", *other, code=1)["saves"]] == ["not of this key"] * 2
    assert "is not sealed" in ckpt("verify", "ckpt", *key, code=78)
    assert "is not sealed" in ckpt("ls", "ckpt", *key, code=1)
    assert ckpt.json("ls", "ckpt")["saves"][0]["sealed"] is None
    # What is damaged is rebuilt, also for who lacks the key; for who has another one nothing is touched.
    ckpt("import", "big.safetensors", "mended", "--version", 1, "--shards", 4, *key)
    assert "written" in ckpt("repair", "mended", "--parity", 4, *key)
    good = contents(folder / "mended")
    for more in key, ():
        sorted((folder / "mended").glob("v*/shard-*"))[1].unlink()
        flip(next((folder / "mended").glob("v*/manifest.json")), 100)
        assert ckpt.json("verify", "mended", "--all", *more, code=1)["saves"][0]["repairable"]
        assert ckpt("repair", "mended", *more).count("rebuilt") == 2 and contents(folder / "mended") == good
    sorted((folder / "mended").glob("v*/shard-*"))[1].unlink()
    assert "is sealed with the key" in ckpt("repair", "mended", *other, code=1)
    assert "is sealed with the key" in ckpt("repair", "mended@1", *other, code=78)
    assert contents(folder / "mended") != good
    # The variable is as the option, which wins.
    environment = dict(os.environ, MUSTER_CHECKPOINT_KEY_FILE="other")
    for more, code in ((), 78), (key, 0):
        done = subprocess.run([ckpt.muster, "ckpt", "verify", "sealed", *more], cwd=folder, env=environment, timeout=60)
        assert done.returncode == code, (more, done.returncode)
    os.chmod(folder / "other", 0o640)
    assert "chmod 600" in ckpt("verify", "sealed", *other, code=78)
    (folder / "short").write_bytes(b"x" * 31)
    os.chmod(folder / "short", 0o600)
    assert "31 bytes" in ckpt("import", "a.safetensors", "new", "--key-file", "short", code=78)
    assert not (folder / "new").exists(), "a refused import makes no folder"


def peer(ckpt, folder):
    import numpy
    from safetensors import safe_open
    from safetensors.numpy import load_file, save_file
    source = {"a": numpy.arange(12, dtype=numpy.float32).reshape(3, 4), "b": numpy.array(5, numpy.int64),
              "c": numpy.random.default_rng(1).standard_normal((70, 900)).astype(numpy.float16),
              "d": numpy.array([], numpy.uint8)}
    save_file(source, folder / "peer.safetensors", {"who": "numpy"})
    ckpt("import", "peer.safetensors", "peer", "--shards", 2)
    ckpt("export", "peer", "back.safetensors")
    back = load_file(folder / "back.safetensors")
    assert set(back) == set(source)
    for name, array in source.items():
        assert back[name].dtype == array.dtype and numpy.array_equal(back[name], array), name
    with safe_open(folder / "back.safetensors", "numpy") as file:
        assert "muster" in file.metadata()


def copies(ckpt, folder):
    """A save in another folder, compressed, looked at there, and plain again to the same bytes."""
    zeros = {"z": ("F32", [500, 1000], bytes(2_000_000)), "i": ("I64", [4], struct.pack("<4q", 1, 2, 3, 4))}
    (folder / "copy-zeros.safetensors").write_bytes(safetensors(zeros))
    ckpt("import", "copy-zeros.safetensors", "copy-whole", "--version", 7, "--shards", 2)
    copied = ckpt.json("copy", "copy-whole@7", "copy-small", "--zstd")
    assert copied["usable"] and copied["compression"] == "zstd" and copied["bytes"] * 10 < copied["plain_bytes"]
    names = sorted(f.name for f in (folder / copied["folder"]).iterdir())
    assert [n.split("-")[0] for n in names if n.endswith(".h5.zst")] == ["shard"] * 2, names
    assert names[0] == "manifest.json" and names[-1] == "verified.json" and len(names) == 4, names
    save = ckpt.json("ls", "copy-small")["saves"][0]
    assert (save["state"], save["compression"], save["bytes"]) == ("verified", "zstd", copied["bytes"]), save
    assert save["bytes"] == sum(f.stat().st_size for f in (folder / copied["folder"]).glob("shard-*"))
    assert "with zstd" in ckpt("show", "copy-small") and "good" in ckpt("verify", "copy-small")
    assert "0 different" in ckpt("diff", "copy-small@7", "copy-whole@7")
    for source in "copy-small", "copy-whole":
        ckpt("export", source, f"{source}.safetensors")
    assert (folder / "copy-small.safetensors").read_bytes() == (folder / "copy-whole.safetensors").read_bytes()
    assert "HDF5 cannot look into" in ckpt("index", "copy-small", code=78)
    assert "have no parity" in ckpt("repair", "copy-small", "--parity", 2, code=1)
    assert "copy into another folder" in ckpt("copy", "copy-whole@7", "copy-small", code=78), "it is there already"
    killed = folder / "copy-killed" / Path(copied["folder"]).name  # what a copy that was killed leaves
    killed.mkdir(parents=True)
    (killed / "shard-000000-0000000000000001.h5").write_bytes(b"half")
    assert ckpt.json("copy", "copy-whole@7", "copy-killed")["usable"]
    assert not (killed / "shard-000000-0000000000000001.h5").exists()
    again = ckpt.json("copy", "copy-small@7", "copy-again")
    assert again["compression"] is None
    originals = {f.name: f.read_bytes() for f in (folder / "copy-whole").glob("v*/shard-*")}
    assert originals == {f.name: f.read_bytes() for f in (folder / "copy-again").glob("v*/shard-*")}
    shard = folder / copied["folder"] / names[1]
    good = shard.read_bytes()
    flip(shard, len(good) // 2)
    assert names[1] in ckpt("verify", "copy-small", code=1)
    assert "such saves have no parity" in ckpt("repair", "copy-small", code=1)
    assert "is damaged" in ckpt("copy", "copy-small@7", "copy-third", code=1)
    shard.write_bytes(good)
    ckpt("verify", "copy-small")
    assert "give its key" in ckpt("copy", "sealed@100", "copy-small", "--zstd", code=78)
    key = ("--key-file", "key")
    ckpt("copy", "sealed@100", "copy-small-sealed", "--zstd=9", *key)
    assert ckpt.json("show", "copy-small-sealed", *key)["seal_checked"]
    os.chmod(folder / "other", 0o600)
    assert "is sealed with the key" in ckpt("show", "copy-small-sealed", "--key-file", "other", code=78)
    ckpt("copy", "copy-whole@7", "copy-small", "--zstd=77", code=78)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--muster", required=True)
    parser.add_argument("--peer", type=Path, help="a folder with the safetensors package; fetched where missing")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        ckpt = Ckpt(options.muster, folder)
        if options.peer:
            if missing := fetch("safetensors", options.peer, "--no-deps"):
                print("skipped:", missing)
                return 77
            peer(ckpt, folder)
            return 0
        for check in (looks, shows_what_is_shared, speaks_plainly, exchanges, verifies, removed_meanwhile, repairs, refuses,
                      seals, copies, prunes):
            check(ckpt, folder)
            print("ok", check.__name__)
    return 0


if __name__ == "__main__":
    sys.exit(main())
