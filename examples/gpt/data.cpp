#include "examples/gpt/data.h"

#include <algorithm>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <set>
#include <sstream>

#include "runtime/base/check.h"

namespace gpt {
namespace {

namespace fs = std::filesystem;
using muster::Error;
using muster::ErrorCode;
using muster::Result;

Error misuse(std::string message) { return {ErrorCode::kMisuse, std::move(message)}; }

// Adds the files that `path` names, resolved, so that each is there once.
muster::Status collect(const std::string& path, std::set<std::string>& files) {
  std::error_code failure;
  const fs::file_status status = fs::status(path, failure);
  if (!fs::exists(status)) return misuse("no text: '" + path + "' does not exist; name a file or a folder");
  if (fs::is_regular_file(status)) {
    files.insert(fs::canonical(path, failure).string());
    return muster::ok();
  }
  if (!fs::is_directory(status)) return misuse("no text: '" + path + "' is neither a file nor a folder");
  fs::directory_iterator entries(path, failure);
  if (failure) return misuse("the folder '" + path + "' cannot be read: " + failure.message());
  for (const fs::directory_entry& entry : entries) {
    std::error_code broken_link;
    if (entry.is_regular_file(broken_link)) files.insert(fs::canonical(entry.path(), failure).string());
  }
  return muster::ok();
}

Result<std::string> read(const std::string& file) {
  std::ifstream in(file, std::ios::binary);
  std::ostringstream text;
  if (!in.is_open()) return misuse("the file '" + file + "' cannot be read; check its permissions");
  if (in.peek() != std::ifstream::traits_type::eof()) text << in.rdbuf();
  if (in.bad()) return misuse("reading the file '" + file + "' failed half-way");
  return std::move(text).str();
}

size_t starts_in(size_t bytes, size_t context) { return bytes > context ? bytes - context : 0; }

}  // namespace

Result<Corpus> Corpus::load(const std::vector<std::string>& paths, size_t context) {
  std::set<std::string> files;
  for (const std::string& path : paths) MUSTER_TRY(collect(path, files));
  if (files.empty())
    return misuse("no text: there is no file in " + (paths.empty() ? "an empty list" : paths[0]));
  std::vector<std::string> texts;
  for (const std::string& file : files) {
    MUSTER_ASSIGN(std::string text, read(file));
    texts.push_back(std::move(text));
  }
  return from_texts(texts, context);
}

Result<Corpus> Corpus::from_texts(const std::vector<std::string>& texts, size_t context) {
  Corpus corpus;
  corpus.context_ = context;
  for (const std::string& text : texts) corpus.add(text);
  if (corpus.bytes_.empty()) return misuse("no text: all files are empty");
  const bool validates = std::any_of(corpus.validation_.begin(), corpus.validation_.end(),
                                     [&](const Segment& s) { return s.end - s.begin > context; });
  if (corpus.sample_count_ == 0 || !validates) {
    return misuse("the text is too short: no file has " + std::to_string(10 * (context + 1)) +
                  " bytes, which a window of context " + std::to_string(context) +
                  " in its last tenth needs; give longer files or a smaller context");
  }
  return corpus;
}

void Corpus::add(std::string_view text) {
  const size_t begin = bytes_.size(), end = begin + text.size(), split = end - text.size() / 10;
  bytes_.insert(bytes_.end(), text.begin(), text.end());
  training_.push_back({begin, split, sample_count_});
  validation_.push_back({split, end, 0});
  sample_count_ += starts_in(split - begin, context_);
}

void Corpus::copy_sample(size_t index, std::span<uint8_t> window) const {
  MUSTER_CHECK(index < sample_count_ && window.size() == context_ + 1, "no such sample");
  // The last segment that begins at or before the index; segments without windows share their successor's.
  auto after = std::upper_bound(training_.begin(), training_.end(), index,
                                [](size_t i, const Segment& s) { return i < s.windows_before; });
  const Segment& segment = *std::prev(after);
  std::memcpy(window.data(), bytes_.data() + segment.begin + (index - segment.windows_before), window.size());
}

std::vector<uint8_t> Corpus::validation_windows() const {
  std::vector<uint8_t> windows;
  for (const Segment& s : validation_) {
    for (size_t at = s.begin; at + context_ < s.end; at += context_)
      windows.insert(windows.end(), bytes_.begin() + at, bytes_.begin() + at + context_ + 1);
  }
  return windows;
}

std::vector<Corpus::Text> Corpus::texts(const std::vector<Segment>& segments) const {
  std::vector<Text> out;
  for (const Segment& s : segments) out.push_back(Text(bytes_).subspan(s.begin, s.end - s.begin));
  return out;
}

muster::Digest Corpus::digest() const { return muster::digest_of(std::as_bytes(std::span(bytes_))); }

}  // namespace gpt
