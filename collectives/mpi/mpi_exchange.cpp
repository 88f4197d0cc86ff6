#include "collectives/mpi/mpi_exchange.h"

#include <algorithm>
#include <climits>

#include "collectives/mpi/mpi_library.h"
#include "collectives/mpi/mpi_table.h"
#include "runtime/base/module.h"

namespace muster {
namespace {

constexpr int kIntroductionBytesMax = 256 * 1024;

Error error_of(int status, const char* text) {
  switch (status) {
    case MUSTER_MPI_MISUSE:
      return {ErrorCode::kMisuse, text};
    case MUSTER_MPI_LATE:
      return {ErrorCode::kRetry, text};
    default:
      return {ErrorCode::kEnvironment, std::string("MPI failed: ") + text};
  }
}

double seconds_until(Instant deadline) {
  constexpr Duration kDay = 86400 * kSecond;
  const Instant time = now();
  return seconds(deadline > time ? std::min<Duration>(deadline - time, kDay) : 0);
}

}  // namespace

Result<std::unique_ptr<MpiExchange>> MpiExchange::open(const void* mpi_comm, Instant deadline) {
  MUSTER_TRY(require_open_mpi(loaded_mpi()));
  MUSTER_ASSIGN(const void* loaded, load_module("mpi", MUSTER_MPI_TABLE_VERSION, ModuleScope::kProgramFirst));
  const auto& table = *static_cast<const muster_mpi_table*>(loaded);
  muster_mpi_comm* comm = nullptr;
  char error[512] = {};
  const int status = table.open(mpi_comm, seconds_until(deadline), &comm, error, sizeof error);
  if (status != MUSTER_MPI_OK) return error_of(status, error);
  return std::unique_ptr<MpiExchange>(new MpiExchange(table, comm));
}

MpiExchange::~MpiExchange() { table_.close(comm_); }

int MpiExchange::rank() const { return table_.rank(comm_); }
int MpiExchange::size() const { return table_.size(comm_); }

Result<std::vector<ByteBuffer>> MpiExchange::all_gather(ByteSpan mine, Instant deadline) {
  char error[512] = {};
  const int bytes = static_cast<int>(std::min<size_t>(mine.size(), kIntroductionBytesMax));
  std::vector<int> sizes(static_cast<size_t>(size()));
  int status = table_.all_gather(comm_, mine.data(), bytes, sizes.data(), nullptr, seconds_until(deadline),
                                 error, sizeof error);
  if (status != MUSTER_MPI_OK) return error_of(status, error);
  size_t total = 0;
  for (const int each : sizes) {
    if (each < 0 || each > kIntroductionBytesMax)
      return Error{ErrorCode::kMisuse, "a rank's contact has a size that none can have"};
    total += static_cast<size_t>(each);
  }
  if (total > INT_MAX)
    return Error{ErrorCode::kEnvironment, "too many ranks for one exchange of contacts over MPI"};
  ByteBuffer bytes_of_all(total);
  status = table_.all_gather(comm_, mine.data(), bytes, sizes.data(), bytes_of_all.data(),
                             seconds_until(deadline), error, sizeof error);
  if (status != MUSTER_MPI_OK) return error_of(status, error);
  std::vector<ByteBuffer> all;
  auto at = bytes_of_all.begin();
  for (const int each : sizes) {
    all.emplace_back(at, at + each);
    at += each;
  }
  return all;
}

}  // namespace muster
