// Broken invariants of Muster's own. Bad input never ends here: it gets an Error.
#pragma once

#include <string>

namespace muster {

// Called with the text of a broken invariant. The default writes it to stderr and aborts this rank before it
// can commit anything; its peers see a lost member. A replacement may record more, and must not return.
using CheckHandler = void (*)(const char* text);
CheckHandler set_check_handler(CheckHandler handler);

[[noreturn]] void check_failed(const char* condition, const char* file, int line, const std::string& detail);

}  // namespace muster

#define MUSTER_CHECK(condition, detail)                                                 \
  do {                                                                                  \
    if (!(condition)) ::muster::check_failed(#condition, __FILE__, __LINE__, (detail)); \
  } while (0)
