#include "collectives/transport_engine.h"

#include <algorithm>
#include <cstring>
#include <deque>
#include <set>

#include "collectives/schedule.h"
#include "collectives/transport_packets.h"
#include "runtime/base/check.h"
#include "runtime/base/random.h"

namespace muster {
namespace {

// Messages posted at once for one operation, shared among its peers. Bounds memory; one each is always
// posted.
constexpr size_t kWindow = 16;
// Messages that a peer has not taken yet, of operations that have ended here. With more of them nothing of a
// later operation is sent to it: who runs ahead of the others, as the root of broadcasts can, waits for them.
// Of earlier operations, since what is later may be taken only after the one that would wait: the oldest
// operation that has not ended everywhere is never held, for all before it were taken.
constexpr size_t kUntakenMost = 64;
// Elements folded in one go, after which others get the mutex.
constexpr uint64_t kFoldElements = 128 * 1024;
// With more senders in a round, folds wait until it is over: to look what has arrived of each costs more.
constexpr size_t kPeersLookedAt = 16;
// Operations of a group that move at once; later ones wait for their turn.
constexpr size_t kConcurrent = 8;
// The bits of a tag that tell parts apart, which share their operation's window: no part begins while one
// with its tag moves.
constexpr int kPartBits = 6;
constexpr uint64_t kPartTags = uint64_t{1} << kPartBits;

enum class ControlKind : uint32_t { kFailure = 1, kInquire = 2, kState = 3, kLeave = 4 };

struct ControlMessage {
  static constexpr uint32_t kMagic = 0x3243554dU;  // "MUC2": version 2
  static constexpr int kMaxSuspects = 32;
  uint32_t magic = kMagic;
  ControlKind kind = ControlKind::kState;
  int32_t source = 0;
  uint32_t code = 0;
  Generation generation;
  uint64_t issued = 0;  // operations that the source has issued; where it leaves, that have ended well there
  Signature asked;      // of the operation that the source inquires about
  uint32_t suspect_count = 0;
  uint32_t text_size = 0;
  int32_t suspects[kMaxSuspects] = {};
  char text[512] = {};
};

class TransportEngine;

// One part of an operation on its way through its schedule: elements from `offset` on.
class ScheduleRun final : public TransferOwner {
 public:
  // `window`: messages posted at once.
  ScheduleRun(TransportEngine& engine, CollectivePtr operation, Schedule schedule, uint64_t part,
              uint64_t offset, size_t window);

  uint64_t part() const { return part_; }
  size_t advance();
  bool finished() const { return round_ == schedule_.rounds.size(); }
  void abandon();
  std::set<int> waits_for() const;

  void transfer_ended(uint64_t cookie, TransferStatus status, size_t bytes) override;

 private:
  // The transfers of a round with one peer in one direction, as one stream of messages.
  struct Stream {
    int peer;
    std::vector<Region> regions;
    size_t region = 0;  // cursor of what is posted next
    uint64_t offset = 0;
    size_t in_flight = 0;  // of receives; of sends see unended_
    bool posted_all() const { return region == regions.size(); }
  };
  struct InFlight {
    TransferId id;
    bool is_send;
    int peer;
    size_t stream;
    uint64_t round;
    Region part;
    uint64_t index;
    MessagePtr message;
  };

  void start_round();
  static void add_to_streams(std::vector<Stream>& streams, const Transfer& transfer);
  size_t post(std::vector<Stream>& streams, bool is_send);
  bool may_post(const Stream& stream, bool is_send, size_t window) const;
  Region next_part(Stream& stream) const;
  void post_send(size_t stream, const Region& part);
  void post_receive(size_t stream, const Region& part);
  void take(InFlight& arrived, size_t bytes);
  size_t advance_folds();
  uint64_t foldable(const Fold& fold) const;
  uint64_t arrived_of(const Region& region) const;
  bool overlap(const Region& a, const Region& b) const;
  void run_fold(const Fold& fold, uint64_t offset, uint64_t count);
  std::byte* address(const Region& region, uint64_t offset) const;
  uint64_t tag_of(int source, int receiver) const;
  bool transfers_done() const;

