package partitions

import (
	"context"
	"maps"
	"os"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/stretchr/testify/require"
	"golang.org/x/sync/errgroup"
)

// modes are Postgres's table locks, from weak to strong, as its documentation calls them.
var modes = []string{
	"", "ACCESS SHARE", "ROW SHARE", "ROW EXCLUSIVE", "SHARE UPDATE EXCLUSIVE", "SHARE", "SHARE ROW EXCLUSIVE", "EXCLUSIVE", "ACCESS EXCLUSIVE",
}

// locked is the strongest lock on each relation: audit_log, "partition" for all partitions, and our other tables by name.
type locked map[string]string

func (l locked) add(relation, mode string) {
	if strings.HasPrefix(relation, "audit_log_") {
		relation = "partition"
	}
	mode = strings.ToUpper(strings.TrimSpace(regexp.MustCompile(`([A-Z])`).ReplaceAllString(strings.TrimSuffix(mode, "Lock"), " $1")))
	if slices.Index(modes, mode) > slices.Index(modes, l[relation]) {
		l[relation] = mode
	}
}

// String is a row of the table in docs/partitions.md.
func (l locked) String() string {
	cell := func(mode string) string {
		if mode == "" {
			return "-"
		}
		return mode
	}
	var others []string
	for _, relation := range slices.Sorted(maps.Keys(l)) {
		if relation != "audit_log" && relation != "partition" && l[relation] != "ACCESS SHARE" {
			others = append(others, relation+": "+l[relation])
		}
	}
	return cell(l["audit_log"]) + " | " + cell(l["partition"]) + " | " + cell(strings.Join(others, ", "))
}

// lockTracer looks from a second session, after each statement of a transaction, which tables the transaction has locked. The steps it knows by
// what their statements say.
type lockTracer struct {
	t    *testing.T
	side *pgx.Conn

	mu    sync.Mutex // guards what follows, and side
	text  map[*pgx.Conn]string
	locks map[*pgx.Conn]locked
	steps map[string]locked
}

// What a transaction is known by; the first that fits.
var knownBy = []struct{ step, text string }{
	{"create a partition and attach it", `create_audit_log_partition\(`},
	{"finish an interrupted detach (FINALIZE)", `FINALIZE`},
	{"attach again (restore)", `ATTACH PARTITION`},
	{"drop", `DROP TABLE`},
	{"remove expired rows, a batch", `DELETE FROM`},
	{"put a removal of rows on record", `'expire', `},
	{"verify before the detach", `VALUES \(\$1, 'drop'`},
	{"look again at what is detached", `IN SHARE MODE`},
	{"set autovacuum's settings", `SET \(autovacuum`},
	{"analyze audit_log (18)", `ANALYZE ONLY audit_log`},
	{"analyze a partition", `ANALYZE "audit_log_`},
	{"summarize a BRIN", `brin_summarize_new_values`},
	{"renew the lease", `UPDATE audit_leader`},
	{"place a legal hold", `INSERT INTO audit_legal_hold`},
	{"release a legal hold", `UPDATE audit_legal_hold`},
}

func (l *lockTracer) TraceQueryStart(ctx context.Context, conn *pgx.Conn, data pgx.TraceQueryStartData) context.Context {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.text[conn] += data.SQL + "\n"
	return ctx
}

func (l *lockTracer) TraceQueryEnd(_ context.Context, conn *pgx.Conn, _ pgx.TraceQueryEndData) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if conn.PgConn().TxStatus() == 'T' {
		if l.locks[conn] == nil {
			l.locks[conn] = locked{}
		}
		lookAtLocks(l.t, l.side, conn.PgConn().PID(), l.locks[conn])
		return
	}
	if had := l.locks[conn]; had != nil { // it has ended
		i := slices.IndexFunc(knownBy, func(k struct{ step, text string }) bool { return regexp.MustCompile(k.text).MatchString(l.text[conn]) })
		if i >= 0 {
			merge(l.steps, knownBy[i].step, had)
		}
	}
	delete(l.locks, conn)
	l.text[conn] = ""
}

func merge(steps map[string]locked, step string, more locked) {
	if steps[step] == nil {
		steps[step] = locked{}
	}
	for relation, mode := range more {
		if slices.Index(modes, mode) > slices.Index(modes, steps[step][relation]) {
			steps[step][relation] = mode
		}
	}
}

// lookAtLocks adds the tables that a session has locked or waits for.
func lookAtLocks(t *testing.T, side *pgx.Conn, pid uint32, into locked) (waits bool) {
	rows, err := side.Query(context.WithoutCancel(t.Context()), `SELECT c.relname::text, l.mode, l.granted FROM pg_locks l JOIN pg_class c ON c.oid = l.relation
		WHERE l.pid = $1 AND l.locktype = 'relation' AND c.relkind IN ('r', 'p') AND c.relname LIKE 'audit\_%'`, pid)
	require.NoError(t, err)
	var relation, mode string
	var granted bool
	_, err = pgx.ForEachRow(rows, []any{&relation, &mode, &granted}, func() error {
		into.add(relation, mode)
		waits = waits || !granted
		return nil
	})
	require.NoError(t, err)
	return waits
}

