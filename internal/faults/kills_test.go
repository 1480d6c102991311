package faults

import (
	"time"
)

// storing are the moments of a batch's life, in their order.
var storing = []string{"sink.begun", "sink.copied", "sink.moved", "sink.committed"}

var killScenarios = killAt()

func killAt() (all []scenario) {
	for _, failpoint := range append([]string{"consumer.claimed", "consumer.polled", "consumer.committing"}, storing...) {
		all = append(all, scenario{name: "kill/" + failpoint, rounds: 9, run: func(e *env) { killed(e, failpoint) }})
	}
	return append(all,
		scenario{name: "kill/consumer.revoked", rounds: 6, run: killedRevoking},
		scenario{name: "kill/consumer.stopping", rounds: 6, run: killedStopping},
		scenario{name: "kill/while-revoking", rounds: 6, run: killedDrainingRevoked},
		scenario{name: "kill/while-stopping", rounds: 6, run: killedDrainingStopped},
		scenario{name: "kill/any-moment", rounds: 12, run: killedAnytime},
	)
}

// killed kills worker after worker at a failpoint, at first with a survivor beside, which takes the lanes over in the middle of the load.
func killed(e *env, failpoint string) {
	e.build(world{})
	e.produce(loadOptions{})
	often := map[string]int{"consumer.claimed": 1, "consumer.committing": 3, "consumer.polled": 20}[failpoint]
	if often == 0 {
		often = 40
	}
	var survivor *worker
	if e.rng.IntN(2) == 0 {
		survivor = e.worker()
		survivor.awaitLanes(1)
	}
	for range times(3, 8) {
		e.armed(failpoint, "kill", 1+e.rng.IntN(often)).died()
	}
	e.awaitAcked(200)
	e.clean()
}

// killedRevoking kills a worker in the moment that a second one makes it give up lanes.
func killedRevoking(e *env) {
	e.build(world{})
	e.produce(loadOptions{})
	for range times(2, 6) {
		victim := e.armed("consumer.revoked", "kill", 1)
		victim.awaitLanes(int64(e.lanes))
		second := e.worker()
		victim.died()
		second.awaitLanes(int64(e.lanes))
		second.stop()
	}
	e.clean()
}

// killedStopping kills a worker that was told to stop, before it stores what it has buffered.
func killedStopping(e *env) {
	e.build(world{})
	e.produce(loadOptions{})
	for range times(3, 8) {
		victim := e.armed("consumer.stopping", "kill", 1)
		victim.awaitLanes(1)
		e.awaitAcked(1 + e.rng.IntN(100))
		victim.terminate()
		victim.died()
	}
	e.clean()
}

// hoarding are the settings of a worker that stores nothing until it drains.
var hoarding = settings{"FLUSH_ROWS": "100000", "FLUSH_INTERVAL": "1h"}

// onTime needs no table partitions to be made: a drain that has to may give up first, which loses nothing and reaches no failpoint.
var onTime = recipe{poison: 0.03}

// drainSteps are the moments of a drain.
var drainSteps = append([]string{"consumer.committing"}, storing...)

// killedDrainingRevoked kills a worker at each step of storing what it has buffered when lanes are taken from it.
func killedDrainingRevoked(e *env) {
	e.build(world{})
	e.produce(loadOptions{recipe: onTime})
	for range times(1, 3) {
		for _, step := range drainSteps {
			victim := e.workerWith(hoarding, step+"=kill@1")
			victim.doomed = true
			victim.awaitLanes(int64(e.lanes))
			victim.awaitConsumed(100) // some of each lane
			second := e.worker()
			victim.died()
			second.awaitLanes(int64(e.lanes))
			second.stop()
		}
	}
	e.clean()
}

// killedDrainingStopped is the same where it was told to stop.
func killedDrainingStopped(e *env) {
	e.build(world{})
	e.produce(loadOptions{recipe: onTime})
	for range times(1, 3) {
		for _, step := range drainSteps {
			victim := e.workerWith(hoarding, step+"=kill@1")
			victim.doomed = true
			victim.awaitLanes(int64(e.lanes))
			victim.awaitConsumed(100) // some of each lane
			victim.terminate()
			victim.died()
		}
	}
	e.clean()
}

// killedAnytime kills workers at moments of nobody's choice.
func killedAnytime(e *env) {
	e.build(world{lanes: 6})
	e.produce(loadOptions{})
	var crew []*worker
	for range 3 {
		crew = append(crew, e.worker())
	}
	for range times(6, 20) {
		i := e.rng.IntN(len(crew))
		crew[i].awaitLanes(1)
		e.pass(1500 * time.Millisecond)
		crew[i].kill()
		crew[i] = e.worker()
	}
	e.clean()
}
