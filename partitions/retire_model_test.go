package partitions

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"net"
	"slices"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"
)

// saboteur breaks a connection at the nth time something is sent: before it is sent, or when the answer is there, so that what was asked happened and
// nobody was told.
type saboteur struct {
	mu    sync.Mutex // guards what follows
	after int        // 0: never
	late  bool
}

func (s *saboteur) arm(after int, late bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.after, s.late = after, late
}

// strikes tells whether now is the time.
func (s *saboteur) strikes() (now, late bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.after == 0 {
		return false, false
	}
	s.after--
	return s.after == 0, s.late
}

var errSabotage = errors.New("the connection broke (by the test)")

type frailConn struct {
	net.Conn
	saboteur *saboteur
	mu       sync.Mutex // guards doomed
	doomed   bool
}

func (c *frailConn) Write(p []byte) (int, error) {
	if now, late := c.saboteur.strikes(); now && !late {
		return 0, errors.Join(errSabotage, c.Close())
	} else if now {
		c.mu.Lock()
		c.doomed = true
		c.mu.Unlock()
	}
	return c.Conn.Write(p)
}

func (c *frailConn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.doomed {
		return 0, errors.Join(errSabotage, c.Close())
	}
	return n, err
}

// openFrail opens a pool whose connections the saboteur can break.
func openFrail(t *testing.T, url string, s *saboteur) *pgxpool.Pool {
	t.Helper()
	cfg, err := pgxpool.ParseConfig(url)
	require.NoError(t, err)
	cfg.MaxConns = 3
	cfg.ConnConfig.DialFunc = func(ctx context.Context, network, addr string) (net.Conn, error) {
		conn, err := (&net.Dialer{}).DialContext(ctx, network, addr)
		return &frailConn{Conn: conn, saboteur: s}, err
	}
	pool, err := pgxpool.NewWithConfig(t.Context(), cfg)
	require.NoError(t, err)
	t.Cleanup(pool.Close)
	return pool
}

// The oracle knows the rows, policies and holds, and does its own arithmetic.
type oracleRow struct {
	id        int64
	at        time.Time
	policy    string // "": none
	org, corr string
}

type oracleHold struct {
	id          int64
	from, until time.Time
	org, corr   string
}

type oracle struct {
	least    int
	policies map[string]int // active
	inactive map[string]int
	rows     map[int64]oracleRow
	holds    []oracleHold
	gone     int64
}

// days is for how long a row is kept; 0: for ever.
func (o *oracle) days(policy string) int {
	days := 0
	if n, err := strconv.Atoi(policy); err == nil {
		days = n
	} else if n, ok := o.policies[policy]; ok {
		days = n
	} else {
		for _, n := range o.policies {
			days = max(days, n)
		}
		for _, n := range o.inactive {
			if days > 0 {
				days = max(days, n)
			}
		}
	}
	if days == 0 {
		return 0
	}
	return max(days, o.least)
}

func (o *oracle) expired(r oracleRow, now time.Time) bool {
	days := o.days(r.policy)
	return days > 0 && now.Sub(r.at) >= time.Duration(days)*24*time.Hour
}

func (h oracleHold) holds(r oracleRow) bool {
	return (h.from.IsZero() || !r.at.Before(h.from)) && (h.until.IsZero() || r.at.Before(h.until)) && (h.org == "" || h.org == r.org) && (h.corr == "" || h.corr == r.corr)
}

func (o *oracle) held(r oracleRow) bool {
	return slices.ContainsFunc(o.holds, func(h oracleHold) bool { return h.holds(r) })
}