  TransportEngine& engine_;
  CollectivePtr operation_;
  Schedule schedule_;
  const uint64_t part_;
  const uint64_t offset_;
  const size_t window_;
  const std::unique_ptr<std::byte[]> scratch_;  // not zeroed: that costs as much as a fold
  size_t round_ = 0;
  bool started_ = false;
  size_t fold_ = 0;
  uint64_t fold_offset_ = 0;
  bool news_ = false;  // more may have become foldable
  std::vector<Stream> sends_, receives_;
  std::map<uint64_t, InFlight> in_flight_;
  uint64_t next_cookie_ = 0;
  std::vector<uint64_t> sent_, received_;  // messages so far, by peer
  std::vector<size_t> unended_;            // of the sent ones, in this round or an earlier one, by peer
};

// One operation on its way: its parts in order, some of them at once.
class OperationRun final {
 public:
  OperationRun(TransportEngine& engine, CollectivePtr operation);

  size_t advance();
  bool finished() const { return moving_.empty() && next_ == parts_; }
  CollectiveOperation& operation() { return *operation_; }
  void abandon();
  std::set<int> waits_for() const;

 private:
  bool may_start_next() const;
  void start_next();

  TransportEngine& engine_;
  const CollectivePtr operation_;
  const std::string_view algorithm_;
  const uint64_t part_count_;  // elements of a part, but the last
  const uint64_t parts_;
  uint64_t next_ = 0;
  std::vector<std::unique_ptr<ScheduleRun>> moving_;
};

class TransportEngine final : public Engine, public TransferOwner {
 public:
  TransportEngine(GroupState& group, std::vector<PeerId> peers, std::span<const uint64_t> nodes,
                  std::string forced, std::unique_ptr<MessageBlocks> blocks)
      : group_(group),
        peers_(std::move(peers)),
        position_(position_of(group.rank(), nodes)),
        forced_(std::move(forced)),
        heard_(peers_.size(), 0),
        untaken_of_(peers_.size()),
        blocks_(std::move(blocks)),
        packets_(group, peers_, blocks_.get()) {
    for (const TagKind kind : kKinds) core().open_tags(group_tag(kind, own_port(), 0, 0));
    post_control();
  }

  ~TransportEngine() override {
    runs_.clear();
    if (control_message_ != nullptr) core().cancel(control_);
    core().forget_all(this);
    for (const TagKind kind : kKinds) core().close_tags(group_tag(kind, own_port(), 0, 0), group_tag_mask());
  }

  GroupState& group() { return group_; }
  Core& core() { return group_.core(); }
  Port own_port() const { return group_.port(group_.rank()); }
  PeerId peer(int rank) const { return peers_[rank]; }
  MessageBlocks* blocks() { return blocks_.get(); }
  // A send to `rank` outlives its operation.
  void outlives(TransferId send, int rank, uint64_t sequence) {
    if (!core().hand_over(send, this, next_untaken_)) return;
    untaken_.emplace(next_untaken_++, Untaken{rank, sequence});
    ++untaken_of_[rank][sequence];
  }
  // Has too much to take before what operation `sequence` would send it.
  bool lags(int rank, uint64_t sequence) const {
    size_t before = 0;
    for (const auto& [earlier, count] : untaken_of_[rank]) {
      if (earlier >= sequence || before >= kUntakenMost) break;
      before += count;
    }
    return before >= kUntakenMost;
  }
  // Of an operation that starts now; empty: sizes fixed in code decide. It stays the operation's, whatever is
  // measured before its last part starts.
  std::string_view algorithm_for(const CollectiveOperation& operation) {
    if (!forced_.empty() || !chooser_.has_value()) return forced_;
    return chooser_->choose(operation);
  }
  Schedule schedule_for(const CollectiveOperation& operation, uint64_t count, std::string_view named) const {
    return choose_schedule(operation, count, position_, named);
  }

  std::string_view medium() const override {
    return group_.size() > 1 ? group_.core().transport()->name() : "alone";
  }

  const Position* position() const override { return &position_; }
  void choose_by(const CostNumbers& numbers) override { chooser_.emplace(numbers, position_); }
  AlgorithmCosts explain(const CollectiveOperation& operation) override {
    AlgorithmCosts costs;
    if (chooser_.has_value()) costs = weigh(operation, position_, chooser_->numbers());
    const std::string_view named = algorithm_for(operation);
    const uint64_t count = std::max<uint64_t>(1, part_elements(operation, position_, named));
    costs.chosen = schedule_for(operation, count, named).algorithm;
    if (named.empty()) costs.fixed = costs.chosen;  // at this count, not at the smaller one that was weighed
    return costs;
  }

