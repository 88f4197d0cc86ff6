// Internal: what a Group holds: the queue of operations, the latched failure, and the engine that moves them.
#pragma once

#include <array>
#include <deque>
#include <memory>
#include <optional>

#include "collectives/algorithm_choice.h"
#include "collectives/core.h"
#include "collectives/group.h"
#include "collectives/rank_transfers.h"
#include "collectives/shared_buffer.h"

namespace muster {

class Arena;
class GroupState;

// Executes a group's operations. All calls under the core's mutex.
class Engine : public PacketPath {
 public:
  virtual ~Engine() = default;
  virtual std::string_view medium() const = 0;
  virtual bool is_local() const { return false; }  // mates on this node ring when there is something to do
  virtual std::shared_ptr<Arena> arena() const { return nullptr; }
  // Null where algorithms are not chosen by cost.
  virtual const Position* position() const { return nullptr; }
  // For operations that start from now on. REQUIRES: position().
  virtual void choose_by(const CostNumbers&) {}
  // What it would take for an operation; empty: there is nothing to choose from, or no position().
  virtual AlgorithmCosts explain(const CollectiveOperation&) { return {}; }
  virtual void start(const CollectivePtr& operation) = 0;
  virtual size_t advance() = 0;
  virtual void set_sleeping(bool sleeping) = 0;
  virtual void peer_gone(PeerId peer, const std::string& reason) = 0;

  // When to begin to find out who is to blame, ahead of an operation's deadline; and the verdict at it.
  virtual Duration inquiry_time(Duration allowed) const = 0;
  virtual void inquire(const CollectiveOperation& operation) = 0;
  virtual Failure blame(const CollectiveOperation& operation) = 0;

  // The group failed here: stop touching user memory; tell the peers, unless it was revoked.
  virtual void abandon(const Failure& failure, bool tell_peers) = 0;

  // This rank leaves in good order: peers that still need it must not suspect it.
  virtual void leave() = 0;
};

class GroupState final : public Driven, public std::enable_shared_from_this<GroupState> {
 public:
  GroupState(std::shared_ptr<Core> core, Generation generation, int rank, int size);
  ~GroupState();

  // Before open(), where there is a transport: each rank's port. `own` holds this rank's while the group
  // lives.
  void talk_by(std::vector<Port> ports, std::shared_ptr<const Port> own) {
    ports_ = std::move(ports);
    own_port_ = std::move(own);
  }
  // Once, before use. Takes the mutex.
  void open(std::unique_ptr<Engine> engine);
  // Takes the mutex: fails what is pending and leaves the core.
  void close(Error reason);
  void revoke(Error reason, bool tell_peers);

  // `fill(operation)` is called under the mutex, and sets what the caller asked for. An operation that has
  // ended well by then leaves no handle: an empty Work says the same, and its memory serves the next one.
  template <typename Fill>
  Work issue(Fill fill) {
    const std::lock_guard lock(core_->mutex());
    CollectivePtr operation = spare_ != nullptr ? std::move(spare_) : std::make_shared<CollectiveOperation>();
    fill(*operation);
    return submit(std::move(operation));
  }

  // A send or a receive, with everything set that its caller asked for.
  Work transfer(TransferPtr transfer);
  bool has_counterpart(bool is_send, int32_t tag);

  // From the next operation on. A rank that got other numbers is found by the next operation's signature.
  void choose_by(const CostNumbers& numbers);

  int rank() const { return rank_; }
  int size() const { return size_; }
  const Generation& generation() const { return generation_; }
  Port port(int rank) const { return ports_[static_cast<size_t>(rank)]; }
  Core& core() { return *core_; }
  Engine* engine() { return engine_.get(); }
  RankTransfers& transfers() { return transfers_; }
  std::optional<Failure> failure();
  Result<SharedBuffer> allocate(size_t bytes);

  // For the engine, under the mutex. The operation may be gone afterwards.
  void finish(CollectiveOperation& operation);
  void fail(Failure failure, bool tell_peers = true);
  bool failed() const { return failure_.has_value(); }
  uint64_t issued() const { return next_sequence_; }
  // What operation `sequence` was called with here; null: it was not called yet, or long ago.
  const Signature* called_with(uint64_t sequence) const {
    const bool remembered = sequence < next_sequence_ && next_sequence_ - sequence <= signatures_.size();
    return remembered ? &signatures_[sequence % signatures_.size()] : nullptr;
  }
  // Operations up to the first that has not ended well here.
  uint64_t ended_well() const { return failure_ ? ended_well_ : first_pending(); }
  const std::deque<CollectivePtr>& pending() const { return pending_; }

  size_t advance() override;
  Instant next_deadline() const override;
  void set_sleeping(bool sleeping) override;
  void peer_gone(PeerId peer, const std::string& reason) override;

 private:
  Work submit(CollectivePtr operation);
  void end(CollectivePtr operation, Status result, std::vector<int> suspects);
  const CollectivePtr& first_due() const;
  size_t check_deadline();
  void inquire(CollectiveOperation& operation, Instant time);
  Failure verdict(const CollectiveOperation& operation, Duration late) const;
  Instant inquiry_at(const CollectiveOperation& operation) const;
  Status end_of(const CollectiveOperation& operation) const;
  uint64_t first_pending() const {
    return pending_.empty() ? next_sequence_ : pending_.front()->signature.sequence;
  }

  const std::shared_ptr<Core> core_;
  const Generation generation_;
  const int rank_;
  const int size_;
  std::vector<Port> ports_;
  std::shared_ptr<const Port> own_port_;  // null: nobody keeps others from having it
  std::unique_ptr<Engine> engine_;
  std::deque<CollectivePtr> pending_;  // in issue order
  RankTransfers transfers_{*this};
  const CollectiveOperation* submitting_ = nullptr;
  CollectivePtr ended_at_once_;  // what is being submitted, once it has ended
  CollectivePtr spare_;          // ended, and held by nobody else
  std::optional<Failure> failure_;
  uint64_t next_sequence_ = 0;
  std::array<Signature, 16> signatures_{};  // of the last ones that were issued, by sequence
  uint64_t ended_well_ = 0;                 // when it failed
  uint64_t history_ = 0;
  int idle_ = 0;  // calls of advance() since the clock was read
  bool open_ = false;
};

}  // namespace muster
