// libmuster_pmpi.so: a library to preload into an unmodified program of Open MPI, so that its MPI_Allreduce,
// Reduce, Reduce_scatter, Reduce_scatter_block, Bcast, Barrier, Gather, Gatherv, Allgather, Allgatherv,
// Scatter, Scatterv, Alltoall and Alltoallv are done by Muster:
//   mpirun -x LD_PRELOAD=…/libmuster_pmpi.so PROGRAM
// All ranks have it or none, and make one operation all in C or all in Fortran: the bindings of Fortran call
// PMPI, so what they do stays with MPI, and would meet nobody where others call MPI from C. With
// MUSTER_PMPI_REPORT=1 each rank says at its end how many of each Muster did.
//
// INVARIANTS
//  - Whether Muster does an operation depends only on what MPI makes equal on all ranks: the communicator and
//    the root; for reductions also type, operator and counts. All else goes to MPI. Where data only moves,
//    types and counts may differ between ranks; the bytes of a block do not, so blocks go as bytes, packed
//    where they are not contiguous.
//  - Blocks of more than INT_MAX bytes go to MPI where all ranks know them, since packing counts in int. Of
//    Gatherv, Scatterv and Alltoallv a rank knows its own part only, which must not decide. So these are done
//    at any size, as sends and receives or an all_to_all_v, and packed in pieces. A single element of more
//    than 2 GiB cannot be: an error.
//  - While an operation is waited for, MPI makes progress too: a legal program may depend on it.
// A program of another MPI must not be started with it: the two MPIs would be in one process.
#include <mpi.h>
#include <muster/muster.h>

#include <algorithm>
#include <atomic>
#include <climits>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <numeric>
#include <string>
#include <vector>

