// Files of the safetensors format (https://github.com/huggingface/safetensors): an 8-byte length, a header of
// JSON, the bytes of the tensors one behind the other. Header only: pure, and safe with hostile bytes.
#pragma once

#include <map>

#include "checkpoint/layout.h"

namespace muster::checkpoint {

constexpr uint64_t kSafetensorsHeaderBytesMax = 100'000'000;  // the limit of the format's own library
constexpr uint64_t kSafetensorsLengthBytes = 8;

struct SafetensorsEntry {
  std::string name;
  DType dtype = DType::kFloat32;  // BOOL is read as uint8, whose bytes it has
  std::vector<uint64_t> shape;
  Range bytes;  // counted from the end of the header
};

struct SafetensorsHeader {
  std::vector<SafetensorsEntry> tensors;        // in the order of their bytes
  std::map<std::string, std::string> metadata;  // what the file says about itself
  uint64_t data_offset = 0;                     // of the end of the header in the file
};

// The number of bytes of the header, from the first 8 of a file of `file_bytes`.
Result<uint64_t> safetensors_header_bytes(ByteSpan first_8, uint64_t file_bytes, const std::string& where);
// `json` is the header without its length. A header that parses covers the file without holes or overlaps,
// and its tensors pass check_specs. Errors: kMisuse; the sentence names `where` and the tensor.
Result<SafetensorsHeader> decode_safetensors(ByteSpan json, uint64_t file_bytes, const std::string& where);

// Lays the tensors out (larger elements first, so that all are aligned) and returns the header to decode.
// Errors: kMisuse: a name that the format keeps for itself.
Result<SafetensorsHeader> lay_out_safetensors(std::span<const TensorSpec> tensors,
                                              std::map<std::string, std::string> metadata);
// The bytes of the file up to data_offset. REQUIRES: from lay_out_safetensors.
std::string encode_safetensors(const SafetensorsHeader& header);

}  // namespace muster::checkpoint
