// Which codec a bucket should use: a pure decision from measurements, with its reason in words.
//
// No clock, thread or log in here. All ranks decide alike if they are given the same numbers, so these have
// to be agreed upon first (the slowest link, the largest error); they are integers, and so is the arithmetic.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>

#include "kernels/codec.h"
#include "runtime/base/clock.h"

namespace muster::codec {

// Of one codec on the slowest rank, and what its use has shown.
struct CodecRecord {
  CodecId id;
  int64_t encode_bytes_per_s;  // of float32, with feedback if that is used; 0: not measured, so never chosen
  int64_t decode_bytes_per_s;  // of float32
  // ‖decoded − c‖ / ‖c‖ and ‖residual‖ / ‖gradient‖ of the last uses, in millionths, the largest over ranks.
  // 0: not known yet, which is no objection.
  int64_t error_ppm = 0;
  int64_t residual_ppm = 0;
  int64_t barred_until_step = 0;  // as an earlier Choice said
  Duration measured = 0;          // of such an all_reduce with it; 0: not measured, so predicted
};

struct ChoiceLimits {
  int64_t error_ppm_max = 400'000;
  int64_t residual_ppm_max = 4'000'000;
  int64_t barred_steps = 200;  // for how long a codec that broke a limit is left out
  // A codec replaces bf16, or the previous choice, only where it is so much faster.
  int64_t gain_percent_min = 10;
};

struct ChoiceInput {
  int64_t step = 0;
  uint64_t elements = 0;
  int world = 1;
  int64_t link_bytes_per_s = 0;  // of the slowest rank, in one direction
  bool feedback = false;         // 1-bit and topk are chosen with it only
  std::span<const CodecRecord> records;
  std::optional<CodecId> pinned;    // by the user, or by canonical mode for the whole job
  std::optional<CodecId> previous;  // of this bucket
  Duration measured_float32 = 0;    // as CodecRecord::measured
};

struct Choice {
  std::optional<CodecId> codec;  // none: float32
  Duration predicted = 0;        // of one all_reduce
  // Codecs that this decision bars, and until when; the caller carries it into the next records.
  struct Bar {
    CodecId id;
    int64_t until_step;
  };
  std::optional<Bar> bar;
  std::string why;
};

// What one rank sends for an all_reduce of so many elements: of a codec's planes, or of float32.
uint64_t all_reduce_bytes(std::optional<CodecId> codec, uint64_t elements, int world);

// How long an all_reduce of so many elements takes where that was not measured, as encoding, sending and
// decoding overlap by chunks: the longer of the wire's time and the codec's. Without a record: of float32.
Duration predicted_time(const ChoiceInput& input, const CodecRecord* record);

// REQUIRES: world >= 1, link_bytes_per_s > 0 where world > 1.
Choice choose_codec(const ChoiceInput& input, const ChoiceLimits& limits);

}  // namespace muster::codec
