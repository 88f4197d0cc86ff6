// A file system that hands everything to another one: for tests that change one call of it.
#pragma once

#include "runtime/base/files.h"

namespace muster::testing {

class ForwardingFiles : public FileSystem {
 public:
  explicit ForwardingFiles(FileSystem& inner) : inner_(inner) {}
  Result<std::unique_ptr<File>> open(const std::string& path, OpenMode mode, bool direct) override {
    return inner_.open(path, mode, direct);
  }
  std::unique_ptr<ReadQueue> read_queue(const ReadQueueOptions& options) override {
    return inner_.read_queue(options);
  }
  Status make_directory(const std::string& path) override { return inner_.make_directory(path); }
  Status make_private_directory(const std::string& path) override {
    return inner_.make_private_directory(path);
  }
  Status link(const std::string& source, const std::string& target) override {
    return inner_.link(source, target);
  }
  Status rename(const std::string& source, const std::string& target) override {
    return inner_.rename(source, target);
  }
  Status unlink(const std::string& path) override { return inner_.unlink(path); }
  Status remove_directory(const std::string& path) override { return inner_.remove_directory(path); }
  Result<std::vector<std::string>> list(const std::string& path) override { return inner_.list(path); }
  Result<std::optional<FileStat>> stat(const std::string& path) override { return inner_.stat(path); }
  Result<std::optional<FileStat>> stat_link(const std::string& path) override {
    return inner_.stat_link(path);
  }
  Status sync_directory(const std::string& path) override { return inner_.sync_directory(path); }
  Result<std::unique_ptr<FileLock>> lock(const std::string& path) override { return inner_.lock(path); }

 protected:
  FileSystem& inner_;
};

}  // namespace muster::testing
