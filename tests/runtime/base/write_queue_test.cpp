// Every way of writing gives the same file and the same errors.
#include "runtime/base/write_queue.h"

#include <fcntl.h>
#include <gmock/gmock.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <set>

#include "runtime/base/files.h"
#include "runtime/base/random.h"
#include "tests/refused_calls.h"

namespace muster {
namespace {

using ::testing::HasSubstr;

class OnDisk {
 protected:
  OnDisk() {
    std::string pattern = ::testing::TempDir() + "muster-queue-XXXXXX";  // mkdtemp fills in the X
    root_ = mkdtemp(pattern.data());
    // Of the page size, because direct I/O asks for it.
    memory_ = {static_cast<std::byte*>(std::aligned_alloc(4096, kBytes)), kBytes};
    SeededRandom random(1);
    for (std::byte& byte : memory_) byte = static_cast<std::byte>(random.next());
  }
  ~OnDisk() {
    std::free(memory_.data());
    std::filesystem::remove_all(root_);
  }
  static constexpr size_t kBytes = 40 * 4096;
  std::string root_;
  MutableByteSpan memory_;
};
class Queues : public OnDisk, public ::testing::TestWithParam<IoMethod> {};
class RefusedCalls : public OnDisk, public ::testing::Test {};

TEST_P(Queues, WriteEverythingInAnyOrder) {
  for (const bool direct : {false, true}) {
    for (const bool registered : {false, true}) {
      const std::string path = root_ + "/" + std::to_string(direct) + std::to_string(registered);
      auto file = real_files().open(path, OpenMode::kCreate, direct);
      ASSERT_TRUE(file.ok());
      WriteQueueOptions options{3, {}, GetParam()};
      if (registered) options.registered = {memory_};
      auto queue = (*file)->write_queue(options);
      if (GetParam() == IoMethod::kUring && queue->method() != IoMethod::kUring)
        GTEST_SKIP() << "io_uring is refused here, and " << to_string(queue->method())
                     << " were taken instead";
      ASSERT_EQ(queue->method(), GetParam());
      std::multiset<uint64_t> tags;
      for (uint64_t i = 0; i < 10; ++i) {
        const uint64_t at = (i * 7 % 10) * 16384;
        ASSERT_TRUE(queue->submit(memory_.subspan(at, 16384), at, i).ok());
        if (i % 4 == 3) tags.insert(queue->wait().value());
      }
      while (tags.size() < 10) tags.insert(queue->wait().value());
      EXPECT_EQ(std::set<uint64_t>(tags.begin(), tags.end()).size(), 10U) << "each tag once";
      queue.reset();
      const auto read = read_file(real_files(), path, kBytes);
      ASSERT_TRUE(read.ok());
      EXPECT_TRUE(std::ranges::equal(*read, memory_)) << "direct " << direct << ", registered " << registered;
    }
  }
}

TEST_P(Queues, WaitsForWhatIsInFlightBeforeItGoes) {
  auto file = real_files().open(root_ + "/f", OpenMode::kCreate, true);
  ASSERT_TRUE(file.ok());
  auto queue = (*file)->write_queue({8, {memory_}, GetParam()});
  const ByteBuffer expected(memory_.begin(), memory_.end());
  for (uint64_t at = 0; at < kBytes; at += 4096)
    ASSERT_TRUE(queue->submit(memory_.subspan(at, 4096), at, at).ok());
  queue.reset();
  std::fill(memory_.begin(), memory_.end(), std::byte{0});
  const auto read = read_file(real_files(), root_ + "/f", kBytes);
  ASSERT_TRUE(read.ok());
  EXPECT_EQ(*read, expected) << "a write saw memory that was used again";
}

TEST_P(Queues, AFullDiskIsAnErrorInWords) {
  const int fd = ::open("/dev/full", O_WRONLY | O_CLOEXEC);
  ASSERT_GE(fd, 0);
  auto queue = open_write_queue(fd, "/dev/full", {4, {}, GetParam()});
  Status failed = queue->submit(memory_.first(4096), 0, 1);
  if (failed.ok()) {
    const auto waited = queue->wait();
    ASSERT_FALSE(waited.ok());
    failed = waited.error();
  }
  EXPECT_EQ(failed.error().code, ErrorCode::kEnvironment);
  EXPECT_THAT(failed.error().message,
              HasSubstr("cannot write /dev/full: No space left on device; free space"));
  queue.reset();
  ::close(fd);
}

// A file system that grants O_DIRECT and refuses a write costs speed, not the save. Here it is the address
// that is refused.
TEST_P(Queues, RefusedDirectWritesGoThroughThePageCache) {
  auto file = real_files().open(root_ + "/f", OpenMode::kCreate, true);
  ASSERT_TRUE(file.ok());
  if (!(*file)->direct()) GTEST_SKIP() << "this file system grants no direct I/O";
  auto queue = (*file)->write_queue({4, {memory_}, GetParam()});
  const MutableByteSpan odd = memory_.subspan(1, 3 * 4096 + 7);
  ASSERT_TRUE(queue->submit(odd, 0, 1).ok());
  const auto tag = queue->wait();
  ASSERT_TRUE(tag.ok()) << tag.error().message;
  queue.reset();
  const auto read = read_file(real_files(), root_ + "/f", kBytes);
  ASSERT_TRUE(read.ok());
  EXPECT_TRUE(std::ranges::equal(*read, odd));
}

TEST_P(Queues, AWriteThatFailsLeavesTheOthersAlone) {
  const std::string path = root_ + "/f";
  ASSERT_TRUE(real_files().open(path, OpenMode::kCreate).ok());
  const int read_only = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
  ASSERT_GE(read_only, 0);
  auto queue = open_write_queue(read_only, path, {4, {}, GetParam()});
  int failed = 0;
  int in_flight = 0;
  for (uint64_t i = 0; i < 9; ++i) {
    const Status submitted = queue->submit(memory_.subspan(i * 4096, 4096), i * 4096, i);
    submitted.ok() ? ++in_flight : ++failed;
    if (in_flight == 4) {
      --in_flight;
      failed += queue->wait().ok() ? 0 : 1;
    }
  }
  for (; in_flight > 0; --in_flight) failed += queue->wait().ok() ? 0 : 1;
  EXPECT_EQ(failed, 9);
  queue.reset();
  ::close(read_only);
}

// What a container's filter does to system calls, in a process of its own.
struct Refusal {
  const char* name;
  std::vector<int> calls;
  int code;
  IoMethod expected;  // what is used then
  bool fails;         // with the code's words
};

// Empty: as expected.
std::string write_under(const Refusal& refusal, const std::string& path, MutableByteSpan memory) {
  auto file = real_files().open(path, OpenMode::kCreate, true);
  if (!file.ok()) return file.error().message;
  if (!testing::refuse_calls(refusal.calls, refusal.code)) return "no seccomp";
  auto queue = (*file)->write_queue({4, {memory}, IoMethod::kUring});
  if (queue->method() != refusal.expected) return std::string("method: ") + to_string(queue->method());
  for (uint64_t i = 0; i < 10; ++i) {
    Status done = queue->submit(memory.subspan(i * 16384, 16384), i * 16384, i);
    if (done.ok()) {
      const auto tag = queue->wait();
      if (!tag.ok()) done = tag.error();
    }
    if (!done.ok()) return done.error().message;
  }
  return "";
}

TEST_F(RefusedCalls, WhatAContainerRefusesIsGoneAround) {
  const std::vector<Refusal> refusals = {
      {"nothing", {}, EPERM, IoMethod::kUring, false},
      {"io_uring", {SYS_io_uring_setup}, EPERM, IoMethod::kThreads, false},
      {"an old kernel", {SYS_io_uring_setup}, ENOSYS, IoMethod::kThreads, false},
      {"registered memory", {SYS_io_uring_register}, ENOMEM, IoMethod::kUring, false},
      {"handing over writes", {SYS_io_uring_enter}, EPERM, IoMethod::kUring, false},
      {"the kernel's memory", {SYS_io_uring_enter}, EAGAIN, IoMethod::kUring, false},
      {"threads too", {SYS_io_uring_setup, SYS_clone, SYS_clone3}, EAGAIN, IoMethod::kInTurn, false},
      {"a faulty disk", {SYS_io_uring_setup, SYS_pwrite64}, EIO, IoMethod::kThreads, true},
      {"nothing else is left", {SYS_io_uring_enter, SYS_pwrite64}, EIO, IoMethod::kUring, true}};
  for (const Refusal& refusal : refusals) {
    const std::string path = root_ + "/" + refusal.name;
    int ends[2];
    ASSERT_EQ(::pipe(ends), 0);
    const pid_t child = ::fork();
    if (child == 0) {
      const std::string outcome = write_under(refusal, path, memory_);
      const bool told = ::write(ends[1], outcome.data(), outcome.size()) == ssize_t(outcome.size());
      ::_exit(told ? 0 : 1);
    }
    ::close(ends[1]);
    std::string outcome(4096, '\0');
    outcome.resize(static_cast<size_t>(std::max<ssize_t>(::read(ends[0], outcome.data(), 4096), 0)));
    ::close(ends[0]);
    int status = 0;
    ASSERT_EQ(::waitpid(child, &status, 0), child);
    EXPECT_EQ(status, 0) << refusal.name;
    if (outcome == "no seccomp") GTEST_SKIP() << "this system lets nobody filter system calls";
    if (refusal.calls.empty() && outcome == "method: threads")
      GTEST_SKIP() << "io_uring is refused here, whatever the test does";
    if (refusal.fails) {
      EXPECT_THAT(outcome, HasSubstr(path + ": Input/output error; the device reports a fault"))
          << refusal.name;
      continue;
    }
    ASSERT_EQ(outcome, "") << refusal.name;
    const auto read = read_file(real_files(), path, kBytes);
    ASSERT_TRUE(read.ok());
    EXPECT_TRUE(std::ranges::equal(*read, memory_)) << refusal.name;
  }
}

INSTANTIATE_TEST_SUITE_P(Methods, Queues,
                         ::testing::Values(IoMethod::kUring, IoMethod::kThreads, IoMethod::kInTurn),
                         [](const auto& method) {
                           const std::string name = to_string(method.param);
                           return name == "io_uring"  ? std::string("Uring")
                                  : name == "in turn" ? "InTurn"
                                                      : "Threads";
                         });

}  // namespace
}  // namespace muster
