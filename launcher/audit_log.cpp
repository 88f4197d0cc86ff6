#include "launcher/audit_log.h"

#include <fcntl.h>
#include <sys/stat.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <condition_variable>
#include <cstring>
#include <deque>
#include <iterator>
#include <mutex>
#include <thread>

#include "launcher/audit_file.h"
#include "runtime/audit/chain.h"
#include "runtime/audit/policy.h"
#include "runtime/base/handle.h"
#include "runtime/base/threads.h"
#include "runtime/crypto/crypto.h"

namespace muster::launcher {
namespace {

using namespace audit;

constexpr size_t kTailBytesMax = 256 << 10;  // of lines that are not known to be durable
constexpr size_t kTornBytesKept = 256;       // of a torn line, in the record of it

std::string folder_of(const std::string& path) {
  const size_t slash = path.rfind('/');
  if (slash == std::string::npos) return ".";
  return slash == 0 ? "/" : path.substr(0, slash);
}

std::string lost_text(uint64_t lost) {
  return lost == 0 ? "nothing was lost" : std::to_string(lost) + " records were lost";
}

Error refused(const std::string& path, const std::string& why) {
  return {ErrorCode::kMisuse,
          harmless("the audit log " + path + " is not gone on with, and left as it is: " + why)};
}

// What no waiting mends: the name is wrong, or what it names. All else is the disk's or the system's: the
// space, the quota, the server, a table that is full.
bool is_misuse(int error_number) {
  constexpr int kOfTheName[] = {ENOENT, ENOTDIR,      EISDIR, EACCES, EPERM,  EROFS,
                                ELOOP,  ENAMETOOLONG, EINVAL, ENXIO,  ENOSYS, EOPNOTSUPP};
  return std::find(std::begin(kOfTheName), std::end(kOfTheName), error_number) != std::end(kOfTheName);
}

Error cannot(const std::string& what, const std::string& path, int error_number) {
  const bool misuse = is_misuse(error_number);
  return {misuse ? ErrorCode::kMisuse : ErrorCode::kEnvironment,
          "cannot " + what + " " + path + ": " + std::strerror(error_number) +
              (misuse ? "; give another --audit" : "")};
}

Result<UniqueFd> open_regular(const std::string& path) {
  UniqueFd file(::open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC | O_NONBLOCK | O_NOCTTY, 0666));
  struct stat status {};
  if (!file || ::fstat(file.get(), &status) != 0) return cannot("open", path, errno);
  if (!S_ISREG(status.st_mode)) return refused(path, "it is no regular file; give another --audit");
  return file;
}

// The file's own lock, whatever name leads to it: a link, or one it was given later. It belongs to this
// descriptor, so it is kept when others of the same file are closed.
Result<UniqueFd> claim(const std::string& path) {
  MUSTER_ASSIGN(UniqueFd file, open_regular(path));
  struct flock request {};
  request.l_type = F_WRLCK;
  request.l_whence = SEEK_SET;
  if (::fcntl(file.get(), F_OFD_SETLK, &request) == 0) return file;
  if (errno == EAGAIN || errno == EACCES)
    return refused(path, "another agent writes it; give each agent a file of its own");
  return cannot("lock", path, errno);
}

// By its name, too: where the file itself is replaced while an agent writes it.
Result<std::unique_ptr<FileLock>> claim_name(FileSystem& files, const std::string& path) {
  const std::string name = path + ".lock";
  auto owner = files.lock(name);
  if (owner.ok()) return owner;
  if (owner.error().code == ErrorCode::kRetry)
    return refused(path, "another agent writes it; give each agent a file of its own");
  MUSTER_TRY(open_regular(name));  // it knows whether the name is at fault
  return owner;
}

struct Found {
  std::unique_ptr<File> file;
  Report report;
  std::string cut;  // the beginning of what is cut off, in hexadecimal digits
  uint64_t cut_bytes = 0;
  bool has_hole = false;
};

// Records behind a page that was never written: so bytes that begin with NULs are known as an audit log's.
bool holds_a_record(std::string_view bytes) {
  for (size_t end = bytes.find('\n'); end != std::string_view::npos; end = bytes.find('\n')) {
    const auto parts = split_line(bytes.substr(0, end));
    if (parts && read_content(parts->content).ok()) return true;
    bytes.remove_prefix(end + 1);
  }
  return false;
}

// Nothing that an agent has not begun to write is ever cut off.
bool is_ours(std::string_view bytes) {
  constexpr std::string_view kBegin = "{\"seq\":0,";
  const bool all_nul = bytes.find_first_not_of('\0') == std::string_view::npos;
  return all_nul || kBegin.starts_with(bytes) || bytes.starts_with(kBegin) ||
         (bytes.front() == '\0' && holds_a_record(bytes));
}

// After a power failure a file may be as long as it was, with NULs where pages were not yet written, and with
// whole lines behind them. No record has a NUL in it.
bool begins_with_hole(std::string_view bytes) {
  return bytes.substr(0, bytes.find('\n')).find('\0') != std::string_view::npos;
}

// What a crash leaves behind the last line that holds: one torn line, or a hole, of at most what an agent
// writes between two syncs.
Status take_rest(Found& found, const std::string& path) {
  const auto& fault = found.report.fault;
  MUSTER_ASSIGN(const uint64_t bytes, found.file->size());
  found.cut_bytes = bytes - found.report.bytes;
  if (!fault) return ok();
  const std::string broken = words_of(*fault) + "; look with muster audit verify, and give another --audit";
  if (fault->kind != FaultKind::kTorn && fault->kind != FaultKind::kChanged) return refused(path, broken);
  ByteBuffer buffer(std::min<uint64_t>(found.cut_bytes, kTailBytesMax + kLineBytesMax));
  MUSTER_ASSIGN(const size_t got, found.file->pread(buffer, found.report.bytes));
  const std::string_view rest(reinterpret_cast<const char*>(buffer.data()), got);
  found.has_hole = begins_with_hole(rest);
  if (fault->kind == FaultKind::kChanged && !found.has_hole) return refused(path, broken);
  if (got < found.cut_bytes)
    return refused(path, "what does not hold, " + words_of(*fault) + ", is more than a crash can leave");
  if (found.report.records == 0 && !is_ours(rest))
    return refused(path, "it is no audit log; give another --audit");
  found.cut = to_hex(ByteSpan(buffer).first(std::min(got, kTornBytesKept)));
  return ok();
}

Result<Found> look(FileSystem& files, const AuditOptions& options) {
  Found found;
  MUSTER_ASSIGN(found.file, files.open(options.path, OpenMode::kReadWrite));
  MUSTER_ASSIGN(const uint64_t bytes, found.file->size());
  if (bytes == 0) return found;
  MUSTER_ASSIGN(found.report, verify_audit(*found.file, {options.secret, {}}));
  if (found.report.opening && found.report.opening->job != options.job)
    return refused(options.path, "it is of job '" + found.report.opening->job + "'; give another --audit");
  MUSTER_TRY(take_rest(found, options.path));
  return found;
}

}  // namespace