// due tells whether a partition may go: all its rows have expired, and nothing holds it.
func (o *oracle) due(b Bounds, now time.Time) bool {
	longest := o.least
	for _, r := range o.rows {
		if r.at.Before(b.From) || !r.at.Before(b.To) {
			continue
		}
		days := o.days(r.policy)
		if days == 0 || o.held(r) {
			return false
		}
		longest = max(longest, days)
	}
	for _, h := range o.holds {
		if h.org == "" && h.corr == "" && (h.from.IsZero() || h.from.Before(b.To)) && (h.until.IsZero() || h.until.After(b.From)) {
			return false
		}
	}
	return !b.To.AddDate(0, 0, longest).After(now)
}

// world is a database with its oracle, two who may lead it, and connections that break.
type world struct {
	rt       *rapid.T
	t        *testing.T
	db       *pgxpool.Pool // doesn't break
	frail    *pgxpool.Pool
	saboteur *saboteur
	o        *oracle
	now      time.Time
	terms    [2]Term
}

func (w *world) exec(sql string, args ...any) {
	_, err := w.db.Exec(w.t.Context(), sql, args...)
	require.NoError(w.rt, err)
}

func one[T any](w *world, sql string, args ...any) T {
	rows, err := w.db.Query(w.t.Context(), sql, args...)
	require.NoError(w.rt, err)
	v, err := pgx.CollectExactlyOneRow(rows, pgx.RowTo[T])
	require.NoError(w.rt, err)
	return v
}

func many[T any](w *world, sql string, args ...any) []T {
	rows, err := w.db.Query(w.t.Context(), sql, args...)
	require.NoError(w.rt, err)
	v, err := pgx.CollectRows(rows, pgx.RowTo[T])
	require.NoError(w.rt, err)
	return v
}

// tables are the partitions, and what was detached.
const tables = `SELECT relname::text FROM pg_class WHERE relname ~ '^audit_log_[0-9]' AND relkind = 'r' ORDER BY 1`

func newWorld(t *testing.T, rt *rapid.T, db, frail *pgxpool.Pool, s *saboteur) *world {
	w := &world{
		rt: rt, t: t, db: db, frail: frail, saboteur: s, now: at("2015-06-01"),
		o: &oracle{least: 30, policies: map[string]int{"standard": 120, "minimal": 40}, rows: map[int64]oracleRow{}},
	}
	s.arm(0, false)
	w.settle()
	for _, table := range many[string](w, tables) {
		if one[bool](w, `SELECT EXISTS (SELECT FROM audit_log_partition_bounds() WHERE partition_name = $1 AND is_detaching)`, table) {
			w.exec(`ALTER TABLE audit_log DETACH PARTITION ` + table + ` FINALIZE`)
		}
		w.exec(`DROP TABLE ` + table)
	}
	w.exec(`DELETE FROM audit_partition_event; DELETE FROM audit_legal_hold; DELETE FROM audit_retention_policy;
		INSERT INTO audit_retention_policy (policy_name, retention_days, data_classification) VALUES ('standard', 120, 'INTERNAL'), ('minimal', 40, 'PUBLIC')`)
	w.elect(0)
	w.elect(1)
	for m := range 4 {
		from := at("2015-01-01").AddDate(0, m, 0)
		w.exec(`SELECT create_audit_log_partition($1, $2, $3)`, from.Format("audit_log_2006_01"), from, from.AddDate(0, 1, 0))
	}
	for range rapid.IntRange(0, 12).Draw(rt, "rows") {
		w.insert()
	}
	return w
}

// settle waits until no session does anything: a connection that broke may have left a statement that goes on.
func (w *world) settle() {
	require.Eventually(w.rt, func() bool {
		return one[int](w, `SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND backend_type = 'client backend' AND pid <> pg_backend_pid() AND state <> 'idle'`) == 0
	}, testTimeout, time.Millisecond)
}

func (w *world) elect(who int) {
	name := fmt.Sprint("leader ", who)
	w.terms[who] = Term{Number: one[int64](w, `UPDATE audit_leader SET holder = $1, term = term + 1 RETURNING term`, name), Holder: name}
}

