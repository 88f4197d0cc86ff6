// A teacher and a learner on the real data plane (PROTOCOL 17): what arrives, and how a lesson ends.
#include "runtime/lesson.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <chrono>
#include <future>

#include "collectives/feed.h"
#include "collectives/transport/in_process.h"

namespace muster {
namespace {

constexpr size_t kFloats = 300'000;  // several messages
constexpr uint64_t kLesson = 4711;
constexpr Duration kSoon = 20 * kSecond;

struct Process {
  std::vector<float> weights = std::vector<float>(kFloats);
  State state;
  std::unique_ptr<Endpoint> endpoint;

  Process(const std::shared_ptr<InProcessNetwork>& network, float value, bool shared_memory) {
    for (size_t i = 0; i < kFloats; ++i) weights[i] = value + static_cast<float>(i % 1000);
    EXPECT_TRUE(state.add_replicated("w", weights.data(), DType::kFloat32, {kFloats}).ok());
    EndpointOptions options;
    options.transport = network->make_transport();
    options.shared_memory = shared_memory;
    endpoint = Endpoint::create(std::move(options)).value();
  }
};

// With and without shared memory, by which the state then comes.
class LessonTest : public ::testing::TestWithParam<bool> {
 protected:
  std::shared_ptr<InProcessNetwork> network = InProcessNetwork::create();
  Process old{network, 1, GetParam()};
  Process young{network, 2, GetParam()};
  LessonLimits limits;
  std::atomic<int> notices = 0;

