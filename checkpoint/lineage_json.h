// Lineages as JSON: [[store nonce, generation, base], …]. Internal to this folder.
#pragma once

#include "checkpoint/identity.h"
#include "checkpoint/json.h"

namespace muster::checkpoint {

Json to_json(const Lineage& lineage);
Lineage read_lineage(JsonReader& reader, const char* field);

}  // namespace muster::checkpoint
