package metrics_test

import (
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"auditsink/internal/event"
	"auditsink/metrics"
)

// TestAlertsForAndCoolDown: one alert by the clock.
func TestAlertsForAndCoolDown(t *testing.T) {
	c := newClinic(t, "lane_halted: {threshold: 1, for: 30s, cool_down: 5m}\nmaintenance_stale: {off: true}")
	halted := func(n float64, after time.Duration) []string {
		c.m.LanesHalted.Set(n)
		return c.judge(after)
	}
	require.Empty(t, halted(1, time.Second), "not over the threshold")
	require.Empty(t, halted(2, time.Second))
	require.Empty(t, halted(2, 29*time.Second))
	require.False(t, c.active("lane_halted"), "pending")
	require.Empty(t, halted(0, 500*time.Millisecond))
	require.Empty(t, halted(2, 500*time.Millisecond), "for counts from anew")
	began := c.now
	require.Empty(t, halted(3, 29*time.Second))
	c.m.LanesHalted.Set(4)
	n := c.look(time.Second)
	require.Len(t, n, 1)
	require.True(t, n[0].Firing)
	require.Equal(t, began, n[0].Since)
	require.Equal(t, c.now, n[0].At)
	require.EqualValues(t, 4, n[0].Value)
	require.True(t, c.active("lane_halted"))
	require.Empty(t, halted(5, time.Hour), "told once")

	c.m.LanesHalted.Set(0)
	n = c.look(time.Second)
	require.Len(t, n, 1)
	require.False(t, n[0].Firing)
	require.Equal(t, began, n[0].Since, "what is resolved is what was raised")
	require.False(t, c.active("lane_halted"))

	// It comes and goes within the cool-down: the metric tells, nobody else.
	require.Empty(t, halted(2, time.Second))
	require.Empty(t, halted(2, 30*time.Second))
	require.True(t, c.active("lane_halted"))
	require.Empty(t, halted(0, time.Second))
	require.False(t, c.active("lane_halted"))
	require.Empty(t, halted(2, time.Second))
	began = c.now
	require.Empty(t, halted(2, time.Minute))
	require.True(t, c.active("lane_halted"))
	// What holds at its end is told then.
	n = c.look(4 * time.Minute)
	require.Len(t, n, 1)
	require.True(t, n[0].Firing)
	require.Equal(t, began, n[0].Since)
	require.Equal(t, []string{"-lane_halted"}, halted(0, time.Second), "a resolve is never held back")
}

// TestAlertsOff: a rule that is off is never raised.
func TestAlertsOff(t *testing.T) {
	c := newClinic(t, "lane_halted: {off: true}")
	c.m.LanesHalted.Set(2)
	require.Empty(t, c.judge(time.Second))
	require.False(t, c.active("lane_halted"))
}

// TestAlertsReset: a counter that begins anew raises nothing, and what it counts then counts.
func TestAlertsReset(t *testing.T) {
	rules, err := metrics.ParseRules(nil, metrics.Rules())
	require.NoError(t, err)
	now := time.Date(2026, 11, 25, 12, 0, 0, 0, time.UTC)
	worker := func(gaps int) metrics.Sample {
		m := metrics.New("v1", event.Reasons())
		m.Gaps.Add(float64(gaps))
		now = now.Add(15 * time.Second)
		s, err := m.Sample(now)
		require.NoError(t, err)
		return s
	}
	alerts := metrics.NewAlerts(metrics.New("v1", event.Reasons()), rules)
	require.Empty(t, alerts.Judge(worker(5)))
	require.Empty(t, alerts.Judge(worker(5)))
	require.Empty(t, alerts.Judge(worker(0)))
	n := alerts.Judge(worker(2))
	require.Len(t, n, 1)
	require.EqualValues(t, 2, n[0].Value)
}

