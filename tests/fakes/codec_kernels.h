// The codecs' kernels for the fake CUDA run time, which runs them in the SIMT shim. For a program that
// exports its symbols.
#pragma once

#include "kernels/codec.cuh"
#include "tests/fakes/sum_kernels.h"

namespace muster::fakes {

// Calls launch(kernel, grid, task) for each kernel of every codec.
template <typename Launch>
void for_each_codec_kernel(Launch launch) {
  alignas(16) static float memory[1024];
  auto* bytes = reinterpret_cast<uint8_t*>(memory);
  const auto of_codec = [&](auto kernels) {
    for (const int mode : {0, 1, 2}) {
      // A whole grain and a bit: both kernels of each mode.
      const codec::Encode encode{.values = memory,
                                 .residual = mode == 2 ? memory : nullptr,
                                 .scales = bytes,
                                 .payload = bytes,
                                 .count = 1025,
                                 .first_index = 0,
                                 .stochastic = mode == 1,
                                 .slot = {}};
      codec::Decode decode = codec::decode_one({bytes, bytes}, memory, 1025);
      decode.accumulate = mode == 1;
      kernels.encode(encode, 1, launch);
      kernels.decode(decode, 1, launch);
      decode.values = nullptr;
      if (mode != 2) kernels.recode(decode, encode, 1, launch);
    }
  };
  for (const codec::CodecId id : codec::kCodecIds) codec::with_kernels(id, of_codec);
}

inline void register_codec_kernels() {
  for_each_codec_kernel([](auto* kernel, unsigned, const auto&) { register_by_name(kernel); });
}

}  // namespace muster::fakes
