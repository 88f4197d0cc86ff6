// Muster for C++17 and later: a header-only wrapper over muster.h, which is the manual. Start here in C++.
//
//     muster::Session session;
//     muster::State state(session);
//     state.replicated("weights", weights.data(), {rows, columns});
//     muster::Run run(session, state, options);
//     while (auto step = run.next()) {
//       std::fill(grads.begin(), grads.end(), 0.0f);      // reduce left the last step's mean there
//       for (const muster::Microbatch& micro : step.microbatches()) {
//         forward_backward(micro, weights, grads);
//         step.accumulate(micro, grads);                  // adds along the tree, zeroes grads
//       }
//       if (!step.reduce(grads)) continue;                // false: the same step again, under a new view
//       if (auto update = step.update()) optimizer(weights, grads);
//     }
//     return run.exit_code();
//
// Failures that the program can do nothing about in place are thrown as muster::Failure; "the view changed"
// is a false return, never an exception. Everything here is inline and owns nothing but C handles.
#pragma once

#include <muster/muster.h>

#include <cstdint>
#include <exception>
#include <initializer_list>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

namespace muster {

class Failure : public std::runtime_error {
 public:
  Failure(muster_status status, const std::string& what) : std::runtime_error(what), status_(status) {}
  muster_status status() const { return status_; }
  // For main(): 78 (do not requeue) where a person must change something, else 1.
  int exit_code() const { return status_ == MUSTER_MISUSE || status_ == MUSTER_ENVIRONMENT ? 78 : 1; }

 private:
  muster_status status_;
};

namespace detail {
inline void check(muster_status status) {
  if (status != MUSTER_OK) throw Failure(status, muster_last_error());
}
// True: done. False: the view changed. Anything else is thrown.
inline bool check_or_again(muster_status status) {
  if (status == MUSTER_AGAIN) return false;
  check(status);
  return true;
}
struct LeaveSession {
  void operator()(muster_session* session) const { muster_leave(session); }
};
struct DestroyState {
  void operator()(muster_state* state) const { muster_state_destroy(state); }
};
struct DestroyRun {
  void operator()(muster_run* run) const { muster_run_destroy(run); }
};
struct DestroyComm {
  void operator()(muster_comm* comm) const { muster_comm_destroy(comm); }
};
struct DestroyWork {
  void operator()(muster_work* work) const { muster_work_destroy(work); }
};
struct DestroyResiduals {
  void operator()(muster_residuals* residuals) const { muster_residuals_destroy(residuals); }
};
struct DestroyPowerSgd {
  void operator()(muster_power_sgd* state) const { muster_power_sgd_destroy(state); }
};
}  // namespace detail

// A program with types of its own for narrow floats may add them.
template <typename T>
struct DTypeOf;
template <>
struct DTypeOf<float> {
  static constexpr muster_dtype value = MUSTER_FLOAT32;
};
template <>
struct DTypeOf<double> {
  static constexpr muster_dtype value = MUSTER_FLOAT64;
};
template <>
struct DTypeOf<int32_t> {
  static constexpr muster_dtype value = MUSTER_INT32;
};
template <>
struct DTypeOf<int64_t> {
  static constexpr muster_dtype value = MUSTER_INT64;
};
template <>
struct DTypeOf<uint8_t> {
  static constexpr muster_dtype value = MUSTER_UINT8;
};
template <>
struct DTypeOf<int8_t> {
  static constexpr muster_dtype value = MUSTER_INT8;
};
template <>
struct DTypeOf<int16_t> {
  static constexpr muster_dtype value = MUSTER_INT16;
};
template <>
struct DTypeOf<uint16_t> {
  static constexpr muster_dtype value = MUSTER_UINT16;
};
template <>
struct DTypeOf<uint32_t> {
  static constexpr muster_dtype value = MUSTER_UINT32;
};
template <>
struct DTypeOf<uint64_t> {
  static constexpr muster_dtype value = MUSTER_UINT64;
};

using Microbatch = muster_microbatch;
using EventCallback = muster_event_callback;

class Session {
 public:
  explicit Session(EventCallback on_event = nullptr, void* context = nullptr) {
    muster_join_options options{sizeof(muster_join_options), on_event, context, 0};
    muster_session* session = nullptr;
    detail::check(muster_join(&options, &session));
    handle_.reset(session);
  }
  static Session join() { return Session(); }
  void notice(double seconds_left, const std::string& source) {
    detail::check(muster_session_notice(handle_.get(), seconds_left, source.c_str()));
  }
  muster_session* handle() const { return handle_.get(); }

