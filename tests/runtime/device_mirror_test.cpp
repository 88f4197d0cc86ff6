// A state with tensors in the memory of a (fake) device: what readers see, and who waits for whom.
#include "runtime/device_mirror.h"

#include <gmock/gmock.h>

#include <algorithm>
#include <cmath>
#include <vector>

#include "tests/runtime/fake_device.h"

namespace muster {
namespace {

using testing::HasSubstr;

constexpr size_t kCount = 3000;

// Two tensors on the device and one on the host. At version v all of them are v, everywhere.
class Program {
 public:
  explicit Program(void* program_stream) : stream_(program_stream) {
    add("w", w_.data(), {kCount}, Memory::kCuda);
    add("step", step_, {2}, Memory::kHost);
    add("none", nullptr, {0}, Memory::kCuda);
    add("m", m_.data(), {7}, Memory::kCuda);
    state_.seal();
  }

  Status open() {
    MUSTER_ASSIGN(device_, Device::open(stream_));
    MUSTER_ASSIGN(mirror_, DeviceMirror::attach(*device_, state_));
    return ok();
  }

  // An update to the next version, after `late`.
  Status update(Duration late = 0) {
    MUSTER_TRY(state_.begin_write(now() + 10 * kSecond));
    version_ = version_ + 1;
    std::fill(step_, step_ + 2, version_);
    Stream::enqueue_on(
        stream_,
        [w = w_.data(), m = m_.data(), v = version_.load()] {
          std::fill(w, w + kCount, v);
          std::fill(m, m + 7, v);
        },
        late);
    const Status noted = state_.note_written();
    state_.end_write();
    return noted;
  }

  Status install(float version) {
    std::vector<float> values(state_.bytes() / sizeof(float), version);
    const Status installed = state_.install(
        {reinterpret_cast<const std::byte*>(values.data()), state_.bytes()}, now() + 10 * kSecond);
    if (installed.ok()) version_ = version;
    return installed;
  }

  // What a lease shows, or NaN where it is not one version.
  float seen() const {
    std::vector<float> values(state_.bytes() / sizeof(float));
    state_.copy_to({reinterpret_cast<std::byte*>(values.data()), state_.bytes()});
    const bool whole = std::all_of(values.begin(), values.end(), [&](float v) { return v == values[0]; });
    return whole ? values[0] : std::nanf("");
  }

  Result<float> read(Instant deadline) {
    MUSTER_TRY(state_.acquire_read(deadline));
    const Status readable = state_.wait_readable(deadline);
    const float version = readable.ok() ? seen() : 0;
    state_.release_read();
    MUSTER_TRY(readable);
    return version;
  }

  bool tensors_are(float version) const {
    Stream::drain(stream_);
    const auto is = [&](float v) { return v == version; };
    return std::all_of(w_.data(), w_.data() + kCount, is) && std::all_of(m_.data(), m_.data() + 7, is) &&
           std::all_of(step_, step_ + 2, is);
  }

  State& state() { return state_; }
  const Device& device() const { return *device_; }
  float version() const { return version_; }

 private:
  void add(const char* name, void* data, std::vector<int64_t> shape, Memory memory) {
    EXPECT_TRUE(state_.add_replicated(name, data, DType::kFloat32, std::move(shape), memory).ok());
  }

