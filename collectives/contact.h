// Internal: the blob by which a process is reached. It comes from the network: parse() trusts nothing.
#pragma once

#include <string>

#include "runtime/base/bytes.h"
#include "runtime/base/result.h"

namespace muster {

struct Contact {
  uint64_t nonce = 0;        // of the process incarnation; also the password of its local listener
  std::string local_socket;  // name in the abstract Unix name space, without the leading zero; may be empty
  std::string transport;     // name of the transport; empty: none
  ByteBuffer address;        // on that transport

  ByteBuffer encode() const;
  static Result<Contact> parse(ByteSpan bytes);
};

}  // namespace muster