// TestAlertsSeldom: where looks are further apart than the window is long, it begins with the look before.
func TestAlertsSeldom(t *testing.T) {
	c := newClinic(t, "maintenance_stale: {off: true}")
	c.m.Gaps.Inc()
	require.Equal(t, []string{"+gaps"}, c.judge(time.Hour))
	require.Equal(t, []string{"-gaps"}, c.judge(time.Hour))
	require.Empty(t, c.judge(time.Hour))
	c.m.Gaps.Inc()
	require.Equal(t, []string{"+gaps"}, c.judge(time.Hour))
}

// TestAlertsLeave: a worker that stops takes back what it told of itself, and leaves to the others what is about all.
func TestAlertsLeave(t *testing.T) {
	c := newClinic(t, "maintenance_stale: {for: 0s}")
	c.m.LanesHalted.Set(1)
	require.Equal(t, []string{"+lane_halted"}, c.judge(time.Second))
	require.Equal(t, []string{"+maintenance_stale"}, c.judge(2*time.Hour))
	left := c.alerts.Leave(c.now)
	require.Len(t, left, 1)
	require.Equal(t, "lane_halted", left[0].Rule.Name)
	require.False(t, left[0].Firing)
	require.Empty(t, c.alerts.Leave(c.now))
}

// TestAlertsBefore: what a worker before this one may have raised of all is resolved once it is known to be over, and not before.
func TestAlertsBefore(t *testing.T) {
	c := newClinic(t, "maintenance_stale: {for: 10m}")
	require.Empty(t, c.judge(time.Second), "the database hasn't been asked")
	c.m.PartitionsReadyUntil.Set(1e9)
	c.m.PartitionsAhead.Set(1)
	c.m.MaintenanceLastSuccess.Set(float64(c.now.Add(-2 * time.Hour).Unix()))
	require.Empty(t, c.during(5*time.Minute, func() {}), "both hold, if not for long enough")
	c.m.MaintenanceLastSuccess.Set(float64(c.now.Unix()))
	n := c.look(time.Second)
	require.Len(t, n, 1)
	require.Equal(t, []any{metrics.AlertMaintenanceStale, false, true}, []any{n[0].Rule.Name, n[0].Firing, n[0].Before})
	require.Equal(t, []string{"+partitions_future"}, c.during(15*time.Minute, func() {}))
	c.m.PartitionsAhead.Set(6)
	n = c.look(time.Second)
	require.Len(t, n, 1)
	require.Equal(t, []any{metrics.AlertPartitionsFuture, false, false}, []any{n[0].Rule.Name, n[0].Firing, n[0].Before})
	require.Empty(t, c.during(30*time.Minute, func() {}))
}

// TestAlertsModel holds the machine against what it promises, whatever comes: the metric is what for says of the condition, notices take turns, and each is told as
// soon as it may be.
func TestAlertsModel(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		seconds := rapid.IntRange(0, 20)
		wait, cool := seconds.Draw(rt, "for"), seconds.Draw(rt, "cool-down")
		c := newClinic(t, fmt.Sprintf("lane_halted: {for: %ds, cool_down: %ds}\nmaintenance_stale: {off: true}", wait, cool))
		held := -1 // seconds for which the condition has held; -1: it doesn't
		firing, told := false, false
		sinceResolved := 1 << 30
		for range rapid.IntRange(1, 40).Draw(rt, "looks") {
			step := rapid.IntRange(1, 8).Draw(rt, "seconds")
			holds := rapid.Bool().Draw(rt, "holds")
			if rapid.Bool().Draw(rt, "long") { // or nothing would hold for long
				holds = held >= 0
			}
			switch {
			case !holds:
				held = -1
			case held < 0:
				held = 0
			default:
				held += step
			}
			sinceResolved += step
			c.m.LanesHalted.Set(map[bool]float64{true: 1}[holds])
			got := c.judge(time.Duration(step) * time.Second)

			firing = holds && held >= wait
			if active := c.active("lane_halted"); active != firing {
				rt.Fatalf("active %t, want %t", active, firing)
			}
			var want []string
			switch {
			case firing && !told && sinceResolved >= cool:
				want, told = []string{"+lane_halted"}, true
			case !firing && told:
				want, told, sinceResolved = []string{"-lane_halted"}, false, 0
			}
			require.Equal(rt, want, got)
		}
	})
}
