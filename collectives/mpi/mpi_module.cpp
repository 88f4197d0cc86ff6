// libmuster_mpi.so: the only place that knows MPI. Built for Open MPI, and loaded where a program runs it.
// - Nothing here waits without a deadline: what MPI offers only as a blocking call is done by its nonblocking
//   sibling and MPI_Test. A request that was given up cannot be taken back, so its communicator and buffers
//   are left behind for good.
// - PMPI_ names: what is preloaded to watch or replace the program's calls is not for these.
// - MPI is called by the thread that called us, and by no other: any thread level will do.
#include <mpi.h>
#include <time.h>

#include <cstdio>
#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "collectives/mpi/mpi_table.h"

struct muster_mpi_comm {
  MPI_Comm comm = MPI_COMM_NULL;
  int rank = 0;
  int size = 0;
  bool broken = false;
};

namespace {

double clock_s() {
  timespec time{};
  clock_gettime(CLOCK_BOOTTIME, &time);
  return static_cast<double>(time.tv_sec) + static_cast<double>(time.tv_nsec) * 1e-9;
}

struct Failed {
  int status;
  std::string text;
};

void check(int code, const char* call) {
  if (code == MPI_SUCCESS) return;
  char text[MPI_MAX_ERROR_STRING] = {};
  int length = 0;
  PMPI_Error_string(code, text, &length);
  throw Failed{MUSTER_MPI_FAILED, std::string(call) + ": " + text};
}

void wait(MPI_Request& request, double deadline_s, const char* what) {
  for (int looks = 1;; ++looks) {
    int done = 0;
    check(PMPI_Test(&request, &done, MPI_STATUS_IGNORE), what);
    if (done != 0) return;
    if (clock_s() >= deadline_s) {
      throw Failed{MUSTER_MPI_LATE,
                   "not all ranks of the MPI communicator called it by the deadline; call it on all of them"};
    }
    if (looks % 64 == 0) {
      const timespec pause = {0, 20'000};
      nanosleep(&pause, nullptr);
    }
  }
}

void require_usable() {
  const auto refuse = [](const char* text) { throw Failed{MUSTER_MPI_MISUSE, text}; };
  int initialized = 0;
  int finalized = 0;
  PMPI_Initialized(&initialized);
  PMPI_Finalized(&finalized);
  if (initialized == 0)
    refuse("MPI is not initialised; call MPI_Init first, in the program's own, shared Open MPI");
  if (finalized != 0) refuse("MPI is finalised already; make communicators before MPI_Finalize");
  int level = MPI_THREAD_SINGLE;
  int is_main = 1;
  PMPI_Query_thread(&level);
  PMPI_Is_thread_main(&is_main);
  if (level < MPI_THREAD_SERIALIZED && is_main == 0) {
    refuse(
        "MPI was initialised for calls from the main thread only, and this is another; call it from there, "
        "or initialise MPI with MPI_THREAD_SERIALIZED");
  }
}

// The request, and what it uses, are left behind where it does not end in time.
template <typename Kept>
void wait_or_leave(MPI_Request& request, double deadline_s, const char* what, std::unique_ptr<Kept>& kept) {
  try {
    wait(request, deadline_s, what);
  } catch (const Failed&) {
    static_cast<void>(kept.release());
    throw;
  }
}

template <typename Body>
int guarded(char* error, size_t error_size, Body body) {
  try {
    body();
    return MUSTER_MPI_OK;
  } catch (const Failed& failed) {
    std::snprintf(error, error_size, "%s", failed.text.c_str());
    return failed.status;
  } catch (const std::exception& failed) {
    std::snprintf(error, error_size, "%s", failed.what());
    return MUSTER_MPI_FAILED;
  }
}

int open_comm(const void* mpi_comm, double timeout_s, muster_mpi_comm** comm, char* error,
              size_t error_size) {
  return guarded(error, error_size, [&] {
    require_usable();
    const MPI_Comm original = *static_cast<const MPI_Comm*>(mpi_comm);
    if (original == MPI_COMM_NULL)
      throw Failed{MUSTER_MPI_MISUSE, "the communicator is MPI_COMM_NULL; call it on its members only"};
    int inter = 0;
    check(PMPI_Comm_test_inter(original, &inter), "MPI_Comm_test_inter");
    if (inter != 0) {
      throw Failed{MUSTER_MPI_MISUSE,
                   "the communicator is an intercommunicator; merge it first (MPI_Intercomm_merge)"};
    }
    auto opened = std::make_unique<muster_mpi_comm>();
    MPI_Request request = MPI_REQUEST_NULL;
    check(PMPI_Comm_idup(original, &opened->comm, &request), "MPI_Comm_idup");
    wait_or_leave(request, clock_s() + timeout_s, "MPI_Comm_idup", opened);
    PMPI_Comm_set_errhandler(opened->comm, MPI_ERRORS_RETURN);
    PMPI_Comm_rank(opened->comm, &opened->rank);
    PMPI_Comm_size(opened->comm, &opened->size);
    *comm = opened.release();
  });
}

int rank_of(const muster_mpi_comm* comm) { return comm->rank; }
int size_of(const muster_mpi_comm* comm) { return comm->size; }

// Copies of all that a pending request may still read or write.
struct Gathering {
  int size = 0;
  std::vector<char> mine, all;
  std::vector<int> sizes, offsets;
};

int all_gather(muster_mpi_comm* comm, const void* mine, int size, int* sizes, void* all, double timeout_s,
               char* error, size_t error_size) {
  const int status = guarded(error, error_size, [&] {
    const double deadline_s = clock_s() + timeout_s;
    auto gathering = std::make_unique<Gathering>();
    Gathering& g = *gathering;
    g.size = size;
    g.sizes.resize(static_cast<size_t>(comm->size));
    MPI_Request request = MPI_REQUEST_NULL;
    if (all == nullptr) {
      check(PMPI_Iallgather(&g.size, 1, MPI_INT, g.sizes.data(), 1, MPI_INT, comm->comm, &request),
            "MPI_Iallgather");
      wait_or_leave(request, deadline_s, "MPI_Iallgather", gathering);
      std::memcpy(sizes, g.sizes.data(), g.sizes.size() * sizeof(int));
      return;
    }
    g.mine.assign(static_cast<const char*>(mine), static_cast<const char*>(mine) + size);
    g.sizes.assign(sizes, sizes + comm->size);
    int total = 0;
    for (const int each : g.sizes) {
      g.offsets.push_back(total);
      total += each;
    }
    g.all.resize(static_cast<size_t>(total));
    check(PMPI_Iallgatherv(g.mine.data(), size, MPI_BYTE, g.all.data(), g.sizes.data(), g.offsets.data(),
                           MPI_BYTE, comm->comm, &request),
          "MPI_Iallgatherv");
    wait_or_leave(request, deadline_s, "MPI_Iallgatherv", gathering);
    std::memcpy(all, g.all.data(), g.all.size());
  });
  comm->broken = comm->broken || status != MUSTER_MPI_OK;
  return status;
}

void close_comm(muster_mpi_comm* comm) {
  int finalized = 0;
  PMPI_Finalized(&finalized);
  if (comm->broken || finalized != 0) return;  // a request may still be at work on it
  PMPI_Comm_free(&comm->comm);
  delete comm;
}

constexpr muster_mpi_table kTable = {
    MUSTER_MPI_TABLE_VERSION, open_comm, rank_of, size_of, all_gather, close_comm,
};

}  // namespace

extern "C" __attribute__((visibility("default"))) const void* muster_module_mpi(int version) {
  return version == MUSTER_MPI_TABLE_VERSION ? &kTable : nullptr;
}
