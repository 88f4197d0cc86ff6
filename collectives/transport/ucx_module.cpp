// libmuster_ucx.so: the only place that knows UCX. Pitfalls that shape it (UCX 1.13):
// - Peer death is reported only with UCP_ERR_HANDLING_MODE_PEER, on both sides, and only to endpoints that
// exist
//   and have exchanged something: so a new endpoint knocks at once.
// - Receives belong to the worker and do not fail with an endpoint; a matched one may not be cancelable. The
//   caller keeps memory until the end is reported or the worker is closed.
// - Loading libucs installs handlers for SIGSEGV and others, and it logs to stdout: both are undone here.
// - ucp_worker_progress must not be re-entered: nothing here calls it from a callback.
// - Over TCP a rendezvous costs a message of 32 KiB half its time, and one of 256 KiB a quarter: there is
//   none (decision 0018). Instead a large send is synchronous there: it ends when its receiver has taken it.
#include <signal.h>
#include <time.h>
#include <ucp/api/ucp.h>
#include <ucs/config/global_opts.h>
#include <ucs/debug/debug.h>
#include <ucs/debug/log_def.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "collectives/transport/ucx_table.h"

namespace {

// Never used by the caller: kind "formation", all other bits set.
constexpr uint64_t kKnockTag = ~uint64_t{0};

// From here on a send ends when its message was taken. Smaller ones end when they have been copied: to wait
// for word of each would cost more than to keep it.
constexpr size_t kTakenFrom = 8 * 1024;
// What a TCP connection hands to the system at once, and asks it for; UCX has 8 and 64 KiB. A connection that
// is under way both ways keeps two of these. 320k, a whole message of the engines, is little faster.
constexpr const char* kTcpSegment = "128k";

struct Peer {
  muster_ucx_worker* worker;
  uint32_t number;
  ucp_ep_h endpoint;
};

struct Pending {
  muster_ucx_worker* worker;
  uint64_t id;
  void* request;
  bool is_send;
};

ucs_log_func_rc_t swallow_log(const char*, unsigned, const char*, ucs_log_level_t,
                              const ucs_log_component_config_t*, const char*, va_list) {
  return UCS_LOG_FUNC_RC_STOP;
}

void quieten_library() {
  static const bool once = [] {
    for (int number : {SIGILL, SIGSEGV, SIGBUS, SIGFPE}) ucs_debug_disable_signal(number);
    ucs_log_push_handler(swallow_log);
    ucs_global_opts_set_value("HANDLE_ERRORS", "none");
    ucs_global_opts_set_value("WARN_UNUSED_ENV_VARS", "n");
    return true;
  }();
  static_cast<void>(once);
}

int status_of(ucs_status_t status) {
  switch (status) {
    case UCS_OK:
      return MUSTER_UCX_DONE;
    case UCS_ERR_MESSAGE_TRUNCATED:
      return MUSTER_UCX_TRUNCATED;
    case UCS_ERR_CANCELED:
      return MUSTER_UCX_CANCELED;
    default:
      return MUSTER_UCX_FAILED;
  }
}

}  // namespace

struct muster_ucx_worker {
  muster_ucx_events events{};
  ucp_context_h context = nullptr;
  ucp_worker_h worker = nullptr;
  ucp_address_t* address = nullptr;
  size_t address_size = 0;
  std::unordered_map<uint32_t, Peer*> peers;
  std::unordered_map<uint64_t, Pending*> pending;
  size_t sends = 0;            // of these
  std::vector<void*> closing;  // requests of endpoints that are being closed
  void* knock = nullptr;
  bool is_closing = false;
  bool is_tcp = false;
};

