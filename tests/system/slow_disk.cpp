// LD_PRELOAD: while the file $SLOW_DISK exists, every write at an offset first takes the seconds that it
// holds, and while $SLOW_READS does, every read; with $SLOW_BELOW only in files of that folder. Only
// checkpoints are written and read that way, so it stands for a file system that has become slow. io_uring is
// refused, since its transfers come by no function.
#include <dlfcn.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "tests/refused_calls.h"

namespace {

__attribute__((constructor)) void refuse_io_uring() {
  if (!muster::testing::refuse_calls({SYS_io_uring_setup}, EPERM))
    std::fputs("slow_disk: no filter of system calls here\n", stderr);
}

bool is_slow(int fd) {
  const char* const below = getenv("SLOW_BELOW");
  if (below == nullptr) return true;
  char link[64], path[4096];
  std::snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
  const ssize_t length = readlink(link, path, sizeof path);
  const size_t wanted = std::strlen(below);
  return length >= 0 && static_cast<size_t>(length) >= wanted && std::memcmp(path, below, wanted) == 0;
}

void wait_as_told(const char* variable, int fd) {
  const char* const path = getenv(variable);
  FILE* const file = path != nullptr ? fopen(path, "re") : nullptr;
  if (file == nullptr) return;
  if (!is_slow(fd)) {
    fclose(file);
    return;
  }
  double seconds = 0;
  if (fscanf(file, "%lf", &seconds) != 1) seconds = 60;
  fclose(file);
  const auto whole = static_cast<time_t>(seconds);
  timespec left{whole, static_cast<long>((seconds - static_cast<double>(whole)) * 1e9)};
  while (nanosleep(&left, &left) != 0) {
  }
}

template <typename Call>
Call real(const char* name) {
  return reinterpret_cast<Call>(dlsym(RTLD_NEXT, name));
}

using Pwrite = ssize_t (*)(int, const void*, size_t, off64_t);
using Pread = ssize_t (*)(int, void*, size_t, off64_t);

ssize_t slow_write(const char* name, int fd, const void* bytes, size_t size, off64_t offset) {
  wait_as_told("SLOW_DISK", fd);
  return real<Pwrite>(name)(fd, bytes, size, offset);
}

ssize_t slow_read(const char* name, int fd, void* bytes, size_t size, off64_t offset) {
  wait_as_told("SLOW_READS", fd);
  return real<Pread>(name)(fd, bytes, size, offset);
}

}  // namespace

extern "C" ssize_t pwrite(int fd, const void* bytes, size_t size, off_t offset) {
  return slow_write("pwrite", fd, bytes, size, offset);
}

extern "C" ssize_t pwrite64(int fd, const void* bytes, size_t size, off64_t offset) {
  return slow_write("pwrite64", fd, bytes, size, offset);
}

extern "C" ssize_t pread(int fd, void* bytes, size_t size, off_t offset) {
  return slow_read("pread", fd, bytes, size, offset);
}

extern "C" ssize_t pread64(int fd, void* bytes, size_t size, off64_t offset) {
  return slow_read("pread64", fd, bytes, size, offset);
}
