#include "runtime/seal_key_file.h"

#include <gmock/gmock.h>
#include <sys/stat.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>

namespace muster {
namespace {

using ::testing::HasSubstr;

class SealKeyFile : public ::testing::Test {
 protected:
  void SetUp() override {
    folder_ = ::testing::TempDir() + "muster-key-XXXXXX";  // mkdtemp fills in the X
    ASSERT_NE(mkdtemp(folder_.data()), nullptr);
  }
  void TearDown() override { std::filesystem::remove_all(folder_); }

  std::string file(const std::string& text, mode_t mode = 0600) {
    std::string path = folder_ + "/key";
    std::ofstream(path) << text;
    EXPECT_EQ(chmod(path.c_str(), mode), 0);
    return path;
  }
  static std::string refused(const std::string& path) {
    const auto key = read_seal_key(path);
    if (key.ok()) return "";
    EXPECT_EQ(key.error().code, ErrorCode::kMisuse);
    return key.error().message;
  }

  std::string folder_;
};

TEST_F(SealKeyFile, HasAllBytesOfTheFile) {
  const auto key = read_seal_key(file(std::string(31, 'k') + "\n"));
  ASSERT_TRUE(key.ok()) << key.error().message;
  std::string text = std::string(31, 'k') + "\n";
  const ByteSpan bytes = as_bytes(text);
  EXPECT_EQ((*key)->id(), checkpoint::SealKey::of({bytes.begin(), bytes.end()}, "k").value()->id());
  EXPECT_NE((*key)->id(), read_seal_key(file(std::string(31, 'k') + "\n\n")).value()->id());
}

TEST_F(SealKeyFile, NoneIsNone) {
  const auto none = read_seal_key("");
  ASSERT_TRUE(none.ok());
  EXPECT_EQ(*none, nullptr);
}

TEST_F(SealKeyFile, IsRefusedWhereItIsNoSecret) {
  const std::string good(32, 'k');
  for (const mode_t mode : {0640, 0620, 0604, 0602, 0660})
    EXPECT_THAT(refused(file(good, mode)), HasSubstr("can be read or changed by others; run: chmod 600"));
  EXPECT_EQ(refused(file(good, 0400)), "");
  ASSERT_EQ(chmod((folder_ + "/key").c_str(), 0600), 0);
  EXPECT_THAT(refused(file(std::string(31, 'k'))), HasSubstr("has 31 bytes"));
  EXPECT_THAT(refused(file(std::string(1025, 'k'))), HasSubstr("has 1025 bytes"));
  EXPECT_THAT(refused(file(std::string(5000, 'k'))), HasSubstr("longer than"));
  EXPECT_THAT(refused(folder_), HasSubstr("is not a regular file"));
  EXPECT_THAT(refused("/dev/zero"), HasSubstr("is not a regular file"));
  EXPECT_THAT(refused(folder_ + "/none"), HasSubstr("cannot open the checkpoint key"));
  ASSERT_EQ(mkfifo((folder_ + "/pipe").c_str(), 0600), 0);
  EXPECT_THAT(refused(folder_ + "/pipe"), HasSubstr("is not a regular file"));
}

TEST_F(SealKeyFile, OfAnotherUserIsRefused) {
  // Reason for the skip: only root can give a file to somebody else.
  if (geteuid() != 0) GTEST_SKIP() << "only root can give a file to somebody else";
  const std::string path = file(std::string(32, 'k'));
  ASSERT_EQ(chown(path.c_str(), 12345, 12345), 0);
  EXPECT_THAT(refused(path), HasSubstr("belongs to another user"));
}

}  // namespace
}  // namespace muster
