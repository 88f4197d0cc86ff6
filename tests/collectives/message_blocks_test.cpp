// What the tests of operations do not show of blocks: when there is none, names that make no sense, and how
// long the memory lives.
#include "collectives/node/message_blocks.h"

#include <gtest/gtest.h>

#include <thread>

#include "collectives/core.h"
#include "runtime/base/clock.h"
#include "tests/collectives/world.h"
#include "tests/forwarding_transport.h"

namespace muster {
namespace {

const Generation kGeneration{0x1234, 7};

// A process of the node, as far as blocks need one.
struct Process {
  std::shared_ptr<Core> core = Core::start(nullptr).value();
  uint64_t nonce = random_nonce();
  std::unique_ptr<LocalListener> listener = LocalListener::open(core, nonce).value();

  ~Process() {
    listener.reset();
    core->stop();
  }
  Contact contact() const { return {.nonce = nonce, .local_socket = listener->name()}; }
};

ByteBuffer pattern(size_t bytes, int seed) {
  ByteBuffer all(bytes);
  for (size_t i = 0; i < bytes; ++i)
    all[i] = static_cast<std::byte>((i * 7 + static_cast<size_t>(seed)) % 251);
  return all;
}

// Ranks 1, 4 and 6 of a group are on this node.
class Blocks : public ::testing::Test {
 protected:
  static constexpr int kRanks[] = {1, 4, 6};

  std::unique_ptr<MessageBlocks> open(size_t own, const Generation& generation = kGeneration) {
    std::vector<MessageBlocks::Rank> mates;
    for (size_t other = 0; other < 3; ++other) {
      if (other != own) mates.push_back({kRanks[other], processes[other].contact()});
    }
    return MessageBlocks::open(*processes[own].listener, processes[own].nonce, generation, kRanks[own],
                               std::move(mates));
  }

  // Listeners read what came on the progress threads of their cores.
  void link_until(const std::function<bool()>& done) {
    const Instant deadline = now() + 10 * kSecond;
    while (!done() && now() < deadline) {
      for (size_t i = 0; i < 3; ++i) {
        const std::lock_guard lock(processes[i].core->mutex());
        if (blocks[i] != nullptr) blocks[i]->link();
      }
      std::this_thread::sleep_for(std::chrono::milliseconds(1));  // for the progress threads, seen below
    }
    ASSERT_TRUE(done()) << "not linked";
  }
  // A name that rank `to` knows, or none yet.
  bool is_linked(size_t from, size_t to) {
    const auto name = blocks[from]->put(kRanks[to], large);
    if (!name) return false;
    blocks[to]->release(kRanks[from], *name);
    return true;
  }
  void open_all() {
    for (size_t i = 0; i < 3; ++i) blocks[i] = open(i);
    link_until([&] { return is_linked(0, 1) && is_linked(1, 0) && is_linked(0, 2) && is_linked(2, 1); });
  }

