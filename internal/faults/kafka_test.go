package faults

import (
	"strings"
	"sync"
	"time"

	"github.com/stretchr/testify/require"
	"github.com/twmb/franz-go/pkg/kadm"

	"auditsink/internal/testkit"
)

var kafkaScenarios = []scenario{
	{name: "kafka/broker-killed", alone: true, run: func(e *env) { brokerGone(e, (*testkit.Broker).Kill, time.Second) }},
	{name: "kafka/broker-bounced", alone: true, run: func(e *env) { brokerGone(e, (*testkit.Broker).Stop, time.Second) }},
	{name: "kafka/brokers-away", alone: true, run: func(e *env) { brokerGone(e, (*testkit.Broker).Stop, 15*time.Second) }},
	{name: "kafka/broker-frozen", alone: true, run: brokerFrozen},
	{name: "zombie/deaf", alone: true, run: func(e *env) { deafZombie(e, e.suite.lone.take(e)); e.clean() }},
	{name: "kafka/leader-moved", alone: true, run: leaderMoved},
	{name: "kafka/leader-killed", alone: true, run: func(e *env) { leaderGone(e, (*testkit.Broker).Kill) }},
	{name: "kafka/leader-frozen", alone: true, run: leaderFrozen},
	{name: "kafka/rolling-bounce", alone: true, run: rollingBounce},
	{name: "kafka/cluster-killed", alone: true, run: clusterKilled},
	{name: "kafka/log-cut", alone: true, run: logCut},
	{name: "kafka/topic-recreated", run: topicRecreated},
	{name: "kafka/retention", run: retention},
	{name: "kafka/retention-running", run: retentionRunning},
	{name: "kafka/aborted-transactions", run: abortedTransactions},
	{name: "kafka/producer-retries", run: producerRetries},
	{name: "kafka/partitions-added", run: partitionsAdded},
	{name: "kafka/two-groups", run: twoGroups},
}

// brokerGone takes the only broker away in the middle of the work, for up to a time, and brings it back.
func brokerGone(e *env, goAway func(*testkit.Broker) error, most time.Duration) {
	broker := e.suite.lone.take(e)
	e.build(world{seeds: broker.Brokers()})
	e.produce(loadOptions{})
	e.worker()
	w := e.worker()
	rounds := times(2, 5)
	if most > 5*time.Second {
		rounds = 1
	}
	for range rounds {
		w.awaitLanes(1)
		e.awaitStored(50)
		e.pass(300 * time.Millisecond)
		require.NoError(e, goAway(broker))
		e.pass(most)
		require.NoError(e, broker.Restart(e.Context()))
	}
	e.awaitStored(50)
	e.clean()
}

// brokerFrozen stops the only broker where it is, for less than a session and for more.
func brokerFrozen(e *env) {
	broker := e.suite.lone.take(e)
	e.build(world{seeds: broker.Brokers()})
	e.produce(loadOptions{})
	e.worker()
	w := e.worker()
	for range times(2, 6) {
		w.awaitLanes(1)
		e.awaitStored(50)
		require.NoError(e, broker.Pause())
		e.pass(3 * sessionTimeout)
		require.NoError(e, broker.Continue())
	}
	e.awaitStored(50)
	e.clean()
}

// deafZombie freezes a worker that has copied a batch until another has stored the same, and lets it go on while the broker is frozen: it can't
// hear that its lanes are gone, and nothing but the conditions of its last statement keeps it from storing the batch a second time.
func deafZombie(e *env, broker *testkit.Broker) {
	e.build(world{seeds: broker.Brokers()})
	e.produce(loadOptions{})
	heir := e.worker()
	heir.awaitLanes(1)
	zombie := e.armed("sink.copied", "stop", 1+e.rng.IntN(20))
	zombie.froze()
	lanes := e.takenOver(zombie)
	require.NoError(e, broker.Pause())
	zombie.resume()
	e.eventually("the zombie has tried", func() bool {
		return strings.Count(zombie.log.String(), "lane lost its claim") >= lanes ||
			e.number(`SELECT count(*) - count(DISTINCT (lane_id, lane_offset)) FROM audit_log`) > 0
	})
	require.NoError(e, broker.Continue())
	e.awaitStored(100)
}

