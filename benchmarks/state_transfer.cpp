// bench_state_transfer: how long members that are a version behind wait for the state.
//
//   bench_state_transfer [MiB] [rounds] [namespace…]     default 64, 9
//
// Processes of this machine run StateTransfer as a view change does: the first hold the state, the others get
// it, over the node's shared memory or (as between nodes) over UCX's TCP. With network namespaces, whose
// links may have limits: one target, in the last of them, and one, two, … sources in the others. In every
// round, between the same barriers, rank 1 copies and digests the same state alone: what one laggard cannot
// do without. A time is from the first rank's start to the last one's end; the table has medians. Bytes that
// arrive wrong end the program with 1.
#include <fcntl.h>
#include <sched.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <string>
#include <vector>

#include "collectives/transport/ucx.h"
#include "runtime/base/handle.h"
#include "runtime/state_transfer.h"

namespace {

using namespace muster;

constexpr int kRanksMax = 8;
constexpr int kRoundsMax = 101;
constexpr size_t kContactMax = 4096;
enum Phase { kTransfer, kCopy, kDigest, kPhases };

// In shared memory.
struct Board {
  std::atomic<int> arrived{0};
  std::atomic<int> faults{0};
  size_t contact_bytes[kRanksMax];
  std::byte contacts[kRanksMax][kContactMax];
  Instant begin[kRoundsMax][kPhases][kRanksMax];
  Instant end[kRoundsMax][kPhases][kRanksMax];
};

struct Setting {
  int sources;
  int targets;
  bool same_node;
  uint64_t bytes;
  int rounds;
  std::vector<std::string> namespaces;  // none: all in this one

  int ranks() const { return sources + targets; }
  bool is_source(int rank) const { return rank < sources; }
};

class Process {
 public:
  Process(Board& board, const Setting& setting, int rank)
      : board_(board), setting_(setting), rank_(rank), memory_(setting.bytes / sizeof(float)) {}

  void run() {
    enter_namespace();
    for (size_t i = 0; i < memory_.size(); ++i)
      memory_[i] = static_cast<float>(setting_.is_source(rank_) ? i : 0);
    check(state_.add_replicated("weights", memory_.data(), DType::kFloat32,
                                {static_cast<int64_t>(memory_.size())}));
    EndpointOptions options;
    options.transport = open_ucx().value();
    options.shared_memory = setting_.same_node;
    endpoint_ = Endpoint::create(std::move(options)).value();
    const ByteBuffer contact = endpoint_->contact();
    board_.contact_bytes[rank_] = contact.size();
    std::copy(contact.begin(), contact.end(), board_.contacts[rank_]);
    meet();
    for (int round = 0; round < setting_.rounds; ++round) one_round(round);
    meet();
  }

 private:
  void enter_namespace() {
    if (setting_.namespaces.empty()) return;
    const size_t index =
        setting_.is_source(rank_) ? static_cast<size_t>(rank_) : setting_.namespaces.size() - 1;
    const UniqueFd file(open(("/run/netns/" + setting_.namespaces[index]).c_str(), O_RDONLY));
    if (file && setns(file.get(), CLONE_NEWNET) == 0) return;
    std::fprintf(stderr, "rank %d: cannot enter network namespace %s\n", rank_,
                 setting_.namespaces[index].c_str());
    std::exit(1);
  }
  void meet() {
    const int wanted = ++meetings_ * setting_.ranks();
    board_.arrived.fetch_add(1);
    while (board_.arrived.load() < wanted) sched_yield();
  }
  void check(const Status& status) {
    if (status.ok()) return;
    std::fprintf(stderr, "rank %d: %s\n", rank_, status.error().message.c_str());
    board_.faults.fetch_add(1);
  }
  void timed(int round, Phase phase, const std::function<void()>& call) {
    meet();
    board_.begin[round][phase][rank_] = now();
    call();
    board_.end[round][phase][rank_] = now();
    meet();
  }

  void one_round(int round) {
    const control::Install install = view(round);
    StateTransfer transfer{
        *endpoint_, state_, static_cast<control::MemberId>(rank_ + 1), now() + 60 * kSecond, {}};
    std::vector<control::MemberId> suspects;
    timed(round, kTransfer, [&] { check(transfer.run(install, suspects)); });
    if (transfer.staged && round == 0) {
      check(state_.install(*transfer.staged, kNever));
      if (memory_.back() != static_cast<float>(memory_.size() - 1)) board_.faults.fetch_add(1);
    }
    transfer.staged.reset();
    timed(round, kCopy, [&] {
      if (rank_ == 1) state_.copy_to(copy_);
    });
    timed(round, kDigest, [&] {
      if (rank_ == 1) last_ = state_.digest();
    });
  }

