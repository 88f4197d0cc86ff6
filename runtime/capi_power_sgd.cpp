// muster.h over the C++ runtime: PowerSGD on communicators, and its state.
#include <vector>

#include "collectives/power_sgd.h"
#include "runtime/capi_comm.h"

struct muster_power_sgd {
  muster::PowerSgdFeedback feedback;
};

namespace {

using namespace muster::capi;

// Hands `made` out, or says why there is none.
muster_status hand_out(muster::Result<muster::PowerSgdState> made, muster_power_sgd** state) {
  if (made.ok()) *state = new muster_power_sgd{muster::PowerSgdFeedback(std::move(*made))};
  return to_c(made);
}

}  // namespace

extern "C" {

muster_status muster_power_sgd_create(const muster_comm* comm, const muster_power_sgd_options* options,
                                      const muster_matrix* matrices, size_t count, muster_power_sgd** state) {
  return guarded([&] {
    if (comm == nullptr || options == nullptr || state == nullptr || (matrices == nullptr && count > 0))
      return null_argument("muster_power_sgd_create");
    *state = nullptr;
    muster_power_sgd_options known{};
    if (!read_options(options, &known)) {
      return failed(MUSTER_MISUSE,
                    "muster_power_sgd_options.size is not set; set it to sizeof(muster_power_sgd_options)");
    }
    muster::PowerSgdState::Setup setup{.shapes = {}, .factors = known.low_rank, .seed = known.seed};
    for (size_t i = 0; i < count; ++i) setup.shapes.push_back({matrices[i].rows, matrices[i].columns});
    const muster::Group& group = comm->communicator->group();
    return hand_out(muster::PowerSgdState::create(std::move(setup), group.rank(), group.size()), state);
  });
}

void muster_power_sgd_destroy(muster_power_sgd* state) { delete state; }

size_t muster_power_sgd_sent(const muster_power_sgd* state) {
  if (state == nullptr) return 0;
  const muster::PowerSgdState::Sizes sizes = state->feedback.state().sizes();
  return sizes.first + sizes.second;
}

muster_status muster_comm_all_reduce_power_sgd(muster_comm* comm, const float* const* in, float* const* out,
                                               size_t count, muster_reduce_op op, muster_power_sgd* state,
                                               const muster_call* call) {
  return noted(guarded(comm, __func__, [&] {
    if (comm == nullptr || state == nullptr || (count > 0 && (in == nullptr || out == nullptr)))
      return null_argument("muster_comm_all_reduce_power_sgd");
    bool average = false;
    double timeout = 0;
    if (const auto status = read_operator("muster_comm_all_reduce_power_sgd", op, average);
        status != MUSTER_OK)
      return status;
    if (const auto status = read_timeout(call, timeout); status != MUSTER_OK) return status;
    muster::Communicator& communicator = *comm->communicator;
    std::vector<int> suspects;
    return to_c(muster::power_sgd_all_reduce(communicator.group(), {in, count}, {out, count}, average,
                                             state->feedback, communicator.deadline(from_seconds(timeout)),
                                             suspects));
  }));
}

muster_status muster_power_sgd_commit(muster_power_sgd* state) {
  return guarded([&] {
    if (state == nullptr) return null_argument("muster_power_sgd_commit");
    return to_c(state->feedback.commit());
  });
}

size_t muster_power_sgd_bytes(const muster_power_sgd* state) {
  return state != nullptr ? muster::power_sgd_bytes(state->feedback.state()) : 0;
}

muster_status muster_power_sgd_export(const muster_power_sgd* state, void* data, size_t bytes) {
  return guarded([&] {
    if (state == nullptr || data == nullptr) return null_argument("muster_power_sgd_export");
    const size_t needed = muster_power_sgd_bytes(state);
    if (bytes < needed) {
      return failed(MUSTER_MISUSE, "muster_power_sgd_export: there is room for " + std::to_string(bytes) +
                                       " bytes, and muster_power_sgd_bytes says " + std::to_string(needed));
    }
    muster::write_power_sgd(state->feedback.state(), {static_cast<std::byte*>(data), needed});
    return MUSTER_OK;
  });
}

muster_status muster_power_sgd_import(const void* data, size_t bytes, muster_power_sgd** state) {
  return guarded([&] {
    if (data == nullptr || state == nullptr) return null_argument("muster_power_sgd_import");
    *state = nullptr;
    return hand_out(muster::read_power_sgd({static_cast<const std::byte*>(data), bytes}), state);
  });
}

muster_status muster_power_sgd_merge(const muster_power_sgd* const* all, size_t ranks_before,
                                     const int32_t* origins, size_t ranks, int32_t rank, muster_reduce_op op,
                                     muster_power_sgd** merged) {
  return guarded([&] {
    if (all == nullptr || origins == nullptr || merged == nullptr)
      return null_argument("muster_power_sgd_merge");
    *merged = nullptr;
    bool average = false;
    if (const auto status = read_operator("muster_power_sgd_merge", op, average); status != MUSTER_OK)
      return status;
    std::vector<const muster::PowerSgdState*> before;
    for (size_t i = 0; i < ranks_before; ++i) {
      if (all[i] == nullptr) return null_argument("muster_power_sgd_merge");
      before.push_back(&all[i]->feedback.state());
    }
    return hand_out(muster::merge_power_sgd(before, {origins, ranks}, rank, average), merged);
  });
}

}  // extern "C"
