// `scripts/bench network`: competitors on two hosts, directed; and two of them: Muster, and a plain stream.
//
//   bench_network direct RANKS ROUNDS OP:BYTES… [NAME=COMMAND…]   each COMMAND starts ranks of the world
//   NAME,
//                                                                 and gets the path of its CONTROL;
//                                                                 RANKS/HOSTS: on more than two hosts
//   bench_network muster RANK RANKS CONTROL                       one rank; hosts have as many each, in order
//   bench_network algorithm NAME RANK RANKS CONTROL               likewise, with this algorithm throughout;
//                                                                 "model": chosen by measured costs
//   bench_network compressed CODEC RANK RANKS CONTROL             likewise: all_reduce, with error feedback;
//                                                                 rankR: PowerSGD of rank R
//   bench_network link RANK RANKS ADDRESS CONTROL                 ADDRESS: of the second host
//
// The bound "link" moves the bytes that the operation must move between two hosts, over one plain TCP
// connection and both ways at once, and computes nothing. Of n bytes a host must send and receive, on two
// hosts whatever the number of their ranks: all_reduce 2(h−1)/h·n = n (half of the sum, and half of the
// result); reduce_scatter and all_gather (h−1)/h·n = n/2; broadcast n, one way.
#include <arpa/inet.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/socket.h>

#include <cstring>
#include <map>
#include <string>
#include <vector>

#include "benchmarks/compressed_rank.h"
#include "benchmarks/director.h"
#include "benchmarks/muster_rank.h"
#include "collectives/cost_tuning.h"
#include "collectives/transport/ucx.h"

namespace {

using bench::Control;
using bench::Op;

void require(bool condition, const char* what) {
  if (condition) return;
  std::perror(what);
  std::exit(1);
}

// ---- the bound

class Link {
 public:
  Link(Control& control, int rank, int ranks, const char* address) : ranks_(ranks) {
    if (rank == 0) connect(control, ranks / 2, address);
    if (rank == ranks / 2) accept(control, rank);
    is_root_ = rank == 0;
    if (socket_ < 0) return;
    const int on = 1;
    setsockopt(socket_, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
  }

  float* buffer(bool output, size_t bytes, bool) {
    std::vector<float>& buffer = output ? out_ : in_;
    buffer.assign(bytes / sizeof(float), 0.0F);
    return buffer.data();
  }

  void run(Op op, const float*, float*, size_t count) {
    if (socket_ < 0) return;  // one rank speaks for its host
    const size_t bytes = count * sizeof(float);
    if (op == Op::kAllReduce) exchange(bytes, bytes);
    if (op == Op::kReduceScatter || op == Op::kAllGather) {
      const size_t half = bytes * static_cast<size_t>(ranks_) / 2;
      exchange(half, half);
    }
    if (op == Op::kBroadcast) exchange(is_root_ ? bytes : 0, is_root_ ? 0 : bytes);
  }

  void settle() {}

 private:
  // The port travels in the control block, plus one, since 0 means "not yet".
  void accept(Control& control, int rank) {
    const int listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    sockaddr_in any{.sin_family = AF_INET, .sin_port = 0, .sin_addr = {INADDR_ANY}, .sin_zero = {}};
    socklen_t size = sizeof any;
    require(bind(listener, reinterpret_cast<sockaddr*>(&any), size) == 0 && listen(listener, 1) == 0 &&
                getsockname(listener, reinterpret_cast<sockaddr*>(&any), &size) == 0,
            "listen");
    control.contact_bytes[rank].store(uint32_t{ntohs(any.sin_port)} + 1);
    socket_ = ::accept4(listener, nullptr, nullptr, SOCK_CLOEXEC);
    require(socket_ >= 0, "accept");
    close(listener);
  }

  void connect(Control& control, int other, const char* address) {
    while (control.contact_bytes[other].load() == 0) sched_yield();
    const auto port = static_cast<uint16_t>(control.contact_bytes[other].load() - 1);
    sockaddr_in there{.sin_family = AF_INET, .sin_port = htons(port), .sin_addr = {}, .sin_zero = {}};
    inet_pton(AF_INET, address, &there.sin_addr);
    socket_ = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    require(::connect(socket_, reinterpret_cast<sockaddr*>(&there), sizeof there) == 0, "connect");
  }

  // From and to a buffer that stays in the cache: the bound is the link's, not the memory's.
  void exchange(size_t to_send, size_t to_receive) {
    static std::vector<char> outgoing(kPiece), incoming(kPiece);
    while (to_send + to_receive > 0) {
      const auto wanted = static_cast<short>((to_send > 0 ? POLLOUT : 0) | (to_receive > 0 ? POLLIN : 0));
      pollfd one{socket_, wanted, 0};
      require(poll(&one, 1, -1) == 1, "poll");
      if ((one.revents & POLLIN) != 0)
        to_receive -= moved(recv(socket_, incoming.data(), std::min(kPiece, to_receive), MSG_DONTWAIT));
      if ((one.revents & POLLOUT) != 0)
        to_send -= moved(send(socket_, outgoing.data(), std::min(kPiece, to_send), MSG_DONTWAIT));
    }
  }

  static size_t moved(ssize_t bytes) {
    require(bytes > 0, "the link");
    return static_cast<size_t>(bytes);
  }

  static constexpr size_t kPiece = 256 * 1024;
  const int ranks_;
  bool is_root_ = false;
  int socket_ = -1;
  std::vector<float> in_, out_;
};

// ---- the roles

int direct(int argc, char** argv) {
  const int ranks = std::atoi(argv[2]);
  const char* const slash = std::strchr(argv[2], '/');
  const uint32_t hosts = slash == nullptr ? 2 : static_cast<uint32_t>(std::atoi(slash + 1));
  bench::Director director({.ranks = ranks, .hosts = hosts, .turn_ns = 200e6, .samples_least = 1});
  std::vector<bench::Case> cases;
  std::map<std::string, std::vector<std::string>> worlds;
  for (int i = 4; i < argc; ++i) {
    const std::string argument = argv[i];
    const size_t equals = argument.find('=');
    if (equals == std::string::npos) {
      cases.push_back(bench::parse_case(argument));
    } else {
      worlds[argument.substr(0, equals)].push_back(argument.substr(equals + 1));
    }
  }
  for (const auto& [name, commands] : worlds) director.start_world(name, name == "link", commands);
  return director.play(cases, std::atoi(argv[3])) ? 0 : 1;
}

// Chooses its algorithms by what it measures when it begins.
class TunedRank final : public bench::MusterRank {
 public:
  TunedRank(Control& control, int rank, std::vector<uint64_t> nodes, muster::EndpointOptions options)
      : MusterRank(control, rank, std::move(nodes), std::move(options)) {
    muster::CostCache cache;
    const muster::Tuned tuned = muster::tune(group(), cache, muster::now() + 60 * muster::kSecond).value();
    if (rank == 0)
      std::fprintf(stderr, "measured in %.1f ms: %s; %s\n", static_cast<double>(tuned.took) * 1e-6,
                   to_text(tuned.numbers).c_str(), choices().c_str());
  }

