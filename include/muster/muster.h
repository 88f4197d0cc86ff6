/* Muster: the binary interface, in C11. Start here in C; in C++ start at muster.hpp, a header-only wrapper
 * over this. Only the collectives: start at muster_comm.
 *
 * Muster is linked into a training program and keeps it training through preemptions, lost nodes and joining
 * nodes. A program calls muster_join, registers its state, starts a run with muster_train, and loops:
 *
 *     while (muster_run_next(run, &step) == MUSTER_OK && step != NULL) {
 *       muster_microbatch micro;
 *       memset(grads, 0, sizeof grads);                        // reduce left the last step's mean there
 *       while (muster_step_next_microbatch(step, &micro)) {
 *         forward_backward(&micro, params, grads);             // your code
 *         muster_step_accumulate(step, &micro, spans, 1);      // adds along the tree, zeroes grads
 *       }
 *       muster_status status = muster_step_reduce(step, spans, 1);
 *       if (status == MUSTER_OK) status = muster_step_open_update(step);
 *       if (status == MUSTER_AGAIN) continue;                  // the view changed: the step comes again
 *       if (status != MUSTER_OK) break;                        // muster_last_error() says why
 *       optimizer(params, grads);                              // your code
 *       muster_step_close_update(step);
 *     }
 *     return muster_run_exit_code(run);
 *
 * Weights and gradients may lie in the memory of a CUDA device: see muster_memory.
 *
 * What always holds
 *  - Functions return a muster_status; muster_last_error() gives the sentence for the calling thread's newest
 * failure.
 *  - The library prints nothing and never exits the process (a broken invariant of its own, which aborts it,
 * is the one exception). During a run SIGTERM and SIGUSR1 become notices; the program's own handlers still
 * run, what it ignores stays ignored, and forked children see nothing of it. muster_join_options.keep_signals
 * leaves all signals alone.
 *  - A forked child has no part in its parent's sessions, runs and communicators: what it asks of them is
 * refused (MUSTER_MISUSE), ending them there does nothing, and however long it lives it does not hide that
 * its parent has died. It may make communicators of its own.
 *  - Every call that waits has a deadline; the deadlines are options.
 *  - One program thread drives a session. muster_session_notice may be called from any thread.
 *  - Handles are owned by the caller and ended by the function named in their comment; memory passed in stays
 * the caller's and must outlive the handle it was given to.
 *  - Versions: functions are added, never changed. An options structure begins with its size, so it can grow.
 */
#ifndef MUSTER_MUSTER_H
#define MUSTER_MUSTER_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define MUSTER_VERSION_MAJOR 0
#define MUSTER_VERSION_MINOR 1
#define MUSTER_VERSION_PATCH 0

#define MUSTER_API __attribute__((visibility("default")))

/* "0.1.0" of the library that is loaded, which may be newer than this header. */
MUSTER_API const char* muster_version(void);

/* What the caller can do next. */
typedef enum muster_status {
  MUSTER_OK = 0,
  MUSTER_RETRY = 1,           /* the same call may succeed later */
  MUSTER_AGAIN = 2,           /* the view changed: go on with muster_run_next, which repeats the step; of a
                                 communicator: it is unusable, make another */
  MUSTER_DROP_CHECKPOINT = 3, /* this save or version is unusable; training is unharmed */
  MUSTER_MISUSE = 4,      /* the program asked for something wrong: muster_last_error says what to change */
  MUSTER_ENVIRONMENT = 5, /* the machine lacks or refuses something: muster_last_error names it */
  MUSTER_ENDED = 6        /* the run is over for this process: leave with muster_run_exit_code */
} muster_status;

/* The newest failure of the calling thread, in one sentence; "" if none. Valid until the thread's next call.
 */
MUSTER_API const char* muster_last_error(void);

/* ---- element types ----------------------------------------------------------------------------------------
 */

typedef enum muster_dtype {
  MUSTER_FLOAT32 = 0,
  MUSTER_FLOAT64 = 1,
  MUSTER_BFLOAT16 = 2,
  MUSTER_FLOAT16 = 3,
  MUSTER_INT8 = 4,
  MUSTER_UINT8 = 5,
  MUSTER_INT16 = 6,
  MUSTER_UINT16 = 7,
  MUSTER_INT32 = 8,
  MUSTER_UINT32 = 9,
  MUSTER_INT64 = 10,
  MUSTER_UINT64 = 11,
  MUSTER_FLOAT8_E4M3 = 12,
  MUSTER_FLOAT8_E5M2 = 13
} muster_dtype;

/* ---- events
 * ------------------------------------------------------------------------------------------------ */

/* One entry of the event stream. `kind` is a stable number with the stable name `kind_name`; `text` is one
 * line. */
typedef struct muster_event {
  uint32_t kind;
  const char* kind_name;
  int64_t at_ns;       /* CLOCK_BOOTTIME */
  uint64_t generation; /* 0 outside a view */
  int64_t version;     /* -1 where it has no meaning */
  int64_t subject;
  int64_t amount;
  const char* text;
} muster_event;

/* Called on one thread of the library, in order, never after muster_leave, which hands over what still waits.
 * A slow callback delays later events only; beyond 4,096 waiting ones events are dropped, and the next one
 * says how many. May call muster_run_get_info and muster_session_notice; must not end the run, leave the
 * session, or throw. Events also come after muster_run_destroy, which waits for the call that goes on: a
 * callback that uses the run has to be told, before that, that it is gone. */
typedef void (*muster_event_callback)(void* context, const muster_event* event);

/* ---- session
 * ----------------------------------------------------------------------------------------------- */

typedef struct muster_session muster_session;

typedef struct muster_join_options {
  size_t size;                    /* sizeof(muster_join_options) */
  muster_event_callback on_event; /* may be NULL */
  void* event_context;
  int32_t keep_signals; /* 1: never touch signal handlers; the program calls muster_session_notice itself */
} muster_join_options;

/* Finds out how the process was launched (muster run, mpirun, srun, or alone) and joins that job. Alone is a
 * world of one, which works the same. `options` may be NULL. Fails with MUSTER_ENVIRONMENT or MUSTER_MISUSE.
 * End with muster_leave, after the runs of the session. */
MUSTER_API muster_status muster_join(const muster_join_options* options, muster_session** session);
MUSTER_API void muster_leave(muster_session* session);

/* Raises a notice by hand: this process will be taken away in `seconds_left` (negative: not known). The job
 * saves and ends, or goes on without this process, as its limits allow. Any thread. */
MUSTER_API muster_status muster_session_notice(muster_session* session, double seconds_left,
                                               const char* source);

/* ---- state
 * ------------------------------------------------------------------------------------------------- */

typedef struct muster_state muster_state;

/* Everything that must survive: weights, optimizer state, counters. Immutable outside an open update (but for
 * muster_state_per_lane), so that it can be copied in the background at any other moment. End with
 * muster_state_destroy, after the run that uses it.
 *
 * An update is a function of the state and of the step's mean gradient alone, so that all ranks hold the same
 * bits. Whole states are compared at a start, in a view change and when a learner comes, and ranks that
 * differ end the job by name; not at each step or save. So a program that breaks the rule (an update that
 * depends on the rank, on time or on memory that is not set) may save a state put together from different
 * ranks' parts before that is found. */
MUSTER_API muster_status muster_state_create(muster_session* session, muster_state** state);
MUSTER_API void muster_state_destroy(muster_state* state);

