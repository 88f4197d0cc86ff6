#include "collectives/node/slab_ring.h"

#include <fcntl.h>
#include <poll.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <utility>

namespace muster {
namespace {

constexpr size_t kRingBytes = kSlabs * kSlabBytes;
constexpr int kSeals = F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL;
constexpr Duration kLook = 100 * kMillisecond;  // how soon a wait hears that it is to end

Error refusal(const char* what) {
  return {ErrorCode::kEnvironment, std::string(what) + ": " + strerror(errno)};
}

}  // namespace

SlabRing::SlabRing(SlabRing&& other) noexcept
    : fd_(std::move(other.fd_)), base_(std::exchange(other.base_, nullptr)) {}

SlabRing& SlabRing::operator=(SlabRing&& other) noexcept {
  std::swap(fd_, other.fd_);
  std::swap(base_, other.base_);
  return *this;
}

SlabRing::~SlabRing() {
  if (base_ != nullptr) munmap(base_, kRingBytes);
}

Result<SlabRing> SlabRing::create() {
  SlabRing ring;
  ring.fd_.reset(memfd_create("muster-slabs", MFD_CLOEXEC | MFD_ALLOW_SEALING));
  if (!ring.fd_) return refusal("cannot create shared memory");
  if (ftruncate(ring.fd(), kRingBytes) != 0) return refusal("cannot size shared memory");
  if (fcntl(ring.fd(), F_ADD_SEALS, kSeals) != 0) return refusal("cannot seal shared memory");
  void* const base = mmap(nullptr, kRingBytes, PROT_READ | PROT_WRITE, MAP_SHARED, ring.fd(), 0);
  if (base == MAP_FAILED) return refusal("cannot map shared memory");
  ring.base_ = static_cast<std::byte*>(base);
  return ring;
}

Result<SlabRing> SlabRing::map(UniqueFd memory) {
  struct stat status {};
  const int seals = fcntl(memory.get(), F_GET_SEALS);
  const bool sealed = seals >= 0 && (seals & kSeals) == kSeals;
  if (!sealed || fstat(memory.get(), &status) != 0 || static_cast<size_t>(status.st_size) != kRingBytes) {
    return Error{ErrorCode::kEnvironment,
                 "a node-mate's ring of slabs is of another version; run the same version of muster"};
  }
  void* const base = mmap(nullptr, kRingBytes, PROT_READ, MAP_SHARED, memory.get(), 0);
  if (base == MAP_FAILED) return refusal("cannot map a node-mate's shared memory");
  SlabRing ring;
  ring.base_ = static_cast<std::byte*>(base);
  return ring;
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

Result<SlabSource> SlabSource::open(UniqueFd connection, UniqueFd memory) {
  SlabSource source;
  source.connection_ = std::move(connection);
  MUSTER_ASSIGN(source.ring_, SlabRing::map(std::move(memory)));
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
