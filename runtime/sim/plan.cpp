#include "runtime/sim/plan.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <optional>
#include <queue>
#include <set>
#include <string>
#include <utility>

#include "runtime/control/save_interval.h"
#include "runtime/control/transfer_time.h"

namespace muster::sim {
namespace {

constexpr double kForever = 1e300;
constexpr double kSavesMax = 1e6;
constexpr double kStepsMax = 1e15;
constexpr double kFirstLook = 0.125;  // seconds: SavePace believes a step's length after eight and a second

Duration to_duration(double seconds) { return static_cast<Duration>(std::min(seconds, 9e9) * 1e9); }

}  // namespace

const char* name_of(Cause cause) {
  static constexpr const char* kNames[kCauses] = {
      "waiting for nodes", "restart", "rollback",    "repeated step", "detection", "view change",
      "leader change",     "frozen",  "join, drain", "saves",         "stop-save"};
  return kNames[static_cast<size_t>(cause)];
}

const char* name_of(control::NoticePlan::Kind kind) {
  static constexpr const char* kNames[kNoticePlans] = {"shrink", "full save", "hand over", "finish save",
                                                       "too late"};
  return kNames[static_cast<size_t>(kind)];
}

namespace {

// One replay. The job waits for nodes, or pauses for some cause, or trains.
class Replay {
 public:
  Replay(const Trace& trace, const PlanOptions& options)
      : trace_(trace), options_(options), nodes_(trace.nodes.size()), quarantine_(options.limits.quarantine) {
    make_timeline();
    new_launch();
  }

  // Nothing: more saves than kSavesMax.
  std::optional<PlanReport> run() {
    size_t next = 0;
    while (turns_ <= kSavesMax) {
      const double event_at = next < timeline_.size() ? timeline_[next].at : kForever;
      const double arrival_at = arrivals_.empty() ? kForever : arrivals_.top().at;
      const double at = std::min({event_at, arrival_at, form_at_, release_at_});
      if (at > trace_.end) {
        advance(trace_.end);
        break;
      }
      advance(at);
      // All that happens at one moment makes one view.
      for (; next < timeline_.size() && timeline_[next].at == at; ++next) apply(timeline_[next]);
      for (; !arrivals_.empty() && arrivals_.top().at == at; arrivals_.pop()) arrive(arrivals_.top());
      settle(at);
    }
    if (turns_ > kSavesMax) return std::nullopt;
    return finish();
  }

 private:
  struct Happening {
    double at;
    enum Kind { kAdd, kNotice, kRemove } kind;
    uint32_t node;
  };
  struct Node {
    enum {
      kAbsent,
      kStarting,
      kReady,
      kLearning,
      kLeaving
    } phase = kAbsent;    // ready: idle, level, or in the world
    uint32_t ticket = 0;  // an arrival with an older one is void
  };
  struct Arrival {  // the end of starting or learning
    double at;
    uint32_t node;
    uint32_t ticket;
    bool operator>(const Arrival& other) const { return at > other.at; }
  };
  struct Pause {
    Cause cause;
    double left_s;
  };
  struct Mark {  // what a save holds
    double useful_s = 0;
    double steps = 0;
  };
  enum class Job { kQueued, kForming, kRunning };

  // ---- what the trace and the options say

  // A notice comes before each removal, where there are any, but not before the node. What happens at one
  // moment keeps the trace's order: a node may go and come again at once.
  void make_timeline() {
    std::vector<double> added(trace_.nodes.size());
    for (const TraceEvent& event : trace_.events) {
      if (event.add) added[event.node] = event.at;
      if (!event.add && notice_s() > 0)
        timeline_.push_back(
            {std::max(event.at - notice_s(), added[event.node]), Happening::kNotice, event.node});
      timeline_.push_back({event.at, event.add ? Happening::kAdd : Happening::kRemove, event.node});
    }
    std::ranges::stable_sort(timeline_, {}, &Happening::at);
  }
  // From when it is acted on.
  double notice_s() const { return std::min(options_.notice_s, options_.notice_lead_s); }