/* Registers the program's memory under a unique name: the same bits on every rank. `data` holds the product
 * of `shape[0 … rank-1]` elements (rank 0: one), aligned to its element, valid until muster_state_destroy.
 * Every process registers the same tensors in the same order before muster_train. */
MUSTER_API muster_status muster_state_replicated(muster_state* state, const char* name, void* data,
                                                 muster_dtype dtype, const int64_t* shape, size_t rank);

/* Where memory of the program lies. Of CUDA memory all lies on one device, which is the calling thread's
 * current one in muster_train, as cudaMalloc gives it, and all calls of the run are ordered on one stream,
 * muster_train_options.stream: they see what the program enqueued on it before the call, and what it enqueues
 * on it after they return sees their result. A program that computes on other streams orders them with that
 * one by events. Nothing waits for the whole device until muster_run_destroy. Of a state with a tensor in
 * CUDA memory the library keeps a copy in pinned host memory, as large as the whole state: an update is held,
 * on the device, until the copy has been made, and not until it has been saved. Gradients in CUDA memory are
 * summed there, in memory that the library allocates with the first of them and keeps until
 * muster_run_destroy: as much as the gradients for each part of the tree that this process sums alone (with a
 * codec, for each of its lanes), the same again in pinned host memory, and about log2(microbatches of such a
 * part) times more on the device. */
typedef enum muster_memory {
  MUSTER_HOST = 0,
  MUSTER_CUDA = 1 /* needs libmuster_cuda and a device; muster_train says what is missing */
} muster_memory;

/* The same for memory that may be a device's; muster_state_replicated is for MUSTER_HOST. Both kinds may be
 * mixed in a state. */
MUSTER_API muster_status muster_state_replicated_in(muster_state* state, const char* name,
                                                    muster_memory memory, void* data, muster_dtype dtype,
                                                    const int64_t* shape, size_t rank);

/* Registers a value that the forward pass changes, with a row for each lane: what a random generator has
 * become that does not count its numbers, or a state that is carried from batch to batch. `shape` begins with
 * the number of lanes, which is muster_train_options.lanes; the rest is a row, of one element or more.
 * `name`, `data` and the order of registration are as in muster_state_replicated; the memory is the host's.
 *
 * The memory is the program's working copy. First values are taken in the first muster_run_next, the same on
 * every process; each muster_run_next then writes there what counts. From its return to muster_step_reduce
 * row l may be read and written while microbatches of lane l are computed, in the order in which they are
 * handed out. muster_step_reduce reads the rows, so copies to or from a device have to be done by then, and
 * brings every row to every rank. What the program makes of them in the update, the same on all ranks, is
 * what counts, is saved, and is what the next step begins with. A step that is repeated begins with the rows
 * as they were, whoever computes the lane then: so the run's result does not depend on who was lost. What is
 * written at other times, or to rows of other lanes, is lost. All rows travel to all ranks in each step:
 * meant for kilobytes.
 *
 * A value that is the mean over all microbatches, such as a batch's statistics, is a gradient like any other:
 * give it as one, and take it into the state in the update. */
MUSTER_API muster_status muster_state_per_lane(muster_state* state, const char* name, void* data,
                                               muster_dtype dtype, const int64_t* shape, size_t rank);

/* A tensor that no process holds whole: it is cut along its first dimension into shards, of which each
 * process holds some, in memory of the library's. Each is held by muster_train_options.shard_copies
 * processes, on different nodes where there are several. For what only an update needs: the moments of an
 * optimizer, or weights in a wider type than the model computes with.
 *
 * In an update the program goes over muster_step_pieces and writes the rows that it finds there, all of them,
 * from what every process has (the gradient, replicated tensors, the step's number) and from the same rows of
 * other sharded tensors. Who holds a row is nobody's choice and changes with the view, so a row must come out
 * the same wherever it is computed. Replicated tensors must not be made from rows or working copies.
 *
 * `working_copy`: NULL, or memory of the program's for the whole tensor, which it only reads: weights, as the
 * forward pass needs them. It is no state. muster_run_next fills it before it returns a step with
 * microbatches, and when the last version is reached; at other times, and in a learner, it holds an earlier
 * version. Rows begin as it has them when the run starts, the same on all processes; without one they begin
 * as zeros.
 *
 * When processes are lost, training goes on while each shard has a holder left, and lost copies are made anew
 * at the end of a later step. Where one has none, the run goes on from the newest save, or ends as requeue.
 * Checkpoints hold sharded tensors whole: a program may resume with one replicated that was sharded, and the
 * other way round.
 *
 * All tensors of a state with sharded ones are in the host's memory, and it serves one run. `shape`: one
 * dimension or more, and no extent 0; else as in muster_state_replicated. */
MUSTER_API muster_status muster_state_sharded(muster_state* state, const char* name, void* working_copy,
                                              muster_dtype dtype, const int64_t* shape, size_t rank);

/* What the program says of a tensor's bytes from one save to the next. A tensor that should have changed and
 * did not is told by an event ("stale"), with its name: a program that trains a copy of what it registered
 * would else save and resume its first values for ever. */
typedef enum muster_expectation {
  MUSTER_EXPECT_WATCHED = 0,  /* default: told when it stops changing, or when nothing at all has changed */
  MUSTER_EXPECT_CONSTANT = 1, /* frozen: told when it changes */
  MUSTER_EXPECT_CHANGING = 2, /* told whenever it has not changed between two saves of different versions */
  MUSTER_EXPECT_FREE = 3      /* may do either: never told */
} muster_expectation;

/* Sets it for a registered tensor, before muster_train. The same on every process. */
MUSTER_API muster_status muster_state_expect(muster_state* state, const char* name,
                                             muster_expectation expectation);

/* ---- run
 * --------------------------------------------------------------------------------------------------- */

typedef struct muster_run muster_run;
typedef struct muster_step muster_step;

/* What may differ between the newest checkpoint and the program that goes on from it; by default nothing
 * does, and a difference is refused by name. What differed is told by an event. */
typedef enum muster_restore_rule {
  MUSTER_RESTORE_MISSING = 1, /* a tensor that the checkpoint lacks stays as the program has set it */
  MUSTER_RESTORE_EXTRA = 2,   /* a tensor that only the checkpoint has is not read, and not saved again */
  MUSTER_RESTORE_RESHAPED =
      4,                   /* as many elements in another shape, in row-major order; not of sharded ones */
  MUSTER_RESTORE_CASTS = 8 /* float32, float64, bfloat16 and float16 into each other, rounded to nearest */
} muster_restore_rule;

/* What ranks send each other of their gradients. All but the first are lossy: each number is rounded at
 * random, up or down, so that the mean over many steps is right; or, with error_feedback, to nearest, and
 * what is left out is added in the next step. Neighbours share a scale, so what is of another magnitude, such
 * as a loss among the gradients, should have 256 elements to itself, from a multiple of 256 on. The bits
 * depend on M, L, the seed and the codec, not on who computes. Each lane is sent by itself: a codec pays
 * where a rank has few of them, so choose L close to the number of ranks (docs/guides/compression.md). A rank
 * holds a copy of the gradients for each of its lanes. A NaN or an infinity stays visible to all ranks, as
 * itself or as a NaN. */
