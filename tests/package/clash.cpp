// A program that links its own HDF5 and OpenSSL beside libmuster, and uses all three: nothing may clash.
#include <hdf5.h>
#include <openssl/evp.h>
#include <openssl/ssl.h>
#include <muster/muster.hpp>

#include <cstdio>
#include <string>
#include <vector>

// A failed save must be explained, not only counted.
void print_failure(void*, const muster_event* event) {
  if (std::string(event->kind_name).find("failed") != std::string::npos)
    std::fprintf(stderr, "%s: %s\n", event->kind_name, event->text);
}

int main(int argc, char** argv) try {
  if (argc != 2) return 2;
  const std::string folder = argv[1];
  const hid_t file = H5Fcreate((folder + "/own.h5").c_str(), H5F_ACC_TRUNC, H5P_DEFAULT, H5P_DEFAULT);
  // Names variables of libhdf5, which the linker may copy into this program.
  const hid_t values = H5Tcopy(H5T_IEEE_F32LE);
  const hid_t list = H5Pcreate(H5P_DATASET_CREATE);
  SSL_CTX* context = SSL_CTX_new(TLS_client_method());
  if (file < 0 || values < 0 || list < 0 || context == nullptr)
    return std::fprintf(stderr, "own HDF5 or OpenSSL failed before the run\n"), 1;

  float weight = 1.0F;
  std::vector<float> gradient(1, 0.0F);
  {
    muster::Session session(print_failure);
    muster::State state(session);
    state.replicated("weight", &weight, {1});
    muster::TrainOptions options;
    const std::string checkpoints = folder + "/ckpt";
    options.steps = 4;
    options.dataset_samples = 10;
    options.checkpoint_dir = checkpoints.c_str();
    options.checkpoint_every = 2;
    muster::Run run(session, state, options);
    while (auto step = run.next()) {
      for (const auto& micro : step.microbatches()) {
        gradient[0] = 1.0F;
        step.accumulate(micro, gradient);
      }
      if (!step.reduce(gradient)) continue;
      if (auto update = step.update()) weight -= 0.125F * gradient[0];
      gradient[0] = 0.0F;
    }
    if (run.exit_code() != 0 || run.info().durable != 4) {
      return std::fprintf(stderr, "the run ended with %d, durable version %lld\n", run.exit_code(),
                          static_cast<long long>(run.info().durable)),
             1;
    }
  }
  unsigned char digest[32];
  unsigned length = 0;
  const bool digested = EVP_Digest("muster", 6, digest, &length, EVP_sha256(), nullptr) == 1 && length == 32;
  SSL_CTX_free(context);
  if (!digested || H5Tclose(values) < 0 || H5Pclose(list) < 0 || H5Fclose(file) < 0)
    return std::fprintf(stderr, "own HDF5 or OpenSSL failed after the run\n"), 1;
  return 0;
} catch (const muster::Failure& failure) {
  std::fprintf(stderr, "%s\n", failure.what());
  return 1;
}
