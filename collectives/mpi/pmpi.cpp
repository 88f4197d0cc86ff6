// libmuster_pmpi.so: a library to preload into an unmodified program of Open MPI, so that its MPI_Allreduce,
// MPI_Reduce, MPI_Bcast, MPI_Allgather and MPI_Barrier are done by Muster:
//   mpirun -x LD_PRELOAD=…/libmuster_pmpi.so PROGRAM
//
// INVARIANTS
//  - Whether Muster does an operation depends only on what MPI makes equal on all ranks: the communicator,
//    for reductions also type, operator and count. All else goes to MPI. Types of broadcasts and gathers may
//    differ between ranks; bytes do not, so those go as bytes, packed where they are not contiguous.
//  - While an operation is waited for, MPI makes progress too: a legal program may depend on it.
// A program of another MPI must not be started with it: the two MPIs would be in one process.
#include <mpi.h>
#include <muster/muster.h>

#include <algorithm>
#include <atomic>
#include <climits>
#include <string>
#include <vector>

namespace {

std::atomic<uint64_t> operations{0};

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
  muster_comm* made = nullptr;
  int yes = muster_comm_from_mpi(&comm, nullptr, &made) == MUSTER_OK ? 1 : 0;
  int all = 0;
  PMPI_Allreduce(&yes, &all, 1, MPI_INT, MPI_MIN, comm);
  if (all == 1) return made;
  muster_comm_destroy(made);
  return nullptr;
}

// Null: MPI does it.
muster_comm* find(MPI_Comm comm) {
  if (comm == MPI_COMM_NULL) return nullptr;
  void* value = nullptr;
  int has = 0;
  if (PMPI_Comm_get_attr(comm, keyval(), &value, &has) != MPI_SUCCESS) return nullptr;
  if (has != 0) return static_cast<Attached*>(value)->comm;
  int inter = 0;
  int size = 1;
  PMPI_Comm_test_inter(comm, &inter);
  PMPI_Comm_size(comm, &size);
  auto* attached = new Attached;
  if (inter == 0 && size > 1) attached->comm = make(comm);
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

// ---- carrying it out

int fail(MPI_Comm comm) {
  static const int code = [] {
    int made = MPI_ERR_OTHER;
    PMPI_Add_error_code(MPI_ERR_OTHER, &made);
    return made;
  }();
  std::string text = std::string("Muster: ") + muster_last_error();
  text.resize(std::min<size_t>(text.size(), MPI_MAX_ERROR_STRING - 1));
  PMPI_Add_error_string(code, text.c_str());
  PMPI_Comm_call_errhandler(comm, code);
  return code;
}

int finish(MPI_Comm comm, muster_status status, muster_work* work) {
  constexpr double kTurnSeconds = 200e-6;
  while (status == MUSTER_OK && work != nullptr) {
    status = muster_work_wait(work, kTurnSeconds);
    if (status != MUSTER_RETRY) break;
    int arrived = 0;
    PMPI_Iprobe(MPI_ANY_SOURCE, 0, MPI_COMM_SELF, &arrived, MPI_STATUS_IGNORE);
    status = MUSTER_OK;
  }
  muster_work_destroy(work);
  ++operations;
  return status == MUSTER_OK ? MPI_SUCCESS : fail(comm);
}

// `count` elements of a type as contiguous bytes: where they are, or packed.
class Bytes {
 public:
  Bytes(MPI_Comm comm, void* buffer, int count, MPI_Datatype type)
      : comm_(comm), buffer_(buffer), count_(count), type_(type) {
    int size = 0;
    MPI_Aint lower = 0, extent = 0, true_lower = 0, true_extent = 0;
    PMPI_Type_size(type, &size);
    PMPI_Type_get_extent(type, &lower, &extent);
    PMPI_Type_get_true_extent(type, &true_lower, &true_extent);
    size_ = static_cast<size_t>(size) * static_cast<size_t>(count);
    dense_ = lower == 0 && true_lower == 0 && extent == size && true_extent == size && is_predefined(type);
    if (!dense_) packed_.resize(size_);
  }
  size_t size() const { return size_; }
  void* data() { return dense_ ? buffer_ : packed_.data(); }
  void gather() {
    int position = 0;
    if (!dense_ && size_ > 0)
      PMPI_Pack(buffer_, count_, type_, packed_.data(), static_cast<int>(size_), &position, comm_);
  }
  void spread() {
    int position = 0;
    if (!dense_ && size_ > 0)
      PMPI_Unpack(packed_.data(), static_cast<int>(size_), &position, buffer_, count_, type_, comm_);
  }

 private:
  // A derived type of the right size may still have its parts in another order.
  static bool is_predefined(MPI_Datatype type) {
    int integers = 0, addresses = 0, types = 0, combiner = 0;
    PMPI_Type_get_envelope(type, &integers, &addresses, &types, &combiner);
    return combiner == MPI_COMBINER_NAMED;
  }
  MPI_Comm comm_;
  void* const buffer_;
  const int count_;
  const MPI_Datatype type_;
  size_t size_ = 0;
  bool dense_ = false;
  std::vector<char> packed_;
};

// Packing counts in int. Equal on all ranks, as the bytes are.
bool fits(size_t bytes) { return bytes <= INT_MAX; }

size_t bytes_of(int count, MPI_Datatype type) {
  int size = 0;
  if (count < 0 || PMPI_Type_size(type, &size) != MPI_SUCCESS) return SIZE_MAX;
  return static_cast<size_t>(size) * static_cast<size_t>(count);
}

}  // namespace

