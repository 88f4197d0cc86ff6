#!/usr/bin/env python3
"""Golden codec messages, computed from docs/formats/codec.md alone, apart from the C++ code.

    golden.py print          writes the messages, as they are committed in golden.txt
    golden.py check FILE     compares with FILE

A change of these bytes is a new version of the format. Python's floats are float64: one operation on float32 values,
rounded to float32 afterwards, is the correctly rounded float32 operation.
"""
import math
import struct
import sys

SEED, STEP, TENSOR, LANE, STAGE = 0x0123456789ABCDEF, 123456789, 77, 3, 1
NAN = 0x7FC00000


def f32(x):
    return struct.unpack("<f", struct.pack("<f", x))[0]


def bits(x):
    return struct.unpack("<I", struct.pack("<f", x))[0]


def unbits(b):
    return struct.unpack("<f", struct.pack("<I", b))[0]


def philox(counter, key):
    c, k = list(counter), list(key)
    for _ in range(10):
        p0, p1 = 0xD2511F53 * c[0], 0xCD9E8D57 * c[2]
        c = [(p1 >> 32) ^ c[1] ^ k[0], p1 & 0xFFFFFFFF, (p0 >> 32) ^ c[3] ^ k[1], p0 & 0xFFFFFFFF]
        k = [(k[0] + 0x9E3779B9) & 0xFFFFFFFF, (k[1] + 0xBB67AE85) & 0xFFFFFFFF]
    return c


