// The one way errors travel inside Muster: as values. `Result<T>` holds a T or an Error; `Status` holds
// nothing or an Error. Both are [[nodiscard]]. Nothing in the library throws across a function that returns
// one.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <utility>
#include <variant>

namespace muster {

// What the caller can do next, not where the failure came from.
enum class ErrorCode : uint8_t {
  kRetry = 1,       // the same call may succeed later: a deadline passed, a peer was not there yet
  kReconfigure,     // the view is revoked: wait for the next one, then repeat the step
  kDropCheckpoint,  // this save or this version is unusable; training and other versions are unharmed
  kMisuse,          // the program or its user asked for something wrong; the message says what to change
  kEnvironment,     // the machine lacks something, or refuses it; the message names it
  kEnded,           // the job is over for this process; leave with the exit code of the run
};

const char* to_string(ErrorCode code);

// A message says what happened, to what, and what to do next.
struct [[nodiscard]] Error {
  ErrorCode code;
  std::string message;
};

struct Ok {};

template <typename T>
class [[nodiscard]] Result {
 public:
  Result(T value) : state_(std::in_place_index<0>, std::move(value)) {}
  Result(Error error) : state_(std::in_place_index<1>, std::move(error)) {}

  explicit operator bool() const { return state_.index() == 0; }
  bool ok() const { return state_.index() == 0; }

  // REQUIRES: ok(). A caller that has not checked is a defect, which std::get turns into a thrown exception.
  T& value() & { return std::get<0>(state_); }
  const T& value() const& { return std::get<0>(state_); }
  T value() && { return std::get<0>(std::move(state_)); }
  T& operator*() & { return value(); }
  const T& operator*() const& { return value(); }
  T* operator->() { return &value(); }
  const T* operator->() const { return &value(); }

  // REQUIRES: !ok().
  const Error& error() const& { return std::get<1>(state_); }
  Error error() && { return std::get<1>(std::move(state_)); }

 private:
  std::variant<T, Error> state_;
};

using Status = Result<Ok>;
inline Status ok() { return Ok{}; }

}  // namespace muster

// Returns from the enclosing function with the error, if `expression` is one.
#define MUSTER_TRY(expression)                                    \
  do {                                                            \
    if (auto muster_status = (expression); !muster_status.ok()) { \
      return std::move(muster_status).error();                    \
    }                                                             \
  } while (0)

#define MUSTER_CONCAT_INNER(a, b) a##b
#define MUSTER_CONCAT(a, b) MUSTER_CONCAT_INNER(a, b)

// MUSTER_ASSIGN(auto x, f()): x is f()'s value, or the enclosing function returns f()'s error.
#define MUSTER_ASSIGN(declaration, expression)                         \
  auto MUSTER_CONCAT(muster_result_, __LINE__) = (expression);         \
  if (!MUSTER_CONCAT(muster_result_, __LINE__).ok()) {                 \
    return std::move(MUSTER_CONCAT(muster_result_, __LINE__)).error(); \
  }                                                                    \
  declaration = std::move(MUSTER_CONCAT(muster_result_, __LINE__)).value()
