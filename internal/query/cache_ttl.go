package query

import "time"

// The lives of answers about what is still being added to.
const (
	hourTTL  = 5 * time.Second
	todayTTL = 2 * time.Minute
	monthTTL = 15 * time.Minute
)

// TTL is for how long an answer about the events of from ≤ timestamp < to may be kept at now: longest where all of it lies in past months, a quarter of an hour in past days of
// this month, minutes earlier today, and seconds in the running hour or after now; all in UTC. Events come late, so nothing lives longer than its range has been over, or a
// few seconds. It is never more than longest, and 0 for a range that has nothing in it.
func TTL(now, from, to time.Time, longest time.Duration) time.Duration {
	if !from.Before(to) {
		return 0
	}
	now = now.UTC()
	year, month, day := now.Date()
	life := longest
	switch {
	case to.After(now.Truncate(time.Hour)):
		life = hourTTL
	case to.After(time.Date(year, month, day, 0, 0, 0, 0, time.UTC)):
		life = todayTTL
	case to.After(time.Date(year, month, 1, 0, 0, 0, 0, time.UTC)):
		life = monthTTL
	}
	return max(0, min(longest, life, max(hourTTL, now.Sub(to))))
}