def halfword(index):
    group = index // 8
    words = philox([group & 0xFFFFFFFF, (group >> 32 & 0xFFFF) << 16 | LANE, STEP, TENSOR * 4 + STAGE],
                   [SEED & 0xFFFFFFFF, SEED >> 32])
    return words[index % 8 // 2] >> 16 * (index % 2) & 0xFFFF


def to_integer(y, index, stochastic):
    """Rounds half to even, or ⌊y + u⌋ with the float32 sum."""
    return math.floor(f32(y + (halfword(index) + 0.5) / 65536)) if stochastic else round(y)


def clamp(q, most):
    return max(-most, min(most, q))


def minifloat(x, mantissa, bias, index, stochastic):
    """The code of |x| in a small floating-point format, from the definition: a multiple of the step at |x|."""
    x = abs(x)
    exponent = max(math.frexp(x)[1] - 1, 1 - bias) if x else 1 - bias
    step = math.ldexp(1.0, exponent - mantissa)
    if not stochastic:
        count = round(x / step)
    elif exponent == 1 - bias and x < math.ldexp(1.0, 1 - bias):
        count = to_integer(f32(x / step), index, True)
    else:
        dropped = 23 - mantissa  # bits of float32
        h = halfword(index)
        r = h >> 16 - dropped if dropped <= 16 else h << dropped - 16 | 1 << dropped - 17
        count = math.floor(x / step + math.ldexp(r, -dropped))
    if count == 1 << mantissa + 1:
        count, exponent = count >> 1, exponent + 1
    if count < 1 << mantissa:
        return count
    return (exponent + bias << mantissa) + count - (1 << mantissa)


def sign_of(x, place):
    return (1 << place) if math.copysign(1.0, x) < 0 else 0


def float16(values, first, stochastic, mantissa, bias):
    codes = [minifloat(x, mantissa, bias, first + i, stochastic) | sign_of(x, 15) for i, x in enumerate(values)]
    return b"", struct.pack(f"<{len(codes)}H", *codes)


def blocks(values, size):
    return [(i, values[i:i + size]) for i in range(0, len(values), size)]


def int8(values, first, stochastic):
    scales, payload = b"", b""
    for start, block in blocks(values, 256):
        a = max(abs(x) for x in block)
        zero = a < 2.0 ** -100
        scales += struct.pack("<f", 0.0 if zero else min(f32(a / 127), float.fromhex("0x1.020406p121")))
        inverse = 0.0 if zero else f32(127 / a)
        for i, x in enumerate(block):
            q = clamp(to_integer(f32(x * inverse), first + start + i, stochastic), 127)
            payload += struct.pack("<b", q)
    return scales, payload


def hadamard(x):
    stride = 1
    while stride < len(x):
        for i in range(len(x)):
            if not i & stride:
                x[i], x[i + stride] = f32(x[i] + x[i + stride]), f32(x[i] - x[i + stride])
        stride *= 2


def int4(values, first, stochastic):
    scales, payload = b"", b""
    for start, block in blocks(values, 128):
        number = (first + start) // 128
        words = philox([number & 0xFFFFFFFF, (number >> 32 & 0xFFFF) << 16, STEP, TENSOR * 4],
                       [SEED & 0xFFFFFFFF, SEED >> 32 ^ 0x4D414448])
        x = [(-v if words[i // 32] >> i % 32 & 1 else v) / 128 for i, v in enumerate(block + [0.0] * (128 - len(block)))]
        hadamard(x)
        a = max(abs(v) for v in x)
        wire = 0 if a < 2.0 ** -100 else bits(f32(a / 7)) + 0xFFFF >> 16
        scales += struct.pack("<H", wire)
        inverse = f32(1 / unbits(wire << 16)) if wire else 0.0
        codes = [clamp(to_integer(f32(v * inverse), first + start + i, stochastic), 7) & 15 for i, v in enumerate(x)]
        payload += bytes(low | high << 4 for low, high in zip(codes[::2], codes[1::2]))
    return scales, payload


def mxfp8(values, first, stochastic):
    scales, payload = b"", b""
    for start, block in blocks(values, 32):
        a = max(abs(x) for x in block)
        power = None if a < 2.0 ** -100 else next(k for k in range(-127, 128) if 448 * 2.0 ** k >= a)
        scales += bytes([0 if power is None else power + 127])
        for i, x in enumerate(block):
            y = 0.0 if power is None else f32(x / 2.0 ** power)
            payload += bytes([minifloat(y, 3, 7, first + start + i, stochastic) | sign_of(x, 7)])
    return scales, payload


def halved(x):
    while len(x) > 1:
        x = [f32(x[i] + x[i + len(x) // 2]) for i in range(len(x) // 2)]
    return x[0]


def one_bit(values, first, stochastic):
    scales, payload = b"", b""
    for _, block in blocks(values, 1024):
        padded = [abs(x) for x in block] + [0.0] * (1024 - len(block))
        mean = f32(halved([halved(padded[i:i + 32]) for i in range(0, 1024, 32)]) / len(block))
        scales += struct.pack("<f", mean)
        signs = sum(1 << i for i, x in enumerate(block) if mean == 0 or x >= 0)
        payload += signs.to_bytes((len(block) + 7) // 8, "little")
    return scales, payload


def shared16(values, first, stochastic, adders=3):
    scales, payload = b"", b""
    for start, block in blocks(values, 256):
        a = max(abs(x) for x in block)
        scale = 0.0 if a < 2.0 ** -100 else f32(a / (32767 // adders - 1))
        scales += struct.pack("<f", scale)
        inverse = f32(1 / scale) if scale else 0.0
        for i, x in enumerate(block):
            q = clamp(to_integer(f32(x * inverse), first + start + i, stochastic), 32767)
            payload += struct.pack("<h", q)
    return scales, payload


def topk(values, first, stochastic):
    scales, payload = b"", b""
    for _, block in blocks(values, 1024):
        kept = sorted(sorted(range(len(block)), key=lambda i: (-abs(block[i]), i))[:math.ceil(len(block) * 11 / 1024)])
        scales += struct.pack(f"<{len(kept)}H", *kept)
        payload += float16([block[i] for i in kept], first, False, 7, 127)[1]
    return scales, payload


CODECS = {"int8": (1, 256, int8), "bf16": (2, 1, lambda *a: float16(*a, 7, 127)),
          "fp16": (3, 1, lambda *a: float16(*a, 10, 15)), "int4": (4, 128, int4), "mxfp8": (5, 32, mxfp8),
          "1-bit": (6, 1024, one_bit), "shared16": (7, 256, shared16), "topk": (8, 1024, topk)}
DETERMINISTIC = ("1-bit", "topk")


def crc32c(data):
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


def padded(plane):
    return plane + bytes(-len(plane) % 16)


def ramp(count):
    return [(i * 37 % 101 - 50) / 8 * (0.001 if i % 7 == 3 else 1) for i in range(count)]


def message(name, count, stochastic):
    number, block, encode = CODECS[name]
    first = 1024
    scales, payload = encode([f32(x) for x in ramp(count)], first, stochastic)
    head = struct.pack("<4sHHBBHIQQIB3xQQI", b"MUSC", 1, 64, number, int(stochastic), LANE, block, count, STEP, TENSOR,
                       STAGE, first, 0, 0)
    planes = padded(scales) + padded(payload)
    return head + struct.pack("<I", crc32c(head + planes)) + planes


def lines():
    for name in CODECS:
        for stochastic in (False, True):
            if name in DETERMINISTIC and stochastic:
                continue
            # Of few elements top-k keeps one, or four of which two are equal: 2500 end in a shorter block.
            for count in (21, 300, 2500) if name == "topk" else (21, 300):
                rounding = "stochastic" if stochastic else "nearest"
                yield f"{name} {rounding} {count} {message(name, count, stochastic).hex()}\n"


if __name__ == "__main__":
    text = "".join(lines())
    if sys.argv[1] == "print":
        sys.stdout.write(text)
    elif open(sys.argv[2]).read() != text:
        sys.exit(f"{sys.argv[2]} is not what docs/formats/codec.md defines")
