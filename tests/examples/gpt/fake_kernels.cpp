// Linked into the trainer, this makes it one whose device is the fake.
#include "tests/examples/gpt/fake_kernels.h"
#include "tests/fakes/sum_kernels.h"

namespace {
const bool registered = [] {
  gpt::register_kernels();
  muster::fakes::register_sum_kernels();
  return true;
}();
}  // namespace
