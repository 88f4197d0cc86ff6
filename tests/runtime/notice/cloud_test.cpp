// The three clouds' documents, as their manuals print them, and what is no such document.
#include "runtime/notice/cloud.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <random>

namespace muster::notice {
namespace {

using testing::HasSubstr;

constexpr int64_t kNow = 1505722900;  // 2017-09-18T08:21:40Z

TEST(Times, AreReadWholeOrNotAtAll) {
  EXPECT_EQ(parse_iso_time("2017-09-18T08:22:00Z"), kNow + 20);
  EXPECT_EQ(parse_http_time("Mon, 18 Sep 2017 08:22:00 GMT"), kNow + 20);
  for (const char* text :
       {"", "soon", "2017-09-18T08:22:00", "2017-09-18T08:22:00Z and more", "2017-13-18T08:22:00Z"})
    EXPECT_FALSE(parse_iso_time(text)) << text;
  EXPECT_FALSE(parse_http_time("Mon, 18 Sep 2017 08:22:00 CET"));
}

TEST(Aws, AnInterruptionHasActionAndTime) {
  const auto found =
      read_aws_interruption({200, R"({"action": "terminate", "time": "2017-09-18T08:22:00Z"})", ""}, kNow);
  ASSERT_TRUE(found.ok());
  ASSERT_TRUE(*found);
  EXPECT_EQ((*found)->left_s, 20);
  EXPECT_FALSE((*found)->is_warning);
  const auto past =
      read_aws_interruption({200, R"({"action": "stop", "time": "2017-09-18T08:20:00Z"})", ""}, kNow);
  EXPECT_EQ((*past)->left_s, 0) << "a clock that is ahead";
}

TEST(Aws, NothingIsPlannedWhere404IsAnswered) {
  EXPECT_FALSE(*read_aws_interruption({404, "<html>", ""}, kNow));
  EXPECT_FALSE(*read_aws_rebalance({404, "", ""}));
}

TEST(Aws, ARebalanceRecommendationIsAWarning) {
  const auto found = read_aws_rebalance({200, R"({"noticeTime": "2020-10-27T08:22:00Z"})", ""});
  ASSERT_TRUE(found.ok() && *found);
  EXPECT_TRUE((*found)->is_warning);
}

TEST(Aws, LiesAreErrors) {
  for (const char* body :
       {"", "{}", "[]", "null", "terminate", R"({"action": "terminate"})", R"({"action": 7, "time": 8})",
        R"({"action": "explode", "time": "2017-09-18T08:22:00Z"})",
        R"({"action": "terminate", "time": "soon"})", "<html>Log in to the hotel's network</html>"}) {
    EXPECT_FALSE(read_aws_interruption({200, body, ""}, kNow).ok()) << body;
    EXPECT_FALSE(read_aws_rebalance({200, body, ""}).ok()) << body;
  }
  EXPECT_FALSE(read_aws_interruption({500, "", ""}, kNow).ok());
}

TEST(Gcp, PreemptedIsTrueOrFalseAndSignedByGoogle) {
  EXPECT_FALSE(*read_gcp_preempted({200, "FALSE\n", "Google"}));
  const auto found = read_gcp_preempted({200, "TRUE", "Google"});
  ASSERT_TRUE(found.ok() && *found);
  EXPECT_EQ((*found)->left_s, 30);
  EXPECT_FALSE(read_gcp_preempted({200, "TRUE", ""}).ok()) << "somebody else's server";
  EXPECT_FALSE(read_gcp_preempted({200, "MAYBE", "Google"}).ok());
  EXPECT_FALSE(read_gcp_preempted({404, "", "Google"}).ok()) << "this key is always there";
}

TEST(Gcp, MigrationIsAWarningTerminationIsNot) {
  EXPECT_FALSE(*read_gcp_maintenance({200, "NONE", "Google"}));
  EXPECT_TRUE((*read_gcp_maintenance({200, "MIGRATE_ON_HOST_MAINTENANCE", "Google"}))->is_warning);
  EXPECT_FALSE((*read_gcp_maintenance({200, "TERMINATE_ON_HOST_MAINTENANCE", "Google"}))->is_warning);
  EXPECT_FALSE(read_gcp_maintenance({200, "UNHEARD_OF", "Google"}).ok());
}

constexpr char kAzure[] =
    R"({"DocumentIncarnation": 2, "Events": [{"EventId": "C7061BAC-AFDC-4513-B24B-AA5F13A16123",
  "EventStatus": "Scheduled", "EventType": "Preempt", "ResourceType": "VirtualMachine", "Resources": ["vm_0"],
  "NotBefore": "Mon, 18 Sep 2017 08:22:10 GMT", "Description": "", "EventSource": "Platform", "DurationInSeconds": -1}]})";

