#include "launcher/metrics.h"

#include <prometheus/counter.h>
#include <prometheus/gauge.h>
#include <prometheus/histogram.h>
#include <prometheus/registry.h>
#include <prometheus/text_serializer.h>

#include <algorithm>
#include <array>

namespace muster::launcher {
namespace {

using prometheus::Counter;
using prometheus::Gauge;
using prometheus::Histogram;
using prometheus::Labels;

constexpr size_t kKinds = static_cast<size_t>(kNewestEventKind) + 1;
constexpr size_t kTiers = 2;
constexpr std::array<Tier, kTiers> kAllTiers = {Tier::kShared, Tier::kLocal};

double seconds(int64_t nanoseconds) { return static_cast<double>(nanoseconds) / 1e9; }

// In seconds. Steps last from milliseconds to minutes, and so do changes of the view.
Histogram::BucketBoundaries times() {
  return {0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100, 200, 500};
}

size_t index_of(Tier tier) { return tier == Tier::kLocal ? 1 : 0; }
std::string label_of(Tier tier) { return tier == Tier::kLocal ? "local" : "shared"; }

}  // namespace

struct Metrics::Series {
  prometheus::Registry registry;
  std::array<Counter*, kKinds> events{};
  Gauge* world = nullptr;
  Gauge* generation = nullptr;
  Gauge* step = nullptr;
  Gauge* frozen = nullptr;
  Gauge* safe_to_kill = nullptr;
  Histogram* step_time = nullptr;
  Histogram* view_change = nullptr;
  Counter* state_received = nullptr;
  Counter* steps_lost = nullptr;
  // Of each tier.
  struct Saves {
    Gauge* durable = nullptr;
    Gauge* verified = nullptr;
    Counter* written = nullptr;
    Counter* failed = nullptr;
    Counter* bytes = nullptr;
    Histogram* stall = nullptr;
  };
  std::array<Saves, kTiers> saves;

  Gauge& gauge(const char* name, const char* help, const Labels& labels = {}) {
    return prometheus::BuildGauge().Name(name).Help(help).Register(registry).Add(labels);
  }
  Counter& counter(const char* name, const char* help, const Labels& labels = {}) {
    return prometheus::BuildCounter().Name(name).Help(help).Register(registry).Add(labels);
  }
  Histogram& histogram(const char* name, const char* help, const Labels& labels = {}) {
    return prometheus::BuildHistogram().Name(name).Help(help).Register(registry).Add(labels, times());
  }

  void add_saves(Tier tier) {
    const Labels labels = {{"tier", label_of(tier)}};
    saves[index_of(tier)] = {
        &gauge("muster_save_durable_version", "Newest version that is durable, -1: none seen.", labels),
        &gauge("muster_save_verified_version", "Newest version that was read back, -1: none seen.", labels),
        &counter("muster_saves_durable_total", "Saves that became durable.", labels),
        &counter("muster_saves_failed_total", "Saves that failed; training went on.", labels),
        &counter("muster_save_bytes_total", "Bytes of the saves that became durable.", labels),
        &histogram("muster_save_stall_seconds", "How long a save held the state, of its first participant.",
                   labels)};
    saves[index_of(tier)].durable->Set(-1);
    saves[index_of(tier)].verified->Set(-1);
  }

  void note_save(const Event& event) {
    Saves& of = saves[index_of(event.tier)];
    const auto raise = [&](Gauge& gauge) {
      gauge.Set(std::max(gauge.Value(), static_cast<double>(event.version)));
    };
    switch (event.kind) {
      case EventKind::kSaveStaged:
        return of.stall->Observe(seconds(event.amount));
      case EventKind::kSaveDurable:
        of.written->Increment();
        of.bytes->Increment(static_cast<double>(std::max<int64_t>(0, event.amount)));
        return raise(*of.durable);
      case EventKind::kSaveVerified:
        return raise(*of.verified);
      case EventKind::kSaveFailed:
        return of.failed->Increment();
      default:
        return;
    }
  }
};

Metrics::Metrics(const std::string& node, const std::string& version) : series_(std::make_unique<Series>()) {
  Series& s = *series_;
  s.gauge("muster_info", "Always 1.", {{"node", node}, {"version", version}}).Set(1);
  auto& events =
      prometheus::BuildCounter().Name("muster_events_total").Help("Events, by kind.").Register(s.registry);
  for (size_t kind = 0; kind < kKinds; ++kind)
    s.events[kind] = &events.Add({{"kind", std::string(to_string(static_cast<EventKind>(kind)))}});
  s.world = &s.gauge("muster_world_size", "Ranks of the newest view.");
  s.generation = &s.gauge("muster_generation", "Of the newest view.");
  s.step = &s.gauge("muster_step", "Newest committed step, -1: none seen here.");
  s.step->Set(-1);
  s.step_time = &s.histogram("muster_step_seconds", "From a step's beginning to the end of its reduction.");
  s.view_change =
      &s.histogram("muster_view_change_seconds", "From a loss, or a planned boundary, to the next view.");
  s.frozen = &s.gauge("muster_frozen", "1 while no permit is granted here, until the next step or view.");
  s.safe_to_kill = &s.gauge("muster_safe_to_kill", "1 once this node can be killed without losing anything.");
  s.state_received = &s.counter("muster_state_received_bytes_total", "State that workers got from others.");
  s.steps_lost = &s.counter("muster_steps_lost_total", "Steps that preemptions cost.");
  for (const Tier tier : kAllTiers) s.add_saves(tier);
}

Metrics::~Metrics() = default;

void Metrics::note(const Event& event) {
  Series& s = *series_;
  if (static_cast<size_t>(event.kind) < kKinds) s.events[static_cast<size_t>(event.kind)]->Increment();
  switch (event.kind) {
    case EventKind::kViewReady:
      // Of the leader, what the change cost; of a worker, that it is there, and among how many.
      if (event.subject < 0) return s.view_change->Observe(seconds(event.amount));
      s.world->Set(static_cast<double>(event.subject));
      s.generation->Set(static_cast<double>(event.generation));
      return s.frozen->Set(0);
    case EventKind::kStepCommitted:
      s.step->Set(static_cast<double>(event.version));
      s.step_time->Observe(seconds(event.amount));
      return s.frozen->Set(0);
    case EventKind::kResumed:
      return s.saves[index_of(Tier::kShared)].durable->Set(static_cast<double>(event.amount));
    case EventKind::kTransfer:
      return s.state_received->Increment(static_cast<double>(std::max<int64_t>(0, event.amount)));
    case EventKind::kFrozen:
      return s.frozen->Set(1);
    case EventKind::kSafeToKill:
      return s.safe_to_kill->Set(1);
    case EventKind::kPreemptionCost:
      return s.steps_lost->Increment(static_cast<double>(std::max<int64_t>(0, event.subject)));
    default:
      return s.note_save(event);
  }
}

std::string Metrics::text() const {
  return prometheus::TextSerializer().Serialize(series_->registry.Collect());
}

}  // namespace muster::launcher
