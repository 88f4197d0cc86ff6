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

// The ranks of a group that name one color, ordered by key and, where keys are equal, by their rank there.
// Collective over the group: every rank makes one and gathers once. Of a negative color: none, size 0.
class SplitExchange final : public ContactExchange {
 public:
  static Result<SplitExchange> open(Group& group, int32_t color, int32_t key, Instant deadline);
  int rank() const override { return rank_; }
  int size() const override { return static_cast<int>(members_.size()); }
  // REQUIRES: called by all ranks of the group, those of no color included, to whom it gives nothing.
  Result<std::vector<ByteBuffer>> all_gather(ByteSpan mine, Instant deadline) override;

 private:
  explicit SplitExchange(Group& group) : group_(&group) {}
  Group* group_;
  std::vector<int> members_;  // ranks of the group
  int rank_ = -1;
};

// The group of this rank's color, made of `group`, of which it is independent afterwards; null for a negative
// color. Collective over `group`.
Result<std::unique_ptr<Group>> split_group(Endpoint& endpoint, Group& group, int32_t color, int32_t key,
                                           Instant deadline);

// Equal for processes that may share memory, that is: of one kernel and one network name space. Equal ids are
// worth a try, no more.
uint64_t node_identity();

// Collective over the exchange. Its ranks are the group's.
Result<std::unique_ptr<Group>> form_group(Endpoint& endpoint, ContactExchange& exchange, Instant deadline);

}  // namespace muster
