#include "runtime/lane_values.h"

#include <algorithm>
#include <cstring>
#include <functional>

#include "runtime/base/check.h"

namespace muster {

std::byte* LaneValues::add(std::byte* data, uint64_t bytes, int64_t lanes) {
  MUSTER_CHECK(lanes > 0 && bytes > 0 && bytes % static_cast<uint64_t>(lanes) == 0,
               "rows are there, and of one size");
  MUSTER_CHECK(values_.empty() || lanes == lanes_, "all values have as many rows");
  lanes_ = lanes;
  Value value;
  value.data = data;
  value.committed = std::make_unique<std::byte[]>(bytes);
  value.row_bytes = bytes / static_cast<uint64_t>(lanes);
  std::byte* const committed = value.committed.get();
  values_.push_back(std::move(value));
  return committed;
}

bool LaneValues::overlaps(const std::byte* data, uint64_t bytes) const {
  return std::any_of(values_.begin(), values_.end(), [&](const Value& value) {
    const uint64_t its = value.row_bytes * static_cast<uint64_t>(lanes_);
    return bytes > 0 && std::less<>()(data, value.data + its) && std::less<>()(value.data, data + bytes);
  });
}

Status LaneValues::check(int32_t lanes) const {
  if (values_.empty() || lanes_ == lanes) return ok();
  return Error{ErrorCode::kMisuse, "values per lane were registered with " + std::to_string(lanes_) +
                                       " rows, and the run has " + std::to_string(lanes) +
                                       " lanes; give each one row for each lane"};
}

void LaneValues::reset() {
  for (const Value& value : values_)
    std::memcpy(value.data, value.committed.get(), value.row_bytes * static_cast<size_t>(lanes_));
}

void LaneValues::commit() {
  for (const Value& value : values_)
    std::memcpy(value.committed.get(), value.data, value.row_bytes * static_cast<size_t>(lanes_));
}

size_t LaneValues::lane_bytes() const {
  size_t bytes = 0;
  for (const Value& value : values_) bytes += value.row_bytes;
  return bytes;
}

size_t LaneValues::words() const {
  return (lane_bytes() * static_cast<size_t>(lanes_) + sizeof(float) - 1) / sizeof(float);
}

void LaneValues::take(LaneRange lanes, std::byte* rows) const {
  for (int lane = lanes.begin; lane < lanes.end; ++lane) {
    for (const Value& value : values_) {
      std::memcpy(rows, value.data + static_cast<size_t>(lane) * value.row_bytes, value.row_bytes);
      rows += value.row_bytes;
    }
  }
}

void LaneValues::put(std::span<const float> rows) {
  MUSTER_CHECK(rows.size() == words(), "rows of all lanes");
  const auto* next = reinterpret_cast<const std::byte*>(rows.data());
  for (int64_t lane = 0; lane < lanes_; ++lane) {
    for (const Value& value : values_) {
      std::memcpy(value.data + static_cast<size_t>(lane) * value.row_bytes, next, value.row_bytes);
      next += value.row_bytes;
    }
  }
}

LaneExchange::LaneExchange(const LaneValues& values, const std::vector<LaneRange>& assignment, int rank)
    : values_(values), mine_(assignment[static_cast<size_t>(rank)]), rows_(values.words()) {
  for (const LaneRange& lanes : assignment)
    counts_.push_back(values_.lane_bytes() * static_cast<size_t>(lanes.size()));
  sent_.resize(counts_[static_cast<size_t>(rank)]);
}

Work LaneExchange::begin(Group& group, Instant deadline) {
  values_.take(mine_, sent_.data());
  return group.all_gather_v(sent_.data(), rows_.data(), counts_, DType::kUInt8, deadline);
}

}  // namespace muster
