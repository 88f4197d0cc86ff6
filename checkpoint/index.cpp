#include "checkpoint/index.h"

#include "checkpoint/hdf5_datasets.h"

namespace muster::checkpoint {
namespace {

constexpr const char* kIndexName = "index.h5";

uint64_t product(std::span<const uint64_t> extents) {
  uint64_t value = 1;
  for (uint64_t extent : extents) value *= extent;
  return value;
}

void add_blocks(std::span<const uint64_t> shape, Range elements, Block& around, std::vector<Block>& out) {
  const size_t dimension = around.begin.size();
  const uint64_t inner = product(shape.subspan(dimension + 1));
  const auto add = [&](uint64_t begin, uint64_t count) {
    Block block = around;
    block.begin.push_back(begin);
    block.count.push_back(count);
    for (size_t d = dimension + 1; d < shape.size(); ++d) {
      block.begin.push_back(0);
      block.count.push_back(shape[d]);
    }
    out.push_back(std::move(block));
  };
  // A part of one index of this dimension, which the dimensions within it cut further.
  const auto add_within = [&](uint64_t index, Range within) {
    around.begin.push_back(index);
    around.count.push_back(1);
    add_blocks(shape, within, around, out);
    around.begin.pop_back();
    around.count.pop_back();
  };
  uint64_t first = elements.begin / inner;
  const uint64_t last = elements.end / inner;
  if (first == last) return add_within(first, {elements.begin % inner, elements.end % inner});
  if (elements.begin % inner != 0) add_within(first++, {elements.begin % inner, inner});
  if (first < last) add(first, last - first);
  if (elements.end % inner != 0) add_within(last, {0, elements.end % inner});
}

// The part of one tensor, not a sharded one, that one shard file has.
struct Source {
  uint32_t participant;
  Piece piece;
};

std::vector<Source> sources_of(const SavePlan& plan, uint32_t tensor) {
  const TensorSpec& spec = plan.specs()[tensor];
  const uint64_t bytes = total_bytes(spec);
  std::vector<Source> sources;
  if (bytes == 0 || spec.split == kSharded) return sources;
  const bool replicated = spec.split == kReplicated;
  const Range holders = replicated ? plan.holders(tensor, {0, bytes}) : Range{0, plan.participants()};
  for (auto p = static_cast<uint32_t>(holders.begin); p < holders.end; ++p) {
    const Range piece =
        replicated ? plan.replicated_piece(tensor, p) : Range{0, local_bytes(spec, p, plan.participants())};
    if (piece.size() != 0) sources.push_back({p, {tensor, piece}});
  }
  return sources;
}

// libhdf5 takes "%b" in a source's name for the number of a block.
std::string literal(const std::string& path) {
  std::string text;
  for (char c : path) text += c == '%' ? std::string("%%") : std::string(1, c);
  return text;
}

class IndexBuilder {
 public:
  IndexBuilder(const Manifest& manifest, const SavePlan& plan) : manifest_(manifest), plan_(plan) {}

  Status add(uint32_t tensor) {
    const TensorSpec& spec = plan_.specs()[tensor];
    auto& mappings = datasets_.keep_sources();
    if (spec.split == kSharded) add_shards(mappings, tensor);
    for (const Source& source : sources_of(plan_, tensor)) {
      if (spec.shape.empty())
        add_whole(mappings, source);
      else if (spec.split == kReplicated)
        add_run(mappings, source);
      else
        add_part(mappings, source);
    }
    count_ += mappings.size();
    if (count_ > kIndexSourcesMax)
      return Error{ErrorCode::kMisuse, to_string(manifest_.id) + " has more than " +
                                           std::to_string(kIndexSourcesMax) +
                                           " pieces, too many for an index that HDF5 could read"};
    std::vector<MusterHdf5Attribute> attributes = {
        {"tensor", datasets_.keep(spec.name), nullptr, 0},
        {"dtype", datasets_.keep(std::string(to_string(spec.dtype))), nullptr, 0},
        {"save", datasets_.keep(to_string(manifest_.id)), nullptr, 0}};
    datasets_.add_virtual(tensor_path(spec.name), spec.dtype, spec.shape, mappings, std::move(attributes));
    return ok();
  }

  const Datasets& datasets() const { return datasets_; }

 private:
  MusterHdf5Source blank(const Source& source) {
    MusterHdf5Source mapping{};
    mapping.file = datasets_.keep(
        shard_file_name(source.participant, manifest_.shards[source.participant].writer_nonce));
    mapping.path = datasets_.keep("/" + dataset_path(plan_, source.participant, source.piece));
    mapping.virtual_path = datasets_.keep(literal(mapping.path));
    return mapping;
  }

  void add_whole(std::vector<MusterHdf5Source>& mappings, const Source& source) {
    mappings.push_back(blank(source));
  }

