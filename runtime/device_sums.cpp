#include "runtime/device_sums.h"

#include <string>

#include "runtime/base/check.h"

namespace muster {
namespace {

constexpr Duration kEndTimeout = 10 * kSecond;  // for what a failed call left under way

// Which of `count` like allocations failed, why, and what would need less.
Error out_of_memory(const Error& error, const char* where, size_t index, size_t count, size_t bytes) {
  return Error{error.code,
               "to sum the gradients of its microbatches this rank needs " + std::to_string(count) +
                   " times " + std::to_string(bytes) + " bytes " + where + ", and number " +
                   std::to_string(index + 1) + " could not be allocated: " + error.message +
                   "; leave more memory free, or give each rank fewer lanes and microbatches (more ranks, or "
                   "larger microbatches)"};
}

}  // namespace

Result<std::unique_ptr<DeviceSumMemory>> DeviceSumMemory::make(const Device& device) {
  MUSTER_ASSIGN(DeviceStream fetch_stream, device.make_stream());
  MUSTER_ASSIGN(DeviceEvent summed, device.make_event());
  MUSTER_ASSIGN(DeviceEvent drained, device.make_event());
  return std::unique_ptr<DeviceSumMemory>(
      new DeviceSumMemory(device, std::move(fetch_stream), std::move(summed), std::move(drained)));
}

DeviceSumMemory::DeviceSumMemory(const Device& device, DeviceStream fetch_stream, DeviceEvent summed,
                                 DeviceEvent drained)
    : device_(device),
      fetch_stream_(std::move(fetch_stream)),
      summed_(std::move(summed)),
      drained_(std::move(drained)) {}

DeviceSumMemory::~DeviceSumMemory() {
  if (settle()) return;
  for (DeviceMemory& buffer : buffers_) (void)buffer.release();
  for (PinnedMemory& result : results_) (void)result.release();
}

// False where the device may still be at work. After an error of the fetches it writes nothing any more; one
// of the program's stream, which may be gone already, says nothing of them.
bool DeviceSumMemory::settle() const {
  (void)order_fetches_behind_sums();
  Status passed = device_.record(drained_, fetch_stream_.get());
  if (passed.ok()) passed = device_.wait(drained_, now() + kEndTimeout);
  return passed.ok() || passed.error().code != ErrorCode::kRetry;
}

Status DeviceSumMemory::reserve(int buffers, size_t results, size_t count) {
  MUSTER_TRY(reserve_buffers(static_cast<size_t>(buffers), count * sizeof(float)));
  return reserve_results(results, count * sizeof(float));
}

Status DeviceSumMemory::reserve_buffers(size_t buffers, size_t bytes) {
  while (buffers_.size() < buffers) {
    auto memory = device_.allocate(bytes);
    if (!memory.ok()) return out_of_memory(memory.error(), "on its device", buffers_.size(), buffers, bytes);
    buffers_.push_back(std::move(*memory));
  }
  return ok();
}

Status DeviceSumMemory::reserve_results(size_t results, size_t bytes) {
  while (results_.size() < results) {
    auto memory = device_.allocate_pinned(bytes);
    if (!memory.ok())
      return out_of_memory(memory.error(), "of pinned host memory", results_.size(), results, bytes);
    results_.push_back(std::move(*memory));
  }
  return ok();
}

Status DeviceSumMemory::order_sums_behind_fetches() const {
  MUSTER_TRY(device_.record(drained_, fetch_stream_.get()));
  return device_.order(device_.program_stream(), drained_);
}

Status DeviceSumMemory::order_behind_sums(void* stream) const {
  MUSTER_TRY(device_.record(summed_, device_.program_stream()));
  return device_.order(stream, summed_);
}

Status DeviceSumMemory::record_fetch(size_t index) {
  if (index == fetched_.size()) {
    MUSTER_ASSIGN(DeviceEvent event, device_.make_event());
    fetched_.push_back(std::move(event));
  }
  return device_.record(fetched_[index], fetch_stream_.get());
}

void DeviceSums::reset() {
  progress_.reset();
  begun_ = false;
  fetches_ = fetched_count_ = 0;
}

Status DeviceSums::add(int microbatch, size_t begin, std::span<float> piece) {
  MUSTER_ASSIGN(const AccumulationStep* step, progress_.take(microbatch, begin, piece.size()));
  if (!begun_) {
    if (reader_ == nullptr) MUSTER_TRY(memory_.order_sums_behind_fetches());
    begun_ = true;
  }
  const Device& device = memory_.device();
  return device.accumulate(task_of(*step, begin, piece), device.program_stream());
}

// A step's merges are a chain: each adds the sum before it to one that waited. So all of it is one pass, and
// no sum but the last is written.
Accumulation DeviceSums::task_of(const AccumulationStep& step, size_t begin, std::span<float> piece) const {
  Accumulation task{};
  int target = step.target;
  const auto add_to = [&](int waiting) {
    MUSTER_CHECK(task.sum_count < kWaitingSumsMax, "a tree deeper than that of 2^20 microbatches");
    task.sums[task.sum_count++] = memory_.buffer(waiting) + begin;
  };
  if (step.adds) add_to(target);
  for (const AccumulationStep::Merge& merge : step.merges) {
    MUSTER_CHECK(merge.source == target, "merges of an accumulation step are a chain");
    add_to(merge.target);
    target = merge.target;
  }
  task.gradient = piece.data();
  task.target = memory_.buffer(target) + begin;
  task.count = piece.size();
  return task;
}

// A rank that has no sums waits for none. A reader always does: what it makes of them goes where the
// program's stream may still read what it made before.
Status DeviceSums::fetch(ElementRange range) {
  if (reader_ != nullptr) {
    MUSTER_TRY(memory_.order_behind_sums(reader_));
    fetched_count_ = ++fetches_;
    return ok();
  }
  const std::vector<int>& results = progress_.plan().results;
  if (!results.empty()) MUSTER_TRY(memory_.order_fetches_behind_sums());
  for (size_t i = 0; i < results.size(); ++i) {
    MUSTER_TRY(memory_.device().copy(memory_.result(i) + range.begin,
                                     memory_.buffer(results[i]) + range.begin, range.size() * sizeof(float),
                                     memory_.fetch_stream()));
  }
  MUSTER_TRY(memory_.record_fetch(fetches_));
  ++fetches_;
  return ok();
}

// A device that does not come to its end within a step's time is broken; to call again would not help.
Result<size_t> DeviceSums::fetched(size_t at_least, Instant deadline) {
  const Device& device = memory_.device();
  for (; fetched_count_ < fetches_; ++fetched_count_) {
    const DeviceEvent& event = memory_.fetched(fetched_count_);
    if (fetched_count_ < at_least) {
      const Status passed = device.wait(event, deadline);
      if (!passed.ok())
        return Error{ErrorCode::kEnvironment,
                     "the sums of the gradients could not be fetched: " + passed.error().message};
    } else {
      MUSTER_ASSIGN(const bool passed, device.has_passed(event));
      if (!passed) break;
    }
  }
  return fetched_count_;
}

std::vector<const float*> DeviceSums::partials(size_t begin) const {
  std::vector<const float*> partials;
  const std::vector<int>& results = progress_.plan().results;
  for (size_t i = 0; i < results.size(); ++i)
    partials.push_back((reader_ != nullptr ? memory_.buffer(results[i]) : memory_.result(i)) + begin);
  return partials;
}

}  // namespace muster
