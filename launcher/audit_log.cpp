#include "launcher/audit_log.h"

#include <chrono>
#include <condition_variable>
#include <deque>
#include <mutex>
#include <thread>

#include "launcher/audit_file.h"
#include "runtime/audit/chain.h"
#include "runtime/audit/policy.h"
#include "runtime/base/threads.h"

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

}  // namespace

struct AuditLog::State {
  struct Waiting {
    Record record;
    bool synced = false;
  };

  State(AuditOptions o, std::optional<Key> key, Position position)
      : options(std::move(o)), chain(key, position) {}

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
    for (;;) {
      bool synced = last;
      const bool more = encode(synced);
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

  // From records to lines. True where some still wait.
  bool encode(bool& synced) {
    const std::lock_guard lock(mutex);
    while (!queue.empty() && tail.size() < kTailBytesMax) {
      auto line = chain.append(queue.front().record);
      if (!line.ok()) {
        ++lost;
        trouble(line.error().message);
      } else {
        if (tail.empty()) unsynced_since = now();
        tail += *line;
      }
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

  // What was written before a sync that failed may be lost: it is written again.
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
    const std::lock_guard lock(mutex);
    durable = chain.position();
    return ok();
  }

  void failed(const Error& error) {
    if (failing_since != kNever) return;
    failing_since = now();
    failure = error.message;
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
    queue.push_back({std::move(record), true});
  }

  uint64_t told_lost() {
    const std::lock_guard lock(mutex);
    return std::exchange(lost, 0);
  }

  void trouble(const std::string& words) {
    const std::lock_guard lock(trouble_mutex);
    if (options.on_trouble) options.on_trouble(words);
  }

  AuditOptions options;
  std::mutex trouble_mutex;  // of options.on_trouble; taken last
  std::unique_ptr<FileLock> owner;
  std::unique_ptr<File> file;

  std::mutex mutex;  // of what follows, up to `durable`
  std::condition_variable wake;
  std::condition_variable finished;
  std::deque<Waiting> queue;
  uint64_t lost = 0;  // since the disk failed
  bool closing = false;
  bool done = false;
  Position durable;

  // The writing thread's own. `tail`: lines whose first byte belongs at `base`, not known to be durable.
  Chain chain;
  uint64_t base = 0;
  std::string tail;
  size_t written = 0;  // bytes of it that the file has taken
  Instant unsynced_since = 0;
  Instant failing_since = kNever;
  std::string failure;

  std::thread thread;
};

namespace {

struct Found {
  std::unique_ptr<File> file;
  Report report;
  std::string torn;  // the torn last line's beginning
  uint64_t torn_bytes = 0;
};

Error refused(const std::string& path, const std::string& why) {
  return {ErrorCode::kMisuse, "the audit log " + path + " is not gone on with, and left as it is: " + why};
}

// Nothing that an agent has not begun to write is ever cut off.
Status check_torn(const Found& found, const std::string& path) {
  if (found.torn_bytes > kTailBytesMax + kLineBytesMax)
    return refused(path, "its last line is longer than any that an agent writes");
  if (found.report.records > 0 || found.torn_bytes == 0) return ok();
  constexpr std::string_view kBegin = "{\"seq\":0,";
  ByteBuffer begin(std::min<uint64_t>(kBegin.size(), found.torn_bytes));
  MUSTER_ASSIGN(const size_t got, found.file->pread(begin, 0));
  const std::string_view text(reinterpret_cast<const char*>(begin.data()), got);
  if (got > 0 && kBegin.starts_with(text)) return ok();
  return refused(path, "it is no audit log; give another --audit");
}

// A crash tears the last line at most, because lines are written one behind the other.
Result<Found> look(FileSystem& files, const AuditOptions& options) {
  Found found;
  MUSTER_ASSIGN(found.file, files.open(options.path, OpenMode::kReadWrite));
  MUSTER_ASSIGN(const uint64_t bytes, found.file->size());
  if (bytes == 0) return found;
  MUSTER_ASSIGN(found.report, verify_audit(*found.file, {options.secret, {}}));
  const auto& fault = found.report.fault;
  if (fault && fault->kind != FaultKind::kTorn)
    return refused(options.path,
                   words_of(*fault) + "; look with muster audit verify, and give another --audit");
  if (found.report.opening && found.report.opening->job != options.job)
    return refused(options.path, "it is of job '" + found.report.opening->job + "'; give another --audit");
  found.torn_bytes = bytes - found.report.bytes;
  MUSTER_TRY(check_torn(found, options.path));
  ByteBuffer torn(std::min<uint64_t>(found.torn_bytes, kTornBytesKept));
  MUSTER_ASSIGN(const size_t got, found.file->pread(torn, found.report.bytes));
  torn.resize(got);
  found.torn = to_hex(torn);
  return found;
}

}  // namespace

AuditLog::AuditLog(std::shared_ptr<State> state) : state_(std::move(state)) {}

Result<std::unique_ptr<AuditLog>> AuditLog::open(FileSystem& files, AuditOptions options,
                                                 std::string& words) {
  auto owner = files.lock(options.path + ".lock");
  if (!owner.ok() && owner.error().code == ErrorCode::kRetry)
    return refused(options.path, "another agent writes it; give each agent a file of its own");
  if (!owner.ok()) return owner.error();
  MUSTER_ASSIGN(Found found, look(files, options));
  const Report& report = found.report;
  if (report.end.sequence == 0 && found.torn_bytes == 0)
    MUSTER_TRY(files.sync_directory(folder_of(options.path)));
  std::optional<Key> key;
  if (options.secret) {
    MUSTER_ASSIGN(key, audit_key(*options.secret, options.job));
  }
  auto state = std::make_shared<State>(std::move(options), key, report.end);
  state->owner = std::move(owner).value();
  state->file = std::move(found.file);
  state->base = report.bytes;
  state->durable = report.end;
  if (found.torn_bytes > 0) MUSTER_TRY(state->file->truncate(report.bytes));
  if (!report.whole) state->tail = "\n";  // the last record is whole but for its line feed

  const bool goes_on = report.end.sequence > 0;
  words = goes_on ? "goes on after " + std::to_string(report.end.sequence) + " records, head " +
                        to_hex(report.end.head)
                  : "begins";
  Record opened = state->new_record("audit", kOpened);
  opened.opening = Opening{kFormatVersion, key ? Seal::kHmacSha256 : Seal::kSha256, state->options.job,
                           state->options.incarnation};
  opened.text = goes_on ? "goes on after another agent, or another launch" : "begins";
  state->put(std::move(opened), true);
  if (found.torn_bytes > 0) {
    Record mended = state->new_record("audit", kMended);
    mended.amount = static_cast<int64_t>(found.torn_bytes);
    mended.text = "a torn last line was cut off; it began, in hexadecimal digits, with " + found.torn;
    words += "; " + std::to_string(found.torn_bytes) + " bytes of a torn last line were cut off";
    state->put(std::move(mended), true);
  }
  auto thread = try_start_thread("muster-audit", [state] { state->run(); });
  if (!thread) return Error{ErrorCode::kEnvironment, "no thread is left to write the audit log"};
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
