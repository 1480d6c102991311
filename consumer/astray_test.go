package consumer_test

import (
	"context"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"auditsink/consumer"
	"auditsink/internal/kafka"
	"auditsink/internal/testkit"
	"auditsink/sink"
)

var op = sink.Operation{Client: "tester", Reason: "because"}

// logs is what the brokers have of the bed's topic.
func (b *bed) logs() (id [16]byte, logs map[int32]sink.Log) {
	b.Helper()
	id, found, err := kafka.Logs(b.Context(), b.client, b.topic, nil)
	require.NoError(b, err)
	logs = map[int32]sink.Log{}
	for partition, log := range found {
		logs[partition] = sink.Log{Start: log.Start, Known: log.Known()}
	}
	return id, logs
}

// inUse are the lanes of the bed's topic.
func (b *bed) inUse() []sink.LaneStatus {
	b.Helper()
	all, err := sink.Lanes(b.Context(), b.pool)
	require.NoError(b, err)
	var lanes []sink.LaneStatus
	for _, l := range all {
		if l.Topic == b.topic && l.State != "retired" {
			lanes = append(lanes, l)
		}
	}
	return lanes
}

// remove deletes the records of a partition below an offset, as retention does.
func (b *bed) remove(partition int32, below int64) {
	b.Helper()
	offsets := kadm.Offsets{}
	offsets.AddOffset(b.topic, partition, below, -1)
	answers, err := b.admin.DeleteRecords(b.Context(), offsets)
	require.NoError(b, err)
	require.NoError(b, answers.Error())
}

// gaps requires exactly these gaps of the bed's lanes, each given as from and to.
func (b *bed) gaps(kind string, want ...[2]int64) {
	b.Helper()
	require.EqualValues(b, len(want), b.number(`SELECT count(*) FROM audit_gap WHERE kind = $1`, kind))
	for _, w := range want {
		require.EqualValues(b, 1, b.number(`SELECT count(*) FROM audit_gap WHERE kind = $1 AND from_offset = $2 AND to_offset = $3`, kind, w[0], w[1]), w)
	}
}

// TestRetentionOutrunsUs, while no worker runs and while one does: what is gone is a gap on record, with both ends, and the rest is stored.
func TestRetentionOutrunsUs(t *testing.T) {
	server := testkit.OwnPostgres(t, testkit.PostgresOptions{Version: 15})
	url, err := server.CreateDatabase(t.Context())
	require.NoError(t, err)
	b := newBed(t, testkit.Kafka(t), url, 1)
	w := b.start(b.options())
	b.produce(100)
	b.arrived()
	w.stop()

	b.produce(100)
	b.remove(0, 150)
	w = b.start(b.options())
	b.eventually("the rest is stored", func() bool { return b.number(`SELECT count(*) FROM audit_log`) == 150 })
	b.gaps("retention", [2]int64{100, 150})
	require.EqualValues(t, 1, value(w.metrics.Gaps))
	b.eventually("the worker is ready", func() bool { return w.Ready() == nil })

	// Buffered is not lost: the database is away, the lane is paused over its share, and the log moves on.
	opts := b.options()
	opts.BufferBytes = 64 << 10
	w.stop()
	w = b.start(opts)
	b.produce(10)
	b.eventually("it runs", func() bool { return b.number(`SELECT count(*) FROM audit_log`) == 160 })
	require.NoError(t, server.Stop())
	for range 20 { // many fetches, of which the first few fit
		b.produce(500)
	}
	b.eventually("the buffer is full", func() bool { return value(w.metrics.BufferedBytes) > float64(opts.BufferBytes) })
	consumed := int64(value(w.metrics.RecordsConsumed))
	require.Less(t, consumed, int64(10_000))
	b.remove(0, 10_210)
	require.NoError(t, server.Restart(t.Context()))
	b.pool.Reset()
	b.produce(10)
	b.eventually("the position is at the end", func() bool { return b.number(`SELECT next_offset FROM audit_lane`) == 10_220 })
	require.Zero(t, b.number(`SELECT count(*) FROM audit_quarantine`))
	rows := b.number(`SELECT count(*) FROM audit_log`)
	require.GreaterOrEqual(t, rows, 160+consumed-10, "what was buffered is stored")
	require.EqualValues(t, rows, b.number(`SELECT count(DISTINCT lane_offset) FROM audit_log`))
	missing := b.number(`SELECT sum(to_offset - from_offset) FROM audit_gap`)
	require.EqualValues(t, 10_220, rows+missing, "each offset is stored or in a gap")
	require.Zero(t, b.number(`SELECT count(*) FROM audit_log, audit_gap WHERE lane_offset >= from_offset AND lane_offset < to_offset`))
	b.atEnd()
}

