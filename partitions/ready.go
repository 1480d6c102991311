package partitions

import (
	"slices"
	"time"
)

// ReadyUntil returns the end of the last partition that follows the one of now without a hole: until then every event finds
// its partition. It returns now where not even now has one.
func ReadyUntil(now time.Time, existing []Bounds) time.Time {
	byStart := slices.DeleteFunc(slices.Clone(existing), func(b Bounds) bool { return b.Default || b.Detaching })
	slices.SortFunc(byStart, func(a, b Bounds) int { return a.From.Compare(b.From) })
	until := now
	for _, b := range byStart {
		if b.From.After(until) {
			break
		}
		if b.To.IsZero() { // MAXVALUE: the end of what timestamptz holds is as good as never
			return time.Date(9999, 12, 31, 0, 0, 0, 0, time.UTC)
		}
		if b.To.After(until) {
			until = b.To
		}
	}
	return until
}
