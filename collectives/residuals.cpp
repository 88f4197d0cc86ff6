#include "collectives/residuals.h"

#include <algorithm>
#include <limits>
#include <numeric>
#include <string>
#include <utility>

#include "collectives/lane_codec.h"
#include "collectives/rank_bytes.h"
#include "runtime/base/check.h"

namespace muster {
namespace {

constexpr RankBytes kFormat{.magic = 0x5253554Du,  // "MUSR" in memory
                            .version = 1,
                            .header_bytes = sizeof(RankHeader),
                            .name = "residuals",
                            .loss = "begin with zeros, which loses what earlier roundings left out"};

size_t bytes_of_ranks(size_t count, int rank, int ranks) {
  return kFormat.header_bytes + sizeof(float) * (count + owned_slice(count, rank, ranks).size());
}

float nearest_finite(double value) {
  constexpr double kMost = std::numeric_limits<float>::max();
  return static_cast<float>(std::clamp(value, -kMost, kMost));
}

// Parts of CommitTurns.
constexpr unsigned kContribution = 1, kMean = 2;

Error misuse(const std::string& what) { return Error{ErrorCode::kMisuse, "residuals: " + what}; }

Status check_set(std::span<const Contribution> all) {
  if (all.empty()) return misuse("there are none to merge");
  for (size_t rank = 0; rank < all.size(); ++rank) {
    const Contribution& one = all[rank];
    if (one.rank != static_cast<int>(rank) || one.ranks != static_cast<int>(all.size()))
      return misuse("number " + std::to_string(rank) + " of " + std::to_string(all.size()) + " is of rank " +
                    std::to_string(one.rank) + " of " + std::to_string(one.ranks) +
                    "; give those of all ranks, in their order");
    if (one.residual.size() != all[0].residual.size())
      return misuse("rank 0 has " + std::to_string(all[0].residual.size()) + " elements, rank " +
                    std::to_string(rank) + " " + std::to_string(one.residual.size()) +
                    "; give those of one vector");
  }
  return ok();
}

// Which new rank takes what each old one has.
Result<std::vector<int>> heirs_of(int ranks, std::span<const int> origins) {
  std::vector<int> heirs(static_cast<size_t>(ranks), -1), takers;
  for (size_t rank = 0; rank < origins.size(); ++rank) {
    const int origin = origins[rank];
    if (origin == -1) continue;
    if (origin < -1 || origin >= ranks || heirs[static_cast<size_t>(origin)] != -1)
      return misuse("rank " + std::to_string(rank) + " is said to have been rank " + std::to_string(origin) +
                    " of " + std::to_string(ranks) + "; name each at most once, and -1 for a new one");
    heirs[static_cast<size_t>(origin)] = static_cast<int>(rank);
    takers.push_back(static_cast<int>(rank));
  }
  if (takers.empty()) {
    takers.resize(origins.size());
    std::iota(takers.begin(), takers.end(), 0);
  }
  size_t turn = 0;
  for (int& heir : heirs) {
    if (heir == -1) heir = takers[turn++ % takers.size()];
  }
  return heirs;
}

// sum: of all `parts`, each as long, in their order, times `factor`. In tiles that stay in the caches.
void add_up(const std::vector<const float*>& parts, double factor, std::vector<float>& sum) {
  constexpr size_t kTile = 1024;
  double tile[kTile];
  for (size_t at = 0; at < sum.size(); at += kTile) {
    const size_t count = std::min(kTile, sum.size() - at);
    std::fill_n(tile, count, 0.0);
    for (const float* part : parts) {
      for (size_t i = 0; i < count; ++i) tile[i] += part[at + i];
    }
    for (size_t i = 0; i < count; ++i) sum[at + i] = nearest_finite(tile[i] * factor);
  }
}

}  // namespace

ElementRange owned_slice(size_t count, int rank, int ranks) {
  return slice_at_grains({0, count}, codec::kGrainMax, rank, ranks);
}

Result<std::vector<float>> merge_contributions(std::span<const Contribution> all,
                                               std::span<const int> origins, int rank, bool average) {
  MUSTER_TRY(check_set(all));
  if (origins.size() > kCompressedLanesMax) return misuse("there are more than 65535 new ranks");
  const int ranks = static_cast<int>(origins.size()), before = static_cast<int>(all.size());
  if (rank < 0 || rank >= ranks) return misuse("rank " + std::to_string(rank) + " is not a new rank");
  MUSTER_ASSIGN(const std::vector<int> heirs, heirs_of(before, origins));
  const double factor = average ? static_cast<double>(ranks) / before : 1.0;
  std::vector<const float*> inherited;
  for (size_t old = 0; old < all.size(); ++old) {
    if (heirs[old] == rank) inherited.push_back(all[old].residual.data());
  }
  std::vector<float> merged(all[0].residual.size());
  add_up(inherited, factor, merged);
  return merged;
}

Result<Residuals> merge_residuals(std::span<const Residuals* const> all, std::span<const int> origins,
                                  int rank, bool average) {
  std::vector<Contribution> contributions;
  for (const Residuals* one : all) contributions.push_back({one->rank, one->ranks, one->contribution});
  Residuals merged;
  MUSTER_ASSIGN(merged.contribution, merge_contributions(contributions, origins, rank, average));
  merged.rank = rank;
  merged.ranks = static_cast<int>(origins.size());
  const ElementRange mine = merged.owned();
  merged.mean.resize(mine.size());
  for (const Residuals* old : all) {
    const ElementRange theirs = old->owned();
    for (size_t i = std::max(mine.begin, theirs.begin); i < std::min(mine.end, theirs.end); ++i)
      merged.mean[i - mine.begin] = old->mean[i - theirs.begin];
  }
  return merged;
}

size_t residual_bytes(const Residuals& residuals) {
  return bytes_of_ranks(residuals.count(), residuals.rank, residuals.ranks);
}

void write_residuals(const Residuals& residuals, MutableByteSpan bytes) {
  MUSTER_CHECK(bytes.size() == residual_bytes(residuals), "room for residuals of another size");
  const MutableByteSpan values = bytes.subspan(kFormat.header_bytes);
  put(values, residuals.contribution);
  put(values.subspan(residuals.count() * sizeof(float)), residuals.mean);
  seal(kFormat, {residuals.rank, residuals.ranks, residuals.count()}, bytes);
}

Result<Residuals> read_residuals(ByteSpan bytes) {
  MUSTER_ASSIGN(const RankOf of, head_of(kFormat, bytes));
  if (of.count > bytes.size() / sizeof(float) || bytes.size() != bytes_of_ranks(of.count, of.rank, of.ranks))
    return unreadable(kFormat, "are not as many as they say");
  MUSTER_TRY(check_seal(kFormat, bytes));
  Residuals residuals(of.count, of.rank, of.ranks);
  const ByteSpan values = bytes.subspan(kFormat.header_bytes);
  if (!take(values, residuals.contribution) ||
      !take(values.subspan(residuals.count() * sizeof(float)), residuals.mean))
    return unreadable(kFormat, "hold a number that is not finite, which no rounding leaves");
  return residuals;
}

Status CommitTurns::check_begin() const {
  if (under_way_ == 0) return ok();
  return misuse("another operation uses them; wait for it, or give each operation its own");
}

void CommitTurns::begin(unsigned parts) {
  under_way_ = parts;
  ready_ &= ~parts;
}

void CommitTurns::end(bool well) {
  if (well) ready_ |= under_way_;
  under_way_ = 0;
}

Result<unsigned> CommitTurns::commit() {
  if (under_way_ != 0) return misuse("an operation is under way; wait for it, then commit");
  if (ready_ == 0) return misuse("nothing to commit: no operation has ended well since the last commit");
  return std::exchange(ready_, 0U);
}

Status Feedback::commit() {
  MUSTER_ASSIGN(const unsigned parts, turns_.commit());
  if ((parts & kContribution) != 0) current_.contribution.swap(next_.contribution);
  if ((parts & kMean) != 0) current_.mean.swap(next_.mean);
  return ok();
}

Status Feedback::begin(Parts parts) {
  MUSTER_TRY(turns_.check_begin());
  // A copy first: if there is no memory for it, nothing has changed.
  if (next_.count() != current_.count()) next_ = Residuals(current_);
  turns_.begin((parts.contribution ? kContribution : 0) | (parts.mean ? kMean : 0));
  return ok();
}

void Feedback::end(bool well) { turns_.end(well); }

float* Feedback::contribution(ElementRange range) {
  std::copy_n(current_.contribution.begin() + static_cast<ptrdiff_t>(range.begin), range.size(),
              next_.contribution.begin() + static_cast<ptrdiff_t>(range.begin));
  return next_.contribution.data();
}

float* Feedback::mean(ElementRange range) {
  const size_t offset = range.begin - current_.owned().begin;
  std::copy_n(current_.mean.begin() + static_cast<ptrdiff_t>(offset), range.size(),
              next_.mean.begin() + static_cast<ptrdiff_t>(offset));
  return next_.mean.data() + offset;
}

}  // namespace muster