  void start(const CollectivePtr& operation) override {
    runs_.push_back(std::make_unique<OperationRun>(*this, operation));
  }

  size_t advance() override {
    retired_.clear();
    size_t moved = blocks_ != nullptr && !blocks_->is_settled() ? blocks_->link() : 0;
    for (size_t i = 0; i < std::min(runs_.size(), kConcurrent); ++i) {
      moved += runs_[i]->advance();
      if (group_.failed()) return moved + 1;
    }
    for (size_t i = 0; i < std::min(runs_.size(), kConcurrent);) {
      if (!runs_[i]->finished()) {
        ++i;
        continue;
      }
      runs_[i]->abandon();
      group_.finish(runs_[i]->operation());
      runs_.erase(runs_.begin() + static_cast<std::ptrdiff_t>(i));
      ++moved;
    }
    moved += group_.transfers().advance() + packets_.moved();
    if (moved == 0 && (!gone_.empty() || !left_.empty())) moved += check_gone();
    return moved;
  }

  void open_path(int rank) override { packets_.open(rank); }
  size_t payload_most() const override { return kPayloadBytes; }
  bool send_packet(int rank, const Packet& packet, const std::byte* payload) override {
    return packets_.send(rank, packet, payload);
  }

  void set_sleeping(bool) override {}

  // What arrived before it died still counts; the group fails only where something is missing.
  void peer_gone(PeerId peer, const std::string& reason) override {
    for (size_t rank = 0; rank < peers_.size(); ++rank) {
      if (peers_[rank] == peer && static_cast<int>(rank) != group_.rank())
        gone_[static_cast<int>(rank)] = reason;
    }
  }

  Duration inquiry_time(Duration allowed) const override {
    return std::min<Duration>(allowed / 4, 250 * kMillisecond);
  }

  void inquire(const CollectiveOperation& operation) override {
    std::ranges::fill(heard_, 0);
    tell_all({.kind = ControlKind::kInquire, .asked = operation.signature});
  }

  Failure blame(const CollectiveOperation& operation) override {
    const uint64_t sequence = operation.signature.sequence;
    std::vector<int> silent, behind, slow;
    for (int rank = 0; rank < group_.size(); ++rank) {
      if (rank == group_.rank()) continue;
      // Who left answers nothing, and is not to blame for what it had ended.
      if (const auto left = left_.find(rank); left != left_.end()) {
        if (left->second <= sequence) return {ErrorCode::kReconfigure, left_text(rank), {}};
      } else if (gone_.contains(rank) || heard_[rank] == 0) {
        silent.push_back(rank);
      } else if (heard_[rank] - 1 <= sequence) {
        behind.push_back(rank);
      }
    }
    for (const auto& run : runs_) {
      if (run->operation().signature.sequence != sequence) continue;
      for (const int rank : run->waits_for()) {
        if (!left_.contains(rank)) slow.push_back(rank);
      }
    }
    if (!silent.empty()) return timed_out("did not answer", silent);
    if (!behind.empty()) return timed_out("had not called it", behind);
    return timed_out("answered, but neither sent nor took what was due", slow);
  }

  void abandon(const Failure& failure, bool tell_peers) override {
    for (const auto& run : runs_) run->abandon();
    retired_ = std::exchange(runs_, {});  // they may be on the stack
    if (!tell_peers) return;
    ControlMessage message{.kind = ControlKind::kFailure, .code = static_cast<uint32_t>(failure.code)};
    message.suspect_count =
        static_cast<uint32_t>(std::min<size_t>(failure.suspects.size(), ControlMessage::kMaxSuspects));
    std::copy_n(failure.suspects.begin(), message.suspect_count, message.suspects);
    message.text_size = static_cast<uint32_t>(std::min(failure.reason.size(), sizeof message.text));
    std::memcpy(message.text, failure.reason.data(), message.text_size);
    tell_all(message);
  }

  void leave() override { tell_all({.kind = ControlKind::kLeave}); }

  void transfer_ended(uint64_t cookie, TransferStatus status, size_t bytes) override {
    if (cookie != kControlCookie) return taken(cookie);
    const MessagePtr arrived = std::exchange(control_message_, nullptr);
    ControlMessage message;
    const bool whole = status == TransferStatus::kDone && bytes == sizeof message;
    if (whole) std::memcpy(&message, arrived->data, sizeof message);
    if (status == TransferStatus::kDone || status == TransferStatus::kTruncated) post_control();
    if (whole && is_valid(message)) handle(message);
  }

