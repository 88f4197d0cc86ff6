#include "launcher/http.h"

#include <curl/curl.h>

#include <algorithm>
#include <cctype>
#include <cstring>
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

bool has(const char* words, const char* part) { return std::strstr(words, part) != nullptr; }

// A certificate that is refused stays so until a person changes something.
bool is_misuse(CURLcode code, const char* words) {
  const bool says_so = has(words, "alert") && (has(words, "certificate") || has(words, "unknown ca"));
  switch (code) {
    case CURLE_PEER_FAILED_VERIFICATION:
    case CURLE_SSL_CACERT_BADFILE:
    case CURLE_SSL_CERTPROBLEM:
      return true;
    case CURLE_SSL_CONNECT_ERROR:
      return has(words, "wrong version number") || says_so;
    case CURLE_RECV_ERROR:  // with TLS 1.3 a client hears only after its handshake that it is refused
      return says_so;
    default:
      return false;
  }
}

// One request and what has come of its answer. Stays where it is while libcurl uses it.
class Transfer {
 public:
  // REQUIRES: `call` outlives this.
  explicit Transfer(const HttpCall& call)
      : call_(call), handle_(curl_easy_init(), curl_easy_cleanup), headers_(nullptr, curl_slist_free_all) {
    for (const std::string& header : call.headers)
      headers_.reset(curl_slist_append(headers_.release(), header.c_str()));
    if (handle_) prepare();
  }
  Transfer(const Transfer&) = delete;
  Transfer& operator=(const Transfer&) = delete;

  CURL* handle() const { return handle_.get(); }  // null: libcurl cannot be used
  notice::HttpAnswer& answer() { return answer_; }
  int status() const {
    long status = 0;
    curl_easy_getinfo(handle_.get(), CURLINFO_RESPONSE_CODE, &status);
    return static_cast<int>(status);
  }

  // What the transfer has come to, once it is over.
  Result<notice::HttpAnswer> result(CURLcode code) {
    if (code != CURLE_OK) return failure(code);
    answer_.status = status();
    return std::move(answer_);
  }

 private:
  Error failure(CURLcode code) const {
    std::string words = call_.url + ": " + (words_[0] != 0 ? words_ : curl_easy_strerror(code));
    if (code == CURLE_GOT_NOTHING && !call_.tls) words += ", as servers do that speak TLS only";
    if (code == CURLE_SSL_CONNECT_ERROR) words += ", as where no TLS is spoken";
    return {is_misuse(code, words_) ? ErrorCode::kMisuse : ErrorCode::kRetry, words};
  }

  void prepare() {
    CURL* const curl = handle_.get();
    curl_easy_setopt(curl, CURLOPT_ERRORBUFFER, words_);
    curl_easy_setopt(curl, CURLOPT_URL, call_.url.c_str());
    curl_easy_setopt(curl, CURLOPT_PROTOCOLS_STR, call_.tls ? "https" : "http");
    // Over TLS libcurl would choose HTTP/2, and over plain TCP not: one way is enough to know.
    curl_easy_setopt(curl, CURLOPT_HTTP_VERSION, CURL_HTTP_VERSION_1_1);
    curl_easy_setopt(curl, CURLOPT_PROXY, "");
    curl_easy_setopt(curl, CURLOPT_NOSIGNAL, 1L);
#if LIBCURL_VERSION_NUM >= 0x075700  // 7.87
    // A name is looked up on a thread of libcurl's own. Without this the end of a transfer waits for it, past
    // every deadline, for as long as a name server is silent; with it the thread ends by itself.
    curl_easy_setopt(curl, CURLOPT_QUICK_EXIT, 1L);
#endif
    curl_easy_setopt(curl, CURLOPT_SHARE, Names::shared());
    curl_easy_setopt(curl, CURLOPT_DNS_CACHE_TIMEOUT, kNamesSeconds);
    curl_easy_setopt(curl, CURLOPT_CUSTOMREQUEST, call_.method.c_str());
    curl_easy_setopt(curl, CURLOPT_HTTPHEADER, headers_.get());
    curl_easy_setopt(curl, CURLOPT_WRITEFUNCTION, take_body);
    curl_easy_setopt(curl, CURLOPT_WRITEDATA, &answer_.body);
    curl_easy_setopt(curl, CURLOPT_HEADERFUNCTION, take_header);
    curl_easy_setopt(curl, CURLOPT_HEADERDATA, &answer_.metadata_flavor);
    if (!call_.body.empty()) {
      curl_easy_setopt(curl, CURLOPT_POSTFIELDS, call_.body.c_str());
      curl_easy_setopt(curl, CURLOPT_POSTFIELDSIZE, static_cast<long>(call_.body.size()));
    }
    if (call_.tls) prepare_tls(*call_.tls);
  }

