package consumer_test

import (
	"context"
	"fmt"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/stretchr/testify/require"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"
	"go.uber.org/zap/zaptest"

	"auditsink/consumer"
	"auditsink/internal/event"
	"auditsink/internal/postgres"
	"auditsink/internal/testkit"
	"auditsink/metrics"
	"auditsink/migrations"
	"auditsink/partitions"
	"auditsink/sink"
)

func TestMain(m *testing.M) { testkit.Main(m) }

// patience is how long a test waits for what must come: far more than it takes.
const patience = 60 * time.Second

// bed is a topic, a group and a database of a test's own.
type bed struct {
	*testing.T
	broker       *testkit.Broker
	seeds        []string
	topic, group string
	url          string
	pool         *postgres.Pool // the test's own, not the workers'
	client       *kgo.Client
	admin        *kadm.Client
	produced     int
}

func newBed(t *testing.T, broker *testkit.Broker, url string, lanes int32) *bed {
	b := &bed{T: t, broker: broker, seeds: broker.Brokers(), topic: testkit.Name(t), group: testkit.Name(t), url: url}
	broker.CreateTopic(t, b.topic, lanes, nil)
	b.prepare()
	var err error
	b.client, err = kgo.NewClient(kgo.SeedBrokers(b.seeds...), kgo.RecordPartitioner(kgo.RoundRobinPartitioner()))
	require.NoError(t, err)
	t.Cleanup(b.client.Close)
	b.admin = kadm.NewClient(b.client)
	return b
}

// prepare makes the database ready.
func (b *bed) prepare() {
	_, err := migrations.Apply(b.Context(), b.url)
	require.NoError(b, err)
	b.pool, err = postgres.Open(b.Context(), postgres.Options{URL: b.url, MaxConns: 2, Prepared: true})
	require.NoError(b, err)
	b.Cleanup(b.pool.Close)
	_, err = partitions.Ensure(b.Context(), b.pool.Pool, time.Now(), partitions.Schedule{Ahead: 1})
	require.NoError(b, err)
}

// event makes the next event, numbered.
func (b *bed) event() []byte {
	b.produced++
	return fmt.Appendf(nil, `{"timestamp":%q,"action":"test","status":"success","targetResourceId":"%d","pad":%q}`,
		time.Now().UTC().Format("2006-01-02T15:04:05.000Z"), b.produced, strings.Repeat("x", 300))
}

// produce publishes n events, spread over the lanes, and waits until the broker has them.
func (b *bed) produce(n int) {
	b.Helper()
	all := make([]*kgo.Record, n)
	for i := range all {
		all[i] = &kgo.Record{Topic: b.topic, Value: b.event(), Headers: []kgo.RecordHeader{{Key: "h", Value: []byte("v")}}}
	}
	require.NoError(b, b.client.ProduceSync(b.Context(), all...).FirstErr())
}

// worker is a running consumer with a sink and a pool of its own.
type worker struct {
	*bed
	*consumer.Consumer
	metrics *metrics.Metrics
	cancel  context.CancelFunc
	done    chan error
}

func (b *bed) options() consumer.Options {
	return consumer.Options{
		Group: b.group, Owner: "test", FlushRows: 500, FlushBytes: 1 << 20, FlushInterval: 50 * time.Millisecond,
		BufferBytes: 4 << 20, SessionTimeout: 6 * time.Second, DrainTimeout: 10 * time.Second,
	}
}

func (b *bed) start(opts consumer.Options, topics ...kgo.Opt) *worker {
	topics = append([]kgo.Opt{kgo.ConsumeTopics(b.topic)}, topics...)
	w := &worker{bed: b, metrics: metrics.New("test", event.Reasons()), done: make(chan error, 1)}
	pool, err := postgres.Open(b.Context(), postgres.Options{URL: b.url, MaxConns: 8, Prepared: true, AcquireTimeout: 2 * time.Second})
	require.NoError(b, err)
	log := zaptest.NewLogger(b)
	ensure := func(ctx context.Context, days []time.Time) ([]time.Time, error) {
		_, err := partitions.EnsureFor(ctx, pool.Pool, time.Now(), 2555*24*time.Hour, partitions.Schedule{}, days)
		return nil, err
	}
	s := sink.New(pool, 4, event.Rules{MaxBytes: 1 << 20, Horizon: 2555 * 24 * time.Hour}, ensure, w.metrics, log)
	w.Consumer, err = consumer.New(opts, append(topics, kgo.SeedBrokers(b.seeds...), kgo.MetadataMinAge(100*time.Millisecond),
		kgo.MetadataMaxAge(2*time.Second)), s, w.metrics, log)
	require.NoError(b, err)
	ctx, cancel := context.WithCancel(context.WithoutCancel(b.Context()))
	w.cancel = cancel
	go func() {
		defer pool.Close()
		w.done <- w.Run(ctx)
	}()
	b.Cleanup(func() {
		cancel()
		if err, open := <-w.done; open && err != nil {
			b.Errorf("worker: %v", err)
		}
	})
	return w
}

