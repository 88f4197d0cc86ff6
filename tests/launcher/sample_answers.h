// What etcd's gateway answers, as it writes it: where tests and fuzzing begin.
#pragma once

#include <string>
#include <vector>

namespace muster::launcher {

inline std::vector<std::string> sample_answers() {
  return {
      R"({"header":{"cluster_id":"1","member_id":"2","revision":"41","raft_term":"3"},"kvs":[{"key":"L211c3Rlci90L2xlYWRlcg==","create_revision":"40","mod_revision":"41","version":"2","value":"AAECAw==","lease":"7587"},{"key":"YQ==","value":""}],"count":"2"})",
      R"({"header":{"revision":"41"}})",
      R"({"header":{"revision":"43"},"succeeded":true,"responses":[{"response_put":{"header":{"revision":"43"}}}]})",
      R"({"header":{"revision":"43"},"ID":"7587","TTL":"5"})",
      R"({"result":{"header":{"revision":"43"},"ID":"7587","TTL":"5"}})",
      R"({"header":{"revision":"43"},"token":"abc.12"})",
      R"({"error":"etcdserver: permission denied","code":7,"message":"etcdserver: permission denied"})",
      "{\"result\":{\"header\":{\"revision\":\"41\"},\"created\":true}}\n",
      "{\"result\":{\"events\":[{\"kv\":{\"key\":\"L211c3Rlci90L2xlYWRlcg==\",\"mod_revision\":\"43\"}},"
      "{\"type\":\"DELETE\",\"kv\":{\"key\":\"YQ==\"}}]}}\n",
      "{\"result\":{\"canceled\":true,\"cancel_reason\":\"etcdserver: invalid auth token\"}}\n",
      "{\"error\":{\"grpc_code\":14,\"message\":\"unavailable\"}}\n",
  };
}

}  // namespace muster::launcher
