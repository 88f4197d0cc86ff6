#include "launcher/ckpt_text.h"

#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>

#include "launcher/run.h"
#include "runtime/base/clock.h"
#include "runtime/seal_key_file.h"

namespace muster::launcher {
namespace {

using namespace checkpoint;

constexpr size_t kChunkBytes = 4 * 1024 * 1024;
constexpr Duration kShowEvery = 100 * kMillisecond;

// Columns as a terminal shows them: a UTF-8 character is one, whatever its bytes.
size_t width_of(const std::string& text) {
  return static_cast<size_t>(std::count_if(
      text.begin(), text.end(), [](char c) { return (static_cast<unsigned char>(c) & 0xc0) != 0x80; }));
}

bool is_number(const std::string& cell) {
  return cell.empty() || cell == "-" || (cell[0] >= '0' && cell[0] <= '9') ||
         (cell[0] == '-' && cell.size() > 1 && cell[1] >= '0' && cell[1] <= '9');
}

std::string without_slash(std::string path) {
  while (path.size() > 1 && path.back() == '/') path.pop_back();
  return path;
}

// What the user wrote behind '@', or the name of a save's own folder. A folder that is there under the whole
// name is that folder: names may have an '@'.
struct Wanted {
  std::string folder;
  std::string version;  // empty: the newest usable
};

Wanted wanted_of(const std::string& raw) {
  const std::string name = without_slash(raw);
  const size_t at = name.rfind('@');
  const auto itself = real_files().stat(name);
  const bool is_folder = itself.ok() && *itself && (*itself)->is_directory;
  if (at != std::string::npos && name.find('/', at) == std::string::npos && !is_folder)
    return {without_slash(name.substr(0, at)), name.substr(at + 1)};
  const size_t slash = name.find_last_of('/');
  const std::string last = slash == std::string::npos ? name : name.substr(slash + 1);
  if (parse_save_name(last))
    return {slash == std::string::npos ? "." : name.substr(0, std::max<size_t>(slash, 1)), last};
  return {name, ""};
}

bool matches(const VersionId& id, const std::string& wanted) {
  const std::string number = std::to_string(id.version);
  return wanted == number || wanted == number + "-" + hex64(id.nonce) || wanted == save_name(id);
}

Error none_such(const Wanted& wanted, std::span<const Candidate> candidates) {
  std::string there;
  for (size_t i = 0; i < std::min<size_t>(candidates.size(), 5); ++i)
    there += (i == 0 ? "; there are: " : ", ") + std::to_string(candidates[i].id.version);
  if (candidates.size() > 5) there += ", …";
  if (candidates.empty()) there = "; it holds no saves";
  const std::string what = wanted.version.empty() ? "usable version" : "version '" + wanted.version + "'";
  return {ErrorCode::kMisuse, wanted.folder + " has no " + what + there};
}

}  // namespace

std::string printable(const std::string& text, bool lines) {
  std::string shown;
  unsigned char last = 0;
  for (const char character : text) {
    const auto byte = static_cast<unsigned char>(character);
    const bool is_c1 = last == 0xc2 && byte >= 0x80 && byte < 0xa0;  // U+0080 to U+009F, in UTF-8
    last = byte;
    if (!is_c1 && byte >= 0x20 && byte != 0x7f) {
      shown += character;
    } else if (lines && byte == '\n') {
      shown += character;
    } else {
      char escaped[8];
      std::snprintf(escaped, sizeof escaped, "\\x%02x", byte);
      if (is_c1) shown.pop_back();
      shown += is_c1 ? std::string("\\xc2") + escaped : escaped;
    }
  }
  return shown;
}

int report(const Error& error) {
  std::fprintf(stderr, "muster: %s\n", printable(error.message, true).c_str());
  if (error.code == ErrorCode::kMisuse) return kExitMisuse;
  return error.code == ErrorCode::kDropCheckpoint ? kExitFound : kExitTrouble;
}

void print(const Json& json) {
  std::printf("%s\n", json.dump(2, ' ', false, Json::error_handler_t::replace).c_str());
}

Table::Table(std::vector<std::string> heads) { rows_.push_back(std::move(heads)); }

void Table::add(std::vector<std::string> cells) {
  for (std::string& cell : cells) cell = printable(cell);
  rows_.push_back(std::move(cells));
}

void Table::print() const {
  const size_t columns = rows_.front().size();
  std::vector<size_t> widths(columns, 0);
  std::vector<bool> right(columns, rows_.size() > 1);
  for (size_t r = 0; r < rows_.size(); ++r) {
    for (size_t c = 0; c < columns; ++c) {
      widths[c] = std::max(widths[c], width_of(rows_[r][c]));
      if (r > 0 && !is_number(rows_[r][c])) right[c] = false;
    }
  }
  for (const auto& row : rows_) {
    std::string line;
    for (size_t c = 0; c < columns; ++c) {
      const std::string space(widths[c] - width_of(row[c]), ' ');
      line += right[c] ? space + row[c] : row[c] + space;
      line += "  ";
    }
    line.erase(line.find_last_not_of(' ') + 1);
    std::printf("%s\n", line.c_str());
  }
}

ProgressBar::ProgressBar(std::string label, uint64_t bytes_total, bool quiet)
    : label_(std::move(label)),
      total_(std::max<uint64_t>(bytes_total, 1)),
      visible_(!quiet && isatty(STDERR_FILENO) != 0),
      began_(now()) {}

ProgressBar::~ProgressBar() {
  if (visible_ && shown_ != 0) std::fprintf(stderr, "\r\033[K");
}

void ProgressBar::show(uint64_t bytes_done) {
  constexpr uint64_t kWidth = 30;
  const Instant at = now();
  if (!visible_ || at - shown_ < kShowEvery) return;
  shown_ = at;
  const uint64_t done = std::min(bytes_done, total_);
  const uint64_t filled = done * kWidth / total_;
  const double seconds =
      static_cast<double>(std::max<Duration>(at - began_, 1)) / static_cast<double>(kSecond);
  const auto rate = static_cast<uint64_t>(static_cast<double>(done) / seconds);
  std::fprintf(stderr, "\r%s [%s%s] %3d %%  %s/s\033[K", label_.c_str(), std::string(filled, '=').c_str(),
               std::string(kWidth - filled, ' ').c_str(), static_cast<int>(done * 100 / total_),
               human_bytes(rate).c_str());
  std::fflush(stderr);
}

std::string who_am_i() {
  char host[256] = "?";
  gethostname(host, sizeof host - 1);
  return "muster ckpt, process " + std::to_string(getpid()) + " on " + host;
}

std::string age_text(int64_t age_ms) {
  const int64_t seconds = std::max<int64_t>(age_ms, 0) / 1000;
  if (seconds < 120) return std::to_string(seconds) + " s";
  if (seconds < 120 * 60) return std::to_string(seconds / 60) + " min";
  if (seconds < 48 * 3600) return std::to_string(seconds / 3600) + " h";
  return std::to_string(seconds / 86400) + " d";
}

std::string shape_text(const std::vector<uint64_t>& shape) {
  std::string text = "[";
  for (size_t i = 0; i < shape.size(); ++i) text += (i == 0 ? "" : ", ") + std::to_string(shape[i]);
  return text + "]";
}

std::string number_text(double value) {
  char text[32];
  std::snprintf(text, sizeof text, "%.6g", value);
  return text;
}

Result<SealKeyPtr> key_of(const CkptArguments& arguments) {
  if (!arguments.key_file.empty()) return read_seal_key(arguments.key_file);
  const char* const file = std::getenv("MUSTER_CHECKPOINT_KEY_FILE");
  return read_seal_key(file != nullptr ? file : "");
}

Result<Folder> look(const std::string& path, const SealKeyPtr& key) {
  MUSTER_ASSIGN(Folder folder, Folder::look(real_files(), path));
  folder.use_key(key);
  return folder;
}

Result<Chosen> choose(const std::string& name, const SealKeyPtr& key) {
  const Wanted wanted = wanted_of(name);
  MUSTER_ASSIGN(Folder folder, look(wanted.folder, key));
  MUSTER_ASSIGN(auto candidates, folder.versions());
  for (Candidate& candidate : candidates) {
    const bool named = !wanted.version.empty() && matches(candidate.id, wanted.version);
    if (candidate.foreign && (named || wanted.version.empty())) return *candidate.unusable;
    if (wanted.version.empty() ? !candidate.unusable : named)
      return Chosen{folder.path(), std::move(candidate)};
  }
  return none_such(wanted, candidates);
}

bool names_version(const std::string& name) { return !wanted_of(name).version.empty(); }

Result<ChosenSaves> choose_some(const std::string& name, bool all, const SealKeyPtr& key) {
  if (!all) {
    MUSTER_ASSIGN(Chosen chosen, choose(name, key));
    return ChosenSaves{std::move(chosen.folder), {std::move(chosen.candidate)}};
  }
  MUSTER_ASSIGN(Folder folder, look(name, key));
  MUSTER_ASSIGN(auto candidates, folder.versions());
  ChosenSaves saves{folder.path(), {}};
  std::copy_if(candidates.begin(), candidates.end(), std::back_inserter(saves.candidates),
               [](const Candidate& candidate) { return candidate.finished; });
  if (saves.candidates.empty()) return Error{ErrorCode::kMisuse, folder.path() + " holds no finished saves"};
  return saves;
}

Result<StateReader> open_state(const Chosen& chosen) {
  if (!chosen.candidate.manifest) return *chosen.candidate.unusable;
  return StateReader::open(real_files(), chosen.candidate.folder, chosen.candidate.manifest);
}

Status for_each_chunk(StateReader& state, uint32_t tensor,
                      const std::function<Status(uint64_t, ByteSpan)>& use) {
  const uint64_t total = total_bytes(state.manifest().tensors[tensor]);
  ByteBuffer buffer(std::min<uint64_t>(kChunkBytes, total));
  for (uint64_t at = 0; at < total; at += kChunkBytes) {
    const auto chunk = MutableByteSpan(buffer).first(std::min<uint64_t>(kChunkBytes, total - at));
    MUSTER_TRY(state.read(tensor, at, chunk));
    MUSTER_TRY(use(at, chunk));
  }
  return ok();
}

Json to_json(const VersionId& id) { return {{"version", id.version}, {"nonce", hex64(id.nonce)}}; }

Json to_json(const Statistics& statistics) {
  return {{"count", statistics.count},
          {"min", statistics.min},
          {"max", statistics.max},
          {"mean", statistics.mean()},
          {"nans", statistics.nans},
          {"infinities", statistics.infinities},
          {"zeros", statistics.zeros},
          {"magnitudes",
           {{"first_exponent", kMagnitudeFirstExponent},
            {"exponent_step", kMagnitudeExponentStep},
            {"counts", statistics.magnitudes}}}};
}

std::string histogram_text(const Statistics& statistics) {
  constexpr const char* kBars[] = {" ", "▁", "▂", "▃", "▄", "▅", "▆", "▇", "█"};
  const uint64_t most = *std::max_element(statistics.magnitudes.begin(), statistics.magnitudes.end());
  std::string text;
  for (const uint64_t count : statistics.magnitudes) {
    // Any count at all shows as a bar.
    const uint64_t height = most == 0 || count == 0 ? 0 : 1 + (count * 7 + most - 1) / most;
    text += kBars[std::min<uint64_t>(height, 8)];
  }
  return text;
}

uint64_t bytes_of(const Manifest& manifest) {
  uint64_t bytes = 0;
  for (const ShardEntry& shard : manifest.shards) bytes += shard.geometry.file_bytes();
  return bytes;
}

uint64_t stored_bytes_of(const Manifest& manifest) {
  uint64_t bytes = 0;
  for (const ShardEntry& shard : manifest.shards)
    bytes += shard.container.bytes == 0 ? shard.geometry.file_bytes() : shard.container.bytes;
  return bytes;
}

std::string state_text(const Candidate& candidate) {
  if (!candidate.finished) return "unfinished";
  if (candidate.abandoned) return "abandoned";
  if (candidate.foreign) return "not of this key";
  if (candidate.unusable) return candidate.unusable->code == ErrorCode::kMisuse ? "newer format" : "damaged";
  return to_string(candidate.state);
}

}  // namespace muster::launcher
