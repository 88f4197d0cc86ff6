#!/usr/bin/env python3
"""What the compilers say of each CUDA kernel, held against a committed table that may only improve.

    ratchet.py check  TABLE NVCC_VERSION FILE...
    ratchet.py update TABLE NVCC_VERSION FILE...

FILE: ptxas's reports (.txt) and PTX (.ptx), in any order.

This is static evidence: registers, spills, stack and shared memory as ptxas reports them, and the widths of global
loads and stores in the PTX. Nothing is run on a GPU, and nothing here says how fast a kernel is: `scripts/bench gpu` does.

Bars for every kernel: no spills, no stack, at most 64 registers, half of the threads that a multiprocessor can hold
(its registers and shared memory allow it), no fused multiply-add, no float64, no local memory. Kernels that stream load
and store planes in 128 bits, and nothing but a block's scale in fewer; what they ask of memory, in bytes for each
element, stands beside the least that the codec needs (of one source). The planes of topk are too small for that, 22
bytes a block each: its kernels load and store values in 128 bits, a block's planes in one access of the warp, and what is
left of the kept elements in another. Numbers of one compiler version are compared only
with the same version; the bars hold for all.
"""
import json
import re
import subprocess
import sys

REGISTERS_MAX = 64
OCCUPANCY_MIN = 0.5
THREADS = 256  # of a block, in every kernel
# Of a multiprocessor: registers, threads, shared memory (CUDA C++ programming guide, compute capabilities).
MULTIPROCESSORS = {"sm_80": (65536, 2048, 167936), "sm_90": (65536, 2048, 233472), "sm_100": (65536, 2048, 233472)}
# Kernels that take any count and alignment have the last value of their Mode, Store or Shape.
ANY_SHAPE = re.compile(r"Mode\)3|Store\)2|FoldShape\)1|AccumulationShape\)1|DigestShape\)1")
# Kernels of an example are there to be read: of the bars only spills, stack, registers and occupancy are theirs.
EXAMPLE = re.compile(r"^gpt::")
SPARSE = re.compile(r"_topk_kernel<")
# Codec: (how it is named in a kernel, elements a lane, words a lane, bytes of a scale, elements that share it)
LANES = {"int8": ("Int8, 8", 16, 4, 4, 256), "bf16": ("Bf16, 16", 16, 8, 0, 1), "fp16": ("Fp16, 16", 16, 8, 0, 1),
         "bf16, feedback": ("Bf16, 8", 8, 4, 0, 1), "fp16, feedback": ("Fp16, 8", 8, 4, 0, 1),
         "int4": ("Int4, 4", 16, 2, 2, 128), "mxfp8": ("Mxfp8, 8", 16, 4, 1, 32), "1-bit": ("OneBitLanes", 32, 1, 4, 1024), "1-bit, decoding": ("OneBitDecodeLanes", 16, 0.5, 4, 1024),
         "shared16": ("Shared16, 16", 16, 8, 4, 256), "topk": ("_topk_kernel<", 32, 0, 44, 1024)}
WORSE_IF_GREATER = ("registers", "spill_bytes", "stack_bytes", "shared_bytes", "narrow_loads", "narrow_stores",
                    "bytes_per_element")


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


def occupancy(architecture, registers, shared_bytes):
    """Threads that fit on a multiprocessor, as a part of the most; registers are given to warps in units of 256."""
    registers_max, threads_max, shared_max = MULTIPROCESSORS[architecture]
    blocks = registers_max // (-(-registers * 32 // 256) * 256 * (THREADS // 32))
    if shared_bytes:
        blocks = min(blocks, shared_max // (shared_bytes + 1024))
    return min(blocks * THREADS, threads_max) / threads_max


def traffic(kernel, facts):
    """(bytes asked for, least bytes) of each element. Lanes that share an access of 128 bits share its bytes."""
    match = [values for name, *values in LANES.values() if name in kernel]
    if not match or ANY_SHAPE.search(kernel):
        return None
    per_lane, words, scale_bytes, scale_elements = match[0]
    code_bytes = 4 * words / per_lane + scale_bytes / scale_elements
    times = 2 if "recode" in kernel else 1  # that codes are accessed
    value_accesses = facts["loads_128"] + facts["stores_128"] - (times * max(1, int(words / 4)) if words else 0)
    asked = value_accesses * 16 / per_lane + times * code_bytes
    least = times * code_bytes + (0 if "recode" in kernel else 12 if "Mode)2" in kernel else 8 if "Store)1" in kernel else 4)
    return round(asked, 3), round(least, 3)


def gather(paths):
    facts = {}
    for path in paths:
        if path.endswith(".txt"):
            facts.update(read_report(path))
    for path in paths:
        if not path.endswith(".ptx"):
            continue
        for key, values in read_ptx(path).items():
            facts[key].update(values)
    names = demangled(sorted({name for name, _ in facts}))
    for (name, architecture), values in facts.items():
        values["occupancy"] = occupancy(architecture, values["registers"], values["shared_bytes"])
        if moved := traffic(names[name], values):
            values["bytes_per_element"], values["bytes_per_element_least"] = moved
    return {f"{names[name]} {architecture}": values for (name, architecture), values in sorted(facts.items())}


def broken_bars(kernel, facts):
    if facts["spill_bytes"] or facts["stack_bytes"]:
        yield f"uses {facts['spill_bytes']} bytes of spills and {facts['stack_bytes']} of stack"
    if facts["registers"] > REGISTERS_MAX:
        yield f"uses {facts['registers']} registers, above {REGISTERS_MAX}"
    # PTX may still name local memory that ptxas has turned into registers: then its report has no stack.
    banned = [op for op in facts["banned"] if facts["stack_bytes"] or not re.match(r"(ld|st)\.local", op)]
    if banned and not EXAMPLE.match(kernel):
        yield f"has {', '.join(banned)}"
    if facts["occupancy"] < OCCUPANCY_MIN:
        yield f"fills {facts['occupancy']:.0%} of a multiprocessor"
    if EXAMPLE.match(kernel):
        return
    if not ANY_SHAPE.search(kernel):
        sparse = bool(SPARSE.search(kernel))
        if (facts["loads_128"] == 0 or facts["stores_128"] == 0) and not sparse:
            yield "does not load and store in 128 bits"
        # One scale a block: loaded by a decoder, stored by an encoder, and loaded by one that shares it.
        scales = 2 if "recode" in kernel and "Shared16" in kernel else 1
        if facts["narrow_loads"] > scales or facts["narrow_stores"] > (2 if sparse else 1):
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
            if field not in facts[kernel]:
                continue
            if facts[kernel][field] > known[kernel][field]:
                errors.append(f"{kernel}: {field} {known[kernel][field]} -> {facts[kernel][field]}")
            elif facts[kernel][field] < known[kernel][field]:
                print(f"better, update the table: {kernel}: {field} {known[kernel][field]} -> {facts[kernel][field]}")
    return errors


def main():
    action, table_path, version, *paths = sys.argv[1:]
    facts = gather(paths)
    if not facts:
        sys.exit("no kernel found in the compiler's report")
    if action == "update":
        table = {"evidence": "static: read from ptxas and PTX", "nvcc": version,
                 "kernels": facts}
        with open(table_path, "w") as file:
            file.write(json.dumps(table, indent=1) + "\n")
        return
    errors = compare(facts, json.load(open(table_path)), version)
    print("\n".join(errors) or f"{len(facts)} kernels within the table")
    sys.exit(1 if errors else 0)


if __name__ == "__main__":
    main()
