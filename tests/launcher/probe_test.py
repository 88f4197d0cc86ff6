#!/usr/bin/env python3
"""`muster probe` as people use it: a host alone, hosts that are alike, and hosts of which some differ."""
import argparse
import json
import os
import subprocess
import tempfile
from pathlib import Path


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--muster", required=True)
    muster = parser.parse_args().muster

    def probe(*arguments, code=0, words=None, **variables):
        done = subprocess.run([muster, "probe", *map(str, arguments)], input=words, capture_output=True, text=True, timeout=60,
                              env={**os.environ, **variables})
        assert done.returncode == code, f"{arguments}: {done.returncode} instead of {code}\n{done.stdout}{done.stderr}"
        return done.stdout + done.stderr

    mine = json.loads(probe("--json"))
    assert probe("--json").count("\n") == 1, "so that lines of several hosts can be put together"
    assert json.loads(probe("--json")) == mine and len(mine["parts"]) == 7, mine
    table = probe()
    assert all(name in table and digest in table for name, digest in mine["parts"].items()), table

    def line(host, **parts):
        return json.dumps({**mine, "host": host, "parts": {**mine["parts"], **parts}}) + "\n"

    odd = line("odd\x1b[2J", denormals="00000000000000ab")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "a").write_text(line("a") + "\n" + line("b"))
        (folder / "c").write_text(odd)
        assert "2 hosts compute alike" in probe(folder / "a")
        said = probe(folder / "a", folder / "c", code=1)
        assert said == "odd\\x1b[2J computes otherwise than a and most: denormals\n", said
        found = json.loads(probe("-", "--json", code=1, words=odd + line("a") + line("b")))
        assert found == {"hosts": 3, "differ": [{"host": "odd\x1b[2J", "differs_in": "denormals"}]}, found
        assert "cannot open" in probe(folder / "none", code=2)
        assert "probes of 1 hosts" in probe(folder / "c", code=78)
        for wrong in ("x", "[]", "{}", "null", json.dumps({**mine, "parts": {}}), line("a", denormals="zz"), line("a", more="0" * 16)):
            assert "line 2" in probe("-", code=78, words=line("a") + wrong), wrong

    # The C library as it is on a processor without fused multiply-add.
    if " fma " not in Path("/proc/cpuinfo").read_text():
        print("another processor's functions were not tried: this one has no fused multiply-add either")
    else:
        older = json.loads(probe("--json", GLIBC_TUNABLES="glibc.cpu.hwcaps=-FMA,-FMA4,-AVX2,-AVX512F"))
        said = probe("-", code=1, words=line("a") + line("b") + json.dumps({**older, "host": "older"}))
        assert said == "older computes otherwise than a and most: float64 functions of the C library\n", said
    print("ok")


if __name__ == "__main__":
    main()
