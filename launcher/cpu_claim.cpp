#include "launcher/cpu_claim.h"

#include <fcntl.h>
#include <sys/stat.h>

#include <cerrno>
#include <cstring>

namespace muster::launcher {
namespace {

// Everybody may write to it, whoever made it. In a folder like /dev/shm the kernel refuses O_CREAT on a file
// of another user (fs.protected_regular), so it is opened without first.
UniqueFd open_claims(const std::string& path) {
  constexpr int kFlags = O_RDWR | O_CLOEXEC | O_NOFOLLOW;
  for (int attempt = 0; attempt < 2; ++attempt) {
    UniqueFd file(open(path.c_str(), kFlags));
    if (file || errno != ENOENT) return file;
    file.reset(open(path.c_str(), kFlags | O_CREAT | O_EXCL, 0666));
    if (file) (void)fchmod(file.get(), 0666);  // past the umask
    if (file || errno != EEXIST) return file;
  }
  return {};
}

bool lock_byte(int file, uint32_t byte) {
  struct flock lock {};
  lock.l_type = F_WRLCK;
  lock.l_whence = SEEK_SET;
  lock.l_start = byte;
  lock.l_len = 1;
  return fcntl(file, F_OFD_SETLK, &lock) == 0;
}

}  // namespace

// In ascending order: of two that ask at once, the one that fails does so on a cpu above all that the other
// still wants.
Result<CpuClaim> CpuClaim::take(const placement::Numbers& cpus, const std::string& path) {
  UniqueFd file = open_claims(path);
  if (!file)
    return Error{ErrorCode::kEnvironment, "cannot open " + path +
                                              ", by which agents of one machine tell each other "
                                              "which cpus are taken: " +
                                              std::strerror(errno)};
  for (const uint32_t cpu : cpus) {
    if (lock_byte(file.get(), cpu)) continue;
    if (errno == EAGAIN || errno == EACCES)
      return Error{ErrorCode::kRetry,
                   "another agent of this machine has bound workers to cpu " + std::to_string(cpu)};
    return Error{ErrorCode::kEnvironment, "cannot lock " + path + ": " + std::strerror(errno)};
  }
  return CpuClaim(std::move(file));
}

}  // namespace muster::launcher
