package consumer_test

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"github.com/twmb/franz-go/pkg/kadm"

	"auditsink/internal/testkit"
)

func offsets(topic string, partition int32, at int64) kadm.Offsets {
	o := kadm.Offsets{}
	o.AddOffset(topic, partition, at, -1)
	return o
}

// TestDatabaseAway while events keep coming: the lag grows, memory stays bounded, the membership lives on, and all resumes by itself.
func TestDatabaseAway(t *testing.T) {
	server := testkit.OwnPostgres(t, testkit.PostgresOptions{Version: 15})
	url, err := server.CreateDatabase(t.Context())
	require.NoError(t, err)
	b := newBed(t, testkit.Kafka(t), url, 4)
	opts := b.options()
	opts.BufferBytes = 1 << 20
	w := b.start(opts)
	b.produce(1000)
	b.arrived()
	require.NoError(t, w.Ready())

	require.NoError(t, server.Stop())
	b.produce(20_000)
	b.eventually("the lag is seen", func() bool { return w.lag() >= 20_000 })
	b.eventually("buffers fill", func() bool { return value(w.metrics.BufferedBytes) > float64(opts.BufferBytes) })
	b.produce(5_000)
	b.eventually("the lag grows", func() bool { return w.lag() >= 25_000 })
	b.eventually("the worker is not ready", func() bool { return w.Ready() != nil })
	// Each lane may be over its share by what one fetch brings.
	require.Less(t, value(w.metrics.BufferedBytes), float64(opts.BufferBytes+4*(1<<20)+4*(512<<10)))
	require.EqualValues(t, 4, value(w.metrics.LanesOwned))

	require.NoError(t, server.Restart(t.Context()))
	b.arrived()
	b.eventually("the worker is ready", func() bool { return w.Ready() == nil })
	b.eventually("nothing is buffered", func() bool { return value(w.metrics.BufferedBytes) == 0 })
	require.Zero(t, b.number(`SELECT count(*) FROM audit_quarantine`))
}

// TestDatabaseHangs: it takes connections and answers nothing.
func TestDatabaseHangs(t *testing.T) {
	server := testkit.OwnPostgres(t, testkit.PostgresOptions{Version: 18})
	url, err := server.CreateDatabase(t.Context())
	require.NoError(t, err)
	b := newBed(t, testkit.Kafka(t), url, 2)
	w := b.start(b.options())
	b.produce(1000)
	b.arrived()
	require.NoError(t, server.Pause())
	b.produce(1000)
	b.eventually("the lag is seen", func() bool { return w.lag() >= 1000 })
	require.NoError(t, server.Continue())
	b.arrived()
}

// TestDatabaseAwayAtAssignment: lanes wait for their positions, also over a rebalance, and none is forgotten.
func TestDatabaseAwayAtAssignment(t *testing.T) {
	server := testkit.OwnPostgres(t, testkit.PostgresOptions{Version: 18})
	url, err := server.CreateDatabase(t.Context())
	require.NoError(t, err)
	b := newBed(t, testkit.Kafka(t), url, 4)
	b.produce(1000)
	require.NoError(t, server.Stop())
	first := b.start(b.options())
	b.eventually("it waits for its positions", func() bool { return value(first.metrics.LanesOwned) == 4 && first.Ready() != nil })
	b.eventually("the lag is seen", func() bool { return first.lag() == 1000 })
	second := b.start(b.options()) // ends the session in which the first still waits
	b.eventually("lanes are shared", func() bool { return value(first.metrics.LanesOwned) == 2 && value(second.metrics.LanesOwned) == 2 })
	require.NoError(t, server.Restart(t.Context()))
	b.arrived()
	second.stop()
	b.produce(1000)
	b.arrived()
}

// TestWorkerStopsWhileTheDatabaseIsAway: nothing can be stored, so nothing is committed, and the next worker takes all of it.
func TestWorkerStopsWhileTheDatabaseIsAway(t *testing.T) {
	server := testkit.OwnPostgres(t, testkit.PostgresOptions{Version: 18})
	url, err := server.CreateDatabase(t.Context())
	require.NoError(t, err)
	b := newBed(t, testkit.Kafka(t), url, 2)
	opts := b.options()
	opts.DrainTimeout = time.Second
	w := b.start(opts)
	b.produce(1000)
	b.arrived()
	require.NoError(t, server.Stop())
	b.produce(1000)
	b.eventually("they are buffered", func() bool { return value(w.metrics.RecordsConsumed) >= 2000 })
	w.stop()
	require.NoError(t, server.Restart(t.Context()))
	b.start(b.options())
	b.arrived()
}
