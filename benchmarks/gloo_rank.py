"""One rank of Gloo, by torch.distributed, among the competitors of bench_collectives and bench_network.
usage: gloo_rank.py LIBRARY RANK RANKS ADDRESS PORT CONTROL"""
import ctypes
import functools
import os
import sys
import traceback

import torch
import torch.distributed as dist

ALL_REDUCE, REDUCE_SCATTER, ALL_GATHER, BROADCAST = range(4)  # Op in turns.h


@functools.lru_cache(maxsize=64)  # buffers stay through a turn, and what a tensor costs is not Gloo's
def tensor(address, count):
    return torch.frombuffer((ctypes.c_float * count).from_address(address), dtype=torch.float32)


@functools.lru_cache(maxsize=64)
def parts(address, count, each):
    return list(tensor(address, count).split(each))


@functools.cache
def has_one(operation, in_count, out_count):
    """Whether Gloo has an operation on whole tensors; older ones refuse it at once."""
    try:
        operation(torch.zeros(out_count), torch.zeros(in_count))
    except RuntimeError as error:
        if "support" not in str(error):
            raise
        return False
    return True


def operate(op, source, target, in_count, out_count):
    """Whether Gloo has the operation."""
    ranks = dist.get_world_size()
    if op == ALL_REDUCE:  # in place, and so is what it is given (participant.cpp)
        dist.all_reduce(tensor(target, out_count))
    elif op == REDUCE_SCATTER:
        if not has_one(dist.reduce_scatter_tensor, ranks, 1):
            return False
        dist.reduce_scatter_tensor(tensor(target, out_count), tensor(source, in_count))
    elif op == ALL_GATHER:
        if has_one(dist.all_gather_into_tensor, 1, ranks):
            dist.all_gather_into_tensor(tensor(target, out_count), tensor(source, in_count))
        else:
            dist.all_gather(parts(target, out_count, in_count), tensor(source, in_count))
    elif op == BROADCAST:
        dist.broadcast(tensor(target, out_count), 0)
    else:
        dist.barrier()
    return True


def operate_or_end(*arguments):
    try:
        return operate(*arguments)
    except BaseException:  # ctypes would print it and go on
        traceback.print_exc()
        os._exit(1)


def main():
    path, rank, ranks, address, port, control = sys.argv[1:]
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://{address}:{port}", rank=int(rank), world_size=int(ranks))
    callback = ctypes.CFUNCTYPE(ctypes.c_bool, ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_size_t)
    ctypes.CDLL(path).bench_serve(control.encode(), int(rank), int(ranks), callback(operate_or_end))
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
