package fleet_test

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"auditsink/internal/event"
	"auditsink/internal/fleet"
	"auditsink/metrics"
)

// TestMeasure: rates and latencies are those since the sample before, and of the whole life where there is none.
func TestMeasure(t *testing.T) {
	m := metrics.New("v1", event.Reasons())
	start := time.Date(2026, 11, 25, 3, 0, 0, 0, time.UTC)
	sample := func(seconds int) metrics.Sample {
		t.Helper()
		s, err := m.Sample(start.Add(time.Duration(seconds) * time.Second))
		require.NoError(t, err)
		return s
	}
	m.RecordsConsumed.Add(1000)
	m.RowsInserted.Add(500)
	for range 1000 {
		m.FlushSeconds.Observe(30)
	}
	first := sample(10)
	var f fleet.Figures
	f.Measure(metrics.Sample{At: start}, first)
	require.Equal(t, []float64{100, 50}, []float64{f.RecordsPerSecond, f.RowsPerSecond})
	require.Greater(t, f.FlushP95, 10.0)
	require.Equal(t, start.Add(10*time.Second), f.At)
	require.False(t, f.Leader)
	require.NotNil(t, f.Alerts)

	m.RecordsConsumed.Add(10)
	m.RowsInserted.Add(5)
	m.FlushSeconds.Observe(0.0005)
	m.Leader.Set(1)
	m.LeaderSince.Set(float64(start.Unix()))
	m.LanesOwned.Set(3)
	m.LanesHalted.Set(1)
	m.BufferedBytes.Set(4096)
	m.AlertActive.WithLabelValues("b").Set(1)
	m.AlertActive.WithLabelValues("a").Set(1)
	m.AlertActive.WithLabelValues("c").Set(0)
	m.SetLag("events", 10, 5, 3*time.Second)
	m.SetLag("events", 2, 6, time.Second)
	second := sample(15)
	position := int64(4)
	f = fleet.Figures{Lanes: []fleet.Lane{{Topic: "events", Partition: 10, Position: &position}, {Topic: "events", Partition: 1}}}
	f.Measure(first, second)
	require.Equal(t, []float64{2, 1}, []float64{f.RecordsPerSecond, f.RowsPerSecond}, "of the last five seconds")
	require.Less(t, f.FlushP95, 0.01, "likewise")
	require.True(t, f.Leader)
	require.Equal(t, start, f.LeaderSince)
	require.Equal(t, []string{"a", "b"}, f.Alerts)
	require.Equal(t, []any{3, 1, int64(11), 3.0, int64(4096)}, []any{f.LanesOwned, f.LanesHalted, f.LagRecords, f.LagSeconds, f.BufferedBytes})
	require.Positive(t, f.MemoryBytes)
	require.Equal(t, []fleet.Lane{
		{Topic: "events", Partition: 1},
		{Topic: "events", Partition: 2, Lag: &fleet.Lag{Records: 6, Seconds: 1}},
		{Topic: "events", Partition: 10, Position: &position, Lag: &fleet.Lag{Records: 5, Seconds: 3}},
	}, f.Lanes)

	// A worker that was started anew between two looks counts from 0.
	f.Measure(second, first)
	require.Zero(t, f.RowsPerSecond, "no time has passed")
	young := metrics.New("v1", event.Reasons())
	young.RowsInserted.Add(20)
	young.FlushSeconds.Observe(0.2)
	s, err := young.Sample(start.Add(25 * time.Second))
	require.NoError(t, err)
	f.Measure(second, s)
	require.InDelta(t, 2, f.RowsPerSecond, 0)
	require.Positive(t, f.FlushP95)
	require.False(t, f.Leader)
	require.Zero(t, f.LeaderSince)
	require.Zero(t, f.LagRecords)
}

func TestJudge(t *testing.T) {
	var f fleet.Figures
	f.Judge(metrics.Health{Status: metrics.Critical, Components: map[string]metrics.Component{"pool": {Status: metrics.Critical}, "cache": {Status: metrics.Healthy}}})
	require.Equal(t, metrics.Critical, f.Health)
	require.Equal(t, map[string]metrics.Status{"pool": metrics.Critical, "cache": metrics.Healthy}, f.Components)
}

func TestTotal(t *testing.T) {
	a, b := some("a"), some("b")
	b.Ready, b.NotReady, b.LagSeconds, b.LagRecords, b.Alerts = true, "", 0.5, 1, []string{"lane_halted", "pool_starved"}
	require.Equal(t, fleet.Totals{
		Replicas: 2, Ready: 1, LanesOwned: 4, LanesHalted: 2, LagRecords: 10, LagSeconds: 1.5, RecordsPerSecond: 21, RowsPerSecond: 19, BufferedBytes: 2 << 20, MemoryBytes: 2 << 26,
		Alerts: map[string][]string{"lane_halted": {"a", "b"}, "pool_starved": {"b"}},
	}, fleet.Total([]fleet.Figures{a, b}))
	require.Equal(t, fleet.Totals{Alerts: map[string][]string{}}, fleet.Total(nil))
}
