#include "collectives/node/node_engine.h"

#include <sched.h>
#include <sys/socket.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <deque>
#include <memory_resource>

#include "runtime/base/check.h"

namespace muster {
namespace {

// Up to here every rank reduces everything itself: one exchange instead of two.
constexpr uint64_t kOneShotBytes = 8 * 1024;
static_assert(kOneShotBytes <= kMailBytes);
// Slices begin at multiples of so many elements where there are enough, so that two ranks seldom write into
// one cache line, and stores that pass the caches fill whole ones.
constexpr uint64_t kSliceUnit = 64;

// How an operation is cut. A function of its arguments, so equal on all ranks.
struct TilePlan {
  uint64_t per_tile = 1;  // elements of the unit that the operation counts in
  uint64_t tiles = 1;
  bool in_mail = false;    // one tile, and the mail holds it
  bool open = false;       // more tiles may follow, as mates' counts will tell
  bool two_phase = false;  // slices are reduced by their owners, then gathered

  TilePlan(const CollectiveOperation& operation, int ranks) {
    const Signature& signature = operation.signature;
    const uint64_t unit = operation.element() * static_cast<uint64_t>(units_of(operation, ranks));
    per_tile = std::max<uint64_t>(1, kTileBytes / unit);
    open = signature.kind == Collective::kAllToAllV;
    in_mail = !open && signature.count <= kOneShotBytes / unit;
    if (in_mail) per_tile = std::max<uint64_t>(1, signature.count);
    tiles = std::max<uint64_t>(1, (signature.count + per_tile - 1) / per_tile);
    two_phase = !in_mail && reduces_to_one_place(signature.kind);
  }

  static bool reduces_to_one_place(Collective kind) {
    return kind == Collective::kAllReduce || kind == Collective::kCanonicalAllReduce ||
           kind == Collective::kReduce;
  }

  // Elements in a rank's slot for each element that the operation counts.
  static int units_of(const CollectiveOperation& operation, int ranks) {
    switch (operation.signature.kind) {
      case Collective::kReduceScatter:
      case Collective::kScatter:
      case Collective::kAllToAll:
      case Collective::kAllToAllV:
        return ranks;
      case Collective::kCanonicalAllReduce:
        return std::max(1, *std::ranges::max_element(operation.partials));
      default:
        return 1;
    }
  }
};

Slice node_slice(uint64_t count, size_t ranks, size_t rank) {
  const uint64_t unit = count >= ranks * kSliceUnit ? kSliceUnit : 1;
  const Slice slice = slice_of((count + unit - 1) / unit, static_cast<int>(ranks), static_cast<int>(rank));
  const uint64_t begin = std::min(slice.offset * unit, count);
  return {begin, std::min((slice.offset + slice.count) * unit, count) - begin};
}

// From here on stores into mates' buffers pass the caches, where the data would not stay anyway. Measured on
// cores that share a last-level cache: at 16 MiB on four ranks 20 % faster, at 1 MiB and two ranks no faster.
constexpr uint64_t kStreamingBytes = 8 * 1024 * 1024;

struct Running {
  CollectiveOperation* operation;  // the group's, until it is finished
  TilePlan plan;
  uint64_t first_tile;  // in the numbering over all operations
  // Of each rank once its first mail was read: offsets in its arena.
  std::vector<std::vector<uint64_t>> inputs;
  std::vector<uint64_t> outputs;
  std::vector<uint64_t> sources;  // all_to_all_v: in its input, where my block begins
  bool placed = false;

  uint64_t last_tile() const { return first_tile + plan.tiles - 1; }
};

// An operation whose input lies in the arena ends only when no mate reads it any more.
struct Closing {
  CollectiveOperation* operation;
  uint64_t last_tile;
};

class NodeEngine final : public Engine, public Watcher {
 public:
  NodeEngine(GroupState& group, NodeMemory memory)
      : group_(group),
        rank_(static_cast<size_t>(group.rank())),
        ranks_(static_cast<size_t>(group.size())),
        mine_(std::move(memory.segment)),
        arena_(std::move(memory.arena)),
        mates_(std::move(memory.mates)),
        segments_(std::move(memory.segments)),
        arenas_(std::move(memory.arenas)),
        gone_(ranks_, false),
        stored_seen_(ranks_, 0),
        packets_written_(ranks_, 0),
        packets_read_(ranks_, 0) {
    for (const auto& mate : mates_) {
      if (mate != nullptr) group_.core().watch(mate->connection.get(), this);
    }
    group_.core().expect_crowd(static_cast<int>(ranks_));
  }