namespace {

enum Kind : uint8_t {
  kAllreduce,
  kReduce,
  kReduceScatter,
  kReduceScatterBlock,
  kBcast,
  kBarrier,
  kGather,
  kGatherv,
  kAllgather,
  kAllgatherv,
  kScatter,
  kScatterv,
  kAlltoall,
  kAlltoallv,
  kKinds
};
constexpr const char* kNames[kKinds] = {"Allreduce", "Reduce",     "Reduce_scatter", "Reduce_scatter_block",
                                        "Bcast",     "Barrier",    "Gather",         "Gatherv",
                                        "Allgather", "Allgatherv", "Scatter",        "Scatterv",
                                        "Alltoall",  "Alltoallv"};
std::atomic<uint64_t> operations[kKinds];  // that Muster has done

// ---- a communicator's muster_comm is an attribute of it, and goes with it

struct Attached {
  muster_comm* comm = nullptr;  // null: MPI does this communicator
};

int on_delete(MPI_Comm, int, void* value, void*) {
  auto* attached = static_cast<Attached*>(value);
  muster_comm_destroy(attached->comm);
  delete attached;
  return MPI_SUCCESS;
}

int keyval() {
  static const int key = [] {
    int made = MPI_KEYVAL_INVALID;
    PMPI_Comm_create_keyval(MPI_COMM_NULL_COPY_FN, on_delete, &made, nullptr);
    return made;
  }();
  return key;
}

// Collective: all have one, or none has.
muster_comm* make(MPI_Comm comm) {
  PMPI_Barrier(comm);  // who comes first waits here, and not against the deadline for forming
  muster_comm* made = nullptr;
  // MPI has no deadlines: the others wait for as long as one computes. Who dies is noticed without one.
  constexpr double kWeekSeconds = 7 * 86400;
  muster_comm_options options{};
  options.size = sizeof options;
  options.timeout_seconds = std::getenv("MUSTER_COMM_TIMEOUT") != nullptr ? 0 : kWeekSeconds;
  int yes = muster_comm_from_mpi(&comm, &options, &made) == MUSTER_OK ? 1 : 0;
  int all = 0;
  PMPI_Allreduce(&yes, &all, 1, MPI_INT, MPI_MIN, comm);
  if (all == 1) return made;
  muster_comm_destroy(made);
  return nullptr;
}

// This rank among those that may talk by Muster. None: MPI does it.
struct Place {
  int rank = 0;
  int ranks = 0;
  bool has(int root) const { return root >= 0 && root < ranks; }
};

Place place_in(MPI_Comm comm) {
  int inter = 0;
  if (comm == MPI_COMM_NULL || PMPI_Comm_test_inter(comm, &inter) != MPI_SUCCESS || inter != 0) return {};
  Place place;
  PMPI_Comm_rank(comm, &place.rank);
  PMPI_Comm_size(comm, &place.ranks);
  return place.ranks > 1 ? place : Place();
}

// Null: MPI does it.
muster_comm* find(MPI_Comm comm) {
  if (comm == MPI_COMM_NULL) return nullptr;
  void* value = nullptr;
  int has = 0;
  if (PMPI_Comm_get_attr(comm, keyval(), &value, &has) != MPI_SUCCESS) return nullptr;
  if (has != 0) return static_cast<Attached*>(value)->comm;
  auto* attached = new Attached;
  if (place_in(comm).ranks > 0) attached->comm = make(comm);
  PMPI_Comm_set_attr(comm, keyval(), attached);
  return attached->comm;
}

// ---- what MPI's words are here

bool translate(MPI_Datatype type, muster_dtype& dtype) {
  const struct {
    MPI_Datatype mpi;
    muster_dtype dtype;
  } kTypes[] = {
      {MPI_FLOAT, MUSTER_FLOAT32},
      {MPI_DOUBLE, MUSTER_FLOAT64},
      {MPI_SIGNED_CHAR, MUSTER_INT8},
      {MPI_INT8_T, MUSTER_INT8},
      {MPI_INT16_T, MUSTER_INT16},
      {MPI_INT32_T, MUSTER_INT32},
      {MPI_INT64_T, MUSTER_INT64},
      {MPI_UINT8_T, MUSTER_UINT8},
      {MPI_UNSIGNED_CHAR, MUSTER_UINT8},
      {MPI_UINT16_T, MUSTER_UINT16},
      {MPI_UINT32_T, MUSTER_UINT32},
      {MPI_UINT64_T, MUSTER_UINT64},
      {MPI_SHORT, MUSTER_INT16},
      {MPI_UNSIGNED_SHORT, MUSTER_UINT16},
      {MPI_INT, MUSTER_INT32},
      {MPI_UNSIGNED, MUSTER_UINT32},
      {MPI_LONG, sizeof(long) == 8 ? MUSTER_INT64 : MUSTER_INT32},
      {MPI_UNSIGNED_LONG, sizeof(long) == 8 ? MUSTER_UINT64 : MUSTER_UINT32},
      {MPI_LONG_LONG, MUSTER_INT64},
      {MPI_UNSIGNED_LONG_LONG, MUSTER_UINT64},
  };
  for (const auto& known : kTypes) {
    if (known.mpi != type) continue;
    dtype = known.dtype;
    return true;
  }
  return false;
}

bool translate(MPI_Op op, muster_reduce_op& reduce) {
  const struct {
    MPI_Op mpi;
    muster_reduce_op op;
  } kOps[] = {{MPI_SUM, MUSTER_SUM}, {MPI_PROD, MUSTER_PROD}, {MPI_MIN, MUSTER_MIN}, {MPI_MAX, MUSTER_MAX}};
  for (const auto& known : kOps) {
    if (known.mpi != op) continue;
    reduce = known.op;
    return true;
  }
  return false;
}

// What a reduction is here, if it is one of Muster's.
struct Reduction {
  muster_dtype dtype = MUSTER_FLOAT32;
  muster_reduce_op op = MUSTER_SUM;
};

muster_comm* find(MPI_Comm comm, MPI_Datatype type, MPI_Op op, Reduction& reduction) {
  return translate(type, reduction.dtype) && translate(op, reduction.op) ? find(comm) : nullptr;
}

// ---- carrying it out

int fail(MPI_Comm comm, const std::string& why) {
  static const int code = [] {
    int made = MPI_ERR_OTHER;
    PMPI_Add_error_code(MPI_ERR_OTHER, &made);
    return made;
  }();
  std::string text = "Muster: " + why;
  text.resize(std::min<size_t>(text.size(), MPI_MAX_ERROR_STRING - 1));
  PMPI_Add_error_string(code, text.c_str());
  PMPI_Comm_call_errhandler(comm, code);
  return code;
}

muster_status wait(muster_work* work) {
  constexpr double kTurnSeconds = 200e-6;
  muster_status status = MUSTER_RETRY;
  while ((status = muster_work_wait(work, kTurnSeconds)) == MUSTER_RETRY) {
    int arrived = 0;
    PMPI_Iprobe(MPI_ANY_SOURCE, 0, MPI_COMM_SELF, &arrived, MPI_STATUS_IGNORE);
  }
  muster_work_destroy(work);
  return status;
}

// `issue(&work)` begins an operation of Muster.
template <typename Issue>
int run(MPI_Comm comm, Kind kind, Issue issue) {
  muster_work* work = nullptr;
  muster_status status = issue(&work);
  if (work != nullptr) status = wait(work);
  ++operations[kind];
  return status == MUSTER_OK ? MPI_SUCCESS : fail(comm, muster_last_error());
}

// Sends and receives under way at once. Of nothing there are none: both sides know it.
class Transfers {
 public:
  explicit Transfers(muster_comm* comm) : comm_(comm) {}
  void send(const void* data, size_t bytes, int peer) {
    if (bytes > 0) note(muster_comm_send(comm_, data, bytes, MUSTER_UINT8, peer, 0, nullptr, next()));
  }
  void receive(void* data, size_t bytes, int peer) {
    if (bytes > 0) note(muster_comm_recv(comm_, data, bytes, MUSTER_UINT8, peer, 0, nullptr, next()));
  }
  int finish(MPI_Comm comm, Kind kind) {
    for (muster_work* work : works_)  // after a failure too: they were given memory
      if (work != nullptr) note(wait(work));
    ++operations[kind];
    return failure_.empty() ? MPI_SUCCESS : fail(comm, failure_);
  }