typedef enum muster_codec {
  MUSTER_CODEC_NONE = 0, /* float32 */
  MUSTER_CODEC_BF16 = 1,
  MUSTER_CODEC_FP16 = 2,    /* beyond 65504, in a lane's sum of microbatches: infinity */
  MUSTER_CODEC_INT8 = 3,    /* 256 numbers share a scale */
  MUSTER_CODEC_INT4 = 4,    /* 128; they are rotated first */
  MUSTER_CODEC_MXFP8 = 5,   /* 32 */
  MUSTER_CODEC_ONE_BIT = 6, /* 1024; needs error feedback */
  MUSTER_CODEC_TOPK = 7     /* the 11 largest of 1024, as bf16; the others wait in the residuals. As 1-bit it
                               needs error feedback */
} muster_codec;

/* In checkpoint_every and checkpoint_local_every: as often as it pays. The leader measures what a save costs
 * the training (stalls, and steps that became slower) and how often nodes are lost, and from these computes
 * Daly's interval: no shorter than saves take, no longer than an hour. It follows what is measured; the log
 * says what it is and why. Before anything was lost a node is expected to last 6,300 hours: `muster run
 * --node-mtbf`, or MUSTER_NODE_MTBF, says better. Each of the two kinds of saves has its own interval; lost
 * processes whose node has saved for itself make those in checkpoint_dir no more frequent. */
#define MUSTER_CHECKPOINT_AUTO (-1)

/* Who adds up the ranks' gradients where they are in a CUDA device's memory. With either the results have the
 * same bits. */
typedef enum muster_collectives {
  /* The host: sums cross the bus, and the mean comes back over it. */
  MUSTER_COLLECTIVES_HOST = 0,
  /* NCCL, from device to device; the mean comes to the host beside the next step, since a member that joins
   * or has lost a step may be sent it. In a view whose devices NCCL cannot join, and in one after NCCL
   * has failed twice in a row or hung, the host does it, and an event tells why; and in all of a run with
   * error_feedback. A codec encodes on the devices. Of all processes or none; L at most 64; each process has
   * a device of its own. It has not run on a GPU yet. */
  MUSTER_COLLECTIVES_NCCL = 1
} muster_collectives;

typedef struct muster_train_options {
  size_t size;                    /* sizeof(muster_train_options) */
  int64_t steps;                  /* the run is over when this version is reached */
  int32_t microbatches;           /* M: a step is the mean over M microbatches, whoever computes them */
  int32_t lanes;                  /* L: divides M; a worker beyond the L-th computes nothing */
  int64_t samples_per_microbatch; /* B */
  int64_t
      dataset_samples; /* N: samples are numbered 0 … N-1; each epoch visits each once, in its own order */
  uint64_t seed;       /* of the sample order, of the lanes' random streams, and of a codec's rounding */
  const char* checkpoint_dir;  /* NULL or "": no checkpoints */
  int64_t checkpoint_every;    /* steps between saves; 0: only on notice and at the end;
                                  MUSTER_CHECKPOINT_AUTO */
  int32_t checkpoint_keep;     /* newest verified versions to keep, ≥ 2 */
  double step_timeout_seconds; /* a wait for peers inside one step, and for the device's work of one
                                  microbatch; 0: 600 */
  int32_t stale_fails;         /* 1: a periodic save with a stale tensor (muster_expectation) fails, and so do
                                  later ones until it changes; training goes on, older checkpoints stay.
                                  A save on notice and the last one are told only */
  int32_t restore_rules;       /* muster_restore_rule, added up */
  size_t bucket_bytes;         /* of gradients that are reduced together, the same on all ranks; 0: 8 MiB */
  int32_t codec;               /* a muster_codec; with one L is at most 65,535 */
  void* stream;            /* the cudaStream_t on which the program computes; NULL: the legacy default one.
                              It lives until muster_run_destroy has returned. Of meaning only where some
                              memory is MUSTER_CUDA */
  int32_t gradient_memory; /* a muster_memory: where muster_span.data lies, in all calls of the run */
  int64_t shard_copies;    /* of each shard of a sharded tensor, 1 to 16; 0: 2. With 1 every loss of a process
                              sends the others back to the newest save */
  /* Besides, each node saves for itself: faster and more often, and gone with the node. A resume takes the
   * newest version that any node or checkpoint_dir has, of the history that checkpoint_dir knows: that is
   * needed too. One folder of a fast local disk, or of memory (/dev/shm), for this job alone, that no other
   * user may write to; each node has a folder of its own in it, by its name, which stays the same from launch
   * to launch (`muster run --node-name`). A save that fails there is told, and fails nothing else.
   * Space: the state's size checkpoint_keep + 2 times, of versions kept, of one not yet read back and of one
   * being written; of memory where the folder is in memory. On the way there, in each process, the state's
   * size divided by the processes of its node, or at most MUSTER_STAGING_MIB, beside that of other saves.
   * In a world of mpirun or srun each process counts as a node: each saves the whole state, in its own
   * folder. Who copies checkpoint_dir, or takes versions out of it, removes these folders or names another
   * one: the copy, too, takes what nodes have saved since for its own. Not with sharded tensors. NULL or "":
   * MUSTER_CHECKPOINT_LOCAL_DIR, if that is set and can be followed, else none. */
  const char* checkpoint_local_dir;
  int64_t checkpoint_local_every; /* steps between these saves, ≥ 1, or MUSTER_CHECKPOINT_AUTO; 0:
                                     MUSTER_CHECKPOINT_LOCAL_EVERY. Of no meaning without a folder */
  /* 2 to 64: while a save in checkpoint_dir is read back, each byte once as without this, files of parity are
   * written beside its shards, one for a group of at most so many shards (a shard is what one process saved).
   * Of each group one file can then be lost, or several damaged in different places: a start that meets the
   * damage rebuilds them, and so does `muster ckpt repair`. Space: of each save a part in so many, or a
   * little more. 0: none */
  int64_t checkpoint_parity;
  /* File with a key that seals what is saved, here and on nodes: 32 to 1024 random bytes, which only this
   * user may read (else MUSTER_MISUSE), the same for all processes (`muster ckpt keygen`). A run then resumes
   * only from what is sealed with it and was not changed since, and ends with 78 where a save there is not
   * sealed, or with another key. NULL or "": MUSTER_CHECKPOINT_KEY_FILE, if that is set, else none. */
  const char* checkpoint_key_file;
  /* Elements of all gradients together: error feedback. What the codec rounds off in one step is added to the
   * next, at both ends, the lanes' sums and the mean, so that what was applied over many steps differs from
   * the true means by what the residuals hold now, which does not grow (Karimireddy et al. 2019). Rounding is
   * to nearest then, and MUSTER_CODEC_ONE_BIT and _TOPK are possible. 0: none.
   * The residuals are a part of the state: 4 bytes for each element and lane, and once for the mean, each
   * with the process that computes the lane, twice while it runs. They are saved with each version, restored
   * for any number of processes, and move with their lanes when processes join or leave. Nobody else has a
   * lane's: when a process that computes one is lost, the others go back to the newest save, and repeat the
   * steps since then. So save often enough, in checkpoint_dir. Whether there is feedback is fixed for the
   * life of a job, as the codec is. Not with sharded tensors, nor checkpoint_local_dir, nor a state in a
   * device's memory; and a state serves one such run. */
  uint64_t error_feedback;
  int64_t device_collectives; /* a muster_collectives; MUSTER_COLLECTIVES_HOST */
  /* 1: periodic saves in checkpoint_dir are made of what each node has saved for itself, in the background:
   * no update waits for them. When one is due, the first version from then on that every node saves for
   * itself is read from there, verified, and written by all processes as ever, each its part; so let
   * checkpoint_local_every be the shorter interval, and checkpoint_dir is behind by as much at most. From
   * memory come, as without this: what a notice, the end or a start asks for; what is due before every node
   * of the view has saved; and the save after one that failed, for a damaged file or node, or found no such
   * version within two of the nodes' own intervals. It takes reading each node's disk once, and space for one
   * version more there meanwhile. 0: as MUSTER_CHECKPOINT_DRAIN says, which is 0 or 1. Of all processes or
   * none. 1 needs checkpoint_local_dir */
  int64_t checkpoint_drain;
} muster_train_options;

