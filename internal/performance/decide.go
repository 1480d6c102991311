package performance

import (
	"cmp"
	"fmt"
	"slices"
	"time"
)

// The rules by which something is done to stay fast.
const (
	RuleCache   = "cache"
	RuleAnalyze = "analyze"
	RuleVacuum  = "vacuum"
)

// rule is when something is done, to one target: a partition, or the cache. Above the high mark it is done, and again after a pause until the figure is below
// the low mark; between the marks nothing begins.
type rule struct {
	high, low float64
	least     float64       // what there must be of it, in rows or gets, for a share to mean anything
	patience  time.Duration // for which autovacuum may come first
	pause     time.Duration // after the first time; it doubles with each further one
	longest   time.Duration // pause
}

// Autovacuum analyzes a partition when a twentieth of its rows have changed (see create_audit_log_partition), and vacuums it when a fifth are dead. It looks
// once a minute (autovacuum_naptime), so what is well above for longer than a few minutes it doesn't get to.
var (
	analyzeRule = rule{high: 0.2, low: 0.1, least: 1_000, patience: 5 * time.Minute, pause: 30 * time.Minute, longest: 24 * time.Hour}
	vacuumRule  = rule{high: 0.3, low: 0.1, least: 10_000, patience: 5 * time.Minute, pause: time.Hour, longest: 24 * time.Hour}
)

// The cache doesn't pay where less than cacheLow of at least cacheGets gets were hits, in cacheWindows windows in a row. It pays again from cacheHigh on.
const (
	cacheLow, cacheHigh = 0.1, 0.2
	cacheGets           = 200
	cacheWindows        = 2
	cachePause          = time.Hour
	cachePauseLongest   = 24 * time.Hour
)

// Switches tell which rules are on.
type Switches struct{ Cache, Analyze, Vacuum bool }

// Figures are what is decided by.
type Figures struct {
	Cache      *Cache      // of a window; nil where there is none to decide on
	Partitions []Partition // nil where they weren't looked at
}

// Action is what is to be done, and why.
type Action struct {
	Rule    string
	Target  string // a partition, or "cache"
	Reason  string
	Figures map[string]any
	Apart   time.Duration // how long ago the last of the kind must be, by whichever worker: memory ends with a process, the record doesn't
}

// State is what is remembered from one decision to the next. The zero State remembers nothing.
type State struct {
	tables map[target]track
	cache  track
}

type target struct{ rule, name string }

// track is what is remembered of one target.
type track struct {
	since time.Time // from when it has been above the high mark, and not below the low one; zero: it isn't
	mark  time.Time // the last VACUUM or ANALYZE by then: a later one begins the patience anew
	times int       // done in a row
	low   int       // windows in a row in which the cache didn't pay
	next  time.Time // nothing before
}

// Decide says what is to be done by these figures, and what to remember. Of the partitions it is one thing, to the worst: the next is decided by what the
// figures are then. It is pure: state stays as it was.
func Decide(state State, f Figures, on Switches, now time.Time) ([]Action, State) {
	next := State{cache: state.cache, tables: map[target]track{}}
	var actions []Action
	free := true // nothing is to be done to a partition yet
	if f.Cache != nil && on.Cache {
		var a *Action
		if a, next.cache = decideCache(state.cache, *f.Cache, now); a != nil {
			actions = append(actions, *a)
		}
	}
	if f.Partitions == nil {
		next.tables = state.tables
		return actions, next
	}
	worst := slices.SortedFunc(slices.Values(f.Partitions), func(a, b Partition) int {
		return cmp.Or(cmp.Compare(b.Dead+b.Modified, a.Dead+a.Modified), cmp.Compare(a.Name, b.Name))
	})
	for _, p := range worst { // what is no longer there is forgotten
		for _, r := range []struct {
			name  string
			on    bool
			rule  rule
			count int64
			of    int64
			mark  time.Time
			what  string
		}{
			{RuleVacuum, on.Vacuum, vacuumRule, p.Dead, p.Live + p.Dead, p.Vacuumed, "are dead"},
			{RuleAnalyze, on.Analyze, analyzeRule, p.Modified, p.Live, p.Analyzed, "were changed since its statistics were taken"},
		} {
			if !r.on {
				continue
			}
			key := target{r.name, p.Name}
			share := float64(r.count) / float64(max(r.of, 1))
			t, act := r.rule.decide(state.tables[key], share, float64(r.count), r.mark, now, free)
			if act {
				free = false
				actions = append(actions, Action{
					Rule: r.name, Target: p.Name, Apart: apart(r.rule.pause, r.rule.longest, t.times), Reason: fmt.Sprintf("%d of %d rows %s, and autovacuum hasn't come", r.count, r.of, r.what),
					Figures: map[string]any{"live_rows": p.Live, "dead_rows": p.Dead, "modified_rows": p.Modified},
				})
			}
			if t != (track{}) {
				next.tables[key] = t
			}
		}
	}
	return actions, next
}

// decide says whether to act on a target, which only one who is free to does, and what to remember of it.
func (r rule) decide(t track, share, count float64, mark, now time.Time, free bool) (track, bool) {
	switch {
	case count < r.least || share < r.low:
		if now.Before(t.next) { // the pause goes on
			return track{times: t.times, next: t.next}, false
		}
		return track{}, false
	case share < r.high && t.since.IsZero():
		return t, false
	case t.since.IsZero() || !mark.Equal(t.mark) && !now.Before(t.next):
		t.since, t.mark = now, mark
		return t, false
	}
	if !free || now.Sub(t.since) < r.patience || now.Before(t.next) {
		return t, false
	}
	t.times++
	t.next = now.Add(growing(r.pause, r.longest, t.times))
	return t, true
}

func decideCache(t track, c Cache, now time.Time) (*Action, track) {
	switch {
	case c.Gets < cacheGets:
		return nil, t // too few to tell anything
	case *c.Ratio >= cacheHigh:
		return nil, track{next: t.next}
	case *c.Ratio >= cacheLow:
		t.low = 0
		return nil, t
	}
	t.low++
	if t.low < cacheWindows || now.Before(t.next) {
		return nil, t
	}
	t.times++
	t.low = 0
	t.next = now.Add(growing(cachePause, cachePauseLongest, t.times))
	return &Action{
		Rule: RuleCache, Target: "cache", Apart: apart(cachePause, cachePauseLongest, t.times), Reason: fmt.Sprintf("%.0f of %.0f gets were hits, %d windows in a row", c.Hits, c.Gets, cacheWindows),
		Figures: map[string]any{"gets": c.Gets, "hits": c.Hits},
	}, t
}

// growing doubles a pause with each time after the first.
func growing(first, longest time.Duration, times int) time.Duration {
	pause := first
	for range times - 1 {
		if pause *= 2; pause >= longest {
			return longest
		}
	}
	return pause
}

// apart is half of the pause that had to pass before this time: half, since two workers' clocks and rounds aren't the same.
func apart(first, longest time.Duration, times int) time.Duration {
	return growing(first, longest, max(times-1, 1)) / 2
}
