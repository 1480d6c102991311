package partitions

import (
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"auditsink/metrics"
)

// From here on something is said; docs/partitions.md names them.
const (
	// alertIntervals is how many intervals the future must have, from now on, for the alert to be silent.
	alertIntervals = 2
	// mostAhead ends the count: a partition may have no upper bound.
	mostAhead = 10_000
	// A partition larger than either is hard to vacuum, index and restore in one piece.
	oversizedBytes = 100 << 30
	oversizedRows  = 100_000_000
	// Statistics are stale after so many modifications that are also more than a fifth of the rows; autovacuum analyzes after a twentieth.
	staleRows = 10_000
	// Of a table never analyzed Postgres guesses the rows by the size, which will do for a small one.
	staleBytes = 10 << 20
	deadRows   = 10_000
	// stuckAfter is how long the leader may need for what it does in moments, unless something is in its way.
	stuckAfter = time.Hour
	// leaderless is how long nobody may lead: much longer than a hand-over takes.
	leaderless = 5 * time.Minute
	// unbuiltFor is how long indexes may wait to be built: those of a day are, with all pauses, within hours.
	unbuiltFor = 24 * time.Hour
)

// Advice is something about the partitions that somebody should know, and what to do about it.
type Advice struct {
	Severity   metrics.Status `json:"severity"` // warning or critical
	Partitions []string       `json:"partitions,omitempty"`
	Problem    string         `json:"problem"`
	Remedy     string         `json:"remedy"`
}

// String is the advice in one line.
func (a Advice) String() string { return a.Problem + ": " + a.Remedy }

// RunsOut tells whether the future runs out in less than two intervals: fewer than two whole intervals after now's have partitions.
func RunsOut(now time.Time, existing []Bounds, interval Interval) bool {
	return Ahead(now, existing, interval) < alertIntervals
}

// Ahead counts the whole intervals after now's that have partitions, without a hole before them.
func Ahead(now time.Time, existing []Bounds, interval Interval) int {
	next := interval.start(now)
	if next.Before(now) {
		next = interval.add(next, 1)
	}
	ready, n := ReadyUntil(now, existing), 0
	for n < mostAhead && !ready.Before(interval.add(next, n+1)) {
		n++
	}
	return n
}

// Advise says what is wrong with the partitions, the worst first. Nothing is said of sizes, events and statistics where only the catalog was looked at.
func Advise(s Survey, schedule Schedule, enforce bool) []Advice {
	var all []Advice
	for _, advise := range []func(Survey, Schedule, bool) []Advice{
		adviseFuture, adviseCreation, adviseStrangers, adviseLeader, adviseWaysOut, adviseExpired, adviseSizes, adviseStatistics, adviseIndexes,
	} {
		all = append(all, advise(s, schedule, enforce)...)
	}
	slices.SortStableFunc(all, func(a, b Advice) int { return b.Severity.Rank() - a.Severity.Rank() })
	return all
}

// adviseFuture: are there partitions ahead?
func adviseFuture(s Survey, schedule Schedule, _ bool) []Advice {
	ready := ReadyUntil(s.Now, s.Catalog.Partitions)
	if RunsOut(s.Now, s.Catalog.Partitions, schedule.Interval) {
		remedy := "run `auditsink partitions apply --execute`, and see in the leader's log why it creates none"
		if schedule.Ahead < alertIntervals { // with as many, it runs out at the end of each interval, until the leader's next round
			remedy = fmt.Sprintf("set AUDITSINK_PARTITION_AHEAD to %d or more", alertIntervals+1)
		}
		problem := fmt.Sprintf("audit_log has partitions until %s only, which is in less than %d intervals (%s)", stamp(ready), alertIntervals, interval(schedule))
		if !ready.After(s.Now) {
			problem = fmt.Sprintf("audit_log has no partition for events of now (%s)", stamp(s.Now))
		}
		return []Advice{{Severity: metrics.Critical, Problem: problem, Remedy: remedy}}
	}
	// The leader needs a round after an interval has begun.
	start := schedule.Interval.start(s.Now)
	wanted := schedule.Ahead
	if s.Now.Sub(start) < stuckAfter {
		wanted--
	}
	if ready.Before(schedule.Interval.add(start, wanted+1)) {
		return []Advice{{
			Severity: metrics.Warning,
			Problem:  fmt.Sprintf("audit_log has partitions until %s, fewer than the %d intervals (%s) ahead that AUDITSINK_PARTITION_AHEAD wants", stamp(ready), schedule.Ahead, interval(schedule)),
			Remedy:   "see with `auditsink partitions plan` what is missing; `auditsink partitions apply --execute` creates it",
		}}
	}
	return nil
}

