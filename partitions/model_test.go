package partitions

import (
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"
)

// model is a database that maintenance looks after for years, by the pure functions alone.
type model struct {
	*rapid.T
	now      time.Time
	schedule Schedule
	live     []Bounds
	full     map[string]bool // partitions that hold rows, by name and beginning
	entered  []span          // what was ahead in the last round; nil where all begins anew
}

// Whatever partitions there are, and however the clock walks and the interval is changed, after each round there is a partition for all
// that is ahead, nothing overlaps, each name is there once, nothing is removed that events can reach, and no more is created than came ahead or was asked for.
func TestModelOfYears(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		start := time.Date(rapid.SampledFrom([]int{2023, 2024, 2027, 2099}).Draw(t, "year"), 11, 1, 0, 0, 0, 0, time.UTC)
		m := &model{T: t, now: start.Add(time.Duration(rapid.IntRange(0, 120*24).Draw(t, "begin")) * time.Hour), live: drawPartitions(t, start), full: map[string]bool{}}
		m.change()
		m.round()
		for range rapid.IntRange(1, 60).Draw(t, "rounds") {
			switch rapid.SampledFrom([]string{"minutes", "hours", "hours", "hours", "late", "wild", "outage", "back", "change"}).Draw(t, "what") {
			case "minutes":
				m.pass(time.Duration(rapid.IntRange(1, 60).Draw(t, "minutes")) * time.Minute)
			case "hours":
				m.pass(time.Duration(rapid.Int64Range(int64(time.Hour), int64(24*time.Hour)).Draw(t, "nanoseconds")))
			case "late":
				m.demand(m.now.Add(-time.Duration(rapid.IntRange(0, 500*24).Draw(t, "hours")) * time.Hour))
			case "wild":
				m.wild()
			case "outage":
				m.now, m.entered = m.now.AddDate(0, 0, rapid.IntRange(1, 500).Draw(t, "days")), nil
				m.demand(m.now.Add(time.Duration(rapid.Int64Range(0, int64(Future)).Draw(t, "nanoseconds")))) // before there is a leader
			case "back": // a clock that was fast
				m.now, m.entered = m.now.AddDate(0, 0, -rapid.IntRange(1, 60).Draw(t, "days")), nil
			case "change":
				m.change()
			}
			m.round()
		}
	})
}

func (m *model) change() {
	m.schedule = Schedule{Interval: rapid.SampledFrom([]Interval{Month, Day}).Draw(m.T, "interval"), Ahead: rapid.IntRange(1, 40).Draw(m.T, "ahead")}
	m.entered = nil
}

// pass lets less than a day pass, in which nobody did anything.
func (m *model) pass(d time.Duration) {
	m.now = m.now.Add(d)
	if !covered(m.live, m.now) {
		m.Fatalf("nothing takes %s before the round", m.now)
	}
	if m.schedule.Interval == Month || m.schedule.Ahead >= 3 {
		if reach := m.now.Add(Future); !covered(m.live, reach) {
			m.Fatalf("nothing takes %s, two days from %s, before the round", reach, m.now)
		}
	}
}

// round does what the leader does, and what the sink may ask for at any time.
func (m *model) round() {
	ahead := spans(m.now, m.schedule, nil)
	fresh := slices.DeleteFunc(slices.Clone(ahead), func(s span) bool { return slices.Contains(m.entered, s) })
	m.entered = ahead
	m.create(fresh, m.schedule)
	if len(m.live) > 0 && rapid.Bool().Draw(m.T, "a bad clock left rows") {
		b := rapid.SampledFrom(m.live).Draw(m.T, "in")
		m.full[b.Name+b.From.String()] = true
	}
	m.remove()
	m.demand(m.now.Add(Future))
	m.remove() // nothing that was made on demand just now goes again
	m.check()
}

