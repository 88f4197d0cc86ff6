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
  constexpr int kFlags = O_RDWR | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK;  // whatever lies there, nobody waits
  for (int attempt = 0; attempt < 2; ++attempt) {
    UniqueFd file(open(path.c_str(), kFlags));
    if (file || errno != ENOENT) return file;
    file.reset(open(path.c_str(), kFlags | O_CREAT | O_EXCL, 0666));
    if (file) (void)fchmod(file.get(), 0666);  // past the umask
    if (file || errno != EEXIST) return file;
  }
  return {};
}

Result<UniqueFd> open_regular(const std::string& path) {
  const auto refused = [&](const std::string& why) {
    return Error{ErrorCode::kEnvironment,
                 "cannot open " + path +
                     ", by which agents of one machine tell each other which cpus are taken: " + why};
  };
  UniqueFd file = open_claims(path);
  struct stat status {};
  if (!file || fstat(file.get(), &status) != 0) return refused(std::strerror(errno));
  if (!S_ISREG(status.st_mode))
    return refused("it is not a regular file; remove it, or name another in MUSTER_CPU_CLAIMS");
  return file;
}

Status lock_cpu(const UniqueFd& file, uint32_t cpu, const std::string& path) {
  struct flock lock {};
  lock.l_type = F_WRLCK;
  lock.l_whence = SEEK_SET;
  lock.l_start = cpu;
  lock.l_len = 1;
  if (fcntl(file.get(), F_OFD_SETLK, &lock) == 0) return ok();
  if (errno == EAGAIN || errno == EACCES)
    return Error{ErrorCode::kRetry,
                 "another agent of this machine has bound workers to cpu " + std::to_string(cpu)};
  return Error{ErrorCode::kEnvironment, "cannot lock " + path + ": " + std::strerror(errno)};
}

}  // namespace

// In ascending order: of two that ask at once, the one that fails does so on a cpu above all that the other
// still wants.
Result<CpuClaim> CpuClaim::take(const placement::Numbers& cpus, const std::string& path) {
  MUSTER_ASSIGN(UniqueFd file, open_regular(path));
  for (const uint32_t cpu : cpus) MUSTER_TRY(lock_cpu(file, cpu, path));
  return CpuClaim(std::move(file));
}

CpuClaim CpuClaim::take_what_is_free(const placement::Numbers& cpus, const std::string& path,
                                     Status& missed) {
  auto file = open_regular(path);
  if (!file.ok()) {
    missed = file.error();
    return {};
  }
  for (const uint32_t cpu : cpus) {
    const Status locked = lock_cpu(*file, cpu, path);
    if (missed.ok() && !locked.ok()) missed = locked;
  }
  return CpuClaim(std::move(file).value());
}

}  // namespace muster::launcher