func (w *world) insert() {
	r := oracleRow{
		at:     at("2015-01-01").Add(time.Duration(rapid.IntRange(0, 119).Draw(w.rt, "day"))*24*time.Hour + time.Duration(rapid.IntRange(0, 86399).Draw(w.rt, "second"))*time.Second),
		policy: rapid.SampledFrom([]string{"standard", "minimal", "90", "31", "1", "unknown", ""}).Draw(w.rt, "policy"),
		org:    rapid.SampledFrom([]string{"", "o", "p"}).Draw(w.rt, "organization"), corr: rapid.SampledFrom([]string{"", "c"}).Draw(w.rt, "correlation"),
	}
	for {
		err := w.db.QueryRow(w.t.Context(), `INSERT INTO audit_log (timestamp, action, status, retention_policy, organization_id, correlation_id)
			VALUES ($1, 'a', 'success', nullif($2, ''), nullif($3, ''), nullif($4, '')) RETURNING id`, r.at, r.policy, r.org, r.corr).Scan(&r.id)
		if pg, ok := errors.AsType[*pgconn.PgError](err); ok && pg.Code == "23514" {
			_, err := EnsureFor(w.t.Context(), w.db, w.now, 365*24*time.Hour, Schedule{}, []time.Time{r.at})
			require.NoError(w.rt, err)
			continue
		}
		require.NoError(w.rt, err)
		break
	}
	w.o.rows[r.id] = r
}

func (w *world) edit() {
	name := rapid.SampledFrom([]string{"standard", "minimal"}).Draw(w.rt, "name")
	days, active := rapid.IntRange(20, 200).Draw(w.rt, "days"), rapid.IntRange(0, 3).Draw(w.rt, "active") > 0
	if rapid.Bool().Draw(w.rt, "as delete_after_days") {
		w.exec(`UPDATE audit_retention_policy SET retention_days = 5000, delete_after_days = $2, is_active = $3 WHERE policy_name = $1`, name, days, active)
	} else {
		w.exec(`UPDATE audit_retention_policy SET retention_days = $2, delete_after_days = NULL, is_active = $3 WHERE policy_name = $1`, name, days, active)
	}
	if w.o.inactive == nil {
		w.o.inactive = map[string]int{}
	}
	delete(w.o.policies, name)
	delete(w.o.inactive, name)
	if active {
		w.o.policies[name] = days
	} else {
		w.o.inactive[name] = days
	}
}

func (w *world) hold() {
	h := Hold{Reason: "r"}
	if rapid.Bool().Draw(w.rt, "from") {
		h.From = at("2015-01-01").AddDate(0, 0, rapid.IntRange(0, 119).Draw(w.rt, "day"))
	}
	if rapid.Bool().Draw(w.rt, "until") {
		h.Until = at("2015-05-01").AddDate(0, 0, rapid.IntRange(1, 30).Draw(w.rt, "day"))
	}
	o := oracleHold{from: h.From, until: h.Until}
	if rapid.IntRange(0, 2).Draw(w.rt, "organization") > 0 {
		o.org = rapid.SampledFrom([]string{"o", "p"}).Draw(w.rt, "which")
		h.Organization = &o.org
	}
	if rapid.Bool().Draw(w.rt, "correlation") {
		o.corr = "c"
		h.Correlation = &o.corr
	}
	placed, err := PlaceHold(w.t.Context(), w.db, h, "me")
	require.NoError(w.rt, err)
	o.id = placed.ID
	w.o.holds = append(w.o.holds, o)
}

func (w *world) release() {
	if len(w.o.holds) == 0 {
		return
	}
	i := rapid.IntRange(0, len(w.o.holds)-1).Draw(w.rt, "which")
	_, err := ReleaseHold(w.t.Context(), w.db, w.o.holds[i].id, "over", "me")
	require.NoError(w.rt, err)
	w.o.holds = slices.Delete(w.o.holds, i, i+1)
}