// create carries out a plan, of which the allowed spans must be all that is new.
func (m *model) create(allowed []span, s Schedule, wanted ...time.Time) {
	limit := 0
	for _, a := range allowed {
		limit++ // a gap, and one more for each partition in its midst
		for _, b := range m.live {
			if b.From.Before(a.to) && (b.To.IsZero() || b.To.After(a.from)) {
				limit++
			}
		}
	}
	steps, err := Plan(m.now, Catalog{Partitions: m.live}, s, wanted...)
	if err != nil && len(steps) == 0 {
		m.Fatal(err)
	}
	if len(steps) > limit {
		m.Fatalf("%d partitions are created at %s where %d may be new: %v", len(steps), m.now, limit, steps)
	}
	for _, s := range steps {
		m.live = append(m.live, Bounds{Name: s.Name, From: s.From, To: s.To})
	}
	if again, _ := Plan(m.now, Catalog{Partitions: m.live}, s, wanted...); len(again) > 0 {
		m.Fatalf("still planned: %v", again)
	}
}

// demand is the sink's request for an event at t.
func (m *model) demand(t time.Time) {
	allowed, err := allow(m.now, 365*24*time.Hour, []time.Time{t})
	if err != nil {
		return
	}
	before := len(m.live)
	s := Schedule{Interval: m.schedule.Interval}
	day := Day.start(t) // the sink asks with its first instant, of all that is in it
	m.create(spans(m.now, s, []time.Time{day}), s, day)
	for h := day; h.Before(Day.add(day, 1)); h = h.Add(time.Hour) {
		if !covered(m.live, h) {
			m.Fatalf("nothing takes %s though its day was asked for at %s", h, m.now)
		}
	}
	m.create(spans(m.now, s, allowed), s, t)
	for _, b := range m.live[before:] {
		if today := Day.start(m.now); m.schedule.Interval == Day && b.To.After(today) && (b.From.Before(today) || b.To.Sub(b.From) > 24*time.Hour) {
			m.Fatalf("%+v takes the place of days at %s", b, m.now)
		}
	}
}

// wild is an event with a time that can't be right.
func (m *model) wild() {
	t := rapid.SampledFrom([]time.Time{{}, time.Date(1, 1, 1, 0, 0, 0, 0, time.UTC), at("1970-01-01"), at("2297-01-01"), time.Date(52217, 1, 1, 0, 0, 0, 0, time.UTC)}).Draw(m.T, "time")
	if allowed, err := allow(m.now, 365*24*time.Hour, []time.Time{t}); err == nil || len(allowed) > 0 {
		m.Fatalf("%s is allowed at %s", t, m.now)
	}
}

// remove removes the empty months that days shall follow.
func (m *model) remove() {
	for _, b := range Superseded(m.now, m.live, m.schedule) {
		if b.From.Before(m.now.Add(Future + margin)) {
			m.Fatalf("%+v is removed at %s, when events can reach it soon", b, m.now)
		}
		if m.full[b.Name+b.From.String()] {
			continue
		}
		m.live = slices.DeleteFunc(m.live, func(l Bounds) bool { return l == b })
	}
	if m.schedule.Interval == Month {
		return
	}
	for _, b := range m.live { // what is left is near, or days, or none of ours
		far := b.From.After(m.now.Add(Future+margin)) && b.From.After(Day.add(Day.start(m.now), m.schedule.Ahead+1))
		if far && !b.To.IsZero() && b.To.Sub(b.From) > 24*time.Hour && !b.To.After(Month.add(monthOf(b.From), 1)) && !m.full[b.Name+b.From.String()] {
			m.Fatalf("%+v stays in the place of days", b)
		}
	}
}

func (m *model) check() {
	end := m.schedule.Interval.add(m.schedule.Interval.start(m.now), m.schedule.Ahead+1)
	if until := ReadyUntil(m.now, m.live); until.Before(end) {
		m.Fatalf("ready until %s at %s, wanted %s", until, m.now, end)
	}
	for _, t := range []time.Time{m.now, m.now.Add(24 * time.Hour), m.now.Add(Future)} {
		if !covered(m.live, t) {
			m.Fatalf("nothing takes %s at %s", t, m.now)
		}
	}
	names := map[string]bool{}
	sorted := slices.SortedFunc(slices.Values(m.live), byTime)
	for i, b := range sorted {
		if names[b.Name] {
			m.Fatalf("%s is there twice", b.Name)
		}
		names[b.Name] = true
		if i > 0 && (sorted[i-1].To.IsZero() || sorted[i-1].To.After(b.From)) {
			m.Fatalf("%+v overlaps %+v", sorted[i-1], b)
		}
	}
}
