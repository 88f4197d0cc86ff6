#include "kernels/codec_choice.h"

#include <algorithm>

namespace muster::codec {
namespace {

// a·b/c without overflow, c > 0; the largest where it does not fit.
int64_t scaled(uint64_t a, int64_t b, int64_t c) {
  const auto product =
      static_cast<unsigned __int128>(a) * static_cast<uint64_t>(b) / static_cast<uint64_t>(c);
  return product > INT64_MAX ? INT64_MAX : static_cast<int64_t>(product);
}

uint64_t wire_bytes(std::optional<CodecId> codec, uint64_t elements) {
  if (!codec) return 4 * elements;
  const Shape shape = shape_of(*codec);
  return scales_bytes_of(shape, elements) + payload_bytes_of(shape, elements);
}

std::string name_of(std::optional<CodecId> id) { return id ? std::string(codec_of(*id).name) : "float32"; }

std::string microseconds(Duration time) { return std::to_string(time / kMicrosecond) + " us"; }

std::string percent(int64_t ppm) {
  return std::to_string(ppm / 10'000) + "." + std::to_string(ppm / 1'000 % 10) + " %";
}

// Why a codec may not be used now, or empty.
std::string objection(const ChoiceInput& input, const ChoiceLimits& limits, const CodecRecord& record) {
  if (record.encode_bytes_per_s <= 0 || record.decode_bytes_per_s <= 0) return "its speed is not measured";
  if (record.error_ppm > limits.error_ppm_max) {
    return "its error of " + percent(record.error_ppm) + " is above " + percent(limits.error_ppm_max);
  }
  if (record.residual_ppm > limits.residual_ppm_max) {
    return "its residual of " + percent(record.residual_ppm) + " is above " +
           percent(limits.residual_ppm_max);
  }
  if (record.barred_until_step > input.step) {
    return "it is left out until step " + std::to_string(record.barred_until_step);
  }
  if (!shape_of(record.id).stochastic && !input.feedback) return "it needs error feedback";
  return "";
}

const CodecRecord* record_of(const ChoiceInput& input, CodecId id) {
  const auto found = std::find_if(input.records.begin(), input.records.end(),
                                  [&](const CodecRecord& record) { return record.id == id; });
  return found == input.records.end() ? nullptr : &*found;
}

bool is_measured(const ChoiceInput& input, std::optional<CodecId> id) {
  if (!id) return input.measured_float32 > 0;
  const CodecRecord* record = record_of(input, *id);
  return record != nullptr && record->measured > 0;
}

bool breaks_a_limit(const ChoiceLimits& limits, const CodecRecord& record) {
  return record.error_ppm > limits.error_ppm_max || record.residual_ppm > limits.residual_ppm_max;
}

bool is_faster(Duration time, Duration than, int64_t by_percent) {
  return scaled(static_cast<uint64_t>(time), 100 + by_percent, 100) < than;
}

struct Candidate {
  std::optional<CodecId> codec;
  Duration time;
};

}  // namespace

// Reduce-scatter and all-gather: each sends (W−1)/W of the message.
uint64_t all_reduce_bytes(std::optional<CodecId> codec, uint64_t elements, int world) {
  const auto ranks = static_cast<uint64_t>(world);
  return wire_bytes(codec, elements) / ranks * 2 * (ranks - 1);
}

Duration predicted_time(const ChoiceInput& input, const CodecRecord* record) {
  if (input.world <= 1) return 0;
  const Duration measured = record == nullptr ? input.measured_float32 : record->measured;
  if (measured > 0) return measured;
  const auto codec = record == nullptr ? std::nullopt : std::optional(record->id);
  const Duration wire =
      scaled(all_reduce_bytes(codec, input.elements, input.world), kSecond, input.link_bytes_per_s);
  if (record == nullptr) return wire;
  // All elements are encoded once, and 1/W of them again for the way back; decoded are W pieces of 1/W, then
  // all.
  const uint64_t bytes = 4 * input.elements;
  const Duration encode =
      scaled(bytes + bytes / static_cast<uint64_t>(input.world), kSecond, record->encode_bytes_per_s);
  const Duration decode = scaled(2 * bytes, kSecond, record->decode_bytes_per_s);
  return std::max(wire, encode + decode);
}

Choice choose_codec(const ChoiceInput& input, const ChoiceLimits& limits) {
  Choice choice;
  if (input.pinned) {
    choice.codec = input.pinned;
    const CodecRecord* record = record_of(input, *input.pinned);
    if (record != nullptr && record->encode_bytes_per_s > 0 && record->decode_bytes_per_s > 0) {
      choice.predicted = predicted_time(input, record);
    }
    choice.why = name_of(choice.codec) + ": pinned";
    return choice;
  }
  if (input.world <= 1) {
    choice.why = "float32: a world of one sends nothing";
    return choice;
  }
  // bf16 is what others are compared with, where it is better than nothing.
  Candidate base{std::nullopt, predicted_time(input, nullptr)};
  const Duration plain = base.time;
  const CodecRecord* bf16 = record_of(input, CodecId::kBf16);
  if (bf16 != nullptr && objection(input, limits, *bf16).empty()) {
    const Duration time = predicted_time(input, bf16);
    if (time < base.time) base = {CodecId::kBf16, time};
  }
  Candidate best = base;
  std::string refused;
  for (const CodecRecord& record : input.records) {
    if (record.id == CodecId::kBf16) continue;
    if (const std::string why_not = objection(input, limits, record); !why_not.empty()) {
      refused += "; not " + name_of(record.id) + ": " + why_not;
      continue;
    }
    const Duration time = predicted_time(input, &record);
    const bool better = time < best.time || (time == best.time && best.codec && record.id < *best.codec);
    if (better && is_faster(time, base.time, limits.gain_percent_min)) best = {record.id, time};
  }
  const CodecRecord* previous = input.previous ? record_of(input, *input.previous) : nullptr;
  if (previous != nullptr && breaks_a_limit(limits, *previous)) {
    choice.bar = Choice::Bar{previous->id, input.step + limits.barred_steps};
  }
  bool kept = false;
  if (previous != nullptr && objection(input, limits, *previous).empty() && best.codec != input.previous) {
    const Duration time = predicted_time(input, previous);
    // It also has to be worth keeping: never slower than the base.
    kept = time <= base.time && !is_faster(best.time, time, limits.gain_percent_min);
    if (kept) best = {previous->id, time};
  }
  choice.codec = best.codec;
  choice.predicted = best.time;
  choice.why =
      name_of(best.codec) + ": " + microseconds(best.time) +
      (is_measured(input, best.codec) ? " measured" : " predicted") + ", float32 " + microseconds(plain) +
      (base.codec ? ", bf16 " + microseconds(base.time) : "") +
      (kept ? "; kept, as nothing is faster by " + std::to_string(limits.gain_percent_min) + " %" : "") +
      refused;
  return choice;
}

}  // namespace muster::codec