namespace {

void finish(Pending* pending, int status, size_t bytes) {
  muster_ucx_worker* worker = pending->worker;
  const uint64_t id = pending->id;
  worker->pending.erase(id);
  worker->sends -= pending->is_send ? 1 : 0;
  delete pending;
  if (!worker->is_closing) worker->events.ended(worker->events.user, id, status, bytes);
}

void on_sent(void* request, ucs_status_t status, void* user) {
  finish(static_cast<Pending*>(user), status_of(status), 0);
  ucp_request_free(request);
}

void on_received(void* request, ucs_status_t status, const ucp_tag_recv_info_t* info, void* user) {
  finish(static_cast<Pending*>(user), status_of(status), status == UCS_OK ? info->length : 0);
  ucp_request_free(request);
}

void post_knock(muster_ucx_worker* worker);

void on_knock(void* request, ucs_status_t status, const ucp_tag_recv_info_t*, void* user) {
  ucp_request_free(request);
  auto* worker = static_cast<muster_ucx_worker*>(user);
  worker->knock = nullptr;
  if (status != UCS_ERR_CANCELED && !worker->is_closing) post_knock(worker);
}

void post_knock(muster_ucx_worker* worker) {
  ucp_request_param_t param{};
  param.op_attr_mask =
      UCP_OP_ATTR_FIELD_CALLBACK | UCP_OP_ATTR_FIELD_USER_DATA | UCP_OP_ATTR_FLAG_NO_IMM_CMPL;
  param.cb.recv = on_knock;
  param.user_data = worker;
  ucs_status_ptr_t request = ucp_tag_recv_nbx(worker->worker, nullptr, 0, kKnockTag, ~uint64_t{0}, &param);
  worker->knock = UCS_PTR_IS_PTR(request) ? request : nullptr;
}

void on_ignored(void* request, ucs_status_t, void*) { ucp_request_free(request); }

void knock(ucp_ep_h endpoint) {
  ucp_request_param_t param{};
  param.op_attr_mask = UCP_OP_ATTR_FIELD_CALLBACK;
  param.cb.send = on_ignored;
  static_cast<void>(ucp_tag_send_nbx(endpoint, nullptr, 0, kKnockTag, &param));
}

void on_endpoint_error(void* user, ucp_ep_h, ucs_status_t status) {
  auto* peer = static_cast<Peer*>(user);
  if (!peer->worker->is_closing)
    peer->worker->events.peer_failed(peer->worker->events.user, peer->number, ucs_status_string(status));
}

// UCX 1.13 knows an option of its TCP here without the prefix that it has in the environment, later versions
// with it; a name that it does not know is only logged.
void set_tcp(ucp_config_t* config, const std::string& name, const char* value) {
  ucp_config_modify(config, name.c_str(), value);
  ucp_config_modify(config, ("TCP_" + name).c_str(), value);
}

// Segments whatever the environment says: no process must send larger ones than another receives.
void tune_tcp(ucp_config_t* config) {
  if (std::getenv("UCX_RNDV_THRESH") == nullptr) ucp_config_modify(config, "RNDV_THRESH", "inf");
  set_tcp(config, "TX_SEG_SIZE", kTcpSegment);
  set_tcp(config, "RX_SEG_SIZE", kTcpSegment);
}

// Others than TCP read large messages from where they lie.
bool is_tcp_alone(std::string_view transports) {
  return transports == "tcp,self" || transports == "self,tcp" || transports == "tcp";
}

ucs_status_t init_context(muster_ucx_worker* worker, const muster_ucx_config& options) {
  ucp_config_t* config = nullptr;
  ucs_status_t status = ucp_config_read(nullptr, nullptr, &config);
  if (status != UCS_OK) return status;
  char keepalive[32];
  std::snprintf(keepalive, sizeof keepalive, "%.3fs", options.keepalive_s);
  status = ucp_config_modify(config, "TLS", options.transports);
  ucp_config_modify(config, "KEEPALIVE_INTERVAL", keepalive);
  set_tcp(config, "CONN_NB", "y");  // else a connect to a host that is down blocks progress
  worker->is_tcp = is_tcp_alone(options.transports);
  if (worker->is_tcp) tune_tcp(config);
  ucp_params_t params{};
  params.field_mask = UCP_PARAM_FIELD_FEATURES | UCP_PARAM_FIELD_MT_WORKERS_SHARED | UCP_PARAM_FIELD_NAME;
  params.features = UCP_FEATURE_TAG | UCP_FEATURE_WAKEUP;
  params.mt_workers_shared = 0;
  params.name = "muster";
  if (status == UCS_OK) status = ucp_init(&params, config, &worker->context);
  ucp_config_release(config);
  return status;
}

ucs_status_t init_worker(muster_ucx_worker* worker) {
  ucp_worker_params_t params{};
  params.field_mask = UCP_WORKER_PARAM_FIELD_THREAD_MODE;
  params.thread_mode = UCS_THREAD_MODE_SERIALIZED;  // the caller's lock
  const ucs_status_t status = ucp_worker_create(worker->context, &params, &worker->worker);
  if (status != UCS_OK) return status;
  return ucp_worker_get_address(worker->worker, &worker->address, &worker->address_size);
}

void close_worker(muster_ucx_worker* worker);

muster_ucx_worker* open_worker(const muster_ucx_config* config, const muster_ucx_events* events, char* error,
                               size_t error_size) {
  quieten_library();
  auto* worker = new muster_ucx_worker;
  worker->events = *events;
  ucs_status_t status = init_context(worker, *config);
  if (status == UCS_OK) status = init_worker(worker);
  if (status == UCS_OK) {
    post_knock(worker);
    return worker;
  }
  std::snprintf(error, error_size, "UCX with transports \"%s\": %s", config->transports,
                ucs_status_string(status));
  close_worker(worker);
  return nullptr;
}

void close_endpoint(muster_ucx_worker* worker, ucp_ep_h endpoint) {
  ucp_request_param_t param{};
  param.op_attr_mask = UCP_OP_ATTR_FIELD_FLAGS;
  param.flags = UCP_EP_CLOSE_FLAG_FORCE;
  ucs_status_ptr_t request = ucp_ep_close_nbx(endpoint, &param);
  if (UCS_PTR_IS_PTR(request)) worker->closing.push_back(request);
}

double monotonic_s() {
  timespec time{};
  clock_gettime(CLOCK_MONOTONIC, &time);
  return static_cast<double>(time.tv_sec) + static_cast<double>(time.tv_nsec) * 1e-9;
}

// Before the close, so that what was sent last still leaves: a rank that ends after its last operation must
// not take the tail of that operation with it. A flush by itself does not wait for word that large messages
// were taken. It may take its time while something moves, as on a slow link; with a peer that is gone, or
// stopped, nothing does.
void flush_endpoints(muster_ucx_worker* worker) {
  std::vector<void*> flushes;
  for (const auto& [number, peer] : worker->peers) {
    if (peer->endpoint == nullptr) continue;
    ucp_request_param_t param{};
    ucs_status_ptr_t request = ucp_ep_flush_nbx(peer->endpoint, &param);
    if (UCS_PTR_IS_PTR(request)) flushes.push_back(request);
  }
  const auto unfinished = [](void* request) { return ucp_request_check_status(request) == UCS_INPROGRESS; };
  constexpr double kQuietS = 0.5, kMostS = 10;
  const double start = monotonic_s();
  double moved = start, time = start;
  const auto busy = [&] {
    return worker->sends > 0 || std::any_of(flushes.begin(), flushes.end(), unfinished);
  };
  while (busy() && time < moved + kQuietS && time < start + kMostS) {
    const bool moves = ucp_worker_progress(worker->worker) > 0;
    time = monotonic_s();
    if (moves) moved = time;
  }
  for (void* request : flushes) ucp_request_free(request);
}

void close_worker(muster_ucx_worker* worker) {
  worker->is_closing = true;
  if (worker->worker != nullptr) {
    flush_endpoints(worker);
    for (const auto& [number, peer] : worker->peers) {
      if (peer->endpoint != nullptr) close_endpoint(worker, peer->endpoint);
    }
    for (int i = 0; i < 1000; ++i) ucp_worker_progress(worker->worker);
    for (void* request : worker->closing) ucp_request_free(request);
    std::vector<Pending*> left;
    for (const auto& [id, pending] : worker->pending) left.push_back(pending);
    for (Pending* pending : left) ucp_request_cancel(worker->worker, pending->request);
    if (worker->knock != nullptr) ucp_request_cancel(worker->worker, worker->knock);
    ucp_worker_progress(worker->worker);
    if (worker->address != nullptr) ucp_worker_release_address(worker->worker, worker->address);
    ucp_worker_destroy(worker->worker);
    for (const auto& [id, pending] : worker->pending) delete pending;
    for (const auto& [number, peer] : worker->peers) delete peer;
  }
  if (worker->context != nullptr) ucp_cleanup(worker->context);
  delete worker;
}

size_t address_of(muster_ucx_worker* worker, void* buffer, size_t capacity) {
  if (worker->address_size <= capacity) std::memcpy(buffer, worker->address, worker->address_size);
  return worker->address_size;
}

int connect_peer(muster_ucx_worker* worker, const void* address, uint32_t number, char* error,
                 size_t error_size) {
  auto* peer = new Peer{worker, number, nullptr};
  ucp_ep_params_t params{};
  params.field_mask = UCP_EP_PARAM_FIELD_REMOTE_ADDRESS | UCP_EP_PARAM_FIELD_ERR_HANDLING_MODE |
                      UCP_EP_PARAM_FIELD_ERR_HANDLER;
  params.address = static_cast<const ucp_address_t*>(address);
  params.err_mode = UCP_ERR_HANDLING_MODE_PEER;
  params.err_handler.cb = on_endpoint_error;
  params.err_handler.arg = peer;
  const ucs_status_t status = ucp_ep_create(worker->worker, &params, &peer->endpoint);
  if (status != UCS_OK) {
    std::snprintf(error, error_size, "%s", ucs_status_string(status));
    delete peer;
    return -1;
  }
  worker->peers[number] = peer;
  knock(peer->endpoint);
  return 0;
}

void disconnect_peer(muster_ucx_worker* worker, uint32_t number) {
  const auto found = worker->peers.find(number);
  if (found == worker->peers.end()) return;
  close_endpoint(worker, found->second->endpoint);
  found->second->endpoint = nullptr;
  // The Peer itself stays: an error callback may still name it.
}

int start_send(muster_ucx_worker* worker, uint32_t number, uint64_t tag, const void* data, size_t size,
               uint64_t id) {
  const auto found = worker->peers.find(number);
  if (found == worker->peers.end() || found->second->endpoint == nullptr) return MUSTER_UCX_FAILED;
  auto* pending = new Pending{worker, id, nullptr, true};
  ucp_request_param_t param{};
  param.op_attr_mask = UCP_OP_ATTR_FIELD_CALLBACK | UCP_OP_ATTR_FIELD_USER_DATA;
  param.cb.send = on_sent;
  param.user_data = pending;
  const auto send = worker->is_tcp && size >= kTakenFrom ? ucp_tag_send_sync_nbx : ucp_tag_send_nbx;
  ucs_status_ptr_t request = send(found->second->endpoint, data, size, tag, &param);
  if (!UCS_PTR_IS_PTR(request)) {
    delete pending;
    return status_of(UCS_PTR_STATUS(request));
  }
  pending->request = request;
  worker->pending[id] = pending;
  ++worker->sends;
  return MUSTER_UCX_PENDING;
}

// Immediate completion is refused, since UCX 1.13 then does not tell the length. The callback may come before
// ucp_tag_recv_nbx() returns.
int start_receive(muster_ucx_worker* worker, uint64_t tag, void* data, size_t size, uint64_t id) {
  auto* pending = new Pending{worker, id, nullptr, false};
  worker->pending[id] = pending;
  ucp_request_param_t param{};
  param.op_attr_mask =
      UCP_OP_ATTR_FIELD_CALLBACK | UCP_OP_ATTR_FIELD_USER_DATA | UCP_OP_ATTR_FLAG_NO_IMM_CMPL;
  param.cb.recv = on_received;
  param.user_data = pending;
  ucs_status_ptr_t request = ucp_tag_recv_nbx(worker->worker, data, size, tag, ~uint64_t{0}, &param);
  const auto found = worker->pending.find(id);
  if (found == worker->pending.end()) return MUSTER_UCX_PENDING;  // ended() was called already
  if (UCS_PTR_IS_PTR(request)) {
    pending->request = request;
    return MUSTER_UCX_PENDING;
  }
  worker->pending.erase(found);
  delete pending;
  return MUSTER_UCX_FAILED;
}

void cancel_transfer(muster_ucx_worker* worker, uint64_t id) {
  const auto found = worker->pending.find(id);
  if (found != worker->pending.end()) ucp_request_cancel(worker->worker, found->second->request);
}

void on_discarded(void* request, ucs_status_t, const ucp_tag_recv_info_t*, void* user) {
  delete static_cast<std::vector<char>*>(user);
  ucp_request_free(request);
}

void discard(muster_ucx_worker* worker, uint64_t value, uint64_t mask) {
  ucp_tag_recv_info_t info{};
  while (ucp_tag_message_h message = ucp_tag_probe_nb(worker->worker, value & mask, mask, 1, &info)) {
    auto* sink = new std::vector<char>(std::max<size_t>(info.length, 1));
    ucp_request_param_t param{};
    param.op_attr_mask =
        UCP_OP_ATTR_FIELD_CALLBACK | UCP_OP_ATTR_FIELD_USER_DATA | UCP_OP_ATTR_FLAG_NO_IMM_CMPL;
    param.cb.recv = on_discarded;
    param.user_data = sink;
    ucs_status_ptr_t request =
        ucp_tag_msg_recv_nbx(worker->worker, sink->data(), info.length, message, &param);
    if (!UCS_PTR_IS_PTR(request)) delete sink;
  }
}

unsigned progress(muster_ucx_worker* worker) { return ucp_worker_progress(worker->worker); }

int event_fd(muster_ucx_worker* worker) {
  int fd = -1;
  return ucp_worker_get_efd(worker->worker, &fd) == UCS_OK ? fd : -1;
}

int arm(muster_ucx_worker* worker) { return ucp_worker_arm(worker->worker) == UCS_OK ? 1 : 0; }

constexpr muster_ucx_table kTable = {MUSTER_UCX_TABLE_VERSION,
                                     open_worker,
                                     close_worker,
                                     address_of,
                                     connect_peer,
                                     disconnect_peer,
                                     start_send,
                                     start_receive,
                                     cancel_transfer,
                                     discard,
                                     progress,
                                     event_fd,
                                     arm};

}  // namespace

extern "C" __attribute__((visibility("default"))) const void* muster_module_ucx(int version) {
  return version == MUSTER_UCX_TABLE_VERSION ? &kTable : nullptr;
}