// lead lets one of the two do a round, who need not be the leader any more, while something may break.
func (w *world) lead() {
	who := rapid.IntRange(0, 1).Draw(w.rt, "who")
	breaks := rapid.Bool().Draw(w.rt, "breaks")
	if breaks {
		w.saboteur.arm(rapid.IntRange(1, 60).Draw(w.rt, "after"), rapid.Bool().Draw(w.rt, "late"))
	}
	w.settle()
	before := w.state()
	_, err := Retire(w.t.Context(), w.frail, w.terms[who], w.now, enforced)
	if err == nil && rapid.Bool().Draw(w.rt, "expire") {
		_, err = Expire(w.t.Context(), w.frail, w.terms[who], w.now, enforced)
	}
	w.saboteur.arm(0, false)
	if w.terms[who].Number < w.terms[1-who].Number {
		require.Equal(w.rt, before, w.state(), "a leader that isn't one any more changed something")
	} else if !breaks {
		require.NoError(w.rt, err)
	}
}

// state is what a leader can change.
func (w *world) state() string {
	w.settle()
	return one[string](w, `SELECT concat((SELECT string_agg(b::text, ' ') FROM audit_log_partition_bounds() b), (SELECT count(*) FROM audit_log),
		(SELECT string_agg(e::text, ' ' ORDER BY id) FROM audit_partition_event e), (SELECT string_agg(t.relname, ' ' ORDER BY 1) FROM (`+tables+`) t))`)
}

func (w *world) removeEmpty() {
	existing, err := List(w.t.Context(), w.db)
	require.NoError(w.rt, err)
	if rapid.Bool().Draw(w.rt, "breaks") {
		w.saboteur.arm(rapid.IntRange(1, 60).Draw(w.rt, "after"), rapid.Bool().Draw(w.rt, "late"))
	}
	_, _ = RemoveEmpty(w.t.Context(), w.frail, w.terms[0], existing, "a test") // it may break, or be deposed
	w.saboteur.arm(0, false)
}

// zombie is a DETACH that was decided on when a partition was on its way out, and comes late.
func (w *world) zombie() {
	names := many[string](w, `SELECT DISTINCT b.partition_name FROM audit_log_partition_bounds() b JOIN audit_partition_event e USING (partition_name)
		WHERE e.kind = 'drop' AND NOT EXISTS (SELECT FROM audit_log_partition_bounds() WHERE is_detaching)
		  AND NOT EXISTS (SELECT FROM audit_partition_event l WHERE l.partition_name = e.partition_name AND l.kind = 'drop' AND l.state = 'done') ORDER BY 1`)
	if len(names) > 0 {
		w.exec(`ALTER TABLE audit_log DETACH PARTITION ` + rapid.SampledFrom(names).Draw(w.rt, "partition") + ` CONCURRENTLY`)
	}
}

func (w *world) restore() {
	names := many[string](w, tables)
	if len(names) == 0 {
		return
	}
	restored, err := Restore(w.t.Context(), w.db, rapid.SampledFrom(names).Draw(w.rt, "partition"), "why", "me")
	require.NoError(w.rt, err)
	if restored.Hold != nil {
		w.o.holds = append(w.o.holds, oracleHold{id: restored.Hold.ID, from: restored.Hold.From, until: restored.Hold.Until})
	}
}

// look requires that only what may go has gone, and that what has gone is on record.
func (w *world) look() {
	w.settle()
	there := map[int64]bool{}
	for _, table := range many[string](w, tables) {
		for _, id := range many[int64](w, `SELECT id FROM `+table) {
			require.False(w.rt, there[id], "row %d is there twice", id)
			there[id] = true
		}
	}
	for id, r := range w.o.rows {
		if there[id] {
			continue
		}
		require.True(w.rt, w.o.expired(r, w.now), "a row is gone that hasn't expired by %s: %+v", w.now, r)
		require.False(w.rt, w.o.held(r), "a row is gone that is held: %+v", r)
		delete(w.o.rows, id)
		w.o.gone++
	}
	require.Len(w.rt, there, len(w.o.rows))
	require.Equal(w.rt, w.o.gone, one[int64](w, `SELECT coalesce(sum(row_count), 0)::bigint FROM audit_partition_event WHERE kind = 'drop' AND state = 'done' OR kind = 'expire'`),
		"rows gone, and rows on record as gone")
}