/* Fills in the defaults, so that a program sets only what it means. */
MUSTER_API void muster_train_options_init(muster_train_options* options);

/* Starts or resumes the run that `options` and `checkpoint_dir` describe. M, L, B, N, the seed and the
 * codec are fixed for the life of a job: a checkpoint with others is refused by name. A session has one run.
 * MUSTER_ENVIRONMENT also: memory is said to be a CUDA device's, and there is no such device, or CUDA failed.
 * Where CUDA fails in a step, the run ends on this process with MUSTER_ENDED, and the others go on without
 * it; muster_last_error names CUDA's call and its reason. End with muster_run_destroy. */
MUSTER_API muster_status muster_train(muster_session* session, muster_state* state,
                                      const muster_train_options* options, muster_run** run);
MUSTER_API void muster_run_destroy(muster_run* run);

/* Tells what this process computes on inputs that are the same everywhere, as the gradient of one microbatch
 * of fixed samples at fixed weights: a microbatch's gradient must be the same bits on every host (a lost
 * rank's microbatches are computed elsewhere, and a resumed run repeats what another did). `bytes` bytes of
 * host memory; only their digest is kept. May be called several times, in the same order on every process;
 * not at all is as well, on all. Beside it Muster compares what each host makes of arithmetic and the C
 * library's functions (`muster probe`), on the thread that calls muster_run_next. Who differs from most in a
 * view is named in an event ("differs") in the view's first step; with MUSTER_PROBE=refuse it ends, before
 * anything that it computed counts, and the others go on; =off: nothing is said. Errors: MUSTER_MISUSE: after
 * the first muster_run_next. */
MUSTER_API muster_status muster_run_probe(muster_run* run, const void* results, size_t bytes);

/* The next step to compute, or NULL in `*step` with MUSTER_OK when the loop is over for this process. The
 * same step is handed out again after the view changed. Before it returns the first, the state holds the
 * version to start from. The step stays valid until the next call. */
MUSTER_API muster_status muster_run_next(muster_run* run, muster_step** step);

/* 0: all steps done, and saved where checkpoints are kept. 75: requeue: saved, or all steps done and the last
 * version could not be saved. 78: do not requeue. Others: failed. Valid once the loop is over. */
MUSTER_API int muster_run_exit_code(const muster_run* run);

/* Where the run stands; for display. */
typedef struct muster_run_info {
  size_t size;         /* sizeof(muster_run_info) */
  int64_t version;     /* newest whole version held here */
  int64_t committed;   /* steps known to be complete on every member */
  int64_t durable;     /* newest version known to be saved; -1: none */
  uint64_t generation; /* of the view; 0 before the first */
  int32_t rank;        /* -1: in no view so far, as a learner, or a process that came when the job was over:
                          its tensors are not the job's */
  int32_t world_size;
  int32_t node_count;
  int32_t learner;           /* 1 while this process catches up and computes no microbatch */
  double save_stall_seconds; /* time that updates were made to wait for staging, or for the digest of a new
                                view's state, in total */
} muster_run_info;
MUSTER_API muster_status muster_run_get_info(const muster_run* run, muster_run_info* info);

/* ---- step
 * -------------------------------------------------------------------------------------------------- */

/* The version that the step starts from: 0, 1, … */
MUSTER_API int64_t muster_step_index(const muster_step* step);

typedef struct muster_microbatch {
  int32_t index; /* 0 … M-1 within the step */
  int32_t lane;
  int64_t position;       /* of its first sample in the run's sequence: (step * M + index) * B */
  int64_t count;          /* B */
  const int64_t* samples; /* B sample numbers; valid until the next microbatch is asked for */
  uint64_t
      random_key; /* for counter-based random numbers: the same for this microbatch on any rank, in any try */
} muster_microbatch;

/* The next of this process's microbatches of the step: 1 with *microbatch filled in, or 0 when there are no
 * more (also when the view was revoked, while this process is a learner, and in a step that the others have
 * finished and this process has not: reduce then gives it their gradient, so that it catches up). */
MUSTER_API int muster_step_next_microbatch(muster_step* step, muster_microbatch* microbatch);

/* Float32 gradients, in as many pieces as the program keeps them; together one vector, the same length in all
 * calls; in muster_train_options.gradient_memory. */
typedef struct muster_span {
  float* data;
  size_t count;
} muster_span;

/* Adds the microbatch's gradients along the fixed tree and sets them to zero, for the next microbatch to be
 * added up in. Of CUDA memory this is enqueued, and the call does not wait for the device, but where it first
 * needs memory for the sums, or the stream's queue is full. Before the first one of a step the program zeroes
 * them itself: reduce has left the mean there.
 * Microbatches come in the order in which they were handed out. */
MUSTER_API muster_status muster_step_accumulate(muster_step* step, const muster_microbatch* microbatch,
                                                const muster_span* gradients, size_t spans);

/* The same for elements [begin, end) of that vector, so that the reduction overlaps the backward pass: call
 * it as soon as these gradients are final, usually those of the last layer first, and for each element of
 * each microbatch once; `gradients` are all pieces, as in every call. The vector is cut, from its end, into
 * buckets of bucket_bytes; each is reduced in the background from the moment when this rank has added its
 * last microbatch's elements of it and of the buckets after it; of CUDA memory, from the next call that finds
 * them summed. The result does not depend on the cuts. What is given is added, and set to zero; where a piece
 * is refused, those before it have been added. */
MUSTER_API muster_status muster_step_accumulate_part(muster_step* step, const muster_microbatch* microbatch,
                                                     const muster_span* gradients, size_t spans, size_t begin,
                                                     size_t end);

/* The mean over all M microbatches into `gradients`: the same bits at any world size. MUSTER_AGAIN: the view
 * changed. */
MUSTER_API muster_status muster_step_reduce(muster_step* step, const muster_span* gradients, size_t spans);

/* Rows [begin, begin + count) of a sharded tensor, dense and row-major. */
typedef struct muster_piece {
  void* data;
  int64_t begin;
  int64_t count;
} muster_piece;

/* In an open update: what this process holds of a sharded tensor and has to write, by ascending rows; of a
 * learner, nothing. Tensors with the same first extent have pieces of the same rows, in the same order. The
 * list and the memory that it names are the library's, and valid until the update is closed. Processes that
 * hold the same rows are compared where the tensor has a working copy, in the next step, and all else when
 * the view changes: where they differ, since an update left a piece out or depends on the rank, the run ends.
 */
MUSTER_API muster_status muster_step_pieces(muster_step* step, const char* name, const muster_piece** pieces,
                                            size_t* count);

/* Between these two calls, and only then, the program may write its state, or enqueue what writes it; what is
 * MUSTER_HOST has to be written before closing, also where other tensors are a device's. Opening
 * waits for background copies of the state (of CUDA memory the stream does, and the caller does not), and can
 * be refused with MUSTER_AGAIN. No collective may be called inside. */
MUSTER_API muster_status muster_step_open_update(muster_step* step);
MUSTER_API muster_status muster_step_close_update(muster_step* step);

/* Instead of closing: the state is half written, as after an exception. No version of it is kept, saved or
 * sent; the run ends as failed on this process, and the others go on. */
