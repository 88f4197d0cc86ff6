// Control of the fake CUDA run time and the fake NCCL, which stand in for the real libraries at link level.
//
// The fakes keep what callers may rely on: streams are ordered queues run by threads of their own, copies,
// events, host functions and kernels are asynchronous, NCCL is non-blocking, its ranks are threads or
// processes, a collective ends when all ranks have come or the communicator is aborted, a send when it is
// received. They also watch the caller; what it does wrong is counted as a violation. Kernels run through the
// SIMT shim, once registered.
#pragma once

#include <cstdint>
#include <functional>
#include <tuple>

#include "kernels/simt_runtime.h"

#define MUSTER_FAKE __attribute__((visibility("default")))

namespace muster::fakes {

// Calls are counted from 1 since the last reset; every function of the library that can fail counts.
// Functions that release something do so even where they are made to fail.
struct Injection {
  int call = 0;          // which call; 0: none
  int code = 0;          // what it returns, without effect
  bool stuck = false;    // NCCL: instead, the communicator is in progress from then on, for ever
  bool blocked = false;  // NCCL: instead, it stays inside until nccl_release(), and then works
};

MUSTER_FAKE void cuda_reset();  // counters and sticky errors
MUSTER_FAKE void cuda_inject(const Injection& injection);
MUSTER_FAKE int cuda_calls();
MUSTER_FAKE void cuda_set_devices(int count, int probe_error);  // 0 devices and an error: no driver
MUSTER_FAKE int cuda_live();     // streams, events, allocations and stream threads that exist
MUSTER_FAKE int cuda_abandon();  // ends streams and memory that a caller gave up on purpose; how many
MUSTER_FAKE int cuda_violations();
MUSTER_FAKE int cuda_memory_calls();           // that allocate or free memory, or make or end a stream
MUSTER_FAKE size_t cuda_bytes_to_host();       // that were copied from device to pinned memory
MUSTER_FAKE int cuda_device_of(void* stream);  // −1: no such stream
MUSTER_FAKE int cuda_current_device();         // of the calling thread
MUSTER_FAKE void cuda_enqueue(void* stream,
                              std::function<int()> work);  // an error is sticky, as a kernel's is

MUSTER_FAKE void nccl_reset();
MUSTER_FAKE void nccl_inject(const Injection& injection);
MUSTER_FAKE void nccl_release();
MUSTER_FAKE int nccl_calls();
MUSTER_FAKE int nccl_live();  // communicators and collectives in flight
MUSTER_FAKE int nccl_violations();
MUSTER_FAKE void nccl_set_version(int version);        // what ncclGetVersion answers; 0: the header's
MUSTER_FAKE void nccl_break_rank(int rank, int code);  // an asynchronous error on that rank's communicators

// A kernel as the fake runs it. `prepare` copies the arguments, as CUDA does at a launch.
using Prepared = std::function<int()>;
using Prepare = Prepared (*)(simt::Dim3 grid, simt::Dim3 block, void** arguments, void (*kernel)());
MUSTER_FAKE void cuda_register_kernel(const char* mangled_name, void (*kernel)(), Prepare prepare);

// register_kernel("_Z…", &body): launches of that name run `body` in the shim, lanes in reverse order.
template <typename... Parameters>
void register_kernel(const char* mangled_name, void (*body)(Parameters...)) {
  cuda_register_kernel(
      mangled_name, reinterpret_cast<void (*)()>(body),
      [](simt::Dim3 grid, simt::Dim3 block, void** arguments, void (*kernel)()) -> Prepared {
        const auto typed = reinterpret_cast<void (*)(Parameters...)>(kernel);
        size_t next = 0;
        // Braces: the arguments are taken in order.
        std::tuple<Parameters...> copies{*static_cast<Parameters*>(arguments[next++])...};
        return [=] {
          const auto run = [&] { std::apply(typed, copies); };
          constexpr int kLaunchFailure = 719;
          return simt::launch(grid, block, {simt::Order::kReverse, 0}, run).ok() ? 0 : kLaunchFailure;
        };
      });
}

}  // namespace muster::fakes
