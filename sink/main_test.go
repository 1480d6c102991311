package sink_test

import (
	"context"
	"fmt"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/zap"
	"go.uber.org/zap/zaptest"

	"auditsink/internal/event"
	"auditsink/internal/postgres"
	"auditsink/internal/testkit"
	"auditsink/metrics"
	"auditsink/migrations"
	"auditsink/partitions"
	"auditsink/sink"
)

func TestMain(m *testing.M) { testkit.Main(m) }

const horizon = 2555 * 24 * time.Hour

// bed is a database with the schema, and a sink on it.
type bed struct {
	*testing.T
	url  string
	pool *postgres.Pool
	sink *sink.Sink
	// ensured counts the calls for table partitions on demand.
	ensured atomic.Int32
}

// onBoth runs a test on the oldest and the newest Postgres supported.
func onBoth(t *testing.T, test func(b *bed)) {
	for _, version := range []int{15, 18} {
		t.Run(fmt.Sprintf("postgres%d", version), func(t *testing.T) { test(newBed(t, testkit.Postgres(t, version))) })
	}
}

func newBed(t *testing.T, url string) *bed {
	b := &bed{T: t, url: url}
	_, err := migrations.Apply(t.Context(), url)
	require.NoError(t, err)
	b.pool = b.open(url)
	_, err = partitions.Ensure(t.Context(), b.pool.Pool, time.Now(), partitions.Schedule{Ahead: 1})
	require.NoError(t, err)
	b.sink = b.newSink(b.pool)
	return b
}

func (b *bed) open(url string) *postgres.Pool {
	pool, err := postgres.Open(b.Context(), postgres.Options{URL: url, MaxConns: 4, Prepared: true, AcquireTimeout: 5 * time.Second})
	require.NoError(b, err)
	b.Cleanup(pool.Close)
	return pool
}

func (b *bed) newSink(pool *postgres.Pool) *sink.Sink {
	return b.newSinkWith(pool, metrics.New("test", event.Reasons()), zaptest.NewLogger(b))
}

// newSinkOf makes a sink that takes records by other rules.
func (b *bed) newSinkOf(pool *postgres.Pool, rules event.Rules) *sink.Sink {
	return sink.New(pool, 4, rules, b.ensure, metrics.New("test", event.Reasons()), zaptest.NewLogger(b))
}

func (b *bed) newSinkWith(pool *postgres.Pool, m *metrics.Metrics, log *zap.Logger) *sink.Sink {
	return sink.New(pool, 4, event.Rules{MaxBytes: 1 << 20, Horizon: horizon}, b.ensure, m, log)
}

// ensure is the sink's way to table partitions on demand.
func (b *bed) ensure(ctx context.Context, days []time.Time) ([]time.Time, error) {
	b.ensured.Add(1)
	_, err := partitions.EnsureFor(ctx, b.pool.Pool, time.Now(), horizon, partitions.Schedule{}, days)
	var refused *partitions.RangeError
	if errorsAs(err, &refused) {
		return refused.Refused, nil
	}
	return nil, err
}

var lane = sink.Lane{Topic: "audit", TopicID: [16]byte{1}, Partition: 3}

// claim registers the lane from offset 0 if need be, and claims it.
func (b *bed) claim() sink.Claim {
	require.NoError(b, b.sink.Register(b.Context(), lane.Topic, lane.TopicID, "g", []sink.Start{{Partition: lane.Partition}}))
	c, err := b.sink.Claim(b.Context(), lane, "g", "worker")
	require.NoError(b, err)
	return c
}

// events makes n good records from an offset on.
func events(from int64, n int) []event.Record {
	now := time.Now()
	records := make([]event.Record, n)
	for i := range records {
		records[i] = event.Record{
			Offset: from + int64(i), Timestamp: now.UnixMilli(),
			Value: fmt.Appendf(nil, `{"timestamp":%q,"action":"test.%d","status":"success"}`, now.UTC().Format("2006-01-02T15:04:05.000Z"), i),
		}
	}
	return records
}

// batch makes a batch of n good records at the claim's position.
func batch(c sink.Claim, n int) *sink.Batch {
	return &sink.Batch{Claim: c, To: c.Next + int64(n), LeaderEpoch: 7, Records: events(c.Next, n)}
}

// number reads one number.
func (b *bed) number(query string, args ...any) (n int64) {
	require.NoError(b, b.pool.QueryRow(b.Context(), query, args...).Scan(&n))
	return n
}

// holds requires so many rows and quarantined records, no offset twice, and the position.
func (b *bed) holds(rows, quarantined, position int64) {
	b.Helper()
	require.Equal(b, rows, b.number(`SELECT count(*) FROM audit_log`), "rows")
	require.Equal(b, rows, b.number(`SELECT count(DISTINCT (lane_id, lane_offset)) FROM audit_log`), "distinct rows")
	require.Equal(b, quarantined, b.number(`SELECT count(*) FROM audit_quarantine`), "quarantined records")
	require.Equal(b, position, b.number(`SELECT next_offset FROM audit_lane WHERE topic = $1 AND partition = $2`, lane.Topic, lane.Partition), "position")
}
