#include "collectives/codec_controller.h"

#include <algorithm>
#include <cmath>
#include <span>

#include "runtime/base/clock.h"

namespace muster {
namespace {

using codec::CodecId;
using codec::CodecRecord;

// Of the vector: runs of whole grains, spread over it, so that neither its begin nor one layer stands for
// all.
constexpr size_t kRunElements = 4 * codec::kGrainMax;
constexpr size_t kRuns = 16;
constexpr int kTries = 3;  // of which the fastest counts: the first ones meet cold caches and clocks

// At first each call may change what is known of a codec, or of the link; later a change of the network or of
// the gradients is to be seen.
constexpr int64_t kEagerCalls = 8;
constexpr int64_t kCallsBetween = 32;
// What was measured so many calls ago is forgotten, so that it is predicted, and perhaps tried, anew.
constexpr int64_t kMeasuredKeeps = 16 * kCallsBetween;

// fp16 costs what bf16 does, and a sum may be beyond its numbers where no sample is.
bool is_candidate(CodecId id, bool feedback) {
  if (id == CodecId::kFp16) return false;
  return feedback ? reduces_with_feedback(id) : reduces_without_feedback(id);
}

double norm_of(const std::vector<float>& values) {
  double sum = 0;
  for (const float value : values) sum += static_cast<double>(value) * value;
  return std::sqrt(sum);
}

// a/b in millionths. Nothing can be told of what is zero, or not finite, by itself; where only a is not
// finite, the codec has lost all.
int64_t millionths(double a, double b) {
  if (!(b > 0) || !std::isfinite(b)) return 0;
  const double ratio = a / b * 1e6;
  return std::isfinite(ratio) ? static_cast<int64_t>(std::min(ratio, 1e15)) : int64_t{1'000'000'000'000'000};
}

int64_t bytes_per_second(size_t elements, Duration took) {
  return static_cast<int64_t>(static_cast<double>(elements) * sizeof(float) * 1e9 /
                              static_cast<double>(std::max<Duration>(took, 1)));
}

}  // namespace

// A part of what this rank contributes, and what the codecs make of it.
struct CodecController::Sample {
  std::vector<float> values;  // with what error feedback adds
  int64_t residual_ppm = 0;
  bool feedback = false;

  Sample(const float* in, size_t count, const Feedback* added) : feedback(added != nullptr) {
    std::vector<float> own, residual;
    const size_t runs = std::min(kRuns, (count + kRunElements - 1) / kRunElements);
    for (size_t run = 0; run < runs; ++run) {
      const ElementRange range =
          slice_at_grains({0, count}, codec::kGrainMax, static_cast<int>(run), static_cast<int>(runs));
      const size_t end = std::min(range.end, range.begin + kRunElements);
      for (size_t i = range.begin; i < end; ++i) {
        own.push_back(in[i]);
        residual.push_back(feedback ? added->residuals().contribution[i] : 0.0F);
        values.push_back(own.back() + residual.back());
      }
    }
    residual_ppm = millionths(norm_of(residual), norm_of(own));
  }

