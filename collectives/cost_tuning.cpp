#include "collectives/cost_tuning.h"

#include <algorithm>
#include <array>

#include "collectives/reduce.h"

namespace muster {
namespace {

// Rounds of a small probe: one operation's own costs, which it has once, spread over them.
constexpr uint16_t kSmallRounds = 8;
// Of a probe: so many tries, or as many as take so long, but one.
constexpr int kTriesMost = 21;
constexpr double kTriesS = 0.05;
constexpr int kFolds = 5;

uint64_t world_of(const Group& group, const std::vector<uint64_t>& nodes) {
  const std::string medium(group.medium());
  return digest_of(std::as_bytes(std::span(nodes))).low ^ digest_of(as_bytes(medium)).low;
}

class Probing {
 public:
  Probing(Group& group, Instant deadline)
      : group_(group), deadline_(deadline), in_(2 * kProbeMessages * kPayloadBytes), out_(in_.size()) {}

  Result<ProbeTimes> measure(bool has_mates, bool has_others) {
    ProbeTimes times;
    if (has_mates) MUSTER_TRY(measure_class(true, false, times.on_node));
    if (has_others) MUSTER_TRY(measure_class(false, true, times.between));
    if (has_mates && has_others) {
      MUSTER_ASSIGN(times.both_full, seconds_of_round(kPayloadBytes, {true, true, 1, kProbeMessages}));
    }
    MUSTER_ASSIGN(times.fold_byte, longest_of_all(fold_byte()));
    return times;
  }

 private:
  Status measure_class(bool on_node, bool between, RoundTimes& times) {
    MUSTER_ASSIGN(times.one, seconds_of_round(0, {on_node, between, kSmallRounds, 1}));
    MUSTER_ASSIGN(times.several, seconds_of_round(0, {on_node, between, kSmallRounds, kProbeMessages}));
    MUSTER_ASSIGN(times.full, seconds_of_round(kPayloadBytes, {on_node, between, 1, kProbeMessages}));
    return ok();
  }

  // The median of some tries, of the rank where it is longest.
  Result<double> seconds_of_round(size_t bytes, const ProbeKind& kind) {
    MUSTER_TRY(try_once(bytes, kind));  // opens connections
    MUSTER_ASSIGN(const double mine, try_once(bytes, kind));
    MUSTER_ASSIGN(const double longest, longest_of_all(mine));  // so that all make as many tries
    const double fitting = kTriesS / std::max(longest * kind.rounds, 1e-9);
    const auto count = static_cast<size_t>(std::clamp(fitting, 1.0, static_cast<double>(kTriesMost)));
    std::vector<double> tries(count);
    for (double& seconds : tries) {
      MUSTER_ASSIGN(seconds, try_once(bytes, kind));
    }
    const auto middle = tries.begin() + static_cast<std::ptrdiff_t>(count / 2);
    std::ranges::nth_element(tries, middle);
    return longest_of_all(*middle);
  }

  // From when all are there.
  Result<double> try_once(size_t bytes, const ProbeKind& kind) {
    MUSTER_TRY(group_.barrier(deadline_).wait());
    const Instant began = now();
    MUSTER_TRY(group_.probe(in_.data(), out_.data(), bytes, kind, deadline_).wait());
    return static_cast<double>(now() - began) * 1e-9 / kind.rounds;
  }

  // What a small fold takes for each byte that it reads, in the cache as its sources are when they have come.
  double fold_byte() {
    const std::array<const std::byte*, 2> sources = {in_.data(), in_.data() + kPayloadBytes};
    Duration best = kNever;
    for (int i = 0; i < kFolds; ++i) {
      const Instant began = now();
      fold(DType::kFloat32, ReduceOp::kSum, out_.data(), sources, kPayloadBytes / sizeof(float), 0);
      best = std::min(best, now() - began);
    }
    return static_cast<double>(best) * 1e-9 / (2.0 * static_cast<double>(kPayloadBytes));
  }

  Result<double> longest_of_all(double mine) {
    double longest = 0;
    MUSTER_TRY(group_.all_reduce(&mine, &longest, 1, DType::kFloat64, ReduceOp::kMax, deadline_).wait());
    return longest;
  }

  Group& group_;
  const Instant deadline_;
  ByteBuffer in_, out_;
};

// All ranks know the same of this world; the same answer on all.
Result<bool> all_know(Group& group, const std::optional<CostNumbers>& known, Instant deadline) {
  const std::string text = known ? to_text(*known) : "";
  const uint64_t mine = known ? digest_of(as_bytes(text)).low : 0;
  const std::array<uint64_t, 2> bounds = {mine, ~mine};
  std::array<uint64_t, 2> most{};
  MUSTER_TRY(
      group.all_reduce(bounds.data(), most.data(), 2, DType::kUInt64, ReduceOp::kMax, deadline).wait());
  return most[0] == ~most[1] && most[0] != 0;
}

}  // namespace

std::optional<CostNumbers> CostCache::find(uint64_t world) const {
  const std::lock_guard lock(mutex_);
  const auto found = numbers_.find(world);
  return found == numbers_.end() ? std::nullopt : std::optional(found->second);
}

void CostCache::keep(uint64_t world, const CostNumbers& numbers) {
  const std::lock_guard lock(mutex_);
  numbers_.insert_or_assign(world, numbers);
}

Result<Tuned> tune(Group& group, CostCache& cache, Instant deadline) {
  const Instant began = now();
  std::vector<uint64_t> nodes = group.nodes_of_choice();
  if (nodes.size() < 2) {
    if (auto failure = group.failure()) return Error{failure->code, std::move(failure->reason)};
    return Tuned{};
  }
  const uint64_t world = world_of(group, nodes);
  std::optional<CostNumbers> numbers = cache.find(world);
  MUSTER_ASSIGN(const bool known, all_know(group, numbers, deadline));
  if (!known) {
    std::ranges::sort(nodes);
    const bool has_mates = std::ranges::adjacent_find(nodes) != nodes.end();
    MUSTER_ASSIGN(const ProbeTimes times,
                  Probing(group, deadline).measure(has_mates, nodes.front() != nodes.back()));
    numbers = numbers_of(times);
    cache.keep(world, *numbers);
  }
  group.choose_by(*numbers);
  return Tuned{*numbers, now() - began, !known};
}

}  // namespace muster
