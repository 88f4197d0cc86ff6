// A program with a communicator and without MPI, for comm.py:
//   comm_pmix results | compressed | again | absent | kill | freeze | mismatch | revoke | leave | refused
#include <algorithm>
#include <cmath>

#include "tests/system/comm_results.h"

namespace {

// From the inputs of all ranks, which every rank can compute.
class Computed {
 public:
  explicit Computed(muster_comm* comm) : rank_(muster_comm_rank(comm)), size_(muster_comm_size(comm)) {}

  template <typename T>
  std::vector<T> all_reduce(uint64_t seed, size_t count, muster_reduce_op op) const {
    std::vector<T> result = input<T>(seed, 0, count);
    for (int rank = 1; rank < size_; ++rank) {
      const std::vector<T> theirs = input<T>(seed, rank, count);
      for (size_t i = 0; i < count; ++i) result[i] = combine(op, result[i], theirs[i]);
    }
    return result;
  }
  template <typename T>
  std::vector<T> reduce_scatter(uint64_t seed, const std::vector<size_t>& counts, muster_reduce_op op) const {
    return block(all_reduce<T>(seed, total(counts), op), counts);
  }
  template <typename T>
  std::vector<T> all_gather(uint64_t seed, const std::vector<size_t>& counts) const {
    std::vector<T> result;
    for (int rank = 0; rank < size_; ++rank) {
      const std::vector<T> theirs = input<T>(seed, rank, counts[static_cast<size_t>(rank)]);
      result.insert(result.end(), theirs.begin(), theirs.end());
    }
    return result;
  }
  template <typename T, typename Between>
  std::vector<T> all_to_all(uint64_t seed, Between between) const {
    std::vector<T> result;
    for (int rank = 0; rank < size_; ++rank) {
      const std::vector<size_t> counts = sent_by(rank, size_, between);
      const std::vector<T> mine = block(input<T>(seed, rank, total(counts)), counts);
      result.insert(result.end(), mine.begin(), mine.end());
    }
    return result;
  }
  template <typename T>
  std::vector<T> broadcast(uint64_t seed, size_t count, int root) const {
    return input<T>(seed, root, count);
  }
  template <typename T>
  std::vector<T> scatter(uint64_t seed, const std::vector<size_t>& counts, int root) const {
    return block(input<T>(seed, root, total(counts)), counts);
  }

