// What a program's MPI buffers hold, as contiguous bytes: of libmuster_pmpi.so.
//
// Types and counts of one operation may differ between ranks, the bytes of a block do not; so what only moves
// goes as bytes.
#pragma once

#include <mpi.h>

#include <climits>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

namespace muster::pmpi {

// Of a buffer, the elements [first, first + count).
struct Block {
  MPI_Aint first;
  int count;
};
using Blocks = std::vector<Block>;

Blocks even(int count, int ranks);
Blocks listed(const int* counts, const int* firsts, int ranks);

// Blocks as contiguous bytes, one after the other: where they are, or packed. Packing counts in int, so it is
// done in pieces, and a single element of more than 2 GiB cannot be packed.
class Bytes {
 public:
  enum class In : uint8_t { kPlaceIfPossible, kOwnMemory };
  Bytes() = default;  // of nothing
  Bytes(const void* buffer, MPI_Datatype type, Blocks blocks, In in = In::kPlaceIfPossible);

  size_t size() const { return size_; }
  int blocks() const { return static_cast<int>(blocks_.size()); }
  size_t size(int block) const { return sizes_[static_cast<size_t>(block)]; }
  const std::vector<size_t>& sizes() const { return sizes_; }
  void* data() { return data_; }
  void* at(int block) { return data_ + offsets_[static_cast<size_t>(block)]; }
  // No count is negative, and no element too large.
  bool usable() const { return usable_ && (dense_ || size_ == 0 || element_ <= INT_MAX); }

  // From the program's buffer, and to it. Nothing to do for bytes that are where they lie.
  void gather(int block) { copy(block, true); }
  void gather();
  void spread();

 private:
  struct FreeType {
    void operator()(MPI_Datatype* type) const;
  };
  void copy(int block, bool gathers);

  char* buffer_ = nullptr;
  MPI_Datatype type_ = MPI_BYTE;
  std::unique_ptr<MPI_Datatype, FreeType> duplicate_;  // where it is packed by MPI: then type_
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

// SIZE_MAX where the count is negative or the type none.
size_t bytes_of(int count, MPI_Datatype type);
inline bool fits(size_t block) { return block <= INT_MAX; }

}  // namespace muster::pmpi
