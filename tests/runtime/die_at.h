// For workers that tests have killed at chosen places.
#pragma once

#include <fcntl.h>
#include <signal.h>
#include <unistd.h>

#include <set>
#include <string>

namespace muster {

// `place` is among `places`, and nobody with the same folder has come there before.
inline bool is_first_at(const std::string& folder, const std::set<std::string>& places,
                        const std::string& place) {
  if (places.count(place) == 0) return false;
  const int first = open((folder + "/died." + place).c_str(), O_CREAT | O_EXCL | O_CLOEXEC, 0600);
  if (first < 0) return false;
  close(first);
  return true;
}

// Kills this process, if it is the first one there.
inline void die_at(const std::string& folder, const std::set<std::string>& places, const std::string& place) {
  if (is_first_at(folder, places, place)) kill(getpid(), SIGKILL);
}

}  // namespace muster
