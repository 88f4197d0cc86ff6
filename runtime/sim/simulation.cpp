// The event loop.
#include "runtime/sim/simulation.h"

#include <cstdio>

#include "runtime/sim/world.h"

namespace muster::sim {
namespace {

constexpr Instant kLongest = 4000 * kSecond;   // no run may need more: every wait ends
constexpr Duration kRecovery = 400 * kSecond;  // every deadline of World's limits, one after another
constexpr uint64_t kEventsMax = 3'000'000;

}  // namespace

Digest applied(const Digest& state, uint64_t gradient) {
  return Digest{mix64(state.low ^ gradient), mix64(state.high + gradient)};
}

uint64_t gradient_of(const Digest& state, Version version) {
  return mix64(state.low ^ mix64(static_cast<uint64_t>(version)));
}

Digest truth_of(Version version) {
  static thread_local std::vector<Digest> chain = {Digest{11, 12}};
  while (static_cast<Version>(chain.size()) <= version) {
    const Version newest = static_cast<Version>(chain.size()) - 1;
    chain.push_back(applied(chain.back(), gradient_of(chain.back(), newest)));
  }
  return chain[static_cast<size_t>(version)];
}

// Times are a tenth and less of the defaults, so that many faults fit a short run; their order is kept.
World::World(const Options& given) : options(given), random(given.seed) {
  paced = options.seed % 8 == 5;
  if (paced) {
    options.steps *= 3;
    limits.node_mtbf = 10 * kSecond;
  }
  if (options.seed % 4 == 2) {
    keeps_gradients = options.seed % 16 != 6;
    SeededRandom own(mix64(options.seed));
    sharding = {static_cast<uint32_t>(1 + own.below(12)), static_cast<uint32_t>(1 + own.below(3))};
  }
  choose_lanes();
  overlaps = options.faults && mix64(options.seed ^ 0x0e71a) % 3 == 0;
  flaky = options.faults && !options.bounded_rate && !options.slow_code_only &&
          mix64(options.seed ^ 0xf1a) % 33 == 0;
  loses_everybody =
      options.shared_store && options.faults && !flaky && mix64(options.seed ^ 0xa110) % 33 == 0;
  if (flaky && !paced) options.steps *= 4;
  saves_locally = sharding.shards == 0 && options.seed % 3 == 0;
  drains = saves_locally && mix64(options.seed ^ 0xd4a1) % 2 == 0;
  limits.nodes_max = 2 + static_cast<uint32_t>(random.below(3));
  limits.nodes_min = 1 + static_cast<uint32_t>(random.below(limits.nodes_max - 1));
  limits.workers_per_node = 1 + static_cast<uint32_t>(random.below(3));
  limits.form_wait = 300 * kMillisecond;
  limits.form_timeout = 60 * kSecond;
  limits.report_timeout = 5 * kSecond;
  limits.ready_timeout = 10 * kSecond;
  limits.store_timeout = kSecond;
  limits.boundary_timeout = 8 * kSecond;
  limits.learn_timeout = 10 * kSecond;
  limits.node_silence = 3 * kSecond;
  limits.heartbeat_every = 300 * kMillisecond;  // twice this is below what report_timeout has to spare
  limits.partition_wait = 6 * kSecond;
  limits.save_timeout = 20 * kSecond;
  limits.step_timeout = 30 * kSecond;
  limits.suspect_wait = 100 * kMillisecond;
  limits.notice_settle = 100 * kMillisecond;
  limits.learn_retry_wait = 2 * kSecond;
  limits.mend_wait = 2 * kSecond;
  limits.quarantine.losses = 3;
  limits.quarantine.time = 5 * kSecond;
  limits.end_timeout = 15 * kSecond;
  limits.recover_wait = 2 * kSecond;
  limits.former_wait = 1500 * kMillisecond;
  limits.refusal_wait = 500 * kMillisecond;
  limits.store_offer_timeout = 500 * kMillisecond;
  limits.move_reserve = 2 * kSecond;
  limits.rules = options.rules;
  node_limits.workers = limits.workers_per_node;
  node_limits.nodes_min = limits.nodes_min;
  node_limits.nodes_max = limits.nodes_max;
  node_limits.restarts_max = options.bounded_rate ? 1000 : 8;
  node_limits.restart_delay = 100 * kMillisecond;
  node_limits.restart_window = 20 * kSecond;
  node_limits.worker_silence = random.chance(0.5) ? 4 * kSecond : 20 * kSecond;  // by agent, or by the leader
  node_limits.quick_death = 20 * kMillisecond;
  node_limits.kill_grace = 2 * kSecond;
  node_limits.frozen_timeout = 40 * kSecond;
  node_limits.rescue_after = 2 * kSecond;
  node_limits.partition_wait = 12 * kSecond;
  node_limits.rescue_timeout = 90 * kSecond;
  node_limits.rescue_port = 1;  // it listens
  node_limits.may_hold_store = !options.shared_store;
  node_limits.rules = options.rules;
  if (options.shared_store) {
    limits.embedded_store = false;
    limits.resign_wait = 300 * kMillisecond;
    node_limits.leader_changes = true;
    node_limits.rescue_after = 6 * kSecond;
  }
  member_limits.update_timeout = 4 * kSecond;
  member_limits.rules = options.rules;
}

void World::trace(const std::string& line) {
  if (!options.trace) return;
  char stamp[32];
  std::snprintf(stamp, sizeof stamp, "%10.4f  ", seconds(now));
  outcome.trace.push_back(stamp + line);
}

void World::violate(const std::string& what) {
  if (!outcome.violation.empty()) return;
  outcome.violation = what;
  trace("VIOLATION: " + what);
}

std::string World::named(MemberId id) const {
  const auto process = processes.find(id);
  if (process == processes.end()) return "m?";
  return agents[process->second->agent]->name + "." + std::to_string(process->second->local_rank) + "#" +
         std::to_string(id % 1000);
}

bool World::done() const {
  const bool nobody_leads = !options.shared_store && !leads_store(newest());  // who was named, never did
  if (!leader_finished && !options.shared_store && !nobody_leads) return false;
  for (const auto& agent : agents) {
    if (agent->alive && !agent->finished) return false;
  }
  return true;
}

void World::run() {
  start();
  if (options.faults) plan_faults();
  while (outcome.violation.empty() && !done()) {
    if (!options.bounded_rate && now > quiet_at + kRecovery && outcome.faults > 0) {
      violate("no end, long after the last fault; the leader is " +
              (leads.empty() ? "not there" : newest().core->phase()));
      break;
    }
    if (queue.empty() || queue.top().at > kLongest || outcome.events > kEventsMax) {
      violate("the job did not end; the leader is " + (leads.empty() ? "not there" : newest().core->phase()));
      break;
    }
    Event event = queue.top();
    queue.pop();
    now = event.at;
    ++outcome.events;
    event.action();
  }
  outcome.ended_at = now;
  outcome.after_faults = now - quiet_at;
  outcome.leaders = leads.size();
  if (options.shared_store && end_recorded) outcome.exit_code = end_recorded->exit_code;
  if (outcome.exit_code < 0) outcome.exit_code = kExitRequeue;  // without a leader
  if (outcome.violation.empty()) check_end();
}

Outcome simulate(const Options& options) {
  World world(options);
  world.run();
  return std::move(world.outcome);
}

}  // namespace muster::sim