// onCluster makes an environment on three brokers, with a replica of each partition on each.
func (e *env) onCluster() *testkit.Cluster {
	e.Helper()
	cluster := e.suite.cluster.take(e)
	e.build(world{seeds: cluster.Brokers(), replicas: 3, topic: map[string]string{"min.insync.replicas": "2"}})
	e.produce(loadOptions{})
	e.worker()
	e.worker().awaitLanes(1)
	return cluster
}

// leaderMoved moves the lanes' leaders from broker to broker.
func leaderMoved(e *env) {
	cluster := e.onCluster()
	nodes := cluster.Nodes()
	for range times(4, 12) {
		e.awaitStored(50)
		lane := e.rng.Int32N(e.lanes)
		require.NoError(e, cluster.MoveLeader(e.Context(), e.topic, lane, nodes[e.rng.IntN(len(nodes))]))
	}
	e.awaitStored(50)
	e.clean()
}

// leaderGone takes the leader of a lane away, and brings it back.
func leaderGone(e *env, goAway func(*testkit.Broker) error) {
	cluster := e.onCluster()
	for range times(2, 5) {
		e.awaitStored(50)
		leader, err := cluster.Leader(e.Context(), e.topic, e.rng.Int32N(e.lanes))
		require.NoError(e, err)
		require.NoError(e, goAway(leader))
		e.awaitStored(100) // the others take over
		require.NoError(e, leader.Restart(e.Context()))
	}
	e.clean()
}

// leaderFrozen stops the leader of a lane until another is elected: it comes back as a zombie of its own kind.
func leaderFrozen(e *env) {
	cluster := e.onCluster()
	for range times(1, 4) {
		e.awaitStored(50)
		lane := e.rng.Int32N(e.lanes)
		leader, err := cluster.Leader(e.Context(), e.topic, lane)
		require.NoError(e, err)
		require.NoError(e, leader.Pause())
		e.awaitStored(100)
		require.NoError(e, leader.Continue())
	}
	e.awaitStored(50)
	e.clean()
}

// rollingBounce restarts the brokers one after the other, as an upgrade does.
func rollingBounce(e *env) {
	cluster := e.onCluster()
	for _, node := range cluster.Nodes() {
		require.NoError(e, node.Stop())
		e.awaitStored(50)
		require.NoError(e, node.Restart(e.Context()))
		e.awaitStored(50)
	}
	e.clean()
}

// clusterKilled kills all brokers at once and brings them back, as a power cut does. They come up one after the other, and at first don't know what they have.
func clusterKilled(e *env) {
	cluster := e.onCluster()
	for range times(1, 2) {
		e.awaitStored(50)
		var all sync.WaitGroup
		for _, node := range cluster.Nodes() {
			require.NoError(e, node.Kill())
		}
		e.pass(2 * time.Second)
		for _, node := range cluster.Nodes() {
			all.Go(func() {
				if err := node.Restart(e.Context()); err != nil {
					e.Errorf("restart a broker: %v", err)
				}
			})
		}
		all.Wait()
		e.awaitStored(50)
	}
	e.clean()
}

