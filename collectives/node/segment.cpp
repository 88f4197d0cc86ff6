#include "collectives/node/segment.h"

#include <new>
#include <utility>

namespace muster {
namespace {

constexpr size_t kPage = 4096;
constexpr size_t kHeaderBytes = (sizeof(SegmentHeader) + kPage - 1) / kPage * kPage;
constexpr size_t kTilesBytes = kSlots * (kTileBytes + kResultBytes);
static_assert(kTilesBytes % alignof(Channel) == 0);

size_t bytes_for(int ranks) {
  return kHeaderBytes + kTilesBytes + static_cast<size_t>(ranks) * sizeof(Channel);
}

}  // namespace

std::byte* Segment::data() const { return memory_.base() + kHeaderBytes; }

Channel* Segment::channels() const { return reinterpret_cast<Channel*>(data() + kTilesBytes); }

Result<Segment> Segment::create(const Generation& generation, int rank, int ranks) {
  Segment segment;
  MUSTER_ASSIGN(segment.memory_, SharedMemory::create("muster", bytes_for(ranks)));
  auto* header = new (segment.memory_.base()) SegmentHeader{};
  header->magic = SegmentHeader::kMagic;
  header->rank = rank;
  header->generation = generation;
  header->bytes = segment.memory_.bytes();
  return segment;
}

Result<Segment> Segment::map(int fd, const Generation& generation, int rank, int ranks) {
  Segment segment;
  MUSTER_ASSIGN(segment.memory_, SharedMemory::map(fd, SharedMemory::Access::kRead));
  if (segment.memory_.bytes() != bytes_for(ranks))
    return Error{ErrorCode::kEnvironment, "a node-mate's shared memory is of another version"};
  const SegmentHeader& header = std::as_const(segment).header();
  if (header.magic == SegmentHeader::kMagic && header.rank == rank && header.generation == generation)
    return segment;
  return Error{ErrorCode::kEnvironment, "a node-mate's shared memory belongs to another group"};
}

}  // namespace muster