 private:
  std::unique_ptr<muster_session, detail::LeaveSession> handle_;
};

class Step;

// Rows [begin, begin + count) of a sharded tensor.
template <typename T>
struct Piece {
  T* data;
  int64_t begin;
  int64_t count;
};

// A tensor of which each process holds some rows: muster_state_sharded.
template <typename T>
class Sharded {
 public:
  explicit Sharded(std::string name) : name_(std::move(name)) {}
  // This process's, to be written in the open update; valid until it closes.
  std::vector<Piece<T>> local(Step& step) const;

 private:
  std::string name_;
};

class State {
 public:
  explicit State(const Session& session) {
    muster_state* state = nullptr;
    detail::check(muster_state_create(session.handle(), &state));
    handle_.reset(state);
  }
  template <typename T>
  void replicated(const std::string& name, T* data, std::initializer_list<int64_t> shape) {
    replicated(name, data, DTypeOf<T>::value, std::vector<int64_t>(shape));
  }
  void replicated(const std::string& name, void* data, muster_dtype dtype,
                  const std::vector<int64_t>& shape) {
    detail::check(
        muster_state_replicated(handle_.get(), name.c_str(), data, dtype, shape.data(), shape.size()));
  }
  // In memory that may be a CUDA device's: muster_memory.
  template <typename T>
  void replicated_in(muster_memory memory, const std::string& name, T* data,
                     std::initializer_list<int64_t> shape) {
    replicated_in(memory, name, data, DTypeOf<T>::value, std::vector<int64_t>(shape));
  }
  void replicated_in(muster_memory memory, const std::string& name, void* data, muster_dtype dtype,
                     const std::vector<int64_t>& shape) {
    detail::check(muster_state_replicated_in(handle_.get(), name.c_str(), memory, data, dtype, shape.data(),
                                             shape.size()));
  }
  // A row for each lane, which the forward pass changes: muster_state_per_lane.
  template <typename T>
  void per_lane(const std::string& name, T* data, std::initializer_list<int64_t> shape) {
    per_lane(name, data, DTypeOf<T>::value, std::vector<int64_t>(shape));
  }
  void per_lane(const std::string& name, void* data, muster_dtype dtype, const std::vector<int64_t>& shape) {
    detail::check(
        muster_state_per_lane(handle_.get(), name.c_str(), data, dtype, shape.data(), shape.size()));
  }
  // `working_copy`: null, or memory for all of it, filled at the beginning of each step.
  template <typename T>
  Sharded<T> sharded(const std::string& name, const std::vector<int64_t>& shape, T* working_copy = nullptr) {
    detail::check(muster_state_sharded(handle_.get(), name.c_str(), working_copy, DTypeOf<T>::value,
                                       shape.data(), shape.size()));
    return Sharded<T>(name);
  }
  // Of a tensor that is registered already.
  void expect(const std::string& name, muster_expectation expectation) {
    detail::check(muster_state_expect(handle_.get(), name.c_str(), expectation));
  }
  muster_state* handle() const { return handle_.get(); }

