#include "kernels/simt_runtime.h"

#include <algorithm>
#include <cstdlib>
#include <map>
#include <memory>
#include <optional>

#include "kernels/simt_fiber.h"
#include "runtime/base/check.h"
#include "runtime/base/random.h"

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#endif

namespace muster::simt {
namespace {

constexpr size_t kMarginBytes = 64;
constexpr unsigned char kMarginByte = 0xC5;
constexpr unsigned char kPoisonByte = 0xFF;

std::string text_of(Where where) {
  const std::string path = where.file_name();
  const size_t slash = path.rfind('/');
  return (slash == std::string::npos ? path : path.substr(slash + 1)) + ":" + std::to_string(where.line());
}

bool same_place(Where a, Where b) {
  return a.line() == b.line() && std::strcmp(a.file_name(), b.file_name()) == 0;
}

enum class Wait : uint8_t { kReady, kBarrier, kWarp, kReturned };

struct Lane {
  Dim3 thread;
  unsigned index = 0;
  Wait wait = Wait::kReady;
  Where where;
  WarpRequest request{};
  uint64_t result = 0;
  Fiber* fiber = nullptr;
};

struct SharedArray {
  std::string name;
  GuardedBytes memory;
};

// One block in execution: its lanes, its shared arrays, the first thing that went wrong.
class Block {
 public:
  Block(Dim3 grid, Dim3 size, Dim3 position, Schedule schedule, const std::function<void()>& body);
  std::optional<std::string> run();

  // From lanes.
  Dim3 coordinates(Which which) const;
  void barrier(Where where);
  uint64_t exchange(const WarpRequest& request);
  void* shared(const void* key, const char* name, size_t bytes);
  Lane& lane() { return *current_; }
  bool refuses(const WarpRequest& request);
  bool refuses_address(const void* address, size_t bytes, Where where);
  [[noreturn]] void stop_lane();

 private:
  void run_round();
  void resume(Lane& lane);
  bool resolve_barrier();
  bool resolve_warps();
  bool resolve_warp_of(Lane& lane);
  std::optional<std::string> objection(const Lane& lane, const Lane& other) const;
  void complete(unsigned warp, unsigned mask);
  void report_stuck();
  void fail(const std::string& text);
  void check_shared();
  std::string name_of(const Lane& lane) const;
  std::string doing(const Lane& lane) const;
  Lane* lane_of(unsigned warp, unsigned position);
  unsigned warp_mask(unsigned warp) const;
  static void enter(void* argument);

