// What Slurm 22.05 really answers, and what is concluded from it.
#include "runtime/notice/slurm.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <random>

namespace muster::notice {
namespace {

using testing::HasSubstr;

// As printed by scontrol 22.05.8 with TZ=UTC0.
constexpr char kRunning[] = R"(JobId=7 JobName=train
   UserId=root(0) GroupId=root(0) MCS_label=N/A
   Priority=4294901759 Nice=0 Account=(null) QOS=(null)
   JobState=RUNNING Reason=None Dependency=(null)
   Requeue=1 Restarts=2 BatchFlag=1 Reboot=0 ExitCode=0:0
   RunTime=00:00:03 TimeLimit=UNLIMITED TimeMin=N/A
   SubmitTime=2026-11-22T15:02:39 EligibleTime=2026-11-22T15:02:39
   AccrueTime=2026-11-22T15:02:39
   StartTime=2026-11-22T15:02:39 EndTime=Unknown Deadline=N/A
   PreemptEligibleTime=2026-11-22T15:02:39 PreemptTime=None
   Partition=low AllocNode:Sid=localhost:31706
   Comment=JobState=CANCELLED
)";
constexpr WallSeconds kStart = 1795359759;  // 2026-11-22T15:02:39 UTC

std::string with(const std::string& key, const std::string& value) {
  std::string text = kRunning;
  const size_t at = text.find(" " + key + "=") + 1;
  const size_t end = text.find_first_of(" \n", at);
  return text.replace(at, end - at, key + "=" + value);
}

SlurmJob job_of(const std::string& text) {
  auto job = parse_slurm_job(text);
  EXPECT_TRUE(job.ok());
  return job.ok() ? *job : SlurmJob{};
}

TEST(SlurmJobText, IsRead) {
  const SlurmJob job = job_of(kRunning);
  EXPECT_EQ(job.id, 7U);
  EXPECT_EQ(job.state, "RUNNING");
  EXPECT_EQ(job.partition, "low");
  EXPECT_TRUE(job.is_batch);
  EXPECT_TRUE(job.may_requeue);
  EXPECT_EQ(job.restarts, 2U);
  EXPECT_FALSE(job.ends_at);
  EXPECT_FALSE(job.preempted_at);
  EXPECT_EQ(job_of(with("EndTime", "2026-11-22T15:03:39")).ends_at, kStart + 60);
}

TEST(SlurmJobText, ItsNameSaysNothing) {
  const std::string name = "JobId=7 JobName=x JobState=CANCELLED BatchFlag=0\n";
  const std::string text = name + std::string(kRunning).substr(std::string(kRunning).find('\n') + 1);
  EXPECT_EQ(job_of(text).state, "RUNNING");
  EXPECT_TRUE(job_of(text).is_batch);
}

TEST(SlurmJobText, WhatIsNoAnswerIsRefused) {
  for (const char* text : {"", "slurm_load_jobs error: Invalid job id specified", "JobId=x JobState=RUNNING",
                           "JobId=7 JobName=a\n", "JobState=RUNNING", "JobId=7 JobState="}) {
    EXPECT_FALSE(parse_slurm_job(text).ok()) << text;
  }
}

TEST(SlurmJobText, NoDamageBreaksTheReader) {
  std::mt19937 random(1);
  for (int round = 0; round < 20000; ++round) {
    std::string text = kRunning;
    for (int changes = 0; changes < 4; ++changes) {
      const size_t at = random() % text.size();
      if (random() % 2 == 0)
        text[at] = static_cast<char>(random());
      else
        text.erase(at, random() % 40);
      if (text.empty()) break;
    }
    (void)parse_slurm_job(text).ok();
  }
}

// As printed by scontrol 22.05.8.
std::string node_text(const std::string& state, const std::string& reason) {
  return "NodeName=localhost Arch=x86_64 CoresPerSocket=1 \n   CPUAlloc=1 CPUEfctv=2 CPUTot=2 CPULoad=0.77\n"
         "   State=" +
         state + " ThreadsPerCore=1 TmpDisk=0 Weight=1 Owner=N/A MCS_label=N/A\n   Partitions=low,high \n" +
         (reason.empty() ? "" : "   Reason=" + reason + " [root@2026-11-22T22:30:00]\n") + "\n";
}

TEST(SlurmNode, ADrainAndItsReasonAreRead) {
  for (const char* state :
       {"MIXED+DRAIN", "IDLE+DRAIN+NOT_RESPONDING", "ALLOCATED*+DRAIN", "DRAINING*", "FAILING"}) {
    const auto drains = parse_slurm_drain(node_text(state, "maintenance of the rack"));
    ASSERT_TRUE(drains.ok() && drains->has_value()) << state;
    EXPECT_EQ(**drains, "Slurm drains node localhost: maintenance of the rack");
  }
  const auto silent = parse_slurm_drain(node_text("MIXED+DRAIN", ""));
  ASSERT_TRUE(silent.ok() && silent->has_value());
  EXPECT_EQ(**silent, "Slurm drains node localhost");
}

TEST(SlurmNode, OneThatWorksIsNotDrained) {
  for (const char* state : {"MIXED", "IDLE*", "ALLOCATED+MAINTENANCE", "MIXED+PLANNED", "IDLE+DRAINX"}) {
    const auto drains = parse_slurm_drain(node_text(state, "State=DRAIN"));
    ASSERT_TRUE(drains.ok()) << state;
    EXPECT_FALSE(drains->has_value()) << state;
  }
}

TEST(SlurmNode, WhatIsNoAnswerIsRefused) {
  for (const char* text :
       {"", "Node localhost not found", "State=DRAIN", "NodeName=a State=", "JobState=RUNNING"})
    EXPECT_FALSE(parse_slurm_drain(text).ok()) << text;
  const std::string whole = node_text("MIXED+DRAIN", "rack");
  for (size_t cut = 0; cut < whole.size(); ++cut) static_cast<void>(parse_slurm_drain(whole.substr(0, cut)));
}

TEST(SlurmTimes, AreRead) {
  EXPECT_EQ(
      *parse_slurm_grace("PartitionName=low\n   DefaultTime=NONE ExclusiveUser=NO GraceTime=20 Hidden=NO"),
      20);
  EXPECT_FALSE(parse_slurm_grace("PartitionName=low").ok());
  EXPECT_EQ(
      *parse_slurm_kill_wait("KeepAliveTime           = SYSTEM_DEFAULT\nKillWait                = 30 sec\n"),
      30);
  EXPECT_FALSE(parse_slurm_kill_wait("KillWait = soon").ok());
  EXPECT_EQ(parse_slurm_time("1970-01-01T00:00:10"), 10);
  for (const char* text : {"None", "Unknown", "", "2026-11-22T15:02:3x", "2026-11-22 15:02:39", "15:02:39"})
    EXPECT_FALSE(parse_slurm_time(text)) << text;
}

TEST(Signal, APreemptionEndsWithTheGraceTime) {
  const SlurmTimes times{20, 30};
  // EndTime is not moved yet, or is a far time limit: GraceTime counts.
  for (const char* end : {"Unknown", "2026-11-23T15:02:39"}) {
    std::string text = with("PreemptTime", "2026-11-22T15:02:49");
    text.replace(text.find("EndTime=Unknown"), 15, std::string("EndTime=") + end);
    const SlurmVerdict verdict = judge_signal(job_of(text), times, 2, kStart + 10);
    EXPECT_EQ(verdict.reason, SlurmReason::kPreempted);
    EXPECT_EQ(verdict.kill_at, kStart + 30);
    EXPECT_TRUE(verdict.again);
  }
}

TEST(Signal, APreemptionWithoutAKnownGraceTimeEndsAtEndTime) {
  std::string text = with("PreemptTime", "2026-11-22T15:02:49");
  EXPECT_FALSE(judge_signal(job_of(text), {}, 2, kStart + 10).kill_at);
  text.replace(text.find("EndTime=Unknown"), 15, "EndTime=2026-11-22T15:03:09");
  EXPECT_EQ(judge_signal(job_of(text), {}, 2, kStart + 10).kill_at, kStart + 30);
}

TEST(Signal, ACancelledJobIsNotWantedAgain) {
  const SlurmVerdict verdict = judge_signal(job_of(with("JobState", "CANCELLED")), {20, 30}, 2, kStart);
  EXPECT_EQ(verdict.reason, SlurmReason::kCancelled);
  EXPECT_FALSE(verdict.again);
  EXPECT_EQ(verdict.kill_at, kStart + 30);
}

// What scontrol 22.05 really shows after scancel, a time limit and a requeue, while the job's processes live.
TEST(Signal, CompletingIsToldApartByReasonAndRestarts) {
  const std::string completing = with("JobState", "COMPLETING");
  EXPECT_EQ(judge_signal(job_of(completing), {20, 30}, 2, kStart).reason, SlurmReason::kCancelled);
  EXPECT_EQ(judge_signal(job_of(completing), {20, 30}, 1, kStart).reason, SlurmReason::kRequeued);
  std::string limit = completing;
  limit.replace(limit.find("Reason=None"), 11, "Reason=TimeLimit");
  EXPECT_EQ(judge_signal(job_of(limit), {20, 30}, 2, kStart).reason, SlurmReason::kTimeLimit);
}

TEST(Signal, TheTimeLimitIsReachedOrNear) {
  EXPECT_EQ(judge_signal(job_of(with("JobState", "TIMEOUT")), {20, 30}, 2, kStart).kill_at, kStart + 30);
  const SlurmVerdict near = judge_signal(job_of(with("EndTime", "2026-11-22T15:03:39")), {20, 30}, 2, kStart);
  EXPECT_EQ(near.reason, SlurmReason::kTimeLimit);
  EXPECT_EQ(near.kill_at, kStart + 90);
  EXPECT_TRUE(near.again);
}

TEST(Signal, AJobThatGoesOnWasAskedBySomebody) {
  EXPECT_EQ(judge_signal(job_of(kRunning), {20, 30}, 2, kStart).reason, SlurmReason::kAsked);
  EXPECT_EQ(judge_signal(job_of(with("EndTime", "2026-11-23T15:03:39")), {20, 30}, 2, kStart).reason,
            SlurmReason::kAsked);
}

RequeueFacts facts_of(uint32_t restart, bool progressed, std::optional<RequeueMarker> marker = {}) {
  RequeueFacts facts;
  facts.restart = restart;
  facts.restarts_max = 100;
  facts.progressed = progressed;
  facts.marker = marker;
  return facts;
}

TEST(Requeue, IsAskedForOnceALaunch) {
  const SlurmJob job = job_of(kRunning);
  const RequeueDecision first = decide_requeue(job, facts_of(2, true, RequeueMarker{}));
  EXPECT_TRUE(first.ask);
  EXPECT_FALSE(decide_requeue(job, facts_of(2, true, first.marker)).ask);
  EXPECT_TRUE(decide_requeue(job, facts_of(3, true, first.marker)).ask);
}

TEST(Requeue, AnotherJobsMarkerDoesNotCount) {
  RequeueMarker old;
  old.job = 6;
  old.restart = 2;
  old.stuck = 2;
  const RequeueDecision decision = decide_requeue(job_of(kRunning), facts_of(2, false, old));
  EXPECT_TRUE(decision.ask);
  EXPECT_EQ(decision.marker.stuck, 1U);
  old.never = true;
  EXPECT_FALSE(decide_requeue(job_of(kRunning), facts_of(2, true, old)).ask);
}

TEST(Requeue, StopsAfterLaunchesWithoutAStep) {
  RequeueMarker marker;
  for (uint32_t restart = 0; restart < kStuckLaunchesMax; ++restart) {
    const RequeueDecision decision =
        decide_requeue(job_of(with("Restarts", std::to_string(restart))), facts_of(restart, false, marker));
    EXPECT_EQ(decision.ask, restart + 1 < kStuckLaunchesMax) << restart;
    marker = decision.marker;
  }
  EXPECT_TRUE(decide_requeue(job_of(kRunning), facts_of(kStuckLaunchesMax, true, marker)).ask);
  // Without a marker only this launch is known.
  EXPECT_TRUE(decide_requeue(job_of(kRunning), facts_of(2, false)).ask);
  EXPECT_FALSE(decide_requeue(job_of(kRunning), facts_of(3, false)).ask);
  EXPECT_TRUE(decide_requeue(job_of(kRunning), facts_of(3, true)).ask);
}

TEST(Requeue, IsRefusedWithItsReason) {
  const auto why = [](const std::string& text, RequeueFacts facts) {
    const RequeueDecision decision = decide_requeue(job_of(text), facts);
    EXPECT_FALSE(decision.ask);
    return decision.why;
  };
  EXPECT_THAT(why(with("JobState", "CANCELLED"), facts_of(2, true)), HasSubstr("cancelled"));
  EXPECT_THAT(why(with("JobState", "COMPLETING"), facts_of(2, true)), HasSubstr("cancelled"));
  EXPECT_THAT(why(with("BatchFlag", "0"), facts_of(2, true)), HasSubstr("sbatch"));
  EXPECT_THAT(why(with("Requeue", "0"), facts_of(2, true)), HasSubstr("--no-requeue"));
  EXPECT_THAT(why(with("JobState", "COMPLETING"), facts_of(1, true)), HasSubstr("already"));
  EXPECT_THAT(why(kRunning, facts_of(100, true)), HasSubstr("--requeue-max"));
  RequeueFacts cancelled = facts_of(2, true);
  cancelled.cancelled = true;
  EXPECT_THAT(why(kRunning, cancelled), HasSubstr("cancelled"));
  RequeueFacts never = facts_of(2, true);
  never.restarts_max = 0;
  EXPECT_THAT(why(kRunning, never), HasSubstr("--requeue-max"));
}

TEST(Marker, IsReadAsItWasWritten) {
  RequeueMarker marker;
  marker.job = 7;
  marker.restart = 3;
  marker.stuck = 1;
  const auto read = parse_marker(to_text(marker));
  ASSERT_TRUE(read.ok());
  EXPECT_EQ(read->job, 7U);
  EXPECT_EQ(read->restart, 3U);
  EXPECT_EQ(read->stuck, 1U);
  EXPECT_TRUE(parse_marker("never\n")->never);
  EXPECT_FALSE(parse_marker("")->never);
  for (const char* text : {"always", "restart=1", "job=7 restart=x stuck=0", "never ever"})
    EXPECT_FALSE(parse_marker(text).ok()) << text;
}

}  // namespace
}  // namespace muster::notice