  CodecRecord measure(CodecId id) const {
    const codec::Codec& one = codec::codec_of(id);
    const size_t count = values.size();
    std::vector<uint8_t> scales(codec::scales_bytes_of(one.shape, count));
    std::vector<uint8_t> payload(codec::payload_bytes_of(one.shape, count));
    std::vector<float> residual, decoded(count);
    CodecRecord record{.id = id, .encode_bytes_per_s = 0, .decode_bytes_per_s = 0};
    for (int i = 0; i < kTries; ++i) {
      residual.assign(feedback ? count : 0, 0.0F);
      const Instant begin = now();
      one.encode({.values = values.data(),
                  .residual = feedback ? residual.data() : nullptr,
                  .scales = scales.data(),
                  .payload = payload.data(),
                  .count = count,
                  .first_index = 0,
                  .stochastic = !feedback,
                  .slot = {}});
      const Instant encoded = now();
      one.decode(codec::decode_one({scales.data(), payload.data()}, decoded.data(), count));
      const Instant end = now();
      record.encode_bytes_per_s =
          std::max(record.encode_bytes_per_s, bytes_per_second(count, encoded - begin));
      record.decode_bytes_per_s = std::max(record.decode_bytes_per_s, bytes_per_second(count, end - encoded));
    }
    for (size_t i = 0; i < count; ++i) decoded[i] -= values[i];
    record.error_ppm = millionths(norm_of(decoded), norm_of(values));
    return record;
  }
};

CodecController::CodecController(Group& group, codec::ChoiceLimits limits) : group_(group), limits_(limits) {}

const codec::Choice* CodecController::chosen(uint32_t tensor) const {
  const auto found = tensors_.find(tensor);
  return found == tensors_.end() || found->second.calls == 0 ? nullptr : &found->second.choice;
}

struct CodecController::Call {
  CompressedCall what;
  const float* in;
  float* out;
  size_t count;
  Feedback* feedback;
};

// Of many tensors not all in the same step.
bool CodecController::is_due(const Call& call, const Tensor& tensor) {
  return tensor.calls < kEagerCalls || (tensor.calls + call.what.tensor) % kCallsBetween == 0;
}

Status CodecController::all_reduce(CompressedCollectives& collectives, CompressedCall what, const float* in,
                                   float* out, size_t count, Feedback* feedback, Instant deadline,
                                   std::vector<int>& suspects) {
  what.codec = CodecId::kBf16;  // which all can do
  MUSTER_TRY(collectives.check_all_reduce(what, in, out, count, feedback));
  try {
    Tensor& tensor = tensors_[what.tensor];
    if (tensor.count != count || tensor.feedback != (feedback != nullptr))
      tensor = {.count = count, .feedback = feedback != nullptr};
    const Call call{what, in, out, count, feedback};
    const bool due = is_due(call, tensor);
    if (due) MUSTER_TRY(choose(call, tensor, deadline, suspects));
    const Instant begin = now();
    MUSTER_TRY(reduce(collectives, call, tensor, deadline, suspects));
    if (due) tensor.took = now() - begin;
    ++tensor.calls;
    return ok();
  } catch (...) {  // the others wait for what this rank would have done
    group_.revoke(Error{ErrorCode::kReconfigure, "choosing a codec: rank " + std::to_string(group_.rank()) +
                                                     " could not go on, most likely for want of memory"},
                  Group::Tell::kPeers);
    throw;
  }
}

Status CodecController::reduce(CompressedCollectives& collectives, const Call& call, Tensor& tensor,
                               Instant deadline, std::vector<int>& suspects) {
  if (tensor.choice.codec) {
    CompressedCall what = call.what;
    what.codec = *tensor.choice.codec;
    MUSTER_TRY(collectives.all_reduce(what, call.in, call.out, call.count, call.feedback, deadline));
    return collectives.wait(deadline, suspects);
  }
  const ReduceOp op = call.what.average ? ReduceOp::kAvg : ReduceOp::kSum;
  const Work work = group_.all_reduce(call.in, call.out, call.count, DType::kFloat32, op, deadline);
  const Status status = work.wait();
  if (!status.ok()) suspects = work.suspects();
  return status;
}

// Of all ranks the largest of each. And whether all do the same, which an all_reduce of numbers cannot see.
Status CodecController::agree(const Call& call, const Tensor& tensor, std::vector<int64_t>& numbers,
                              Instant deadline, std::vector<int>& suspects) {
  const uint64_t parts[] = {call.what.tensor,
                            call.what.step,
                            call.what.seed,
                            call.count,
                            tensor.feedback,
                            call.what.average,
                            static_cast<uint64_t>(tensor.calls)};
  const auto same = static_cast<int64_t>(digest_of(std::as_bytes(std::span(parts))).low >> 2);
  numbers.insert(numbers.end(), {same, -same});
  const Work work = group_.all_reduce(numbers.data(), numbers.data(), numbers.size(), DType::kInt64,
                                      ReduceOp::kMax, deadline);
  if (const Status status = work.wait(); !status.ok()) {
    suspects = work.suspects();
    return Error{status.error().code, "agreeing upon a codec: " + status.error().message};
  }
  const bool all_same = numbers[numbers.size() - 2] == same && numbers.back() == -same;
  numbers.resize(numbers.size() - 2);
  if (all_same) return ok();
  const Error differ{
      ErrorCode::kMisuse,
      "agreeing upon a codec: rank " + std::to_string(group_.rank()) + " is at call " +
          std::to_string(tensor.calls) + " of tensor " + std::to_string(call.what.tensor) + ", step " +
          std::to_string(call.what.step) +
          ", and another rank is not; all pass the same tensor, step, seed, operator and count, "
          "and all residuals or none"};
  group_.revoke(differ);  // the others see it as this rank does
  return differ;
}

Status CodecController::choose(const Call& call, Tensor& tensor, Instant deadline,
                               std::vector<int>& suspects) {
  if (group_.size() == 1) {
    tensor.choice.codec = tensor.feedback ? CodecChoice(CodecId::kBf16) : std::nullopt;
    tensor.choice.why = tensor.feedback ? "bf16: a world of one sends nothing, and residuals are to be kept"
                                        : "float32: a world of one sends nothing";
    return ok();
  }
  const Sample sample(call.in, tensor.count, call.feedback);
  std::vector<CodecRecord> records;
  std::vector<int64_t> numbers{tensor.took, sample.residual_ppm};
  for (const CodecId id : codec::kCodecIds) {
    if (!is_candidate(id, tensor.feedback)) continue;
    records.push_back(sample.measure(id));
    const CodecRecord& record = records.back();
    numbers.insert(numbers.end(), {-record.encode_bytes_per_s, -record.decode_bytes_per_s, record.error_ppm});
  }
  MUSTER_TRY(agree(call, tensor, numbers, deadline, suspects));
  if (tensor.calls > 0) tensor.measured[tensor.choice.codec] = {numbers[0], tensor.calls};
  std::erase_if(tensor.measured,
                [&](const auto& one) { return one.second.call < tensor.calls - kMeasuredKeeps; });
  for (size_t i = 0; i < records.size(); ++i) {
    CodecRecord& record = records[i];
    const int64_t* const agreed = &numbers[2 + 3 * i];
    record.encode_bytes_per_s = -agreed[0];
    record.decode_bytes_per_s = -agreed[1];
    // A sample of zeros, or with a NaN, tells nothing.
    int64_t& error = tensor.error_ppm[record.id];
    if (agreed[2] > 0) error = agreed[2];
    record.error_ppm = error;
    if (record.id == tensor.choice.codec) record.residual_ppm = numbers[1];
    if (const auto found = tensor.measured.find(record.id); found != tensor.measured.end())
      record.measured = found->second.took;
    if (const auto found = tensor.barred_until.find(record.id); found != tensor.barred_until.end())
      record.barred_until_step = found->second;
  }
  decide(tensor, std::move(records));
  return ok();
}

void CodecController::decide(Tensor& tensor, std::vector<CodecRecord> records) const {
  codec::Choice& choice = tensor.choice;
  const CodecChoice plain = tensor.feedback ? CodecChoice(CodecId::kBf16) : std::nullopt;
  if (tensor.measured.empty()) {
    choice.codec = plain;
    choice.why = std::string(plain ? "bf16" : "float32") + ": the first call, which measures the link";
    return;
  }
  const auto measured_plain = tensor.measured.find(std::nullopt);
  const codec::ChoiceInput input{
      .step = tensor.calls,
      .elements = tensor.count,
      .world = group_.size(),
      .link_bytes_per_s = link_of(tensor),
      .feedback = tensor.feedback,
      .records = records,
      .previous = choice.codec,
      .measured_float32 = measured_plain != tensor.measured.end() ? measured_plain->second.took : 0};
  choice = choose_codec(input, limits_);
  if (choice.bar) tensor.barred_until[choice.bar->id] = choice.bar->until_step;
  if (choice.codec || !tensor.feedback) return;
  choice.codec = plain;
  choice.why = "bf16, since float32 would leave out the residuals; " + choice.why;
}

// What the operations show of the link: each of them moved its bytes in its time, so it is at least as fast.
int64_t CodecController::link_of(const Tensor& tensor) const {
  int64_t fastest = 1;
  for (const auto& [codec, measured] : tensor.measured) {
    const double sent = static_cast<double>(codec::all_reduce_bytes(codec, tensor.count, group_.size()));
    const double rate = sent * 1e9 / static_cast<double>(std::max<Duration>(measured.took, 1));
    fastest = std::max(fastest, static_cast<int64_t>(std::min(rate, 1e15)));
  }
  return fastest;
}

}  // namespace muster