 private:
  muster_work** next() { return &works_.emplace_back(nullptr); }
  void note(muster_status status) {
    if (status != MUSTER_OK && failure_.empty()) failure_ = muster_last_error();
  }
  muster_comm* const comm_;
  std::vector<muster_work*> works_;
  std::string failure_;
};

// ---- what the program's buffers hold, as bytes

// Of a buffer, the elements [first, first + count).
struct Block {
  MPI_Aint first;
  int count;
};
using Blocks = std::vector<Block>;

Blocks even(int count, int ranks) {
  Blocks blocks;
  for (int rank = 0; rank < ranks; ++rank) blocks.push_back({MPI_Aint{rank} * count, count});
  return blocks;
}
Blocks listed(const int* counts, const int* firsts, int ranks) {
  Blocks blocks;
  for (int rank = 0; rank < ranks; ++rank) blocks.push_back({firsts[rank], counts[rank]});
  return blocks;
}

// A derived type of the right size may still have its parts in another order.
bool is_dense(MPI_Datatype type, MPI_Aint size) {
  MPI_Aint lower = 0, extent = 0, true_lower = 0, true_extent = 0;
  PMPI_Type_get_extent(type, &lower, &extent);
  PMPI_Type_get_true_extent(type, &true_lower, &true_extent);
  int integers = 0, addresses = 0, types = 0, combiner = 0;
  PMPI_Type_get_envelope(type, &integers, &addresses, &types, &combiner);
  return lower == 0 && true_lower == 0 && extent == size && true_extent == size &&
         combiner == MPI_COMBINER_NAMED;
}

// Blocks as contiguous bytes, one after the other: where they are, or packed.
class Bytes {
 public:
  enum class In : uint8_t { kPlaceIfPossible, kOwnMemory };
  Bytes() = default;  // of nothing
  Bytes(const void* buffer, MPI_Datatype type, Blocks blocks, In in = In::kPlaceIfPossible)
      : buffer_(static_cast<char*>(const_cast<void*>(buffer))), type_(type), blocks_(std::move(blocks)) {
    MPI_Aint lower = 0;
    MPI_Count size = 0;
    PMPI_Type_size_x(type, &size);
    PMPI_Type_get_extent(type, &lower, &extent_);
    element_ = static_cast<size_t>(size);
    dense_ = is_dense(type, size);
    bool adjacent = dense_ && in == In::kPlaceIfPossible;
    for (Block& block : blocks_) {
      usable_ = usable_ && block.count >= 0;
      block.count = std::max(block.count, 0);
      sizes_.push_back(static_cast<size_t>(block.count) * element_);
      offsets_.push_back(size_);
      if (block.count == 0) continue;
      if (size_ == 0) data_ = buffer_ + block.first * extent_;
      adjacent = adjacent && buffer_ + block.first * extent_ == data_ + size_;
      size_ += sizes_.back();
    }
    if (adjacent) return;
    packed_ = std::make_unique_for_overwrite<char[]>(size_);
    data_ = packed_.get();
  }

