// A port of the loopback that says nothing to who connects to it, as a host behind a cut network does: the
// kernel drops what comes to a listener whose queue is full.
#pragma once

#include <gtest/gtest.h>
#include <netinet/in.h>
#include <sys/socket.h>

#include "runtime/base/handle.h"

namespace muster {

class SilentPort {
 public:
  SilentPort() : listener_(make_socket()) {
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    socklen_t size = sizeof address;
    EXPECT_EQ(bind(listener_.get(), reinterpret_cast<const sockaddr*>(&address), size), 0);
    EXPECT_EQ(listen(listener_.get(), 0), 0);
    EXPECT_EQ(getsockname(listener_.get(), reinterpret_cast<sockaddr*>(&address), &size), 0);
    port_ = ntohs(address.sin_port);
    for (UniqueFd& one : in_queue_) {
      one = make_socket();
      (void)connect(one.get(), reinterpret_cast<const sockaddr*>(&address), size);
    }
  }
  uint16_t port() const { return port_; }
  void refuse() { listener_.reset(); }  // from now on

 private:
  static UniqueFd make_socket() {
    return UniqueFd(socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  }

  UniqueFd listener_;
  UniqueFd in_queue_[3];  // one more than it takes
  uint16_t port_ = 0;
};

}  // namespace muster
