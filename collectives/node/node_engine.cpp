#include "collectives/node/node_engine.h"

#include <sys/socket.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "runtime/base/check.h"

namespace muster {
namespace {

// Up to here every rank reduces everything itself: one exchange instead of two.
constexpr uint64_t kOneShotBytes = 8 * 1024;

// How an operation is cut. A function of its arguments, so equal on all ranks.
struct TilePlan {
  uint64_t per_tile = 1;  // elements of the unit that the operation counts in
  uint64_t tiles = 1;
  bool two_phase = false;  // slices are reduced by their owners, then gathered

  TilePlan(const CollectiveOperation& operation, int ranks) {
    const Signature& signature = operation.signature;
    const uint64_t element = operation.element();
    uint64_t unit = element;  // bytes of the slot that one counted element takes
    if (signature.kind == Collective::kReduceScatter) unit = element * static_cast<uint64_t>(ranks);
    if (signature.kind == Collective::kCanonicalAllReduce)
      unit = element * static_cast<uint64_t>(std::max(1, *std::ranges::max_element(operation.partials)));
    per_tile = std::max<uint64_t>(1, kTileBytes / unit);
    tiles = std::max<uint64_t>(1, (signature.count + per_tile - 1) / per_tile);
    const bool all_reduce =
        signature.kind == Collective::kAllReduce || signature.kind == Collective::kCanonicalAllReduce;
    two_phase = all_reduce && signature.count * element > kOneShotBytes;
  }
};

struct Running {
  CollectivePtr operation;
  TilePlan plan;
  uint64_t first_tile;  // in the numbering over all operations
};

class NodeEngine final : public Engine, public Watcher {
 public:
  NodeEngine(GroupState& group, Segment mine, std::vector<std::unique_ptr<LocalMate>> mates,
             std::vector<Segment> segments)
      : group_(group),
        rank_(static_cast<size_t>(group.rank())),
        ranks_(static_cast<size_t>(group.size())),
        mine_(std::move(mine)),
        mates_(std::move(mates)),
        segments_(std::move(segments)),
        gone_(ranks_, false) {
    for (const auto& mate : mates_) {
      if (mate != nullptr) group_.core().watch(mate->connection.get(), this);
    }
  }

  ~NodeEngine() override {
    for (const auto& mate : mates_) {
      if (mate != nullptr) group_.core().unwatch(mate->connection.get());
    }
  }

  std::string_view medium() const override { return "shared memory"; }

  void start(const CollectivePtr& operation) override {
    const TilePlan plan(*operation, group_.size());
    running_.push_back({operation, plan, next_first_tile_});
    next_first_tile_ += plan.tiles;
  }

  size_t advance() override {
    if (group_.failed()) return 0;
    size_t moved = 0;
    while (load() || reduce() || store()) {
      if (group_.failed()) return moved + 1;
      ++moved;
      if (moved % kSlots == 0) break;  // let others have the mutex
    }
    if (moved > 0) ring();
    if (moved == 0 && !running_.empty()) moved += read_notes();
    if (moved == 0 && any_gone_) moved += check_gone();
    return moved;
  }

  void set_sleeping(bool sleeping) override {
    mine_.header().sleeping.value.store(sleeping ? 1 : 0, std::memory_order_seq_cst);
  }

  void peer_gone(PeerId, const std::string&) override {}  // the local connection tells sooner

  // The end of a connection: the mate's process ended, or it left the group.
  void readable(int fd) override {
    for (size_t rank = 0; rank < ranks_; ++rank) {
      if (mates_[rank] == nullptr || mates_[rank]->connection.get() != fd) continue;
      char byte = 0;
      const ssize_t got = recv(fd, &byte, 1, MSG_DONTWAIT);
      if (got < 0 && (errno == EAGAIN || errno == EINTR)) return;
      if (got > 0) return;  // nothing is said here; a stray byte is dropped
      group_.core().unwatch(fd);
      gone_[rank] = any_gone_ = true;
    }
  }

  Duration inquiry_time(Duration) const override { return 0; }
  void inquire(const CollectiveOperation&) override {}

