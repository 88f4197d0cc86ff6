#include "examples/gpt/data.h"

#include <gtest/gtest.h>
#include <sys/stat.h>

#include <filesystem>
#include <fstream>
#include <set>

namespace gpt {
namespace {

namespace fs = std::filesystem;

std::string numbered(size_t bytes, uint8_t first) {
  std::string text(bytes, 0);
  for (size_t i = 0; i < bytes; ++i) text[i] = static_cast<char>(first + i % 50);
  return text;
}

class Folder {
 public:
  Folder() {
    std::string name = (fs::temp_directory_path() / "gpt_data_XXXXXX").string();
    path_ = mkdtemp(name.data());
  }
  ~Folder() { fs::remove_all(path_); }
  std::string write(const std::string& name, const std::string& text) {
    std::ofstream(path_ / name, std::ios::binary) << text;
    return (path_ / name).string();
  }
  fs::path path() const { return path_; }
  std::string text() const { return path_.string(); }

 private:
  fs::path path_;
};

std::string message(const std::vector<std::string>& paths, size_t context = 8) {
  auto corpus = Corpus::load(paths, context);
  if (corpus.ok()) return "loaded";
  EXPECT_EQ(corpus.error().code, muster::ErrorCode::kMisuse);
  EXPECT_EQ(corpus.error().message.find('\n'), std::string::npos);
  return corpus.error().message;
}

// Bytes of texts[0] are 0…49 and of texts[1] 100…149, so a window shows where it comes from.
TEST(Corpus, WindowsStayInOneFileAndOneSplit) {
  const auto corpus = Corpus::from_texts({numbered(200, 0), "short", numbered(300, 100)}, 8).value();
  EXPECT_EQ(corpus.sample_count(), (180 - 8) + (270 - 8));
  std::set<std::vector<uint8_t>> seen;
  for (size_t i = 0; i < corpus.sample_count(); ++i) {
    std::vector<uint8_t> window(9);
    corpus.copy_sample(i, window);
    for (size_t k = 1; k < 9; ++k)
      ASSERT_EQ(window[k], window[k - 1] % 50 == 49 ? window[k] : window[k - 1] + 1);
    ASSERT_EQ(window.front() < 100, window.back() < 100) << i;
    seen.insert(window);
  }
  EXPECT_EQ(seen.size(), 100u);
}

TEST(Corpus, SplitsAreDisjointAndCoverTheText) {
  const std::string text = numbered(1003, 0);
  const auto corpus = Corpus::from_texts({text}, 16).value();
  const auto training = corpus.training_texts()[0], validation = corpus.validation_texts()[0];
  EXPECT_EQ(training.size(), 903u);
  EXPECT_EQ(validation.size(), 100u);
  EXPECT_EQ(training.data() + training.size(), validation.data());
  EXPECT_EQ(corpus.sample_count(), 903u - 16);
  std::vector<uint8_t> last(17);
  corpus.copy_sample(corpus.sample_count() - 1, last);
  EXPECT_EQ(last.back(), training.back());
}

TEST(Corpus, ValidationPredictsEachByteAtMostOnce) {
  const auto corpus = Corpus::from_texts({numbered(1000, 0)}, 16).value();
  const auto windows = corpus.validation_windows();
  ASSERT_EQ(windows.size(), 6 * 17u);  // (100 - 1) / 16
  const auto text = corpus.validation_texts()[0];
  for (size_t w = 0; w < 6; ++w)
    for (size_t i = 0; i < 17; ++i) ASSERT_EQ(windows[w * 17 + i], text[w * 16 + i]);
}

TEST(Corpus, ReadsAFolderOnceWhateverLinksToIt) {
  Folder folder;
  folder.write("b", numbered(200, 100));
  const std::string a = folder.write("a", numbered(200, 0));
  fs::create_symlink("a", folder.path() / "c");
  fs::create_symlink("nothing", folder.path() / "broken");
  fs::create_directory(folder.path() / "folder");
  const auto corpus = Corpus::load({folder.text(), a, folder.text()}, 8).value();
  ASSERT_EQ(corpus.training_texts().size(), 2u);
  EXPECT_EQ(corpus.training_texts()[0][0], 0);
  EXPECT_EQ(corpus.training_texts()[1][0], 100);
  EXPECT_EQ(corpus.digest(), Corpus::load({a, folder.text() + "/b"}, 8).value().digest());
}

TEST(Corpus, NamesWhatCannotBeTrainedOn) {
  Folder folder;
  EXPECT_NE(message({"/no/such/place"}).find("'/no/such/place' does not exist"), std::string::npos);
  EXPECT_NE(message({folder.text()}).find("no file in " + folder.text()), std::string::npos);
  EXPECT_NE(message({}).find("no file"), std::string::npos);
  const std::string empty = folder.write("empty", "");
  EXPECT_NE(message({empty}).find("empty"), std::string::npos);
  const std::string brief = folder.write("brief", numbered(80, 0));
  EXPECT_NE(message({brief}).find("too short"), std::string::npos);
  EXPECT_NE(message({folder.text()}).find("context 8"), std::string::npos);
  const std::string enough = folder.write("enough", numbered(90, 0));
  EXPECT_EQ(message({enough}), "loaded");
  ASSERT_EQ(mkfifo((folder.text() + "/pipe").c_str(), 0600), 0);
  EXPECT_NE(message({folder.text() + "/pipe"}).find("neither a file nor a folder"), std::string::npos);
  EXPECT_EQ(message({folder.text()}), "loaded");
}

}  // namespace
}  // namespace gpt
