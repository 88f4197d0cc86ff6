#include "collectives/node/segment.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>

#include <cerrno>
#include <cstring>
#include <new>
#include <utility>

namespace muster {
namespace {

constexpr size_t kPage = 4096;
constexpr size_t kHeaderBytes = (sizeof(SegmentHeader) + kPage - 1) / kPage * kPage;
constexpr size_t kTilesBytes = kSlots * (kTileBytes + kResultBytes);
static_assert(kTilesBytes % alignof(Channel) == 0);
constexpr int kSeals = F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL;

size_t bytes_for(int ranks) {
  return kHeaderBytes + kTilesBytes + static_cast<size_t>(ranks) * sizeof(Channel);
}

Error refusal(const char* what) {
  return {ErrorCode::kEnvironment, std::string(what) + ": " + strerror(errno)};
}

}  // namespace

Segment::Segment(Segment&& other) noexcept
    : fd_(std::move(other.fd_)), base_(std::exchange(other.base_, nullptr)), bytes_(other.bytes_) {}

Segment& Segment::operator=(Segment&& other) noexcept {
  std::swap(fd_, other.fd_);
  std::swap(base_, other.base_);
  std::swap(bytes_, other.bytes_);
  return *this;
}

Segment::~Segment() {
  if (base_ != nullptr) munmap(base_, bytes_);
}

std::byte* Segment::data() const { return static_cast<std::byte*>(base_) + kHeaderBytes; }

Channel* Segment::channels() const { return reinterpret_cast<Channel*>(data() + kTilesBytes); }

Result<Segment> Segment::create(const Generation& generation, int rank, int ranks) {
  Segment segment;
  segment.bytes_ = bytes_for(ranks);
  segment.fd_.reset(memfd_create("muster", MFD_CLOEXEC | MFD_ALLOW_SEALING));
  if (!segment.fd_) return refusal("cannot create shared memory");
  if (ftruncate(segment.fd(), static_cast<off_t>(segment.bytes_)) != 0)
    return refusal("cannot size shared memory");
  if (fcntl(segment.fd(), F_ADD_SEALS, kSeals) != 0) return refusal("cannot seal shared memory");
  void* base = mmap(nullptr, segment.bytes_, PROT_READ | PROT_WRITE, MAP_SHARED, segment.fd(), 0);
  if (base == MAP_FAILED) return refusal("cannot map shared memory");
  segment.base_ = base;
  auto* header = new (base) SegmentHeader{};
  header->magic = SegmentHeader::kMagic;
  header->rank = rank;
  header->generation = generation;
  header->bytes = segment.bytes_;
  return segment;
}

Result<Segment> Segment::map(int fd, const Generation& generation, int rank, int ranks) {
  struct stat status {};
  const int seals = fcntl(fd, F_GET_SEALS);
  const bool sealed = seals >= 0 && (seals & kSeals) == kSeals;
  if (!sealed || fstat(fd, &status) != 0 || static_cast<size_t>(status.st_size) != bytes_for(ranks))
    return Error{ErrorCode::kEnvironment, "a node-mate's shared memory is of another version"};
  Segment segment;
  segment.bytes_ = bytes_for(ranks);
  void* base = mmap(nullptr, segment.bytes_, PROT_READ, MAP_SHARED, fd, 0);
  if (base == MAP_FAILED) return refusal("cannot map a node-mate's shared memory");
  segment.base_ = base;
  const SegmentHeader& header = std::as_const(segment).header();
  if (header.magic == SegmentHeader::kMagic && header.rank == rank && header.generation == generation)
    return segment;
  return Error{ErrorCode::kEnvironment, "a node-mate's shared memory belongs to another group"};
}

}  // namespace muster
