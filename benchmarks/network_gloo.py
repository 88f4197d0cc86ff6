"""One rank of Gloo, by torch.distributed, among the competitors of bench_network.
usage: network_gloo.py LIBRARY RANK RANKS ADDRESS CONTROL"""
import ctypes
import sys

import torch
import torch.distributed as dist

PORT = 29400
ALL_REDUCE, REDUCE_SCATTER, ALL_GATHER, BROADCAST = range(4)  # Op in turns.h


def tensor(address, count):
    return torch.frombuffer((ctypes.c_float * count).from_address(address), dtype=torch.float32)


def operate(op, source, target, in_count, out_count):
    given, result = tensor(source, in_count), tensor(target, out_count)
    if op == ALL_REDUCE:  # Gloo's is in place
        result.copy_(given)
        dist.all_reduce(result)
    elif op == REDUCE_SCATTER:
        dist.reduce_scatter_tensor(result, given)
    elif op == ALL_GATHER:
        dist.all_gather_into_tensor(result, given)
    elif op == BROADCAST:
        dist.broadcast(result, 0)
    else:
        dist.barrier()


def main():
    path, rank, ranks, address, control = sys.argv[1:]
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://{address}:{PORT}", rank=int(rank), world_size=int(ranks))
    callback = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_size_t)
    ctypes.CDLL(path).bench_serve(control.encode(), int(rank), int(ranks), callback(operate))
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
