#include "collectives/node/shared_memory.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>

#include <cerrno>
#include <cstring>
#include <utility>

namespace muster {
namespace {

constexpr int kSeals = F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL;

Error refusal(const char* what) {
  return {ErrorCode::kEnvironment, std::string(what) + ": " + strerror(errno)};
}

}  // namespace

SharedMemory::SharedMemory(SharedMemory&& other) noexcept
    : fd_(std::move(other.fd_)),
      base_(std::exchange(other.base_, nullptr)),
      bytes_(std::exchange(other.bytes_, 0)) {}

SharedMemory& SharedMemory::operator=(SharedMemory&& other) noexcept {
  std::swap(fd_, other.fd_);
  std::swap(base_, other.base_);
  std::swap(bytes_, other.bytes_);
  return *this;
}

SharedMemory::~SharedMemory() {
  if (base_ != nullptr) munmap(base_, bytes_);
}

Status SharedMemory::map(int fd, size_t bytes, Access access) {
  const int protection = access == Access::kWrite ? PROT_READ | PROT_WRITE : PROT_READ;
  void* const base = mmap(nullptr, bytes, protection, MAP_SHARED | MAP_NORESERVE, fd, 0);
  if (base == MAP_FAILED) return refusal("cannot map shared memory");
  base_ = static_cast<std::byte*>(base);
  bytes_ = bytes;
  return ok();
}

Result<SharedMemory> SharedMemory::create(const char* name, size_t bytes) {
  SharedMemory memory;
  memory.fd_.reset(memfd_create(name, MFD_CLOEXEC | MFD_ALLOW_SEALING));
  if (!memory.fd_) return refusal("cannot create shared memory");
  if (ftruncate(memory.fd(), static_cast<off_t>(bytes)) != 0) return refusal("cannot size shared memory");
  if (fcntl(memory.fd(), F_ADD_SEALS, kSeals) != 0) return refusal("cannot seal shared memory");
  MUSTER_TRY(memory.map(memory.fd(), bytes, Access::kWrite));
  return memory;
}

Result<SharedMemory> SharedMemory::map(int fd, Access access) {
  struct stat status {};
  const int seals = fcntl(fd, F_GET_SEALS);
  if (seals < 0 || (seals & kSeals) != kSeals || fstat(fd, &status) != 0 || status.st_size <= 0) {
    return Error{ErrorCode::kEnvironment,
                 "a node-mate's shared memory is of another version; run the same version of muster"};
  }
  SharedMemory memory;
  MUSTER_TRY(memory.map(fd, static_cast<size_t>(status.st_size), access));
  madvise(memory.base(), memory.bytes(), MADV_DONTDUMP);  // a wish; it is the mate's
  return memory;
}

}  // namespace muster