  // The rank that has most lanes is waited for; as assign_lanes deals them (collectives/lane_tree.h), no rank
  // has more than it must.
  double step_s() const {
    const auto ranks = [&](size_t nodes) { return static_cast<double>(nodes) * options_.ranks_per_node; };
    const double lanes = options_.lanes;
    const double share =
        lanes > 0 ? std::ceil(lanes / ranks(world_.size())) / std::ceil(lanes / ranks(options_.nodes_max))
                  : ranks(options_.nodes_max) / ranks(world_.size());
    return options_.step_s * share + options_.reduce_s;
  }
  double write_s() const { return options_.state_bytes / options_.storage_bytes_per_s; }
  double save_s() const { return options_.stall_s + write_s(); }  // from its opening to its manifest
  // Each rank of a node fetches the state for itself; and where learners are more than nodes that teach,
  // these share their network.
  double lesson_s() const {
    const double pupils =
        std::max(1.0, std::ceil(static_cast<double>(learning_.size()) / static_cast<double>(world_.size())));
    return options_.state_bytes * options_.ranks_per_node * pupils /
           (options_.network_bytes_per_s * options_.lesson_share);
  }
  bool is_paced() const { return options_.interval_s <= 0; }
  Instant clock() const { return to_duration(now_); }

  // ---- time

  double& lost(Cause cause) { return report_.lost_s[static_cast<size_t>(cause)]; }
  void pause(Cause cause, double for_s) {
    if (for_s > 0) pauses_.push_back({cause, for_s});
  }
  double paused_s() const {
    double sum = 0;
    for (const Pause& one : pauses_) sum += one.left_s;
    return sum;
  }

  // Books the time up to `at`.
  void advance(double at) {
    count_nodes(at);
    while (now_ < at && turns_ <= kSavesMax) {
      if (!pauses_.empty()) {
        Pause& first = pauses_.front();
        const double part = std::min(first.left_s, at - now_);
        first.left_s -= part;
        book(first.cause, part);
        if (first.left_s <= 0) pauses_.erase(pauses_.begin());
      } else if (world_.empty()) {
        book(Cause::kWaiting, at - now_);
      } else {
        train(at);
      }
    }
  }
  void count_nodes(double at) {
    const double part = std::max(0.0, at - now_);
    report_.node_hours += static_cast<double>(present_) * part / 3600;
    available_s_ += std::min<double>(static_cast<double>(present_), options_.nodes_max) * part;
  }
  // A rest too small to be added to the time is over.
  void pass(double part) {
    now_ = part > 0 && now_ + part > now_ ? now_ + part : std::nextafter(now_, kForever);
  }
  void book(Cause cause, double part) {
    lost(cause) += part;
    pass(part);
  }

  // Up to the next save, or `at`.
  void train(double at) {
    look_at_save();
    const double step = step_s();
    const double rest = until_due(step);
    double part = std::min(at - now_, rest);
    if (pending_at_ > now_) part = std::min(part, pending_at_ - now_);
    const bool due = part >= rest || now_ + rest <= now_ + part;
    world_seconds_ += static_cast<double>(world_.size()) * part;
    trained_s_ += part;
    report_.useful_s += part;
    since_save_ += part;
    note_steps(part, step);
    pass(part);
    if (!due) return;
    ++turns_;
    if (is_paced() && !due_steps_) {  // looks again whether the length of a step is known
      look_at_ = report_.steps + std::max(1.0, kFirstLook / step);
      pace_saves();
    } else {
      save();
    }
  }
  // Seconds of training.
  double until_due(double step) const {
    if (!is_paced()) return options_.interval_s - since_save_;
    return std::max(0.0, due_steps_.value_or(look_at_) - report_.steps) * step;
  }
  // Tells the pace of the first and the last step that ends within `part` seconds from now.
  void note_steps(double part, double step) {
    const double before = report_.steps;
    report_.steps += part / step;
    constexpr double kRounding = 1e-6;  // of a step
    const double first = std::floor(before + kRounding) + 1;
    const double last = std::floor(report_.steps + kRounding);
    for (const double version : {first, last}) {
      if (!is_paced() || version > last) continue;
      pace_->progressed(to_duration(now_ + (version - before) * step),
                        static_cast<control::Version>(version));
    }
  }

  // ---- saves

