/* A C11 program that knows Muster by its installed headers and pkg-config file only: a run of a world of one. */
#include <muster/muster.h>
#include <stdio.h>

#define CHECK(call)                                                        \
  do {                                                                     \
    if ((call) != MUSTER_OK) {                                             \
      fprintf(stderr, "%s: %s\n", #call, muster_last_error());             \
      return 1;                                                            \
    }                                                                      \
  } while (0)

int main(void) {
  float weight = 1.0F;
  float gradient = 0.0F;
  const int64_t shape[1] = {1};
  const muster_span span = {&gradient, 1};
  muster_session *session = NULL;
  muster_state *state = NULL;
  muster_run *run = NULL;
  muster_step *step = NULL;
  muster_train_options options;
  muster_train_options_init(&options);
  options.steps = 5;
  options.microbatches = 4;
  options.lanes = 2;
  options.dataset_samples = 10;

  CHECK(muster_join(NULL, &session));
  CHECK(muster_state_create(session, &state));
  CHECK(muster_state_replicated(state, "weight", &weight, MUSTER_FLOAT32, shape, 1));
  CHECK(muster_train(session, state, &options, &run));
  while (1) {
    muster_microbatch micro;
    CHECK(muster_run_next(run, &step));
    if (step == NULL) break;
    while (muster_step_next_microbatch(step, &micro)) {
      gradient = 1.0F;
      CHECK(muster_step_accumulate(step, &micro, &span, 1));
    }
    CHECK(muster_step_reduce(step, &span, 1));
    CHECK(muster_step_open_update(step));
    weight -= 0.125F * gradient;
    gradient = 0.0F;
    CHECK(muster_step_close_update(step));
  }
  {
    const int code = muster_run_exit_code(run);
    muster_run_destroy(run);
    muster_state_destroy(state);
    muster_leave(session);
    if (weight != 0.375F) fprintf(stderr, "weight is %g, expected 0.375\n", (double)weight);
    return code != 0 ? code : (weight == 0.375F ? 0 : 1);
  }
}
