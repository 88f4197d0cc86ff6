// Envelopes, events and views as bytes, and back. Bytes come from the network: decoding verifies every offset
// and limit before it looks, and ends in a value or an Error, never in a crash.
//
// The format is FlatBuffers, schema messages.fbs; a frame is one buffer with identifier "MUS1", the major
// version. A frame's length travels outside of it (link.h).
#pragma once

#include "runtime/base/events.h"
#include "runtime/base/result.h"
#include "runtime/control/messages.h"

namespace muster::control {

// Larger frames are refused by sender and receiver. A view of 4,096 members takes about 2 MiB.
constexpr size_t kFrameBytesMax = size_t{64} << 20;

// Errors: kMisuse where the frame would be larger than kFrameBytesMax.
Result<ByteBuffer> encode(const Envelope& envelope);

// Errors: kMisuse; the message says what is wrong with the bytes, for the log beside the peer's name.
Result<Envelope> decode_envelope(ByteSpan bytes);

Result<ByteBuffer> encode(const View& view);  // the store's value
Result<View> decode_view(ByteSpan bytes);

Result<ByteBuffer> encode(const Event& event);
Result<Event> decode_event(ByteSpan bytes);

}  // namespace muster::control