 private:
  struct Untaken {
    int rank;
    uint64_t sequence;
  };
  static constexpr uint64_t kControlCookie = 0;
  static constexpr TagKind kKinds[] = {TagKind::kCollective, TagKind::kControl};

  void taken(uint64_t cookie) {
    const auto [rank, sequence] = untaken_.extract(cookie).mapped();
    const auto count = untaken_of_[rank].find(sequence);
    if (--count->second == 0) untaken_of_[rank].erase(count);
  }

  Failure timed_out(const std::string& what, const std::vector<int>& ranks) const {
    std::string names;
    for (int rank : ranks) names += (names.empty() ? "" : ", ") + std::to_string(rank);
    return {ErrorCode::kReconfigure,
            "the deadline passed; rank " + names + " " + what + ", as seen from rank " +
                std::to_string(group_.rank()),
            ranks};
  }

  static std::string left_text(int rank) { return "rank " + std::to_string(rank) + " left the group"; }

  // Some operation waits for a rank that is gone, or left, and nothing arrived in this pass. Word that a rank
  // left may overtake what it sent: of an operation that had ended there, all is on its way as long as the
  // rank is reached.
  size_t check_gone() {
    std::map<int, uint64_t> awaited;  // rank → the first operation that waits for it
    for (const auto& run : runs_) {
      for (const int rank : run->waits_for()) awaited.try_emplace(rank, run->operation().signature.sequence);
    }
    for (int rank = 0; rank < group_.size(); ++rank) {
      const auto waits = awaited.find(rank);
      const bool transfers = group_.transfers().expects(rank);
      if (waits == awaited.end() && !transfers) continue;
      const auto left = left_.find(rank);
      const bool has_sent = left != left_.end() && waits != awaited.end() && waits->second < left->second;
      if (has_sent && !gone_.contains(rank)) continue;
      if (left != left_.end()) {
        group_.fail({ErrorCode::kReconfigure, left_text(rank), {}}, false);
        return 1;
      }
      if (!gone_.contains(rank)) continue;
      group_.fail(
          {ErrorCode::kReconfigure, "rank " + std::to_string(rank) + " died: " + gone_.at(rank), {rank}});
      return 1;
    }
    return 0;
  }

  void post_control() {
    if (core().transport() == nullptr || group_.size() == 1) return;
    control_message_ = core().take_message();
    control_ = core().receive(group_tag(TagKind::kControl, own_port(), group_.rank(), 0), control_message_,
                              this, kControlCookie);
  }

  void tell(int rank, ControlMessage message) {
    if (gone_.contains(rank) || core().is_gone(peers_[rank])) return;
    message.source = group_.rank();
    message.generation = group_.generation();
    message.issued = message.kind == ControlKind::kLeave ? group_.ended_well() : group_.issued();
    const MessagePtr block = core().take_message();
    std::memcpy(block->data, &message, sizeof message);
    block->size = sizeof message;
    // A control message is tagged with the rank that it is for: one receive takes those of all.
    core().send(peers_[rank], group_tag(TagKind::kControl, group_.port(rank), rank, 0), block, nullptr, 0);
  }

  void tell_all(const ControlMessage& message) {
    for (int rank = 0; rank < group_.size(); ++rank) {
      if (rank != group_.rank()) tell(rank, message);
    }
  }

  bool is_valid(const ControlMessage& message) const {
    return message.magic == ControlMessage::kMagic && message.generation == group_.generation() &&
           message.source >= 0 && message.source < group_.size() && message.source != group_.rank() &&
           message.suspect_count <= ControlMessage::kMaxSuspects && message.text_size <= sizeof message.text;
  }

  // Ranks that called an operation differently may go by different algorithms, and so wait for messages that
  // nobody sends, with no message between them that would show it: the question does.
  void answer(const ControlMessage& inquiry) {
    const Signature* const mine = group_.called_with(inquiry.asked.sequence);
    if (mine != nullptr && !(*mine == inquiry.asked))
      return group_.fail(mismatch(group_.rank(), *mine, inquiry.source, inquiry.asked));
    tell(inquiry.source, {.kind = ControlKind::kState});
  }

