// The text: files, their split into training and validation, and windows of context + 1 bytes.
//
// The last tenth of each file is for validation, the rest for training; no window crosses from one to the
// other or from file to file. (Licences quote each other, so a part of the validation text also stands
// somewhere in the training text: as true for the baselines of ngram.h as for the model.)
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "runtime/base/bytes.h"
#include "runtime/base/result.h"

namespace gpt {

constexpr const char* kDefaultCorpus = "/usr/share/common-licenses";

class Corpus {
 public:
  // Each path is a file or a folder; of a folder, all files directly in it. A file that is reached twice,
  // say by a symbolic link, counts once. Files are taken in the order of their resolved paths.
  // Errors: kMisuse for a path that is missing or cannot be read, for no text at all, and for text of which
  // no file is long enough for a window of training and one of validation.
  static muster::Result<Corpus> load(const std::vector<std::string>& paths, size_t context);

  // The same of texts in memory, each treated as a file.
  static muster::Result<Corpus> from_texts(const std::vector<std::string>& texts, size_t context);

  // Logical samples are 0 … sample_count() - 1: every window of the training text, one for each start.
  size_t sample_count() const { return sample_count_; }
  // REQUIRES: index < sample_count(), window.size() == context + 1.
  void copy_sample(size_t index, std::span<uint8_t> window) const;

  // Windows of the validation text, one after the other; each starts on the last byte of the one before, so
  // that every target is predicted once.
  std::vector<uint8_t> validation_windows() const;

  using Text = std::span<const uint8_t>;
  std::vector<Text> training_texts() const { return texts(training_); }
  std::vector<Text> validation_texts() const { return texts(validation_); }

  // Equal on hosts that read the same text. Ranks with other text would train on other samples.
  muster::Digest digest() const;
  size_t context() const { return context_; }

 private:
  struct Segment {
    size_t begin, end;      // in bytes_
    size_t windows_before;  // starts of windows in earlier segments of the same kind
  };

  void add(std::string_view text);
  std::vector<Text> texts(const std::vector<Segment>& segments) const;

  size_t context_ = 0;
  size_t sample_count_ = 0;
  std::vector<uint8_t> bytes_;
  std::vector<Segment> training_, validation_;
};

}  // namespace gpt
