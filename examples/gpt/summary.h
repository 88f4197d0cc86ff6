// What a finished run has to show: validation loss beside the n-gram baselines, sampled text, the weights'
// digest.
#pragma once

#include <string>

#include "examples/gpt/backend.h"
#include "examples/gpt/data.h"
#include "examples/gpt/sampler.h"

namespace gpt {

// Prints it, and unless `file` is empty writes the numbers to it as one JSON object, and the weights, as they
// lie in memory, to `file`.weights.
void print_summary(Backend& backend, const Corpus& corpus, const SampleOptions& sample, float training_loss,
                   const std::string& file);

}  // namespace gpt
