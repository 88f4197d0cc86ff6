/* The view change of Muster as a model for spin: revoke, agree, transfer, ready, go. docs/model/check runs it.
 *
 * Three members, one a node, and a leader. Any may be lost at any moment but the leader, also during a change
 * (CRASHES in all); messages may be lost (LOSSES), which the leader answers by asking again, as a new
 * connection makes it do. An update is an interval; a reduction completes rank by rank; a transfer is an
 * interval that its source may not survive.
 *
 * What is asserted: a permit is granted only in a view that lives and was not reported of (rule 1); who enters
 * a view holds its base (rules 3, 5); what every member of a view held is not given up (rule 6); one view a
 * generation (rule 14). And that nothing waits for ever: spin's invalid end states.
 *
 * Planted bugs, each of which spin must find: -DNO_REFUSAL, a permit after the report; -DNO_AWAITING, a report
 * beside an open update; -DIN_PLACE, a transfer into the state itself (rule 4); -DNO_RETURN, a loss while the
 * next view is installed starts no further change.
 */
#define N 3
#ifndef STEPS
#define STEPS 2
#endif
#ifndef CRASHES
#define CRASHES 2
#endif
#ifndef LOSSES
#define LOSSES 1
#endif
#define NONE 255 /* no whole version, no member */

mtype = { AGREE, INSTALL, GO, REPORT, READY };
mtype = { RUNNING, AGREEING, INSTALLING };

/* kind, generation, attempt, base, source of the transfer (the member itself: none) */
chan to_member[N] = [2] of { mtype, byte, byte, byte, byte };
/* kind, sender, generation, attempt, version */
chan to_leader = [4] of { mtype, byte, byte, byte, byte };

/* members */
bool alive[N] = true;
byte version[N];     /* what the program's memory holds */
bool writing[N];     /* an update is open */
byte entered[N] = 1; /* generation */
bool revoked[N];
bool reported[N];
bool reduced[N]; /* a reduction of `version` has returned, the update is not opened yet */
byte fed[N];     /* contributed to all steps below, in the entered view */
byte pending[N]; /* the generation being formed, 0: none */
byte from[N] = NONE; /* source of the transfer under way */
bool owes[N];    /* a report */

/* the leader */
mtype phase = RUNNING;
bool in_view[N] = true; /* the newest view that was stored */
bool lost[N];           /* it knows of the death */
bool has[N];            /* an answer, in this phase */
byte told[N];           /* the version in it */
byte generation = 1;
byte attempt = 0;
byte base = 0;
byte holder = NONE;
byte i;

/* bounds and ghosts */
byte crashes = CRASHES;
byte losses = LOSSES;
byte committed; /* held by every member of a view */

inline to_the_leader(kind, gen, nth, what) {
  if
  :: to_leader!kind, me, gen, nth, what
  :: losses > 0 -> losses--
  fi
}
inline tell(who, kind, nth, what, source) {
  if
  :: to_member[who]!kind, generation, nth, what, source
  :: losses > 0 -> losses--
  fi
}

#define HOLDS(m, v) (!in_view[m] || !alive[m] || (entered[m] == generation && version[m] != NONE && version[m] >= v))
#define FED(m) (!in_view[m] || (entered[m] == entered[me] && fed[m] > version[me]))

proctype Member(byte me) {
  mtype kind;
  byte gen, nth, what, source;
  byte asked = 0, asked_in = 0;
  byte pending_attempt = 0, pending_base = 0;
  bool staged = false;
  bool target = false;
end:
  do
  /* the program: contribute, finish the reduction, open the update, close it */
  :: atomic { alive[me] && !revoked[me] && in_view[me] && !writing[me] && !reduced[me] && version[me] < STEPS &&
              fed[me] == version[me] -> fed[me] = version[me] + 1 }
  :: atomic { alive[me] && !revoked[me] && !writing[me] && !reduced[me] && version[me] < STEPS &&
              fed[me] == version[me] + 1 && FED(0) && FED(1) && FED(2) -> reduced[me] = true }
#ifdef NO_REFUSAL
  :: atomic { alive[me] && reduced[me] && !writing[me] -> reduced[me] = false; writing[me] = true }
#else
  :: atomic { alive[me] && reduced[me] && !writing[me] && !revoked[me] && !reported[me] ->
              reduced[me] = false; writing[me] = true }
#endif
  :: atomic { alive[me] && writing[me] -> writing[me] = false; version[me]++;
       if
       :: version[me] > committed && HOLDS(0, version[me]) && HOLDS(1, version[me]) && HOLDS(2, version[me]) ->
          committed = version[me]
       :: else
       fi }

  /* the control connection: rules 1, 3, 4 */
  :: atomic { alive[me] && nempty(to_member[me]) -> to_member[me]?kind, gen, nth, what, source;
       if
       :: kind == AGREE && gen >= entered[me] && gen >= pending[me] && nth >= asked ->
          asked = nth; asked_in = gen; owes[me] = true;
          revoked[me] = true; reported[me] = true;
          pending[me] = 0; from[me] = NONE; staged = false
       :: kind == INSTALL && gen > entered[me] && gen > pending[me] ->
          pending[me] = gen; pending_attempt = nth; pending_base = what; owes[me] = false;
          staged = false; from[me] = NONE; target = (source != me);
          if
          :: target -> from[me] = source
          :: else -> to_the_leader(READY, gen, nth, 0)
          fi
       :: kind == INSTALL && gen == pending[me] && from[me] == NONE -> to_the_leader(READY, gen, nth, 0)
       :: kind == GO && gen == pending[me] && (staged || !target) ->
          if
          :: target -> version[me] = pending_base
          :: else
          fi;
          assert(version[me] == pending_base && !writing[me]);
          entered[me] = gen; pending[me] = 0; staged = false; target = false; asked = 0;
          revoked[me] = false; reported[me] = false; reduced[me] = false; fed[me] = version[me]
       :: else
       fi;
       kind = 0; gen = 0; nth = 0; what = 0; source = 0 }
#ifdef NO_AWAITING
  :: atomic { alive[me] && owes[me] -> owes[me] = false; to_the_leader(REPORT, asked_in, asked, version[me]) }
#else
  :: atomic { alive[me] && owes[me] && !writing[me] ->
              owes[me] = false; to_the_leader(REPORT, asked_in, asked, version[me]) }
#endif
#ifdef IN_PLACE
  :: atomic { alive[me] && from[me] != NONE && version[me] != NONE -> version[me] = NONE }
#endif
  :: atomic { alive[me] && from[me] != NONE && alive[from[me]] && !writing[from[me]] &&
              version[from[me]] == pending_base ->
              from[me] = NONE; staged = true; to_the_leader(READY, pending[me], pending_attempt, 0) }

  :: atomic { alive[me] && crashes > 0 -> crashes--; alive[me] = false; break }
  od
}

