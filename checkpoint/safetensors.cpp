#include "checkpoint/safetensors.h"

#include <algorithm>

#include "checkpoint/json.h"

namespace muster::checkpoint {
namespace {

constexpr const char* kMetadataName = "__metadata__";

constexpr std::string_view kSafetensorsNames[kDTypeCount] = {
    "F32", "F64", "BF16", "F16", "I8", "U8", "I16", "U16", "I32", "U32", "I64", "U64", "F8_E4M3", "F8_E5M2"};

std::optional<DType> dtype_of(std::string_view name) {
  if (name == "BOOL") return DType::kUInt8;
  for (int i = 0; i < kDTypeCount; ++i) {
    if (kSafetensorsNames[i] == name) return static_cast<DType>(i);
  }
  return std::nullopt;
}

Error refused(const std::string& where, const std::string& what) {
  return {ErrorCode::kMisuse, where + " is not a safetensors file that can be read: " + what};
}

Result<SafetensorsEntry> read_entry(const std::string& name, const Json& json, const std::string& where) {
  const auto malformed = [&](const char* what) { return refused(where, "tensor '" + name + "' " + what); };
  JsonReader reader(json);
  SafetensorsEntry entry;
  entry.name = name;
  const std::string dtype_name = reader.text("dtype", 32);
  const Json& shape = reader.array("shape", kRankMax);
  const Json& offsets = reader.array("data_offsets", 2);
  if (!reader.ok()) return malformed(reader.problem().c_str());
  const auto dtype = dtype_of(dtype_name);
  if (!dtype) return malformed(("has the element type " + dtype_name + ", which Muster cannot hold").c_str());
  entry.dtype = *dtype;
  for (const Json& extent : shape) {
    const auto value = as_number(extent);
    if (!value) return malformed("has a shape that is not a list of numbers");
    entry.shape.push_back(*value);
  }
  const auto begin = offsets.size() == 2 ? as_number(offsets[0]) : std::nullopt;
  const auto end = offsets.size() == 2 ? as_number(offsets[1]) : std::nullopt;
  if (!begin || !end || *begin > *end) return malformed("has data_offsets that are not a range");
  entry.bytes = {*begin, *end};
  return entry;
}

TensorSpec spec_of(const SafetensorsEntry& entry) { return {entry.name, entry.dtype, entry.shape}; }

// No byte of the data belongs to no tensor or to two: an attacker could hide or share bytes there.
Status check_cover(const SafetensorsHeader& header, uint64_t data_bytes, const std::string& where) {
  uint64_t at = 0;
  for (const SafetensorsEntry& entry : header.tensors) {
    if (entry.bytes.begin != at)
      return refused(where, "the bytes of tensor '" + entry.name + "' begin at " +
                                std::to_string(entry.bytes.begin) + " instead of " + std::to_string(at));
    if (entry.bytes.size() != total_bytes(spec_of(entry)))
      return refused(where, "tensor '" + entry.name + "' has " + std::to_string(entry.bytes.size()) +
                                " bytes, and its shape and type ask for " +
                                std::to_string(total_bytes(spec_of(entry))));
    at = entry.bytes.end;
  }
  if (at != data_bytes)
    return refused(where, "it has " + std::to_string(data_bytes) + " bytes of data, and its header names " +
                              std::to_string(at));
  return ok();
}

Status read_metadata(const Json& json, SafetensorsHeader& header, const std::string& where) {
  if (!json.is_object()) return refused(where, "__metadata__ is not an object");
  for (const auto& [name, value] : json.items()) {
    const auto* text = value.get_ptr<const Json::string_t*>();
    if (text == nullptr) return refused(where, "__metadata__ has a value that is not a text");
    header.metadata[name] = *text;
  }
  return ok();
}

}  // namespace

Result<uint64_t> safetensors_header_bytes(ByteSpan first_8, uint64_t file_bytes, const std::string& where) {
  if (first_8.size() < kSafetensorsLengthBytes || file_bytes < kSafetensorsLengthBytes)
    return refused(where, "it is shorter than 8 bytes");
  uint64_t length = 0;
  std::memcpy(&length, first_8.data(), sizeof length);
  if (length > kSafetensorsHeaderBytesMax || length > file_bytes - kSafetensorsLengthBytes)
    return refused(where, "its header claims " + std::to_string(length) + " bytes");
  return length;
}

Result<SafetensorsHeader> decode_safetensors(ByteSpan json_bytes, uint64_t file_bytes,
                                             const std::string& where) {
  const std::string text(reinterpret_cast<const char*>(json_bytes.data()), json_bytes.size());
  if (!text.starts_with('{')) return refused(where, "its header does not begin with '{'");
  const std::optional<Json> json = parse_json(text);
  if (!json || !json->is_object()) return refused(where, "its header is not JSON");
  SafetensorsHeader header;
  header.data_offset = kSafetensorsLengthBytes + json_bytes.size();
  if (file_bytes < header.data_offset) return refused(where, "it ends within its header");
  for (const auto& [name, value] : json->items()) {
    if (name == kMetadataName) {
      MUSTER_TRY(read_metadata(value, header, where));
      continue;
    }
    MUSTER_ASSIGN(header.tensors.emplace_back(), read_entry(name, value, where));
  }
  // Empty tensors lie before the one that begins where they do.
  std::sort(header.tensors.begin(), header.tensors.end(), [](const auto& a, const auto& b) {
    return std::pair(a.bytes.begin, a.bytes.end) < std::pair(b.bytes.begin, b.bytes.end);
  });
  std::vector<TensorSpec> specs;
  for (const SafetensorsEntry& entry : header.tensors) specs.push_back(spec_of(entry));
  if (const Status checked = check_specs(specs); !checked.ok())
    return refused(where, checked.error().message);
  MUSTER_TRY(check_cover(header, file_bytes - header.data_offset, where));
  return header;
}

Result<SafetensorsHeader> lay_out_safetensors(std::span<const TensorSpec> tensors,
                                              std::map<std::string, std::string> metadata) {
  SafetensorsHeader header;
  header.metadata = std::move(metadata);
  std::vector<const TensorSpec*> order;
  for (const TensorSpec& spec : tensors) {
    if (spec.name == kMetadataName)
      return Error{ErrorCode::kMisuse,
                   "a tensor named '__metadata__' cannot be written to a safetensors file; leave it out"};
    order.push_back(&spec);
  }
  std::stable_sort(order.begin(), order.end(), [](const TensorSpec* a, const TensorSpec* b) {
    return size_of(a->dtype) > size_of(b->dtype);
  });
  uint64_t at = 0;
  for (const TensorSpec* spec : order) {
    const uint64_t bytes = total_bytes(*spec);
    header.tensors.push_back({spec->name, spec->dtype, spec->shape, {at, at + bytes}});
    at += bytes;
  }
  header.data_offset = encode_safetensors(header).size();
  if (header.data_offset > kSafetensorsHeaderBytesMax)
    return Error{ErrorCode::kMisuse, "too many tensors for one safetensors file; export some of them"};
  return header;
}

std::string encode_safetensors(const SafetensorsHeader& header) {
  Json json = Json::object();
  if (!header.metadata.empty()) json[kMetadataName] = header.metadata;
  for (const SafetensorsEntry& entry : header.tensors) {
    json[entry.name] = {{"dtype", kSafetensorsNames[static_cast<size_t>(entry.dtype)]},
                        {"shape", entry.shape},
                        {"data_offsets", {entry.bytes.begin, entry.bytes.end}}};
  }
  std::string text = json.dump(-1, ' ', false, Json::error_handler_t::replace);
  text.resize(round_up(text.size(), 8), ' ');
  const uint64_t length = text.size();
  std::string bytes(reinterpret_cast<const char*>(&length), sizeof length);
  return bytes += text;
}

}  // namespace muster::checkpoint
