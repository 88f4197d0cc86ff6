// The parts of a manifest that say what was saved, without where it lies. Internal to this folder.
#pragma once

#include "checkpoint/json.h"
#include "checkpoint/manifest.h"

namespace muster::checkpoint {

// Version, lineage, job, sample position and step values.
Json context_json(const Manifest& manifest);
void read_context(JsonReader& reader, Manifest& manifest);

}  // namespace muster::checkpoint
