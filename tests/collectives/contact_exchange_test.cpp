// Groups without a leader: who is who, and what a rank that says nonsense of itself, or says nothing, does.
#include "collectives/contact_exchange.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <condition_variable>
#include <cstring>
#include <mutex>
#include <set>
#include <thread>

#include "collectives/transport/in_process.h"
#include "runtime/base/random.h"

namespace muster {
namespace {

using testing::HasSubstr;

// Among threads of this process.
struct Table {
  explicit Table(int ranks) : said(static_cast<size_t>(ranks)) {}
  std::mutex mutex;
  std::condition_variable changed;
  std::vector<ByteBuffer> said;
  int count = 0;
};

class Exchange final : public ContactExchange {
 public:
  Exchange(Table& table, int rank) : table_(table), rank_(rank) {}
  int rank() const override { return rank_; }
  int size() const override { return static_cast<int>(table_.said.size()); }
  Result<std::vector<ByteBuffer>> all_gather(ByteSpan mine, Instant) override {
    std::unique_lock lock(table_.mutex);
    table_.said[static_cast<size_t>(rank_)].assign(mine.begin(), mine.end());
    if (spoil) spoil(table_.said[static_cast<size_t>(rank_)]);
    ++table_.count;
    table_.changed.notify_all();
    table_.changed.wait(lock, [&] { return table_.count == size(); });
    return table_.said;
  }
  std::function<void(ByteBuffer&)> spoil;

