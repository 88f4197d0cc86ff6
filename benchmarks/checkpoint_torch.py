"""One rank of PyTorch's ways to save and load, beside bench_checkpoint and timed like it:

    checkpoint_torch.py MODE FOLDER MIB RANK RANKS PORT

MODE: torch_save, torch_load (a file of each rank, with torch.save), dcp_save, dcp_load (torch's distributed checkpoint). Every
rank has its part of 64 float32 tensors of MIB together. Prints "seconds SECONDS" of the slowest rank, from when all were ready
to when what it wrote is durable; or "missing REASON", where this torch has no such way. What is loaded is not in the page
cache, and is compared."""
import dataclasses
import os
import sys
import time

import torch
import torch.distributed as dist

TENSORS, COLUMNS = 64, 1024


# ---- torch's distributed checkpoint

def open_checkpoint():
    """Its module, and how that saves and loads; raises ImportError."""
    if not hasattr(torch.distributed, "_shard"):
        import_shards()
    try:
        import torch.distributed.checkpoint as module
    except ModuleNotFoundError:
        import torch.distributed._shard.checkpoint as module  # torch 1.13
    save, load = getattr(module, "save", None), getattr(module, "load", None)
    return module, save or module.save_state_dict, load or module.load_state_dict


def import_shards():
    """torch 1.13 was not made for Python 3.11, which refuses an object that has no hash as the default of a field: its classes
    get one while they are imported."""
    plain = dataclasses.dataclass

    def hashable(cls=None, /, **options):
        if cls is None:
            return lambda one: hashable(one, **options)
        return plain(cls, **({} if "__hash__" in vars(cls) else {"unsafe_hash": True}), **options)

    dataclasses.dataclass = hashable
    try:
        import torch.distributed._shard.sharded_tensor  # noqa: F401
    except ValueError as error:
        raise ImportError(str(error)) from None
    finally:
        dataclasses.dataclass = plain


def sharded(parts, rank, ranks):
    """Every part as this rank's rows of a tensor of all."""
    from torch.distributed._shard.metadata import ShardMetadata
    from torch.distributed._shard.sharded_tensor import Shard, init_from_local_shards
    state = {}
    for name, part in parts.items():
        rows = len(part)
        place = ShardMetadata([rank * rows, 0], [rows, COLUMNS], f"rank:{rank}/cpu")
        state[name] = init_from_local_shards([Shard(part, place)], (rows * ranks, COLUMNS))
    return state


# ---- a rank

def parts_of(mib, rank, ranks):
    """Random bytes, not to be compressed away, the same in every process that asks."""
    rows = (mib << 20) // 4 // TENSORS // COLUMNS // ranks
    chance = torch.Generator().manual_seed(rank)
    return {f"t{i}": torch.randint(-2**31, 2**31 - 1, (rows, COLUMNS), generator=chance, dtype=torch.int32).view(torch.float32)
            for i in range(TENSORS)}


def sync_folder(folder):
    file = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    os.fsync(file)
    os.close(file)


def drop_from_cache(folder):
    for name in os.listdir(folder):
        file = os.open(os.path.join(folder, name), os.O_RDONLY)
        os.fdatasync(file)
        os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(file)


def torch_save(folder, parts, rank, ranks):
    def run():
        with open(os.path.join(folder, f"rank-{rank}.pt"), "wb") as file:
            torch.save(parts, file)
            file.flush()
            os.fsync(file.fileno())
        sync_folder(folder)
    return run, None


def torch_load(folder, parts, rank, ranks):
    """Without the copy into the program's memory that would follow."""
    found = {}
    return lambda: found.update(torch.load(os.path.join(folder, f"rank-{rank}.pt"))), found


def dcp_save(folder, parts, rank, ranks):
    module, save, _ = open_checkpoint()
    state = sharded(parts, rank, ranks)

    def run():
        # A file of each rank is the fewest to sync.
        save(state, storage_writer=module.FileSystemWriter(folder, single_file_per_rank=True, sync_files=True))
        if rank == 0:
            sync_folder(folder)
    return run, None


def dcp_load(folder, parts, rank, ranks):
    module, _, load = open_checkpoint()
    found = {name: torch.zeros_like(part) for name, part in parts.items()}
    state = sharded(found, rank, ranks)
    return lambda: load(state, storage_reader=module.FileSystemReader(folder)), found


MODES = {one.__name__: one for one in (torch_save, torch_load, dcp_save, dcp_load)}


def main():
    mode, folder = sys.argv[1:3]
    mib, rank, ranks, port = (int(word) for word in sys.argv[3:])
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=ranks)
    parts = parts_of(mib, rank, ranks)
    try:
        run, found = MODES[mode](folder, parts, rank, ranks)
    except ImportError as error:
        print(f"missing {error}")
        return
    if found is not None and rank == 0:
        drop_from_cache(folder)
    dist.barrier()
    began = time.perf_counter()
    run()
    seconds = torch.tensor([time.perf_counter() - began])
    for name, part in parts.items() if found is not None else ():
        if not torch.equal(found[name].view(torch.int32), part.view(torch.int32)):
            sys.exit(f"{mode} gave a wrong {name}")
    dist.all_reduce(seconds, op=dist.ReduceOp.MAX)
    print(f"seconds {float(seconds):.4f}")


main()
