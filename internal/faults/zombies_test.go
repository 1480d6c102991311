package faults

import (
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"
)

var zombieScenarios = stopAt()

func stopAt() (all []scenario) {
	for _, failpoint := range append([]string{"consumer.claimed", "consumer.polled", "consumer.committing"}, storing...) {
		all = append(all, scenario{name: "zombie/" + failpoint, rounds: 6, run: func(e *env) {
			e.build(world{})
			e.produce(loadOptions{})
			for range times(1, 3) {
				haunt(e, failpoint, []time.Duration{0, 6 * time.Second}[e.rng.IntN(2)]) // idle_in_transaction_session_timeout is 5 s
			}
			e.clean()
		}})
	}
	return append(all,
		scenario{name: "zombie/consumer.revoked", run: zombieRevoking},
		scenario{name: "zombie/consumer.stopping", run: zombieStopping},
		scenario{name: "zombie/making-partitions", run: zombieMakingPartitions},
		scenario{name: "zombie/any-moment", rounds: 6, run: zombieAnytime},
		scenario{name: "zombie/brief", rounds: 6, run: zombieBrief},
	)
}

// haunt stops a worker at a failpoint past its session, so that another takes its lanes over and stores what it holds in memory, and then lets it go
// on: it must store nothing of that. most bounds how much later that is.
func haunt(e *env, failpoint string, most time.Duration) {
	often := map[string]int{"consumer.claimed": 1, "consumer.committing": 2, "consumer.polled": 20}[failpoint]
	if often == 0 {
		often = 30
	}
	heir := e.worker()
	heir.awaitLanes(1)
	zombie := e.armed(failpoint, "stop", 1+e.rng.IntN(often))
	zombie.froze()
	e.takenOver(zombie)
	if most > 0 {
		e.pass(most)
	}
	zombie.resume()
	e.awaitStored(100)
	heir.stop()
}

// takenOver waits until a stopped worker holds no lane any more, and others have moved on in each of those that it held. It returns how many.
func (e *env) takenOver(zombie *worker) (lanes int) {
	e.Helper()
	stood := map[int32]int64{}
	e.eventually("its lanes can be read", func() bool {
		rows, err := e.db.Query(e.Context(), `SELECT lane_id, next_offset FROM audit_lane WHERE owner = $1`, zombie.owner())
		if err != nil {
			return false
		}
		var id int32
		var next int64
		_, err = pgx.ForEachRow(rows, []any{&id, &next}, func() error { stood[id] = next; return nil })
		return err == nil
	})
	for id, next := range stood {
		e.eventually("another takes over", func() bool {
			return e.number(`SELECT next_offset FROM audit_lane WHERE lane_id = $1 AND owner <> $2`, id, zombie.owner()) > next+5
		})
	}
	return len(stood)
}

// zombieRevoking stops a worker in the middle of a rebalance.
func zombieRevoking(e *env) {
	e.build(world{})
	e.produce(loadOptions{})
	for range times(1, 3) {
		zombie := e.armed("consumer.revoked", "stop", 1)
		zombie.awaitLanes(1)
		e.worker()
		zombie.froze()
		e.takenOver(zombie)
		zombie.resume()
		e.awaitStored(100)
		for _, w := range e.workers {
			w.stop()
		}
	}
	e.clean()
}

// zombieStopping stops a worker in the middle of its shutdown. It still ends well.
func zombieStopping(e *env) {
	e.build(world{})
	e.produce(loadOptions{})
	for range times(1, 3) {
		zombie := e.armed("consumer.stopping", "stop", 1)
		zombie.awaitLanes(1)
		e.awaitAcked(20)
		zombie.terminate()
		zombie.froze()
		next := e.worker()
		e.takenOver(zombie)
		zombie.resume()
		e.awaitStored(100)
		zombie.stop()
		next.stop()
	}
	e.clean()
}

// zombieMakingPartitions stops a worker in the middle of making a table partition, with the lock of whoever does that in its hands. Others must come to make
// theirs all the same.
func zombieMakingPartitions(e *env) {
	e.build(world{})
	e.produce(loadOptions{recipe: recipe{late: 0.2, poison: 0.02}})
	var zombie *worker
	// What ATTACH waits for, and batches don't.
	e.held(`LOCK TABLE audit_log IN SHARE UPDATE EXCLUSIVE MODE`, nil, func() {
		zombie = e.worker()
		e.eventually("it waits to attach a partition", func() bool {
			return e.number(`SELECT count(*) FROM pg_locks a JOIN pg_locks b USING (pid) WHERE a.locktype = 'advisory' AND a.granted AND NOT b.granted
				AND b.relation = 'audit_log'::regclass`) > 0
		})
		zombie.freeze()
	})
	e.worker()
	e.takenOver(zombie)
	e.awaitStored(200)
	zombie.resume()
	e.awaitStored(100)
	e.clean()
}

// zombieAnytime stops one worker of three at any moment, past its session.
func zombieAnytime(e *env) {
	e.build(world{lanes: 6})
	e.produce(loadOptions{})
	crew := []*worker{e.worker(), e.worker(), e.worker()}
	for range times(2, 6) {
		zombie := crew[e.rng.IntN(len(crew))]
		zombie.awaitLanes(1)
		e.pass(time.Second)
		zombie.freeze()
		e.takenOver(zombie)
		e.pass(2 * time.Second)
		zombie.resume()
		e.awaitStored(100)
	}
	e.clean()
}

// zombieBrief stops workers for less than a session, or about as long: they go on, or they don't, and in either case each event is stored once.
func zombieBrief(e *env) {
	e.build(world{lanes: 6})
	e.produce(loadOptions{})
	crew := []*worker{e.worker(), e.worker()}
	for range times(4, 12) {
		zombie := crew[e.rng.IntN(len(crew))]
		zombie.awaitLanes(1)
		zombie.freeze()
		e.pass(sessionTimeout + sessionTimeout/2)
		zombie.resume()
		e.pass(500 * time.Millisecond)
	}
	e.clean()
}

// TestUnfenced: a worker without the conditions on epoch and offset doubles what it holds, and the oracle finds it guilty. That it does so at all
// shows that zombie/deaf, which is the same and which the real worker passes, is no idle scenario.
func TestUnfenced(t *testing.T) {
	t.Parallel()
	const tries = 5
	s, seed := newSuite(t), seedOf(t)
	guilty := false
	for n := 0; n < tries && !guilty && !t.Failed(); n++ {
		t.Run("try", func(t *testing.T) {
			e := newEnv(t, s, seed, t.Name(), uint64(n))
			e.binary = unfenced
			deafZombie(e, s.lone.take(e))
			found := e.finish()
			t.Log(found)
			guilty = found.counts[doubled] > 0
		})
	}
	require.True(t, guilty, "the oracle has found nothing doubled in %d tries", tries)
}