// finish lets the leader do rounds without a fault, and requires that everything goes that shall.
func (w *world) finish() {
	who := 0
	if w.terms[1].Number > w.terms[0].Number {
		who = 1
	}
	w.settle()
	round := func() {
		done, err := Retire(w.t.Context(), w.frail, w.terms[who], w.now, enforced)
		require.NoError(w.rt, err, "%v", done)
		_, err = Expire(w.t.Context(), w.frail, w.terms[who], w.now, enforced)
		require.NoError(w.rt, err)
		w.look()
	}
	round() // finishes what was half done
	round() // what was attached again, and is due
	existing := map[string]Bounds{}
	var detached []string
	fates, err := Outlook(w.t.Context(), w.db, w.now, enforced)
	require.NoError(w.rt, err)
	for _, f := range fates {
		existing[f.Name] = f.Bounds
		require.Equal(w.rt, w.o.due(f.Bounds, w.now), f.Expired(w.now), "%+v", f)
		require.Equal(w.rt, w.o.due(f.Bounds, w.now), f.State == Detached, "%+v", f)
		if f.State == Detached {
			require.True(w.rt, f.DropAfter.After(w.now), "%+v", f)
			detached = append(detached, f.Name)
		}
	}
	require.Len(w.rt, many[string](w, tables), len(existing), "a table is left that nobody looks after")
	for _, r := range w.o.rows {
		if w.o.expired(r, w.now.AddDate(0, 0, -1)) && !w.o.held(r) {
			require.Contains(w.rt, detached, monthOf(r.at).Format("audit_log_2006_01"), "a row is left that has expired: %+v", r)
		}
	}
	w.now = w.now.Add(enforced.Grace)
	round()
	for _, name := range detached {
		require.NotContains(w.rt, many[string](w, tables), name)
	}
	require.Zero(w.rt, one[int](w, `SELECT count(*) FROM audit_partition_event WHERE kind = 'expire' AND state <> 'done'`))
}

// TestRetireModel: whatever happens between the rounds and breaks in them, no row goes that hasn't expired or is held, what goes is on record, and in the end
// all goes that shall.
func TestRetireModel(t *testing.T) {
	checks := flag.Lookup("rapid.checks").Value.String()
	if checks == "100" { // each takes about a second
		require.NoError(t, flag.Set("rapid.checks", "25"))
		t.Cleanup(func() { require.NoError(t, flag.Set("rapid.checks", checks)) })
	}
	versions(t, func(t *testing.T, url string) {
		s := &saboteur{}
		db, frail := open(t, url), openFrail(t, url, s)
		rapid.Check(t, func(rt *rapid.T) {
			w := newWorld(t, rt, db, frail, s)
			for range rapid.IntRange(5, 25).Draw(rt, "steps") {
				switch rapid.IntRange(0, 19).Draw(rt, "what") {
				case 0, 1, 2:
					w.insert()
				case 3, 4:
					w.edit()
				case 5, 6:
					w.hold()
				case 7, 8:
					w.release()
				case 9:
					w.elect(rapid.IntRange(0, 1).Draw(rt, "who"))
				case 10:
					w.restore()
				case 11:
					w.zombie()
				case 12:
					w.removeEmpty()
				case 13, 14:
					w.now = w.now.AddDate(0, 0, rapid.IntRange(0, 45).Draw(rt, "days"))
				default:
					w.lead()
				}
				w.look()
			}
			w.finish()
		})
	})
}
