// Package partitions keeps the partitions of audit_log: Plan decides what is missing, Ensure and EnsureFor create it.
//
// Bounds always come from the catalog, never from names; months are UTC months.
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
	Others     []string // names like a partition's in the same schema, of relations that are not partitions of audit_log
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

// Plan returns what is missing so that audit_log takes every timestamp of the current month, of the `ahead` months after
// it, and of the months of the wanted times: at most one step for each gap in each of those months, by time. Where other
// partitions cover a month in part, the steps are the gaps they leave, so that no step overlaps anything.
//
// The error joins a [*NameTakenError] for every gap that stays because its name is taken (the steps are still good), or is
// a [*DefaultPartitionError] (there are no steps).
func Plan(now time.Time, catalog Catalog, schedule Schedule, wanted ...time.Time) ([]Step, error) {
	existing := slices.Clone(catalog.Partitions)
	if i := slices.IndexFunc(existing, func(b Bounds) bool { return b.Default }); i >= 0 {
		return nil, &DefaultPartitionError{Name: existing[i].Name}
	}
	// Zero is MINVALUE and before everything, as it sorts.
	slices.SortFunc(existing, func(a, b Bounds) int { return a.From.Compare(b.From) })

	names := make(map[string]bool, len(existing)) // of partitions, those planned included
	for _, b := range existing {
		names[b.Name] = true
	}
	others := make(map[string]bool, len(catalog.Others))
	for _, name := range catalog.Others {
		others[name] = true
	}

	var steps []Step
	var taken []error
	for _, month := range months(now, schedule.Ahead, wanted) {
		for _, gap := range gaps(month, month.AddDate(0, 1, 0), existing) {
			gap.Name = freeName(gap.From, names)
			if others[gap.Name] {
				taken = append(taken, &NameTakenError{Step: gap})
				continue
			}
			names[gap.Name] = true
			steps = append(steps, gap)
		}
	}
	return steps, errors.Join(taken...)
}

// months lists the starts of the months concerned, each once, by time.
func months(now time.Time, ahead int, wanted []time.Time) []time.Time {
	var all []time.Time
	current := monthOf(now)
	for n := range ahead + 1 {
		all = append(all, current.AddDate(0, n, 0)) // the first of a month exists in every month
	}
	for _, t := range wanted {
		all = append(all, monthOf(t))
	}
	slices.SortFunc(all, time.Time.Compare)
	return slices.CompactFunc(all, time.Time.Equal)
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

// freeName is the first name for a partition that begins at from which no partition has. The first gap of a month has the
// month's name whatever its length; further ones, rare as they are, are named by day, then by microsecond.
func freeName(from time.Time, names map[string]bool) string {
	for _, layout := range []string{"2006_01", "2006_01_02"} {
		if name := "audit_log_" + from.Format(layout); !names[name] {
			return name
		}
	}
	return fmt.Sprintf("audit_log_%s_%012d", from.Format("2006_01_02"), from.Sub(from.Truncate(24*time.Hour)).Microseconds())
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
