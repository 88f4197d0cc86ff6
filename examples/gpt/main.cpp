// The GPT trainer with Muster: the loop of solo.cpp, made elastic. Lines that end in "// M" are Muster's.
//
// Alone it is a world of one. Under `muster run`, `mpirun` or `srun` the ranks share the microbatches of each
// step; a killed, shrunk, grown, preempted and resumed run ends with the same weights, bit for bit, as an
// untouched one.
#include <CLI/CLI.hpp>
#include <chrono>
#include <cstdio>
#include <initializer_list>
#include <map>
#include <muster/muster.hpp>  // M
#include <string>
#include <vector>

#include "examples/gpt/backend.h"
#include "examples/gpt/data.h"
#include "examples/gpt/ledger.h"
#include "examples/gpt/sampler.h"
#include "examples/gpt/schedule.h"
#include "examples/gpt/summary.h"
#include "examples/gpt/trained_state.h"

namespace {

struct Options {
  std::vector<std::string> paths = {gpt::kDefaultCorpus};
  gpt::DeviceKind device = gpt::DeviceKind::kCpu;
  gpt::Config model;
  gpt::Schedule schedule;
  gpt::AdamWOptions adamw;
  gpt::SampleOptions sample;
  size_t microbatches = 16, lanes = 8, sequences = 2, bucket_kib = 256, report_every = 10, evaluate_every = 0;
  int64_t checkpoint_every = 50;
  muster_codec codec = MUSTER_CODEC_NONE;
  bool error_feedback = false;
  bool shard_optimizer = false;
  uint64_t seed = 1;
  int64_t checkpoint_local_every = 0;
  int64_t checkpoint_parity = 0;
  std::string checkpoint_dir, checkpoint_local_dir, ledger_dir, summary;
};

std::map<std::string, muster_codec> codecs() {
  return {{"none", MUSTER_CODEC_NONE},     {"bf16", MUSTER_CODEC_BF16}, {"fp16", MUSTER_CODEC_FP16},
          {"int8", MUSTER_CODEC_INT8},     {"int4", MUSTER_CODEC_INT4}, {"mxfp8", MUSTER_CODEC_MXFP8},
          {"1-bit", MUSTER_CODEC_ONE_BIT}, {"topk", MUSTER_CODEC_TOPK}};
}

std::map<std::string, gpt::DeviceKind> devices() {
  return {{"cpu", gpt::DeviceKind::kCpu}, {"cuda", gpt::DeviceKind::kCuda}};
}

void declare(CLI::App& app, Options& o) {
  app.add_option("paths", o.paths, "Text files, or folders of them")->capture_default_str();
  app.add_option("--device", o.device, "Where the model is computed: cpu or cuda")
      ->transform(CLI::CheckedTransformer(devices(), CLI::ignore_case))
      ->default_str("cpu");
  app.add_option("--layers", o.model.layers, "Transformer blocks")->capture_default_str();
  app.add_option("--width", o.model.width, "Width of the residual stream")->capture_default_str();
  app.add_option("--heads", o.model.heads, "Attention heads")->capture_default_str();
  app.add_option("--context", o.model.context, "Bytes that the model sees")->capture_default_str();
  app.add_option("--steps", o.schedule.steps, "Optimizer steps")->capture_default_str();
  app.add_option("--warmup", o.schedule.warmup_steps, "Steps of warm-up")->capture_default_str();
  app.add_option("--lr", o.schedule.peak, "Highest learning rate")->capture_default_str();
  app.add_option("--weight-decay", o.adamw.weight_decay, "Weight decay")->capture_default_str();
  app.add_option("--microbatches", o.microbatches, "Microbatches in a step")->capture_default_str();
  app.add_option("--lanes", o.lanes, "Lanes that they are grouped in; the largest world")
      ->capture_default_str();
  app.add_option("--sequences", o.sequences, "Sequences in a microbatch")->capture_default_str();
  app.add_option("--bucket-kib", o.bucket_kib,
                 "Gradients that are reduced together, while the rest is computed")
      ->check(CLI::Range(size_t{1}, size_t{1} << 30))
      ->capture_default_str();
  app.add_option("--codec", o.codec, "How gradients are compressed between processes")
      ->transform(CLI::CheckedTransformer(codecs(), CLI::ignore_case))
      ->default_str("none");
  app.add_flag("--error-feedback", o.error_feedback,
               "What the codec rounds off in one step is added to the next; 1-bit and topk need it");
  app.add_flag("--shard-optimizer", o.shard_optimizer,
               "Weights and moments in shards, each kept and updated by two processes; on the CPU");
  app.add_option("--checkpoint-dir", o.checkpoint_dir, "Where to save and resume; empty: nowhere");
  app.add_option("--checkpoint-every", o.checkpoint_every, "Steps between saves; auto: as often as it pays")
      ->transform(CLI::Transformer(std::map<std::string, int64_t>{{"auto", MUSTER_CHECKPOINT_AUTO}}))
      ->default_str("50");
  app.add_option("--checkpoint-local-dir", o.checkpoint_local_dir,
                 "Where each node saves for itself, too; empty: nowhere");
  app.add_option("--checkpoint-local-every", o.checkpoint_local_every,
                 "Steps between these saves; auto: as often as it pays")
      ->transform(CLI::Transformer(std::map<std::string, int64_t>{{"auto", MUSTER_CHECKPOINT_AUTO}}));
  app.add_option("--checkpoint-parity", o.checkpoint_parity,
                 "Shards of a group with a parity file, 2 to 64; 0: none");
  app.add_option("--report-every", o.report_every, "Steps between lines")->capture_default_str();
  app.add_option(
         "--evaluate-every", o.evaluate_every,
         "Steps between validations by the first process, for which the others wait; 0: only at the end")
      ->capture_default_str();
  app.add_option("--ledger", o.ledger_dir, "Folder for the list of samples that each process trained on");
  app.add_option("--summary", o.summary, "File for the final loss and the weights' digest, as JSON");
  app.add_option("--sample-bytes", o.sample.bytes, "Length of the text at the end")->capture_default_str();
  app.add_option("--temperature", o.sample.temperature, "Of sampling")->capture_default_str();
  app.add_option("--seed", o.seed, "Of weights and sample order")->capture_default_str();
}

// What another start on this machine would meet again.
struct Unusable : std::runtime_error {
  explicit Unusable(const muster::Error& error) : std::runtime_error(error.message) {}
  explicit Unusable(const char* why) : std::runtime_error(why) {}
};
constexpr int kDoNotRequeue = 78;

double seconds_now() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

// At the weights that the seed gives: every host has to compute the same.
std::vector<float> gradients_of_first_samples(gpt::Backend& backend, const gpt::Corpus& corpus,
                                              std::span<uint8_t> windows) {
  const size_t window = backend.config().context + 1;
  for (size_t s = 0; s < windows.size() / window; ++s)
    corpus.copy_sample(s % corpus.sample_count(), windows.subspan(s * window, window));
  backend.forward_backward(windows, [](size_t, size_t) {});
  std::vector<float> gradients(backend.layout().size());
  backend.read(backend.buffers().gradients, gradients);
  backend.clear();
  return gradients;
}

int train(const Options& o) {
  if (o.shard_optimizer && o.device != gpt::DeviceKind::kCpu)
    throw Unusable("--shard-optimizer works with --device cpu: shards are in the host's memory");
  auto created = gpt::make_backend(o.device, o.model, o.sequences, !o.shard_optimizer);
  if (!created) throw Unusable(created.error());
  auto loaded = gpt::Corpus::load(o.paths, o.model.context);
  if (!loaded) throw Unusable(loaded.error());
  gpt::Backend& backend = **created;
  const gpt::Corpus& corpus = *loaded;
  const gpt::Buffers& buffers = backend.buffers();
  const size_t size = backend.layout().size(), window = o.model.context + 1;
  backend.initialise(o.seed);
  std::vector<uint8_t> windows(o.sequences * window);

  const muster_memory memory = o.device == gpt::DeviceKind::kCuda ? MUSTER_CUDA : MUSTER_HOST;  // M
  muster::Session session;                                                                      // M
  muster::State state(session);                                                                 // M
  const auto trained =
      o.shard_optimizer ? gpt::keep_sharded(state, backend) : gpt::keep_whole(state, backend);  // M
  muster::TrainOptions options;                                                                 // M
  options.steps = static_cast<int64_t>(o.schedule.steps);                                       // M
  options.microbatches = static_cast<int32_t>(o.microbatches);                                  // M
  options.lanes = static_cast<int32_t>(o.lanes);                                                // M
  options.samples_per_microbatch = static_cast<int64_t>(o.sequences);                           // M
  options.dataset_samples = static_cast<int64_t>(corpus.sample_count());                        // M
  options.seed = o.seed;                                                                        // M
  options.bucket_bytes = o.bucket_kib << 10;                                                    // M
  options.codec = o.codec;                                                                      // M
  options.error_feedback = o.error_feedback ? gpt::kLossElements + size : 0;                    // M
  options.checkpoint_dir = o.checkpoint_dir.c_str();                                            // M
  options.checkpoint_every = o.checkpoint_every;                                                // M
  options.checkpoint_local_dir = o.checkpoint_local_dir.c_str();                                // M
  options.checkpoint_local_every = o.checkpoint_local_every;                                    // M
  options.checkpoint_parity = o.checkpoint_parity;                                              // M
  options.gradient_memory = memory;                                                             // M
  options.stream = backend.stream();                                                            // M
  muster::Run run(session, state, options);                                                     // M
  const std::vector<float> probed = gradients_of_first_samples(backend, corpus, windows);
  run.probe(probed.data(), probed.size() * sizeof(float));  // M
  gpt::Ledger ledger(o.ledger_dir);
  const std::initializer_list<muster_span> all = {{buffers.losses, gpt::kLossElements},
                                                  {buffers.gradients, size}};  // M

  const double step_bytes = static_cast<double>(o.microbatches * o.sequences * o.model.context);
  double since = seconds_now();
  int64_t reported = -1, evaluated = 0;
  // At the beginning of a step, and at the end: what the model computes with is a whole version then.
  const auto evaluate_if_due = [&](int64_t version) {
    const muster_run_info info = run.info();  // M
    if (o.evaluate_every == 0 || version == evaluated || info.rank != 0 || info.learner != 0 ||
        version % static_cast<int64_t>(o.evaluate_every) != 0)
      return;
    std::printf("evaluating version %lld\n", static_cast<long long>(version));
    std::fflush(stdout);
    const double validation = backend.loss(corpus.validation_windows());
    std::printf("evaluated version %lld: %.4f nats/byte\n", static_cast<long long>(version), validation);
    std::fflush(stdout);
    evaluated = version;
  };
  while (auto step = run.next()) {  // M
    evaluate_if_due(step.index());
    for (const muster::Microbatch& micro : step.microbatches()) {  // M
      for (size_t s = 0; s < o.sequences; ++s)
        corpus.copy_sample(static_cast<size_t>(micro.samples[s]),
                           std::span(windows).subspan(s * window, window));
      ledger.note(run.info().generation, step.index(), micro);
      backend.forward_backward(windows, [&](size_t begin, size_t end) {
        // The last layers' are reduced meanwhile.
        step.accumulate(micro, all, gpt::kLossElements + begin, gpt::kLossElements + end);  // M
      });
      step.accumulate(micro, all, 0, gpt::kLossElements);  // M
    }
    ledger.contribute();
    if (!step.reduce(all)) continue;    // M
    if (auto update = step.update()) {  // M
      trained->update(step, o.adamw, gpt::learning_rate(o.schedule, static_cast<size_t>(step.index())));
      ledger.apply();
    }
    const muster_run_info info = run.info();  // M
    if (info.rank == 0 && info.learner == 0 && info.version % static_cast<int64_t>(o.report_every) == 0) {
      const double loss = backend.training_loss();  // waits for a device, so before the clock is read
      const double now = seconds_now();
      const double steps = static_cast<double>(reported >= 0 ? info.version - reported : 1);
      std::printf("step %lld/%zu loss %.4f world %d nodes %d generation %llu saved %lld speed %.0f\n",
                  static_cast<long long>(info.version), o.schedule.steps, loss, info.world_size,
                  info.node_count, static_cast<unsigned long long>(info.generation),
                  static_cast<long long>(info.durable), steps * step_bytes / (now - since));
      std::fflush(stdout);
      since = now;
      reported = info.version;
    }
    backend.clear();
  }
  const muster_run_info info = run.info();       // M
  if (run.exit_code() == 0 && info.rank == 0) {  // M
    evaluate_if_due(info.version);
    gpt::print_summary(backend, corpus, o.sample, backend.training_loss(), o.summary);
  }
  return run.exit_code();  // M
}

}  // namespace

int main(int argc, char** argv) {
  Options options;
  CLI::App app("Trains a byte-level GPT on text files, on as many processes as there are.");
  declare(app, options);
  CLI11_PARSE(app, argc, argv);
  try {
    return train(options);
  } catch (const muster::Failure& failure) {  // M
    std::fprintf(stderr, "gpt: %s\n", failure.what());
    return failure.exit_code();
  } catch (const Unusable& error) {
    std::fprintf(stderr, "gpt: %s\n", error.what());
    return kDoNotRequeue;
  } catch (const std::exception& error) {
    std::fprintf(stderr, "gpt: %s\n", error.what());
    return 1;
  }
}
