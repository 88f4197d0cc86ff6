// A host's probe is the same each time, and another in each mode that changes what is computed.
#include "runtime/probe/host_probe.h"

#include <gtest/gtest.h>

#include <cfenv>
#include <set>

#if defined(__x86_64__)
#include <xmmintrin.h>
#endif

namespace muster::probe {
namespace {

uint64_t part(const HostProbe& probe, Part which) { return probe[static_cast<size_t>(which)]; }

TEST(HostProbe, IsTheSameEachTime) { EXPECT_EQ(probe_host(), probe_host()); }

TEST(HostProbe, HasPartsOfTheirOwn) {
  const HostProbe probe = probe_host();
  EXPECT_EQ(std::set<uint64_t>(probe.begin(), probe.end()).size(), kParts);
  for (size_t p = 0; p < kParts; ++p) EXPECT_NE(name_of(static_cast<Part>(p)), nullptr);
}

TEST(HostProbe, SeesTheRoundingMode) {
  const HostProbe usual = probe_host();
  for (const int mode : {FE_UPWARD, FE_DOWNWARD, FE_TOWARDZERO}) {
    ASSERT_EQ(std::fesetround(mode), 0);
    const HostProbe other = probe_host();
    ASSERT_EQ(std::fesetround(FE_TONEAREST), 0);
    EXPECT_NE(part(other, Part::kRounding), part(usual, Part::kRounding)) << mode;
    EXPECT_NE(part(other, Part::kFloat32), part(usual, Part::kFloat32)) << mode;
  }
}

#if defined(__x86_64__)
// As torch.set_flush_denormal, or -ffast-math at the start of any library in the process.
TEST(HostProbe, SeesFlushedDenormals) {
  const HostProbe usual = probe_host();
  const unsigned before = _mm_getcsr();
  constexpr unsigned kFlushToZero = 1U << 15, kDenormalsAreZero = 1U << 6;
  for (const unsigned mode : {kFlushToZero, kDenormalsAreZero}) {
    _mm_setcsr(before | mode);
    const HostProbe other = probe_host();
    _mm_setcsr(before);
    EXPECT_NE(part(other, Part::kDenormals), part(usual, Part::kDenormals)) << mode;
    EXPECT_EQ(part(other, Part::kFloat32), part(usual, Part::kFloat32)) << mode;
  }
}
#endif

}  // namespace
}  // namespace muster::probe