  control::Install view(int round) {
    control::Install install;
    install.view.generation = {77, static_cast<uint64_t>(round) + 1};
    install.view.base = 5;
    for (int rank = 0; rank < setting_.ranks(); ++rank) {
      control::Member member;
      member.id = static_cast<control::MemberId>(rank + 1);
      member.contact.assign(board_.contacts[rank], board_.contacts[rank] + board_.contact_bytes[rank]);
      for (int source = 0; source < setting_.sources && !setting_.is_source(rank); ++source)
        install.transfers.push_back({static_cast<control::MemberId>(source + 1), member.id, false,
                                     static_cast<uint32_t>(source), static_cast<uint32_t>(setting_.sources)});
      install.view.members.push_back(std::move(member));
    }
    return install;
  }

  Board& board_;
  const Setting setting_;
  const int rank_;
  int meetings_ = 0;
  std::vector<float> memory_;
  ByteBuffer copy_ = ByteBuffer(setting_.bytes);
  State state_;
  Digest last_;
  std::unique_ptr<Endpoint> endpoint_;
};

double median_ms(const Board& board, const Setting& setting, Phase phase) {
  std::vector<Duration> times;
  for (int round = 0; round < setting.rounds; ++round) {
    const Instant* const begin = board.begin[round][phase];
    const Instant* const end = board.end[round][phase];
    // Only rank 1 works in the other phases.
    times.push_back(phase == kTransfer ? *std::max_element(end, end + setting.ranks()) -
                                             *std::min_element(begin, begin + setting.ranks())
                                       : end[1] - begin[1]);
  }
  std::sort(times.begin(), times.end());
  return seconds(times[times.size() / 2]) * 1e3;
}

bool measure(const Setting& setting) {
  void* const memory =
      mmap(nullptr, sizeof(Board), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  if (memory == MAP_FAILED) return false;
  Board& board = *new (memory) Board{};
  std::vector<pid_t> children;
  for (int rank = 0; rank < setting.ranks(); ++rank) {
    const pid_t child = fork();
    if (child != 0) {
      children.push_back(child);
      continue;
    }
    Process(board, setting, rank).run();
    std::exit(0);
  }
  bool good = true;
  for (const pid_t child : children) {
    int status = 0;
    good = waitpid(child, &status, 0) == child && status == 0 && good;
  }
  const double copy = median_ms(board, setting, kCopy);
  const double digest = median_ms(board, setting, kDigest);
  const double transfer = median_ms(board, setting, kTransfer);
  const char* const way = setting.same_node            ? "shared memory"
                          : setting.namespaces.empty() ? "TCP loopback"
                                                       : "TCP";
  std::printf("%-14s %d to %d  %7.1f ms   copy %5.1f  digest %5.1f   ratio %5.2f\n", way, setting.sources,
              setting.targets, transfer, copy, digest, transfer / (copy + digest));
  std::fflush(stdout);
  good = good && board.faults.load() == 0;
  munmap(memory, sizeof(Board));
  return good;
}

}  // namespace

int main(int argc, char** argv) {
  const uint64_t bytes = (argc > 1 ? std::strtoull(argv[1], nullptr, 10) : 64) << 20;
  const int rounds = std::min(argc > 2 ? std::atoi(argv[2]) : 9, kRoundsMax);
  const std::vector<std::string> namespaces(argv + std::min(argc, 3), argv + argc);
  bool good = true;
  for (int sources = 1; sources < static_cast<int>(namespaces.size()); ++sources)
    good = measure({sources, 1, false, bytes, rounds, namespaces}) && good;
  if (!namespaces.empty()) return good ? 0 : 1;
  for (const bool same_node : {true, false}) {
    for (const int targets : {1, 3, 6}) good = measure({1, targets, same_node, bytes, rounds, {}}) && good;
    if (!same_node) good = measure({2, 1, same_node, bytes, rounds, {}}) && good;
  }
  return good ? 0 : 1;
}
