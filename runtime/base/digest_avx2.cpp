#define MUSTER_DIGEST_WAY kAvx2Digest
#include "runtime/base/digest-inl.h"