 private:
  Table& table_;
  const int rank_;
};

using Formed = Result<std::unique_ptr<Group>>;

// form_group on each rank at once, and then `body`.
void form(int ranks, const std::function<void(int, ByteBuffer&)>& spoil,
          const std::function<void(int, Formed)>& body) {
  Table table(ranks);
  std::vector<std::thread> threads;
  for (int rank = 0; rank < ranks; ++rank) {
    threads.emplace_back([&, rank] {
      auto endpoint = Endpoint::create({});
      ASSERT_TRUE(endpoint.ok()) << endpoint.error().message;
      Exchange exchange(table, rank);
      exchange.spoil = [&](ByteBuffer& bytes) { spoil(rank, bytes); };
      body(rank, form_group(**endpoint, exchange, now() + 20 * kSecond));
    });
  }
  for (std::thread& thread : threads) thread.join();
}

TEST(ContactExchange, RanksAreThoseOfTheExchange) {
  form(
      4, [](int, ByteBuffer&) {},
      [](int rank, const Formed& group) {
        ASSERT_TRUE(group.ok()) << group.error().message;
        EXPECT_EQ((*group)->rank(), rank);
        EXPECT_EQ((*group)->size(), 4);
        EXPECT_EQ((*group)->medium(), "shared memory");
        int32_t all[4] = {};
        const int32_t mine = 10 * rank;
        const Status status = (*group)->all_gather(&mine, all, 1, DType::kInt32, now() + 20 * kSecond).wait();
        ASSERT_TRUE(status.ok()) << status.error().message;
        EXPECT_THAT(all, testing::ElementsAre(0, 10, 20, 30));
      });
}

TEST(ContactExchange, NonsenseIsRefusedByAllAndNamesItsRank) {
  const std::function<void(ByteBuffer&)> spoils[] = {
      [](ByteBuffer& bytes) { bytes.clear(); },
      [](ByteBuffer& bytes) { bytes.resize(10); },
      [](ByteBuffer& bytes) { bytes.resize(24); },
      [](ByteBuffer& bytes) { bytes[0] ^= std::byte{1}; },
  };
  for (const auto& spoil : spoils) {
    form(
        2,
        [&](int rank, ByteBuffer& bytes) {
          if (rank == 1) spoil(bytes);
        },
        [](int, const Formed& group) {
          ASSERT_FALSE(group.ok());
          EXPECT_EQ(group.error().code, ErrorCode::kMisuse);
          EXPECT_THAT(group.error().message, HasSubstr("rank 1"));
        });
  }
}

// Two nonces of which the 20 bits that once told groups apart are equal.
std::pair<uint64_t, uint64_t> nonces_that_meet() {
  const auto hash = [](uint64_t nonce) { return mix64(nonce ^ mix64(1)) & 0xfffff; };
  uint64_t other = 2;
  while (hash(other) != hash(1)) ++other;
  return {1, other};
}

// Both groups of each rank, on one endpoint, and what is sent in one while the other waits.
void talk_in_two_groups(Endpoint& endpoint, Table (&tables)[2], int rank) {
  const auto [first, second] = nonces_that_meet();
  const uint64_t nonces[] = {first, second};
  std::unique_ptr<Group> groups[2];
  for (int i = 0; i < 2; ++i) {
    Exchange exchange(tables[i], rank);
    exchange.spoil = [&](ByteBuffer& bytes) { std::memcpy(&bytes[8], &nonces[i], sizeof nonces[i]); };
    auto formed = form_group(endpoint, exchange, now() + 20 * kSecond);
    ASSERT_TRUE(formed.ok()) << formed.error().message;
    groups[i] = std::move(*formed);
    EXPECT_EQ(groups[i]->generation().nonce, nonces[i]);
  }
  int32_t mine[2] = {}, all[2][2] = {};
  Work works[2];
  for (const int i : {rank, 1 - rank}) {  // in another order on each
    mine[i] = 10 * i + rank;
    works[i] = groups[i]->all_gather(&mine[i], all[i], 1, DType::kInt32, now() + 5 * kSecond);
  }
  for (int i = 0; i < 2; ++i) {
    const Status status = works[i].wait();
    ASSERT_TRUE(status.ok()) << status.error().message;
    EXPECT_THAT(all[i], testing::ElementsAre(10 * i, 10 * i + 1));
  }
}

TEST(ContactExchange, MessagesOfGroupsThatLiveAtOnceNeverMeet) {
  const auto network = InProcessNetwork::create();
  Table tables[] = {Table(2), Table(2)};
  std::vector<std::thread> threads;
  for (int rank = 0; rank < 2; ++rank) {
    threads.emplace_back([&, rank] {
      auto endpoint = Endpoint::create({.transport = network->make_transport(), .shared_memory = false});
      ASSERT_TRUE(endpoint.ok()) << endpoint.error().message;
      talk_in_two_groups(**endpoint, tables, rank);
    });
  }
  for (std::thread& thread : threads) thread.join();
}

TEST(ContactExchange, NoTwoGroupsOfAnEndpointHaveOneNumber) {
  auto endpoint = Endpoint::create({});
  ASSERT_TRUE(endpoint.ok());
  std::vector<std::shared_ptr<const Port>> held;
  std::set<Port> seen;
  for (int i = 0; i < 1000; ++i) {
    auto port = (*endpoint)->reserve_port();
    ASSERT_TRUE(port.ok());
    EXPECT_TRUE(seen.insert(**port).second);
    held.push_back(*std::move(port));
  }
  // Those that are given back do not come again at once, and those that are held not even after all others.
  const Port kept = *held.front();
  held.resize(1);
  for (int i = 0; i < (1 << 20) + 10; ++i) {
    const auto port = (*endpoint)->reserve_port();
    ASSERT_TRUE(port.ok());
    ASSERT_NE(**port, kept);
    if (i < 1000) {
      EXPECT_TRUE(seen.insert(**port).second);
    }
  }
}

TEST(ContactExchange, AProcessAloneNeedsNobody) {
  auto endpoint = Endpoint::create({});
  ASSERT_TRUE(endpoint.ok());
  Alone alone;
  const auto group = form_group(**endpoint, alone, now() + 20 * kSecond);
  ASSERT_TRUE(group.ok()) << group.error().message;
  EXPECT_EQ((*group)->size(), 1);
}

TEST(ContactExchange, OneHostHasOneIdentity) {
  EXPECT_NE(node_identity(), 0U);
  EXPECT_EQ(node_identity(), node_identity());
}

}  // namespace
}  // namespace muster