func interval(schedule Schedule) Interval {
	if schedule.Interval == "" {
		return Month
	}
	return schedule.Interval
}

// adviseCreation: what keeps partitions from being created?
func adviseCreation(s Survey, schedule Schedule, _ bool) []Advice {
	_, err := Plan(s.Now, s.Catalog, schedule)
	var byDefault *DefaultPartitionError
	if errors.As(err, &byDefault) {
		return []Advice{{
			Severity: metrics.Warning, Partitions: []string{byDefault.Name},
			Problem: fmt.Sprintf("audit_log has a DEFAULT partition, %s, beside which no partition can be created without stopping ingest", byDefault.Name),
			Remedy:  fmt.Sprintf("run `ALTER TABLE audit_log DETACH PARTITION %s` and insert its rows into audit_log again", name(byDefault.Name)),
		}}
	}
	var all []Advice
	for _, taken := range takenIn(err) {
		all = append(all, Advice{
			Severity: metrics.Warning, Partitions: []string{taken.Step.Name},
			Problem: fmt.Sprintf("%s is in the way of the partition for %s to %s: it has its name and is no partition of audit_log", taken.Step.Name, stamp(taken.Step.From), stamp(taken.Step.To)),
			Remedy:  fmt.Sprintf("attach it, or run `ALTER TABLE %s RENAME TO …`", name(taken.Step.Name)),
		})
	}
	return all
}

// takenIn finds the names taken in an error of Plan's, which joins one for each.
func takenIn(err error) []*NameTakenError {
	if joined, ok := err.(interface{ Unwrap() []error }); ok {
		var all []*NameTakenError
		for _, part := range joined.Unwrap() {
			all = append(all, takenIn(part)...)
		}
		return all
	}
	if taken, ok := errors.AsType[*NameTakenError](err); ok {
		return []*NameTakenError{taken}
	}
	return nil
}

// adviseStrangers: what has a partition's name, and is none? What is detached in the course of its way out is no stranger.
func adviseStrangers(s Survey, schedule Schedule, _ bool) []Advice {
	known := map[string]bool{}
	for _, w := range s.WaysOut {
		known[w.Name] = w.State == "detached"
	}
	_, err := Plan(s.Now, s.Catalog, schedule)
	for _, taken := range takenIn(err) {
		known[taken.Step.Name] = true // said already
	}
	strangers := slices.DeleteFunc(slices.Clone(s.Catalog.Others), func(name string) bool { return known[name] })
	if len(strangers) == 0 {
		return nil
	}
	return []Advice{{
		Severity: metrics.Warning, Partitions: strangers,
		Problem: fmt.Sprintf("%s named like a partition and no partition of audit_log, so queries don't see what is in it", are(strangers)),
		Remedy:  fmt.Sprintf("attach it (`auditsink partitions restore %s` where auditsink detached it), or rename or drop it", strangers[0]),
	}}
}

// adviseLeader: does anybody do the maintenance?
func adviseLeader(s Survey, _ Schedule, _ bool) []Advice {
	expired := time.Duration(s.Leader.Expired * float64(time.Second))
	if s.Leader.Term == 0 || expired < leaderless {
		return nil
	}
	return []Advice{{
		Severity: metrics.Warning,
		Problem:  fmt.Sprintf("no replica has led since %s, so nobody maintains the partitions", stamp(s.Now.Add(-expired))),
		Remedy:   "start a worker (`auditsink run`), or see in the workers' logs why none can take the lease",
	}}
}

