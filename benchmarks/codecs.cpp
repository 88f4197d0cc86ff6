// `scripts/bench codecs`: the gradient codecs on one core, beside the memory bandwidth of the same round.
//   bench_codecs ROUNDS MIB   prints, for each round and case: CASE|GIGABYTES_OF_FLOAT32_A_SECOND|OF_ROOF
//   bench_codecs values MIB   writes the values, for peers that are programs of their own
// OF_ROOF: bytes that the case has to move, over its time, as a part of the best bandwidth of the round.
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#if defined(__x86_64__)
#include <immintrin.h>
#endif
#ifdef MUSTER_BENCH_ZSTD
#include <zstd.h>
#endif
#ifdef MUSTER_BENCH_LZ4
#include <lz4.h>
#endif

#include "benchmarks/turns.h"
#include "benchmarks/values.h"
#include "kernels/codec.h"
#include "kernels/power_sgd.h"

namespace {

using muster::codec::Codec;
using muster::codec::Decode;
using muster::codec::Encode;

constexpr uint32_t kSources = 4;

template <typename T>
struct Free {
  void operator()(T* memory) const { std::free(memory); }
};
template <typename T>
using Array = std::unique_ptr<T[], Free<T>>;

// Aligned to a page, and touched.
template <typename T>
Array<T> array_of(size_t count) {
  const size_t bytes = (count * sizeof(T) + 4095) / 4096 * 4096;
  Array<T> array(static_cast<T*>(std::aligned_alloc(4096, bytes)));
  std::memset(array.get(), 0, bytes);
  return array;
}

// Roofs. AVX2 where there is no AVX-512: either saturates one core's share of memory.
#if defined(__x86_64__)
[[gnu::target("avx2")]] float read_all(const float* from, size_t count) {
  __m256 sum[4] = {};
  for (size_t i = 0; i < count; i += 32) {
    __builtin_prefetch(from + i + 512), __builtin_prefetch(from + i + 528);
    for (size_t k = 0; k < 4; ++k) sum[k] = _mm256_add_ps(sum[k], _mm256_load_ps(from + i + 8 * k));
  }
  return _mm256_cvtss_f32(_mm256_add_ps(_mm256_add_ps(sum[0], sum[1]), _mm256_add_ps(sum[2], sum[3])));
}
[[gnu::target("avx2")]] void stream_all(const float* a, const float* b, float* to, size_t count) {
  for (size_t i = 0; i < count; i += 8) {
    if (i % 16 == 0) __builtin_prefetch(a + i + 512);
    if (i % 16 == 0 && b != nullptr) __builtin_prefetch(b + i + 512);
    const __m256 left = _mm256_load_ps(a + i);
    _mm256_stream_ps(to + i, b == nullptr ? left : _mm256_add_ps(left, _mm256_load_ps(b + i)));
  }
  _mm_sfence();
}
#else
float read_all(const float* from, size_t count) {
  float sum[8] = {};
  for (size_t i = 0; i < count; ++i) sum[i % 8] += from[i];
  return sum[0] + sum[1] + sum[2] + sum[3] + sum[4] + sum[5] + sum[6] + sum[7];
}
void stream_all(const float* a, const float* b, float* to, size_t count) {
  for (size_t i = 0; i < count; ++i) to[i] = b == nullptr ? a[i] : a[i] + b[i];
}
#endif

struct Buffers {
  size_t count;
  Array<float> values, residual, out;
  Array<uint8_t> planes[kSources], more;
  size_t payload_at;  // within the planes