struct AuditLog::State {
  struct Waiting {
    Record record;
    bool synced = false;
    Instant since = now();
  };

  State(FileSystem& f, AuditOptions o) : files(f), options(std::move(o)) {}
  ~State() { forget_secret(); }

  // ---- the opening: on the thread that opens the log; or on the writing thread, where the disk did not
  // answer to that

  Status begin(std::string& words) {
    MUSTER_ASSIGN(UniqueFd claimed, claim(options.path));
    MUSTER_ASSIGN(auto name, claim_name(files, options.path));
    MUSTER_ASSIGN(Found found, look(files, options));
    const Report& report = found.report;
    if (report.end.sequence == 0) MUSTER_TRY(files.sync_directory(folder_of(options.path)));
    std::optional<Key> key;
    if (options.secret) {
      MUSTER_ASSIGN(key, audit_key(*options.secret, options.job));
    }
    if (found.cut_bytes > 0) MUSTER_TRY(found.file->truncate(report.bytes));
    claimed_file = std::move(claimed);
    owner = std::move(name);
    base = report.bytes;
    if (!report.whole) tail = "\n";  // the last record is whole but for its line feed
    put_opening(found, key.has_value(), words);
    file = std::move(found.file);
    chain.emplace(key, report.end);
    if (key) crypto::forget(*key);
    forget_secret();
    return ok();
  }

