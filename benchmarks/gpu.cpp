// `scripts/bench gpu`: the codecs, the canonical fold, accumulation and digests on a CUDA device, beside a
// copy within it, and copies between it and pinned memory.
//   bench_gpu ROUNDS MIB [CASES]   prints, for each round and case whose name holds CASES:
//                                  CASE|GIGABYTES_OF_FLOAT32_A_SECOND|OF_ROOF
//   bench_gpu values MIB           writes the values, for peers that are programs of their own
// OF_ROOF: bytes that the case has to move through device memory, over its time, as a part of what the copy
// of the same round moved. Ends with 77 where there is no device, and says why.
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <string>
#include <vector>

#include "benchmarks/turns.h"
#include "benchmarks/values.h"
#include "kernels/cuda_table.h"
#include "kernels/shared16.h"

namespace {

using muster::CudaTable;
using muster::RandomSlot;
using muster::TreeFold;
using muster::codec::CodecId;
using muster::codec::Decode;
using muster::codec::Encode;

constexpr uint32_t kSources = 4;
constexpr int kSkipped = 77;
constexpr RandomSlot kSlot = {.seed = 1, .step = 2, .tensor = 3, .lane = 4, .stage = 0};

const CudaTable& cuda() {
  static const CudaTable* const table = muster::cuda_table().value();
  return *table;
}

void require(int code, const char* what) {
  if (code == 0) return;
  std::fprintf(stderr, "%s: %s\n", what, cuda().cuda_error_text(code));
  std::exit(1);
}

struct Device {
  void *stream = nullptr, *event = nullptr;
  Device() {
    require(cuda().stream_create(&stream), "a stream");
    require(cuda().event_create(&event), "an event");
  }
  template <typename T>
  T* allocate(size_t count) const {
    void* memory = nullptr;
    require(cuda().device_allocate(&memory, count * sizeof(T)), "device memory");
    return static_cast<T*>(memory);
  }
  void finish() const {
    require(cuda().event_record(event, stream), "recording");
    int code = muster::kCudaNotReady;
    while (code == muster::kCudaNotReady) code = cuda().event_query(event);
    require(code, "waiting");
  }
};

struct Buffers {
  size_t count, payload_at;
  float *host, *values, *residual, *out, *leaves[16];
  uint8_t *planes[kSources], *more, *scratch;

