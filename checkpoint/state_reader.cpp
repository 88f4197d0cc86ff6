#include "checkpoint/state_reader.h"

#include <algorithm>

#include "checkpoint/slab_window.h"
#include "runtime/base/options.h"

namespace muster::checkpoint {
namespace {

constexpr size_t kOpenShardsMax = 16;  // each holds its table of digests and a window of 4 MiB

}  // namespace

struct StateReader::OpenShard {
  OpenShard(ShardReader opened, uint32_t whose, ShardLayout its_layout)
      : participant(whose), reader(std::move(opened)), window(reader), layout(std::move(its_layout)) {}
  uint32_t participant;
  ShardReader reader;
  SlabWindow window;
  ShardLayout layout;

  uint64_t offset_of(uint32_t tensor) const {
    const auto piece = std::lower_bound(layout.pieces.begin(), layout.pieces.end(), tensor,
                                        [](const Piece& a, uint32_t wanted) { return a.tensor < wanted; });
    return layout.offsets[static_cast<size_t>(piece - layout.pieces.begin())];
  }
};

StateReader::StateReader(FileSystem& files, std::string folder, std::shared_ptr<const Manifest> manifest,
                         SavePlan plan)
    : files_(&files), folder_(std::move(folder)), manifest_(std::move(manifest)), plan_(std::move(plan)) {}
StateReader::StateReader(StateReader&&) noexcept = default;
StateReader& StateReader::operator=(StateReader&&) noexcept = default;
StateReader::~StateReader() = default;

Result<StateReader> StateReader::open(FileSystem& files, std::string folder,
                                      std::shared_ptr<const Manifest> manifest) {
  MUSTER_ASSIGN(SavePlan plan, plan_of(*manifest));
  return StateReader(files, std::move(folder), std::move(manifest), std::move(plan));
}

Result<uint32_t> StateReader::find(const std::string& name) const {
  std::vector<std::string> names;
  for (uint32_t t = 0; t < manifest_->tensors.size(); ++t) {
    if (manifest_->tensors[t].name == name) return t;
    names.push_back(manifest_->tensors[t].name);
  }
  return Error{ErrorCode::kMisuse,
               to_string(manifest_->id) + " has no tensor '" + name + "'" + suggestion(name, names)};
}

Result<StateReader::OpenShard*> StateReader::shard(uint32_t participant) {
  const auto found = std::find_if(shards_.begin(), shards_.end(),
                                  [&](const auto& open) { return open->participant == participant; });
  if (found != shards_.end()) {
    shards_.splice(shards_.begin(), shards_, found);
    return shards_.front().get();
  }
  MUSTER_ASSIGN(ShardReader reader,
                ShardReader::open(*files_, folder_, manifest_->shard(participant), manifest_->key));
  if (shards_.size() == kOpenShardsMax) shards_.pop_back();
  shards_.push_front(
      std::make_unique<OpenShard>(std::move(reader), participant, shard_layout(plan_, participant)));
  return shards_.front().get();
}

Status StateReader::read(uint32_t tensor, uint64_t offset, MutableByteSpan target) {
  for (Copy& copy : plan_read(plan_, tensor, {offset, offset + target.size()})) {
    MUSTER_ASSIGN(OpenShard * open, shard(copy.participant));
    copy.source += open->offset_of(tensor);
    MUSTER_TRY(open->window.copy(copy, target));
  }
  return ok();
}

}  // namespace muster::checkpoint
