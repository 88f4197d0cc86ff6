#include "checkpoint/changes.h"

#include <algorithm>
#include <cstring>

#include "runtime/base/check.h"

namespace muster::checkpoint {
namespace {

constexpr uint64_t kChangesMagic = 0x3130'6367'6e68'636dULL;  // "mchngc01"
constexpr size_t kNamedMax = 8;                               // tensors in one sentence

struct Head {
  uint64_t magic, since, pieces;
};

Error bad_changes(const char* what) {
  return {ErrorCode::kMisuse, std::string("what a vote says of changed tensors is refused: ") + what};
}

// What all pieces of a tensor say together.
enum class Verdict : uint8_t { kNoPiece, kUnknown, kSame, kChanged };

// A change in one piece settles it, whatever is not known of others.
Verdict combined(Verdict all, Verdict piece) {
  if (all == Verdict::kNoPiece || piece == Verdict::kChanged) return piece;
  if (all == Verdict::kChanged || piece == Verdict::kSame) return all;
  return piece;
}

std::vector<Verdict> verdicts(const SavePlan& plan, uint64_t version,
                              const std::vector<std::optional<PieceChanges>>& votes) {
  std::vector<Verdict> all(plan.specs().size(), Verdict::kNoPiece);
  for (uint32_t p = 0; p < plan.participants(); ++p) {
    const std::vector<Piece> pieces = plan.pieces(p);
    const std::optional<PieceChanges>& vote = votes[p];
    const bool compared = vote && vote->since < version && vote->changed.size() == pieces.size();
    for (size_t i = 0; i < pieces.size(); ++i) {
      Verdict piece = Verdict::kUnknown;
      if (compared) piece = vote->changed[i] ? Verdict::kChanged : Verdict::kSame;
      Verdict& tensor = all[pieces[i].tensor];
      tensor = combined(tensor, piece);
    }
  }
  return all;
}

std::string named(const std::vector<std::string>& names) {
  std::string text = names.size() == 1 ? "tensor " : std::to_string(names.size()) + " tensors: ";
  for (size_t i = 0; i < std::min(names.size(), kNamedMax); ++i)
    text += (i > 0 ? ", '" : "'") + names[i] + "'";
  return names.size() > kNamedMax ? text + " and others" : text;
}

// Names of tensors.
struct Suspects {
  uint64_t since = 0;
  bool nothing_changed = false;
  std::vector<std::string> still;              // declared as changing
  std::vector<std::string> stopped, standing;  // watched: now; now or before
  std::vector<std::string> moved;              // declared as constant

  std::string sentence(const std::vector<std::string>& of_watched) const {
    const std::string after = " since version " + std::to_string(since);
    const std::string same = " did not change" + after + ", though steps were made and ";
    std::string text;
    const auto add = [&text](const std::string& part) { text += (text.empty() ? "" : "; ") + part; };
    if (nothing_changed) {
      add("no tensor has changed" + after +
          ", though steps were made: is the memory that is trained the one that was registered?");
    } else {
      if (!still.empty()) add(named(still) + same + "changing was declared");
      if (!of_watched.empty()) add(named(of_watched) + same + "it used to in every save");
    }
    if (!moved.empty()) add(named(moved) + " changed" + after + ", though declared as constant");
    return text;
  }
};

}  // namespace

ByteBuffer encode(const PieceChanges& changes) {
  const Head head{kChangesMagic, changes.since, changes.changed.size()};
  const ByteSpan head_bytes = bytes_of(head);
  ByteBuffer bytes(head_bytes.begin(), head_bytes.end());
  bytes.resize(sizeof head + (changes.changed.size() + 7) / 8);
  for (size_t i = 0; i < changes.changed.size(); ++i)
    if (changes.changed[i]) bytes[sizeof head + i / 8] |= std::byte{1} << (i % 8);
  const Digest check = digest_of(bytes);
  const ByteSpan check_bytes = bytes_of(check);
  bytes.insert(bytes.end(), check_bytes.begin(), check_bytes.end());
  return bytes;
}

Result<PieceChanges> decode_piece_changes(ByteSpan bytes) {
  Head head;
  Digest check;
  if (bytes.size() < sizeof head + sizeof check) return bad_changes("it is too short");
  std::memcpy(&head, bytes.data(), sizeof head);
  const ByteSpan text = bytes.first(bytes.size() - sizeof check);
  std::memcpy(&check, bytes.data() + text.size(), sizeof check);
  if (head.magic != kChangesMagic) return bad_changes("it is of another version");
  if (check != digest_of(text)) return bad_changes("its digest does not match");
  if (head.pieces > kTensorsMax || text.size() != sizeof head + (head.pieces + 7) / 8)
    return bad_changes("wrong length");
  PieceChanges changes{head.since, std::vector<bool>(head.pieces)};
  for (size_t i = 0; i < head.pieces; ++i)
    changes.changed[i] = (text[sizeof head + i / 8] >> (i % 8) & std::byte{1}) != std::byte{0};
  return changes;
}

std::optional<PieceChanges> PieceHistory::note(const std::shared_ptr<const ShardTemplate>& shape,
                                               uint64_t version, std::vector<Digest> digests) {
  std::optional<PieceChanges> changes;
  if (shape_ == shape && version > version_ && digests.size() == digests_.size()) {
    changes = PieceChanges{version_, {}};
    for (size_t i = 0; i < digests.size(); ++i) changes->changed.push_back(digests[i] != digests_[i]);
  }
  shape_ = shape;
  version_ = version;
  digests_ = std::move(digests);
  return changes;
}

ChangeGuard::ChangeGuard(std::vector<Expectation> expectations)
    : expectations_(std::move(expectations)), history_(expectations_.size()) {}

Judgement ChangeGuard::judge(const SavePlan& plan, uint64_t version,
                             const std::vector<std::optional<PieceChanges>>& votes) {
  MUSTER_CHECK(votes.size() == plan.participants() && plan.specs().size() == expectations_.size(),
               "a save is judged by all its votes and tensors");
  const std::vector<Verdict> all = verdicts(plan, version, votes);
  Suspects found;
  for (const auto& vote : votes) found.since = std::max(found.since, vote ? vote->since : 0);
  size_t same = 0;
  size_t other = 0;
  for (size_t t = 0; t < all.size(); ++t) {
    const Expectation expected = expectations_[t];
    if (all[t] == Verdict::kNoPiece || expected == Expectation::kFree) continue;
    const std::string& name = plan.specs()[t].name;
    const bool changed = all[t] == Verdict::kChanged;
    if (expected == Expectation::kConstant) {
      if (changed) found.moved.push_back(name);
      continue;
    }
    (all[t] == Verdict::kSame ? same : other) += 1;
    if (all[t] == Verdict::kUnknown) continue;
    History& history = history_[t];
    const bool stops = !changed && history.always && history.changes > 0;
    history.stopped = !changed && (history.stopped || stops);
    history.always = history.always && changed;
    history.changes += changed ? 1 : 0;
    if (!changed && expected == Expectation::kChanging) found.still.push_back(name);
    if (expected == Expectation::kChanging) continue;
    if (stops) found.stopped.push_back(name);
    if (history.stopped) found.standing.push_back(name);
  }
  found.nothing_changed = same > 0 && other == 0;
  return {found.sentence(found.stopped), found.sentence(found.standing)};
}

}  // namespace muster::checkpoint
