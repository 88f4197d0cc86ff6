// Groups without a leader: who is who, and what a rank that says nonsense of itself, or says nothing, does.
#include "collectives/contact_exchange.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <condition_variable>
#include <mutex>
#include <thread>

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
