// Whole runs whose saves are sealed: they resume with the key, and with no other.
#include <gmock/gmock.h>

#include <fstream>

#include "tests/runtime/worker_runs.h"

namespace muster {
namespace {

namespace fs = std::filesystem;
using testing::HasSubstr;
using testing::Not;

class SealedRuns : public testing_agents::WorkerRuns {
 protected:
  // The worker saves every 7 steps and at the end.
  std::string run_with(const std::string& key, const char* steps, int code = 0,
                       const std::vector<std::string>& more = {}) {
    variables_.clear();
    if (!key.empty()) variables_.push_back("MUSTER_CHECKPOINT_KEY_FILE=" + key);
    std::vector<std::string> words = {steps, "1", "sharded"};
    words.insert(words.end(), more.begin(), more.end());
    fs::remove(folder_ + "/job/results");
    return run("job", 2, words, code);
  }
  std::string key(char byte) {
    const std::string path = folder_ + "/key-" + byte;
    std::ofstream(path) << std::string(40, byte);
    fs::permissions(path, fs::perms::owner_read | fs::perms::owner_write);
    return path;
  }
};

TEST_F(SealedRuns, ResumeWithTheirKeyAndNoOther) {
  // One worker dies on the way and learns the state anew.
  ASSERT_THAT(run_with(key('a'), "12", 0, {"step:9"}), HasSubstr("updates 12"));
  EXPECT_THAT(said_, Not(HasSubstr("was given no checkpoint_key_file")));
  EXPECT_THAT(run_with(key('b'), "20", 78), "");
  EXPECT_THAT(said_, HasSubstr("is sealed with the key"));
  const std::string resumed = run_with(key('a'), "20");
  EXPECT_THAT(said_, HasSubstr("resumed: version 12"));
  EXPECT_THAT(resumed, HasSubstr("updates 20"));
  EXPECT_EQ(resumed, run("untouched", 2, {"20", "1", "sharded"}));
  // By digests alone, which is told.
  EXPECT_THAT(run_with("", "22"), HasSubstr("updates 22"));
  EXPECT_THAT(said_, HasSubstr("only its digests are checked"));
  // And what that one has saved is not sealed.
  EXPECT_EQ(run_with(key('a'), "24", 78), "");
  EXPECT_THAT(said_, HasSubstr("is not sealed"));
}

TEST_F(SealedRuns, AKeyThatOthersCanReadIsRefused) {
  const std::string open = key('a');
  fs::permissions(open, fs::perms::group_read, fs::perm_options::add);
  run_with(open, "12", 78);
  EXPECT_THAT(said_, HasSubstr("can be read or changed by others"));
  run_with(folder_ + "/nothing", "12", 78);
  EXPECT_THAT(said_, HasSubstr("cannot open the checkpoint key"));
}

}  // namespace
}  // namespace muster
