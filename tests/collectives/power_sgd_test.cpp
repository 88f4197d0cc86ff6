// PowerSGD over ranks: every world beside a naive one in float64, and bit for bit beside itself over other
// media; what error feedback conserves; what failures leave as it was; bytes, merges, and a training.
#include "collectives/power_sgd.h"

#include <gtest/gtest.h>

#include <atomic>
#include <barrier>
#include <bit>
#include <cmath>
#include <functional>
#include <limits>
#include <numeric>
#include <random>

#include "kernels/crc32c.h"
#include "kernels/simd_choice.h"
#include "tests/collectives/world.h"
#include "tests/forwarding_transport.h"
#include "tests/support/failing_new.h"

namespace muster {
namespace {

using power_sgd::Shape;
using Vector = std::vector<float>;
using Matrices = std::vector<Vector>;

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();

using Gradient = std::function<float(int rank, int step, size_t matrix, size_t i)>;

float usual(int rank, int step, size_t matrix, size_t i) {
  const uint64_t bits = mix64(static_cast<uint64_t>(rank) * 1'000'003 + static_cast<uint64_t>(step) * 7919 +
                              matrix * 104'729 + i * 13);
  return static_cast<float>(static_cast<double>(bits >> 40) * 0x1p-24 - 0.45);
}

struct Problem {
  std::vector<Shape> shapes;
  uint32_t factors = 2;
  bool average = true;
  int steps = 3;
  Gradient gradient = usual;
};

Matrices gradients_of(const Problem& problem, int rank, int step) {
  Matrices all;
  for (size_t m = 0; m < problem.shapes.size(); ++m) {
    Vector& one = all.emplace_back(problem.shapes[m].count());
    for (size_t i = 0; i < one.size(); ++i) one[i] = problem.gradient(rank, step, m, i);
  }
  return all;
}

PowerSgdState state_of(const Problem& problem, int rank, int ranks) {
  auto state = PowerSgdState::create({problem.shapes, problem.factors, 99}, rank, ranks);
  EXPECT_TRUE(state.ok()) << state.error().message;
  return std::move(state).value();
}

std::vector<const float*> inputs_of(const Matrices& all) {
  std::vector<const float*> pointers;
  for (const Vector& one : all) pointers.push_back(one.data());
  return pointers;
}
std::vector<float*> outputs_of(Matrices& all) {
  std::vector<float*> pointers;
  for (Vector& one : all) pointers.push_back(one.data());
  return pointers;
}

Status reduce(const Member& member, bool average, PowerSgdFeedback& feedback, const Matrices& in,
              Matrices& out) {
  std::vector<int> suspects;
  return power_sgd_all_reduce(member.group, inputs_of(in), outputs_of(out), average, feedback, member.soon(),
                              suspects);
}

std::vector<uint32_t> bits(const Vector& values) {
  std::vector<uint32_t> result;
  for (const float value : values) result.push_back(std::bit_cast<uint32_t>(value));
  return result;
}
bool equal_bits(const Matrices& a, const Matrices& b) {
  return std::ranges::equal(a, b, [](const Vector& x, const Vector& y) { return bits(x) == bits(y); });
}

// What a world ended with.
struct Outcome {
  std::vector<Matrices> results;      // of each step, the same on all ranks
  std::vector<PowerSgdState> states;  // of each rank
};

// All steps, in place, each committed. `states`: to begin with, or none for new ones.
Outcome run_steps(Medium medium, int ranks, const Problem& problem, std::vector<PowerSgdState> states = {}) {
  if (states.empty()) {
    for (int rank = 0; rank < ranks; ++rank) states.push_back(state_of(problem, rank, ranks));
  }
  std::vector<std::vector<Matrices>> results(static_cast<size_t>(ranks));
  run_world(medium, ranks, [&](Member& member) {
    const auto me = static_cast<size_t>(member.rank);
    PowerSgdFeedback feedback(states[me]);
    for (int step = 0; step < problem.steps; ++step) {
      Matrices values = gradients_of(problem, member.rank, step);
      member.expect_ok(reduce(member, problem.average, feedback, values, values), "reduce");
      member.expect_ok(feedback.commit(), "commit");
      results[me].push_back(std::move(values));
    }
    states[me] = feedback.state();
  });
  for (size_t rank = 1; rank < results.size(); ++rank) {
    for (size_t step = 0; step < results[0].size(); ++step)
      EXPECT_TRUE(equal_bits(results[rank][step], results[0][step]))
          << "rank " << rank << " of " << ranks << " has other bits in step " << step;
    EXPECT_EQ(bits(states[rank].start), bits(states[0].start)) << "another start on rank " << rank;
  }
  return {std::move(results[0]), std::move(states)};
}

// ---- the same in float64, naively

using Double = std::vector<double>;

// In place, column by column (modified Gram–Schmidt).
void orthonormalise(Double& columns, size_t length, uint32_t count) {
  for (size_t c = 0; c < count; ++c) {
    double* const column = &columns[c * length];
    for (size_t d = 0; d < c; ++d) {
      const double part = std::inner_product(column, column + length, &columns[d * length], 0.0);
      for (size_t i = 0; i < length; ++i) column[i] -= part * columns[d * length + i];
    }
    const double norm = std::sqrt(std::inner_product(column, column + length, column, 0.0));
    for (size_t i = 0; i < length; ++i) column[i] /= norm;
  }
}

struct Naive {
  std::vector<Double> residuals;  // of each rank
  Double start;
};

Double naive_step(Naive& naive, const std::vector<Vector>& gradients, Shape shape, uint32_t factors,
                  bool average) {
  const auto [a, b] = shape;
  const double part = average ? 1.0 / static_cast<double>(gradients.size()) : 1.0;
  Double p(a * factors), sum(b * factors), out(a * b);
  for (size_t rank = 0; rank < gradients.size(); ++rank) {
    for (size_t i = 0; i < a * b; ++i) naive.residuals[rank][i] += gradients[rank][i];
    for (size_t c = 0; c < factors; ++c) {
      for (size_t i = 0; i < a * b; ++i)
        p[c * a + i / b] += naive.residuals[rank][i] * naive.start[c * b + i % b];
    }
  }
  orthonormalise(p, a, factors);
  for (Double& m : naive.residuals) {
    Double r(b * factors);
    for (size_t c = 0; c < factors; ++c) {
      for (size_t i = 0; i < a * b; ++i) r[c * b + i % b] += m[i] * p[c * a + i / b];
      for (size_t i = 0; i < a * b; ++i) out[i] += part * p[c * a + i / b] * r[c * b + i % b];
      for (size_t j = 0; j < b; ++j) sum[c * b + j] += part * r[c * b + j];
    }
    for (size_t i = 0; i < a * b; ++i) {
      for (size_t c = 0; c < factors; ++c) m[i] -= p[c * a + i / b] * r[c * b + i % b];
    }
  }
  orthonormalise(sum, b, factors);
  naive.start = sum;
  return out;
}

TEST(PowerSgd, IsWhatANaiveOneInFloat64Computes) {
  for (const bool average : {true, false}) {
    for (const uint32_t factors : {1U, 2U, 3U}) {
      const Problem problem{{{20, 31}, {64, 16}, {17, 100}}, factors, average, 4};
      for (int ranks = 1; ranks <= 5; ++ranks) {
        const Outcome outcome = run_steps(Medium::kInProcess, ranks, problem);
        size_t at = 0, owed_at = 0;
        for (size_t m = 0; m < problem.shapes.size(); ++m) {
          const Shape shape = problem.shapes[m];
          ASSERT_TRUE(power_sgd::pays(shape, factors));
          const PowerSgdState first = state_of(problem, 0, ranks);
          Naive naive{std::vector<Double>(static_cast<size_t>(ranks), Double(shape.count())), {}};
          const auto begin = first.start.begin() + static_cast<ptrdiff_t>(at);
          naive.start.assign(begin, begin + static_cast<ptrdiff_t>(factors * shape.columns));
          at += factors * shape.columns;
          for (int step = 0; step < problem.steps; ++step) {
            std::vector<Vector> gradients;
            for (int rank = 0; rank < ranks; ++rank)
              gradients.push_back(gradients_of(problem, rank, step)[m]);
            const Double wanted = naive_step(naive, gradients, shape, factors, average);
            const Vector& found = outcome.results[static_cast<size_t>(step)][m];
            for (size_t i = 0; i < wanted.size(); ++i)
              ASSERT_NEAR(found[i], wanted[i], average ? 2e-4 : 1e-3)
                  << "matrix " << m << ", step " << step << ", element " << i << ", ranks " << ranks;
          }
          // Each rank owes what it has not sent itself, not its difference to the mean.
          for (size_t rank = 0; rank < naive.residuals.size(); ++rank) {
            for (size_t i = 0; i < shape.count(); ++i)
              ASSERT_NEAR(outcome.states[rank].residual[owed_at + i], naive.residuals[rank][i], 1e-3)
                  << "residual of rank " << rank << ", matrix " << m << ", element " << i;
          }
          owed_at += shape.count();
        }
      }
    }
  }
}

// Of every kind: those that pay, those that do not, and those that are nothing.
const Problem kMixed{{{33, 70}, {1, 50}, {50, 1}, {0, 0}, {0, 7}, {128, 9}, {4, 4}, {300, 40}, {7, 0}}, 3};

TEST(PowerSgd, BitsDependOnTheNumberOfRanksOnly) {
  for (int ranks = 1; ranks <= 5; ++ranks) {
    const Outcome wanted = run_steps(Medium::kInProcess, ranks, kMixed);
    const auto expect_same = [&](const Outcome& found, const char* what) {
      for (size_t step = 0; step < wanted.results.size(); ++step)
        EXPECT_TRUE(equal_bits(found.results[step], wanted.results[step])) << what << ", " << ranks;
      EXPECT_EQ(found.states, wanted.states) << what;
    };
    expect_same(run_steps(Medium::kInProcess, ranks, kMixed), "once more");
    expect_same(run_steps(Medium::kNodeThreads, ranks, kMixed), "shared memory");
    if (ranks == 4) expect_same(run_steps(Medium::kNodesThreads, ranks, kMixed), "two nodes");
    codec::limit_simd_targets(0);
    expect_same(run_steps(Medium::kInProcess, ranks, kMixed), "without vectors of this processor");
    codec::limit_simd_targets(-1);
  }
}

TEST(PowerSgd, BetweenProcessesToo) {
  const Outcome wanted = run_steps(Medium::kInProcess, 3, kMixed);
  for (const Medium medium : {Medium::kNodeProcesses, Medium::kUcxProcesses}) {
    run_world(medium, 3, [&](Member& member) {
      PowerSgdFeedback feedback(state_of(kMixed, member.rank, 3));
      for (int step = 0; step < kMixed.steps; ++step) {
        const Matrices in = gradients_of(kMixed, member.rank, step);
        Matrices out = in;
        member.expect_ok(reduce(member, true, feedback, in, out), "reduce");
        member.expect(equal_bits(out, wanted.results[static_cast<size_t>(step)]), "other bits");
        member.expect(equal_bits(in, gradients_of(kMixed, member.rank, step)), "the input has changed");
        member.expect_ok(feedback.commit(), "commit");
      }
      member.expect(feedback.state() == wanted.states[static_cast<size_t>(member.rank)], "another state");
    });
  }
}

TEST(PowerSgd, WhatDoesNotPayIsThePlainMean) {
  const Problem problem{{{1, 50}, {50, 1}, {4, 4}, {2, 1000}}, 1, true, 1};
  const PowerSgdState state = state_of(problem, 0, 2);
  EXPECT_EQ(state.sizes().first, 50U + 50 + 16 + 2000);
  EXPECT_EQ(state.sizes().second + state.sizes().residual, 0U);
  const Matrices result = run_steps(Medium::kNodeThreads, 2, problem).results[0];
  for (size_t m = 0; m < result.size(); ++m) {
    for (size_t i = 0; i < result[m].size(); ++i)
      EXPECT_EQ(result[m][i], 0.5F * (usual(0, 0, m, i) + usual(1, 0, m, i)));
  }
  EXPECT_EQ(run_steps(Medium::kInProcess, 3, {{}, 4}).results[0], Matrices{}) << "no matrix at all";
}

double norm(const Vector& values) {
  return std::sqrt(std::inner_product(values.begin(), values.end(), values.begin(), 0.0));
}

// What was to be applied by `problem`'s steps, minus what was.
Double missing_of(const Problem& problem, int ranks, const Outcome& outcome) {
  Double missing;
  for (size_t m = 0; m < problem.shapes.size(); ++m) {
    if (!power_sgd::pays(problem.shapes[m], problem.factors)) continue;
    const size_t at = missing.size();
    missing.resize(at + problem.shapes[m].count());
    for (int step = 0; step < problem.steps; ++step) {
      for (int rank = 0; rank < ranks; ++rank) {
        for (size_t i = at; i < missing.size(); ++i)
          missing[i] += problem.gradient(rank, step, m, i - at) / (problem.average ? double(ranks) : 1.0);
      }
      for (size_t i = at; i < missing.size(); ++i)
        missing[i] -= outcome.results[static_cast<size_t>(step)][m][i - at];
    }
  }
  return missing;
}

Double debt_of(const std::vector<PowerSgdState>& states, bool average) {
  Double debt(states[0].residual.size());
  for (const PowerSgdState& state : states) {
    for (size_t i = 0; i < debt.size(); ++i)
      debt[i] += state.residual[i] / (average ? static_cast<double>(states.size()) : 1.0);
  }
  return debt;
}

TEST(PowerSgd, FeedbackConservesWhatIsLeftOut) {
  for (const bool average : {true, false}) {
    Problem problem = kMixed;
    problem.average = average;
    problem.steps = 50;
    constexpr int kRanks = 3;
    const Outcome outcome = run_steps(Medium::kInProcess, kRanks, problem);
    const Double missing = missing_of(problem, kRanks, outcome), debt = debt_of(outcome.states, average);
    ASSERT_EQ(missing.size(), debt.size());
    double largest = 0;
    for (size_t i = 0; i < debt.size(); ++i) {
      // Each step rounds some ten numbers of the residual's magnitude, which is about 10 after a while.
      ASSERT_NEAR(missing[i], debt[i], 50 * 10 * 0x1p-24 * 20 * (average ? 1 : kRanks)) << i;
      largest = std::max(largest, std::abs(debt[i]));
    }
    EXPECT_GT(largest, 0.1) << "nothing was left out: this test shows nothing";
    // It does not grow for ever: after twice the steps it is not twice as large.
    problem.steps = 100;
    const Outcome later = run_steps(Medium::kInProcess, kRanks, problem);
    EXPECT_LT(norm(later.states[0].residual), 1.5 * norm(outcome.states[0].residual));
  }
}

// The ranks' gradients are of full rank, their mean is of rank 2.
float mean_of_rank_2(int rank, int, size_t, size_t i) {
  const size_t row = i / 60, column = i % 60;
  const float low =
      usual(7, 0, 0, row) * usual(8, 0, 0, column) + usual(9, 0, 0, row) * usual(10, 0, 0, column);
  const float own = usual(11, 0, 0, i);
  return low + (rank == 0 ? own : rank == 1 ? -own : 0.0F);
}

TEST(PowerSgd, AMeanOfLowRankArrivesWhole) {
  const Problem problem{{{40, 60}}, 2, true, 4, mean_of_rank_2};
  const Outcome outcome = run_steps(Medium::kNodeThreads, 3, problem);
  for (const Matrices& result : outcome.results) {
    for (size_t i = 0; i < result[0].size(); ++i)
      ASSERT_NEAR(result[0][i], mean_of_rank_2(2, 0, 0, i), 2e-6) << i;
  }
  // With one column for two directions, the start turns to the larger one; the other one is owed.
  Problem thin = problem;
  thin.factors = 1;
  const Outcome one = run_steps(Medium::kNodeThreads, 3, thin);
  EXPECT_GT(std::abs(one.results[3][0][7] - mean_of_rank_2(2, 0, 0, 7)), 1e-4);
}

// The start turns to the largest direction: without a warm start, the error would stay that of a random one.
TEST(PowerSgd, TheStartIsWarm) {
  const Gradient decaying = [](int, int, size_t, size_t i) {
    const size_t row = i / 64, column = i % 64;
    return row == column ? std::pow(0.5F, static_cast<float>(row)) : 0.0F;
  };
  const Problem problem{{{64, 64}}, 1, true, 1, decaying};
  std::vector<PowerSgdState> states = {state_of(problem, 0, 1)};
  double first = 0, last = 0;
  for (int step = 0; step < 12; ++step) {
    Outcome outcome = run_steps(Medium::kInProcess, 1, problem, states);
    states = std::move(outcome.states);
    (step == 0 ? first : last) = norm(states[0].residual);
    std::ranges::fill(states[0].residual, 0.0F);  // the same matrix again
  }
  EXPECT_GT(first, 0.6);
  EXPECT_NEAR(last, std::sqrt(1.0 / 3), 1e-3) << "not the best approximation of rank 1";
}

// Zeros leave no direction: starts are drawn anew, and what comes later is sent.
TEST(PowerSgd, StepsOfZerosDoNotSpoilTheStart) {
  Problem problem = kMixed;
  problem.steps = 4;
  problem.gradient = [](int rank, int step, size_t m, size_t i) {
    return step < 2 ? 0.0F : usual(rank, step, m, i);
  };
  const Outcome outcome = run_steps(Medium::kInProcess, 2, problem);
  for (const Vector& zeros : outcome.results[1])
    EXPECT_TRUE(std::ranges::all_of(zeros, [](float x) { return x == 0; }));
  EXPECT_GT(norm(outcome.results[3][0]), 1);
  for (const float value : outcome.states[0].start) ASSERT_TRUE(std::isfinite(value));
}

TEST(PowerSgd, WhatIsNotFiniteMakesItsMatrixNaNEverywhere) {
  for (const float bad : {kNaN, -kInfinity, 0x1p81F}) {
    Problem problem = kMixed;
    problem.steps = 3;
    problem.gradient = [bad](int rank, int step, size_t m, size_t i) {
      return step == 1 && rank == 1 && (m == 0 || m == 1) && i == 17 ? bad : usual(rank, step, m, i);
    };
    Problem before = problem;
    before.steps = 1;
    const Outcome outcome = run_steps(Medium::kNodeThreads, 3, problem);
    const Outcome wanted = run_steps(Medium::kInProcess, 3, before);
    Problem step = before;
    step.gradient = [&](int rank, int, size_t m, size_t i) { return problem.gradient(rank, 1, m, i); };
    const Outcome after = run_steps(Medium::kInProcess, 3, step, wanted.states);
    for (const float value : outcome.results[1][0])
      ASSERT_EQ(std::bit_cast<uint32_t>(value), 0x7FC00000U) << "of a matrix that has one";
    EXPECT_TRUE(std::isfinite(outcome.results[1][5][3])) << "of a matrix that has none";
    // In a matrix that does not pay it is where it was; what is merely large is a number.
    EXPECT_EQ(std::isfinite(outcome.results[1][1][17]), std::isfinite(bad));
    EXPECT_TRUE(std::isfinite(outcome.results[1][1][18]));
    for (size_t rank = 0; rank < 3; ++rank) {
      const size_t count = problem.shapes[0].count(), start = 3 * problem.shapes[0].columns;
      const PowerSgdState &old = wanted.states[rank], &now = after.states[rank];
      EXPECT_TRUE(std::equal(old.residual.begin(), old.residual.begin() + static_cast<ptrdiff_t>(count),
                             now.residual.begin()));
      EXPECT_TRUE(std::equal(old.start.begin(), old.start.begin() + static_cast<ptrdiff_t>(start),
                             now.start.begin()));
      EXPECT_NE(old.residual.back(), now.residual.back()) << "the others go on";
    }
    EXPECT_TRUE(std::isfinite(outcome.results[2][0][17])) << "the next step is spoiled";
  }
}

// ---- failures

const Problem kLarge{{{512, 700}, {9, 9}}, 4};

// Rank 1 ends the group at some moment of an operation: no other is changed by what did not end well.
TEST(PowerSgdFailures, LeaveStateAndOutputsAsTheyWere) {
  std::atomic<int> failed = 0;
  std::vector<Matrices> inputs;
  for (int rank = 0; rank < 3; ++rank) inputs.push_back(gradients_of(kLarge, rank, 0));
  for (int delay_us = 0; delay_us < 4000; delay_us += 400) {
    for (const Medium medium : {Medium::kInProcess, Medium::kNodeThreads}) {
      std::barrier first_done(3);   // an operation may end on one rank while others still wait for it
      std::barrier second_done(3);  // who leaves is heard as a reason too
      run_world(medium, 3, [&](Member& member) {
        PowerSgdFeedback feedback(state_of(kLarge, member.rank, 3));
        const Matrices& in = inputs[static_cast<size_t>(member.rank)];
        Matrices out = in;
        member.expect_ok(reduce(member, true, feedback, in, out), "the first one");
        member.expect_ok(feedback.commit(), "commit");
        const PowerSgdState before = feedback.state();
        first_done.arrive_and_wait();
        std::thread ender([&] {
          if (member.rank != 1) return;
          // So long that the operations that it meets are in another phase each time.
          usleep(static_cast<useconds_t>(delay_us));
          member.group.revoke({ErrorCode::kReconfigure, "rank 1 was told to stop"}, Group::Tell::kPeers);
        });
        Matrices values = in;
        const Status status = reduce(member, true, feedback, values, values);  // in place
        ender.join();
        second_done.arrive_and_wait();
        if (status.ok()) return;
        ++failed;
        member.expect(status.error().message.find("rank 1 was told to stop") != std::string::npos,
                      "says " + status.error().message);
        member.expect(feedback.state() == before, "the state has changed");
        member.expect(equal_bits(values, in), "an output was written");
        member.expect(!feedback.commit().ok(), "what failed can be committed");
        member.expect(!reduce(member, true, feedback, values, values).ok(), "a dead group works");
      });
    }
  }
  EXPECT_GT(failed, 10);
}

TEST(PowerSgdFailures, WhatIsNotCommittedIsRepeated) {
  run_world(Medium::kNodeThreads, 2, [](Member& member) {
    PowerSgdFeedback feedback(state_of(kMixed, member.rank, 2));
    member.expect(!feedback.commit().ok(), "nothing was done");
    Matrices results[2];
    for (Matrices& result : results) {
      result = gradients_of(kMixed, member.rank, 1);
      member.expect_ok(reduce(member, true, feedback, result, result), "reduce");
      member.expect(feedback.state() == state_of(kMixed, member.rank, 2), "it counts already");
    }
    member.expect(equal_bits(results[0], results[1]), "a repeated step has other bits");
    member.expect_ok(feedback.commit(), "commit");
    member.expect(feedback.state().steps == 1, "not one step");
    member.expect(!feedback.commit().ok(), "twice");
  });
}

TEST(PowerSgdFailures, ADeadlineNamesWhoDidNotCome) {
  run_world(Medium::kInProcess, 2, [&](Member& member) {
    if (member.rank == 1) {
      while (!member.group.failure()) usleep(1000);
      return;
    }
    PowerSgdFeedback feedback(state_of(kMixed, 0, 2));
    Matrices values = gradients_of(kMixed, 0, 0);
    std::vector<int> suspects;
    const Status status = power_sgd_all_reduce(member.group, inputs_of(values), outputs_of(values), true,
                                               feedback, now() + kSecond / 5, suspects);
    member.expect(!status.ok() && suspects == std::vector<int>{1}, "rank 1 is not the suspect");
  });
}

TEST(PowerSgdFailures, ARankWithoutMemoryTellsTheOthers) {
  run_world(Medium::kNodeThreads, 2, [&](Member& member) {
    PowerSgdFeedback feedback(state_of(kLarge, member.rank, 2));
    Matrices values = gradients_of(kLarge, member.rank, 0);
    const Instant begun = now();
    if (member.rank == 1) {
      large_allocations_left = 0;
      EXPECT_THROW((void)reduce(member, true, feedback, values, values), std::bad_alloc);
      large_allocations_left = -1;
      member.expect(!feedback.commit().ok(), "what was thrown out of can be committed");
      return;
    }
    const Status status = reduce(member, true, feedback, values, values);
    member.expect(!status.ok() && status.error().message.find("want of memory") != std::string::npos,
                  "not told: " + (status.ok() ? "ok" : status.error().message));
    member.expect(now() - begun < 15 * kSecond, "it waited for the deadline");
  });
}

TEST(PowerSgdFailures, WhatDiffersBetweenRanksIsTold) {
  const Problem base{{{40, 60}, {60, 40}}, 2};
  struct Difference {
    const char* said;
    std::function<void(Problem&)> problem = [](Problem&) {};
    std::function<void(PowerSgdState&)> state = [](PowerSgdState&) {};
  };
  const Difference differences[] = {
      // As many floats go over the wire.
      {"(60 × 40, 40 × 60)", [](Problem& p) { std::swap(p.shapes[0], p.shapes[1]); }},
      {"by rank 1", [](Problem& p) { p.factors = 1; }},
      {", sum", [](Problem& p) { p.average = false; }},
      {"step 5", {[](Problem&) {}}, [](PowerSgdState& s) { s.steps = 5; }},
      {"seed 7", {[](Problem&) {}}, [](PowerSgdState& s) { s.seed = 7; }},
      {"shapes and starts", {[](Problem&) {}}, [](PowerSgdState& s) { s.start[0] *= 1.5F; }}};
  for (const Difference& difference : differences) {
    for (const Medium medium : {Medium::kInProcess, Medium::kNodeThreads}) {
      run_world(medium, 2, [&](Member& member) {
        Problem problem = base;
        if (member.rank == 1) difference.problem(problem);
        PowerSgdState state = state_of(problem, member.rank, 2);
        if (member.rank == 1) difference.state(state);
        PowerSgdFeedback feedback(state);
        Matrices values = gradients_of(problem, member.rank, 0);
        const Status status = reduce(member, problem.average, feedback, values, values);
        if (status.ok()) return member.fail(std::string(difference.said) + " was not told");
        const std::string& said = status.error().message;
        member.expect(
            status.error().code == ErrorCode::kMisuse && said.find("ranks 0 and 1") != std::string::npos,
            "says " + said);
        member.expect(member.rank == 0 || said.find(difference.said) != std::string::npos,
                      std::string(difference.said) + " is not in: " + said);
      });
    }
  }
}

TEST(PowerSgdFailures, WrongCallsSendNothing) {
  run_world(Medium::kInProcess, 2, [](Member& member) {
    const Problem problem{{{40, 60}, {5, 0}}, 2};
    PowerSgdFeedback feedback(state_of(problem, member.rank, 2)),
        of_other(state_of(problem, 1 - member.rank, 2)), of_three(state_of(problem, member.rank, 3));
    Matrices values = gradients_of(problem, member.rank, 0);
    std::vector<int> suspects;
    const auto refused = [&](std::vector<const float*> in, std::vector<float*> out, PowerSgdFeedback& with,
                             const std::string& said) {
      const Status status = power_sgd_all_reduce(member.group, in, out, true, with, member.soon(), suspects);
      member.expect(!status.ok() && status.error().code == ErrorCode::kMisuse &&
                        status.error().message.find(said) != std::string::npos,
                    said + ": " + (status.ok() ? "taken" : status.error().message));
    };
    const auto in = inputs_of(values);
    const auto out = outputs_of(values);
    refused({in[0]}, out, feedback, "1 inputs and 2 outputs for the 2 matrices");
    refused(in, {out[0]}, feedback, "2 inputs and 1 outputs");
    refused({nullptr, nullptr}, out, feedback, "matrix 0, of 40 × 60, is null");
    refused(in, {nullptr, nullptr}, feedback, "is null");
    refused(in, out, of_other, "make a new one");
    refused(in, out, of_three, "of 3, this is rank");
    // An empty matrix needs no memory, and none of this has harmed the group.
    std::vector<const float*> some_in = {in[0], nullptr};
    std::vector<float*> some_out = {out[0], nullptr};
    member.expect_ok(
        power_sgd_all_reduce(member.group, some_in, some_out, true, feedback, member.soon(), suspects),
        "what was right");
  });
}

TEST(PowerSgd, StatesThatCannotBeAreRefused) {
  const auto refused = [](std::vector<Shape> shapes, uint32_t factors, int rank, int ranks,
                          const std::string& said) {
    const auto state = PowerSgdState::create({std::move(shapes), factors, 1}, rank, ranks);
    ASSERT_FALSE(state.ok()) << said;
    EXPECT_EQ(state.error().code, ErrorCode::kMisuse);
    EXPECT_NE(state.error().message.find(said), std::string::npos) << state.error().message;
  };
  constexpr uint64_t kMost = (uint64_t{1} << 51) - 1;
  refused({{4, 4}}, 0, 0, 1, "is 0; choose 1 … 1024");
  refused({{4, 4}}, 1025, 0, 1, "is 1025");
  refused({{kMost, 2}}, 1, 0, 1, "2^51 elements or more");
  refused({{kMost, 1}, {1, 1}}, 1, 0, 1, "2^51 elements or more");
  refused({{0, kMost + 1}}, 1, 0, 1, "2^51 elements or more");
  refused({{UINT64_MAX, UINT64_MAX}}, 1, 0, 1, "2^51 elements or more");
  refused({{4, 4}}, 1, 1, 1, "rank 1 is not one of 1");
  refused({{4, 4}}, 1, -1, 1, "rank -1");
  refused({{4, 4}}, 1, 0, 70'000, "at most 65535");
}

// ---- bytes

ByteBuffer bytes_of_state(const PowerSgdState& state) {
  ByteBuffer bytes(power_sgd_bytes(state));
  write_power_sgd(state, bytes);
  return bytes;
}

TEST(PowerSgdBytes, ComeBack) {
  for (const PowerSgdState& state : run_steps(Medium::kInProcess, 3, kMixed).states) {
    const auto read = read_power_sgd(bytes_of_state(state));
    ASSERT_TRUE(read.ok()) << read.error().message;
    EXPECT_EQ(*read, state);
    EXPECT_EQ(read->steps, 3U);
  }
  const PowerSgdState none = state_of({{}, 1}, 0, 1);
  EXPECT_EQ(read_power_sgd(bytes_of_state(none)).value(), none);
}

// With the checksum of what they became: who damages them on purpose can have that, too.
void expect_refused(ByteBuffer bytes, const std::string& what) {
  for (const bool sealed : {false, true}) {
    if (sealed && bytes.size() >= 32) {
      const uint32_t crc = crc32c(ByteSpan(bytes).subspan(32), crc32c(ByteSpan(bytes).first(28)));
      std::memcpy(bytes.data() + 28, &crc, sizeof crc);
    }
    const auto read = read_power_sgd(bytes);
    ASSERT_FALSE(read.ok()) << what;
    EXPECT_EQ(read.error().code, ErrorCode::kDropCheckpoint);
  }
}

TEST(PowerSgdBytes, HostileOnesAreRefused) {
  const Problem problem{{{10, 12}, {3, 2}}, 1};
  const ByteBuffer good = bytes_of_state(state_of(problem, 0, 2));
  ASSERT_EQ(good.size(), 64U + 2 * 16 + 4 * 120 + 4 * 12);
  for (size_t byte = 0; byte < good.size(); ++byte) {
    ByteBuffer bad = good;
    bad[byte] ^= std::byte{0x40};
    EXPECT_FALSE(read_power_sgd(bad).ok()) << byte;
  }
  for (size_t bytes = 0; bytes < good.size(); ++bytes)
    expect_refused({good.begin(), good.begin() + static_cast<ptrdiff_t>(bytes)}, std::to_string(bytes));
  ByteBuffer longer = good;
  longer.resize(good.size() + 4);
  expect_refused(longer, "longer");
  const auto with = [&](size_t at, auto value) {
    ByteBuffer bad = good;
    std::memcpy(bad.data() + at, &value, sizeof value);
    return bad;
  };
  for (const uint64_t value :
       {uint64_t{0}, uint64_t{1}, uint64_t{3}, uint64_t{1} << 30, uint64_t{1} << 60, UINT64_MAX}) {
    expect_refused(with(16, value), "matrices");
    for (const size_t at : {size_t{64}, size_t{72}}) expect_refused(with(at, value), "a shape");
  }
  for (const uint32_t factors : {0U, 2U, 1025U, UINT32_MAX}) expect_refused(with(48, factors), "factors");
  expect_refused(with(8, uint32_t{2}), "a rank that there is not");
  expect_refused(with(4, uint16_t{2}), "another version");
  expect_refused(with(60, uint32_t{1}), "reserved");
  expect_refused(with(24, uint32_t{1}), "reserved in the head");
  expect_refused(with(100, kNaN), "a residual that is not finite");
  expect_refused(with(good.size() - 4, kInfinity), "a start that is not finite");
}

// ---- merges

std::vector<PowerSgdState> merged(const std::vector<PowerSgdState>& all, const std::vector<int>& origins,
                                  bool average) {
  std::vector<const PowerSgdState*> given;
  for (const PowerSgdState& one : all) given.push_back(&one);
  std::vector<PowerSgdState> result;
  for (int rank = 0; rank < static_cast<int>(origins.size()); ++rank) {
    auto one = merge_power_sgd(given, origins, rank, average);
    EXPECT_TRUE(one.ok()) << one.error().message;
    if (one.ok()) result.push_back(std::move(*one));
  }
  return result;
}

TEST(PowerSgdMerge, ConservesTheDebt) {
  std::mt19937 random(4);
  for (int round = 0; round < 200; ++round) {
    const int before = 1 + static_cast<int>(random() % 7), after = 1 + static_cast<int>(random() % 7);
    const bool average = random() % 3 != 0;
    std::vector<PowerSgdState> all;
    for (int rank = 0; rank < before; ++rank) {
      PowerSgdState& one = all.emplace_back(state_of({{{20, 9}, {3, 3}}, 1}, rank, before));
      one.steps = 12;
      for (float& e : one.residual)
        e = std::ldexp(static_cast<float>(random()) * 0x1p-32F - 0.5F, static_cast<int>(random() % 40) - 20);
    }
    std::vector<int> origins(static_cast<size_t>(std::max(before, after)), -1);
    std::iota(origins.begin(), origins.begin() + before, 0);
    std::ranges::shuffle(origins, random);
    origins.resize(static_cast<size_t>(after));
    const std::vector<PowerSgdState> now = merged(all, origins, average);
    ASSERT_EQ(now.size(), origins.size());
    const Double old_debt = debt_of(all, average), new_debt = debt_of(now, average);
    for (size_t i = 0; i < old_debt.size(); ++i) {
      double magnitude = 0;
      for (const PowerSgdState& one : now) magnitude += std::abs(one.residual[i]);
      ASSERT_NEAR(new_debt[i], old_debt[i], 0x1p-23 * magnitude) << before << " to " << after;
    }
    for (int rank = 0; rank < after; ++rank) {
      const PowerSgdState& one = now[static_cast<size_t>(rank)];
      EXPECT_EQ(one.start, all[0].start);
      EXPECT_TRUE(one.rank == rank && one.ranks == after && one.steps == 12 && one.shapes == all[0].shapes);
    }
  }
}

// A training goes on with fewer ranks, and with more: nothing of what is owed gets lost.
TEST(PowerSgdMerge, AWorldThatChangesOwesWhatItOwed) {
  Problem problem{{{33, 70}, {64, 30}}, 2, true, 6};
  std::vector<PowerSgdState> states;
  Double missing;
  for (const auto& [ranks, origins] :
       {std::pair<int, std::vector<int>>{3, {}}, {2, {2, 0}}, {4, {0, -1, 1, -1}}}) {
    if (!states.empty()) states = merged(states, origins, true);
    Outcome outcome = run_steps(Medium::kInProcess, ranks, problem, states);
    states = std::move(outcome.states);
    const Double more = missing_of(problem, ranks, outcome);
    missing.resize(more.size());
    for (size_t i = 0; i < more.size(); ++i) missing[i] += more[i];
  }
  const Double debt = debt_of(states, true);
  for (size_t i = 0; i < debt.size(); ++i) ASSERT_NEAR(missing[i], debt[i], 1e-4) << i;
}

TEST(PowerSgdMerge, RefusesWhatIsNoSet) {
  const Problem problem{{{20, 9}}, 1};
  const std::vector<PowerSgdState> set = {state_of(problem, 0, 2), state_of(problem, 1, 2)};
  const auto refused = [&](const std::function<void(PowerSgdState&)>& change, const std::string& said) {
    PowerSgdState other = set[1];
    change(other);
    const PowerSgdState* const given[] = {&set[0], &other};
    const int origins[] = {0, 1};
    const auto result = merge_power_sgd(given, origins, 0, true);
    ASSERT_FALSE(result.ok()) << said;
    EXPECT_EQ(result.error().code, ErrorCode::kMisuse);
    EXPECT_NE(result.error().message.find(said), std::string::npos) << result.error().message;
  };
  refused([](PowerSgdState& s) { s.steps = 1; }, "after the same step");
  refused([](PowerSgdState& s) { s.seed = 1; }, "other matrices");
  refused([](PowerSgdState& s) { s.start[3] = 0; }, "other matrices");
  refused([](PowerSgdState& s) { s.shapes[0] = {9, 20}; }, "other matrices");
  refused([](PowerSgdState& s) { s.rank = 0; }, "number 1 of 2 is of rank 0");
  EXPECT_FALSE(merge_power_sgd({}, {}, 0, true).ok());
}

// ---- what it is for

// Least squares: W of 24 × 40 from 3 × 64 samples, by gradient descent.
double loss_after(int steps, bool compressed) {
  constexpr size_t kIn = 24, kOut = 40, kSamples = 64;
  constexpr float kRate = 0.5F;
  double loss = 0;
  run_world(Medium::kInProcess, 3, [&](Member& member) {
    const auto sample = [&](size_t s, size_t i) { return usual(member.rank, 0, 0, s * kIn + i); };
    Vector target(kIn * kOut);
    for (size_t i = 0; i < target.size(); ++i) target[i] = usual(50, 0, 0, i);
    Matrices weights = {Vector(kIn * kOut)}, gradient = weights;
    const Problem problem{{{kIn, kOut}}, 2};
    PowerSgdFeedback feedback(state_of(problem, member.rank, 3));
    for (int step = 0; step <= steps; ++step) {
      std::ranges::fill(gradient[0], 0.0F);
      double own = 0;
      for (size_t s = 0; s < kSamples; ++s) {
        for (size_t o = 0; o < kOut; ++o) {
          float error = 0;
          for (size_t i = 0; i < kIn; ++i)
            error += sample(s, i) * (weights[0][i * kOut + o] - target[i * kOut + o]);
          own += error * error / (kSamples * kOut);
          for (size_t i = 0; i < kIn; ++i) gradient[0][i * kOut + o] += sample(s, i) * error / kSamples;
        }
      }
      if (step == steps) {
        if (member.rank == 0) loss = own;
        return;
      }
      if (compressed) {
        member.expect_ok(reduce(member, true, feedback, gradient, gradient), "reduce");
        member.expect_ok(feedback.commit(), "commit");
      } else {
        member.expect_ok(member.group
                             .all_reduce(gradient[0].data(), gradient[0].data(), gradient[0].size(),
                                         DType::kFloat32, ReduceOp::kAvg, member.soon())
                             .wait(),
                         "all_reduce");
      }
      for (size_t i = 0; i < weights[0].size(); ++i) weights[0][i] -= kRate * gradient[0][i];
    }
  });
  return loss;
}

TEST(PowerSgd, LeastSquaresReachesTheLossOfFloat32) {
  const double first = loss_after(0, true), plain = loss_after(150, false),
               compressed = loss_after(150, true);
  EXPECT_LT(plain, 0.01 * first);
  EXPECT_LT(compressed, 1.5 * plain) << "of " << first << ", float32 has " << plain;
}

TEST(PowerSgd, TrafficIsThatOfTheFactors) {
  constexpr int kRanks = 4;
  const Problem problem{{{1000, 900}, {1, 900}}, 4};
  const PowerSgdState::Sizes sizes = state_of(problem, 0, kRanks).sizes();
  EXPECT_EQ(sizes.first + sizes.second, 4U * 1900 + 900);
  std::atomic<uint64_t> bytes = 0;
  run_world(Medium::kInProcess, kRanks,
            [&](Member& member) {
              PowerSgdFeedback feedback(state_of(problem, member.rank, kRanks));
              Matrices values = gradients_of(problem, member.rank, 0);
              member.expect_ok(reduce(member, true, feedback, values, values), "reduce");
            },
            {.wrap = [&](std::unique_ptr<Transport> inner) {
              return std::make_unique<testing_support::CountingTransport>(std::move(inner), bytes);
            }});
  const double each = static_cast<double>(bytes) / kRanks;
  const double wanted = 2.0 * (kRanks - 1) / kRanks * 4 * static_cast<double>(sizes.first + sizes.second);
  EXPECT_NEAR(each, wanted, 0.1 * wanted) << "beside headers, and what forms the group";
}

}  // namespace
}  // namespace muster
