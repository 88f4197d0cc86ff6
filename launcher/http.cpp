#include "launcher/http.h"

#include <curl/curl.h>

#include <cctype>
#include <memory>
#include <mutex>
#include <string_view>

namespace muster::launcher {
namespace {

constexpr size_t kBodyBytesMax = 1 << 20;
constexpr long kNamesSeconds = 600;

using Handle = std::unique_ptr<CURL, decltype(&curl_easy_cleanup)>;
using List = std::unique_ptr<curl_slist, decltype(&curl_slist_free_all)>;

size_t take_body(char* bytes, size_t size, size_t count, void* into) {
  auto& body = *static_cast<std::string*>(into);
  if (body.size() + size * count > kBodyBytesMax) return 0;  // ends the transfer with an error
  body.append(bytes, size * count);
  return size * count;
}

size_t take_header(char* bytes, size_t size, size_t count, void* into) {
  constexpr std::string_view kName = "metadata-flavor:";
  std::string_view line(bytes, size * count);
  for (size_t i = 0; i < kName.size(); ++i)
    if (i >= line.size() || std::tolower(static_cast<unsigned char>(line[i])) != kName[i])
      return size * count;
  line.remove_prefix(kName.size());
  while (!line.empty() && std::isspace(static_cast<unsigned char>(line.front())) != 0) line.remove_prefix(1);
  while (!line.empty() && std::isspace(static_cast<unsigned char>(line.back())) != 0) line.remove_suffix(1);
  *static_cast<std::string*>(into) = std::string(line);
  return size * count;
}

int end_if_stopped(void* stop, curl_off_t, curl_off_t, curl_off_t, curl_off_t) {
  return *static_cast<const std::atomic<bool>*>(stop) ? 1 : 0;
}

void initialise() {
  static std::once_flag once;
  std::call_once(once, [] { curl_global_init(CURL_GLOBAL_NOTHING); });
}

// Names that all calls have looked up. A name server that is slow for once must not hold up a lease.
class Names {
 public:
  static CURLSH* shared() {
    static Names names;
    return names.share_.get();
  }

 private:
  Names() : share_(curl_share_init(), curl_share_cleanup) {
    curl_share_setopt(share_.get(), CURLSHOPT_USERDATA, this);
    curl_share_setopt(share_.get(), CURLSHOPT_LOCKFUNC, &Names::lock);
    curl_share_setopt(share_.get(), CURLSHOPT_UNLOCKFUNC, &Names::unlock);
    curl_share_setopt(share_.get(), CURLSHOPT_SHARE, CURL_LOCK_DATA_DNS);
  }
  static void lock(CURL*, curl_lock_data which, curl_lock_access, void* self) {
    static_cast<Names*>(self)->mutexes_[which].lock();
  }
  static void unlock(CURL*, curl_lock_data which, void* self) {
    static_cast<Names*>(self)->mutexes_[which].unlock();
  }

  std::mutex mutexes_[CURL_LOCK_DATA_LAST];
  std::unique_ptr<CURLSH, decltype(&curl_share_cleanup)> share_;
};

}  // namespace

Result<notice::HttpAnswer> http_call(const HttpCall& call, const std::atomic<bool>& stop) {
  initialise();
  const Handle handle(curl_easy_init(), curl_easy_cleanup);
  if (!handle) return Error{ErrorCode::kRetry, "libcurl cannot be used"};
  List headers(nullptr, curl_slist_free_all);
  for (const std::string& header : call.headers)
    headers.reset(curl_slist_append(headers.release(), header.c_str()));
  notice::HttpAnswer answer;
  CURL* const curl = handle.get();
  char words[CURL_ERROR_SIZE] = "";
  curl_easy_setopt(curl, CURLOPT_ERRORBUFFER, words);
  curl_easy_setopt(curl, CURLOPT_URL, call.url.c_str());
  curl_easy_setopt(curl, CURLOPT_PROTOCOLS_STR, "http");
  curl_easy_setopt(curl, CURLOPT_PROXY, "");
  curl_easy_setopt(curl, CURLOPT_NOSIGNAL, 1L);
  curl_easy_setopt(curl, CURLOPT_SHARE, Names::shared());
  curl_easy_setopt(curl, CURLOPT_DNS_CACHE_TIMEOUT, kNamesSeconds);
  curl_easy_setopt(curl, CURLOPT_CUSTOMREQUEST, call.method.c_str());
  curl_easy_setopt(curl, CURLOPT_HTTPHEADER, headers.get());
  curl_easy_setopt(curl, CURLOPT_TIMEOUT_MS, static_cast<long>(call.timeout / kMillisecond));
  curl_easy_setopt(curl, CURLOPT_WRITEFUNCTION, take_body);
  curl_easy_setopt(curl, CURLOPT_WRITEDATA, &answer.body);
  curl_easy_setopt(curl, CURLOPT_HEADERFUNCTION, take_header);
  curl_easy_setopt(curl, CURLOPT_HEADERDATA, &answer.metadata_flavor);
  curl_easy_setopt(curl, CURLOPT_NOPROGRESS, 0L);
  curl_easy_setopt(curl, CURLOPT_XFERINFOFUNCTION, end_if_stopped);
  curl_easy_setopt(curl, CURLOPT_XFERINFODATA, const_cast<std::atomic<bool>*>(&stop));
  if (!call.body.empty()) {
    curl_easy_setopt(curl, CURLOPT_POSTFIELDS, call.body.c_str());
    curl_easy_setopt(curl, CURLOPT_POSTFIELDSIZE, static_cast<long>(call.body.size()));
  }
  const CURLcode code = curl_easy_perform(curl);
  if (code != CURLE_OK)
    return Error{ErrorCode::kRetry, call.url + ": " + (words[0] != 0 ? words : curl_easy_strerror(code))};
  long status = 0;
  curl_easy_getinfo(curl, CURLINFO_RESPONSE_CODE, &status);
  answer.status = static_cast<int>(status);
  return answer;
}

}  // namespace muster::launcher