  ~NodeEngine() override {
    for (const auto& mate : mates_) {
      if (mate != nullptr) group_.core().unwatch(mate->connection.get());
    }
  }

  std::string_view medium() const override { return "shared memory"; }
  bool is_local() const override { return true; }
  std::shared_ptr<Arena> arena() const override { return arena_; }

  void start(const CollectivePtr& operation) override {
    const TilePlan plan(*operation, group_.size());
    running_.push_back({operation.get(), plan, next_first_tile_, {}, {}, {}, false});
    next_first_tile_ += plan.tiles;
  }

  // What is furthest along goes first, so that data is met again while it is in the caches.
  size_t advance() override {
    if (group_.failed()) return 0;
    size_t moved = 0;
    while (store() || reduce() || load() || close() || (moved > 0 && mates_come_shortly())) {
      if (group_.failed()) return moved + 1;
      ++moved;
      if (moved % kSlots == 0) break;  // let others have the mutex
    }
    if (group_.transfers().active()) moved += read_packets() + group_.transfers().advance();
    if (moved > 0) ring();
    if (group_.failed()) return moved + 1;
    const bool busy = !running_.empty() || !closing_.empty() || group_.transfers().active();
    if (moved == 0 && busy) moved += read_notes();
    if (moved == 0 && any_gone_) moved += check_gone();
    return moved;
  }

  void open_path(int) override {}
  size_t payload_most() const override { return kCellBytes; }

  bool send_packet(int rank, const Packet& packet, const std::byte* payload) override {
    const auto to = static_cast<size_t>(rank);
    if (gone_[to]) return true;
    const uint64_t read = segments_[to].channel(rank_).read.value.load(std::memory_order_acquire);
    if (packets_written_[to] - read >= kCells) return false;
    Channel& channel = mine_.channel(to);
    Cell& cell = channel.cells[packets_written_[to] % kCells];
    cell.packet = packet;
    if (packet.payload > 0) std::memcpy(cell.payload, payload, packet.payload);
    channel.written.value.store(++packets_written_[to], std::memory_order_release);
    return true;
  }