  // In front of what has come meanwhile.
  void put_opening(const Found& found, bool sealed, std::string& words) {
    const Report& report = found.report;
    const bool goes_on = report.end.sequence > 0;
    words = goes_on ? "goes on after " + std::to_string(report.end.sequence) + " records, head " +
                          to_hex(report.end.head)
                    : "begins";
    Record opened = new_record("audit", kOpened);
    opened.opening =
        Opening{kFormatVersion, sealed ? Seal::kHmacSha256 : Seal::kSha256, options.job, options.incarnation};
    opened.text = goes_on ? "goes on after another agent, or another launch" : "begins";
    if (goes_on && report.last_node != options.node) {
      opened.text += ", of node " + report.last_node;
      words += harmless("; node " + report.last_node +
                        " wrote it before: if that one is still part of the job, give each node a file of "
                        "its own");
    }
    std::deque<Waiting> first;
    first.push_back({std::move(opened), true});
    if (found.cut_bytes > 0) {
      Record mended = new_record("audit", kMended);
      mended.amount = static_cast<int64_t>(found.cut_bytes);
      const std::string what = found.has_hole
                                   ? "an end with bytes that were never written, as after a power failure,"
                                   : "a torn last line";
      mended.text = what + " was cut off; it began, in hexadecimal digits, with " + found.cut;
      words += "; " + std::to_string(found.cut_bytes) + " bytes were cut off: " + what;
      first.push_back({std::move(mended), true});
    }
    const std::lock_guard lock(mutex);
    durable = report.end;
    queue.insert(queue.begin(), std::make_move_iterator(first.begin()), std::make_move_iterator(first.end()));
    if (oldest == kNever) oldest = now();
  }

  void forget_secret() {
    if (options.secret) crypto::forget(*options.secret);
    options.secret.reset();
  }

  // ---- any thread

  Record new_record(const std::string& from, std::string_view event) const {
    Record record;
    record.time_ms = wall_time_ms();
    record.at = now();
    record.node = options.node;
    record.from = from;
    record.event = std::string(event);
    return record;
  }

  void put(Record record, bool synced) {
    {
      const std::lock_guard lock(mutex);
      if (closing) return;
      if (oldest == kNever) oldest = now();
      // The place where some are missing is told where they would stand.
      if (queue.size() >= options.waiting_max) {
        ++lost;
        if (!queue.back().record.event.starts_with(kGap)) queue.push_back({gap_record(), true});
        queue.back().record.amount += 1;
        return;
      }
      queue.push_back({std::move(record), synced});
    }
    wake.notify_one();
  }

  // Once for each time. The writing thread cannot: the disk holds it.
  void tell_of_hang() {
    {
      const std::lock_guard lock(mutex);
      if (hang_told || failing || oldest == kNever || now() - oldest < options.hang_after) return;
      hang_told = true;
    }
    trouble("the audit log " + options.path + " has not been written for " +
            std::to_string(options.hang_after / kSecond) +
            " s: the disk does not answer; training goes on, up to " + std::to_string(options.waiting_max) +
            " records wait in memory");
  }

  Record gap_record() const {
    Record record = new_record("audit", kGap);
    record.text = "more came than there is room for while the disk did not write";
    return record;
  }

  // ---- the writing thread

  void run() {
    std::unique_lock lock(mutex);
    for (;;) {
      wait_for_work(lock);
      const bool last = closing;
      lock.unlock();
      write_all(last);
      lock.lock();
      if (last) break;
    }
    done = true;
    finished.notify_all();
  }

  void wait_for_work(std::unique_lock<std::mutex>& lock) {
    const auto until = [&](Instant at) {
      wake.wait_for(lock, std::chrono::nanoseconds(std::max<Duration>(0, at - now())),
                    [&] { return closing || (!queue.empty() && failing_since == kNever); });
    };
    if (failing_since != kNever) {
      until(now() + options.retry_every);
    } else if (!tail.empty()) {
      until(unsynced_since + options.sync_every);
    } else {
      wake.wait(lock, [&] { return closing || !queue.empty(); });
    }
  }

