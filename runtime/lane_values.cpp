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

void LaneValues::take(int lane, std::byte* row) const {
  for (const Value& value : values_) {
    std::memcpy(row, value.data + static_cast<size_t>(lane) * value.row_bytes, value.row_bytes);
    row += value.row_bytes;
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

LaneExchange::LaneExchange(const LaneValues& values, LaneLists lanes_by_rank, int rank)
    : values_(values),
      lanes_by_rank_(std::move(lanes_by_rank)),
      rank_(static_cast<size_t>(rank)),
      arrived_(values.words() * sizeof(float)),
      rows_(values.words()) {
  for (const std::vector<int>& lanes : lanes_by_rank_) counts_.push_back(values_.lane_bytes() * lanes.size());
  sent_.resize(counts_[rank_]);
}

Work LaneExchange::begin(Group& group, Instant deadline) {
  std::byte* row = sent_.data();
  for (const int lane : lanes_by_rank_[rank_]) {
    values_.take(lane, row);
    row += values_.lane_bytes();
  }
  return group.all_gather_v(sent_.data(), arrived_.data(), counts_, DType::kUInt8, deadline);
}

std::span<const float> LaneExchange::rows() {
  const size_t bytes = values_.lane_bytes();
  auto* const rows = reinterpret_cast<std::byte*>(rows_.data());
  const std::byte* row = arrived_.data();
  for (const std::vector<int>& lanes : lanes_by_rank_) {
    for (const int lane : lanes) {
      std::memcpy(rows + static_cast<size_t>(lane) * bytes, row, bytes);
      row += bytes;
    }
  }
  return rows_;
}

}  // namespace muster
