#include "runtime/device_mirror.h"

#include <algorithm>

namespace muster {
namespace {

// Copies still under way when a run ends are over soon, or the device is.
constexpr Duration kEndTimeout = 10 * kSecond;

}  // namespace

Result<std::unique_ptr<DeviceMirror>> DeviceMirror::attach(const Device& device, State& state) {
  for (const TensorInfo& tensor : state.tensors()) {
    if (tensor.bytes == 0) continue;
    const std::string what = "tensor '" + tensor.name + "'";
    const void* const data = tensor.working_copy != nullptr ? tensor.working_copy : tensor.data;
    MUSTER_TRY(tensor.memory == Memory::kHost ? device.check_host_memory(data, what)
                                              : device.check_memory(data, what));
  }
  MUSTER_ASSIGN(PinnedMemory host, device.allocate_pinned(state.bytes()));
  MUSTER_ASSIGN(DeviceEvent written, device.make_event());
  MUSTER_ASSIGN(DeviceEvent copied, device.make_event());
  MUSTER_ASSIGN(DeviceEvent stored, device.make_event());
  std::unique_ptr<DeviceMirror> mirror(new DeviceMirror(device, state, std::move(host), std::move(written),
                                                        std::move(copied), std::move(stored)));
  MUSTER_TRY(mirror->note_written());
  return mirror;
}

DeviceMirror::DeviceMirror(const Device& device, State& state, PinnedMemory host, DeviceEvent written,
                           DeviceEvent copied, DeviceEvent stored)
    : device_(device),
      state_(state),
      host_(std::move(host)),
      written_(std::move(written)),
      copied_(std::move(copied)),
      stored_(std::move(stored)) {
  state_.set_mirror(this);
}

// Memory that a device may still write to is not given back. After an error it copies nothing any more.
DeviceMirror::~DeviceMirror() {
  state_.set_mirror(nullptr);
  const Status settled = settle(now() + kEndTimeout);
  if (!settled.ok() && settled.error().code == ErrorCode::kRetry) (void)host_.release();
}

// Waits until nothing that was enqueued reads or writes host_. Recorded anew, since a fetch that failed
// half-way did not.
Status DeviceMirror::settle(Instant deadline) {
  MUSTER_TRY(device_.record(copied_, device_.copy_stream()));
  MUSTER_TRY(device_.wait(copied_, deadline));
  return device_.wait(stored_, deadline);
}

Status DeviceMirror::note_written() { return device_.record(written_, device_.program_stream()); }

// Tensors of the host are copied here and now: as a rule they are a few counters. The others come behind what
// store() enqueued, too, since written_ was recorded after that.
Status DeviceMirror::begin_fetch() {
  MUSTER_TRY(device_.order(device_.copy_stream(), written_));
  std::byte* next = host().data();
  for (const TensorInfo& tensor : state_.tensors()) {
    if (tensor.memory == Memory::kHost) {
      std::copy_n(tensor.data, tensor.bytes, next);
    } else {
      MUSTER_TRY(device_.copy(next, tensor.data, tensor.bytes, device_.copy_stream()));
    }
    next += tensor.bytes;
  }
  return device_.record(copied_, device_.copy_stream());
}

Status DeviceMirror::finish_fetch(Instant deadline) { return device_.wait(copied_, deadline); }

Status DeviceMirror::order_update() { return device_.order(device_.program_stream(), copied_); }

// On the program's stream, so that what it computes next needs no order of its own.
Status DeviceMirror::store(ByteSpan source, Instant deadline) {
  MUSTER_TRY(settle(deadline));
  std::copy(source.begin(), source.end(), host().data());
  const std::byte* next = host().data();
  for (const TensorInfo& tensor : state_.tensors()) {
    if (tensor.memory == Memory::kHost) {
      std::copy_n(next, tensor.bytes, tensor.data);
    } else {
      MUSTER_TRY(device_.copy(tensor.data, next, tensor.bytes, device_.program_stream()));
    }
    next += tensor.bytes;
  }
  return device_.record(stored_, device_.program_stream());
}

}  // namespace muster
