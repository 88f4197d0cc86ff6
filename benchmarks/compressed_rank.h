// One rank of Muster's compressed all_reduces among competitors that take turns; see Participant in turns.h.
#pragma once

#include <optional>
#include <string_view>
#include <utility>

#include "benchmarks/muster_rank.h"
#include "collectives/codec_controller.h"
#include "collectives/compressed_all_reduce.h"
#include "collectives/power_sgd.h"

namespace bench {

struct CompressedCodec {
  std::string_view name;
  std::optional<muster::codec::CodecId> id;  // none: it is left open
  // How far from the true sum a result may be, where inputs are up to 76: enough to see that it is a sum.
  float tolerance;
};
constexpr CompressedCodec kCompressedCodecs[] = {{"bf16", muster::codec::CodecId::kBf16, 2},
                                                 {"int8", muster::codec::CodecId::kInt8, 5},
                                                 {"int4", muster::codec::CodecId::kInt4, 120},
                                                 {"1-bit", muster::codec::CodecId::kOneBit, 120},
                                                 // Elements wait for a hundred turns, and add up meanwhile.
                                                 {"topk", muster::codec::CodecId::kTopK, 1e5F},
                                                 {"auto", std::nullopt, 120}};

class CompressedRank : public MusterRank {
 public:
  CompressedRank(Control& control, int rank, std::vector<uint64_t> nodes, muster::EndpointOptions options,
                 const CompressedCodec& codec)
      : MusterRank(control, rank, std::move(nodes), std::move(options)),
        codec_(codec),
        collectives_(group()),
        controller_(group()) {}

  float tolerance() const { return codec_.tolerance; }

  // REQUIRES: an all_reduce; nothing else is asked for.
  void run(Op, const float* in, float* out, size_t count) {
    if (!feedback_ || feedback_->residuals().count() != count)
      feedback_.emplace(muster::Residuals(count, group().rank(), group().size()));
    const muster::Status status = reduce(in, out, count);
    if (!status.ok()) std::fprintf(stderr, "%s\n", status.error().message.c_str());
  }

 private:
  muster::Status reduce(const float* in, float* out, size_t count) {
    muster::CompressedCall call{.average = false, .step = step_++};
    std::vector<int> suspects;
    if (!codec_.id) {
      MUSTER_TRY(
          controller_.all_reduce(collectives_, call, in, out, count, &*feedback_, deadline(), suspects));
      return feedback_->commit();
    }
    call.codec = *codec_.id;
    MUSTER_TRY(collectives_.all_reduce(call, in, out, count, &*feedback_, deadline()));
    MUSTER_TRY(collectives_.wait(deadline(), suspects));
    return feedback_->commit();
  }

  const CompressedCodec codec_;
  std::optional<muster::Feedback> feedback_;
  muster::CompressedCollectives collectives_;
  muster::CodecController controller_;
  uint64_t step_ = 0;
};

// The same by PowerSGD, of the vector as a matrix of kColumns where its length is a multiple.
class LowRankRank : public MusterRank {
 public:
  static constexpr size_t kColumns = 4096;

  LowRankRank(Control& control, int rank, std::vector<uint64_t> nodes, muster::EndpointOptions options,
              uint32_t low_rank)
      : MusterRank(control, rank, std::move(nodes), std::move(options)), low_rank_(low_rank) {}

  // What is not among the largest directions waits, and adds up meanwhile.
  float tolerance() const { return 1e5F; }

  // REQUIRES: an all_reduce; nothing else is asked for.
  void run(Op, const float* in, float* out, size_t count) {
    if (!feedback_ || feedback_->state().sizes().elements != count) {
      const size_t columns = count % kColumns == 0 ? kColumns : 1;
      feedback_.emplace(muster::PowerSgdState::create(
                            {.shapes = {{count / columns, columns}}, .factors = low_rank_, .seed = 1},
                            group().rank(), group().size())
                            .value());
    }
    std::vector<int> suspects;
    muster::Status status =
        muster::power_sgd_all_reduce(group(), {&in, 1}, {&out, 1}, false, *feedback_, deadline(), suspects);
    if (status.ok()) status = feedback_->commit();
    if (!status.ok()) std::fprintf(stderr, "%s\n", status.error().message.c_str());
  }

 private:
  const uint32_t low_rank_;
  std::optional<muster::PowerSgdFeedback> feedback_;
};

}  // namespace bench
