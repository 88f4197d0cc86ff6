#include "runtime/state.h"

#include <algorithm>
#include <chrono>
#include <functional>

#include "runtime/base/check.h"

namespace muster {
namespace {

std::string shape_text(const std::vector<int64_t>& shape) {
  std::string text = "[";
  for (size_t i = 0; i < shape.size(); ++i) text += (i > 0 ? "," : "") + std::to_string(shape[i]);
  return text + "]";
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

Status State::add_replicated(std::string name, void* data, DType dtype, std::vector<int64_t> shape) {
  if (sealed_) {
    return Error{
        ErrorCode::kMisuse,
        "tensor '" + name + "' was registered after the run had started; register all tensors before"};
  }
  if (name.empty()) return Error{ErrorCode::kMisuse, "a tensor needs a name; an empty one was given"};
  const auto same = [&](const TensorInfo& tensor) { return tensor.name == name; };
  if (std::any_of(tensors_.begin(), tensors_.end(), same)) {
    return Error{ErrorCode::kMisuse, "two tensors are named '" + name +
                                         "'; names identify tensors in checkpoints, so give each its own"};
  }
  MUSTER_ASSIGN(const uint64_t bytes, byte_count(name, dtype, shape));
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
  const auto shares = [&](const TensorInfo& tensor) {
    return bytes > 0 && tensor.bytes > 0 && std::less<>()(begin, tensor.data + tensor.bytes) &&
           std::less<>()(tensor.data, begin + bytes);
  };
  if (const auto other = std::find_if(tensors_.begin(), tensors_.end(), shares); other != tensors_.end()) {
    return Error{ErrorCode::kMisuse, "tensors '" + other->name + "' and '" + name +
                                         "' share memory; register tied tensors once, under one name"};
  }
  bytes_ += bytes;
  tensors_.push_back({std::move(name), dtype, std::move(shape), static_cast<std::byte*>(data), bytes,
                      checkpoint::Expectation::kWatched});
  return ok();
}

Status State::expect(const std::string& name, checkpoint::Expectation expectation) {
  if (sealed_) {
    return Error{ErrorCode::kMisuse,
                 "what to expect of tensor '" + name + "' was said after the run had started; say it before"};
  }
  for (TensorInfo& tensor : tensors_) {
    if (tensor.name != name) continue;
    tensor.expectation = expectation;
    return ok();
  }
  return Error{ErrorCode::kMisuse, "no tensor is named '" + name + "'; register it first"};
}

void State::seal() { sealed_ = true; }

std::string State::description() const {
  std::string text = std::to_string(tensors_.size()) + " tensors, " + human_bytes(bytes_) + ":";
  constexpr size_t kListed = 16;
  for (size_t i = 0; i < std::min(tensors_.size(), kListed); ++i) {
    const TensorInfo& tensor = tensors_[i];
    text += " " + tensor.name + " " + std::string(to_string(tensor.dtype)) + shape_text(tensor.shape);
  }
  return tensors_.size() > kListed ? text + " …" : text;
}

Digest State::fingerprint() const {
  std::string text;
  for (const TensorInfo& tensor : tensors_) {
    text += tensor.name + '\0' + std::string(to_string(tensor.dtype)) + shape_text(tensor.shape) + '\n';
  }
  return digest_of(as_bytes(text));
}

Digest State::digest() const {
  std::vector<Digest> parts;
  parts.reserve(tensors_.size());
  for (const TensorInfo& tensor : tensors_) parts.push_back(digest_of(ByteSpan(tensor.data, tensor.bytes)));
  return digest_of(parts);
}

std::vector<ByteSpan> State::contents() const {
  std::vector<ByteSpan> parts;
  parts.reserve(tensors_.size());
  for (const TensorInfo& tensor : tensors_) parts.emplace_back(tensor.data, tensor.bytes);
  return parts;
}

void State::copy_to(MutableByteSpan target) const {
  MUSTER_CHECK(target.size() == bytes_, "a copy of the state has the state's size");
  size_t offset = 0;
  for (const TensorInfo& tensor : tensors_) {
    std::copy_n(tensor.data, tensor.bytes, target.data() + offset);
    offset += tensor.bytes;
  }
}

Status State::install(ByteSpan source, Instant deadline) {
  MUSTER_CHECK(source.size() == bytes_, "a copy of the state has the state's size");
  MUSTER_TRY(begin_write(deadline));
  size_t offset = 0;
  for (const TensorInfo& tensor : tensors_) {
    std::copy_n(source.data() + offset, tensor.bytes, tensor.data);
    offset += tensor.bytes;
  }
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
  if (!wait_until(changed_, lock, deadline, [&] { return !writing_; })) {
    return Error{ErrorCode::kRetry,
                 "the program's update did not end before the deadline; the state was not read"};
  }
  ++readers_;
  return ok();
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
  const bool ready = wait_until(changed_, lock, deadline, [&] { return readers_ == 0 && !writing_; });
  stall_ += now() - start;
  if (!ready) {
    return Error{ErrorCode::kRetry,
                 "a background copy of the state did not end before the deadline; the update was not opened"};
  }
  writing_ = true;
  return ok();
}

void State::end_write() {
  const std::lock_guard lock(mutex_);
  writing_ = false;
  changed_.notify_all();
}

Duration State::stall() const {
  const std::lock_guard lock(mutex_);
  return stall_;
}

// Those of no bytes among them.
void StateDigest::close_tensors() {
  while (parts_.size() < tensors_.size() && current_bytes_ == tensors_[parts_.size()].bytes) {
    parts_.push_back(current_.digest());
    current_ = DigestStream();
    current_bytes_ = 0;
  }
}

void StateDigest::add(ByteSpan bytes) {
  while (!bytes.empty()) {
    close_tensors();
    MUSTER_CHECK(parts_.size() < tensors_.size(), "no more bytes than the state has");
    const size_t count = std::min<uint64_t>(bytes.size(), tensors_[parts_.size()].bytes - current_bytes_);
    current_.add(bytes.first(count));
    current_bytes_ += count;
    bytes = bytes.subspan(count);
  }
}

Digest StateDigest::finish() {
  close_tensors();
  MUSTER_CHECK(parts_.size() == tensors_.size(), "as many bytes as the state has");
  return digest_of(parts_);
}

}  // namespace muster
