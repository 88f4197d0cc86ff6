// muster.h over the C++ runtime: communicators. Their compressed operations are in capi_compressed.cpp.
#include <memory>

#include "runtime/capi_comm.h"

struct muster_work {
  muster::Work work;
  const muster::ForkMark mark{};
};

namespace {

using namespace muster::capi;
using muster::DType;
using muster::Duration;
using muster::Instant;
using muster::ReduceOp;
using muster::Work;

static_assert(MUSTER_FLOAT8_E5M2 + 1 == muster::kDTypeCount);
static_assert(MUSTER_PREMUL_SUM == static_cast<int>(ReduceOp::kPremulSum));
static_assert(MUSTER_PREMUL_SUM + 1 == muster::kReduceOpCount);

muster_status read_options(const muster_comm_options* given, muster::CommunicatorOptions& options) {
  muster_comm_options known{};
  if (given == nullptr) return MUSTER_OK;
  if (!muster::capi::read_options(given, &known)) {
    return failed(MUSTER_MISUSE,
                  "muster_comm_options.size is not set; set it to sizeof(muster_comm_options)");
  }
  if (!is_time(known.form_timeout_seconds) || !is_time(known.timeout_seconds))
    return failed(MUSTER_MISUSE, "a timeout of muster_comm_options is negative or not a number");
  options.form_timeout = from_seconds(known.form_timeout_seconds);
  options.timeout = from_seconds(known.timeout_seconds);
  return MUSTER_OK;
}

struct Call {
  Instant deadline = 0;
  double factor = 1;
  DType dtype = DType::kFloat32;
  ReduceOp op = ReduceOp::kSum;
};

// What every operation has: `type` and `op` are null where it has none.
muster_status read_call(muster_comm* comm, const char* function, const muster_dtype* dtype,
                        const muster_reduce_op* op, const muster_call* given, Call& call) {
  if (comm == nullptr) return null_argument(function);
  if (comm->mark.is_inherited()) return inherited_handle(function);
  muster_call known{};
  if (given != nullptr) {
    if (!muster::capi::read_options(given, &known))
      return failed(MUSTER_MISUSE, "muster_call.size is not set; set it to sizeof(muster_call)");
    if (!is_time(known.timeout_seconds))
      return failed(MUSTER_MISUSE, "muster_call.timeout_seconds is negative or not a number");
  }
  if (dtype != nullptr) {
    const int type = number_of(*dtype);
    if (type < 0 || type >= muster::kDTypeCount) {
      return failed(MUSTER_MISUSE, std::string(function) + ": unknown element type " + std::to_string(type));
    }
    call.dtype = static_cast<DType>(type);
  }
  if (op != nullptr) {
    const int which = number_of(*op);
    if (which < 0 || which >= muster::kReduceOpCount)
      return failed(MUSTER_MISUSE, std::string(function) + ": unknown operator " + std::to_string(which));
    call.op = static_cast<ReduceOp>(which);
    if (call.op == ReduceOp::kPremulSum) {
      if (given == nullptr)
        return failed(MUSTER_MISUSE, std::string(function) + ": MUSTER_PREMUL_SUM needs muster_call.factor");
      call.factor = known.factor;
    }
  }
  call.deadline = comm->communicator->deadline(from_seconds(known.timeout_seconds));
  return MUSTER_OK;
}

// What this thread has issued since muster_group_start, and muster_group_end is to report.
struct Issued {
  Work work;
  muster_status refused = MUSTER_OK;  // at once, and why
  std::string sentence;
};
struct Batch {
  int depth = 0;
  std::vector<Issued> issued;
};
thread_local Batch batch;

// `issue()` begins an operation that muster_group_end waits for.
template <typename Issue>
muster_status add_to_batch(Issue issue) {
  batch.issued.emplace_back();
  const Work work = issue();
  if (!work.test() || work.wait().ok()) {
    batch.issued.back().work = work;
    return MUSTER_OK;
  }
  batch.issued.pop_back();
  return to_c(work.wait());
}

muster_status end_batch() {
  muster_status first = MUSTER_OK;
  std::string sentence;
  for (const Issued& one : std::exchange(batch.issued, {})) {
    const muster_status status = one.refused != MUSTER_OK ? one.refused : to_c(one.work.wait());
    if (first != MUSTER_OK || status == MUSTER_OK) continue;
    first = status;
    sentence = one.refused != MUSTER_OK ? one.sentence : muster_last_error();
  }
  return first == MUSTER_OK ? MUSTER_OK : failed(first, std::move(sentence));
}

// Runs one operation: `issue(group, call)` gives its Work.
template <typename Issue>
muster_status run(muster_comm* comm, const char* function, const muster_dtype* dtype,
                  const muster_reduce_op* op, const muster_call* given, muster_work** handle, Issue issue) {
  return noted(guarded([&] {
    if (handle != nullptr) *handle = nullptr;
    Call call;
    if (const muster_status status = read_call(comm, function, dtype, op, given, call); status != MUSTER_OK)
      return status;
    // Before the operation begins: afterwards it could not be taken back.
    auto slot = handle != nullptr ? std::make_unique<muster_work>() : nullptr;
    const auto begin = [&] { return issue(comm->communicator->group(), call); };
    if (handle == nullptr) return batch.depth > 0 ? add_to_batch(begin) : to_c(begin().wait());
    slot->work = begin();
    *handle = slot.release();
    return MUSTER_OK;
  }));
}

// A blocking transfer of a rank with itself waits for what this thread could only do afterwards.
muster_status check_own(muster_comm* comm, const char* function, bool is_send, int32_t peer, int32_t tag,
                        muster_work** work) {
  if (comm == nullptr || work != nullptr || batch.depth > 0) return MUSTER_OK;
  return guarded(comm, function, [&] {
    const muster::Group& group = comm->communicator->group();
    if (peer != group.rank() || group.has_own_counterpart(is_send, tag) || group.failure()) return MUSTER_OK;
    return failed(MUSTER_MISUSE, std::string(function) + ": this rank would wait for its own " +
                                     (is_send ? "receive" : "send") +
                                     "; issue both in a batch (muster_group_start), or with handles");
  });
}

// The same with a count for each rank: `issue(group, call, counts)`.
template <typename Issue>
muster_status run_v(muster_comm* comm, const char* function, const size_t* counts, const muster_dtype* dtype,
                    const muster_reduce_op* op, const muster_call* given, muster_work** handle, Issue issue) {
  // Without counts there is no operation, as without a communicator.
  return run(counts != nullptr ? comm : nullptr, function, dtype, op, given, handle,
             [&](muster::Group& group, const Call& call) {
               return issue(group, call, std::span(counts, static_cast<size_t>(group.size())));
             });
}

}  // namespace

