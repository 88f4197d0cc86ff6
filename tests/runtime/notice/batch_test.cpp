#include "runtime/notice/batch.h"

#include <gtest/gtest.h>

#include <string>

namespace muster::notice {
namespace {

// In the form of OpenPBS.
std::string qstat(const std::string& limit, const std::string& used) {
  return "Job Id: 1234.server\n    Job_Name = train\n" +
         (used.empty() ? "" : "    resources_used.walltime = " + used + "\n") + "    job_state = R\n" +
         (limit.empty() ? "" : "    Resource_List.walltime = " + limit + "\n") +
         "    Variable_List = PBS_O_HOME=/home/u,PBS_O_QUEUE=q,\n\tX=Resource_List.walltime = 1\n";
}

TEST(PbsTime, IsTheLimitLessWhatWasUsed) {
  const auto time = parse_pbs_time(qstat("24:00:00", "23:10:30"));
  ASSERT_TRUE(time.ok() && *time);
  EXPECT_EQ((*time)->limit_s, 24 * 3600);
  EXPECT_EQ((*time)->left_s, 49 * 60 + 30);
  EXPECT_EQ((*parse_pbs_time(qstat("90", "")))->left_s, 90) << "a job that has just begun";
  EXPECT_EQ((*parse_pbs_time(qstat("01:00:00", "01:00:07")))->left_s, 0);
}

TEST(PbsTime, NoLimitIsNone) {
  const auto time = parse_pbs_time(qstat("", "00:10:00"));
  ASSERT_TRUE(time.ok());
  EXPECT_FALSE(*time);
}

TEST(PbsTime, WhatIsNoAnswerIsAnError) {
  for (const std::string& text :
       {std::string(), std::string("qstat: Unknown Job Id 7"), qstat("soon", "1"), qstat("1:2:3:4", "1"),
        qstat("1:00:00", "-5"), qstat("9999999999:00:00", "1"), qstat("1::00", "1")})
    EXPECT_FALSE(parse_pbs_time(text).ok()) << text;
}

TEST(LsfTime, IsHoursAndMinutesOfALimit) {
  EXPECT_EQ((*parse_lsf_time("26:03 L\n"))->left_s, (26 * 60 + 3) * 60);
  EXPECT_EQ((*parse_lsf_time("0:0 L"))->left_s, 0);
  for (const char* none : {"-", "1:30 E", "0:0 X", " - \n"}) {
    const auto time = parse_lsf_time(none);
    ASSERT_TRUE(time.ok()) << none;
    EXPECT_FALSE(*time) << none;
  }
}

TEST(LsfTime, WhatIsNoAnswerIsAnError) {
  for (const char* text :
       {"", "Job <7> is not found", "1:30", "1:30:00 L", "x:1 L", "1: L", ":1 L", "-1:00 L"})
    EXPECT_FALSE(parse_lsf_time(text).ok()) << text;
}

}  // namespace
}  // namespace muster::notice