MUSTER_API muster_status muster_step_abandon_update(muster_step* step);

/* ---- collectives on their own
 * ------------------------------------------------------------------------------
 *
 * A communicator is a fixed set of processes that compute together, without a training run:
 *
 *     muster_comm* comm;
 *     muster_comm_create(NULL, &comm);                        // of all that mpirun or srun started, or alone
 *     float* x = NULL;
 *     muster_comm_allocate(comm, n * sizeof *x, (void**)&x);  // copies nothing on one node; any memory will
 * do muster_comm_all_reduce(comm, x, x, n, MUSTER_FLOAT32, MUSTER_SUM, NULL, NULL);
 *
 * What always holds
 *  - All ranks issue the same operations in the same order, from one thread at a time. What differs between
 *    ranks (operation, type, count, operator, root) ends the operation on all of them with MUSTER_MISUSE and
 *    a sentence that names two ranks, at once or shortly before its deadline. Sends and receives are no part
 *    of this order.
 *  - With `work` NULL an operation is blocking (in a batch: muster_group_end is). Else it goes on in the
 *    background, *work is its handle, and its buffers are the library's until it has ended. Several may be
 *    in flight; each ends by its deadline.
 *  - In place is allowed, but not for all_to_all_v: `out` is `in` where both have one size, else the smaller
 *    is this rank's block of the larger. No other overlap is. Any alignment, any count, 0 included.
 *  - MUSTER_AGAIN: a rank died, left, or did not do its part by the deadline, or the communicator was
 * revoked. It is unusable from then on, on all ranks: every pending and later operation ends with that
 * reason. Inputs that are not outputs are intact; outputs are undefined, and those from muster_comm_allocate
 * may still be written to by other ranks. muster_comm_failed_ranks names the ranks to blame.
 *  - A rank that was itself stopped past a deadline blames others only after they had some time more. */

typedef struct muster_comm muster_comm;
typedef struct muster_work muster_work;

/* Floats of 16 bits and less are added in float32 and rounded once; integers wrap. */
typedef enum muster_reduce_op {
  MUSTER_SUM = 0,
  MUSTER_MIN = 1, /* NaN where any input is NaN; MUSTER_MAX as well */
  MUSTER_MAX = 2,
  MUSTER_AVG = 3, /* the sum over the number of ranks; of integers, towards zero */
  MUSTER_PROD = 4,
  MUSTER_PREMUL_SUM = 5 /* the sum of inputs times muster_call.factor */
} muster_reduce_op;

typedef struct muster_comm_options {
  size_t size;                 /* sizeof(muster_comm_options) */
  double form_timeout_seconds; /* for all ranks to come; 0: MUSTER_COMM_FORM_TIMEOUT, else 120 */
  double timeout_seconds;      /* of an operation that names none; 0: MUSTER_COMM_TIMEOUT, else 600 */
} muster_comm_options;

/* Of all processes that one mpirun (Open MPI) or srun --mpi=pmix started, in their order, or of a process
 * alone, rank 0 of 1. Collective: all of them call it, each time. The program need not use MPI. Under `muster
 * run`, whose members may change, it is refused with MUSTER_MISUSE. `options` may be NULL. Errors also:
 * MUSTER_RETRY or MUSTER_AGAIN: some had not come in time; MUSTER_ENVIRONMENT. End with muster_comm_destroy.
 */
MUSTER_API muster_status muster_comm_create(const muster_comm_options* options, muster_comm** comm);

/* Of the ranks of an MPI communicator of this program, in their order: `mpi_comm` points to an MPI_Comm, as
 * in muster_comm_from_mpi(&my_comm, NULL, &comm). Collective over it. MPI is used within this call only, and
 * only by the calling thread, on a duplicate that is freed before it returns; operations use shared memory
 * and UCX. So the communicator may outlive MPI_Finalize. Refused with MUSTER_MISUSE: a program that runs no
 * MPI or another than Open MPI, MPI that is not initialised or was finalised, MPI_COMM_NULL, an
 * intercommunicator, and another thread than the main one where MPI was initialised for that one alone.
 * Errors also as above. */
MUSTER_API muster_status muster_comm_from_mpi(const void* mpi_comm, const muster_comm_options* options,
                                              muster_comm** comm);

/* A communicator for each color, of the ranks that pass it, ordered by `key` and, where keys are equal, by
 * their rank in `comm`. Collective over `comm` and in the order of its operations: all its ranks call it,
 * also those that pass a negative color, who get *part NULL and MUSTER_OK. Always blocking, in a batch too.
 * `options` may be NULL; 0 in timeout_seconds is the timeout of `comm`.
 *
 * *part depends neither on `comm`, which goes on as before and may be destroyed earlier, nor on the other
 * parts: what fails, revokes or leaves one ends no other. A process that dies ends the waits in all that it
 * was a member of. End it with muster_comm_destroy. Over every medium, and of communicators of an MPI_Comm as
 * of any other: MPI is not used.
 *
 * Errors: those of an operation on `comm`, after which that is unusable; MUSTER_AGAIN, too, where a member of
 * the part did not come by form_timeout_seconds. */
MUSTER_API muster_status muster_comm_split(muster_comm* comm, int32_t color, int32_t key,
                                           const muster_comm_options* options, muster_comm** part);

/* Operations that are still pending end at once; ranks that still need this one fail with MUSTER_AGAIN. What
 * it has sent of operations that ended well still arrives; a process that exits waits for that as long as
 * something moves, so where a rank may not have come to the operation yet, end with a barrier. Frees what
 * muster_comm_allocate gave. Handles of operations stay valid. */
MUSTER_API void muster_comm_destroy(muster_comm* comm);

MUSTER_API int32_t muster_comm_rank(const muster_comm* comm); /* -1 for NULL */
MUSTER_API int32_t muster_comm_size(const muster_comm* comm); /* 0 for NULL */
MUSTER_API const char* muster_comm_medium(
    const muster_comm* comm); /* "shared memory", "UCX", …; for display */

/* Makes the communicator unusable on all ranks: all its pending and later operations end with MUSTER_AGAIN
 * and `reason`. Any thread. */
MUSTER_API muster_status muster_comm_revoke(muster_comm* comm, const char* reason);

/* The ranks that made the communicator unusable, as far as known: writes up to `capacity` of them and returns
 * how many there are. 0 too while it is usable. */
MUSTER_API size_t muster_comm_failed_ranks(const muster_comm* comm, int32_t* ranks, size_t capacity);

/* Zeroed memory that ranks on one node read and write in place; elsewhere ordinary memory. Freed with its
 * communicator at the latest, and not to be used beyond it. Any thread. */
MUSTER_API muster_status muster_comm_allocate(muster_comm* comm, size_t bytes, void** data);
MUSTER_API muster_status muster_comm_free(muster_comm* comm, void* data);

/* How one operation is carried out; NULL stands for the defaults. Fill with zeros before setting fields. */
typedef struct muster_call {
  size_t size;            /* sizeof(muster_call) */
  double timeout_seconds; /* after which it fails, and names who held it up; 0: the communicator's */
  double factor;          /* MUSTER_PREMUL_SUM's, the same on all ranks */
} muster_call;

