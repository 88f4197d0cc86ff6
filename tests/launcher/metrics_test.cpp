// What Prometheus gets to see: the numbers of events, as text.
#include "launcher/metrics.h"

#include <gtest/gtest.h>

#include <sstream>
#include <string>

namespace muster::launcher {
namespace {

// "name{labels}" → what stands behind it, or "none".
std::string value_of(const Metrics& metrics, const std::string& series) {
  std::istringstream lines(metrics.text());
  for (std::string line; std::getline(lines, line);)
    if (line.starts_with(series + " ")) return line.substr(series.size() + 1);
  return "none";
}

Event event(EventKind kind, int64_t version = -1, int64_t amount = 0, int64_t subject = -1,
            Tier tier = Tier::kShared) {
  return {kind, 0, 7, version, subject, amount, "\"text\"\nthat must not matter", tier};
}

TEST(Metrics, EachKindOfEventIsCounted) {
  Metrics metrics("n\"0\\", "1.2.3");
  EXPECT_EQ(value_of(metrics, R"(muster_info{node="n\"0\\",version="1.2.3"})"), "1");
  for (int kind = 0; kind <= static_cast<int>(kNewestEventKind); ++kind) {
    const std::string series =
        "muster_events_total{kind=\"" + std::string(to_string(static_cast<EventKind>(kind))) + "\"}";
    EXPECT_EQ(value_of(metrics, series), "0");
    metrics.note(event(static_cast<EventKind>(kind)));
    EXPECT_EQ(value_of(metrics, series), "1") << series;
  }
  const std::string before = metrics.text();
  metrics.note(event(static_cast<EventKind>(9999)));  // of a later version
  EXPECT_EQ(metrics.text(), before);
}

TEST(Metrics, StepsAndViews) {
  Metrics metrics("a", "1");
  EXPECT_EQ(value_of(metrics, "muster_step"), "-1");
  metrics.note(event(EventKind::kStepCommitted, 41, 30 * kMillisecond));
  metrics.note(event(EventKind::kStepCommitted, 42, 10 * kMillisecond));
  EXPECT_EQ(value_of(metrics, "muster_step"), "42");
  EXPECT_EQ(value_of(metrics, "muster_step_seconds_sum"), "0.04");
  EXPECT_EQ(value_of(metrics, "muster_step_seconds_count"), "2");
  EXPECT_EQ(value_of(metrics, "muster_step_seconds_bucket{le=\"0.02\"}"), "1");
  metrics.note(event(EventKind::kFrozen));
  EXPECT_EQ(value_of(metrics, "muster_frozen"), "1");
  // A worker says that it is in a view of three; the leader, how long the change took.
  metrics.note(event(EventKind::kViewReady, 42, 5 * kSecond, 3));
  metrics.note(event(EventKind::kViewReady, 42, 2 * kSecond));
  EXPECT_EQ(value_of(metrics, "muster_frozen"), "0");
  EXPECT_EQ(value_of(metrics, "muster_world_size"), "3");
  EXPECT_EQ(value_of(metrics, "muster_generation"), "7");
  EXPECT_EQ(value_of(metrics, "muster_view_change_seconds_sum"), "2");
  EXPECT_EQ(value_of(metrics, "muster_view_change_seconds_count"), "1");
  metrics.note(event(EventKind::kFrozen));
  metrics.note(event(EventKind::kStepCommitted, 43, 1));
  EXPECT_EQ(value_of(metrics, "muster_frozen"), "0");
  metrics.note(event(EventKind::kTransfer, 42, 1000));
  EXPECT_EQ(value_of(metrics, "muster_state_received_bytes_total"), "1000");
}

TEST(Metrics, SavesOfEachTier) {
  Metrics metrics("a", "1");
  EXPECT_EQ(value_of(metrics, "muster_save_durable_version{tier=\"local\"}"), "-1");
  metrics.note(event(EventKind::kSaveStaged, 10, 4 * kMillisecond));
  metrics.note(event(EventKind::kSaveDurable, 10, 5000));
  metrics.note(event(EventKind::kSaveVerified, 10));
  metrics.note(event(EventKind::kSaveDurable, 12, 3000, -1, Tier::kLocal));
  metrics.note(event(EventKind::kSaveFailed, 20));
  metrics.note(event(EventKind::kSaveDurable, 8, 1));  // late, of an older version
  EXPECT_EQ(value_of(metrics, "muster_save_durable_version{tier=\"shared\"}"), "10");
  EXPECT_EQ(value_of(metrics, "muster_save_verified_version{tier=\"shared\"}"), "10");
  EXPECT_EQ(value_of(metrics, "muster_save_bytes_total{tier=\"shared\"}"), "5001");
  EXPECT_EQ(value_of(metrics, "muster_saves_durable_total{tier=\"shared\"}"), "2");
  EXPECT_EQ(value_of(metrics, "muster_saves_failed_total{tier=\"shared\"}"), "1");
  EXPECT_EQ(value_of(metrics, "muster_save_stall_seconds_sum{tier=\"shared\"}"), "0.004");
  EXPECT_EQ(value_of(metrics, "muster_save_durable_version{tier=\"local\"}"), "12");
  EXPECT_EQ(value_of(metrics, "muster_save_verified_version{tier=\"local\"}"), "-1");
  EXPECT_EQ(value_of(metrics, "muster_saves_failed_total{tier=\"local\"}"), "0");
}

TEST(Metrics, TheEndOfANode) {
  Metrics metrics("a", "1");
  metrics.note(event(EventKind::kPreemptionCost, -1, 0, -1));  // not known
  EXPECT_EQ(value_of(metrics, "muster_steps_lost_total"), "0");
  metrics.note(event(EventKind::kPreemptionCost, 9, 0, 3));
  EXPECT_EQ(value_of(metrics, "muster_steps_lost_total"), "3");
  EXPECT_EQ(value_of(metrics, "muster_safe_to_kill"), "0");
  metrics.note(event(EventKind::kSafeToKill, 9));
  EXPECT_EQ(value_of(metrics, "muster_safe_to_kill"), "1");
}

}  // namespace
}  // namespace muster::launcher
