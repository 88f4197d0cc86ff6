#include "tests/checkpoint/memory_files.h"

#include <algorithm>

namespace muster::testing {
namespace {

std::string parent_of(const std::string& path) {
  const size_t slash = path.find_last_of('/');
  return slash == std::string::npos ? "." : path.substr(0, slash);
}

Error refused(const std::string& path, const char* why, ErrorCode code = ErrorCode::kEnvironment) {
  return {code, path + ": " + why};
}

void write_into(ByteBuffer& contents, const Op& op, size_t count) {
  if (contents.size() < op.offset + count) contents.resize(op.offset + count);
  std::copy_n(op.bytes.begin(), count, contents.begin() + static_cast<ptrdiff_t>(op.offset));
}

void change(ByteBuffer& contents, const Op& op) {
  if (op.kind == OpKind::kWrite || op.kind == OpKind::kClone) write_into(contents, op, op.bytes.size());
  if (op.kind == OpKind::kAllocate) contents.resize(std::max<size_t>(contents.size(), op.offset));
  if (op.kind == OpKind::kTruncate) contents.resize(op.offset);
}

}  // namespace

// Writes happen only when they are waited for, and in another order than they were begun: a save that syncs
// before it waited has lost them.
class MemoryQueue final : public WriteQueue {
 public:
  explicit MemoryQueue(File& file) : file_(file) {}
  Status submit(ByteSpan bytes, uint64_t offset, uint64_t tag) override {
    pending_.push_back({bytes, offset, tag});
    return ok();
  }
  Result<uint64_t> wait() override {
    const size_t next = pending_.size() / 2;
    const Pending write = pending_[next];
    pending_.erase(pending_.begin() + static_cast<ptrdiff_t>(next));
    MUSTER_TRY(file_.pwrite(write.bytes, write.offset));
    return write.tag;
  }
  IoMethod method() const override { return IoMethod::kInTurn; }

 private:
  struct Pending {
    ByteSpan bytes;
    uint64_t offset;
    uint64_t tag;
  };
  File& file_;
  std::vector<Pending> pending_;
};

// As MemoryQueue: the buffer holds nothing of the file before the read was waited for.
class MemoryReadQueue final : public ReadQueue {
 public:
  Status submit(File& file, MutableByteSpan target, uint64_t offset, uint64_t tag) override {
    std::fill(target.begin(), target.end(), std::byte{0xee});
    pending_.push_back({&file, target, offset, tag});
    return ok();
  }
  Result<Moved> wait() override {
    const size_t next = pending_.size() / 2;
    const Pending read = pending_[next];
    pending_.erase(pending_.begin() + static_cast<ptrdiff_t>(next));
    MUSTER_ASSIGN(const size_t got, read.file->pread(read.target, read.offset));
    return Moved{read.tag, got};
  }
  IoMethod method() const override { return IoMethod::kInTurn; }

 private:
  struct Pending {
    File* file;
    MutableByteSpan target;
    uint64_t offset;
    uint64_t tag;
  };
  std::vector<Pending> pending_;
};

class MemoryFile final : public File {
 public:
  MemoryFile(MemoryFiles& files, std::string path, uint64_t inode, bool direct)
      : files_(files), path_(std::move(path)), inode_(inode), direct_(direct) {}

