// The workers of a node as processes: spawned in a process group each, watched by pidfd, their output
// prefixed and logged, killed and reaped with everything they started.
//
// INVARIANTS
//  - on_exited comes after the worker and all of its process group are reaped (rule 13), and its output read.
//  - A worker gets the descriptors 0 (/dev/null), 1, 2 (pipes), 3 (its control socket), and no other.
#pragma once

#include <map>
#include <string>
#include <vector>

#include "runtime/agent/binding.h"
#include "runtime/agent/node_agent.h"
#include "runtime/agent/output.h"

namespace muster::agent {

// Where the worker of a slot computes, and each that replaces it.
struct WorkerPlace {
  Binding binding;
  std::vector<std::string> variables;           // "NAME=…", for this worker
  std::vector<std::string> variables_of_bound;  // more of them, where the kernel has let it have its cpus
};

struct ProcessOptions {
  std::vector<std::string> command;  // [0]: a path, already looked up
  std::string node_name;
  control::NodeId node = 0;
  uint32_t workers = 1;  // local world size, told to the worker
  std::string job;
  std::vector<std::string> variables;  // "MUSTER_…=…" for the workers, beside the agent's own environment
  std::vector<WorkerPlace> places;     // by slot; empty: workers start as this thread is
  std::string log_dir;                 // empty: no log files
  // Orphans of the workers become children of this process (PR_SET_CHILD_SUBREAPER is set): find and reap
  // them.
  bool is_subreaper = false;
};

class WorkerProcesses final : public Workers {
 public:
  WorkerProcesses(Loop& loop, ProcessOptions options, Output& output, EventSink on_event);
  ~WorkerProcesses() override;  // kills what is left

  void start(Handlers handlers) override;
  void spawn(uint32_t slot) override;
  void signal(uint32_t slot, int signal_number) override;
  void send(uint32_t slot, const control::Envelope& envelope) override;
  bool any_alive() const override;

  void output_has_room();  // on the loop's thread, after Output said so

 private:
  struct State;
  std::shared_ptr<State> state_;
};

// Where a name without a slash is looked for in PATH. Errors: kMisuse: nothing there, a folder, not
// executable.
Result<std::string> find_program(const std::string& name);

}  // namespace muster::agent