 private:
  std::string choices() {
    std::string text;
    for (const auto kind : {muster::Collective::kAllReduce, muster::Collective::kBroadcast}) {
      text += " " + std::string(to_string(kind)) + ":";
      for (size_t kib = 4; kib <= 16384; kib *= 4) {
        const auto costs = group().explain(kind, kib * 1024 / sizeof(float), muster::DType::kFloat32);
        text += " " + std::to_string(kib) + " KiB " + std::string(costs.chosen) + ",";
      }
    }
    text.pop_back();
    return text;
  }
};

// `more`: further arguments of Library's constructor.
template <typename Library, typename... More>
int be_muster(const std::string& algorithm, int rank, int ranks, const char* path, More... more) {
  Control& control = *bench::open_control(path);
  bench::pin(control, rank, ranks);
  std::vector<uint64_t> nodes;
  for (int peer = 0; peer < ranks; ++peer)
    nodes.push_back(1 + static_cast<uint64_t>(peer) * control.hosts / static_cast<uint64_t>(ranks));
  muster::EndpointOptions options;
  options.transport = muster::open_ucx().value();
  options.algorithm = algorithm;
  Library library(control, rank, std::move(nodes), std::move(options), more...);
  bench::Participant(control, rank, ranks).serve(library);
  return 0;
}

int be_compressed(const std::string& codec, int rank, int ranks, const char* path) {
  for (const bench::CompressedCodec& one : bench::kCompressedCodecs)
    if (codec == one.name) return be_muster<bench::CompressedRank>("", rank, ranks, path, one);
  if (codec.starts_with("rank"))
    return be_muster<bench::LowRankRank>("", rank, ranks, path, static_cast<uint32_t>(std::atoi(&codec[4])));
  std::fprintf(stderr, "unknown codec %s\n", codec.c_str());
  return 2;
}

int be_algorithm(const std::string& name, int rank, int ranks, const char* path) {
  if (name == "model") return be_muster<TunedRank>("", rank, ranks, path);
  return be_muster<bench::MusterRank>(name, rank, ranks, path);
}

int be_link(int rank, int ranks, const char* address, const char* path) {
  Control& control = *bench::open_control(path);
  bench::pin(control, rank, ranks);
  Link library(control, rank, ranks, address);
  bench::Participant(control, rank, ranks).serve(library);
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  const std::string role = argc > 1 ? argv[1] : "";
  if (role == "direct" && argc > 4) return direct(argc, argv);
  if (role == "muster" && argc == 5)
    return be_muster<bench::MusterRank>("", std::atoi(argv[2]), std::atoi(argv[3]), argv[4]);
  if (role == "algorithm" && argc == 6)
    return be_algorithm(argv[2], std::atoi(argv[3]), std::atoi(argv[4]), argv[5]);
  if (role == "compressed" && argc == 6)
    return be_compressed(argv[2], std::atoi(argv[3]), std::atoi(argv[4]), argv[5]);
  if (role == "link" && argc == 6) return be_link(std::atoi(argv[2]), std::atoi(argv[3]), argv[4], argv[5]);
  std::fprintf(stderr, "usage: see the head of network.cpp\n");
  return 2;
}