  Result<size_t> pread(MutableByteSpan bytes, uint64_t offset) override {
    if (files_.refuse) {
      if (auto why = files_.refuse({OpKind::kRead, path_, "", inode_, offset, {}})) return *why;
    }
    if (direct_ && (bytes.size() % 4096 != 0 || offset % 4096 != 0 ||
                    reinterpret_cast<uintptr_t>(bytes.data()) % 4096 != 0))
      return refused(path_, "unaligned direct read");
    const std::lock_guard lock(files_.mutex_);
    const ByteBuffer& contents = files_.inodes_[inode_];
    if (offset >= contents.size()) return size_t{0};
    const size_t count = std::min<size_t>(bytes.size(), contents.size() - offset);
    std::copy_n(contents.begin() + static_cast<ptrdiff_t>(offset), count, bytes.begin());
    return count;
  }
  Status pwrite(ByteSpan bytes, uint64_t offset) override {
    if (direct_ && (bytes.size() % 4096 != 0 || offset % 4096 != 0 ||
                    reinterpret_cast<uintptr_t>(bytes.data()) % 4096 != 0))
      return refused(path_, "unaligned direct write");
    return files_.perform({OpKind::kWrite, path_, "", inode_, offset, {bytes.begin(), bytes.end()}});
  }
  std::unique_ptr<WriteQueue> write_queue(const WriteQueueOptions&) override {
    return std::make_unique<MemoryQueue>(*this);
  }
  Status allocate(uint64_t bytes) override {
    return files_.perform({OpKind::kAllocate, path_, "", inode_, bytes, {}});
  }
  Status truncate(uint64_t bytes) override {
    return files_.perform({OpKind::kTruncate, path_, "", inode_, bytes, {}});
  }
  // What the source has now, whatever becomes of it; it takes no space.
  Result<bool> clone(File& source, uint64_t offset, uint64_t bytes) override {
    const auto& other = static_cast<MemoryFile&>(source);
    Op op{OpKind::kClone, path_, other.path_, inode_, offset, {}, other.inode_};
    const ByteBuffer& theirs = files_.inodes_[other.inode_];
    if (!files_.can_clone || offset % kDirectAlignment != 0 || bytes % kDirectAlignment != 0 ||
        offset + bytes > theirs.size())
      return false;
    const auto first = theirs.begin() + static_cast<ptrdiff_t>(offset);
    op.bytes.assign(first, first + static_cast<ptrdiff_t>(bytes));
    MUSTER_TRY(files_.perform(std::move(op)));
    return true;
  }
  Status sync_data() override { return files_.perform({OpKind::kSync, path_, "", inode_, 0, {}}); }
  Status sync() override { return sync_data(); }
  Result<uint64_t> size() override { return uint64_t{files_.inodes_[inode_].size()}; }
  bool direct() const override { return direct_; }
  Status close() override { return files_.perform({OpKind::kClose, path_, "", inode_, 0, {}}); }

 private:
  MemoryFiles& files_;
  std::string path_;
  uint64_t inode_;
  bool direct_;
};

class MemoryLock final : public FileLock {
 public:
  MemoryLock(MemoryFiles& files, std::string path) : files_(files), path_(std::move(path)) {}
  ~MemoryLock() override { files_.locks_.erase(path_); }