/* Measures how long ranks of one node, and of different ones, take for messages of some sizes, and from then
 * on chooses how operations go between nodes by that instead of by sizes fixed in the library. Collective, in
 * the order of the operations, while none of `comm` is under way; always blocking, in a batch too. It takes
 * some tenths of a second, more where the network is slow; a communicator of processes that have measured
 * before, in the same order on the same nodes, takes those numbers at once. Where all ranks share one node's
 * memory there is nothing to choose, and it does nothing. With MUSTER_COMM_TUNE=1 every communicator does it
 * when it is formed. `muster bench --explain` shows what would be chosen, and why.
 *
 * All ranks choose alike, and get the same bits of a result. But a sum of floats may be added in another
 * order than before, and than in another run, which has measured other numbers. */
MUSTER_API muster_status muster_comm_tune(muster_comm* comm, const muster_call* call);

/* Counts are in elements; N is the number of ranks. What only the root has may be NULL elsewhere: `in` of
 * broadcast and scatter, `out` of reduce and gather. */

MUSTER_API muster_status muster_comm_all_reduce(muster_comm* comm, const void* in, void* out, size_t count,
                                                muster_dtype dtype, muster_reduce_op op,
                                                const muster_call* call, muster_work** work);
MUSTER_API muster_status muster_comm_reduce(muster_comm* comm, const void* in, void* out, size_t count,
                                            muster_dtype dtype, muster_reduce_op op, int32_t root,
                                            const muster_call* call, muster_work** work);
/* in: N × count; out: count. */
MUSTER_API muster_status muster_comm_reduce_scatter(muster_comm* comm, const void* in, void* out,
                                                    size_t count, muster_dtype dtype, muster_reduce_op op,
                                                    const muster_call* call, muster_work** work);
/* in: count; out: N × count. */
MUSTER_API muster_status muster_comm_all_gather(muster_comm* comm, const void* in, void* out, size_t count,
                                                muster_dtype dtype, const muster_call* call,
                                                muster_work** work);
MUSTER_API muster_status muster_comm_gather(muster_comm* comm, const void* in, void* out, size_t count,
                                            muster_dtype dtype, int32_t root, const muster_call* call,
                                            muster_work** work);
/* in: N × count; out: count. */
MUSTER_API muster_status muster_comm_scatter(muster_comm* comm, const void* in, void* out, size_t count,
                                             muster_dtype dtype, int32_t root, const muster_call* call,
                                             muster_work** work);
/* in and out: N × count. Block r goes to rank r. */
MUSTER_API muster_status muster_comm_all_to_all(muster_comm* comm, const void* in, void* out, size_t count,
                                                muster_dtype dtype, const muster_call* call,
                                                muster_work** work);
/* The root's `in` to everyone's `out`. */
MUSTER_API muster_status muster_comm_broadcast(muster_comm* comm, const void* in, void* out, size_t count,
                                               muster_dtype dtype, int32_t root, const muster_call* call,
                                               muster_work** work);
/* Ends on no rank before it was issued on all. */
MUSTER_API muster_status muster_comm_barrier(muster_comm* comm, const muster_call* call, muster_work** work);

/* The same with blocks of different sizes, one after the other in rank order: counts[r], of N, is rank r's,
 * and all ranks pass all of them. */
MUSTER_API muster_status muster_comm_reduce_scatter_v(muster_comm* comm, const void* in, void* out,
                                                      const size_t* counts, muster_dtype dtype,
                                                      muster_reduce_op op, const muster_call* call,
                                                      muster_work** work);
MUSTER_API muster_status muster_comm_all_gather_v(muster_comm* comm, const void* in, void* out,
                                                  const size_t* counts, muster_dtype dtype,
                                                  const muster_call* call, muster_work** work);
MUSTER_API muster_status muster_comm_gather_v(muster_comm* comm, const void* in, void* out,
                                              const size_t* counts, muster_dtype dtype, int32_t root,
                                              const muster_call* call, muster_work** work);
MUSTER_API muster_status muster_comm_scatter_v(muster_comm* comm, const void* in, void* out,
                                               const size_t* counts, muster_dtype dtype, int32_t root,
                                               const muster_call* call, muster_work** work);

/* Each rank sends in_counts[r] elements of `in` to rank r and gets out_counts[r] from it, blocks one after
 * the other in rank order. Here a rank passes its own counts only: where what it expects of another is not
 * what that one sends it, the operation ends with MUSTER_MISUSE and a sentence that names the two and both
 * counts. Not in place. */
MUSTER_API muster_status muster_comm_all_to_all_v(muster_comm* comm, const void* in, const size_t* in_counts,
                                                  void* out, const size_t* out_counts, muster_dtype dtype,
                                                  const muster_call* call, muster_work** work);

/* ---- between two ranks
 *
 * muster_comm_send gives `count` elements to rank `peer`, which takes them by muster_comm_recv. The n-th send
 * to a rank with one tag meets that rank's n-th receive from the sender with that tag, whatever else either
 * of them issues in between. A tag is any number; give 0 where there is but one kind of message. Type and
 * count are the same on both sides, 0 included; where they differ, nothing is written, and the communicator
 * ends with MUSTER_MISUSE on all ranks and a sentence that names the two and what each gave.
 *
 * A send ends when its receiver has everything, and not before the receive was issued: two ranks that both
 * send first and block wait for each other, until the deadline. Issue both directions in a batch, or with
 * handles. A peer that died, left, or issued nothing that matches by the deadline: MUSTER_AGAIN, as above.
 * `peer` may be this rank; a blocking call is then refused with MUSTER_MISUSE unless its counterpart was
 * issued before. `data` must not overlap that of another transfer under way, unless both are sends. It is
 * copied, through memory of the library, wherever it lies. Over shared memory and UCX alike. */
MUSTER_API muster_status muster_comm_send(muster_comm* comm, const void* data, size_t count,
                                          muster_dtype dtype, int32_t peer, int32_t tag,
                                          const muster_call* call, muster_work** work);
MUSTER_API muster_status muster_comm_recv(muster_comm* comm, void* data, size_t count, muster_dtype dtype,
                                          int32_t peer, int32_t tag, const muster_call* call,
                                          muster_work** work);

/* A batch: what this thread issues between the two, on any communicators, goes on at once, and nothing waits
 * before the end:
 *
 *     muster_group_start();
 *     muster_comm_send(comm, mine, n, MUSTER_FLOAT32, next, 0, NULL, NULL);
 *     muster_comm_recv(comm, theirs, n, MUSTER_FLOAT32, previous, 0, NULL, NULL);
 *     muster_group_end();
 *
 * Buffers of operations with `work` NULL are the library's until muster_group_end, which waits for all of
 * them, each ending by its own deadline, and returns the first failure in the order of issue. A call
 * that fails at once says so at once, and muster_group_end again. Operations with a handle are the handle's:
 * muster_group_end neither waits for them nor reports how they end.
 *
 * Batches nest: an inner muster_group_end only returns MUSTER_OK, the outermost one waits. The order of
 * operations among ranks is as without a batch. Calls that are no operation (create, split, wait, destroy)
 * act at once. MUSTER_MISUSE: muster_group_end without a muster_group_start in this thread. */
MUSTER_API muster_status muster_group_start(void);
MUSTER_API muster_status muster_group_end(void);

/* *done: whether the operation has ended, well or not. Returns its end; MUSTER_OK while it goes on. */
MUSTER_API muster_status muster_work_test(const muster_work* work, int32_t* done);

/* Waits for the end, and returns it. timeout_seconds is this wait's own, 0: none but the operation's; where
 * it passes, MUSTER_RETRY, and the operation goes on. Any thread. */
MUSTER_API muster_status muster_work_wait(const muster_work* work, double timeout_seconds);

/* Frees the handle. An operation that goes on is not cancelled. */
MUSTER_API void muster_work_destroy(muster_work* work);

