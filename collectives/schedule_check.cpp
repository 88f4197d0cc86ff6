#include "collectives/schedule_check.h"

#include <algorithm>
#include <bitset>
#include <deque>
#include <map>
#include <string>

namespace muster {
namespace {

struct Symbol {
  bool defined = false;
  bool final = false;
  uint64_t index = 0;
  std::bitset<kMaxContributions> contributions;
};
using Symbols = std::vector<Symbol>;

class Checker {
 public:
  Checker(std::span<const Schedule> schedules, const ScheduleMeaning& meaning)
      : schedules_(schedules),
        meaning_(meaning),
        ranks_(static_cast<int>(schedules.size())),
        states_(ranks_) {}

  Status run() {
    int contribution = 0;
    for (int rank = 0; rank < ranks_; ++rank) prepare(rank, contribution);
    bool moved = true;
    while (moved) {
      moved = false;
      for (int rank = 0; rank < ranks_; ++rank) {
        MUSTER_ASSIGN(const bool advanced, advance(rank));
        moved |= advanced;
      }
    }
    for (int rank = 0; rank < ranks_; ++rank) MUSTER_TRY(check_end(rank));
    for (const auto& [pair, queue] : messages_) {
      if (!queue.empty())
        return fault(pair.first, "sends a message that rank " + std::to_string(pair.second) + " never takes");
    }
    return ok();
  }

 private:
  using View = std::span<Symbol>;

  struct RankState {
    std::vector<Symbols> memory;  // behind the views
    std::vector<View> inputs;
    View output, scratch;
    size_t round = 0;
    bool started = false;
    std::vector<bool> received;  // of the round
    size_t untaken = 0;          // sends of the round
  };

  Error fault(int rank, const std::string& what) const {
    return {ErrorCode::kMisuse, std::string(schedules_[rank].algorithm) + " on " + std::to_string(ranks_) +
                                    " ranks: rank " + std::to_string(rank) + ", round " +
                                    std::to_string(states_[rank].round) + ": " + what};
  }

  void prepare(int rank, int& contribution) {
    RankState& state = states_[rank];
    const uint64_t in_count = meaning_.input_count(rank), out_count = meaning_.output_count(rank);
    state.memory.resize(static_cast<size_t>(meaning_.input_pieces[rank]) + 2);
    if (meaning_.in_place) {
      const int64_t place = meaning_.in_place(rank);
      const auto input_at = static_cast<uint64_t>(std::max<int64_t>(0, place));
      const auto output_at = static_cast<uint64_t>(std::max<int64_t>(0, -place));
      state.memory[0].resize(std::max(input_at + in_count, output_at + out_count));
      state.inputs = {View(state.memory[0]).subspan(input_at, in_count)};
      state.output = View(state.memory[0]).subspan(output_at, out_count);
    } else {
      for (int piece = 0; piece < meaning_.input_pieces[rank]; ++piece) {
        state.memory[static_cast<size_t>(piece)].resize(in_count);
        state.inputs.emplace_back(state.memory[static_cast<size_t>(piece)]);
      }
      Symbols& output = *(state.memory.end() - 2);
      output.resize(out_count);
      state.output = output;
    }
    state.memory.back().resize(schedules_[rank].scratch_count);
    state.scratch = state.memory.back();
    for (const View& piece : state.inputs) fill(piece, contribution++);
  }

  static void fill(View input, int contribution) {
    for (uint64_t i = 0; i < input.size(); ++i) {
      input[i].defined = true;
      input[i].index = i;
      input[i].contributions.set(static_cast<size_t>(contribution));
    }
  }

  Result<View> view_of(int rank, const Region& region) {
    RankState& state = states_[rank];
    View view = region.buffer == BufferKind::kOutput ? state.output : state.scratch;
    if (region.buffer == BufferKind::kInput) {
      if (region.count == 0) return View();
      if (region.piece >= state.inputs.size()) return fault(rank, "names an input piece that does not exist");
      view = state.inputs[region.piece];
    }
    if (region.offset + region.count > view.size()) return fault(rank, "leaves its buffer");
    return view.subspan(region.offset, region.count);
  }

  Result<Symbols> read(int rank, const Region& region) {
    MUSTER_ASSIGN(const View view, view_of(rank, region));
    for (const Symbol& value : view) {
      if (!value.defined) return fault(rank, "reads an element that nothing wrote");
    }
    return Symbols(view.begin(), view.end());
  }

  Status write(int rank, const Region& region, const Symbols& values) {
    MUSTER_ASSIGN(const View view, view_of(rank, region));
    if (region.buffer == BufferKind::kInput && region.count > 0) return fault(rank, "writes into an input");
    if (values.size() != region.count) return fault(rank, "writes another number of elements than it has");
    std::ranges::copy(values, view.begin());
    return ok();
  }

  // By address: input and output may be one memory.
  Result<bool> overlap(int rank, const Region& a, const Region& b) {
    MUSTER_ASSIGN(const View one, view_of(rank, a));
    MUSTER_ASSIGN(const View other, view_of(rank, b));
    return !one.empty() && !other.empty() && one.data() < other.data() + other.size() &&
           other.data() < one.data() + one.size();
  }

