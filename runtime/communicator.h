// The collectives on their own: a fixed set of processes, without a leader, a view or a training run.
//
// INVARIANTS
//  - All communicators of a process share one endpoint, and thereby one progress thread and one UCX worker.
//  - The ranks never change. After a loss a communicator is unusable; another one may be made.
//  - In a forked child a communicator is dead: the destructor touches nothing.
#pragma once

#include <map>
#include <memory>
#include <mutex>
#include <string>

#include "collectives/codec_controller.h"
#include "collectives/compressed_all_reduce.h"
#include "collectives/contact_exchange.h"
#include "collectives/cost_tuning.h"
#include "runtime/base/fork.h"

namespace muster {

struct CommunicatorOptions {
  Duration form_timeout = 0;  // for all ranks to come; 0: by the option comm-form-timeout
  Duration timeout = 0;       // of an operation that names none; 0: by the option comm-timeout
  bool tune = false;          // when it is formed; also by the option comm-tune
};

class Communicator {
 public:
  // Of all processes that one mpirun or srun started, or of a process alone. Collective.
  // Errors: kMisuse: under `muster run`, whose world changes; bad variables. kRetry, kReconfigure: some did
  // not come in time. kEnvironment.
  static Result<std::unique_ptr<Communicator>> create(const CommunicatorOptions& options);

  // Of the ranks of an MPI communicator of this program, to which `mpi_comm` points: see MpiExchange::open.
  // Collective. MPI is not used afterwards.
  static Result<std::unique_ptr<Communicator>> from_mpi(const void* mpi_comm,
                                                        const CommunicatorOptions& options);
  // Of the ranks of this one that name the same color, in the order of key and rank; null for a negative
  // color. Collective over this one, of which it is independent afterwards. `options`: 0 is this one's
  // timeout. Errors also: kMisuse, where ranks call something else.
  Result<std::unique_ptr<Communicator>> split(int32_t color, int32_t key, CommunicatorOptions options);
  ~Communicator();

  Group& group() { return *parts_->group; }
  const std::string& medium() const { return medium_; }

  // See cost_tuning.h; numbers are kept for all communicators of this process. Collective.
  Status tune(Instant deadline);

  // When an operation that begins now must have ended; 0: the communicator's own timeout.
  Instant deadline(Duration timeout) const { return now() + (timeout > 0 ? timeout : timeout_); }

  // To be used by one operation, which gives it back where that ended well; it keeps its buffers for the
  // next.
  std::unique_ptr<CompressedCollectives> take_compressed() {
    if (parts_->compressed == nullptr) return std::make_unique<CompressedCollectives>(group());
    return std::move(parts_->compressed);
  }
  void give_back(std::unique_ptr<CompressedCollectives> compressed) {
    parts_->compressed = std::move(compressed);
  }

  // For operations that leave the codec open; one at a time, as they are.
  CodecController& codec_controller() {
    if (parts_->controller == nullptr) parts_->controller = std::make_unique<CodecController>(group());
    return *parts_->controller;
  }

  // Memory of the group, until it is given back or the communicator ends. From any thread.
  Result<void*> allocate(size_t bytes);
  Status free(void* data);

 private:
  Communicator() = default;
  static Result<std::unique_ptr<Communicator>> form(ContactExchange& exchange, Instant deadline,
                                                    const CommunicatorOptions& options);
  Status adopt(std::unique_ptr<Group> group, Instant deadline, const CommunicatorOptions& options);

  // Ends in this order from below: nothing touches buffers once the group is closed.
  struct Parts {
    std::shared_ptr<void> bootstrap;  // what must not end before the communicator does
    std::shared_ptr<Endpoint> endpoint;
    std::map<const void*, SharedBuffer> buffers;  // under buffers_mutex_
    std::unique_ptr<CompressedCollectives> compressed;
    std::unique_ptr<CodecController> controller;
    std::unique_ptr<Group> group;
  };

  const ForkMark mark_{};
  Duration timeout_ = 0;
  std::string medium_;
  std::mutex buffers_mutex_;
  std::unique_ptr<Parts> parts_ = std::make_unique<Parts>();
};

}  // namespace muster