 private:
  static size_t total(const std::vector<size_t>& counts) {
    return std::accumulate(counts.begin(), counts.end(), size_t{0});
  }
  template <typename T>
  std::vector<T> block(const std::vector<T>& whole, const std::vector<size_t>& counts) const {
    const auto begin =
        whole.begin() + std::accumulate(counts.begin(), counts.begin() + rank_, std::ptrdiff_t{0});
    return {begin, begin + static_cast<std::ptrdiff_t>(counts[static_cast<size_t>(rank_)])};
  }
  template <typename T>
  static T combine(muster_reduce_op op, T a, T b) {
    switch (op) {
      case MUSTER_MIN:
        return std::min(a, b);
      case MUSTER_MAX:
        return std::max(a, b);
      case MUSTER_PROD:
        return static_cast<T>(a * b);
      default:
        return static_cast<T>(a + b);
    }
  }
  const int rank_;
  const int size_;
};

// Several at once, and one after the last was gone.
int make_again() {
  for (int round = 0; round < 3; ++round) {
    muster_comm* first = nullptr;
    muster_comm* second = nullptr;
    require(muster_comm_create(nullptr, &first), "create");
    require(muster_comm_create(nullptr, &second), "create a second");
    int32_t one = 1;
    int32_t two = 10;
    muster_work* work = nullptr;
    require(muster_comm_all_reduce(first, &one, &one, 1, MUSTER_INT32, MUSTER_SUM, nullptr, &work), "first");
    require(muster_comm_all_reduce(second, &two, &two, 1, MUSTER_INT32, MUSTER_SUM, nullptr, nullptr),
            "second");
    require(muster_work_wait(work, 0), "first, wait");
    muster_work_destroy(work);
    if (one != muster_comm_size(first) || two != 10 * one) die("wrong sums");
    require(muster_comm_barrier(first, nullptr, nullptr), "barrier");
    require(muster_comm_barrier(second, nullptr, nullptr), "barrier");
    muster_comm_destroy(first);
    muster_comm_destroy(second);
  }
  for (int round = 0; round < 40; ++round) {
    muster_comm* comm = nullptr;
    require(muster_comm_create(nullptr, &comm), "create where none is left");
    require(muster_comm_barrier(comm, nullptr, nullptr), "barrier");
    muster_comm_destroy(comm);
  }
  say("made again");
  return 0;
}

// The sum of matrices that are multiples of one is of rank 1, and arrives; the vector beside it as it is.
void reduce_low_rank(muster_comm* comm) {
  constexpr muster_matrix kMatrices[] = {{300, 500}, {1, 77}};
  const int rank = muster_comm_rank(comm), size = muster_comm_size(comm);
  muster_power_sgd_options options{};
  options.size = sizeof options;
  options.low_rank = 1;
  muster_power_sgd* state = nullptr;
  require(muster_power_sgd_create(comm, &options, kMatrices, 2, &state), "power_sgd");
  const auto pattern = [](size_t i) { return static_cast<float>((i / 500 % 5 + 1) * (i % 500 % 7 + 1)); };
  const float ranks_sum = static_cast<float>(size * (size + 1)) / 2;
  for (int step = 0; step < 3; ++step) {
    std::vector<float> matrix(150'000), vector(77, static_cast<float>(rank + 1));
    for (size_t i = 0; i < matrix.size(); ++i) matrix[i] = static_cast<float>(rank + 1) * pattern(i);
    const float* const in[] = {matrix.data(), vector.data()};
    float* const out[] = {matrix.data(), vector.data()};
    require(muster_comm_all_reduce_power_sgd(comm, in, out, 2, MUSTER_SUM, state, nullptr), "low rank");
    for (size_t i = 0; i < matrix.size(); ++i)
      if (std::fabs(matrix[i] - ranks_sum * pattern(i)) > 0.01F)
        die("low rank: wrong at " + std::to_string(i));
    if (vector[76] != ranks_sum) die("low rank: wrong beside it");
    require(muster_power_sgd_commit(state), "commit");
  }
  muster_power_sgd_destroy(state);
}

// Small whole numbers, which 16-bit floats hold: the mean over two or four ranks is exact, and so are the
// halves.
int reduce_compressed(muster_comm* comm) {
  constexpr size_t kCount = 2'500'001;  // several chunks, and none is a multiple of anything
  const int rank = muster_comm_rank(comm), size = muster_comm_size(comm);
  std::vector<float> in(kCount), out(kCount), sum(kCount);
  float ranks_sum = 0;
  for (int other = 0; other < size; ++other) ranks_sum += static_cast<float>(other);
  muster_residuals* residuals = nullptr;
  require(muster_residuals_create(comm, kCount, &residuals), "residuals");
  muster_compression how{};
  how.size = sizeof how;
  how.codec = MUSTER_CODEC_BF16;
  how.residuals = residuals;
  const auto expect_sum = [&](const char* what) {
    for (size_t i = 0; i < kCount; ++i) {
      const float wanted = ranks_sum + static_cast<float>(size) * static_cast<float>(i % 13);
      if (out[i] != wanted) die(std::string(what) + ": wrong at " + std::to_string(i));
    }
  };
  for (how.step = 0; how.step < 3; ++how.step) {
    for (size_t i = 0; i < kCount; ++i) in[i] = static_cast<float>(rank) + static_cast<float>(i % 13);
    require(muster_comm_all_reduce_compressed(comm, in.data(), out.data(), kCount, MUSTER_SUM, &how, nullptr),
            "all_reduce");
    expect_sum("all_reduce");
    require(
        muster_comm_reduce_scatter_compressed(comm, in.data(), sum.data(), kCount, MUSTER_SUM, &how, nullptr),
        "reduce_scatter");
    std::fill(out.begin(), out.end(), 0.0F);
    require(
        muster_comm_all_gather_compressed(comm, sum.data(), out.data(), kCount, MUSTER_SUM, &how, nullptr),
        "all_gather");
    expect_sum("halves");
    require(muster_residuals_commit(residuals), "commit");
  }
  reduce_low_rank(comm);
  // What ranks do not agree upon is told to all.
  how.seed = rank == 0 ? 1 : 2;
  const muster_status status =
      muster_comm_all_reduce_compressed(comm, in.data(), out.data(), kCount, MUSTER_SUM, &how, nullptr);
  if (size > 1 && status != MUSTER_MISUSE) die("another seed was not told: " + std::to_string(status));
  say("compressed, " + std::to_string(size) + " ranks over " + muster_comm_medium(comm));
  muster_residuals_destroy(residuals);
  muster_comm_destroy(comm);
  return 0;
}

// Only rank 0 wants a communicator.
int wait_for_the_absent(bool wants) {
  muster_comm_options options{};
  options.size = sizeof options;
  options.form_timeout_seconds = 1;
  muster_comm* comm = nullptr;
  const double began_s = clock_s();
  if (!wants) {
    sleep(4);
    return 0;
  }
  const muster_status status = muster_comm_create(&options, &comm);
  if (status != MUSTER_RETRY) die("status " + std::to_string(status) + ": " + muster_last_error());
  if (clock_s() - began_s > 3) die("gave up only after " + std::to_string(clock_s() - began_s) + " s");
  say(std::string("gave up: ") + muster_last_error());
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  const std::string mode = argc == 2 ? argv[1] : "";
  const char* const rank = getenv("OMPI_COMM_WORLD_RANK");
  if (mode == "again") return make_again();
  if (mode == "absent") return wait_for_the_absent(rank != nullptr && atoi(rank) == 0);
  muster_comm* comm = nullptr;
  if (mode == "refused") {
    if (muster_comm_create(nullptr, &comm) != MUSTER_MISUSE) die("not refused");
    say(std::string("refused: ") + muster_last_error());
    return 0;
  }
  require(muster_comm_create(nullptr, &comm), "muster_comm_create");
  if (mode == "compressed") return reduce_compressed(comm);
  if (mode != "results") return run_into_trouble(comm, mode);
  Computed reference(comm);
  check_results(comm, reference);
  muster_comm_destroy(comm);
  return 0;
}
