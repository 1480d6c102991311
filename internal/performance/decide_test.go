package performance

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

var all = Switches{Cache: true, Analyze: true, Vacuum: true}

// decider remembers from one decision to the next.
type decider struct {
	*testing.T
	state State
	on    Switches
	now   time.Time
}

func (d *decider) after(pause time.Duration, f Figures) []string {
	d.Helper()
	d.now = d.now.Add(pause)
	actions, next := Decide(d.state, f, d.on, d.now)
	again, _ := Decide(d.state, f, d.on, d.now)
	require.Equal(d, actions, again, "it is pure")
	d.state = next
	did := []string{}
	for _, a := range actions {
		require.NotEmpty(d, a.Reason)
		require.Positive(d, a.Apart)
		did = append(did, a.Rule+" "+a.Target)
	}
	return did
}

func partition(name string, live, dead, modified int64) Partition {
	return Partition{Name: name, Live: live, Dead: dead, Modified: modified, Analyzed: start, Vacuumed: start}
}

func only(p ...Partition) Figures { return Figures{Partitions: p} }

func TestDecideAnalyze(t *testing.T) {
	d := &decider{T: t, on: all, now: start}
	stale, between, fresh := only(partition("p", 10_000, 0, 2_000)), only(partition("p", 10_000, 0, 1_999)), only(partition("p", 10_000, 0, 999))
	require.Empty(t, d.after(0, between))
	require.Empty(t, d.after(time.Hour, between), "between the marks nothing begins")
	require.Empty(t, d.after(time.Minute, stale), "autovacuum may come first")
	require.Empty(t, d.after(4*time.Minute, stale))
	require.Equal(t, []string{"analyze p"}, d.after(time.Minute, stale))
	require.Empty(t, d.after(0, stale), "once")
	require.Empty(t, d.after(29*time.Minute, between), "pause")
	require.Equal(t, []string{"analyze p"}, d.after(time.Minute, between), "still above the low mark: it goes on")
	require.Empty(t, d.after(59*time.Minute, between), "a pause twice as long")
	require.Equal(t, []string{"analyze p"}, d.after(time.Minute, between))
	require.Empty(t, d.after(10*time.Minute, fresh), "below the low mark it stops")
	require.Empty(t, d.after(10*time.Minute, stale), "and the pause goes on")
	require.Empty(t, d.after(99*time.Minute, stale))
	require.Equal(t, []string{"analyze p"}, d.after(time.Minute, stale), "two hours after the last")
	require.Empty(t, d.after(24*time.Hour, fresh))
	require.Empty(t, d.after(time.Minute, between), "between the marks nothing begins")
	require.Empty(t, d.after(time.Hour, between))
	require.Empty(t, d.after(time.Minute, stale))
	require.Equal(t, []string{"analyze p"}, d.after(5*time.Minute, stale))
	require.Empty(t, d.after(29*time.Minute, stale))
	require.Equal(t, []string{"analyze p"}, d.after(time.Minute, stale), "it begins with a short pause again")

	d = &decider{T: t, on: all, now: start}
	few := only(partition("p", 1_000, 0, 999))
	require.Empty(t, d.after(0, few))
	require.Empty(t, d.after(time.Hour, few), "too few to matter")
	// Where autovacuum comes again and again, it is left to it.
	for range 20 {
		p := partition("p", 10_000, 0, 5_000)
		p.Analyzed = d.now
		require.Empty(t, d.after(10*time.Minute, only(p)))
	}
	d.on.Analyze = false
	require.Empty(t, d.after(time.Hour, stale))
	require.Empty(t, d.after(time.Hour, stale), "the switch is off")
	d.on.Analyze = true
	require.Empty(t, d.after(time.Hour, stale))
	require.Equal(t, []string{"analyze p"}, d.after(time.Hour, stale))
}