  control::Teach teach(uint64_t lesson = kLesson) const {
    control::Teach message;
    message.lesson = lesson;
    message.learner.contact = young.endpoint->contact();
    return message;
  }
  // As soon as it is ready to.
  void start(Teacher& teacher, control::Version version) const {
    prepare(teacher);
    teacher.begin(version);
  }
  void prepare(Teacher& teacher) const {
    const auto ready = std::make_shared<std::promise<void>>();
    teacher.prepare(teach(), [ready] { ready->set_value(); });
    ready->get_future().wait();
  }
  control::Learn learn(uint64_t lesson = kLesson) const {
    control::Learn message;
    message.lesson = lesson;
    message.source.contact = old.endpoint->contact();
    return message;
  }
  std::unique_ptr<Learner> learner(uint64_t state_bytes = kFloats * sizeof(float),
                                   uint64_t lesson = kLesson) {
    return std::make_unique<Learner>(
        *young.endpoint, learn(lesson), state_bytes, [this] { ++notices; }, limits);
  }
  template <typename Condition>
  static bool soon(Condition condition) {
    for (const Instant deadline = now() + kSoon; now() < deadline;) {
      if (condition()) return true;
      std::this_thread::sleep_for(std::chrono::milliseconds(2));  // two threads' progress; nothing to wait on
    }
    return condition();
  }
  std::optional<std::vector<float>> gradient(Learner& from, control::Version version) {
    std::optional<std::vector<float>> found;
    soon([&] { return (found = from.take_gradient(version)).has_value() || from.failure(); });
    return found;
  }
  // The beginning of a lesson by somebody who is no Teacher.
  std::unique_ptr<FeedSource> feed() {
    auto made = std::make_unique<FeedSource>(*old.endpoint, lesson_tag(kLesson, kFeedItem), now() + kSoon);
    made->add(young.endpoint->contact());
    made->note(bytes_of(LessonHeader{7, kFloats * sizeof(float)}));
    return made;
  }
};

TEST_P(LessonTest, TheStateAndThenEachGradientArrive) {
  Teacher teacher(*old.endpoint, old.state, limits);
  const auto pupil = learner();
  start(teacher, 7);
  ASSERT_TRUE(soon([&] { return pupil->has_snapshot(); })) << pupil->failure().value_or("nothing came");
  const auto snapshot = pupil->take_snapshot();
  EXPECT_EQ(snapshot->version, 7);
  ASSERT_TRUE(young.state.install(snapshot->bytes, kNever).ok());
  EXPECT_EQ(young.state.digest(), old.state.digest());
  for (control::Version version = 7; version < 10; ++version) {
    const std::vector<float> sent = {1.0F, static_cast<float>(version)};
    teacher.note(version, sent);
    teacher.note(version, std::vector<float>{0, 0});  // the step is repeated under a new view: the same bits
    EXPECT_EQ(gradient(*pupil, version), sent);
  }
  EXPECT_TRUE(pupil->level());
  teacher.end(kLesson);
  EXPECT_TRUE(soon([&] { return pupil->failure().has_value(); }));
  EXPECT_EQ(pupil->failure(), "the teacher ended the lesson");
}

// The memory for the copy may take as long as it likes.
TEST_P(LessonTest, ALessonThatIsPreparedKeepsNoUpdateWaiting) {
  Teacher teacher(*old.endpoint, old.state, limits);
  prepare(teacher);
  ASSERT_TRUE(old.state.begin_write(now()).ok());
  teacher.begin(7);  // not beside an open update
  old.state.end_write();
  const auto pupil = learner();
  teacher.begin(8);
  ASSERT_TRUE(soon([&] { return pupil->has_snapshot(); })) << pupil->failure().value_or("nothing came");
  EXPECT_EQ(pupil->take_snapshot()->version, 8);
}

TEST_P(LessonTest, ALessonThatHasEndedDoesNotBegin) {
  Teacher teacher(*old.endpoint, old.state, limits);
  prepare(teacher);
  teacher.end(kLesson);
  teacher.begin(7);
  EXPECT_TRUE(old.state.begin_write(now()).ok()) << "a lease that nobody gives back";
  old.state.end_write();
}

// Else it would be waited for at the boundary, with all that the teacher has still to send.
TEST_P(LessonTest, ALearnerIsNotLevelWhileItsTeacherHasGradientsForIt) {
  const auto pupil = learner();
  const ByteBuffer state(kFloats * sizeof(float));
  const auto begun = feed();
  begun->run({state}, [](ByteSpan) {});
  begun->note(bytes_of(StateEnd{digest_of(ByteSpan(state)), 2}));
  ASSERT_TRUE(begun->finish().front().ok());
  ASSERT_TRUE(soon([&] { return pupil->has_snapshot(); })) << pupil->failure().value_or("nothing came");
  (void)pupil->take_snapshot();
  EXPECT_FALSE(pupil->level()) << "two are to come";
  const PeerId peer = old.endpoint->peer(young.endpoint->contact()).value();
  const auto send = [&](uint64_t item, ByteSpan bytes) {
    ASSERT_TRUE(old.endpoint->send(peer, lesson_tag(kLesson, item), bytes, now() + kSoon).wait().ok());
  };
  send(kGreetingItem, bytes_of(GradientHeader{.version = GradientHeader::kGreets}));
  const std::vector<float> floats = {1, 2};
  const ByteSpan bytes = std::as_bytes(std::span(floats));
  for (uint64_t left : {1, 0}) {
    const uint64_t item = kGreetingItem + 1 + 2 * (1 - left);
    send(item,
         bytes_of(GradientHeader{static_cast<int64_t>(8 - left), floats.size(), digest_of(bytes), left}));
    send(item + 1, bytes);
    EXPECT_EQ(gradient(*pupil, static_cast<control::Version>(8 - left)), floats);
    EXPECT_EQ(pupil->level(), left == 0);
  }
}

// One lease, one copy: also where the first of them has ended before it began.
TEST_P(LessonTest, LessonsThatBeginTogetherShareACopy) {
  Teacher teacher(*old.endpoint, old.state, limits);
  std::atomic<int> asked = 0;
  const std::vector<uint64_t> lessons = {1, 2, 3};
  for (const uint64_t lesson : lessons) teacher.prepare(teach(lesson), [&] { ++asked; });
  ASSERT_TRUE(soon([&] { return asked > 0; }));
  teacher.end(1);
  const auto second = learner(kFloats * sizeof(float), 2);
  const auto third = learner(kFloats * sizeof(float), 3);
  teacher.begin(7);
  teacher.begin(8);  // nothing is left to begin
  for (Learner* pupil : {second.get(), third.get()}) {
    ASSERT_TRUE(soon([&] { return pupil->has_snapshot(); })) << pupil->failure().value_or("nothing came");
    const auto snapshot = pupil->take_snapshot();
    EXPECT_EQ(snapshot->version, 7);
    ASSERT_TRUE(young.state.install(snapshot->bytes, kNever).ok());
    EXPECT_EQ(young.state.digest(), old.state.digest());
  }
  const std::vector<float> sent = {1, 2};
  teacher.note(7, sent);
  EXPECT_EQ(gradient(*second, 7), sent);
  EXPECT_EQ(gradient(*third, 7), sent);
  EXPECT_EQ(asked, 1) << "one copy for all";
  ASSERT_TRUE(old.state.begin_write(now() + kSoon).ok()) << "a lease that nobody gives back";
  old.state.end_write();
}

// What began before has another version.
TEST_P(LessonTest, ALessonThatComesLaterHasItsOwnCopy) {
  Teacher teacher(*old.endpoint, old.state, limits);
  const auto first = learner();
  start(teacher, 7);
  ASSERT_TRUE(soon([&] { return first->has_snapshot(); })) << first->failure().value_or("nothing came");
  std::atomic<int> asked = 0;
  teacher.prepare(teach(2), [&] { ++asked; });
  ASSERT_TRUE(soon([&] { return asked > 0; }));
  const auto second = learner(kFloats * sizeof(float), 2);
  teacher.begin(9);
  ASSERT_TRUE(soon([&] { return second->has_snapshot(); })) << second->failure().value_or("nothing came");
  EXPECT_EQ(second->take_snapshot()->version, 9);
}

// Its thread waits for nobody: what is left of the state is not sent.
TEST_P(LessonTest, AnEndedLessonDoesNotGoOnSlowly) {
  limits.share = 1e-6;
  const auto pupil = learner();
  const Instant begin = now();
  {
    Teacher teacher(*old.endpoint, old.state, limits);
    start(teacher, 7);
  }
  EXPECT_LT(now() - begin, kSoon);
}

// A program that has stopped takes nothing: the end of the run does not wait for it.
TEST_P(LessonTest, ALearnerThatTakesNothingDoesNotHoldUpTheEnd) {
  auto teacher = std::make_unique<Teacher>(*old.endpoint, old.state, limits);
  std::unique_ptr<Learner> pupil = learner();
  start(*teacher, 7);
  ASSERT_TRUE(soon([&] { return pupil->has_snapshot(); })) << pupil->failure().value_or("nothing came");
  pupil.reset();
  const Instant begin = now();
  for (control::Version version = 7; version < 20; ++version)
    teacher->note(version, std::vector<float>(kFloats, 1.0F));
  teacher->end_all();
  teacher.reset();
  EXPECT_LT(now() - begin, kSoon);
}

// What would be too much to keep is sent at full speed rather than lost.
TEST_P(LessonTest, ALessonWhoseGradientsPileUpGetsAllOfTheTime) {
  limits.share = 1e-6;
  limits.log_bytes_max = 100;
  Teacher teacher(*old.endpoint, old.state, limits);
  const auto pupil = learner();
  start(teacher, 7);
  teacher.note(7, std::vector<float>(10, 1.0F));
  ASSERT_TRUE(soon([&] { return pupil->has_snapshot(); })) << pupil->failure().value_or("nothing came");
}

TEST_P(LessonTest, AStateOfAnotherSizeIsRefused) {
  Teacher teacher(*old.endpoint, old.state, limits);
  const auto pupil = learner(8);
  start(teacher, 7);
  ASSERT_TRUE(soon([&] { return pupil->failure().has_value(); }));
  EXPECT_THAT(*pupil->failure(), ::testing::HasSubstr("this process registered 8"));
}

TEST_P(LessonTest, BytesThatDoNotMatchTheirDigestAreNeverInstalled) {
  const auto pupil = learner();
  ByteBuffer state(kFloats * sizeof(float));
  const Digest digest = digest_of(ByteSpan(state));
  state[5] = std::byte{1};
  const auto lying = feed();
  lying->run({state}, [](ByteSpan) {});
  lying->note(bytes_of(StateEnd{digest}));
  (void)lying->finish();
  ASSERT_TRUE(soon([&] { return pupil->failure().has_value(); }));
  EXPECT_THAT(*pupil->failure(), ::testing::HasSubstr("does not match its digest"));
  EXPECT_FALSE(pupil->has_snapshot());
}

TEST_P(LessonTest, AGradientThatDoesNotMatchItsDigestIsNotApplied) {
  const auto pupil = learner();
  const ByteBuffer state(kFloats * sizeof(float));
  const auto begun = feed();
  begun->run({state}, [](ByteSpan) {});
  begun->note(bytes_of(StateEnd{digest_of(ByteSpan(state))}));
  ASSERT_TRUE(begun->finish().front().ok());
  std::vector<float> floats = {1, 2};
  const GradientHeader header{7, floats.size(), digest_of(std::as_bytes(std::span(floats)))};
  floats[1] = 3;
  const PeerId peer = old.endpoint->peer(young.endpoint->contact()).value();
  const auto send = [&](uint64_t item, ByteSpan bytes) {
    ASSERT_TRUE(old.endpoint->send(peer, lesson_tag(kLesson, item), bytes, now() + kSoon).wait().ok());
  };
  send(kGreetingItem, bytes_of(GradientHeader{.version = GradientHeader::kGreets}));
  send(kGreetingItem + 1, bytes_of(header));
  send(kGreetingItem + 2, std::as_bytes(std::span(floats)));
  ASSERT_TRUE(soon([&] { return pupil->failure().has_value(); }));
  EXPECT_THAT(*pupil->failure(), ::testing::HasSubstr("gradient of version 7 does not match its digest"));
  EXPECT_FALSE(pupil->take_gradient(7));
}

TEST_P(LessonTest, ATeachersDeathEndsTheLesson) {
  const auto pupil = learner();
  feed().reset();  // with it the connection on the node ends, where there is one
  network->kill(0);
  EXPECT_TRUE(soon([&] { return pupil->failure().has_value(); }));
}

// Else its memory would fill at the speed of the network.
TEST_P(LessonTest, ALearnerThatFallsTooFarBehindBeginsAgain) {
  limits.log_bytes_max = 4 * kFloats * sizeof(float);
  Teacher teacher(*old.endpoint, old.state);
  const auto pupil = learner();
  start(teacher, 0);
  const std::vector<float> big(kFloats, 1.0F);
  for (control::Version version = 0; version < 2; ++version) teacher.note(version, big);
  EXPECT_EQ(gradient(*pupil, 0), big);
  EXPECT_EQ(gradient(*pupil, 1), big) << "what was taken does not count";
  for (control::Version version = 2; version < 7; ++version) teacher.note(version, big);
  ASSERT_TRUE(soon([&] { return pupil->failure().has_value(); }));
  EXPECT_THAT(*pupil->failure(), ::testing::HasSubstr("falls behind"));
  EXPECT_TRUE(pupil->lags());
}

// Else no learner of a large model would ever be level.
TEST_P(LessonTest, OneGradientMayWaitWhateverItsSize) {
  limits.log_bytes_max = 1;
  Teacher teacher(*old.endpoint, old.state, limits);
  const auto pupil = learner();
  start(teacher, 0);
  const std::vector<float> big(kFloats, 1.0F);
  for (control::Version version = 0; version < 5; ++version) {
    teacher.note(version, big);
    EXPECT_EQ(gradient(*pupil, version), big);
  }
  EXPECT_FALSE(pupil->lags());
}

// More wait at the teacher than may: it tells why it ends the lesson.
TEST_P(LessonTest, ATeacherWhoseLogIsFullSaysThatTheLearnerLags) {
  Teacher teacher(*old.endpoint, old.state, LessonLimits{.log_bytes_max = 0});
  const auto pupil = learner();
  start(teacher, 0);
  teacher.note(0, std::vector<float>(kFloats, 1.0F));
  ASSERT_TRUE(soon([&] { return pupil->failure().has_value(); }));
  EXPECT_TRUE(pupil->lags()) << *pupil->failure();
}

TEST_P(LessonTest, ALessonThatIsEndedDoesNotLag) {
  Teacher teacher(*old.endpoint, old.state);
  const auto pupil = learner();
  start(teacher, 0);
  ASSERT_TRUE(soon([&] { return pupil->has_snapshot(); }));
  teacher.end_all();
  ASSERT_TRUE(soon([&] { return pupil->failure().has_value(); }));
  EXPECT_FALSE(pupil->lags()) << *pupil->failure();
}

// The run was destroyed in the middle of the state: what comes after must not touch the memory given back,
// which the address sanitizer sees.
TEST_P(LessonTest, ALearnerThatGoesLeavesNothingBehindThatIsStillWrittenTo) {
  auto pupil = learner();
  const ByteBuffer state(kFloats * sizeof(float), std::byte{3});
  const auto late = feed();
  std::this_thread::sleep_for(std::chrono::milliseconds(50));  // whichever side comes first is right as well
  pupil.reset();
  late->run({state}, [](ByteSpan) {});
  EXPECT_EQ(notices, 1) << "of its end";
}

INSTANTIATE_TEST_SUITE_P(Ways, LessonTest, ::testing::Bool(),
                         [](const auto& way) { return std::string(way.param ? "OnNode" : "ByTransport"); });

TEST(CancelledTransfer, EndsAtOnceAndTouchesItsMemoryNoMore) {
  const auto network = InProcessNetwork::create();
  Process one(network, 1, false);
  Process other(network, 2, false);
  ByteBuffer memory(1 << 20, std::byte{9});
  const PeerId peer = other.endpoint->peer(one.endpoint->contact()).value();
  const Work receive = other.endpoint->recv(peer, 5, memory, kNever);
  other.endpoint->cancel(receive);
  EXPECT_TRUE(receive.test());
  EXPECT_EQ(receive.wait().error().code, ErrorCode::kEnded);
  const ByteBuffer bytes(1 << 20);
  const PeerId back = one.endpoint->peer(other.endpoint->contact()).value();
  (void)one.endpoint->send(back, 5, bytes, now() + 100 * kMillisecond).wait();
  EXPECT_EQ(memory[0], std::byte{9});
  other.endpoint->cancel(receive);  // again: nothing
}

}  // namespace
}  // namespace muster
