// Fibers for the SIMT shim: a stack with guard pages and a switch that the sanitizers are told of.
// A fiber is resumed only by the OS thread that started it.
#pragma once

#include <cstddef>
#include <memory>

namespace muster::simt {

class Fiber {
 public:
  Fiber();
  ~Fiber();
  Fiber(const Fiber&) = delete;
  Fiber& operator=(const Fiber&) = delete;

  // Lays `entry(argument)` on the stack; the next resume() begins it. Whatever the fiber was doing is dropped
  // without unwinding.
  void start(void (*entry)(void*), void* argument);

  void resume();   // from the scheduler: returns when the fiber suspends or its entry has returned
  void suspend();  // from the fiber: back to the scheduler
  bool finished() const;

  struct Implementation;

 private:
  std::unique_ptr<Implementation> implementation_;
};

}  // namespace muster::simt
