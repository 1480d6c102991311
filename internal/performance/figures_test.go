package performance

import (
	"context"
	"encoding/json"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"auditsink/metrics"
)

// TestFiguresOfTheWorker: each figure is what happened in its window, and nothing of before; what was counted stays counted.
func TestFiguresOfTheWorker(t *testing.T) {
	m := metrics.New("v1", []time.Duration{})
	take := func(at time.Time) moment {
		s, err := m.Sample(at)
		require.NoError(t, err)
		return moment{sample: s, gc: gcSeconds()}
	}
	state := metrics.PoolState{Idle: 2, Acquired: 3, Constructing: 1, Max: 20}
	m.WatchPool(func() metrics.PoolState { return state })
	happen := func() { // all of it, with different numbers each
		m.RecordsConsumed.Add(600)
		m.RowsInserted.Add(540)
		m.Quarantined.WithLabelValues("empty").Add(40)
		m.Quarantined.WithLabelValues("too_large").Add(20)
		for range 100 {
			m.EndToEndSeconds.Observe(0.3)
			m.FlushSeconds.Observe(0.02)
			m.FlushRows.Observe(5)
			m.PoolAcquireSeconds.Observe(0.0004)
		}
		m.EndToEndSeconds.Observe(1000)
		m.FlushSeconds.Observe(50)
		m.FlushRows.Observe(5)
		m.FlushRetries.WithLabelValues("transient").Add(3)
		m.Fenced.Add(2)
		m.PoolFailures.Add(4)
		for result, n := range map[string]float64{"hit": 30, "miss": 10, "error": 7, "shared": 5} {
			m.QueryCacheRequests.WithLabelValues(result).Add(n)
		}
	}
	happen()
	m.FlushRetries.WithLabelValues("fatal").Inc()
	before := take(start)
	happen()
	m.SetLag("events", 0, 5, 3*time.Second)
	m.SetLag("events", 1, 7, 2*time.Second)
	m.LanesOwned.Set(2)
	m.BufferedBytes.Set(1e6)
	m.PoolWaiting.Set(6)
	runtime.GC()
	after := take(start.Add(2 * time.Minute))
	r := figures(before, after, true)

	require.Equal(t, start, r.From)
	require.Equal(t, start.Add(2*time.Minute), r.To)
	require.InDelta(t, 120, r.Seconds, 0)
	require.InDelta(t, 600, r.Ingest.Records, 0)
	require.InDelta(t, 5, r.Ingest.RecordsPerSecond, 0)
	require.InDelta(t, 540, r.Ingest.Rows, 0)
	require.InDelta(t, 4.5, r.Ingest.RowsPerSecond, 0)
	require.InDelta(t, 60, r.Ingest.Quarantined, 0)
	require.InDelta(t, 12, r.Ingest.LagRecords, 0)
	require.InDelta(t, 7, r.Ingest.LagRecordsMax, 0)
	require.InDelta(t, 3, r.Ingest.LagSecondsMax, 0)
	require.InDelta(t, 2, r.Ingest.Lanes, 0)
	require.InDelta(t, 1e6, r.Ingest.BufferedBytes, 0)
	require.EqualValues(t, 101, r.Ingest.EndToEnd.Count)
	require.InDelta(t, 0.3, r.Ingest.EndToEnd.P50, 0.15, "seconds")
	require.InDelta(t, 0.3, r.Ingest.EndToEnd.P99, 0.3)
	require.Less(t, r.Ingest.EndToEnd.P50, r.Ingest.EndToEnd.P95)

	require.EqualValues(t, 101, r.Flush.Count)
	require.InDelta(t, 5, r.Flush.MeanRows, 0.001)
	require.InDelta(t, 0.02, r.Flush.Duration.P50, 0.01)
	require.LessOrEqual(t, r.Flush.Duration.P95, r.Flush.Duration.P99)
	require.Equal(t, map[string]float64{"transient": 3}, r.Flush.Retries)
	require.InDelta(t, 2, r.Flush.Fenced, 0)

	require.Equal(t, []float64{20, 6, 3, 2, 6, 4}, []float64{r.Pool.Max, r.Pool.Total, r.Pool.Active, r.Pool.Idle, r.Pool.Waiting, r.Pool.Failures})
	require.EqualValues(t, 100, r.Pool.Acquires)
	require.InDelta(t, 0.0004, r.Pool.AcquireMeanSeconds, 1e-9)
	require.InDelta(t, 0.0004, r.Pool.AcquireP95Seconds, 0.0004)
	require.Nil(t, r.Reads, "nobody watches a pool for reads")

	require.Equal(t, []float64{40, 30, 0.75, 7, 5}, []float64{r.Cache.Gets, r.Cache.Hits, *r.Cache.Ratio, r.Cache.Errors, r.Cache.Shared})
	require.Nil(t, figures(before, after, false).Cache, "there is no cache")
	require.Nil(t, figures(after, after, true).Cache.Ratio, "no gets, no ratio")

	require.Greater(t, r.Process.ResidentBytes, 1e6)
	require.Greater(t, r.Process.HeapBytes, 1e5)
	require.Less(t, r.Process.HeapBytes, r.Process.ResidentBytes*10)
	require.GreaterOrEqual(t, r.Process.Goroutines, 2.0)
	require.Positive(t, r.Process.GCCPUSeconds)
	require.GreaterOrEqual(t, r.Process.CPUSeconds, 0.0)
	require.Less(t, r.Process.CPUSeconds, 60.0, "of the window alone")

	m.WatchQueryPool(func() metrics.PoolState { return metrics.PoolState{Idle: 1, Max: 4} })
	m.QueryAcquireSeconds.Observe(2)
	m.QueryPoolWaiting.Set(5)
	m.QueryPoolFailures.Add(3)
	r = figures(after, take(start.Add(3*time.Minute)), true)
	require.Equal(t, Pool{Max: 4, Total: 1, Idle: 1, Waiting: 5, Failures: 3, Acquires: 1, AcquireMeanSeconds: 2, AcquireP95Seconds: r.Reads.AcquireP95Seconds}, *r.Reads)
	require.InDelta(t, 2, r.Reads.AcquireP95Seconds, 1)
	require.Zero(t, r.Ingest.Records, "the next window begins with nothing")
	require.Zero(t, r.Flush.Duration)
	require.Empty(t, r.Flush.Retries)
	// Nothing was reset.
	last := take(start.Add(4 * time.Minute)).sample
	require.InDelta(t, 1200, last.Sum("records_consumed_total"), 0)
	require.InDelta(t, 60, last.Sum("query_cache_requests_total", metrics.Label{Name: "result", Value: "hit"}), 0)
}

