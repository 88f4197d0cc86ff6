// The mirror in pinned host memory of a State of which some tensors lie on a CUDA device.
//
// Two events order everything. `written_`, on the program's stream, is behind what the program last wrote:
// fetches begin behind it. `copied_`, on the copy stream, is behind the last fetch: the program's next update
// goes on behind it, and readers on the host wait for it. So the host waits for the device only where it
// needs the bytes; the device waits for a copy, not for the disk.
#pragma once

#include <memory>

#include "runtime/device.h"
#include "runtime/state.h"

namespace muster {

class DeviceMirror final : public StateMirror {
 public:
  // Becomes the mirror of `state`, which is sealed, for as long as it lives; both outlive it. Errors: kMisuse
  // where a tensor is not where it was registered to be; kEnvironment.
  static Result<std::unique_ptr<DeviceMirror>> attach(const Device& device, State& state);
  ~DeviceMirror() override;

  MutableByteSpan host() const override { return {static_cast<std::byte*>(host_.get()), state_.bytes()}; }
  Status note_written() override;
  Status begin_fetch() override;
  Status finish_fetch(Instant deadline) override;
  Status order_update() override;
  Status store(ByteSpan source, Instant deadline) override;

 private:
  DeviceMirror(const Device& device, State& state, PinnedMemory host, DeviceEvent written, DeviceEvent copied,
               DeviceEvent stored);
  Status settle(Instant deadline);

  const Device& device_;
  State& state_;
  PinnedMemory host_;
  const DeviceEvent written_;
  const DeviceEvent copied_;
  const DeviceEvent stored_;  // on the program's stream, behind what store() has it copy from host_
};

}  // namespace muster