  size_t size() const { return size_; }
  int blocks() const { return static_cast<int>(blocks_.size()); }
  size_t size(int block) const { return sizes_[static_cast<size_t>(block)]; }
  const std::vector<size_t>& sizes() const { return sizes_; }
  void* data() { return data_; }
  void* at(int block) { return data_ + offsets_[static_cast<size_t>(block)]; }
  bool usable() const { return usable_ && (dense_ || size_ == 0 || element_ <= INT_MAX); }

  // From the program's buffer, and to it.
  void gather(int block) { copy(block, true); }
  void gather() {
    for (size_t i = 0; i < blocks_.size(); ++i) copy(static_cast<int>(i), true);
  }
  void spread() {
    for (size_t i = 0; i < blocks_.size(); ++i) copy(static_cast<int>(i), false);
  }

 private:
  void copy(int index, bool gathers) {
    const size_t bytes = sizes_[static_cast<size_t>(index)];
    if (packed_ == nullptr || bytes == 0) return;
    const Block& block = blocks_[static_cast<size_t>(index)];
    char* place = buffer_ + block.first * extent_;
    char* packed = static_cast<char*>(at(index));
    if (dense_) {
      std::memcpy(gathers ? packed : place, gathers ? place : packed, bytes);
      return;
    }
    const int most = static_cast<int>(INT_MAX / element_);
    for (int left = block.count; left > 0;) {
      const int count = std::min(left, most);
      const int size = count * static_cast<int>(element_);
      int position = 0;
      if (gathers) {
        PMPI_Pack(place, count, type_, packed, size, &position, MPI_COMM_SELF);
      } else {
        PMPI_Unpack(packed, size, &position, place, count, type_, MPI_COMM_SELF);
      }
      left -= count;
      place += count * extent_;
      packed += size;
    }
  }

