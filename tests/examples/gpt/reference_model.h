// The same network once more, in double, element by element, with libm: slow, plain, and written from the
// formulas, so that a mistake in the fast one is not repeated here.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "examples/gpt/model.h"

namespace gpt {

// Logits [length, 256] for a run of bytes.
std::vector<double> reference_logits(const Config& config, const std::vector<double>& parameters,
                                     std::span<const uint8_t> inputs);
// Mean nats a byte over the windows.
double reference_loss(const Config& config, const std::vector<double>& parameters,
                      std::span<const uint8_t> windows);

}  // namespace gpt
