package query_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/stretchr/testify/require"

	"auditsink/internal/event"
	"auditsink/internal/postgres"
	"auditsink/internal/query"
	"auditsink/internal/testkit"
	"auditsink/metrics"
)

// always is a range that holds everything.
var always = query.Filter{From: time.Date(2000, 1, 1, 0, 0, 0, 0, time.UTC), To: time.Date(2100, 1, 1, 0, 0, 0, 0, time.UTC)}

// through is a reader by way of another URL, on a pool of so many connections.
func (b *bed) through(url string, conns int32, prepared bool, change ...func(*query.Options)) *query.Reader {
	b.Helper()
	pool, err := postgres.Open(b.Context(), postgres.Options{URL: url, MaxConns: conns, Prepared: prepared, AcquireTimeout: 20 * time.Second})
	require.NoError(b, err)
	b.Cleanup(pool.Close)
	other := &bed{b.T, pool}
	return other.reader(change...)
}

func (b *bed) url() string { return b.pool.Config().ConnString() }

// hold locks audit_log against readers until the returned function is called.
func (b *bed) hold() (release func()) {
	b.Helper()
	tx, err := b.pool.Begin(b.Context())
	require.NoError(b, err)
	_, err = tx.Exec(b.Context(), `LOCK TABLE audit_log IN ACCESS EXCLUSIVE MODE`)
	require.NoError(b, err)
	release = sync.OnceFunc(func() { require.NoError(b, tx.Rollback(context.WithoutCancel(b.Context()))) })
	b.Cleanup(release) // a test that fails meanwhile leaves no connection for the pool to wait for
	return release
}

// TestTimeout: whoever waits too long is told so, by the server and with the connection kept; and who goes away leaves nothing behind.
func TestTimeout(t *testing.T) {
	b := newBed(t, 18, full(stamp(canonical)))
	m := metrics.New("test", event.Reasons())
	var dialed atomic.Int32
	cfg, err := pgxpool.ParseConfig(b.url())
	require.NoError(t, err)
	cfg.MaxConns = 1
	cfg.AfterConnect = func(context.Context, *pgx.Conn) error { dialed.Add(1); return nil }
	pool, err := pgxpool.NewWithConfig(t.Context(), cfg)
	require.NoError(t, err)
	t.Cleanup(pool.Close)
	r := query.New(&postgres.Pool{Pool: pool}, query.Options{Metrics: m, Timeout: 2 * time.Second, RetryAttempts: 1000, RetryDelay: time.Millisecond})
	_, err = r.Events(t.Context(), query.Everything(), always, 1, "") // it knows the layout now
	require.NoError(t, err)

	release := b.hold()
	_, events := r.Events(t.Context(), query.Everything(), always, 1, "")
	_, count := r.Count(t.Context(), query.Everything(), always, 1)
	_, one := r.Event(t.Context(), query.Everything(), 1, time.Time{})
	export := r.Export(t.Context(), query.Everything(), always, func(query.Event) error { return nil })
	for _, err := range []error{events, count, one, export} {
		require.ErrorIs(t, err, query.ErrTimeout)
		require.Equal(t, query.TimedOut, query.FailureOf(err))
		pg, ok := errors.AsType[*pgconn.PgError](err)
		require.True(t, ok, "%v", err)
		require.Contains(t, []string{"57014", "55P03"}, pg.Code)
	}
	require.EqualValues(t, 1, dialed.Load(), "the connection was kept")
	failed := func() float64 {
		sample, err := m.Sample(time.Now())
		require.NoError(t, err)
		return sample.Sum("query_failures_total")
	}
	require.InDelta(t, 4, failed(), 0)

	// The caller's own end is not a failure of ours, nor a timeout.
	gone := errors.New("gone")
	ctx, cancel := context.WithCancelCause(t.Context())
	done := make(chan error, 1)
	go func() {
		_, err := r.Events(ctx, query.Everything(), always, 1, "")
		done <- err
	}()
	waiting := `SELECT count(*) FROM pg_locks WHERE NOT granted AND database = (SELECT oid FROM pg_database WHERE datname = current_database())`
	b.eventually("it waits", func() bool { return b.number(waiting) == 1 })
	cancel(gone)
	err = <-done
	require.ErrorIs(t, err, gone)
	require.NotErrorIs(t, err, query.ErrTimeout)
	b.eventually("nobody waits", func() bool { return b.number(waiting) == 0 })
	require.InDelta(t, 4, failed(), 0)
	release()
	_, err = r.Events(t.Context(), query.Everything(), always, 1, "")
	require.NoError(t, err)
}

func (b *bed) number(sql string) (n int64) {
	b.Helper()
	require.NoError(b, b.pool.QueryRow(b.Context(), sql).Scan(&n))
	return n
}

func (b *bed) eventually(what string, cond func() bool) {
	b.Helper()
	late := time.After(time.Minute)
	for !cond() {
		select {
		case <-late:
			b.Fatal("it has not come true: " + what)
		case <-time.After(10 * time.Millisecond):
		}
	}
}