  char* buffer_ = nullptr;
  MPI_Datatype type_ = MPI_BYTE;
  Blocks blocks_;
  MPI_Aint extent_ = 1;
  size_t element_ = 1;
  bool dense_ = true;
  bool usable_ = true;
  std::vector<size_t> sizes_, offsets_;
  size_t size_ = 0;
  char* data_ = nullptr;
  std::unique_ptr<char[]> packed_;
};

bool fits(size_t block) { return block <= INT_MAX; }

size_t bytes_of(int count, MPI_Datatype type) {
  MPI_Count size = 0;
  if (count < 0 || PMPI_Type_size_x(type, &size) != MPI_SUCCESS || size < 0) return SIZE_MAX;
  return static_cast<size_t>(size) * static_cast<size_t>(count);
}

bool are_counts(const int* counts, int ranks) {
  return std::all_of(counts, counts + ranks, [](int count) { return count >= 0; });
}

bool all_fit(const int* counts, int ranks, MPI_Datatype type) {
  return std::all_of(counts, counts + ranks, [&](int count) { return fits(bytes_of(count, type)); });
}

int refuse(MPI_Comm comm) {
  return fail(comm,
              "a count is negative, or a single element has more than 2 GiB, which cannot be packed; without "
              "libmuster_pmpi.so MPI says which, or does it");
}

// A rank's part becomes its block of `all`, which is of nothing where nobody gathers: `exchange(part,
// bytes)`. In place it is there already.
template <typename Exchange>
int gather_into(MPI_Comm comm, Bytes& all, int rank, const void* in, int count, MPI_Datatype type,
                Exchange exchange) {
  const bool in_place = in == MPI_IN_PLACE;
  Bytes own = in_place ? Bytes() : Bytes(in, type, {{0, count}});
  if (!all.usable() || !own.usable()) return refuse(comm);
  in_place ? all.gather(rank) : own.gather();
  const int code = exchange(in_place ? all.at(rank) : own.data(), own.size());
  if (code == MPI_SUCCESS) all.spread();
  return code;
}

// The other way round.
template <typename Exchange>
int scatter_from(MPI_Comm comm, Bytes& all, int rank, void* out, int count, MPI_Datatype type,
                 Exchange exchange) {
  const bool in_place = out == MPI_IN_PLACE;
  Bytes own = in_place ? Bytes() : Bytes(out, type, {{0, count}});
  if (!all.usable() || !own.usable()) return refuse(comm);
  all.gather();
  const int code = exchange(in_place ? all.at(rank) : own.data(), own.size());
  if (code == MPI_SUCCESS) own.spread();
  return code;
}

// `issue(source, target, &work)`. In place the result goes to the beginning of what it was made of, which may
// be another rank's block.
template <typename Issue>
int reduce_scatter(MPI_Comm comm, Kind kind, const void* in, void* out, int count, MPI_Datatype type,
                   Issue issue) {
  if (in != MPI_IN_PLACE) return run(comm, kind, [&](muster_work** work) { return issue(in, out, work); });
  const size_t size = bytes_of(count, type);
  const auto result = std::make_unique_for_overwrite<char[]>(size);
  const int code = run(comm, kind, [&](muster_work** work) { return issue(out, result.get(), work); });
  if (code == MPI_SUCCESS && size > 0) std::memcpy(out, result.get(), size);
  return code;
}

}  // namespace

#define MUSTER_PMPI extern "C" __attribute__((visibility("default")))

// Operations that Muster has done here, for tests.
MUSTER_PMPI uint64_t muster_pmpi_operations(void) {
  return std::accumulate(std::begin(operations), std::end(operations), uint64_t{0});
}

MUSTER_PMPI int MPI_Barrier(MPI_Comm comm) {
  muster_comm* const mine = find(comm);
  if (mine == nullptr) return PMPI_Barrier(comm);
  return run(comm, kBarrier, [&](muster_work** work) { return muster_comm_barrier(mine, nullptr, work); });
}

// ---- reductions

MUSTER_PMPI int MPI_Allreduce(const void* in, void* out, int count, MPI_Datatype type, MPI_Op op,
                              MPI_Comm comm) {
  Reduction r;
  muster_comm* const mine = count >= 0 ? find(comm, type, op, r) : nullptr;
  if (mine == nullptr) return PMPI_Allreduce(in, out, count, type, op, comm);
  return run(comm, kAllreduce, [&](muster_work** work) {
    return muster_comm_all_reduce(mine, in == MPI_IN_PLACE ? out : in, out, static_cast<size_t>(count),
                                  r.dtype, r.op, nullptr, work);
  });
}

MUSTER_PMPI int MPI_Reduce(const void* in, void* out, int count, MPI_Datatype type, MPI_Op op, int root,
                           MPI_Comm comm) {
  Reduction r;
  muster_comm* const mine = count >= 0 && place_in(comm).has(root) ? find(comm, type, op, r) : nullptr;
  if (mine == nullptr) return PMPI_Reduce(in, out, count, type, op, root, comm);
  return run(comm, kReduce, [&](muster_work** work) {
    return muster_comm_reduce(mine, in == MPI_IN_PLACE ? out : in, out, static_cast<size_t>(count), r.dtype,
                              r.op, root, nullptr, work);
  });
}