  // Staged now, durable when it is written: a loss before that falls back to the one before.
  void save() {
    since_save_ = 0;
    if (pending_at_ < kForever) {
      ++report_.saves_skipped;
    } else {
      pending_ = Mark{report_.useful_s, report_.steps};
      pending_at_ = now_ + save_s();
      pace_->save_opened(clock());
      pause(Cause::kSaves, options_.stall_s);
    }
    pace_saves();
  }
  void look_at_save() {
    if (now_ < pending_at_) return;
    durable_ = pending_;
    ++report_.saves;
    speed_.add({static_cast<uint64_t>(options_.state_bytes), to_duration(save_s())});
    pace_->save_closed(to_duration(pending_at_), to_duration(options_.stall_s), true);
    pending_at_ = kForever;
    pace_saves();
  }
  // As the leader paces them, from what it has measured.
  void pace_saves() {
    if (!is_paced()) return;
    const auto facts = pace_->facts();
    if (!facts) return due_steps_.reset();
    const double saved = std::max(durable_.steps, pending_at_ < kForever ? pending_.steps : 0);
    const auto every = static_cast<double>(control::decide_save_interval(*facts).steps);
    due_steps_ = std::max(saved + every, std::floor(report_.steps + 1e-6) + 1);
  }
  void all_is_saved() { durable_ = Mark{report_.useful_s, report_.steps}; }

  // ---- nodes

  void apply(const Happening& what) {
    Node& node = nodes_[what.node];
    switch (what.kind) {
      case Happening::kAdd:
        ++present_;
        node.phase = Node::kStarting;
        arrivals_.push({what.at + options_.start_s, what.node, ++node.ticket});
        return;
      case Happening::kNotice:
        if (is_in_world(what.node)) told_.push_back(what.node);
        leave(what.node);
        node.phase = Node::kLeaving;
        return;
      case Happening::kRemove:
        --present_;
        if (is_in_world(what.node)) going_.push_back(what.node);
        leave(what.node);
        node.phase = Node::kAbsent;
        return;
    }
  }
  // And not told or lost at this moment, as another that comes under the same name is not.
  bool is_in_world(uint32_t id) const { return world_.contains(id) && nodes_[id].phase == Node::kReady; }
  // From wherever it was beside the world.
  void leave(uint32_t id) {
    Node& node = nodes_[id];
    ++node.ticket;
    idle_.erase(id);
    held_.erase(id);
    learning_.erase(id);
    std::erase(level_, id);
  }

  void arrive(const Arrival& arrival) {
    Node& node = nodes_[arrival.node];
    if (node.ticket != arrival.ticket) return;
    const bool has_learnt = std::exchange(node.phase, Node::kReady) == Node::kLearning;
    if (!has_learnt) return void(idle_.insert(arrival.node));
    learning_.erase(arrival.node);
    level_.push_back(arrival.node);
  }

  // Nodes that could run the program, but for those that are on their way out.
  size_t able() const {
    return world_.size() + learning_.size() + level_.size() + idle_.size() + held_.size();
  }

  void settle(double at) {
    if (release_at_ <= at) look_again();
    if (!told_.empty()) drain();
    if (!going_.empty()) lose();
    if (job_ == Job::kForming && is_full()) form_at_ = std::min(form_at_, now_ + paused_s());
    if (job_ == Job::kForming && form_at_ <= at) form();
    if (job_ == Job::kQueued && idle_.size() >= options_.nodes_min) start_launch();
    if (job_ != Job::kRunning) return;
    if (!level_.empty()) take_level();
    if (options_.elastic) teach_idle();
  }

  void teach_idle() {
    if (!held_.empty() && able() - held_.size() < options_.nodes_min) look_again();
    std::vector<uint32_t> pupils;
    size_t taught = world_.size() + learning_.size();
    while (!idle_.empty() && taught < options_.nodes_max) {
      const uint32_t id = *idle_.begin();
      idle_.erase(idle_.begin());
      const bool needed = taught < options_.nodes_min;
      if (any_quarantine_ && !needed && quarantine_.holds(clock(), trace_.nodes[id])) {
        held_.insert(id);
        continue;
      }
      pupils.push_back(id);
      ++taught;
    }
    learning_.insert(pupils.begin(), pupils.end());
    for (uint32_t id : pupils) {
      nodes_[id].phase = Node::kLearning;
      arrivals_.push({now_ + lesson_s(), id, ++nodes_[id].ticket});
    }
    if (!held_.empty())
      release_at_ = std::max(std::nextafter(now_, kForever), seconds(quarantine_.next_release(clock())));
  }
  // Whether those in quarantine are still held, or are needed.
  void look_again() {
    release_at_ = kForever;
    idle_.merge(held_);
  }

