// Muster's side of `scripts/bench all_reduce`: P processes on this node over shared memory; foreign buffers.
//   bench_all_reduce RANKS BYTES  prints the median nanoseconds of an operation, of the slowest rank.
#include <sys/wait.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>

#include "benchmarks/all_reduce.h"
#include "collectives/endpoint.h"
#include "runtime/base/random.h"

namespace {

constexpr muster::Duration kLimit = 60 * muster::kSecond;

struct Pipes {
  int to_parent[2];
  int to_child[2];
};

bool write_all(int fd, const void* data, size_t bytes) {
  return write(fd, data, bytes) == static_cast<ssize_t>(bytes);
}
bool read_all(int fd, void* data, size_t bytes) {
  auto* at = static_cast<char*>(data);
  while (bytes > 0) {
    const ssize_t got = read(fd, at, bytes);
    if (got <= 0) return false;
    at += got;
    bytes -= static_cast<size_t>(got);
  }
  return true;
}

// Contacts go to the parent and come back from all ranks, as the control plane would carry them.
bool exchange(const Pipes& pipes, const muster::ByteBuffer& mine, std::vector<muster::ByteBuffer>& all) {
  const uint64_t size = mine.size();
  if (!write_all(pipes.to_parent[1], &size, sizeof size) || !write_all(pipes.to_parent[1], mine.data(), size))
    return false;
  for (auto& contact : all) {
    uint64_t bytes = 0;
    if (!read_all(pipes.to_child[0], &bytes, sizeof bytes)) return false;
    contact.resize(bytes);
    if (!read_all(pipes.to_child[0], contact.data(), bytes)) return false;
  }
  return true;
}

int run_rank(int rank, int ranks, size_t bytes, uint64_t nonce, const Pipes& pipes) {
  auto endpoint = muster::Endpoint::create({});
  if (!endpoint.ok()) return 1;
  muster::GroupSpec spec;
  spec.generation = {nonce, 1};
  spec.contacts.resize(static_cast<size_t>(ranks));
  spec.nodes.assign(static_cast<size_t>(ranks), 1);
  spec.rank = rank;
  spec.deadline = muster::now() + kLimit;
  if (!exchange(pipes, (*endpoint)->contact(), spec.contacts)) return 1;
  auto group = (*endpoint)->form_group(spec);
  if (!group.ok()) return std::fprintf(stderr, "%s\n", group.error().message.c_str()), 1;

  std::vector<float> in(bytes / sizeof(float));
  std::vector<float> out(in.size());
  std::vector<int64_t> times;
  for (int round = 0; round < bench::repeats(bytes) + 5; ++round) {
    bench::fresh(in, round, rank);
    if (!(*group)->barrier(muster::now() + kLimit).wait().ok()) return 1;
    const int64_t began = bench::now_ns();
    auto work = (*group)->all_reduce(in.data(), out.data(), in.size(), muster::DType::kFloat32,
                                     muster::ReduceOp::kSum, muster::now() + kLimit);
    if (!work.wait().ok()) return 1;
    if (round >= 5) times.push_back(bench::now_ns() - began);
  }
  const int64_t median = bench::median(times);
  (void)(*group)->barrier(muster::now() + kLimit).wait();
  return write_all(pipes.to_parent[1], &median, sizeof median) ? 0 : 1;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 3) return std::fprintf(stderr, "usage: bench_all_reduce RANKS BYTES\n"), 2;
  const int ranks = std::atoi(argv[1]);
  const auto bytes = static_cast<size_t>(std::atoll(argv[2]));
  const uint64_t nonce = muster::random_nonce();
  std::vector<Pipes> pipes(static_cast<size_t>(ranks));
  for (int rank = 0; rank < ranks; ++rank) {
    Pipes& pair = pipes[static_cast<size_t>(rank)];
    if (pipe(pair.to_parent) != 0 || pipe(pair.to_child) != 0) return 1;
    if (fork() == 0) _exit(run_rank(rank, ranks, bytes, nonce, pair));
  }
  std::vector<std::vector<char>> contacts;
  for (const Pipes& pair : pipes) {
    uint64_t size = 0;
    if (!read_all(pair.to_parent[0], &size, sizeof size)) return 1;
    std::vector<char> contact(size);
    if (!read_all(pair.to_parent[0], contact.data(), size)) return 1;
    contacts.push_back(std::move(contact));
  }
  for (const Pipes& pair : pipes) {
    for (const auto& contact : contacts) {
      const uint64_t size = contact.size();
      if (!write_all(pair.to_child[1], &size, sizeof size) ||
          !write_all(pair.to_child[1], contact.data(), size))
        return 1;
    }
  }
  int64_t slowest = 0;
  for (const Pipes& pair : pipes) {
    int64_t median = 0;
    if (!read_all(pair.to_parent[0], &median, sizeof median)) return 1;
    slowest = std::max(slowest, median);
  }
  while (wait(nullptr) > 0) {
  }
  std::printf("%lld\n", static_cast<long long>(slowest));
  return 0;
}