 private:
  MemoryFiles& files_;
  std::string path_;
};

std::unique_ptr<ReadQueue> MemoryFiles::read_queue(const ReadQueueOptions&) {
  return std::make_unique<MemoryReadQueue>();
}

Status MemoryFiles::perform(Op op) {
  if (refuse) {
    if (auto why = refuse(op)) return *why;
  }
  uint64_t used = 0;
  for (const auto& [inode, contents] : inodes_) used += contents.size();
  const bool grows = op.kind == OpKind::kWrite || op.kind == OpKind::kAllocate || op.kind == OpKind::kCreate;
  if (grows && used + op.bytes.size() + (op.kind == OpKind::kAllocate ? op.offset : 0) > bytes_max)
    return refused(op.path, "No space left on device");
  apply(op);
  log_.push_back(std::move(op));
  return ok();
}

void MemoryFiles::apply(const Op& op) {
  switch (op.kind) {
    case OpKind::kCreate:
      files_[op.path] = op.inode;
      inodes_[op.inode];
      break;
    case OpKind::kMakeDirectory:
      directories_.insert(op.path);
      break;
    case OpKind::kLink:
      files_[op.target] = files_.at(op.path);
      break;
    case OpKind::kRename:
      files_[op.target] = files_.at(op.path);
      files_.erase(op.path);
      break;
    case OpKind::kUnlink:
      files_.erase(op.path);
      break;
    case OpKind::kRemoveDirectory:
      directories_.erase(op.path);
      break;
    default:
      change(inodes_[op.inode], op);
  }
}

ByteBuffer& MemoryFiles::contents(const std::string& path) { return inodes_.at(files_.at(path)); }

std::vector<std::string> MemoryFiles::all_files() const {
  std::vector<std::string> names;
  for (const auto& [path, inode] : files_) names.push_back(path);
  return names;
}

Result<std::unique_ptr<File>> MemoryFiles::open(const std::string& path, OpenMode mode, bool direct) {
  const auto found = files_.find(path);
  if (mode == OpenMode::kRead && found == files_.end()) return refused(path, "No such file or directory");
  if (mode == OpenMode::kCreate && found != files_.end())
    return refused(path, "File exists", ErrorCode::kDropCheckpoint);
  uint64_t inode = 0;
  if (found != files_.end()) {
    inode = found->second;
  } else {
    if (!has_directory(parent_of(path))) return refused(path, "No such file or directory");
    inode = next_inode_++;
    MUSTER_TRY(perform({OpKind::kCreate, path, "", inode, 0, {}}));
  }
  return std::unique_ptr<File>(std::make_unique<MemoryFile>(*this, path, inode, direct));
}

Status MemoryFiles::make_directory(const std::string& path) {
  if (has_directory(path)) return refused(path, "File exists", ErrorCode::kDropCheckpoint);
  if (!has_directory(parent_of(path))) return refused(path, "No such file or directory");
  return perform({OpKind::kMakeDirectory, path, "", 0, 0, {}});
}

Status MemoryFiles::link(const std::string& source, const std::string& target) {
  if (files_.count(source) == 0) return refused(source, "No such file or directory");
  if (files_.count(target) != 0) return refused(target, "File exists", ErrorCode::kDropCheckpoint);
  return perform({OpKind::kLink, source, target, files_.at(source), 0, {}});
}

Status MemoryFiles::rename(const std::string& source, const std::string& target) {
  if (files_.count(source) == 0) return refused(source, "No such file or directory");
  return perform({OpKind::kRename, source, target, files_.at(source), 0, {}});
}

Status MemoryFiles::unlink(const std::string& path) {
  if (files_.count(path) == 0) return refused(path, "No such file or directory");
  return perform({OpKind::kUnlink, path, "", 0, 0, {}});
}

Status MemoryFiles::remove_directory(const std::string& path) {
  MUSTER_ASSIGN(const auto names, list(path));
  if (!names.empty()) return refused(path, "Directory not empty");
  return perform({OpKind::kRemoveDirectory, path, "", 0, 0, {}});
}

Result<std::vector<std::string>> MemoryFiles::list(const std::string& path) {
  if (!has_directory(path)) return refused(path, "No such file or directory");
  std::vector<std::string> names;
  const auto add = [&](const std::string& entry) {
    if (parent_of(entry) == path) names.push_back(entry.substr(entry.find_last_of('/') + 1));
  };
  for (const auto& [file, inode] : files_) add(file);
  for (const std::string& directory : directories_) add(directory);
  std::sort(names.begin(), names.end());
  return names;
}

Result<std::optional<FileStat>> MemoryFiles::stat(const std::string& path) {
  if (has_directory(path)) return std::optional(FileStat{0, true, 0});
  const auto found = files_.find(path);
  if (found == files_.end()) return std::optional<FileStat>();
  return std::optional(FileStat{inodes_[found->second].size(), false, 0});
}

Status MemoryFiles::sync_directory(const std::string& path) {
  if (!has_directory(path)) return refused(path, "No such file or directory");
  return perform({OpKind::kSyncDirectory, path, "", 0, 0, {}});
}

Result<std::unique_ptr<FileLock>> MemoryFiles::lock(const std::string& path) {
  if (refuse) {
    if (auto why = refuse({OpKind::kLock, path, "", 0, 0, {}})) return *why;
  }
  if (locks_.count(path) != 0) return refused(path, "locked", ErrorCode::kRetry);
  if (files_.count(path) == 0) {
    MUSTER_ASSIGN(auto created, open(path, OpenMode::kCreate, false));
  }
  locks_.insert(path);
  return std::unique_ptr<FileLock>(std::make_unique<MemoryLock>(*this, path));
}

namespace {

// What is on the platters, and what only the page cache knows.
struct Platters {
  std::map<uint64_t, ByteBuffer> synced;
  std::map<uint64_t, std::vector<const Op*>> unsynced;           // of an inode
  std::map<std::string, std::vector<const Op*>> unsynced_names;  // of a directory
  std::map<std::string, uint64_t> files;
  std::set<std::string> directories;

