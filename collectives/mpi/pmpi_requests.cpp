#include "collectives/mpi/pmpi_requests.h"

#include <sched.h>

#include <algorithm>
#include <atomic>
#include <mutex>
#include <utility>
#include <vector>

namespace muster::pmpi {
namespace {

// A request's operation. The request and who looks at it each hold it.
struct Posted {
  std::unique_ptr<Operation> operation;
  MPI_Request request = MPI_REQUEST_NULL;
  int code = MPI_SUCCESS;  // once it is complete
};
using PostedPtr = std::shared_ptr<Posted>;

int query(void* state, MPI_Status* status) {
  const int code = (*static_cast<PostedPtr*>(state))->code;
  PMPI_Status_set_elements(status, MPI_BYTE, 0);
  PMPI_Status_set_cancelled(status, 0);
  status->MPI_SOURCE = MPI_UNDEFINED;
  status->MPI_TAG = MPI_UNDEFINED;
  status->MPI_ERROR = code;  // Open MPI 4.1 takes it from here
  return code;
}

int release(void* state) {
  delete static_cast<PostedPtr*>(state);
  return MPI_SUCCESS;
}

int cancel(void*, int) { return MPI_SUCCESS; }  // a collective is not cancelled

class Posts {
 public:
  bool any() const { return count_.load(std::memory_order_relaxed) > 0; }

  void add(PostedPtr posted) {
    const std::lock_guard lock(mutex_);
    posts_.push_back(std::move(posted));
    count_ = posts_.size();
  }

  // Tells MPI of all that have ended. Without the lock: an error handler may call MPI again.
  void complete_ended() {
    if (!any()) return;
    for (const PostedPtr& posted : take_ended()) {
      posted->code = posted->operation->end();
      PMPI_Grequest_complete(posted->request);
    }
  }

  // One of `requests` that is under way here, or null.
  PostedPtr find(const MPI_Request* requests, int count) {
    const std::lock_guard lock(mutex_);
    const auto found = std::find_if(posts_.begin(), posts_.end(), [&](const PostedPtr& posted) {
      return std::find(requests, requests + count, posted->request) != requests + count;
    });
    return found == posts_.end() ? nullptr : *found;
  }

 private:
  std::vector<PostedPtr> take_ended() {
    const std::lock_guard lock(mutex_);
    const auto ended = std::stable_partition(
        posts_.begin(), posts_.end(), [](const PostedPtr& posted) { return !posted->operation->ended(); });
    std::vector<PostedPtr> taken(std::make_move_iterator(ended), std::make_move_iterator(posts_.end()));
    posts_.erase(ended, posts_.end());
    count_ = posts_.size();
    return taken;
  }

  std::mutex mutex_;
  std::vector<PostedPtr> posts_;
  std::atomic<size_t> count_ = 0;
};

Posts& posts() {
  static auto* all = new Posts;  // a request may outlive the program's statics
  return *all;
}

// MPI's own call that never waits, until it says that something is there; meanwhile both make progress.
template <typename Test>
int until(const MPI_Request* requests, int count, Test test) {
  for (;;) {
    posts().complete_ended();
    bool there = false;
    const int code = test(there);
    if (code != MPI_SUCCESS || there) return code;
    if (const PostedPtr posted = posts().find(requests, count)) {
      posted->operation->wait_a_turn();
    } else {
      sched_yield();
    }
  }
}

}  // namespace

int post(std::unique_ptr<Operation> operation, MPI_Request* request) {
  operation->become_request();
  if (operation->failed()) return operation->complete();
  auto posted = std::make_shared<Posted>();
  posted->operation = std::move(operation);
  auto state = std::make_unique<PostedPtr>(posted);
  const int code = PMPI_Grequest_start(query, release, cancel, state.get(), &posted->request);
  if (code != MPI_SUCCESS) {
    posted->operation->complete();
    return code;
  }
  state.release();  // release() deletes it
  *request = posted->request;
  posts().add(std::move(posted));
  return MPI_SUCCESS;
}

}  // namespace muster::pmpi

// ---- what the program calls

using muster::pmpi::posts;
using muster::pmpi::until;

#define MUSTER_PMPI extern "C" __attribute__((visibility("default")))

MUSTER_PMPI int MPI_Wait(MPI_Request* request, MPI_Status* status) {
  if (!posts().any()) return PMPI_Wait(request, status);
  return until(request, 1, [&](bool& there) {
    int flag = 0;
    const int code = PMPI_Test(request, &flag, status);
    there = flag != 0;
    return code;
  });
}

MUSTER_PMPI int MPI_Waitall(int count, MPI_Request* requests, MPI_Status* statuses) {
  if (!posts().any()) return PMPI_Waitall(count, requests, statuses);
  return until(requests, count, [&](bool& there) {
    int flag = 0;
    const int code = PMPI_Testall(count, requests, &flag, statuses);
    there = flag != 0;
    return code;
  });
}

MUSTER_PMPI int MPI_Waitany(int count, MPI_Request* requests, int* index, MPI_Status* status) {
  if (!posts().any()) return PMPI_Waitany(count, requests, index, status);
  return until(requests, count, [&](bool& there) {
    int flag = 0;
    const int code = PMPI_Testany(count, requests, index, &flag, status);
    there = flag != 0;
    return code;
  });
}

MUSTER_PMPI int MPI_Waitsome(int count, MPI_Request* requests, int* ended, int* indices,
                             MPI_Status* statuses) {
  if (!posts().any()) return PMPI_Waitsome(count, requests, ended, indices, statuses);
  return until(requests, count, [&](bool& there) {
    const int code = PMPI_Testsome(count, requests, ended, indices, statuses);
    there = *ended != 0;  // or MPI_UNDEFINED, where nothing can be
    return code;
  });
}

MUSTER_PMPI int MPI_Test(MPI_Request* request, int* flag, MPI_Status* status) {
  posts().complete_ended();
  return PMPI_Test(request, flag, status);
}

MUSTER_PMPI int MPI_Testall(int count, MPI_Request* requests, int* flag, MPI_Status* statuses) {
  posts().complete_ended();
  return PMPI_Testall(count, requests, flag, statuses);
}

MUSTER_PMPI int MPI_Testany(int count, MPI_Request* requests, int* index, int* flag, MPI_Status* status) {
  posts().complete_ended();
  return PMPI_Testany(count, requests, index, flag, status);
}

MUSTER_PMPI int MPI_Testsome(int count, MPI_Request* requests, int* ended, int* indices,
                             MPI_Status* statuses) {
  posts().complete_ended();
  return PMPI_Testsome(count, requests, ended, indices, statuses);
}

MUSTER_PMPI int MPI_Request_get_status(MPI_Request request, int* flag, MPI_Status* status) {
  posts().complete_ended();
  return PMPI_Request_get_status(request, flag, status);
}
