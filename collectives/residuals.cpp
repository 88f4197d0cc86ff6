#include "collectives/residuals.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>
#include <numeric>
#include <string>

#include "collectives/lane_codec.h"
#include "kernels/crc32c.h"
#include "runtime/base/check.h"

namespace muster {
namespace {

static_assert(std::endian::native == std::endian::little, "residuals are written little-endian");

struct Header {
  uint32_t magic;
  uint16_t version;
  uint16_t header_bytes;
  uint32_t rank;
  uint32_t ranks;
  uint64_t count;
  uint32_t reserved;
  uint32_t crc;  // of what is before it, then of what follows it
};
constexpr size_t kHeaderBytes = 32;
static_assert(sizeof(Header) == kHeaderBytes && offsetof(Header, crc) == 28);
constexpr uint32_t kMagic = 0x5253554Du;  // "MUSR" in memory
constexpr uint16_t kVersion = 1;

size_t bytes_of_ranks(size_t count, int rank, int ranks) {
  return kHeaderBytes + sizeof(float) * (count + owned_slice(count, rank, ranks).size());
}

uint32_t checksum(ByteSpan bytes) {
  return crc32c(bytes.subspan(kHeaderBytes), crc32c(bytes.first(offsetof(Header, crc))));
}

Error unreadable(const std::string& why) {
  return Error{ErrorCode::kDropCheckpoint, "residuals: the bytes " + why +
                                               "; give those that were exported, or begin with zeros, which "
                                               "loses what earlier roundings left out"};
}

// What is wrong with the header, or empty.
std::string objection(const Header& header, size_t bytes) {
  if (header.magic != kMagic) return "do not begin with their mark";
  if (header.version != kVersion || header.header_bytes != kHeaderBytes)
    return "have version " + std::to_string(header.version) + ", and this library reads version " +
           std::to_string(kVersion);
  if (header.ranks < 1 || header.ranks > kCompressedLanesMax || header.rank >= header.ranks)
    return "name a rank that there is not";
  const bool fits =
      header.count <= bytes / sizeof(float) &&
      bytes == bytes_of_ranks(header.count, static_cast<int>(header.rank), static_cast<int>(header.ranks));
  return fits ? "" : "are not as many as they say";
}

void copy(std::byte* to, const std::vector<float>& values) {
  if (!values.empty()) std::memcpy(to, values.data(), values.size() * sizeof(float));
}

// As many values as the vector has; true where all are finite.
bool take(std::vector<float>& values, const std::byte* from) {
  if (!values.empty()) std::memcpy(values.data(), from, values.size() * sizeof(float));
  return std::ranges::all_of(values, [](float value) { return std::isfinite(value); });
}

float nearest_finite(double value) {
  constexpr double kMost = std::numeric_limits<float>::max();
  return static_cast<float>(std::clamp(value, -kMost, kMost));
}

Error misuse(const std::string& what) { return Error{ErrorCode::kMisuse, "residuals: " + what}; }

Status check_set(std::span<const Residuals* const> all) {
  if (all.empty()) return misuse("there are none to merge");
  for (size_t rank = 0; rank < all.size(); ++rank) {
    const Residuals& one = *all[rank];
    if (one.rank != static_cast<int>(rank) || one.ranks != static_cast<int>(all.size()))
      return misuse("number " + std::to_string(rank) + " of " + std::to_string(all.size()) + " is of rank " +
                    std::to_string(one.rank) + " of " + std::to_string(one.ranks) +
                    "; give those of all ranks, in their order");
    if (one.count() != all[0]->count())
      return misuse("rank 0 has " + std::to_string(all[0]->count()) + " elements, rank " +
                    std::to_string(rank) + " " + std::to_string(one.count()) + "; give those of one vector");
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

Result<Residuals> merge_residuals(std::span<const Residuals* const> all, std::span<const int> origins,
                                  int rank, bool average) {
  MUSTER_TRY(check_set(all));
  if (origins.size() > kCompressedLanesMax) return misuse("there are more than 65535 new ranks");
  const int ranks = static_cast<int>(origins.size()), before = static_cast<int>(all.size());
  if (rank < 0 || rank >= ranks) return misuse("rank " + std::to_string(rank) + " is not a new rank");
  MUSTER_ASSIGN(const std::vector<int> heirs, heirs_of(before, origins));
  Residuals merged(all[0]->count(), rank, ranks);
  const double factor = average ? static_cast<double>(ranks) / before : 1.0;
  std::vector<const float*> inherited;
  for (size_t old = 0; old < all.size(); ++old) {
    if (heirs[old] == rank) inherited.push_back(all[old]->contribution.data());
  }
  add_up(inherited, factor, merged.contribution);
  const ElementRange mine = merged.owned();
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
  Header header{.magic = kMagic,
                .version = kVersion,
                .header_bytes = kHeaderBytes,
                .rank = static_cast<uint32_t>(residuals.rank),
                .ranks = static_cast<uint32_t>(residuals.ranks),
                .count = residuals.count(),
                .reserved = 0,
                .crc = 0};
  std::memcpy(bytes.data(), &header, sizeof header);
  copy(bytes.data() + kHeaderBytes, residuals.contribution);
  copy(bytes.data() + kHeaderBytes + residuals.count() * sizeof(float), residuals.mean);
  header.crc = checksum(bytes);
  std::memcpy(bytes.data(), &header, sizeof header);
}

Result<Residuals> read_residuals(ByteSpan bytes) {
  if (bytes.size() < kHeaderBytes) return unreadable("are fewer than a header");
  Header header;
  std::memcpy(&header, bytes.data(), sizeof header);
  if (const std::string wrong = objection(header, bytes.size()); !wrong.empty()) return unreadable(wrong);
  if (header.crc != checksum(bytes) || header.reserved != 0) return unreadable("are damaged");
  Residuals residuals(header.count, static_cast<int>(header.rank), static_cast<int>(header.ranks));
  const std::byte* const values = bytes.data() + kHeaderBytes;
  if (!take(residuals.contribution, values) ||
      !take(residuals.mean, values + residuals.count() * sizeof(float)))
    return unreadable("hold a number that is not finite, which no rounding leaves");
  return residuals;
}

Status Feedback::commit() {
  if (under_way_.contribution || under_way_.mean)
    return misuse("an operation is under way; wait for it, then commit");
  if (!ready_.contribution && !ready_.mean)
    return misuse("nothing to commit: no operation has ended well since the last commit");
  if (ready_.contribution) current_.contribution.swap(next_.contribution);
  if (ready_.mean) current_.mean.swap(next_.mean);
  ready_ = {};
  return ok();
}

Status Feedback::begin(Parts parts) {
  if (under_way_.contribution || under_way_.mean)
    return misuse("another operation uses them; wait for it, or give each operation its own");
  // A copy first: if there is no memory for it, nothing has changed.
  if (next_.count() != current_.count()) next_ = Residuals(current_);
  under_way_ = parts;
  if (parts.contribution) ready_.contribution = false;
  if (parts.mean) ready_.mean = false;
  return ok();
}

void Feedback::end(bool well) {
  if (well && under_way_.contribution) ready_.contribution = true;
  if (well && under_way_.mean) ready_.mean = true;
  under_way_ = {};
}

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