  void take(const Op& op) {
    switch (op.kind) {
      case OpKind::kWrite:
      case OpKind::kAllocate:
      case OpKind::kTruncate:
      case OpKind::kClone:
        unsynced[op.inode].push_back(&op);
        break;
      case OpKind::kSync:
        for (const Op* change_op : unsynced[op.inode]) change(synced[op.inode], *change_op);
        unsynced[op.inode].clear();
        break;
      case OpKind::kSyncDirectory:
        for (const Op* name_op : unsynced_names[op.path]) name(*name_op);
        unsynced_names[op.path].clear();
        break;
      case OpKind::kLink:  // a new name, in a folder that may be another one
        unsynced_names[parent_of(op.target)].push_back(&op);
        break;
      case OpKind::kCreate:
      case OpKind::kMakeDirectory:
      case OpKind::kRename:
      case OpKind::kUnlink:
      case OpKind::kRemoveDirectory:
        unsynced_names[parent_of(op.path)].push_back(&op);
        break;
      default:
        break;
    }
  }

  void name(const Op& op) {
    if (op.kind == OpKind::kCreate) files[op.path] = op.inode;
    if (op.kind == OpKind::kLink || op.kind == OpKind::kRename) files[op.target] = op.inode;
    if (op.kind == OpKind::kRename || op.kind == OpKind::kUnlink) files.erase(op.path);
    if (op.kind == OpKind::kMakeDirectory) directories.insert(op.path);
    if (op.kind == OpKind::kRemoveDirectory) directories.erase(op.path);
  }

  void crash(CrashKind kind, SeededRandom& random) {
    const auto keeps = [&] {
      return kind == CrashKind::kKeepAll || (kind == CrashKind::kRandom && random.chance(0.5));
    };
    for (const auto& [inode, ops] : unsynced) {
      for (const Op* op : ops) {
        if (keeps())
          change(synced[inode], *op);
        else if (kind == CrashKind::kRandom && !op->bytes.empty() && random.chance(0.5))
          write_into(synced[inode], *op, random.below(op->bytes.size() + 1));
      }
    }
    for (const auto& [directory, ops] : unsynced_names) {
      for (const Op* op : ops) {
        if (keeps()) name(*op);
      }
    }
  }
};

}  // namespace

std::unique_ptr<MemoryFiles> MemoryFiles::after_crash(const std::vector<Op>& log, size_t count,
                                                      CrashKind kind, uint64_t seed) {
  Platters platters;
  for (size_t i = 0; i < count; ++i) platters.take(log[i]);
  SeededRandom random(seed);
  platters.crash(kind, random);

  auto disk = std::make_unique<MemoryFiles>();
  const auto exists = [&](const std::string& directory) {
    for (std::string at = directory; at != "."; at = parent_of(at)) {
      if (platters.directories.count(at) == 0) return false;
    }
    return true;
  };
  for (const std::string& directory : platters.directories) {
    if (exists(directory)) disk->directories_.insert(directory);
  }
  for (const auto& [path, inode] : platters.files) {
    if (!exists(parent_of(path))) continue;
    disk->files_[path] = inode;
    disk->inodes_[inode] = platters.synced[inode];
    disk->next_inode_ = std::max(disk->next_inode_, inode + 1);
  }
  return disk;
}

}  // namespace muster::testing