#define EVERY(c) (c(0) && c(1) && c(2))
#define SOME(c) (c(0) || c(1) || c(2))
#define GONE(m) (!in_view[m] || lost[m])
#define LOST(m) (in_view[m] && lost[m])
#define UNKNOWN(m) (!alive[m] && !lost[m])
#define ANSWERED(m) (GONE(m) || has[m])
#define FINISHED(m) (GONE(m) || (version[m] == STEPS && !writing[m]))
/* Nothing is under way to or from it: what was said is lost, or was never said. */
#define QUIET(m) (!GONE(m) && alive[m] && empty(to_member[m]) && empty(to_leader) && !owes[m])
#define UNASKED(m) (phase == AGREEING && !has[m] && QUIET(m))
#define UNTOLD(m) (phase == INSTALLING && !has[m] && from[m] == NONE && QUIET(m))
#define WAITING(m) (phase == RUNNING && entered[m] != generation && QUIET(m))

inline forget_answers() { has[0] = false; has[1] = false; has[2] = false }
inline begin_change() { attempt++; forget_answers(); phase = AGREEING }
inline consider(m) {
  if
  :: !GONE(m) && told[m] != NONE && (holder == NONE || told[m] > base) -> holder = m; base = told[m]
  :: else
  fi
}

proctype Leader() {
  mtype kind;
  byte who, gen, nth, what;
  do
  :: atomic { UNKNOWN(0) -> lost[0] = true }
  :: atomic { UNKNOWN(1) -> lost[1] = true }
  :: atomic { UNKNOWN(2) -> lost[2] = true }
  :: atomic { to_leader?kind, who, gen, nth, what ->
       if
       :: phase == AGREEING && kind == REPORT && gen == generation && nth == attempt ->
          has[who] = true; told[who] = what
       :: phase == INSTALLING && kind == READY && gen == generation && nth == attempt -> has[who] = true
       :: else
       fi;
       kind = 0; who = 0; gen = 0; nth = 0; what = 0 }

  :: atomic { phase == RUNNING && SOME(LOST) && !EVERY(GONE) -> begin_change() }
#ifndef NO_RETURN
  :: atomic { phase == INSTALLING && SOME(LOST) && !EVERY(GONE) -> begin_change() }
#endif
  :: atomic { UNASKED(0) -> tell(0, AGREE, attempt, 0, 0) }
  :: atomic { UNASKED(1) -> tell(1, AGREE, attempt, 0, 0) }
  :: atomic { UNASKED(2) -> tell(2, AGREE, attempt, 0, 0) }

  :: atomic { phase == AGREEING && EVERY(ANSWERED) && !EVERY(GONE) ->
       holder = NONE; base = 0;
       consider(0); consider(1); consider(2);
       assert(holder != NONE);
       assert(base >= committed);
       generation++; /* the guarded write */
       i = 0;
       do
       :: i < N -> in_view[i] = in_view[i] && !lost[i]; i++
       :: else -> break
       od;
       i = 0; forget_answers(); phase = INSTALLING }
  :: atomic { UNTOLD(0) -> tell(0, INSTALL, attempt, base, (told[0] == base -> 0 : holder)) }
  :: atomic { UNTOLD(1) -> tell(1, INSTALL, attempt, base, (told[1] == base -> 1 : holder)) }
  :: atomic { UNTOLD(2) -> tell(2, INSTALL, attempt, base, (told[2] == base -> 2 : holder)) }
  :: atomic { phase == INSTALLING && EVERY(ANSWERED) && !SOME(LOST) -> phase = RUNNING }
  :: atomic { WAITING(0) -> tell(0, GO, attempt, 0, 0) }
  :: atomic { WAITING(1) -> tell(1, GO, attempt, 0, 0) }
  :: atomic { WAITING(2) -> tell(2, GO, attempt, 0, 0) }

  :: atomic { EVERY(GONE) -> break }
  :: atomic { phase == RUNNING && EVERY(FINISHED) && !SOME(LOST) -> break }
  od;
  /* The rest of what is said is not read any more. */
end:
  do
  :: to_leader?_, _, _, _, _
  od
}

init { atomic { run Leader(); run Member(0); run Member(1); run Member(2) } }