 private:
  std::unique_ptr<muster_state, detail::DestroyState> handle_;
};

struct TrainOptions : muster_train_options {
  TrainOptions() { muster_train_options_init(this); }
};

// The scope in which the state is mutable. False where it was refused: go on with the next step.
class Update {
 public:
  explicit Update(muster_step* step)
      : step_(detail::check_or_again(muster_step_open_update(step)) ? step : nullptr) {}
  Update(Update&& other) noexcept : step_(other.step_), exceptions_(other.exceptions_) {
    other.step_ = nullptr;
  }
  Update(const Update&) = delete;
  Update& operator=(const Update&) = delete;
  Update& operator=(Update&&) = delete;
  ~Update() {
    if (step_ == nullptr) return;
    if (std::uncaught_exceptions() > exceptions_) {
      muster_step_abandon_update(step_);  // half written: no version
    } else {
      muster_step_close_update(step_);
    }
  }
  explicit operator bool() const { return step_ != nullptr; }

 private:
  muster_step* step_;
  int exceptions_ = std::uncaught_exceptions();  // on their way when the update was opened
};

// This process's microbatches of one step, each handed out once.
class Microbatches {
 public:
  struct End {};
  class Iterator {
   public:
    explicit Iterator(muster_step* step) : step_(step) { ++*this; }
    const Microbatch& operator*() const { return microbatch_; }
    Iterator& operator++() {
      if (muster_step_next_microbatch(step_, &microbatch_) == 0) step_ = nullptr;
      return *this;
    }
    bool operator!=(End) const { return step_ != nullptr; }

   private:
    muster_step* step_;
    Microbatch microbatch_{};
  };
  explicit Microbatches(muster_step* step) : step_(step) {}
  Iterator begin() const { return Iterator(step_); }
  End end() const { return {}; }

 private:
  muster_step* step_;
};

class Step {
 public:
  explicit Step(muster_step* step) : step_(step) {}
  explicit operator bool() const { return step_ != nullptr; }
  int64_t index() const { return muster_step_index(step_); }
  Microbatches microbatches() const { return Microbatches(step_); }

  void accumulate(const Microbatch& microbatch, std::initializer_list<muster_span> gradients) {
    detail::check_or_again(muster_step_accumulate(step_, &microbatch, gradients.begin(), gradients.size()));
  }
  void accumulate(const Microbatch& microbatch, std::vector<float>& gradients) {
    accumulate(microbatch, {{gradients.data(), gradients.size()}});
  }
  // Elements [begin, end) of all the gradients together, as soon as they are final:
  // muster_step_accumulate_part.
  void accumulate(const Microbatch& microbatch, std::initializer_list<muster_span> gradients, size_t begin,
                  size_t end) {
    detail::check_or_again(
        muster_step_accumulate_part(step_, &microbatch, gradients.begin(), gradients.size(), begin, end));
  }
  void accumulate(const Microbatch& microbatch, std::vector<float>& gradients, size_t begin, size_t end) {
    accumulate(microbatch, {{gradients.data(), gradients.size()}}, begin, end);
  }
  bool reduce(std::initializer_list<muster_span> gradients) {
    return detail::check_or_again(muster_step_reduce(step_, gradients.begin(), gradients.size()));
  }
  bool reduce(std::vector<float>& gradients) { return reduce({{gradients.data(), gradients.size()}}); }
  Update update() { return Update(step_); }
  muster_step* handle() const { return step_; }

 private:
  muster_step* step_;
};

template <typename T>
std::vector<Piece<T>> Sharded<T>::local(Step& step) const {
  const muster_piece* pieces = nullptr;
  size_t count = 0;
  detail::check(muster_step_pieces(step.handle(), name_.c_str(), &pieces, &count));
  std::vector<Piece<T>> local;
  for (size_t i = 0; i < count; ++i)
    local.push_back({static_cast<T*>(pieces[i].data), pieces[i].begin, pieces[i].count});
  return local;
}

class Run {
 public:
  Run(const Session& session, const State& state, const muster_train_options& options) {
    muster_run* run = nullptr;
    detail::check(muster_train(session.handle(), state.handle(), &options, &run));
    handle_.reset(run);
  }
  void probe(const void* results, size_t bytes) {
    detail::check(muster_run_probe(handle_.get(), results, bytes));
  }
  Step next() {
    muster_step* step = nullptr;
    detail::check(muster_run_next(handle_.get(), &step));
    return Step(step);
  }
  muster_run_info info() const {
    muster_run_info info{};
    info.size = sizeof info;
    detail::check(muster_run_get_info(handle_.get(), &info));
    return info;
  }
  int exit_code() const { return muster_run_exit_code(handle_.get()); }

