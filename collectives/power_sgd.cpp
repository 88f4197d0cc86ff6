#include "collectives/power_sgd.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <string>

#include "collectives/lane_codec.h"
#include "collectives/rank_bytes.h"
#include "kernels/codec_math.h"
#include "runtime/base/check.h"

namespace muster {
namespace {

using power_sgd::Shape;

constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();
constexpr size_t kMatricesMax = size_t{1} << 30;  // their numbers are Philox's tensors

Error misuse(const std::string& what) { return Error{ErrorCode::kMisuse, "PowerSGD: " + what}; }

// Where a matrix's parts are. Those of one that does not pay: its elements, in the first all_reduce.
struct Place {
  Shape shape;
  bool pays;
  size_t first;     // P, or the elements
  size_t second;    // R, S, and Q
  size_t residual;  // e and M
};

// Calls body(place) for each matrix, in order. Returns the places where all of them end.
template <typename Body>
Place for_places(std::span<const Shape> shapes, uint32_t factors, Body body) {
  Place place{};
  for (const Shape shape : shapes) {
    place.shape = shape;
    place.pays = power_sgd::pays(shape, factors);
    body(place);
    place.first += place.pays ? factors * shape.rows : shape.count();
    place.second += place.pays ? factors * shape.columns : 0;
    place.residual += place.pays ? shape.count() : 0;
  }
  return place;
}

std::string text_of(Shape shape) {
  return std::to_string(shape.rows) + " × " + std::to_string(shape.columns);
}

// What is wrong with them, or empty. No sum of theirs overflows once this has been asked.
std::string objection(std::span<const Shape> shapes, uint32_t factors) {
  if (factors < 1 || factors > power_sgd::kRankMax)
    return "the rank of the factors is " + std::to_string(factors) + "; choose 1 … 1024";
  if (shapes.size() >= kMatricesMax) return "there are 2^30 matrices or more";
  uint64_t elements = 0;
  for (const Shape shape : shapes) {
    if (std::max(shape.rows, shape.columns) > kIndexMax ||
        (shape.rows > 0 && shape.columns > (kIndexMax - elements) / shape.rows))
      return "with a matrix of " + text_of(shape) + " there are 2^51 elements or more";
    elements += shape.count();
  }
  return "";
}

// A start's columns that vanish are drawn anew, from numbers of their own in each step.
void make_start(const PowerSgdState& state, uint64_t step, size_t matrix, Shape shape, float* columns) {
  const RandomSlot slot{
      .seed = state.seed, .step = step, .tensor = static_cast<uint32_t>(matrix), .lane = 0, .stage = 0};
  power_sgd::orthonormalise(columns, shape.columns, state.factors, &slot);
}

// ---- as bytes

struct Header {
  RankHeader head;  // its count: matrices
  uint64_t seed;
  uint64_t steps;
  uint32_t factors;
  uint32_t reserved[3];
};
static_assert(sizeof(Header) == 64);
constexpr RankBytes kFormat{.magic = 0x5053554Du,  // "MUSP" in memory
                            .version = 1,
                            .header_bytes = sizeof(Header),
                            .name = "PowerSGD state",
                            .loss = "make a new state, which loses what earlier steps left out"};
static_assert(sizeof(Shape) == 16, "shapes are written as they are");

size_t bytes_behind_header(size_t matrices, const PowerSgdState::Sizes& sizes) {
  return matrices * sizeof(Shape) + (sizes.residual + sizes.second) * sizeof(float);
}

// But for its vectors: read before the checksum, since sizes say how much memory is needed.
Result<PowerSgdState> frame_of(ByteSpan bytes) {
  MUSTER_ASSIGN(const RankOf of, head_of(kFormat, bytes));
  Header header;
  std::memcpy(&header, bytes.data(), sizeof header);
  const ByteSpan behind = bytes.subspan(sizeof header);
  if (of.count > behind.size() / sizeof(Shape)) return unreadable(kFormat, "are not as many as they say");
  PowerSgdState state;
  state.rank = of.rank;
  state.ranks = of.ranks;
  state.factors = header.factors;
  state.seed = header.seed;
  state.steps = header.steps;
  state.shapes.resize(of.count);
  if (of.count > 0) std::memcpy(state.shapes.data(), behind.data(), of.count * sizeof(Shape));
  if (const std::string wrong = objection(state.shapes, state.factors); !wrong.empty())
    return unreadable(kFormat, "say what cannot be: " + wrong);
  if (behind.size() != bytes_behind_header(of.count, state.sizes()))
    return unreadable(kFormat, "are not as many as they say");
  if (std::ranges::any_of(header.reserved, [](uint32_t word) { return word != 0; }))
    return unreadable(kFormat, "are damaged");
  return state;
}

}  // namespace

Result<PowerSgdState> PowerSgdState::create(Setup setup, int rank, int ranks) {
  if (const std::string wrong = objection(setup.shapes, setup.factors); !wrong.empty()) return misuse(wrong);
  if (rank < 0 || rank >= ranks || ranks > kCompressedLanesMax)
    return misuse("rank " + std::to_string(rank) + " is not one of " + std::to_string(ranks) +
                  ", of which there are at most 65535");
  PowerSgdState state;
  state.rank = rank;
  state.ranks = ranks;
  state.factors = setup.factors;
  state.seed = setup.seed;
  state.shapes = std::move(setup.shapes);
  const Sizes sizes = state.sizes();
  state.residual.resize(sizes.residual);
  state.start.resize(sizes.second);
  size_t matrix = 0;
  for_places(state.shapes, state.factors, [&](const Place& place) {
    if (place.pays) make_start(state, 0, matrix, place.shape, state.start.data() + place.second);
    ++matrix;
  });
  return state;
}

PowerSgdState::Sizes PowerSgdState::sizes() const {
  Sizes sizes;
  const Place end =
      for_places(shapes, factors, [&](const Place& place) { sizes.elements += place.shape.count(); });
  sizes.first = end.first;
  sizes.second = end.second;
  sizes.residual = end.residual;
  return sizes;
}

Result<PowerSgdState> merge_power_sgd(std::span<const PowerSgdState* const> all, std::span<const int> origins,
                                      int rank, bool average) {
  std::vector<Contribution> contributions;
  for (const PowerSgdState* one : all) {
    if (one->shapes != all[0]->shapes || one->factors != all[0]->factors || one->seed != all[0]->seed ||
        one->steps != all[0]->steps || one->start != all[0]->start)
      return misuse("ranks " + std::to_string(all[0]->rank) + " and " + std::to_string(one->rank) +
                    " have states of other matrices, another rank of factors, seed or step; give those that "
                    "all ranks had after the same step");
    contributions.push_back({one->rank, one->ranks, one->residual});
  }
  MUSTER_ASSIGN(std::vector<float> residual, merge_contributions(contributions, origins, rank, average));
  PowerSgdState merged;
  merged.rank = rank;
  merged.ranks = static_cast<int>(origins.size());
  merged.factors = all[0]->factors;
  merged.seed = all[0]->seed;
  merged.steps = all[0]->steps;
  merged.shapes = all[0]->shapes;
  merged.residual = std::move(residual);
  merged.start = all[0]->start;
  return merged;
}

size_t power_sgd_bytes(const PowerSgdState& state) {
  return sizeof(Header) + bytes_behind_header(state.shapes.size(), state.sizes());
}

void write_power_sgd(const PowerSgdState& state, MutableByteSpan bytes) {
  MUSTER_CHECK(bytes.size() == power_sgd_bytes(state), "room for a PowerSGD state of another size");
  const Header header{
      .head = {}, .seed = state.seed, .steps = state.steps, .factors = state.factors, .reserved = {}};
  std::memcpy(bytes.data(), &header, sizeof header);
  const size_t shape_bytes = state.shapes.size() * sizeof(Shape);
  if (shape_bytes > 0) std::memcpy(bytes.data() + sizeof header, state.shapes.data(), shape_bytes);
  const MutableByteSpan values = bytes.subspan(sizeof header + shape_bytes);
  put(values, state.residual);
  put(values.subspan(state.residual.size() * sizeof(float)), state.start);
  seal(kFormat, {state.rank, state.ranks, state.shapes.size()}, bytes);
}

Result<PowerSgdState> read_power_sgd(ByteSpan bytes) {
  MUSTER_ASSIGN(PowerSgdState state, frame_of(bytes));
  MUSTER_TRY(check_seal(kFormat, bytes));
  const PowerSgdState::Sizes sizes = state.sizes();
  state.residual.resize(sizes.residual);
  state.start.resize(sizes.second);
  const ByteSpan values = bytes.subspan(sizeof(Header) + state.shapes.size() * sizeof(Shape));
  if (!take(values, state.residual) || !take(values.subspan(sizes.residual * sizeof(float)), state.start))
    return unreadable(kFormat, "hold a number that is not finite, which no step leaves");
  return state;
}

Status PowerSgdFeedback::commit() {
  MUSTER_TRY(turns_.commit());
  current_.residual.swap(next_residual_);
  current_.start.swap(next_start_);
  ++current_.steps;
  return ok();
}

// ---- the operation

class PowerSgdOperation {
 public:
  PowerSgdOperation(Group& group, std::span<const float* const> in, std::span<float* const> out, bool average,
                    PowerSgdFeedback& feedback)
      : group_(group), in_(in), out_(out), average_(average), feedback_(feedback) {}

