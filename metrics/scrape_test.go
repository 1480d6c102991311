package metrics_test

import (
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"auditsink/metrics"
)

// TestReadSample: what is read from a scrape is what the worker itself sees.
func TestReadSample(t *testing.T) {
	m := full()
	m.FlushSeconds.Observe(0.2)
	m.SetLag("a.b_c-d", 3, 1<<40, 1500*time.Millisecond)
	own, err := m.Sample(time.Unix(5, 0))
	require.NoError(t, err)
	read, err := metrics.ReadSample(strings.NewReader(text(t, m)), time.Unix(5, 0))
	require.NoError(t, err)
	require.Equal(t, own.At, read.At)
	require.Equal(t, []metrics.LaneLag{{"a.b_c-d", 3, 1 << 40, 1.5}, {"events", 0, 5, 1.5}, {"events", 10, 7, 1}}, own.Lag())
	require.Equal(t, own.Lag(), read.Lag())
	require.Equal(t, own.Distribution("flush_duration_seconds").Quantile(0.95), read.Distribution("flush_duration_seconds").Quantile(0.95))
	require.Equal(t, own.By("alert_active", "alert"), read.By("alert_active", "alert"))
	require.Positive(t, read.Process("process_resident_memory_bytes"))
	require.Empty(t, metrics.Sample{}.Lag())

	for range 20 { // an outage: longer than the last bucket's bound
		m.FlushSeconds.Observe(300)
	}
	own, err = m.Sample(time.Unix(6, 0))
	require.NoError(t, err)
	read, err = metrics.ReadSample(strings.NewReader(text(t, m)), time.Unix(6, 0))
	require.NoError(t, err)
	require.InDelta(t, 60, own.Distribution("flush_duration_seconds").Quantile(0.95), 1e-9)
	require.Equal(t, own.Distribution("flush_duration_seconds"), read.Distribution("flush_duration_seconds"))

	_, err = metrics.ReadSample(strings.NewReader("<html>not these"), time.Now())
	require.Error(t, err)
}
