// What this host makes of arithmetic and of the C library's functions, on fixed inputs (rule 23 of the
// protocol). Two hosts that differ here may compute other gradients from the same samples, and then no run
// can be repeated, nor a lost step's microbatch be computed elsewhere. They do so by a thread's rounding mode
// or its treatment of denormals, by another C library, or by one that chooses other functions for another
// processor.
//
// What a program computes with (its BLAS, its device) is not among it: of that a program tells its own
// results (muster_run_probe in muster.h).
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>

namespace muster::probe {

// Never renumber: a file of `muster probe --json` may come from another version.
enum class Part : uint8_t {
  kRounding = 0,   // of a sum that lies between two numbers
  kDenormals = 1,  // kept, or made zero
  kFloat32 = 2,    // + - * / and the square root
  kFloat64 = 3,
  kFused = 4,        // multiply-add with one rounding
  kFunctions32 = 5,  // the C library's exp, log, sin, cos, tanh, pow, erf
  kFunctions64 = 6,
};
constexpr size_t kParts = 7;
const char* name_of(Part part);

// A digest of each part's results.
using HostProbe = std::array<uint64_t, kParts>;

// On the calling thread, whose modes count; takes some milliseconds.
HostProbe probe_host();

}  // namespace muster::probe