  void handle(const ControlMessage& message) {
    heard_[message.source] = message.issued + 1;
    if (message.kind == ControlKind::kInquire) answer(message);
    if (message.kind == ControlKind::kLeave) left_[message.source] = message.issued;
    if (message.kind != ControlKind::kFailure || group_.failed()) return;
    Failure failure{message.code == static_cast<uint32_t>(ErrorCode::kMisuse) ? ErrorCode::kMisuse
                                                                              : ErrorCode::kReconfigure,
                    std::string(message.text, message.text_size) + " (told by rank " +
                        std::to_string(message.source) + ")",
                    {}};
    for (uint32_t i = 0; i < message.suspect_count; ++i) {
      const int suspect = message.suspects[i];
      if (suspect >= 0 && suspect < group_.size()) failure.suspects.push_back(suspect);
    }
    group_.fail(std::move(failure), false);
  }

  GroupState& group_;
  const std::vector<PeerId> peers_;
  const Position position_;
  const std::string forced_;
  std::optional<AlgorithmChooser> chooser_;
  std::vector<std::unique_ptr<OperationRun>> runs_;
  std::vector<std::unique_ptr<OperationRun>> retired_;
  std::map<int, std::string> gone_;      // rank → reason
  std::map<int, uint64_t> left_;         // rank → its operations that had ended well
  std::vector<uint64_t> heard_;          // since the last inquiry: issued + 1, or 0
  std::map<uint64_t, Untaken> untaken_;  // sends that have outlived their operations, by cookie
  uint64_t next_untaken_ = kControlCookie + 1;
  std::vector<std::map<uint64_t, size_t>> untaken_of_;  // by rank: how many, by operation
  TransferId control_ = 0;
  MessagePtr control_message_;
  const std::unique_ptr<MessageBlocks> blocks_;
  TransportPackets packets_;
};

OperationRun::OperationRun(TransportEngine& engine, CollectivePtr operation)
    : engine_(engine),
      operation_(std::move(operation)),
      algorithm_(engine.algorithm_for(*operation_)),
      part_count_(std::max<uint64_t>(1, part_elements(*operation_, *engine.position(), algorithm_))),
      parts_(std::max<uint64_t>(1, (operation_->signature.count + part_count_ - 1) / part_count_)) {}

bool OperationRun::may_start_next() const {
  const bool has_tag = moving_.empty() || next_ < moving_.front()->part() + kPartTags;
  return next_ < parts_ && moving_.size() < kPartsAtOnce && has_tag;
}

void OperationRun::start_next() {
  const uint64_t offset = next_ * part_count_;
  const uint64_t count = std::min(part_count_, operation_->signature.count - offset);
  const size_t window = parts_ > 1 ? kWindow / kPartsAtOnce : kWindow;
  moving_.push_back(std::make_unique<ScheduleRun>(
      engine_, operation_, engine_.schedule_for(*operation_, count, algorithm_), next_++, offset, window));
}

size_t OperationRun::advance() {
  size_t moved = 0;
  while (may_start_next()) start_next();
  for (size_t i = 0; i < moving_.size();) {
    moved += moving_[i]->advance();
    if (engine_.group().failed()) return moved + 1;
    if (!moving_[i]->finished()) {
      ++i;
      continue;
    }
    moving_[i]->abandon();
    moving_.erase(moving_.begin() + static_cast<std::ptrdiff_t>(i));
    if (may_start_next()) start_next();
  }
  return moved;
}

void OperationRun::abandon() {
  for (const auto& part : moving_) part->abandon();
}

std::set<int> OperationRun::waits_for() const {
  std::set<int> ranks;
  for (const auto& part : moving_) ranks.merge(part->waits_for());
  return ranks;
}

ScheduleRun::ScheduleRun(TransportEngine& engine, CollectivePtr operation, Schedule schedule, uint64_t part,
                         uint64_t offset, size_t window)
    : engine_(engine),
      operation_(std::move(operation)),
      schedule_(std::move(schedule)),
      part_(part),
      offset_(offset),
      window_(window),
      scratch_(std::make_unique_for_overwrite<std::byte[]>(schedule_.scratch_count * operation_->element())),
      sent_(static_cast<size_t>(engine.group().size()), 0),
      received_(static_cast<size_t>(engine.group().size()), 0),
      unended_(static_cast<size_t>(engine.group().size()), 0) {}

std::byte* ScheduleRun::address(const Region& region, uint64_t offset) const {
  const uint64_t bytes = (region.offset + offset) * operation_->element();
  const uint64_t skipped = offset_ * operation_->element();
  switch (region.buffer) {
    case BufferKind::kInput:
      return const_cast<std::byte*>(operation_->inputs[region.piece]) + skipped + bytes;
    case BufferKind::kOutput:
      return operation_->output + skipped + bytes;
    case BufferKind::kScratch:
      break;
  }
  return scratch_.get() + bytes;
}

uint64_t ScheduleRun::tag_of(int source, int receiver) const {
  const uint64_t part = part_ % kPartTags;
  return group_tag(TagKind::kCollective, engine_.group().port(receiver), source,
                   (operation_->signature.sequence << kPartBits) | part);
}

void ScheduleRun::add_to_streams(std::vector<Stream>& streams, const Transfer& transfer) {
  auto stream = std::ranges::find(streams, transfer.peer, &Stream::peer);
  if (stream == streams.end()) stream = streams.insert(streams.end(), Stream{transfer.peer, {}});
  stream->regions.push_back(transfer.region);
}

void ScheduleRun::start_round() {
  sends_.clear();
  receives_.clear();
  for (const Transfer& transfer : schedule_.rounds[round_].sends) add_to_streams(sends_, transfer);
  for (const Transfer& transfer : schedule_.rounds[round_].receives) add_to_streams(receives_, transfer);
  fold_ = 0;
  fold_offset_ = 0;
  news_ = true;
  started_ = true;
}

// The next message of the stream: at most a payload's worth of one region; both sides cut alike.
Region ScheduleRun::next_part(Stream& stream) const {
  const Region& region = stream.regions[stream.region];
  const uint64_t most = kPayloadBytes / operation_->element();
  const uint64_t count = std::min<uint64_t>(most, region.count - stream.offset);
  const Region part{region.buffer, region.piece, region.offset + stream.offset, count};
  stream.offset += count;
  if (stream.offset == region.count) {
    ++stream.region;
    stream.offset = 0;
  }
  return part;
}

size_t ScheduleRun::post(std::vector<Stream>& streams, bool is_send) {
  size_t posted = 0;
  const size_t window = streams.empty() ? 0 : std::max<size_t>(1, window_ / streams.size());
  for (size_t i = 0; i < streams.size(); ++i) {
    while (!streams[i].posted_all() && may_post(streams[i], is_send, window)) {
      const Region part = next_part(streams[i]);
      ++(is_send ? unended_[streams[i].peer] : streams[i].in_flight);
      ++posted;
      is_send ? post_send(i, part) : post_receive(i, part);
    }
  }
  return posted;
}

bool ScheduleRun::may_post(const Stream& stream, bool is_send, size_t window) const {
  if (!is_send) return stream.in_flight < window;
  return unended_[stream.peer] < window && !engine_.lags(stream.peer, operation_->signature.sequence);
}

void ScheduleRun::post_send(size_t stream, const Region& part) {
  const int peer = sends_[stream].peer;
  GroupState& group = engine_.group();
  const MessagePtr message = engine_.core().take_message();
  WireHeader header;
  header.source = group.rank();
  header.generation = group.generation();
  header.signature = operation_->signature_with(peer, true);
  header.index = sent_[peer]++;
  header.payload = part.count * operation_->element();
  pack(engine_.blocks(), peer, header, {part.count > 0 ? address(part, 0) : nullptr, header.payload},
       *message);
  const uint64_t cookie = next_cookie_++;
  const TransferId id =
      engine_.core().send(engine_.peer(peer), tag_of(group.rank(), peer), message, this, cookie);
  if (id == 0) {  // the peer is gone
    --unended_[peer];
    return;
  }
  in_flight_[cookie] = {id, true, peer, stream, round_, part, header.index, nullptr};
}

void ScheduleRun::post_receive(size_t stream, const Region& part) {
  const int peer = receives_[stream].peer;
  const MessagePtr message = engine_.core().take_message();
  const uint64_t cookie = next_cookie_++;
  InFlight& entry = in_flight_[cookie];
  entry = {0, false, peer, stream, round_, part, received_[peer]++, message};
  engine_.core().expect(engine_.peer(peer));
  entry.id = engine_.core().receive(tag_of(peer, engine_.group().rank()), message, this, cookie);
}

void ScheduleRun::transfer_ended(uint64_t cookie, TransferStatus status, size_t bytes) {
  const auto found = in_flight_.find(cookie);
  if (found == in_flight_.end()) return;
  InFlight ended = std::move(found->second);
  in_flight_.erase(found);
  if (ended.is_send) {
    // A send that failed means a peer that died; that is reported on its own, and may not matter to us.
    --unended_[ended.peer];
    return;
  }
  if (status == TransferStatus::kDone || status == TransferStatus::kTruncated) {
    take(ended, bytes);
    return;
  }
  engine_.group().fail({ErrorCode::kReconfigure,
                        "receiving from rank " + std::to_string(ended.peer) + " failed",
                        {ended.peer}});
}

void ScheduleRun::take(InFlight& arrived, size_t bytes) {
  GroupState& group = engine_.group();
  const int peer = arrived.peer;
  WireHeader header;
  if (bytes >= sizeof header) std::memcpy(&header, arrived.message->data, sizeof header);
  const bool ours = bytes >= sizeof header && header.magic == WireHeader::kMagic &&
                    header.generation == group.generation() && header.source == peer;
  if (!ours) {  // a stray with a colliding tag: drop it, and go on waiting
    const uint64_t cookie = next_cookie_++;
    arrived.message = engine_.core().take_message();
    InFlight& entry = in_flight_[cookie];
    entry = std::move(arrived);
    entry.id = engine_.core().receive(tag_of(peer, engine_.group().rank()), entry.message, this, cookie);
    return;
  }
  const Signature due = operation_->signature_with(peer, false);
  if (!(header.signature == due)) {
    group.fail(mismatch(group.rank(), due, peer, header.signature));
    return;
  }
  const uint64_t expected = arrived.part.count * operation_->element();
  const std::byte* const payload =
      payload_of(engine_.blocks(), peer, header, *arrived.message, bytes, expected);
  if (header.index != arrived.index || header.payload != expected || payload == nullptr) {
    group.fail({ErrorCode::kReconfigure,
                "rank " + std::to_string(peer) + " sent another piece of " + describe(operation_->signature) +
                    " than was due; all ranks must run the same version with the same options",
                {peer}});
    return;
  }
  if (expected > 0) std::memcpy(address(arrived.part, 0), payload, expected);
  if (header.name.use != 0) engine_.blocks()->release(peer, header.name);
  --receives_[arrived.stream].in_flight;
  news_ = true;
}

bool ScheduleRun::transfers_done() const {
  const auto received = [](const Stream& stream) { return stream.posted_all() && stream.in_flight == 0; };
  const auto sent = [](const Stream& stream) { return stream.posted_all(); };  // copied, that is
  return std::ranges::all_of(receives_, received) && std::ranges::all_of(sends_, sent);
}

void ScheduleRun::run_fold(const Fold& fold, uint64_t offset, uint64_t count) {
  std::vector<const std::byte*> sources;
  for (const Region& source : fold.sources) sources.push_back(address(source, offset));
  const Signature& signature = operation_->signature;
  if (fold.along_tree) {
    std::byte* target = address(fold.target, offset);
    fold_tree(operation_->plan, operation_->scale, {&target, 1}, 0, sources, count);
  } else if (const bool changes = signature.op == ReduceOp::kAvg || signature.op == ReduceOp::kPremulSum;
             sources.size() == 1 && !(fold.last && changes)) {
    std::byte* target = address(fold.target, offset);
    if (count > 0 && target != sources[0]) std::memmove(target, sources[0], count * operation_->element());
  } else {
    muster::fold(signature.dtype, signature.op, address(fold.target, offset), sources, count,
                 fold.last ? engine_.group().size() : 0, operation_->factor);
  }
}

bool ScheduleRun::overlap(const Region& a, const Region& b) const {
  if (a.count == 0 || b.count == 0) return false;
  const std::byte *begin = address(a, 0), *other = address(b, 0);
  return begin < other + b.count * operation_->element() && other < begin + a.count * operation_->element();
}

// Elements of a region, from its first on, that nothing on its way in this round will still write.
uint64_t ScheduleRun::arrived_of(const Region& region) const {
  for (size_t i = 0; i < receives_.size(); ++i) {
    const Stream& stream = receives_[i];
    for (size_t r = 0; r < stream.regions.size(); ++r) {
      const Region& received = stream.regions[r];
      if (!overlap(region, received)) continue;
      if (received != region) return 0;
      uint64_t arrived = r < stream.region ? region.count : r > stream.region ? 0 : stream.offset;
      for (const auto& [cookie, entry] : in_flight_) {
        const bool awaited = !entry.is_send && entry.round == round_ && entry.stream == i;
        if (awaited && overlap(entry.part, region))
          arrived = std::min(arrived, entry.part.offset - region.offset);
      }
      return arrived;
    }
  }
  return region.count;
}

// Elements of a fold that can be computed while the rest of the round is on its way. What it writes must be
// neither sent nor received then; input and output may be the same memory, so addresses count.
uint64_t ScheduleRun::foldable(const Fold& fold) const {
  if (transfers_done()) return fold.target.count;
  if (fold.target.count < kFoldElements || receives_.size() > kPeersLookedAt) return 0;
  uint64_t count = fold.target.count;
  for (const Region& source : fold.sources) count = std::min(count, arrived_of(source));
  if (count == 0) return 0;
  const auto touches = [&](const Transfer& transfer) { return overlap(transfer.region, fold.target); };
  const Round& round = schedule_.rounds[round_];
  const bool alone =
      std::ranges::none_of(round.sends, touches) && std::ranges::none_of(round.receives, touches);
  return alone ? count : 0;
}

size_t ScheduleRun::advance_folds() {
  const std::vector<Fold>& folds = schedule_.rounds[round_].folds;
  if (fold_ == folds.size()) return 0;
  const Fold& fold = folds[fold_];
  const uint64_t ready = foldable(fold);
  const uint64_t count = std::min(kFoldElements, ready - std::min(ready, fold_offset_));
  if (count < kFoldElements && fold_offset_ + count < fold.target.count) return 0;
  run_fold(fold, fold_offset_, count);
  fold_offset_ += count;
  if (fold_offset_ == fold.target.count) {
    ++fold_;
    fold_offset_ = 0;
  }
  return 1;
}

size_t ScheduleRun::advance() {
  if (finished()) return 0;
  if (!started_) start_round();
  size_t moved = post(receives_, false) + post(sends_, true);
  if (!transfers_done()) {
    const size_t folded = news_ ? advance_folds() : 0;
    news_ = folded > 0;
    return moved + folded;
  }
  while (!finished() && transfers_done()) {
    if (advance_folds() > 0) {
      ++moved;
      if (fold_offset_ > 0) return moved;  // a long one: let others have the mutex
      continue;
    }
    ++round_;
    ++moved;
    started_ = false;
    if (finished()) break;
    start_round();
    post(receives_, false);
    post(sends_, true);
  }
  return moved;
}

void ScheduleRun::abandon() {
  for (const auto& [cookie, entry] : in_flight_)
    entry.is_send ? engine_.outlives(entry.id, entry.peer, operation_->signature.sequence)
                  : engine_.core().cancel(entry.id);
  in_flight_.clear();
}

std::set<int> ScheduleRun::waits_for() const {
  std::set<int> ranks;
  if (!started_) return ranks;
  for (const Stream& stream : receives_) {
    if (!stream.posted_all() || stream.in_flight > 0) ranks.insert(stream.peer);
  }
  // A peer that takes nothing any more holds up what is not even posted.
  for (const Stream& stream : sends_) {
    if (!stream.posted_all()) ranks.insert(stream.peer);
  }
  return ranks;
}

}  // namespace

uint64_t group_tag(TagKind kind, Port port, int source, uint64_t sequence) {
  return make_tag(kind,
                  (uint64_t{port} << 42) | (static_cast<uint64_t>(source) << 30) | (sequence & 0x3fffffff));
}

uint64_t group_tag_mask() { return ~((uint64_t{1} << 42) - 1); }

std::unique_ptr<Engine> make_transport_engine(GroupState& group, std::vector<PeerId> peers,
                                              std::span<const uint64_t> nodes, std::string forced_algorithm,
                                              std::unique_ptr<MessageBlocks> blocks) {
  return std::make_unique<TransportEngine>(group, std::move(peers), nodes, std::move(forced_algorithm),
                                           std::move(blocks));
}

}  // namespace muster
