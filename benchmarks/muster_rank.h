// One rank of Muster among competitors that take turns; see Participant in turns.h.
#pragma once

#include <sched.h>

#include <cstdio>
#include <memory>
#include <utility>
#include <vector>

#include "benchmarks/turns.h"
#include "collectives/endpoint.h"
#include "runtime/base/clock.h"

namespace bench {

class MusterRank {
 public:
  // `nodes`: of each rank.
  MusterRank(Control& control, int rank, std::vector<uint64_t> nodes, muster::EndpointOptions options) {
    endpoint_ = muster::Endpoint::create(std::move(options)).value();
    const muster::ByteBuffer mine = endpoint_->contact();
    std::memcpy(control.contacts[rank], mine.data(), mine.size());
    control.contact_bytes[rank].store(static_cast<uint32_t>(mine.size()));
    muster::GroupSpec spec;
    spec.generation = {1, 1};
    spec.rank = rank;
    spec.nodes = std::move(nodes);
    spec.deadline = muster::now() + kLimit;
    for (size_t peer = 0; peer < spec.nodes.size(); ++peer) {
      while (control.contact_bytes[peer].load() == 0) sched_yield();
      const auto* bytes = reinterpret_cast<const std::byte*>(control.contacts[peer]);
      spec.contacts.emplace_back(bytes, bytes + control.contact_bytes[peer].load());
    }
    group_ = endpoint_->form_group(spec).value();
  }

  float* buffer(bool output, size_t bytes, bool owned) {
    deadline_ = muster::now() + kLimit;  // of the whole turn: an instant, which one clock reading gives
    if (owned) {
      muster::SharedBuffer& shared = output ? shared_out_ : shared_in_;
      shared = muster::SharedBuffer();
      shared = group_->allocate(bytes + 64).value();
      return shared.as<float>();
    }
    std::vector<float>& buffer = output ? out_ : in_;
    buffer.assign(bytes / sizeof(float) + 16, 0.0F);
    return buffer.data();
  }

  void run(Op op, const float* in, float* out, size_t count) {
    const auto deadline = deadline_;
    const auto type = muster::DType::kFloat32;
    const auto sum = muster::ReduceOp::kSum;
    muster::Work work;
    if (op == Op::kAllReduce) work = group_->all_reduce(in, out, count, type, sum, deadline);
    if (op == Op::kReduceScatter) work = group_->reduce_scatter(in, out, count, type, sum, deadline);
    if (op == Op::kAllGather) work = group_->all_gather(in, out, count, type, deadline);
    if (op == Op::kBroadcast) work = group_->broadcast(in, out, count, type, 0, deadline);
    if (op == Op::kBarrier) work = group_->barrier(deadline);
    const muster::Status status = work.wait();
    if (!status.ok()) std::fprintf(stderr, "%s\n", status.error().message.c_str());
  }

  void settle() {}

  muster::Group& group() { return *group_; }
  muster::Instant deadline() const { return deadline_; }

 private:
  static constexpr muster::Duration kLimit = 60 * muster::kSecond;

  std::unique_ptr<muster::Endpoint> endpoint_;
  std::unique_ptr<muster::Group> group_;
  muster::Instant deadline_ = 0;
  std::vector<float> in_, out_;
  muster::SharedBuffer shared_in_, shared_out_;
};

}  // namespace bench
