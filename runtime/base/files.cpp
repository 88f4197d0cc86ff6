#include "runtime/base/files.h"

#include <dirent.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <mutex>
#include <set>

#include "runtime/base/handle.h"
#include "runtime/base/random.h"

namespace muster {
namespace {

Error failure(const char* operation, const std::string& path, int code) {
  return file_error(operation, path, code);
}

Status outcome(int rc, const char* operation, const std::string& path) {
  if (rc != 0) return failure(operation, path, errno);
  return ok();
}

// A pipe or a device where a file should be must not make the opening wait for its other end; a file that
// another process holds a lease on is waited for. Of a regular file O_NONBLOCK has to be taken away again:
// io_uring makes its transfers one by one otherwise.
int open_now(const std::string& path, int flags) {
  const int fd = ::open(path.c_str(), flags | O_NONBLOCK | O_NOCTTY, 0666);
  return fd < 0 && errno == EWOULDBLOCK ? ::open(path.c_str(), flags, 0666) : fd;
}

const char* kind_of(mode_t mode) {
  if (S_ISDIR(mode)) return "a folder";
  if (S_ISFIFO(mode)) return "a named pipe";
  if (S_ISSOCK(mode)) return "a socket";
  return "a device";
}

Status check_regular(int fd, const std::string& path) {
  struct stat status {};
  MUSTER_TRY(outcome(::fstat(fd, &status), "examine", path));
  if (S_ISREG(status.st_mode)) return ok();
  return Error{ErrorCode::kEnvironment, path + " is " + kind_of(status.st_mode) +
                                            " and not a file; remove it, or choose another name"};
}

class RealFile final : public File {
 public:
  RealFile(UniqueFd fd, std::string path, bool direct)
      : fd_(std::move(fd)), path_(std::move(path)), direct_(direct) {}

  Result<size_t> pread(MutableByteSpan bytes, uint64_t offset) override {
    return read_all(fd_.get(), path_, bytes, offset);
  }

  Status pwrite(ByteSpan bytes, uint64_t offset) override {
    return write_all(fd_.get(), path_, bytes, offset);
  }

  std::unique_ptr<WriteQueue> write_queue(const WriteQueueOptions& options) override {
    return open_write_queue(fd_.get(), path_, options);
  }

  Status allocate(uint64_t bytes) override {
    int rc = -1;
    do {
      rc = ::fallocate(fd_.get(), 0, 0, static_cast<off_t>(bytes));
    } while (rc != 0 && errno == EINTR);
    if (rc == 0) return ok();
    if (errno != EOPNOTSUPP && errno != ENOSYS) return failure("reserve space for", path_, errno);
    MUSTER_ASSIGN(const uint64_t length, size());
    return length < bytes ? truncate(bytes) : ok();
  }

  Status truncate(uint64_t bytes) override {
    return outcome(::ftruncate(fd_.get(), static_cast<off_t>(bytes)), "set the length of", path_);
  }
  Result<bool> clone(File& source, uint64_t offset, uint64_t bytes) override {
    const file_clone_range range{static_cast<RealFile&>(source).fd_.get(), offset, bytes, offset};
    int rc = -1;
    do {
      rc = ::ioctl(fd_.get(), FICLONERANGE, &range);
    } while (rc != 0 && errno == EINTR);
    if (rc == 0) return true;
    // As ioctl_ficlonerange(2) has them; ENOTTY is that of file systems that know no such call.
    for (const int not_here : {EOPNOTSUPP, ENOTTY, ENOSYS, EXDEV, EINVAL, ETXTBSY}) {
      if (errno == not_here) return false;
    }
    return failure("share bytes of an earlier file with", path_, errno);
  }
  Status sync_data() override { return outcome(::fdatasync(fd_.get()), "sync", path_); }
  Status sync() override { return outcome(::fsync(fd_.get()), "sync", path_); }

  Result<uint64_t> size() override {
    struct stat status {};
    MUSTER_TRY(outcome(::fstat(fd_.get(), &status), "examine", path_));
    return static_cast<uint64_t>(status.st_size);
  }

  bool direct() const override { return direct_; }

  FileTransfer read_of(MutableByteSpan target, uint64_t offset, uint64_t tag) const {
    return {fd_.get(), &path_, false, target.data(), target.size(), offset, tag};
  }

  // Linux frees the descriptor whatever close says, so it is never closed twice.
  Status close() override { return outcome(::close(fd_.release()), "close", path_); }

 private:
  UniqueFd fd_;
  std::string path_;
  bool direct_;
};

class RealReadQueue final : public ReadQueue {
 public:
  explicit RealReadQueue(const ReadQueueOptions& options)
      : transfers_(open_transfer_queue({options.depth, options.registered, options.method})) {}
  Status submit(File& file, MutableByteSpan target, uint64_t offset, uint64_t tag) override {
    return transfers_->submit(static_cast<RealFile&>(file).read_of(target, offset, tag));
  }
  Result<Moved> wait() override { return transfers_->wait(); }
  IoMethod method() const override { return transfers_->method(); }

