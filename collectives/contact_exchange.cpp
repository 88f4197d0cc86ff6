#include "collectives/contact_exchange.h"

#include <sys/stat.h>

#include <algorithm>
#include <fstream>
#include <numeric>
#include <string>

#include "collectives/core.h"
#include "runtime/base/random.h"

namespace muster {
namespace {

// What goes before the contact. It comes from elsewhere: parse() trusts nothing.
struct Introduction {
  static constexpr uint64_t kMagic = 0x3247'5245'5453'554dU;  // "MUSTERG2": version 2
  uint64_t magic = kMagic;
  uint64_t nonce = 0;  // rank 0's names the group
  uint64_t node = 0;
  Port port = 0;  // of messages to this rank
  uint32_t reserved = 0;
};

Result<Introduction> parse(ByteSpan bytes, size_t rank) {
  Introduction introduction;
  if (bytes.size() >= sizeof introduction) std::memcpy(&introduction, bytes.data(), sizeof introduction);
  if (bytes.size() > sizeof introduction && introduction.magic == Introduction::kMagic &&
      introduction.nonce != 0 && introduction.port < 1U << kPortBits)
    return introduction;
  return Error{ErrorCode::kMisuse, "what rank " + std::to_string(rank) +
                                       " says of itself cannot be read; all processes must run the same "
                                       "version of muster"};
}

}  // namespace

uint64_t node_identity() {
  std::string boot;
  std::getline(std::ifstream("/proc/sys/kernel/random/boot_id"), boot);
  struct stat network {};
  const bool known = !boot.empty() && stat("/proc/self/ns/net", &network) == 0;
  if (!known) return random_nonce();  // equal to nobody's
  boot += " " + std::to_string(network.st_dev) + " " + std::to_string(network.st_ino);
  return digest_of(as_bytes(boot)).low;
}

Result<std::unique_ptr<Group>> form_group(Endpoint& endpoint, ContactExchange& exchange, Instant deadline) {
  GroupSpec spec;
  MUSTER_ASSIGN(spec.own_port, endpoint.reserve_port());
  const Introduction mine{.nonce = random_nonce(), .node = node_identity(), .port = *spec.own_port};
  ByteBuffer bytes(bytes_of(mine).begin(), bytes_of(mine).end());
  const ByteBuffer contact = endpoint.contact();
  bytes.insert(bytes.end(), contact.begin(), contact.end());
  MUSTER_ASSIGN(const std::vector<ByteBuffer> all, exchange.all_gather(bytes, deadline));

  spec.rank = exchange.rank();
  spec.deadline = deadline;
  for (size_t rank = 0; rank < all.size(); ++rank) {
    MUSTER_ASSIGN(const Introduction theirs, parse(all[rank], rank));
    if (rank == 0) spec.generation = {theirs.nonce, 1};
    spec.nodes.push_back(theirs.node);
    spec.ports.push_back(theirs.port);
    spec.contacts.emplace_back(all[rank].begin() + sizeof theirs, all[rank].end());
  }
  return endpoint.form_group(spec);
}

Result<SplitExchange> SplitExchange::open(Group& group, int32_t color, int32_t key, Instant deadline) {
  struct Choice {
    int32_t color, key;
  };
  const Choice mine{color, key};
  std::vector<Choice> all(static_cast<size_t>(group.size()));
  MUSTER_TRY(group.all_gather(&mine, all.data(), 2, DType::kInt32, deadline).wait());
  SplitExchange exchange(group);
  if (color < 0) return exchange;
  for (int rank = 0; rank < group.size(); ++rank) {
    if (all[static_cast<size_t>(rank)].color == color) exchange.members_.push_back(rank);
  }
  std::ranges::stable_sort(exchange.members_, {},
                           [&](int rank) { return all[static_cast<size_t>(rank)].key; });
  exchange.rank_ =
      static_cast<int>(std::ranges::find(exchange.members_, group.rank()) - exchange.members_.begin());
  return exchange;
}

Result<std::vector<ByteBuffer>> SplitExchange::all_gather(ByteSpan mine, Instant deadline) {
  const auto ranks = static_cast<size_t>(group_->size());
  const uint64_t size = mine.size();
  std::vector<uint64_t> sizes(ranks);
  MUSTER_TRY(group_->all_gather(&size, sizes.data(), 1, DType::kUInt64, deadline).wait());
  const std::vector<size_t> counts(sizes.begin(), sizes.end());
  std::vector<size_t> offsets(ranks);
  std::exclusive_scan(counts.begin(), counts.end(), offsets.begin(), size_t{0});
  ByteBuffer bytes(offsets.back() + counts.back());
  MUSTER_TRY(group_->all_gather_v(mine.data(), bytes.data(), counts, DType::kUInt8, deadline).wait());
  std::vector<ByteBuffer> theirs;
  for (const int member : members_) {
    const auto begin = bytes.begin() + static_cast<std::ptrdiff_t>(offsets[static_cast<size_t>(member)]);
    theirs.emplace_back(begin, begin + static_cast<std::ptrdiff_t>(counts[static_cast<size_t>(member)]));
  }
  return theirs;
}

Result<std::unique_ptr<Group>> split_group(Endpoint& endpoint, Group& group, int32_t color, int32_t key,
                                           Instant deadline) {
  MUSTER_ASSIGN(SplitExchange exchange, SplitExchange::open(group, color, key, deadline));
  if (color >= 0) return form_group(endpoint, exchange, deadline);
  MUSTER_TRY(exchange.all_gather({}, deadline));
  return std::unique_ptr<Group>();
}

}  // namespace muster