#define MUSTER_PMPI extern "C" __attribute__((visibility("default")))

// Operations that Muster has done here, for tests.
MUSTER_PMPI uint64_t muster_pmpi_operations(void) { return operations; }

MUSTER_PMPI int MPI_Barrier(MPI_Comm comm) {
  muster_comm* const mine = find(comm);
  if (mine == nullptr) return PMPI_Barrier(comm);
  muster_work* work = nullptr;
  const muster_status status = muster_comm_barrier(mine, nullptr, &work);
  return finish(comm, status, work);
}

MUSTER_PMPI int MPI_Allreduce(const void* in, void* out, int count, MPI_Datatype type, MPI_Op op,
                              MPI_Comm comm) {
  muster_dtype dtype;
  muster_reduce_op reduce;
  muster_comm* const mine =
      count >= 0 && translate(type, dtype) && translate(op, reduce) ? find(comm) : nullptr;
  if (mine == nullptr) return PMPI_Allreduce(in, out, count, type, op, comm);
  muster_work* work = nullptr;
  const muster_status status = muster_comm_all_reduce(
      mine, in == MPI_IN_PLACE ? out : in, out, static_cast<size_t>(count), dtype, reduce, nullptr, &work);
  return finish(comm, status, work);
}

MUSTER_PMPI int MPI_Reduce(const void* in, void* out, int count, MPI_Datatype type, MPI_Op op, int root,
                           MPI_Comm comm) {
  muster_dtype dtype;
  muster_reduce_op reduce;
  muster_comm* const mine =
      count >= 0 && translate(type, dtype) && translate(op, reduce) ? find(comm) : nullptr;
  if (mine == nullptr) return PMPI_Reduce(in, out, count, type, op, root, comm);
  muster_work* work = nullptr;
  const muster_status status =
      muster_comm_reduce(mine, in == MPI_IN_PLACE ? out : in, out, static_cast<size_t>(count), dtype, reduce,
                         root, nullptr, &work);
  return finish(comm, status, work);
}

MUSTER_PMPI int MPI_Bcast(void* buffer, int count, MPI_Datatype type, int root, MPI_Comm comm) {
  muster_comm* const mine = fits(bytes_of(count, type)) ? find(comm) : nullptr;
  if (mine == nullptr) return PMPI_Bcast(buffer, count, type, root, comm);
  Bytes bytes(comm, buffer, count, type);
  if (muster_comm_rank(mine) == root) bytes.gather();
  muster_work* work = nullptr;
  const muster_status status = muster_comm_broadcast(mine, bytes.data(), bytes.data(), bytes.size(),
                                                     MUSTER_UINT8, root, nullptr, &work);
  const int code = finish(comm, status, work);
  if (code == MPI_SUCCESS && muster_comm_rank(mine) != root) bytes.spread();
  return code;
}

MUSTER_PMPI int MPI_Allgather(const void* in, int in_count, MPI_Datatype in_type, void* out, int out_count,
                              MPI_Datatype out_type, MPI_Comm comm) {
  int size = 0;
  const bool usable = comm != MPI_COMM_NULL && PMPI_Comm_size(comm, &size) == MPI_SUCCESS;
  const size_t block = usable ? bytes_of(out_count, out_type) : SIZE_MAX;
  muster_comm* const mine = fits(block) && fits(block * static_cast<size_t>(size)) ? find(comm) : nullptr;
  if (mine == nullptr) return PMPI_Allgather(in, in_count, in_type, out, out_count, out_type, comm);
  Bytes all(comm, out, out_count * size, out_type);
  char* const my_block = static_cast<char*>(all.data()) + block * static_cast<size_t>(muster_comm_rank(mine));
  if (in == MPI_IN_PLACE) {
    all.gather();
  }
  Bytes own(comm, const_cast<void*>(in == MPI_IN_PLACE ? out : in), in == MPI_IN_PLACE ? 0 : in_count,
            in == MPI_IN_PLACE ? MPI_BYTE : in_type);
  own.gather();
  const void* const source = in == MPI_IN_PLACE ? my_block : own.data();
  muster_work* work = nullptr;
  const muster_status status =
      muster_comm_all_gather(mine, source, all.data(), block, MUSTER_UINT8, nullptr, &work);
  const int code = finish(comm, status, work);
  if (code == MPI_SUCCESS) all.spread();
  return code;
}

// The world's attributes would go only after MPI has gone.
MUSTER_PMPI int MPI_Finalize(void) {
  void* value = nullptr;
  int has = 0;
  PMPI_Comm_get_attr(MPI_COMM_WORLD, keyval(), &value, &has);
  if (has != 0) PMPI_Comm_delete_attr(MPI_COMM_WORLD, keyval());
  return PMPI_Finalize();
}
