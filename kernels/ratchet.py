#!/usr/bin/env python3
"""What the compilers say of each CUDA kernel, held against a committed table that may only improve.

    ratchet.py check  TABLE NVCC_VERSION PTXAS_REPORT PTX...
    ratchet.py update TABLE NVCC_VERSION PTXAS_REPORT PTX...

This is static evidence: registers, spills, stack and shared memory as ptxas reports them, and the widths of global
loads and stores in the PTX. Nothing is run on a GPU, and nothing here says how fast a kernel is.

Bars for every kernel: no spills, no stack, at most 64 registers, no fused multiply-add, no float64, no local memory.
Kernels that stream (the vector ones) load and store planes in 128 bits, and nothing but a block's scale in fewer.
Numbers of one compiler version are compared only with the same version; the bars hold for all.
"""
import json
import re
import subprocess
import sys

REGISTERS_MAX = 64
# The last template argument of a codec kernel is whether it streams in vectors.
STREAMING = re.compile(r"(true|\(bool\)1)>\(")
WORSE_IF_GREATER = ("registers", "spill_bytes", "stack_bytes", "shared_bytes", "narrow_loads", "narrow_stores")


def demangled(names):
    text = subprocess.run(["c++filt"], input="\n".join(names), capture_output=True, text=True, check=True).stdout
    return dict(zip(names, (line.removeprefix("void ") for line in text.splitlines())))


def read_report(path):
    kernels, current = {}, None
    for line in open(path):
        if found := re.search(r"Compiling entry function '(\S+)' for '(\S+)'", line):
            current = kernels.setdefault((found[1], found[2]), {})
        elif found := re.search(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", line):
            current.update(stack_bytes=int(found[1]), spill_bytes=int(found[2]) + int(found[3]))
        elif found := re.search(r"Used (\d+) registers", line):
            shared = re.search(r"(\d+) bytes smem", line)
            current.update(registers=int(found[1]), shared_bytes=int(shared[1]) if shared else 0)
    return kernels


def bits_of(instruction):
    vector = re.search(r"\.v(\d)\.", instruction)
    width = re.search(r"\.[a-z](\d+)$", instruction)
    return int(width[1]) * (int(vector[1]) if vector else 1)


def read_ptx(path):
    """{(kernel, architecture): widths and banned instructions}"""
    text = open(path).read()
    architecture = re.search(r"\.target (sm_\d+)", text)[1]
    kernels = {}
    for name, body in re.findall(r"\.entry (\S+?)\((.*?)^\}", text, re.S | re.M):
        opcodes = re.findall(r"^\s+(?:@!?%p\d+ )?([a-z][a-z0-9_.]+)\s", body, re.M)
        loads = [bits_of(o) for o in opcodes if o.startswith("ld.global")]
        stores = [bits_of(o) for o in opcodes if o.startswith("st.global")]
        banned = sorted({o for o in opcodes if re.match(r"fma\.|(ld|st)\.local|\w+(\.\w+)*\.f64", o)})
        kernels[(name, architecture)] = {
            "loads_128": sum(b == 128 for b in loads), "stores_128": sum(b == 128 for b in stores),
            "narrow_loads": sum(b < 128 for b in loads), "narrow_stores": sum(b < 128 for b in stores),
            "banned": banned}
    return kernels


def gather(report, ptx_paths):
    facts = read_report(report)
    for path in ptx_paths:
        for key, values in read_ptx(path).items():
            facts[key].update(values)
    names = demangled(sorted({name for name, _ in facts}))
    return {f"{names[name]} {architecture}": values for (name, architecture), values in sorted(facts.items())}


def broken_bars(kernel, facts):
    if facts["spill_bytes"] or facts["stack_bytes"]:
        yield f"uses {facts['spill_bytes']} bytes of spills and {facts['stack_bytes']} of stack"
    if facts["registers"] > REGISTERS_MAX:
        yield f"uses {facts['registers']} registers, above {REGISTERS_MAX}"
    if facts["banned"]:
        yield f"has {', '.join(facts['banned'])}"
    if STREAMING.search(kernel):
        if facts["loads_128"] == 0 or facts["stores_128"] == 0:
            yield "does not load and store in 128 bits"
        # One scale a block: loaded by a decoder, stored by an encoder.
        if facts["narrow_loads"] + facts["narrow_stores"] > 1:
            yield f"has {facts['narrow_loads']} narrow loads and {facts['narrow_stores']} narrow stores"


def compare(facts, table, version):
    errors = [f"{kernel}: {text}" for kernel, values in facts.items() for text in broken_bars(kernel, values)]
    if version != table["nvcc"]:
        print(f"nvcc {version}, table of nvcc {table['nvcc']}: bars checked, numbers not compared")
        return errors
    known = table["kernels"]
    errors += [f"{kernel}: not in the table" for kernel in facts.keys() - known.keys()]
    errors += [f"{kernel}: in the table, not in the build" for kernel in known.keys() - facts.keys()]
    for kernel in facts.keys() & known.keys():
        for field in WORSE_IF_GREATER:
            if facts[kernel][field] > known[kernel][field]:
                errors.append(f"{kernel}: {field} {known[kernel][field]} -> {facts[kernel][field]}")
            elif facts[kernel][field] < known[kernel][field]:
                print(f"better, update the table: {kernel}: {field} {known[kernel][field]} -> {facts[kernel][field]}")
    return errors


def main():
    action, table_path, version, report, *ptx_paths = sys.argv[1:]
    facts = gather(report, ptx_paths)
    if not facts:
        sys.exit("no kernel found in the compiler's report")
    if action == "update":
        table = {"evidence": "static: read from ptxas and PTX; nothing was run on a GPU", "nvcc": version,
                 "kernels": facts}
        with open(table_path, "w") as file:
            file.write(json.dumps(table, indent=1) + "\n")
        return
    errors = compare(facts, json.load(open(table_path)), version)
    print("\n".join(errors) or f"{len(facts)} kernels within the table")
    sys.exit(1 if errors else 0)


if __name__ == "__main__":
    main()