 private:
  std::unique_ptr<TransferQueue> transfers_;
};

// A POSIX record lock: it belongs to the process, so it ends with it even while a forked child lives on (an
// open file description's lock would not). Its price: it does not exclude within the process, and closing any
// other descriptor of the file drops it. The set of locked inodes answers the first; the second is the
// interface's rule that nobody else opens the file.
struct LockedFiles {
  std::mutex mutex;
  std::set<std::pair<dev_t, ino_t>> held;
};
LockedFiles& locked_files() {
  static auto* const files =
      new LockedFiles;  // outlives every lock, whatever the order of destruction at exit
  return *files;
}

class RealLock final : public FileLock {
 public:
  RealLock(UniqueFd fd, std::pair<dev_t, ino_t> inode) : fd_(std::move(fd)), inode_(inode) {}
  ~RealLock() override {
    const std::lock_guard guard(locked_files().mutex);
    locked_files().held.erase(inode_);
    fd_.reset();
  }

 private:
  UniqueFd fd_;
  std::pair<dev_t, ino_t> inode_;
};

Error held(const std::string& path) { return {ErrorCode::kRetry, path + " is locked by a living process"}; }

// Only names the inode: opening the lock's file while this process holds it would drop the lock at close.
std::optional<std::pair<dev_t, ino_t>> inode_of(const std::string& path) {
  struct stat status {};
  if (::stat(path.c_str(), &status) != 0) return std::nullopt;
  return std::pair{status.st_dev, status.st_ino};
}

FileStat stat_of(const struct stat& status) {
  FileStat found;
  found.bytes = static_cast<uint64_t>(status.st_size);
  found.is_directory = S_ISDIR(status.st_mode);
  found.modified_ms = status.st_mtim.tv_sec * 1000 + status.st_mtim.tv_nsec / 1'000'000;
  found.owner = status.st_uid == ::geteuid() ? FileOwner::kSelf
                : status.st_uid == 0         ? FileOwner::kRoot
                                             : FileOwner::kOther;
  found.is_open = (status.st_mode & S_IWOTH) != 0 && (status.st_mode & S_ISVTX) == 0;
  found.is_link = S_ISLNK(status.st_mode);
  return found;
}

Result<std::optional<FileStat>> nothing_there(const std::string& path, int code) {
  if (code == ENOENT || code == ENOTDIR) return std::optional<FileStat>();
  return failure("examine", path, code);
}

class RealFiles final : public FileSystem {
 public:
  Result<std::unique_ptr<File>> open(const std::string& path, OpenMode mode, bool direct) override {
    int flags = O_CLOEXEC | (mode == OpenMode::kRead ? O_RDONLY : O_RDWR);
    if (mode == OpenMode::kCreate) flags |= O_CREAT | O_EXCL;
    if (mode == OpenMode::kReadWrite) flags |= O_CREAT;
    UniqueFd owned(open_now(path, flags));
    if (!owned) return failure(mode == OpenMode::kCreate ? "create" : "open", path, errno);
    MUSTER_TRY(check_regular(owned.get(), path));
    // Asked for after the opening, so that a refusal leaves no half-created file behind.
    const int usual = ::fcntl(owned.get(), F_GETFL) & ~O_NONBLOCK;
    const bool granted = direct && ::fcntl(owned.get(), F_SETFL, usual | O_DIRECT) == 0;
    if (!granted) MUSTER_TRY(outcome(::fcntl(owned.get(), F_SETFL, usual), "prepare", path));
    return std::unique_ptr<File>(std::make_unique<RealFile>(std::move(owned), path, granted));
  }

  std::unique_ptr<ReadQueue> read_queue(const ReadQueueOptions& options) override {
    return std::make_unique<RealReadQueue>(options);
  }

  Status make_directory(const std::string& path) override {
    return outcome(::mkdir(path.c_str(), 0777), "create the folder", path);
  }
  Status make_private_directory(const std::string& path) override {
    return outcome(::mkdir(path.c_str(), 0700), "create the folder", path);
  }
  Status link(const std::string& source, const std::string& target) override {
    return outcome(::link(source.c_str(), target.c_str()), "publish", target);
  }
  Status rename(const std::string& source, const std::string& target) override {
    return outcome(::rename(source.c_str(), target.c_str()), "publish", target);
  }
  Status unlink(const std::string& path) override { return outcome(::unlink(path.c_str()), "remove", path); }
  Status remove_directory(const std::string& path) override {
    return outcome(::rmdir(path.c_str()), "remove", path);
  }

