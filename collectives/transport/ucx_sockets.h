// Which of this process's TCP sockets are UCX's. It opens them by itself, also on a thread of its own, tells
// nobody, and lets children have them; they are known by their addresses: UCX listens on some, which peers
// are told, and all its connections come to one of its own or go to one of a peer's.
//
// INVARIANT: a forked child keeps none of them, so that it does not hide this process's death.
#pragma once

#include <array>
#include <compare>
#include <cstdint>
#include <vector>

#include "runtime/base/bytes.h"
#include "runtime/base/fork.h"
#include "runtime/base/result.h"

namespace muster {

// An address and port of the Internet, in network order. It goes to peers as it is.
struct SocketName {
  uint16_t family = 0;
  uint16_t port = 0;
  std::array<uint8_t, 16> address{};  // the first four of IPv4
  auto operator<=>(const SocketName&) const = default;
};

class UcxSockets final : private ForkWatcher {
 public:
  // Before UCX is opened.
  UcxSockets();
  ~UcxSockets();
  UcxSockets(const UcxSockets&) = delete;
  UcxSockets& operator=(const UcxSockets&) = delete;

  // Once it is open: finds where it listens. `address`: UCX's of this process, which holds the ports.
  void find_listeners(ByteSpan address);

  // `address` with a list of where this process listens before it.
  ByteBuffer with_listeners(ByteSpan address) const;
  // What a peer made that way: notes where it listens, and returns its UCX address, in `bytes`. Errors:
  // kMisuse.
  Result<ByteSpan> add_peer(ByteSpan bytes);

 private:
  void forked() noexcept override;
  bool is_ours(int fd) const;

  std::vector<int> before_;      // descriptors that were open before UCX was
  std::vector<SocketName> own_;  // sorted, as the next; changed while forks are held
  std::vector<SocketName> peers_;
};

}  // namespace muster