func TestDecideVacuum(t *testing.T) {
	d := &decider{T: t, on: all, now: start}
	many, between, fewer := only(partition("p", 70_000, 30_000, 0)), only(partition("p", 71_000, 29_000, 0)), only(partition("p", 91_000, 9_999, 0))
	require.Empty(t, d.after(0, between))
	require.Empty(t, d.after(time.Hour, between))
	require.Empty(t, d.after(0, many))
	require.Equal(t, []string{"vacuum p"}, d.after(5*time.Minute, many))
	require.Empty(t, d.after(59*time.Minute, many))
	require.Equal(t, []string{"vacuum p"}, d.after(time.Minute, many), "it did nothing: an old transaction, say")
	require.Empty(t, d.after(119*time.Minute, between))
	require.Equal(t, []string{"vacuum p"}, d.after(time.Minute, between), "above the low mark it goes on")
	require.Empty(t, d.after(time.Hour, fewer))
	require.Empty(t, d.after(24*time.Hour, between), "and below it stops")
	require.Empty(t, d.after(time.Hour, between))
	small := only(partition("p", 0, 9_999, 0))
	require.Empty(t, d.after(0, small))
	require.Empty(t, d.after(time.Hour, small), "too few to matter")
	d.on.Vacuum = false
	require.Empty(t, d.after(time.Hour, many))
	require.Empty(t, d.after(time.Hour, many), "the switch is off")
	// Pauses grow to a day, and no longer.
	d.on.Vacuum = true
	require.Empty(t, d.after(0, many))
	for range 8 {
		d.after(24*time.Hour, many)
	}
	require.Equal(t, []string{"vacuum p"}, d.after(24*time.Hour, many))
	require.Empty(t, d.after(24*time.Hour-time.Second, many))
	require.Equal(t, []string{"vacuum p"}, d.after(time.Second, many))
}

// TestDecideOneAtATime: the worst first, the next by a decision of its own; what is gone is forgotten.
func TestDecideOneAtATime(t *testing.T) {
	d := &decider{T: t, on: all, now: start}
	f := only(partition("small", 10_000, 0, 5_000), partition("large", 100_000, 60_000, 60_000), partition("fine", 1e6, 10, 10))
	require.Empty(t, d.after(0, f))
	require.Equal(t, []string{"vacuum large"}, d.after(5*time.Minute, f))
	require.Equal(t, []string{"analyze large"}, d.after(0, f))
	require.Equal(t, []string{"analyze small"}, d.after(0, f))
	require.Empty(t, d.after(0, f))
	require.Empty(t, d.after(time.Hour, Figures{Partitions: []Partition{}}))
	require.Empty(t, d.state.tables)
	require.Empty(t, d.after(time.Hour, f), "another table, whatever its name")
}

func TestDecideCache(t *testing.T) {
	d := &decider{T: t, on: all, now: start}
	window := func(gets, hits float64) Figures {
		return Figures{Cache: &Cache{Gets: gets, Hits: hits, Ratio: ratio(hits, gets)}}
	}
	bad, between, good, few := window(200, 19), window(200, 20), window(200, 40), window(199, 0)
	const minutes = 5 * time.Minute
	for range 5 {
		require.Empty(t, d.after(minutes, few), "too few gets")
	}
	require.Empty(t, d.after(minutes, bad))
	require.Empty(t, d.after(minutes, between), "that breaks the row")
	require.Empty(t, d.after(minutes, bad))
	require.Empty(t, d.after(minutes, few), "that doesn't")
	require.Equal(t, []string{"cache cache"}, d.after(minutes, bad))
	for range 11 {
		require.Empty(t, d.after(minutes, bad), "it is left alone for an hour")
	}
	require.Equal(t, []string{"cache cache"}, d.after(minutes, bad))
	for range 23 {
		require.Empty(t, d.after(minutes, bad), "two hours")
	}
	require.Empty(t, d.after(0, good))
	require.Empty(t, d.after(minutes, between))
	require.Empty(t, d.after(minutes, bad))
	require.Equal(t, []string{"cache cache"}, d.after(minutes, bad))
	require.Empty(t, d.after(59*time.Minute, bad))
	require.Equal(t, []string{"cache cache"}, d.after(time.Minute, bad), "since it paid, an hour is enough again")
	d.on.Cache = false
	require.Empty(t, d.after(100*time.Hour, bad))
	require.Empty(t, d.after(minutes, bad), "the switch is off")
	// Errors and what waited for others' looks are no gets.
	d = &decider{T: t, on: all, now: start}
	gone := Figures{Cache: cache(map[string]float64{}, map[string]float64{"error": 1000, "shared": 1000, "hit": 10, "miss": 10})}
	require.Empty(t, d.after(minutes, gone))
	require.Empty(t, d.after(minutes, gone))
	require.Empty(t, d.after(minutes, Figures{}))
}