  // A stretch of a replicated tensor: the shard has it flat, or in its own shape where it has all of it.
  void add_run(std::vector<MusterHdf5Source>& mappings, const Source& source) {
    const TensorSpec& spec = plan_.specs()[source.piece.tensor];
    const uint64_t element = size_of(spec.dtype);
    const Range elements{source.piece.bytes.begin / element, source.piece.bytes.end / element};
    const bool whole = source.piece.bytes.size() == total_bytes(spec);
    uint64_t at = 0;
    for (Block& block : blocks_of(spec.shape, elements)) {
      const uint64_t size = product(block.count);
      MusterHdf5Source mapping = blank(source);
      if (whole) {
        place(mapping, block, spec.shape, block);
      } else {
        place(mapping, block, {elements.size()}, {{at}, {size}});
      }
      at += size;
      mappings.push_back(mapping);
    }
  }

  void add_part(std::vector<MusterHdf5Source>& mappings, const Source& source) {
    const TensorSpec& spec = plan_.specs()[source.piece.tensor];
    const auto d = static_cast<size_t>(spec.split);
    const Range range = part_of(spec.shape[d], source.participant, plan_.participants());
    const std::vector<uint64_t> shape = local_shape(spec, source.participant, plan_.participants());
    Block target{std::vector<uint64_t>(shape.size(), 0), shape};
    target.begin[d] = range.begin;
    MusterHdf5Source mapping = blank(source);
    place(mapping, target, shape, {std::vector<uint64_t>(shape.size(), 0), shape});
    mappings.push_back(mapping);
  }

  // Rows of each shard; those of one participant that follow each other as one block.
  void add_shards(std::vector<MusterHdf5Source>& mappings, uint32_t tensor) {
    const TensorSpec& spec = plan_.specs()[tensor];
    const std::vector<WholeRun> runs = plan_.runs(tensor, {0, total_bytes(spec)});
    const uint64_t row_bytes = runs.empty() ? 1 : total_bytes(spec) / spec.shape[0];
    for (size_t i = 0; i < runs.size();) {
      const WholeRun first = runs[i];
      Range bytes = first.bytes;
      for (++i; i < runs.size() && runs[i].participant == first.participant; ++i)
        bytes.end = runs[i].bytes.end;
      const Source source{first.participant, {tensor, {0, plan_.piece_bytes(tensor, first.participant)}}};
      std::vector<uint64_t> shape = spec.shape;
      shape[0] = source.piece.bytes.size() / row_bytes;
      Block there{std::vector<uint64_t>(shape.size(), 0), shape};
      there.begin[0] = first.offset / row_bytes;
      there.count[0] = bytes.size() / row_bytes;
      Block target = there;
      target.begin[0] = bytes.begin / row_bytes;
      MusterHdf5Source mapping = blank(source);
      place(mapping, target, shape, there);
      mappings.push_back(mapping);
    }
  }

  void place(MusterHdf5Source& mapping, const Block& target, const std::vector<uint64_t>& source_shape,
             const Block& source) {
    mapping.begin = datasets_.keep(target.begin).data();
    mapping.count = datasets_.keep(target.count).data();
    mapping.source_rank = static_cast<int>(source_shape.size());
    mapping.source_shape = datasets_.keep(source_shape).data();
    mapping.source_begin = datasets_.keep(source.begin).data();
    mapping.source_count = datasets_.keep(source.count).data();
  }

  const Manifest& manifest_;
  const SavePlan& plan_;
  Datasets datasets_;
  uint64_t count_ = 0;
};

}  // namespace

std::vector<Block> blocks_of(std::span<const uint64_t> shape, Range elements) {
  std::vector<Block> blocks;
  Block around;
  add_blocks(shape, elements, around, blocks);
  return blocks;
}

Result<ByteBuffer> encode_index(const Manifest& manifest) {
  MUSTER_ASSIGN(const SavePlan plan, plan_of(manifest));
  IndexBuilder builder(manifest, plan);
  for (uint32_t t = 0; t < plan.specs().size(); ++t) MUSTER_TRY(builder.add(t));
  MUSTER_ASSIGN(const Hdf5Image image, describe(builder.datasets()));
  return image.closed_bytes;
}

Status write_index(FileSystem& files, const std::string& folder, const Manifest& manifest) {
  if (manifest.compressed())
    return Error{ErrorCode::kMisuse, to_string(manifest.id) +
                                         " is compressed, and HDF5 cannot look into its files; copy it "
                                         "without --zstd (muster ckpt copy), or decompress them by zstd -d"};
  MUSTER_ASSIGN(const ByteBuffer bytes, encode_index(manifest));
  return replace_file(files, folder, kIndexName, bytes);
}

}  // namespace muster::checkpoint
