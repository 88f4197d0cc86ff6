#include "collectives/node/slab_ring.h"

#include <poll.h>
#include <sys/socket.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <utility>

namespace muster {
namespace {

constexpr size_t kRingBytes = kSlabs * kSlabBytes;
constexpr Duration kLook = 100 * kMillisecond;  // how soon a wait hears that it is to end

}  // namespace

Result<SlabRing> SlabRing::create() {
  SlabRing ring;
  MUSTER_ASSIGN(ring.memory_, SharedMemory::create("muster-slabs", kRingBytes));
  return ring;
}

Result<SlabRing> SlabRing::map(int fd) {
  SlabRing ring;
  MUSTER_ASSIGN(ring.memory_, SharedMemory::map(fd, SharedMemory::Access::kRead));
  if (ring.memory_.bytes() == kRingBytes) return ring;
  return Error{ErrorCode::kEnvironment,
               "a node-mate's ring of slabs is of another version; run the same version of muster"};
}

// Never waits: a reader has room for more packets than the ring has slabs.
Status SlabReader::send(ByteSpan packet) {
  if (::send(fd(), packet.data(), packet.size(), MSG_NOSIGNAL | MSG_DONTWAIT) >= 0) return ok();
  return Error{ErrorCode::kReconfigure, std::string("the receiver is gone: ") + strerror(errno)};
}

// Not beyond what is asked for: a reader that has everything may leave.
Status SlabReader::hear(uint64_t slabs) {
  while (!has_copied(slabs)) {
    uint64_t copied = 0;
    const ssize_t got = recv(fd(), &copied, sizeof copied, MSG_DONTWAIT);
    if (got < 0 && errno == EINTR) continue;
    if (got < 0 && errno == EAGAIN) return ok();
    if (got != sizeof copied) return Error{ErrorCode::kReconfigure, "the receiver is gone"};
    answered_ = true;
    copied_ = copied;
  }
  return ok();
}

Result<SlabSource> SlabSource::open(OwnFd connection, UniqueFd memory) {
  SlabSource source;
  source.connection_ = std::move(connection);
  MUSTER_ASSIGN(source.ring_, SlabRing::map(memory.get()));
  source.answer();
  return source;
}

// To an owner that is gone: whoever waits for it next will find out.
void SlabSource::answer() {
  (void)::send(connection_.get(), &copied_, sizeof copied_, MSG_NOSIGNAL | MSG_DONTWAIT);
}

Result<size_t> SlabSource::receive(MutableByteSpan packet, Instant deadline, const Closing& closing) {
  while (true) {
    const ssize_t got = recv(connection_.get(), packet.data(), packet.size(), MSG_DONTWAIT | MSG_TRUNC);
    if (got > 0) return static_cast<size_t>(got);
    if (got == 0 || (errno != EAGAIN && errno != EINTR)) {
      return Error{ErrorCode::kReconfigure, "the sender ended, or gave this receiver up"};
    }
    if (closing && closing()) return Error{ErrorCode::kEnded, "the receiver is closing"};
    const Duration left = deadline - now();
    if (left <= 0) return Error{ErrorCode::kReconfigure, "the deadline passed before the sender's next word"};
    pollfd watched{connection_.get(), POLLIN, 0};
    (void)poll(&watched, 1, static_cast<int>(std::min(left, kLook) / kMillisecond) + 1);
  }
}

Status SlabSource::note(MutableByteSpan bytes, Instant deadline, const Closing& closing) {
  MUSTER_ASSIGN(const size_t got, receive(bytes, deadline, closing));
  if (got == bytes.size()) return ok();
  return Error{ErrorCode::kMisuse, "the sender sends " + std::to_string(got) + " bytes where " +
                                       std::to_string(bytes.size()) + " were due; run the same version"};
}

Status SlabSource::slab(MutableByteSpan bytes, Instant deadline, const Closing& closing) {
  uint64_t written = 0;
  MUSTER_TRY(note({reinterpret_cast<std::byte*>(&written), sizeof written}, deadline, closing));
  if (written != copied_ + 1)
    return Error{ErrorCode::kMisuse, "the sender's slabs are out of order; run the same version"};
  std::memcpy(bytes.data(), ring_.slab(copied_), bytes.size());
  ++copied_;
  answer();
  return ok();
}

}  // namespace muster
