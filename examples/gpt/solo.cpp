// The trainer as it was before Muster: one process, a plain loop. main.cpp is the same with Muster; compare
// the two to see which lines are Muster's.
#include <CLI/CLI.hpp>
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <string>
#include <vector>

#include "examples/gpt/adamw.h"
#include "examples/gpt/data.h"
#include "examples/gpt/host.h"
#include "examples/gpt/model.h"
#include "examples/gpt/ngram.h"
#include "examples/gpt/sampler.h"
#include "examples/gpt/schedule.h"
#include "runtime/base/random.h"

namespace {

struct Options {
  std::vector<std::string> paths = {gpt::kDefaultCorpus};
  gpt::Config model;
  gpt::Schedule schedule;
  gpt::AdamWOptions adamw;
  gpt::SampleOptions sample;
  size_t microbatches = 16, sequences = 2, report_every = 50;
  uint64_t seed = 1;
};

void declare(CLI::App& app, Options& o) {
  app.add_option("paths", o.paths, "Text files, or folders of them")->capture_default_str();
  app.add_option("--layers", o.model.layers, "Transformer blocks")->capture_default_str();
  app.add_option("--width", o.model.width, "Width of the residual stream")->capture_default_str();
  app.add_option("--heads", o.model.heads, "Attention heads")->capture_default_str();
  app.add_option("--context", o.model.context, "Bytes that the model sees")->capture_default_str();
  app.add_option("--steps", o.schedule.steps, "Optimizer steps")->capture_default_str();
  app.add_option("--warmup", o.schedule.warmup_steps, "Steps of warm-up")->capture_default_str();
  app.add_option("--lr", o.schedule.peak, "Highest learning rate")->capture_default_str();
  app.add_option("--weight-decay", o.adamw.weight_decay, "Weight decay")->capture_default_str();
  app.add_option("--microbatches", o.microbatches, "Microbatches in a step")->capture_default_str();
  app.add_option("--sequences", o.sequences, "Sequences in a microbatch")->capture_default_str();
  app.add_option("--report-every", o.report_every, "Steps between lines")->capture_default_str();
  app.add_option("--sample-bytes", o.sample.bytes, "Length of the text at the end")->capture_default_str();
  app.add_option("--temperature", o.sample.temperature, "Of sampling")->capture_default_str();
  app.add_option("--seed", o.seed, "Of weights and sample order")->capture_default_str();
}

double seconds_now() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

void print_summary(gpt::Model& model, const std::vector<float>& weights, const gpt::Corpus& corpus,
                   const Options& o) {
  const std::vector<uint8_t> validation = corpus.validation_windows();
  const double bigram = gpt::Ngram::fit(corpus.training_texts(), 2).loss(validation, corpus.context());
  const double trigram = gpt::Ngram::fit(corpus.training_texts(), 3).loss(validation, corpus.context());
  const std::string text = gpt::sample_text(model, weights, o.sample);
  const gpt::WordCount words = gpt::count_known_words(text, corpus.training_texts());
  std::printf("validation %.4f nats/byte; interpolated bigram %.4f, trigram %.4f\n",
              model.loss(weights, validation), bigram, trigram);
  std::printf("sampled words of four letters or more: %zu, of which %zu occur in the text\n%s\n", words.words,
              words.known, text.c_str());
}

muster::Status train(const Options& o) {
  MUSTER_TRY(gpt::require_processor());
  MUSTER_ASSIGN(gpt::Model model, gpt::Model::create(o.model, o.sequences));
  MUSTER_ASSIGN(const gpt::Corpus corpus, gpt::Corpus::load(o.paths, o.model.context));
  const size_t size = model.layout().size(), window = o.model.context + 1;
  std::vector<float> weights(size), gradients(size), sum(size), m(size), v(size);
  gpt::initialise(o.model, model.layout(), o.seed, weights);
  const std::vector<uint8_t> validation = corpus.validation_windows();
  std::vector<uint8_t> windows(o.sequences * window);
  muster::SeededRandom random(o.seed);
  std::printf("%zu parameters, %zu samples\n", size, corpus.sample_count());

  double spent = 0;
  const size_t step_bytes = o.microbatches * o.sequences * o.model.context;
  for (size_t step = 0; step < o.schedule.steps; ++step) {
    const double begin = seconds_now();
    std::fill(sum.begin(), sum.end(), 0.0f);
    float loss = 0;
    for (size_t micro = 0; micro < o.microbatches; ++micro) {
      for (size_t s = 0; s < o.sequences; ++s)
        corpus.copy_sample(random.below(corpus.sample_count()),
                           std::span(windows).subspan(s * window, window));
      loss += model.forward_backward(weights, windows, gradients);
      for (size_t i = 0; i < size; ++i) sum[i] += gradients[i];
    }
    const float share = 1.0f / static_cast<float>(o.microbatches);
    for (float& g : sum) g *= share;
    gpt::adamw(o.adamw, model.layout(), step, gpt::learning_rate(o.schedule, step), weights, sum, m, v);
    spent += seconds_now() - begin;
    if ((step + 1) % o.report_every == 0) {
      const double bytes = static_cast<double>((step + 1) * step_bytes);
      std::printf("step %5zu  loss %.4f  validation %.4f  %.2f MB seen  %.1f s  %.0f bytes/s\n", step + 1,
                  loss * share, model.loss(weights, validation), bytes * 1e-6, spent, bytes / spent);
      std::fflush(stdout);
    }
  }
  print_summary(model, weights, corpus, o);
  return muster::ok();
}

}  // namespace

int main(int argc, char** argv) {
  Options options;
  CLI::App app("Trains a byte-level GPT on text files, in one process.");
  declare(app, options);
  CLI11_PARSE(app, argc, argv);
  if (muster::Status done = train(options); !done) {
    std::fprintf(stderr, "gpt_solo: %s\n", done.error().message.c_str());
    return 1;
  }
  return 0;
}