// TestCPUOfTheProcess: work shows in seconds.
func TestCPUOfTheProcess(t *testing.T) {
	m := metrics.New("v1", []time.Duration{})
	take := func() moment {
		s, err := m.Sample(start)
		require.NoError(t, err)
		return moment{sample: s, gc: gcSeconds()}
	}
	before := take()
	require.Eventually(t, func() bool {
		for range 100 {
			_ = strings.Repeat("x", 1<<16)
		}
		return figures(before, take(), false).Process.CPUSeconds >= 0.05
	}, testTimeout, time.Millisecond)
}

// TestReportOfAWorker: the collector's windows follow one another, and whoever asks gets the latest report.
func TestReportOfAWorker(t *testing.T) {
	versions(t, func(b *bed) {
		c := New(Options{})
		_, err := c.Report(b.Context())
		require.ErrorContains(b, err, "starting")

		c = b.collector()
		b.metrics.RowsInserted.Add(30)
		b.now = b.now.Add(10 * time.Second)
		r, err := c.Report(b.Context())
		require.NoError(b, err)
		require.InDelta(b, 3, r.Ingest.RowsPerSecond, 0, "of the window so far")
		b.now = b.now.Add(-10 * time.Second)
		r = b.next(c)
		require.InDelta(b, 30, r.Ingest.Rows, 0, "which goes on")
		require.InDelta(b, 0.5, r.Ingest.RowsPerSecond, 0)
		b.metrics.RowsInserted.Add(7)
		again, err := c.Report(b.Context())
		require.NoError(b, err)
		require.Equal(b, r, again, "the latest")
		r = b.next(c)
		require.InDelta(b, 7, r.Ingest.Rows, 0)
		require.Equal(b, start.Add(time.Minute), r.From)
		require.Equal(b, "me", r.Worker)
		require.Nil(b, r.Cache)

		text, err := json.Marshal(r)
		require.NoError(b, err)
		var back Report
		require.NoError(b, json.Unmarshal(text, &back))
		require.Equal(b, r.Database.WAL, back.Database.WAL)
		require.Equal(b, r.Ingest, back.Ingest)
		require.NotContains(b, string(text), ":null,\"partitions", "lists are never null")
	})
}

// TestRun: a report comes every interval, for the log, for whoever asks and for /health; a database that is gone costs its part.
func TestRun(t *testing.T) {
	versions(t, func(b *bed) {
		reported := make(chan Report, 100)
		c := New(Options{
			DB: b.pool, Metrics: b.metrics, Log: b.logger(), Worker: "me", Every: 30 * time.Millisecond, Slow: time.Second, Now: time.Now,
			Reported: func(_ context.Context, r Report) {
				select {
				case reported <- r:
				default:
				}
			},
		})
		ctx, stop := context.WithCancel(b.Context())
		done := make(chan struct{})
		go func() { defer close(done); c.Run(ctx) }()
		first, second := <-reported, <-reported
		require.Equal(b, first.To, second.From)
		require.NotNil(b, first.Database.Tables)
		require.Equal(b, metrics.Healthy, b.metrics.Health().Components["performance"].Status)
		require.Contains(b, b.metrics.Health().Components["performance"].Details, "report_at")
		b.pool.Close()
		require.Eventually(b, func() bool {
			r := <-reported
			return r.Database.Tables == nil && len(r.Database.Unread) == 1 && r.Database.Unread[0].Part == "database"
		}, testTimeout, time.Millisecond)
		stop()
		<-done
	})
}

// TestMissing: a partition is read as a whole as often as its rows went, of those that it had when it had most, besides the builds of its indexes.
func TestMissing(t *testing.T) {
	counts := func(rows, read int64) *tableCounts {
		return &tableCounts{counted: counted{reset: time.Unix(1, 0)}, by: map[uint32]tableCount{7: {Partition: Partition{Name: "p", Live: rows}, SeqRows: read}}}
	}
	for _, c := range []struct {
		before, now, read, built, scans int64
	}{
		{100_000, 100_000, 999_999, 0, 0},
		{100_000, 100_000, 1_000_000, 0, 10},
		{1_000_000, 20_000, 1_000_000, 0, 0}, // once, and then expired
		{20_000, 100_000, 1_000_000, 0, 10},
		{9_999, 9_999, 1_000_000, 0, 0},
		{100_000, 100_000, 3_100_000, 16, 0},
		{100_000, 100_000, 4_200_000, 16, 10},
	} {
		found := counts(c.now, 50+c.read).missing(counts(c.before, 50), map[uint32]int64{7: c.built})
		if c.scans == 0 {
			require.Empty(t, found, c)
			continue
		}
		require.Equal(t, []SeqScanned{{Partition: "p", Scans: c.scans, RowsRead: c.read, Rows: max(c.before, c.now)}}, found, c)
	}
}
