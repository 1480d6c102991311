package partitions

import "time"

// Interval is how long a partition is that is created ahead of time.
type Interval string

// The intervals there are; both are UTC's.
const (
	Month Interval = "month"
	Day   Interval = "day"
)

// Schedule says which partitions there shall be ahead of time: the one of now, and Ahead intervals after it. Without an Interval it is of months.
type Schedule struct {
	Interval Interval
	Ahead    int
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
