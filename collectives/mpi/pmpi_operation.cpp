#include "collectives/mpi/pmpi_operation.h"

#include <algorithm>
#include <atomic>
#include <cctype>
#include <numeric>
#include <utility>

namespace muster::pmpi {
namespace {

constexpr const char* kNames[kKinds] = {"Allreduce", "Reduce",     "Reduce_scatter", "Reduce_scatter_block",
                                        "Bcast",     "Barrier",    "Gather",         "Gatherv",
                                        "Allgather", "Allgatherv", "Scatter",        "Scatterv",
                                        "Alltoall",  "Alltoallv"};
std::atomic<uint64_t> ended_of[2][kKinds];  // those that block, and requests

constexpr double kTurnSeconds = 200e-6;

// MPI's error code for a sentence.
int code_of(const std::string& why) {
  static const int code = [] {
    int made = MPI_ERR_OTHER;
    PMPI_Add_error_code(MPI_ERR_OTHER, &made);
    return made;
  }();
  std::string text = "Muster: " + why;
  text.resize(std::min<size_t>(text.size(), MPI_MAX_ERROR_STRING - 1));
  PMPI_Add_error_string(code, text.c_str());
  return code;
}

}  // namespace

Operation::~Operation() {
  for (muster_work* work : works_) muster_work_destroy(work);
}

bool Operation::begin(Attachment attachment, Kind kind) {
  attachment_ = std::move(attachment);
  kind_ = kind;
  return attachment_ != nullptr;
}

void Operation::send(const void* data, size_t bytes, int peer) {
  if (bytes == 0) return;
  issue([&](muster_comm* comm, muster_work** work) {
    return muster_comm_send(comm, data, bytes, MUSTER_UINT8, peer, 0, nullptr, work);
  });
}

void Operation::receive(void* data, size_t bytes, int peer) {
  if (bytes == 0) return;
  issue([&](muster_comm* comm, muster_work** work) {
    return muster_comm_recv(comm, data, bytes, MUSTER_UINT8, peer, 0, nullptr, work);
  });
}

void Operation::refuse() {
  failure_ =
      "a count is negative, or a single element has more than 2 GiB, which cannot be packed; without "
      "libmuster_pmpi.so MPI says which, or does it";
}

void Operation::note(muster_status status) {
  if (status != MUSTER_OK && failure_.empty()) failure_ = muster_last_error();
}

bool Operation::ended() const {
  return std::all_of(works_.begin(), works_.end(), [](const muster_work* work) {
    int32_t done = 1;
    if (work != nullptr) muster_work_test(work, &done);
    return done != 0;
  });
}

void Operation::wait_a_turn() const {
  for (const muster_work* work : works_)
    if (work != nullptr && muster_work_wait(work, kTurnSeconds) == MUSTER_RETRY) return;
}

int Operation::end() {
  for (const muster_work* work : works_)
    if (work != nullptr) note(muster_work_wait(work, 0));
  if (!works_.empty() || !failed()) ++ended_of[request_ ? 1 : 0][kind_];  // else it was refused
  if (failed()) return code_of(failure_);
  received.spread();
  return MPI_SUCCESS;
}

int Operation::complete() {
  for (const muster_work* work : works_) {
    while (work != nullptr && muster_work_wait(work, kTurnSeconds) == MUSTER_RETRY) {
      int arrived = 0;
      PMPI_Iprobe(MPI_ANY_SOURCE, 0, MPI_COMM_SELF, &arrived, MPI_STATUS_IGNORE);
    }
  }
  const int code = end();
  if (code != MPI_SUCCESS) PMPI_Comm_call_errhandler(attachment_->mpi, code);
  return code;
}

uint64_t operations() {
  uint64_t all = 0;
  for (const auto& kinds : ended_of) all = std::accumulate(std::begin(kinds), std::end(kinds), all);
  return all;
}

std::string operations_in_words() {
  std::string text;
  for (const bool request : {false, true}) {
    for (int kind = 0; kind < kKinds; ++kind) {
      const uint64_t count = ended_of[request ? 1 : 0][kind];
      if (count == 0) continue;
      std::string name = kNames[kind];
      if (request) name = std::string("I") + static_cast<char>(std::tolower(name[0])) + name.substr(1);
      text += " " + std::to_string(count) + " " + name;
    }
  }
  return text;
}

}  // namespace muster::pmpi
