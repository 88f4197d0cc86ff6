// What the real file system promises beyond what every test of the checkpoints uses.
#include "runtime/base/files.h"

#include <fcntl.h>
#include <gmock/gmock.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <cstdlib>
#include <filesystem>

namespace muster {
namespace {

using ::testing::HasSubstr;

class Files : public ::testing::Test {
 protected:
  Files() {
    std::string pattern = ::testing::TempDir() + "muster-files-XXXXXX";  // mkdtemp fills in the X
    root_ = mkdtemp(pattern.data());
  }
  ~Files() override { std::filesystem::remove_all(root_); }

  static std::string refusal(const std::string& path, OpenMode mode) {
    const auto file = real_files().open(path, mode, true);
    return file.ok() ? "none" : file.error().message;
  }
  std::string root_;
};

// Opening a pipe waited until someone opened its other end: a restore that never ended.
TEST_F(Files, WhatIsNoFileIsRefusedAtOnce) {
  const std::string pipe = root_ + "/pipe";
  const std::string link = root_ + "/link";
  ASSERT_EQ(mkfifo(pipe.c_str(), 0600), 0);
  ASSERT_EQ(symlink(pipe.c_str(), link.c_str()), 0);
  const int writer = ::open(pipe.c_str(), O_RDWR);  // then opening it to read would succeed, and reading wait
  for (const OpenMode mode : {OpenMode::kRead, OpenMode::kReadWrite}) {
    EXPECT_THAT(refusal(pipe, mode), HasSubstr("pipe is a named pipe and not a file"));
    EXPECT_THAT(refusal(link, mode), HasSubstr("link is a named pipe and not a file"));
  }
  ::close(writer);
  EXPECT_THAT(refusal(pipe, OpenMode::kRead), HasSubstr("is a named pipe and not a file"));
  EXPECT_THAT(refusal(root_, OpenMode::kRead), HasSubstr("is a folder and not a file"));
  EXPECT_THAT(refusal("/dev/zero", OpenMode::kRead), HasSubstr("is a device and not a file"));
  EXPECT_THAT(refusal(pipe, OpenMode::kCreate), HasSubstr("File exists"));
  const auto lock = real_files().lock(pipe);
  ASSERT_FALSE(lock.ok());
  EXPECT_THAT(lock.error().message, HasSubstr("is a named pipe and not a file"));
}

TEST_F(Files, ALockIsNoLink) {
  ASSERT_EQ(symlink((root_ + "/elsewhere").c_str(), (root_ + "/lock").c_str()), 0);
  const auto lock = real_files().lock(root_ + "/lock");
  ASSERT_FALSE(lock.ok());
  EXPECT_THAT(lock.error().message, HasSubstr("it is a link where none may be"));
  EXPECT_FALSE(std::filesystem::exists(root_ + "/elsewhere"));
}

// It was told as a lock that somebody else holds, and so as a folder of another job.
TEST_F(Files, ALockForWhichNoDescriptorIsLeftIsHeldByNobody) {
  rlimit before{};
  ASSERT_EQ(getrlimit(RLIMIT_NOFILE, &before), 0);
  rlimit none = before;
  none.rlim_cur = 0;
  ASSERT_EQ(setrlimit(RLIMIT_NOFILE, &none), 0);
  const auto lock = real_files().lock(root_ + "/lock");
  ASSERT_EQ(setrlimit(RLIMIT_NOFILE, &before), 0);
  ASSERT_FALSE(lock.ok());
  EXPECT_EQ(lock.error().code, ErrorCode::kEnvironment);
  EXPECT_THAT(lock.error().message, HasSubstr("ulimit -n"));
}

TEST_F(Files, ASocketIsRefused) {
  const int fd = ::socket(AF_UNIX, SOCK_STREAM, 0);
  ASSERT_GE(fd, 0);
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  const std::string path = root_ + "/socket";
  ASSERT_LT(path.size(), sizeof address.sun_path);
  path.copy(address.sun_path, path.size());
  ASSERT_EQ(::bind(fd, reinterpret_cast<const sockaddr*>(&address), sizeof address), 0);
  EXPECT_FALSE(real_files().open(path, OpenMode::kRead).ok());
  ::close(fd);
}

}  // namespace
}  // namespace muster
