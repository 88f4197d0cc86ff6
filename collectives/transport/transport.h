// What the engine needs of a network: tagged, matched, asynchronous messages, and word of peers that died.
//
// A transport is driven from outside: nothing happens except inside its calls, all of which its owner makes
// under one lock. Memory of messages is the library's and shared: a transport keeps its reference for as long
// as anything could still read or write the bytes, also after cancel() or the death of a peer. That reference
// is the quarantine of PROTOCOL 13; user memory is never given to a transport.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "runtime/base/bytes.h"
#include "runtime/base/result.h"

namespace muster {

using TransferId = uint64_t;
using TransportPeer = uint32_t;

// A block of bytes at a fixed place. `size` of them are meant; capacity may be larger.
struct Message {
  explicit Message(size_t bytes)
      : data(new (std::align_val_t{64}) std::byte[bytes]), capacity(bytes), size(bytes) {}
  ~Message() { operator delete[](data, std::align_val_t{64}); }
  Message(const Message&) = delete;
  Message& operator=(const Message&) = delete;

  std::byte* const data;
  const size_t capacity;
  size_t size;
};
using MessagePtr = std::shared_ptr<Message>;

enum class TransferStatus : uint8_t { kDone, kTruncated, kCanceled, kFailed };

// Called from inside progress() only.
class TransportSink {
 public:
  virtual void transfer_ended(TransferId id, TransferStatus status, size_t bytes) = 0;
  virtual void peer_failed(TransportPeer peer, const std::string& reason) = 0;

 protected:
  ~TransportSink() = default;
};

class Transport {
 public:
  virtual ~Transport() = default;

  virtual std::string_view name() const = 0;
  virtual ByteBuffer address() const = 0;

  // Cheap and without waiting; a peer that cannot be reached is reported by peer_failed() later.
  virtual Result<TransportPeer> connect(ByteSpan address) = 0;
  virtual void disconnect(TransportPeer peer) = 0;

  // Messages from one sender with one tag arrive in order. A receive takes any sender's message of exactly
  // `tag`, up to message->size bytes. Ends are reported by the sink, of every transfer, unless it was
  // canceled.
  virtual TransferId send(TransportPeer peer, uint64_t tag, MessagePtr message) = 0;
  virtual TransferId receive(uint64_t tag, MessagePtr message) = 0;

  // The transfer will not be reported any more; it may still happen.
  virtual void cancel(TransferId id) = 0;

  // Drops messages that came without a receive, with (tag & mask) == (value & mask).
  virtual void discard(uint64_t value, uint64_t mask) = 0;

  // Returns how many things happened.
  virtual size_t progress(TransportSink& sink) = 0;

  // Becomes readable when progress() has something to do, after arm() said true. arm() says false where there
  // is something to do already.
  virtual int event_fd() const = 0;
  virtual bool arm() = 0;
};

}  // namespace muster
