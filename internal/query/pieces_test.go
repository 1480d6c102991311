package query_test

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/stretchr/testify/require"

	"auditsink/internal/event"
	"auditsink/internal/indexes"
	"auditsink/internal/postgres"
	"auditsink/internal/query"
	"auditsink/internal/testkit"
	"auditsink/metrics"
	"auditsink/migrations"
)

// hotBed is a table partition as deferred builds leave it, with no more than a BRIN to find its rows by.
type hotBed struct {
	recorder *recorder
	reader   *query.Reader
	conn     *pgx.Conn
	now      time.Time
	blocks   int // of the table
	tail     int // of these, what has come since the BRIN was last summarized
}

// hotShape is when its rows are of, seen from now, and in which order they came.
type hotShape struct {
	name           string
	oldest, newest time.Duration
	shuffled       bool
}

var (
	upToNow = hotShape{"up to now", -23 * time.Hour, 0, false}
	quiet   = hotShape{"quiet for hours", -23 * time.Hour, -7 * time.Hour, false}
	// Both clocks are ours: the database's isn't asked.
	ahead    = hotShape{"much of it ahead of our clock", -23 * time.Hour, 20 * time.Hour, false}
	allAhead = hotShape{"all of it ahead of our clock", time.Hour, 20 * time.Hour, false}
	shuffled = hotShape{"shuffled", -23 * time.Hour, 0, true}
)

// newHotBed makes it of so many rows. The last twentieth isn't summarized: it is what comes in a minute to a partition that is twenty minutes old, and of a day's a minute is much less.
func newHotBed(t testing.TB, version, rows int, shape hotShape) *hotBed {
	t.Helper()
	url := testkit.Postgres(t, version)
	_, err := migrations.Apply(t.Context(), url)
	require.NoError(t, err)
	b := &hotBed{recorder: &recorder{}, now: time.Now().UTC().Truncate(time.Microsecond)}
	b.conn, err = pgx.Connect(t.Context(), url)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, b.conn.Close(context.WithoutCancel(t.Context()))) })
	choice := indexes.Choice{Profile: indexes.Full, Build: indexes.Deferred}
	require.NoError(t, pgx.BeginFunc(t.Context(), b.conn, func(tx pgx.Tx) error { return indexes.Choose(t.Context(), tx, choice) }))
	exec := func(sql string, args ...any) {
		_, err := b.conn.Exec(t.Context(), sql, args...)
		require.NoError(t, err, sql)
	}
	exec(`SELECT create_audit_log_partition('audit_log_hot', $1, $2)`, b.now.Add(shape.oldest-30*time.Minute), b.now.Add(24*time.Hour))
	exec(`ALTER TABLE audit_log_hot SET (autovacuum_enabled = off)`)
	step := 1
	if shape.shuffled {
		step = 7919 // a prime, so that each comes once
	}
	insert := func(from, till int) {
		exec(`
			INSERT INTO audit_log (timestamp, principal_id, organization_id, action, status, hash, correlation_id, retention_policy, details)
			SELECT $1::timestamptz - $2::float8 * interval '1 second' * i / $3::int, 'user-' || i % 997, 'org-' || i % 11, 'data.read', CASE WHEN i % 10 = 0 THEN 'failure' ELSE 'success' END,
			       md5(i::text) || md5(i::text), 'corr-' || i / 3, 'standard', jsonb_build_object('more', repeat('x', 60)) FROM (SELECT n::bigint * $6::int % $3::int AS i FROM generate_series($4::int - 1, $5::int, -1) n) numbers`,
			b.now.Add(shape.newest), (shape.newest - shape.oldest).Seconds(), rows, from, till, step)
	}
	blocks := func() (n int) {
		require.NoError(t, b.conn.QueryRow(t.Context(), `SELECT pg_relation_size('audit_log_hot') / 8192`).Scan(&n))
		return n
	}
	// Autovacuum analyzes after each twentieth. Without statistics the planner doesn't know that the BRIN leads to few blocks, and reads all of the primary key.
	insert(rows, rows/20)
	exec(`ANALYZE audit_log_hot`)
	exec(`SELECT brin_summarize_new_values('audit_log_hot_timestamp_brin_idx')`)
	b.tail = -blocks()
	insert(rows/20, 0)
	b.blocks = blocks()
	b.tail += b.blocks
	cfg, err := pgxpool.ParseConfig(url)
	require.NoError(t, err)
	cfg.ConnConfig.Tracer = b.recorder
	pool, err := pgxpool.NewWithConfig(t.Context(), cfg)
	require.NoError(t, err)
	t.Cleanup(pool.Close)
	b.reader = query.New(&postgres.Pool{Pool: pool}, query.Options{Metrics: metrics.New("test", event.Reasons()), Timeout: time.Minute})
	return b
}

