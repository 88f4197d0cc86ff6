// muster.h over the C++ runtime: compressed operations of communicators, and residuals.
#include <vector>

#include "runtime/capi_comm.h"

struct muster_residuals {
  muster::Feedback feedback;
};

namespace muster::capi {

muster_status read_operator(const char* function, muster_reduce_op op, bool& average) {
  const int which = number_of(op);
  if (which != MUSTER_SUM && which != MUSTER_AVG)
    return failed(MUSTER_MISUSE, std::string(function) + ": operator " + std::to_string(which) +
                                     "; it knows MUSTER_SUM and MUSTER_AVG");
  average = which == MUSTER_AVG;
  return MUSTER_OK;
}

muster_status read_timeout(const muster_call* given, double& seconds) {
  muster_call known{};
  if (given != nullptr && !read_options(given, &known))
    return failed(MUSTER_MISUSE, "muster_call.size is not set; set it to sizeof(muster_call)");
  if (!is_time(known.timeout_seconds))
    return failed(MUSTER_MISUSE, "muster_call.timeout_seconds is negative or not a number");
  seconds = known.timeout_seconds;
  return MUSTER_OK;
}

}  // namespace muster::capi

namespace {

using namespace muster::capi;
using muster::CompressedCall;
using muster::CompressedCollectives;
using muster::Instant;

muster_status read_compression(const char* function, const muster_compression* given,
                               muster_compression& known, CompressedCall& call, bool& open) {
  if (!read_options(given, &known)) {
    return failed(MUSTER_MISUSE, "muster_compression.size is not set; set it to sizeof(muster_compression)");
  }
  call.seed = known.seed;
  call.step = known.step;
  call.tensor = known.tensor;
  open = known.codec == MUSTER_CODEC_AUTO;
  if (open) return MUSTER_OK;
  const auto codec = codec_of(known.codec);
  if (!codec) {
    return failed(MUSTER_MISUSE, std::string(function) + ": codec is " + std::to_string(known.codec) +
                                     "; choose bf16 (1), fp16 (2), int8 (3), int4 (4), mxfp8 (5), 1-bit (6) "
                                     "or topk (7); an all_reduce's may be left open (-1)");
  }
  call.codec = *codec;
  return MUSTER_OK;
}

using Operation = muster::Status (CompressedCollectives::*)(const CompressedCall&, const float*, float*,
                                                            size_t, muster::Feedback*, Instant);

muster_status run(const char* function, Operation begin, muster_comm* comm, const float* in, float* out,
                  size_t count, muster_reduce_op op, const muster_compression* how, const muster_call* call) {
  return noted(guarded(comm, function, [&] {
    if (comm == nullptr || how == nullptr) return null_argument(function);
    CompressedCall known;
    muster_compression options{};
    double timeout = 0;
    bool open = false;
    if (const auto status = read_operator(function, op, known.average); status != MUSTER_OK) return status;
    if (const auto status = read_compression(function, how, options, known, open); status != MUSTER_OK)
      return status;
    if (const auto status = read_timeout(call, timeout); status != MUSTER_OK) return status;
    if (open && begin != &CompressedCollectives::all_reduce) {
      return failed(MUSTER_MISUSE, std::string(function) +
                                       ": MUSTER_CODEC_AUTO is for muster_comm_all_reduce_compressed; name a "
                                       "codec, such as the one that muster_comm_chosen_codec tells");
    }
    muster::Communicator& communicator = *comm->communicator;
    const Instant deadline = communicator.deadline(from_seconds(timeout));
    auto collectives = communicator.take_compressed();
    muster::Feedback* const feedback = options.residuals != nullptr ? &options.residuals->feedback : nullptr;
    std::vector<int> suspects;
    muster::Status status = muster::ok();
    if (open) {
      status = communicator.codec_controller().all_reduce(*collectives, known, in, out, count, feedback,
                                                          deadline, suspects);
    } else {
      status = ((*collectives).*begin)(known, in, out, count, feedback, deadline);
      if (status.ok()) status = collectives->wait(deadline, suspects);
    }
    if (status.ok()) communicator.give_back(std::move(collectives));
    return to_c(status);
  }));
}

// Operations accept no more.
muster_status check_count(const char* function, size_t count) {
  if (count <= muster::kIndexMax) return MUSTER_OK;
  return failed(MUSTER_MISUSE, std::string(function) + ": count is " + std::to_string(count) +
                                   "; a vector has at most " + std::to_string(muster::kIndexMax));
}

// Hands `made` out, or says why there is none.
muster_status hand_out(muster::Result<muster::Residuals> made, muster_residuals** residuals) {
  if (made.ok()) *residuals = new muster_residuals{muster::Feedback(std::move(*made))};
  return to_c(made);
}

}  // namespace