  void take_level() {
    world_.insert(level_.begin(), level_.end());
    level_.clear();
    ++report_.joins;
    pause(Cause::kJoins, options_.join_s);
    view_begins();
  }
  void view_begins() {
    pace_->view_begins(clock(), static_cast<uint32_t>(world_.size()));
    pace_saves();
  }

  // ---- launches

  void new_launch() {
    quarantine_ = control::Quarantine(options_.limits.quarantine);
    any_quarantine_ = false;
    pace_.emplace(seconds(options_.limits.node_mtbf));
    speed_ = {};
    due_steps_.reset();
    look_at_ = 0;
    pending_at_ = kForever;
  }

  void start_launch() {
    job_ = Job::kForming;
    if (started_) pause(Cause::kRestart, options_.restart_s);
    started_ = true;
    wait_for_more();
  }
  void wait_for_more() {
    form_at_ = now_ + paused_s() + (is_full() ? 0 : seconds(options_.limits.form_wait));
  }
  // As settle_forming: nobody else is wanted.
  bool is_full() const {
    if (idle_.size() < options_.nodes_max) return false;
    const auto healthy = [&](uint32_t id) { return !quarantine_.holds(clock(), trace_.nodes[id]); };
    return !any_quarantine_ || std::ranges::count_if(idle_, healthy) >= options_.nodes_max;
  }

  // As form_first_view: the quarantined come last, and only if they are needed.
  void form() {
    form_at_ = kForever;
    job_ = Job::kQueued;
    if (idle_.size() < options_.nodes_min) return;
    job_ = Job::kRunning;
    std::swap(idle_, world_);
    if (any_quarantine_) leave_out_quarantined();
    while (world_.size() > options_.nodes_max) leave_out(std::prev(world_.end()));
    leader_ = *world_.begin();
    if (durable_.steps > 0) pause(Cause::kRestart, write_s());
    since_save_ = 0;
    view_begins();
  }

  std::set<uint32_t>::iterator leave_out(std::set<uint32_t>::iterator node) {
    idle_.insert(*node);
    return world_.erase(node);
  }
  void leave_out_quarantined() {
    for (auto node = world_.begin(); node != world_.end() && world_.size() > options_.nodes_min;)
      node = quarantine_.holds(clock(), trace_.nodes[*node]) ? leave_out(node) : std::next(node);
  }

  // The end of this launch: what is left of the world waits for the next.
  void requeue() {
    ++report_.requeues;
    disband();
    job_ = Job::kQueued;
    new_launch();
  }
  void disband() {
    for (uint32_t id : learning_) {
      ++nodes_[id].ticket;
      nodes_[id].phase = Node::kReady;
    }
    idle_.insert(learning_.begin(), learning_.end());
    idle_.insert(level_.begin(), level_.end());
    learning_.clear();
    level_.clear();
    look_again();
    if (idle_.size() < world_.size()) std::swap(idle_, world_);  // a large world is not gone through
    idle_.merge(world_);
    world_.clear();
  }

  // ---- losses

  bool in_view_change() const {
    return std::ranges::any_of(pauses_, [](const Pause& one) { return is_of_view_change(one.cause); });
  }
  static bool is_of_view_change(Cause cause) {
    return cause == Cause::kDetection || cause == Cause::kViewChange || cause == Cause::kLeaderChange;
  }

  void lose() {
    ++report_.losses;
    report_.nodes_lost += going_.size();
    if (pauses_.empty()) repeat_step();
    if (!in_view_change()) {  // else it begins anew, and its silent ones are silent still
      view_nodes_ = world_.size();
      silent_ = 0;
    }
    std::erase_if(pauses_, [](const Pause& one) { return is_of_view_change(one.cause); });
    silent_ += going_.size();
    pace_->nodes_lost(going_.size());
    for (uint32_t id : going_) {
      world_.erase(id);
      if (!quarantine_.lost(clock(), trace_.nodes[id])) continue;
      ++report_.quarantines;
      any_quarantine_ = true;
    }
    const bool leader_lost = std::ranges::find(going_, leader_) != going_.end();
    const bool others_lost = going_.size() > 1;
    going_.clear();
    go_on_without(leader_lost, others_lost);
  }

