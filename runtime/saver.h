// Saving and restoring, as one rank sees it: stages its part in the background, writes it into the folder that the
// leader opened, votes, publishes when chosen; at the start of a run reads a version back.
//
// The runtime is what connects checkpoint/ (files, formats) with the control plane's vote; neither knows the other.
// INVARIANT: a failed save is reported and forgotten. It never ends the run, and is never reported as durable.
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <string>

#include "checkpoint/folder.h"
#include "runtime/base/events.h"
#include "runtime/control/messages.h"
#include "runtime/executor.h"
#include "runtime/state.h"

namespace muster {

struct SaveOptions {
  std::string folder;      // empty: no checkpoints
  int64_t every = 0;       // steps; 0: only on notice and at the end
  int32_t keep = 2;        // newest verified versions
};

class Saver {
 public:
  using Say = std::function<void(control::Message)>;
  using Emit = std::function<void(Event)>;

  Saver(State& state, SaveOptions options, checkpoint::JobConstants constants, Say say, Emit emit);
  ~Saver();

  bool enabled() const { return !options_.folder.empty(); }
  bool due(control::Version version) const;

  // ---- saving; any thread, returns at once

  // Copies this rank's part (`index` of `count`) of `version` in the background. The state must be at `version` now; it
  // cannot change until the copy is done, since the copy holds a read lease from here on.
  void stage(control::Version version, uint32_t index, uint32_t count);
  void open(const control::SaveOpen& save, control::MemberId self);
  void publish(const control::SavePublish& save);
  void closed(const control::SaveClosed& save);

  control::Version durable() const;
  bool settled(control::Version version) const;  // the newest save of `version` is durable or has failed

  // ---- restoring; on the program's thread, before the first step

  // Takes the folder (one owner; rank 0 calls it). Then: usable versions, newest first.
  Status own();
  Result<std::vector<checkpoint::Candidate>> candidates();
  // Reads and verifies this rank's share (`index` of `count`) of the version into `staged`, a copy of the whole state
  // whose other bytes are left alone. `ranges` tells which bytes of the copy those are.
  Status restore(const checkpoint::Candidate& candidate, uint32_t index, uint32_t count, MutableByteSpan staged);
  void restored(const checkpoint::Candidate& candidate);  // parent of the saves to come
  Status abandon_after(const checkpoint::Candidate& candidate);

 private:
  State& state_;
  const SaveOptions options_;
  const checkpoint::JobConstants constants_;
  const Say say_;
  const Emit emit_;
  mutable std::mutex mutex_;
  Executor worker_;
};

}  // namespace muster