// logCut has brokers lose records that were acknowledged and stored: an unclean election. That lane halts, the others go on, and once an operator accepts it
// a successor begins where the log was cut.
func logCut(e *env) {
	cluster := e.suite.cluster.take(e)
	e.build(world{seeds: cluster.Brokers(), replicas: 3, topic: map[string]string{"min.insync.replicas": "1", "unclean.leader.election.enable": "true"}, rewinds: true})
	nodes := cluster.Nodes()
	require.NoError(e, cluster.Reassign(e.Context(), e.topic, 0, nodes[0], nodes[1]))
	before := e.produce(loadOptions{})
	w := e.worker()
	e.awaitStored(200)
	position := func() int64 {
		return e.number(`SELECT next_offset FROM audit_lane WHERE topic = $1 AND partition = 0 AND state <> 'retired'`, e.topic)
	}
	require.NoError(e, nodes[1].Kill())
	at := position()
	e.eventually("what only one broker has is stored", func() bool { return position() > at+20 })
	require.NoError(e, before.stop())
	e.settled()
	stood := position()
	require.NoError(e, nodes[0].Kill())
	require.NoError(e, nodes[1].Restart(e.Context()))
	require.NoError(e, nodes[0].Restart(e.Context()))
	e.eventually("the lane has halted", func() bool { return w.metric(e.Context(), "lanes_halted", "") == 1 })
	e.allowed.cut = true
	e.produce(loadOptions{})
	e.awaitStored(100) // of the other lanes
	require.Equal(e, stood, position(), "the lane has moved")
	e.command("lanes", "accept", e.topic+"/0", "--reason", "the fault suite cut the log")
	e.eventually("a successor goes on", func() bool {
		return e.number(`SELECT count(*) FROM audit_lane WHERE partition = 0`) == 2 && e.number(`SELECT count(*) FROM audit_log JOIN audit_lane l USING (lane_id)
			WHERE partition = 0 AND l.state <> 'retired'`) > 20
	})
	e.clean()
}

// topicRecreated deletes a topic whose events are stored, and makes it again under the same name: its lanes halt until an operator accepts the new one,
// while those of another topic go on.
func topicRecreated(e *env) {
	e.build(world{})
	other := e.createTopic(e.topic + "-other")
	e.settings = settings{"KAFKA_TOPICS": e.topic + "," + other.into.topic}
	first := e.produce(loadOptions{})
	e.produce(loadOptions{into: other})
	w := e.worker()
	e.awaitStored(200)
	require.NoError(e, first.stop())
	mine := `SELECT coalesce(sum(next_offset), 0)::bigint FROM audit_lane WHERE topic = $1 AND state <> 'retired'`
	e.eventually("all of the first is stored", func() bool { return e.number(mine, e.topic) == int64(e.ledgers[0].count()) })
	_, err := e.admin.DeleteTopic(e.Context(), e.topic)
	require.NoError(e, err)
	again := e.createTopic(e.topic)
	e.produce(loadOptions{into: again})
	e.eventually("the lanes have halted", func() bool {
		return w.metric(e.Context(), "lanes_halted", "") == float64(e.lanes)
	})
	e.awaitStored(200) // those of the other topic
	ready, why := w.ready()
	require.False(e, ready)
	require.Contains(e, why, e.topic)
	require.Equal(e, int64(e.ledgers[0].count()), e.number(mine, e.topic), "nothing of the new topic was stored")
	e.command("lanes", "accept", e.topic, "--reason", "the fault suite made it again")
	e.eventually("the new one is stored", func() bool { return e.number(mine, e.topic) > 100 })
	e.clean()
}

// retention takes records away while no worker runs: what is gone is a gap on record, and what is left is stored once.
func retention(e *env) {
	e.build(world{})
	e.allowed.gaps = []string{"retention"}
	e.produce(loadOptions{})
	e.worker()
	e.awaitStored(200)
	e.workers[0].kill()
	e.awaitAcked(400)
	e.stopLoads()
	e.cutLogs(0.7)
	e.worker()
	e.clean()
	require.Positive(e, e.number(`SELECT count(*) FROM audit_gap WHERE kind = 'retention'`), "a gap is on record")
}

