package partitions

import (
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"auditsink/metrics"
)

// ahead are the partitions of now's interval and of n after it.
func ahead(now time.Time, interval Interval, n int) []Bounds {
	var all []Bounds
	start := interval.start(now)
	for i := range n + 1 {
		from := interval.add(start, i)
		all = append(all, Bounds{Name: from.Format("audit_log_2006_01_02"), From: from, To: interval.add(start, i+1)})
	}
	return all
}

// The alert, by the remaining time: whatever the month's length and the moment in it, two whole intervals after the current one are enough, one isn't.
func TestRunsOut(t *testing.T) {
	for _, interval := range []Interval{Month, Day, ""} {
		for _, now := range []string{"2026-12-31T23:30:00Z", "2024-02-29T12:00:00Z", "2027-01-31T00:00:00.000001Z", "2026-11-25T01:00:00+14:00", "2026-12-01T00:00:01Z"} {
			for n, want := range []bool{true, true, false, false} {
				require.Equal(t, want, RunsOut(at(now), ahead(at(now), interval, n), interval), "%s %s %d ahead", interval, now, n)
			}
			require.True(t, RunsOut(at(now), nil, interval))
			require.False(t, RunsOut(at(now), []Bounds{{}}, interval), "without bounds")
		}
		// Exactly two intervals are not less than two.
		require.False(t, RunsOut(at("2026-12-01"), ahead(at("2026-12-01"), interval, 1), interval))
	}
	// A hole counts, and so does what is being detached.
	holed := ahead(now, Month, 6)
	require.True(t, RunsOut(now, slices.Delete(slices.Clone(holed), 2, 3), Month))
	holed[2].Detaching = true
	require.True(t, RunsOut(now, holed, Month))
}

