package partitions

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strconv"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/stretchr/testify/require"
)

const day = 24 * time.Hour

// TestTenYears lives through ten years with two replicas that come, go, crash in the middle of a round and lead both at once, while events arrive
// (late ones too), policies are edited, and holds are placed and released. What must be there and what must be gone is reckoned here, from the
// rows alone.
func TestTenYears(t *testing.T) {
	t.Parallel()
	versions(t, func(t *testing.T, db string) {
		seed := uint64(time.Now().UnixNano()) // told, to repeat a run
		t.Logf("seed %d", seed)
		d := &decade{
			T: t, rng: rand.New(rand.NewPCG(seed, 0)), db: open(t, db), now: at("2016-09-30T13:30:00Z"),
			schedule: Schedule{Interval: Month, Ahead: 6}, retention: Retention{Enforce: true, MinDays: 30, Grace: 7 * day},
			policies: map[string]int{"standard": 500, "phi_extended": 500, "confidential": 300, "minimal": 90}, inactive: map[string]int{},
		}
		exec(t, d.db, `UPDATE audit_retention_policy SET retention_days = CASE policy_name WHEN 'minimal' THEN 90 WHEN 'confidential' THEN 300 ELSE 500 END`)
		d.takeOver()
		d.cleanRound()
		// Removal goes by the earlier of the two clocks, so this one has to stay behind the database's.
		for d.now.Before(at("2026-10-01")) {
			d.step()
		}
		t.Logf("%d rounds, %d of them cut short or deposed; %d events, %d of them gone by now; %d holds; %d partitions dropped",
			d.rounds, d.cut, len(d.rows), d.gone(), len(d.holds),
			column[int](t, d.db, `SELECT count(*) FROM audit_partition_event WHERE kind = 'drop' AND state = 'done'`)[0])
		require.Greater(t, d.gone(), len(d.rows)/4, "much must have gone in ten years, else nothing was tested")
		require.Greater(t, d.cut, 5)
	})
}

// decade is the world of TestTenYears. One goroutine lives in it.
type decade struct {
	*testing.T
	rng       *rand.Rand
	db        *pgxpool.Pool
	now       time.Time
	schedule  Schedule
	retention Retention
	terms     []Term // of those who think that they lead, the last one rightly

	policies    map[string]int // days, of the active ones
	inactive    map[string]int
	rows        []*decadeRow
	holds       []*decadeHold
	rounds, cut int
	did         []string  // by the last round
	cleanAt     time.Time // the last whole round
}

type decadeRow struct {
	id           int64
	at           time.Time
	policy       string // empty for null
	organization string
	gone         bool
}

type decadeHold struct {
	id           int64
	from, until  time.Time
	organization string // empty for any
	released     bool
}

// days is what a policy means by the rules: a number is that many days, and what isn't known counts as the longest.
func (d *decade) days(policy string) int {
	days, known := d.policies[policy]
	if n, err := strconv.Atoi(policy); err == nil {
		days, known = n, true
	}
	if !known {
		for _, n := range d.policies {
			days = max(days, n)
		}
		for _, n := range d.inactive {
			days = max(days, n)
		}
	}
	return max(days, d.retention.MinDays)
}

func (d *decade) expired(r *decadeRow) bool {
	return !r.at.Add(time.Duration(d.days(r.policy)) * day).After(d.now)
}

func (h *decadeHold) covers(r *decadeRow) bool {
	return !h.released && !r.at.Before(h.from) && r.at.Before(h.until) && (h.organization == "" || h.organization == r.organization)
}

func (d *decade) held(r *decadeRow) bool {
	return slices.ContainsFunc(d.holds, func(h *decadeHold) bool { return h.covers(r) })
}

func (d *decade) gone() (n int) {
	for _, r := range d.rows {
		if r.gone {
			n++
		}
	}
	return n
}

// step lets time pass, sees that it passed well, and lets some of what may happen happen.
func (d *decade) step() {
	before := d.now
	pause := time.Duration(d.rng.Int64N(int64(30 * day)))
	if d.schedule.Interval == Day {
		pause = time.Duration(d.rng.Int64N(int64(4 * day)))
	}
	d.now = d.now.Add(pause)
	all, err := List(d.Context(), d.db)
	require.NoError(d, err)
	require.False(d, ReadyUntil(before, all).Before(d.now), "at some moment from %s to %s there was no partition", before, d.now)

	for range 1 + d.rng.IntN(4) {
		d.event(d.now.Add(-time.Duration(d.rng.Int64N(int64(time.Hour)))))
	}
	switch d.rng.IntN(8) {
	case 0: // a late event
		d.event(d.now.Add(-time.Duration(d.rng.Int64N(int64(600 * day)))))
	case 1:
		d.editPolicy()
	case 2:
		d.changeHolds()
	case 3:
		if d.schedule.Interval == Day || d.rng.IntN(3) == 0 {
			d.changeInterval()
		}
	}
	// An outage of all replicas that is longer than what was created ahead is another story.
	chance := 6
	if outage := d.now.Sub(d.cleanAt); outage > 90*day || d.schedule.Interval == Day && outage > 2*day {
		chance = 1
	}
	switch d.rng.IntN(chance) {
	case 0:
		d.takeOver() // the other replica, or this one after a restart
		d.cleanRound()
	case 1:
		d.crashedRound()
		d.look(false)
	case 2:
		d.takeOver()
		d.twoLeaders()
		d.look(false)
	case 3: // nobody maintains anything for now
	default:
		d.cleanRound()
	}
	if d.rng.IntN(12) == 0 {
		d.reckon()
	}
}

