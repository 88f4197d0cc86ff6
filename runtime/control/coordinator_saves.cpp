// Saves (rule 24): opened by the first member that reaches the version, voted, published by one, closed. A
// view change does not abort a save. Where a participant is lost before its vote, another that holds what its
// part has is asked to write it as well; the save fails where none does.
//
// A local save is one of a node's members alone, into its own folder, by the same rules. INVARIANT: whatever
// becomes of it changes nothing for a shared save, a stop, or another node: no plan counts on it. A drain is
// a shared save whose participants read their node's own save of the version in place of their state.
#include <algorithm>
#include <cmath>
#include <utility>

#include "runtime/control/coordinator_state.h"

namespace muster::control {
namespace {

Tier other(Tier tier) { return tier == Tier::kShared ? Tier::kLocal : Tier::kShared; }

}  // namespace

void Coordinator::State::on(NodeId, MemberId id, const SaveDue& due) {
  if (due.generation != view.generation || !in_view(id)) return;
  if (due.tier == Tier::kLocal) return local_save_due(id, due);
  if (due.version <= newest_save) {
    // Opened already, which the member has heard before this; or saved in an earlier view, which a joiner
    // cannot know.
    if (last_save_waits != due.version) to_member(id, SaveClosed{0, false, "already opened", due.version});
    return;
  }
  newest_save = due.version;
  last_save_waits.reset();
  if (due.last) store_move.reset();  // no boundary comes any more
  // Not opened, so nobody may keep its state still for it: the update that the stop-save waits for would
  // wait, too.
  if (stop) return to_view(SaveClosed{0, false, "the job is being stopped", due.version});
  if (due.last) give_up_drain("the last version is saved, from memory");
  if (due.last && shared_save_open()) {
    last_save_waits = due.version;
    return hurry_saves();
  }
  const char* const why_not = why_no_save_now(shared_save_open());
  if (why_not == nullptr && !due.last && put_off(due.version)) return;
  if (why_not == nullptr) return open_save(due.version, false);
  skip_save(Save{.version = due.version, .participants = living_of(view)}, why_not);
}

// Each node saves when its own first member is at the version, and skips what it is too slow for.
void Coordinator::State::local_save_due(MemberId id, const SaveDue& due) {
  if (!lives(id)) return;
  NodeRecord& node = nodes.at(members.at(id).member.node);
  if (due.version <= node.newest_local_save)
    return to_member(id, SaveClosed{0, false, "already opened", due.version, Tier::kLocal});
  node.newest_local_save = due.version;
  const bool one_is_open = saves.contains(node.local_save);
  Save save{.tier = Tier::kLocal, .node = node.id, .version = due.version};
  save.participants = living_on_node(node.id);
  const char* const why_not = stop ? "the job is being stopped" : why_no_save_now(one_is_open);
  if (why_not != nullptr) return skip_save(save, why_not);
  (void)open_save(std::move(save), "periodic");
}

// True: a node's own saves are to be the source, and nobody has to keep its state still. Not twice in a row
// without success, so that a node that cannot save for itself costs the shared folder no more than one
// interval; or two of the nodes' own, where these are the longer ones.
bool Coordinator::State::put_off(Version version) {
  if (!save_drains.wanted) return false;
  if (save_drains.due && version <= *save_drains.due + 2 * save_drains.apart) {
    to_view(SaveClosed{0, false, "the one that was due before is made from the nodes' own saves", version});
    return true;
  }
  const bool overdue = save_drains.due && *save_drains.due < version;
  const bool failed = std::exchange(save_drains.failed, false);
  save_drains.due.reset();
  if (overdue || failed || save_drains.on_all_nodes == kNoVersion) {
    say(EventKind::kDecided,
        std::string("saved from memory: ") +
            (overdue  ? "not every node has saved for itself since the save before was due"
             : failed ? "the drain before failed"
                      : "not every node of the view has a save of its own yet"))
        .version = version;
    return false;
  }
  save_drains.due = version;
  to_view(SaveClosed{0, false, "it is made from the nodes' own saves", version});
  say(EventKind::kDecided,
      "this version, or the next that every node saves for itself, is drained from there")
      .version = version;
  open_drain();
  return true;
}

// A view that has lost a version may make it again; and who came since has none that was saved before. So
// only this view's saves count, which are all of one lineage (rule 25).
void Coordinator::State::note_local_save(const Save& save) {
  if (!save_drains.wanted || (limits.rules.drains_of_view && save.in != view.generation)) return;
  if (save.version <= save_drains.on_all_nodes || ++save_drains.saved[save.version] < first_ranks.size())
    return;
  if (save_drains.on_all_nodes != kNoVersion) save_drains.apart = save.version - save_drains.on_all_nodes;
  save_drains.on_all_nodes = save.version;
  save_drains.saved.erase(save_drains.saved.begin(), save_drains.saved.upper_bound(save.version));
  open_drain();
}

void Coordinator::State::open_drain() {
  const Version version = save_drains.on_all_nodes;
  if (!save_drains.due || version < *save_drains.due || stop || drains_wanted() || store_leaves() ||
      why_no_save_now(shared_save_open()) != nullptr)
    return;
  save_drains.due.reset();
  if (version <= newest_durable) return;
  newest_save = std::max(newest_save, version);
  (void)open_save(Save{.version = version, .participants = living_of(view), .drain = true},
                  "drained from the nodes' own saves");
}

// What is wanted now is newer, and comes straight from memory. Members write one shared save after the other.
void Coordinator::State::give_up_drain(const std::string& why) {
  save_drains.due.reset();
  std::vector<uint64_t> unvoted;
  for (const auto& [id, save] : saves) {
    if (save.drain && !save.all_voted) unvoted.push_back(id);
  }
  for (const uint64_t id : unvoted) close_save(id, false, why);
}

const char* Coordinator::State::why_no_save_now(bool one_is_open) const {
  if (one_is_open) return "the save before it is still being written; save less often";
  if (store_move && store_move->port != 0) return "the store is being moved";
  return phase != Phase::kRunning ? "the view is changing" : nullptr;
}

// Said to all, so that nobody keeps its state still for it.
void Coordinator::State::skip_save(const Save& due, const std::string& why) {
  to_each(due.participants, SaveClosed{0, false, why, due.version, due.tier});
  say_of(due, EventKind::kSaveFailed, "skipped: " + why);
}

void Coordinator::State::say_of(const Save& save, EventKind kind, std::string text, int64_t amount) {
  const auto node = nodes.find(save.node);
  if (save.tier == Tier::kLocal && node != nodes.end())
    text = "node " + node->second.name + (text.empty() ? "" : ": " + text);
  Event& event = say(kind, std::move(text));
  event.version = save.version;
  event.amount = amount;
  event.tier = save.tier;
}

SaveOpen Coordinator::State::open_save(Save save, const std::string& what) {
  save.id = nonce();
  save.base_confirmed = base_confirmed;
  save.in = save.compared_in = view.generation;
  save.opened_at = now;
  save.deadline = now + limits.save_timeout;
  if (saves_due) saves_due = std::min(*saves_due, save.deadline);
  if (save.tier == Tier::kShared)
    ++shared_saves;
  else
    nodes.at(save.node).local_save = save.id;
  say_of(save, EventKind::kSaveStarted, what);
  for (uint32_t part = 0; part < save.participants.size(); ++part) save.parts[save.participants[part]] = part;
  SaveOpen open{.save = save.id, .version = save.version, .lineage = view.lineage};
  if (phase == Phase::kRunning && save.participants.size() == view.members.size())
    open.all_of = view.generation;
  else
    open.participants = save.participants;
  open.stop = save.stop;
  open.writers = shard_writers(save.parts);
  open.tier = save.tier;
  open.drain = save.drain;
  to_each(save.participants, open);
  save.writers = open.writers;
  pace_of(save.tier).measured.save_opened(now);
  pace_of(other(save.tier)).measured.other_opened();
  saves[save.id] = std::move(save);
  return open;
}

void Coordinator::State::open_save(Version version, bool for_stop) {
  if (for_stop) {
    stop->step = Stop::kSaving;
    ++stop->tries;
  }
  const SaveOpen open = open_save(Save{.version = version, .participants = living_of(view), .stop = for_stop},
                                  for_stop ? "stop-save: " + stop->why : "periodic");
  if (const size_t writable = open.writers.size(); writable < view.shards.shards())
    return close_save(open.save, false, "nobody is left who holds shard " + std::to_string(writable));
  if (drains_wanted()) hurry_saves();  // those who leave take part in it
}

void Coordinator::State::on(NodeId, MemberId id, const SaveVote& vote) {
  const auto found = saves.find(vote.save);
  if (found == saves.end()) return;
  Save& save = found->second;
  if (!save.parts.contains(id)) return;
  if (vote.part) return on_rewritten(save, id, vote);
  if (!vote.written) {
    // Of a part that others write, or have written.
    if (save.all_voted || save.records.contains(id) || save.orphans.contains(save.parts.at(id))) return;
    return close_save(save.id, false, named(id) + ": " + vote.why);
  }
  // A vote that was given up may come all the same, before that of who writes the part instead or after it.
  if (!save.records.emplace(id, vote.record).second) return;
  if (save.rewriters) save.rewriters->voted(id);
  save.bytes += vote.bytes;
  save.stalled = std::max(save.stalled, vote.stalled);
  save.held_back = std::min(save.held_back, std::max<Duration>(0, vote.held_back));
  saves_are_held_back = saves_are_held_back || (vote.held_back > 0 && save.tier == Tier::kShared);
  check_votes(save);
}

// Of a part whose own writer is lost. The first record of a part is the one that counts: the file of another
// is removed once the save is published.
void Coordinator::State::on_rewritten(Save& save, MemberId id, const SaveVote& vote) {
  const auto orphan = save.orphans.find(*vote.part);
  if (orphan == save.orphans.end() || save.all_voted) return;
  if (save.records.contains(save.participants[*vote.part])) return;
  if (!vote.written || !rewritten_part_counts(save, vote)) {
    if (orphan->second.writer != id) return;
    orphan->second.writer = 0;
    save.unassigned.insert(*vote.part);
    orphans_pending = true;
    return;
  }
  save.records.emplace(save.participants[*vote.part], vote.record);
  orphan->second.writer = 0;
  save.bytes += vote.bytes;
  say_of(save, EventKind::kObserved,
         "part " + std::to_string(*vote.part) + ", whose writer is lost, was written by " + named(id));
  check_votes(save);
}

// Whoever of an open save's participants was sent its version, or a shard of it, as this view was formed
// writes what nobody has compared yet: the save waits for this view's comparison.
void Coordinator::State::compare_saves_again() {
  std::set<MemberId> fetched;
  for (const Transfer& transfer : change.transfers) fetched.insert(transfer.target);
  for (const ShardMove& move : change.moves) fetched.insert(move.target);
  for (auto& entry : saves) {
    Save& save = entry.second;
    const bool concerned = std::ranges::any_of(save.participants, [&](MemberId participant) {
      return fetched.contains(participant) && !save.records.contains(participant);
    });
    if (save.all_voted || save.drain || save.version != view.base || !concerned) continue;
    save.base_confirmed = false;
    save.compared_in = view.generation;
  }
}

// A version that was held in the view of the save is compared as the save is. One that was held in a later
// view, as its base, is compared there: the save waits for that.
bool Coordinator::State::rewritten_part_counts(Save& save, const SaveVote& vote) {
  if (!limits.rules.rewrites_checked || vote.held_in == save.in) return true;
  if (vote.held_in != view.generation) return false;
  if (!base_confirmed) {
    save.base_confirmed = false;
    save.compared_in = view.generation;
  }
  return true;
}

void Coordinator::State::check_votes(Save& save) {
  const size_t needed = limits.rules.save_needs_all_votes ? save.participants.size() : 1;
  if (save.all_voted || save.records.size() < needed || !save.base_confirmed) return;
  save.all_voted = true;
  publish(save);
}

void Coordinator::State::publish(Save& save) {
  const auto publisher = std::find_if(save.participants.begin(), save.participants.end(),
                                      [&](MemberId id) { return lives(id); });
  if (publisher == save.participants.end()) return close_save(save.id, false, "nobody is left to publish it");
  save.publisher = *publisher;
  SavePublish message{save.id, {}, save.tier};
  for (MemberId id : save.participants) message.records.push_back(save.records[id]);
  to_member(save.publisher, std::move(message));
}

void Coordinator::State::on(NodeId, MemberId, const SavePublished& published) {
  const auto save = saves.find(published.save);
  if (save == saves.end() || !save->second.all_voted) return;
  close_save(published.save, published.published, published.why);
}

void Coordinator::State::close_save(uint64_t id, bool durable, const std::string& why) {
  const auto found = saves.find(id);
  if (found == saves.end()) return;
  const Save save = std::move(found->second);
  saves.erase(found);
  if (save.tier == Tier::kShared) --shared_saves;
  to_each(save.participants, SaveClosed{id, durable, why, save.version, save.tier});
  if (durable) {
    const std::string parts = std::to_string(save.participants.size());
    say_of(save, EventKind::kSaveDurable,
           "all of " + parts + (parts == "1" ? " part" : " parts") + " written, manifest published",
           static_cast<int64_t>(save.bytes));
    if (save.drain)
      say_of(save, EventKind::kSaveDrained, "made from the nodes' own saves, without a stall",
             static_cast<int64_t>(save.bytes));
  } else {
    say_of(save, EventKind::kSaveFailed, why);
  }
  SavePace& pace = pace_of(save.tier).measured;
  pace.save_closed(now, save.stalled, durable);
  pace_of(other(save.tier)).measured.other_closed(save.version, pace.cost_s());
  if (save.tier == Tier::kLocal) {
    const auto node = nodes.find(save.node);
    if (durable && node != nodes.end()) node->second.newest_local_durable = save.version;
    if (durable) note_local_save(save);
    return;
  }
  save_drains.failed = save.drain && !durable;
  if (durable) {
    // One that was mostly links to older files says nothing of how long a full one takes; and one that is
    // read from a disk nobody hurried.
    if (save.bytes >= state_bytes / 2 && (!save.drain || !save_speed.is_known()))
      save_speed.add({save.bytes, std::max<Duration>(1, now - save.opened_at - save.held_back)});
    state_bytes = std::max(state_bytes, save.bytes);
    newest_durable = std::max(newest_durable, save.version);
  }
  if (save.stop && phase != Phase::kEnded) stop_save_closed(durable, why);
  // With a loss the view is about to change: the members of the next one ask again, if it has any.
  if (!shared_save_open() && last_save_waits && !stop && phase == Phase::kRunning && !losses_pending) {
    open_save(*std::exchange(last_save_waits, std::nullopt), false);
  }
  open_drain();
}

// What is asked for next has to wait for them, and not for local ones.
void Coordinator::State::hurry_saves() {
  for (auto& [id, save] : saves) {
    if (save.hurried_at != 0 || save.tier == Tier::kLocal) continue;
    save.hurried_at = now;
    to_each(save.participants, SaveHurry{id});
  }
}

// ---- when to save, where that is left to the leader

void Coordinator::State::note_wishes(const MemberHello& hello) {
  shared_pace.wanted = shared_pace.wanted || hello.paces_saves;
  local_pace.wanted = local_pace.wanted || hello.paces_local_saves;
  save_drains.wanted = save_drains.wanted || hello.drains_saves;
}

// A process is lost, and its node stays: with a save of its own, had nobody else been left.
bool Coordinator::State::covered_by_own_saves(NodeId id) const {
  const auto node = nodes.find(id);
  return node != nodes.end() && node->second.connected && node->second.newest_local_durable != kNoVersion;
}

// Who joins learns of the schedules before it computes.
void Coordinator::State::begin_pace() {
  const std::set<NodeId> lost = std::exchange(hit, {});
  const auto covered = static_cast<size_t>(
      std::ranges::count_if(lost, [&](NodeId node) { return covered_by_own_saves(node); }));
  shared_pace.measured.nodes_lost(lost.size() - covered, covered);
  local_pace.measured.nodes_lost(lost.size());
  for (const Tier tier : {Tier::kShared, Tier::kLocal}) {
    TierPace& pace = pace_of(tier);
    pace.measured.view_begins(now, static_cast<uint32_t>(first_ranks.size()));
    if (!pace.wanted) continue;
    for (const SaveSchedule& schedule : pace.told.all()) to_view(schedule);
  }
}

void Coordinator::State::pace_saves(Version version) {
  pace_saves(Tier::kShared, version);
  pace_saves(Tier::kLocal, version);
}

// A member completed `version`, which others may still be computing. What is told here holds from a version
// on that nobody reaches before the word does: kAhead of its time.
void Coordinator::State::pace_saves(Tier tier, Version version) {
  constexpr double kAhead = 2;      // seconds
  constexpr double kChange = 0.25;  // of the interval, and it is told anew
  TierPace& pace = pace_of(tier);
  if (!(shared_pace.wanted || local_pace.wanted) || phase != Phase::kRunning || stop) return;
  // What a tier's saves cost is needed for the other one, too.
  if (!pace.measured.progressed(now, version) || !pace.wanted) return;
  const std::optional<SaveFacts> facts = pace.measured.facts();
  if (!facts) return;
  const SaveInterval interval = decide_save_interval(*facts);
  const Version heard_by = version + 2 + static_cast<Version>(kAhead / facts->step_s);
  const SaveSchedule* const told = pace.told.all().empty() ? nullptr : &pace.told.all().back();
  // After a rollback. By twice the interval, so that steps that change a little do not make it anew each
  // time.
  const bool begins_late = told != nullptr && told->from > heard_by + 2 * interval.steps;
  if (told != nullptr && !begins_late && pace.rests_on_cost == facts->cost_s.has_value() &&
      std::abs(static_cast<double>(interval.steps - told->every)) <=
          kChange * static_cast<double>(told->every)) {
    return;
  }
  const Version before = pace.told.newest_due(heard_by).value_or(version);
  const SaveSchedule next{std::max(before + interval.steps, heard_by), interval.steps, tier};
  // One that is still to begin gives way to a sooner one only.
  if (told != nullptr && told->from > version && next.from >= told->from) return;
  pace.told.add(next);
  pace.rests_on_cost = facts->cost_s.has_value();
  to_view(next);
  Event& event = say(EventKind::kDecided, "saves every " + interval.why);
  event.version = next.from;
  event.tier = tier;
}

// A participant that has voted has written and closed its part: its death takes nothing away, once its state
// was compared with the others'. Before that it fails the save: nobody can say any more whether its state was
// right. One that has not voted leaves its part to others. A publisher's death hands publishing on, which
// never overwrites.
void Coordinator::State::save_member_lost(MemberId id) {
  std::vector<uint64_t> failed;
  std::vector<uint64_t> orphaned;
  for (auto& [save_id, save] : saves) {
    if (!save.parts.contains(id)) continue;
    if (save.all_voted && save.publisher == id) orphaned.push_back(save_id);
    if (save.all_voted) continue;
    if (!save.base_confirmed) {
      failed.push_back(save_id);
      continue;
    }
    orphan_part(save, id);
  }
  for (uint64_t save_id : failed)
    close_save(save_id, false, "a participant was lost before its state was compared with the others'");
  for (uint64_t save_id : orphaned) {
    if (saves.contains(save_id)) publish(saves.at(save_id));  // unless the job ended over the failed one
  }
}

// What this participant was to write, of its own or instead of another, is to be written by somebody else.
void Coordinator::State::orphan_part(Save& save, MemberId participant) {
  if (!save.records.contains(participant)) {
    const uint32_t part = save.parts.at(participant);
    if (save.orphans.try_emplace(part).second) save.unassigned.insert(part);
    orphans_pending = true;
  }
  if (!save.rewriters) return;  // nobody has been asked for anything
  for (auto& [part, orphan] : save.orphans) {
    if (orphan.writer != participant) continue;
    orphan.writer = 0;
    save.unassigned.insert(part);
    orphans_pending = true;
  }
}

// Losses that come together are looked at together: who is lost with the writer is not asked.
void Coordinator::State::settle_orphans() {
  orphans_pending = false;
  std::vector<uint64_t> failed;
  for (auto& [id, save] : saves) {
    if (!save.all_voted && !find_rewriters(save)) failed.push_back(id);
  }
  for (uint64_t id : failed) {
    close_save(
        id, false,
        "a participant was lost before it voted, and nobody who is left holds what its part has any more");
  }
}

// False: there is a part that nobody is left to be asked for.
bool Coordinator::State::find_rewriters(Save& save) {
  // For a part: when so many of the likeliest have gone on, so have the others.
  constexpr size_t kAskedMax = 64;
  std::map<uint32_t, std::vector<uint32_t>> wanted;  // part → its shards
  for (const uint32_t part : save.unassigned) {
    if (!save.records.contains(save.participants[part])) wanted[part];
  }
  save.unassigned.clear();
  if (wanted.empty()) return true;
  if (phase == Phase::kEnded) return false;
  for (uint32_t shard = 0; shard < save.writers.size(); ++shard) {
    if (const auto of = wanted.find(save.writers[shard]); of != wanted.end()) of->second.push_back(shard);
  }
  if (!save.rewriters || save.rewriters_in != view.generation) save.rewriters = rewriters_for(save);
  save.rewriters_in = view.generation;
  // In a later view the map says where shards are to be, and a member itself knows what it has kept.
  const bool map_tells = view.generation == save.in;
  for (auto& [part, shards] : wanted) {
    Orphan& orphan = save.orphans.at(part);
    if (orphan.asked.size() >= kAskedMax) return false;
    const auto can = [&, own = save.participants[part]](MemberId id) {
      return id != own && lives(id) && !orphan.asked.contains(id);
    };
    const auto writer = map_tells && !shards.empty() ? save.rewriters->choose_among(holders_of(shards), can)
                                                     : save.rewriters->choose(can);
    if (!writer) return false;
    orphan.writer = *writer;
    orphan.asked.insert(*writer);
    to_member(*writer, SaveRewrite{save.id, part, save.version, save.in, std::move(shards), save.tier});
  }
  return true;
}

Rewriters Coordinator::State::rewriters_for(const Save& save) const {
  std::map<MemberId, uint32_t> parts;
  for (const auto& [part, orphan] : save.orphans)
    for (const MemberId id : orphan.asked) ++parts[id];
  std::vector<RewriteCandidate> candidates;
  for (MemberId id : save.participants) {
    if (!lives(id)) continue;
    const auto of_others = parts.find(id);
    candidates.push_back({id, save.records.contains(id), of_others == parts.end() ? 0 : of_others->second});
  }
  return Rewriters(candidates);
}

// Members of the view that hold all these shards of it. REQUIRES: there are shards.
std::vector<MemberId> Coordinator::State::holders_of(const std::vector<uint32_t>& shards) const {
  std::vector<MemberId> holders;
  for (const uint32_t rank : view.shards.holders(shards.front())) {
    const bool has_all = std::ranges::all_of(
        shards, [&](uint32_t shard) { return std::ranges::count(view.shards.holders(shard), rank) > 0; });
    if (has_all) holders.push_back(view.members[rank].id);
  }
  return holders;
}

// A node has connected anew: what was under way to and from its members is lost, and a vote is not said
// twice. Others are asked for their parts at once, so that nothing, least of all a stop-save, waits for them
// until its deadline. Publishing is asked for again; it never overwrites.
void Coordinator::State::save_messages_lost(const NodeRecord& node) {
  std::vector<uint64_t> unpublished;
  for (auto& [id, save] : saves) {
    for (MemberId participant : node.members) {
      if (!save.parts.contains(participant)) continue;
      if (!save.all_voted) orphan_part(save, participant);
      if (save.all_voted && save.publisher == participant) unpublished.push_back(id);
    }
  }
  for (uint64_t id : unpublished) publish(saves.at(id));
}

void Coordinator::State::fail_unvoted_saves(const std::string& why, std::optional<Tier> tier) {
  std::vector<uint64_t> unvoted;
  for (const auto& [id, save] : saves) {
    if (!save.all_voted && save.tier == tier.value_or(save.tier)) unvoted.push_back(id);
  }
  for (uint64_t id : unvoted) close_save(id, false, why);
}

void Coordinator::State::saves_overdue() {
  std::vector<uint64_t> overdue;
  bool late = false;
  for (const auto& [id, save] : saves) {
    if (now >= save.deadline) overdue.push_back(id);
    late = late || (save.tier == Tier::kShared && now >= save.deadline - limits.save_timeout / 2);
  }
  if (late) hurry_saves();
  for (uint64_t id : overdue) close_save(id, false, "not written within the deadline");
}

}  // namespace muster::control
