package metrics

import "time"

// Notice is what is told of an alert: that it was raised, or that it is resolved.
type Notice struct {
	Rule Rule
	// Firing says which of the two it is.
	Firing bool
	// Value is that by which it was judged.
	Value float64
	// Since is when what it is about began.
	Since time.Time
	// At is when that was judged.
	At time.Time
	// Left says that it is resolved only in that the worker stops, of which it was.
	Left bool
	// Before says that it wasn't raised here: a worker that starts finds it over, and whoever raised it may have ended since.
	Before bool
}

// Alerts judges by rules. It is for one goroutine.
//
// An alert is inactive, pending while its condition has not held for long enough, or firing; it is resolved as soon as the condition doesn't hold. The metric
// alert_active is always true to that. What is told follows it, with one exception: after it was told to be resolved nothing is told for the time of the cool-down,
// and what holds then is told at its end. So of one alert raised and resolved notices take turns, and an alert that comes and goes makes two in each cool-down.
type Alerts struct {
	metrics *Metrics
	states  []*state
}

// state is how one alert is.
type state struct {
	rule   Rule
	looks  []look
	value  float64   // the last that was known
	over   bool      // it is known not to hold
	since  time.Time // when the condition began to hold; zero while it doesn't
	firing bool

	spoken bool      // something was told
	told   bool      // the last notice was that it fires
	raised time.Time // since when, by that notice
	quiet  time.Time // until then nothing is told
}

// NewAlerts makes what judges, and publishes that no alert is active. Counters count from the first sample that it is given.
func NewAlerts(m *Metrics, rules []Rule) *Alerts {
	a := &Alerts{metrics: m}
	for _, r := range rules {
		a.states = append(a.states, &state{rule: r})
		m.AlertActive.WithLabelValues(r.Name).Set(0)
	}
	return a
}

// Judge looks at a sample, which is newer than the one before, and returns what is to be told.
func (a *Alerts) Judge(s Sample) []Notice {
	var all []Notice
	for _, st := range a.states {
		if st.rule.Off {
			continue
		}
		st.look(s)
		active := 0.0
		if st.firing {
			active = 1
		}
		a.metrics.AlertActive.WithLabelValues(st.rule.Name).Set(active)
		if n, ok := st.tell(s.At); ok {
			all = append(all, n)
		} else if st.inherits(s) {
			st.spoken = true
			all = append(all, Notice{Rule: st.rule, Value: st.value, Since: s.At, At: s.At, Before: true})
		}
	}
	return all
}

// inherits tells that what all workers have in common is known to be well for the first time here. A worker that raised it has left it to the others, and where
// all were started anew to mend it, nobody else would resolve it.
func (st *state) inherits(s Sample) bool {
	return st.rule.Everywhere && !st.spoken && st.over && s.Sum("partitions_ready_until_timestamp_seconds") > 0 // the database has told of its partitions
}

// Leave returns the notices by which a worker that stops takes back what it has told of itself alone: nobody else would. What holds for all workers the others
// go on to judge, and where there is none it holds indeed, until one starts that finds it over.
func (a *Alerts) Leave(now time.Time) []Notice {
	var all []Notice
	for _, st := range a.states {
		if st.told && !st.rule.Everywhere {
			all = append(all, Notice{Rule: st.rule, Value: st.value, Since: st.raised, At: now, Left: true})
			st.told = false
		}
	}
	return all
}

// look judges by what the rule reads from a sample.
func (st *state) look(s Sample) {
	st.looks = append(st.looks, look{s.At, st.rule.read(s)})
	// The window begins with the last look that is as old as it is long, and has two at least: looks may be further apart than that.
	begin := s.At.Add(-st.rule.Window)
	for len(st.looks) > 2 && !st.looks[1].at.After(begin) {
		st.looks = st.looks[1:]
	}
	value, known := st.rule.judge(window{looks: st.looks, full: !st.looks[0].at.After(begin)})
	if known {
		st.value = value
	}
	st.over = known && !st.rule.holds(value)
	switch {
	case !known || st.over:
		st.firing, st.since = false, time.Time{}
		return
	case st.since.IsZero():
		st.since = s.At
	}
	st.firing = st.firing || s.At.Sub(st.since) >= st.rule.For
}

// tell returns what is to be told, if anything.
func (st *state) tell(now time.Time) (Notice, bool) {
	switch {
	case st.firing == st.told, st.firing && now.Before(st.quiet):
		return Notice{}, false
	case st.firing:
		st.told, st.raised = true, st.since
	default:
		st.told, st.quiet = false, now.Add(st.rule.CoolDown)
	}
	st.spoken = true
	return Notice{Rule: st.rule, Firing: st.told, Value: st.value, Since: st.raised, At: now}, true
}
