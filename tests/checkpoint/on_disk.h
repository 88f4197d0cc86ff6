// A folder of its own on the real disk, and a shell in it: for tests in which h5py and h5dump read what was
// written.
#pragma once

#include <gtest/gtest.h>

#include <cstdlib>
#include <filesystem>
#include <string>

#include "runtime/base/files.h"

namespace muster::testing {

class OnDisk : public ::testing::Test {
 protected:
  OnDisk() {
    std::string pattern = ::testing::TempDir() + "muster-test-XXXXXX";  // mkdtemp fills in the X
    root_ = mkdtemp(pattern.data());
  }
  ~OnDisk() override { std::filesystem::remove_all(root_); }

  int shell(const std::string& command) const {
    return std::system(("cd " + root_ + " && " + command + " >out.txt 2>&1").c_str());
  }
  std::string output() const {
    const auto bytes = read_file(real_files(), root_ + "/out.txt", 1 << 24);
    return bytes.ok() ? std::string(reinterpret_cast<const char*>(bytes->data()), bytes->size()) : "";
  }

  std::string root_;
};

}  // namespace muster::testing
