#include "runtime/control/member.h"

#include <algorithm>
#include <map>
#include <set>
#include <utility>

#include "runtime/control/view_difference.h"

namespace muster::control {

// What is true at any moment, from which every permit is decided:
//  - `entered` is the view of the newest Go; `pending` the one being formed, whose Go has not come.
//  - `version` and `state_in` (the generation it was last entered with) describe the program's memory.
//  - `reported`: a report was promised or given and no leave to go on has come since.
struct MemberCore::State {
  MemberId id = 0;
  MemberLimits limits;
  Instant now = 0;

  View entered;
  View known;  // the newest that it was told of: to install, or to learn in
  std::optional<Install> pending;
  bool formed = false;
  bool revoked = false;
  bool install_due = false;
  bool catching_up = false;     // to the base of `entered`
  bool base_told = false;       // in `entered`
  bool base_confirmed = false;  // the same

  Version version = kNoVersion;
  Generation state_in;
  uint64_t held = 0;                       // counts the states, see ComputeDigest
  Generation gradient_in;                  // where the update to `version` was made; 0: it is not at hand
  uint64_t digest_asked = 0;               // `held` at the newest ComputeDigest
  std::optional<Digest> digest;            // of `version`, once computed
  std::vector<ShardDigest> shard_digests;  // the same, of all shards below

  // Of `version`, as all three: compared with the other copies; not yet; not yet installed.
  std::set<uint32_t> shards;
  std::set<uint32_t> arrived;
  std::set<uint32_t> awaited;

  std::optional<Agree> asked;  // newest Agree of the newest generation
  bool reported = false;
  bool answered = false;  // `asked` has got its Report
  bool torn = false;
  Instant tear_at = kNever;
  bool update_open = false;
  bool update_is_fetched = false;  // with the gradient of another, whatever has been revoked meanwhile
  bool install_open = false;
  bool scope_void = false;  // what the open scope writes is not to be kept

  std::optional<Version> stop_at;
  uint64_t plan_known = 0;
  uint64_t plan_served = 0;
  uint64_t plan_waiting = 0;  // at its boundary; 0: at none

  std::optional<Learn> lesson;
  std::optional<Version> learn_until;

  bool is_frozen = false;
  bool rescue_asked = false;                    // and not yet answered
  Version durable = kNoVersion;                 // newest in the shared folder, on the branch of `entered`
  std::map<uint64_t, Version> saves_under_way;  // on that branch
  std::optional<LeaveLoop> ended;

  Send to_leader(Message message) const { return Send{0, Envelope{id, std::move(message)}}; }
  Generation newest() const { return pending ? pending->view.generation : entered.generation; }
  bool frozen() const { return is_frozen; }

  Event event(EventKind kind, std::string text) const {
    return Event{
        .kind = kind, .at = now, .generation = newest().counter, .version = version, .text = std::move(text)};
  }

  void forget_digests() {
    digest.reset();
    shard_digests.clear();
  }
  void hold(Version newer, Generation in) {
    version = newer;
    state_in = in;
    gradient_in = {};
    ++held;
    forget_digests();
  }
  void drop_shards() {
    shards.clear();
    arrived.clear();
  }
  void keep_given(std::set<uint32_t>& held_shards) const {
    const std::vector<uint32_t> mine = entered.shards_of(id);
    std::erase_if(held_shards,
                  [&](uint32_t shard) { return !std::binary_search(mine.begin(), mine.end(), shard); });
  }
  // An update leaves the others' behind.
  void drop_shards_of_others() {
    keep_given(shards);
    keep_given(arrived);
  }
  void hold_none() {
    drop_shards();
    hold(kNoVersion, Generation{});
    scope_void = update_open || install_open;
  }

  void on(const Agree& agree, MemberActions& out);
  void on(const Install& install, MemberActions& out);
  void begin_forming(const Install& install, MemberActions& out);
  void on(const Go& go, MemberActions& out);
  void on(const BaseConfirmed& confirmed, MemberActions& out);
  void on(const PlanNumber& plan, MemberActions& out);
  void on(const Proceed& proceed, MemberActions& out);
  void on(const Learn& learn, MemberActions& out);
  void on(const LearnUntil& until, MemberActions& out);
  void on(const LessonOver& over, MemberActions& out);
  void on(const SaveOpen& open, MemberActions& out);
  void on(const SaveClosed& closed, MemberActions& out);
  std::string why_not_rewrite(const SaveRewrite& wanted) const;
  void on(const End& end, MemberActions& out);
  void on(const LeaderLink& link, MemberActions& out);
  void on(const RescueAsk& ask, MemberActions& out);
  void forget_saves_off_branch();
  template <typename Other>
  void on(const Other& message, MemberActions& out) {
    out.push_back(Forward{message});
  }

