// `scripts/bench collectives`: Muster's world on one node, and the memory's bound, directed beside peers.
//
//   bench_collectives RANKS ROUNDS OP:BYTES[:owned][:flushed]… [NAME=COMMAND…]   each COMMAND starts ranks of
//   the peer NAME; its CONTROL is appended
//
// Prints what director.h says. "copy" is the bound of all_reduce: every rank copies its input to its output,
// alone, which is the least that must be moved; once with ordinary and once with non-temporal stores.
#include <map>
#include <string>
#include <vector>

#include "benchmarks/director.h"
#include "benchmarks/muster_rank.h"

namespace {

using bench::Control;
using bench::Op;

class Copy {
 public:
  explicit Copy(bool streaming) : streaming_(streaming) {}
  float* buffer(bool output, size_t bytes, bool) {
    std::vector<float>& buffer = output ? out_ : in_;
    buffer.assign(bytes / sizeof(float) + 64, 0.0F);
    return reinterpret_cast<float*>((reinterpret_cast<uintptr_t>(buffer.data()) + 63) & ~uintptr_t{63});
  }
  void run(Op, const float* in, float* out, size_t count) const {
#if defined(__x86_64__)
    if (streaming_) {
      using Vector = long long __attribute__((vector_size(16)));
      const auto* from = reinterpret_cast<const Vector*>(in);
      auto* to = reinterpret_cast<Vector*>(out);
      const size_t vectors = count * sizeof(float) / sizeof(Vector);
      for (size_t i = 0; i < vectors; ++i) __builtin_ia32_movntdq(to + i, from[i]);
      __builtin_ia32_sfence();
      return;
    }
#endif
    std::memcpy(out, in, count * sizeof(float));
  }
  void settle() {}

 private:
  const bool streaming_;
  std::vector<float> in_, out_;
};

}  // namespace

int main(int argc, char** argv) {
  if (argc < 4) {
    std::fprintf(stderr,
                 "usage: bench_collectives RANKS ROUNDS OP:BYTES[:owned][:flushed]… [NAME=COMMAND…]\n");
    return 2;
  }
  const int ranks = std::atoi(argv[1]);
  bench::Director director({.ranks = ranks, .hosts = 1, .turn_ns = 60e6, .samples_least = 3});
  director.fork_world("muster", false, [ranks](Control& control, int rank) {
    bench::MusterRank library(control, rank, std::vector<uint64_t>(static_cast<size_t>(ranks), 1), {});
    bench::Participant(control, rank, ranks).serve(library);
  });
  for (const bool streaming : {false, true}) {
    director.fork_world(streaming ? "copy, streaming" : "copy", true,
                        [ranks, streaming](Control& control, int rank) {
                          Copy library(streaming);
                          bench::Participant(control, rank, ranks).serve(library);
                        });
  }
  std::vector<bench::Case> cases;
  std::map<std::string, std::vector<std::string>> peers;
  for (int i = 3; i < argc; ++i) {
    const std::string argument = argv[i];
    const size_t equals = argument.find('=');
    if (equals == std::string::npos) {
      cases.push_back(bench::parse_case(argument));
    } else {
      peers[argument.substr(0, equals)].push_back(argument.substr(equals + 1));
    }
  }
  for (const auto& [name, commands] : peers) director.start_world(name, false, commands);
  return director.play(cases, std::atoi(argv[2])) ? 0 : 1;
}
