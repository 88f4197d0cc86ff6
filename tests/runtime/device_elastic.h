// What device_elastic_test and its workers agree on.
#pragma once

#include <cstddef>

namespace muster {

constexpr size_t kElasticCount = 20'000;

}  // namespace muster