  // The queue goes through the tail, which is bounded, in several goes where it is long.
  void write_all(bool last) {
    if (!chain) {
      std::string words;
      const Status begun = begin(words);
      if (!begun.ok()) return failed(begun.error());
      trouble("the audit log " + options.path + " " + words);
    }
    for (;;) {
      bool synced = last;
      const auto encoded = encode(synced);
      if (!encoded.ok()) return failed(encoded.error());
      const bool more = *encoded;
      const bool was_failing = failing_since != kNever;
      Status wrote = write_tail();
      if (wrote.ok() && (synced || was_failing || more || now() - unsynced_since >= options.sync_every))
        wrote = sync_tail();
      if (!wrote.ok()) return failed(wrote.error());
      if (was_failing) recovered();
      if (!more && !was_failing) break;
    }
    if (const uint64_t missing = told_lost(); missing > 0)
      trouble("the audit log " + options.path + " is written too slowly; " + lost_text(missing));
  }

  // From records to lines. True where some still wait. A record for which there is no hash now is tried again
  // as if the disk had refused it.
  Result<bool> encode(bool& synced) {
    const std::lock_guard lock(mutex);
    while (!queue.empty() && tail.size() < kTailBytesMax) {
      MUSTER_ASSIGN(const std::string line, chain->append(queue.front().record));
      if (tail.empty()) unsynced_since = now();
      tail += line;
      synced = synced || queue.front().synced;
      queue.pop_front();
    }
    return !queue.empty();
  }

  // The same bytes at the same place, however often: what a failed write has left of them is no harm.
  Status write_tail() {
    if (written == tail.size()) return ok();
    MUSTER_TRY(file->pwrite(as_bytes(tail).subspan(written), base + written));
    written = tail.size();
    return ok();
  }

  // What was written before a sync that failed may be lost: it is written again, from memory, and only then
  // synced again. So the answer of that sync is about bytes that the kernel has anew; files.h forbids the
  // other: to sync again in the hope that the kernel still has what it failed to write.
  Status sync_tail() {
    if (tail.empty()) return ok();
    Status synced = file->sync_data();
    if (!synced.ok()) {
      written = 0;
      return synced;
    }
    base += tail.size();
    tail.clear();
    written = 0;
    bool hung = false;
    {
      const std::lock_guard lock(mutex);
      durable = chain->position();
      oldest = queue.empty() ? kNever : queue.front().since;
      hung = std::exchange(hang_told, false);
    }
    if (hung) trouble("the audit log " + options.path + " is written again: the disk answers");
    return ok();
  }

  // Told when it begins, and when it becomes one that only a person can mend.
  void failed(const Error& error) {
    const bool misuse = error.code == ErrorCode::kMisuse;
    failure = error.message;
    if (failing_since != kNever && misuse == failure_is_misuse) return;
    if (failing_since == kNever) failing_since = now();
    failure_is_misuse = misuse;
    {
      const std::lock_guard lock(mutex);
      failing = true;
    }
    trouble("the audit log cannot be written: " + error.message + "; training goes on, up to " +
            std::to_string(options.waiting_max) + " records wait in memory, and it is tried again");
  }

  void recovered() {
    const uint64_t missing = told_lost();
    Record record = new_record("audit", kGap);
    record.text = "for " + std::to_string((now() - failing_since) / kMillisecond) +
                  " ms the file could not be written: " + failure + "; " + lost_text(missing);
    failing_since = kNever;
    trouble("the audit log " + options.path + " is written again; " + lost_text(missing));
    const std::lock_guard lock(mutex);
    failing = false;
    queue.push_back({std::move(record), true});
    if (oldest == kNever) oldest = now();
  }

  uint64_t told_lost() {
    const std::lock_guard lock(mutex);
    return std::exchange(lost, 0);
  }

