// A file system, and a file, that hand everything to another one: for tests that change one call of it.
#pragma once

#include "runtime/base/files.h"

namespace muster::testing {

class ForwardingFile : public File {
 public:
  explicit ForwardingFile(std::unique_ptr<File> inner) : inner_(std::move(inner)) {}
  Result<size_t> pread(MutableByteSpan bytes, uint64_t offset) override {
    return inner_->pread(bytes, offset);
  }
  Status pwrite(ByteSpan bytes, uint64_t offset) override { return inner_->pwrite(bytes, offset); }
  std::unique_ptr<WriteQueue> write_queue(const WriteQueueOptions& options) override {
    return inner_->write_queue(options);
  }
  Status allocate(uint64_t bytes) override { return inner_->allocate(bytes); }
  Status truncate(uint64_t bytes) override { return inner_->truncate(bytes); }
  Result<bool> clone(File& source, uint64_t offset, uint64_t bytes) override {
    return inner_->clone(*static_cast<ForwardingFile&>(source).inner_, offset, bytes);
  }
  Status sync_data() override { return inner_->sync_data(); }
  Status sync() override { return inner_->sync(); }
  Result<uint64_t> size() override { return inner_->size(); }
  bool direct() const override { return inner_->direct(); }
  Status close() override { return inner_->close(); }

 protected:
  std::unique_ptr<File> inner_;
};

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
