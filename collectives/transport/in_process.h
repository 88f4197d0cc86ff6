// A transport between threads of one process, for tests and simulations. It can kill and freeze a peer.
#pragma once

#include <memory>

#include "collectives/transport/transport.h"

namespace muster {

class InProcessNetwork : public std::enable_shared_from_this<InProcessNetwork> {
 public:
  static std::shared_ptr<InProcessNetwork> create();
  ~InProcessNetwork();

  std::unique_ptr<Transport> make_transport();

  // From any thread. The n-th transport made (from 0) dies: what it sends is lost, who knows it hears of its
  // death.
  void kill(uint32_t transport);
  // Nothing leaves or reaches it, and nobody is told, until thaw().
  void freeze(uint32_t transport);
  void thaw(uint32_t transport);

  struct State;

 private:
  InProcessNetwork();
  std::unique_ptr<State> state_;
};

}  // namespace muster
