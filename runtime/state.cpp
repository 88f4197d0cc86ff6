#include "runtime/state.h"

#include <algorithm>
#include <chrono>
#include <functional>
#include <utility>

#include "runtime/base/check.h"

namespace muster {
namespace {

std::string shape_text(const std::vector<int64_t>& shape) {
  std::string text = "[";
  for (size_t i = 0; i < shape.size(); ++i) text += (i > 0 ? "," : "") + std::to_string(shape[i]);
  return text + "]";
}

std::string kind_text(const TensorInfo& tensor) {
  return std::string(to_string(tensor.dtype)) + shape_text(tensor.shape) +
         (tensor.data == nullptr && tensor.bytes > 0 ? " sharded" : "") +
         (tensor.working_copy == nullptr ? ""
          : tensor.data == nullptr       ? " gathered"
                                         : " per lane");
}

Result<uint64_t> byte_count(const std::string& name, DType dtype, const std::vector<int64_t>& shape) {
  uint64_t bytes = size_of(dtype);
  for (const int64_t extent : shape) {
    if (extent < 0 || __builtin_mul_overflow(bytes, static_cast<uint64_t>(extent), &bytes)) {
      return Error{ErrorCode::kMisuse,
                   "tensor '" + name + "' has shape " + shape_text(shape) +
                       ", which is negative or too large; register the extents of its memory"};
    }
  }
  return bytes;
}

}  // namespace

// The bytes that it takes.
Result<uint64_t> State::check_new(const std::string& name, const void* data, DType dtype,
                                  const std::vector<int64_t>& shape, bool may_lack_memory) const {
  if (sealed_) {
    return Error{
        ErrorCode::kMisuse,
        "tensor '" + name + "' was registered after the run had started; register all tensors before"};
  }
  if (name.empty()) return Error{ErrorCode::kMisuse, "a tensor needs a name; an empty one was given"};
  const auto same = [&](const TensorInfo& tensor) { return tensor.name == name; };
  if (std::ranges::any_of(tensors_, same) || std::ranges::any_of(sharded_.tensors(), same)) {
    return Error{ErrorCode::kMisuse, "two tensors are named '" + name +
                                         "'; names identify tensors in checkpoints, so give each its own"};
  }
  MUSTER_ASSIGN(const uint64_t bytes, byte_count(name, dtype, shape));
  if (data == nullptr && may_lack_memory) return bytes;
  if (data == nullptr && bytes > 0) {
    return Error{ErrorCode::kMisuse,
                 "tensor '" + name + "' was registered with a null pointer; pass its memory"};
  }
  if (reinterpret_cast<uintptr_t>(data) % size_of(dtype) != 0) {
    return Error{ErrorCode::kMisuse, "tensor '" + name + "' of " + std::string(to_string(dtype)) +
                                         " begins at an address that is no multiple of " +
                                         std::to_string(size_of(dtype)) + "; register aligned memory"};
  }
  const auto* const begin = static_cast<const std::byte*>(data);
  if (const TensorInfo* const other = overlapping(begin, bytes)) {
    return Error{ErrorCode::kMisuse, "tensors '" + other->name + "' and '" + name +
                                         "' share memory; register tied tensors once, under one name"};
  }
  if (lane_values_.overlaps(begin, bytes)) {
    return Error{ErrorCode::kMisuse, "tensor '" + name +
                                         "' and a value that was registered per lane share memory; register "
                                         "it once, under one name"};
  }
  return bytes;
}

// A tensor whose memory, or working copy, has any of these bytes.
const TensorInfo* State::overlapping(const std::byte* data, uint64_t bytes) const {
  for (const auto* tensors : {&tensors_, &sharded_.tensors()}) {
    for (const TensorInfo& tensor : *tensors) {
      const std::byte* const its = tensor.data != nullptr ? tensor.data : tensor.working_copy;
      if (its != nullptr && bytes > 0 && tensor.bytes > 0 && std::less<>()(data, its + tensor.bytes) &&
          std::less<>()(its, data + bytes))
        return &tensor;
    }
  }
  return nullptr;
}

Status State::add_replicated(std::string name, void* data, DType dtype, std::vector<int64_t> shape,
                             Memory memory) {
  MUSTER_ASSIGN(const uint64_t bytes, check_new(name, data, dtype, shape));
  bytes_ += bytes;
  tensors_.push_back({std::move(name), dtype, std::move(shape), static_cast<std::byte*>(data), bytes,
                      checkpoint::Expectation::kWatched, memory});
  return ok();
}

Status State::add_per_lane(std::string name, void* data, DType dtype, std::vector<int64_t> shape) {
  MUSTER_ASSIGN(const uint64_t bytes, check_new(name, data, dtype, shape));
  if (shape.empty() || bytes == 0) {
    return Error{ErrorCode::kMisuse,
                 "value '" + name + "' has shape " + shape_text(shape) +
                     "; a value per lane begins with the number of lanes, and has rows of "
                     "one element or more"};
  }
  if (!lane_values_.empty() && shape[0] != lane_values_.lanes()) {
    return Error{ErrorCode::kMisuse, "value '" + name + "' has " + std::to_string(shape[0]) +
                                         " rows, and the value per lane before it " +
                                         std::to_string(lane_values_.lanes()) +
                                         "; give each as many rows as there are lanes"};
  }
  std::byte* const counts = lane_values_.add(static_cast<std::byte*>(data), bytes, shape[0]);
  bytes_ += bytes;
  tensors_.push_back({std::move(name), dtype, std::move(shape), counts, bytes,
                      checkpoint::Expectation::kWatched, Memory::kHost, static_cast<std::byte*>(data)});
  return ok();
}

Status State::add_sharded(std::string name, void* working_copy, DType dtype, std::vector<int64_t> shape) {
  MUSTER_ASSIGN(const uint64_t bytes, check_new(name, working_copy, dtype, shape, true));
  if (shape.empty() || bytes == 0) {
    return Error{ErrorCode::kMisuse, "tensor '" + name + "' has shape " + shape_text(shape) +
                                         "; a sharded tensor is cut along its first dimension, and has "
                                         "rows of one element or more"};
  }
  TensorInfo tensor{std::move(name), dtype, std::move(shape)};
  tensor.bytes = bytes;
  tensor.working_copy = static_cast<std::byte*>(working_copy);
  sharded_.add(std::move(tensor));
  return ok();
}

Status State::expect(const std::string& name, checkpoint::Expectation expectation) {
  if (sealed_) {
    return Error{ErrorCode::kMisuse,
                 "what to expect of tensor '" + name + "' was said after the run had started; say it before"};
  }
  const auto found = std::ranges::find(tensors_, name, &TensorInfo::name);
  TensorInfo* const tensor = found != tensors_.end() ? &*found : sharded_.find(name);
  if (tensor != nullptr) {
    tensor->expectation = expectation;
    return ok();
  }
  return Error{ErrorCode::kMisuse, "no tensor is named '" + name + "'; register it first"};
}

void State::seal() { sealed_ = true; }

void State::set_mirror(StateMirror* mirror) {
  const std::lock_guard lock(mutex_);
  mirror_ = mirror;
  mirrored_ = kNothing;
}

bool State::on_device() const {
  return std::any_of(tensors_.begin(), tensors_.end(),
                     [](const TensorInfo& tensor) { return tensor.memory != Memory::kHost; });
}

bool State::older_is_read() const {
  const std::lock_guard lock(mutex_);
  return mirror_ != nullptr && readers_ > 0 && mirrored_ != written_;
}

std::string State::description() const {
  const size_t count = tensors_.size() + sharded_.tensors().size();
  std::string text = std::to_string(count) + " tensors, " + human_bytes(bytes_ + sharded_.bytes()) + ":";
  constexpr size_t kListed = 16;
  for (size_t i = 0; i < std::min(count, kListed); ++i) {
    const TensorInfo& tensor = i < tensors_.size() ? tensors_[i] : sharded_.tensors()[i - tensors_.size()];
    text += " " + tensor.name + " " + kind_text(tensor);
  }
  return count > kListed ? text + " …" : text;
}

Digest State::fingerprint() const {
  std::string text;
  for (const auto* tensors : {&tensors_, &sharded_.tensors()}) {
    for (const TensorInfo& tensor : *tensors) text += tensor.name + '\0' + kind_text(tensor) + '\n';
  }
  return digest_of(as_bytes(text));
}

Digest State::digest() const {
  std::vector<Digest> parts;
  parts.reserve(tensors_.size());
  for (const ByteSpan tensor : contents()) parts.push_back(digest_of(tensor));
  return digest_of(parts);
}

std::vector<ByteSpan> State::contents() const {
  MUSTER_CHECK(mirror_ != nullptr || !on_device(), "device memory is read through a mirror");
  std::vector<ByteSpan> parts;
  parts.reserve(tensors_.size());
  const std::byte* next = mirror_ != nullptr ? mirror_->host().data() : nullptr;
  for (const TensorInfo& tensor : tensors_) {
    parts.emplace_back(mirror_ != nullptr ? next : tensor.data, tensor.bytes);
    if (mirror_ != nullptr) next += tensor.bytes;
  }
  return parts;
}

void State::copy_to(MutableByteSpan target) const {
  MUSTER_CHECK(target.size() == bytes_, "a copy of the state has the state's size");
  std::byte* next = target.data();
  for (const ByteSpan tensor : contents()) next = std::copy(tensor.begin(), tensor.end(), next);
}

Status State::install(ByteSpan source, Instant deadline) {
  MUSTER_CHECK(source.size() == bytes_, "a copy of the state has the state's size");
  if (mirror_ != nullptr) return install_on_device(source, deadline);
  MUSTER_TRY(begin_write(deadline));
  size_t offset = 0;
  for (const TensorInfo& tensor : tensors_) {
    std::copy_n(source.data() + offset, tensor.bytes, tensor.data);
    offset += tensor.bytes;
  }
  end_write();
  return ok();
}

Status State::install_shards(ShardBlocks& arrived, std::span<const uint32_t> kept, Instant deadline) {
  MUSTER_TRY(begin_write(deadline));
  sharded_.keep_only(kept);
  sharded_.put(std::move(arrived));
  end_write();
  return ok();
}

namespace {

// Waits on `changed` for `ready` until a CLOCK_BOOTTIME deadline.
template <typename Ready>
bool wait_until(std::condition_variable& changed, std::unique_lock<std::mutex>& lock, Instant deadline,
                Ready ready) {
  while (!ready()) {
    const Duration left = deadline == kNever ? kSecond : deadline - now();
    if (left <= 0) return false;
    changed.wait_for(lock, std::chrono::nanoseconds(std::min<Duration>(left, kSecond)));
  }
  return true;
}

}  // namespace

Status State::acquire_read(Instant deadline) {
  std::unique_lock lock(mutex_);
  const auto may_read = [&] { return !writing_ && !fetching_ && (readers_ == 0 || mirror_is_current()); };
  if (!wait_until(changed_, lock, deadline, may_read)) {
    return Error{ErrorCode::kRetry,
                 writing_ ? "the program's update did not end before the deadline; the state was not read"
                          : "the copy of an earlier version was still read at the deadline; this one was "
                            "not copied"};
  }
  if (!mirror_is_current()) {
    mirrored_ = written_;
    fetch_due_ = true;
    unreadable_.reset();
  }
  ++readers_;
  return ok();
}

void State::share_read() {
  const std::lock_guard lock(mutex_);
  MUSTER_CHECK(readers_ > 0, "a lease that is shared is held");
  ++readers_;
}

// Without the lock: enqueuing may wait, where a device has much to do, and others only want to know things.
void State::fetch_if_due(std::unique_lock<std::mutex>& lock) {
  if (!std::exchange(fetch_due_, false)) return;
  fetching_ = true;
  lock.unlock();
  const Status begun = unordered_ ? Status(*unordered_) : mirror_->begin_fetch();
  lock.lock();
  fetching_ = false;
  if (!begun.ok()) {
    unreadable_ = begun.error();
    mirrored_ = kNothing;  // the next lease, once these have ended, tries again
  }
  changed_.notify_all();
}

void State::begin_copy() {
  std::unique_lock lock(mutex_);
  fetch_if_due(lock);
}

// What could not be waited for is copied anew for the next lease.
Status State::wait_readable(Instant deadline) {
  if (mirror_ == nullptr) return ok();
  {
    std::unique_lock lock(mutex_);
    fetch_if_due(lock);
    if (!wait_until(changed_, lock, deadline, [&] { return !fetching_; }))
      return Error{ErrorCode::kRetry, "the device took no copy of the state before the deadline"};
    if (unreadable_) return *unreadable_;
  }
  Status fetched = mirror_->finish_fetch(deadline);
  if (fetched.ok()) return fetched;
  const std::lock_guard lock(mutex_);
  mirrored_ = kNothing;
  return fetched;
}

void State::release_read() {
  const std::lock_guard lock(mutex_);
  MUSTER_CHECK(readers_ > 0, "a lease is released once");
  --readers_;
  changed_.notify_all();
}

Status State::begin_write(Instant deadline) {
  std::unique_lock lock(mutex_);
  const Instant start = now();
  const auto may_write = [&] { return !writing_ && !fetching_ && (readers_ == 0 || mirror_ != nullptr); };
  const bool ready = wait_until(changed_, lock, deadline, may_write);
  stall_ += now() - start;
  if (!ready) {
    return Error{ErrorCode::kRetry,
                 "a background copy of the state did not end before the deadline; the update was not opened"};
  }
  writing_ = true;
  if (mirror_ == nullptr) return ok();
  // What leases are held for goes before the update; what none is held for any more need not be copied.
  if (readers_ == 0 && std::exchange(fetch_due_, false)) mirrored_ = kNothing;
  fetch_if_due(lock);
  lock.unlock();
  Status ordered = mirror_->order_update();
  if (!ordered.ok()) cancel_write();
  return ordered;
}

Status State::note_written() {
  if (mirror_ == nullptr) return ok();
  Status noted = mirror_->note_written();
  const std::lock_guard lock(mutex_);
  unordered_.reset();
  if (!noted.ok()) unordered_ = noted.error();
  return noted;
}

void State::end_write() {
  const std::lock_guard lock(mutex_);
  ++written_;
  writing_ = false;
  changed_.notify_all();
}

void State::cancel_write() {
  const std::lock_guard lock(mutex_);
  writing_ = false;
  changed_.notify_all();
}

// The next lease copies anew: what readers then see, a digest among them, is what the device has.
Status State::install_on_device(ByteSpan source, Instant deadline) {
  {
    std::unique_lock lock(mutex_);
    const auto may_store = [&] { return !writing_ && !fetching_ && readers_ == 0; };
    if (!wait_until(changed_, lock, deadline, may_store)) {
      return Error{ErrorCode::kRetry,
                   "a copy of the state was still read at the deadline; nothing was installed"};
    }
    writing_ = true;
    mirrored_ = kNothing;
    fetch_due_ = false;
  }
  Status stored = mirror_->store(source, deadline);
  if (stored.ok()) stored = note_written();
  if (!stored.ok() && stored.error().code == ErrorCode::kRetry) {
    cancel_write();
    return stored;
  }
  end_write();
  return stored;
}

Duration State::stall() const {
  const std::lock_guard lock(mutex_);
  return stall_;
}

void State::add_stall(Duration wait) {
  const std::lock_guard lock(mutex_);
  stall_ += wait;
}

}  // namespace muster