extern "C" {

muster_status muster_comm_all_reduce_compressed(muster_comm* comm, const float* in, float* out, size_t count,
                                                muster_reduce_op op, const muster_compression* how,
                                                const muster_call* call) {
  return run(__func__, &CompressedCollectives::all_reduce, comm, in, out, count, op, how, call);
}

muster_status muster_comm_chosen_codec(muster_comm* comm, uint32_t tensor, int32_t* codec, const char** why) {
  return guarded(comm, __func__, [&] {
    if (comm == nullptr) return null_argument("muster_comm_chosen_codec");
    const muster::codec::Choice* const choice = comm->communicator->codec_controller().chosen(tensor);
    if (choice == nullptr) {
      return failed(MUSTER_MISUSE, "muster_comm_chosen_codec: nothing was chosen for tensor " +
                                       std::to_string(tensor) +
                                       " yet; it is by an all_reduce with MUSTER_CODEC_AUTO");
    }
    if (codec != nullptr) *codec = number_of_codec(choice->codec);
    if (why != nullptr) *why = choice->why.c_str();
    return MUSTER_OK;
  });
}

muster_status muster_comm_reduce_scatter_compressed(muster_comm* comm, const float* in, float* out,
                                                    size_t count, muster_reduce_op op,
                                                    const muster_compression* how, const muster_call* call) {
  return run(__func__, &CompressedCollectives::reduce_scatter, comm, in, out, count, op, how, call);
}

muster_status muster_comm_all_gather_compressed(muster_comm* comm, const float* in, float* out, size_t count,
                                                muster_reduce_op op, const muster_compression* how,
                                                const muster_call* call) {
  return run(__func__, &CompressedCollectives::all_gather, comm, in, out, count, op, how, call);
}

muster_status muster_compressed_slice(size_t count, int32_t rank, int32_t ranks, size_t* begin, size_t* end) {
  return guarded([&] {
    if (begin == nullptr || end == nullptr) return null_argument("muster_compressed_slice");
    if (rank < 0 || rank >= ranks) {
      return failed(MUSTER_MISUSE, "muster_compressed_slice: rank " + std::to_string(rank) +
                                       " is not one of " + std::to_string(ranks));
    }
    if (const auto status = check_count("muster_compressed_slice", count); status != MUSTER_OK) return status;
    const muster::ElementRange slice = muster::owned_slice(count, rank, ranks);
    *begin = slice.begin;
    *end = slice.end;
    return MUSTER_OK;
  });
}

muster_status muster_residuals_create(const muster_comm* comm, size_t count, muster_residuals** residuals) {
  return guarded([&] {
    if (comm == nullptr || residuals == nullptr) return null_argument("muster_residuals_create");
    *residuals = nullptr;
    if (const auto status = check_count("muster_residuals_create", count); status != MUSTER_OK) return status;
    const muster::Group& group = comm->communicator->group();
    return hand_out(muster::Residuals(count, group.rank(), group.size()), residuals);
  });
}

void muster_residuals_destroy(muster_residuals* residuals) { delete residuals; }

muster_status muster_residuals_commit(muster_residuals* residuals) {
  return guarded([&] {
    if (residuals == nullptr) return null_argument("muster_residuals_commit");
    return to_c(residuals->feedback.commit());
  });
}

size_t muster_residuals_bytes(const muster_residuals* residuals) {
  return residuals != nullptr ? muster::residual_bytes(residuals->feedback.residuals()) : 0;
}

muster_status muster_residuals_export(const muster_residuals* residuals, void* data, size_t bytes) {
  return guarded([&] {
    if (residuals == nullptr || data == nullptr) return null_argument("muster_residuals_export");
    const size_t needed = muster_residuals_bytes(residuals);
    if (bytes < needed) {
      return failed(MUSTER_MISUSE, "muster_residuals_export: there is room for " + std::to_string(bytes) +
                                       " bytes, and muster_residuals_bytes says " + std::to_string(needed));
    }
    muster::write_residuals(residuals->feedback.residuals(), {static_cast<std::byte*>(data), needed});
    return MUSTER_OK;
  });
}

muster_status muster_residuals_import(const void* data, size_t bytes, muster_residuals** residuals) {
  return guarded([&] {
    if (data == nullptr || residuals == nullptr) return null_argument("muster_residuals_import");
    *residuals = nullptr;
    return hand_out(muster::read_residuals({static_cast<const std::byte*>(data), bytes}), residuals);
  });
}

muster_status muster_residuals_merge(const muster_residuals* const* all, size_t ranks_before,
                                     const int32_t* origins, size_t ranks, int32_t rank, muster_reduce_op op,
                                     muster_residuals** merged) {
  return guarded([&] {
    if (all == nullptr || origins == nullptr || merged == nullptr)
      return null_argument("muster_residuals_merge");
    *merged = nullptr;
    bool average = false;
    if (const auto status = read_operator("muster_residuals_merge", op, average); status != MUSTER_OK)
      return status;
    std::vector<const muster::Residuals*> before;
    for (size_t i = 0; i < ranks_before; ++i) {
      if (all[i] == nullptr) return null_argument("muster_residuals_merge");
      before.push_back(&all[i]->feedback.residuals());
    }
    return hand_out(muster::merge_residuals(before, {origins, ranks}, rank, average), merged);
  });
}

}  // extern "C"
