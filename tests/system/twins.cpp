// Declares two tensors of one name, which must be refused before anything is trained or saved.
#include <cstdio>
#include <muster/muster.hpp>

int main() try {
  float one = 0.0F;
  float other = 0.0F;
  muster::Session session;
  muster::State state(session);
  state.replicated("weights", &one, {1});
  state.replicated("weights", &other, {1});
  std::puts("two tensors of one name were taken");
  return 0;
} catch (const muster::Failure& failure) {
  std::fprintf(stderr, "twins: %s\n", failure.what());
  return failure.exit_code();
}
