package partitions

import (
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Retention says how what has expired is removed.
type Retention struct {
	Enforce bool          // remove; otherwise only tell what would go
	MinDays int           // every row is kept for at least so many days, whatever its policy says
	Grace   time.Duration // between the detaching of a partition and its drop, during which it can be restored
}

// The states of a [Fate].
const (
	Attached  = "attached"  // takes rows and is read
	Detaching = "detaching" // a DETACH CONCURRENTLY is pending
	Detached  = "detached"  // a table of its own, to be dropped after its grace period
)

// Fate is what is to become of a partition.
type Fate struct {
	Bounds
	Due       time.Time `json:"due,omitzero"`        // when all its rows will have expired; zero: never, as far as can be seen
	Policy    string    `json:"policy,omitempty"`    // the policy in audit_retention_policy, or the number, that keeps it longest
	Days      int       `json:"days,omitempty"`      // for which that policy keeps rows
	Holds     []int64   `json:"holds,omitempty"`     // the legal holds that cover it
	State     string    `json:"state"`               // attached, detaching, detached
	DropAfter time.Time `json:"drop_after,omitzero"` // of one that is detached: the end of its grace period
	Why       string    `json:"why"`                 // for people
}

// Expired tells whether it may go by now: all its rows have expired, and none is under a legal hold.
func (f Fate) Expired(now time.Time) bool {
	return !f.Due.IsZero() && !f.Due.After(now) && len(f.Holds) == 0
}

// rules are the policies as of one look at audit_retention_policy. A row's policy is a number of days, or one of the table's that is active; for
// any other, and for none, the longest of the table holds, active or not: to deactivate a policy must shorten nobody's time.
type rules struct {
	active      map[string]int // days by name
	longest     string         // the policy that keeps longest; empty where none is active
	longestDays int
	least       int // days that every row is kept
}

// newRules makes the rules of the policies, of which those that are not active count as the longest only.
func newRules(active, inactive map[string]int, least int) rules {
	r := rules{active: active, least: least}
	if len(active) == 0 {
		return r
	}
	for _, policies := range []map[string]int{active, inactive} {
		for name, days := range policies {
			if days > r.longestDays || days == r.longestDays && name < r.longest {
				r.longest, r.longestDays = name, days
			}
		}
	}
	return r
}

// number is how the sink stores a policy that is a number of days.
var number = regexp.MustCompile(`^[1-9][0-9]{0,4}$`)

// keeps tells for how many days rows of a policy (nil: none) are kept, and by which policy or number. The name is never one that only rows
// have: those are what producers sent. With days 0 there is nothing to say when they expire, so they never do.
func (r rules) keeps(policy *string) (days int, by string) {
	if policy != nil {
		if n, err := strconv.Atoi(*policy); err == nil && n <= 36500 && number.MatchString(*policy) {
			return max(n, r.least), *policy
		}
		if days, ok := r.active[*policy]; ok {
			return max(days, r.least), *policy
		}
	}
	if r.longest == "" {
		return 0, ""
	}
	return max(r.longestDays, r.least), r.longest
}

// end is as far as a time is told to people and programs; JSON ends there.
var end = time.Date(9999, 12, 31, 0, 0, 0, 0, time.UTC)

// expiry is when what ends at t expires after days; zero: never.
func expiry(t time.Time, days int) time.Time {
	const most = 4_000_000 // days; nothing that begins after year 0 expires in a year of four digits after more
	if days > most {
		return time.Time{}
	}
	if due := t.UTC().AddDate(0, 0, days); due.Before(end) {
		return due
	}
	return time.Time{}
}

// cutoff is the latest timestamp of rows to remove one by one by now, if kept for days; false: there are none. It is the end of a day, so that a policy's rows
// go, and are put on record, once a day and not a few with every round.
func cutoff(now time.Time, days int) (time.Time, bool) {
	const most = 4_000_000
	if days <= 0 || days > most {
		return time.Time{}, false
	}
	last := Day.start(now.UTC().AddDate(0, 0, -days)).Add(-time.Microsecond)
	return last, last.Year() > 0
}

// fate judges a partition by the policies present in it (nil in the list: rows without one) and the legal holds that cover it.
func (r rules) fate(b Bounds, present []*string, holds []int64, now time.Time) Fate {
	f := Fate{Bounds: b, Holds: holds, State: Attached}
	if b.Detaching {
		f.State = Detaching
	}
	switch {
	case b.Default:
		f.Why = "never: a DEFAULT partition takes rows of any time"
		return f
	case b.To.IsZero():
		f.Why = "never: it has no end"
		return f
	}
	held := ""
	if len(holds) == 0 {
		f.Holds = nil
	} else {
		held = "; held by " + holdNames(holds)
	}
	if len(present) == 0 {
		f.Days = r.least
		f.Due = expiry(b.To, r.least)
		f.Why = fmt.Sprintf("it is empty, and kept for %d days", r.least) + held
		return f
	}
	for _, policy := range present {
		days, by := r.keeps(policy)
		if days == 0 {
			f.Days, f.Policy, f.Due = 0, "", time.Time{}
			f.Why = "never: it has rows without a policy in audit_retention_policy, and none there is active" + held
			return f
		}
		if days > f.Days || days == f.Days && by < f.Policy {
			f.Days, f.Policy = days, by
		}
	}
	f.Due = expiry(b.To, f.Days)
	switch {
	case f.Due.IsZero():
		f.Why = fmt.Sprintf("never, as good as: kept for %d days by policy %s", f.Days, f.Policy)
	case f.Due.After(now):
		f.Why = fmt.Sprintf("kept until %s, for %d days by policy %s", f.Due.Format(time.RFC3339), f.Days, f.Policy)
	default:
		f.Why = fmt.Sprintf("expired on %s, after %d days by policy %s", f.Due.Format(time.RFC3339), f.Days, f.Policy)
	}
	f.Why += held
	return f
}

func holdNames(holds []int64) string {
	var names []string
	for _, id := range slices.Sorted(slices.Values(holds)) {
		names = append(names, strconv.FormatInt(id, 10))
	}
	if len(names) == 1 {
		return "legal hold " + names[0]
	}
	return "legal holds " + strings.Join(names, ", ")
}
