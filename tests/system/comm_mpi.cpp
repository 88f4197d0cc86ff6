// An MPI program with communicators of its MPI_Comms, for comm.py:
//   comm_mpi results | kill | mismatch | absent | refused | session | mpich
// Built for Open MPI, and for MPICH, where it must be refused.
#include <mpi.h>

#include <muster/muster.hpp>
#include <thread>

#include "tests/system/comm_results.h"

namespace {

template <typename T>
MPI_Datatype mpi_type();
#define COMM_MPI_TYPE(type, mpi)  \
  template <>                     \
  MPI_Datatype mpi_type<type>() { \
    return mpi;                   \
  }
COMM_MPI_TYPE(float, MPI_FLOAT)
COMM_MPI_TYPE(double, MPI_DOUBLE)
COMM_MPI_TYPE(int8_t, MPI_INT8_T)
COMM_MPI_TYPE(uint8_t, MPI_UINT8_T)
COMM_MPI_TYPE(int16_t, MPI_INT16_T)
COMM_MPI_TYPE(int32_t, MPI_INT32_T)
COMM_MPI_TYPE(int64_t, MPI_INT64_T)
COMM_MPI_TYPE(uint64_t, MPI_UINT64_T)

MPI_Op mpi_op(muster_reduce_op op) {
  switch (op) {
    case MUSTER_MIN:
      return MPI_MIN;
    case MUSTER_MAX:
      return MPI_MAX;
    case MUSTER_PROD:
      return MPI_PROD;
    default:
      return MPI_SUM;
  }
}

// By the collectives of MPI itself.
class ByMpi {
 public:
  explicit ByMpi(MPI_Comm comm) : comm_(comm) {
    MPI_Comm_rank(comm, &rank_);
    MPI_Comm_size(comm, &size_);
  }

  template <typename T>
  std::vector<T> all_reduce(uint64_t seed, size_t count, muster_reduce_op op) const {
    const std::vector<T> in = input<T>(seed, rank_, count);
    std::vector<T> out(count);
    MPI_Allreduce(in.data(), out.data(), static_cast<int>(count), mpi_type<T>(), mpi_op(op), comm_);
    return out;
  }
  template <typename T>
  std::vector<T> reduce_scatter(uint64_t seed, const std::vector<size_t>& counts, muster_reduce_op op) const {
    const Layout layout(counts);
    const std::vector<T> in = input<T>(seed, rank_, layout.total);
    std::vector<T> out(counts[static_cast<size_t>(rank_)]);
    MPI_Reduce_scatter(in.data(), out.data(), layout.counts.data(), mpi_type<T>(), mpi_op(op), comm_);
    return out;
  }
  template <typename T>
  std::vector<T> all_gather(uint64_t seed, const std::vector<size_t>& counts) const {
    const Layout layout(counts);
    const std::vector<T> in = input<T>(seed, rank_, counts[static_cast<size_t>(rank_)]);
    std::vector<T> out(layout.total);
    MPI_Allgatherv(in.data(), static_cast<int>(in.size()), mpi_type<T>(), out.data(), layout.counts.data(),
                   layout.offsets.data(), mpi_type<T>(), comm_);
    return out;
  }
  template <typename T, typename Between>
  std::vector<T> all_to_all(uint64_t seed, Between between) const {
    const Layout sent(sent_by(rank_, size_, between)), received(received_by(rank_, size_, between));
    const std::vector<T> in = input<T>(seed, rank_, sent.total);
    std::vector<T> out(received.total);
    MPI_Alltoallv(in.data(), sent.counts.data(), sent.offsets.data(), mpi_type<T>(), out.data(),
                  received.counts.data(), received.offsets.data(), mpi_type<T>(), comm_);
    return out;
  }
  template <typename T>
  std::vector<T> broadcast(uint64_t seed, size_t count, int root) const {
    std::vector<T> values = input<T>(seed, rank_, count);
    MPI_Bcast(values.data(), static_cast<int>(count), mpi_type<T>(), root, comm_);
    return values;
  }
  template <typename T>
  std::vector<T> scatter(uint64_t seed, const std::vector<size_t>& counts, int root) const {
    const Layout layout(counts);
    const std::vector<T> in = input<T>(seed, rank_, layout.total);
    std::vector<T> out(counts[static_cast<size_t>(rank_)]);
    MPI_Scatterv(in.data(), layout.counts.data(), layout.offsets.data(), mpi_type<T>(), out.data(),
                 static_cast<int>(out.size()), mpi_type<T>(), root, comm_);
    return out;
  }

