package consumer_test

import (
	"strconv"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"github.com/twmb/franz-go/pkg/kgo"

	"auditsink/internal/testkit"
)

func TestEventsArriveOnceWhileWorkersComeAndGo(t *testing.T) {
	b := newBed(t, testkit.Kafka(t), testkit.Postgres(t, 18), 6)
	b.produce(3000)
	first := b.start(b.options())
	b.produce(3000)
	second := b.start(b.options())
	b.eventually("both have lanes", func() bool { return value(first.metrics.LanesOwned) == 3 && value(second.metrics.LanesOwned) == 3 })
	b.produce(3000)
	first.stop()
	b.produce(3000)
	third := b.start(b.options())
	b.produce(3000)
	second.stop()
	b.produce(3000)
	b.arrived()
	require.NoError(t, third.Ready())
	b.eventually("the lag is 0", func() bool { return third.lag() == 0 })
	require.Zero(t, value(third.metrics.BufferedBytes))
	third.stop()
	require.Zero(t, third.sum("auditsink_consumer_lag_records"), "a lane's series go with it")
	require.Zero(t, value(third.metrics.LanesOwned))
}

func TestShutdownStoresWhatIsBuffered(t *testing.T) {
	b := newBed(t, testkit.Kafka(t), testkit.Postgres(t, 15), 2)
	opts := b.options()
	opts.FlushInterval = time.Hour
	w := b.start(opts)
	b.produce(100)
	b.eventually("all is buffered", func() bool { return value(w.metrics.RecordsConsumed) == 100 })
	require.Zero(t, b.number(`SELECT count(*) FROM audit_log`))
	w.stop()
	b.arrived()
}

func TestTransactionalProducer(t *testing.T) {
	b := newBed(t, testkit.Kafka(t), testkit.Postgres(t, 18), 1)
	b.start(b.options())
	producer, err := kgo.NewClient(kgo.SeedBrokers(b.broker.Brokers()...), kgo.TransactionalID(testkit.Name(t)), kgo.DefaultProduceTopic(b.topic))
	require.NoError(t, err)
	defer producer.Close()
	for i := range 6 {
		require.NoError(t, producer.BeginTransaction())
		for range 10 {
			require.NoError(t, producer.ProduceSync(t.Context(), &kgo.Record{Value: b.event()}).FirstErr())
		}
		if i%2 == 1 {
			b.produced -= 10 // they never were
		}
		require.NoError(t, producer.EndTransaction(t.Context(), kgo.TransactionEndTry(i%2 == 0)))
	}
	b.arrived()
}

func TestNewGroupAtTheEnd(t *testing.T) {
	b := newBed(t, testkit.Kafka(t), testkit.Postgres(t, 18), 2)
	b.produce(100)
	b.produced = 0
	opts := b.options()
	opts.FromLatest = true
	w := b.start(opts)
	b.eventually("the lanes are claimed", func() bool { return w.Ready() == nil })
	require.EqualValues(t, 2, b.number(`SELECT count(*) FROM audit_gap WHERE kind = 'start' AND from_offset = 0 AND to_offset = 50`))
	b.produce(100)
	b.arrived()

	// A partition added later is read from its start, whatever was published before anybody noticed.
	_, err := b.admin.CreatePartitions(t.Context(), 1, b.topic)
	require.NoError(t, err)
	manual, err := kgo.NewClient(kgo.SeedBrokers(b.broker.Brokers()...), kgo.RecordPartitioner(kgo.ManualPartitioner()))
	require.NoError(t, err)
	defer manual.Close()
	require.NoError(t, manual.ProduceSync(t.Context(), &kgo.Record{Topic: b.topic, Partition: 2, Value: b.event()}).FirstErr())
	b.arrived()
}

func TestGroupThatCommittedBefore(t *testing.T) {
	b := newBed(t, testkit.Kafka(t), testkit.Postgres(t, 18), 1)
	b.produce(100)
	_, err := b.admin.CommitOffsets(t.Context(), b.group, offsets(b.topic, 0, 70))
	require.NoError(t, err)
	b.start(b.options())
	b.eventually("30 are left", func() bool { return b.number(`SELECT count(*) FROM audit_log`) == 30 })
	b.atEnd()
	require.EqualValues(t, 1, b.number(`SELECT count(*) FROM audit_gap WHERE kind = 'start' AND from_offset = 0 AND to_offset = 70`))
}

