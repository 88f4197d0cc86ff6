#include "runtime/communicator.h"

#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cstdlib>

#include "collectives/mpi/mpi_exchange.h"
#include "runtime/agent/place.h"
#include "runtime/agent/pmix.h"
#include "runtime/base/options.h"
#include "runtime/data_plane.h"

namespace muster {
namespace {

// What the communicators of this process share, while there are any; but PMIx to the end of the process,
// since who has left it counts as gone for a while, and the next communicator would be formed without it. A
// forked child begins anew: it must not touch what its parent's threads are in the middle of.
struct Shared {
  std::mutex mutex;
  pid_t owner = 0;
  std::weak_ptr<Endpoint> endpoint;
  std::string lacks;
  std::atomic<pid_t> pmix_owner = 0;
  std::shared_ptr<agent::Pmix> pmix;
  CostCache costs;  // not only while there are communicators
};

Shared& shared() {
  static Shared* const instance = new Shared;  // not destroyed: a program may exit with communicators
  return *instance;
}

// Without it a launcher takes an exit for a failure.
void leave_pmix() {
  Shared& all = shared();
  if (all.pmix_owner != getpid()) return;  // a forked child, whose copy of the mutex may be held for ever
  const std::lock_guard lock(all.mutex);
  all.pmix.reset();
}

Result<std::shared_ptr<Endpoint>> share_endpoint(std::string& lacks) {
  Shared& all = shared();
  const std::lock_guard lock(all.mutex);
  if (auto endpoint = all.owner == getpid() ? all.endpoint.lock() : nullptr) {
    lacks = all.lacks;
    return endpoint;
  }
  MUSTER_ASSIGN(DataPlane plane, open_data_plane());
  std::shared_ptr<Endpoint> endpoint = std::move(plane.endpoint);
  all.owner = getpid();
  all.endpoint = endpoint;
  all.lacks = lacks = plane.lacks;
  return endpoint;
}

Result<std::shared_ptr<agent::Pmix>> share_pmix() {
  Shared& all = shared();
  const std::lock_guard lock(all.mutex);
  if (all.pmix != nullptr && all.pmix_owner == getpid()) return all.pmix;
  MUSTER_ASSIGN(std::shared_ptr<agent::Pmix> pmix, agent::Pmix::open());
  if (all.pmix_owner == 0) std::atexit(leave_pmix);
  if (all.pmix != nullptr) new std::shared_ptr(all.pmix);  // the parent's, in a forked child: never ended
  all.pmix_owner = getpid();
  all.pmix = pmix;
  return pmix;
}

class PmixExchange final : public ContactExchange {
 public:
  explicit PmixExchange(agent::Pmix& pmix) : pmix_(pmix) {}
  int rank() const override { return static_cast<int>(pmix_.rank()); }
  int size() const override { return static_cast<int>(pmix_.size()); }

  Result<std::vector<ByteBuffer>> all_gather(ByteSpan mine, Instant deadline) override {
    // All processes form their communicators in the same order.
    static std::atomic<uint64_t> count{0};
    const std::string key = "muster.communicator." + std::to_string(count.fetch_add(1));
    MUSTER_ASSIGN(const std::vector<std::string> texts, pmix_.all_gather(key, to_hex(mine), deadline));
    std::vector<ByteBuffer> all;
    for (const std::string& text : texts) all.push_back(from_hex(text));
    return all;
  }