  // Of the tile that is furthest behind, whoever has not done the first step that nothing hinders.
  Failure blame(const CollectiveOperation&) override {
    uint64_t tile = stored_;
    for (size_t rank = 0; rank < ranks_; ++rank) tile = std::min(tile, counter(rank, &SegmentHeader::stored));
    std::vector<int> late = behind(&SegmentHeader::arrived, tile);
    std::string what = "did not join it (not called there, or stopped)";
    if (late.empty()) {
      late = behind(&SegmentHeader::reduced, tile);
      what = "stopped in the middle";
    }
    if (late.empty()) late = behind(&SegmentHeader::stored, tile);
    if (late.empty()) {
      return {ErrorCode::kReconfigure,
              "the deadline passed while rank " + std::to_string(rank_) + " itself was held up",
              {group_.rank()}};
    }
    std::string names;
    for (int rank : late) names += (names.empty() ? "" : ", ") + std::to_string(rank);
    return {
        ErrorCode::kReconfigure,
        "the deadline passed; rank " + names + " " + what + ", as seen from rank " + std::to_string(rank_),
        late};
  }

  void abandon(const Failure& failure, bool tell_peers) override {
    running_.clear();
    if (!tell_peers) return;
    FailureNote& note = mine_.header().failure;
    note.code = static_cast<uint32_t>(failure.code);
    note.suspect_count =
        static_cast<uint32_t>(std::min<size_t>(failure.suspects.size(), FailureNote::kMaxSuspects));
    std::copy_n(failure.suspects.begin(), note.suspect_count, note.suspects);
    note.text_size = static_cast<uint32_t>(std::min(failure.reason.size(), sizeof note.text));
    std::memcpy(note.text, failure.reason.data(), note.text_size);
    note.written.store(1, std::memory_order_seq_cst);
    ring();
  }

  void leave() override { publish(&SegmentHeader::left, 1); }

 private:
  using Counter = SharedCounter SegmentHeader::*;

  uint64_t counter(size_t rank, Counter which) const {
    const SegmentHeader& header = rank == rank_ ? mine_.header() : segments_[rank].header();
    return (header.*which).value.load(std::memory_order_seq_cst);
  }
  void publish(Counter which, uint64_t value) {
    (mine_.header().*which).value.store(value, std::memory_order_seq_cst);
  }

  // Whether all mates have counted beyond `tile`.
  bool all_beyond(Counter which, uint64_t tile) const {
    for (size_t rank = 0; rank < ranks_; ++rank) {
      if (rank != rank_ && counter(rank, which) <= tile) return false;
    }
    return true;
  }

  std::vector<int> behind(Counter which, uint64_t tile) const {
    std::vector<int> ranks;
    for (size_t rank = 0; rank < ranks_; ++rank) {
      if (rank != rank_ && counter(rank, which) <= tile) ranks.push_back(static_cast<int>(rank));
    }
    return ranks;
  }

  const Running* running_at(uint64_t tile) const {
    for (const Running& running : running_) {
      if (tile < running.first_tile + running.plan.tiles)
        return tile < running.first_tile ? nullptr : &running;
    }
    return nullptr;
  }

  const std::byte* input_of(size_t rank, uint64_t tile) const {
    return rank == rank_ ? mine_.input(tile) : segments_[rank].input(tile);
  }
  const std::byte* result_of(size_t rank, uint64_t tile) const {
    return rank == rank_ ? mine_.result(tile) : segments_[rank].result(tile);
  }

  struct Part {
    uint64_t offset;  // elements
    uint64_t count;
  };
  static Part part_of(const Running& running, uint64_t tile) {
    const uint64_t offset = (tile - running.first_tile) * running.plan.per_tile;
    const uint64_t count = running.operation->signature.count;
    return {offset, std::min(running.plan.per_tile, count - std::min(offset, count))};
  }

  // My input of the next tile into its slot, once nobody needs what the slot held before.
  bool load() {
    const Running* running = running_at(loaded_);
    if (running == nullptr || loaded_ >= stored_ + kSlots) return false;
    if (loaded_ >= kSlots && !all_beyond(&SegmentHeader::stored, loaded_ - kSlots)) return false;
    SlotLabel& label = mine_.header().labels[loaded_ % kSlots];
    label.signature = running->operation->signature;
    label.tile = loaded_ - running->first_tile;
    copy_in(*running->operation, part_of(*running, loaded_), mine_.input(loaded_));
    publish(&SegmentHeader::arrived, ++loaded_);
    return true;
  }

