"""What bench_recovery does with Muster, for torchrun: replicated state, a reduction and an update of a part of it in each step,
a checkpoint every 25 steps, which every start loads. Elastic restarts repeat what was not saved.

    recovery_torch.py STATE_BYTES UPDATED_BYTES SLEEP_MS FOLDER"""
import os
import sys
import time

import torch
import torch.distributed as dist

EVERY = 25


def main():
    state_bytes, updated_bytes, sleep_ms = (int(word) for word in sys.argv[1:4])
    folder = sys.argv[4]
    checkpoint = os.path.join(folder, "checkpoint.pt")
    dist.init_process_group("gloo")
    rank, restart = dist.get_rank(), os.environ["TORCHELASTIC_RESTART_COUNT"]
    weights, step = torch.zeros(state_bytes // 4), 0
    if os.path.exists(checkpoint):
        saved = torch.load(checkpoint)
        weights.copy_(saved["weights"])
        step = saved["step"]
    part = weights[:updated_bytes // 4]
    with open(os.path.join(folder, f"updates-{os.getpid()}"), "w", buffering=1) as log:
        while True:
            gradient = torch.full_like(part, 1e-3)
            time.sleep(sleep_ms / 1000)
            dist.all_reduce(gradient)
            part -= gradient
            step += 1
            log.write(f"{restart} {step} {time.clock_gettime_ns(time.CLOCK_BOOTTIME)} {os.getpid()}\n")
            if rank == 0 and step % EVERY == 0:
                torch.save({"weights": weights, "step": step}, checkpoint + ".tmp")
                os.replace(checkpoint + ".tmp", checkpoint)


main()
