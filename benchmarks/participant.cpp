// A rank among competitors whose operations are a callback: for peers that are Python libraries.
#include "benchmarks/turns.h"

namespace {

// False: the peer has no such operation.
using Callback = bool (*)(int op, const float* in, float* out, size_t in_count, size_t out_count);

class Called {
 public:
  // Callbacks reduce in place, as a training with such a library does: a copy would not be the library's.
  static constexpr bool kReducesInPlace = true;

  Called(bench::Control& control, Callback callback) : control_(control), callback_(callback) {}
  float* buffer(bool output, size_t bytes, bool) {
    std::vector<float>& buffer = output ? out_ : in_;
    buffer.assign(bytes / sizeof(float), 0.0F);
    return buffer.data();
  }
  void run(bench::Op op, const float* in, float* out, size_t) const {
    if (!callback_(static_cast<int>(op), in, out, in_.size(), out_.size())) control_.lacking.store(1);
  }
  void settle() {}

 private:
  bench::Control& control_;
  const Callback callback_;
  std::vector<float> in_, out_;
};

}  // namespace

// Serves until it is told to quit.
extern "C" __attribute__((visibility("default"))) void bench_serve(const char* path, int rank, int ranks,
                                                                   Callback callback) {
  bench::Control& control = *bench::open_control(path);
  bench::pin(control, rank, ranks);
  Called library(control, callback);
  bench::Participant(control, rank, ranks).serve(library);
}