 private:
  std::unique_ptr<muster_run, detail::DestroyRun> handle_;
};

// ---- collectives on their own; the manual is at muster_comm in muster.h

// How one operation is carried out.
struct Call : muster_call {
  explicit Call(double timeout = 0, double premul_factor = 1) : muster_call{} {
    size = sizeof(muster_call);
    timeout_seconds = timeout;
    factor = premul_factor;
  }
};

// An operation under way. Empty: has ended.
class Work {
 public:
  Work() = default;
  explicit Work(muster_work* handle) : handle_(handle) {}
  // Throws where the operation failed.
  bool test() const {
    int32_t done = 1;
    if (handle_ != nullptr) detail::check(muster_work_test(handle_.get(), &done));
    return done != 0;
  }
  // False: it goes on after that many seconds. Throws where the operation failed.
  bool wait(double timeout_seconds = 0) const {
    const muster_status status =
        handle_ != nullptr ? muster_work_wait(handle_.get(), timeout_seconds) : MUSTER_OK;
    if (status == MUSTER_RETRY) return false;
    detail::check(status);
    return true;
  }
  muster_work* handle() const { return handle_.get(); }

 private:
  std::unique_ptr<muster_work, detail::DestroyWork> handle_;
};

// What this thread issues while it lives goes on at once and waits for nothing before end():
//
//     muster::Batch batch;
//     comm.send(mine, count, next);
//     comm.recv(theirs, count, previous);
//     batch.end();                                                // throws the first failure
//
// Without end(), as when an exception passes, it waits for what was issued and drops its failures.
class Batch {
 public:
  Batch() { detail::check(muster_group_start()); }
  ~Batch() {
    if (open_) muster_group_end();
  }
  Batch(const Batch&) = delete;
  Batch& operator=(const Batch&) = delete;
  void end() {
    if (!open_) return;
    open_ = false;
    detail::check(muster_group_end());
  }

 private:
  bool open_ = true;
};

//     muster::Communicator comm;                                  // of all that mpirun or srun started
//     comm.all_reduce(in, out, count);                            // blocking
//     muster::Work work;
//     comm.all_reduce(in, out, count, MUSTER_SUM, muster::Call(), &work);   // in the background
//
// Within a muster::Batch none of them waits. Failures of operations are thrown as muster::Failure; with
// status MUSTER_AGAIN the communicator is unusable.
class Communicator {
 public:
  explicit Communicator(const muster_comm_options* options = nullptr) {
    muster_comm* comm = nullptr;
    detail::check(muster_comm_create(options, &comm));
    handle_.reset(comm);
  }

  // Of an MPI communicator: Communicator::from_mpi(&mpi_comm).
  static Communicator from_mpi(const void* mpi_comm, const muster_comm_options* options = nullptr) {
    muster_comm* comm = nullptr;
    detail::check(muster_comm_from_mpi(mpi_comm, options, &comm));
    return Communicator(comm);
  }
  explicit Communicator(muster_comm* handle) : handle_(handle) {}

  // With a null handle where the color is negative.
  Communicator split(int color, int key = 0, const muster_comm_options* options = nullptr) {
    muster_comm* part = nullptr;
    detail::check(muster_comm_split(handle_.get(), color, key, options, &part));
    return Communicator(part);
  }

  void tune(const muster_call* call = nullptr) { detail::check(muster_comm_tune(handle_.get(), call)); }

