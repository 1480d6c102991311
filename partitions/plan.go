// Package partitions keeps the partitions of audit_log: Plan decides what is missing, Ensure and EnsureFor create it.
//
// Bounds always come from the catalog, never from names; months and days are UTC's.
package partitions

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"time"
)

// Bounds is a partition of audit_log as the catalog has it: it takes rows whose timestamp is in [From, To).
type Bounds struct {
	Name      string    `json:"name"`
	From      time.Time `json:"from,omitzero"`       // UTC; zero: MINVALUE, or a default partition
	To        time.Time `json:"to,omitzero"`         // UTC, not included; zero: MAXVALUE, or a default partition
	Default   bool      `json:"default,omitempty"`   // takes what no other partition takes; auditsink makes none
	Detaching bool      `json:"detaching,omitempty"` // a DETACH CONCURRENTLY is pending: takes no rows, but its range isn't free yet
}

// Catalog is what Plan needs to know of the database.
type Catalog struct {
	Partitions []Bounds // in any order; they can't overlap
	Detached   []Bounds // partitions that were retired and can still be attached again: their ranges are kept free for them
	Others     []string // names like a partition's in the same schema, of relations that are neither
}

// Step is one change: create the partition Name for timestamps in [From, To).
type Step struct {
	Name string    `json:"name"`
	From time.Time `json:"from"` // UTC
	To   time.Time `json:"to"`   // UTC, not included
}

// String describes the step for people.
func (s Step) String() string {
	return fmt.Sprintf("create partition %s from %s to %s", s.Name, s.From.Format(time.RFC3339), s.To.Format(time.RFC3339))
}

// NameTakenError means that a partition can't be created, since something else has its name: perhaps a partition that was
// detached, or a table restored by hand.
type NameTakenError struct{ Step Step }

// Error names the relation and what it is in the way of.
func (e *NameTakenError) Error() string {
	return fmt.Sprintf("can't %s: %s exists and is not a partition of audit_log; attach it, rename it or move it away", e.Step, e.Step.Name)
}

// DefaultPartitionError means that audit_log has a DEFAULT partition. Every ATTACH would scan it under a lock that stops
// ingest, so nothing is created beside one.
type DefaultPartitionError struct{ Name string }

// Error names the partition and says what to do.
func (e *DefaultPartitionError) Error() string {
	return fmt.Sprintf("audit_log has a DEFAULT partition, %s, beside which no partition can be created without stopping ingest: detach it", e.Name)
}

// Plan returns what is missing so that audit_log takes every timestamp of the current interval, of the schedule.Ahead intervals after it, and
// of the UTC days of the wanted times, by time. Where other partitions cover an interval in part, of whatever shape they are, the steps are the gaps they
// leave, so that no step overlaps anything.
//
// What is wanted is made by the month whatever the schedule, so that one bad clock can't create thousands: a step is the whole gap of the month that the day is
// in. With a schedule of days, a month that has begun ends today for that purpose, so that history doesn't take the coming days' place, and
// a day from today on is made by itself.
//
// The error joins a [*NameTakenError] for every gap that stays because its name is taken (the steps are still good), or is
// a [*DefaultPartitionError] (there are no steps).
func Plan(now time.Time, catalog Catalog, schedule Schedule, wanted ...time.Time) ([]Step, error) {
	existing := slices.Concat(catalog.Partitions, catalog.Detached)
	if i := slices.IndexFunc(existing, func(b Bounds) bool { return b.Default }); i >= 0 {
		return nil, &DefaultPartitionError{Name: existing[i].Name}
	}
	// Zero is MINVALUE and before everything, as it sorts.
	slices.SortFunc(existing, func(a, b Bounds) int { return a.From.Compare(b.From) })

	names := make(map[string]bool, len(existing)) // of partitions, those planned included
	for _, b := range existing {
		names[b.Name] = true
	}
	var steps []Step
	var taken []error
	for _, span := range spans(now, schedule, wanted) {
		for _, gap := range gaps(span.from, span.to, existing) {
			if !span.whole && !slices.ContainsFunc(wanted, gap.touches) {
				continue
			}
			gap.Name = freeName(gap.From, span.interval, names)
			if names[gap.Name] || slices.Contains(catalog.Others, gap.Name) {
				taken = append(taken, &NameTakenError{Step: gap})
				continue
			}
			names[gap.Name] = true
			steps = append(steps, gap)
		}
	}
	return steps, errors.Join(taken...)
}