func TestAdvise(t *testing.T) {
	rows := func(n int64) *int64 { return &n }
	month := Schedule{Interval: Month, Ahead: 6}
	good := func() Survey {
		s := Survey{Now: now, Catalog: Catalog{Partitions: ahead(now, Month, 6)}, Leader: Leader{Term: 1, Holder: "a/1"}, StatsAt: now}
		for _, b := range append([]Bounds{{Name: "audit_log_2026_11", From: at("2026-11-01"), To: at("2026-12-01")}}, s.Catalog.Partitions...) {
			p := Stat{Bounds: b, Rows: rows(1_000_000), TotalBytes: 10 << 30, ModifiedRows: 100_000, DeadRows: 100_000}
			p.Phase = p.phase(now)
			s.Stats = append(s.Stats, p)
		}
		return s
	}
	require.Empty(t, Advise(good(), month, false))
	require.Empty(t, Advise(Survey{Now: now, Catalog: good().Catalog}, month, true), "nothing is said of what wasn't looked at")

	for name, c := range map[string]struct {
		change   func(*Survey)
		schedule Schedule
		enforce  bool
		want     []string
	}{
		"none for now": {func(s *Survey) { s.Catalog.Partitions = nil }, month, true, []string{
			"critical audit_log has no partition for events of now (2026-12-31T23:30:00Z): run `auditsink partitions apply --execute`, and see in the leader's log why it creates none",
		}},
		"runs out": {func(s *Survey) { s.Catalog.Partitions = ahead(now, Month, 1) }, month, true, []string{
			"critical audit_log has partitions until 2027-02-01T00:00:00Z only, which is in less than 2 intervals (month): run `auditsink partitions apply --execute`, and see in the leader's log why it creates none",
		}},
		"one interval ahead is never enough": {func(s *Survey) { s.Catalog.Partitions = ahead(now, Month, 1) }, Schedule{Ahead: 1}, true, []string{
			"critical audit_log has partitions until 2027-02-01T00:00:00Z only, which is in less than 2 intervals (month): set AUDITSINK_PARTITION_AHEAD to 3 or more",
		}},
		"fewer than scheduled": {func(s *Survey) { s.Catalog.Partitions = ahead(now, Month, 5) }, month, true, []string{
			"warning audit_log has partitions until 2027-06-01T00:00:00Z, fewer than the 6 intervals (month) ahead that AUDITSINK_PARTITION_AHEAD wants: see with `auditsink partitions plan` what is missing; `auditsink partitions apply --execute` creates it",
		}},
		"the interval has only begun": {func(s *Survey) {
			s.Now = at("2027-01-01T00:59:59Z") // and partitions reach to the end of June
		}, month, true, nil},
		"the interval began an hour ago": {func(s *Survey) { s.Now = at("2027-01-01T01:00:00Z") }, month, true, []string{
			"warning audit_log has partitions until 2027-07-01T00:00:00Z, fewer than the 6 intervals (month) ahead that AUDITSINK_PARTITION_AHEAD wants: see with `auditsink partitions plan` what is missing; `auditsink partitions apply --execute` creates it",
		}},
		"a default partition": {func(s *Survey) {
			s.Catalog.Partitions = append(s.Catalog.Partitions, Bounds{Name: "The Rest", Default: true})
		}, month, true, []string{
			"warning audit_log has a DEFAULT partition, The Rest, beside which no partition can be created without stopping ingest: run `ALTER TABLE audit_log DETACH PARTITION \"The Rest\"` and insert its rows into audit_log again",
		}},
		"a name is taken, and a stranger": {func(s *Survey) {
			s.Catalog = Catalog{Partitions: s.Catalog.Partitions[:6], Others: []string{"audit_log_2001_01", "audit_log_2027_06"}}
		}, month, true, []string{
			"warning audit_log has partitions until 2027-06-01T00:00:00Z, fewer than the 6 intervals (month) ahead that AUDITSINK_PARTITION_AHEAD wants: see with `auditsink partitions plan` what is missing; `auditsink partitions apply --execute` creates it",
			"warning audit_log_2027_06 is in the way of the partition for 2027-06-01T00:00:00Z to 2027-07-01T00:00:00Z: it has its name and is no partition of audit_log: attach it, or run `ALTER TABLE audit_log_2027_06 RENAME TO …`",
			"warning audit_log_2001_01 is named like a partition and no partition of audit_log, so queries don't see what is in it: attach it (`auditsink partitions restore audit_log_2001_01` where auditsink detached it), or rename or drop it",
		}},
		"detached in grace is no stranger": {func(s *Survey) {
			s.Catalog.Others = []string{"audit_log_2001_01"}
			s.WaysOut = []WayOut{{Name: "audit_log_2001_01", State: "detached", Since: now.AddDate(0, 0, -3)}}
		}, month, true, nil},
		"nobody leads": {func(s *Survey) { s.Leader.Expired = 300 }, month, true, []string{
			"warning no replica has led since 2026-12-31T23:25:00Z, so nobody maintains the partitions: start a worker (`auditsink run`), or see in the workers' logs why none can take the lease",
		}},
		"a hand-over": {func(s *Survey) { s.Leader.Expired = 299 }, month, true, nil},
		"a detach that stays": {func(s *Survey) {
			s.Catalog.Partitions = append(s.Catalog.Partitions, Bounds{Name: "a", From: at("2020-01-01"), To: at("2020-02-01"), Detaching: true},
				Bounds{Name: "b", From: at("2020-02-01"), To: at("2020-03-01"), Detaching: true}, Bounds{Name: "c", From: at("2020-03-01"), To: at("2020-04-01"), Detaching: true})
			s.WaysOut = []WayOut{{Name: "a", State: "verified", Since: now.Add(-time.Hour)}, {Name: "b", State: "verified", Since: now.Add(-time.Hour + time.Second)}}
		}, month, true, []string{
			"warning the DETACH CONCURRENTLY of a is pending and doesn't end: its rows can't be read through audit_log, and its range is taken: " +
				"end the transactions that began before it (pg_stat_activity, xact_start); the leader then finishes it, or run `ALTER TABLE audit_log DETACH PARTITION a FINALIZE`",
			"warning the DETACH CONCURRENTLY of c is pending and doesn't end: its rows can't be read through audit_log, and its range is taken: " +
				"end the transactions that began before it (pg_stat_activity, xact_start); the leader then finishes it, or run `ALTER TABLE audit_log DETACH PARTITION c FINALIZE`",
		}},
		"requests that wait": {func(s *Survey) {
			for _, name := range []string{"a", "b", "c", "d", "e"} {
				s.WaysOut = append(s.WaysOut, WayOut{Name: name, State: "requested", Since: now})
			}
		}, month, false, []string{
			"warning a, b, c and 2 more are on the way out, and nothing is removed while AUDITSINK_RETENTION_ENFORCE is false: see `auditsink partitions plan`, then set AUDITSINK_RETENTION_ENFORCE=true; or withdraw a request: " +
				"`UPDATE audit_partition_event SET state = 'refused' WHERE kind = 'drop' AND state = 'requested'`",
		}},
		"requests that are carried out": {func(s *Survey) { s.WaysOut = []WayOut{{Name: "a", State: "requested", Since: now}} }, month, true, nil},
		"expired, and kept": {func(s *Survey) {
			s.Stats[0].Fate = &Fate{Bounds: s.Stats[0].Bounds, Due: now}
			s.Stats[1].Fate = &Fate{Bounds: s.Stats[1].Bounds, Due: now.Add(1)}
		}, month, false, []string{
			"warning audit_log_2026_11 is expired, and kept since AUDITSINK_RETENTION_ENFORCE is false: see `auditsink partitions plan`, then set AUDITSINK_RETENTION_ENFORCE=true",
		}},
		"expired, and held":  {func(s *Survey) { s.Stats[0].Fate = &Fate{Due: now, Holds: []int64{1}} }, month, false, nil},
		"expired, and going": {func(s *Survey) { s.Stats[0].Fate = &Fate{Due: now} }, month, true, nil},
		"it can't be told what goes": {func(s *Survey) { s.Problem = "timeout" }, month, true, []string{
			"warning it can't be told what is to become of the partitions (timeout): see in pg_locks who keeps readers out of a partition",
		}},
		"too large": {func(s *Survey) { s.Stats[1].TotalBytes = 100<<30 + 1 }, month, true, []string{
			"warning audit_log_2026_12_01 is too large to be looked after in one piece (1000000 rows, 100 GB; partitions should stay below 100000000 rows and 100 GB): set AUDITSINK_PARTITION_INTERVAL=day; empty future months make way for days by themselves",
		}},
		"too many rows": {func(s *Survey) { s.Stats[0].Rows = rows(100_000_001) }, month, true, []string{
			"warning audit_log_2026_11 is too large to be looked after in one piece (100000001 rows, 10 GB; partitions should stay below 100000000 rows and 100 GB): set AUDITSINK_PARTITION_INTERVAL=day; empty future months make way for days by themselves",
		}},
		"large, but days already": {func(s *Survey) {
			s.Stats[0].Rows = rows(100_000_001)
			s.Catalog.Partitions = ahead(now, Month, 6)
		}, Schedule{Interval: Day, Ahead: 6}, true, nil},
		"never analyzed": {func(s *Survey) {
			s.Stats[0].Rows, s.Stats[0].Newest, s.Stats[3].Rows, s.Stats[3].ModifiedRows = nil, now, nil, 0
			s.Stats[0].DeadRows, s.Stats[3].DeadRows = 0, 0
		}, month, true, []string{
			"warning audit_log_2026_11 is not analyzed yet, so queries are planned without knowing the rows: run `ANALYZE audit_log_2026_11`, and see that autovacuum is on",
		}},
		"many modifications": {func(s *Survey) { s.Stats[0].ModifiedRows, s.Stats[2].ModifiedRows = 200_001, 200_000 }, month, true, []string{
			"warning audit_log_2026_11 is changed by more than a fifth since the last ANALYZE: run `ANALYZE audit_log_2026_11`, and see that autovacuum is on",
		}},
		"few rows, few modifications": {func(s *Survey) {
			s.Stats[0].Rows, s.Stats[0].ModifiedRows, s.Stats[0].DeadRows = rows(10), 10_000, 10_000
		}, month, true, nil},
		"dead rows": {func(s *Survey) {
			s.Stats[0].DeadRows, s.Stats[1].DeadRows, s.Stats[2].DeadRows = 250_005, 300_000, 249_995
		}, month, true, []string{
			"warning audit_log_2026_11, audit_log_2026_12_01 are full of dead rows (over 20 % and over 10,000): run `VACUUM (ANALYZE) audit_log_2026_11, audit_log_2026_12_01`, and see that autovacuum is on",
		}},
		"the worst comes first": {func(s *Survey) {
			s.Catalog.Partitions = ahead(now, Month, 0)
			s.Leader.Expired = 600
			s.Catalog.Partitions = append(s.Catalog.Partitions, Bounds{Name: "d", Default: true})
		}, month, true, []string{
			"critical audit_log has partitions until 2027-01-01T00:00:00Z only, which is in less than 2 intervals (month): run `auditsink partitions apply --execute`, and see in the leader's log why it creates none",
			"warning audit_log has a DEFAULT partition, d, beside which no partition can be created without stopping ingest: run `ALTER TABLE audit_log DETACH PARTITION d` and insert its rows into audit_log again",
			"warning no replica has led since 2026-12-31T23:20:00Z, so nobody maintains the partitions: start a worker (`auditsink run`), or see in the workers' logs why none can take the lease",
		}},
	} {
		t.Run(name, func(t *testing.T) {
			s := good()
			c.change(&s)
			var got []string
			worst := metrics.Healthy
			for _, a := range Advise(s, c.schedule, c.enforce) {
				got = append(got, string(a.Severity)+" "+a.String())
				worst = worse(worst, a.Severity)
			}
			require.Equal(t, c.want, got)
			h := health(s, c.schedule, c.enforce)
			require.Equal(t, worst, h.Status)
			require.Len(t, h.Recommendations, len(c.want))
		})
	}
}
