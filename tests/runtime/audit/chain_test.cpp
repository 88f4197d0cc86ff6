// The chain: one form for each record, every change found and named, hostile bytes met with words.
#include "runtime/audit/chain.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cctype>
#include <random>

#include "runtime/audit/policy.h"
#include "runtime/audit/verifier.h"

namespace muster::audit {
namespace {

using testing::HasSubstr;
using Lines = std::vector<std::string>;

ByteBuffer secret(char fill = 's') { return ByteBuffer(32, std::byte(fill)); }

Record record_of(const std::string& text) {
  Record record;
  record.time_ms = 1000;
  record.at = 5;
  record.node = "a";
  record.from = "leader";
  record.event = "decision";
  record.text = text;
  return record;
}

Record opened(Seal seal) {
  Record record = record_of("begins");
  record.event = std::string(kOpened);
  record.opening = Opening{kFormatVersion, seal, "job", "00000000000000aa"};
  return record;
}

// `count` records, without line feeds.
Lines written(bool sealed, int count = 6) {
  std::optional<Key> key;
  if (sealed) key = audit_key(secret(), "job").value();
  Chain chain(key, {});
  Lines lines;
  for (int i = 0; i < count; ++i) {
    const Record record = i == 0 ? opened(sealed ? Seal::kHmacSha256 : Seal::kSha256)
                                 : record_of("because " + std::to_string(i));
    lines.push_back(chain.append(record).value());
    lines.back().pop_back();
  }
  return lines;
}

Report check(const Lines& lines, VerifierOptions options = {}, bool last_is_whole = true) {
  Verifier verifier(std::move(options));
  for (size_t i = 0; i < lines.size() && !verifier.done(); ++i)
    (void)verifier.add(lines[i], i + 1 < lines.size() || last_is_whole);
  return verifier.finish();
}

void expect_fault(const Report& report, FaultKind kind, uint64_t line) {
  ASSERT_TRUE(report.fault);
  EXPECT_EQ(to_string(report.fault->kind), to_string(kind)) << report.fault->words;
  EXPECT_EQ(report.fault->line, line) << report.fault->words;
}

class Chains : public testing::TestWithParam<bool> {
 protected:
  Lines lines_ = written(GetParam());
  VerifierOptions options() const {
    VerifierOptions options;
    if (GetParam()) options.secret = secret();
    return options;
  }
};
INSTANTIATE_TEST_SUITE_P(Seals, Chains, testing::Bool(),
                         [](const auto& each) { return each.param ? "Sealed" : "Plain"; });

TEST_P(Chains, AnUntouchedChainHolds) {
  const Report report = check(lines_, options());
  EXPECT_FALSE(report.fault);
  EXPECT_EQ(report.records, lines_.size());
  EXPECT_EQ(report.end.sequence, lines_.size());
  EXPECT_EQ(report.opening->job, "job");
}

TEST_P(Chains, EveryByteCounts) {
  for (size_t line = 0; line < lines_.size(); ++line) {
    for (size_t at = 0; at < lines_[line].size(); ++at) {
      Lines changed = lines_;
      changed[line][at] ^= 1;
      const Report report = check(changed, options());
      ASSERT_TRUE(report.fault) << "byte " << at << " of line " << line + 1;
      ASSERT_EQ(report.fault->line, line + 1) << "byte " << at;
    }
  }
}

TEST_P(Chains, EveryLineThatIsGoneIsMissed) {
  for (size_t gone = 0; gone + 1 < lines_.size(); ++gone) {
    Lines changed = lines_;
    changed.erase(changed.begin() + static_cast<ptrdiff_t>(gone));
    expect_fault(check(changed, options()), FaultKind::kMissing, gone + 1);
  }
}

TEST_P(Chains, EveryTwoThatChangedPlacesAreNamed) {
  for (size_t a = 0; a < lines_.size(); ++a) {
    for (size_t b = a + 1; b < lines_.size(); ++b) {
      Lines changed = lines_;
      std::swap(changed[a], changed[b]);
      const Report report = check(changed, options());
      expect_fault(report, FaultKind::kReordered, a + 1);
      EXPECT_THAT(report.fault->words, HasSubstr("line " + std::to_string(b + 1)));
    }
  }
}

TEST_P(Chains, ALineThatStandsTwiceIsNamed) {
  Lines changed = lines_;
  changed.insert(changed.begin() + 3, changed[2]);
  expect_fault(check(changed, options()), FaultKind::kReordered, 4);
}

TEST_P(Chains, ACutEndShowsByTheHeadThatWasKept) {
  VerifierOptions with_head = options();
  with_head.anchor = check(lines_, options()).end.head;
  EXPECT_EQ(check(lines_, with_head).anchored, lines_.size() - 1);
  Lines longer = written(GetParam(), 9);
  EXPECT_EQ(check(longer, with_head).anchored, lines_.size() - 1) << "what came later is no fault";
  Lines cut(lines_.begin(), lines_.end() - 1);
  EXPECT_FALSE(check(cut, options()).fault) << "only the head tells";
  expect_fault(check(cut, with_head), FaultKind::kTruncated, cut.size());
}

TEST_P(Chains, ATornLastLineIsNotCalledChanged) {
  for (size_t length = 1; length < lines_.back().size(); length += 7) {
    Lines torn = lines_;
    torn.back().resize(length);
    const Report report = check(torn, options(), false);
    expect_fault(report, FaultKind::kTorn, torn.size());
    EXPECT_EQ(report.records, lines_.size() - 1);
  }
  const Report whole = check(lines_, options(), false);
  EXPECT_FALSE(whole.fault) << "nothing but the line feed is missing";
  EXPECT_FALSE(whole.whole);
}

// Else who goes on with the file would cut it off, as a crash's.
TEST_P(Chains, OfALineThatLacksOnlyItsLineFeedTheFaultIsTold) {
  Lines changed = lines_;
  changed.back()[changed.back().find("because")] = 'B';
  expect_fault(check(changed, options(), false), FaultKind::kChanged, changed.size());
  expect_fault(check({lines_[1]}, options(), false), FaultKind::kMissing, 1);
}

// Else a line could be changed without that the chain notices.
TEST_P(Chains, AHashIsWrittenInOneWay) {
  Lines changed = lines_;
  std::string& line = changed[2];
  for (size_t at = line.size() - 66; at < line.size() - 2; ++at)
    line[at] = static_cast<char>(std::toupper(static_cast<unsigned char>(line[at])));
  ASSERT_NE(line, lines_[2]);
  expect_fault(check(changed, options()), FaultKind::kChanged, 3);
}

TEST(Chain, NothingIsNoLog) { expect_fault(check({}), FaultKind::kEmpty, 1); }

// Who has the file but not the secret can compute SHA-256, and nothing else.
TEST(Chain, AForgedRecordNeedsTheSecret) {
  Lines lines = written(true);
  const auto before = split_line(lines[2]);
  Chain forger(std::nullopt, {3, before->hash});
  lines[3] = forger.append(record_of("because I say so")).value();
  lines[3].pop_back();
  lines.resize(4);
  expect_fault(check(lines, {secret(), {}}), FaultKind::kChanged, 4);
  expect_fault(check(written(false), {secret(), {}}), FaultKind::kSeal, 1);
  expect_fault(check(written(true)), FaultKind::kSeal, 1);
  expect_fault(check(written(true), {secret('x'), {}}), FaultKind::kChanged, 1);
}

TEST(Chain, AFirstRecordThatCannotBeReadIsNotTorn) {
  expect_fault(check(written(true, 1), {secret('x'), {}}, false), FaultKind::kChanged, 1);
  Record later = opened(Seal::kSha256);
  later.opening->format = 2;
  std::string line = Chain(std::nullopt, {}).append(later).value();
  line.pop_back();
  expect_fault(check({line}, {}, false), FaultKind::kFormat, 1);
}

// With what it has written its agent stays an agent of one job, whatever is appended.
TEST(Chain, ALaterOpeningNamesTheSameJobAndSeal) {
  for (const bool other_job : {true, false}) {
    Chain chain(std::nullopt, {});
    Record second = opened(other_job ? Seal::kSha256 : Seal::kHmacSha256);
    if (other_job) second.opening->job = "another";
    Lines lines = {chain.append(opened(Seal::kSha256)).value(), chain.append(second).value()};
    for (std::string& line : lines) line.pop_back();
    const Report report = check(lines);
    expect_fault(report, other_job ? FaultKind::kChanged : FaultKind::kSeal, 2);
  }
}

TEST(Chain, TheNodesThatWroteItAreNamed) {
  Chain chain(std::nullopt, {});
  Record second = opened(Seal::kSha256);
  second.node = "b";
  Lines lines = {chain.append(opened(Seal::kSha256)).value(), chain.append(second).value()};
  for (std::string& line : lines) line.pop_back();
  const Report report = check(lines);
  EXPECT_EQ(report.nodes, (std::set<std::string>{"a", "b"}));
  EXPECT_EQ(report.last_node, "b");
}

// A chain without a key that was written anew from some record on is consistent in itself.
TEST(Chain, AChainWrittenAnewShowsByTheHead) {
  VerifierOptions with_head;
  with_head.anchor = check(written(false)).end.head;
  Lines anew = written(false, 5);
  Chain forger(std::nullopt, {5, split_line(anew[4])->hash});
  anew.push_back(forger.append(record_of("another reason")).value());
  anew.back().pop_back();
  EXPECT_FALSE(check(anew).fault);
  expect_fault(check(anew, with_head), FaultKind::kTruncated, 6);
}

// The values were computed by Python's hashlib and hmac, from docs/formats/audit.md.
TEST(Chain, ItsHashesAreThoseOfTheFormat) {
  const std::string content = R"({"seq":0)";
  EXPECT_EQ(to_hex(hash_of({}, Hash{}, content).value()),
            "416450b66c64434092c8dded6edb11f0c54e1057f9b09f68879d2c72dfac8a87");
  EXPECT_EQ(to_hex(hash_of(audit_key(secret(), "job").value(), Hash{}, content).value()),
            "3c7607bc27d9cc2a25af4fc0fd7649890fb2de36bae9037c208e9760df800b13");
}

TEST(Record, WhatIsWrittenIsReadAgain) {
  const std::string texts[] = {"",
                               "plain",
                               "\"quoted\" \\ /",
                               std::string("nul \0 in it", 11),
                               "\x01\x1f\x7f\n\r\t",
                               "grün € \xf0\x9f\x98\x80",
                               "bad \xff\xc3\x28 \xe2\x82",
                               std::string(100000, 'x'),
                               std::string(20000, '\x01'),
                               std::string(20000, '\xff')};
  for (const std::string& text : texts) {
    Record record = record_of(text);
    record.tier = Tier::kLocal;
    record.version = INT64_MIN;
    record.generation = UINT64_MAX;
    record.node = text;
    const std::string content = canonical_content(record);
    EXPECT_LE(content.size() + 100, kLineBytesMax);
    const auto back = read_content(content);
    ASSERT_TRUE(back.ok()) << back.error().message << ": " << content.substr(0, 300);
    EXPECT_EQ(canonical_content(*back), content);
  }
}

TEST(Record, ThereIsOneFormOnly) {
  const std::string content = canonical_content(record_of("why"));
  ASSERT_TRUE(read_content(content).ok());
  const auto replaced = [&](const std::string& what, const std::string& with) {
    std::string other = content;
    other.replace(other.find(what), what.size(), with);
    return other;
  };
  for (const std::string& other :
       {replaced("\"seq\":0", "\"seq\": 0"), replaced("\"seq\":0", "\"seq\":-0"),
        replaced("\"seq\":0", "\"seq\":0.0"), replaced("\"why\"", "\"wh\\u0079\""),
        replaced("\"amount\":0,", ""), replaced("\"seq\":0", "\"seq\":0,\"seq\":0"),
        replaced("\"amount\":0", "\"amount\":\"0\""), replaced("\"amount\":0", "\"amount\":0,\"more\":1"),
        replaced("\"amount\":0", "\"amount\":99999999999999999999999"),
        replaced("\"amount\":0", "\"amount\":1e400"),
        replaced("\"version\":-1,\"subject\":-1", "\"subject\":-1,\"version\":-1"), content + " ",
        " " + content})
    EXPECT_FALSE(read_content(other).ok()) << other;
}

TEST(Record, ALaterFormatIsToldAsThat) {
  Record record = opened(Seal::kSha256);
  record.opening->format = 2;
  const auto read = read_content(canonical_content(record));
  ASSERT_FALSE(read.ok());
  EXPECT_EQ(read.error().code, ErrorCode::kMisuse);
}

TEST(Record, NoFormatHasTheNumberZero) {
  Record record = opened(Seal::kSha256);
  record.opening->format = 0;
  EXPECT_FALSE(read_content(canonical_content(record)).ok());
}

TEST(Record, ANameHasOneForm) {
  EXPECT_EQ(canonical_name("grün"), "grün");
  for (const std::string& name : {std::string(300, 'j'), std::string("bad \xff")}) {
    const std::string once = canonical_name(name);
    EXPECT_NE(once, name);
    EXPECT_EQ(canonical_name(once), once);
  }
}

// Random bytes, lines of records with random damage, depth, length: words, and no crash.
TEST(Hostile, WhateverStandsThereIsToldInWords) {
  std::mt19937_64 random(7);
  const Lines good = written(false);
  for (int round = 0; round < 3000; ++round) {
    Lines lines = good;
    std::string& line = lines[random() % lines.size()];
    const size_t at = random() % line.size();
    std::string garbage(random() % 40, '\0');
    for (char& c : garbage) c = static_cast<char>(random());
    switch (random() % 4) {
      case 0:
        line.replace(at, garbage.size(), garbage);
        break;
      case 1:
        line = garbage;
        break;
      case 2:
        line.insert(at, std::string(random() % 200, "[{\"0\0"[random() % 5]));
        break;
      default:
        line.erase(at, random() % 20);
    }
    const Report report = check(lines);
    if (lines != good) {
      ASSERT_TRUE(report.fault);
      EXPECT_FALSE(report.fault->words.empty());
    }
  }
}

// Whoever can compute the hashes of an unsealed chain can hand any content to the reader.
TEST(Hostile, ContentWithARightHashIsReadWithSuspicion) {
  const std::string deep(30000, '[');
  for (const std::string& content :
       {std::string("{\"seq\":0,\"a\":") + deep, std::string("{"), std::string(), std::string("[1"),
        std::string("{\"seq\":{}"), std::string("{\"seq\":null"),
        std::string("{\"seq\":0,\"text\":\"\xff\xff\""), std::string("{\"seq\":0\0", 9),
        std::string(kLineBytesMax - 80, ' '),
        std::string("{\"seq\":0,\"event\":\"audit opened\",\"format\":\"x\""),
        std::string("{\"seq\":18446744073709551615"),
        std::string("{\"format\":-1,\"event\":\"audit opened\"")}) {
    const std::string line = content + ",\"hash\":\"" + to_hex(hash_of({}, Hash{}, content).value()) + "\"}";
    const Report report = check({line});
    ASSERT_TRUE(report.fault) << content.substr(0, 80);
    EXPECT_EQ(report.fault->line, 1u);
  }
}

TEST(Policy, EachKindHasAPlaceAndDecisionsAreIn) {
  for (const EventKind kind : {EventKind::kMemberLost, EventKind::kViewInstalled, EventKind::kJobEnded,
                               EventKind::kLeaderChanged, EventKind::kRefused, EventKind::kNodeQuarantined}) {
    EXPECT_TRUE(is_audited(kind, false));
    EXPECT_FALSE(is_audited(kind, true)) << "a worker's word of it only follows";
  }
  EXPECT_TRUE(is_audited(EventKind::kAbandoned, true)) << "only a worker knows";
  EXPECT_TRUE(is_audited(EventKind::kDecided, true)) << "of a save that is removed only a worker knows";
  EXPECT_FALSE(is_audited(EventKind::kStepCommitted, false));
  EXPECT_FALSE(is_audited(static_cast<EventKind>(999), false));
}

}  // namespace
}  // namespace muster::audit