  Buffers(const Device& device, size_t elements) : count(elements), payload_at(elements / 8) {
    void* pinned = nullptr;
    require(cuda().pinned_allocate(&pinned, count * sizeof(float)), "pinned memory");
    host = static_cast<float*>(pinned);
    bench::fill_like_gradients(host, count);
    for (float** each : {&values, &residual, &out}) *each = device.allocate<float>(count);
    for (uint8_t*& each : planes) each = device.allocate<uint8_t>(3 * count);
    more = device.allocate<uint8_t>(3 * count);
    scratch = device.allocate<uint8_t>(count);  // of digests, more than they take
    for (float*& each : leaves) each = device.allocate<float>(count);
    for (float* each : {values, residual, out}) copy_in(device, each);
    for (float* each : leaves) copy_in(device, each);
  }
  void copy_in(const Device& device, float* to) const {
    require(cuda().copy(to, host, count * sizeof(float), device.stream), "copying");
    device.finish();
  }
};

struct Case {
  std::string name;
  double bytes;  // through device memory
  std::function<int()> launch;
};

Encode encode_task(const Buffers& b, uint8_t* planes, bool stochastic, bool feedback) {
  return {.values = b.values,
          .residual = feedback ? b.residual : nullptr,
          .scales = planes,
          .payload = planes + b.payload_at,
          .count = b.count,
          .first_index = 0,
          .stochastic = stochastic,
          .slot = kSlot};
}

Decode decode_task(const Buffers& b, uint32_t sources) {
  Decode task = muster::codec::decode_one({}, b.out, b.count);
  task.source_count = sources;
  for (uint32_t s = 0; s < sources; ++s) task.sources[s] = {b.planes[s], b.planes[s] + b.payload_at};
  task.slot = kSlot;
  return task;
}

void add_codec(std::vector<Case>& cases, CodecId id, const Buffers& b, void* stream) {
  const muster::codec::Shape shape = muster::codec::shape_of(id);
  const std::string name(muster::codec::codec_of(id).name);
  const double n = static_cast<double>(b.count);
  const double wire = static_cast<double>(muster::codec::scales_bytes_of(shape, b.count) +
                                          muster::codec::payload_bytes_of(shape, b.count));
  const auto encode = [&b, id, stream](bool stochastic, bool feedback) {
    return [&b, id, stream, stochastic, feedback] {
      const Encode task = encode_task(b, b.more, stochastic, feedback);
      return cuda().codec_encode(id, &task, stream);
    };
  };
  const auto decode = [&b, id, stream](uint32_t sources) {
    return [&b, id, stream, sources] {
      const Decode task = decode_task(b, sources);
      return cuda().codec_decode(id, &task, stream);
    };
  };
  cases.push_back({name + " encode", 4 * n + wire, encode(false, false)});
  if (shape.stochastic) cases.push_back({name + " encode, stochastic", 4 * n + wire, encode(true, false)});
  cases.push_back({name + " encode, feedback", 12 * n + wire, encode(false, true)});
  cases.push_back({name + " decode", 4 * n + wire, decode(1)});
  cases.push_back({name + " sum of 4", 4 * n + kSources * wire, decode(kSources)});
  cases.push_back({name + " sum of 4, encode", (kSources + 1) * wire, [&b, id, stream] {
                     Decode from = decode_task(b, kSources);
                     from.values = nullptr;
                     const Encode to = encode_task(b, b.more, false, false);
                     return cuda().codec_recode(id, &from, &to, stream);
                   }});
}

// The sum of all leaves from left to right; the shape of the tree changes no byte that is moved.
TreeFold fold_task(const Buffers& b, int leaves) {
  TreeFold fold{};
  fold.leaf_count = static_cast<uint16_t>(leaves);
  for (int k = 0; k < leaves; ++k) {
    fold.leaves[k] = b.leaves[k];
    fold.steps[fold.step_count++] = static_cast<int16_t>(2 * k + (k > 0 ? 1 : 0));
  }
  fold.scale = 0.5f;
  fold.target = b.out;
  fold.count = b.count;
  return fold;
}

// A gradient, `off` floats from where its sums are, onto so many of them.
muster::Accumulation accumulation_task(const Buffers& b, uint32_t sums, size_t off) {
  muster::Accumulation task{};
  for (; task.sum_count < sums; ++task.sum_count) task.sums[task.sum_count] = b.leaves[task.sum_count];
  task.gradient = b.residual + off;
  task.target = b.leaves[sums == 0 ? 0 : sums - 1];
  task.count = b.count - off;
  return task;
}

// Digests of `values` in slabs of so many bytes, as of tensors or of a checkpoint's slabs.
int digest(const Buffers& b, size_t slab_bytes, void* stream) {
  const size_t bytes = b.count * sizeof(float);
  std::vector<muster::DigestItem> items;
  for (size_t at = 0; at < bytes; at += slab_bytes)
    items.push_back({reinterpret_cast<const uint8_t*>(b.values) + at, std::min(slab_bytes, bytes - at)});
  const muster::DigestTask task{items.data(), items.size(), b.more, b.scratch};
  return cuda().digest(&task, stream);
}

std::vector<Case> cases_of(const Buffers& b, void* stream) {
  const double n = static_cast<double>(b.count) * sizeof(float);
  const auto copy = [&b, stream](void* to, const void* from) {
    return [=, bytes = b.count * sizeof(float)] { return cuda().copy(to, from, bytes, stream); };
  };
  std::vector<Case> cases{{"copy", 2 * n, copy(b.out, b.values)},
                          {"to pinned memory", n, copy(b.host, b.values)},
                          {"from pinned memory", n, copy(b.values, b.host)}};
  for (const int leaves : {2, 4, 8, 16}) {
    cases.push_back({"fold of " + std::to_string(leaves), (leaves + 1) * n, [&b, leaves, stream] {
                       const TreeFold task = fold_task(b, leaves);
                       return cuda().tree_fold(&task, stream);
                     }});
  }
  for (const uint32_t sums : {0U, 1U, 2U, 4U}) {
    for (const size_t off : {size_t{0}, size_t{1}}) {
      const std::string name = "accumulation on " + std::to_string(sums) + (off > 0 ? ", misaligned" : "");
      cases.push_back({name, (sums + 3) * n, [&b, sums, off, stream] {
                         const muster::Accumulation task = accumulation_task(b, sums, off);
                         return cuda().accumulate(&task, stream);
                       }});
    }
  }
  for (const size_t mib : {size_t{1}, size_t{16}, size_t{256}}) {
    cases.push_back({"digest of " + std::to_string(mib) + " MiB each", n,
                     [&b, mib, stream] { return digest(b, mib << 20, stream); }});
  }
  for (const CodecId id : muster::codec::kCodecIds) add_codec(cases, id, b, stream);
  return cases;
}

// Enough repeats that launches and the clock do not count.
double seconds_of(const Device& device, const Case& c) {
  constexpr int kRepeats = 16;
  require(c.launch(), c.name.c_str());
  device.finish();
  const int64_t began = bench::now_ns();
  for (int i = 0; i < kRepeats; ++i) require(c.launch(), c.name.c_str());
  device.finish();
  return static_cast<double>(bench::now_ns() - began) * 1e-9 / kRepeats;
}

// Where ranks share scales: those that four with these values agree upon.
void agree_on_scales(const Device& device, const Buffers& b, CodecId id) {
  const muster::codec::Shape shape = muster::codec::shape_of(id);
  if (!shape.shared_scales) return;
  std::vector<uint32_t> max_bits(muster::codec::blocks_of(shape, b.count));
  muster::codec::largest_of_blocks(b.host, nullptr, b.count, max_bits.data());
  const size_t bytes = muster::codec::scales_bytes_of(shape, b.count);
  void* scales = nullptr;
  require(cuda().pinned_allocate(&scales, bytes), "pinned memory");
  muster::codec::shared_scales(max_bits.data(), max_bits.size(), kSources, static_cast<uint8_t*>(scales));
  for (uint8_t* to : {b.planes[0], b.planes[1], b.planes[2], b.planes[3], b.more})
    require(cuda().copy(to, scales, bytes, device.stream), "copying");
  device.finish();
  require(cuda().pinned_free(scales), "pinned memory");
}

// Planes that decoding reads, and a residual, as encoding leaves them.
void prepare(const Device& device, const Buffers& b, CodecId id) {
  agree_on_scales(device, b, id);
  for (uint8_t* planes : b.planes) {
    const Encode task = encode_task(b, planes, false, false);
    require(cuda().codec_encode(id, &task, device.stream), "encoding");
  }
  b.copy_in(device, b.residual);
}

int run(int rounds, size_t count, const std::string& wanted) {
  const Device device;
  const Buffers buffers(device, count);
  const std::vector<Case> cases = cases_of(buffers, device.stream);
  for (int round = 0; round < rounds; ++round) {
    const double roof = cases[0].bytes / seconds_of(device, cases[0]);
    std::string codec;
    for (const Case& c : cases) {
      if (c.name.find(wanted) == std::string::npos) continue;
      for (const CodecId id : muster::codec::kCodecIds) {
        const std::string name(muster::codec::codec_of(id).name);
        if (!c.name.starts_with(name + " ") || codec == name) continue;
        prepare(device, buffers, id);
        codec = name;
      }
      const double seconds = seconds_of(device, c);
      std::printf("%s|%.4f|%.4f\n", c.name.c_str(), static_cast<double>(count) * 4e-9 / seconds,
                  c.bytes / seconds / roof);
    }
  }
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 3) return std::fprintf(stderr, "usage: bench_gpu ROUNDS|values MIB [CASES]\n"), 2;
  const size_t count = static_cast<size_t>(std::atoll(argv[2])) << 18;
  if (std::string(argv[1]) == "values") {
    std::vector<float> values(count);
    bench::fill_like_gradients(values.data(), count);
    return std::fwrite(values.data(), sizeof(float), count, stdout) == count ? 0 : 1;
  }
  const auto table = muster::cuda_table();
  muster::CudaProbe found{};
  if (table.ok()) (*table)->probe(&found);
  if (found.device_count == 0) {
    std::fprintf(stderr, "skipped: %s\n", table.ok() ? found.device_reason : table.error().message.c_str());
    return kSkipped;
  }
  return run(std::atoi(argv[1]), count, argc > 3 ? argv[3] : "");
}