// event stores a row as the sink does: a missing partition is asked for.
func (d *decade) event(at time.Time) {
	policies := []string{"standard", "phi_extended", "confidential", "minimal", "", "unheard of", "7", "45", "200", "700"}
	r := &decadeRow{at: at.Truncate(time.Microsecond), policy: policies[d.rng.IntN(len(policies))], organization: fmt.Sprint("o", d.rng.IntN(20))}
	for attempt := 0; ; attempt++ {
		err := d.db.QueryRow(d.Context(), `INSERT INTO audit_log (timestamp, action, status, retention_policy, organization_id)
			VALUES ($1, 'a', 'success', nullif($2, ''), $3) RETURNING id`, r.at, r.policy, r.organization).Scan(&r.id)
		if err == nil {
			break
		}
		var pg *pgconn.PgError
		require.ErrorAs(d, err, &pg)
		require.Equal(d, "23514", pg.Code)
		require.NotEqual(d, 5, attempt, "no partition for %s", r.at)
		_, err = EnsureFor(d.Context(), d.db, d.now, 2555*day, d.schedule, []time.Time{r.at})
		require.NoError(d, err)
	}
	d.rows = append(d.rows, r)
}

func (d *decade) editPolicy() {
	names := []string{"standard", "phi_extended", "confidential", "minimal"}
	name, days := names[d.rng.IntN(len(names))], 20+d.rng.IntN(600)
	active := d.rng.IntN(5) > 0 || name == "standard"
	exec(d.T, d.db, `UPDATE audit_retention_policy SET delete_after_days = $2, is_active = $3, updated_at = now() WHERE policy_name = $1`, name, days, active)
	delete(d.policies, name)
	delete(d.inactive, name)
	if active {
		d.policies[name] = days
	} else {
		d.inactive[name] = days
	}
}

func (d *decade) changeHolds() {
	for _, h := range d.holds {
		if !h.released && d.rng.IntN(2) == 0 {
			exec(d.T, d.db, `UPDATE audit_legal_hold SET released_at = now(), released_by = 'test', release_reason = 'settled' WHERE id = $1`, h.id)
			h.released = true
		}
	}
	h := &decadeHold{from: d.now.Add(-time.Duration(d.rng.Int64N(int64(700 * day)))).Truncate(time.Microsecond)}
	h.until = h.from.Add(time.Duration(1 + d.rng.Int64N(int64(90*day)))).Truncate(time.Microsecond).Add(time.Microsecond)
	if d.rng.IntN(2) == 0 {
		h.organization = fmt.Sprint("o", d.rng.IntN(20))
	}
	require.NoError(d, d.db.QueryRow(d.Context(), `INSERT INTO audit_legal_hold (held_from, held_until, organization_id, reason)
		VALUES ($1, $2, nullif($3, ''), 'case') RETURNING id`, h.from, h.until, h.organization).Scan(&h.id))
	d.holds = append(d.holds, h)
}

func (d *decade) changeInterval() {
	if d.schedule.Interval == Month {
		d.schedule.Interval = Day
	} else {
		d.schedule.Interval = Month
	}
	d.cleanRound() // a restart with the new setting begins with a round
}

// takeOver makes another replica the leader; the one before doesn't know yet.
func (d *decade) takeOver() {
	term := Term{Holder: fmt.Sprint("replica ", len(d.terms)%2)}
	require.NoError(d, d.db.QueryRow(d.Context(), `UPDATE audit_leader SET term = term + 1, holder = $1 RETURNING term`, term.Holder).Scan(&term.Number))
	d.terms = append(d.terms, term)
}

func (d *decade) round(ctx context.Context, term Term) error {
	d.rounds++
	m := Maintenance{DB: d.db, Schedule: d.schedule, Retention: d.retention, Now: func() time.Time { return d.now }}
	did, err := m.Round(ctx, term)
	d.did = append(d.did[:0], fmt.Sprint(d.now, did))
	return err
}