  Process processes[3];
  std::unique_ptr<MessageBlocks> blocks[3];
  const ByteBuffer large = pattern(kBlockBytes, 1);
};

TEST_F(Blocks, GiveWhatWasPut) {
  open_all();
  for (const size_t bytes : {kBlockFromBytes, kBlockFromBytes + 1, size_t{100'003}, kBlockBytes}) {
    for (const auto& [from, to] : {std::pair{0, 1}, {1, 0}, {0, 2}, {2, 1}}) {
      const ByteBuffer sent = pattern(bytes, from);
      const auto name = blocks[from]->put(kRanks[to], sent);
      ASSERT_TRUE(name.has_value());
      const std::byte* const found = blocks[to]->find(kRanks[from], *name, bytes);
      ASSERT_NE(found, nullptr);
      EXPECT_EQ(ByteBuffer(found, found + bytes), sent);
      blocks[to]->release(kRanks[from], *name);
    }
  }
}

TEST_F(Blocks, AreNotHadForWhatIsSmallNorForStrangers) {
  open_all();
  EXPECT_FALSE(blocks[0]->put(kRanks[1], ByteSpan(large).first(kBlockFromBytes - 1)));
  EXPECT_FALSE(blocks[0]->put(kRanks[1], {}));
  for (const int stranger : {0, 1, 2, 5, 7, 4000}) EXPECT_FALSE(blocks[0]->put(stranger, large)) << stranger;
}

TEST_F(Blocks, AreNotHadBeforeTheMateHasTheMemory) {
  blocks[0] = open(0);
  blocks[1] = open(1);
  EXPECT_FALSE(blocks[0]->put(kRanks[1], large));
  link_until([&] { return is_linked(0, 1); });
  EXPECT_FALSE(blocks[0]->put(kRanks[2], large)) << "who never came";
}

// A receiver that does not take what it was sent holds that back, and nothing of others.
TEST_F(Blocks, ComeBackWhenTheirReceiverSaysSo) {
  open_all();
  std::vector<BlockName> names;
  for (uint32_t i = 0; i < kMessageBlocks; ++i) {
    const auto name = blocks[0]->put(kRanks[i % 2 + 1], pattern(kBlockBytes, static_cast<int>(i)));
    ASSERT_TRUE(name.has_value()) << i;
    names.push_back(*name);
  }
  EXPECT_FALSE(blocks[0]->put(kRanks[1], large)) << "all are on their way";
  blocks[2]->release(kRanks[0], names[3]);
  const auto again = blocks[0]->put(kRanks[1], large);
  ASSERT_TRUE(again.has_value());
  EXPECT_EQ(again->block, names[3].block);
  EXPECT_GT(again->use, names[3].use);
  EXPECT_FALSE(blocks[0]->put(kRanks[1], large));
  blocks[2]->release(kRanks[0], names[3]);  // it is not its receiver's any more
  EXPECT_FALSE(blocks[0]->put(kRanks[1], large));
  for (const uint32_t i : {0U, kMessageBlocks - 1}) {
    const std::byte* const found = blocks[i % 2 + 1]->find(kRanks[0], names[i], kBlockBytes);
    ASSERT_NE(found, nullptr);
    EXPECT_EQ(ByteBuffer(found, found + kBlockBytes), pattern(kBlockBytes, static_cast<int>(i)));
  }
}

TEST_F(Blocks, NamesThatMakeNoSenseLeadNowhere) {
  open_all();
  const BlockName name = blocks[0]->put(kRanks[1], large).value();
  EXPECT_EQ(blocks[1]->find(kRanks[0], {.use = 1, .block = kMessageBlocks}, 1), nullptr);
  EXPECT_EQ(blocks[1]->find(kRanks[0], {.use = 1, .block = UINT32_MAX}, 1), nullptr);
  EXPECT_EQ(blocks[1]->find(kRanks[0], name, kBlockBytes + 1), nullptr);
  EXPECT_EQ(blocks[1]->find(3, name, kBlockBytes), nullptr);
  blocks[1]->release(kRanks[0], {.use = 1, .block = kMessageBlocks});
  blocks[1]->release(3, name);
  EXPECT_NE(blocks[1]->find(kRanks[0], name, kBlockBytes), nullptr);
}

// A rank may leave its group while what it sent is on its way, and be in the next one.
TEST_F(Blocks, MemoryOutlivesItsSender) {
  open_all();
  const BlockName name = blocks[0]->put(kRanks[1], large).value();
  blocks[0] = open(0, {0x1234, 8});
  EXPECT_FALSE(blocks[0]->put(kRanks[1], large)) << "the mate is not in that group";
  const std::byte* const found = blocks[1]->find(kRanks[0], name, kBlockBytes);
  ASSERT_NE(found, nullptr);
  EXPECT_EQ(ByteBuffer(found, found + kBlockBytes), large);
}

// Of two ranks on each of two nodes.
TEST(BlocksInAGroup, BytesForMatesDoNotGoByTheTransport) {
  constexpr size_t kCount = 1 << 20;
  const auto bytes_sent = [&](std::vector<uint64_t> nodes) {
    std::atomic<uint64_t> bytes = 0;
    run_world(
        Medium::kNodesThreads, 4,
        [&](Member& member) {
          std::vector<float> in(kCount, static_cast<float>(member.rank)), out(4 * kCount);
          // Until all mates are found to have mapped all.
          for (int i = 0; i < 50; ++i) {
            member.expect_ok(member.group.barrier(member.soon()).wait(), "barrier");
            std::this_thread::sleep_for(std::chrono::milliseconds(1));  // for the handing over
          }
          if (member.rank == 0) bytes = 0;
          member.expect_ok(member.group.barrier(member.soon()).wait(), "barrier");
          member.expect_ok(
              member.group.all_to_all(out.data(), out.data(), kCount / 4, DType::kFloat32, member.soon())
                  .wait(),
              "all to all");
          member.expect_ok(member.group.barrier(member.soon()).wait(), "barrier");
        },
        {.wrap =
             [&](std::unique_ptr<Transport> inner) {
               return std::make_unique<testing_support::CountingTransport>(std::move(inner), bytes);
             },
         .nodes = std::move(nodes)});
    return bytes.load();
  };
  // Each rank has a quarter for each other; with two nodes one of the three is a mate. Blocks may be out now
  // and then.
  const uint64_t apart = bytes_sent({1, 2, 3, 4}), two_nodes = bytes_sent({1, 2, 1, 2});
  EXPECT_GE(apart, 12 * kCount);
  EXPECT_GE(two_nodes, 8 * kCount);
  EXPECT_LT(two_nodes, 10 * kCount);
}

}  // namespace
}  // namespace muster