// meanwhile runs a statement that can't be in a transaction, and looks at its locks until it ends; each look is told whether it waits for one.
func meanwhile(t *testing.T, db, before, sql string, each func(waits bool)) locked {
	t.Helper()
	side, conn := dial(t, db), dial(t, db)
	exec(t, conn, before)
	var group errgroup.Group
	done := make(chan struct{})
	group.Go(func() error {
		defer close(done)
		_, err := conn.Exec(t.Context(), sql)
		return err
	})
	all := locked{}
	for {
		select {
		case <-done:
			require.NoError(t, group.Wait())
			return all
		default:
			each(lookAtLocks(t, side, conn.PgConn().PID(), all))
		}
	}
}

// TestLocksAreAsDocumented: the table in docs/partitions.md is what pg_locks says.
func TestLocksAreAsDocumented(t *testing.T) {
	doc, err := os.ReadFile("../docs/partitions.md")
	require.NoError(t, err)
	_, table, found := strings.Cut(string(doc), "<!-- locks:begin -->\n")
	require.True(t, found)
	table, _, found = strings.Cut(table, "<!-- locks:end -->")
	require.True(t, found)
	documented := map[string]string{}
	for _, line := range strings.Split(strings.TrimSpace(table), "\n")[2:] {
		cells := strings.Split(strings.Trim(line, "| "), " | ")
		require.Len(t, cells, 4, line)
		documented[cells[0]] = strings.Join(cells[1:], " | ")
	}
	versions(t, func(t *testing.T, db string) {
		steps := measure(t, db)
		newest := column[bool](t, dial(t, db), `SELECT current_setting('server_version_num')::int >= 180000`)[0]
		for step, want := range documented {
			if newest && strings.HasSuffix(step, "(before 18)") || !newest && strings.HasSuffix(step, "(18)") {
				continue
			}
			if assert := steps[step]; assert == nil {
				t.Errorf("%s: documented and not measured", step)
			} else if got := assert.String(); got != want {
				t.Errorf("%s: documented %s, measured %s", step, want, got)
			}
			delete(steps, step)
		}
		for step, got := range steps {
			t.Errorf("| %s | %s | measured and not documented", step, got)
		}
	})
}