/* ---- compressed, on a communicator
 *
 * An all_reduce of float32 of which ranks send each other less, and its two halves:
 *
 *     muster_residuals* residuals;
 *     muster_residuals_create(comm, n, &residuals);           // once for each vector
 *     muster_compression how = {sizeof how};
 *     how.codec = MUSTER_CODEC_INT8;
 *     how.residuals = residuals;
 *     for (how.step = 0; how.step < steps; ++how.step) {
 *       backward(grads);                                       // your code
 *       muster_comm_all_reduce_compressed(comm, grads, grads, n, MUSTER_AVG, &how, NULL);
 *       muster_residuals_commit(residuals);
 *       optimizer(params, grads);                              // your code
 *     }
 *
 * The vector is cut in a slice for each rank. Each rank encodes its own values of each slice; the slice's
 * owner decodes them, adds them in float32 in the order of ranks, and encodes the mean, or sum; everybody
 * gathers the slices and decodes them, the owner too. So all ranks end with the same bits, which depend on
 * the number of ranks and their order, unlike those of a training run (muster_train). With int8 a rank sends
 * 2.03 bytes for each element where float32 sends 8, int4 1.03, 1-bit 0.26, topk 0.09, times (N - 1)/N, for
 * vectors much longer than 1024 N elements: in shorter ones headers, and slices that are shorter than the
 * longest, take as much. Beside the residuals a communicator keeps three encoded vectors, as large as the
 * largest one so far had them, until it ends. Source: gradient compression at both ends, as in 1-bit Adam
 * (Tang et al. 2021) and ZeRO++ (Wang et al. 2023); the codecs are in docs/formats/codec.md.
 *
 * Error feedback. With residuals, rounding is to nearest, and what it leaves out is added to what is encoded
 * next: over steps, what was applied differs from the true means by what the residuals hold, which does not
 * grow. Without (NULL), rounding is at random, and right on average; 1-bit and topk need residuals, and with
 * topk an element waits in them until it is among the largest of its 1024. A NaN or an infinity stays visible
 * to all ranks, as itself or as a NaN among its neighbours, and leaves the residuals of these elements as
 * they were. fp16 makes infinity of what is beyond 65504, in a sum too. Where a residual by itself makes a
 * value too large for the codec (after a change of codec, or in 1-bit and topk with huge values), its block
 * stays infinite or NaN until new residuals are made.
 *
 * All ranks pass the same count, operator, codec, seed, step and tensor, and all residuals or none; what
 * differs ends it on all of them with MUSTER_MISUSE, as with any operation. What one rank alone gets wrong
 * (refused at once, see below) is told to that rank only; the others wait for it until the deadline. Always
 * blocking, in a batch too, and muster_group_end reports its failure again: it is encoded, sent and decoded
 * in chunks, several at a time. `out` may be `in`. A message that was damaged on its way ends it with
 * MUSTER_AGAIN and names the sender; the communicator is unusable then. */

/* What error feedback holds for one vector on one rank: count + count/N floats, and from the first operation
 * on as many again. One operation at a time; no call of it from another thread meanwhile. */
typedef struct muster_residuals muster_residuals;

/* Fill with zeros before setting fields. */
typedef struct muster_compression {
  size_t size;     /* sizeof(muster_compression) */
  int32_t codec;   /* a muster_codec, not MUSTER_CODEC_NONE; for an all_reduce also MUSTER_CODEC_AUTO */
  uint32_t tensor; /* below 2^30: tells vectors that are reduced in one step apart */
  uint64_t seed;   /* random numbers depend on seed, step, tensor, rank and element */
  uint64_t step;
  muster_residuals* residuals; /* of this vector; or NULL: no error feedback */
} muster_compression;

/* in and out: count. `op`: MUSTER_SUM or MUSTER_AVG. After MUSTER_OK, muster_residuals_commit makes the new
 * residuals count; after a failure, or without it, they are as before: the same step may be done again.
 * Where some ranks failed and others did not, agree on a new communicator before committing. In place, the
 * input is lost on failure. MUSTER_MISUSE at once, and nothing is sent: a codec or operator that it cannot
 * do, or residuals of another count, rank or number of ranks. */
MUSTER_API muster_status muster_comm_all_reduce_compressed(muster_comm* comm, const float* in, float* out,
                                                           size_t count, muster_reduce_op op,
                                                           const muster_compression* how,
                                                           const muster_call* call);

/* With MUSTER_CODEC_AUTO the codec is chosen for each `tensor`, alike on all ranks, from what has been
 * measured: how long the operations took, how fast the codecs encode and decode, and how much of a sample of
 * the values each of them loses (one that loses more than 40 % of their norm is not taken). Without residuals
 * it may be none, that is float32. Chosen before the first calls of a tensor, then before every 32nd, and
 * anew where its count changes or residuals come or go: give each vector a number of its own. A choice costs
 * some milliseconds and an all_reduce of a few numbers. Since it depends on times, two runs may choose
 * differently and end with other bits: name a codec where they must not.
 *
 * What it last chose: a muster_codec, and why, in words that live until the next call with `comm`. Either
 * pointer may be NULL. Not during an operation of `comm`. MUSTER_MISUSE: nothing was chosen for the tensor
 * yet. */
#define MUSTER_CODEC_AUTO (-1)
MUSTER_API muster_status muster_comm_chosen_codec(muster_comm* comm, uint32_t tensor, int32_t* codec,
                                                  const char** why);

/* Elements [*begin, *end) of a vector of `count` are rank's slice of N. Where there are more ranks than
 * multiples of 1024 below count, some slices are empty: [0, 0). The others, and only they, begin at multiples
 * of 1024 within the vector, and end at one or at its end. MUSTER_MISUSE: a count of 2^51 or more. */
MUSTER_API muster_status muster_compressed_slice(size_t count, int32_t rank, int32_t ranks, size_t* begin,
                                                 size_t* end);

/* The first half: in: count; out: this rank's slice of the mean or sum, in float32. The second: in: this
 * rank's slice; out: count. Each changes its own part of the residuals; one commit after both does for both.
 */
MUSTER_API muster_status muster_comm_reduce_scatter_compressed(muster_comm* comm, const float* in, float* out,
                                                               size_t count, muster_reduce_op op,
                                                               const muster_compression* how,
                                                               const muster_call* call);
MUSTER_API muster_status muster_comm_all_gather_compressed(muster_comm* comm, const float* in, float* out,
                                                           size_t count, muster_reduce_op op,
                                                           const muster_compression* how,
                                                           const muster_call* call);

/* Zeros, for this rank of `comm`, which may end before them. End with muster_residuals_destroy.
 * MUSTER_MISUSE: a count of 2^51 or more. */
MUSTER_API muster_status muster_residuals_create(const muster_comm* comm, size_t count,
                                                 muster_residuals** residuals);
MUSTER_API void muster_residuals_destroy(muster_residuals* residuals);

/* What the operations since the last commit have left counts from now on. MUSTER_MISUSE where none has ended
 * well since then. */
MUSTER_API muster_status muster_residuals_commit(muster_residuals* residuals);

/* As bytes, to be kept in a checkpoint: what was committed. They hold a checksum, rank and number of ranks;
 * docs/formats/codec.md defines them. muster_residuals_export writes muster_residuals_bytes(residuals) bytes
 * (0 for NULL) to `data`, which has room for `bytes`. muster_residuals_import reads them;
 * MUSTER_DROP_CHECKPOINT where they are not what was exported. */