// cutConn is a connection that breaks after so many bytes from the server.
type cutConn struct {
	net.Conn
	left int
}

func (c *cutConn) Read(b []byte) (int, error) {
	if c.left <= 0 {
		return 0, errors.Join(net.ErrClosed, c.Close())
	}
	n, err := c.Conn.Read(b[:min(len(b), c.left)])
	c.left -= n
	return n, err
}

// TestRetries: wherever in an answer a connection breaks, the reader begins anew, and what it returns is whole and has nothing twice.
func TestRetries(t *testing.T) {
	b, all := newModelBed(t, 18)
	var cutAt, dialed atomic.Int64
	cfg, err := pgxpool.ParseConfig(b.url())
	require.NoError(t, err)
	cfg.ConnConfig.DialFunc = func(ctx context.Context, network, address string) (net.Conn, error) {
		conn, err := new(net.Dialer).DialContext(ctx, network, address)
		if n := dialed.Add(1); err == nil && n == 1 { // the first
			conn = &cutConn{conn, int(cutAt.Load())}
		}
		return conn, err
	}
	pool, err := pgxpool.NewWithConfig(t.Context(), cfg)
	require.NoError(t, err)
	t.Cleanup(pool.Close)
	read := func(attempts int) ([]int64, error) {
		r := query.New(&postgres.Pool{Pool: pool}, query.Options{Metrics: metrics.New("test", event.Reasons()), Timeout: time.Minute, RetryAttempts: attempts, RetryDelay: time.Microsecond})
		var ids []int64
		page, err := r.Events(t.Context(), query.Everything(), always, query.MaxLimit, "")
		for _, e := range page.Events {
			ids = append(ids, e.ID)
		}
		return ids, err
	}
	cutAt.Store(1 << 30)
	want, err := read(1)
	require.NoError(t, err)
	require.Len(t, want, min(query.MaxLimit, len(all)))
	cut := 0
	for at := int64(700); at < 400_000; at += at/5 + 1 {
		cutAt.Store(at)
		pool.Reset()
		dialed.Store(0)
		got, err := read(3)
		require.NoError(t, err, "cut after %d bytes", at)
		require.Equal(t, want, got, "cut after %d bytes", at)
		if dialed.Load() > 1 {
			cut++
		}
		pool.Reset()
		dialed.Store(0)
		if _, err = read(1); dialed.Load() > 1 {
			require.Error(t, err)
		}
	}
	require.Greater(t, cut, 20)
}

// TestServerGone: attempts are as many as set, and none begins beyond the deadline.
func TestServerGone(t *testing.T) {
	b := newBed(t, 18, full(stamp(canonical)))
	for _, c := range []struct {
		name            string
		attempts, dials int
		delay, timeout  time.Duration
		want            error
	}{
		{"as many as set", 3, 3, time.Millisecond, time.Minute, nil},
		{"one", 1, 1, time.Millisecond, time.Minute, nil},
		{"none beyond the deadline", 3, 1, time.Hour, time.Minute, nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			var dialed atomic.Int32
			cfg, err := pgxpool.ParseConfig(b.url())
			require.NoError(t, err)
			cfg.ConnConfig.DialFunc = func(context.Context, string, string) (net.Conn, error) {
				dialed.Add(1)
				return nil, errors.New("no route")
			}
			pool, err := pgxpool.NewWithConfig(t.Context(), cfg)
			require.NoError(t, err)
			t.Cleanup(pool.Close)
			r := query.New(&postgres.Pool{Pool: pool}, query.Options{Metrics: metrics.New("test", event.Reasons()), Timeout: c.timeout, RetryAttempts: c.attempts, RetryDelay: c.delay})
			_, err = r.Events(t.Context(), query.Everything(), always, 1, "")
			require.ErrorContains(t, err, "no route")
			require.Equal(t, query.Unavailable, query.FailureOf(err))
			require.EqualValues(t, c.dials, dialed.Load())
		})
	}
}

