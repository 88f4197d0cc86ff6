#include "collectives/contact_exchange.h"

#include <sys/stat.h>

#include <fstream>
#include <string>

#include "runtime/base/random.h"

namespace muster {
namespace {

// What goes before the contact. It comes from elsewhere: parse() trusts nothing.
struct Introduction {
  static constexpr uint64_t kMagic = 0x3147'5245'5453'554dU;  // "MUSTERG1": version 1
  uint64_t magic = kMagic;
  uint64_t nonce = 0;  // rank 0's names the group
  uint64_t node = 0;
};

Result<Introduction> parse(ByteSpan bytes, size_t rank) {
  Introduction introduction;
  if (bytes.size() >= sizeof introduction) std::memcpy(&introduction, bytes.data(), sizeof introduction);
  if (bytes.size() > sizeof introduction && introduction.magic == Introduction::kMagic &&
      introduction.nonce != 0)
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
  const Introduction mine{.nonce = random_nonce(), .node = node_identity()};
  ByteBuffer bytes(bytes_of(mine).begin(), bytes_of(mine).end());
  const ByteBuffer contact = endpoint.contact();
  bytes.insert(bytes.end(), contact.begin(), contact.end());
  MUSTER_ASSIGN(const std::vector<ByteBuffer> all, exchange.all_gather(bytes, deadline));

  GroupSpec spec;
  spec.rank = exchange.rank();
  spec.deadline = deadline;
  for (size_t rank = 0; rank < all.size(); ++rank) {
    MUSTER_ASSIGN(const Introduction theirs, parse(all[rank], rank));
    if (rank == 0) spec.generation = {theirs.nonce, 1};
    spec.nodes.push_back(theirs.node);
    spec.contacts.emplace_back(all[rank].begin() + sizeof theirs, all[rank].end());
  }
  return endpoint.form_group(spec);
}

}  // namespace muster