  Status check() const;
  // REQUIRES: check().
  Status turn(Instant deadline, std::vector<int>& suspects);

 private:
  struct Matrix : Place {
    bool lost = false;  // not finite, on whatever rank
  };

  const PowerSgdState& state() const { return feedback_.current_; }
  const float* start(const Matrix& matrix) const { return state().start.data() + matrix.second; }
  float* first(const Matrix& matrix) const { return feedback_.first_.data() + matrix.first; }
  float* second(const Matrix& matrix) const { return feedback_.second_.data() + matrix.second; }
  float* summed(const Matrix& matrix) const { return feedback_.summed_.data() + matrix.second; }
  float* next_residual(const Matrix& matrix) const {
    return feedback_.next_residual_.data() + matrix.residual;
  }

  void allocate();
  Status run(Instant deadline, std::vector<int>& suspects);
  void project(const Matrix& matrix, const float* values);
  void project_back(Matrix& matrix);
  void keep_residual(const Matrix& matrix);
  void give(size_t index);
  Work reduce(const std::vector<float>& from, std::vector<float>& to, Instant deadline);
  Status ended(const Work& work, std::vector<int>& suspects) const;
  std::string text() const;

  Group& group_;
  const std::span<const float* const> in_;
  const std::span<float* const> out_;
  const bool average_;
  PowerSgdFeedback& feedback_;
  std::vector<Matrix> matrices_;
  CanonicalLayout layout_;
  std::string text_;
};

Status PowerSgdOperation::check() const {
  const auto& shapes = state().shapes;
  if (in_.size() != shapes.size() || out_.size() != shapes.size())
    return misuse("there are " + std::to_string(in_.size()) + " inputs and " + std::to_string(out_.size()) +
                  " outputs for the " + std::to_string(shapes.size()) + " matrices of the state");
  for (size_t i = 0; i < shapes.size(); ++i) {
    if (shapes[i].count() > 0 && (in_[i] == nullptr || out_[i] == nullptr))
      return misuse("a buffer of matrix " + std::to_string(i) + ", of " + text_of(shapes[i]) + ", is null");
  }
  if (state().rank != group_.rank() || state().ranks != group_.size())
    return misuse("the state is of rank " + std::to_string(state().rank) + " of " +
                  std::to_string(state().ranks) + ", this is rank " + std::to_string(group_.rank()) + " of " +
                  std::to_string(group_.size()) +
                  "; make a new one, or merge those of all ranks for this set of ranks");
  return feedback_.turns_.check_begin();
}

Status PowerSgdOperation::turn(Instant deadline, std::vector<int>& suspects) {
  CommitTurns& turns = feedback_.turns_;
  turns.begin(1);
  try {
    allocate();
    Status status = run(deadline, suspects);
    turns.end(status.ok());
    return status;
  } catch (...) {
    turns.end(false);
    group_.revoke_as_unable("PowerSGD all_reduce");
    throw;
  }
}

// All memory of the operation: what could be thrown is thrown before anything is issued.
void PowerSgdOperation::allocate() {
  const PowerSgdState::Sizes sizes = state().sizes();
  feedback_.next_residual_.resize(sizes.residual);
  feedback_.next_start_.resize(sizes.second);
  feedback_.first_.resize(sizes.first);
  feedback_.second_.resize(sizes.second);
  feedback_.summed_.resize(sizes.second);
  for_places(state().shapes, state().factors, [&](const Place& place) { matrices_.push_back({place}); });
  layout_ = {.microbatches = group_.size(), .lanes = group_.size(), .assignment = {}};
  for (int rank = 0; rank < group_.size(); ++rank) layout_.assignment.push_back({rank, rank + 1});
  text_ = text();
}

// All that ranks have to agree upon.
std::string PowerSgdOperation::text() const {
  constexpr size_t kNamed = 4;
  std::string shapes;
  for (size_t i = 0; i < std::min(kNamed, state().shapes.size()); ++i)
    shapes += (i > 0 ? ", " : "") + text_of(state().shapes[i]);
  if (state().shapes.size() > kNamed) shapes += ", …";
  const Digest all[] = {digest_of(std::as_bytes(std::span(state().shapes))),
                        digest_of(std::as_bytes(std::span(state().start)))};
  return "PowerSGD all_reduce of " + std::to_string(state().shapes.size()) + " matrices (" + shapes +
         ") by rank " + std::to_string(state().factors) + (average_ ? ", avg" : ", sum") + ", step " +
         std::to_string(state().steps) + ", seed " + std::to_string(state().seed) + ", shapes and starts " +
         to_string(digest_of(all)).substr(0, 8);
}

Status PowerSgdOperation::run(Instant deadline, std::vector<int>& suspects) {
  for (size_t i = 0; i < matrices_.size(); ++i) project(matrices_[i], in_[i]);
  MUSTER_TRY(ended(reduce(feedback_.first_, feedback_.first_, deadline), suspects));
  for (Matrix& matrix : matrices_) project_back(matrix);
  Work reduction;
  if (!feedback_.second_.empty()) reduction = reduce(feedback_.second_, feedback_.summed_, deadline);
  for (const Matrix& matrix : matrices_) keep_residual(matrix);
  MUSTER_TRY(ended(reduction, suspects));
  for (size_t i = 0; i < matrices_.size(); ++i) give(i);
  return ok();
}

// M, and this rank's part of P; or the elements as they are.
void PowerSgdOperation::project(const Matrix& matrix, const float* values) {
  if (!matrix.pays) {
    if (matrix.shape.count() > 0) std::copy_n(values, matrix.shape.count(), first(matrix));
    return;
  }
  const float* const residual = state().residual.data() + matrix.residual;
  const bool fine = power_sgd::project(values, residual, next_residual(matrix), matrix.shape, start(matrix),
                                       state().factors, first(matrix));
  // So that all ranks see it: a product with an infinity may be one, or a NaN, or have been rounded off.
  if (!fine) *first(matrix) = kNaN;
}

void PowerSgdOperation::project_back(Matrix& matrix) {
  if (!matrix.pays) return;
  const std::span<float> p(first(matrix), state().factors * matrix.shape.rows);
  matrix.lost = !std::ranges::all_of(p, [](float value) { return std::isfinite(value); });
  if (matrix.lost) {
    std::fill_n(second(matrix), state().factors * matrix.shape.columns, 0.0F);
    return;
  }
  power_sgd::orthonormalise(p.data(), matrix.shape.rows, state().factors);
  power_sgd::project_back(next_residual(matrix), matrix.shape, p.data(), state().factors, second(matrix));
}

// e' in the place of M; where the matrix is lost, e.
void PowerSgdOperation::keep_residual(const Matrix& matrix) {
  if (!matrix.pays) return;
  if (matrix.lost) {
    std::copy_n(state().residual.data() + matrix.residual, matrix.shape.count(), next_residual(matrix));
    return;
  }
  power_sgd::subtract(first(matrix), second(matrix), state().factors, matrix.shape, next_residual(matrix));
}

// The result, and the next step's start.
void PowerSgdOperation::give(size_t index) {
  const Matrix& matrix = matrices_[index];
  float* const out = out_[index];
  if (!matrix.pays) {
    const float* const mean = first(matrix);
    for (uint64_t i = 0; i < matrix.shape.count(); ++i) out[i] = codec::canonical(mean[i]);
    return;
  }
  float* const next = feedback_.next_start_.data() + matrix.second;
  const size_t start_count = state().factors * matrix.shape.columns;
  if (matrix.lost) {
    std::fill_n(out, matrix.shape.count(), kNaN);
    std::copy_n(start(matrix), start_count, next);
    return;
  }
  power_sgd::expand(first(matrix), summed(matrix), state().factors, matrix.shape, out);
  std::copy_n(summed(matrix), start_count, next);
  make_start(state(), state().steps + 1, index, matrix.shape, next);
}

// Along the tree of one lane each: a plain reduction's traffic, and bits that do not depend on how ranks
// talk.
Work PowerSgdOperation::reduce(const std::vector<float>& from, std::vector<float>& to, Instant deadline) {
  const float* const partial = from.data();
  const float scale = average_ ? 1.0F / static_cast<float>(group_.size()) : 1.0F;
  return group_.canonical_all_reduce({&partial, 1}, to.data(), from.size(), layout_, deadline, scale,
                                     digest_of(as_bytes(text_)).low);
}

Status PowerSgdOperation::ended(const Work& work, std::vector<int>& suspects) const {
  // It ends by its own deadline, and until then it may write to the buffers.
  const Status status = work.wait(kNever);
  if (status.ok()) return status;
  suspects = work.suspects();
  if (status.error().code != ErrorCode::kMisuse) return status;
  return Error{ErrorCode::kMisuse, status.error().message + " (this rank: " + text_ + ")"};
}

Status power_sgd_all_reduce(Group& group, std::span<const float* const> in, std::span<float* const> out,
                            bool average, PowerSgdFeedback& feedback, Instant deadline,
                            std::vector<int>& suspects) {
  PowerSgdOperation operation(group, in, out, average, feedback);
  MUSTER_TRY(operation.check());
  return operation.turn(deadline, suspects);
}

}  // namespace muster