std::string azure_with(const std::string& key, const std::string& json) {
  std::string text = kAzure;
  const size_t at = text.find("\"" + key + "\": ") + key.size() + 4;
  size_t end = text.find(text[at] == '[' ? ']' : ',', at) + (text[at] == '[' ? 1 : 0);
  if (key == "NotBefore") end = text.find("GMT\"", at) + 4;
  return text.replace(at, end - at, json);
}

Result<std::vector<AzureEvent>> azure(const std::string& body, const std::string& machine = "vm_0") {
  return read_azure_events({200, body, ""}, machine, kNow);
}

TEST(Azure, APreemptionOfThisMachine) {
  const auto events = azure(kAzure);
  ASSERT_TRUE(events.ok());
  ASSERT_EQ(events->size(), 1U);
  EXPECT_EQ(events->front().left_s, 30);
  EXPECT_TRUE(events->front().only_this_machine);
  EXPECT_EQ(azure_acknowledgement(events->front().id),
            R"({"StartRequests":[{"EventId":"C7061BAC-AFDC-4513-B24B-AA5F13A16123"}]})");
}

TEST(Azure, OtherMachinesEventsAreTheirs) {
  EXPECT_TRUE(azure(kAzure, "vm_1")->empty());
  const auto both = azure(azure_with("Resources", R"(["vm_1", "vm_0"])"));
  ASSERT_EQ(both->size(), 1U);
  EXPECT_FALSE(both->front().only_this_machine) << "an acknowledgement would release vm_1, too";
}

TEST(Azure, StartedMeansNowAndAFreezeIsAWarning) {
  EXPECT_EQ(azure(azure_with("EventStatus", "\"Started\""))->front().left_s, 0);
  EXPECT_EQ(azure(azure_with("NotBefore", "\"\""))->front().left_s, 0);
  EXPECT_FALSE(azure(azure_with("NotBefore", "\"whenever\""))->front().left_s)
      << "a time that cannot be read is unknown";
  EXPECT_TRUE(azure(azure_with("EventType", "\"Freeze\""))->front().is_warning);
}

TEST(Azure, NothingPlannedIsAnEmptyListAndNothingElse) {
  EXPECT_TRUE(azure(R"({"DocumentIncarnation": 1, "Events": []})")->empty());
  for (const char* body :
       {"", "[]", "{}", R"({"Events": []})", R"({"DocumentIncarnation": 1})",
        R"({"DocumentIncarnation": 1, "Events": {}})", R"({"DocumentIncarnation": 1, "Events": [7]})",
        R"({"DocumentIncarnation": 1, "Events": [{"EventType": "Preempt"}]})"})
    EXPECT_FALSE(azure(body).ok()) << body;
  EXPECT_FALSE(read_azure_events({400, kAzure, ""}, "vm_0", kNow).ok());
}

TEST(Answers, NoDamageBreaksAReader) {
  std::mt19937 random(7);
  for (int round = 0; round < 20000; ++round) {
    std::string text = round % 2 == 0 ? kAzure : R"({"action": "terminate", "time": "2017-09-18T08:22:00Z"})";
    for (int change = 0; change < 3; ++change) text[random() % text.size()] = static_cast<char>(random());
    (void)azure(text).ok();
    (void)read_aws_interruption({200, text, ""}, kNow).ok();
    (void)read_gcp_preempted({200, text, "Google"}).ok();
  }
}

}  // namespace
}  // namespace muster::notice