MUSTER_PMPI int MPI_Reduce_scatter(const void* in, void* out, const int* counts, MPI_Datatype type, MPI_Op op,
                                   MPI_Comm comm) {
  Reduction r;
  const Place place = place_in(comm);
  muster_comm* const mine = are_counts(counts, place.ranks) ? find(comm, type, op, r) : nullptr;
  if (mine == nullptr) return PMPI_Reduce_scatter(in, out, counts, type, op, comm);
  const std::vector<size_t> all(counts, counts + place.ranks);
  return reduce_scatter(comm, kReduceScatter, in, out, counts[place.rank], type,
                        [&](const void* source, void* target, muster_work** work) {
                          return muster_comm_reduce_scatter_v(mine, source, target, all.data(), r.dtype, r.op,
                                                              nullptr, work);
                        });
}

MUSTER_PMPI int MPI_Reduce_scatter_block(const void* in, void* out, int count, MPI_Datatype type, MPI_Op op,
                                         MPI_Comm comm) {
  Reduction r;
  muster_comm* const mine = count >= 0 ? find(comm, type, op, r) : nullptr;
  if (mine == nullptr) return PMPI_Reduce_scatter_block(in, out, count, type, op, comm);
  return reduce_scatter(comm, kReduceScatterBlock, in, out, count, type,
                        [&](const void* source, void* target, muster_work** work) {
                          return muster_comm_reduce_scatter(mine, source, target, static_cast<size_t>(count),
                                                            r.dtype, r.op, nullptr, work);
                        });
}

// ---- from one to all

MUSTER_PMPI int MPI_Bcast(void* buffer, int count, MPI_Datatype type, int root, MPI_Comm comm) {
  const Place place = place_in(comm);
  muster_comm* const mine = place.has(root) && fits(bytes_of(count, type)) ? find(comm) : nullptr;
  if (mine == nullptr) return PMPI_Bcast(buffer, count, type, root, comm);
  Bytes bytes(buffer, type, {{0, count}});
  if (place.rank == root) bytes.gather();
  const int code = run(comm, kBcast, [&](muster_work** work) {
    return muster_comm_broadcast(mine, bytes.data(), bytes.data(), bytes.size(), MUSTER_UINT8, root, nullptr,
                                 work);
  });
  if (code == MPI_SUCCESS && place.rank != root) bytes.spread();
  return code;
}

MUSTER_PMPI int MPI_Scatter(const void* in, int in_count, MPI_Datatype in_type, void* out, int out_count,
                            MPI_Datatype out_type, int root, MPI_Comm comm) {
  const Place place = place_in(comm);
  const bool is_root = place.rank == root;
  size_t block = SIZE_MAX;
  if (place.has(root)) block = is_root ? bytes_of(in_count, in_type) : bytes_of(out_count, out_type);
  muster_comm* const mine = fits(block) ? find(comm) : nullptr;
  if (mine == nullptr) return PMPI_Scatter(in, in_count, in_type, out, out_count, out_type, root, comm);
  Bytes all = is_root ? Bytes(in, in_type, even(in_count, place.ranks)) : Bytes();
  return scatter_from(comm, all, place.rank, out, out_count, out_type, [&](void* part, size_t) {
    return run(comm, kScatter, [&](muster_work** work) {
      return muster_comm_scatter(mine, all.data(), part, block, MUSTER_UINT8, root, nullptr, work);
    });
  });
}

MUSTER_PMPI int MPI_Scatterv(const void* in, const int* in_counts, const int* in_firsts, MPI_Datatype in_type,
                             void* out, int out_count, MPI_Datatype out_type, int root, MPI_Comm comm) {
  const Place place = place_in(comm);
  muster_comm* const mine = place.has(root) ? find(comm) : nullptr;
  if (mine == nullptr)
    return PMPI_Scatterv(in, in_counts, in_firsts, in_type, out, out_count, out_type, root, comm);
  Bytes all = place.rank == root ? Bytes(in, in_type, listed(in_counts, in_firsts, place.ranks)) : Bytes();
  const bool in_place = out == MPI_IN_PLACE;
  return scatter_from(comm, all, place.rank, out, out_count, out_type, [&](void* part, size_t bytes) {
    Transfers transfers(mine);
    for (int peer = 0; peer < all.blocks(); ++peer)
      if (!in_place || peer != root) transfers.send(all.at(peer), all.size(peer), peer);
    if (!in_place) transfers.receive(part, bytes, root);
    return transfers.finish(comm, kScatterv);
  });
}