  void go_on_without(bool leader_lost, bool others_lost) {
    const bool store_lost = leader_lost && options_.store_on_node;
    if (world_.empty() || !options_.elastic) return begin_anew(store_lost);
    if (store_lost) {
      pauses_.clear();
      return rescue(others_lost);
    }
    pause(Cause::kDetection, options_.detect_s);
    if (leader_lost) {
      pause(Cause::kLeaderChange,
            std::max(0.0, options_.lease_s - options_.detect_s) + seconds(options_.limits.former_wait));
      leader_ = *world_.begin();
    }
    switch (decide().kind) {
      case control::LossDecision::kShrink:
      case control::LossDecision::kWait:
        break;
      case control::LossDecision::kFreeze:
      case control::LossDecision::kEndRequeue:
        pause(Cause::kFrozen, std::max(seconds(options_.node_limits.frozen_timeout), save_s()));
        all_is_saved();
        return requeue();
    }
    pause(Cause::kViewChange, options_.view_change_s);
    view_begins();
    if (able() < options_.nodes_min) stop(save_s());
  }

  // Rule 11, with the waiting that it asks for.
  control::LossDecision decide() {
    const auto asked = [&](Duration silent_for) {
      return control::decide_loss(static_cast<uint32_t>(view_nodes_), static_cast<uint32_t>(silent_),
                                  options_.store_on_node, silent_for, options_.limits);
    };
    const control::LossDecision first = asked(to_duration(options_.detect_s));
    if (first.kind != control::LossDecision::kWait) return first;
    const Duration wait =
        options_.store_on_node ? options_.limits.partition_wait : options_.limits.resign_wait;
    pause(Cause::kDetection, std::max(0.0, seconds(wait) - options_.detect_s));
    return asked(wait);
  }

  // Rule 12: those who are left save what they hold. Where others are lost with the leader, they are waited
  // for; and where nothing tells that it is gone for good, so is the leader.
  void rescue(bool others_lost) {
    const auto& limits = options_.node_limits;
    const double gather_s = others_lost ? seconds(options_.rescue_limits.gather) : 0;
    const double unheard_s = seconds(std::max(limits.leader_silence, limits.rescue_after));
    pause(Cause::kDetection,
          options_.hosts_vanish ? std::max(unheard_s, options_.detect_s) : options_.detect_s);
    pause(Cause::kDetection, gather_s);
    pause(Cause::kStopSaves, save_s());
    if (options_.hosts_vanish)
      pause(Cause::kFrozen, std::max(0.0, seconds(limits.partition_wait) - gather_s - save_s()));
    all_is_saved();
    requeue();
  }

  // Nobody holds the state any more, or all are killed.
  void begin_anew(bool store_lost) {
    look_at_save();
    pauses_.clear();
    roll_back();
    const bool reforms = options_.elastic && !store_lost && able() >= options_.nodes_min;
    if (!reforms) return requeue();
    pause(Cause::kDetection, options_.detect_s);
    pending_at_ = kForever;
    disband();
    job_ = Job::kForming;
    wait_for_more();
  }

  // All is saved, and the launch ends.
  void stop(double for_s) {
    pause(Cause::kStopSaves, for_s);
    all_is_saved();
    requeue();
  }

  // The step in flight was for nothing.
  void repeat_step() {
    const double fraction = report_.steps - std::floor(report_.steps);
    const double part = std::min(fraction * step_s(), report_.useful_s);
    report_.steps -= fraction;
    report_.useful_s -= part;
    lost(Cause::kRepeated) += part;
  }

  void roll_back() {
    ++report_.rollbacks;
    lost(Cause::kRollback) += std::max(0.0, report_.useful_s - durable_.useful_s);
    report_.useful_s = std::min(report_.useful_s, durable_.useful_s);
    report_.steps = std::min(report_.steps, durable_.steps);
  }

  // ---- notices

