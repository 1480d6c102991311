package metrics_test

import (
	"fmt"
	"net/http/httptest"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"auditsink/internal/event"
	"auditsink/internal/testkit"
	"auditsink/metrics"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// text is what Prometheus scrapes.
func text(t *testing.T, m *metrics.Metrics) string {
	t.Helper()
	rec := httptest.NewRecorder()
	m.Handler().ServeHTTP(rec, httptest.NewRequestWithContext(t.Context(), "GET", "/metrics", nil))
	require.Equal(t, 200, rec.Code)
	return rec.Body.String()
}

// full are the metrics of a worker at work: every series there can be.
func full() *metrics.Metrics {
	m := metrics.New("v1.2.3", event.Reasons())
	m.WatchPool(func() metrics.PoolState { return metrics.PoolState{Idle: 1, Acquired: 2, Constructing: 3, Max: 20} })
	m.WatchQueryPool(func() metrics.PoolState { return metrics.PoolState{Max: 4} })
	for _, by := range []*prometheus.CounterVec{m.QueryRows, m.QueryFailures, m.SlowQueries} {
		by.WithLabelValues("page").Inc()
	}
	m.QuerySeconds.WithLabelValues("page").Observe(0.01)
	m.FlushRetries.WithLabelValues("transient").Inc()
	m.AlertActive.WithLabelValues("partitions_future").Set(1)
	m.SetLag("events", 0, 5, 1500*time.Millisecond)
	m.SetLag("events", 10, 7, time.Second)
	return m
}

// TestNames: the names, types and labels that dashboards rely on.
func TestNames(t *testing.T) {
	want := []string{
		"alert_active gauge", "alert_notifications_total counter", "buffered_bytes gauge", "build_info gauge", "consumer_lag_records gauge", "consumer_lag_seconds gauge",
		"db_pool_acquire_failures_total counter", "db_pool_acquire_seconds histogram", "db_pool_connections gauge", "db_pool_waiting gauge", "end_to_end_latency_seconds histogram", "fenced_total counter",
		"fleet_replicas gauge", "flush_duration_seconds histogram", "flush_retries_total counter", "flush_rows histogram", "gaps_total counter", "index_bytes gauge", "indexes_to_build gauge", "indexes_to_build_since_timestamp_seconds gauge", "kafka_connect_failures_total counter", "lanes_halted gauge",
		"lanes_owned gauge", "leader gauge", "leader_since_timestamp_seconds gauge", "maintenance_last_success_timestamp_seconds gauge",
		"optimizations_total counter", "partitions_ahead gauge", "partitions_detached gauge", "partitions_dropped_total counter", "partitions_ready_until_timestamp_seconds gauge", "quarantined_total counter",
		"query_acquire_seconds histogram", "query_cache_requests_total counter", "query_duration_seconds histogram", "query_failures_total counter",
		"query_pool_acquire_failures_total counter", "query_pool_connections gauge", "query_pool_waiting gauge", "query_rows_total counter",
		"records_consumed_total counter", "rewound_total counter", "rows_expired_total counter", "rows_inserted_total counter", "slow_queries_total counter", "table_bytes gauge",
		"table_partitions gauge",
	}
	require.Contains(t, text(t, metrics.New("v1.2.3", event.Reasons())), `auditsink_alert_active{alert="partitions_future"} 0`)
	body := text(t, full())
	var got []string
	for _, m := range regexp.MustCompile(`(?m)^# TYPE auditsink_(\S+ \S+)$`).FindAllStringSubmatch(body, -1) {
		got = append(got, m[1])
	}
	slices.Sort(got)
	require.Equal(t, want, got)
	for _, series := range []string{
		`auditsink_build_info\{goversion="go\S+",version="v1\.2\.3"\} 1`,
		`auditsink_consumer_lag_records\{partition="0",topic="events"\} 5`,
		`auditsink_consumer_lag_seconds\{partition="0",topic="events"\} 1\.5`,
		`auditsink_db_pool_connections\{state="idle"\} 1`,
		`auditsink_db_pool_connections\{state="acquired"\} 2`,
		`auditsink_db_pool_connections\{state="constructing"\} 3`,
		`auditsink_db_pool_connections\{state="max"\} 20`,
		`auditsink_flush_retries_total\{class="transient"\} 1`,
		`auditsink_records_consumed_total 0`, // there from the start, so that a rate over it has a beginning
	} {
		require.Regexp(t, `(?m)^`+series+`$`, body)
	}
	for _, reason := range event.Reasons() {
		require.Contains(t, body, fmt.Sprintf("auditsink_quarantined_total{reason=%q} 0\n", reason))
	}
	require.Contains(t, body, "\ngo_goroutines ")
	require.Contains(t, body, "\nprocess_resident_memory_bytes ")
}

func TestLaneGoes(t *testing.T) {
	m := full()
	m.DropLane("events", 0)
	m.DropLane("events", 1) // was never there
	body := text(t, m)
	require.NotContains(t, body, `partition="0"`)
	require.Contains(t, body, `partition="10"`)
	m.DropLane("events", 10)
	body = text(t, m)
	require.NotContains(t, body, "partition=")
	require.False(t, strings.Contains(body, "events"))
	m.SetLag("events", 0, 1, 0)
	require.Contains(t, text(t, m), `auditsink_consumer_lag_records{partition="0",topic="events"} 1`)
}

func TestPromtoolAccepts(t *testing.T) {
	m := full()
	m.FlushSeconds.Observe(0.3)
	out, err := testkit.Promtool(t, text(t, m))
	require.NoError(t, err, out)
	require.Empty(t, out)
	m.DropLane("events", 0)
	m.DropLane("events", 10)
	out, err = testkit.Promtool(t, text(t, m))
	require.NoError(t, err, out)
	require.Empty(t, out)
}

// TestBuckets: what the design promises to be visible lies within the buckets.
func TestBuckets(t *testing.T) {
	body := text(t, full())
	for name, within := range map[string][2]float64{
		"flush_duration_seconds":     {0.005, 30},
		"flush_rows":                 {5, 100_000},
		"end_to_end_latency_seconds": {0.05, 1800},
		"db_pool_acquire_seconds":    {0.001, 10},
	} {
		var below, above bool
		for _, m := range regexp.MustCompile(`auditsink_`+name+`_bucket\{le="([0-9.e+-]+)"\}`).FindAllStringSubmatch(body, -1) {
			var le float64
			_, err := fmt.Sscan(m[1], &le)
			require.NoError(t, err)
			below = below || le <= within[0]
			above = above || le >= within[1]
		}
		require.True(t, below && above, name)
	}
}