 private:
  agent::Pmix& pmix_;
};

Result<CommunicatorOptions> with_defaults(CommunicatorOptions options) {
  MUSTER_ASSIGN(const OptionValues values, OptionValues::from_environment());
  if (options.form_timeout <= 0) options.form_timeout = values.duration("comm-form-timeout");
  if (options.timeout <= 0) options.timeout = values.duration("comm-timeout");
  options.tune = options.tune || values.on("comm-tune");
  return options;
}

}  // namespace

Result<std::unique_ptr<Communicator>> Communicator::create(const CommunicatorOptions& given) {
  MUSTER_ASSIGN(const CommunicatorOptions options, with_defaults(given));
  const Instant deadline = now() + options.form_timeout;
  const agent::Place place = agent::find_place();
  if (place.world == agent::World::kElastic) {
    return Error{ErrorCode::kMisuse,
                 "this process is a worker of `muster run`, whose members may change, and a communicator's "
                 "cannot; start it with mpirun or srun --mpi=pmix, or use a run (muster_train)"};
  }
  if (place.world == agent::World::kAlone) {
    Alone alone;
    return form(alone, deadline, options);
  }
  if (!place.pmix) return Error{ErrorCode::kMisuse, agent::advice_without_pmix(place)};
  MUSTER_ASSIGN(std::shared_ptr<agent::Pmix> pmix, share_pmix());
  PmixExchange exchange(*pmix);
  MUSTER_ASSIGN(std::unique_ptr<Communicator> communicator, form(exchange, deadline, options));
  communicator->parts_->bootstrap = std::move(pmix);
  return communicator;
}

Result<std::unique_ptr<Communicator>> Communicator::from_mpi(const void* mpi_comm,
                                                             const CommunicatorOptions& given) {
  MUSTER_ASSIGN(const CommunicatorOptions options, with_defaults(given));
  const Instant deadline = now() + options.form_timeout;
  MUSTER_ASSIGN(const std::unique_ptr<MpiExchange> exchange, MpiExchange::open(mpi_comm, deadline));
  return form(*exchange, deadline, options);
}

Result<std::unique_ptr<Communicator>> Communicator::form(ContactExchange& exchange, Instant deadline,
                                                         const CommunicatorOptions& options) {
  std::string lacks;
  std::unique_ptr<Communicator> communicator(new Communicator);
  Parts& parts = *communicator->parts_;
  MUSTER_ASSIGN(parts.endpoint, share_endpoint(lacks));
  auto group = form_group(*parts.endpoint, exchange, deadline);
  if (!group.ok()) {
    Error error = std::move(group).error();
    if (error.code == ErrorCode::kEnvironment && !lacks.empty()) error.message += "; here: " + lacks;
    return error;
  }
  MUSTER_TRY(communicator->adopt(std::move(*group), deadline, options));
  return communicator;
}

Status Communicator::adopt(std::unique_ptr<Group> group, Instant deadline,
                           const CommunicatorOptions& options) {
  parts_->group = std::move(group);
  medium_ = parts_->group->medium();
  timeout_ = options.timeout;
  return options.tune ? tune(deadline) : ok();
}

Status Communicator::tune(Instant deadline) {
  const auto tuned = muster::tune(*parts_->group, shared().costs, deadline);
  return tuned.ok() ? ok() : Status(tuned.error());
}

Result<std::unique_ptr<Communicator>> Communicator::split(int32_t color, int32_t key,
                                                          CommunicatorOptions options) {
  if (options.timeout <= 0) options.timeout = timeout_;
  MUSTER_ASSIGN(options, with_defaults(options));
  const Instant deadline = now() + options.form_timeout;
  auto group = split_group(*parts_->endpoint, *parts_->group, color, key, deadline);
  if (!group.ok()) return Error{group.error().code, "splitting the communicator: " + group.error().message};
  if (*group == nullptr) return std::unique_ptr<Communicator>();
  std::unique_ptr<Communicator> part(new Communicator);
  part->parts_->bootstrap = parts_->bootstrap;
  part->parts_->endpoint = parts_->endpoint;
  MUSTER_TRY(part->adopt(std::move(*group), deadline, options));
  return part;
}

Communicator::~Communicator() {
  if (mark_.is_inherited()) (void)parts_.release();
}

Result<void*> Communicator::allocate(size_t bytes) {
  MUSTER_ASSIGN(SharedBuffer buffer, parts_->group->allocate(std::max<size_t>(bytes, 1)));
  void* const data = buffer.data();
  const std::lock_guard lock(buffers_mutex_);
  parts_->buffers[data] = std::move(buffer);
  return data;
}

Status Communicator::free(void* data) {
  const std::lock_guard lock(buffers_mutex_);
  if (data == nullptr || parts_->buffers.erase(data) > 0) return ok();
  return Error{ErrorCode::kMisuse, "this address was not allocated by this communicator, or freed already"};
}

}  // namespace muster