  explicit Buffers(size_t elements)
      : count(elements),
        values(array_of<float>(count)),
        residual(array_of<float>(count)),
        out(array_of<float>(count)),
        more(array_of<uint8_t>(3 * count)),
        payload_at(count / 8) {
    for (auto& each : planes) each = array_of<uint8_t>(3 * count);
    bench::fill_like_gradients(values.get(), count);
  }
};

struct Case {
  std::string name;
  double bytes;  // to be moved
  std::function<void()> run;
};

Encode encode_task(const Buffers& b, uint8_t* planes, bool stochastic, bool feedback) {
  return {.values = b.values.get(),
          .residual = feedback ? b.residual.get() : nullptr,
          .scales = planes,
          .payload = planes + b.payload_at,
          .count = b.count,
          .first_index = 0,
          .stochastic = stochastic,
          .slot = {.seed = 1, .step = 2, .tensor = 3, .lane = 4, .stage = 0}};
}

Decode decode_task(const Buffers& b, uint32_t sources) {
  Decode task = muster::codec::decode_one({}, b.out.get(), b.count);
  task.source_count = sources;
  for (uint32_t s = 0; s < sources; ++s)
    task.sources[s] = {b.planes[s].get(), b.planes[s].get() + b.payload_at};
  task.slot = {.seed = 1, .step = 2, .tensor = 3, .lane = 4, .stage = 0};
  return task;
}

void add_codec(std::vector<Case>& cases, const Codec& codec, Buffers& b) {
  const std::string name(codec.name);
  const double n = static_cast<double>(b.count);
  const double wire = static_cast<double>(muster::codec::scales_bytes_of(codec.shape, b.count) +
                                          muster::codec::payload_bytes_of(codec.shape, b.count));
  const auto encode = [&b, &codec](bool stochastic, bool feedback) {
    return [&b, &codec, stochastic, feedback] {
      codec.encode(encode_task(b, b.more.get(), stochastic, feedback));
    };
  };
  cases.push_back({name + " encode", 4 * n + wire, encode(false, false)});
  if (codec.shape.stochastic)
    cases.push_back({name + " encode, stochastic", 4 * n + wire, encode(true, false)});
  cases.push_back({name + " encode, feedback", 12 * n + wire, encode(false, true)});
  cases.push_back({name + " decode", 4 * n + wire, [&b, &codec] { codec.decode(decode_task(b, 1)); }});
  cases.push_back({name + " sum of 4", 4 * n + kSources * wire,
                   [&b, &codec] { codec.decode(decode_task(b, kSources)); }});
  cases.push_back({name + " sum of 4, encode", (kSources + 1) * wire, [&b, &codec] {
                     Decode from = decode_task(b, kSources);
                     from.values = nullptr;
                     codec.recode(from, encode_task(b, b.more.get(), false, false));
                   }});
}

// PowerSGD of the values as a matrix, as square as can be: what a rank computes before and between its
// all_reduces, and after them. Matrices are read as often as their bytes say; factors stay in the caches.
void add_low_rank(std::vector<Case>& cases, uint32_t rank, Buffers& b) {
  uint64_t columns = 1;
  while (4 * columns * columns <= b.count) columns *= 2;
  const muster::power_sgd::Shape shape{b.count / columns, columns};
  const auto p = std::make_shared<std::vector<float>>(shape.rows * rank);
  const auto q = std::make_shared<std::vector<float>>(shape.columns * rank, 0.5F);
  const auto r = std::make_shared<std::vector<float>>(shape.columns * rank);
  const double n = static_cast<double>(b.count);
  const std::string name = "PowerSGD " + std::to_string(rank);
  cases.push_back({name + " encode, feedback", 24 * n, [=, &b] {
                     using namespace muster::power_sgd;
                     float* const m = b.residual.get();
                     (void)project(b.values.get(), m, m, shape, q->data(), rank, p->data());
                     orthonormalise(p->data(), shape.rows, rank);
                     project_back(m, shape, p->data(), rank, r->data());
                     subtract(p->data(), r->data(), rank, shape, m);
                   }});
  cases.push_back({name + " decode", 4 * n,
                   [=, &b] { muster::power_sgd::expand(p->data(), r->data(), rank, shape, b.out.get()); }});
}

int64_t time_of(const std::function<void()>& run) {
  const int64_t began = bench::now_ns();
  run();
  return bench::now_ns() - began;
}

double gigabytes(double bytes, int64_t nanoseconds) { return bytes / static_cast<double>(nanoseconds); }

// Best of the round's bandwidths, each tried twice.
double roof_of(Buffers& b, double& read_only) {
  [[maybe_unused]] static volatile float sink;
  const double n = static_cast<double>(b.count) * 4;
  double best = 0;
  for (int i = 0; i < 2; ++i) {
    read_only = gigabytes(n, time_of([&] { sink = read_all(b.values.get(), b.count); }));
    const double copy =
        gigabytes(2 * n, time_of([&] { stream_all(b.values.get(), nullptr, b.out.get(), b.count); }));
    const double triad = gigabytes(
        3 * n, time_of([&] { stream_all(b.values.get(), b.residual.get(), b.out.get(), b.count); }));
    best = std::max({best, read_only, copy, triad});
  }
  return best;
}

void print(const std::string& name, double speed, double of_roof) {
  std::printf("%s|%.4f|%.4f\n", name.c_str(), speed, of_roof);
}

void run_round(std::vector<std::vector<Case>>& codecs, const std::vector<Case>& low_rank, Buffers& b,
               const std::vector<Case>& peers) {
  double read_only = 0;
  const double roof = roof_of(b, read_only), n = static_cast<double>(b.count) * 4;
  print("roof", roof, 1.0);
  print("read only", read_only, read_only / roof);
  const auto measure = [&](const Case& c) {
    // In cache one pass is too short for the clock.
    const int repeats = std::max<int>(1, static_cast<int>((size_t{4} << 20) / b.count));
    const int64_t nanoseconds = time_of([&] {
      for (int i = 0; i < repeats; ++i) c.run();
    });
    print(c.name, gigabytes(n * repeats, nanoseconds), gigabytes(c.bytes * repeats, nanoseconds) / roof);
  };
  measure({"memcpy", 2 * n, [&] { std::memcpy(b.out.get(), b.values.get(), b.count * 4); }});
  for (size_t k = 0; k < codecs.size(); ++k) {
    const Codec& codec = muster::codec::codec_of(muster::codec::kCodecIds[k]);
    for (const auto& planes : b.planes) codec.encode(encode_task(b, planes.get(), false, false));
    std::memset(b.residual.get(), 0, b.count * 4);
    for (const Case& c : codecs[k]) measure(c);
  }
  std::memset(b.residual.get(), 0, b.count * 4);
  for (const Case& c : low_rank) measure(c);
  for (const Case& c : peers) measure(c);
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 3) return std::fprintf(stderr, "usage: bench_codecs ROUNDS|values MIB\n"), 2;
  const int rounds = std::atoi(argv[1]);
  Buffers buffers(static_cast<size_t>(std::atoll(argv[2])) << 18);
  if (std::string(argv[1]) == "values")
    return std::fwrite(buffers.values.get(), sizeof(float), buffers.count, stdout) == buffers.count ? 0 : 1;
  std::vector<std::vector<Case>> codecs;
  for (const auto id : muster::codec::kCodecIds) {
    add_codec(codecs.emplace_back(), muster::codec::codec_of(id), buffers);
  }
  std::vector<Case> low_rank;
  for (const uint32_t rank : {1U, 4U, 16U}) add_low_rank(low_rank, rank, buffers);
  std::vector<Case> peers;
  [[maybe_unused]] const size_t bytes = buffers.count * 4;
  // `run` compresses the values and returns how many bytes they became, which the case's name tells; `back`
  // decompresses into `buffers.out`.
  [[maybe_unused]] const auto add_peer = [&](const std::string& name, size_t bound,
                                             std::function<size_t(char*)> run,
                                             const std::function<void(const char*, size_t)>& back) {
    auto memory = std::make_shared<std::vector<char>>(bound);
    const size_t became = run(memory->data());
    const double factor = static_cast<double>(bytes) / static_cast<double>(became);
    back(memory->data(), became);
    if (std::memcmp(buffers.out.get(), buffers.values.get(), bytes) != 0) {
      std::fprintf(stderr, "%s gives other values back\n", name.c_str());
      std::exit(1);
    }
    char named[64];
    std::snprintf(named, sizeof named, "%s to 1/%.2f", name.c_str(), factor);
    peers.push_back({named, 0, [memory, run] { (void)run(memory->data()); }});
  };
#ifdef MUSTER_BENCH_ZSTD
  add_peer(
      "zstd -1", ZSTD_compressBound(bytes),
      [&](char* to) { return ZSTD_compress(to, ZSTD_compressBound(bytes), buffers.values.get(), bytes, 1); },
      [&](const char* from, size_t size) { ZSTD_decompress(buffers.out.get(), bytes, from, size); });
#endif
#ifdef MUSTER_BENCH_LZ4
  const int lz4_bound = LZ4_compressBound(static_cast<int>(bytes));
  add_peer(
      "lz4", static_cast<size_t>(lz4_bound),
      [&](char* to) {
        return static_cast<size_t>(LZ4_compress_default(reinterpret_cast<const char*>(buffers.values.get()),
                                                        to, static_cast<int>(bytes), lz4_bound));
      },
      [&](const char* from, size_t size) {
        LZ4_decompress_safe(from, reinterpret_cast<char*>(buffers.out.get()), static_cast<int>(size),
                            static_cast<int>(bytes));
      });
#endif
  for (int round = 0; round < rounds; ++round) run_round(codecs, low_rank, buffers, peers);
  return 0;
}