  OnDevice<float> w_{kCount}, m_{7};
  float step_[2] = {};
  State state_;
  void* stream_;
  std::atomic<float> version_ = 0;
  std::unique_ptr<Device> device_;
  std::unique_ptr<DeviceMirror> mirror_;
};

class DeviceMirrorTest : public FakeDevice {};

TEST_F(DeviceMirrorTest, AReaderSeesWhatWasEnqueuedBeforeTheUpdateClosed) {
  for (const bool own : {true, false}) {
    const Stream stream;
    Program program(own ? stream.get() : nullptr);
    ASSERT_TRUE(program.open().ok());
    EXPECT_EQ(program.read(kNever).value(), 0);
    for (const float version : {1.0F, 2.0F, 3.0F}) {
      ASSERT_TRUE(program.update(5 * kMillisecond).ok());
      EXPECT_EQ(program.read(kNever).value(), version);
      EXPECT_EQ(program.read(kNever).value(), version) << "the same copy again";
    }
    EXPECT_EQ(program.state().digest(), program.state().digest());
  }
}

// PROTOCOL 8: the device holds the update, the host does not wait.
TEST_F(DeviceMirrorTest, AnUpdateWaitsForTheCopyOnTheDeviceAndNotForReaders) {
  const Stream stream;
  Program program(stream.get());
  ASSERT_TRUE(program.open().ok());
  ASSERT_TRUE(program.update().ok());
  const Gate gate(program.device().copy_stream());
  ASSERT_TRUE(program.state().acquire_read(now()).ok());
  ASSERT_TRUE(program.update().ok()) << "though a lease is held and its copy has not begun";
  std::atomic<bool> updated = false;
  Stream::enqueue_on(stream.get(), [&] { updated = true; });
  pause_for(20 * kMillisecond);  // the stream must have had time to get it wrong
  EXPECT_FALSE(updated);
  EXPECT_EQ(program.state().wait_readable(now() + 5 * kMillisecond).error().code, ErrorCode::kRetry);
  gate.open();
  ASSERT_TRUE(program.state().wait_readable(kNever).ok());
  EXPECT_TRUE(wait_until([&] { return updated.load(); }));
  EXPECT_EQ(program.seen(), 1) << "the version of the lease, though the tensors are at 2";
  EXPECT_LT(program.state().stall(), 5 * kMillisecond);
  program.state().release_read();
  EXPECT_EQ(program.read(kNever).value(), 2);
}

TEST_F(DeviceMirrorTest, ALeaseForANewerVersionWaitsForThatForAnOlderOne) {
  const Stream stream;
  Program program(stream.get());
  ASSERT_TRUE(program.open().ok());
  ASSERT_TRUE(program.state().acquire_read(now()).ok());
  ASSERT_TRUE(program.state().acquire_read(now()).ok()) << "of the same version";
  program.state().release_read();
  ASSERT_TRUE(program.update().ok());
  const Status early = program.state().acquire_read(now() + 5 * kMillisecond);
  ASSERT_FALSE(early.ok());
  EXPECT_EQ(early.error().code, ErrorCode::kRetry);
  EXPECT_THAT(early.error().message, HasSubstr("an earlier version was still read"));
  ASSERT_TRUE(program.state().wait_readable(kNever).ok());
  EXPECT_EQ(program.seen(), 0);
  std::thread reader([&] { EXPECT_EQ(program.read(now() + 20 * kSecond).value(), 1); });
  program.state().release_read();
  reader.join();
}

TEST_F(DeviceMirrorTest, AnUpdateThatWasNotMadeCostsNoCopy) {
  const Stream stream;
  Program program(stream.get());
  ASSERT_TRUE(program.open().ok());
  ASSERT_TRUE(program.state().acquire_read(now()).ok());
  ASSERT_TRUE(program.state().begin_write(now()).ok());
  EXPECT_FALSE(program.state().acquire_read(now()).ok()) << "an update is open";
  program.state().cancel_write();
  EXPECT_TRUE(program.state().acquire_read(now()).ok()) << "beside the first one: nothing has changed";
  program.state().release_read();
  program.state().release_read();
}

TEST_F(DeviceMirrorTest, AnInstallationIsSeenByTheProgramsStreamAndByReaders) {
  const Stream stream;
  Program program(stream.get());
  ASSERT_TRUE(program.open().ok());
  ASSERT_TRUE(program.state().acquire_read(now()).ok());
  std::vector<std::byte> zeros(program.state().bytes());
  EXPECT_EQ(program.state().install(zeros, now() + 5 * kMillisecond).error().code, ErrorCode::kRetry);
  program.state().release_read();
  {
    const Gate busy(stream.get());  // the program is still at work, and nobody waits for it
    ASSERT_TRUE(program.install(7).ok());
  }
  EXPECT_TRUE(program.tensors_are(7));
  EXPECT_EQ(program.read(kNever).value(), 7);
  ASSERT_TRUE(program.install(8).ok());
  ASSERT_TRUE(program.install(9).ok());
  EXPECT_EQ(program.read(kNever).value(), 9);
  EXPECT_TRUE(program.tensors_are(9));
}

TEST_F(DeviceMirrorTest, EachByteThatAReaderSeesIsOfOneVersion) {
  const Stream stream;
  Program program(stream.get());
  ASSERT_TRUE(program.open().ok());
  std::atomic<bool> over = false;
  std::atomic<int> reads = 0;
  const auto read_on = [&](unsigned seed) {
    std::minstd_rand random(seed);
    while (!over) {
      const float before = program.version();
      if (!program.state().acquire_read(now() + 2 * kMillisecond).ok()) continue;
      const float after = program.version();
      ASSERT_TRUE(program.state().wait_readable(kNever).ok());
      const float seen = program.seen();
      pause_for(static_cast<Duration>(random() % 300) * kMicrosecond);
      ASSERT_EQ(program.seen(), seen) << "while the lease is held";
      program.state().release_read();
      ASSERT_GE(seen, before);
      ASSERT_LE(seen, after + 1);  // an installation is counted when it is over
      ++reads;
    }
  };
  std::thread first(read_on, 1), second(read_on, 2);
  std::minstd_rand random(3);
  for (int i = 0; i < 150; ++i) {
    const auto late = static_cast<Duration>(random() % 300) * kMicrosecond;
    if (random() % 8 == 0) {
      // An installation gives way to readers, who may always be there.
      const Status installed = program.install(program.version() + 1);
      ASSERT_TRUE(installed.ok() || installed.error().code == ErrorCode::kRetry);
    } else {
      ASSERT_TRUE(program.update(late).ok());
    }
    if (random() % 4 == 0) {
      const float version = program.version();  // no update is open on this thread
      const auto seen = program.read(now() + 10 * kSecond);
      ASSERT_TRUE(seen.ok()) << seen.error().message;
      ASSERT_EQ(*seen, version);
    }
  }
  over = true;
  first.join();
  second.join();
  EXPECT_GT(reads, 20);
  EXPECT_TRUE(program.tensors_are(program.version()));
}

TEST_F(DeviceMirrorTest, ATensorThatIsElsewhereIsNamed) {
  const Stream stream;
  State state;
  float host[4] = {};
  ASSERT_TRUE(state.add_replicated("w", host, DType::kFloat32, {4}, Memory::kCuda).ok());
  const auto device = Device::open(stream.get());
  ASSERT_TRUE(device.ok());
  const auto mirror = DeviceMirror::attach(**device, state);
  ASSERT_FALSE(mirror.ok());
  EXPECT_EQ(mirror.error().code, ErrorCode::kMisuse);
  EXPECT_THAT(mirror.error().message, HasSubstr("tensor 'w' is said to be in the memory of CUDA device 0"));
  State other;
  const OnDevice<float> there(4);
  ASSERT_TRUE(other.add_replicated("v", there.data(), DType::kFloat32, {4}, Memory::kHost).ok());
  const auto refused = DeviceMirror::attach(**device, other);
  ASSERT_FALSE(refused.ok());
  EXPECT_THAT(refused.error().message, HasSubstr("tensor 'v' is said to be in the host's memory, and is in"));
}

// A lease takes no call of the device, which may make who calls wait; the next update copies for it.
TEST_F(DeviceMirrorTest, WhatALeaseIsForIsCopiedByTheNextUpdateAtTheLatest) {
  const Stream stream;
  Program program(stream.get());
  ASSERT_TRUE(program.open().ok());
  ASSERT_TRUE(program.update().ok());
  const int before = fakes::cuda_calls();
  ASSERT_TRUE(program.state().acquire_read(now()).ok());
  EXPECT_EQ(fakes::cuda_calls(), before);
  ASSERT_TRUE(program.update().ok());
  ASSERT_TRUE(program.state().wait_readable(kNever).ok());
  EXPECT_EQ(program.seen(), 1);
  program.state().release_read();
  // A lease that is given back unread costs the update nothing.
  ASSERT_TRUE(program.state().acquire_read(now()).ok());
  program.state().release_read();
  const int unread = fakes::cuda_calls();
  ASSERT_TRUE(program.state().begin_write(now()).ok());
  const int opening = fakes::cuda_calls() - unread;
  program.state().cancel_write();
  ASSERT_TRUE(program.state().begin_write(now()).ok());
  program.state().cancel_write();
  EXPECT_EQ(fakes::cuda_calls(), unread + 2 * opening) << "the same calls as with no lease before";
  EXPECT_EQ(program.read(kNever).value(), 2);
}

TEST_F(DeviceMirrorTest, AStreamOfAnotherDeviceIsRefused) {
  const Stream stream;  // of device 0
  ASSERT_EQ(cuda().set_device(1), 0);
  const auto device = Device::open(stream.get());
  ASSERT_EQ(cuda().set_device(0), 0);
  ASSERT_FALSE(device.ok());
  EXPECT_EQ(device.error().code, ErrorCode::kMisuse);
  EXPECT_THAT(device.error().message, HasSubstr("no stream of CUDA device 1"));
  EXPECT_EQ(fakes::cuda_violations(), 1) << "the fake has seen it, too";
  fakes::cuda_reset();
}

TEST_F(DeviceMirrorTest, WithoutADeviceTheReasonIsSaid) {
  constexpr int kNoDevice = 100;
  fakes::cuda_set_devices(0, kNoDevice);
  const auto device = Device::open(nullptr);
  ASSERT_FALSE(device.ok());
  EXPECT_EQ(device.error().code, ErrorCode::kEnvironment);
  EXPECT_THAT(device.error().message, HasSubstr("no CUDA-capable device"));
}

// Updates, reads and an installation; every failure is returned in words, and the next attempt works.
// `call`: which call of CUDA fails, of the library's; 0: none.
Status short_life(const Stream& stream, int call) {
  Program program(stream.get());
  fakes::cuda_reset();
  fakes::cuda_inject({.call = call, .code = 2});
  MUSTER_TRY(program.open());
  Status first = ok();
  const auto note = [&](Status status) {
    if (first.ok() && !status.ok()) first = std::move(status);
  };
  for (int i = 0; i < 2; ++i) {
    note(program.update());
    auto seen = program.read(now() + 10 * kSecond);
    if (!seen.ok()) {
      note(seen.error());
      seen = program.read(now() + 10 * kSecond);
    }
    // The failure may have been in noting what the update wrote: then that version is never readable.
    if (seen.ok()) {
      EXPECT_EQ(*seen, program.version());
    }
  }
  note(program.install(9));
  note(program.update());
  const auto last = program.read(now() + 10 * kSecond);
  if (last.ok()) {
    EXPECT_EQ(*last, program.version());
  } else {
    note(last.error());
  }
  return first;
}

TEST_F(DeviceMirrorTest, AFailureOfAnyCallIsSaidAndLeaksNothing) {
  const Stream stream;
  ASSERT_TRUE(short_life(stream, 0).ok());
  int failed = 0, call = 1;
  for (; call <= 400; ++call) {
    const Status status = short_life(stream, call);
    const bool reached = fakes::cuda_calls() >= call;
    fakes::cuda_inject({});
    if (!status.ok()) {
      ++failed;
      EXPECT_THAT(status.error().message, testing::AnyOf(HasSubstr("cuda"), HasSubstr("CUDA"))) << call;
      EXPECT_THAT(status.error().message, HasSubstr("out of memory")) << call;
    }
    ASSERT_TRUE(wait_until([] { return fakes::cuda_live() == 2; })) << "call " << call;  // the test's stream
    ASSERT_EQ(fakes::cuda_violations(), 0) << "call " << call;
    if (!reached) break;
  }
  EXPECT_LT(call, 400) << "all calls were tried";
  EXPECT_GT(failed, 40);
}

}  // namespace
}  // namespace muster
