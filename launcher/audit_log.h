// The agent's reader of the event stream that writes the audit log (--audit), on a thread of its own: neither
// heartbeats nor the training wait for the disk. One agent writes one file; another is refused.
//
// A disk that is full, or fails, ends nothing, at the start neither: it is told, records wait in memory, and
// are written when the disk takes them again. What was beyond that room is lost, and the chain says how much,
// and where. A disk that does not answer holds the writing thread alone, and, once that hangs in the kernel,
// the end of the process: nothing can end it before the disk answers.
#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <string>

#include "runtime/audit/record.h"
#include "runtime/base/bytes.h"
#include "runtime/base/files.h"

namespace muster::launcher {

struct AuditOptions {
  std::string path;
  std::optional<ByteBuffer> secret;  // of the job, where it has one: the chain is sealed with it
  std::string job;
  std::string node;
  std::string incarnation;                      // of this agent
  std::function<void(std::string)> on_trouble;  // a sentence for people; on the writing thread
  Duration retry_every = kSecond;
  Duration sync_every = kSecond;      // of records that nobody acts on at once
  size_t waiting_max = 4096;          // records in memory
  Duration hang_after = 5 * kSecond;  // so long nothing was written: told by tell_of_hang()
};

class AuditLog {
 public:
  // A file that is there is checked from its beginning, and goes on where it ends; what a crash has torn is
  // cut off, and a record keeps it. `words` says what was found, with the newest hash. Where the disk
  // refuses, that is told, and the opening is tried again with the writing. REQUIRES: `files` outlives the
  // log's thread. Errors: kMisuse: its chain is broken, or another job's, or another agent writes it, or its
  // name can be no file's: nothing in it is changed; kRetry: no thread is left.
  static Result<std::unique_ptr<AuditLog>> open(FileSystem& files, AuditOptions options, std::string& words);
  ~AuditLog();  // as close(0)

  // Any event, on any thread; those that are not audited are left out.
  void note(const std::string& source, const Event& event);

  // To be called now and then: tells, once, that the disk has not answered for hang_after.
  void tell_of_hang();

  // The last record: what the agent ends with.
  void note_end(int exit_code, const std::string& why);

  // Writes what waits, for so long at most. "300 records, head 0f…": for the operator to keep. Errors: what
  // was not written, and why.
  Result<std::string> close(Duration wait);

 private:
  struct State;
  explicit AuditLog(std::shared_ptr<State> state);
  std::shared_ptr<State> state_;  // a thread that a dead disk holds may outlive the log
};

}  // namespace muster::launcher