  Dim3 grid_;
  Dim3 size_;
  Dim3 position_;
  Schedule schedule_;
  SeededRandom random_;
  const std::function<void()>& body_;
  std::vector<Lane> lanes_;
  std::vector<unsigned> order_;
  std::map<const void*, SharedArray> shared_;
  std::optional<std::string> failure_;
  Lane* current_ = nullptr;
};

thread_local Block* running = nullptr;

// Stacks are kept by their OS thread from block to block: making one costs three system calls.
Fiber* fiber_of(unsigned index) {
  thread_local std::vector<std::unique_ptr<Fiber>> fibers;
  while (fibers.size() <= index) fibers.push_back(std::make_unique<Fiber>());
  return fibers[index].get();
}

Block::Block(Dim3 grid, Dim3 size, Dim3 position, Schedule schedule, const std::function<void()>& body)
    : grid_(grid),
      size_(size),
      position_(position),
      schedule_(schedule),
      random_(schedule.seed ^
              mix64((uint64_t{position.z} << 42) ^ (uint64_t{position.y} << 21) ^ position.x)),
      body_(body),
      lanes_(size.count()) {
  for (unsigned i = 0; i < lanes_.size(); ++i) {
    lanes_[i].index = i;
    lanes_[i].thread = {i % size.x, i / size.x % size.y, i / size.x / size.y};
    lanes_[i].fiber = fiber_of(i);
    order_.push_back(i);
  }
  if (schedule.order == Order::kReverse) std::reverse(order_.begin(), order_.end());
}

void Block::enter(void* argument) {
  auto* block = static_cast<Block*>(argument);
  block->body_();
}

std::optional<std::string> Block::run() {
  Block* outer = std::exchange(running, this);
  for (Lane& lane : lanes_) lane.fiber->start(&Block::enter, this);
  auto any_live = [this] {
    return std::any_of(lanes_.begin(), lanes_.end(), [](const Lane& l) { return l.wait != Wait::kReturned; });
  };
  while (!failure_ && any_live()) {
    run_round();  // leaves no lane ready
    if (failure_ || resolve_warps() || failure_ || !any_live()) continue;
    if (!resolve_barrier()) report_stuck();
  }
  running = outer;
  check_shared();
  return failure_;
}

void Block::run_round() {
  if (schedule_.order == Order::kSeeded) {
    for (size_t i = order_.size(); i > 1; --i) std::swap(order_[i - 1], order_[random_.below(i)]);
  }
  for (const unsigned index : order_) {
    if (lanes_[index].wait == Wait::kReady) resume(lanes_[index]);
    if (failure_) return;
  }
}

void Block::resume(Lane& lane) {
  current_ = &lane;
  lane.fiber->resume();
  if (lane.fiber->finished()) lane.wait = Wait::kReturned;
  current_ = nullptr;
}

void Block::fail(const std::string& text) {
  if (!failure_) {
    failure_ = "block (" + std::to_string(position_.x) + "," + std::to_string(position_.y) + "," +
               std::to_string(position_.z) + "), " + to_string(schedule_) + " order: " + text;
  }
}

// REQUIRES: failure_ is set. The lane's stack is abandoned, not unwound: its callers own nothing on it.
void Block::stop_lane() {
  current_->fiber->suspend();
  MUSTER_CHECK(false, "a lane of a failed block was resumed");
  __builtin_unreachable();
}

std::string Block::name_of(const Lane& lane) const { return "thread " + std::to_string(lane.index); }

std::string Block::doing(const Lane& lane) const {
  switch (lane.wait) {
    case Wait::kReturned:
      return name_of(lane) + " has returned";
    case Wait::kBarrier:
      return name_of(lane) + " waits at the block's barrier at " + text_of(lane.where);
    case Wait::kWarp:
      return name_of(lane) + " waits at the warp operation at " + text_of(lane.where);
    case Wait::kReady:
      break;
  }
  return name_of(lane) + " runs";
}

Dim3 Block::coordinates(Which which) const {
  switch (which) {
    case Which::kThread:
      return current_->thread;
    case Which::kBlock:
      return position_;
    case Which::kBlockSize:
      return size_;
    case Which::kGridSize:
      break;
  }
  return grid_;
}

void Block::barrier(Where where) {
  current_->wait = Wait::kBarrier;
  current_->where = where;
  current_->fiber->suspend();
}

bool Block::refuses(const WarpRequest& request) {
  const unsigned missing = request.mask & ~warp_mask(current_->index / kWarp);
  std::string text;
  if ((request.mask >> (current_->index % kWarp) & 1u) == 0) {
    text = " is not named by its own mask";
  } else if (missing != 0) {
    text = " names lane " + std::to_string(__builtin_ctz(missing)) + ", which does not exist,";
  } else if (request.operation == WarpOperation::kShuffle && (request.mask >> request.source & 1u) == 0) {
    text = " reads lane " + std::to_string(request.source) + ", which its mask does not name,";
  } else {
    return false;
  }
  fail(name_of(*current_) + text + " at " + text_of(request.where));
  return true;
}

bool Block::refuses_address(const void* address, size_t bytes, Where where) {
  if (reinterpret_cast<uintptr_t>(address) % bytes == 0) return false;
  fail(name_of(*current_) + " makes a misaligned access of " + std::to_string(bytes) + " bytes at " +
       text_of(where));
  return true;
}

uint64_t Block::exchange(const WarpRequest& request) {
  if (refuses(request)) stop_lane();
  Lane& self = *current_;
  self.wait = Wait::kWarp;
  self.where = request.where;
  self.request = request;
  self.fiber->suspend();
  return self.result;
}

unsigned Block::warp_mask(unsigned warp) const {
  const unsigned left = static_cast<unsigned>(lanes_.size()) - warp * kWarp;
  return left >= kWarp ? 0xFFFFFFFFu : (1u << left) - 1;
}

Lane* Block::lane_of(unsigned warp, unsigned position) { return &lanes_[warp * kWarp + position]; }

bool Block::resolve_warps() {
  bool progress = false;
  for (Lane& lane : lanes_) {
    if (failure_) break;
    if (lane.wait == Wait::kWarp) progress |= resolve_warp_of(lane);
  }
  return progress;
}

// Completes the operation of `lane` if all lanes that it names have arrived at it.
bool Block::resolve_warp_of(Lane& lane) {
  const unsigned warp = lane.index / kWarp;
  bool all_here = true;
  for (unsigned position = 0; position < kWarp; ++position) {
    if ((lane.request.mask >> position & 1u) == 0) continue;
    const Lane& other = *lane_of(warp, position);
    if (auto text = objection(lane, other)) {
      fail(*text);
      return false;
    }
    all_here &= other.wait == Wait::kWarp;
  }
  if (all_here) complete(warp, lane.request.mask);
  return all_here;
}

// Why `other`, named by `lane`, can never take part in what `lane` waits for; none where it may still come.
std::optional<std::string> Block::objection(const Lane& lane, const Lane& other) const {
  const std::string named = doing(lane) + ", whose mask names ";
  if (other.wait == Wait::kReturned) return named + doing(other) + ", which cannot come: it returned early";
  if (other.wait != Wait::kWarp) return std::nullopt;
  const bool names_back = (other.request.mask >> (lane.index % kWarp) & 1u) != 0;
  const bool same = other.request.operation == lane.request.operation &&
                    other.request.mask == lane.request.mask && same_place(other.where, lane.where);
  if (same) return std::nullopt;
  if (!names_back)
    return named + "thread " + std::to_string(other.index) + ", but " + doing(other) +
           " with a mask that does not name it back";
  if (other.request.mask != lane.request.mask) {
    return named + "thread " + std::to_string(other.index) + ", but " + doing(other) + " with another mask";
  }
  return named + "thread " + std::to_string(other.index) + ", but " + doing(other) + ": another operation";
}

void Block::complete(unsigned warp, unsigned mask) {
  unsigned ballot = 0;
  for (unsigned position = 0; position < kWarp; ++position) {
    if ((mask >> position & 1u) != 0 && lane_of(warp, position)->request.value != 0) ballot |= 1u << position;
  }
  for (unsigned position = 0; position < kWarp; ++position) {
    if ((mask >> position & 1u) == 0) continue;
    Lane& lane = *lane_of(warp, position);
    lane.result = lane.request.operation == WarpOperation::kBallot
                      ? ballot
                      : lane_of(warp, static_cast<unsigned>(lane.request.source))->request.value;
  }
  for (unsigned position = 0; position < kWarp; ++position) {
    if ((mask >> position & 1u) != 0) lane_of(warp, position)->wait = Wait::kReady;
  }
}

// REQUIRES: no lane is ready and no warp operation can complete.
bool Block::resolve_barrier() {
  const Lane& first = lanes_.front();
  for (const Lane& lane : lanes_) {
    if (lane.wait != Wait::kBarrier || first.wait != Wait::kBarrier || !same_place(lane.where, first.where)) {
      return false;
    }
  }
  for (Lane& lane : lanes_) lane.wait = Wait::kReady;
  return true;
}

void Block::report_stuck() {
  const auto waiting =
      std::find_if(lanes_.begin(), lanes_.end(), [](const Lane& l) { return l.wait != Wait::kReturned; });
  const auto differs = std::find_if(lanes_.begin(), lanes_.end(), [&](const Lane& l) {
    return l.wait != waiting->wait || (l.wait != Wait::kReturned && !same_place(l.where, waiting->where));
  });
  const bool early = differs != lanes_.end() && differs->wait == Wait::kReturned;
  fail(std::string(early ? "early return before a barrier: " : "deadlock: ") + doing(*waiting) +
       (differs != lanes_.end() ? " while " + doing(*differs) : ""));
}

void* Block::shared(const void* key, const char* name, size_t bytes) {
  auto found = shared_.find(key);
  if (found == shared_.end()) {
    found = shared_.emplace(key, SharedArray{name, GuardedBytes(bytes, 0)}).first;
  }
  return found->second.memory.data();
}

void Block::check_shared() {
  for (const auto& [key, array] : shared_) {
    if (!array.memory.intact()) {
      fail("a write just outside of the shared array " + array.name + " of " +
           std::to_string(array.memory.bytes()) + " bytes");
    }
  }
}

}  // namespace

std::string to_string(Schedule schedule) {
  switch (schedule.order) {
    case Order::kForward:
      return "forward";
    case Order::kReverse:
      return "reverse";
    case Order::kSeeded:
      break;
  }
  return "seed " + std::to_string(schedule.seed);
}

std::vector<Schedule> schedules(int seeded) {
  std::vector<Schedule> all = {{Order::kForward, 0}, {Order::kReverse, 0}};
  for (int seed = 1; seed <= seeded; ++seed) all.push_back({Order::kSeeded, static_cast<uint64_t>(seed)});
  return all;
}

namespace {

std::vector<uint64_t> block_order(uint64_t blocks, Schedule schedule) {
  std::vector<uint64_t> order(blocks);
  for (uint64_t i = 0; i < blocks; ++i) order[i] = schedule.order == Order::kReverse ? blocks - 1 - i : i;
  if (schedule.order != Order::kSeeded) return order;
  SeededRandom random(schedule.seed);
  for (uint64_t i = blocks; i > 1; --i) std::swap(order[i - 1], order[random.below(i)]);
  return order;
}

}  // namespace

Status launch(Dim3 grid, Dim3 block, Schedule schedule, const std::function<void()>& body) {
  const uint64_t blocks = uint64_t{grid.x} * grid.y * grid.z;
  const uint64_t threads = uint64_t{block.x} * block.y * block.z;
  if (threads == 0 || threads > kThreadsMax || blocks == 0) {
    return Error{ErrorCode::kMisuse, "a launch of " + std::to_string(blocks) + " blocks of " +
                                         std::to_string(threads) + " threads; CUDA takes 1 to 1024 threads"};
  }
  for (const uint64_t at : block_order(blocks, schedule)) {
    const Dim3 position{static_cast<unsigned>(at % grid.x), static_cast<unsigned>(at / grid.x % grid.y),
                        static_cast<unsigned>(at / grid.x / grid.y)};
    if (auto failure = Block(grid, block, position, schedule, body).run()) {
      return Error{ErrorCode::kMisuse, *failure};
    }
  }
  return ok();
}

Dim3 coordinates(Which which) { return running->coordinates(which); }
void block_barrier(Where where) { running->barrier(where); }
void* shared_array(const void* key, const char* name, size_t bytes) {
  return running->shared(key, name, bytes);
}
uint64_t warp_exchange(const WarpRequest& request) { return running->exchange(request); }

void require_aligned(const void* address, size_t bytes, Where where) {
  if (running->refuses_address(address, bytes, where)) running->stop_lane();
}

int source_of(ShuffleKind kind, int operand, int width) {
  const int self = static_cast<int>(running->lane().index % kWarp);
  const int segment = self / width * width;
  const int position = self - segment;
  int source = self;
  switch (kind) {
    case ShuffleKind::kIndex:
      return segment + (operand & (width - 1));
    case ShuffleKind::kUp:
      source = position - operand < 0 ? self : self - operand;
      break;
    case ShuffleKind::kDown:
      source = position + operand >= width ? self : self + operand;
      break;
    case ShuffleKind::kXor:
      // CUDA lets a lane read below its segment, not above it.
      source = (self ^ operand) >= segment + width ? self : self ^ operand;
      break;
  }
  return source;
}

GuardedBytes::GuardedBytes(size_t bytes, size_t offset)
    : front_(kMarginBytes + offset), bytes_(bytes), total_(0) {
  total_ = (front_ + bytes_ + kMarginBytes + 63) / 64 * 64;
  base_ = static_cast<unsigned char*>(std::aligned_alloc(64, total_));
  MUSTER_CHECK(base_ != nullptr, "out of memory");
  std::memset(base_, kMarginByte, total_);
  if (bytes_ > 0) std::memset(base_ + front_, kPoisonByte, bytes_);
#if defined(__SANITIZE_ADDRESS__)
  // Byte-exact behind; in front to the 8 bytes that AddressSanitizer's shadow can tell apart.
  __asan_poison_memory_region(base_, front_ / 8 * 8);
  __asan_poison_memory_region(base_ + front_ + bytes_, total_ - front_ - bytes_);
#endif
}

GuardedBytes::GuardedBytes(GuardedBytes&& other) noexcept
    : base_(std::exchange(other.base_, nullptr)),
      front_(other.front_),
      bytes_(other.bytes_),
      total_(other.total_) {}

GuardedBytes::~GuardedBytes() {
  if (base_ == nullptr) return;
#if defined(__SANITIZE_ADDRESS__)
  __asan_unpoison_memory_region(base_, total_);
#endif
  std::free(base_);
}

__attribute__((no_sanitize_address)) bool GuardedBytes::intact() const {
  for (size_t i = 0; i < total_; ++i) {
    const bool margin = i < front_ || i >= front_ + bytes_;
    if (margin && base_[i] != kMarginByte) return false;
  }
  return true;
}

}  // namespace muster::simt
