// Notices as people and scripts write them, and the HTTP requests that carry them.
#include "runtime/notice/order.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <random>

namespace muster::notice {
namespace {

using control::Scope;

TEST(Order, HasScopeSecondsAndWordsAllOptional) {
  struct Case {
    const char* text;
    Scope scope;
    Duration left;
    const char* words;
  };
  for (const Case& c :
       {Case{"", Scope::kNode, -1, ""}, Case{"\n", Scope::kNode, -1, ""}, Case{"job", Scope::kJob, -1, ""},
        Case{"node 30", Scope::kNode, 30 * kSecond, ""}, Case{"2.5", Scope::kNode, 2500 * kMillisecond, ""},
        Case{"job 120 power work in row 7\n", Scope::kJob, 120 * kSecond, "power work in row 7"},
        Case{"power work", Scope::kNode, -1, "power work"}, Case{"jobs", Scope::kNode, -1, "jobs"}}) {
    const auto order = parse_order(c.text);
    ASSERT_TRUE(order.ok()) << c.text;
    EXPECT_EQ(order->scope, c.scope) << c.text;
    EXPECT_EQ(order->left, c.left) << c.text;
    EXPECT_EQ(order->words, c.words) << c.text;
  }
}

TEST(Order, WhatCannotBeMeantIsRefused) {
  for (const char* text : {"-1", "job -5", "3x", "1e99", "+inf", "12s soon", ".", "1e-"})
    EXPECT_FALSE(parse_order(text).ok()) << text;
  EXPECT_FALSE(parse_order(std::string(kOrderBytesMax + 1, 'x')).ok());
}

TEST(Order, ItsWordsCannotPaintTheTerminal) {
  EXPECT_EQ(parse_order("node 1 a\x1b[31mb\x07\nmuster: all is saved")->words,
            "a [31mb  muster: all is saved");
}

Result<std::optional<HttpRequest>> parse(const std::string& bytes) { return parse_request(bytes); }

TEST(Request, IsWholeOnlyWithItsBody) {
  const std::string whole = "POST /notice HTTP/1.1\r\nHost: a\r\ncontent-LENGTH: 7\r\n\r\nnode 30";
  for (size_t size = 0; size < whole.size(); ++size) {
    const auto part = parse(whole.substr(0, size));
    ASSERT_TRUE(part.ok()) << size;
    EXPECT_FALSE(*part) << size;
  }
  const auto request = parse(whole);
  ASSERT_TRUE(request.ok() && *request);
  EXPECT_EQ((*request)->method, "POST");
  EXPECT_EQ((*request)->path, "/notice");
  EXPECT_EQ((*request)->body, "node 30");
}

TEST(Request, WhatIsNoneIsRefused) {
  for (const char* text :
       {"\r\n\r\n", "GET\r\n\r\n", "GET / \r\n\r\n", "GET / SPDY/3\r\n\r\n", "GET notice HTTP/1.1\r\n\r\n",
        "POST / HTTP/1.1\r\nContent-Length: 5000\r\n\r\n", "POST / HTTP/1.1\r\nContent-Length: -1\r\n\r\n",
        "POST / HTTP/1.1\r\nContent-Length: 99999999999999999999999\r\n\r\n"})
    EXPECT_FALSE(parse(text).ok()) << text;
  EXPECT_FALSE(parse(std::string(kRequestBytesMax + 1, 'x')).ok());
}

TEST(Request, NoBytesBreakTheReader) {
  std::mt19937 random(3);
  for (int round = 0; round < 20000; ++round) {
    std::string text = "POST /notice HTTP/1.1\r\nHost: a\r\nContent-Length: 7\r\n\r\nnode 30";
    for (int change = 0; change < 3; ++change) text[random() % text.size()] = static_cast<char>(random());
    (void)parse(text.substr(0, random() % (text.size() + 1))).ok();
    (void)parse_order(text).ok();
  }
}

}  // namespace
}  // namespace muster::notice