// TestThroughPooler: a pooler in transaction mode, without prepared statements, makes no difference; nor do the settings of one read outlive it.
func TestThroughPooler(t *testing.T) {
	b, all := newModelBed(t, 15)
	url := testkit.OwnPgBouncer(t, b.url())
	direct, pooled := b.reader(), b.through(url, 4, false)
	f := always
	f.Status = "success"
	for _, scope := range []query.Scope{query.Everything(), query.Organizations("A", `B"{,\`, "C")} {
		want, err := direct.Events(t.Context(), scope, f, 100, "")
		require.NoError(t, err)
		require.NotEmpty(t, want.Next)
		for after := ""; ; {
			want, err := direct.Events(t.Context(), scope, f, 100, after)
			require.NoError(t, err)
			got, err := pooled.Events(t.Context(), scope, f, 100, after)
			require.NoError(t, err)
			require.Equal(t, want, got)
			if after = got.Next; after == "" {
				break
			}
		}
		counted, err := direct.Count(t.Context(), scope, f, 1000)
		require.NoError(t, err)
		count, err := pooled.Count(t.Context(), scope, f, 1000)
		require.NoError(t, err)
		require.Equal(t, counted, count)
		require.Positive(t, count.Count)
	}
	one, err := pooled.Event(t.Context(), query.Everything(), all[0].ID, all[0].Timestamp)
	require.NoError(t, err)
	require.Equal(t, all[0].ID, one.ID)

	conn, err := pgx.Connect(t.Context(), url)
	require.NoError(t, err)
	defer conn.Close(t.Context()) //nolint:errcheck // a test's
	for range 10 {
		var timeout, readOnly string
		require.NoError(t, conn.QueryRow(t.Context(), `SELECT current_setting('statement_timeout'), current_setting('transaction_read_only')`, pgx.QueryExecModeExec).Scan(&timeout, &readOnly))
		require.Equal(t, []string{"0", "off"}, []string{timeout, readOnly})
	}
}

// TestExportHoldsNothing: while found is called the reader has no connection, so nothing waits for whoever takes the events slowly.
func TestExportHoldsNothing(t *testing.T) {
	b, all := newModelBed(t, 18)
	r := b.through(b.url()+"&application_name=export", 1, true)
	found := 0
	require.NoError(t, r.Export(t.Context(), query.Everything(), always, func(query.Event) error {
		if found++; found%500 == 1 {
			require.Zero(t, b.number(`SELECT count(*) FROM pg_stat_activity WHERE application_name = 'export' AND state <> 'idle'`))
			_, err := r.Count(t.Context(), query.Everything(), always, 1) // the pool's only connection is free
			require.NoError(t, err)
		}
		return nil
	}))
	require.Equal(t, len(all), found)

	ctx, cancel := context.WithCancelCause(t.Context())
	gone := errors.New("gone")
	found = 0
	err := r.Export(ctx, query.Everything(), always, func(query.Event) error {
		if found++; found == 3 {
			cancel(gone)
		}
		return nil
	})
	require.ErrorIs(t, err, gone)
	require.Equal(t, 3, found, "it stops at once")
}

// TestLargeEvents: a page of large events ends early, and so does a chunk, but nothing is left out.
func TestLargeEvents(t *testing.T) {
	b := newBed(t, 18, full(stamp(canonical)))
	b.exec(`INSERT INTO audit_log (timestamp, action, status, details) SELECT timestamp, 'large', 'success', jsonb_build_object('pad', repeat('x', 1000000)) FROM audit_log, generate_series(1, 40)`)
	r := b.reader()
	var got []int64
	pages := 0
	for after := ""; pages == 0 || after != ""; pages++ {
		page, err := r.Events(t.Context(), query.Everything(), always, 100, after)
		require.NoError(t, err)
		require.LessOrEqual(t, len(page.Events), 17)
		for _, e := range page.Events {
			got = append(got, e.ID)
		}
		after = page.Next
	}
	require.Equal(t, 3, pages)
	var exported []int64
	require.NoError(t, r.Export(t.Context(), query.Everything(), always, func(e query.Event) error { exported = append(exported, e.ID); return nil }))
	require.Len(t, exported, 41)
	require.Equal(t, exported, got)
}

// TestManyPartitions: a server whose table of locks is too small for one statement on all table partitions answers nevertheless.
func TestManyPartitions(t *testing.T) {
	server := testkit.OwnPostgres(t, testkit.PostgresOptions{Version: 18, Settings: map[string]string{"max_locks_per_transaction": "10", "max_connections": "40"}})
	url, err := server.CreateDatabase(t.Context())
	require.NoError(t, err)
	b := bedOn(t, url)
	for day := range 150 {
		b.exec(`SELECT create_audit_log_partition('audit_log_d' || $1::int, '2023-01-01'::timestamptz + $1 * interval '1 day', '2023-01-01'::timestamptz + ($1 + 1) * interval '1 day')`, day)
	}
	b.exec(`INSERT INTO audit_log (timestamp, action, status) SELECT '2023-01-01'::timestamptz + n * interval '10 days', 'a', 'success' FROM generate_series(0, 14) n`)
	_, err = b.pool.Exec(t.Context(), `SELECT count(*) FROM audit_log WHERE action = 'a'`)
	require.ErrorContains(t, err, "53200", "or else the test shows nothing")

	r := b.reader()
	page, err := r.Events(t.Context(), query.Everything(), always, 100, "")
	require.NoError(t, err)
	require.Len(t, page.Events, 15)
	count, err := r.Count(t.Context(), query.Everything(), always, 100)
	require.NoError(t, err)
	require.EqualValues(t, 15, count.Count)
	for _, e := range page.Events {
		one, err := r.Event(t.Context(), query.Everything(), e.ID, time.Time{})
		require.NoError(t, err)
		require.Equal(t, e, one)
	}
	require.True(t, strings.HasPrefix(page.Events[14].Timestamp, "2023-01-01"), fmt.Sprint(page.Events[14]))
}