  void copy_in(const CollectiveOperation& operation, Part part, std::byte* slot) const {
    const Signature& signature = operation.signature;
    const size_t element = operation.element();
    const size_t bytes = part.count * element;
    if (bytes == 0) return;
    if (signature.kind == Collective::kBroadcast && signature.root != group_.rank()) return;
    if (signature.kind == Collective::kReduceScatter) {
      for (size_t rank = 0; rank < ranks_; ++rank)
        std::memcpy(slot + rank * bytes,
                    operation.inputs[0] + (rank * signature.count + part.offset) * element, bytes);
      return;
    }
    for (const std::byte* input : operation.inputs) {
      std::memcpy(slot, input + part.offset * element, bytes);
      slot += bytes;
    }
  }

  // Everybody's input of the next tile is there: check that it is the same operation, and reduce my slice.
  bool reduce() {
    if (reduced_ >= loaded_ || !all_beyond(&SegmentHeader::arrived, reduced_)) return false;
    const Running* running = running_at(reduced_);
    if (!check_labels(*running->operation)) return true;
    if (running->plan.two_phase) {
      const Part part = part_of(*running, reduced_);
      const Slice slice = slice_of(part.count, group_.size(), group_.rank());
      reduce_part(*running->operation, reduced_, part.count, slice, mine_.result(reduced_));
    }
    publish(&SegmentHeader::reduced, ++reduced_);
    return true;
  }

  bool check_labels(const CollectiveOperation& operation) {
    for (size_t rank = 0; rank < ranks_; ++rank) {
      if (rank == rank_) continue;
      const Signature theirs = segments_[rank].header().labels[reduced_ % kSlots].signature;
      if (theirs == operation.signature) continue;
      group_.fail(mismatch(group_.rank(), operation.signature, static_cast<int>(rank), theirs));
      return false;
    }
    return true;
  }

  // `count`: elements of the tile; `slice`: which of them.
  void reduce_part(const CollectiveOperation& operation, uint64_t tile, uint64_t count, Slice slice,
                   std::byte* target) {
    const Signature& signature = operation.signature;
    const size_t element = operation.element();
    sources_.clear();
    for (size_t rank = 0; rank < ranks_; ++rank) {
      const bool canonical = signature.kind == Collective::kCanonicalAllReduce;
      const int pieces = canonical ? operation.partials[rank] : 1;
      for (int piece = 0; piece < pieces; ++piece)
        sources_.push_back(input_of(rank, tile) +
                           (static_cast<uint64_t>(piece) * count + slice.offset) * element);
    }
    if (signature.kind == Collective::kCanonicalAllReduce) {
      fold_tree(operation.plan, operation.scale, target, sources_, slice.count);
    } else {
      fold(signature.dtype, signature.op, target, sources_, slice.count, group_.size());
    }
  }

  // The result of the next tile into the user's output. One-phase operations read the inputs here.
  bool store() {
    if (stored_ >= reduced_) return false;
    const Running& running = *running_at(stored_);
    if (running.plan.two_phase && !all_beyond(&SegmentHeader::reduced, stored_)) return false;
    const Part part = part_of(running, stored_);
    if (part.count > 0) copy_out(running, part);
    const bool last = stored_ + 1 == running.first_tile + running.plan.tiles;
    publish(&SegmentHeader::stored, ++stored_);
    if (last) {
      const CollectivePtr operation = running.operation;
      running_.pop_front();
      group_.finish(*operation);
    }
    return true;
  }