// ---- from all to one

MUSTER_PMPI int MPI_Gather(const void* in, int in_count, MPI_Datatype in_type, void* out, int out_count,
                           MPI_Datatype out_type, int root, MPI_Comm comm) {
  const Place place = place_in(comm);
  const bool is_root = place.rank == root;
  size_t block = SIZE_MAX;
  if (place.has(root)) block = is_root ? bytes_of(out_count, out_type) : bytes_of(in_count, in_type);
  muster_comm* const mine = fits(block) ? find(comm) : nullptr;
  if (mine == nullptr) return PMPI_Gather(in, in_count, in_type, out, out_count, out_type, root, comm);
  Bytes all = is_root ? Bytes(out, out_type, even(out_count, place.ranks)) : Bytes();
  return gather_into(comm, all, place.rank, in, in_count, in_type, [&](const void* part, size_t) {
    return run(comm, kGather, [&](muster_work** work) {
      return muster_comm_gather(mine, part, all.data(), block, MUSTER_UINT8, root, nullptr, work);
    });
  });
}

MUSTER_PMPI int MPI_Gatherv(const void* in, int in_count, MPI_Datatype in_type, void* out,
                            const int* out_counts, const int* out_firsts, MPI_Datatype out_type, int root,
                            MPI_Comm comm) {
  const Place place = place_in(comm);
  muster_comm* const mine = place.has(root) ? find(comm) : nullptr;
  if (mine == nullptr)
    return PMPI_Gatherv(in, in_count, in_type, out, out_counts, out_firsts, out_type, root, comm);
  Bytes all =
      place.rank == root ? Bytes(out, out_type, listed(out_counts, out_firsts, place.ranks)) : Bytes();
  const bool in_place = in == MPI_IN_PLACE;
  return gather_into(comm, all, place.rank, in, in_count, in_type, [&](const void* part, size_t bytes) {
    Transfers transfers(mine);
    for (int peer = 0; peer < all.blocks(); ++peer)
      if (!in_place || peer != root) transfers.receive(all.at(peer), all.size(peer), peer);
    if (!in_place) transfers.send(part, bytes, root);
    return transfers.finish(comm, kGatherv);
  });
}

// ---- from all to all

MUSTER_PMPI int MPI_Allgather(const void* in, int in_count, MPI_Datatype in_type, void* out, int out_count,
                              MPI_Datatype out_type, MPI_Comm comm) {
  const Place place = place_in(comm);
  const size_t block = place.ranks > 0 ? bytes_of(out_count, out_type) : SIZE_MAX;
  muster_comm* const mine = fits(block) ? find(comm) : nullptr;
  if (mine == nullptr) return PMPI_Allgather(in, in_count, in_type, out, out_count, out_type, comm);
  Bytes all(out, out_type, even(out_count, place.ranks));
  return gather_into(comm, all, place.rank, in, in_count, in_type, [&](const void* part, size_t) {
    return run(comm, kAllgather, [&](muster_work** work) {
      return muster_comm_all_gather(mine, part, all.data(), block, MUSTER_UINT8, nullptr, work);
    });
  });
}

MUSTER_PMPI int MPI_Allgatherv(const void* in, int in_count, MPI_Datatype in_type, void* out,
                               const int* out_counts, const int* out_firsts, MPI_Datatype out_type,
                               MPI_Comm comm) {
  const Place place = place_in(comm);
  muster_comm* const mine = all_fit(out_counts, place.ranks, out_type) ? find(comm) : nullptr;
  if (mine == nullptr)
    return PMPI_Allgatherv(in, in_count, in_type, out, out_counts, out_firsts, out_type, comm);
  Bytes all(out, out_type, listed(out_counts, out_firsts, place.ranks));
  return gather_into(comm, all, place.rank, in, in_count, in_type, [&](const void* part, size_t) {
    return run(comm, kAllgatherv, [&](muster_work** work) {
      return muster_comm_all_gather_v(mine, part, all.data(), all.sizes().data(), MUSTER_UINT8, nullptr,
                                      work);
    });
  });
}