  void prepare_tls(const HttpTls& tls) {
    CURL* const curl = handle_.get();
    curl_easy_setopt(curl, CURLOPT_SSLVERSION, CURL_SSLVERSION_TLSv1_2);
    if (!tls.ca_file.empty()) {
      curl_easy_setopt(curl, CURLOPT_CAINFO, tls.ca_file.c_str());
      curl_easy_setopt(curl, CURLOPT_CAPATH, nullptr);  // whoever names a CA means no other
    }
    if (tls.certificate_file.empty()) return;
    curl_easy_setopt(curl, CURLOPT_SSLCERT, tls.certificate_file.c_str());
    curl_easy_setopt(curl, CURLOPT_SSLKEY, tls.key_file.c_str());
    // For a key that is encrypted OpenSSL would ask on the terminal, and wait for ever.
    curl_easy_setopt(curl, CURLOPT_KEYPASSWD, "");
  }

  const HttpCall& call_;
  const Handle handle_;
  List headers_;
  notice::HttpAnswer answer_;
  char words_[CURL_ERROR_SIZE] = "";
};

Error unusable() { return {ErrorCode::kRetry, "libcurl cannot be used"}; }

}  // namespace

bool fits_header(const std::string& text) {
  return !text.empty() && text.size() < 1024 &&
         std::all_of(text.begin(), text.end(), [](char c) { return c > ' ' && c < 127; });
}

Result<notice::HttpAnswer> http_call(const HttpCall& call, const std::atomic<bool>& stop) {
  initialise();
  Transfer transfer(call);
  CURL* const curl = transfer.handle();
  if (curl == nullptr) return unusable();
  curl_easy_setopt(curl, CURLOPT_TIMEOUT_MS, static_cast<long>(call.timeout / kMillisecond));
  curl_easy_setopt(curl, CURLOPT_NOPROGRESS, 0L);
  curl_easy_setopt(curl, CURLOPT_XFERINFOFUNCTION, end_if_stopped);
  curl_easy_setopt(curl, CURLOPT_XFERINFODATA, const_cast<std::atomic<bool>*>(&stop));
  return transfer.result(curl_easy_perform(curl));
}

// Of `multi` only the wake-up may be called by another thread than the reader.
struct HttpStream::State {
  // One answer as libcurl hands it over.
  struct Reading {
    Transfer& transfer;
    const Take& take;
    Instant heard_at = 0;  // 0: nothing has come
    bool enough = false;
  };

  static size_t take_piece(char* bytes, size_t size, size_t count, void* into) {
    auto& reading = *static_cast<Reading*>(into);
    if (reading.transfer.status() != 200)
      return take_body(bytes, size, count, &reading.transfer.answer().body);
    reading.heard_at = now();
    reading.enough = !reading.take({bytes, size * count});
    return reading.enough ? 0 : size * count;
  }

  // Until the transfer ends by itself; an error of kRetry where it is ended from here.
  Result<CURLcode> drive(const HttpCall& call, const Reading& reading, Duration quiet_max) {
    const Instant began_at = now();
    while (!over) {
      int running = 0;
      curl_multi_perform(multi.get(), &running);
      int left = 0;
      if (const CURLMsg* ended = curl_multi_info_read(multi.get(), &left)) return ended->data.result;
      const bool heard = reading.heard_at != 0;
      const Instant deadline = heard ? reading.heard_at + quiet_max : began_at + call.timeout;
      const Duration wait = deadline - now();
      if (wait <= 0) {
        const std::string what = heard ? ": nothing more has come for " : ": no answer within ";
        return Error{
            ErrorCode::kRetry,
            call.url + what + std::to_string((heard ? quiet_max : call.timeout) / kMillisecond) + " ms"};
      }
      const Duration rounded = wait / kMillisecond + 1;
      curl_multi_poll(multi.get(), nullptr, 0, static_cast<int>(std::min<Duration>(rounded, kPollMax)),
                      nullptr);
    }
    return Error{ErrorCode::kRetry, call.url + ": no longer wanted"};
  }

  static constexpr Duration kPollMax = 60'000;  // milliseconds; what libcurl takes has 31 bits
  std::unique_ptr<CURLM, decltype(&curl_multi_cleanup)> multi{nullptr, curl_multi_cleanup};
  std::atomic<bool> over = false;
};

HttpStream::HttpStream() : state_(std::make_unique<State>()) {
  initialise();
  state_->multi.reset(curl_multi_init());
}

HttpStream::~HttpStream() = default;

Result<notice::HttpAnswer> HttpStream::read(const HttpCall& call, Duration quiet_max, const Take& take) {
  Transfer transfer(call);
  CURL* const curl = transfer.handle();
  CURLM* const multi = state_->multi.get();
  if (curl == nullptr || multi == nullptr) return unusable();
  State::Reading reading{transfer, take};
  curl_easy_setopt(curl, CURLOPT_WRITEFUNCTION, State::take_piece);
  curl_easy_setopt(curl, CURLOPT_WRITEDATA, &reading);
  curl_multi_add_handle(multi, curl);
  const auto ended = state_->drive(call, reading, quiet_max);
  curl_multi_remove_handle(multi, curl);
  if (!ended.ok()) return ended.error();
  return transfer.result(reading.enough ? CURLE_OK : *ended);
}

void HttpStream::end() {
  state_->over = true;
  if (state_->multi) curl_multi_wakeup(state_->multi.get());
}

}  // namespace muster::launcher