// retentionRunning does so while the worker is held up by the database.
func retentionRunning(e *env) {
	e.build(world{settings: settings{"BUFFER_BYTES": "40000"}})
	e.allowed.gaps = []string{"retention"}
	e.produce(loadOptions{rate: 1000})
	w := e.worker()
	w.awaitLanes(int64(e.lanes))
	e.awaitStored(200)
	e.held(lockRows, nil, func() {
		e.awaitAcked(3000)
		e.cutLogs(1)
	})
	e.clean()
	require.Positive(e, e.number(`SELECT count(*) FROM audit_gap WHERE kind = 'retention'`), "a gap is on record")
}

// cutLogs removes the older part of what isn't stored yet from the logs, as retention does; share is how much of it at most.
func (e *env) cutLogs(share float64) {
	e.Helper()
	log, err := offsets(e.Context(), e.admin, e.topic, e.topic)
	require.NoError(e, err)
	cut := kadm.Offsets{}
	for n, lane := range log.lanes {
		next := e.number(`SELECT next_offset FROM audit_lane WHERE topic = $1 AND partition = $2`, e.topic, n)
		if left := lane.end - next; left > 1 {
			cut.AddOffset(e.topic, n, next+1+int64(float64(left-1)*share*(0.5+e.rng.Float64()/2)), -1)
		}
	}
	_, err = e.admin.DeleteRecords(e.Context(), cut)
	require.NoError(e, err)
}

// abortedTransactions stores what transactions committed, and nothing of those that were aborted, while workers are killed.
func abortedTransactions(e *env) {
	e.build(world{})
	e.produce(loadOptions{transactional: true, rate: 400})
	e.produce(loadOptions{rate: 50})
	for range times(2, 6) {
		e.armed("sink.copied", "kill", 1+e.rng.IntN(30)).died()
	}
	e.worker()
	e.awaitAcked(300)
	e.clean()
	aborts := 0
	for _, r := range e.ledgers[0].sent() {
		if r.fate == aborted {
			aborts++
		}
	}
	require.Positive(e, aborts, "nothing was aborted")
}

// producerRetries breaks the producer's network again and again, before the brokers get its records and before it gets their answers: it sends again, and
// each event is stored once.
func producerRetries(e *env) {
	e.build(world{})
	network := testkit.OwnProxy(e, e.seeds[0])
	e.produce(loadOptions{through: network.Address()})
	e.worker()
	for range times(4, 15) {
		e.awaitAcked(50)
		network.Silence([]testkit.Direction{testkit.ToServer, testkit.ToClient}[e.rng.IntN(2)])
		e.pass(time.Second)
		network.Reset()
	}
	e.awaitAcked(50)
	e.clean()
}

// partitionsAdded adds partitions to the topic under load, and sends into them at once: a new lane begins at the start of its log.
func partitionsAdded(e *env) {
	e.build(world{})
	e.produce(loadOptions{})
	e.worker()
	e.awaitStored(100)
	_, err := e.admin.CreatePartitions(e.Context(), 2, e.topic)
	require.NoError(e, err)
	e.lanes += 2
	e.produce(loadOptions{})
	e.awaitAcked(200)
	e.eventually("the new lanes are taken", func() bool { return e.number(`SELECT count(*) FROM audit_lane`) == int64(e.lanes) })
	e.awaitStored(200)
	e.clean()
}

// twoGroups points a worker of another group at a database that already has one: it is refused with both named, and the first goes on.
func twoGroups(e *env) {
	e.build(world{})
	e.produce(loadOptions{})
	e.worker().awaitLanes(int64(e.lanes))
	stranger := e.workerWith(settings{"KAFKA_GROUP": e.topic + "-another"}, "")
	stranger.awaitSaid("two groups would store every event twice")
	require.True(e, stranger.said(e.topic+"-another"), "it names both groups")
	ready, why := stranger.ready()
	require.False(e, ready)
	require.Contains(e, why, e.topic+"-another")
	e.awaitStored(200)
	require.Zero(e, stranger.owned())
	e.clean()
}
