// bench_scale: what one view change costs the leader, by the number of ranks. The production Coordinator
// forms a world of nodes with eight ranks, loses one node, and changes the view; every member answers at
// once. Counted are the leader's messages and their encoded bytes; timed is the leader alone, on one core.
//
// All agents talk to the leader directly (a flat star), and each member gets the whole view: a node's own
// messages do not grow, the bytes of each do with the world, and the leader's work with its square. Sizes
// that would take too long here are computed from the largest measured one, and say so.
#include <sys/resource.h>

#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <deque>
#include <memory>
#include <string>

#include "runtime/base/random.h"
#include "runtime/control/coordinator.h"
#include "runtime/control/wire.h"

namespace {

using namespace muster;
using namespace muster::control;

constexpr uint32_t kRanksPerNode = 8;
constexpr size_t kContactBytes = 200;  // of a UCX address with two network devices
constexpr uint64_t kRanksMeasuredMax = 2048;

struct Cost {
  uint64_t sent = 0;
  uint64_t received = 0;
  double bytes_sent = 0;
  double install_bytes = 0;
  double leader_ms = 0;
  double resident_kib_per_rank = 0;
};

double resident_kib() {
  rusage usage{};
  getrusage(RUSAGE_SELF, &usage);
  return static_cast<double>(usage.ru_maxrss);
}

class World {
 public:
  explicit World(uint32_t nodes) : nodes_(nodes) {
    limits_.nodes_min = 1;
    limits_.nodes_max = nodes;
    limits_.workers_per_node = kRanksPerNode;
    leader_ = std::make_unique<Coordinator>(limits_, "job", 77, now_);
  }

  void form() {
    for (NodeId node = 1; node <= nodes_; ++node) {
      NodeHello hello;
      hello.node = node;
      hello.name = "n" + std::to_string(node);
      hello.job = "job";
      hello.workers = kRanksPerNode;
      hello.nodes_min = 1;
      hello.nodes_max = nodes_;
      hear(node, 0, hello);
      for (uint32_t slot = 0; slot < kRanksPerNode; ++slot) {
        MemberHello member;
        member.member = Member{id(node, slot), node, slot, hello.name, ByteBuffer(kContactBytes)};
        hear(node, id(node, slot), member);
      }
    }
    drain();
  }

  // The last node's agent is gone with its workers: its connection ends, which is silence of one node. The
  // survivors' answers come when all of them were asked.
  Cost lose_a_node() {
    cost_ = Cost{};
    began_ = true;
    timed([&] { return leader_->disconnected(now_, nodes_, "connection reset"); });
    drain();
    return cost_;
  }
  bool running(uint64_t ranks) const {
    return leader_->phase() == "running" && leader_->view().members.size() == ranks;
  }

 private:
  static MemberId id(NodeId node, uint32_t slot) { return node * 100 + slot; }

  void hear(NodeId node, MemberId member, Message message) {
    ++cost_.received;
    const Envelope envelope{member, std::move(message)};
    timed([&] { return leader_->receive(now_, node, envelope); });
  }

  template <typename Call>
  void timed(Call&& call) {
    const auto began = std::chrono::steady_clock::now();
    Actions actions = call();
    const std::chrono::duration<double, std::milli> took = std::chrono::steady_clock::now() - began;
    cost_.leader_ms += took.count();
    for (Action& action : actions) {
      if (const auto* store = std::get_if<StoreView>(&action)) stores_.push_back(*store);
      if (auto* send = std::get_if<Send>(&action)) answer(*send);
    }
  }

  // What was answered travels while the leader still speaks.
  void drain() {
    while (!stores_.empty() || !inbox_.empty()) {
      if (!stores_.empty()) {
        const StoreView store = std::move(stores_.front());
        stores_.pop_front();
        timed([&] { return leader_->stored(now_, store.attempt, true, store.view); });
        continue;
      }
      auto [node, envelope] = std::move(inbox_.front());
      inbox_.pop_front();
      hear(node, envelope.member, std::move(envelope.message));
    }
  }