  Result<std::vector<std::string>> list(const std::string& path) override {
    const std::unique_ptr<DIR, int (*)(DIR*)> directory(::opendir(path.c_str()), &::closedir);
    if (directory == nullptr) return failure("list", path, errno);
    std::vector<std::string> names;
    for (;;) {
      errno = 0;
      const dirent* entry = ::readdir(directory.get());
      if (entry == nullptr) break;
      const std::string name = entry->d_name;
      if (name != "." && name != "..") names.push_back(name);
    }
    if (errno != 0) return failure("list", path, errno);
    std::sort(names.begin(), names.end());
    return names;
  }

  Result<std::optional<FileStat>> stat(const std::string& path) override {
    struct stat status {};
    if (::stat(path.c_str(), &status) != 0) return nothing_there(path, errno);
    return std::optional(stat_of(status));
  }
  Result<std::optional<FileStat>> stat_link(const std::string& path) override {
    struct stat status {};
    if (::lstat(path.c_str(), &status) != 0) return nothing_there(path, errno);
    return std::optional(stat_of(status));
  }

  Status sync_directory(const std::string& path) override {
    const UniqueFd fd(::open(path.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
    if (!fd) return failure("open", path, errno);
    return outcome(::fsync(fd.get()), "sync the folder", path);
  }

  Result<std::unique_ptr<FileLock>> lock(const std::string& path) override {
    const std::lock_guard guard(locked_files().mutex);
    if (const auto inode = inode_of(path); inode && locked_files().held.count(*inode) != 0) return held(path);
    // Through a link two folders would share one lock. And whatever is lacking, nobody holds it for that.
    UniqueFd fd(open_now(path, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW));
    if (!fd) return Error{ErrorCode::kEnvironment, failure("open", path, errno).message};
    MUSTER_TRY(check_regular(fd.get(), path));
    struct flock request {};
    request.l_type = F_WRLCK;
    request.l_whence = SEEK_SET;
    if (::fcntl(fd.get(), F_SETLK, &request) != 0) {
      if (errno == EAGAIN || errno == EACCES) return held(path);
      return failure("lock", path, errno);
    }
    struct stat status {};
    MUSTER_TRY(outcome(::fstat(fd.get(), &status), "examine", path));
    const std::pair inode{status.st_dev, status.st_ino};
    locked_files().held.insert(inode);
    return std::unique_ptr<FileLock>(std::make_unique<RealLock>(std::move(fd), inode));
  }
};

Status write_synced(FileSystem& files, const std::string& path, ByteSpan bytes) {
  MUSTER_ASSIGN(auto file, files.open(path, OpenMode::kCreate));
  MUSTER_TRY(file->pwrite(bytes, 0));
  MUSTER_TRY(file->sync());
  return file->close();
}

// What the failed attempt left is removed as far as possible; the first error is the one to report.
Status or_clean_up(Status status, FileSystem& files, const std::string& path) {
  if (!status.ok()) (void)files.unlink(path);
  return status;
}

std::string temporary_name(const std::string& name) {
  const uint64_t nonce = random_nonce();
  return name + ".tmp-" + to_hex(bytes_of(nonce));
}

}  // namespace

FileSystem& real_files() {
  static RealFiles files;
  return files;
}

Result<ByteBuffer> read_file(FileSystem& files, const std::string& path, uint64_t bytes_max) {
  MUSTER_ASSIGN(auto file, files.open(path, OpenMode::kRead));
  MUSTER_ASSIGN(const uint64_t length, file->size());
  if (length > bytes_max)
    return Error{ErrorCode::kEnvironment, path + " has " + human_bytes(length) + ", more than the " +
                                              human_bytes(bytes_max) + " that it may have"};
  ByteBuffer bytes(length);
  MUSTER_ASSIGN(const size_t got, file->pread(bytes, 0));
  bytes.resize(got);
  return bytes;
}

Status publish_file(FileSystem& files, const std::string& folder, const std::string& name, ByteSpan bytes) {
  const std::string temporary = folder + "/" + temporary_name(name);
  MUSTER_TRY(or_clean_up(write_synced(files, temporary, bytes), files, temporary));
  MUSTER_TRY(or_clean_up(files.link(temporary, folder + "/" + name), files, temporary));
  MUSTER_TRY(files.unlink(temporary));
  return files.sync_directory(folder);
}

Status replace_file(FileSystem& files, const std::string& folder, const std::string& name, ByteSpan bytes) {
  const std::string temporary = folder + "/" + temporary_name(name);
  MUSTER_TRY(or_clean_up(write_synced(files, temporary, bytes), files, temporary));
  MUSTER_TRY(or_clean_up(files.rename(temporary, folder + "/" + name), files, temporary));
  return files.sync_directory(folder);
}

}  // namespace muster
