// bench_scale: what the leader costs, by the number of ranks (runtime/sim/crowd.h): a world of nodes with
// eight ranks forms, loses one node, saves, loses a node during a save, loses a tenth of all nodes at once,
// also during a save, saves on each node, drains one, makes a step, and ends. Counted are the messages
// between leader and nodes and their encoded bytes; timed is the leader alone, on one core: its decisions,
// and the encoding of what it says.
//
// All agents talk to the leader directly (a flat star). Each node gets one message for all its members, and
// of a view only what differs from the one before: a node's messages and bytes do not grow with the world,
// and the leader's work grows as the number of ranks.
#include <sys/resource.h>

#include <chrono>
#include <cstdio>
#include <cstdlib>

#include "runtime/control/wire.h"
#include "runtime/sim/crowd.h"

namespace {

using namespace muster;
using namespace muster::control;

constexpr uint32_t kRanksPerNode = 8;

double resident_kib() {
  rusage usage{};
  getrusage(RUSAGE_SELF, &usage);
  return static_cast<double>(usage.ru_maxrss);
}

// What is large and the same for all nodes is encoded once: the first view.
class Encoder {
 public:
  void heard(const Envelope& envelope) {
    const auto* install = std::get_if<Install>(&envelope.message);
    if (install == nullptr || install->since.counter != 0) {
      bytes += encoded(envelope);
      return;
    }
    if (whole_ != install->attempt) whole_bytes_ = encoded(envelope);
    whole_ = install->attempt;
    bytes += whole_bytes_;
  }
  double bytes = 0;
  double ms = 0;

 private:
  double encoded(const Envelope& envelope) {
    const auto began = std::chrono::steady_clock::now();
    const auto encoded = encode(envelope);
    const std::chrono::duration<double, std::milli> took = std::chrono::steady_clock::now() - began;
    ms += took.count();
    return encoded.ok() ? static_cast<double>(encoded->size()) : 0;
  }
  uint32_t whole_ = 0;  // attempt of the newest view that was told whole
  double whole_bytes_ = 0;
};

[[noreturn]] void give_up(const char* what) {
  std::fprintf(stderr, "bench_scale: %s did not end as it should\n", what);
  std::exit(1);
}

}  // namespace

int main(int argc, char** argv) {
  const uint64_t ranks = argc > 1 ? std::strtoull(argv[1], nullptr, 10) : 0;
  if (ranks < 20 * kRanksPerNode || ranks > 200'000 || ranks % kRanksPerNode != 0) {
    std::fprintf(stderr, "bench_scale: give a number of ranks from 160 to 200000, by eights\n");
    return 78;
  }
  const double before = resident_kib();
  const auto nodes = static_cast<uint32_t>(ranks / kRanksPerNode);
  Encoder encoder;
  sim::Crowd crowd(nodes, kRanksPerNode, [&](const Envelope& envelope) { encoder.heard(envelope); });
  const auto print = [&](const char* what, const sim::Crowd::Cost& cost) {
    std::printf(
        "{\"what\":\"%s\",\"ranks\":%llu,\"sent_per_node\":%.1f,\"received_per_node\":%.1f,"
        "\"bytes_per_node\":%.0f,\"leader_ms\":%.1f,\"encode_ms\":%.1f,\"leader_kib_per_rank\":%.1f}\n",
        what, static_cast<unsigned long long>(ranks), static_cast<double>(cost.sent) / nodes,
        static_cast<double>(cost.received) / nodes, encoder.bytes / nodes, cost.leader_ms, encoder.ms,
        (resident_kib() - before) / static_cast<double>(ranks));
    encoder.bytes = encoder.ms = 0;
  };
  const auto show = [&](const char* what, const sim::Crowd::Cost& cost) {
    if (!crowd.running()) give_up(what);
    print(what, cost);
  };
  show("form", crowd.form());
  show("lose a node", crowd.lose(1));
  show("save", crowd.save());
  show("lose a node in a save", crowd.save(1));
  show("lose a tenth", crowd.lose(nodes / 10));
  show("lose a tenth in a save", crowd.save(nodes / 10));
  show("save on each node", crowd.save_locally());
  show("drain a node", crowd.drain(1));
  show("a step of all", crowd.progress());
  if (crowd.saves_durable() != 3) give_up("a save");
  const sim::Crowd::Cost end = crowd.end();
  if (!crowd.ended()) give_up("the end");
  print("end", end);
  return 0;
}