  void revoke(const std::string& why, MemberActions& out);
  void answer(MemberActions& out);
  void answer_rescue(MemberActions& out);
  void send_report(MemberActions& out);
  void want_digest(MemberActions& out);
  void tell_base(MemberActions& out);
  void end(int exit_code, std::string why, MemberActions& out);
  std::string refusal(const Generation& generation, Version of) const;
  std::string refusal_of_view(const Generation& generation) const;
};

// ---- agreement

// A question older than the newest view, or older than the newest question, is a straggler.
void MemberCore::State::on(const Agree& agree, MemberActions& out) {
  if (agree.generation < newest()) return;
  if (asked && agree.attempt < asked->attempt) return;
  if (asked && agree.attempt == asked->attempt) {
    if (answered) send_report(out);
    return;
  }
  asked = agree;
  reported = true;
  answered = false;
  if (agree.revoke) revoke(agree.why, out);
  answer(out);
}

void MemberCore::State::revoke(const std::string& why, MemberActions& out) {
  if (!revoked || pending) {
    out.push_back(RevokeGroup{newest(), why});
    out.push_back(event(EventKind::kRevoked, why));
  }
  revoked = true;
  lesson
      .reset();  // a learner that is asked is a member by now, even if its Install was lost with a connection
  learn_until.reset();
  pending.reset();
  formed = false;
  catching_up = false;
  awaited.clear();
  stop_at.reset();
  plan_waiting = 0;
}

// The report waits for an open scope, which has an end.
void MemberCore::State::answer(MemberActions& out) {
  if (!asked || answered) return;
  const bool scope_open = update_open || install_open;
  if (scope_open && !torn && limits.rules.await_open_update) {
    if (limits.rules.tear_open_update) tear_at = std::min(tear_at, now + limits.update_timeout);
    return;
  }
  tear_at = kNever;
  send_report(out);
}

void MemberCore::State::send_report(MemberActions& out) {
  answered = true;
  Report report;
  report.generation = asked->generation;
  report.attempt = asked->attempt;
  report.version = torn ? kNoVersion : version;
  report.torn = torn;
  report.installed = state_in;
  if (!torn) report.shards.assign(shards.begin(), shards.end());
  if (!torn) report.arrived.assign(arrived.begin(), arrived.end());
  if (!torn) report.gradient_in = gradient_in;
  if (known.base != kNoVersion) report.knows = known.generation;
  out.push_back(to_leader(report));
}

// ---- views

// What differs from a view that is not held is not taken: the leader's next question, at its deadline, is
// answered with the view that is, and then all of the next one comes.
void MemberCore::State::on(const Install& install, MemberActions& out) {
  if (ended) return;
  if (install.view.generation <= newest()) {
    if (pending && formed && install.view.generation == newest())
      out.push_back(to_leader(Ready{newest(), pending->attempt}));
    return;
  }
  if (install.since.counter == 0) return begin_forming(install, out);
  if (const auto whole = whole_again(known, install)) return begin_forming(*whole, out);
  out.push_back(event(EventKind::kLog,
                      "a view came as what differs from another, which is not held; the "
                      "leader will tell all of it"));
}

void MemberCore::State::begin_forming(const Install& install, MemberActions& out) {
  if (!install.view.rank_of(id)) return;
  pending = install;
  known = install.view;
  formed = false;
  const auto is_mine = [&](const auto& transfer) { return transfer.source == id; };
  const bool sends = std::any_of(install.transfers.begin(), install.transfers.end(), is_mine) ||
                     std::any_of(install.moves.begin(), install.moves.end(), is_mine);
  if (sends) {  // what it sends is compared, not what it held when the digest was computed
    forget_digests();
    digest_asked = 0;
  }
  out.push_back(FormGroup{install});
}

void MemberCore::State::on(const Go& go, MemberActions& out) {
  if (!pending || !formed || pending->view.generation != go.generation || ended) return;
  const auto mine = std::find_if(pending->transfers.begin(), pending->transfers.end(),
                                 [&](const Transfer& transfer) { return transfer.target == id; });
  const bool is_target = mine != pending->transfers.end();
  catching_up = is_target && mine->gradient && !torn && version + 1 == pending->view.base;
  entered = pending->view;
  awaited.clear();
  for (const ShardMove& move : pending->moves) {
    if (move.target == id) awaited.insert(move.shard);
  }
  pending.reset();
  formed = false;
  revoked = false;
  reported = false;
  base_told = false;
  base_confirmed = false;
  asked.reset();
  lesson.reset();
  learn_until.reset();
  plan_waiting = 0;
  if (limits.rules.plan_baseline) plan_served = plan_known;
  if (entered.base == kNoVersion) {
    hold_none();  // members restore together; what one held is not on the new branch
    torn = false;
  }
  forget_saves_off_branch();
  const bool replaced =
      entered.base != kNoVersion && !catching_up && (is_target || torn || version != entered.base);
  if (replaced) drop_shards();
  keep_given(arrived);  // others are not compared
  if (!limits.rules.shards_kept_until_update) drop_shards_of_others();
  install_due = replaced || !awaited.empty();
  if (replaced || catching_up) gradient_in = {};
  if (!install_due && version == entered.base && version != kNoVersion) state_in = entered.generation;
  out.push_back(EnterView{entered, entered.base});
  tell_base(out);
}

// The view is entered without waiting for digests, which read the whole state: the step's computing is
// unharmed by a wrong base, only an update would make it everybody's (rule 5).
void MemberCore::State::tell_base(MemberActions& out) {
  if (base_told || revoked || pending || ended || update_open || install_open) return;
  if (entered.generation.counter == 0 || entered.base == kNoVersion || install_due) return;
  if (lesson || version != entered.base) return;
  if (!digest) return want_digest(out);
  base_told = true;
  out.push_back(to_leader(BaseDigest{entered.generation, *digest, shard_digests}));
}

void MemberCore::State::want_digest(MemberActions& out) {
  if (digest_asked == held) return;
  digest_asked = held;
  ComputeDigest wanted{version, held, {shards.begin(), shards.end()}};
  wanted.shards.insert(wanted.shards.end(), arrived.begin(), arrived.end());
  out.push_back(std::move(wanted));
}

void MemberCore::State::on(const BaseConfirmed& confirmed, MemberActions& out) {
  if (confirmed.generation != entered.generation) return;
  base_confirmed = true;
  gradient_in = {};  // nobody is behind
  shards.merge(arrived);
  arrived.clear();
  out.push_back(Forward{confirmed});
}

// What was saved of versions beyond the view's base is another history now: a rescue must not count it as its
// own.
void MemberCore::State::forget_saves_off_branch() {
  if (durable > entered.base) durable = kNoVersion;
  std::erase_if(saves_under_way, [&](const auto& save) { return save.second > entered.base; });
}

void MemberCore::State::end(int exit_code, std::string why, MemberActions& out) {
  if (ended) return;
  ended = LeaveLoop{exit_code, std::move(why)};
  if (!revoked || pending) out.push_back(RevokeGroup{newest(), ended->why});
  out.push_back(*ended);
}

void MemberCore::State::on(const End& message, MemberActions& out) {
  end(message.exit_code, message.why, out);
}

// ---- the leader is lost

void MemberCore::State::on(const LeaderLink& link, MemberActions& out) {
  if (link.lost == frozen()) return;
  is_frozen = link.lost;
  rescue_asked = false;
  if (link.lost) out.push_back(event(EventKind::kFrozen, link.why));
}

void MemberCore::State::on(const RescueAsk&, MemberActions& out) {
  if (!frozen()) return;  // the agent's word that the leader is found has overtaken the question
  rescue_asked = true;
  answer_rescue(out);
}

// A learner's copy is not reported, nor that of one which was about to enter its first view: its source holds
// the same or a newer version, and knows the history under which it is to be saved.
void MemberCore::State::answer_rescue(MemberActions& out) {
  if (!rescue_asked || update_open || install_open) return;
  const bool whole = version != kNoVersion && !torn && !lesson && entered.generation.counter != 0;
  if (whole && !digest) return want_digest(out);
  rescue_asked = false;
  RescueReport report;
  report.version = whole ? version : kNoVersion;
  report.installed = state_in;
  if (whole) report.digest = *digest;
  report.durable = durable;
  report.shard_count = entered.shards.shards();
  report.base = entered.base;
  if (entered.lineage.size() > 1) report.before = (entered.lineage.end() - 2)->generation;
  for (const ShardDigest& entry : shard_digests) {  // one that was not compared is the copy of another's
    if (whole && shards.contains(entry.shard)) report.shards.push_back(entry);
  }
  out.push_back(to_leader(report));
}

// ---- plans, lessons, saves

void MemberCore::State::on(const PlanNumber& plan, MemberActions& out) {
  plan_known = std::max(plan_known, plan.plan);
  out.push_back(Forward{plan});
}

void MemberCore::State::on(const Proceed& proceed, MemberActions& out) {
  plan_served = std::max(plan_served, proceed.plan);
  if (plan_waiting != 0 && plan_waiting <= proceed.plan) plan_waiting = 0;
  learn_until.reset();
  out.push_back(Forward{proceed});
}

void MemberCore::State::on(const Learn& learn, MemberActions& out) {
  if (entered.rank_of(id) && !revoked) return;
  hold_none();
  lesson = learn;
  known = learn.view;
  learn_until.reset();
  plan_waiting = 0;
  out.push_back(Forward{learn});
}

void MemberCore::State::on(const LearnUntil& until, MemberActions& out) {
  if (!lesson) return;
  learn_until = until.version;
  out.push_back(Forward{until});
}

// For a learner the lesson failed or was cancelled: what it copied is not kept up to date any more. A learner
// that is already installing its first view has learnt enough.
void MemberCore::State::on(const LessonOver& over, MemberActions& out) {
  if (lesson && lesson->lesson == over.lesson && !pending) {
    lesson.reset();
    learn_until.reset();
    plan_waiting = 0;
    hold_none();
  }
  out.push_back(Forward{over});
}

void MemberCore::State::on(const SaveOpen& open, MemberActions& out) {
  SaveOpen save = open;
  if (save.stop) stop_at = save.version;
  if (save.all_of.counter != 0) {
    if (known.generation != save.all_of)
      return out.push_back(to_leader(SaveVote{.save = save.save, .why = "its view is not known here"}));
    for (const Member& member : known.members) save.participants.push_back(member.id);
  }
  if (save.tier == Tier::kShared) saves_under_way[save.save] = save.version;
  out.push_back(Forward{std::move(save)});
}

void MemberCore::State::on(const SaveClosed& closed, MemberActions& out) {
  const bool of_this_branch = saves_under_way.erase(closed.save) > 0;
  if (closed.durable && of_this_branch) durable = std::max(durable, closed.version);
  out.push_back(Forward{closed});
}

// A part is written from bytes that are compared with the others', or will be, as the save's are: a version
// of the same number that was computed again after a fallback belongs to another save.
std::string MemberCore::State::why_not_rewrite(const SaveRewrite& wanted) const {
  if (update_open || install_open || install_due || torn || version == kNoVersion)
    return "no whole version is held";
  if (!limits.rules.rewrites_checked) return "";
  if (lesson || version != wanted.version)
    return "version " + std::to_string(wanted.version) + " is not held any more, or not yet";
  const auto opened = std::ranges::find(entered.lineage, wanted.opened_in, &LineageEntry::generation);
  if (opened == entered.lineage.end()) return "the version held is not of the save's history";
  const bool fell_back = std::any_of(opened + 1, entered.lineage.end(),
                                     [&](const LineageEntry& later) { return later.base < wanted.version; });
  if (fell_back) return "the version held was computed again since";
  const bool has_shards = std::ranges::all_of(wanted.shards, [&](uint32_t s) { return shards.contains(s); });
  return has_shards ? "" : "not all shards of the part are held";
}

// ---- permits

std::string MemberCore::State::refusal_of_view(const Generation& generation) const {
  if (ended) return "the run is over: " + ended->why;
  if (frozen() && limits.rules.frozen_refuses) return "frozen: the leader is lost";
  const bool by_lesson = lesson && generation == lesson->view.generation && !pending;
  if (by_lesson) return "";
  if (generation != entered.generation) return "the gradients belong to another view";
  if (revoked && limits.rules.refuse_after_report) return "the view is revoked";
  if (pending && limits.rules.refuse_after_report) return "the next view is being formed";
  return "";
}

std::string MemberCore::State::refusal(const Generation& generation, Version of) const {
  if (std::string why = refusal_of_view(generation); !why.empty()) return why;
  if (update_open || install_open) return "a scope is already open";
  if (install_due || version == kNoVersion) return "the view's base is not installed yet";
  if (of != version) return "the gradients are of version " + std::to_string(of);
  if (!base_confirmed && !lesson && !catching_up)
    return "the members' states at the view's base are still compared";
  if (plan_waiting != 0) return "waiting at a planned boundary";
  if (learn_until && version >= *learn_until) return "the lesson ends at this version";
  if (stop_at && version >= *stop_at && limits.rules.stop_bounds_permits)
    return "a stop-save holds this version";
  const bool stop_ahead = stop_at && version < *stop_at;
  if (reported && !stop_ahead && limits.rules.refuse_after_report) return "this version was reported";
  return "";
}

// ---- the public face

MemberCore::MemberCore(MemberId id, MemberLimits limits) : state_(std::make_shared<State>()) {
  state_->id = id;
  state_->limits = limits;
}

MemberActions MemberCore::receive(Instant now, const Message& message) {
  MemberActions out;
  state_->now = now;
  if (state_->ended) return out;
  std::visit([&](const auto& content) { state_->on(content, out); }, message);
  return out;
}

MemberActions MemberCore::control_lost(Instant now, const std::string& why) {
  MemberActions out;
  state_->now = now;
  state_->end(kExitRequeue, why, out);
  return out;
}

MemberActions MemberCore::update_abandoned(Instant now, const std::string& why) {
  if (!state_->update_open) return {};
  return broken(now, why);
}

MemberActions MemberCore::broken(Instant now, const std::string& why) {
  MemberActions out;
  State& state = *state_;
  state.now = now;
  if (state.ended) return out;
  state.update_open = state.install_open = false;
  state.hold_none();
  state.torn = true;
  state.answer(out);
  state.answer_rescue(out);
  out.push_back(state.to_leader(Leaving{kExitFailed, kNoVersion, why}));
  state.end(kExitFailed, why, out);
  return out;
}

MemberActions MemberCore::tick(Instant now) {
  MemberActions out;
  state_->now = now;
  if (now >= state_->tear_at && !state_->torn) {
    state_->torn = true;
    ++state_->held;
    state_->forget_digests();
    out.push_back(state_->event(EventKind::kLog, "the update scope stayed open: the version is torn"));
    state_->answer(out);
  }
  return out;
}

Instant MemberCore::next_deadline() const { return state_->tear_at; }

MemberActions MemberCore::started(Version version, const Digest& digest, Lineage lineage, Version durable) {
  MemberActions out;
  State& state = *state_;
  if (state.revoked || state.pending || state.ended || state.update_open || state.version != kNoVersion)
    return out;
  const Generation generation = state.entered.generation;
  state.hold(version, generation);
  const std::vector<uint32_t> mine = state.entered.shards_of(state.id);
  state.arrived = {mine.begin(), mine.end()};
  if (mine.empty()) state.digest = digest;               // else those of the shards are wanted with it
  state.base_told = state.entered.shards.shards() == 0;  // Started tells of what all hold
  state.durable = durable;
  state.entered.base = version;
  state.entered.lineage = lineage;
  state.entered.lineage.push_back({generation, version});
  if (state.known.generation == generation) state.known = state.entered;
  out.push_back(state.to_leader(Started{generation, version, digest, std::move(lineage), durable}));
  state.tell_base(out);
  return out;
}

MemberActions MemberCore::digest_ready(const ComputeDigest& asked, const Digest& digest,
                                       std::vector<ShardDigest> shards) {
  MemberActions out;
  if (asked.held != state_->held || state_->update_open || state_->install_open) return out;
  state_->digest = digest;
  state_->shard_digests = std::move(shards);
  state_->tell_base(out);
  state_->answer_rescue(out);
  return out;
}

MemberActions MemberCore::formed(Generation generation) {
  MemberActions out;
  if (!state_->pending || state_->pending->view.generation != generation || state_->formed) return out;
  state_->formed = true;
  out.push_back(state_->to_leader(Ready{generation, state_->pending->attempt}));
  return out;
}

MemberActions MemberCore::failed(Generation generation, std::vector<MemberId> suspects, std::string why) {
  MemberActions out;
  if (generation != state_->newest() || state_->ended) return out;
  if (!state_->pending && state_->revoked) return out;  // the failure is the revocation's own doing
  out.push_back(state_->to_leader(Suspect{generation, std::move(suspects), std::move(why)}));
  return out;
}

Permit MemberCore::open_install(Generation generation) {
  State& state = *state_;
  std::string why = state.refusal_of_view(generation);
  if (why.empty() && state.reported && state.limits.rules.refuse_after_report && !state.stop_at) {
    why = "this version was reported";
  }
  if (why.empty() && (state.update_open || state.install_open)) why = "a scope is still open";
  if (why.empty() && !state.install_due && !state.lesson) why = "nothing is to be installed";
  if (!why.empty()) return {false, why};
  state.install_open = true;
  return {true, ""};
}

MemberActions MemberCore::state_installed(Instant now, Version version) {
  MemberActions out;
  State& state = *state_;
  state.now = now;
  if (!state.install_open) return out;
  state.install_open = false;
  const bool reported_torn = state.torn && state.asked && state.answered;  // the leader has counted it out
  if (!std::exchange(state.scope_void, false) && !reported_torn) {
    state.torn = false;
    state.hold(version, state.lesson ? state.lesson->view.generation : state.entered.generation);
    state.arrived.merge(state.awaited);
    state.awaited.clear();
    state.install_due = false;
  }
  state.answer(out);
  state.answer_rescue(out);
  state.tell_base(out);
  return out;
}

bool MemberCore::install_due() const { return state_->install_due; }
bool MemberCore::catching_up() const { return state_->catching_up; }
bool MemberCore::keeps_gradient() const { return state_->gradient_in.counter != 0; }

Permit MemberCore::open_update(Generation generation, Version version) {
  std::string why = state_->refusal(generation, version);
  if (!why.empty()) return {false, std::move(why)};
  state_->update_open = true;
  state_->update_is_fetched = state_->catching_up;
  return {true, ""};
}

MemberActions MemberCore::update_closed(Instant now, bool keeps_gradient) {
  MemberActions out;
  State& state = *state_;
  state.now = now;
  if (!state.update_open) return out;
  state.update_open = false;
  const Generation in = std::exchange(state.catching_up, false) ? state.entered.generation : state.state_in;
  if (!std::exchange(state.scope_void, false) && !state.torn) {
    state.drop_shards_of_others();
    state.hold(state.version + 1, in);
    if (keeps_gradient && !state.update_is_fetched && !state.lesson) state.gradient_in = in;
  }
  state.answer(out);
  state.answer_rescue(out);
  state.tell_base(out);
  return out;
}

bool MemberCore::update_open() const { return state_->update_open; }
uint64_t MemberCore::plan() const { return state_->plan_known; }
bool MemberCore::boundary_due(uint64_t combined) const { return combined > state_->plan_served; }

MemberActions MemberCore::at_boundary(uint64_t plan, Version version) {
  MemberActions out;
  State& state = *state_;
  if (state.revoked || state.pending || state.ended) return out;
  state.plan_known = std::max(state.plan_known, plan);
  state.plan_served = std::max(state.plan_served, plan);
  state.plan_waiting = plan;
  const Generation generation = state.lesson ? state.lesson->view.generation : state.entered.generation;
  out.push_back(state.to_leader(AtBoundary{generation, plan, version}));
  return out;
}

bool MemberCore::waiting_at_boundary() const { return state_->plan_waiting != 0; }
std::string MemberCore::why_not_rewrite(const SaveRewrite& wanted) const {
  return state_->ended ? "the run is over" : state_->why_not_rewrite(wanted);
}
Version MemberCore::version() const { return state_->torn ? kNoVersion : state_->version; }
std::vector<uint32_t> MemberCore::shards() const {
  if (state_->torn) return {};
  return {state_->shards.begin(), state_->shards.end()};
}
std::vector<uint32_t> MemberCore::kept_shards() const {
  std::set<uint32_t> kept = state_->shards;
  kept.insert(state_->arrived.begin(), state_->arrived.end());
  return {kept.begin(), kept.end()};
}
const View& MemberCore::view() const { return state_->entered; }
bool MemberCore::revoked() const { return state_->revoked; }

bool MemberCore::is_forming(Generation generation) const {
  return !state_->ended && state_->pending && state_->pending->view.generation == generation;
}

bool MemberCore::may_run() const {
  if (state_->frozen() || state_->ended || state_->pending) return false;
  if (state_->lesson) return true;
  return state_->entered.generation.counter != 0 && !state_->revoked;
}

bool MemberCore::frozen() const { return state_->frozen(); }

bool MemberCore::learning() const { return state_->lesson.has_value(); }

std::optional<Version> MemberCore::version_limit() const {
  return state_->stop_at ? state_->stop_at : state_->learn_until;
}

std::optional<LeaveLoop> MemberCore::ended() const { return state_->ended; }

}  // namespace muster::control
