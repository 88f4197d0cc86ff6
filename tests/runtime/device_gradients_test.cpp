// Means into the memory of a (fake) device: on the program's stream, in any pieces and slots.
#include "runtime/device_gradients.h"

#include <gmock/gmock.h>

#include <algorithm>
#include <numeric>

#include "tests/runtime/fake_device.h"

namespace muster {
namespace {

using testing::HasSubstr;

class DeviceGradientsTest : public FakeDevice {
 protected:
  static constexpr size_t kFirst = 10, kSecond = 1, kThird = 26, kCount = kFirst + kSecond + kThird;

  // The program's kernel, late: element i becomes base + i.
  void compute(float base) {
    stream_.enqueue([a = a_.data(), b = b_.data(), c = c_.data(), base] {
      std::iota(a, a + kFirst, base);
      std::iota(b, b + kSecond, base + kFirst);
      std::iota(c, c + kThird, base + kFirst + kSecond);
    });
  }
  std::vector<float> now_on_device() const {
    stream_.drain();
    std::vector<float> all(a_.data(), a_.data() + kFirst);
    all.insert(all.end(), b_.data(), b_.data() + kSecond);
    all.insert(all.end(), c_.data(), c_.data() + kThird);
    return all;
  }
  Gradients pieces() const { return {{a_.data(), kFirst}, {}, {b_.data(), kSecond}, {c_.data(), kThird}}; }

  const Instant soon_ = now() + 20 * muster::kSecond;
  Stream stream_;
  OnDevice<float> a_{kFirst}, b_{kSecond}, c_{kThird};
};

TEST_F(DeviceGradientsTest, TheMeanIsThereForWhatIsEnqueuedLater) {
  const auto device = Device::open(stream_.get()).value();
  for (const size_t slot : {size_t{1}, size_t{4}, kCount}) {
    const auto gradients = DeviceGradients::make(*device, slot).value();
    std::vector<float> mean(kCount);
    std::iota(mean.begin(), mean.end(), -7.0F);
    compute(1);  // late: it must not come after the mean
    ASSERT_TRUE(gradients->put(mean, pieces(), soon_).ok());
    std::fill(mean.begin(), mean.end(), 0.0F);  // the caller's again
    std::vector<float> seen(kCount);
    stream_.enqueue([&seen, a = a_.data(), c = c_.data()] {
      std::copy(a, a + kFirst, seen.begin());
      std::copy(c, c + kThird, seen.begin() + kFirst + kSecond);
    });
    stream_.drain();
    EXPECT_EQ(seen[0], -7.0F);
    EXPECT_EQ(seen[kCount - 1], -7.0F + static_cast<float>(kCount - 1));
    EXPECT_EQ(b_.data()[0], -7.0F + static_cast<float>(kFirst));
    EXPECT_TRUE(gradients->zero(pieces(), 0, kCount).ok());
    EXPECT_EQ(now_on_device(), std::vector<float>(kCount));
  }
}

TEST_F(DeviceGradientsTest, APartIsZeroed) {
  const auto device = Device::open(stream_.get()).value();
  const auto gradients = DeviceGradients::make(*device).value();
  compute(100);
  ASSERT_TRUE(gradients->zero(pieces(), 5, 12).ok());
  std::vector<float> left(kCount);
  std::iota(left.begin(), left.end(), 100.0F);
  std::fill(left.begin() + 5, left.begin() + 12, 0.0F);
  EXPECT_EQ(now_on_device(), left);
}

TEST_F(DeviceGradientsTest, NoElementsCanBePut) {
  const auto device = Device::open(stream_.get()).value();
  const auto gradients = DeviceGradients::make(*device).value();
  EXPECT_TRUE(gradients->put({}, {}, soon_).ok());
}

TEST_F(DeviceGradientsTest, PiecesThatAreElsewhereAreRefused) {
  const auto device = Device::open(stream_.get()).value();
  const auto gradients = DeviceGradients::make(*device).value();
  EXPECT_TRUE(gradients->check(pieces()).ok());
  float host[3] = {};
  const Status checked = gradients->check({{host, 3}});
  ASSERT_FALSE(checked.ok());
  EXPECT_EQ(checked.error().code, ErrorCode::kMisuse);
  EXPECT_THAT(checked.error().message, HasSubstr("in the host's"));
}

TEST_F(DeviceGradientsTest, ADeviceThatDoesNotComeToItsEndEndsTheWait) {
  const auto device = Device::open(stream_.get()).value();
  const auto gradients = DeviceGradients::make(*device, 4).value();
  const std::vector<float> mean(kCount);
  const Gate gate(stream_.get());
  const Status put = gradients->put(mean, pieces(), now() + 20 * kMillisecond);
  ASSERT_FALSE(put.ok());
  EXPECT_EQ(put.error().code, ErrorCode::kEnvironment);
  EXPECT_THAT(put.error().message, HasSubstr("did not end before the deadline"));
  gate.open();
}

}  // namespace
}  // namespace muster
