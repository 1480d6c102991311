package partitions

import (
	"slices"
	"time"
)

// Interval is how long a partition is that is created ahead of time.
type Interval string

// The intervals there are; both are UTC's.
const (
	Month Interval = "month"
	Day   Interval = "day"
)

// Schedule says which partitions there shall be ahead of time: the one of now, and Ahead intervals after it. Without an Interval it is of months. IndexGrace after their
// end, those whose indexes are deferred get them.
type Schedule struct {
	Interval   Interval
	Ahead      int
	IndexGrace time.Duration
}

// start is the beginning of the interval that t is in.
func (i Interval) start(t time.Time) time.Time {
	if i == Day {
		year, month, day := t.UTC().Date()
		return time.Date(year, month, day, 0, 0, 0, 0, time.UTC)
	}
	return monthOf(t)
}

// add is the start n intervals after the one that begins at start.
func (i Interval) add(start time.Time, n int) time.Time {
	if i == Day {
		return start.AddDate(0, 0, n)
	}
	return start.AddDate(0, n, 0) // the first of a month exists in every month
}

// margin is how much further than events can reach a partition must begin before it may be removed for being empty: time enough to remove it, and for
// clocks that differ.
const margin = 24 * time.Hour

// Superseded returns, by time, what was created ahead of time by the month and is in the place of days since: partitions longer than a day, within one
// month, that begin in the future. They shall be removed where they are empty, and [Plan] fills the days in as they come near. With a schedule of months there are
// none: days stay, and Plan fills the months around them.
//
// One that begins among the schedule's intervals ahead stays, so that at no time a timestamp that shall find a partition has none, and so does one that events can reach
// ([Future]) or soon will. So at the end of a month the next one may stay whole, and the days begin after it. What is unbounded, or spans months, somebody made by hand; it
// isn't ours to remove.
func Superseded(now time.Time, existing []Bounds, s Schedule) []Bounds {
	if s.Interval != Day {
		return nil
	}
	from := now.Add(Future + margin)
	if end := Day.add(Day.start(now), s.Ahead+1); end.After(from) {
		from = end
	}
	var all []Bounds
	for _, b := range existing {
		if b.Default || b.Detaching || b.To.IsZero() || b.From.Before(from) {
			continue
		}
		if b.To.Sub(b.From) > 24*time.Hour && !b.To.After(Month.add(monthOf(b.From), 1)) {
			all = append(all, b)
		}
	}
	slices.SortFunc(all, byTime)
	return all
}