  Status check_overlaps(int rank, const Round& round) {
    for (size_t i = 0; i < round.receives.size(); ++i) {
      const Region& region = round.receives[i].region;
      for (const Transfer& sent : round.sends) {
        MUSTER_ASSIGN(const bool is_sent, overlap(rank, region, sent.region));
        if (is_sent) return fault(rank, "receives into what it sends");
      }
      for (size_t j = 0; j < i; ++j) {
        MUSTER_ASSIGN(const bool is_received, overlap(rank, region, round.receives[j].region));
        if (is_received) return fault(rank, "receives twice into the same place");
      }
    }
    return ok();
  }

  Status start(int rank, const Round& round) {
    MUSTER_TRY(check_overlaps(rank, round));
    for (const Transfer& transfer : round.sends) {
      if (transfer.peer < 0 || transfer.peer >= ranks_ || transfer.peer == rank)
        return fault(rank, "sends to a rank that does not exist, or to itself");
      MUSTER_ASSIGN(Symbols values, read(rank, transfer.region));
      messages_[{rank, transfer.peer}].push_back(std::move(values));
    }
    RankState& state = states_[rank];
    state.started = true;
    state.received.assign(round.receives.size(), false);
    state.untaken = round.sends.size();
    return ok();
  }

  Status fold(int rank, const Fold& fold) {
    Symbols result(fold.target.count);
    for (size_t s = 0; s < fold.sources.size(); ++s) {
      if (fold.sources[s].count != fold.target.count)
        return fault(rank, "folds regions of different lengths");
      MUSTER_ASSIGN(const Symbols source, read(rank, fold.sources[s]));
      for (size_t i = 0; i < source.size(); ++i) MUSTER_TRY(add(rank, fold, s, result[i], source[i]));
    }
    return write(rank, fold.target, result);
  }

  Status add(int rank, const Fold& fold, size_t position, Symbol& result, const Symbol& source) {
    if (fold.along_tree && (source.contributions.count() != 1 || !source.contributions.test(position)))
      return fault(rank, "gives the tree a leaf in another place than its own");
    if (result.defined && result.index != source.index)
      return fault(rank, "folds elements of different index");
    if ((result.contributions & source.contributions).any()) return fault(rank, "adds a contribution twice");
    if (meaning_.reduces && source.final) return fault(rank, "folds a value that was final already");
    result.defined = true;
    result.index = source.index;
    result.contributions |= source.contributions;
    result.final = fold.last;
    return ok();
  }

  // Takes what has come: of one peer in the order of the list, of several whoever is first.
  Result<bool> take(int rank, const Round& round) {
    RankState& state = states_[rank];
    bool moved = false;
    for (size_t i = 0; i < round.receives.size(); ++i) {
      const Transfer& transfer = round.receives[i];
      auto& queue = messages_[{transfer.peer, rank}];
      if (state.received[i] || queue.empty()) continue;
      MUSTER_TRY(write(rank, transfer.region, queue.front()));
      queue.pop_front();
      --states_[transfer.peer].untaken;
      state.received[i] = moved = true;
    }
    return moved;
  }

  Result<bool> advance(int rank) {
    RankState& state = states_[rank];
    if (state.round == schedules_[rank].rounds.size()) return false;
    const Round& round = schedules_[rank].rounds[state.round];
    bool moved = !state.started;
    if (!state.started) MUSTER_TRY(start(rank, round));
    MUSTER_ASSIGN(const bool taken, take(rank, round));
    moved |= taken;
    if (state.untaken > 0 || std::ranges::count(state.received, false) > 0) return moved;
    for (const Fold& step : round.folds) MUSTER_TRY(fold(rank, step));
    ++state.round;
    state.started = false;
    return true;
  }

  Status check_end(int rank) {
    const RankState& state = states_[rank];
    if (state.round != schedules_[rank].rounds.size())
      return fault(rank, states_[rank].untaken > 0 ? "sends what nobody takes"
                                                   : "waits for a message that nobody sends");
    for (uint64_t i = 0; i < state.output.size(); ++i) {
      const auto wanted = meaning_.expected(rank, i);
      std::bitset<kMaxContributions> contributions;
      for (int contribution : wanted.contributions) contributions.set(static_cast<size_t>(contribution));
      const Symbol& symbol = state.output[i];
      if (!symbol.defined || symbol.contributions != contributions || symbol.index != wanted.index)
        return fault(rank, "ends with a wrong element " + std::to_string(i));
      if (meaning_.reduces && !symbol.final) return fault(rank, "ends with an element that is not final");
    }
    return ok();
  }

  std::span<const Schedule> schedules_;
  const ScheduleMeaning& meaning_;
  int ranks_;
  std::vector<RankState> states_;
  std::map<std::pair<int, int>, std::deque<Symbols>> messages_;
};

}  // namespace

Status check_schedules(std::span<const Schedule> schedules, const ScheduleMeaning& meaning) {
  return Checker(schedules, meaning).run();
}

}  // namespace muster