MUSTER_PMPI int MPI_Alltoall(const void* in, int in_count, MPI_Datatype in_type, void* out, int out_count,
                             MPI_Datatype out_type, MPI_Comm comm) {
  const Place place = place_in(comm);
  const size_t block = place.ranks > 0 ? bytes_of(out_count, out_type) : SIZE_MAX;
  muster_comm* const mine = fits(block) ? find(comm) : nullptr;
  if (mine == nullptr) return PMPI_Alltoall(in, in_count, in_type, out, out_count, out_type, comm);
  Bytes received(out, out_type, even(out_count, place.ranks));
  Bytes sent = in == MPI_IN_PLACE ? Bytes() : Bytes(in, in_type, even(in_count, place.ranks));
  if (!sent.usable()) return refuse(comm);
  Bytes& source = in == MPI_IN_PLACE ? received : sent;
  source.gather();
  const int code = run(comm, kAlltoall, [&](muster_work** work) {
    return muster_comm_all_to_all(mine, source.data(), received.data(), block, MUSTER_UINT8, nullptr, work);
  });
  if (code == MPI_SUCCESS) received.spread();
  return code;
}

MUSTER_PMPI int MPI_Alltoallv(const void* in, const int* in_counts, const int* in_firsts,
                              MPI_Datatype in_type, void* out, const int* out_counts, const int* out_firsts,
                              MPI_Datatype out_type, MPI_Comm comm) {
  const Place place = place_in(comm);
  muster_comm* const mine = place.ranks > 0 ? find(comm) : nullptr;
  if (mine == nullptr) {
    return PMPI_Alltoallv(in, in_counts, in_firsts, in_type, out, out_counts, out_firsts, out_type, comm);
  }
  const Blocks blocks = listed(out_counts, out_firsts, place.ranks);
  Bytes received(out, out_type, blocks);
  // In place what goes out lies where the others' will be: it is copied, as Muster needs two buffers.
  Bytes sent = in == MPI_IN_PLACE ? Bytes(out, out_type, blocks, Bytes::In::kOwnMemory)
                                  : Bytes(in, in_type, listed(in_counts, in_firsts, place.ranks));
  if (!received.usable() || !sent.usable()) return refuse(comm);
  sent.gather();
  const int code = run(comm, kAlltoallv, [&](muster_work** work) {
    return muster_comm_all_to_all_v(mine, sent.data(), sent.sizes().data(), received.data(),
                                    received.sizes().data(), MUSTER_UINT8, nullptr, work);
  });
  if (code == MPI_SUCCESS) received.spread();
  return code;
}

// With MUSTER_PMPI_REPORT=1: what Muster did, in a line of each rank.
static void report() {
  const char* wanted = std::getenv("MUSTER_PMPI_REPORT");
  if (wanted == nullptr || std::strcmp(wanted, "1") != 0) return;
  int rank = 0;
  PMPI_Comm_rank(MPI_COMM_WORLD, &rank);
  std::string text = "muster: rank " + std::to_string(rank) + " did";
  for (int kind = 0; kind < kKinds; ++kind)
    if (const uint64_t count = operations[kind]; count > 0)
      text += " " + std::to_string(count) + " " + kNames[kind];
  std::fprintf(stderr, "%s\n", (muster_pmpi_operations() > 0 ? text : text + " nothing").c_str());
}

// The world's attributes would go only after MPI has gone.
MUSTER_PMPI int MPI_Finalize(void) {
  report();
  void* value = nullptr;
  int has = 0;
  PMPI_Comm_get_attr(MPI_COMM_WORLD, keyval(), &value, &has);
  if (has != 0) PMPI_Comm_delete_attr(MPI_COMM_WORLD, keyval());
  return PMPI_Finalize();
}