  void set_sleeping(bool sleeping) override {
    mine_.header().sleeping.value.store(sleeping ? 1 : 0, std::memory_order_seq_cst);
    fence();
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
    std::vector<int> late = ranks_where([&](size_t rank) { return !arrived(rank, tile); });
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
    closing_.clear();
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

  struct Part {
    uint64_t offset;  // elements
    uint64_t count;
  };

  // ---- what ranks tell each other

  const SegmentHeader& header_of(size_t rank) const {
    return rank == rank_ ? mine_.header() : segments_[rank].header();
  }
  const Mail& mail_of(size_t rank, uint64_t tile) const { return header_of(rank).mails[tile % kSlots]; }

  uint64_t counter(size_t rank, Counter which) const {
    return (header_of(rank).*which).value.load(std::memory_order_acquire);
  }
  void publish(Counter which, uint64_t value) {
    (mine_.header().*which).value.store(value, std::memory_order_release);
  }

  bool arrived(size_t rank, uint64_t tile) const {
    return mail_of(rank, tile).count.load(std::memory_order_acquire) > tile;
  }
  bool all_arrived(uint64_t tile) const {
    for (size_t rank = 0; rank < ranks_; ++rank) {
      if (rank != rank_ && !arrived(rank, tile)) return false;
    }
    return true;
  }

  // Whether all mates have counted beyond `tile`.
  bool all_beyond(Counter which, uint64_t tile) const {
    for (size_t rank = 0; rank < ranks_; ++rank) {
      if (rank != rank_ && counter(rank, which) <= tile) return false;
    }
    return true;
  }

  // The same of `stored`, remembering what was seen: looking costs a cache line from another core.
  bool all_stored(uint64_t tile) {
    for (size_t rank = 0; rank < ranks_; ++rank) {
      if (rank == rank_ || stored_seen_[rank] > tile) continue;
      stored_seen_[rank] = counter(rank, &SegmentHeader::stored);
      if (stored_seen_[rank] <= tile) return false;
    }
    return true;
  }

  template <typename Condition>
  std::vector<int> ranks_where(Condition condition) const {
    std::vector<int> ranks;
    for (size_t rank = 0; rank < ranks_; ++rank) {
      if (rank != rank_ && condition(rank)) ranks.push_back(static_cast<int>(rank));
    }
    return ranks;
  }
  std::vector<int> behind(Counter which, uint64_t tile) const {
    return ranks_where([&](size_t rank) { return counter(rank, which) <= tile; });
  }

  // ---- which part of what

  Running* running_at(uint64_t tile) {
    for (Running& running : running_) {
      if (tile < running.first_tile + running.plan.tiles)
        return tile < running.first_tile ? nullptr : &running;
    }
    return nullptr;
  }

  const std::byte* input_slot(size_t rank, uint64_t tile) const {
    return rank == rank_ ? mine_.input(tile) : segments_[rank].input(tile);
  }
  const std::byte* result_slot(size_t rank, uint64_t tile) const {
    return rank == rank_ ? mine_.result(tile) : segments_[rank].result(tile);
  }

  // Of `count` elements in all; those of one rank's block may be fewer than others'.
  static Part part_of(const Running& running, uint64_t tile, uint64_t count) {
    const uint64_t offset = std::min((tile - running.first_tile) * running.plan.per_tile, count);
    return {offset, std::min(running.plan.per_tile, count - offset)};
  }
  static Part part_of(const Running& running, uint64_t tile) {
    return part_of(running, tile, running.operation->signature.count);
  }
  // The tile's part of a rank's block, with its place in the whole buffer.
  static Part block_part(const Running& running, uint64_t tile, size_t block) {
    const Slice whole = running.operation->block(static_cast<int>(block));
    const Part part = part_of(running, tile, whole.count);
    return {whole.offset + part.offset, part.count};
  }

  // Where to read `rank`'s input: element `in_buffer` of its buffer, which is element `in_slot` of its tile.
  const std::byte* source(const Running& running, size_t rank, uint64_t tile, size_t piece,
                          uint64_t in_buffer, uint64_t in_slot) const {
    const CollectiveOperation& operation = *running.operation;
    const size_t element = operation.element();
    if (rank == rank_) return operation.inputs[piece] + in_buffer * element;
    if (running.plan.in_mail) return mail_of(rank, tile).payload + in_slot * element;
    const uint64_t place = running.inputs[rank][piece];
    if (place != Placement::kForeign) return arenas_[rank].base() + place + in_buffer * element;
    return input_slot(rank, tile) + in_slot * element;
  }

  // ---- 1: my input where mates can read it

  bool load() {
    if (numbering_waits_) return false;
    Running* running = running_at(loaded_);
    if (running == nullptr || loaded_ >= stored_ + kSlots) return false;
    if (loaded_ >= kSlots && !all_stored(loaded_ - kSlots)) return false;
    const CollectiveOperation& operation = *running->operation;
    Mail& mail = mine_.header().mails[loaded_ % kSlots];
    mine_.header().labels[loaded_ % kSlots].signature = operation.signature;
    mail.digest = operation.digest;
    if (running->plan.open) {  // what I have for whom lies where results of other operations do
      numbering_waits_ = true;
      std::memcpy(mine_.result(loaded_), operation.counts.data(), ranks_ * sizeof(uint64_t));
    }
    if (running->plan.in_mail) {
      copy_in(*running, loaded_, mail.payload);
    } else {
      const bool shared = place(*running, mail, loaded_ == running->first_tile);
      if (!shared) copy_in(*running, loaded_, mine_.input(loaded_));
    }
    mail.count.store(++loaded_, std::memory_order_release);
    return true;
  }

  // Of one input of that rank.
  uint64_t input_bytes(const CollectiveOperation& operation, size_t rank) const {
    uint64_t count = operation.signature.count;
    switch (operation.signature.kind) {
      case Collective::kReduceScatter:
      case Collective::kScatter:
      case Collective::kAllToAll:
      case Collective::kAllToAllV:
        count = operation.blocks_count(group_.size());
        break;
      case Collective::kAllGather:
      case Collective::kGather:
        count = operation.block(static_cast<int>(rank)).count;
        break;
      default:
        break;
    }
    return count * operation.element();
  }

  bool gives_input(const CollectiveOperation& operation) const {
    const Signature& signature = operation.signature;
    const bool rooted = signature.kind == Collective::kBroadcast || signature.kind == Collective::kScatter;
    return signature.kind != Collective::kBarrier && (!rooted || signature.root == group_.rank());
  }

  // Finds out where my buffers are, and tells it with the first tile. True where mates read the input in
  // place.
  bool place(Running& running, Mail& mail, bool first) {
    const CollectiveOperation& operation = *running.operation;
    if (first) {
      Placement placement;
      placement.output = Placement::kForeign;
      const bool in_place_exchange =
          operation.signature.kind == Collective::kAllToAll &&
          operation.inputs[0] == operation.output;  // read before it is overwritten
      const uint64_t bytes = input_bytes(operation, rank_);
      running.inputs.assign(ranks_, {});
      std::vector<uint64_t>& places = running.inputs[rank_];
      for (const std::byte* input : operation.inputs) {
        const auto offset =
            gives_input(operation) && !in_place_exchange && operation.inputs.size() <= Placement::kMaxInputs
                ? arena_->offset_of(input, bytes)
                : std::nullopt;
        places.push_back(offset.value_or(Placement::kForeign));
      }
      // All of the pieces or none: what is copied has one layout.
      if (std::ranges::count(places, Placement::kForeign) > 0) std::ranges::fill(places, Placement::kForeign);
      std::copy_n(places.begin(), std::min(places.size(), Placement::kMaxInputs), placement.inputs);
      const bool has_output = running.plan.two_phase && operation.output != nullptr;
      if (has_output)
        placement.output =
            arena_->offset_of(operation.output, operation.signature.count * operation.element())
                .value_or(Placement::kForeign);
      running.outputs.assign(ranks_, Placement::kForeign);
      running.outputs[rank_] = placement.output;
      const size_t used =
          offsetof(Placement, inputs) + std::min(places.size(), Placement::kMaxInputs) * sizeof(uint64_t);
      std::memcpy(mail.payload, &placement, used);
    }
    const std::vector<uint64_t>& places = running.inputs[rank_];
    return !places.empty() && places[0] != Placement::kForeign;
  }

  // What mates need of my input of this tile. My own slice, or block, nobody else reads.
  void copy_in(const Running& running, uint64_t tile, std::byte* slot) const {
    const CollectiveOperation& operation = *running.operation;
    if (!gives_input(operation)) return;
    const size_t element = operation.element();
    const Part part = part_of(running, tile);
    switch (operation.signature.kind) {
      case Collective::kReduceScatter:
      case Collective::kScatter:
      case Collective::kAllToAll:
      case Collective::kAllToAllV:
        for (size_t rank = 0; rank < ranks_; ++rank) {
          if (rank == rank_) continue;
          const Part block = block_part(running, tile, rank);
          copy(slot + rank * running.plan.per_tile * element, operation.inputs[0] + block.offset * element,
               block.count * element);
        }
        return;
      case Collective::kAllGather:
      case Collective::kGather: {
        const Part block = part_of(running, tile, operation.block(group_.rank()).count);
        return copy(slot, operation.inputs[0] + block.offset * element, block.count * element);
      }
      default:
        break;
    }
    const Slice own = running.plan.two_phase ? node_slice(part.count, ranks_, rank_) : Slice{part.count, 0};
    const uint64_t behind_own = own.offset + own.count;
    for (const std::byte* input : operation.inputs) {
      const std::byte* from = input + part.offset * element;
      copy(slot, from, own.offset * element);
      copy(slot + behind_own * element, from + behind_own * element, (part.count - behind_own) * element);
      slot += part.count * element;
    }
  }

  static void copy(std::byte* target, const std::byte* from, uint64_t bytes) {
    if (bytes == 0 || target == from) return;
    std::memcpy(target, from, bytes);
  }

  // Looks for the mails of a small operation before mates are rung for: that needs a fence, which would have
  // this rank's own mail reach the others before theirs can be looked for.
  bool mates_come_shortly() {
    if (reduced_ >= loaded_ || !running_at(reduced_)->plan.in_mail) return false;
    for (int look = group_.core().eager_looks(); look > 0; --look) {
      if (all_arrived(reduced_)) return true;
    }
    return false;
  }

  // ---- 2: everybody's input is there: check that it is the same operation, and reduce my slice

  bool reduce() {
    if (reduced_ >= loaded_ || !all_arrived(reduced_)) return false;
    Running* running = running_at(reduced_);
    if (!check_digests(*running->operation)) return true;
    if (running->plan.open && !read_counts(*running)) return true;
    if (!running->plan.in_mail && !running->placed && !read_placements(*running)) return true;
    if (running->plan.two_phase) reduce_slice(*running);
    publish(&SegmentHeader::reduced, ++reduced_);
    return true;
  }

  bool check_digests(const CollectiveOperation& operation) {
    for (size_t rank = 0; rank < ranks_; ++rank) {
      if (rank == rank_ || mail_of(rank, reduced_).digest == operation.digest) continue;
      const Signature theirs = segments_[rank].header().labels[reduced_ % kSlots].signature;
      group_.fail(mismatch(group_.rank(), operation.signature, static_cast<int>(rank), theirs));
      return false;
    }
    return true;
  }

  // In the first tile of an all_to_all_v: what everybody has for whom. It tells how many tiles there are, and
  // only then what number the next operation's have, so that nobody loads one before.
  bool read_counts(Running& running) {
    const CollectiveOperation& operation = *running.operation;
    uint64_t largest = operation.largest();
    running.sources.assign(ranks_, operation.block(group_.rank()).offset);
    for (size_t rank = 0; rank < ranks_; ++rank) {
      if (rank == rank_) continue;
      const auto* counts = reinterpret_cast<const uint64_t*>(result_slot(rank, reduced_));
      const Signature due = operation.signature_with(static_cast<int>(rank), false);
      Signature theirs = due;
      theirs.count = counts[rank_];
      if (!(theirs == due)) {
        group_.fail(mismatch(group_.rank(), due, static_cast<int>(rank), theirs));
        return false;
      }
      running.sources[rank] = std::accumulate(counts, counts + rank_, uint64_t{0});
      largest = std::max(largest, *std::max_element(counts, counts + ranks_));
    }
    TilePlan& plan = running.plan;
    plan.open = numbering_waits_ = false;
    const uint64_t more = largest == 0 ? 0 : (largest - 1) / plan.per_tile;
    plan.tiles += more;
    next_first_tile_ += more;
    for (Running& later : running_)
      if (later.first_tile > running.first_tile) later.first_tile += more;
    return true;
  }

  // Offsets come from mates: nothing outside their arenas may be touched for them.
  bool read_placements(Running& running) {
    const CollectiveOperation& operation = *running.operation;
    running.placed = true;
    for (size_t rank = 0; rank < ranks_; ++rank) {
      if (rank == rank_) continue;
      const auto* told = reinterpret_cast<const Placement*>(mail_of(rank, reduced_).payload);
      const bool canonical = operation.signature.kind == Collective::kCanonicalAllReduce;
      const size_t pieces = canonical ? static_cast<size_t>(operation.partials[rank]) : 1;
      for (size_t piece = 0; piece < pieces; ++piece)
        running.inputs[rank].push_back(piece < Placement::kMaxInputs ? told->inputs[piece]
                                                                     : Placement::kForeign);
      running.outputs[rank] = running.plan.two_phase ? told->output : Placement::kForeign;
      if (!inside(running, rank)) {
        group_.fail({ErrorCode::kReconfigure,
                     "rank " + std::to_string(rank) + " named memory outside its arena for " +
                         describe(operation.signature) + "; all ranks must run the same version",
                     {static_cast<int>(rank)}});
        return false;
      }
    }
    return true;
  }

  bool inside(const Running& running, size_t rank) const {
    const CollectiveOperation& operation = *running.operation;
    const bool by_pairs = operation.signature.kind == Collective::kAllToAllV;  // only my block is read
    const uint64_t skipped = by_pairs ? running.sources[rank] * operation.element() : 0;
    const uint64_t bytes =
        by_pairs ? operation.received[rank] * operation.element() : input_bytes(operation, rank);
    const auto fits = [&](uint64_t place, uint64_t begin, uint64_t size) {
      return place == Placement::kForeign || arenas_[rank].at(place + begin, size) != nullptr;
    };
    return fits(running.outputs[rank], 0, operation.signature.count * operation.element()) &&
           std::ranges::all_of(running.inputs[rank],
                               [&](uint64_t place) { return fits(place, skipped, bytes); });
  }

  void gather_sources(const Running& running, uint64_t tile, uint64_t in_buffer, uint64_t in_slot,
                      uint64_t stride) {
    sources_.clear();
    const CollectiveOperation& operation = *running.operation;
    const bool canonical = operation.signature.kind == Collective::kCanonicalAllReduce;
    for (size_t rank = 0; rank < ranks_; ++rank) {
      const size_t pieces = canonical ? static_cast<size_t>(operation.partials[rank]) : 1;
      for (size_t piece = 0; piece < pieces; ++piece)
        sources_.push_back(source(running, rank, tile, piece, in_buffer, in_slot + piece * stride));
    }
  }

  void reduce_sources(const CollectiveOperation& operation, uint64_t count) const {
    const Signature& signature = operation.signature;
    if (count == 0 || targets_.empty()) return;
    if (signature.kind == Collective::kCanonicalAllReduce) {
      fold_tree(operation.plan, operation.scale, targets_, streaming_, sources_, count);
    } else {
      fold({signature.dtype, signature.op, targets_, sources_, count, group_.size(), operation.factor,
            streaming_});
    }
  }

  void reduce_slice(const Running& running) {
    const CollectiveOperation& operation = *running.operation;
    const size_t element = operation.element();
    const Part part = part_of(running, reduced_);
    const Slice slice = node_slice(part.count, ranks_, rank_);
    gather_sources(running, reduced_, part.offset + slice.offset, slice.offset, part.count);
    find_targets(running, (part.offset + slice.offset) * element);
    reduce_sources(operation, slice.count);
  }

  // My output, those of mates that lie in arenas, and my segment for all others.
  void find_targets(const Running& running, uint64_t offset_bytes) {
    const Signature& signature = running.operation->signature;
    const bool rooted = signature.kind == Collective::kReduce;
    targets_.clear();
    streaming_ = 0;
    bool by_segment = false;
    for (size_t rank = 0; rank < ranks_; ++rank) {
      if (rooted && static_cast<int>(rank) != signature.root) continue;
      if (rank == rank_) {
        targets_.push_back(running.operation->output + offset_bytes);
      } else if (running.outputs[rank] != Placement::kForeign) {
        if (streams(running)) streaming_ |= uint64_t{1} << std::min<size_t>(targets_.size(), 63);
        targets_.push_back(arenas_[rank].base() + running.outputs[rank] + offset_bytes);
      } else {
        by_segment = true;
      }
    }
    if (by_segment) targets_.push_back(mine_.result(reduced_));
  }

  bool streams(const Running& running) const {
    return running.operation->signature.count * running.operation->element() >= kStreamingBytes;
  }

  // ---- 3: the result of the tile into my output

  bool store() {
    if (stored_ >= reduced_) return false;
    const Running& running = *running_at(stored_);
    if (running.plan.two_phase && !all_beyond(&SegmentHeader::reduced, stored_)) return false;
    if (running.operation->largest() > 0) copy_out(running);
    const bool last = stored_ == running.last_tile();
    publish(&SegmentHeader::stored, ++stored_);
    if (!last) return true;
    const bool read_in_place = !running.plan.in_mail && !running.plan.two_phase &&
                               !running.inputs[rank_].empty() &&
                               running.inputs[rank_][0] != Placement::kForeign;
    CollectiveOperation* const operation = running.operation;
    if (read_in_place) closing_.push_back({operation, running.last_tile()});
    running_.pop_front();
    if (!read_in_place) group_.finish(*operation);
    return true;
  }

  bool close() {
    if (closing_.empty() || !all_stored(closing_.front().last_tile)) return false;
    CollectiveOperation* const operation = closing_.front().operation;
    closing_.pop_front();
    group_.finish(*operation);
    return true;
  }

  void copy_out(const Running& running) {
    const CollectiveOperation& operation = *running.operation;
    const Signature& signature = operation.signature;
    const size_t element = operation.element();
    const bool is_root = signature.root == group_.rank();
    switch (signature.kind) {
      case Collective::kReduce:
        if (is_root) take_result(running);
        return;
      case Collective::kAllReduce:
      case Collective::kCanonicalAllReduce:
        return take_result(running);
      case Collective::kReduceScatter: {
        const Part part = part_of(running, stored_, operation.block(group_.rank()).count);
        const Part block = block_part(running, stored_, rank_);
        gather_sources(running, stored_, block.offset, rank_ * running.plan.per_tile, 0);
        targets_.assign(1, operation.output + part.offset * element);
        streaming_ = 0;
        return reduce_sources(operation, part.count);
      }
      case Collective::kGather:
        if (is_root) take_blocks(running);
        return;
      case Collective::kAllGather:
        return take_blocks(running);
      case Collective::kBroadcast: {
        const Part part = part_of(running, stored_);
        return copy(operation.output + part.offset * element,
                    source(running, static_cast<size_t>(signature.root), stored_, 0, part.offset, 0),
                    part.count * element);
      }
      case Collective::kScatter: {
        const Part part = part_of(running, stored_, operation.block(group_.rank()).count);
        const Part block = block_part(running, stored_, rank_);
        return copy(operation.output + part.offset * element,
                    source(running, static_cast<size_t>(signature.root), stored_, 0, block.offset,
                           rank_ * running.plan.per_tile),
                    part.count * element);
      }
      case Collective::kAllToAll: {
        const Part block = block_part(running, stored_, rank_);
        for (size_t rank = 0; rank < ranks_; ++rank) {
          const Part target = block_part(running, stored_, rank);
          copy(operation.output + target.offset * element,
               source(running, rank, stored_, 0, block.offset, rank_ * running.plan.per_tile),
               block.count * element);
        }
        return;
      }
      case Collective::kAllToAllV:
        for (size_t rank = 0; rank < ranks_; ++rank) {
          const Slice whole = operation.arriving(static_cast<int>(rank));
          const Part part = part_of(running, stored_, whole.count);
          copy(operation.output + (whole.offset + part.offset) * element,
               source(running, rank, stored_, 0, running.sources[rank] + part.offset,
                      rank_ * running.plan.per_tile),
               part.count * element);
        }
        return;
      case Collective::kBarrier:
      case Collective::kProbe:
        return;
    }
  }

  void take_result(const Running& running) {
    const CollectiveOperation& operation = *running.operation;
    const size_t element = operation.element();
    const Part part = part_of(running, stored_);
    std::byte* output = operation.output + part.offset * element;
    if (running.plan.in_mail) {
      gather_sources(running, stored_, 0, 0, part.count);
      targets_.assign(1, output);
      streaming_ = 0;
      return reduce_sources(operation, part.count);
    }
    if (running.outputs[rank_] != Placement::kForeign) return;  // mates have stored into it
    for (size_t rank = 0; rank < ranks_; ++rank) {
      if (rank == rank_) continue;
      const Slice slice = node_slice(part.count, ranks_, rank);
      copy(output + slice.offset * element, result_slot(rank, stored_), slice.count * element);
    }
  }

  void take_blocks(const Running& running) {
    const CollectiveOperation& operation = *running.operation;
    const size_t element = operation.element();
    for (size_t rank = 0; rank < ranks_; ++rank) {
      const Part block = block_part(running, stored_, rank);
      const uint64_t begin = part_of(running, stored_, operation.block(static_cast<int>(rank)).count).offset;
      copy(operation.output + block.offset * element, source(running, rank, stored_, 0, begin, 0),
           block.count * element);
    }
  }

  // ---- sends and receives

  // Of those that something here waits for: what others say can wait as well.
  size_t read_packets() {
    size_t moved = 0;
    for (size_t rank = 0; rank < ranks_; ++rank) {
      if (rank == rank_ || !group_.transfers().expects(static_cast<int>(rank))) continue;
      moved += read_packets(rank);
      if (group_.failed()) return moved;
    }
    return moved;
  }

  size_t read_packets(size_t rank) {
    const Channel& channel = segments_[rank].channel(rank_);
    const uint64_t written = channel.written.value.load(std::memory_order_acquire);
    size_t moved = 0;
    for (; packets_read_[rank] < written && moved < kCells && !group_.failed(); ++moved) {
      const Cell& cell = channel.cells[packets_read_[rank] % kCells];
      Packet packet = cell.packet;  // the mate may change its own
      packet.payload = std::min<uint32_t>(packet.payload, kCellBytes);
      group_.transfers().take(static_cast<int>(rank), packet, cell.payload);
      mine_.channel(rank).read.value.store(++packets_read_[rank], std::memory_order_release);
    }
    return moved;
  }

  // ---- sleeping mates, failed mates

  // What was published before is seen by whoever is read after, or the other way round.
  void fence() {
#if defined(__SANITIZE_THREAD__)  // which does not know fences
    mine_.header().fence.value.exchange(1, std::memory_order_seq_cst);
#else
    std::atomic_thread_fence(std::memory_order_seq_cst);
#endif
  }

  // Wakes mates that sleep. Sleeper: flag, fence, counters; ringer: counters, fence, flag: one of the two
  // sees the other.
  void ring() {
    fence();
    const uint64_t one = 1;
    for (size_t rank = 0; rank < ranks_; ++rank) {
      if (rank == rank_ || segments_[rank].header().sleeping.value.load(std::memory_order_seq_cst) == 0)
        continue;
      [[maybe_unused]] const ssize_t wrote = write(mates_[rank]->bell->get(), &one, sizeof one);
    }
  }

  // A mate that gave up says why.
  size_t read_notes() {
    for (size_t rank = 0; rank < ranks_; ++rank) {
      if (rank == rank_) continue;
      const FailureNote& note = segments_[rank].header().failure;
      if (note.written.load(std::memory_order_acquire) == 0) continue;
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
    for (size_t rank = 0; rank < ranks_; ++rank) {
      if (!gone_[rank] || !(needs(rank) || group_.transfers().expects(static_cast<int>(rank)))) continue;
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
    const uint64_t stored = counter(rank, &SegmentHeader::stored);
    if (!closing_.empty() && stored <= closing_.front().last_tile) return true;
    if (running_.empty()) return false;
    return !arrived(rank, stored_) ||
           (running_.front().plan.two_phase && counter(rank, &SegmentHeader::reduced) <= stored_) ||
           (loaded_ >= kSlots && stored <= loaded_ - kSlots);
  }

  GroupState& group_;
  const size_t rank_;
  const size_t ranks_;
  Segment mine_;
  const std::shared_ptr<Arena> arena_;
  std::vector<std::unique_ptr<LocalMate>> mates_;
  std::vector<Segment> segments_;
  std::vector<ArenaView> arenas_;
  std::vector<bool> gone_;
  bool any_gone_ = false;
  std::pmr::unsynchronized_pool_resource pool_;  // keeps the blocks that the queue gives back all the time
  std::pmr::deque<Running> running_{&pool_};
  std::deque<Closing> closing_;
  uint64_t next_first_tile_ = 0;
  bool numbering_waits_ = false;  // for mates' counts; the tiles from loaded_ on may get other numbers
  // Tiles done by this rank, over all operations; stored_ ≤ reduced_ ≤ loaded_ ≤ stored_ + kSlots.
  uint64_t loaded_ = 0;
  uint64_t reduced_ = 0;
  uint64_t stored_ = 0;
  std::vector<uint64_t> stored_seen_;                     // of each mate, at some time
  std::vector<uint64_t> packets_written_, packets_read_;  // of each mate
  // Of the fold that is being made.
  std::vector<const std::byte*> sources_;
  std::vector<std::byte*> targets_;
  uint64_t streaming_ = 0;
};

}  // namespace

std::unique_ptr<Engine> make_node_engine(GroupState& group, NodeMemory memory) {
  return std::make_unique<NodeEngine>(group, std::move(memory));
}

}  // namespace muster