  void copy_out(const Running& running, Part part) {
    const CollectiveOperation& operation = *running.operation;
    const Signature& signature = operation.signature;
    const size_t element = operation.element();
    const size_t bytes = part.count * element;
    std::byte* output = operation.output + part.offset * element;
    switch (signature.kind) {
      case Collective::kAllReduce:
      case Collective::kCanonicalAllReduce:
        if (!running.plan.two_phase)
          return reduce_part(operation, stored_, part.count, {0, part.count}, output);
        for (int rank = 0; rank < group_.size(); ++rank) {
          const Slice slice = slice_of(part.count, group_.size(), rank);
          if (slice.count > 0)
            std::memcpy(output + slice.offset * element, result_of(static_cast<size_t>(rank), stored_),
                        slice.count * element);
        }
        return;
      case Collective::kReduceScatter:
        return reduce_part(operation, stored_, part.count, {rank_ * part.count, part.count}, output);
      case Collective::kAllGather:
        for (size_t rank = 0; rank < ranks_; ++rank)
          std::memcpy(operation.output + (rank * signature.count + part.offset) * element,
                      input_of(rank, stored_), bytes);
        return;
      case Collective::kBroadcast:
        std::memcpy(output, input_of(static_cast<size_t>(signature.root), stored_), bytes);
        return;
      case Collective::kBarrier:
        return;
    }
  }

  // Wakes mates that sleep. Sleeper: flag, then counters; ringer: counters, then flag. All of it sequentially
  // consistent, so that one of the two sees the other.
  void ring() {
    const uint64_t one = 1;
    for (size_t rank = 0; rank < ranks_; ++rank) {
      if (rank == rank_ || segments_[rank].header().sleeping.value.load(std::memory_order_seq_cst) == 0)
        continue;
      [[maybe_unused]] const ssize_t wrote = write(mates_[rank]->bell.get(), &one, sizeof one);
    }
  }

  // A mate that gave up says why.
  size_t read_notes() {
    for (size_t rank = 0; rank < ranks_; ++rank) {
      if (rank == rank_) continue;
      const FailureNote& note = segments_[rank].header().failure;
      if (note.written.load(std::memory_order_seq_cst) == 0) continue;
      Failure failure;
      if (note.code == static_cast<uint32_t>(ErrorCode::kMisuse)) failure.code = ErrorCode::kMisuse;
      failure.reason.assign(note.text, std::min<size_t>(note.text_size, sizeof note.text));
      failure.reason += " (told by rank " + std::to_string(rank) + ")";
      for (uint32_t i = 0; i < std::min<uint32_t>(note.suspect_count, FailureNote::kMaxSuspects); ++i) {
        const int suspect = note.suspects[i];
        if (suspect >= 0 && suspect < group_.size()) failure.suspects.push_back(suspect);
      }
      group_.fail(std::move(failure), false);
      return 1;
    }
    return 0;
  }

  // Nothing moved: is it for want of somebody who is gone? What it published before it went still counts.
  size_t check_gone() {
    if (running_.empty()) return 0;
    for (size_t rank = 0; rank < ranks_; ++rank) {
      if (!gone_[rank] || !needs(rank)) continue;
      const int number = static_cast<int>(rank);
      const bool left = counter(rank, &SegmentHeader::left) != 0;
      group_.fail(
          {ErrorCode::kReconfigure,
           "rank " + std::to_string(rank) + (left ? " left the group" : " is gone: its process ended"),
           left ? std::vector<int>{} : std::vector<int>{number}},
          !left);
      return 1;
    }
    return 0;
  }

  bool needs(size_t rank) const {
    return counter(rank, &SegmentHeader::arrived) <= stored_ ||
           (running_.front().plan.two_phase && counter(rank, &SegmentHeader::reduced) <= stored_) ||
           (loaded_ >= kSlots && counter(rank, &SegmentHeader::stored) <= loaded_ - kSlots);
  }

  GroupState& group_;
  const size_t rank_;
  const size_t ranks_;
  Segment mine_;
  std::vector<std::unique_ptr<LocalMate>> mates_;
  std::vector<Segment> segments_;
  std::vector<bool> gone_;
  bool any_gone_ = false;
  std::deque<Running> running_;
  uint64_t next_first_tile_ = 0;
  // Tiles done by this rank, over all operations; stored_ ≤ reduced_ ≤ loaded_ ≤ stored_ + kSlots.
  uint64_t loaded_ = 0;
  uint64_t reduced_ = 0;
  uint64_t stored_ = 0;
  std::vector<const std::byte*> sources_;
};

}  // namespace

std::unique_ptr<Engine> make_node_engine(GroupState& group, Segment mine,
                                         std::vector<std::unique_ptr<LocalMate>> mates,
                                         std::vector<Segment> segments) {
  return std::make_unique<NodeEngine>(group, std::move(mine), std::move(mates), std::move(segments));
}

}  // namespace muster
