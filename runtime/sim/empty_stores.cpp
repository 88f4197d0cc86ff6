// Stores that come back empty and are used again, while those who knew them before still live: an embedded
// store whose process is started anew at the address that all were started with, and an etcd without its
// keys. What was under way in the former store must come to nothing in the new one (rule 9).
#include "runtime/sim/world.h"

namespace muster::sim {

// An etcd, or what a single process remembers of it: nobody's lease is in it any more.
void World::empty_store() {
  trace("the store is restarted, and is empty");
  store_empty = store_emptied = true;
  store_lease_until = 0;
  group_faults = true;
  SeededRandom own(mix64(options.seed ^ 0xe4771));
  if (!options.shared_store || end_recorded || !own.chance(0.7)) return;
  const Duration time = static_cast<Duration>(own.below(12'000)) * kMillisecond;
  lasts(time);
  after(time, [this, more = own.below(2)] {
    for (uint64_t i = 0; i < limits.nodes_min + more; ++i) add_agent();
  });
}

// Its generations count from one again, and its terms too; nothing else tells it from the one before.
void World::another_run_begins(uint64_t first_term) {
  trace("another run begins in the empty store");
  ++incarnation;
  ++outcome.runs;
  store = View{};
  store_empty = true;
  store_emptied = foreign_leader = false;
  store_term = first_term;
  store_leader = 0;
}

// The machine, or only its process, is started anew, and with it as many nodes as a run needs. From numbers
// of its own, so that all else comes as it would.
void World::store_may_come_back() {
  SeededRandom own(mix64(options.seed ^ mix64(incarnation)));
  const bool was_moved = newest().seat != first_place || !leads_store(newest());
  if (ended_before || was_moved || !own.chance(0.4)) return;
  const Duration longest = own.chance(0.5) ? 600 : 15'000;
  const Duration time = static_cast<Duration>(own.below(static_cast<uint64_t>(longest))) * kMillisecond;
  lasts(time);
  after(time, [this] { begin_again(); });
}

void World::begin_again() {
  another_run_begins(0);
  const size_t seat = add_agent();
  first_place = seat;
  limits.own_node = agents[seat]->id;
  auto next = std::make_unique<Lead>();
  next->seat = seat;
  next->incarnation = incarnation;
  next->core = std::make_unique<Coordinator>(limits, "job", incarnation, now);
  leads.push_back(std::move(next));
  leader_finished = leader_lost = false;
  outcome.exit_code = -1;
  schedule_leader(leads.size() - 1);
  for (size_t i = 0; i < seat; ++i) {
    if (agents[i]->place_term != 0) continue;
    agents[i]->place = seat;
    agents[i]->refusals = 0;
    after(between(kMillisecond, 300 * kMillisecond), [this, i] { connect(i); });
  }
  for (uint32_t i = 1; i < limits.nodes_min; ++i) {
    after(between(0, kSecond), [this] { add_agent(); });
  }
}

// 9: a view means nothing to who was in one of another store.
void World::check_run(const Process& process, const View& view) {
  const uint64_t before = process.entered.incarnation;
  expect(before == 0 || before == view.generation.incarnation,
         named(process.id) + " enters a view of another store than its last one");
}

}  // namespace muster::sim
