// Memory that runs out where a test says so. Replaces the program's operator new: include it in one file of a
// test program.
#pragma once

#include <algorithm>
#include <cstdlib>
#include <new>

// How many more allocations of 900'000 bytes or more this thread gets before one fails; negative: all.
inline thread_local int large_allocations_left = -1;

// Not inline, or the compiler takes the pairs apart and warns of them.
[[gnu::noinline]] void* operator new(size_t bytes) {
  if (bytes >= 900'000 && large_allocations_left >= 0 && large_allocations_left-- == 0)
    throw std::bad_alloc();
  if (void* const memory = std::malloc(std::max<size_t>(bytes, 1)); memory != nullptr) return memory;
  throw std::bad_alloc();
}
[[gnu::noinline]] void* operator new(size_t bytes, const std::nothrow_t&) noexcept {
  return std::malloc(std::max<size_t>(bytes, 1));
}
[[gnu::noinline]] void operator delete(void* memory) noexcept { std::free(memory); }
[[gnu::noinline]] void operator delete(void* memory, size_t) noexcept { std::free(memory); }
