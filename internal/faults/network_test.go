package faults

import (
	"time"

	"github.com/stretchr/testify/require"

	"auditsink/internal/testkit"
)

// A COMMIT fails in four ways: it didn't reach the server or only its answer was lost, and the connection broke or went silent.
var (
	lostCommit   = testkit.Cut{}
	lostAnswer   = testkit.Cut{Forward: true}
	frozenCommit = testkit.Cut{Freeze: true}
	frozenAnswer = testkit.Cut{Forward: true, Freeze: true}
)

var networkScenarios = []scenario{
	{name: "commit/lost", run: func(e *env) { commitsCut(e, lostCommit) }},
	{name: "commit/answer-lost", run: func(e *env) { commitsCut(e, lostAnswer) }},
	{name: "commit/frozen", run: func(e *env) { commitsCut(e, frozenCommit) }},
	{name: "commit/answer-frozen", run: func(e *env) { commitsCut(e, frozenAnswer) }},
	{name: "commit/any-under-kills", run: commitsCutUnderKills},
	{name: "commit/silent-for-good", long: true, run: commitsSilent},

	{name: "network/postgres-latency", run: func(e *env) { farDatabase(e, slow) }},
	{name: "network/postgres-requests-lost", run: func(e *env) { farDatabase(e, silent(testkit.ToServer)) }},
	{name: "network/postgres-answers-lost", run: func(e *env) { farDatabase(e, silent(testkit.ToClient)) }},
	{name: "network/postgres-half-open", run: func(e *env) { farDatabase(e, halfOpen) }},
	{name: "network/postgres-reset", run: func(e *env) { farDatabase(e, reset) }},
	{name: "network/postgres-refused", run: func(e *env) { farDatabase(e, refused) }},

	{name: "network/kafka-latency", alone: true, run: func(e *env) { farKafka(e, slow) }},
	{name: "network/kafka-requests-lost", alone: true, run: func(e *env) { farKafka(e, silent(testkit.ToServer)) }},
	{name: "network/kafka-answers-lost", alone: true, run: func(e *env) { farKafka(e, silent(testkit.ToClient)) }},
	{name: "network/kafka-half-open", alone: true, run: func(e *env) { farKafka(e, halfOpen) }},
	{name: "network/kafka-reset", alone: true, run: func(e *env) { farKafka(e, reset) }},
	{name: "network/kafka-refused", alone: true, run: func(e *env) { farKafka(e, refused) }},
}

// commitsCut breaks connections at their COMMIT, again and again.
func commitsCut(e *env, cut testkit.Cut) {
	server, err := e.suite.postgres()
	require.NoError(e, err)
	cutter := testkit.OwnCutter(e, server.Address())
	e.build(world{through: cutter.URL})
	e.produce(loadOptions{})
	e.worker()
	e.worker().awaitLanes(1)
	for range times(10, 40) {
		e.awaitStored(10)
		before := cutter.Cuts()
		e.pass(100 * time.Millisecond)
		cutter.Once(cut)
		e.eventually("a COMMIT is cut", func() bool { return cutter.Cuts() > before })
		if cut.Freeze {
			e.pass(time.Second)
			cutter.Thaw()
		}
	}
	e.clean()
}

// commitsCutUnderKills breaks a tenth of all COMMITs in every way while workers are killed.
func commitsCutUnderKills(e *env) {
	server, err := e.suite.postgres()
	require.NoError(e, err)
	cutter := testkit.OwnCutter(e, server.Address())
	e.build(world{through: cutter.URL})
	e.produce(loadOptions{})
	cutter.Random(e.seed, 0.1, lostCommit, lostAnswer, frozenCommit, frozenAnswer)
	for range times(4, 12) {
		victim := e.worker()
		for range 3 {
			before := cutter.Cuts()
			e.eventually("COMMITs are cut", func() bool { return cutter.Cuts() > before })
			e.pass(time.Second)
			cutter.Thaw()
		}
		e.pass(500 * time.Millisecond)
		victim.kill()
	}
	cutter.Off()
	cutter.Thaw()
	e.clean()
}

// commitsSilent leaves connections open and silent at their COMMIT: the workers give them up by themselves, after the minute that an attempt may take.
func commitsSilent(e *env) {
	server, err := e.suite.postgres()
	require.NoError(e, err)
	cutter := testkit.OwnCutter(e, server.Address())
	e.build(world{through: cutter.URL})
	e.produce(loadOptions{})
	e.worker().awaitLanes(int64(e.lanes))
	for _, cut := range []testkit.Cut{frozenCommit, frozenAnswer} {
		e.awaitStored(100)
		before := cutter.Cuts()
		cutter.Once(cut)
		e.eventually("a COMMIT is cut", func() bool { return cutter.Cuts() > before })
	}
	e.clean()
}

// trouble is something that a network does for a while.
type trouble func(e *env, network *testkit.Proxy)

func slow(e *env, network *testkit.Proxy) {
	network.Latency(60*time.Millisecond, 50*time.Millisecond)
	e.pass(4 * time.Second)
	network.Heal()
}

// silent loses what goes one way. It ends with the connections, or with all that was held back.
func silent(direction testkit.Direction) trouble {
	return func(e *env, network *testkit.Proxy) {
		network.Silence(direction)
		e.pass(3 * sessionTimeout)
		if e.rng.IntN(2) == 0 {
			network.Reset()
		} else {
			network.Heal()
		}
	}
}

func halfOpen(e *env, network *testkit.Proxy) {
	network.CutOff()
	e.pass(3 * sessionTimeout)
	if e.rng.IntN(2) == 0 {
		network.Reset()
	} else {
		network.Heal()
	}
}

func reset(e *env, network *testkit.Proxy) {
	for range 5 {
		e.pass(300 * time.Millisecond)
		network.Reset()
	}
}

func refused(e *env, network *testkit.Proxy) {
	require.NoError(e, network.Disable())
	e.pass(2 * sessionTimeout)
	require.NoError(e, network.Enable(e.Context()))
}

// farDatabase troubles the network between the workers and the database.
func farDatabase(e *env, t trouble) {
	server, err := e.suite.postgres()
	require.NoError(e, err)
	network := testkit.OwnProxy(e, server.Address())
	e.build(world{through: network.URL})
	e.produce(loadOptions{})
	e.worker()
	e.worker().awaitLanes(1)
	for range times(2, 6) {
		e.awaitStored(50)
		e.pass(300 * time.Millisecond)
		t(e, network)
	}
	e.awaitStored(50)
	e.clean()
}

// farKafka troubles the network between the broker and all its clients, producers and workers.
func farKafka(e *env, t trouble) {
	broker := e.suite.far.take(e)
	e.build(world{seeds: []string{broker.network.Address()}})
	e.produce(loadOptions{})
	e.worker()
	e.worker().awaitLanes(1)
	for range times(2, 6) {
		e.awaitStored(50)
		e.pass(300 * time.Millisecond)
		t(e, broker.network)
	}
	e.awaitStored(50)
	e.clean()
}