// TestLogEndsBelowThePosition: that lane halts and the other goes on; a restart changes nothing, and a reset does, without one.
func TestLogEndsBelowThePosition(t *testing.T) {
	b := newBed(t, testkit.Kafka(t), testkit.Postgres(t, 18), 2)
	b.produce(100)
	w := b.start(b.options())
	b.arrived()
	w.stop()
	_, err := b.pool.Exec(t.Context(), `UPDATE audit_lane SET next_offset = 5000 WHERE partition = 1`)
	require.NoError(t, err)
	for range 2 {
		w = b.start(b.options())
		b.eventually("it halts", func() bool { return value(w.metrics.LanesHalted) == 1 })
		require.ErrorContains(t, w.Ready(), "only what is below 50")
		b.eventually("it is on record", func() bool { return b.number(`SELECT count(*) FROM audit_lane WHERE state = 'halted'`) == 1 })
		if b.produced == 100 {
			b.produce(100)
			b.eventually("the other lane goes on", func() bool { return b.number(`SELECT count(*) FROM audit_log`) == 150 })
			w.stop()
		}
	}
	require.EqualValues(t, 1, b.number(`SELECT count(*) FROM audit_lane_event WHERE kind = 'halted'`))
	_, err = sink.Reset(t.Context(), b.pool, b.inUse()[1].LaneID, 50, op)
	require.NoError(t, err)
	b.eventually("the worker finds out by itself", func() bool { return w.Ready() == nil && value(w.metrics.LanesHalted) == 0 })
	b.arrived()
}

// TestTopicMadeAgainIsAccepted: the new topic is stored from its start, beside what the old one left.
func TestTopicMadeAgainIsAccepted(t *testing.T) {
	b := newBed(t, testkit.Kafka(t), testkit.Postgres(t, 18), 2)
	w := b.start(b.options())
	b.produce(100)
	b.arrived()
	_, err := b.admin.DeleteTopics(t.Context(), b.topic)
	require.NoError(t, err)
	b.eventually("the topic is made again", func() bool { return b.broker.NewTopic(t.Context(), b.topic, 3, nil) == nil })
	fresh, err := kgo.NewClient(kgo.SeedBrokers(b.broker.Brokers()...), kgo.RecordPartitioner(kgo.RoundRobinPartitioner()))
	require.NoError(t, err)
	defer fresh.Close()
	for range 30 {
		require.NoError(t, fresh.ProduceSync(t.Context(), &kgo.Record{Topic: b.topic, Value: b.event()}).FirstErr())
	}
	b.eventually("the lanes halt", func() bool { return value(w.metrics.LanesHalted) >= 2 })
	b.eventually("it is on record", func() bool { return b.number(`SELECT count(*) FROM audit_lane WHERE state = 'halted'`) == 2 })
	id, logs := b.logs()
	_, err = sink.AcceptTopic(t.Context(), b.pool, b.inUse(), id, logs, op)
	require.NoError(t, err)
	b.eventually("the worker finds out by itself", func() bool { return w.Ready() == nil && value(w.metrics.LanesHalted) == 0 })
	b.eventually("all is stored", func() bool { return b.number(`SELECT count(*) FROM audit_log`) == 130 })
	require.EqualValues(t, 130, b.number(`SELECT count(DISTINCT (lane_id, lane_offset)) FROM audit_log`))
	require.EqualValues(t, 130, b.number(`SELECT count(DISTINCT target_resource_id) FROM audit_log`))
	b.atEndOf(id)
}

// atEndOf waits until the lanes of a topic ID are at the ends of its logs.
func (b *bed) atEndOf(id [16]byte) {
	b.Helper()
	_, logs := b.logs()
	b.eventually("the positions are at the ends of the logs", func() bool {
		for partition, log := range logs {
			if b.number(`SELECT max(next_offset) FROM audit_lane WHERE topic = $1 AND partition = $2 AND topic_id = $3`, b.topic, partition, id) != log.Known {
				return false
			}
		}
		return true
	})
}

// TestSetBackAtRest: without a new record, a lane learns from a look that the database lost transactions; it is on record.
func TestSetBackAtRest(t *testing.T) {
	b := newBed(t, testkit.Kafka(t), testkit.Postgres(t, 18), 2)
	w := b.start(b.options())
	b.produce(1000)
	b.arrived()
	tx, err := b.pool.Begin(t.Context())
	require.NoError(t, err)
	_, err = tx.Exec(t.Context(), `UPDATE audit_lane SET next_offset = 300 WHERE partition = 0`)
	require.NoError(t, err)
	_, err = tx.Exec(t.Context(), `DELETE FROM audit_log USING audit_lane l WHERE l.lane_id = audit_log.lane_id AND l.partition = 0 AND lane_offset >= 300`)
	require.NoError(t, err)
	require.NoError(t, tx.Commit(t.Context()))
	b.arrived()
	require.EqualValues(t, 1, value(w.metrics.Rewound))
	require.EqualValues(t, 1, b.number(`SELECT count(*) FROM audit_lane_event WHERE kind = 'rewound' AND from_offset = 500 AND to_offset = 300 AND client = 'test'`))
}

