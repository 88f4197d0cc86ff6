// bench_scale: what one view change costs the leader, by the number of ranks. The production Coordinator
// forms a world of nodes with eight ranks, loses one node, and changes the view; every member answers at
// once. Counted are the messages between leader and nodes and their encoded bytes; timed is the leader alone,
// on one core: its decisions, and the encoding of what it says.
//
// All agents talk to the leader directly (a flat star). Each node gets one message for all its members, and
// of a view only what differs from the one before: a node's messages and bytes do not grow with the world,
// and the leader's work grows as the number of ranks.
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

struct Cost {
  uint64_t sent = 0;
  uint64_t received = 0;
  double bytes_sent = 0;
  double leader_ms = 0;
  double encode_ms = 0;
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
      if (auto* send = std::get_if<Send>(&action)) deliver(send->node, send->envelope);
      if (auto* many = std::get_if<SendMany>(&action)) deliver(std::move(*many));
    }
  }

  // The host encodes it for each node. What is too large to do that here is encoded once: the first view.
  void deliver(SendMany many) {
    const auto* install = std::get_if<Install>(&many.message);
    const bool is_large = install != nullptr && install->since.counter == 0;
    Envelope envelope{0, std::move(many.message), {}};
    const double bytes = is_large ? encoded(envelope) : 0;
    for (const auto& [node, members] : many.to) {
      envelope.member = members.front();
      envelope.others.assign(members.begin() + 1, members.end());
      ++cost_.sent;
      cost_.bytes_sent += is_large ? bytes : encoded(envelope);
      for (const MemberId member : members) answer(node, member, envelope.message);
    }
  }
  void deliver(NodeId node, const Envelope& envelope) {
    ++cost_.sent;
    cost_.bytes_sent += encoded(envelope);
    if (envelope.member != 0) answer(node, envelope.member, envelope.message);
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

  void answer(NodeId node, MemberId member, const Message& message) {
    const auto reply = [&](Message answered) {
      inbox_.emplace_back(node, Envelope{member, std::move(answered), {}});
    };
    if (const auto* agree = std::get_if<Agree>(&message)) {
      Report report;
      report.generation = report.installed = agree->generation;
      report.attempt = agree->attempt;
      report.version = 10;
      report.knows = agree->generation;
      reply(report);
    } else if (const auto* install = std::get_if<Install>(&message)) {
      base_ = install->view.base;
      reply(Ready{install->view.generation, install->attempt});
    } else if (const auto* go = std::get_if<Go>(&message); go != nullptr) {
      if (base_ == kNoVersion) {
        reply(Started{go->generation, 10, Digest{1, 2}, {}});
      } else {
        reply(BaseDigest{go->generation, Digest{1, 2}});
      }
    }
  }

  double encoded(const Envelope& envelope) {
    const auto began = std::chrono::steady_clock::now();
    const auto bytes = encode(envelope);
    const std::chrono::duration<double, std::milli> took = std::chrono::steady_clock::now() - began;
    cost_.encode_ms += took.count();
    return bytes.ok() ? static_cast<double>(bytes->size()) : 0;
  }

  uint32_t nodes_;
  Limits limits_;
  Instant now_ = kSecond;
  std::unique_ptr<Coordinator> leader_;
  Version base_ = kNoVersion;
  Cost cost_;
  std::deque<StoreView> stores_;
  std::deque<std::pair<NodeId, Envelope>> inbox_;
};

void print(uint64_t ranks, const Cost& cost) {
  const double nodes = static_cast<double>(ranks) / kRanksPerNode;
  std::printf(
      "{\"ranks\":%llu,\"sent_per_node\":%.1f,\"received_per_node\":%.1f,\"bytes_per_node\":%.0f,"
      "\"leader_ms\":%.1f,\"encode_ms\":%.1f,\"leader_kib_per_rank\":%.1f}\n",
      static_cast<unsigned long long>(ranks), static_cast<double>(cost.sent) / nodes,
      static_cast<double>(cost.received) / nodes, cost.bytes_sent / nodes, cost.leader_ms, cost.encode_ms,
      cost.resident_kib_per_rank);
}

}  // namespace

int main(int argc, char** argv) {
  const uint64_t ranks = argc > 1 ? std::strtoull(argv[1], nullptr, 10) : 0;
  if (ranks < 2 * kRanksPerNode || ranks > 200'000 || ranks % kRanksPerNode != 0) {
    std::fprintf(stderr, "bench_scale: give a number of ranks from 16 to 200000, by eights\n");
    return 78;
  }
  const double before = resident_kib();
  World world(static_cast<uint32_t>(ranks / kRanksPerNode));
  world.form();
  if (!world.running(ranks)) {
    std::fprintf(stderr, "bench_scale: the first view did not form\n");
    return 1;
  }
  Cost cost = world.lose_a_node();
  if (!world.running(ranks - kRanksPerNode)) {
    std::fprintf(stderr, "bench_scale: the view did not change\n");
    return 1;
  }
  cost.resident_kib_per_rank = (resident_kib() - before) / static_cast<double>(ranks);
  print(ranks, cost);
  return 0;
}
