// Audit files, read: line by line, with bounded memory whatever is in them.
#pragma once

#include <functional>

#include "runtime/audit/verifier.h"
#include "runtime/base/files.h"

namespace muster::launcher {

// Checks the chain of `file` from its beginning; `use` gets each record that holds. Errors: as File::pread.
Result<audit::Report> verify_audit(File& file, audit::VerifierOptions options,
                                   const std::function<void(const audit::Record&)>& use = {});

// What a file says must not steer the terminal of who reads it, nor turn the order of what it shows: control
// characters and marks of direction become '?'.
std::string harmless(std::string text);

// "line 7 is changed: …", for people.
std::string words_of(const audit::Fault& fault);

}  // namespace muster::launcher
