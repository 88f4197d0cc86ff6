// A disk in memory that remembers each operation, can refuse any, and can be cut off from power after any.
//
// The model of a crash is the strictest that POSIX allows: bytes that were not synced may be lost, kept or
// torn, each write and each clone for itself; names that were not synced with their directory may be lost or
// kept, each for itself.
#pragma once

#include <functional>
#include <map>
#include <mutex>
#include <set>

#include "runtime/base/files.h"
#include "runtime/base/random.h"

namespace muster::testing {

enum class OpKind : uint8_t {
  kCreate,
  kWrite,
  kAllocate,
  kTruncate,
  kClone,
  kSync,
  kClose,
  kMakeDirectory,
  kLink,
  kRename,
  kUnlink,
  kRemoveDirectory,
  kSyncDirectory,
  kRead,
  kLock
};

struct Op {
  OpKind kind;
  std::string path;
  std::string target;  // of link and rename; of a clone, what it shares bytes with
  uint64_t inode = 0;
  uint64_t offset = 0;  // or length
  ByteBuffer bytes;
  uint64_t source_inode = 0;  // of a clone
};

enum class CrashKind : uint8_t { kKeepAll, kDropUnsynced, kRandom };

class MemoryFiles final : public FileSystem {
 public:
  // Returns the reason to refuse this operation with, if any. Called before it happens.
  std::function<std::optional<Error>(const Op&)> refuse;
  uint64_t bytes_max = UINT64_MAX;
  bool can_clone = false;  // as most file systems

  // All changes so far, in order; reads are not among them.
  const std::vector<Op>& log() const { return log_; }
  // The disk as found after power was cut when the first `count` operations of a log were done.
  static std::unique_ptr<MemoryFiles> after_crash(const std::vector<Op>& log, size_t count, CrashKind kind,
                                                  uint64_t seed);

  // Whole contents, past all rules, for tests that corrupt.
  ByteBuffer& contents(const std::string& path);
  std::vector<std::string> all_files() const;
  void drop_locks() { locks_.clear(); }

  Result<std::unique_ptr<File>> open(const std::string& path, OpenMode mode, bool direct) override;
  std::unique_ptr<ReadQueue> read_queue(const ReadQueueOptions& options) override;
  Status make_directory(const std::string& path) override;
  Status make_private_directory(const std::string& path) override { return make_directory(path); }
  Status link(const std::string& source, const std::string& target) override;
  Status rename(const std::string& source, const std::string& target) override;
  Status unlink(const std::string& path) override;
  Status remove_directory(const std::string& path) override;
  Result<std::vector<std::string>> list(const std::string& path) override;
  Result<std::optional<FileStat>> stat(const std::string& path) override;
  Result<std::optional<FileStat>> stat_link(const std::string& path) override { return stat(path); }
  Status sync_directory(const std::string& path) override;
  Result<std::unique_ptr<FileLock>> lock(const std::string& path) override;

 private:
  friend class MemoryFile;
  friend class MemoryLock;
  Status perform(Op op);  // asks `refuse`, logs, applies
  void apply(const Op& op);
  bool has_directory(const std::string& path) const { return path == "." || directories_.count(path) != 0; }

  std::vector<Op> log_;
  std::map<std::string, uint64_t> files_;  // path to inode
  std::set<std::string> directories_;
  std::map<uint64_t, ByteBuffer> inodes_;
  std::set<std::string> locks_;
  uint64_t next_inode_ = 1;
  std::mutex mutex_;  // held while a file is read, which several threads may do at once
};

}  // namespace muster::testing
