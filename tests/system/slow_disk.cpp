// LD_PRELOAD: while the file $SLOW_DISK exists, every write at an offset first takes the seconds that it
// holds. Only the shard files of checkpoints are written that way, so it stands for a file system that has
// become slow.
#include <dlfcn.h>
#include <time.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>

namespace {

void wait_as_told() {
  const char* const path = getenv("SLOW_DISK");
  FILE* const file = path != nullptr ? fopen(path, "re") : nullptr;
  if (file == nullptr) return;
  double seconds = 0;
  if (fscanf(file, "%lf", &seconds) != 1) seconds = 60;
  fclose(file);
  const auto whole = static_cast<time_t>(seconds);
  timespec left{whole, static_cast<long>((seconds - static_cast<double>(whole)) * 1e9)};
  while (nanosleep(&left, &left) != 0) {
  }
}

using Pwrite = ssize_t (*)(int, const void*, size_t, off64_t);

ssize_t slow(const char* name, int fd, const void* bytes, size_t size, off64_t offset) {
  wait_as_told();
  return reinterpret_cast<Pwrite>(dlsym(RTLD_NEXT, name))(fd, bytes, size, offset);
}

}  // namespace

extern "C" ssize_t pwrite(int fd, const void* bytes, size_t size, off_t offset) {
  return slow("pwrite", fd, bytes, size, offset);
}

extern "C" ssize_t pwrite64(int fd, const void* bytes, size_t size, off64_t offset) {
  return slow("pwrite64", fd, bytes, size, offset);
}
