// Files, as every part of Muster that must survive a crash sees them: one interface, so that a test can stand
// in for the disk, record each operation, drop what was not synced, and fail any call.
//
// Nothing is durable before it is synced: a file's bytes by sync_data() or sync(), the names in a directory
// by sync_directory(). A failed sync loses the written bytes: the caller gives the file up, and never syncs
// it again in the hope of a better answer.
//
// Errors carry the operation, the path and the system's words. kEnvironment: the disk or the system refuses;
// kRetry: someone else holds the lock, or this process lacks memory or descriptors; kDropCheckpoint: the name
// is taken.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "runtime/base/bytes.h"
#include "runtime/base/read_queue.h"
#include "runtime/base/result.h"
#include "runtime/base/write_queue.h"

namespace muster {

enum class OpenMode : uint8_t {
  kRead,       // an existing file
  kCreate,     // a new file, for writing and reading; refused where the name is taken
  kReadWrite,  // an existing file, or a new one
};

// One open file. Not for concurrent use, except pread and pwrite of disjoint ranges.
class File {
 public:
  virtual ~File() = default;

  // The number of bytes read, less than asked for only at the end of the file.
  virtual Result<size_t> pread(MutableByteSpan bytes, uint64_t offset) = 0;
  // Writes all bytes or fails.
  virtual Status pwrite(ByteSpan bytes, uint64_t offset) = 0;
  // For writes that overlap. REQUIRES: the file outlives the queue; sync only after all tags came back.
  virtual std::unique_ptr<WriteQueue> write_queue(const WriteQueueOptions& options) = 0;
  // Makes the file at least this long and reserves its space, where the file system can.
  virtual Status allocate(uint64_t bytes) = 0;
  virtual Status truncate(uint64_t bytes) = 0;
  // Gives this range the bytes that `source`, a file of the same file system, has in it, without copying: the
  // two share them until either is written to, and neither depends on the other's name or life. As a write,
  // it is durable once this file is synced. False: that cannot be had here (this file system, two of them,
  // or a range that its blocks do not fit), and nothing was done. REQUIRES: both files have the range, and
  // this one is open for writing.
  virtual Result<bool> clone(File& source, uint64_t offset, uint64_t bytes) = 0;
  virtual Status sync_data() = 0;  // the bytes, and the length
  virtual Status sync() = 0;       // and the rest of the inode
  virtual Result<uint64_t> size() = 0;
  // True where I/O bypasses the page cache: offsets, lengths and addresses must be multiples of
  // kDirectAlignment.
  virtual bool direct() const = 0;
  // Ends the use of the file and tells what the destructor could not.
  virtual Status close() = 0;
};

constexpr uint64_t kDirectAlignment = 4096;

// Held until destroyed, and never longer than the process lives: a child that it forked does not keep it.
class FileLock {
 public:
  virtual ~FileLock() = default;
};

enum class FileOwner : uint8_t { kSelf, kRoot, kOther };  // kSelf: the user that this process runs as

struct FileStat {
  uint64_t bytes = 0;
  bool is_directory = false;
  int64_t modified_ms = 0;  // wall time
  FileOwner owner = FileOwner::kSelf;
  bool is_open = false;  // all users may write to it: replace what is in a folder, where it is not sticky
  bool is_link = false;
};

class FileSystem {
 public:
  virtual ~FileSystem() = default;

  // Regular files only: a pipe, a device or a folder of that name is refused, at once.
  // `direct` asks for I/O past the page cache; where it is refused the file is opened without (File::direct).
  virtual Result<std::unique_ptr<File>> open(const std::string& path, OpenMode mode, bool direct = false) = 0;
  // For reads that overlap, of any of its files.
  virtual std::unique_ptr<ReadQueue> read_queue(const ReadQueueOptions& options) = 0;
  virtual Status make_directory(const std::string& path) = 0;          // its parent exists, the name is free
  virtual Status make_private_directory(const std::string& path) = 0;  // the same, for this user alone
  virtual Status link(const std::string& source, const std::string& target) = 0;  // never overwrites
  virtual Status rename(const std::string& source, const std::string& target) = 0;
  virtual Status unlink(const std::string& path) = 0;
  virtual Status remove_directory(const std::string& path) = 0;                // an empty one
  virtual Result<std::vector<std::string>> list(const std::string& path) = 0;  // names, sorted
  virtual Result<std::optional<FileStat>> stat(const std::string& path) = 0;   // empty: nothing there
  // The same of a symbolic link itself, where it is one.
  virtual Result<std::optional<FileStat>> stat_link(const std::string& path) = 0;
  virtual Status sync_directory(const std::string& path) = 0;
  // Takes the lock of this file, which is created where missing, without waiting. The file must not be opened
  // in any other way by the same process.
  virtual Result<std::unique_ptr<FileLock>> lock(const std::string& path) = 0;
};

FileSystem& real_files();

// The whole file. Errors: as pread; kEnvironment where it is missing or longer than `bytes_max`.
Result<ByteBuffer> read_file(FileSystem& files, const std::string& path, uint64_t bytes_max);

// Publishes `bytes` as folder/name, whole or not at all, and durable when it returns: a temporary file, sync,
// link (which never overwrites), directory sync. Errors: kDropCheckpoint where the name is taken.
Status publish_file(FileSystem& files, const std::string& folder, const std::string& name, ByteSpan bytes);
// The same, but replaces what has the name.
Status replace_file(FileSystem& files, const std::string& folder, const std::string& name, ByteSpan bytes);

}  // namespace muster