muster_status muster::capi::noted(muster_status status) {
  if (status == MUSTER_OK || batch.depth == 0) return status;
  return guarded([&] {
    batch.issued.push_back({Work(), status, muster_last_error()});
    return status;
  });
}

extern "C" {

muster_status muster_comm_create(const muster_comm_options* options, muster_comm** comm) {
  return guarded([&] {
    if (comm == nullptr) return null_argument("muster_comm_create");
    *comm = nullptr;
    muster::CommunicatorOptions known;
    if (const muster_status status = read_options(options, known); status != MUSTER_OK) return status;
    auto created = muster::Communicator::create(known);
    if (created.ok()) *comm = new muster_comm{std::move(*created)};
    return to_c(created);
  });
}

muster_status muster_comm_from_mpi(const void* mpi_comm, const muster_comm_options* options,
                                   muster_comm** comm) {
  return guarded([&] {
    if (mpi_comm == nullptr || comm == nullptr) return null_argument("muster_comm_from_mpi");
    *comm = nullptr;
    muster::CommunicatorOptions known;
    if (const muster_status status = read_options(options, known); status != MUSTER_OK) return status;
    auto created = muster::Communicator::from_mpi(mpi_comm, known);
    if (created.ok()) *comm = new muster_comm{std::move(*created)};
    return to_c(created);
  });
}

muster_status muster_comm_split(muster_comm* comm, int32_t color, int32_t key,
                                const muster_comm_options* options, muster_comm** part) {
  return guarded(comm, __func__, [&] {
    if (comm == nullptr || part == nullptr) return null_argument("muster_comm_split");
    *part = nullptr;
    muster::CommunicatorOptions known;
    if (const muster_status status = read_options(options, known); status != MUSTER_OK) return status;
    auto created = comm->communicator->split(color, key, known);
    if (created.ok() && *created != nullptr) *part = new muster_comm{std::move(*created)};
    return to_c(created);
  });
}

void muster_comm_destroy(muster_comm* comm) { delete comm; }

int32_t muster_comm_rank(const muster_comm* comm) {
  return comm != nullptr ? comm->communicator->group().rank() : -1;
}
int32_t muster_comm_size(const muster_comm* comm) {
  return comm != nullptr ? comm->communicator->group().size() : 0;
}
const char* muster_comm_medium(const muster_comm* comm) {
  return comm != nullptr ? comm->communicator->medium().c_str() : "";
}

muster_status muster_comm_tune(muster_comm* comm, const muster_call* call) {
  return noted(guarded([&] {
    Call known;
    if (const muster_status status = read_call(comm, "muster_comm_tune", nullptr, nullptr, call, known);
        status != MUSTER_OK)
      return status;
    return to_c(comm->communicator->tune(known.deadline));
  }));
}

muster_status muster_comm_revoke(muster_comm* comm, const char* reason) {
  return guarded(comm, __func__, [&] {
    if (comm == nullptr || reason == nullptr) return null_argument("muster_comm_revoke");
    comm->communicator->group().revoke({muster::ErrorCode::kReconfigure, reason},
                                       muster::Group::Tell::kPeers);
    return MUSTER_OK;
  });
}

size_t muster_comm_failed_ranks(const muster_comm* comm, int32_t* ranks, size_t capacity) {
  size_t count = 0;
  (void)guarded(comm, __func__, [&] {
    if (comm == nullptr || (ranks == nullptr && capacity > 0))
      return null_argument("muster_comm_failed_ranks");
    const auto failure = comm->communicator->group().failure();
    if (!failure) return MUSTER_OK;
    count = failure->suspects.size();
    for (size_t i = 0; i < std::min(count, capacity); ++i) ranks[i] = failure->suspects[i];
    return MUSTER_OK;
  });
  return count;
}

muster_status muster_comm_allocate(muster_comm* comm, size_t bytes, void** data) {
  return guarded(comm, __func__, [&] {
    if (comm == nullptr || data == nullptr) return null_argument("muster_comm_allocate");
    *data = nullptr;
    const auto allocated = comm->communicator->allocate(bytes);
    if (allocated.ok()) *data = *allocated;
    return to_c(allocated);
  });
}

muster_status muster_comm_free(muster_comm* comm, void* data) {
  return guarded(comm, __func__, [&] {
    return comm == nullptr ? null_argument("muster_comm_free") : to_c(comm->communicator->free(data));
  });
}

muster_status muster_comm_all_reduce(muster_comm* comm, const void* in, void* out, size_t count,
                                     muster_dtype dtype, muster_reduce_op op, const muster_call* call,
                                     muster_work** work) {
  return run(comm, __func__, &dtype, &op, call, work, [&](muster::Group& group, const Call& c) {
    return group.all_reduce(in, out, count, c.dtype, c.op, c.deadline, c.factor);
  });
}

muster_status muster_comm_reduce(muster_comm* comm, const void* in, void* out, size_t count,
                                 muster_dtype dtype, muster_reduce_op op, int32_t root,
                                 const muster_call* call, muster_work** work) {
  return run(comm, __func__, &dtype, &op, call, work, [&](muster::Group& group, const Call& c) {
    return group.reduce(in, out, count, c.dtype, c.op, root, c.deadline, c.factor);
  });
}

muster_status muster_comm_reduce_scatter(muster_comm* comm, const void* in, void* out, size_t count,
                                         muster_dtype dtype, muster_reduce_op op, const muster_call* call,
                                         muster_work** work) {
  return run(comm, __func__, &dtype, &op, call, work, [&](muster::Group& group, const Call& c) {
    return group.reduce_scatter(in, out, count, c.dtype, c.op, c.deadline, c.factor);
  });
}

muster_status muster_comm_all_gather(muster_comm* comm, const void* in, void* out, size_t count,
                                     muster_dtype dtype, const muster_call* call, muster_work** work) {
  return run(comm, __func__, &dtype, nullptr, call, work, [&](muster::Group& group, const Call& c) {
    return group.all_gather(in, out, count, c.dtype, c.deadline);
  });
}

muster_status muster_comm_gather(muster_comm* comm, const void* in, void* out, size_t count,
                                 muster_dtype dtype, int32_t root, const muster_call* call,
                                 muster_work** work) {
  return run(comm, __func__, &dtype, nullptr, call, work, [&](muster::Group& group, const Call& c) {
    return group.gather(in, out, count, c.dtype, root, c.deadline);
  });
}

muster_status muster_comm_scatter(muster_comm* comm, const void* in, void* out, size_t count,
                                  muster_dtype dtype, int32_t root, const muster_call* call,
                                  muster_work** work) {
  return run(comm, __func__, &dtype, nullptr, call, work, [&](muster::Group& group, const Call& c) {
    return group.scatter(in, out, count, c.dtype, root, c.deadline);
  });
}

muster_status muster_comm_all_to_all(muster_comm* comm, const void* in, void* out, size_t count,
                                     muster_dtype dtype, const muster_call* call, muster_work** work) {
  return run(comm, __func__, &dtype, nullptr, call, work, [&](muster::Group& group, const Call& c) {
    return group.all_to_all(in, out, count, c.dtype, c.deadline);
  });
}

muster_status muster_comm_broadcast(muster_comm* comm, const void* in, void* out, size_t count,
                                    muster_dtype dtype, int32_t root, const muster_call* call,
                                    muster_work** work) {
  return run(comm, __func__, &dtype, nullptr, call, work, [&](muster::Group& group, const Call& c) {
    return group.broadcast(in, out, count, c.dtype, root, c.deadline);
  });
}

muster_status muster_comm_barrier(muster_comm* comm, const muster_call* call, muster_work** work) {
  return run(comm, __func__, nullptr, nullptr, call, work,
             [](muster::Group& group, const Call& c) { return group.barrier(c.deadline); });
}

muster_status muster_comm_reduce_scatter_v(muster_comm* comm, const void* in, void* out, const size_t* counts,
                                           muster_dtype dtype, muster_reduce_op op, const muster_call* call,
                                           muster_work** work) {
  return run_v(comm, __func__, counts, &dtype, &op, call, work,
               [&](muster::Group& group, const Call& c, auto all) {
                 return group.reduce_scatter_v(in, out, all, c.dtype, c.op, c.deadline, c.factor);
               });
}

muster_status muster_comm_all_gather_v(muster_comm* comm, const void* in, void* out, const size_t* counts,
                                       muster_dtype dtype, const muster_call* call, muster_work** work) {
  return run_v(comm, __func__, counts, &dtype, nullptr, call, work,
               [&](muster::Group& group, const Call& c, auto all) {
                 return group.all_gather_v(in, out, all, c.dtype, c.deadline);
               });
}

muster_status muster_comm_gather_v(muster_comm* comm, const void* in, void* out, const size_t* counts,
                                   muster_dtype dtype, int32_t root, const muster_call* call,
                                   muster_work** work) {
  return run_v(comm, __func__, counts, &dtype, nullptr, call, work,
               [&](muster::Group& group, const Call& c, auto all) {
                 return group.gather_v(in, out, all, c.dtype, root, c.deadline);
               });
}

muster_status muster_comm_scatter_v(muster_comm* comm, const void* in, void* out, const size_t* counts,
                                    muster_dtype dtype, int32_t root, const muster_call* call,
                                    muster_work** work) {
  return run_v(comm, __func__, counts, &dtype, nullptr, call, work,
               [&](muster::Group& group, const Call& c, auto all) {
                 return group.scatter_v(in, out, all, c.dtype, root, c.deadline);
               });
}

muster_status muster_comm_all_to_all_v(muster_comm* comm, const void* in, const size_t* in_counts, void* out,
                                       const size_t* out_counts, muster_dtype dtype, const muster_call* call,
                                       muster_work** work) {
  const size_t* const counts = out_counts != nullptr ? in_counts : nullptr;
  return run_v(comm, __func__, counts, &dtype, nullptr, call, work,
               [&](muster::Group& group, const Call& c, auto sent) {
                 return group.all_to_all_v(in, sent, out, {out_counts, sent.size()}, c.dtype, c.deadline);
               });
}

muster_status muster_comm_send(muster_comm* comm, const void* data, size_t count, muster_dtype dtype,
                               int32_t peer, int32_t tag, const muster_call* call, muster_work** work) {
  if (const muster_status status = check_own(comm, __func__, true, peer, tag, work); status != MUSTER_OK)
    return status;
  return run(comm, __func__, &dtype, nullptr, call, work, [&](muster::Group& group, const Call& c) {
    return group.send(data, count, c.dtype, peer, tag, c.deadline);
  });
}

muster_status muster_comm_recv(muster_comm* comm, void* data, size_t count, muster_dtype dtype, int32_t peer,
                               int32_t tag, const muster_call* call, muster_work** work) {
  if (const muster_status status = check_own(comm, __func__, false, peer, tag, work); status != MUSTER_OK)
    return status;
  return run(comm, __func__, &dtype, nullptr, call, work, [&](muster::Group& group, const Call& c) {
    return group.recv(data, count, c.dtype, peer, tag, c.deadline);
  });
}

muster_status muster_group_start(void) {
  ++batch.depth;
  return MUSTER_OK;
}

muster_status muster_group_end(void) {
  if (batch.depth == 0) {
    return failed(MUSTER_MISUSE,
                  "muster_group_end: no batch is open in this thread; call muster_group_start first");
  }
  return --batch.depth > 0 ? MUSTER_OK : guarded(end_batch);
}

muster_status muster_work_test(const muster_work* work, int32_t* done) {
  return guarded(work, __func__, [&] {
    if (work == nullptr || done == nullptr) return null_argument("muster_work_test");
    *done = work->work.test() ? 1 : 0;
    return *done != 0 ? to_c(work->work.wait()) : MUSTER_OK;
  });
}

muster_status muster_work_wait(const muster_work* work, double timeout_seconds) {
  return guarded(work, __func__, [&] {
    if (work == nullptr) return null_argument("muster_work_wait");
    if (!is_time(timeout_seconds))
      return failed(MUSTER_MISUSE, "muster_work_wait: timeout_seconds is negative or not a number");
    const Duration own = from_seconds(timeout_seconds);
    return to_c(work->work.wait(own > 0 ? muster::now() + own : muster::kNever));
  });
}

void muster_work_destroy(muster_work* work) { delete work; }

}  // extern "C"
