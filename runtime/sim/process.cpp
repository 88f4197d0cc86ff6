// A worker process: the production MemberCore, and a model of the session and of the program around it.
#include <algorithm>

#include "runtime/sim/world.h"

namespace muster::sim {
namespace {

constexpr Version kSaveEvery = 7;
constexpr Version kLocalSaveEvery = 3;
constexpr Digest kGarbage{0xbad, 0xbad};
constexpr Duration kTransportTimeout = 2 * kSecond;
constexpr int64_t kSlowDisk = 40;

}  // namespace

// ---- plumbing

void World::event_for(MemberId id, Action action) {
  Process& process = *processes.at(id);
  if (!process.alive) return;
  if (process.frozen) {
    process.held.push_back(std::move(action));
  } else {
    action();
  }
}

void World::say(MemberId id, Message message) {
  Process& process = *processes.at(id);
  const size_t index = process.agent;
  const uint32_t local_rank = process.local_rank;
  // One socket, FIFO: delivered before the exit of the process is seen.
  if (const auto* report = std::get_if<Report>(&message)) check_report(process, *report);
  if (const auto* base = std::get_if<BaseDigest>(&message)) check_base_digest(process, *base);
  if (const auto* report = std::get_if<RescueReport>(&message)) check_rescue_report(process, *report);
  Agent& agent = *agents[index];
  if (!agent.alive || agent.slots[local_rank] != id) return;
  agent_event(index, [this, index, local_rank, id, message = std::move(message)] {
    Agent& self = *agents[index];
    if (self.slots[local_rank] != id) return;
    const bool of_rescue = std::holds_alternative<RescueReport>(message) ||
                           std::holds_alternative<SaveVote>(message) ||
                           std::holds_alternative<SavePublished>(message);
    if (of_rescue) rescue_from_member(index, {id, message});
    agent_does(index, self.core->from_worker(agent_now(self), local_rank, message));
  });
}

void World::heartbeat(MemberId id) {
  say(id, Heartbeat{});
  after_for(id, 1500 * kMillisecond, [this, id] { heartbeat(id); });
}

void World::schedule_process(MemberId id) {
  Process& process = *processes.at(id);
  const Instant due = process.core->next_deadline();
  if (!process.alive || due == kNever) return;
  const Instant next = std::max(now + 1, due - process.clock);
  if (process.tick_at > now && process.tick_at <= next) return;
  process.tick_at = next;
  at(next, [this, id, next] {
    if (processes.at(id)->tick_at != next) return;
    event_for(id, [this, id] {
      Process& self = *processes.at(id);
      self.tick_at = kNever;
      process_does(id, self.core->tick(process_now(self)));
    });
  });
}

void World::process_does(MemberId id, const MemberActions& actions) {
  Process& process = *processes.at(id);
  for (const MemberAction& action : actions) {
    if (!process.alive) return;
    if (const auto* send = std::get_if<Send>(&action)) say(id, send->envelope.message);
    if (const auto* revoked = std::get_if<RevokeGroup>(&action)) revoke(process, *revoked);
    if (const auto* form = std::get_if<FormGroup>(&action)) form_group(process, form->install);
    if (const auto* enter = std::get_if<EnterView>(&action)) enter_view(process, *enter);
    if (const auto* digest = std::get_if<ComputeDigest>(&action)) compute_digest(process, *digest);
    if (const auto* end = std::get_if<LeaveLoop>(&action)) leave(process, end->exit_code, end->why);
    if (const auto* message = std::get_if<Forward>(&action)) forward(process, message->message);
  }
  schedule_process(id);
  check_version(process);
  drive(id);
}

int64_t World::disk_slowness() const { return now < disk_slow_until ? kSlowDisk : 1; }

// A bit flips in the memory of one of several holders of a view's base, before it is read: a digest must
// tell.
void World::corrupt_before_digest(Process& process) {
  if (!corruption_wanted || process.writing || process.version == kNoVersion) return;
  const auto same = [&](const auto& entry) {
    const Process& other = *entry.second;
    return other.alive && !other.frozen && !other.writing && other.id != process.id &&
           other.entered == process.entered && other.version == process.version && !other.revoked_since;
  };
  const bool compares_base = !process.revoked_since && !process.core->frozen();
  if (!compares_base || std::none_of(processes.begin(), processes.end(), same)) return;
  corruption_wanted = false;
  corrupted = true;
  trace(named(process.id) + ": a bit of version " + std::to_string(process.version) + " flips");
  // Where it differs from those who held the state before, it is excluded; if it alone did, the others are.
  for (const Member& member : groups.at(process.entered).view.members)
    processes.at(member.id)->evictable = true;
  if (sharding.copies > 1 && random.chance(0.5)) return flip_shard(process);
  process.state.low ^= 1;
}

// The background thread reads the state for a while; what was written meanwhile spoils the digest.
void World::compute_digest(Process& process, const ComputeDigest& asked) {
  const MemberId id = process.id;
  corrupt_before_digest(process);
  const uint64_t writes = process.writes;
  const bool spoiled = process.writing;
  const Duration time = between(100 * kMicrosecond, random.chance(0.1) ? kSecond : 15 * kMillisecond);
  after_for(id, time, [this, id, asked, writes, spoiled] {
    Process& self = *processes.at(id);
    const bool clean = !spoiled && !self.writing && self.writes == writes;
    process_does(
        id, self.core->digest_ready(asked, clean ? self.state : kGarbage, shard_digests(self, asked, clean)));
  });
}

// ---- views

bool World::group_alive(const Group& group) const {
  return group.revoked.empty() && !group.failed &&
         std::all_of(group.view.members.begin(), group.view.members.end(),
                     [&](const Member& member) { return processes.at(member.id)->alive; });
}

// A group forms when every member of the view takes part; each learns of it at its own time.
void World::form_group(Process& process, const Install& install) {
  Group& group = groups[install.view.generation];
  group.view = install.view;
  // Each is told what concerns its node.
  for (const Transfer& transfer : install.transfers) {
    if (std::ranges::find(group.install.transfers, transfer) == group.install.transfers.end())
      group.install.transfers.push_back(transfer);
  }
  for (const ShardMove& move : install.moves) {
    if (std::ranges::find(group.install.moves, move) == group.install.moves.end())
      group.install.moves.push_back(move);
  }
  group.forming.insert(process.id);
  if (group.forming.size() < install.view.members.size() || !group_alive(group)) return;
  const Duration parted = std::max<Duration>(0, data_cut_until(group) - now);
  if (parted > kTransportTimeout) return group_fails(group.view.generation, "a peer cannot be reached");
  for (const Member& member : group.view.members) {
    after_for(member.id, parted + between(kMillisecond, 40 * kMillisecond),
              [this, id = member.id, generation = group.view.generation] {
                member_formed(*processes.at(id), generation);
              });
  }
}

// A target reads its sources for a while; what it got is checked against the digests that they send along.
void World::member_formed(Process& process, Generation generation) {
  const Group& group = groups.at(generation);
  if (group.revoked.contains(process.id)) return;
  const MemberId id = process.id;
  std::vector<MemberId> sources;
  std::set<uint32_t> parts;
  uint32_t parts_of_whole = 0;
  bool gradient = false;
  Duration slowness = 1;
  for (const Transfer& transfer : group.install.transfers) {
    if (transfer.target != id) continue;
    expect(group.view.rank_of(transfer.source).has_value(),
           named(transfer.source) + " is to send its state, and leaves");
    expect(parts.insert(transfer.part).second, named(id) + " is to get a part twice");
    parts_of_whole = transfer.parts;
    sources.push_back(transfer.source);
    gradient = transfer.gradient;
    slowness = std::max<Duration>(slowness, processes.at(transfer.source)->slowness);
  }
  if (sources.empty()) return state_stands(process, generation);
  expect(parts.size() == parts_of_whole, named(id) + " is to get a part from nobody");
  if (sources.size() > 1) ++outcome.sent_in_parts;
  if (gradient) return take_gradient(process, generation, sources, slowness);
  std::vector<uint64_t> writes;
  for (MemberId source : sources) writes.push_back(processes.at(source)->writes);
  if (!options.rules.transfers_are_staged) {  // into the program's memory, piece by piece
    process.state = kGarbage;
    ++process.writes;
  }
  after_for(id, between(kMillisecond, 60 * kMillisecond) * slowness, [this, id, sources, generation, writes] {
    Process& self = *processes.at(id);
    const Group& its = groups.at(generation);
    if (its.revoked.contains(id)) return;
    bool alike = true;
    for (size_t i = 0; i < sources.size(); ++i) {
      const Process& from = *processes.at(sources[i]);
      const bool whole = from.alive && !from.writing && from.writes == writes[i];
      if (!whole || from.version != its.view.base)
        return process_does(
            id, self.core->failed(generation, {sources[i]}, "the transfer's digest does not match"));
      alike = alike && from.state == processes.at(sources.front())->state;
    }
    self.staged = {its.view.base, alike ? processes.at(sources.front())->state : kGarbage};
    state_stands(self, generation);
  });
}

void World::state_stands(Process& process, Generation generation) {
  const auto& moves = groups.at(generation).install.moves;
  const bool gets_shards = std::any_of(moves.begin(), moves.end(),
                                       [&](const ShardMove& move) { return move.target == process.id; });
  if (gets_shards) return take_shards(process, generation);
  process_does(process.id, process.core->formed(generation));
}

// Of the update to the base, that the source has made in the view before.
void World::take_gradient(Process& process, Generation generation, const std::vector<MemberId>& sources,
                          Duration slowness) {
  const MemberId id = process.id;
  const Duration time = between(100 * kMicrosecond, 20 * kMillisecond) * slowness;
  after_for(id, time, [this, id, sources, generation] {
    Process& self = *processes.at(id);
    const Group& its = groups.at(generation);
    if (its.revoked.contains(id)) return;
    for (MemberId source : sources) {
      const Process& from = *processes.at(source);
      const auto fails = [&](const char* why) {
        process_does(id, self.core->failed(generation, {source}, why));
      };
      if (!from.alive) return fails("the source is gone");
      const bool held = from.last_update && from.last_update->version + 1 == its.view.base;
      if (!held && its.revoked.contains(source))
        return fails("the source has gone on");  // this one was frozen
      expect(held, named(source) + " is to give a gradient that it does not have");
      if (!held) return fails("the gradient is not held");
      self.missing = from.last_update;
    }
    process_does(id, self.core->formed(generation));
  });
}

void World::enter_view(Process& process, const EnterView& enter) {
  const bool planned = !process.revoked_since;
  check_enter(process, enter.view, planned);
  check_start_again(process, enter.view);
  trace(named(process.id) + " enters g" + std::to_string(enter.view.generation.counter) + " base " +
        std::to_string(enter.base) + " holding " + std::to_string(process.version));
  if (!views_entered.contains(enter.view.generation)) {
    ++outcome.views;
    if (planned && enter.base != kNoVersion) ++outcome.planned;
    if (planned && enter.base != kNoVersion && !groups.at(enter.view.generation).install.transfers.empty())
      ++outcome.waited;
    const auto& transfers = groups.at(enter.view.generation).install.transfers;
    if (std::any_of(transfers.begin(), transfers.end(), [](const Transfer& one) { return one.gradient; }))
      another_loss_soon(enter.view);
  }
  views_entered.emplace(enter.view.generation, enter.view);
  process.entered = enter.view.generation;
  if (process.version == enter.base) process.state_in = process.entered;
  process.revoked_since = false;
  process.was_in_view = true;
  take_lanes(process, process.core->view());
  process.reported = false;
  process.lesson.reset();
  process.learn_until.reset();
  process.reduced.reset();
  if (!process.core->keeps_gradient()) process.last_update.reset();
  if (process.core->catching_up()) {
    process.reduced = process.missing;
    process.reduced->generation = process.entered;
    process.reduced->plan = 0;
    ++outcome.caught_up;
  }
  process.missing.reset();
  process.boundary = 0;
  std::erase_if(process.save_copies, [&](const auto& copy) { return copy.first >= enter.base; });
  check_view_shards(enter.view);
  ++process.activity;
  if (process.doing != Process::kLeft && process.doing != Process::kWriting) process.doing = Process::kIdle;
  if (process.doing == Process::kIdle && process.core->catching_up()) end_former_step(process);
  say(process.id, Progress{enter.view.generation, enter.base});
  process.must_restore = enter.base == kNoVersion;
}

// The members read the newest save together and agree on it by a collective, which ends rank by rank.
void World::restore(Process& process, Generation generation) {
  process.must_restore = false;
  process.version = kNoVersion;
  ++process.writes;
  Group& group = groups.at(generation);
  group.restoring.insert(process.id);
  if (group.restoring.size() < group.view.members.size() || !group_alive(group)) return;
  const Version version = std::max<Version>(0, durable.first);
  const Lineage lineage = durable.second;
  check_resume(version, lineage);
  branch = lineage;
  branch.push_back({generation, version});
  for (const Member& member : group.view.members) {
    after_for(member.id, between(5 * kMillisecond, 200 * kMillisecond),
              [this, id = member.id, generation, version, lineage] {
                Process& self = *processes.at(id);
                if (groups.at(generation).revoked.contains(id) || self.core->revoked()) return;
                self.version = version;
                self.state = truth_of(version);
                self.state_in = generation;
                ++self.writes;
                restore_shards(self, version);
                restored_at = version;
                process_does(id, self.core->started(version, self.state, lineage,
                                                    lineage.empty() ? kNoVersion : version));
              });
  }
}

void World::revoke(Process& process, const RevokeGroup& revoked) {
  process.revoked_since = true;
  process.stop_at.reset();
  process.reduced.reset();
  process.boundary = 0;
  process.saves_waiting.clear();
  if (const auto group = groups.find(revoked.generation); group != groups.end())
    group->second.revoked.insert(process.id);
  if (process.doing == Process::kComputing || process.doing == Process::kReducing) {
    process.doing = Process::kIdle;  // the microbatch loop ends early, the wait ends
    ++process.activity;
  }
  process.staged.reset();
  process.staged_shards.clear();
  process.missing.reset();
  if (!process.core->learning()) process.lesson.reset();
}

// ---- the program

void World::drive(MemberId id) {
  Process& process = *processes.at(id);
  if (!process.alive || process.frozen || process.doing != Process::kIdle) return;
  if (process.core->learning() && process.lesson) return drive_learner(process);
  if (process.reduced) return try_update(process);
  if (!process.core->may_run()) return;
  if (process.must_restore) return restore(process, process.entered);
  if (process.core->install_due()) return begin_install(process);
  if (process.version == kNoVersion) return;
  if (process.version >= options.steps) return leave(process, 0, "done");
  if (process.core->waiting_at_boundary()) return;
  if (process.boundary != 0) {
    const uint64_t plan = std::exchange(process.boundary, 0);
    return process_does(id, process.core->at_boundary(plan, process.version));
  }
  compute(process);
}

// A program looks at a view change when its microbatch is over.
void World::end_former_step(Process& process) {
  if (sharding.copies == 0) return;
  SeededRandom own(mix64(options.seed ^ mix64(process.id ^ process.entered.counter)));
  process.doing = Process::kComputing;
  after_for(process.id, static_cast<Duration>(own.below(100)) * kMillisecond,
            [this, id = process.id, activity = process.activity] {
              Process& self = *processes.at(id);
              if (self.activity != activity || self.doing != Process::kComputing) return;
              self.doing = Process::kIdle;
              drive(id);
            });
}

void World::compute(Process& process) {
  save_if_due(process);
  process.doing = Process::kComputing;
  const MemberId id = process.id;
  const uint64_t activity = ++process.activity;
  const Generation generation = process.core->view().generation;
  Duration time = between(20 * kMillisecond, 120 * kMillisecond) * process.slowness;
  if (options.slow_code_only && random.chance(0.02)) time = between(kSecond, limits.step_timeout / 2);
  after_for(id, time, [this, id, activity, generation] {
    Process& self = *processes.at(id);
    if (self.activity != activity || self.doing != Process::kComputing) return;
    contribute(self, generation, self.version);
    drive(id);
  });
}

// A reduction completes for a rank once every member of its group has contributed, at each rank's own time,
// unless the rank revoked the group meanwhile.
void World::contribute(Process& process, Generation generation, Version version) {
  process.doing = Process::kReducing;
  Group& group = groups.at(generation);
  Group::Reduction& reduction = group.reductions[version];
  expect(!reduction.states.contains(process.id),
         named(process.id) + " contributes twice to step " + std::to_string(version));
  reduction.states[process.id] = process.writing ? kGarbage : process.state;
  compute_microbatches(process, reduction);
  reduction.plan = std::max(reduction.plan, process.core->plan());
  if (reduction.states.size() < group.view.members.size()) return;
  reduction.complete = true;
  const Duration parted = std::max<Duration>(0, data_cut_until(group) - now);
  if (parted > kTransportTimeout) group.failed = true;
  // Which ranks have finished when a partition breaks the reduction is anybody's guess.
  const bool some_finish = random.chance(0.5);
  uint64_t gradient = gradient_of(reduction.states.begin()->second, version);
  for (const auto& [id, state] : reduction.states) {
    if (state != reduction.states.begin()->second) gradient = mix64(gradient ^ state.low);
  }
  const Process::Ready ready{generation, version, gradient, reduction.plan, generation};
  for (const Member& member : group.view.members) {
    const uint64_t activity = processes.at(member.id)->activity;
    if (group.failed && (!some_finish || random.chance(0.5))) continue;
    after_for(member.id, (group.failed ? 0 : parted) + between(100 * kMicrosecond, 40 * kMillisecond),
              [this, id = member.id, ready, activity] {
                Process& self = *processes.at(id);
                if (self.activity != activity || self.doing != Process::kReducing) return;
                self.doing = Process::kIdle;
                self.reduced = ready;
                drive(id);
              });
  }
  if (group.failed) group_fails(generation, "a peer cannot be reached");
}

// The instant until which some two members cannot reach each other.
Instant World::data_cut_until(const Group& group) const {
  Instant until = 0;
  for (const auto& [pair, end] : data_cut) {
    if (end <= now) continue;
    bool first = false, second = false;
    for (const Member& member : group.view.members) {
      const size_t index = processes.at(member.id)->agent;
      first = first || index == pair.first;
      second = second || index == pair.second;
    }
    if (first && second) until = std::max(until, end);
  }
  return until;
}

// Each member's transport gives up at its own time, and names somebody on the other side.
void World::group_fails(Generation generation, const std::string& why) {
  group_faults = true;
  Group& group = groups.at(generation);
  group.failed = true;
  for (const Member& member : group.view.members) {
    after_for(member.id, kTransportTimeout + between(0, 300 * kMillisecond),
              [this, id = member.id, generation, why] {
                Process& self = *processes.at(id);
                std::vector<MemberId> suspects;
                for (const Member& other : groups.at(generation).view.members) {
                  const auto a = self.agent, b = processes.at(other.id)->agent;
                  const auto cut = data_cut.find({std::min(a, b), std::max(a, b)});
                  if (cut != data_cut.end() && cut->second > now) suspects.push_back(other.id);
                }
                process_does(id, self.core->failed(generation, suspects, why));
              });
  }
}

void World::try_update(Process& process) {
  const Process::Ready ready = *process.reduced;
  const Permit permit = process.core->open_update(ready.generation, ready.version);
  if (!permit.granted) return;  // asked again when something changes; a revocation forgets it
  process.reduced.reset();
  check_permit(process, ready.generation, ready.version, false);
  check_reduction(groups.at(ready.reduced_in), ready.version);
  process.doing = Process::kWriting;
  process.writing = true;
  ++process.writes;
  const MemberId id = process.id;
  Duration time = std::min<Duration>(between(kMillisecond, 25 * kMillisecond) * process.slowness, kSecond);
  if (options.faults && random.chance(0.004))
    time = between(kSecond, member_limits.update_timeout - 100 * kMillisecond);
  if (options.faults && !options.slow_code_only && random.chance(0.001))
    time = between(kSecond, 2 * member_limits.update_timeout);
  after_for(id, time, [this, id, ready] { finish_update(*processes.at(id), ready); });
}

void World::finish_update(Process& process, const Process::Ready& ready) {
  const MemberId id = process.id;
  process.state = applied(process.state, ready.gradient);
  ++process.version;
  if (ready.reduced_in == process.entered) {
    process.last_update = ready;
  } else if (!process.revoked_since) {
    process.state_in = process.entered;
  }
  process.writing = false;
  ++process.writes;
  process.doing = Process::kIdle;
  for (auto& [lesson, log] : lessons) {
    if (log.source == id && !log.over) log.gradients[ready.version] = ready.gradient;
  }
  const MemberActions actions = process.core->update_closed(process_now(process), keeps_gradients);
  if (process.core->version() == kNoVersion) process.version = kNoVersion;  // torn meanwhile
  update_shards(process, ready);
  const bool due = process.core->boundary_due(ready.plan) && ready.plan > 0;
  const bool current =
      ready.generation == process.entered && !process.revoked_since;  // no torn scope's late end
  if (current && ready.reduced_in == ready.generation)
    check_boundary(process, ready.generation, ready.version, ready.plan, due);
  if (due && current) process.boundary = ready.plan;
  if (process.version != kNoVersion) reached(process);
  process_does(id, actions);
  for (auto& [lesson, log] : lessons) {
    if (log.source == id && !log.over)
      after_for(log.learner, kMillisecond, [this, learner = log.learner] { drive(learner); });
  }
}

void World::save_if_due(Process& process) {
  const Version version = process.version;
  const auto due = [&](Tier tier, Version every) {
    return is_paced(tier) ? process.schedules[tier].due(version) : version % every == 0;
  };
  save_if_due(process, Tier::kShared, due(Tier::kShared, kSaveEvery));
  save_if_due(process, Tier::kLocal, saves_locally && due(Tier::kLocal, kLocalSaveEvery));
}

// Once for a version and view: what was staged in the view before may be other parts than this one needs.
void World::save_if_due(Process& process, Tier tier, bool due) {
  const Version version = process.version;
  const bool waited_for =
      std::any_of(process.saves_waiting.begin(), process.saves_waiting.end(),
                  [&](const SaveOpen& save) { return save.version == version && save.tier == tier; });
  const std::pair said{version, process.entered};
  if ((!due && !waited_for) || process.save_said[tier] == said) return;
  process.save_copies[version] = {process.state, process.shards};
  if (process.lesson) return;
  process.save_said[tier] = said;
  say(process.id, SaveDue{process.entered, version, false, tier});
}

void World::reached(Process& process) {
  note_commit(process);
  if (!process.lesson) say(process.id, Progress{process.entered, process.version});
  save_if_due(process);
  const auto waiting = std::exchange(process.saves_waiting, {});
  for (const SaveOpen& save : waiting) write_part(process, save);
}

void World::begin_install(Process& process) {
  const Permit permit = process.core->open_install(process.core->view().generation);
  if (!permit.granted || (!process.staged && process.staged_shards.empty())) return;
  const MemberId id = process.id;
  process.doing = Process::kWriting;
  process.writing = true;
  ++process.writes;
  after_for(id, between(kMillisecond, 30 * kMillisecond), [this, id, staged = process.staged] {
    Process& self = *processes.at(id);
    if (staged) {
      self.version = staged->first;
      self.state = staged->second;
      self.shards.clear();
    }
    install_shards(self);
    self.state_in = self.entered;
    self.writing = false;
    ++self.writes;
    self.doing = Process::kIdle;
    self.staged.reset();
    const MemberActions actions = self.core->state_installed(process_now(self), self.version);
    reached(self);
    process_does(id, actions);
  });
}

void World::leave(Process& process, int code, const std::string& why) {
  if (process.doing == Process::kWriting) {  // the loop is left between steps
    after_for(process.id, 5 * kMillisecond,
              [this, id = process.id, code, why] { leave(*processes.at(id), code, why); });
    return;
  }
  const MemberId id = process.id;
  check_leave(process, code);
  if (process.doing != Process::kLeft) {
    process.doing = Process::kLeft;
    ++process.activity;
    trace(named(id) + " leaves with " + std::to_string(code) + " at " + std::to_string(process.version) +
          ": " + why);
    say(id, Leaving{code, process.version, why});
  }
  if (!process.core->ended()) return;
  after_for(id, between(kMillisecond, 100 * kMillisecond), [this, id, code] { kill_process(id, code); });
}

// ---- lessons

void World::copy_for_learner(uint64_t lesson) {
  LessonLog& log = lessons.at(lesson);
  const Process& source = *processes.at(log.source);
  Process& learner = *processes.at(log.learner);
  if (log.over || !learner.alive || learner.lesson != lesson) return;
  if (!source.alive) return say(log.learner, LearnFailed{lesson, "the source is gone"});
  if (source.writing || source.version == kNoVersion || source.frozen) {
    after(5 * kMillisecond, [this, lesson] { copy_for_learner(lesson); });
    return;
  }
  log.gradients.clear();
  learner.taught = {source.version, source.state};
  const int64_t slowness = std::max(source.slowness, learner.slowness);
  after_for(log.learner, between(20 * kMillisecond, 300 * kMillisecond) * slowness, [this, lesson] {
    Process& self = *processes.at(lessons.at(lesson).learner);
    if (self.lesson == lesson) drive(self.id);
  });
}

void World::drive_learner(Process& process) {
  const MemberId id = process.id;
  const LessonLog& log = lessons.at(*process.lesson);
  if (!process.core->may_run()) return;
  if (process.taught && process.version == kNoVersion) {
    if (!process.core->open_install(log.generation).granted) return;
    process.doing = Process::kWriting;
    process.writing = true;
    after_for(id, between(kMillisecond, 30 * kMillisecond),
              [this, id, lesson = *process.lesson, taught = *process.taught] {
                Process& self = *processes.at(id);
                self.writing = false;
                ++self.writes;
                self.doing = Process::kIdle;
                const MemberActions actions = self.core->state_installed(process_now(self), taught.first);
                self.version = self.core->version();
                self.state = taught.second;
                if (self.lesson == lesson) self.taught.reset();
                process_does(id, actions);
              });
    return;
  }
  if (process.version == kNoVersion) return;
  if (process.learn_until && process.version == process.learn_until->version) {
    if (process.core->waiting_at_boundary()) return;
    return process_does(id, process.core->at_boundary(process.learn_until->plan, process.version));
  }
  const auto gradient = log.gradients.find(process.version);
  if (gradient == log.gradients.end()) {
    if (!std::exchange(process.level_said, true)) say(id, Level{process.version});
    return;
  }
  if (!process.core->open_update(log.generation, process.version).granted) return;
  check_permit(process, log.generation, process.version, true);
  process.doing = Process::kWriting;
  process.writing = true;
  const Duration time = between(kMillisecond, 10 * kMillisecond) * process.slowness;
  after_for(id, time, [this, id, learnt = gradient->second] {
    Process& self = *processes.at(id);
    self.writing = false;
    ++self.writes;
    self.doing = Process::kIdle;
    const MemberActions actions = self.core->update_closed(process_now(self));
    self.version = self.core->version();
    self.state = applied(self.state, learnt);
    say(id, Progress{self.entered, self.version});
    process_does(id, actions);
  });
}

// ---- what the leader says to the session

void World::forward(Process& process, const Message& message) {
  const MemberId id = process.id;
  if (const auto* learn = std::get_if<Learn>(&message)) {
    process.lesson = learn->lesson;
    process.version = kNoVersion;
    process.staged.reset();
    process.taught.reset();
    process.level_said = false;
    process.learn_until.reset();
    LessonLog& log = lessons[learn->lesson];
    log.learner = id;
    log.source = learn->source.id;
    log.generation = learn->view.generation;
    const bool fails = options.faults && random.chance(0.05);
    // One in so many is too slow for the training, and stays so.
    const bool lags = options.faults && mix64(options.seed ^ mix64(id)) % 8 == 0;
    after_for(id, between(5 * kMillisecond, 50 * kMillisecond),
              [this, id, fails, lags, lesson = learn->lesson] {
                if (lags) check_lag(*processes.at(id), lesson);
                if (lags) return say(id, LearnFailed{lesson, "the log overflowed", true});
                if (fails) return say(id, LearnFailed{lesson, "a link failed"});
                copy_for_learner(lesson);
              });
  }
  if (const auto* over = std::get_if<LessonOver>(&message)) {
    if (const auto log = lessons.find(over->lesson); log != lessons.end()) log->second.over = true;
    if (process.lesson == over->lesson) {
      process.version = process.core->version();
      if (!process.core->learning()) process.lesson.reset();
    }
  }
  if (const auto* until = std::get_if<LearnUntil>(&message)) process.learn_until = *until;
  if (std::holds_alternative<Proceed>(message)) process.learn_until.reset();
  if (std::holds_alternative<BaseConfirmed>(message)) {  // of those that this view has given it
    for (const uint32_t shard : process.core->shards()) {
      if (const auto copy = process.shards.find(shard); copy != process.shards.end())
        copy->second.compared = true;
    }
  }
  if (const auto* save = std::get_if<SaveOpen>(&message)) {
    SaveRecord& record = saves[save->save];
    record.tier = save->tier;
    record.version = save->version;
    record.lineage = save->lineage;
    record.participants = {save->participants.begin(), save->participants.end()};
    record.open = *save;
    record.opened_at = std::min(record.opened_at, now);
    if (save->rescue) {
      const MemberCore& core = *process.core;
      if (!core.frozen() || core.version() != save->version || core.update_open())
        return say(id, SaveVote{save->save, false, {}, "this member has gone on"});
      record.rescue = true;
      record.lineage = core.view().lineage;
    }
    if (save->stop) {
      process.stop_at = save->version;
      process.boundary = 0;
    }
    write_part(process, *save);
  }
  if (const auto* rewrite = std::get_if<SaveRewrite>(&message)) rewrite_part(process, *rewrite);
  if (const auto* schedule = std::get_if<SaveSchedule>(&message))
    process.schedules[schedule->tier].add(*schedule);
  if (const auto* publish_message = std::get_if<SavePublish>(&message)) {
    after_for(id, between(5 * kMillisecond, 80 * kMillisecond) * disk_slowness(),
              [this, id, save = publish_message->save] { publish(*processes.at(id), save); });
  }
}

// What its node has saved for itself of a drain's version, in the same history.
std::optional<Process::SaveCopy> World::own_save(const Process& process, const SaveOpen& drain) const {
  for (const auto& [id, record] : saves) {
    const bool is_it = record.tier == Tier::kLocal && record.published && record.version == drain.version &&
                       record.lineage == drain.lineage;
    if (is_it && processes.at(record.open.participants.at(0))->agent == process.agent)
      return Process::SaveCopy{record.state, {}};
  }
  return std::nullopt;
}

void World::write_part(Process& process, const SaveOpen& save) {
  const auto copy = process.save_copies.find(save.version);
  std::optional<Process::SaveCopy> state;
  if (copy != process.save_copies.end()) state = copy->second;
  const bool whole = !process.writing && !process.core->install_due();
  if (process.version == save.version && whole) state = {process.state, process.shards};
  if (save.drain) state = own_save(process, save);
  if (save.drain && !state)
    return say(process.id, SaveVote{save.save, false, {}, "its node has no save of the version"});
  if (!state && is_paced(save.tier) && process.version > save.version)
    return say(process.id, SaveVote{save.save, false, {}, "the state had moved on"});
  if (!state) {
    process.saves_waiting.push_back(save);
    return;
  }
  const bool fails = options.faults && random.chance(0.01);
  const Duration time = between(10 * kMillisecond, 300 * kMillisecond) * disk_slowness() * process.slowness;
  // How much memory there is for copies, and so how long the lease lasts, differs. Not drawn in turn: without
  // losses this changes no schedule.
  const Duration held = time / 4 * static_cast<Duration>(mix64(save.save ^ process.id) % 5);
  process.staging[save.save] = {now + held, *state};
  after_for(process.id, time, [this, id = process.id, save, state = *state, fails] {
    SaveRecord& record = saves.at(save.save);
    record.write_failed = record.write_failed || fails;
    if (fails) return say(id, SaveVote{save.save, false, {}, "the disk is full"});
    if (!write_shards(save, id, state))
      return say(id, SaveVote{save.save, false, {}, "it does not hold its shards of the version"});
    record.written.insert(id);
    record.state = state.state;
    record.bad = record.bad || state.state != truth_of(save.version);
    say(id, SaveVote{save.save, true, {}, ""});
  });
}

// What the process has of the save's version, and the view in which it has it. While its own part is copied
// the state stays as it was.
std::optional<std::pair<Process::SaveCopy, Generation>> World::held_for(const Process& process,
                                                                        const SaveRewrite& wanted) const {
  const auto staging = process.staging.find(wanted.save);
  if (staging == process.staging.end()) return std::nullopt;  // it takes no part in the save yet
  if (const SaveOpen& open = saves.at(wanted.save).open; open.drain) {
    const auto own = own_save(process, open);
    return own ? std::optional(std::pair(*own, wanted.opened_in)) : std::nullopt;
  }
  if (now < staging->second.until) return std::pair(staging->second.copy, wanted.opened_in);
  const bool whole = !process.writing && !process.core->install_due();
  if (!whole || !process.core->why_not_rewrite(wanted).empty()) return std::nullopt;
  return std::pair(Process::SaveCopy{process.state, process.shards}, process.core->view().generation);
}

void World::rewrite_part(Process& process, const SaveRewrite& wanted) {
  SaveVote vote{wanted.save, false, {}, "the state has moved on"};
  vote.part = wanted.part;
  const auto held = held_for(process, wanted);
  trace(named(process.id) + (held ? " takes" : " refuses") + " part " + std::to_string(wanted.part) +
        " of the save of version " + std::to_string(wanted.version));
  if (!held) return say(process.id, vote);
  vote.held_in = held->second;
  const bool fails = options.faults && random.chance(0.05);
  after_for(process.id, between(10 * kMillisecond, 300 * kMillisecond) * disk_slowness() * process.slowness,
            [this, id = process.id, state = held->first, fails, vote]() mutable {
              SaveRecord& record = saves.at(vote.save);
              const MemberId instead_of = record.open.participants.at(*vote.part);
              if (fails || !write_shards(record.open, instead_of, state)) return say(id, vote);
              record.rewritten += record.written.insert(instead_of).second ? 1 : 0;
              record.bad = record.bad || state.state != truth_of(record.version);
              vote.written = true;
              say(id, vote);
            });
}

void World::publish(Process& process, uint64_t save) {
  SaveRecord& record = saves.at(save);
  check_publish(record);
  record.published = true;
  if (record.tier == Tier::kLocal) {
    ++outcome.local_saves;
    outcome.rewrites += record.rewritten;
    return say(process.id, SavePublished{save, true, ""});
  }
  const bool is_new = folder.emplace(save, record).second;
  if (is_new && record.rescue) ++outcome.rescues;
  if (is_new && record.open.drain) ++outcome.drains;
  if (is_new) outcome.rewrites += record.rewritten;
  if (goes_on(record) && record.version >= durable.first) durable = {record.version, record.lineage};
  say(process.id, SavePublished{save, true, ""});
}

}  // namespace muster::sim
