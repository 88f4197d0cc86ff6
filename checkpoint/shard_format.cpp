#include "checkpoint/shard_format.h"

#include <bit>
#include <cstdio>
#include <deque>

#include "checkpoint/hdf5_module.h"
#include "runtime/base/module.h"

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
  uint64_t begin = 0;  // index along the split dimension, or element in row-major order
};

PieceView view_of(const SavePlan& plan, uint32_t participant, const Piece& piece) {
  const TensorSpec& spec = plan.specs()[piece.tensor];
  if (spec.split != kReplicated) {
    const auto d = static_cast<size_t>(spec.split);
    const Range range = part_of(spec.shape[d], participant, plan.participants());
    std::string before;
    for (size_t i = 0; i < d; ++i) before += ":,";
    return {"[" + before + range_text(range) + "]", local_shape(spec, participant, plan.participants()),
            "dimension " + std::to_string(d), range.begin};
  }
  if (piece.bytes.size() == total_bytes(spec)) return {"", spec.shape};
  const Range elements{piece.bytes.begin / size_of(spec.dtype), piece.bytes.end / size_of(spec.dtype)};
  return {"[flat " + range_text(elements) + "]", {elements.size()}, "replicated", elements.begin};
}

// Owns what the C table only points to.
struct Datasets {
  std::deque<std::string> texts;
  std::deque<std::vector<uint64_t>> numbers;
  std::deque<std::vector<MusterHdf5Attribute>> attributes;
  std::vector<MusterHdf5Dataset> list;

  const char* keep(std::string text) { return texts.emplace_back(std::move(text)).c_str(); }
  const std::vector<uint64_t>& keep(std::vector<uint64_t> values) {
    return numbers.emplace_back(std::move(values));
  }
  void add(std::string path, DType dtype, std::vector<uint64_t> shape, uint64_t bytes, uint64_t offset,
           std::vector<MusterHdf5Attribute> own_attributes = {}) {
    const auto& kept_shape = keep(std::move(shape));
    const auto& kept = attributes.emplace_back(std::move(own_attributes));
    list.push_back({keep(std::move(path)), static_cast<int>(dtype), kept_shape.data(),
                    static_cast<int>(kept_shape.size()), bytes, offset, kept.data(),
                    static_cast<int>(kept.size())});
  }
};

void add_piece(Datasets& datasets, const SavePlan& plan, uint32_t participant, const Piece& piece,
               uint64_t offset) {
  const TensorSpec& spec = plan.specs()[piece.tensor];
  PieceView view = view_of(plan, participant, piece);
  std::vector<MusterHdf5Attribute> attributes = {
      {"tensor", datasets.keep(spec.name), nullptr, 0},
      {"dtype", datasets.keep(std::string(to_string(spec.dtype))), nullptr, 0},
      {"split", datasets.keep(view.split), nullptr, 0}};
  const auto& begin = datasets.keep(std::vector<uint64_t>{view.begin});
  attributes.push_back({"begin", nullptr, begin.data(), 1});
  if (!spec.shape.empty()) {
    const auto& shape = datasets.keep(spec.shape);
    attributes.push_back({"shape", nullptr, shape.data(), shape.size()});
  }
  datasets.add(dataset_path(plan, participant, piece), spec.dtype, std::move(view.shape), piece.bytes.size(),
               offset, std::move(attributes));
}

Datasets datasets_of(const SavePlan& plan, uint32_t participant, const ShardLayout& layout) {
  const ShardGeometry sizes = ShardGeometry::of(0, layout);  // positions from the end of the metadata
  Datasets datasets;
  datasets.add("muster/save", DType::kUInt64, {kShardIdentityBytes / 8}, kShardIdentityBytes, 0);
  for (size_t i = 0; i < layout.pieces.size(); ++i)
    add_piece(datasets, plan, participant, layout.pieces[i], layout.offsets[i]);
  datasets.add("muster/slabs", DType::kUInt64, {sizes.table_entries(), 2},
               sizes.table_entries() * sizeof(Digest), sizes.table_offset());
  return datasets;
}

Result<MusterHdf5Image> describe(const MusterHdf5Table& table, const Datasets& datasets) {
  MusterHdf5Image image{};
  char error[512] = "";
  if (table.describe(datasets.list.data(), datasets.list.size(), kBlockBytes, &image, error, sizeof error) !=
      0)
    return Error{ErrorCode::kMisuse, std::string("libhdf5 cannot describe the shard: ") + error};
  return image;
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

Result<std::shared_ptr<const ShardTemplate>> make_shard_template(const SavePlan& plan, uint32_t participant) {
  MUSTER_ASSIGN(const void* raw_table, load_module("hdf5", MUSTER_HDF5_TABLE_VERSION));
  const auto& table = *static_cast<const MusterHdf5Table*>(raw_table);
  auto shard = std::make_shared<ShardTemplate>();
  shard->participant = participant;
  shard->participants = plan.participants();
  shard->layout = shard_layout(plan, participant);
  const Datasets datasets = datasets_of(plan, participant, shard->layout);
  MUSTER_ASSIGN(MusterHdf5Image image, describe(table, datasets));
  const auto* open_bytes = reinterpret_cast<const std::byte*>(image.open_bytes);
  const auto* closed_bytes = reinterpret_cast<const std::byte*>(image.closed_bytes);
  shard->geometry = ShardGeometry::of(image.metadata_bytes, shard->layout);
  shard->metadata.assign(closed_bytes, closed_bytes + image.metadata_bytes);
  shard->open_page.assign(open_bytes, open_bytes + kBlockBytes);
  const bool rest_is_equal = std::memcmp(open_bytes + kBlockBytes, closed_bytes + kBlockBytes,
                                         image.metadata_bytes - kBlockBytes) == 0;
  table.release(&image);
  if (!rest_is_equal)
    return Error{ErrorCode::kEnvironment,
                 "this libhdf5 changes more than the superblock when it closes a file; install HDF5 1.10"};
  return std::shared_ptr<const ShardTemplate>(std::move(shard));
}

std::string dataset_path(const SavePlan& plan, uint32_t participant, const Piece& piece) {
  return "tensors/" + escaped(plan.specs()[piece.tensor].name) + view_of(plan, participant, piece).suffix;
}

std::string shard_file_name(uint32_t participant, uint64_t writer_nonce) {
  char number[16];
  std::snprintf(number, sizeof number, "%06u", participant);
  return std::string("shard-") + number + "-" + hex64(writer_nonce) + ".h5";
}

}  // namespace muster::checkpoint
