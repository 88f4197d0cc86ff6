#define MUSTER_DIGEST_WAY kPlainDigest
#include "runtime/base/digest-inl.h"