// stop ends the worker and requires that it did so cleanly.
func (w *worker) stop() {
	w.Helper()
	w.cancel()
	select {
	case err := <-w.done:
		close(w.done)
		require.NoError(w, err)
	case <-time.After(patience):
		w.Fatal("the worker does not stop")
	}
}

func (b *bed) eventually(what string, cond func() bool) {
	b.Helper()
	require.Eventually(b, cond, patience, 50*time.Millisecond, what)
}

func (b *bed) number(query string, args ...any) (n int64) {
	b.Helper()
	require.NoError(b, b.pool.QueryRow(b.Context(), query, args...).Scan(&n))
	return n
}

// arrived waits until as many rows are there as were produced, and requires each event once and the positions at the ends of the logs.
func (b *bed) arrived() {
	b.Helper()
	b.eventually("all events arrive", func() bool { return b.number(`SELECT count(*) FROM audit_log`) >= int64(b.produced) })
	require.EqualValues(b, b.produced, b.number(`SELECT count(*) FROM audit_log`), "rows")
	require.EqualValues(b, b.produced, b.number(`SELECT count(DISTINCT (lane_id, lane_offset)) FROM audit_log`), "offsets")
	require.EqualValues(b, b.produced, b.number(`SELECT count(DISTINCT target_resource_id) FROM audit_log`), "events")
	require.Zero(b, b.number(`SELECT count(*) FROM audit_log JOIN audit_lane USING (lane_id) WHERE lane_offset >= next_offset`), "rows beyond the position")
	b.atEnd()
}

// atEnd waits until positions and committed offsets are at the ends of the logs.
func (b *bed) atEnd() {
	b.Helper()
	ends, err := b.admin.ListCommittedOffsets(b.Context(), b.topic)
	require.NoError(b, err)
	b.eventually("positions and Kafka's offsets are at the ends of the logs", func() bool {
		committed, err := b.admin.FetchOffsetsForTopics(b.Context(), b.group, b.topic)
		require.NoError(b, err)
		at := true
		ends.Each(func(end kadm.ListedOffset) {
			o, _ := committed.Lookup(b.topic, end.Partition)
			if end.Offset == 0 && o.At < 0 {
				return
			}
			at = at && o.At == end.Offset &&
				b.number(`SELECT coalesce(max(next_offset), -1) FROM audit_lane WHERE topic = $1 AND partition = $2`, b.topic, end.Partition) == end.Offset
		})
		return at
	})
}

// lag is the sum of consumer_lag_records over the worker's lanes.
func (w *worker) lag() float64 {
	w.Helper()
	return w.sum("auditsink_consumer_lag_records")
}

// sum adds up a metric's series as Prometheus would scrape them.
func (w *worker) sum(name string) (total float64) {
	w.Helper()
	rec := httptest.NewRecorder()
	w.metrics.Handler().ServeHTTP(rec, httptest.NewRequestWithContext(w.Context(), "GET", "/metrics", nil))
	for line := range strings.Lines(rec.Body.String()) {
		var v float64
		if rest, ok := strings.CutPrefix(line, name); ok && (rest[0] == '{' || rest[0] == ' ') {
			_, err := fmt.Sscan(rest[strings.LastIndexByte(strings.TrimSpace(rest), ' ')+1:], &v)
			require.NoError(w, err)
			total += v
		}
	}
	return total
}

func value(c prometheus.Collector) float64 { return testutil.ToFloat64(c) }