// touches tells whether the step has a part of t's day.
func (s Step) touches(t time.Time) bool {
	day := Day.start(t)
	return s.From.Before(Day.add(day, 1)) && day.Before(s.To)
}

// span is a range in which gaps are to be filled.
type span struct {
	from, to time.Time
	interval Interval // by which its partitions are named
	whole    bool     // all of its gaps, not only those of wanted times
}

// spans lists the ranges concerned, each once, by time; they don't overlap.
func spans(now time.Time, schedule Schedule, wanted []time.Time) []span {
	current := schedule.Interval.start(now)
	var all []span
	for n := range schedule.Ahead + 1 {
		all = append(all, span{schedule.Interval.add(current, n), schedule.Interval.add(current, n+1), schedule.Interval, true})
	}
	for _, t := range wanted {
		if schedule.Interval == Day && !t.Before(current) {
			day := Day.start(t)
			all = append(all, span{day, Day.add(day, 1), Day, true})
			continue
		}
		month := monthOf(t)
		end := Month.add(month, 1)
		if schedule.Interval == Day && current.Before(end) {
			end = current
		}
		all = append(all, span{month, end, Month, false})
	}
	slices.SortStableFunc(all, func(a, b span) int { return a.from.Compare(b.from) }) // of two the same, the schedule's stays
	return slices.CompactFunc(all, func(a, b span) bool { return a.from.Equal(b.from) })
}

// monthOf is the start of t's month in UTC.
func monthOf(t time.Time) time.Time {
	year, month, _ := t.UTC().Date()
	return time.Date(year, month, 1, 0, 0, 0, 0, time.UTC)
}

// gaps lists the parts of [from, to) that no partition covers; existing is sorted by From.
func gaps(from, to time.Time, existing []Bounds) []Step {
	var free []Step
	for _, b := range existing {
		unbounded := b.To.IsZero()
		if !unbounded && !b.To.After(from) {
			continue
		}
		if !b.From.Before(to) {
			break
		}
		if b.From.After(from) {
			free = append(free, Step{From: from, To: b.From})
		}
		if unbounded || !b.To.Before(to) {
			return free
		}
		from = b.To
	}
	return append(free, Step{From: from, To: to})
}

// freeName is the first name for a partition that begins at from which no partition has. A day's gap has the day's name. The first gap of a month
// has the month's name whatever its length; further ones, rare as they are, are named by day. What finds that taken too, since it begins within a day or
// the name is of one that does, is named by microsecond, which is taken only where a partition's name lies about its bounds.
func freeName(from time.Time, interval Interval, names map[string]bool) string {
	const month, day = "audit_log_2006_01", "audit_log_2006_01_02"
	if name := from.Format(month); interval != Day && !names[name] {
		return name
	}
	name := from.Format(day)
	if !names[name] {
		return name
	}
	return fmt.Sprintf("%s_%012d", name, from.Sub(from.Truncate(24*time.Hour)).Microseconds())
}

// RangeError means that times were refused, for which no partition is created: outside the retention horizon, or too far
// in the future. A broken clock must not leave partitions behind.
type RangeError struct {
	Refused     []time.Time
	Since, Till time.Time // what is allowed, both included
}

// Error tells how many were refused and which range is allowed; not the times, which are event content.
func (e *RangeError) Error() string {
	return fmt.Sprintf("no partition is created for %d timestamps that are not between %s and %s", len(e.Refused),
		e.Since.Format(time.RFC3339), e.Till.Format(time.RFC3339))
}

// Future is how far after "now" on-demand partitions may begin. Events are taken up to a day ahead of their record's
// timestamp, which itself may be up to a day ahead of the wall clock.
const Future = 48 * time.Hour

// allow splits times into those for which partitions may be created on demand, and an error about the others.
func allow(now time.Time, horizon time.Duration, times []time.Time) ([]time.Time, error) {
	since, till := monthOf(now.Add(-horizon)), now.Add(Future).UTC()
	var allowed, refused []time.Time
	for _, t := range times {
		if t.Before(since) || t.After(till) {
			refused = append(refused, t)
		} else {
			allowed = append(allowed, t)
		}
	}
	if len(refused) > 0 {
		return allowed, &RangeError{Refused: refused, Since: since, Till: till}
	}
	return allowed, nil
}

// byTime orders partitions by where they begin, for people; a default partition comes last.
func byTime(a, b Bounds) int {
	if a.Default != b.Default {
		if a.Default {
			return 1
		}
		return -1
	}
	return cmp.Or(a.From.Compare(b.From), cmp.Compare(a.Name, b.Name))
}
