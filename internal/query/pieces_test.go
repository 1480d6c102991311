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

// hotBed is a table partition of two days around now, as deferred builds leave it: with rows of the last day, in the order of their time, and no more than a BRIN to find them by.
type hotBed struct {
	recorder *recorder
	reader   *query.Reader
	conn     *pgx.Conn
	now      time.Time
	rows     int
	blocks   int // of the table
}

// newHotBed makes it of so many rows, the newest of which is quiet old.
func newHotBed(t testing.TB, version, rows int, quiet time.Duration) *hotBed {
	t.Helper()
	server, err := testkit.StartPostgres(t.Context(), testkit.PostgresOptions{Version: version, Settings: map[string]string{"fsync": "off", "autovacuum": "off"}})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, server.Close()) })
	url, err := server.CreateDatabase(t.Context())
	require.NoError(t, err)
	_, err = migrations.Apply(t.Context(), url)
	require.NoError(t, err)
	b := &hotBed{recorder: &recorder{}, now: time.Now().UTC().Truncate(time.Microsecond), rows: rows}
	b.conn, err = pgx.Connect(t.Context(), url)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, b.conn.Close(context.WithoutCancel(t.Context()))) })
	choice := indexes.Choice{Profile: indexes.Full, Build: indexes.Deferred}
	require.NoError(t, pgx.BeginFunc(t.Context(), b.conn, func(tx pgx.Tx) error { return indexes.Choose(t.Context(), tx, choice) }))
	exec := func(sql string, args ...any) {
		_, err := b.conn.Exec(t.Context(), sql, args...)
		require.NoError(t, err, sql)
	}
	exec(`SELECT create_audit_log_partition('audit_log_hot', $1, $2)`, b.now.Add(-24*time.Hour), b.now.Add(24*time.Hour))
	insert := func(from, till int) { // in steps back from the newest
		exec(`
			INSERT INTO audit_log (timestamp, principal_id, organization_id, action, status, hash, correlation_id, retention_policy, details)
			SELECT $1::timestamptz - $2::float8 * interval '1 second' * i / $3::int, 'user-' || i % 997, 'org-' || i % 11, 'data.read', CASE WHEN i % 10 = 0 THEN 'failure' ELSE 'success' END,
			       md5(i::text) || md5(i::text), 'corr-' || i / 3, 'standard', jsonb_build_object('more', repeat('x', 60)) FROM generate_series($4::int - 1, $5::int, -1) i`,
			b.now.Add(-quiet), (23*time.Hour - quiet).Seconds(), rows, from, till)
	}
	// Autovacuum analyzes after each twentieth. Without statistics the planner doesn't know that the BRIN leads to few blocks, and reads all of the primary key.
	insert(rows, rows/20)
	exec(`ANALYZE audit_log_hot`)
	insert(rows/20, 0)
	exec(`SELECT brin_summarize_new_values('audit_log_hot_timestamp_brin_idx')`)
	require.NoError(t, b.conn.QueryRow(t.Context(), `SELECT pg_relation_size('audit_log_hot') / 8192`).Scan(&b.blocks))
	cfg, err := pgxpool.ParseConfig(url)
	require.NoError(t, err)
	cfg.ConnConfig.Tracer = b.recorder
	pool, err := pgxpool.NewWithConfig(t.Context(), cfg)
	require.NoError(t, err)
	t.Cleanup(pool.Close)
	b.reader = query.New(&postgres.Pool{Pool: pool}, query.Options{Metrics: metrics.New("test", event.Reasons()), Timeout: time.Minute})
	return b
}

// buffers is how many blocks what was noted touches, and how many statements that were.
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
		plans[0].Plan.walk(func(n node) {
			if n.Index != "" {
				require.Equal(t, "audit_log_hot_timestamp_brin_idx", n.Index, "%s", text)
			}
		})
	}
	return blocks, statements
}

// TestHotPartition: pages of a table partition that has no more than a BRIN read a small part of it, from either end, after a cursor, where nothing was stored for hours, and with a
// filter; one that matches next to nothing reads it about twice, for what a piece holds is counted first.
func TestHotPartition(t *testing.T) {
	for _, version := range []int{15, 18} {
		for _, quiet := range []time.Duration{0, 7 * time.Hour} {
			t.Run(fmt.Sprintf("postgres%d, quiet for %s", version, quiet), func(t *testing.T) {
				b := newHotBed(t, version, 100_000, quiet)
				for _, c := range []struct {
					name  string
					set   func(*query.Filter)
					most  float64 // of the table
					found int
				}{
					{"newest", func(*query.Filter) {}, 0.2, 100},
					{"oldest", func(f *query.Filter) { f.Ascending = true }, 0.2, 100},
					{"newest failures", func(f *query.Filter) { f.Status = "failure" }, 0.4, 100},
					{"newest of a principal", func(f *query.Filter) { f.PrincipalID = "user-77" }, 2.5, 100},
					{"three in all", func(f *query.Filter) { f.CorrelationID = "corr-20000" }, 2.5, 3},
				} {
					f := query.Filter{From: b.now.Add(-30 * 24 * time.Hour), To: b.now.Add(30 * 24 * time.Hour)}
					c.set(&f)
					after := ""
					for n := range 3 {
						page, err := b.reader.Events(t.Context(), query.Everything(), f, 100, after)
						require.NoError(t, err)
						blocks, statements := b.buffers(t)
						t.Logf("%s, page %d: %d events, %d of %d blocks in %d statements", c.name, n+1, len(page.Events), blocks, b.blocks, statements)
						require.LessOrEqual(t, float64(blocks), c.most*float64(b.blocks), "%s, page %d", c.name, n+1)
						require.LessOrEqual(t, statements, 40)
						if n == 0 {
							require.Len(t, page.Events, c.found)
						}
						if after = page.Next; after == "" {
							break
						}
					}
				}
			})
		}
	}
}

// BenchmarkHotPage times a page of 100 of a hot partition of a million rows.
func BenchmarkHotPage(b *testing.B) {
	bed := newHotBed(b, 18, 1_000_000, 0)
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
