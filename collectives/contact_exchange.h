// How processes that something else started together become a group, without a leader: each says how it is
// reached, all hear of all, and the group is formed of those.
#pragma once

#include <memory>
#include <vector>

#include "collectives/endpoint.h"

namespace muster {

// What found the processes together: PMIx, MPI, or nothing, for a process alone.
class ContactExchange {
 public:
  virtual ~ContactExchange() = default;
  virtual int rank() const = 0;
  virtual int size() const = 0;
  // Collective: everyone's bytes, in rank order. Sizes may differ.
  virtual Result<std::vector<ByteBuffer>> all_gather(ByteSpan mine, Instant deadline) = 0;
};

class Alone final : public ContactExchange {
 public:
  int rank() const override { return 0; }
  int size() const override { return 1; }
  Result<std::vector<ByteBuffer>> all_gather(ByteSpan mine, Instant) override {
    return std::vector<ByteBuffer>{ByteBuffer(mine.begin(), mine.end())};
  }
};

// Equal for processes that may share memory, that is: of one kernel and one network name space. Equal ids are
// worth a try, no more.
uint64_t node_identity();

// Collective over the exchange. Its ranks are the group's.
Result<std::unique_ptr<Group>> form_group(Endpoint& endpoint, ContactExchange& exchange, Instant deadline);

}  // namespace muster