MUSTER_API size_t muster_residuals_bytes(const muster_residuals* residuals);
MUSTER_API muster_status muster_residuals_export(const muster_residuals* residuals, void* data, size_t bytes);
MUSTER_API muster_status muster_residuals_import(const void* data, size_t bytes,
                                                 muster_residuals** residuals);

/* The residuals of rank `rank` of N' ranks, from those of all N ranks before a planned change, in the order
 * of ranks: import what each has exported. origins[r], of N': which rank the new rank r has been, or -1 where
 * it is new. Who stays keeps its own; those of ranks that leave go to those that stay, in turn. With
 * MUSTER_AVG all are scaled by N'/N, so that (1/N) times their sum stays what it was, with MUSTER_SUM the
 * sum; each is rounded once, to the nearest float32. Local: nothing is sent. MUSTER_MISUSE: not all ranks of
 * one set. */
MUSTER_API muster_status muster_residuals_merge(const muster_residuals* const* all, size_t ranks_before,
                                                const int32_t* origins, size_t ranks, int32_t rank,
                                                muster_reduce_op op, muster_residuals** merged);

/* ---- low-rank, on a communicator
 *
 * An all_reduce of float32 matrices of which ranks send each other thin factors, by PowerSGD:
 *
 *     muster_matrix matrices[] = {{4096, 1024}, {1024, 4096}, {1, 4096}};   // rows, columns
 *     muster_power_sgd_options options = {sizeof options};
 *     options.low_rank = 4;
 *     muster_power_sgd* state;
 *     muster_power_sgd_create(comm, &options, matrices, 3, &state);   // once for the whole list
 *     for (step = 0; step < steps; ++step) {
 *       backward(grads);                                        // your code; grads: float*[3]
 *       for (i = 0; i < 3; ++i) in[i] = grads[i];               // in: const float*[3], in place
 *       muster_comm_all_reduce_power_sgd(comm, in, grads, 3, MUSTER_AVG, state, NULL);
 *       muster_power_sgd_commit(state);
 *       optimizer(params, grads);                               // your code
 *     }
 *
 * A matrix of a rows and b columns becomes the product of two factors, of a x r and r x b, r being low_rank.
 * They begin at random, and each step turns them to the directions in which the gradients are largest. What
 * is left out of a rank's gradient is its residual, which is added to its next one. So a rank sends r (a + b)
 * floats where a plain all_reduce sends a b: for 4096 x 1024 and r = 4 a part in 205. Matrices for which 2 r
 * (a + b) is not below a b (vectors; all with r >= min(a, b)) are reduced in plain float32, without a
 * residual. All matrices of a call go together, in two all_reduces, whatever their number and shapes: give
 * one call all that a step has.
 *
 * It pays where the network is slow: each element is read and written several times, on the CPU, and more
 * is computed the larger r is (docs/guides/compression.md). muster_power_sgd_sent says what a list sends.
 * Source: Vogels, Karimireddy, Jaggi 2019, "PowerSGD: Practical Low-Rank Gradient Compression for
 * Distributed Optimization".
 *
 * All ranks end with the same bits, which depend on the gradients, the number of ranks and their order; not
 * on how ranks talk, nor on their processors. Over steps, what was applied differs from the true means by
 * the mean of the residuals (for MUSTER_SUM: from the sums by their sum), but for roundings. A NaN, an
 * infinity or a magnitude of 2^80 in one rank's gradient and residual makes all elements of that matrix NaN
 * on all ranks (where it is reduced in plain float32: that element what it is), and leaves its residuals as
 * they were. A residual that is that large by itself does so in each step, until a new state is made.
 *
 * All ranks pass states of the same list, low_rank, seed and number of committed steps, and the same
 * operator; what differs ends it on all of them with MUSTER_MISUSE. What one rank alone gets wrong is told
 * to that rank only; the others wait for it until the deadline. Always blocking, in a batch too, and
 * muster_group_end reports its failure again. */

typedef struct muster_matrix {
  size_t rows; /* 0, too */
  size_t columns;
} muster_matrix;

/* What PowerSGD keeps of a list of matrices on one rank: the residuals, as many floats as the matrices have
 * that pay, and a factor's r b for each of them; from the first operation on as many again, and what is sent
 * twice. One operation at a time; no call of it from another thread meanwhile. */
typedef struct muster_power_sgd muster_power_sgd;

/* Fill with zeros before setting fields. */
typedef struct muster_power_sgd_options {
  size_t size;       /* sizeof(muster_power_sgd_options) */
  uint32_t low_rank; /* r: 1 ... 1024. 1, 2 and 4 are usual */
  uint64_t seed;     /* of the random factors to begin with */
} muster_power_sgd_options;

/* For this rank of `comm`, which may end before it; `matrices`, of `count`, is copied. End with
 * muster_power_sgd_destroy. MUSTER_MISUSE: low_rank is not 1 ... 1024, or there are 2^51 elements or 2^30
 * matrices, or more. */
MUSTER_API muster_status muster_power_sgd_create(const muster_comm* comm,
                                                 const muster_power_sgd_options* options,
                                                 const muster_matrix* matrices, size_t count,
                                                 muster_power_sgd** state);
MUSTER_API void muster_power_sgd_destroy(muster_power_sgd* state);

/* Floats that its two all_reduces send together, each of which travels 2 (N - 1)/N times; a plain all_reduce
 * of the matrices has their elements. 0 for NULL. */
MUSTER_API size_t muster_power_sgd_sent(const muster_power_sgd* state);

/* in and out: `count` pointers, one for each matrix of the state, in its order, to rows times columns floats,
 * row by row; may be NULL where those are none. out[i] may be in[i]; other overlap is not allowed. `op`:
 * MUSTER_SUM or MUSTER_AVG. After MUSTER_OK, muster_power_sgd_commit makes the new state count; after a
 * failure, or without it, it is as before: the same step may be done again. A failure has written nothing to
 * `out`. Where some ranks failed and others did not, agree on a new communicator before committing.
 * MUSTER_MISUSE at once, and nothing is sent: another operator or count, a null pointer, or a state of
 * another rank or number of ranks. */
MUSTER_API muster_status muster_comm_all_reduce_power_sgd(muster_comm* comm, const float* const* in,
                                                          float* const* out, size_t count,
                                                          muster_reduce_op op, muster_power_sgd* state,
                                                          const muster_call* call);

/* What the operation since the last commit has left counts from now on. MUSTER_MISUSE where none has ended
 * well since then. */
MUSTER_API muster_status muster_power_sgd_commit(muster_power_sgd* state);

/* As bytes, to be kept in a checkpoint: what was committed, the list of matrices included. As
 * muster_residuals_bytes, _export and _import; docs/formats/codec.md defines them. */
MUSTER_API size_t muster_power_sgd_bytes(const muster_power_sgd* state);
MUSTER_API muster_status muster_power_sgd_export(const muster_power_sgd* state, void* data, size_t bytes);
MUSTER_API muster_status muster_power_sgd_import(const void* data, size_t bytes, muster_power_sgd** state);

/* The state of rank `rank` of N' ranks, from those of all N ranks before a planned change: as
 * muster_residuals_merge, which says what becomes of the residuals. All are of the same list and step. */
MUSTER_API muster_status muster_power_sgd_merge(const muster_power_sgd* const* all, size_t ranks_before,
                                                const int32_t* origins, size_t ranks, int32_t rank,
                                                muster_reduce_op op, muster_power_sgd** merged);

#ifdef __cplusplus
}
#endif
#endif
