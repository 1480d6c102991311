package metrics_test

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"auditsink/internal/event"
	"auditsink/metrics"
)

// TestSample: it tells what a scrape does, added up.
func TestSample(t *testing.T) {
	m := metrics.New("v1", event.Reasons())
	m.SetLag("events", 0, 5, 3*time.Second)
	m.SetLag("events", 1, 7, 2*time.Second)
	m.RowsInserted.Add(10)
	m.QueryCacheRequests.WithLabelValues("hit").Add(3)
	before, err := m.Sample(time.Unix(1, 0))
	require.NoError(t, err)
	require.InDelta(t, 12, before.Sum("consumer_lag_records"), 0)
	require.InDelta(t, 7, before.Sum("consumer_lag_records", metrics.Label{Name: "partition", Value: "1"}), 0)
	require.Zero(t, before.Sum("consumer_lag_records", metrics.Label{Name: "partition", Value: "2"}))
	require.InDelta(t, 3, before.Max("consumer_lag_seconds"), 0)
	require.Zero(t, before.Max("no_such_metric"))
	require.InDelta(t, 10, before.Sum("rows_inserted_total"), 0)
	require.Equal(t, map[string]float64{"hit": 3, "miss": 0, "shared": 0, "error": 0}, before.By("query_cache_requests_total", "result"))
	require.Positive(t, before.Process("go_goroutines"))

	none := before.Distribution("flush_rows")
	require.Zero(t, none.Mean())
	require.Zero(t, none.Quantile(0.5))
	for range 100 {
		m.FlushRows.Observe(4)
	}
	after, err := m.Sample(time.Unix(2, 0))
	require.NoError(t, err)
	m.FlushRows.Observe(1e9)
	last, err := m.Sample(time.Unix(3, 0))
	require.NoError(t, err)
	d := after.Distribution("flush_rows").Since(none)
	require.EqualValues(t, 100, d.Count)
	require.InDelta(t, 4, d.Mean(), 0)
	require.InDelta(t, 2.5, d.Quantile(0.5), 0.01, "halfway between the bounds 1 and 4")
	d = last.Distribution("flush_rows").Since(after.Distribution("flush_rows"))
	require.EqualValues(t, 1, d.Count)
	require.InDelta(t, 262144, d.Quantile(0.5), 0, "the last bound")
}
