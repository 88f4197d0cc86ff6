#include "collectives/transport/ucx_sockets.h"

#include <dirent.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>

namespace muster {
namespace {

struct ListHeader {
  static constexpr uint32_t kMagic = 0x3153554dU;  // "MUS1": version 1
  uint32_t magic = kMagic;
  uint32_t count = 0;
};

// Keeps the UCX address behind it as well aligned as it was.
size_t list_bytes(size_t count) { return round_up(sizeof(ListHeader) + count * sizeof(SocketName), 8); }

// Every open descriptor of this process but the one that is needed to see them. Only system calls: a forked
// child must allocate nothing.
template <typename Visit>
void for_each_descriptor(Visit visit) {
  const int folder = open("/proc/self/fd", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (folder < 0) return;
  alignas(dirent64) char entries[4096];
  for (long got = 0; (got = syscall(SYS_getdents64, folder, entries, sizeof entries)) > 0;) {
    for (long at = 0; at < got;) {
      const auto* const entry = reinterpret_cast<const dirent64*>(entries + at);
      at += entry->d_reclen;
      int fd = 0;
      for (const char* digit = entry->d_name; *digit >= '0' && *digit <= '9'; ++digit)
        fd = 10 * fd + (*digit - '0');
      if (entry->d_name[0] != '.' && fd != folder) visit(fd);
    }
  }
  close(folder);
}

using AskName = int (*)(int, sockaddr*, socklen_t*);

// Family 0 where it is no name of the Internet.
SocketName name_of(int fd, AskName ask) {
  sockaddr_storage storage{};
  socklen_t size = sizeof storage;
  SocketName name;
  if (ask(fd, reinterpret_cast<sockaddr*>(&storage), &size) != 0) return name;
  if (storage.ss_family == AF_INET) {
    const auto& in = reinterpret_cast<const sockaddr_in&>(storage);
    name.port = in.sin_port;
    std::memcpy(name.address.data(), &in.sin_addr, sizeof in.sin_addr);
  } else if (storage.ss_family == AF_INET6) {
    const auto& in = reinterpret_cast<const sockaddr_in6&>(storage);
    name.port = in.sin6_port;
    std::memcpy(name.address.data(), &in.sin6_addr, sizeof in.sin6_addr);
  } else {
    return name;
  }
  name.family = storage.ss_family;
  return name;
}

int option_of(int fd, int option) {
  int value = 0;
  socklen_t size = sizeof value;
  return getsockopt(fd, SOL_SOCKET, option, &value, &size) == 0 ? value : 0;
}

bool holds(ByteSpan bytes, ByteSpan part) {
  return std::search(bytes.begin(), bytes.end(), part.begin(), part.end()) != bytes.end();
}

bool is_loopback(const SocketName& name) {
  constexpr std::array<uint8_t, 16> kLoopback6 = {0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1};
  return name.family == AF_INET ? name.address[0] == 127 : name.address == kLoopback6;
}

// What another host calls its loopback, or its bridge to containers, is here this host's own: a connection
// to it would be some service's. Of who has all the addresses that this process has, it is the same host.
std::vector<SocketName> reachable(const std::vector<SocketName>& peers, const std::vector<SocketName>& own) {
  const auto is_here = [&](const SocketName& name) {
    return std::ranges::any_of(own, [&](const SocketName& mine) {
      return mine.family == name.family && mine.address == name.address;
    });
  };
  if (std::ranges::all_of(peers, is_here)) return peers;
  std::vector<SocketName> found;
  std::ranges::copy_if(peers, std::back_inserter(found),
                       [&](const SocketName& name) { return !is_loopback(name) && !is_here(name); });
  return found;
}

void add_sorted(std::vector<SocketName>& names, const SocketName& name) {
  const auto place = std::ranges::lower_bound(names, name);
  if (place == names.end() || *place != name) names.insert(place, name);
}

}  // namespace

UcxSockets::UcxSockets() {
  for_each_descriptor([this](int fd) { before_.push_back(fd); });
  watch_forks();
}

UcxSockets::~UcxSockets() { unwatch_forks(); }

// Others may open sockets meanwhile; UCX's are those whose ports are in its address.
void UcxSockets::find_listeners(ByteSpan address) {
  const ForkHold hold;
  for_each_descriptor([&](int fd) {
    if (std::ranges::find(before_, fd) != before_.end() || option_of(fd, SO_ACCEPTCONN) == 0) return;
    const SocketName name = name_of(fd, getsockname);
    if (name.family != 0 && holds(address, bytes_of(name.port))) add_sorted(own_, name);
  });
  before_.clear();
}

ByteBuffer UcxSockets::with_listeners(ByteSpan address) const {
  const ListHeader header{.count = static_cast<uint32_t>(own_.size())};
  ByteBuffer bytes(list_bytes(own_.size()));
  std::memcpy(bytes.data(), &header, sizeof header);
  if (!own_.empty()) std::memcpy(bytes.data() + sizeof header, own_.data(), own_.size() * sizeof(SocketName));
  bytes.insert(bytes.end(), address.begin(), address.end());
  return bytes;
}

Result<ByteSpan> UcxSockets::add_peer(ByteSpan bytes) {
  ListHeader header;
  if (bytes.size() >= sizeof header) std::memcpy(&header, bytes.data(), sizeof header);
  const bool whole = bytes.size() >= sizeof header && header.magic == ListHeader::kMagic &&
                     header.count <= bytes.size() / sizeof(SocketName) &&
                     list_bytes(header.count) < bytes.size();
  if (!whole)
    return Error{
        ErrorCode::kMisuse,
        "the UCX address of a peer cannot be read; all processes must run the same version of muster"};
  std::vector<SocketName> names(header.count);
  if (!names.empty())
    std::memcpy(names.data(), bytes.data() + sizeof header, names.size() * sizeof(SocketName));
  const ForkHold hold;
  for (const SocketName& name : reachable(names, own_)) add_sorted(peers_, name);
  return bytes.subspan(list_bytes(header.count));
}

bool UcxSockets::is_ours(int fd) const {
  if (option_of(fd, SO_TYPE) != SOCK_STREAM) return false;
  const SocketName here = name_of(fd, getsockname);
  if (here.family == 0) return false;
  return std::ranges::binary_search(own_, here) ||
         std::ranges::binary_search(peers_, name_of(fd, getpeername));
}

void UcxSockets::forked() noexcept {
  if (own_.empty() && peers_.empty()) return;
  for_each_descriptor([this](int fd) {
    if (is_ours(fd)) close(fd);
  });
}

}  // namespace muster