// buffers is how many blocks what was noted touches, and how many statements that were. For the few events that remain of a rare value the planner may read the primary key of so small a table; that counts too.
func (b *hotBed) buffers(t *testing.T) (blocks, statements int) {
	t.Helper()
	for _, s := range b.recorder.take() {
		if strings.HasPrefix(s.sql, "BEGIN") || s.sql == "ROLLBACK" {
			_, err := b.conn.Exec(t.Context(), s.sql, pgx.QueryExecModeSimpleProtocol)
			require.NoError(t, err)
			continue
		}
		if strings.Contains(s.sql, "audit_log_partition_bounds") {
			continue
		}
		var plans []struct{ Plan node }
		var text []byte
		require.NoError(t, b.conn.QueryRow(t.Context(), "EXPLAIN (ANALYZE, BUFFERS, TIMING off, FORMAT JSON) "+s.sql, s.args...).Scan(&text))
		require.NoError(t, json.Unmarshal(text, &plans))
		blocks += plans[0].Plan.Hit + plans[0].Plan.Read
		statements++
	}
	return blocks, statements
}

// TestHotPartition: pages of a table partition that has no more than a BRIN read a small part of it, from either end, after a cursor, where nothing was stored for hours or much is later than our
// clock, and with a filter; one that matches next to nothing reads it about twice, for what a piece holds is counted first. Each statement reads besides what came since the BRIN was summarized.
// One that is shuffled is read by one statement, once.
func TestHotPartition(t *testing.T) {
	for _, bed := range []struct {
		version, rows int
		hotShape
	}{{15, 100_000, quiet}, {15, 20_000, shuffled}, {18, 100_000, upToNow}, {18, 100_000, quiet}, {18, 100_000, ahead}, {18, 100_000, allAhead}, {18, 20_000, shuffled}} {
		t.Run(fmt.Sprintf("postgres%d, %s", bed.version, bed.name), func(t *testing.T) {
			b := newHotBed(t, bed.version, bed.rows, bed.hotShape)
			for _, c := range []struct {
				name  string
				set   func(*query.Filter)
				most  float64 // of the table
				found int
			}{
				{"newest", func(*query.Filter) {}, 0.2, 100},
				{"oldest", func(f *query.Filter) { f.Ascending = true }, 0.2, 100},
				{"newest failures", func(f *query.Filter) { f.Status = "failure" }, 0.4, 100},
				{"newest of a principal", func(f *query.Filter) { f.PrincipalID = "user-77" }, 2.5, bed.rows / 997},
				{"three in all", func(f *query.Filter) { f.CorrelationID = fmt.Sprintf("corr-%d", bed.rows/5) }, 2.5, 3},
			} {
				most, statements := c.most*float64(b.blocks), 40
				if bed.shuffled {
					most, statements = 1.1*float64(b.blocks), 1
				}
				f := query.Filter{From: b.now.Add(-30 * 24 * time.Hour), To: b.now.Add(30 * 24 * time.Hour)}
				c.set(&f)
				after := ""
				for n := range 3 {
					page, err := b.reader.Events(t.Context(), query.Everything(), f, 100, after)
					require.NoError(t, err)
					read, ran := b.buffers(t)
					t.Logf("%s, page %d: %d events, %d of %d blocks in %d statements, %d of them in each", c.name, n+1, len(page.Events), read, b.blocks, ran, b.tail)
					require.LessOrEqual(t, ran, statements, "%s, page %d", c.name, n+1)
					if !bed.shuffled {
						read -= ran * b.tail
					}
					require.LessOrEqual(t, float64(read), most, "%s, page %d", c.name, n+1)
					if n == 0 {
						require.GreaterOrEqual(t, len(page.Events), min(c.found, 100))
					}
					if after = page.Next; after == "" {
						break
					}
				}
			}
		})
	}
}

// BenchmarkHotPage times a page of 100 of a hot partition of a million rows.
func BenchmarkHotPage(b *testing.B) {
	bed := newHotBed(b, 18, 1_000_000, upToNow)
	for _, c := range []struct {
		name   string
		filter query.Filter
	}{
		{"newest", query.Filter{}},
		{"oldest", query.Filter{Ascending: true}},
		{"1 in 10", query.Filter{Status: "failure"}},
		{"1 in 11, of an organization", query.Filter{OrganizationID: "org-7"}},
		{"1 in 997", query.Filter{PrincipalID: "user-77"}},
		{"3 in all", query.Filter{CorrelationID: "corr-200000"}},
	} {
		b.Run(c.name, func(b *testing.B) {
			c.filter.From, c.filter.To = bed.now.Add(-24*time.Hour), bed.now.Add(time.Hour)
			for b.Loop() {
				page, err := bed.reader.Events(b.Context(), query.Everything(), c.filter, 100, "")
				if err != nil || len(page.Events) == 0 {
					b.Fatal(len(page.Events), err)
				}
			}
		})
	}
}