  int rank() const { return muster_comm_rank(handle_.get()); }
  int size() const { return muster_comm_size(handle_.get()); }
  std::string medium() const { return muster_comm_medium(handle_.get()); }
  void revoke(const std::string& reason) { detail::check(muster_comm_revoke(handle_.get(), reason.c_str())); }
  std::vector<int32_t> failed_ranks() const {
    std::vector<int32_t> ranks(muster_comm_failed_ranks(handle_.get(), nullptr, 0));
    muster_comm_failed_ranks(handle_.get(), ranks.data(), ranks.size());
    return ranks;
  }
  template <typename T>
  T* allocate(size_t count) {
    void* data = nullptr;
    detail::check(muster_comm_allocate(handle_.get(), count * sizeof(T), &data));
    return static_cast<T*>(data);
  }
  void free(void* data) { detail::check(muster_comm_free(handle_.get(), data)); }

  template <typename T>
  void all_reduce(const T* in, T* out, size_t count, muster_reduce_op op = MUSTER_SUM,
                  const Call& call = Call(), Work* work = nullptr) {
    run(work, muster_comm_all_reduce, in, out, count, DTypeOf<T>::value, op, &call);
  }
  template <typename T>
  void reduce(const T* in, T* out, size_t count, int root, muster_reduce_op op = MUSTER_SUM,
              const Call& call = Call(), Work* work = nullptr) {
    run(work, muster_comm_reduce, in, out, count, DTypeOf<T>::value, op, root, &call);
  }
  template <typename T>
  void reduce_scatter(const T* in, T* out, size_t count, muster_reduce_op op = MUSTER_SUM,
                      const Call& call = Call(), Work* work = nullptr) {
    run(work, muster_comm_reduce_scatter, in, out, count, DTypeOf<T>::value, op, &call);
  }
  template <typename T>
  void reduce_scatter(const T* in, T* out, const std::vector<size_t>& counts,
                      muster_reduce_op op = MUSTER_SUM, const Call& call = Call(), Work* work = nullptr) {
    run(work, muster_comm_reduce_scatter_v, in, out, of_all(counts), DTypeOf<T>::value, op, &call);
  }
  template <typename T>
  void all_gather(const T* in, T* out, size_t count, const Call& call = Call(), Work* work = nullptr) {
    run(work, muster_comm_all_gather, in, out, count, DTypeOf<T>::value, &call);
  }
  template <typename T>
  void all_gather(const T* in, T* out, const std::vector<size_t>& counts, const Call& call = Call(),
                  Work* work = nullptr) {
    run(work, muster_comm_all_gather_v, in, out, of_all(counts), DTypeOf<T>::value, &call);
  }
  template <typename T>
  void gather(const T* in, T* out, size_t count, int root, const Call& call = Call(), Work* work = nullptr) {
    run(work, muster_comm_gather, in, out, count, DTypeOf<T>::value, root, &call);
  }
  template <typename T>
  void gather(const T* in, T* out, const std::vector<size_t>& counts, int root, const Call& call = Call(),
              Work* work = nullptr) {
    run(work, muster_comm_gather_v, in, out, of_all(counts), DTypeOf<T>::value, root, &call);
  }
  template <typename T>
  void scatter(const T* in, T* out, size_t count, int root, const Call& call = Call(), Work* work = nullptr) {
    run(work, muster_comm_scatter, in, out, count, DTypeOf<T>::value, root, &call);
  }
  template <typename T>
  void scatter(const T* in, T* out, const std::vector<size_t>& counts, int root, const Call& call = Call(),
               Work* work = nullptr) {
    run(work, muster_comm_scatter_v, in, out, of_all(counts), DTypeOf<T>::value, root, &call);
  }
  template <typename T>
  void all_to_all(const T* in, T* out, size_t count, const Call& call = Call(), Work* work = nullptr) {
    run(work, muster_comm_all_to_all, in, out, count, DTypeOf<T>::value, &call);
  }
  // Not in place.
  template <typename T>
  void all_to_all(const T* in, const std::vector<size_t>& in_counts, T* out,
                  const std::vector<size_t>& out_counts, const Call& call = Call(), Work* work = nullptr) {
    run(work, muster_comm_all_to_all_v, in, of_all(in_counts), out, of_all(out_counts), DTypeOf<T>::value,
        &call);
  }
  template <typename T>
  void broadcast(const T* in, T* out, size_t count, int root, const Call& call = Call(),
                 Work* work = nullptr) {
    run(work, muster_comm_broadcast, in, out, count, DTypeOf<T>::value, root, &call);
  }
  void barrier(const Call& call = Call(), Work* work = nullptr) { run(work, muster_comm_barrier, &call); }
  template <typename T>
  void send(const T* data, size_t count, int peer, int tag = 0, const Call& call = Call(),
            Work* work = nullptr) {
    run(work, muster_comm_send, data, count, DTypeOf<T>::value, peer, tag, &call);
  }
  template <typename T>
  void recv(T* data, size_t count, int peer, int tag = 0, const Call& call = Call(), Work* work = nullptr) {
    run(work, muster_comm_recv, data, count, DTypeOf<T>::value, peer, tag, &call);
  }

