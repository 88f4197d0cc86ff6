#include "collectives/transport/ucx.h"

#include <cstdlib>
#include <deque>
#include <mutex>
#include <unordered_map>

#include "collectives/transport/ucx_sockets.h"
#include "collectives/transport/ucx_table.h"
#include "runtime/base/module.h"

namespace muster {
namespace {

TransferStatus translate(int status) {
  switch (status) {
    case MUSTER_UCX_DONE:
      return TransferStatus::kDone;
    case MUSTER_UCX_TRUNCATED:
      return TransferStatus::kTruncated;
    case MUSTER_UCX_CANCELED:
      return TransferStatus::kCanceled;
    default:
      return TransferStatus::kFailed;
  }
}

class UcxTransport final : public Transport {
 public:
  explicit UcxTransport(const muster_ucx_table& table) : table_(table) {}

  // The worker goes first: only then nothing can reach the messages that are kept.
  ~UcxTransport() override {
    if (worker_ != nullptr) table_.close(worker_);
  }

  Status open(const UcxOptions& options) {
    const muster_ucx_config config{options.transports.c_str(), seconds(options.keepalive)};
    const muster_ucx_events events{this, &UcxTransport::on_ended, &UcxTransport::on_peer_failed};
    char error[256] = {};
    worker_ = table_.open(&config, &events, error, sizeof error);
    if (worker_ == nullptr)
      return Error{ErrorCode::kEnvironment,
                   std::string(error) + "; see \"ucx_info -d\" for what this host has"};
    sockets_.find_listeners(own_address());
    event_fd_ = table_.event_fd(worker_);
    if (event_fd_ >= 0) return ok();
    return Error{ErrorCode::kEnvironment,
                 "UCX with transports \"" + options.transports + "\" cannot wake a sleeper"};
  }

  std::string_view name() const override { return "UCX"; }

  ByteBuffer address() const override { return sockets_.with_listeners(own_address()); }

  Result<TransportPeer> connect(ByteSpan address) override {
    MUSTER_ASSIGN(const ByteSpan theirs, sockets_.add_peer(address));
    char error[256] = {};
    const TransportPeer peer = next_peer_++;
    if (table_.connect(worker_, theirs.data(), peer, error, sizeof error) == 0) return peer;
    return Error{ErrorCode::kReconfigure, std::string("UCX cannot reach a peer: ") + error};
  }

  void disconnect(TransportPeer peer) override { table_.disconnect(worker_, peer); }

  TransferId send(TransportPeer peer, uint64_t tag, MessagePtr message) override {
    const TransferId id = next_id_++;
    const std::byte* data = message->data;
    const size_t size = message->size;
    kept_[id] = {std::move(message), true};
    settle(id, table_.send(worker_, peer, tag, data, size, id), size);
    return id;
  }

  TransferId receive(uint64_t tag, MessagePtr message) override {
    const TransferId id = next_id_++;
    std::byte* data = message->data;
    const size_t size = message->size;
    kept_[id] = {std::move(message), true};
    settle(id, table_.receive(worker_, tag, data, size, id), 0);
    return id;
  }

  void cancel(TransferId id) override {
    const auto found = kept_.find(id);
    if (found == kept_.end()) return;
    found->second.reported = false;
    table_.cancel(worker_, id);
  }

  void discard(uint64_t value, uint64_t mask) override { table_.discard(worker_, value, mask); }

  size_t progress(TransportSink& sink) override {
    size_t moved = 0;
    // What has ended is told at once: the caller keeps a few transfers under way, and posts the next.
    while (moved < 64 && table_.progress(worker_) > 0) {
      ++moved;
      if (!ended_.empty()) break;
    }
    for (const Ended& ended : std::exchange(ended_, {})) {
      const auto found = kept_.find(ended.id);
      const bool reported = found != kept_.end() && found->second.reported;
      kept_.erase(ended.id);
      if (reported) sink.transfer_ended(ended.id, ended.status, ended.bytes);
      ++moved;
    }
    for (const auto& [peer, reason] : std::exchange(failed_, {})) {
      sink.peer_failed(peer, reason);
      ++moved;
    }
    return moved;
  }

  int event_fd() const override { return event_fd_; }
  bool arm() override { return ended_.empty() && failed_.empty() && table_.arm(worker_) == 1; }

 private:
  struct Kept {
    MessagePtr message;
    bool reported;
  };
  struct Ended {
    TransferId id;
    TransferStatus status;
    size_t bytes;
  };

  ByteBuffer own_address() const {
    ByteBuffer address(table_.address(worker_, nullptr, 0));
    table_.address(worker_, address.data(), address.size());
    return address;
  }

  void settle(TransferId id, int status, size_t bytes) {
    if (status != MUSTER_UCX_PENDING) ended_.push_back({id, translate(status), bytes});
  }

  static void on_ended(void* user, uint64_t id, int status, size_t bytes) {
    static_cast<UcxTransport*>(user)->ended_.push_back({id, translate(status), bytes});
  }
  static void on_peer_failed(void* user, uint32_t peer, const char* reason) {
    static_cast<UcxTransport*>(user)->failed_.emplace_back(peer, reason);
  }

  const muster_ucx_table& table_;
  UcxSockets sockets_;  // made before the worker, and ends after it
  muster_ucx_worker* worker_ = nullptr;
  int event_fd_ = -1;
  TransportPeer next_peer_ = 0;
  TransferId next_id_ = 1;
  std::unordered_map<TransferId, Kept> kept_;  // until UCX is through with it, canceled or not
  std::deque<Ended> ended_;
  std::deque<std::pair<TransportPeer, std::string>> failed_;
};

// To hear of memory that goes away, UCX rewrites mmap, madvise and their like in the whole process as soon as
// it is loaded. What is sent here is the library's own memory and stays, so UCX is told not to, by the only
// means that works before its constructors run. What the user has set counts.
Result<const void*> load_quietly() {
  constexpr const char* kVariable = "UCX_MEM_EVENTS";
  static std::mutex mutex;
  const std::lock_guard lock(mutex);
  const bool mine = getenv(kVariable) == nullptr && setenv(kVariable, "n", 0) == 0;
  auto table = load_module("ucx", MUSTER_UCX_TABLE_VERSION);
  if (mine) unsetenv(kVariable);
  return table;
}

}  // namespace

Result<std::unique_ptr<Transport>> open_ucx(const UcxOptions& options) {
  MUSTER_ASSIGN(const void* table, load_quietly());
  auto transport = std::make_unique<UcxTransport>(*static_cast<const muster_ucx_table*>(table));
  MUSTER_TRY(transport->open(options));
  return std::unique_ptr<Transport>(std::move(transport));
}

}  // namespace muster
