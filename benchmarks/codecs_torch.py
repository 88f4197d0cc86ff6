"""PyTorch's casts and int8 quantisation, beside bench_codecs (on one thread) or bench_gpu, and with their values and blocks.

    codecs_torch.py ROUNDS FILE [cuda]    FILE: of `bench_codecs values MIB`; cuda: on the device, for bench_gpu

Prints, for each round and case: CASE|WAY|GIGABYTES_OF_FLOAT32_A_SECOND, or CODEC|WAY|missing REASON, and ends with 1 if what a way decodes is too far from the
values. Casts and arithmetic write to memory that is there; quantize_per_channel and dequantize cannot. What a block's scale
takes to find counts, as with ours."""
import os
import sys
import time

import torch

BLOCK = 256  # of int8 in kernels/


def scales_of(blocks, **options):
    """Faster here than aminmax, abs or a norm."""
    return torch.maximum(blocks.amax(1, **options), -blocks.amin(1, **options)) / 127


class Int8Arithmetic:
    """What a user would write with tensors: faster than PyTorch's quantised tensors, which write as they please."""

    def __init__(self, values):
        self.blocks = values.view(-1, BLOCK)
        self.scaled, self.decoded = torch.empty_like(self.blocks), torch.empty_like(self.blocks)
        self.quantised = torch.empty(self.blocks.shape, dtype=torch.int8, device=values.device)

    def encode(self):
        self.scales = scales_of(self.blocks, keepdim=True)
        torch.mul(self.blocks, 1 / self.scales, out=self.scaled)
        self.quantised.copy_(self.scaled.round_())

    def decode(self):
        return torch.mul(self.quantised, self.scales, out=self.decoded)


class Int8Compiled:
    """The same arithmetic as one kernel that torch.compile makes, where this PyTorch has it."""

    def __init__(self, values):
        self.blocks = values.view(-1, BLOCK)
        self.encoder, self.decoder = torch.compile(self._encode), torch.compile(self._decode)

    @staticmethod
    def _encode(blocks):
        scales = blocks.abs().amax(1, keepdim=True) / 127
        return scales, torch.round(blocks * (1 / scales)).to(torch.int8)

    @staticmethod
    def _decode(scales, quantised):
        return quantised.float() * scales

    def encode(self):
        self.scales, self.quantised = self.encoder(self.blocks)

    def decode(self):
        return self.decoder(self.scales, self.quantised)


class Int8Quantised:
    def __init__(self, values):
        self.blocks = values.view(-1, BLOCK)
        self.zeros = torch.zeros(len(self.blocks), dtype=torch.int64, device=values.device)

    def encode(self):
        self.scales = scales_of(self.blocks)
        self.quantised = torch.quantize_per_channel(self.blocks, self.scales, self.zeros, 0, torch.qint8)

    def decode(self):
        return self.quantised.dequantize()


class Cast:
    def __init__(self, values, dtype):
        self.values, self.decoded = values, torch.empty_like(values)
        self.narrow = torch.empty(values.shape, dtype=dtype, device=values.device)

    def encode(self):
        self.narrow.copy_(self.values)

    def decode(self):
        return self.decoded.copy_(self.narrow)


def is_right(values, decoded, codec, way):
    """A part in a thousand for the arithmetic that finds the scale."""
    if codec == "int8":
        bound = way.scales.view(-1, 1) / 2 * 1.001
        return bool(((decoded - values.view(-1, BLOCK)).abs() <= bound).all())
    bound = values.abs() * (2.0 ** -8 if codec == "bf16" else 2.0 ** -11) + 2.0 ** -25  # of fp16's least numbers
    return bool(((decoded - values).abs() <= bound).all())


def main():
    rounds, path = int(sys.argv[1]), sys.argv[2]
    torch.set_num_threads(1)
    on_device = len(sys.argv) > 3
    values = torch.from_file(path, size=os.path.getsize(path) // 4).clone()
    if on_device:
        values = values.to(sys.argv[3])
    ways = [("bf16", "PyTorch copy_", Cast(values, torch.bfloat16)), ("fp16", "PyTorch copy_", Cast(values, torch.float16)),
            ("int8", "PyTorch quantize_per_channel", Int8Quantised(values)), ("int8", "PyTorch arithmetic", Int8Arithmetic(values))]
    if on_device:
        ways.append(("int8", "PyTorch compiled", Int8Compiled(values)))
    finish = torch.cuda.synchronize if on_device else lambda: None
    # As bench_codecs: in the cache one pass is too short for the clock; and as bench_gpu.
    repeats = 16 if on_device else max(1, (4 << 20) // values.numel())
    for codec, name, way in list(ways):
        try:
            way.encode()
        except Exception as error:  # of many kinds where a compiler is missing
            if not isinstance(way, Int8Compiled):
                raise
            print(f"{codec}|{name}|missing {str(error).splitlines()[0] if str(error) else type(error).__name__}".replace("\n", " "))
            ways.remove((codec, name, way))
            continue
        if not is_right(values, way.decode(), codec, way):
            sys.exit(f"{name} decoded wrong values of {codec}")
    for _ in range(rounds):
        for codec, name, way in ways:
            for task in ("encode", "decode"):
                run = getattr(way, task)
                finish()
                began = time.perf_counter()
                for _ in range(repeats):
                    run()
                finish()
                took = time.perf_counter() - began
                print(f"{codec} {task}|{name}|{4 * values.numel() * repeats / 1e9 / took:.4f}")


main()
