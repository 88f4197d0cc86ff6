"""What bench_recovery does with Muster, for torchrun: replicated state, a reduction and an update of a part of it in each step,
a checkpoint every 25 steps, which every start loads. Elastic restarts repeat what was not saved.

    recovery_torch.py STATE_BYTES UPDATED_BYTES SLEEP_MS FOLDER

Each process writes FOLDER/updates-PID: a line "STEP AT_NS" (CLOCK_BOOTTIME) when it has made a step, and "wrong" in place of
one whose sum was."""
import os
import sys
import time

import torch
import torch.distributed as dist

EVERY = 25
GRADIENT = 2.0 ** -10  # so that a sum is exact


def main():
    state_bytes, updated_bytes, sleep_ms = (int(word) for word in sys.argv[1:4])
    folder = sys.argv[4]
    checkpoint = os.path.join(folder, "checkpoint.pt")
    dist.init_process_group("gloo")
    rank, ranks = dist.get_rank(), dist.get_world_size()
    weights, step = torch.zeros(state_bytes // 4), 0
    if os.path.exists(checkpoint):
        saved = torch.load(checkpoint)
        weights.copy_(saved["weights"])
        step = saved["step"]
    part = weights[:updated_bytes // 4]
    gradient = torch.empty_like(part)
    with open(os.path.join(folder, f"updates-{os.getpid()}"), "w", buffering=1) as log:
        while True:
            time.sleep(sleep_ms / 1000)
            gradient.fill_(GRADIENT)
            dist.all_reduce(gradient)
            if not bool((gradient == ranks * GRADIENT).all()):
                log.write("wrong\n")
            part -= gradient
            step += 1
            log.write(f"{step} {time.clock_gettime_ns(time.CLOCK_BOOTTIME)}\n")
            if rank == 0 and step % EVERY == 0:
                torch.save({"weights": weights, "step": step}, checkpoint + ".tmp")
                os.replace(checkpoint + ".tmp", checkpoint)


main()