// measure takes every step that maintenance knows, in the course of a partition's life.
func measure(t *testing.T, db string) map[string]locked {
	t.Helper()
	tracer := &lockTracer{t: t, side: dial(t, db), text: map[*pgx.Conn]string{}, locks: map[*pgx.Conn]locked{}, steps: map[string]locked{}}
	cfg, err := pgxpool.ParseConfig(db)
	require.NoError(t, err)
	cfg.MaxConns = 4
	cfg.ConnConfig.Tracer = tracer
	traced, err := pgxpool.NewWithConfig(t.Context(), cfg)
	require.NoError(t, err)
	t.Cleanup(traced.Close)
	pool := open(t, db)
	term := takeTerm(t, pool, "me")
	ctx := t.Context()

	_, err = EnsureFor(ctx, traced, now, 800*24*time.Hour, Schedule{}, []time.Time{at("2025-10-01"), at("2025-11-01")})
	require.NoError(t, err)
	fill(t, pool, "2025-10-05", 2000)
	fill(t, pool, "2025-11-05", 2000) // of the policy standard
	exec(t, pool, `UPDATE audit_log SET retention_policy = CASE WHEN id % 2 = 0 THEN '1' ELSE '60' END WHERE timestamp < '2025-11-01 00:00+00'; ALTER TABLE audit_log_2025_11 RESET (autovacuum_freeze_min_age)`)
	tx := begin(t, traced)
	exec(t, tx, `UPDATE audit_leader SET renewed_at = now()`)
	require.NoError(t, tx.Commit(ctx))
	hold, err := PlaceHold(ctx, traced, Hold{From: at("2001-01-01"), Until: at("2001-02-01"), Reason: "a test"}, "test")
	require.NoError(t, err)
	_, err = ReleaseHold(ctx, traced, hold.ID, "a test", "test")
	require.NoError(t, err)
	_, err = Upkeep(ctx, traced, term, now)
	require.NoError(t, err)
	exec(t, pool, `CREATE INDEX audit_log_2025_11_timestamp_brin_idx ON audit_log_2025_11 USING brin (timestamp)`)
	_, err = (&Summarizer{DB: traced, Now: func() time.Time { return at("2025-11-20") }}).Summarize(ctx, term)
	require.NoError(t, err)
	// Rows of the policy 1 (that is 30 days) expire on November 4th; the others, and so the partition, on December 31st.
	quick := Retention{Enforce: true, MinDays: 30}
	_, err = Expire(ctx, traced, term, at("2025-11-20"), quick)
	require.NoError(t, err)
	require.Equal(t, []int{1000}, column[int](t, pool, `SELECT count(*) FROM audit_log_2025_10`))
	slow := Retention{Enforce: true, MinDays: 30, Grace: 24 * time.Hour}
	_, err = Retire(ctx, traced, term, at("2026-01-10"), slow)
	require.NoError(t, err)
	restored, err := Restore(ctx, traced, "audit_log_2025_10", "a test", "test")
	require.NoError(t, err)
	_, err = ReleaseHold(ctx, pool, restored.Hold.ID, "a test", "test")
	require.NoError(t, err)
	for range 2 { // detached, then dropped
		_, err = Retire(ctx, traced, term, at("2026-01-10"), quick)
		require.NoError(t, err)
	}
	require.Empty(t, column[string](t, pool, `SELECT 'there' WHERE to_regclass('audit_log_2025_10') IS NOT NULL`))

	// A detach that was interrupted.
	reader := begin(t, pool)
	exec(t, reader, `SELECT FROM audit_log LIMIT 1`)
	_, err = open(t, db, "lock_timeout", "100ms").Exec(ctx, `ALTER TABLE audit_log DETACH PARTITION audit_log_2025_11 CONCURRENTLY`)
	require.ErrorContains(t, err, "55P03")
	require.NoError(t, reader.Rollback(ctx))
	tx = begin(t, traced)
	exec(t, tx, `ALTER TABLE audit_log DETACH PARTITION audit_log_2025_11 FINALIZE`)
	require.NoError(t, tx.Commit(ctx))
	exec(t, pool, `ALTER TABLE audit_log ATTACH PARTITION audit_log_2025_11 FOR VALUES FROM ('2025-11-01 00:00+00') TO ('2025-12-01 00:00+00')`)

	tracer.mu.Lock()
	defer tracer.mu.Unlock()
	steps := tracer.steps
	fill(t, pool, "2025-11-06", 2000) // since it is frozen by now
	slowly := `SET vacuum_cost_delay = 10; SET vacuum_cost_limit = 1`
	steps["vacuum and freeze a partition"] = meanwhile(t, db, slowly, `VACUUM (FREEZE, TRUNCATE false) audit_log_2025_11`, func(bool) {})
	if steps["analyze audit_log (18)"] == nil {
		steps["analyze audit_log (before 18)"] = meanwhile(t, db, slowly, `ANALYZE audit_log`, func(bool) {})
	}
	// It gives the lock back before its transaction ends, so it has to wait for it to be seen.
	holder := begin(t, pool)
	exec(t, holder, `LOCK TABLE audit_log_2025_11 IN SHARE UPDATE EXCLUSIVE MODE`)
	merge(steps, "summarize a BRIN", meanwhile(t, db, `SELECT`, `SELECT brin_summarize_new_values('audit_log_2025_11_timestamp_brin_idx')`, func(waits bool) {
		if waits && !holder.Conn().IsClosed() && holder.Conn().PgConn().TxStatus() == 'T' {
			require.NoError(t, holder.Rollback(t.Context()))
		}
	}))
	writer := begin(t, pool)
	exec(t, writer, `INSERT INTO audit_log (timestamp, action, status) VALUES ('2025-11-07 00:00+00', 'a', 'success')`)
	looks := 0
	steps["build a deferred index (CONCURRENTLY)"] = meanwhile(t, db, `SELECT`, `CREATE INDEX CONCURRENTLY built ON audit_log_2025_11 (recorded_at)`, func(bool) {
		if looks < 10 && column[bool](t, writer, `SELECT EXISTS (SELECT FROM pg_stat_progress_create_index)`)[0] {
			if looks++; looks == 10 {
				require.NoError(t, writer.Rollback(t.Context()))
			}
		}
	})
	// A reader of audit_log keeps the detach in its first part, and one of the partition itself in its second.
	first, second := begin(t, pool), begin(t, pool)
	exec(t, first, `SELECT FROM audit_log LIMIT 1`)
	part := 1
	steps["detach (CONCURRENTLY)"] = meanwhile(t, db, `SELECT`, `ALTER TABLE audit_log DETACH PARTITION audit_log_2025_11 CONCURRENTLY`, func(waits bool) {
		pending := column[bool](t, first, `SELECT EXISTS (SELECT FROM pg_inherits WHERE inhparent = 'audit_log'::regclass AND inhdetachpending)`)
		switch {
		case part == 1 && pending[0]:
			exec(t, second, `SELECT FROM audit_log_2025_11 LIMIT 1`)
			require.NoError(t, first.Rollback(t.Context()))
			first, part = begin(t, pool), 2
		case part == 2 && waits:
			require.NoError(t, second.Rollback(t.Context()))
			part = 3
		}
	})
	require.Equal(t, 3, part)
	return steps
}