func TestPatternsFindTopicsMadeLater(t *testing.T) {
	b := newBed(t, testkit.Kafka(t), testkit.Postgres(t, 18), 1)
	b.start(b.options(), kgo.ConsumeRegex(), kgo.ConsumeTopics("^"+b.topic+"(-later)?$"))
	b.produce(10)
	b.broker.CreateTopic(t, b.topic+"-later", 1, nil)
	require.NoError(t, b.client.ProduceSync(t.Context(), &kgo.Record{Topic: b.topic + "-later", Value: b.event()}).FirstErr())
	b.arrived()
	require.EqualValues(t, 2, b.number(`SELECT count(DISTINCT topic) FROM audit_lane`))
}

// TestFencedOwnerClaimsAgain: a zombie's late claim fences the rightful owner, which must find its way back.
func TestFencedOwnerClaimsAgain(t *testing.T) {
	b := newBed(t, testkit.Kafka(t), testkit.Postgres(t, 18), 2)
	w := b.start(b.options())
	b.produce(1000)
	b.arrived()
	for range 2 {
		_, err := b.pool.Exec(t.Context(), `UPDATE audit_lane SET epoch = epoch + 1, owner = 'zombie'`)
		require.NoError(t, err)
		b.produce(1000)
		b.arrived()
	}
	require.GreaterOrEqual(t, value(w.metrics.Fenced), 4.0)
}

// TestPositionSetBack: a failover lost transactions; what they held is fetched again.
func TestPositionSetBack(t *testing.T) {
	b := newBed(t, testkit.Kafka(t), testkit.Postgres(t, 18), 2)
	b.start(b.options())
	b.produce(1000)
	b.arrived()
	tx, err := b.pool.Begin(t.Context())
	require.NoError(t, err)
	_, err = tx.Exec(t.Context(), `UPDATE audit_lane SET next_offset = 300`)
	require.NoError(t, err)
	_, err = tx.Exec(t.Context(), `DELETE FROM audit_log WHERE lane_offset >= 300`)
	require.NoError(t, err)
	require.NoError(t, tx.Commit(t.Context()))
	b.produce(1000)
	b.arrived()
}

func TestSecondGroupIsRefused(t *testing.T) {
	b := newBed(t, testkit.Kafka(t), testkit.Postgres(t, 18), 1)
	b.produce(10)
	b.start(b.options())
	b.arrived()
	opts := b.options()
	opts.Group += "-other"
	other := b.start(opts)
	b.eventually("its lane halts", func() bool { return value(other.metrics.LanesHalted) == 1 })
	require.ErrorContains(t, other.Ready(), strconv.Quote(b.group))
	require.ErrorContains(t, other.Ready(), strconv.Quote(opts.Group))
	b.produce(10)
	b.arrived()
}

// TestTopicMadeAgain under a running worker: its offsets start anew, so nothing of it may be taken.
func TestTopicMadeAgain(t *testing.T) {
	b := newBed(t, testkit.Kafka(t), testkit.Postgres(t, 18), 2)
	w := b.start(b.options())
	b.produce(100)
	b.arrived()
	_, err := b.admin.DeleteTopics(t.Context(), b.topic)
	require.NoError(t, err)
	b.eventually("the topic is made again", func() bool { return b.broker.NewTopic(t.Context(), b.topic, 3, nil) == nil })
	b.client.ForceMetadataRefresh()
	fresh, err := kgo.NewClient(kgo.SeedBrokers(b.broker.Brokers()...))
	require.NoError(t, err)
	defer fresh.Close()
	require.NoError(t, fresh.ProduceSync(t.Context(), &kgo.Record{Topic: b.topic, Value: b.event()}, &kgo.Record{Topic: b.topic, Value: b.event()}).FirstErr())
	b.eventually("the lanes halt", func() bool { return value(w.metrics.LanesHalted) >= 2 })
	require.Error(t, w.Ready())
	require.EqualValues(t, 100, b.number(`SELECT count(*) FROM audit_log`))

	w.stop()
	again := b.start(b.options())
	b.eventually("all lanes are refused", func() bool { return value(again.metrics.LanesHalted) == 3 })
	require.ErrorContains(t, again.Ready(), "created again")
	require.EqualValues(t, 100, b.number(`SELECT count(*) FROM audit_log`))
}