  void trouble(const std::string& words) {
    const std::lock_guard lock(trouble_mutex);
    if (options.on_trouble) options.on_trouble(words);
  }

  FileSystem& files;
  AuditOptions options;
  std::mutex trouble_mutex;  // of options.on_trouble; taken last
  UniqueFd claimed_file;
  std::unique_ptr<FileLock> owner;
  std::unique_ptr<File> file;

  std::mutex mutex;  // of what follows, up to `durable`
  std::condition_variable wake;
  std::condition_variable finished;
  std::deque<Waiting> queue;
  uint64_t lost = 0;        // since the disk failed
  Instant oldest = kNever;  // since when something is not durable
  bool failing = false;     // and that was told
  bool hang_told = false;
  bool closing = false;
  bool done = false;
  Position durable;

  // The writing thread's own. `tail`: lines whose first byte belongs at `base`, not known to be durable.
  std::optional<Chain> chain;  // empty: the file could not be opened yet
  uint64_t base = 0;
  std::string tail;
  size_t written = 0;  // bytes of it that the file has taken
  Instant unsynced_since = 0;
  Instant failing_since = kNever;
  std::string failure;
  bool failure_is_misuse = false;

  std::thread thread;
};

AuditLog::AuditLog(std::shared_ptr<State> state) : state_(std::move(state)) {}

Result<std::unique_ptr<AuditLog>> AuditLog::open(FileSystem& files, AuditOptions options,
                                                 std::string& words) {
  options.job = canonical_name(options.job);
  options.node = canonical_name(options.node);
  auto state = std::make_shared<State>(files, std::move(options));
  const Status begun = state->begin(words);
  if (!begun.ok() && begun.error().code == ErrorCode::kMisuse) return begun.error();
  if (!begun.ok()) {
    words = "cannot be opened yet";
    state->failed(begun.error());
  }
  auto thread = try_start_thread("muster-audit", [state] { state->run(); });
  if (!thread) return Error{ErrorCode::kRetry, "no thread is left to write the audit log"};
  state->thread = *std::move(thread);
  return std::unique_ptr<AuditLog>(new AuditLog(std::move(state)));
}

AuditLog::~AuditLog() { (void)close(0); }

void AuditLog::note(const std::string& source, const Event& event) {
  if (!is_audited(event.kind, source.starts_with("worker"))) return;
  Record record = state_->new_record(source, to_string(event.kind));
  record.at = event.at;
  record.generation = event.generation;
  record.version = event.version;
  record.subject = event.subject;
  record.amount = event.amount;
  record.text = event.text;
  record.tier = event.tier;
  state_->put(std::move(record), policy_of(event.kind).care == Care::kSynced);
}

void AuditLog::tell_of_hang() { state_->tell_of_hang(); }

void AuditLog::note_end(int exit_code, const std::string& why) {
  Record record = state_->new_record("agent", kAgentEnded);
  record.amount = exit_code;
  record.text = why;
  state_->put(std::move(record), true);
}

Result<std::string> AuditLog::close(Duration wait) {
  State& state = *state_;
  std::unique_lock lock(state.mutex);
  state.closing = true;
  state.wake.notify_all();
  state.finished.wait_for(lock, std::chrono::nanoseconds(wait), [&] { return state.done; });
  const bool done = state.done;
  const Position durable = state.durable;
  lock.unlock();
  if (!done) {  // whom it would tell may be gone when the disk answers
    const std::lock_guard silenced(state.trouble_mutex);
    state.options.on_trouble = {};
  }
  if (state.thread.joinable()) {
    if (done)
      state.thread.join();
    else
      state.thread.detach();
  }
  const std::string kept = std::to_string(durable.sequence) + " records, head " + to_hex(durable.head);
  if (!done)
    return Error{ErrorCode::kEnvironment,
                 "the audit log " + state.options.path +
                     " is not written to its end: the disk does not answer; it has " + kept};
  if (state.failing_since != kNever)
    return Error{ErrorCode::kEnvironment, "the audit log " + state.options.path +
                                              " is not written to its end: " + state.failure + "; it has " +
                                              kept};
  return kept;
}

}  // namespace muster::launcher