func (d *decade) cleanRound() {
	require.NoError(d, d.round(d.Context(), d.terms[len(d.terms)-1]))
	d.cleanAt = d.now
	d.look(true)
}

// crashedRound is cut short somewhere.
func (d *decade) crashedRound() {
	ctx, cancel := context.WithTimeout(d.Context(), time.Duration(d.rng.Int64N(int64(60*time.Millisecond))))
	defer cancel()
	if err := d.round(ctx, d.terms[len(d.terms)-1]); err != nil {
		require.Error(d, ctx.Err(), "%v", err)
		d.cut++
	}
}

// twoLeaders has a deposed leader and its successor work at the same time.
func (d *decade) twoLeaders() {
	deposed := make(chan error, 1)
	old, m := d.terms[len(d.terms)-2], Maintenance{DB: d.db, Schedule: d.schedule, Retention: d.retention, Now: func() time.Time { return d.now }}
	go func() { _, err := m.Round(d.Context(), old); deposed <- err }()
	err := d.round(d.Context(), d.terms[len(d.terms)-1])
	if err != nil {
		d.cut++
		d.Logf("the leader beside a deposed one: %v", err) // each may hold a lock for a moment that the other wants; the next round goes on
	}
	if err := <-deposed; errors.Is(err, ErrDeposed) {
		d.cut++
	}
}

// look compares what is there with what must be. After a whole round what must be kept must also be readable.
func (d *decade) look(whole bool) {
	readable := map[int64]bool{}
	for _, id := range column[int64](d.T, d.db, `SELECT id FROM audit_log`) {
		require.False(d, readable[id], "row %d is there twice", id)
		readable[id] = true
	}
	there := map[int64]bool{}
	for _, table := range column[string](d.T, d.db, `
		SELECT oid::regclass::text FROM pg_class WHERE relkind = 'r' AND relname ~ '^audit_log_[0-9]' AND relnamespace = current_schema()::regnamespace`) {
		for _, id := range column[int64](d.T, d.db, `SELECT id FROM ONLY `+table) {
			require.False(d, there[id], "row %d is there twice", id)
			there[id] = true
		}
	}
	for _, r := range d.rows {
		mustStay := !d.expired(r) || d.held(r)
		switch {
		case r.gone:
			require.False(d, there[r.id], "row %d came back", r.id)
		case !there[r.id]:
			require.False(d, mustStay, "row %d of %s with policy %q is gone at %s", r.id, r.at, r.policy, d.now)
			r.gone = true
		case mustStay && whole:
			require.True(d, readable[r.id], "row %d of %s is out of reach at %s", r.id, r.at, d.now)
		}
	}
}

// reckon sees that everything that had to go is gone, once the grace period is over.
func (d *decade) reckon() {
	d.cleanRound()
	d.cleanRound() // what rows went from in the first may be empty by now
	due := d.due()
	d.now = d.now.Add(d.retention.Grace + time.Hour)
	d.cleanRound()
	for _, name := range due {
		if slices.Contains(d.due(), name) { // a late event would have brought it back
			require.Empty(d, column[string](d.T, d.db, `SELECT relname::text FROM pg_class WHERE relname = $1 AND relkind = 'r'`, name), "at %s, %s", d.now, d.did)
		}
	}
	for _, r := range d.rows {
		if !r.gone && !d.held(r) {
			// Rows go one by one at the end of the day; a partition that has expired by then takes what is left with it, after its grace period.
			require.False(d, d.expired(r) && r.at.Add(time.Duration(d.days(r.policy))*day+day+d.retention.Grace+time.Hour).Before(d.now),
				"row %d of %s with policy %q, expired and under no hold, is still there at %s", r.id, r.at, r.policy, d.now)
		}
	}
	d.look(true)
}

// due lists the tables, partitions or detached, that must go by the rules.
func (d *decade) due() []string {
	type table struct {
		name     string
		from, to time.Time
	}
	var due []string
	rows, err := d.db.Query(d.Context(), `
		SELECT DISTINCT ON (partition_name) partition_name, lower_bound, upper_bound FROM audit_partition_event WHERE kind = 'create' ORDER BY partition_name, id DESC`)
	require.NoError(d, err)
	defer rows.Close()
	for rows.Next() {
		var p table
		require.NoError(d, rows.Scan(&p.name, &p.from, &p.to))
		longest, held := d.retention.MinDays, false
		for _, h := range d.holds {
			held = held || !h.released && h.organization == "" && h.from.Before(p.to) && h.until.After(p.from)
		}
		for _, r := range d.rows {
			if !r.gone && !r.at.Before(p.from) && r.at.Before(p.to) {
				longest, held = max(longest, d.days(r.policy)), held || d.held(r)
			}
		}
		if !held && !p.to.Add(time.Duration(longest)*day).After(d.now) {
			due = append(due, p.name)
		}
	}
	require.NoError(d, rows.Err())
	return due
}