  void drain() {
    look_at_save();
    const control::NoticePlan plan = plan_drain();
    ++report_.notices[static_cast<size_t>(plan.kind)];
    const bool leader_leaves = std::ranges::find(told_, leader_) != told_.end();
    const bool others_leave = told_.size() > 1;
    for (uint32_t id : told_) world_.erase(id);
    told_.clear();
    if (plan.kind != control::NoticePlan::kShrink) return stop_by(plan, leader_leaves, others_leave);
    if (leader_leaves) {
      leader_ = *world_.begin();
      if (options_.store_on_node) ++report_.store_moves;
      pause(Cause::kJoins, options_.join_s);  // a boundary of its own
    }
    pause(Cause::kJoins, options_.join_s);
    view_begins();
  }

  control::NoticePlan plan_drain() const {
    control::NoticeFacts facts;
    facts.left = to_duration(notice_s());
    facts.state_bytes = static_cast<uint64_t>(options_.state_bytes);
    facts.speed = speed_;
    facts.newest_durable = durable_.steps > 0 ? version_of(durable_) : control::kNoVersion;
    if (pending_at_ < kForever)
      facts.in_flight = {version_of(pending_), to_duration(now_ - (pending_at_ - save_s()))};
    const control::NoticePlan by_all = control::plan_for_notice(facts);
    if (!options_.elastic) return by_all;  // a notice to the job
    const size_t staying = world_.size() - told_.size();
    const bool enough = staying > 0 && able() - told_.size() >= options_.nodes_min;
    const bool store_leaves = options_.store_on_node && std::ranges::find(told_, leader_) != told_.end();
    const Duration move =
        std::max(options_.limits.move_reserve, by_all.needs >= 0 ? by_all.needs : facts.left / 2);
    if (store_leaves && (!enough || facts.left <= move)) return by_all;
    facts.nodes_staying = enough ? static_cast<uint32_t>(able() - told_.size()) : 0;
    facts.nodes_holding = enough ? 0 : static_cast<uint32_t>(staying);
    return control::plan_for_notice(facts);
  }
  static control::Version version_of(const Mark& mark) { return static_cast<control::Version>(mark.steps); }

  void stop_by(const control::NoticePlan& plan, bool leader_leaves, bool others_leave) {
    using control::NoticePlan;
    const double first = pending_at_ < kForever ? pending_at_ - now_ : 0;
    pauses_.clear();
    if (plan.kind == NoticePlan::kFinishSave) return end_with_newest_save(first);
    if (plan.kind == NoticePlan::kHandOver || first + save_s() <= notice_s()) return stop(first + save_s());
    if (!options_.elastic || world_.empty()) return end_with_newest_save(notice_s());
    pause(Cause::kStopSaves, notice_s());
    cut_off(leader_leaves, others_leave);
  }
  // One in flight counts if it can be finished.
  void end_with_newest_save(double within_s) {
    pause(Cause::kStopSaves, within_s);
    if (pending_at_ - now_ <= within_s) durable_ = pending_;
    roll_back();
    requeue();
  }
  // Those who stay have made no step since, and hold the state still: they save it without the others.
  void cut_off(bool leader_leaves, bool others_leave) {
    if (leader_leaves && options_.store_on_node) return rescue(others_leave);
    pause(Cause::kDetection, options_.detect_s);
    stop(save_s());
  }

  PlanReport finish() {
    report_.total_s = trace_.end;
    report_.goodput = report_.useful_s / trace_.end;
    const double at_full = report_.steps * (options_.step_s + options_.reduce_s);
    report_.slower_s = std::max(0.0, report_.useful_s - at_full);
    report_.full_rate = at_full / trace_.end;
    report_.availability = available_s_ / (options_.nodes_max * trace_.end);
    report_.cost = report_.node_hours * options_.price_per_node_hour;
    report_.cost_per_1000_steps = report_.steps > 0 ? 1000 * report_.cost / report_.steps : 0;
    report_.mean_world = trained_s_ > 0 ? world_seconds_ / trained_s_ : 0;
    report_.mean_step_s = report_.steps > 0 ? report_.useful_s / report_.steps : 0;
    return report_;
  }