  void answer(Send& send) {
    ++cost_.sent;
    const MemberId member = send.envelope.member;
    const auto reply = [&](Message message) {
      inbox_.emplace_back(send.node, Envelope{member, std::move(message)});
    };
    if (std::holds_alternative<Install>(send.envelope.message)) {
      if (began_ && cost_.install_bytes == 0) cost_.install_bytes = bytes_of(send.envelope);
      cost_.bytes_sent += cost_.install_bytes;
    } else {
      cost_.bytes_sent += bytes_of(send.envelope);
    }
    if (member == 0) return;
    if (const auto* agree = std::get_if<Agree>(&send.envelope.message)) {
      Report report;
      report.generation = report.installed = agree->generation;
      report.attempt = agree->attempt;
      report.version = 10;
      reply(report);
    } else if (const auto* install = std::get_if<Install>(&send.envelope.message)) {
      base_ = install->view.base;
      reply(Ready{install->view.generation, install->attempt});
    } else if (const auto* go = std::get_if<Go>(&send.envelope.message); go != nullptr) {
      if (base_ == kNoVersion) {
        reply(Started{go->generation, 10, Digest{1, 2}, {}});
      } else {
        reply(BaseDigest{go->generation, Digest{1, 2}});
      }
    }
  }

  double bytes_of(const Envelope& envelope) {
    const auto bytes = encode(envelope);
    return bytes.ok() ? static_cast<double>(bytes->size()) : 0;
  }

  uint32_t nodes_;
  Limits limits_;
  Instant now_ = kSecond;
  std::unique_ptr<Coordinator> leader_;
  Version base_ = kNoVersion;
  Cost cost_;
  bool began_ = false;  // the first view stands
  std::deque<StoreView> stores_;
  std::deque<std::pair<NodeId, Envelope>> inbox_;
};

void print(uint64_t ranks, const Cost& cost, const char* how) {
  const double nodes = static_cast<double>(ranks) / kRanksPerNode;
  const auto messages = static_cast<double>(cost.sent + cost.received);
  std::printf(
      "{\"ranks\":%llu,\"how\":\"%s\",\"messages_leader\":%.0f,\"messages_per_node\":%.1f,\"bytes_per_node\":"
      "%.0f,"
      "\"bytes_leader\":%.4g,\"leader_ms\":%.1f,\"leader_kib_per_rank\":%.1f}\n",
      static_cast<unsigned long long>(ranks), how, messages, messages / nodes, cost.bytes_sent / nodes,
      cost.bytes_sent, cost.leader_ms, cost.resident_kib_per_rank);
  std::fflush(stdout);
}

}  // namespace

int main(int argc, char** argv) {
  const uint64_t ranks = argc > 1 ? std::strtoull(argv[1], nullptr, 10) : 0;
  if (ranks < 2 * kRanksPerNode || ranks > 1'000'000) {
    std::fprintf(stderr, "bench_scale: give a number of ranks from 16 to 1000000\n");
    return 78;
  }
  const uint64_t measured = std::min(ranks, kRanksMeasuredMax);
  const double before = resident_kib();
  World world(static_cast<uint32_t>(measured / kRanksPerNode));
  world.form();
  if (!world.running(measured)) {
    std::fprintf(stderr, "bench_scale: the first view did not form\n");
    return 1;
  }
  Cost cost = world.lose_a_node();
  if (!world.running(measured - kRanksPerNode)) {
    std::fprintf(stderr, "bench_scale: the view did not change\n");
    return 1;
  }
  cost.resident_kib_per_rank = (resident_kib() - before) / static_cast<double>(measured);
  if (measured == ranks) {
    print(ranks, cost, "measured");
    return 0;
  }
  // Messages grow as the ranks, an Install as the view, so its bytes, copies and look-ups as their square.
  const double factor = static_cast<double>(ranks) / static_cast<double>(measured);
  cost.sent = static_cast<uint64_t>(static_cast<double>(cost.sent) * factor);
  cost.received = static_cast<uint64_t>(static_cast<double>(cost.received) * factor);
  cost.bytes_sent *= factor * factor;
  cost.leader_ms *= factor * factor;
  cost.resident_kib_per_rank *= factor;
  print(ranks, cost, "computed");
  return 0;
}
