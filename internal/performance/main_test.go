package performance

import (
	"context"
	"fmt"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/stretchr/testify/require"
	"go.uber.org/zap"
	"go.uber.org/zap/zaptest"

	"auditsink/internal/testkit"
	"auditsink/metrics"
	"auditsink/migrations"
	"auditsink/partitions"
)

const (
	testTimeout = time.Minute
	testTick    = 20 * time.Millisecond
)

// start is when the tests' clock begins. The database's is another.
var start = time.Date(2026, 12, 10, 12, 0, 0, 0, time.UTC)

func TestMain(m *testing.M) { testkit.Main(m) }

// bed is a database with partitions, and a worker's metrics with a clock that the test turns.
type bed struct {
	*testing.T
	url     string
	pool    *pgxpool.Pool
	metrics *metrics.Metrics
	now     time.Time
}

// versions runs a test on the oldest and the newest Postgres that are supported.
func versions(t *testing.T, test func(b *bed)) {
	t.Helper()
	for _, version := range []int{15, 18} {
		t.Run(fmt.Sprint(version), func(t *testing.T) { test(newBed(t, testkit.Postgres(t, version))) })
	}
}

// own is versions with a server for this test alone, with these settings.
func own(t *testing.T, settings map[string]string, test func(b *bed)) {
	t.Helper()
	for _, version := range []int{15, 18} {
		t.Run(fmt.Sprint(version), func(t *testing.T) {
			db, err := testkit.OwnPostgres(t, testkit.PostgresOptions{Version: version, Settings: settings}).CreateDatabase(t.Context())
			require.NoError(t, err)
			test(newBed(t, db))
		})
	}
}

func newBed(t *testing.T, db string) *bed {
	t.Helper()
	_, err := migrations.Apply(t.Context(), db)
	require.NoError(t, err)
	b := &bed{T: t, url: db, metrics: metrics.New("v1", []time.Duration{}), now: start}
	b.pool = b.open()
	_, err = partitions.EnsureFor(t.Context(), b.pool, start, 365*24*time.Hour, partitions.Schedule{}, []time.Time{start, start.AddDate(0, -1, 0), start.AddDate(0, -2, 0)})
	require.NoError(t, err)
	return b
}

// open opens a pool; parameters are pairs for the URL.
func (b *bed) open(parameters ...string) *pgxpool.Pool {
	b.Helper()
	u, err := url.Parse(b.url)
	require.NoError(b, err)
	q := u.Query()
	q.Set("pool_max_conns", "4")
	q.Set("application_name", "auditsink")
	for i := 0; i < len(parameters); i += 2 {
		q.Set(parameters[i], parameters[i+1])
	}
	u.RawQuery = strings.ReplaceAll(q.Encode(), "+", "%20")
	pool, err := pgxpool.New(b.Context(), u.String())
	require.NoError(b, err)
	b.Cleanup(pool.Close)
	return pool
}

func (b *bed) exec(sql string, args ...any) {
	b.Helper()
	_, err := b.pool.Exec(b.Context(), sql, args...)
	require.NoError(b, err)
}

// do runs statements on one session, whose statistics are then there for all to read.
func (b *bed) do(statements ...string) {
	b.Helper()
	conn, err := pgx.Connect(b.Context(), b.url)
	require.NoError(b, err)
	defer conn.Close(context.WithoutCancel(b.Context())) //nolint:errcheck // a test's
	for _, sql := range append(statements, `SELECT pg_stat_force_next_flush()`, `SELECT 1`) {
		_, err := conn.Exec(b.Context(), sql)
		require.NoError(b, err, sql)
	}
}

func one[T any](b *bed, sql string, args ...any) (v T) {
	b.Helper()
	require.NoError(b, b.pool.QueryRow(b.Context(), sql, args...).Scan(&v))
	return v
}

// fill inserts rows of the month, as text like 2026-12.
func (b *bed) fill(month string, rows int) {
	b.Helper()
	b.do(fmt.Sprintf(`INSERT INTO audit_log (timestamp, action, status, principal_id) SELECT '%s-05 00:00+00', 'a', 'success', 'p' || n FROM generate_series(1, %d) n`, month, rows))
}

// bare drops the indexes that only make a test slow.
func (b *bed) bare() {
	b.Helper()
	b.do(`DO $$ DECLARE i record; BEGIN FOR i IN SELECT indexrelid::regclass AS name FROM pg_index WHERE indrelid = 'audit_log'::regclass AND NOT indisprimary LOOP
		EXECUTE 'DROP INDEX ' || i.name; END LOOP; END $$`)
}

func (b *bed) clock() time.Time { return b.now }

// collector makes one that has taken its first look.
func (b *bed) collector(change ...func(*Options)) *Collector {
	b.Helper()
	o := Options{
		DB: b.pool, Metrics: b.metrics, Log: zaptest.NewLogger(b), Worker: "me", Every: time.Hour, Slow: time.Second, PoolMaxConns: 20, ReadMaxConns: 4, Now: b.clock,
	}
	for _, c := range change {
		c(&o)
	}
	c := New(o)
	require.NoError(b, c.begin(b.Context()))
	return c
}

// next is the report of the window of a minute that ends now.
func (b *bed) next(c *Collector) Report {
	b.Helper()
	b.now = b.now.Add(time.Minute)
	r, err := c.next(b.Context())
	require.NoError(b, err)
	return r
}

func (b *bed) logger() *zap.Logger { return zap.NewNop() }

// replaceUser is the URL for another user.
func replaceUser(url, user string) string { return strings.Replace(url, "postgres@", user+"@", 1) }
