// Writes lines to standard output, standard error and files on a thread of its own, so that a reader who does
// not read stalls the workers' pipes, and never the agent's heartbeats.
#pragma once

#include <functional>
#include <memory>
#include <string>

#include "runtime/base/clock.h"
#include "runtime/base/result.h"

namespace muster::agent {

class Output {
 public:
  using Sink = int;  // a descriptor

  // `on_room` is called on the writing thread when the queue, having been full, is half empty.
  explicit Output(std::function<void()> on_room);
  ~Output();  // waits for the queue for at most 2 s

  Result<Sink> open_file(const std::string& path);  // appends; closed with the Output
  void write(Sink sink, std::string text);          // any thread; beyond twice the limit, text is dropped
  bool full() const;                                // the caller should stop reading its sources

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace muster::agent