// TestFencedAtRest: so is a claim that somebody else took over.
func TestFencedAtRest(t *testing.T) {
	b := newBed(t, testkit.Kafka(t), testkit.Postgres(t, 15), 1)
	b.start(b.options())
	b.produce(10)
	b.arrived()
	_, err := b.pool.Exec(t.Context(), `UPDATE audit_lane SET epoch = epoch + 1, owner = 'zombie'`)
	require.NoError(t, err)
	b.eventually("it is claimed again", func() bool { return b.number(`SELECT count(*) FROM audit_lane WHERE owner = 'test'`) == 1 })
	require.Zero(t, b.number(`SELECT count(*) FROM audit_lane_event`))
}

// TestBrokersAway: the worker says so, keeps what it has, and goes on by itself.
func TestBrokersAway(t *testing.T) {
	broker := testkit.OwnKafka(t, testkit.KafkaOptions{})
	b := newBed(t, broker, testkit.Postgres(t, 18), 2)
	w := b.start(b.options())
	b.produce(1000)
	b.arrived()
	require.NoError(t, broker.Kill())
	b.eventually("the worker is not ready", func() bool { return w.Ready() != nil })
	require.NoError(t, broker.Restart(context.WithoutCancel(t.Context())))
	b.produce(1000)
	b.arrived()
	b.eventually("the worker is ready", func() bool { return w.Ready() == nil })
}

// TestBrokersLoseRecords: a crash took the end of a log that was stored already. New records use its offsets again: the lane halts before any of
// them gets in under an old one's name, the other lane goes on, and after the operator's word all new records are stored.
func TestBrokersLoseRecords(t *testing.T) {
	broker := testkit.OwnKafka(t, testkit.KafkaOptions{})
	b := newBed(t, broker, testkit.Postgres(t, 15), 2)
	w := b.start(b.options())
	for range 10 {
		b.produce(20)
	}
	b.arrived()

	require.NoError(t, broker.Kill())
	segment := filepath.Join(broker.PartitionDir(b.topic, 0), "00000000000000000000.log")
	info, err := os.Stat(segment)
	require.NoError(t, err)
	require.NoError(t, os.Truncate(segment, info.Size()/2))
	require.NoError(t, broker.Restart(context.WithoutCancel(t.Context())))
	fresh, err := kgo.NewClient(kgo.SeedBrokers(broker.Brokers()...), kgo.RecordPartitioner(kgo.RoundRobinPartitioner()))
	require.NoError(t, err)
	defer fresh.Close()
	for range 200 {
		require.NoError(t, fresh.ProduceSync(t.Context(), &kgo.Record{Topic: b.topic, Value: b.event()}).FirstErr())
	}
	b.eventually("the lane halts", func() bool { return value(w.metrics.LanesHalted) == 1 })
	b.eventually("the other goes on", func() bool { return b.number(`SELECT count(*) FROM audit_log`) == 300 })
	b.eventually("it is on record", func() bool { return b.number(`SELECT count(*) FROM audit_lane WHERE state = 'halted'`) == 1 })
	lane := b.inUse()[0]
	require.Equal(t, "halted", lane.State)
	require.Contains(t, lane.Reason, "the brokers lost records")
	require.EqualValues(t, 100, lane.NextOffset)

	_, logs, err := kafka.Logs(t.Context(), b.client, b.topic, map[int32]int32{0: lane.LeaderEpoch})
	require.NoError(t, err)
	require.Less(t, logs[0].Kept, int64(100))
	_, err = sink.Accept(t.Context(), b.pool, lane, sink.Log{Start: logs[0].Start, Known: logs[0].Known()}, op)
	require.NoError(t, err)
	b.eventually("the worker finds out by itself", func() bool { return w.Ready() == nil && value(w.metrics.LanesHalted) == 0 })
	b.arrived()
}

