#include "checkpoint/shard_format.h"

#include <bit>
#include <cstdio>

#include "checkpoint/hdf5_datasets.h"

namespace muster::checkpoint {
namespace {

static_assert(std::endian::native == std::endian::little, "the format is little-endian, and so is this code");
static_assert(sizeof(Digest) == 16);

// '/' would make a group, '[' begins a range, and a name of dots means a folder.
std::string escaped(const std::string& name) {
  const bool only_dots = name.find_first_not_of('.') == std::string::npos;
  std::string text;
  for (char c : name) {
    if (c == '/' || c == '%' || c == '[' || only_dots) {
      const auto byte = static_cast<std::byte>(c);
      text += '%' + to_hex({&byte, 1});
    } else {
      text += c;
    }
  }
  return text;
}

std::string range_text(Range range) { return std::to_string(range.begin) + ":" + std::to_string(range.end); }

// How a piece is shown to people: its shape, and where it lies in the tensor.
struct PieceView {
  std::string suffix;
  std::vector<uint64_t> shape;
  std::string split = "replicated";
  std::vector<uint64_t>
      begin;  // indexes along the split dimension, of each run, or element in row-major order
};

constexpr size_t kBeginsShown = 4096;  // an attribute of HDF5 has at most 64 KiB

PieceView view_of_shards(const SavePlan& plan, uint32_t participant, const Piece& piece) {
  const TensorSpec& spec = plan.specs()[piece.tensor];
  const HeldShards& owned = plan.owned_by(participant);
  PieceView view{"[shards]", spec.shape, "shards", {}};
  view.shape[0] = 0;
  for (uint32_t shard : owned.mine) {
    const Range rows = part_of(spec.shape[0], shard, owned.count);
    view.shape[0] += rows.size();
    if (rows.size() != 0 && view.begin.size() < kBeginsShown) view.begin.push_back(rows.begin);
  }
  return view;
}

PieceView view_of(const SavePlan& plan, uint32_t participant, const Piece& piece) {
  const TensorSpec& spec = plan.specs()[piece.tensor];
  if (spec.split == kSharded) return view_of_shards(plan, participant, piece);
  if (spec.split != kReplicated) {
    const auto d = static_cast<size_t>(spec.split);
    const Range range = part_of(spec.shape[d], participant, plan.participants());
    std::string before;
    for (size_t i = 0; i < d; ++i) before += ":,";
    return {"[" + before + range_text(range) + "]",
            local_shape(spec, participant, plan.participants()),
            "dimension " + std::to_string(d),
            {range.begin}};
  }
  if (piece.bytes.size() == total_bytes(spec)) return {"", spec.shape, "replicated", {0}};
  const Range elements{piece.bytes.begin / size_of(spec.dtype), piece.bytes.end / size_of(spec.dtype)};
  return {"[flat " + range_text(elements) + "]", {elements.size()}, "replicated", {elements.begin}};
}

void add_piece(Datasets& datasets, const SavePlan& plan, uint32_t participant, const Piece& piece,
               uint64_t offset) {
  const TensorSpec& spec = plan.specs()[piece.tensor];
  PieceView view = view_of(plan, participant, piece);
  std::vector<MusterHdf5Attribute> attributes = {
      {"tensor", datasets.keep(spec.name), nullptr, 0},
      {"dtype", datasets.keep(std::string(to_string(spec.dtype))), nullptr, 0},
      {"split", datasets.keep(view.split), nullptr, 0}};
  const auto& begin = datasets.keep(std::move(view.begin));
  attributes.push_back({"begin", nullptr, begin.data(), begin.size()});
  if (!spec.shape.empty()) {
    const auto& shape = datasets.keep(spec.shape);
    attributes.push_back({"shape", nullptr, shape.data(), shape.size()});
  }
  datasets.add(dataset_path(plan, participant, piece), spec.dtype, std::move(view.shape), piece.bytes.size(),
               offset, std::move(attributes));
}

Datasets datasets_of(const SavePlan& plan, uint32_t participant, const ShardLayout& layout, bool sealed) {
  const ShardGeometry sizes = ShardGeometry::of(0, layout, sealed);  // positions from the end of the metadata
  Datasets datasets;
  datasets.add("muster/save", DType::kUInt64, {kShardIdentityBytes / 8}, kShardIdentityBytes, 0);
  for (size_t i = 0; i < layout.pieces.size(); ++i)
    add_piece(datasets, plan, participant, layout.pieces[i], layout.offsets[i]);
  datasets.add("muster/slabs", DType::kUInt64, {sizes.table_entries(), 2}, sizes.table_bytes(),
               sizes.table_offset());
  if (sealed) {
    datasets.add("muster/tags", DType::kUInt64, {sizes.table_entries(), 2}, sizes.table_bytes(),
                 sizes.tag_table_offset());
  }
  return datasets;
}

}  // namespace

std::array<uint64_t, kShardIdentityBytes / 8> identity_record(const ShardIdentity& identity,
                                                              const ShardGeometry& geometry) {
  return {uint64_t{kFormatMajor} << 32 | kFormatMinor,
          identity.id.version,
          identity.id.nonce,
          identity.participant,
          identity.participants,
          geometry.metadata_bytes,
          geometry.payload_bytes,
          kSlabBytes};
}

Result<std::shared_ptr<const ShardTemplate>> make_shard_template(const SavePlan& plan, uint32_t participant,
                                                                 bool sealed) {
  auto shard = std::make_shared<ShardTemplate>();
  shard->participant = participant;
  shard->participants = plan.participants();
  shard->layout = shard_layout(plan, participant);
  const Datasets datasets = datasets_of(plan, participant, shard->layout, sealed);
  MUSTER_ASSIGN(Hdf5Image image, describe(datasets));
  const uint64_t metadata_bytes = image.closed_bytes.size();
  shard->geometry = ShardGeometry::of(metadata_bytes, shard->layout, sealed);
  const bool rest_is_equal =
      std::memcmp(image.open_bytes.data() + kBlockBytes, image.closed_bytes.data() + kBlockBytes,
                  metadata_bytes - kBlockBytes) == 0;
  MUSTER_TRY(shard->open_metadata.reserve(metadata_bytes));
  MUSTER_TRY(shard->closed_metadata.reserve(metadata_bytes));
  std::ranges::copy(image.open_bytes, shard->open_metadata.bytes().begin());
  std::ranges::copy(image.closed_bytes, shard->closed_metadata.bytes().begin());
  shard->metadata_digest = digest_of(image.closed_bytes);
  if (!rest_is_equal)
    return Error{ErrorCode::kEnvironment,
                 "this libhdf5 changes more than the superblock when it closes a file; install HDF5 1.10"};
  return std::shared_ptr<const ShardTemplate>(std::move(shard));
}

std::string tensor_path(const std::string& name) { return "tensors/" + escaped(name); }

std::string dataset_path(const SavePlan& plan, uint32_t participant, const Piece& piece) {
  return tensor_path(plan.specs()[piece.tensor].name) + view_of(plan, participant, piece).suffix;
}

std::string shard_file_name(uint32_t participant, uint64_t writer_nonce) {
  char number[16];
  std::snprintf(number, sizeof number, "%06u", participant);
  return std::string("shard-") + number + "-" + hex64(writer_nonce) + ".h5";
}

}  // namespace muster::checkpoint
