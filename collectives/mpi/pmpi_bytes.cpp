#include "collectives/mpi/pmpi_bytes.h"

#include <algorithm>
#include <cstring>
#include <utility>

namespace muster::pmpi {
namespace {

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

}  // namespace

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

Bytes::Bytes(const void* buffer, MPI_Datatype type, Blocks blocks, In in)
    : buffer_(static_cast<char*>(const_cast<void*>(buffer))), type_(type), blocks_(std::move(blocks)) {
  MPI_Aint lower = 0;
  MPI_Count size = 0;
  PMPI_Type_size_x(type, &size);
  PMPI_Type_get_extent(type, &lower, &extent_);
  element_ = static_cast<size_t>(size);
  dense_ = is_dense(type, size);
  if (!dense_) {  // the program may free its own while the operation is under way
    PMPI_Type_dup(type, &type_);
    duplicate_.reset(new MPI_Datatype(type_));
  }
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

void Bytes::FreeType::operator()(MPI_Datatype* type) const {
  PMPI_Type_free(type);
  delete type;
}

void Bytes::gather() {
  for (int block = 0; block < blocks(); ++block) copy(block, true);
}

void Bytes::spread() {
  for (int block = 0; block < blocks(); ++block) copy(block, false);
}

void Bytes::copy(int index, bool gathers) {
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

size_t bytes_of(int count, MPI_Datatype type) {
  MPI_Count size = 0;
  if (count < 0 || PMPI_Type_size_x(type, &size) != MPI_SUCCESS || size < 0) return SIZE_MAX;
  return static_cast<size_t>(size) * static_cast<size_t>(count);
}

}  // namespace muster::pmpi