// adviseWaysOut: what stands still on its way out?
func adviseWaysOut(s Survey, _ Schedule, enforce bool) []Advice {
	var all []Advice
	since := map[string]time.Time{}
	var waiting []string
	for _, w := range s.WaysOut {
		since[w.Name] = w.Since
		waiting = append(waiting, w.Name)
	}
	for _, b := range s.Catalog.Partitions {
		begun, ours := since[b.Name]
		if !b.Detaching || ours && s.Now.Sub(begun) < stuckAfter {
			continue
		}
		all = append(all, Advice{
			Severity: metrics.Warning, Partitions: []string{b.Name},
			Problem: fmt.Sprintf("the DETACH CONCURRENTLY of %s is pending and doesn't end: its rows can't be read through audit_log, and its range is taken", b.Name),
			Remedy: fmt.Sprintf("end the transactions that began before it (pg_stat_activity, xact_start); the leader then finishes it, or run `ALTER TABLE audit_log DETACH PARTITION %s FINALIZE`",
				name(b.Name)),
		})
	}
	if len(waiting) > 0 && !enforce {
		all = append(all, Advice{
			Severity: metrics.Warning, Partitions: waiting,
			Problem: fmt.Sprintf("%s on the way out, and nothing is removed while AUDITSINK_RETENTION_ENFORCE is false", are(waiting)),
			Remedy: "see `auditsink partitions plan`, then set AUDITSINK_RETENTION_ENFORCE=true; or withdraw a request: " +
				"`UPDATE audit_partition_event SET state = 'refused' WHERE kind = 'drop' AND state = 'requested'`",
		})
	}
	return all
}

// adviseExpired: what would go by now, if it were allowed to? And can that be told at all?
func adviseExpired(s Survey, _ Schedule, enforce bool) []Advice {
	var all []Advice
	if s.Problem != "" {
		all = append(all, Advice{
			Severity: metrics.Warning, Problem: "it can't be told what is to become of the partitions (" + s.Problem + ")",
			Remedy: "see in pg_locks who keeps readers out of a partition",
		})
	}
	var expired []string
	for _, p := range s.Stats {
		if p.Fate != nil && p.Fate.Expired(s.Now) && p.Phase == PhasePast && !enforce {
			expired = append(expired, p.Name)
		}
	}
	if len(expired) > 0 {
		all = append(all, Advice{
			Severity: metrics.Warning, Partitions: expired,
			Problem: fmt.Sprintf("%s expired, and kept since AUDITSINK_RETENTION_ENFORCE is false", are(expired)),
			Remedy:  "see `auditsink partitions plan`, then set AUDITSINK_RETENTION_ENFORCE=true",
		})
	}
	return all
}

// adviseSizes: are partitions too large? Only those that a shorter interval could still help: past ones stay as they are.
func adviseSizes(s Survey, schedule Schedule, _ bool) []Advice {
	if interval(schedule) == Day {
		return nil
	}
	var last *Stat // of the partitions that have ended
	for i, p := range s.Stats {
		if p.Phase == PhasePast && p.Rows != nil && *p.Rows > 0 && (last == nil || p.To.After(last.To)) {
			last = &s.Stats[i]
		}
	}
	for i, p := range s.Stats {
		if p.Phase != PhaseHot && &s.Stats[i] != last || !p.To.IsZero() && !p.From.IsZero() && p.To.Sub(p.From) <= 24*time.Hour {
			continue
		}
		rows := int64(0)
		if p.Rows != nil {
			rows = *p.Rows
		}
		if p.TotalBytes > oversizedBytes || rows > oversizedRows {
			return []Advice{{
				Severity: metrics.Warning, Partitions: []string{p.Name},
				Problem: fmt.Sprintf("%s is too large to be looked after in one piece (%d rows, %d GB; partitions should stay below %d rows and %d GB)",
					p.Name, rows, p.TotalBytes>>30, oversizedRows, oversizedBytes>>30),
				Remedy: "set AUDITSINK_PARTITION_INTERVAL=day; empty future months make way for days by themselves",
			}}
		}
	}
	return nil
}