  const Trace& trace_;
  const PlanOptions& options_;
  PlanReport report_;
  std::vector<Happening> timeline_;
  std::vector<Node> nodes_;
  std::set<uint32_t> idle_;
  std::set<uint32_t> held_;  // idle, and in quarantine when last looked at
  std::set<uint32_t> world_;
  std::set<uint32_t> learning_;
  std::vector<uint32_t> level_;  // have learnt, and are in the next view
  std::vector<uint32_t> going_;  // of the world, lost at this moment
  std::vector<uint32_t> told_;   // of the world, told at this moment that they will go
  std::priority_queue<Arrival, std::vector<Arrival>, std::greater<>> arrivals_;
  std::vector<Pause> pauses_;  // in order
  Job job_ = Job::kQueued;
  uint32_t leader_ = 0;  // its node, which has the store if that is embedded
  size_t present_ = 0;
  size_t view_nodes_ = 0;  // of the view before the change that is under way
  size_t silent_ = 0;      // of these
  bool started_ = false;
  double now_ = 0;
  double form_at_ = kForever;
  double release_at_ = kForever;  // from quarantine
  double since_save_ = 0;         // seconds of training
  double turns_ = 0;    // saves, and looks whether one is due: the work of a replay, beside its events
  double look_at_ = 0;  // steps, where saves are paced and nothing is known yet
  std::optional<double> due_steps_;
  Mark durable_;
  Mark pending_;
  double pending_at_ = kForever;
  control::Quarantine quarantine_;
  bool any_quarantine_ = false;  // in this launch
  std::optional<control::SavePace> pace_;
  control::SaveSpeed speed_;
  double world_seconds_ = 0;
  double available_s_ = 0;
  double trained_s_ = 0;
};

Error misuse(const std::string& what) { return {ErrorCode::kMisuse, what}; }
Error too_many_saves() {
  return misuse("more than a million saves would be made; give a longer --interval, or a shorter trace");
}

// Any number: of a bandwidth that is almost nothing, the time is beyond all integers.
std::string shown(double number) {
  char text[32];
  std::snprintf(text, sizeof text, "%.3g", number);
  return text;
}

Status check_numbers(const PlanOptions& options) {
  const struct {
    const char* name;
    double value;
    bool may_be_0;
  } numbers[] = {{"the step's time", options.step_s, false},
                 {"the network's bandwidth", options.network_bytes_per_s, false},
                 {"the storage's bandwidth", options.storage_bytes_per_s, false},
                 {"the joiners' share of the network", options.lesson_share, false},
                 {"the reduction's time", options.reduce_s, true},
                 {"the state's size", options.state_bytes, true},
                 {"the interval of saves", options.interval_s, true},
                 {"the stall of a save", options.stall_s, true},
                 {"the time to detect a loss", options.detect_s, true},
                 {"the time of a view change", options.view_change_s, true},
                 {"the time of a join", options.join_s, true},
                 {"the time of a node's start", options.start_s, true},
                 {"the time of a restart", options.restart_s, true},
                 {"the time of a notice", options.notice_s, true},
                 {"the time that a notice waits for", options.notice_lead_s, true},
                 {"the leader's lease", options.lease_s, true},
                 {"the price", options.price_per_node_hour, true}};
  for (const auto& [name, value, may_be_0] : numbers) {
    if (!std::isfinite(value) || value < 0 || (value == 0 && !may_be_0))
      return misuse(std::string(name) + (may_be_0 ? " must be a number of 0 or more" : " must be above 0"));
    if (value > 1e18)
      return misuse(std::string(name) + " is larger than anything that exists; mind the unit");
  }
  return ok();
}

Status check(const Trace& trace, const PlanOptions& options) {
  if (options.nodes_min < 1 || options.nodes_max < options.nodes_min || options.nodes_max > kTraceNodesMax)
    return misuse("the world's size must be MIN:MAX nodes with 1 <= MIN <= MAX <= 1000000");
  if (options.ranks_per_node < 1 || options.ranks_per_node > 1024)
    return misuse("a node has 1 to 1024 ranks");
  MUSTER_TRY(check_numbers(options));
  if (options.lesson_share > 1) return misuse("the joiners' share of the network must be 1 at most");
  if (options.lanes > 0 && options.lanes < uint64_t{options.nodes_max} * options.ranks_per_node)
    return misuse("of " + std::to_string(options.lanes) + " lanes not every one of " +
                  std::to_string(uint64_t{options.nodes_max} * options.ranks_per_node) +
                  " ranks gets one; give as many at least, or a smaller MAX");
  const double arrives_s = options.state_bytes / options.network_bytes_per_s;
  const auto bytes = static_cast<uint64_t>(options.state_bytes);
  if (arrives_s > seconds(control::transfer_time(bytes, options.limits.ready_timeout)))
    return misuse(
        "the state would take " + shown(arrives_s) +
        " s to a node, and the runtime gives up what is slower than 32 MB/s; give a faster network");
  const double save_s = options.stall_s + options.state_bytes / options.storage_bytes_per_s;
  if (save_s > seconds(options.limits.save_timeout))
    return misuse("a save would take " + shown(save_s) + " s, and the runtime gives it up after " +
                  std::to_string(options.limits.save_timeout / kSecond) +
                  " s; give a faster storage, or a smaller state");
  if (!(trace.end > 0)) return misuse("everything in the trace is at time 0; say for how long with --hours");
  if (const uint32_t most = most_present(trace); most < options.nodes_min)
    return misuse("there are never more than " + std::to_string(most) + " nodes at once, and MIN is " +
                  std::to_string(options.nodes_min) + ": the job would never start; give a smaller MIN");
  const double steps = trace.end / (options.step_s + options.reduce_s);
  if (steps > kStepsMax)
    return misuse("about " + shown(steps) +
                  " steps would be made, which nobody can count; mind the unit of the step's time");
  if (options.interval_s > 0 && trace.end / options.interval_s > kSavesMax) return too_many_saves();
  return ok();
}

}  // namespace

Result<PlanReport> plan(const Trace& trace, const PlanOptions& options) {
  MUSTER_TRY(check(trace, options));
  std::optional<PlanReport> report = Replay(trace, options).run();
  if (!report) return too_many_saves();
  return *report;
}

// ---- searches

namespace {

// Of those with as many steps as any, but for `slack` of them, the last in the order given.
size_t best_of(const std::vector<Tried>& tried, double slack) {
  double most = 0;
  for (const Tried& one : tried) most = std::max(most, one.report.steps);
  size_t best = 0;
  for (size_t i = 0; i < tried.size(); ++i) {
    if (tried[i].report.steps >= most * (1 - slack)) best = i;
  }
  return best;
}

}  // namespace

Search search_interval(const Trace& trace, PlanOptions options) {
  constexpr int kGrid = 60;
  constexpr double kSlack = 1e-4;
  constexpr double kSavesOfOne = 1e5;
  // Saves are not made two at a time.
  const double took_s = options.stall_s + options.state_bytes / options.storage_bytes_per_s;
  const double low = std::log(std::max({options.step_s, took_s, trace.end / kSavesOfOne}));
  const double high = std::max(low + 1e-3, std::log(std::max(trace.end, 2 * options.step_s)));
  Search search;
  for (int i = 0; i <= kGrid; ++i) {
    options.interval_s = std::exp(low + (high - low) * i / kGrid);
    const auto report = plan(trace, options);
    if (!report.ok()) continue;
    search.tried.push_back({options.interval_s, *report});
    search.matters = search.matters || report->rollbacks > 0;
  }
  if (!search.tried.empty()) search.best = search.tried[best_of(search.tried, kSlack)].value;
  return search;
}

Search search_minimum(const Trace& trace, PlanOptions options) {
  Search search;
  const uint32_t most = std::min(options.nodes_max, most_present(trace));
  const uint32_t stride = std::max<uint32_t>(1, options.nodes_max / 64);
  std::set<uint32_t> candidates{options.nodes_min};
  for (uint32_t candidate = 1; candidate <= most; candidate += stride) candidates.insert(candidate);
  for (const uint32_t candidate : candidates) {
    options.nodes_min = candidate;
    if (auto report = plan(trace, options); report.ok()) search.tried.push_back({double(candidate), *report});
  }
  std::vector<Tried> descending(search.tried.rbegin(), search.tried.rend());
  if (!descending.empty()) search.best = descending[best_of(descending, 0)].value;
  return search;
}

}  // namespace muster::sim
