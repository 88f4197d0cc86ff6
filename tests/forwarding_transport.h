// A transport that hands everything to another one: for tests that change one call of it.
#pragma once

#include <atomic>
#include <memory>
#include <utility>

#include "collectives/transport/transport.h"

namespace muster::testing_support {

class ForwardingTransport : public Transport {
 public:
  explicit ForwardingTransport(std::unique_ptr<Transport> inner) : inner_(std::move(inner)) {}
  std::string_view name() const override { return inner_->name(); }
  ByteBuffer address() const override { return inner_->address(); }
  Result<TransportPeer> connect(ByteSpan address) override { return inner_->connect(address); }
  void disconnect(TransportPeer peer) override { inner_->disconnect(peer); }
  TransferId send(TransportPeer peer, uint64_t tag, MessagePtr message) override {
    return inner_->send(peer, tag, std::move(message));
  }
  TransferId receive(uint64_t tag, MessagePtr message) override {
    return inner_->receive(tag, std::move(message));
  }
  void cancel(TransferId id) override { inner_->cancel(id); }
  void discard(uint64_t value, uint64_t mask) override { inner_->discard(value, mask); }
  size_t progress(TransportSink& sink) override { return inner_->progress(sink); }
  int event_fd() const override { return inner_->event_fd(); }
  bool arm() override { return inner_->arm(); }

 private:
  const std::unique_ptr<Transport> inner_;
};

// Counts what is sent, all ranks together.
class CountingTransport final : public ForwardingTransport {
 public:
  CountingTransport(std::unique_ptr<Transport> inner, std::atomic<uint64_t>& bytes)
      : ForwardingTransport(std::move(inner)), bytes_(bytes) {}
  TransferId send(TransportPeer peer, uint64_t tag, MessagePtr message) override {
    bytes_ += message->size;
    return ForwardingTransport::send(peer, tag, std::move(message));
  }

 private:
  std::atomic<uint64_t>& bytes_;
};

}  // namespace muster::testing_support
