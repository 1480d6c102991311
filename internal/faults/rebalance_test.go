package faults

import "time"

var rebalanceScenarios = []scenario{
	{name: "rebalance/storm-clean", rounds: 6, run: func(e *env) { storm(e, func(w *worker) { w.stop() }) }},
	{name: "rebalance/storm-unclean", rounds: 6, run: func(e *env) { storm(e, func(w *worker) { w.kill() }) }},
	{name: "rebalance/storm-frozen", rounds: 6, run: func(e *env) { storm(e, func(w *worker) { w.freeze(); w.env.pass(sessionTimeout); w.resume() }) }},
}

// storm takes a group from one worker to six and down to two, without waiting for any rebalance to end, under load.
func storm(e *env, leave func(*worker)) {
	e.build(world{lanes: 12})
	e.produce(loadOptions{rate: 400})
	first := e.worker()
	first.awaitLanes(1)
	crew := []*worker{first}
	for range times(1, 2) {
		for len(crew) < 6 {
			crew = append(crew, e.worker())
			e.pass(700 * time.Millisecond)
		}
		e.awaitStored(200)
		for len(crew) > 2 {
			i := e.rng.IntN(len(crew))
			leave(crew[i])
			crew = append(crew[:i], crew[i+1:]...)
			e.pass(700 * time.Millisecond)
		}
		e.awaitStored(200)
	}
	e.clean()
}
