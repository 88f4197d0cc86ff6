// Every way of reading gives the same bytes and the same errors.
#include "runtime/base/read_queue.h"

#include <fcntl.h>
#include <gmock/gmock.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <filesystem>

#include "runtime/base/files.h"
#include "runtime/base/random.h"
#include "tests/refused_calls.h"

namespace muster {
namespace {

using ::testing::HasSubstr;

constexpr size_t kBytes = 40 * 4096;
constexpr size_t kPart = 16384;

class OnDisk {
 protected:
  OnDisk() {
    std::string pattern = ::testing::TempDir() + "muster-reads-XXXXXX";  // mkdtemp fills in the X
    root_ = mkdtemp(pattern.data());
    // Of the page size, because direct I/O asks for it.
    memory_ = {static_cast<std::byte*>(std::aligned_alloc(4096, kBytes)), kBytes};
    std::ranges::fill(memory_, std::byte{0});
  }
  ~OnDisk() {
    std::free(memory_.data());
    std::filesystem::remove_all(root_);
  }
  // A file of random bytes.
  std::unique_ptr<File> file(const std::string& name, bool direct, ByteBuffer& contents) const {
    SeededRandom random(name.size());
    contents.resize(kBytes);
    for (std::byte& byte : contents) byte = static_cast<std::byte>(random.next());
    EXPECT_TRUE(publish_file(real_files(), root_, name, contents).ok());
    auto opened = real_files().open(root_ + "/" + name, OpenMode::kRead, direct);
    EXPECT_TRUE(opened.ok());
    return std::move(opened).value();
  }
  std::string root_;
  MutableByteSpan memory_;
};
class Reads : public OnDisk, public ::testing::TestWithParam<IoMethod> {};
class RefusedReads : public OnDisk, public ::testing::Test {};

TEST_P(Reads, EverythingInAnyOrderFromSeveralFiles) {
  for (const bool direct : {false, true}) {
    for (const bool registered : {false, true}) {
      ByteBuffer contents[2];
      const std::string name = std::to_string(direct) + std::to_string(registered);
      const std::unique_ptr<File> files[2] = {file(name, direct, contents[0]),
                                              file(name + "b", direct, contents[1])};
      ReadQueueOptions options{3, {}, GetParam()};
      if (registered) options.registered = {memory_};
      const auto queue = real_files().read_queue(options);
      if (GetParam() == IoMethod::kUring && queue->method() != IoMethod::kUring)
        GTEST_SKIP() << "io_uring is refused here, and " << to_string(queue->method()) << " were taken";
      ASSERT_EQ(queue->method(), GetParam());
      std::ranges::fill(memory_, std::byte{0});
      std::vector<int> seen(10, 0);
      const auto reap = [&] {
        const auto moved = queue->wait();
        ASSERT_TRUE(moved.ok());
        EXPECT_EQ(moved->bytes, kPart);
        ++seen.at(moved->tag);
      };
      for (uint64_t i = 0; i < 10; ++i) {
        const uint64_t at = (i * 7 % 10) * kPart;
        ASSERT_TRUE(queue->submit(*files[i % 2], memory_.subspan(at, kPart), at, i).ok());
        if (i % 4 == 3) reap();
      }
      for (int i = 0; i < 8; ++i) reap();
      EXPECT_THAT(seen, ::testing::Each(1));
      for (uint64_t i = 0; i < 10; ++i) {
        const uint64_t at = (i * 7 % 10) * kPart;
        EXPECT_TRUE(
            std::ranges::equal(memory_.subspan(at, kPart), ByteSpan(contents[i % 2]).subspan(at, kPart)))
            << "direct " << direct << ", registered " << registered << ", read " << i;
      }
    }
  }
}

// Where a file ends early the count says so: nobody takes what was in the memory before for what was read.
TEST_P(Reads, TheEndOfTheFileIsAShorterCount) {
  for (const bool direct : {false, true}) {
    ByteBuffer contents;
    const auto opened = file(std::to_string(direct), direct, contents);
    std::filesystem::resize_file(root_ + "/" + std::to_string(direct), kPart + 4096);
    const auto queue = real_files().read_queue({2, {memory_}, GetParam()});
    ASSERT_TRUE(queue->submit(*opened, memory_.first(kPart), kPart, 5).ok());
    const auto part = queue->wait();
    ASSERT_TRUE(part.ok());
    EXPECT_EQ(part->bytes, 4096U);
    ASSERT_TRUE(queue->submit(*opened, memory_.first(kPart), 8 * kPart, 6).ok());
    const auto past = queue->wait();
    ASSERT_TRUE(past.ok());
    EXPECT_EQ(past->bytes, 0U);
  }
}

// A file system that grants O_DIRECT and refuses a read costs speed, not the restore. Here it is the address
// that is refused.
TEST_P(Reads, RefusedDirectReadsGoThroughThePageCache) {
  ByteBuffer contents;
  const auto opened = file("f", true, contents);
  if (!opened->direct()) GTEST_SKIP() << "this file system grants no direct I/O";
  const auto queue = real_files().read_queue({2, {memory_}, GetParam()});
  const MutableByteSpan odd = memory_.subspan(1, 3 * 4096 + 7);
  ASSERT_TRUE(queue->submit(*opened, odd, 3, 1).ok());
  const auto moved = queue->wait();
  ASSERT_TRUE(moved.ok()) << moved.error().message;
  EXPECT_EQ(moved->bytes, odd.size());
  EXPECT_TRUE(std::ranges::equal(odd, ByteSpan(contents).subspan(3, odd.size())));
}

TEST_P(Reads, WaitsForWhatIsInFlightBeforeItGoes) {
  ByteBuffer contents;
  const auto opened = file("f", true, contents);
  auto queue = real_files().read_queue({8, {memory_}, GetParam()});
  for (uint64_t i = 0; i < 8; ++i)
    ASSERT_TRUE(queue->submit(*opened, memory_.subspan(i * kPart, kPart), i * kPart, i).ok());
  queue.reset();
  std::ranges::fill(memory_, std::byte{0x5a});
  std::filesystem::remove(root_ + "/f");
  EXPECT_TRUE(std::ranges::all_of(memory_, [](std::byte byte) { return byte == std::byte{0x5a}; }))
      << "a read filled memory that was used again";
}

// What a container's filter or a faulty disk does to system calls, in a process of its own.
struct Refusal {
  const char* name;
  std::vector<int> calls;
  int code;
  IoMethod expected;  // what is used then
  bool fails;         // with the code's words
};

// Empty: as expected.
std::string read_under(const Refusal& refusal, File& file, MutableByteSpan memory, ByteSpan expected) {
  if (!testing::refuse_calls(refusal.calls, refusal.code)) return "no seccomp";
  const auto queue = real_files().read_queue({4, {memory}, IoMethod::kUring});
  if (queue->method() != refusal.expected) return std::string("method: ") + to_string(queue->method());
  for (uint64_t i = 0; i < 10; ++i) {
    Status done = queue->submit(file, memory.subspan(i * kPart, kPart), i * kPart, i);
    if (done.ok()) {
      const auto moved = queue->wait();
      if (!moved.ok()) done = moved.error();
    }
    if (!done.ok()) return done.error().message;
  }
  return std::ranges::equal(memory, expected) ? "" : "other bytes";
}

TEST_F(RefusedReads, WhatAContainerRefusesIsGoneAround) {
  const std::vector<Refusal> refusals = {
      {"nothing", {}, EPERM, IoMethod::kUring, false},
      {"io_uring", {SYS_io_uring_setup}, EPERM, IoMethod::kThreads, false},
      {"registered memory", {SYS_io_uring_register}, ENOMEM, IoMethod::kUring, false},
      {"handing over reads", {SYS_io_uring_enter}, EPERM, IoMethod::kUring, false},
      {"the kernel's memory", {SYS_io_uring_enter}, EAGAIN, IoMethod::kUring, false},
      {"threads too", {SYS_io_uring_setup, SYS_clone, SYS_clone3}, EAGAIN, IoMethod::kInTurn, false},
      {"a faulty disk", {SYS_io_uring_setup, SYS_pread64}, EIO, IoMethod::kThreads, true},
      {"nothing else is left", {SYS_io_uring_enter, SYS_pread64}, EIO, IoMethod::kUring, true}};
  ByteBuffer contents;
  const auto opened = file("f", true, contents);
  for (const Refusal& refusal : refusals) {
    int ends[2];
    ASSERT_EQ(::pipe(ends), 0);
    const pid_t child = ::fork();
    if (child == 0) {
      const std::string outcome = read_under(refusal, *opened, memory_, contents);
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
    if (refusal.fails)
      EXPECT_THAT(outcome,
                  HasSubstr("cannot read " + root_ + "/f: Input/output error; the device reports a fault"))
          << refusal.name;
    else
      EXPECT_EQ(outcome, "") << refusal.name;
  }
}

INSTANTIATE_TEST_SUITE_P(Methods, Reads,
                         ::testing::Values(IoMethod::kUring, IoMethod::kThreads, IoMethod::kInTurn),
                         [](const auto& method) {
                           const std::string name = to_string(method.param);
                           return name == "io_uring"  ? std::string("Uring")
                                  : name == "in turn" ? "InTurn"
                                                      : "Threads";
                         });

}  // namespace
}  // namespace muster
