#define MUSTER_DIGEST_WAY kAvx512Digest
#include "runtime/base/digest-inl.h"
