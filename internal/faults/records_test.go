package faults

import (
	"fmt"
	mathbits "math/bits"
	"time"

	"github.com/stretchr/testify/require"
)

var recordScenarios = []scenario{
	{name: "records/poison-everywhere", run: poisonEverywhere},
	{name: "records/poison-under-kills", run: poisonUnderKills},
	{name: "records/refused-by-database", run: refusedByDatabase},
	{name: "records/refused-everywhere", run: refusedEverywhere},
	{name: "records/redriven", run: redriven},
	{name: "records/clock-skew", run: clockSkew},
}

// batchRows is the size of the batches of poisonEverywhere.
const batchRows = 8

// poisonEverywhere has a record that is no row at each place of a batch, at several, at none and at all.
func poisonEverywhere(e *env) {
	e.build(world{lanes: 1, settings: settings{"FLUSH_ROWS": fmt.Sprint(batchRows), "FLUSH_INTERVAL": "1h"}})
	poisoned := func(n int) bool { // batch by batch, the places that are poisoned are the bits of the batch's number
		return n/batchRows>>(n%batchRows)&1 == 1
	}
	l := e.produce(loadOptions{rate: 5000, limit: batchRows << batchRows, recipe: recipe{place: poisoned}})
	<-l.done
	e.stopLoads()
	e.worker()
	e.clean()
	require.Equal(e, int64(batchRows<<batchRows/2), e.number(`SELECT count(*) FROM audit_quarantine`))
}

// poisonUnderKills has a third of all records quarantined while workers are killed in the middle of storing them.
func poisonUnderKills(e *env) {
	e.build(world{})
	e.produce(loadOptions{recipe: recipe{poison: 0.3, late: 0.1}})
	for _, step := range storing {
		e.armed(step, "kill", 1+e.rng.IntN(20)).died()
	}
	e.awaitAcked(200)
	e.clean()
}

// refusedEverywhere has the database refuse a row at each place of a batch, and two rows at every pair of places.
func refusedEverywhere(e *env) {
	e.build(world{lanes: 1, settings: settings{"FLUSH_ROWS": fmt.Sprint(batchRows), "FLUSH_INTERVAL": "1h"}})
	e.statement(refuse)
	var batches []int // the places that are refused, as bits
	for bits := range 1 << batchRows {
		if n := mathbits.OnesCount(uint(bits)); n == 1 || n == 2 {
			batches = append(batches, bits)
		}
	}
	refused := func(n int) bool { return batches[n/batchRows]>>(n%batchRows)&1 == 1 }
	l := e.produce(loadOptions{rate: 5000, limit: batchRows * len(batches), recipe: recipe{refusedAt: refused}})
	<-l.done
	e.stopLoads()
	e.worker()
	e.clean()
	require.EqualValues(e, batchRows+batchRows*(batchRows-1), e.number(`SELECT count(*) FROM audit_quarantine`))
}

// refuse is a constraint that the owner of the database has added.
const refuse = `ALTER TABLE audit_log ADD CONSTRAINT faults_refused CHECK (action <> '` + refusedAction + `')`

// refusedByDatabase has a constraint of the database's owner refuse some rows: those are quarantined, and no others with them.
func refusedByDatabase(e *env) {
	e.build(world{})
	e.statement(refuse)
	e.produce(loadOptions{recipe: recipe{poison: 0.02, late: 0.02, refused: 0.01}})
	for range times(2, 4) {
		e.armed("sink.copied", "kill", 1+e.rng.IntN(40)).died()
	}
	e.worker()
	e.awaitAcked(500)
	e.clean()
}

// redriven takes refused records again once the cause is mended. The command is killed at each step, run twice at a time, and frozen with the records in its
// hands until another has moved them: each is one row in the end.
func redriven(e *env) {
	e.build(world{})
	e.statement(refuse)
	l := e.produce(loadOptions{rate: 500, limit: 1500, recipe: recipe{refused: 0.04, late: 0.02}})
	e.worker()
	<-l.done
	e.stopLoads()
	e.settled()
	e.statement(`ALTER TABLE audit_log DROP CONSTRAINT faults_refused`)
	e.produce(loadOptions{}) // batches go on beside
	again := []string{"quarantine", "redrive", "--reason", "rejected_by_database"}
	for _, step := range []string{"quarantine.copied", "quarantine.moved"} {
		e.doomedProgram(step+"=kill@1", again...).died()
	}
	e.doomedProgram("quarantine.committed=kill@1", append(again, "--lane", "1", "--lane", "2")...).died()
	zombie := e.program(nil, []string{"quarantine.copied", "quarantine.moved"}[e.rng.IntN(2)]+"=stop@1", again...)
	zombie.mayFail = true // its session is ended
	zombie.froze()
	both := []*worker{e.program(nil, "", again...), e.program(nil, "", again...)}
	for _, w := range both {
		e.eventually("it has ended", func() bool { return !w.running() })
	}
	zombie.resume()
	e.eventually("the zombie has ended", func() bool { return !zombie.running() })
	require.Zero(e, e.number(`SELECT count(*) FROM audit_quarantine WHERE reason = 'rejected_by_database' AND state <> 'redriven'`))
	require.Positive(e, e.number(`SELECT count(*) FROM audit_quarantine WHERE state = 'redriven'`))
	e.clean()
}

// doomedProgram starts a command that kills itself at a failpoint.
func (e *env) doomedProgram(failpoint string, args ...string) *worker {
	w := e.program(nil, failpoint, args...)
	w.doomed = true
	return w
}

// clockSkew has records stamped by clocks that are years off, ahead and behind.
func clockSkew(e *env) {
	e.build(world{topic: map[string]string{"message.timestamp.after.max.ms": "9223372036854775807"}})
	e.produce(loadOptions{recipe: recipe{skew: true, poison: 0.02}})
	e.worker().awaitLanes(1)
	e.pass(time.Second)
	e.workers[0].kill()
	e.worker()
	e.awaitStored(500)
	e.clean()
}
