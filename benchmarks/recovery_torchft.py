"""What bench_recovery does with Muster, for torchft: replicated state, a reduction and an update of a part of it in each step. Each
process is a replica group of its own; whoever joins is sent the state by a peer.

    recovery_torchft.py lighthouse                                                    serves, and says "serves ADDRESS"
    recovery_torchft.py STATE_BYTES UPDATED_BYTES SLEEP_MS FOLDER LIGHTHOUSE          one replica

A replica writes FOLDER/updates-PID: a line "STEP AT_NS MEMBERS" (CLOCK_BOOTTIME) when it has committed a step, and "wrong" in place
of one whose mean was."""
import logging
import os
import signal
import sys
import time
from datetime import timedelta

import torch
import torch.distributed as dist
from torchft import Manager, ProcessGroupGloo
from torchft.coordination import LighthouseServer

GRADIENT = 2.0 ** -10  # so that a mean is exact
# What makes it fastest: who has died is waited for as briefly as its parts allow. With half of this join timeout it formed no
# quorum of all eight on two cores, with ten times as much, or with LOST_AFTER of a second, it took 1 to 1.3 s.
JOIN_TIMEOUT_MS, TICK_MS, HEARTBEAT_TIMEOUT_MS = 100, 10, 1000
HEARTBEAT = timedelta(milliseconds=50)
PATIENCE = timedelta(seconds=10)
LOST_AFTER = timedelta(seconds=0.15)  # who is not connected with the dead one waits so long for those who are


def serve():
    lighthouse = LighthouseServer(bind="[::]:0", min_replicas=1, join_timeout_ms=JOIN_TIMEOUT_MS, quorum_tick_ms=TICK_MS,
                                  heartbeat_timeout_ms=HEARTBEAT_TIMEOUT_MS)
    print("serves", lighthouse.address(), flush=True)
    signal.pause()


def replicate(state_bytes, updated_bytes, sleep_ms, folder, lighthouse):
    torch.set_num_threads(1)
    logging.disable(logging.CRITICAL)
    weights = torch.zeros(state_bytes // 4)
    part = weights[:updated_bytes // 4]
    gradient = torch.empty_like(part)
    store = dist.TCPStore(host_name="localhost", port=0, is_master=True, wait_for_workers=False)
    manager = Manager(pg=ProcessGroupGloo(timeout=LOST_AFTER), load_state_dict=lambda state: weights.copy_(state["weights"]),
                      state_dict=lambda: {"weights": weights}, min_replica_size=1, timeout=PATIENCE, quorum_timeout=PATIENCE,
                      rank=0, world_size=1, store_addr="localhost", store_port=store.port, lighthouse_addr=lighthouse,
                      heartbeat_interval=HEARTBEAT, init_sync=False, hostname="localhost")
    with open(os.path.join(folder, f"updates-{os.getpid()}"), "w", buffering=1) as log:
        while True:
            manager.start_quorum()
            time.sleep(sleep_ms / 1000)
            gradient.fill_(GRADIENT)
            manager.allreduce(gradient).wait()
            if not manager.should_commit():
                continue
            if manager.is_participating() and not bool((gradient == GRADIENT).all()):
                log.write("wrong\n")
            part -= gradient
            log.write(f"{manager.current_step()} {time.clock_gettime_ns(time.CLOCK_BOOTTIME)} {manager.num_participants()}\n")


if __name__ == "__main__":
    if sys.argv[1] == "lighthouse":
        serve()
    else:
        replicate(*(int(word) for word in sys.argv[1:4]), *sys.argv[4:6])