 private:
  struct Layout {
    explicit Layout(const std::vector<size_t>& of) {
      for (const size_t count : of) {
        offsets.push_back(static_cast<int>(total));
        counts.push_back(static_cast<int>(count));
        total += count;
      }
    }
    std::vector<int> counts, offsets;
    size_t total = 0;
  };
  MPI_Comm comm_;
  int rank_ = 0;
  int size_ = 0;
};

muster_comm* comm_of(MPI_Comm mpi) {
  muster_comm* comm = nullptr;
  require(muster_comm_from_mpi(&mpi, nullptr, &comm), "muster_comm_from_mpi");
  return comm;
}

void refused(const char* what, const void* mpi, const std::string& sentence) {
  muster_comm* comm = nullptr;
  const muster_status status = muster_comm_from_mpi(mpi, nullptr, &comm);
  const std::string said = muster_last_error();
  if (status != MUSTER_MISUSE || comm != nullptr || said.find(sentence) == std::string::npos)
    die(std::string(what) + " gave status " + std::to_string(status) + ": " + said);
}

// The world and its halves, all at the same time; and they go on when MPI is gone.
void results() {
  int rank = 0;
  MPI_Comm_rank(MPI_COMM_WORLD, &rank);
  MPI_Comm half = MPI_COMM_NULL;
  MPI_Comm_split(MPI_COMM_WORLD, rank % 2, -rank, &half);  // in reverse order
  muster_comm* whole = comm_of(MPI_COMM_WORLD);
  muster_comm* mine = comm_of(half);
  int half_rank = 0;
  MPI_Comm_rank(half, &half_rank);
  if (muster_comm_rank(whole) != rank || muster_comm_rank(mine) != half_rank) die("ranks are not MPI's");
  ByMpi of_world(MPI_COMM_WORLD);
  ByMpi of_half(half);
  check_results(whole, of_world);
  check_results(mine, of_half);
  muster_comm_destroy(mine);
  MPI_Comm_free(&half);
  MPI_Finalize();
  int32_t sum = 1;
  require(muster_comm_all_reduce(whole, &sum, &sum, 1, MUSTER_INT32, MUSTER_SUM, nullptr, nullptr),
          "all_reduce after MPI_Finalize");
  if (sum != muster_comm_size(whole)) die("a wrong sum after MPI_Finalize");
  const MPI_Comm world = MPI_COMM_WORLD;
  refused("MPI after its end", &world, "finalised already");
  muster_comm_destroy(whole);
}

void absent() {
  int rank = 0;
  MPI_Comm_rank(MPI_COMM_WORLD, &rank);
  if (rank == 0) {
    const MPI_Comm world = MPI_COMM_WORLD;
    muster_comm_options options{};
    options.size = sizeof options;
    options.form_timeout_seconds = 1;
    muster_comm* comm = nullptr;
    const muster_status status = muster_comm_from_mpi(&world, &options, &comm);
    if (status != MUSTER_RETRY) die("status " + std::to_string(status) + ": " + muster_last_error());
    say(std::string("gave up: ") + muster_last_error());
  } else {
    sleep(3);
  }
  _exit(0);  // a duplicate is half made: MPI_Finalize would wait for it
}

void all_refused(int level) {
  const MPI_Comm null = MPI_COMM_NULL;
  refused("MPI_COMM_NULL", &null, "MPI_COMM_NULL");
  int rank = 0;
  MPI_Comm_rank(MPI_COMM_WORLD, &rank);
  MPI_Comm half = MPI_COMM_NULL;
  MPI_Comm inter = MPI_COMM_NULL;
  MPI_Comm_split(MPI_COMM_WORLD, rank % 2, rank, &half);
  MPI_Intercomm_create(half, 0, MPI_COMM_WORLD, 1 - rank % 2, 7, &inter);
  refused("an intercommunicator", &inter, "intercommunicator");
  MPI_Comm_free(&inter);
  MPI_Comm_free(&half);
  const MPI_Comm world = MPI_COMM_WORLD;
  if (level < MPI_THREAD_SERIALIZED)
    std::thread([&] { refused("another thread", &world, "main thread only"); }).join();
  say("all refused");
}

// A training run in the middle of an MPI program.
void session() {
  int rank = 0;
  int size = 0;
  MPI_Comm_rank(MPI_COMM_WORLD, &rank);
  MPI_Comm_size(MPI_COMM_WORLD, &size);
  std::vector<float> weight(1, 1.0F);
  std::vector<float> gradient(1, 0.0F);
  {
    muster::Session joined;
    muster::State state(joined);
    state.replicated("weight", weight.data(), {1});
    muster::TrainOptions options;
    options.steps = 20;
    options.microbatches = options.lanes = 4;
    options.dataset_samples = 100;
    muster::Run run(joined, state, options);
    while (auto step = run.next()) {
      gradient[0] = 0.0F;
      for (const auto& micro : step.microbatches()) {
        gradient[0] = 1.0F;
        step.accumulate(micro, gradient);
      }
      if (!step.reduce(gradient)) continue;
      float seen = gradient[0];
      float most = 0.0F;
      MPI_Allreduce(&seen, &most, 1, MPI_FLOAT, MPI_MAX,
                    MPI_COMM_WORLD);  // the program's own traffic, between
      if (auto update = step.update()) weight[0] -= 0.03125F * most;
    }
    if (run.exit_code() != 0 || run.info().world_size != size)
      die("the run ended with " + std::to_string(run.exit_code()));
  }
  float most = 0.0F;
  MPI_Allreduce(weight.data(), &most, 1, MPI_FLOAT, MPI_MAX, MPI_COMM_WORLD);
  if (weight[0] != 0.375F || most != 0.375F) die("the weight is " + std::to_string(weight[0]));
  say("trained in a world of " + std::to_string(size));
}

}  // namespace

int main(int argc, char** argv) try {
  const std::string mode = argc == 2 ? argv[1] : "";
  const MPI_Comm world = MPI_COMM_WORLD;
#ifdef OPEN_MPI
  refused("MPI before its beginning", &world, "not initialised");
#endif
  int level = 0;
  MPI_Init_thread(&argc, &argv, MPI_THREAD_FUNNELED, &level);
  if (mode == "mpich") {
    refused("another MPI", &world, "MPICH");
    say(std::string("refused: ") + muster_last_error());
  } else if (mode == "results") {
    results();
    return 0;
  } else if (mode == "absent") {
    absent();
  } else if (mode == "refused") {
    all_refused(level);
  } else if (mode == "session") {
    session();
  } else {
    const int code = run_into_trouble(comm_of(MPI_COMM_WORLD), mode);
    _exit(code);  // MPI_Finalize would wait for the dead
  }
  MPI_Finalize();
  return 0;
} catch (const muster::Failure& failure) {
  die(failure.what());
}
