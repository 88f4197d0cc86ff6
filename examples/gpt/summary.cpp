#include "examples/gpt/summary.h"

#include <cstdio>
#include <cstring>
#include <fstream>
#include <stdexcept>

#include "examples/gpt/ngram.h"
#include "runtime/base/bytes.h"

namespace gpt {
namespace {

void write_file(const std::string& path, const char* bytes, size_t size) {
  std::ofstream file(path, std::ios::binary);
  file.write(bytes, static_cast<std::streamsize>(size));
  file.close();
  if (!file) throw std::runtime_error("cannot write " + path + "; is the disk full, or the folder missing?");
}

}  // namespace

void print_summary(Backend& backend, const Corpus& corpus, const SampleOptions& sample, float training_loss,
                   const std::string& file) {
  std::vector<float> weights(backend.layout().size());
  backend.read(backend.buffers().weights, weights);
  const std::vector<uint8_t> validation = corpus.validation_windows();
  const double loss = backend.loss(validation);
  const double bigram = Ngram::fit(corpus.training_texts(), 2).loss(validation, corpus.context());
  const double trigram = Ngram::fit(corpus.training_texts(), 3).loss(validation, corpus.context());
  const std::string text =
      sample_text([&](std::span<const uint8_t> history) { return backend.next_logits(history); }, sample);
  const WordCount words = count_known_words(text, corpus.training_texts());
  const std::string digest = muster::to_string(muster::digest_of(std::as_bytes(std::span(weights))));
  std::printf("validation %.4f nats/byte; interpolated bigram %.4f, trigram %.4f\n", loss, bigram, trigram);
  std::printf("sampled words of four letters or more: %zu, of which %zu occur in the text\n%s\n", words.words,
              words.known, text.c_str());
  if (file.empty()) return;
  char json[512];
  std::snprintf(
      json, sizeof json,
      "{\"validation\": %.6f, \"bigram\": %.6f, \"trigram\": %.6f, \"training\": %.9g, \"words\": %zu, "
      "\"known\": %zu, \"weights\": \"%s\"}\n",
      loss, bigram, trigram, static_cast<double>(training_loss), words.words, words.known, digest.c_str());
  write_file(file, json, std::strlen(json));
  write_file(file + ".weights", reinterpret_cast<const char*>(weights.data()),
             weights.size() * sizeof(float));
}

}  // namespace gpt
