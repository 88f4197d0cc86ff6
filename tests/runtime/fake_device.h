// A CUDA device that is none, for tests of the run time: memory and streams of the fake CUDA run time.
#pragma once

#include <gtest/gtest.h>

#include <atomic>
#include <chrono>
#include <cstring>
#include <functional>
#include <memory>
#include <random>
#include <thread>

#include "kernels/cuda_table.h"
#include "runtime/base/clock.h"
#include "tests/fakes/fakes.h"

namespace muster {

inline const CudaTable& cuda() {
  static const CudaTable* const loaded = cuda_table().value();
  return *loaded;
}

inline bool wait_until(const std::function<bool()>& done, Duration limit = 20 * kSecond) {
  for (const Instant end = now() + limit; now() < end;) {
    if (done()) return true;
    std::this_thread::sleep_for(std::chrono::microseconds(100));  // `done` looks at what tells nobody
  }
  return done();
}

// Gives what must not happen the time to happen; a test that uses it is right without it, and sees less.
inline void pause_for(Duration time) { std::this_thread::sleep_for(std::chrono::nanoseconds(time)); }

// Device memory, which a test may look into: it is the host's.
template <typename T>
class OnDevice {
 public:
  explicit OnDevice(size_t count) : count_(count) {
    EXPECT_EQ(cuda().device_allocate(&memory_, count * sizeof(T)), 0);
    std::memset(memory_, 0, count * sizeof(T));
  }
  ~OnDevice() { (void)cuda().device_free(memory_); }
  OnDevice(const OnDevice&) = delete;
  OnDevice& operator=(const OnDevice&) = delete;

  T* data() const { return static_cast<T*>(memory_); }
  size_t size() const { return count_; }

 private:
  size_t count_;
  void* memory_ = nullptr;
};

// A program's stream. Its kernels are functions, each a while late, so that what is not ordered shows.
class Stream {
 public:
  Stream() { EXPECT_EQ(cuda().stream_create(&stream_), 0); }
  ~Stream() { (void)cuda().stream_destroy(stream_); }
  Stream(const Stream&) = delete;
  Stream& operator=(const Stream&) = delete;

  void* get() const { return stream_; }

  void enqueue(std::function<void()> kernel) {
    enqueue_on(stream_, std::move(kernel), static_cast<Duration>(random_() % 200) * kMicrosecond);
  }
  static void enqueue_on(void* stream, std::function<void()> kernel, Duration late = 0) {
    fakes::cuda_enqueue(stream, [kernel = std::move(kernel), late] {
      if (late > 0) pause_for(late);
      kernel();
      return 0;
    });
  }
  void drain() const { drain(stream_); }
  static void drain(void* stream) {
    std::atomic<bool> passed = false;
    enqueue_on(stream, [&] { passed = true; });
    while (!passed) std::this_thread::yield();
  }

 private:
  void* stream_ = nullptr;
  std::minstd_rand random_{1};
};

// What a stream waits for until a test lets it go on.
class Gate {
 public:
  explicit Gate(void* stream) {
    Stream::enqueue_on(stream, [open = open_] { open->wait(false); });
  }
  ~Gate() { open(); }
  void open() const {
    *open_ = true;
    open_->notify_all();
  }

 private:
  std::shared_ptr<std::atomic<bool>> open_ = std::make_shared<std::atomic<bool>>(false);
};

class FakeDevice : public ::testing::Test {
 protected:
  FakeDevice() { fakes::cuda_reset(); }
  ~FakeDevice() override {  // after what a test's own fixture holds
    fakes::cuda_inject({});
    EXPECT_TRUE(nothing_lives());
    EXPECT_EQ(fakes::cuda_violations(), 0);
  }
  static bool nothing_lives() {
    return wait_until([] { return fakes::cuda_live() == 0; });
  }
};

}  // namespace muster