// TestSetBackWhileClaimWaits: lane 0 is claimed, lane 1's claim waits, and lane 0 is set back meanwhile. The client isn't told of any lane before
// all are claimed, and so the offset it then begins at must be the right one.
func TestSetBackWhileClaimWaits(t *testing.T) {
	b := newBed(t, testkit.Kafka(t), testkit.Postgres(t, 18), 2)
	w := b.start(b.options())
	b.produce(1000)
	b.arrived()
	w.stop()
	lock, err := b.pool.Begin(t.Context())
	require.NoError(t, err)
	_, err = lock.Exec(t.Context(), `SELECT FROM audit_lane WHERE partition = 1 FOR UPDATE`)
	require.NoError(t, err)
	epoch := b.number(`SELECT epoch FROM audit_lane WHERE partition = 0`)
	b.start(b.options())
	b.eventually("lane 0 is claimed", func() bool { return b.number(`SELECT epoch FROM audit_lane WHERE partition = 0`) == epoch+1 })
	b.setBack(0, 300)
	require.NoError(t, lock.Rollback(t.Context()))
	b.produce(10)
	b.arrived()
}

// setBack has the database forget what it knows of a partition from an offset on.
func (b *bed) setBack(partition int32, to int64) {
	b.Helper()
	_, err := b.pool.Exec(b.Context(), `WITH gone AS (DELETE FROM audit_log USING audit_lane l WHERE l.lane_id = audit_log.lane_id AND l.partition = $1 AND lane_offset >= $2)
		UPDATE audit_lane SET next_offset = $2 WHERE partition = $1`, partition, to)
	require.NoError(b, err)
}

// TestTopicDeletedForGood: its lanes halt, and those of another topic that come to a worker together with them don't wait for it.
func TestTopicDeletedForGood(t *testing.T) {
	consumer.SetGonePatience(t, 5*time.Second)
	b := newBed(t, testkit.Kafka(t), testkit.Postgres(t, 18), 4)
	gone := b.topic + "-gone"
	b.broker.CreateTopic(t, gone, 4, nil)
	both := kgo.ConsumeTopics(b.topic, gone)
	first := b.start(b.options(), both)
	b.produce(100)
	b.eventually("it is stored", func() bool { return b.number(`SELECT count(*) FROM audit_log`) == 100 })
	second := b.start(b.options(), both)
	b.eventually("both have lanes", func() bool { return value(first.metrics.LanesOwned) == 4 && value(second.metrics.LanesOwned) == 4 })
	_, err := b.admin.DeleteTopics(t.Context(), gone)
	require.NoError(t, err)
	b.eventually("its lanes halt", func() bool { return value(first.metrics.LanesHalted)+value(second.metrics.LanesHalted) == 4 })
	require.ErrorContains(t, second.Ready(), "deleted")
	b.eventually("it is on record", func() bool { return b.number(`SELECT count(*) FROM audit_lane WHERE state = 'halted'`) == 4 })
	first.stop()
	b.produce(100)
	b.eventually("the other topic goes on", func() bool { return b.number(`SELECT count(*) FROM audit_log`) == 200 })

	// An operator's word ends it, or a topic of that name begins anew.
	b.broker.CreateTopic(t, gone, 1, nil)
	id, found, err := kafka.Logs(t.Context(), b.client, gone, nil)
	require.NoError(t, err)
	lanes, err := sink.Lanes(t.Context(), b.pool)
	require.NoError(t, err)
	lanes = slices.DeleteFunc(lanes, func(l sink.LaneStatus) bool { return l.Topic != gone })
	_, err = sink.AcceptTopic(t.Context(), b.pool, lanes, id, map[int32]sink.Log{0: {Start: found[0].Start, Known: found[0].Known()}}, op)
	require.NoError(t, err)
	require.NoError(t, b.client.ProduceSync(t.Context(), &kgo.Record{Topic: gone, Value: b.event()}).FirstErr())
	b.eventually("the new topic is stored", func() bool { return b.number(`SELECT count(*) FROM audit_log`) == 201 })
	b.eventually("the worker is ready", func() bool { return second.Ready() == nil })
}

// TestPositionBeyondTheEndOfAnUnknownEpoch: without a leader epoch to compare, the end of the log tells.
func TestPositionBeyondTheEndOfAnUnknownEpoch(t *testing.T) {
	b := newBed(t, testkit.Kafka(t), testkit.Postgres(t, 15), 1)
	b.produce(100)
	w := b.start(b.options())
	b.arrived()
	w.stop()
	_, err := b.pool.Exec(t.Context(), `UPDATE audit_lane SET next_offset = 5000, leader_epoch = -1`)
	require.NoError(t, err)
	w = b.start(b.options())
	b.eventually("it is on record", func() bool { return b.number(`SELECT count(*) FROM audit_lane WHERE state = 'halted'`) == 1 })
	require.ErrorContains(t, w.Ready(), "only what is below 100")
}