  // Always blocking.
  void all_reduce_compressed(const float* in, float* out, size_t count, const muster_compression& how,
                             muster_reduce_op op = MUSTER_AVG, const Call& call = Call()) {
    detail::check(muster_comm_all_reduce_compressed(handle_.get(), in, out, count, op, &how, &call));
  }
  // What MUSTER_CODEC_AUTO last chose for the tensor, and why; see muster_comm_chosen_codec.
  muster_codec chosen_codec(uint32_t tensor = 0, std::string* why = nullptr) const {
    int32_t codec = 0;
    const char* text = nullptr;
    detail::check(muster_comm_chosen_codec(handle_.get(), tensor, &codec, &text));
    if (why != nullptr) *why = text;
    return static_cast<muster_codec>(codec);
  }
  // out: this rank's slice, see muster_compressed_slice.
  void reduce_scatter_compressed(const float* in, float* out, size_t count, const muster_compression& how,
                                 muster_reduce_op op = MUSTER_AVG, const Call& call = Call()) {
    detail::check(muster_comm_reduce_scatter_compressed(handle_.get(), in, out, count, op, &how, &call));
  }
  // in: this rank's slice.
  void all_gather_compressed(const float* in, float* out, size_t count, const muster_compression& how,
                             muster_reduce_op op = MUSTER_AVG, const Call& call = Call()) {
    detail::check(muster_comm_all_gather_compressed(handle_.get(), in, out, count, op, &how, &call));
  }

  // Always blocking. A pointer for each matrix of the state, PowerSgd::handle().
  void all_reduce_power_sgd(const std::vector<const float*>& in, const std::vector<float*>& out,
                            muster_power_sgd* state, muster_reduce_op op = MUSTER_AVG,
                            const Call& call = Call()) {
    if (in.size() != out.size())
      throw Failure(MUSTER_MISUSE, std::to_string(in.size()) + " inputs and " + std::to_string(out.size()) +
                                       " outputs; give one of each for each matrix");
    detail::check(
        muster_comm_all_reduce_power_sgd(handle_.get(), in.data(), out.data(), in.size(), op, state, &call));
  }

  muster_comm* handle() const { return handle_.get(); }