// adviseStatistics: does the planner know the rows, and is room being reclaimed?
func adviseStatistics(s Survey, _ Schedule, _ bool) []Advice {
	var never, stale, dead []string
	for _, p := range s.Stats {
		if p.Phase == PhaseDetached || p.Phase == PhaseDetaching {
			continue
		}
		switch {
		case p.Rows == nil && (p.ModifiedRows > staleRows || p.TableBytes > staleBytes):
			never = append(never, p.Name)
		case p.Rows != nil && p.ModifiedRows > staleRows && p.ModifiedRows > *p.Rows/5:
			stale = append(stale, p.Name)
		}
		live := int64(0)
		if p.Rows != nil {
			live = *p.Rows
		}
		if p.DeadRows > deadRows && p.DeadRows > (live+p.DeadRows)/5 {
			dead = append(dead, p.Name)
		}
	}
	var all []Advice
	for _, a := range []struct {
		partitions      []string
		problem, remedy string
	}{
		{never, "%s not analyzed yet, so queries are planned without knowing the rows", "ANALYZE"},
		{stale, "%s changed by more than a fifth since the last ANALYZE", "ANALYZE"},
		{dead, "%s full of dead rows (over 20 %% and over 10,000)", "VACUUM (ANALYZE)"},
	} {
		if len(a.partitions) > 0 {
			all = append(all, Advice{
				Severity: metrics.Warning, Partitions: a.partitions, Problem: fmt.Sprintf(a.problem, are(a.partitions)),
				Remedy: fmt.Sprintf("run `%s %s`, and see that autovacuum is on", a.remedy, strings.Join(names(a.partitions), ", ")),
			})
		}
	}
	return all
}

// adviseIndexes: does the leader come round to building them?
func adviseIndexes(s Survey, schedule Schedule, _ bool) []Advice {
	n, since := s.ToBuild(schedule.IndexGrace)
	if n == 0 || s.Now.Sub(since) < unbuiltFor {
		return nil
	}
	var which []string
	for _, p := range s.Stats {
		if len(p.Unbuilt) > 0 && !p.Ended.Add(schedule.IndexGrace).After(s.Now) {
			which = append(which, p.Name)
		}
	}
	return []Advice{{
		Severity: metrics.Warning, Partitions: which,
		Problem: fmt.Sprintf("%d indexes wait to be built since %s: reads of %s by anything but time are slow, and nothing of it expires", n, stamp(since), strings.Join(which[:min(3, len(which))], ", ")),
		Remedy: "see in the leader's log what is left for later and why: an old transaction (pg_stat_activity, xact_start), a lock, or a name that is taken; " +
			"where nothing is, builds are slower than events come in: AUDITSINK_INDEX_PROFILE=lean has fewer",
	}}
}

// are is the names, the first ones of many, and the verb that they want.
func are(names []string) string {
	const most = 3
	switch {
	case len(names) == 1:
		return names[0] + " is"
	case len(names) <= most:
		return strings.Join(names, ", ") + " are"
	default:
		return fmt.Sprintf("%s and %d more are", strings.Join(names[:most], ", "), len(names)-most)
	}
}

func names(partitions []string) []string {
	all := make([]string, len(partitions))
	for i, p := range partitions {
		all[i] = name(p)
	}
	return all
}

var plainName = regexp.MustCompile(`^[a-z_][a-z0-9_]*$`)

// name is a table's name as SQL wants it.
func name(table string) string {
	if plainName.MatchString(table) {
		return table
	}
	return pgx.Identifier{table}.Sanitize()
}

func stamp(t time.Time) string { return t.UTC().Format(time.RFC3339) }