 private:
  template <typename Function, typename... Arguments>
  void run(Work* work, Function function, Arguments... arguments) {
    muster_work* handle = nullptr;
    detail::check(function(handle_.get(), arguments..., work != nullptr ? &handle : nullptr));
    if (work != nullptr) *work = Work(handle);
  }
  const size_t* of_all(const std::vector<size_t>& counts) const {
    if (counts.size() == static_cast<size_t>(size())) return counts.data();
    throw Failure(MUSTER_MISUSE, std::to_string(counts.size()) + " counts for " + std::to_string(size()) +
                                     " ranks; give one for each");
  }
  std::unique_ptr<muster_comm, detail::DestroyComm> handle_;
};

// What error feedback holds for one vector, see muster_residuals:
//
//     muster::Residuals residuals(comm, count);
//     muster_compression how{sizeof how};                         // fields that are not set are 0
//     how.codec = MUSTER_CODEC_INT8;
//     how.residuals = residuals.handle();
//     comm.all_reduce_compressed(in, out, count, how);            // the mean
//     residuals.commit();
class Residuals {
 public:
  Residuals(const Communicator& comm, size_t count) {
    muster_residuals* residuals = nullptr;
    detail::check(muster_residuals_create(comm.handle(), count, &residuals));
    handle_.reset(residuals);
  }
  explicit Residuals(muster_residuals* handle) : handle_(handle) {}
  static Residuals from_bytes(const std::vector<unsigned char>& bytes) {
    const unsigned char none = 0;  // an empty vector may have no data()
    muster_residuals* residuals = nullptr;
    detail::check(muster_residuals_import(bytes.empty() ? &none : bytes.data(), bytes.size(), &residuals));
    return Residuals(residuals);
  }
  // Of rank `rank` among others than before; see muster_residuals_merge.
  static Residuals merged(const std::vector<const muster_residuals*>& all,
                          const std::vector<int32_t>& origins, int rank, muster_reduce_op op = MUSTER_AVG) {
    muster_residuals* residuals = nullptr;
    detail::check(
        muster_residuals_merge(all.data(), all.size(), origins.data(), origins.size(), rank, op, &residuals));
    return Residuals(residuals);
  }
  void commit() { detail::check(muster_residuals_commit(handle_.get())); }
  std::vector<unsigned char> bytes() const {
    std::vector<unsigned char> bytes(muster_residuals_bytes(handle_.get()));
    detail::check(muster_residuals_export(handle_.get(), bytes.data(), bytes.size()));
    return bytes;
  }
  muster_residuals* handle() const { return handle_.get(); }

 private:
  std::unique_ptr<muster_residuals, detail::DestroyResiduals> handle_;
};

// What PowerSGD keeps of a list of matrices, see muster_power_sgd:
//
//     muster::PowerSgd state(comm, {{4096, 1024}, {1, 4096}}, 4);   // rows, columns; low_rank
//     comm.all_reduce_power_sgd({in, bias}, {out, bias}, state.handle());   // the means
//     state.commit();
class PowerSgd {
 public:
  PowerSgd(const Communicator& comm, const std::vector<muster_matrix>& matrices, uint32_t low_rank,
           uint64_t seed = 0) {
    muster_power_sgd_options options{};
    options.size = sizeof options;
    options.low_rank = low_rank;
    options.seed = seed;
    muster_power_sgd* state = nullptr;
    detail::check(muster_power_sgd_create(comm.handle(), &options, matrices.data(), matrices.size(), &state));
    handle_.reset(state);
  }
  explicit PowerSgd(muster_power_sgd* handle) : handle_(handle) {}
  static PowerSgd from_bytes(const std::vector<unsigned char>& bytes) {
    const unsigned char none = 0;  // an empty vector may have no data()
    muster_power_sgd* state = nullptr;
    detail::check(muster_power_sgd_import(bytes.empty() ? &none : bytes.data(), bytes.size(), &state));
    return PowerSgd(state);
  }
  // Of rank `rank` among others than before; see muster_power_sgd_merge.
  static PowerSgd merged(const std::vector<const muster_power_sgd*>& all, const std::vector<int32_t>& origins,
                         int rank, muster_reduce_op op = MUSTER_AVG) {
    muster_power_sgd* state = nullptr;
    detail::check(
        muster_power_sgd_merge(all.data(), all.size(), origins.data(), origins.size(), rank, op, &state));
    return PowerSgd(state);
  }
  void commit() { detail::check(muster_power_sgd_commit(handle_.get())); }
  size_t sent() const { return muster_power_sgd_sent(handle_.get()); }
  std::vector<unsigned char> bytes() const {
    std::vector<unsigned char> bytes(muster_power_sgd_bytes(handle_.get()));
    detail::check(muster_power_sgd_export(handle_.get(), bytes.data(), bytes.size()));
    return bytes;
  }
  muster_power_sgd* handle() const { return handle_.get(); }

 private:
  std::unique_ptr<muster_power_sgd, detail::DestroyPowerSgd> handle_;
};
}  // namespace muster
